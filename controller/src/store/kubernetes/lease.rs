//! Who reigns: the holder of a Lease, whose transitions number the reigns.
//!
//! Invariants: [`Lease::term`] answers only while the Lease was renewed, counted from before the request left, within the renewal
//! deadline, which is shorter than the time after which others may take it; a candidate takes it from a holder only
//! after having watched it unrenewed for that whole time by its own clock; every taking is a transition, so that no two
//! reigns share a number; once lost, a Lease is not taken again by the same process. Must not know: records.

use std::{
    future::Future,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use pool::ids::Term;
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::Instant,
};

use super::wire::{Failure, judge};
use crate::store::{Class, StoreError};

/// Confirmations that may wait for the next renewal.
const WAITING: usize = 1024;
/// Transitions that are left out when a Lease has to be made again: reigns that left no trace on any record.
const GAP: u64 = 1000;

/// Which Lease, whose, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This process; no other one, before or after, has the same.
    pub identity: String,
    /// Where nodes find it while it reigns.
    pub address: Option<String>,
    /// For how long others leave a Lease alone that is not renewed: whole seconds.
    pub duration: Duration,
    /// For how long the holder itself counts on it.
    pub deadline: Duration,
    /// How often it is renewed, and looked at by candidates.
    pub retry: Duration,
}

impl LeaseConfig {
    /// With Kubernetes's own times: 15 s, 10 s, 2 s.
    pub fn new(namespace: String, name: String, identity: String) -> Self {
        let s = Duration::from_secs;
        Self { namespace, name, identity, address: None, duration: s(15), deadline: s(10), retry: s(2) }
    }
}

/// The annotation that says where the holder is found.
const ADDRESS: &str = "weir.storage/address";

/// Who else holds a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name for itself.
    pub holder: String,
    /// Where nodes find it, if it says so.
    pub address: Option<String>,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not taken yet.
    Idle,
    /// Ours.
    Held(Term),
    /// Ours no more, and why.
    Lost(String),
}

/// The Lease as we hold it.
struct Held {
    object: Object,
    term: Term,
}

struct Shared {
    api: Api<Object>,
    config: LeaseConfig,
    /// Held while the object is being changed.
    held: Mutex<Option<Held>>,
    /// When the request left that renewed it last.
    renewed: StdMutex<Option<Instant>>,
    state: watch::Sender<State>,
    /// Whoever held it when it was looked at last, if not this process.
    other: watch::Sender<Option<Other>>,
}

/// A Lease.
pub(super) struct Lease {
    shared: Arc<Shared>,
    confirm: mpsc::Sender<oneshot::Sender<()>>,
    renewer: tokio::task::JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewer.abort();
    }
}

impl Lease {
    pub(super) fn new(client: Client, config: LeaseConfig) -> Self {
        let shared = Arc::new(Shared {
            api: Api::namespaced(client, &config.namespace),
            config,
            held: Mutex::new(None),
            renewed: StdMutex::new(None),
            state: watch::channel(State::Idle).0,
            other: watch::channel(None).0,
        });
        let (confirm, waiting) = mpsc::channel(WAITING);
        let renewer = tokio::spawn(keep(shared.clone(), waiting));
        Self { shared, confirm, renewer }
    }

    /// The term of the reign, while it lasts; otherwise why it does not.
    pub(super) fn term(&self) -> Result<Term, String> {
        let state = self.shared.state.borrow().clone();
        match state {
            State::Held(term) if self.shared.in_time() => Ok(term),
            State::Held(_) => Err("the Lease was not renewed in time".to_owned()),
            State::Lost(why) => Err(why),
            State::Idle => Err("no reign has begun".to_owned()),
        }
    }

    /// Who else holds it, as it was looked at last.
    pub(super) fn other(&self) -> watch::Receiver<Option<Other>> {
        self.shared.other.subscribe()
    }

    /// Waits until the Lease is lost.
    pub(super) async fn lost(&self) -> String {
        let mut state = self.shared.state.subscribe();
        let lost = state.wait_for(|s| matches!(s, State::Lost(_))).await;
        match lost.as_deref() {
            Ok(State::Lost(why)) => why.clone(),
            Ok(_) | Err(_) => "the Lease is kept no more".to_owned(),
        }
    }

    /// Waits for a renewal that begins after this call: until it was made, nobody had taken the Lease.
    pub(super) async fn confirm(&self) -> Result<(), String> {
        let (reply, done) = oneshot::channel();
        let gone = || self.term().err().unwrap_or_else(|| "the Lease is kept no more".to_owned());
        self.confirm.send(reply).await.map_err(|_| gone())?;
        done.await.map_err(|_| gone())
    }

    /// Waits until the Lease may be taken, and takes it. `highest` finds the highest term in use where there is no Lease.
    pub(super) async fn take<F>(&self, highest: impl Fn() -> F) -> Result<Term, StoreError>
    where
        F: Future<Output = Result<u64, StoreError>>,
    {
        let mut watched: Option<(Option<LeaseSpec>, Instant)> = None;
        let mut floor = None;
        loop {
            if let State::Lost(why) = &*self.shared.state.borrow() {
                return Err(StoreError::Latched(why.clone()));
            }
            match self.shared.step(&mut watched, floor).await {
                Ok(Step::Taken(term)) => return Ok(term),
                Ok(Step::Missing) => {
                    // What can be read is the floor; a Lease that appears meanwhile is found by the next step.
                    match highest().await {
                        Ok(n) => {
                            floor = Some(n);
                            continue;
                        }
                        Err(e) if e.class() == Class::Transient => {
                            tracing::warn!(error = observe::chain(&e), "records cannot be read; will retry");
                        }
                        Err(e) => return Err(e),
                    }
                }
                Ok(Step::Wait) => {}
                Err(Failure::Refused(why)) => {
                    return Err(StoreError::Refused {
                        what: format!("Lease {}", self.shared.config.name),
                        source: why.into(),
                    });
                }
                Err(e) => tracing::warn!(error = %e, "the Lease cannot be taken; will retry"),
            }
            tokio::time::sleep(self.shared.config.retry).await;
        }
    }

    /// Gives it up at once.
    pub(super) async fn release(&self) -> Result<(), Failure> {
        let mut held = self.shared.held.lock().await;
        let Some(mut h) = held.take() else { return Ok(()) };
        self.shared.state.send_replace(State::Lost("the Lease was given up".to_owned()));
        if let Some(spec) = &mut h.object.spec {
            spec.holder_identity = None;
        }
        self.shared.replace(&h.object).await.map(drop)
    }
}

/// What an attempt to take the Lease has come to.
enum Step {
    Taken(Term),
    /// There is none, and it is not known from which term on one could be made.
    Missing,
    /// Somebody else has it.
    Wait,
}

impl Shared {
    fn renewed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_time(&self) -> bool {
        self.renewed().is_some_and(|at| at.elapsed() < self.config.deadline)
    }

    fn now() -> MicroTime {
        MicroTime(Timestamp::now())
    }

    /// One request, within the time that is left to be of use.
    async fn limited<T>(&self, f: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.config.deadline / 2, f).await {
            Ok(Ok(t)) => Ok(t),
            Ok(Err(e)) => Err(judge(&e)),
            Err(_) => Err(Failure::Unknown("no answer in time".to_owned())),
        }
    }

    async fn replace(&self, object: &Object) -> Result<Object, Failure> {
        self.limited(self.api.replace(&self.config.name, &PostParams::default(), object)).await
    }

    fn taken(&self, held: &mut Option<Held>, object: Object, term: Term, at: Instant) -> Step {
        *held = Some(Held { object, term });
        *self.renewed() = Some(at);
        self.state.send_replace(State::Held(term));
        self.other.send_replace(None);
        tracing::info!(%term, lease = self.config.name, holder = self.config.identity, "the Lease is ours");
        Step::Taken(term)
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: i32::try_from(self.config.duration.as_secs().max(1)).ok(),
            acquire_time: Some(Self::now()),
            renew_time: Some(Self::now()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Says where this process is found, or takes away where its predecessor was.
    fn sign(&self, metadata: &mut ObjectMeta) {
        let annotations = metadata.annotations.get_or_insert_default();
        match &self.config.address {
            Some(a) => drop(annotations.insert(ADDRESS.to_owned(), a.clone())),
            None => drop(annotations.remove(ADDRESS)),
        }
    }

    async fn step(
        &self,
        watched: &mut Option<(Option<LeaseSpec>, Instant)>,
        floor: Option<u64>,
    ) -> Result<Step, Failure> {
        let mut held = self.held.lock().await;
        let found = self.limited(self.api.get_opt(&self.config.name)).await?;
        let Some(mut object) = found else {
            let Some(floor) = floor else { return Ok(Step::Missing) };
            return self.make(&mut held, floor).await;
        };
        let spec = object.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.config.identity {
            let annotations = object.metadata.annotations.as_ref();
            let address = annotations.and_then(|a| a.get(ADDRESS)).filter(|a| !a.is_empty()).cloned();
            let other = Some(Other { holder: holder.to_owned(), address });
            self.other.send_if_modified(|o| {
                let news = *o != other;
                *o = other;
                news
            });
            let given = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
            let limit = Duration::from_secs(given).max(self.config.duration);
            match watched {
                Some((seen, since)) if *seen == object.spec => {
                    if since.elapsed() < limit {
                        return Ok(Step::Wait);
                    }
                }
                _ => {
                    if watched.is_none() {
                        tracing::info!(holder, "another controller reigns; standing by");
                    }
                    *watched = Some((object.spec, Instant::now()));
                    return Ok(Step::Wait);
                }
            }
            tracing::warn!(holder, "the Lease has run out; taking it");
        }
        let term = next_term(spec.lease_transitions.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))?;
        object.spec = Some(self.spec(term.1));
        self.sign(&mut object.metadata);
        let at = Instant::now();
        match self.replace(&object).await {
            Ok(object) => Ok(self.taken(&mut held, object, term.0, at)),
            Err(Failure::Conflict) => Ok(Step::Wait),
            Err(e) => Err(e),
        }
    }

    async fn make(&self, held: &mut Option<Held>, floor: u64) -> Result<Step, Failure> {
        let term = if floor == 0 { next_term(0)? } else { next_term(floor.saturating_add(GAP))? };
        let mut metadata = ObjectMeta { name: Some(self.config.name.clone()), ..ObjectMeta::default() };
        self.sign(&mut metadata);
        let object = Object { metadata, spec: Some(self.spec(term.1)) };
        let at = Instant::now();
        match self.limited(self.api.create(&PostParams::default(), &object)).await {
            Ok(object) => Ok(self.taken(held, object, term.0, at)),
            Err(Failure::Conflict) => Ok(Step::Wait),
            Err(e) => Err(e),
        }
    }

    /// Renews once. `Some`: it is lost, and why.
    async fn renew(&self) -> Result<(), Renewal> {
        let mut held = self.held.lock().await;
        let Some(h) = held.as_mut() else { return Err(Renewal::Later("it is not ours".to_owned())) };
        loop {
            if let Some(spec) = &mut h.object.spec {
                spec.renew_time = Some(Self::now());
            }
            let at = Instant::now();
            match self.replace(&h.object).await {
                Ok(object) => {
                    h.object = object;
                    *self.renewed() = Some(at);
                    return Ok(());
                }
                Err(Failure::Gone) => return Err(Renewal::Lost("the Lease was deleted".to_owned())),
                Err(Failure::Conflict) => {}
                Err(e) => return Err(Renewal::Later(e.to_string())),
            }
            // Our own renewal whose answer was lost, a person's annotation, or a successor.
            match self.limited(self.api.get_opt(&self.config.name)).await {
                Ok(Some(now)) => {
                    let spec = now.spec.clone().unwrap_or_default();
                    let transitions = spec.lease_transitions.and_then(|n| u64::try_from(n).ok());
                    let holder = spec.holder_identity.unwrap_or_default();
                    if holder != self.config.identity || transitions != Some(h.term.get()) {
                        return Err(Renewal::Lost(format!("the Lease was taken by {holder:?}")));
                    }
                    h.object = now;
                }
                Ok(None) => return Err(Renewal::Lost("the Lease was deleted".to_owned())),
                Err(e) => return Err(Renewal::Later(e.to_string())),
            }
        }
    }
}

/// Why a renewal was not made.
enum Renewal {
    /// It may be made yet.
    Later(String),
    /// The Lease is not ours any more.
    Lost(String),
}

/// The term after `n`, and the transitions that say so.
fn next_term(n: u64) -> Result<(Term, i32), Failure> {
    let next = n.checked_add(1).and_then(|n| i32::try_from(n).ok());
    let next = next.ok_or_else(|| Failure::Refused("the Lease's transitions are exhausted".to_owned()))?;
    Ok((Term::new(u64::from(next.unsigned_abs())), next))
}

/// Renews the Lease while it is ours, at its pace and whenever somebody wants it confirmed.
async fn keep(shared: Arc<Shared>, mut waiting: mpsc::Receiver<oneshot::Sender<()>>) {
    let mut state = shared.state.subscribe();
    let mut asked: Vec<oneshot::Sender<()>> = Vec::new();
    loop {
        if state.wait_for(|s| *s != State::Idle).await.is_err() {
            return;
        }
        if asked.is_empty() {
            tokio::select! {
                n = waiting.recv_many(&mut asked, WAITING) => if n == 0 { return },
                () = tokio::time::sleep(shared.config.retry) => {}
            }
        }
        while let Ok(more) = waiting.try_recv() {
            asked.push(more);
        }
        if matches!(*shared.state.borrow(), State::Lost(_)) {
            return;
        }
        let lost = match shared.renew().await {
            Ok(()) => {
                for a in asked.drain(..) {
                    if a.send(()).is_err() {
                        tracing::debug!("a confirmation found nobody waiting");
                    }
                }
                None
            }
            Err(Renewal::Lost(why)) => Some(why),
            Err(Renewal::Later(why)) if shared.in_time() => {
                tracing::warn!(why, "the Lease was not renewed; will retry");
                tokio::time::sleep(shared.config.retry / 4).await;
                None
            }
            Err(Renewal::Later(why)) => Some(format!("the Lease was not renewed in time: {why}")),
        };
        if let Some(why) = lost {
            tracing::error!(why, "the reign is over");
            shared.state.send_if_modified(|s| {
                let ours = matches!(s, State::Held(_));
                if ours {
                    *s = State::Lost(why);
                }
                ours
            });
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_transitions_and_end_before_they_wrap() {
        assert_eq!(next_term(0).map(|t| (t.0.get(), t.1)).ok(), Some((1, 1)));
        assert!(next_term(i32::MAX as u64).is_err());
        assert!(next_term(u64::MAX).is_err());
    }
}
