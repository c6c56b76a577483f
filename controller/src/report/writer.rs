//! Writes statuses and events as news come in, and catches up with everything once when a reign begins.
//!
//! Invariants: what fails is tried again; one object's trouble holds no other up, be it that it is refused, that nothing is
//! answered, or that it is not what its type says. Must not know: what a status says.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use api::{Condition, LogicalVolume, NodeDisk, StorageNode};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use pool::ids::{DiskId, NodeName, VolumeId};
use serde_json::{Value, json};
use tokio::{sync::broadcast::error::RecvError, time::MissedTickBehavior};

use super::{
    events::{Happening, Subject, say},
    plan,
    todo::Todo,
    troubles::{Troubles, Verdict, judge},
};
use crate::{
    api::ApiError,
    cluster::ask,
    core::{DiskReport, Fleet, Handle, News, Standing, VolumeReport},
    fault::Cause,
    pools,
};

/// How often what has changed is written: several changes of a volume in a row are one status.
const TICK: Duration = Duration::from_secs(2);
/// Ticks between two looks at disks, nodes and pools.
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
    statuses: Todo<Thing>,
    events: Todo<(Subject, Happening)>,
    /// Events that were dropped since that was said last.
    dropped: u64,
    fleet: Option<Fleet>,
    /// Why pools were left out at the last look.
    left_out: BTreeMap<String, String>,
    /// What is caught up with, and where that goes on.
    sweeps: VecDeque<(Kind, Option<String>)>,
    troubles: Troubles,
}

/// What has a status and is somebody's record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Node(NodeName),
    Disk(DiskId),
    Volume(VolumeId),
}

/// A kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Node,
    Disk,
    Volume,
}

type Told<T> = Result<T, Failed>;

/// What an event says of a disk that is worse than before: its reason, and a sentence.
type BadNews = (&'static str, String);

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Core(#[from] ApiError),
    #[error("a status cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Failed {
    fn verdict(&self) -> Verdict {
        match self {
            Failed::Api(e) => judge(e),
            // It answers nothing more once it has ended.
            Failed::Core(_) => Verdict::Away,
            Failed::Json(_) => Verdict::NotNow,
        }
    }
}

impl Kind {
    const ALL: [Self; 3] = [Self::Node, Self::Disk, Self::Volume];

    /// Objects of the kind as they stand there: whether they make sense as records is the store's to say.
    fn api(self, client: &Client) -> Api<DynamicObject> {
        let resource = match self {
            Kind::Node => ApiResource::erase::<StorageNode>(&()),
            Kind::Disk => ApiResource::erase::<NodeDisk>(&()),
            Kind::Volume => ApiResource::erase::<LogicalVolume>(&()),
        };
        Api::all_with(client.clone(), &resource)
    }

    fn thing(self, name: &str) -> Option<Thing> {
        match self {
            Kind::Node => name.parse().ok().map(Thing::Node),
            Kind::Disk => name.parse().ok().map(Thing::Disk),
            Kind::Volume => name.parse().ok().map(Thing::Volume),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Node => "the statuses of all nodes",
            Kind::Disk => "the statuses of all disks",
            Kind::Volume => "the statuses of all volumes",
        })
    }
}

impl Thing {
    fn kind(&self) -> Kind {
        match self {
            Thing::Node(_) => Kind::Node,
            Thing::Disk(_) => Kind::Disk,
            Thing::Volume(_) => Kind::Volume,
        }
    }

    fn name(&self) -> String {
        match self {
            Thing::Node(name) => name.to_string(),
            Thing::Disk(id) => id.to_string(),
            Thing::Volume(id) => id.to_string(),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Node(name) => write!(f, "the status of node {name}"),
            Thing::Disk(id) => write!(f, "the status of disk {id}"),
            Thing::Volume(id) => write!(f, "the status of volume {id}"),
        }
    }
}

impl Reporter {
    /// For this core and this cluster.
    pub fn new(client: Client, core: Handle) -> Self {
        Self {
            client,
            core,
            statuses: Todo::default(),
            events: Todo::default(),
            dropped: 0,
            fleet: None,
            left_out: BTreeMap::new(),
            sweeps: Kind::ALL.map(|kind| (kind, None)).into(),
            troubles: Troubles::default(),
        }
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
                    Err(RecvError::Lagged(_)) => {
                        self.sweeps.retain(|(kind, _)| *kind != Kind::Volume);
                        self.sweeps.push_back((Kind::Volume, None));
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = ticks.tick() => {
                    self.tick(count.is_multiple_of(FLEET)).await;
                    count = count.wrapping_add(1);
                }
            }
        }
    }

    fn happened(&mut self, subject: Subject, warning: bool, reason: &'static str, message: String) {
        // Those that are refused again and again make room for others.
        if self.events.len() >= EVENTS {
            self.dropped += 1;
            if !self.events.drop_failed() {
                return;
            }
        }
        self.events.add((subject, Happening { warning, reason, message }));
    }

    async fn heard(&mut self, n: News) {
        self.statuses.add(Thing::Volume(n.volume));
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

    async fn tick(&mut self, fleet: bool) {
        if fleet {
            if let Err(e) = self.look_at_fleet().await {
                tracing::debug!(error = %e, "the core does not say how disks and nodes are");
            }
            self.tell_pools().await;
        }
        self.sweep().await;
        let mut away = false;
        for thing in self.statuses.round(BATCH) {
            if away {
                self.statuses.add(thing);
                continue;
            }
            let told = self.tell(&thing).await;
            away = self.note(thing, told);
        }
        self.tell_events().await;
    }

    /// Takes note of how telling something went; answers whether there is no use in telling more now.
    fn note(&mut self, thing: Thing, told: Told<()>) -> bool {
        match told {
            Ok(()) => {
                self.troubles.over(&thing);
                false
            }
            Err(e) => {
                self.troubles.failed(&thing, &e);
                self.statuses.put_off(thing);
                e.verdict() == Verdict::Away
            }
        }
    }

    async fn tell_events(&mut self) {
        if self.dropped > 0 {
            tracing::warn!(count = self.dropped, "too many events waited: some are not told");
            self.dropped = 0;
        }
        let mut away = false;
        for event in self.events.round(BATCH) {
            if away {
                self.events.add(event);
                continue;
            }
            let (subject, happening) = &event;
            let what = format!("an event in namespace {}", subject.namespace());
            match say(&self.client, subject, happening).await {
                Ok(()) => self.troubles.over(&what),
                Err(e) => {
                    self.troubles.failed(&what, &e);
                    match judge(&e) {
                        Verdict::Refused => {}
                        verdict @ (Verdict::NotNow | Verdict::Away) => {
                            away = verdict == Verdict::Away;
                            self.events.put_off(event);
                        }
                    }
                }
            }
        }
    }

    async fn tell(&self, thing: &Thing) -> Told<()> {
        let api = thing.kind().api(&self.client);
        match ask(api.get_opt(&thing.name())).await? {
            Some(object) => self.update(thing, &api, &object).await,
            None => Ok(()),
        }
    }

    /// Writes the status of an object, where something else stands there.
    async fn update(&self, thing: &Thing, api: &Api<DynamicObject>, object: &DynamicObject) -> Told<()> {
        let (generation, old) = known(object);
        let now = clock();
        let fleet = self.fleet.as_ref();
        let status = match thing {
            Thing::Node(name) => fleet
                .and_then(|f| f.nodes.get(name))
                .map(|standing| serde_json::to_value(plan::node(*standing, generation, &old, &now))),
            Thing::Disk(id) => fleet
                .and_then(|f| f.disks.get(id))
                .map(|d| serde_json::to_value(plan::disk(d, generation, &old, &now))),
            Thing::Volume(id) => {
                let report = self.core.volume_report(*id).await?;
                report.map(|r| serde_json::to_value(plan::volume(&r, generation, &old, &now)))
            }
        };
        match status.transpose()? {
            Some(status) => write(api, object, &status).await,
            None => Ok(()),
        }
    }

    /// Catches up with a page of a kind.
    async fn sweep(&mut self) {
        let Some((kind, token)) = self.sweeps.pop_front() else { return };
        let api = kind.api(&self.client);
        let mut page = ListParams::default().limit(PAGE);
        page.continue_token = token;
        let listed = match ask(api.list(&page)).await {
            Ok(l) => l,
            Err(e) => {
                // The list may have become too old to be gone on with.
                let gone = matches!(&e, kube::Error::Api(s) if s.code == 410);
                self.sweeps.push_back((kind, page.continue_token.filter(|_| !gone)));
                self.troubles.failed(&kind, &e);
                return;
            }
        };
        self.troubles.over(&kind);
        if let Some(next) = listed.metadata.continue_.filter(|c| !c.is_empty()) {
            self.sweeps.push_front((kind, Some(next)));
        }
        let mut away = false;
        for object in &listed.items {
            let Some(thing) = kind.thing(&object.name_any()) else { continue };
            if away {
                self.statuses.add(thing);
                continue;
            }
            let told = self.update(&thing, &api, object).await;
            away = self.note(thing, told);
        }
    }

    /// Looks at how disks and nodes are, and what follows from that for volumes.
    async fn look_at_fleet(&mut self) -> Result<(), ApiError> {
        let now = self.core.fleet().await?;
        if let Some(old) = self.fleet.replace(now.clone()) {
            for (name, _) in now.nodes.iter().filter(|(name, is)| old.nodes.get(name) != Some(is)) {
                self.statuses.add(Thing::Node(name.clone()));
            }
            for (id, _) in now.disks.iter().filter(|(id, d)| old.disks.get(id) != Some(d)) {
                self.statuses.add(Thing::Disk(*id));
            }
            self.compare_nodes(&old, &now).await?;
            self.compare_disks(&old, &now).await?;
        }
        Ok(())
    }

    /// Says what has become of nodes since the last look.
    async fn compare_nodes(&mut self, old: &Fleet, now: &Fleet) -> Result<(), ApiError> {
        for (node, standing) in &now.nodes {
            if old.nodes.get(node).is_none_or(|was| was == standing) {
                continue;
            }
            let subject = Subject::Node(node.to_string());
            match standing {
                Standing::Alive => {
                    let back = format!("weir-node on {node} is heard of again");
                    self.happened(subject, false, "StorageBack", back);
                }
                Standing::Silent => {
                    let why = format!(
                        "weir-node on {node} has not been heard of: I/O to extents that lie there waits until it is back"
                    );
                    self.happened(subject, true, "StorageSilent", why);
                }
                Standing::Forgotten => {
                    let why = format!("{node} and its disks were forgotten, as never to come back");
                    self.happened(subject, false, "StorageForgotten", why);
                }
            }
            for id in self.core.volumes_at(node.clone()).await? {
                self.statuses.add(Thing::Volume(id));
                if *standing != Standing::Silent {
                    continue;
                }
                let Some(r) = self.core.volume_report(id).await? else { continue };
                if let Some(why) = &r.abnormal {
                    self.of_claim(&r, true, "LenderLost", format!("volume {id}: {why}"));
                }
            }
        }
        Ok(())
    }

    /// Says what has become of disks since the last look, and has their volumes' statuses say it.
    async fn compare_disks(&mut self, old: &Fleet, now: &Fleet) -> Result<(), ApiError> {
        // By node: what matters to volumes, and what is bad news.
        let mut changed: BTreeMap<&NodeName, BTreeMap<DiskId, Option<BadNews>>> = BTreeMap::new();
        for (id, d) in &now.disks {
            let Some(was) = old.disks.get(id) else {
                let what = format!("{} of {} became a disk of pool {}", d.path, d.node, d.pool);
                self.happened(Subject::Disk(id.to_string()), false, "Claimed", what);
                continue;
            };
            let worse = worsened(was, d).map(|(reason, what)| {
                (reason, format!("disk {id} ({} of node {}) {what}: {}", d.path, d.node, d.state))
            });
            if let Some((reason, message)) = &worse {
                self.happened(Subject::Disk(id.to_string()), true, reason, message.clone());
                self.happened(Subject::Node(d.node.to_string()), true, reason, message.clone());
            }
            if (was.failing, is_missing(was), &was.node) != (d.failing, is_missing(d), &d.node) {
                changed.entry(&d.node).or_default().insert(*id, worse);
            }
        }
        for (node, disks) in changed {
            for id in self.core.volumes_at(node.clone()).await? {
                let Some(r) = self.core.volume_report(id).await? else { continue };
                let mut own = disks.iter().filter(|(d, _)| r.disks.contains(*d)).map(|(_, w)| w).peekable();
                if own.peek().is_some() {
                    self.statuses.add(Thing::Volume(id));
                }
                if let Some((reason, message)) = own.flatten().next() {
                    self.of_claim(&r, true, reason, format!("volume {id}: {message}"));
                }
            }
        }
        Ok(())
    }

    /// Says how pools are, and why the controller does without some of them.
    async fn tell_pools(&mut self) {
        let all = "the statuses of all pools";
        let listed = match pools::list(&self.client).await {
            Ok(l) => l,
            Err(e) => {
                self.troubles.failed(&all, &e);
                return;
            }
        };
        self.troubles.over(&all);
        let before = std::mem::take(&mut self.left_out);
        let unlike_its_disks = self.fleet.as_ref().map(|f| f.left_out.clone()).unwrap_or_default();
        for p in &listed {
            let name = p.name_any();
            let understood = pools::understand(p);
            if let Err(why) =
                understood.and_then(|s| unlike_its_disks.get(&s.name).cloned().map_or(Ok(()), Err))
            {
                if before.get(&name) != Some(&why) {
                    let subject = Subject::Pool(name.clone(), p.uid());
                    self.happened(subject, true, "LeftOut", format!("pool {name} is left out: {why}"));
                }
                self.left_out.insert(name, why);
            }
        }
        for p in &listed {
            let what = format!("the status of pool {}", p.name_any());
            match self.tell_pool(p).await {
                Ok(()) => self.troubles.over(&what),
                Err(e) => {
                    self.troubles.failed(&what, &e);
                    if e.verdict() == Verdict::Away {
                        return;
                    }
                }
            }
        }
    }

    async fn tell_pool(&self, p: &DynamicObject) -> Told<()> {
        let Some(fleet) = &self.fleet else { return Ok(()) };
        let (generation, old) = known(p);
        let name = p.name_any();
        let left_out = self.left_out.get(&name).map(String::as_str);
        let status = plan::pool(fleet, &name, left_out, generation, &old, &clock());
        write(&pools::api(&self.client), p, &serde_json::to_value(status)?).await
    }
}

/// DiskState's word.
fn is_missing(d: &DiskReport) -> bool {
    d.state.starts_with("missing")
}

/// What has become of a disk that is bad news.
fn worsened(was: &DiskReport, now: &DiskReport) -> Option<(&'static str, &'static str)> {
    if now.failing && !was.failing {
        Some(("DiskFailing", "fails"))
    } else if is_missing(now) && !is_missing(was) {
        Some(("DiskMissing", "is missing"))
    } else {
        None
    }
}

fn clock() -> String {
    // Conditions have whole seconds.
    let now = Timestamp::now().as_second();
    Timestamp::from_second(now).map(|t| t.to_string()).unwrap_or_default()
}

/// The generation of an object, and what its status says already; conditions that are none say nothing.
fn known(object: &DynamicObject) -> (i64, Vec<Condition>) {
    let conditions = serde_json::from_value(object.data["status"]["conditions"].clone());
    (object.metadata.generation.unwrap_or_default(), conditions.unwrap_or_default())
}

/// Writes a status, where it says something else than the one that stands there.
async fn write(api: &Api<DynamicObject>, object: &DynamicObject, status: &Value) -> Told<()> {
    let stands = &object.data["status"];
    let mut wanted = status.clone();
    // A merge leaves alone what it does not name: what is to go is named.
    if let (Value::Object(stands), Value::Object(wanted)) = (stands, &mut wanted) {
        for key in stands.keys().filter(|k| !status.as_object().is_some_and(|s| s.contains_key(*k))) {
            wanted.insert(key.clone(), Value::Null);
        }
    }
    if *stands == wanted {
        return Ok(());
    }
    let (patch, name) = (json!({ "status": wanted }), object.name_any());
    match ask(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))).await {
        Ok(_) => Ok(()),
        // It went away.
        Err(kube::Error::Api(s)) if s.is_not_found() => Ok(()),
        Err(e) => Err(e.into()),
    }
}
