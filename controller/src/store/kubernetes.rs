//! The store in a cluster: a record is the `spec` of a custom resource, a reign is a transition of a Lease.
//!
//! Compare-and-swap is by `resourceVersion`. What changes beside the spec (labels, status) changes that too; the store notices
//! that the spec is still the one it knows and goes on, so that a version tells states of *records* apart.
//!
//! Why a deposed controller can do no harm:
//! - It cannot change what its successor speaks from: [`Store::load`] writes every record that goals follow from again, under the
//!   new term, before it hands it out, so that what a predecessor still has on its way meets another version. Records
//!   that nobody is told anything about keep their version; whoever changes one of them first, the other one notices.
//! - It cannot add what its successor does not know of: a new record counts only once the Lease has been renewed after it
//!   was made. A successor takes the Lease before it loads.
//! - The API server refuses a spec with a smaller term or epoch than the one that stands there (CEL rules of the schema).
//!
//! An outcome that is not known is found out by asking again, for as long as the Lease is held: nobody else writes a record
//! under our term. Without the Lease nothing is written any more.
//!
//! Must not know: what decisions mean, who asks for them.

mod lease;
mod resource;
mod wire;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use pool::{
    ids::Term,
    record::{Key, Record},
};

pub use lease::{LeaseConfig, Other};

use super::{Page, Reign, Store, StoreError, Stored, Version};
use lease::Lease;
use resource::{KINDS, Kind, Resource};
use wire::{Failure, Wire};

/// Records that are written again at the same time when a reign begins.
const STAMPS: usize = 32;
/// How soon a request is made again whose outcome is not known, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// For how long a page of a list is asked for.
const LIST: Duration = Duration::from_secs(60);
/// The namespace whose UID names the cluster for good: it cannot be deleted.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// What is known of a record that the store has seen.
#[derive(Clone, Debug)]
struct Row {
    /// What the core calls its state.
    version: Version,
    /// The resource's present version; newer than `version` when something beside the spec has changed.
    resource_version: String,
    /// Which resource of this name it is.
    uid: String,
    /// Tells specs apart.
    fingerprint: u64,
}

/// The records of a cluster.
pub struct Kubernetes {
    wire: Wire,
    client: Client,
    lease: Lease,
    rows: Mutex<HashMap<Key, Row>>,
}

impl Kubernetes {
    /// The store of the cluster that `client` speaks to. Nothing is asked of it yet.
    pub fn new(client: Client, lease: LeaseConfig) -> Self {
        Self {
            wire: Wire::new(client.clone()),
            lease: Lease::new(client.clone(), lease),
            client,
            rows: Mutex::new(HashMap::new()),
        }
    }

    /// Waits until the reign that was begun is over: what comes back says why.
    pub async fn deposed(&self) -> String {
        self.lease.lost().await
    }

    /// Which other controller reigns, while one does.
    pub fn other(&self) -> tokio::sync::watch::Receiver<Option<Other>> {
        self.lease.other()
    }

    /// Gives the Lease up, so that another controller need not wait for its end.
    ///
    /// # Errors
    /// The API server cannot be reached; the Lease then runs out by itself.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.lease.release().await.map_err(|e| StoreError::NotNow(e.to_string()))
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<Key, Row>> {
        // Every critical section is one map operation, so a panic elsewhere poisons nothing.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, key: &Key) -> Option<Row> {
        self.rows().get(key).cloned()
    }

    /// Takes note of a resource whose spec is the record's state now.
    fn note(&self, key: &Key, r: &Resource) -> Result<Version, StoreError> {
        let version = r.version().ok_or_else(|| StoreError::Corrupt {
            key: key.to_string(),
            source: format!("its resourceVersion {:?} is no number", r.resource_version()).into(),
        })?;
        let row = Row {
            version,
            resource_version: r.resource_version().to_owned(),
            uid: r.uid().to_owned(),
            fingerprint: r.fingerprint(),
        };
        self.rows().insert(key.clone(), row);
        Ok(version)
    }

    /// The term under which writes are made.
    fn term(&self) -> Result<Term, StoreError> {
        self.lease.term().map_err(StoreError::Latched)
    }

    /// A page of a list, asked for again while the API server is busy: it may be while it starts itself.
    async fn list(&self, kind: Kind, token: Option<String>, max: usize) -> Result<wire::Listed, StoreError> {
        let (mut pause, begun) = (Pause::new(), tokio::time::Instant::now());
        loop {
            match self.wire.list(kind, token.clone(), max).await {
                Ok(page) => return Ok(page),
                Err(e) if e.may_pass() && begun.elapsed() < LIST => pause.wait(&e, kind.plural()).await,
                Err(e) => return Err(e.into_store(kind.plural())),
            }
        }
    }

    /// The highest term that records bear.
    async fn highest_term(&self) -> Result<u64, StoreError> {
        let mut highest = 0;
        for kind in KINDS {
            let mut token = None;
            loop {
                let page = self.list(kind, token, 500).await?;
                for r in page.resources {
                    highest = highest.max(r.map_err(corrupt)?.term().get());
                }
                token = page.next;
                if token.is_none() {
                    break;
                }
            }
        }
        Ok(highest)
    }

    /// Makes a record one of this reign before goals may follow from it.
    async fn stamp(&self, mut r: Resource, term: Term) -> Result<Option<Resource>, StoreError> {
        let mut pause = Pause::new();
        loop {
            if r.is_dead() {
                return Ok(None);
            }
            if r.term() >= term || !r.record().map_err(corrupt)?.has_goals() {
                return Ok(Some(r));
            }
            self.term()?;
            let record = r.record().map_err(corrupt)?;
            let wanted = Resource::of(&record, term);
            match self.wire.replace_spec(&wanted, r.resource_version()).await {
                Ok(written) => return Ok(Some(written)),
                // Somebody was faster: the predecessor with its last word, or a person with a label.
                Err(Failure::Conflict) => {}
                Err(Failure::Gone) => return Ok(None),
                Err(e) if e.may_pass() => pause.wait(&e, r.name()).await,
                Err(e) => return Err(e.into_store(r.name())),
            }
            match self.wire.get(r.kind(), r.name()).await {
                Ok(Some(now)) => r = now.map_err(corrupt)?,
                Ok(None) => return Ok(None),
                Err(e) if e.may_pass() => pause.wait(&e, r.name()).await,
                Err(e) => return Err(e.into_store(r.name())),
            }
        }
    }

    /// Reads a record's resource, however long that takes while the Lease is held.
    async fn read(&self, key: &Key, unsure: bool) -> Result<Option<Resource>, StoreError> {
        let (kind, name) = Kind::and_name(key);
        let mut pause = Pause::new();
        loop {
            match self.wire.get(kind, &name).await {
                Ok(found) => return found.transpose().map_err(corrupt),
                Err(e) if e.may_pass() => {
                    self.still_ours(key, unsure)?;
                    pause.wait(&e, &name).await;
                }
                Err(e) => return Err(e.into_store(&name)),
            }
        }
    }

    /// Fails when the reign is over: with "not known" where a write may have been made.
    fn still_ours(&self, key: &Key, unsure: bool) -> Result<Term, StoreError> {
        self.lease.term().map_err(|why| {
            if unsure {
                StoreError::OutcomeUnknown { what: key.to_string(), source: why.into() }
            } else {
                StoreError::Latched(why)
            }
        })
    }

    async fn create(&self, record: &Record) -> Result<Version, StoreError> {
        let key = record.key();
        let (mut unsure, mut pause) = (false, Pause::new());
        let made = loop {
            let term = self.still_ours(&key, unsure)?;
            let wanted = Resource::of(record, term);
            match self.wire.create(&wanted).await {
                Ok(made) => break made,
                Err(Failure::Conflict) => {
                    let there = self.read(&key, unsure).await?;
                    match there {
                        Some(r) if unsure && r.fingerprint() == wanted.fingerprint() => break r,
                        Some(r) => return Err(conflict(&key, None, r.version())),
                        // It went away in between: the next attempt makes it.
                        None => {}
                    }
                }
                Err(e @ Failure::Unsent(_)) if !unsure => return Err(e.into_store(&key.to_string())),
                Err(e) if e.may_pass() => {
                    unsure |= e.may_have_happened();
                    pause.wait(&e, wanted.name()).await;
                }
                Err(e) => return Err(e.into_store(&key.to_string())),
            }
        };
        // From here on a successor that takes the Lease sees the record when it loads.
        if let Err(why) = self.lease.confirm().await {
            self.withdraw(&made).await;
            return Err(StoreError::OutcomeUnknown { what: key.to_string(), source: why.into() });
        }
        self.note(&key, &made)
    }

    /// Takes back a record that was made when the reign was over already: nobody has been told of it, and the successor
    /// does not count with it.
    async fn withdraw(&self, r: &Resource) {
        let mut at = r.resource_version().to_owned();
        let done = async {
            let bare = self.wire.set_finalizers(r.kind(), r.name(), &[], &at).await?;
            at = bare.resource_version().to_owned();
            self.wire.delete(r.kind(), r.name(), r.uid(), &at).await
        };
        match done.await {
            Ok(()) | Err(Failure::Gone) => {}
            Err(e) => tracing::error!(
                resource = r.name(),
                error = %e,
                "a record that was made as the reign ended could not be taken back; the next controller finds it"
            ),
        }
    }

    async fn update(&self, expected: Version, record: &Record) -> Result<Version, StoreError> {
        let key = record.key();
        let mut row = match self.row(&key) {
            Some(row) if row.version == expected => row,
            other => return Err(conflict(&key, Some(expected), other.map(|r| r.version))),
        };
        let (mut unsure, mut pause) = (false, Pause::new());
        loop {
            let term = self.still_ours(&key, unsure)?;
            let wanted = Resource::of(record, term);
            match self.wire.replace_spec(&wanted, &row.resource_version).await {
                Ok(written) => return self.note(&key, &written),
                Err(Failure::Conflict) => {
                    let Some(now) = self.read(&key, unsure).await? else {
                        return Err(conflict(&key, Some(expected), None));
                    };
                    if now.uid() == row.uid && now.fingerprint() == row.fingerprint {
                        row.resource_version = now.resource_version().to_owned();
                    } else if unsure && now.uid() == row.uid && now.fingerprint() == wanted.fingerprint() {
                        return self.note(&key, &now);
                    } else {
                        return Err(conflict(&key, Some(expected), now.version()));
                    }
                }
                Err(Failure::Gone) => return Err(conflict(&key, Some(expected), None)),
                Err(e @ Failure::Unsent(_)) if !unsure => return Err(e.into_store(&key.to_string())),
                Err(e) if e.may_pass() => {
                    unsure |= e.may_have_happened();
                    pause.wait(&e, wanted.name()).await;
                }
                Err(e) => return Err(e.into_store(&key.to_string())),
            }
        }
    }

    /// Frees a resource of its finalizer, then deletes it. Each step looks at what there is, so any of them can be repeated.
    async fn remove(&self, expected: Version, key: &Key) -> Result<(), StoreError> {
        let row = match self.row(key) {
            Some(row) if row.version == expected => row,
            other => return Err(conflict(key, Some(expected), other.map(|r| r.version))),
        };
        let (mut begun, mut pause) = (false, Pause::new());
        loop {
            self.still_ours(key, begun)?;
            let now = match self.read(key, begun).await? {
                Some(now) if now.uid() == row.uid && now.fingerprint() == row.fingerprint => now,
                Some(now) if now.uid() == row.uid => {
                    return Err(conflict(key, Some(expected), now.version()));
                }
                Some(_) | None if begun => break,
                other => return Err(conflict(key, Some(expected), other.and_then(|r| r.version()))),
            };
            if now.is_dead() {
                break;
            }
            let (kind, name, at) = (now.kind(), now.name(), now.resource_version());
            let done = if now.is_guarded() {
                self.wire.set_finalizers(kind, name, &now.other_finalizers(), at).await.map(drop)
            } else {
                self.wire.delete(kind, name, now.uid(), at).await
            };
            match done {
                // Deleted, or one step further: the next look says which.
                Ok(()) | Err(Failure::Conflict | Failure::Gone) => begun = true,
                Err(e @ Failure::Unsent(_)) if !begun => return Err(e.into_store(&key.to_string())),
                Err(e) if e.may_pass() => {
                    begun |= e.may_have_happened();
                    pause.wait(&e, name).await;
                }
                Err(e) => return Err(e.into_store(&key.to_string())),
            }
        }
        self.rows().remove(key);
        Ok(())
    }
}

/// Waits between attempts, longer each time.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(RETRY.0)
    }

    async fn wait(&mut self, e: &Failure, what: &str) {
        tracing::warn!(resource = what, error = %e, retry_in = ?self.0, "the API server did not do it; will retry");
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY.1);
    }
}

fn conflict(key: &Key, expected: Option<Version>, found: Option<Version>) -> StoreError {
    StoreError::Conflict { key: key.clone(), expected, found }
}

fn corrupt(e: resource::Unreadable) -> StoreError {
    StoreError::Corrupt { key: e.resource.clone(), source: Box::new(e) }
}

/// Where a page starts: which kind, and how far into it.
fn parse_token(after: Option<&str>) -> Result<(usize, Option<String>), StoreError> {
    let Some(after) = after else { return Ok((0, None)) };
    let parsed = after.split_once(':').and_then(|(n, token)| Some((n.parse::<usize>().ok()?, token)));
    match parsed {
        Some((n, token)) if n < KINDS.len() => Ok((n, Some(token.to_owned()).filter(|t| !t.is_empty()))),
        _ => Err(StoreError::NotNow(format!("{after:?} is no place in the store"))),
    }
}

#[async_trait::async_trait]
impl Store for Kubernetes {
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError> {
        let (at, token) = parse_token(after.as_deref())?;
        let page = self.list(KINDS[at], token, max).await?;
        let next = match page.next {
            Some(token) => Some(format!("{at}:{token}")),
            None if at + 1 < KINDS.len() => Some(format!("{}:", at + 1)),
            None => None,
        };
        // Before the first reign this is a look and no more.
        let term = self.lease.term().unwrap_or(Term::ZERO);
        let resources: Vec<Resource> =
            page.resources.into_iter().collect::<Result<_, _>>().map_err(corrupt)?;
        let stamped: Vec<Option<Resource>> = stream::iter(resources.into_iter().map(|r| self.stamp(r, term)))
            .buffered(STAMPS)
            .try_collect()
            .await?;
        let mut records = Vec::with_capacity(stamped.len());
        for r in stamped.into_iter().flatten() {
            let record = r.record().map_err(corrupt)?;
            records.push(Stored { version: self.note(&record.key(), &r)?, record });
        }
        Ok(Page { records, next })
    }

    async fn put(&self, expected: Option<Version>, record: Record) -> Result<Version, StoreError> {
        self.term()?;
        match expected {
            None => self.create(&record).await,
            Some(v) => self.update(v, &record).await,
        }
    }

    async fn delete(&self, expected: Version, key: Key) -> Result<(), StoreError> {
        self.term()?;
        self.remove(expected, &key).await
    }

    /// Waits until the Lease is free, or its holder has been silent for its time, and takes it.
    async fn begin(&self) -> Result<Reign, StoreError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let system = loop {
            match namespaces.get_opt(SYSTEM_NAMESPACE).await {
                Ok(Some(n)) => {
                    let uid = n.metadata.uid.unwrap_or_default();
                    let bad = |source: uuid::Error| StoreError::Corrupt {
                        key: format!("namespace {SYSTEM_NAMESPACE}"),
                        source: Box::new(source),
                    };
                    break uuid::Uuid::try_parse(&uid).map_err(bad)?;
                }
                Ok(None) => tracing::info!("the cluster has no namespace {SYSTEM_NAMESPACE} yet"),
                Err(e) => tracing::warn!(error = %e, "the API server does not answer; will retry"),
            }
            tokio::time::sleep(RETRY.1).await;
        };
        let term = self.lease.take(|| self.highest_term()).await?;
        Ok(Reign { term, system })
    }
}
