//! A scripted node: brings every goal about at once and reports it, keeps its state when the controller goes, and can
//! be told to misbehave.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use controller::core::{
    Handle, OpenError, Session,
    seen::{
        Attachment, AttachmentSeen, Condition, Content, Device, DiskSeen, ExportSeen, Hello, Report, WipeSeen,
    },
    told::{DiskRole, Goal, GoalKey, Next},
};
use pool::{
    disk::DiskClass,
    goals::{ExportState, Role},
    ids::{DiskId, Epoch, NodeName, Term, VolumeId},
    layout::params::Limits,
    moving::Mirror,
    units::{Bytes, ExtentSize, Extents},
};

use crate::world::World;

#[derive(Clone)]
struct Dev {
    size: Bytes,
    label: Option<DiskId>,
    content: Content,
}

struct State {
    devices: BTreeMap<String, Dev>,
    exports: BTreeMap<(VolumeId, DiskId, NodeName), (Epoch, ExportState)>,
    attachments: BTreeMap<VolumeId, AttachmentSeen>,
    /// Goals that wait for something: a lender, a release of the brake.
    attach_goals: BTreeMap<VolumeId, Goal>,
    term: Term,
    /// It writes all the time, so that it refuses to fence itself.
    writing: bool,
    /// It does not bring attachments about.
    stuck: bool,
    /// Its mirrors do not get on.
    slow: bool,
    /// Disks that it was told of.
    told: BTreeSet<DiskId>,
    /// It has not looked at its devices yet.
    blind: bool,
    /// It has power.
    on: bool,
    /// How often it was booted.
    boots: u32,
}

/// A node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) name: NodeName,
    world: World,
    state: Arc<Mutex<State>>,
    link: Arc<tokio::sync::Mutex<Option<Link>>>,
}

struct Link {
    session: Arc<Session>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        for t in &self.tasks {
            t.abort();
        }
    }
}

pub(crate) const EXTENT: ExtentSize = ExtentSize::MIN;

impl Node {
    /// A node with blank devices of so many extents each, one of them for the label.
    pub(crate) fn new(world: &World, name: &str, devices: &[u64]) -> Self {
        let dev = |(i, n): (usize, &u64)| {
            let size = EXTENT.bytes_of(Extents::new(n + 1));
            (format!("{name}-serial-{i}"), Dev { size, label: None, content: Content::Blank })
        };
        let state = State {
            devices: devices.iter().enumerate().map(dev).collect(),
            exports: BTreeMap::new(),
            attachments: BTreeMap::new(),
            attach_goals: BTreeMap::new(),
            term: Term::ZERO,
            writing: false,
            stuck: false,
            slow: false,
            told: BTreeSet::new(),
            blind: false,
            on: true,
            boots: 1,
        };
        Self {
            name: name.parse().unwrap(),
            world: world.clone(),
            state: Arc::new(Mutex::new(state)),
            link: Arc::new(tokio::sync::Mutex::new(None)),
        }
    }

    /// Sets what is on a device.
    pub(crate) fn put(&self, id: &str, content: Content) {
        self.state.lock().unwrap().devices.get_mut(id).unwrap().content = content;
    }

    /// Loses its power, for good or until it is booted.
    pub(crate) async fn perish(&self) {
        self.state.lock().unwrap().on = false;
        self.vanish().await;
        self.world.lose(&self.name);
    }

    /// Has power again, and nothing in its kernel.
    pub(crate) fn boot(&self) {
        let mut s = self.state.lock().unwrap();
        (s.on, s.boots, s.term) = (true, s.boots + 1, Term::ZERO);
        s.exports.clear();
        s.attachments.clear();
        s.attach_goals.clear();
    }

    /// Takes a device out.
    pub(crate) fn pull(&self, id: &str) -> (DiskId, Bytes) {
        let d = self.state.lock().unwrap().devices.remove(id).unwrap();
        (d.label.unwrap(), d.size)
    }

    /// Puts a blank device in.
    pub(crate) fn insert(&self, id: &str, size: Bytes) {
        self.state
            .lock()
            .unwrap()
            .devices
            .insert(id.into(), Dev { size, label: None, content: Content::Blank });
    }

    /// Erases a device's label.
    pub(crate) fn strip(&self, id: &str) {
        self.state.lock().unwrap().devices.get_mut(id).unwrap().label = None;
    }

    /// Puts a labelled device in.
    pub(crate) fn push(&self, id: &str, disk: DiskId, size: Bytes) {
        let content = Content::Weir { disk, pool: "p".into() };
        self.state.lock().unwrap().devices.insert(id.into(), Dev { size, label: Some(disk), content });
    }

    pub(crate) fn set_writing(&self, writing: bool) {
        self.state.lock().unwrap().writing = writing;
    }

    /// Until it has looked, it says nothing of its devices and disks.
    pub(crate) fn set_blind(&self, blind: bool) {
        self.state.lock().unwrap().blind = blind;
    }

    /// Has mirrors take their time, or be whole as soon as they are made.
    pub(crate) async fn set_slow(&self, slow: bool) {
        self.state.lock().unwrap().slow = slow;
        if !slow {
            self.set_stuck(false).await;
        }
    }

    /// Holds attachments up, or lets them go on.
    pub(crate) async fn set_stuck(&self, stuck: bool) {
        let goals: BTreeMap<_, _> = {
            let mut s = self.state.lock().unwrap();
            s.stuck = stuck;
            let goals = s.attach_goals.iter();
            goals.map(|(v, g)| (GoalKey::Attachment(*v), g.clone())).collect()
        };
        if !stuck && let Some(link) = self.link.lock().await.as_ref() {
            let report = self.obey(goals);
            link.session.heard(Some(report)).await.unwrap();
        }
    }

    /// The first write of the guest: it is held and reported.
    pub(crate) async fn write(&self, volume: VolumeId) {
        let report = {
            let mut s = self.state.lock().unwrap();
            let a = s.attachments.get_mut(&volume).unwrap();
            assert_eq!(a.state, Some(Attachment::Guarded), "nothing stands guard");
            a.held = true;
            Report { attachments: vec![a.clone()], ..Report::default() }
        };
        let link = self.link.lock().await;
        link.as_ref().unwrap().session.heard(Some(report)).await.unwrap();
    }

    /// The limits that it was told of a volume.
    pub(crate) fn limits(&self, volume: VolumeId) -> Limits {
        match self.state.lock().unwrap().attach_goals.get(&volume) {
            Some(Goal::Attachment { limits, .. }) => *limits,
            _ => Limits::default(),
        }
    }

    pub(crate) fn attachment(&self, volume: VolumeId) -> Option<Attachment> {
        self.state.lock().unwrap().attachments.get(&volume).and_then(|a| a.state)
    }

    /// Opens a session, if it is on and gets one.
    pub(crate) async fn connect(&self, core: &Handle) {
        if self.state.lock().unwrap().on {
            drop(self.try_connect(core).await);
        }
    }

    /// Opens a session.
    pub(crate) async fn try_connect(&self, core: &Handle) -> Result<(), OpenError> {
        *self.link.lock().await = None;
        let boots = self.state.lock().unwrap().boots;
        let hello = Hello {
            node: self.name.clone(),
            boot_id: format!("boot {boots}"),
            version: "test".into(),
            address: format!("{}.storage", self.name),
            port: 4420,
            topology: BTreeMap::from([("zone".to_owned(), "z1".to_owned())]),
            term_seen: self.state.lock().unwrap().term,
        };
        let session = core.open(hello).await?;
        self.state.lock().unwrap().term = core.term();
        let session = Arc::new(session);
        let (me, s, beat) = (self.clone(), session.clone(), core.heartbeat());
        let obey = tokio::spawn(async move {
            if s.heard(Some(me.full_report())).await.is_err() {
                return;
            }
            while let Next::Goals { goals, .. } = s.outbox().next().await {
                let report = me.obey(goals);
                if s.heard(Some(report)).await.is_err() {
                    return;
                }
            }
        });
        let s = session.clone();
        let heart = tokio::spawn(async move {
            loop {
                tokio::time::sleep(beat).await;
                if s.heard(None).await.is_err() {
                    return;
                }
            }
        });
        *self.link.lock().await = Some(Link { session, tasks: vec![obey, heart] });
        Ok(())
    }

    /// Falls silent. Its devices go on as they were.
    pub(crate) async fn vanish(&self) {
        *self.link.lock().await = None;
    }

    /// Reports its devices again.
    pub(crate) async fn rescan(&self) {
        let report = self.full_report();
        let link = self.link.lock().await;
        link.as_ref().unwrap().session.heard(Some(report)).await.unwrap();
    }

    fn full_report(&self) -> Report {
        let s = self.state.lock().unwrap();
        let device = |(id, d): (&String, &Dev)| {
            let device = Device {
                path: format!("/dev/{id}"),
                serial: id.clone(),
                size: d.size,
                logical_block: 512,
                physical_block: 4096,
                class: DiskClass::Ssd,
                content: d.content.clone(),
                findings: vec!["ext4".into()],
            };
            (id.clone(), Some(device))
        };
        let looked = s.devices.iter().filter(|_| !s.blind);
        let disks = looked.clone().filter_map(|(id, d)| d.label.map(|l| serving(id, d, l)));
        let there = |disk: &DiskId| s.devices.values().any(|d| d.label == Some(*disk));
        let lost = s.told.iter().filter(|d| !s.blind && !there(d)).map(|d| missing(*d));
        let export = |((volume, disk, consumer), (epoch, state)): (
            &(VolumeId, DiskId, NodeName),
            &(Epoch, ExportState),
        )| ExportSeen {
            volume: *volume,
            disk: *disk,
            consumer: consumer.clone(),
            epoch: *epoch,
            state: Some(*state),
            reason: String::new(),
        };
        Report {
            full: true,
            devices: looked.map(device).collect(),
            disks: disks.chain(lost).collect(),
            exports: s.exports.iter().map(export).collect(),
            attachments: s.attachments.values().cloned().collect(),
            wipes: vec![],
        }
    }

    fn obey(&self, goals: BTreeMap<GoalKey, Goal>) -> Report {
        let mut report = Report::default();
        let mut s = self.state.lock().unwrap();
        for (key, goal) in goals {
            match (key, &goal) {
                (GoalKey::Disk(_), Goal::Disk { .. }) if s.blind => {}
                (GoalKey::Disk(disk), Goal::Disk { role, device_id, .. }) => {
                    s.told.insert(disk);
                    let found =
                        s.devices.iter().find(|(_, d)| d.label == Some(disk)).map(|(id, _)| id.clone());
                    let id = found.unwrap_or_else(|| device_id.clone());
                    let Some(d) = s.devices.get_mut(&id) else {
                        report.disks.push(missing(disk));
                        continue;
                    };
                    if *role == DiskRole::Claim && d.label.is_none() {
                        d.label = Some(disk);
                        d.content = Content::Weir { disk, pool: "p".into() };
                        self.world.soil(disk, extents(d).get());
                    }
                    if *role == DiskRole::Serve && d.label != Some(disk) {
                        report.disks.push(DiskSeen { condition: Some(Condition::Failed), ..nothing(disk) });
                        continue;
                    }
                    if *role == DiskRole::Release {
                        d.label = None;
                        d.content = Content::Blank;
                        let released = DiskSeen { condition: Some(Condition::Released), ..nothing(disk) };
                        report.disks.push(released);
                        continue;
                    }
                    report.disks.push(serving(&id, d, disk));
                }
                (GoalKey::Wipe(disk, wipe), Goal::Wipe { runs, .. }) => {
                    let done = s.devices.values().any(|d| d.label == Some(disk));
                    for r in runs.iter().filter(|_| done) {
                        self.world.wipe(disk, r.first.get(), r.count.get());
                    }
                    let reason = if done { String::new() } else { format!("disk {disk} is not here") };
                    report.wipes.push(WipeSeen { disk, wipe, done, refused: false, reason });
                }
                (GoalKey::Export(volume, disk, consumer), Goal::Export { epoch, state, .. }) => {
                    s.exports.insert((volume, disk, consumer.clone()), (*epoch, *state));
                    let state = Some(*state);
                    let reason = String::new();
                    report.exports.push(ExportSeen { volume, disk, consumer, epoch: *epoch, state, reason });
                }
                (GoalKey::Attachment(volume), Goal::Attachment { .. }) => {
                    s.attach_goals.insert(volume, goal.clone());
                    if !s.stuck {
                        report.attachments.extend(self.attach(&mut s, volume, &goal));
                    }
                }
                (key, goal) => panic!("{key:?} with {goal:?}"),
            }
        }
        report
    }

    fn attach(&self, s: &mut State, volume: VolumeId, goal: &Goal) -> Option<AttachmentSeen> {
        let Goal::Attachment { epoch, role, map, remotes, .. } = goal else { return None };
        let old = s.attachments.get(&volume).cloned();
        let size = map.extent_size.bytes_of(map.map.extents());
        let ready = remotes.iter().all(|r| r.ready && !r.address.is_empty());
        let (mut held, mut busy) = (false, false);
        let state = match role {
            Role::Writer | Role::Reader if ready => {
                self.world.open(&self.name, volume, &map.map, *role == Role::Writer);
                Attachment::Open
            }
            Role::Guard if ready => {
                self.world.open(&self.name, volume, &map.map, false);
                held = old.as_ref().is_some_and(|o| o.held);
                Attachment::Guarded
            }
            Role::Writer | Role::Reader | Role::Guard => return None,
            Role::FenceIfQuiet
                if s.writing && old.as_ref().is_none_or(|o| o.state != Some(Attachment::Fenced)) =>
            {
                busy = true;
                Attachment::Open
            }
            Role::FenceIfQuiet => {
                self.world.shut(&self.name, volume);
                Attachment::Fenced
            }
            Role::Absent => {
                self.world.shut(&self.name, volume);
                Attachment::Absent
            }
        };
        // A mirror is whole as soon as it is made, unless it is to take its time.
        let filling = map.map.spare().is_some_and(|(_, p)| p.filling) && *role == Role::Writer;
        let mirror = match filling {
            true if s.slow => Mirror::Copying(Bytes::ZERO, size),
            true => Mirror::Whole,
            false => Mirror::Gone,
        };
        let mirrored = |o: &&AttachmentSeen| !matches!(o.mirror, Some(Mirror::Gone) | None);
        if let Some(o) = old.as_ref().filter(mirrored).filter(|o| filling && o.size != size) {
            self.world.broke(format!("{volume} grew above a mirror: {} to {size}", o.size));
        }
        let seen = AttachmentSeen {
            mirror: Some(mirror),
            volume,
            epoch: *epoch,
            state: Some(state),
            held,
            busy,
            size,
            queueing: vec![],
            reason: String::new(),
        };
        s.attachments.insert(volume, seen.clone());
        Some(seen)
    }
}

fn extents(d: &Dev) -> Extents {
    EXTENT.extents_round_down(d.size).minus(Extents::new(1))
}

fn nothing(disk: DiskId) -> DiskSeen {
    DiskSeen {
        disk,
        condition: None,
        extents: Extents::ZERO,
        device_id: String::new(),
        path: String::new(),
        reason: String::new(),
    }
}

fn missing(disk: DiskId) -> DiskSeen {
    DiskSeen { condition: Some(Condition::Missing), ..nothing(disk) }
}

fn serving(id: &str, d: &Dev, disk: DiskId) -> DiskSeen {
    DiskSeen {
        condition: Some(Condition::Serving),
        extents: extents(d),
        device_id: id.to_owned(),
        path: format!("/dev/{id}"),
        ..nothing(disk)
    }
}

/// How fast things go in tests.
pub(crate) fn quick() -> controller::core::CoreConfig {
    use controller::core::{CoreConfig, DeviceSelector, PoolSpec};
    let mut pool = PoolSpec::new("p".parse().unwrap());
    pool.extent_size = EXTENT;
    pool.devices = vec![DeviceSelector::default()];
    CoreConfig {
        pools: vec![pool],
        // What waits for a death waits for this long; a machine that stands still for as long is taken for one.
        lease: Duration::from_secs(2),
        heartbeat: Duration::from_millis(100),
        patience: Duration::from_millis(300),
        request_deadline: Duration::from_secs(3),
        resize_wait: Duration::from_secs(3),
        fresh_chunk: EXTENT.bytes_of(Extents::new(7)),
        lend_by_forecast: true,
        move_piece: EXTENT.bytes_of(Extents::new(3)),
    }
}
