//! Claims that wait although nothing can be found for them: each is told how much is missing, and where there is how much.
//!
//! The scheduler goes by the published capacity and never asks us for what cannot be had, so nobody else would say. It follows
//! from the cluster's claims and the pool's room; claims that wait for anything else (a first consumer, say) are not spoken
//! of. Invariant: a claim that cannot be told keeps none from being told. Must not know: how room is found.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use pool::units::Bytes;
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    events::{Happening, Subject, say},
    troubles::{Troubles, Verdict, judge},
};
use crate::{cluster::ask, core::Handle};

/// How often claims that wait are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long nothing new is said of a claim: room changes all the time.
const QUIET: Duration = Duration::from_secs(300);
/// After how long a claim is tried again that could not be told.
const AGAIN: Duration = Duration::from_secs(20);
/// Claims of which something is said, or in vain, at a look.
const BATCH: usize = 32;
/// Parameters for the sidecars, which they keep to themselves.
const SIDECARS: &str = "csi.storage.k8s.io/";

/// A claim's namespace and name.
type Name = (String, String);

/// A claim that has no volume yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    class: String,
    size: Bytes,
}

/// What the watch has seen.
enum Seen {
    /// Everything follows anew.
    Restart,
    Waits(Name, Claim),
    Gone(Name),
}

/// Tells claims that cannot be met why.
pub struct Waiting {
    client: Client,
    core: Handle,
    driver: String,
    claims: BTreeMap<Name, Claim>,
    /// Until when nothing more is said, as long as the size is this one.
    told: BTreeMap<Name, (Bytes, Instant)>,
    troubles: Troubles,
}

impl Waiting {
    /// For claims of this driver's classes.
    pub fn new(client: Client, core: Handle, driver: String) -> Self {
        let (claims, told) = (BTreeMap::new(), BTreeMap::new());
        Self { client, core, driver, claims, told, troubles: Troubles::default() }
    }

    /// Tells for as long as it is polled.
    pub async fn run(mut self) {
        let (seen, mut sees) = mpsc::channel(64);
        let watch = watch(self.client.clone(), seen);
        tokio::pin!(watch);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut watch => return,
                Some(s) = sees.recv() => self.note(s),
                _ = ticks.tick() => self.look().await,
            }
        }
    }

    fn note(&mut self, s: Seen) {
        match s {
            Seen::Restart => self.claims.clear(),
            Seen::Waits(name, claim) => drop(self.claims.insert(name, claim)),
            Seen::Gone(name) => {
                self.claims.remove(&name);
                self.told.remove(&name);
            }
        }
    }

    /// Claims of which nothing was said of late.
    fn due(&self, now: Instant) -> Vec<(Name, Claim)> {
        let quiet = |name: &Name, c: &Claim| {
            self.told.get(name).is_some_and(|(size, until)| *size == c.size && now < *until)
        };
        let due = self.claims.iter().filter(|(name, c)| !quiet(name, c));
        due.map(|(name, c)| (name.clone(), c.clone())).collect()
    }

    async fn look(&mut self) {
        // A claim that went while the watch was away is not in it any more.
        self.told.retain(|name, _| self.claims.contains_key(name));
        let mut classes = BTreeMap::new();
        let mut tried = 0;
        for (name, claim) in self.due(Instant::now()) {
            if !classes.contains_key(&claim.class) {
                match self.parameters(&claim.class).await {
                    Ok(found) => drop(classes.insert(claim.class.clone(), found)),
                    // Of its claims nothing is said at this look.
                    Err(Verdict::Refused | Verdict::NotNow) => {
                        drop(classes.insert(claim.class.clone(), None));
                    }
                    Err(Verdict::Away) => {
                        self.told.insert(name, (claim.size, Instant::now() + AGAIN));
                        return;
                    }
                }
            }
            let Some(parameters) = classes.get(&claim.class).cloned().flatten() else { continue };
            let why = match self.core.no_room(parameters, claim.size).await {
                Ok(None) => continue,
                Ok(Some(why)) => why,
                Err(e) => e.to_string(),
            };
            let verdict = self.tell(&name, why).await;
            // One that is refused is as quiet as one that was told: it would be refused again.
            let quiet = match verdict {
                None | Some(Verdict::Refused) => QUIET,
                Some(Verdict::NotNow | Verdict::Away) => AGAIN,
            };
            self.told.insert(name, (claim.size, Instant::now() + quiet));
            tried += 1;
            if tried == BATCH || verdict == Some(Verdict::Away) {
                return;
            }
        }
    }

    /// A class's parameters, if it is one of this driver.
    async fn parameters(&mut self, class: &str) -> Result<Option<BTreeMap<String, String>>, Verdict> {
        let api: Api<StorageClass> = Api::all(self.client.clone());
        let what = format!("what claims of class {class} wait for");
        match ask(api.get_opt(class)).await {
            Ok(found) => {
                self.troubles.over(&what);
                Ok(found.and_then(|c| ours(&c, &self.driver)))
            }
            Err(e) => {
                self.troubles.failed(&what, &e);
                Err(judge(&e))
            }
        }
    }

    /// Tells a claim why it waits.
    async fn tell(&mut self, (namespace, name): &Name, why: String) -> Option<Verdict> {
        let subject = Subject::Claim(namespace.clone(), name.clone());
        let happening = Happening { warning: true, reason: "InsufficientCapacity", message: why };
        let what = format!("what claims in namespace {namespace} wait for");
        match say(&self.client, &subject, &happening).await {
            Ok(()) => {
                self.troubles.over(&what);
                None
            }
            Err(e) => {
                self.troubles.failed(&what, &e);
                Some(judge(&e))
            }
        }
    }
}

/// The parameters of a class of this driver.
fn ours(class: &StorageClass, driver: &str) -> Option<BTreeMap<String, String>> {
    let all = (class.provisioner == driver).then(|| class.parameters.clone().unwrap_or_default())?;
    Some(all.into_iter().filter(|(k, _)| !k.starts_with(SIDECARS)).collect())
}

/// What a claim waits for, if it waits for a volume.
fn waits(c: &PersistentVolumeClaim) -> Option<Claim> {
    let spec = c.spec.as_ref()?;
    let bound = spec.volume_name.as_ref().is_some_and(|v| !v.is_empty());
    let phase = c.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if bound || phase != "Pending" || c.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let size = spec.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    Some(Claim { class: spec.storage_class_name.clone()?, size: Bytes::parse_quantity(&size.0)? })
}

fn name(c: &PersistentVolumeClaim) -> Name {
    (c.namespace().unwrap_or_default(), c.name_any())
}

/// Follows the cluster's claims; only those that wait are kept by whoever listens.
async fn watch(client: Client, seen: mpsc::Sender<Seen>) {
    let claims: Api<PersistentVolumeClaim> = Api::all(client);
    let events = watcher(claims, watcher::Config::default()).default_backoff();
    tokio::pin!(events);
    let mut troubles = Troubles::default();
    let what = "what claims wait for";
    loop {
        let next = events.try_next().await;
        if next.is_ok() {
            troubles.over(&what);
        }
        let next = match next {
            Ok(Some(watcher::Event::Init)) => Seen::Restart,
            Ok(Some(watcher::Event::InitApply(c) | watcher::Event::Apply(c))) => match waits(&c) {
                Some(claim) => Seen::Waits(name(&c), claim),
                None => Seen::Gone(name(&c)),
            },
            Ok(Some(watcher::Event::Delete(c))) => Seen::Gone(name(&c)),
            Ok(Some(watcher::Event::InitDone)) => continue,
            Ok(None) => return,
            Err(e) => {
                troubles.failed(&what, &e);
                continue;
            }
        };
        if seen.send(next).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(volume: Option<&str>, phase: &str, size: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "x"},
            "spec": {"storageClassName": "weir", "volumeName": volume, "resources": {"requests": {"storage": size}}},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn only_claims_without_a_volume_wait() {
        let waiting = waits(&claim(None, "Pending", "3Gi")).unwrap();
        assert_eq!(waiting, Claim { class: "weir".into(), size: Bytes::new(3 << 30) });
        assert!(waits(&claim(Some("pv"), "Pending", "3Gi")).is_none());
        assert!(waits(&claim(None, "Bound", "3Gi")).is_none());
        assert!(waits(&claim(None, "Lost", "3Gi")).is_none());
        let mut going = claim(None, "Pending", "3Gi");
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(waits(&going).is_none());
    }

    #[test]
    fn parameters_of_sidecars_and_classes_of_others_are_left_out() {
        let class = |provisioner: &str| -> StorageClass {
            serde_json::from_value(json!({
                "metadata": {"name": "weir"},
                "provisioner": provisioner,
                "parameters": {"layout": "striped", "csi.storage.k8s.io/fstype": "xfs"},
            }))
            .unwrap()
        };
        let found = ours(&class("csi.weir.storage"), "csi.weir.storage").unwrap();
        assert_eq!(found, BTreeMap::from([("layout".to_owned(), "striped".to_owned())]));
        assert_eq!(ours(&class("another"), "csi.weir.storage"), None);
    }
}
