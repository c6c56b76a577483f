//! Writes statuses and events as news come in, and catches up with everything once when a reign begins.
//!
//! Invariants: what fails is tried again with the next look; one object's trouble holds no other up. Must not know: what a
//! status says.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Debug,
    time::Duration,
};

use api::{LogicalVolume, NodeDisk, StorageNode, StoragePool};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use pool::ids::{NodeName, VolumeId};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::broadcast::error::RecvError, time::MissedTickBehavior};

use super::{
    events::{Happening, Subject, say},
    plan,
};
use crate::{
    core::{Fleet, Handle, News, VolumeReport},
    fault::Cause,
};

/// How often what has changed is written: several changes of a volume in a row are one status.
const TICK: Duration = Duration::from_secs(2);
/// Ticks between two looks at disks and nodes.
const FLEET: u32 = 5;
/// Objects that are written at a tick.
const BATCH: usize = 64;
/// Events that may wait; more are dropped, and that is said in the log.
const EVENTS: usize = 1024;
/// Resources on a page when everything is caught up with.
const PAGE: u32 = 500;

/// Tells the cluster what the core knows.
pub struct Reporter {
    client: Client,
    core: Handle,
    dirty: BTreeSet<VolumeId>,
    events: VecDeque<(Subject, Happening)>,
    fleet: Option<Fleet>,
    /// Where catching up with volumes goes on: `Some(None)` at the beginning.
    sweep: Option<Option<String>>,
}

type Told<T> = Result<T, Failed>;

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Core(#[from] crate::api::ApiError),
    #[error("a status cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Reporter {
    /// For this core and this cluster.
    pub fn new(client: Client, core: Handle) -> Self {
        let (dirty, events) = (BTreeSet::new(), VecDeque::new());
        Self { client, core, dirty, events, fleet: None, sweep: Some(None) }
    }

    /// Tells for as long as the core runs.
    pub async fn run(mut self) {
        let mut news = self.core.measures().news();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            tokio::select! {
                n = news.recv() => match n {
                    Ok(n) => self.heard(n).await,
                    // What was missed is found by looking at everything.
                    Err(RecvError::Lagged(_)) => self.sweep = Some(None),
                    Err(RecvError::Closed) => return,
                },
                _ = ticks.tick() => {
                    if let Err(e) = self.tick(count.is_multiple_of(FLEET)).await {
                        tracing::debug!(error = %e, "statuses and events are not written now; will retry");
                    }
                    count = count.wrapping_add(1);
                }
            }
        }
    }

    fn happened(&mut self, subject: Subject, warning: bool, reason: &'static str, message: String) {
        if self.events.len() >= EVENTS {
            tracing::warn!(reason, message, "too many events wait: this one is not told");
            return;
        }
        self.events.push_back((subject, Happening { warning, reason, message }));
    }

    async fn heard(&mut self, n: News) {
        self.dirty.insert(n.volume);
        let (warning, reason) = match n.cause {
            Cause::Evict => (true, "Fenced"),
            Cause::Guard => (false, "MigrationStarted"),
            Cause::Commit => (false, "Migrated"),
            Cause::Abort => (true, "MigrationGivenUp"),
            _ => return,
        };
        if let Ok(Some(r)) = self.core.volume_report(n.volume).await {
            self.of_claim(&r, warning, reason, format!("volume {}: {}", n.volume, r.last));
        }
    }

    fn of_claim(&mut self, r: &VolumeReport, warning: bool, reason: &'static str, message: String) {
        if let (Some(namespace), Some(name)) = (&r.claim.pvc_namespace, &r.claim.pvc_name) {
            self.happened(Subject::Claim(namespace.clone(), name.clone()), warning, reason, message);
        }
    }

    async fn tick(&mut self, fleet: bool) -> Told<()> {
        if fleet {
            self.look_at_fleet().await?;
        }
        self.sweep().await?;
        for id in self.dirty.iter().copied().take(BATCH).collect::<Vec<_>>() {
            self.tell_volume(id).await?;
            self.dirty.remove(&id);
        }
        for _ in 0..BATCH {
            let Some((subject, what)) = self.events.front() else { break };
            match say(&self.client, subject, what).await {
                Ok(()) => {}
                // A namespace that is going, say: it will not be taken later either.
                Err(kube::Error::Api(s)) if s.is_forbidden() || s.is_invalid() || s.is_not_found() => {
                    tracing::debug!(error = %s, ?subject, "an event was refused");
                }
                Err(e) => return Err(e.into()),
            }
            self.events.pop_front();
        }
        Ok(())
    }

    async fn tell_volume(&self, id: VolumeId) -> Told<()> {
        let Some(r) = self.core.volume_report(id).await? else { return Ok(()) };
        let api: Api<LogicalVolume> = Api::all(self.client.clone());
        let Some(v) = api.get_opt(&id.to_string()).await? else { return Ok(()) };
        tell(&api, &v, &volume_status(&v, &r)?).await
    }

    /// Catches up with a page of volumes.
    async fn sweep(&mut self) -> Told<()> {
        let Some(token) = self.sweep.clone() else { return Ok(()) };
        let api: Api<LogicalVolume> = Api::all(self.client.clone());
        let mut page = ListParams::default().limit(PAGE);
        page.continue_token = token;
        let listed = match api.list(&page).await {
            Ok(l) => l,
            // The list has become too old to be gone on with.
            Err(kube::Error::Api(s)) if s.code == 410 => {
                self.sweep = Some(None);
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        for v in &listed.items {
            let Ok(id) = v.name_any().parse() else { continue };
            if let Some(r) = self.core.volume_report(id).await? {
                tell(&api, v, &volume_status(v, &r)?).await?;
            }
        }
        self.sweep = listed.metadata.continue_.filter(|c| !c.is_empty()).map(Some);
        Ok(())
    }

    async fn look_at_fleet(&mut self) -> Told<()> {
        let now = self.core.fleet().await?;
        let old = self.fleet.clone();
        self.tell_nodes(old.as_ref(), &now).await?;
        self.tell_disks(old.as_ref(), &now).await?;
        if old.as_ref() != Some(&now) {
            let pools: Api<StoragePool> = Api::all(self.client.clone());
            for p in pools.list(&ListParams::default()).await?.items {
                let (generation, conditions) = known(&p, p.status.as_ref().map(|s| &s.conditions));
                let Ok(name) = p.name_any().parse() else { continue };
                let status = plan::pool(&now, &name, generation, conditions, &clock());
                tell(&pools, &p, &serde_json::to_value(status)?).await?;
            }
        }
        if let Some(old) = old {
            self.compare(&old, &now).await?;
        }
        self.fleet = Some(now);
        Ok(())
    }

    async fn tell_nodes(&self, old: Option<&Fleet>, now: &Fleet) -> Told<()> {
        let api: Api<StorageNode> = Api::all(self.client.clone());
        for n in news(&api, old.map(|f| &f.nodes), &now.nodes).await? {
            let Some(alive) = n.name_any().parse().ok().and_then(|name: NodeName| now.nodes.get(&name))
            else {
                continue;
            };
            let (generation, conditions) = known(&n, n.status.as_ref().map(|s| &s.conditions));
            let status = plan::node(*alive, generation, conditions, &clock());
            tell(&api, &n, &serde_json::to_value(status)?).await?;
        }
        Ok(())
    }

    async fn tell_disks(&self, old: Option<&Fleet>, now: &Fleet) -> Told<()> {
        let api: Api<NodeDisk> = Api::all(self.client.clone());
        for d in news(&api, old.map(|f| &f.disks), &now.disks).await? {
            let Some(r) = d.name_any().parse().ok().and_then(|id| now.disks.get(&id)) else { continue };
            let (generation, conditions) = known(&d, d.status.as_ref().map(|s| &s.conditions));
            let status = plan::disk(r, generation, conditions, &clock());
            tell(&api, &d, &serde_json::to_value(status)?).await?;
        }
        Ok(())
    }

    /// Says what has become of nodes and disks since the last look.
    async fn compare(&mut self, old: &Fleet, now: &Fleet) -> Told<()> {
        for (node, alive) in &now.nodes {
            if old.nodes.get(node).is_none_or(|was| was == alive) {
                continue;
            }
            let subject = Subject::Node(node.to_string());
            if *alive {
                self.happened(
                    subject,
                    false,
                    "StorageBack",
                    format!("weir-node on {node} is heard of again"),
                );
            } else {
                let why = format!(
                    "weir-node on {node} has not been heard of: I/O to extents that lie there waits until it is back"
                );
                self.happened(subject, true, "StorageSilent", why);
            }
            for id in self.core.volumes_at(node.clone()).await? {
                self.dirty.insert(id);
                let Some(r) = self.core.volume_report(id).await? else { continue };
                if let (Some(why), false) = (&r.abnormal, alive) {
                    self.of_claim(&r, true, "LenderLost", format!("volume {id}: {why}"));
                }
            }
        }
        for (id, d) in &now.disks {
            let Some(was) = old.disks.get(id) else {
                let what = format!("{} of {} became a disk of pool {}", d.path, d.node, d.pool);
                self.happened(Subject::Disk(id.to_string()), false, "Claimed", what);
                continue;
            };
            let missing = |s: &str| s.starts_with("missing");
            let (reason, what) = if d.failing && !was.failing {
                ("DiskFailing", "fails")
            } else if missing(&d.state) && !missing(&was.state) {
                ("DiskMissing", "is missing")
            } else {
                continue;
            };
            let message = format!("disk {id} ({} of node {}) {what}: {}", d.path, d.node, d.state);
            self.happened(Subject::Disk(id.to_string()), true, reason, message.clone());
            self.happened(Subject::Node(d.node.to_string()), true, reason, message);
        }
        Ok(())
    }
}

fn clock() -> String {
    // Conditions have whole seconds.
    let now = Timestamp::now().as_second();
    Timestamp::from_second(now).map(|t| t.to_string()).unwrap_or_default()
}

/// The generation of an object, and what its status says already.
fn known<'a, K: Resource>(
    object: &K,
    conditions: Option<&'a Vec<api::Condition>>,
) -> (i64, &'a [api::Condition]) {
    (object.meta().generation.unwrap_or_default(), conditions.map(Vec::as_slice).unwrap_or_default())
}

fn volume_status(v: &LogicalVolume, r: &VolumeReport) -> Result<Value, serde_json::Error> {
    let (generation, conditions) = known(v, v.status.as_ref().map(|s| &s.conditions));
    serde_json::to_value(plan::volume(r, generation, conditions, &clock()))
}

/// The objects whose state is another one than at the last look; all of them at the first.
async fn news<K, N, T>(
    api: &Api<K>,
    old: Option<&BTreeMap<N, T>>,
    now: &BTreeMap<N, T>,
) -> kube::Result<Vec<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    N: Ord + ToString,
    T: PartialEq,
{
    let mut out = vec![];
    match old {
        Some(old) => {
            for (name, _) in now.iter().filter(|(name, t)| old.get(name) != Some(t)) {
                out.extend(api.get_opt(&name.to_string()).await?);
            }
        }
        None => {
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let listed = api.list(&page).await?;
                out.extend(listed.items);
                match listed.metadata.continue_.filter(|c| !c.is_empty()) {
                    Some(next) => page = page.continue_token(&next),
                    None => break,
                }
            }
        }
    }
    Ok(out)
}

/// Writes a status, where it says something else than the one that stands there.
async fn tell<K>(api: &Api<K>, object: &K, status: &Value) -> Told<()>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let stands = serde_json::to_value(object)?["status"].take();
    let mut wanted = status.clone();
    // A merge leaves alone what it does not name: what is to go is named.
    if let (Value::Object(stands), Value::Object(wanted)) = (&stands, &mut wanted) {
        for key in stands.keys().filter(|k| !status.as_object().is_some_and(|s| s.contains_key(*k))) {
            wanted.insert(key.clone(), Value::Null);
        }
    }
    if stands == wanted {
        return Ok(());
    }
    let patch = json!({ "status": wanted });
    match api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // It went away.
        Err(kube::Error::Api(s)) if s.is_not_found() => Ok(()),
        Err(e) => Err(e.into()),
    }
}
