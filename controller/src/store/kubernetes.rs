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
//! - It cannot take back what its successor has seen: a record that was never changed since it was made is written again, too.
//! - The API server refuses a spec with a smaller term or epoch than the one that stands there (CEL rules of the schema).
//!
//! An outcome that is not known is found out by asking again, for as long as the Lease is held: nobody else writes a record
//! under our term. Without the Lease nothing is written any more. What the API server refuses, with nothing before it that may
//! have been done, has not happened.
//!
//! All pages of a list are read before the first record of it is written again: the API server forgets the state that a list
//! shows after some minutes.
//!
//! Must not know: what decisions mean, who asks for them.

mod lease;
mod resource;
mod wire;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;
use pool::{
    ids::Term,
    record::{Key, Record},
};

pub use lease::{LeaseConfig, Other};

use super::{Page, Reign, Store, StoreError, Stored, Version};
use lease::Lease;
use resource::{KINDS, Kind, Resource};
use wire::{Failure, SYSTEM_NAMESPACE, Wire};

/// Records that are written again at the same time when a reign begins.
const STAMPS: usize = 32;
/// How soon a request is made again whose outcome is not known, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// For how long a page of a list is asked for.
const LIST: Duration = Duration::from_secs(60);

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
    /// See [`Resource::bare`].
    bare: Option<Box<[String]>>,
}

impl Row {
    /// Takes note of how its resource is now, with the same spec.
    fn follow(&mut self, now: &Resource) {
        now.resource_version().clone_into(&mut self.resource_version);
        self.bare = now.bare();
    }
}

/// Where in the records a page starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Which of [`KINDS`].
    kind: usize,
    /// How many of it come before.
    given: usize,
}

/// A kind's resources that were listed and not handed out yet.
#[derive(Default)]
struct Loading {
    /// The first of them.
    at: Place,
    left: VecDeque<Resource>,
}

/// The records of a cluster.
pub struct Kubernetes {
    wire: Wire,
    lease: Lease,
    rows: Mutex<HashMap<Key, Row>>,
    loading: Mutex<Loading>,
}

impl Kubernetes {
    /// The store of the cluster that `client` speaks to. Nothing is asked of it yet.
    pub fn new(client: Client, lease: LeaseConfig) -> Self {
        Self {
            wire: Wire::new(client.clone()),
            lease: Lease::new(client, lease),
            rows: Mutex::new(HashMap::new()),
            loading: Mutex::new(Loading::default()),
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

    fn loading(&self) -> MutexGuard<'_, Loading> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
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
            bare: r.bare(),
        };
        self.rows().insert(key.clone(), row);
        Ok(version)
    }

    /// The term under which writes are made.
    fn term(&self) -> Result<Term, StoreError> {
        self.lease.term().map_err(StoreError::Latched)
    }

    /// A page of a list, asked for again while the API server is busy, or does not serve the kind yet: it may be so while it
    /// starts itself, or has just been told of the kind.
    async fn page(&self, kind: Kind, token: Option<String>, max: usize) -> Result<wire::Listed, Failure> {
        let (mut pause, begun) = (Pause::new(), tokio::time::Instant::now());
        loop {
            match self.wire.list(kind, token.clone(), max).await {
                Err(e) if (e.may_pass_at_start() || matches!(e, Failure::Gone)) && begun.elapsed() < LIST => {
                    pause.wait(&e, kind.plural()).await;
                }
                done => return done,
            }
        }
    }

    /// Goes through all resources of a kind as they are at one moment, `max` at a request. Once the API server has
    /// forgotten that moment it begins anew, from nothing.
    async fn walk<T: Default + Send>(
        &self,
        kind: Kind,
        max: usize,
        take: impl Fn(&mut T, Resource) + Send + Sync,
    ) -> Result<T, StoreError> {
        let (mut so_far, mut token) = (T::default(), None);
        loop {
            let page = match self.page(kind, token.clone(), max).await {
                Ok(page) => page,
                Err(e @ Failure::Expired(_)) if token.is_some() => {
                    tracing::warn!(kind = kind.plural(), error = %e, "listing from the start again");
                    (so_far, token) = (T::default(), None);
                    continue;
                }
                Err(Failure::Gone) => {
                    let why = format!("{} are not served: are the CRDs installed?", kind.plural());
                    return Err(StoreError::NotNow(why));
                }
                // Nothing was to be done.
                Err(Failure::Unknown(why)) => return Err(StoreError::NotNow(why)),
                Err(e) => return Err(e.into_store(kind.plural())),
            };
            for r in page.resources {
                take(&mut so_far, r.map_err(corrupt)?);
            }
            token = page.next;
            if token.is_none() {
                return Ok(so_far);
            }
        }
    }

    /// The highest term that records bear.
    async fn highest_term(&self) -> Result<u64, StoreError> {
        let mut highest = 0;
        for kind in KINDS {
            let of_kind = self.walk(kind, 500, |n: &mut u64, r| *n = r.term().get().max(*n)).await?;
            highest = highest.max(of_kind);
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
            if r.term() >= term {
                return Ok(Some(r));
            }
            let record = r.record().map_err(corrupt)?;
            if !record.has_goals() && !r.is_as_made() {
                return Ok(Some(r));
            }
            self.term()?;
            let wanted = Resource::of(&record, term);
            match self.wire.replace_spec(&wanted, r.resource_version(), r.bare().as_deref()).await {
                Ok(written) => return Ok(Some(written)),
                // Somebody was faster: the predecessor with its last word, or a person with a label.
                Err(Failure::Conflict) => {}
                Err(Failure::Gone) => return Ok(None),
                Err(e) if e.may_pass_at_start() => pause.wait(&e, r.name()).await,
                Err(e) => return Err(e.into_store(r.name())),
            }
            match self.wire.get(r.kind(), r.name()).await {
                Ok(Some(now)) => r = now.map_err(corrupt)?,
                Ok(None) => return Ok(None),
                Err(e) if e.may_pass_at_start() => pause.wait(&e, r.name()).await,
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
                Err(e) if e.may_pass() || (unsure && e.is_refusal()) => {
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
                // What was asked for before may have been done, or be done yet.
                Err(e) if matches!(e, Failure::Conflict) || (unsure && e.is_refusal()) => {
                    let there = self.read(&key, unsure).await?;
                    match there {
                        Some(r) if unsure && r.fingerprint() == wanted.fingerprint() => break r,
                        Some(r) => return Err(conflict(&key, None, r.version())),
                        // It went away in between, or never was: the next attempt makes it.
                        None => pause.wait(&e, wanted.name()).await,
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

    /// Takes back a record that was made when the reign was over already: nobody has been told of it. A successor that has
    /// seen it has written it again, so that it is not found as it was made, and stays.
    async fn withdraw(&self, made: &Resource) {
        let done = async {
            let mut r = made.clone();
            loop {
                let (kind, name, at) = (r.kind(), r.name(), r.resource_version());
                let step = if r.is_guarded() {
                    self.wire.set_finalizers(kind, name, &r.other_finalizers(), at).await.map(Some)
                } else {
                    self.wire.delete(kind, name, r.uid(), at).await.map(|()| None)
                };
                match step {
                    Ok(Some(bare)) => r = bare,
                    Ok(None) | Err(Failure::Gone) => return Ok("taken back"),
                    Err(Failure::Conflict) => match self.wire.get(kind, name).await?.transpose()? {
                        Some(now) if now.uid() == made.uid() && now.fingerprint() == made.fingerprint() => {
                            r = now
                        }
                        Some(_) | None => return Ok("left to the next controller"),
                    },
                    Err(e) => return Err(e),
                }
            }
        };
        match done.await {
            Ok(how) => {
                tracing::info!(resource = made.name(), "a record that was made as the reign ended was {how}")
            }
            Err(e) => tracing::error!(
                resource = made.name(),
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
            match self.wire.replace_spec(&wanted, &row.resource_version, row.bare.as_deref()).await {
                Ok(written) => return self.note(&key, &written),
                // What was asked for before may have been done, or be done yet.
                Err(e) if matches!(e, Failure::Conflict) || (unsure && e.is_refusal()) => {
                    let Some(now) = self.read(&key, unsure).await? else {
                        return Err(conflict(&key, Some(expected), None));
                    };
                    if now.uid() == row.uid && now.fingerprint() == row.fingerprint {
                        row.follow(&now);
                        if e.is_refusal() {
                            pause.wait(&e, wanted.name()).await;
                        }
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
        let (mut begun, mut unsure, mut pause) = (false, false, Pause::new());
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
                Err(e) if e.may_pass() || (unsure && e.is_refusal()) => {
                    unsure |= e.may_have_happened();
                    begun |= unsure;
                    pause.wait(&e, name).await;
                }
                // Without its finalizer it still is the record that it was.
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

impl Place {
    fn parse(after: Option<&str>) -> Result<Self, StoreError> {
        let Some(after) = after else { return Ok(Self::default()) };
        let parsed = after.split_once(':').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((kind, given)) if kind < KINDS.len() => Ok(Self { kind, given }),
            _ => Err(no_place(after)),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.kind, self.given)
    }
}

fn no_place(at: impl std::fmt::Display) -> StoreError {
    StoreError::NotNow(format!("{at} is no place in the store; load from its start"))
}

#[async_trait::async_trait]
impl Store for Kubernetes {
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError> {
        let at = Place::parse(after.as_deref())?;
        // No lock is held while the API server is asked; of two who load at once one has to begin anew.
        let mut loading = std::mem::take(&mut *self.loading());
        if at.given == 0 {
            let listed = self.walk(KINDS[at.kind], max, |all: &mut VecDeque<_>, r| all.push_back(r)).await?;
            loading = Loading { at, left: listed };
        } else if loading.at != at {
            return Err(no_place(at));
        }
        let resources: Vec<Resource> = loading.left.drain(..max.min(loading.left.len())).collect();
        loading.at.given += resources.len();
        let next = if !loading.left.is_empty() {
            Some(loading.at)
        } else if at.kind + 1 < KINDS.len() {
            Some(Place { kind: at.kind + 1, given: 0 })
        } else {
            None
        };
        *self.loading() = if loading.left.is_empty() { Loading::default() } else { loading };
        // Before the first reign this is a look and no more.
        let term = self.lease.term().unwrap_or(Term::ZERO);
        let stamped: Vec<Option<Resource>> = stream::iter(resources.into_iter().map(|r| self.stamp(r, term)))
            .buffered(STAMPS)
            .try_collect()
            .await?;
        let mut records = Vec::with_capacity(stamped.len());
        for r in stamped.into_iter().flatten() {
            let record = r.record().map_err(corrupt)?;
            records.push(Stored { version: self.note(&record.key(), &r)?, record });
        }
        Ok(Page { records, next: next.map(|p| p.to_string()) })
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
        let system = loop {
            match self.wire.system().await {
                Ok(Some(uid)) => {
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
