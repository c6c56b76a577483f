//! The workers against a kernel in memory: every goal from every state, cut off after every act.

mod carried;
pub(super) mod fake;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use kernel::{DevNo, dm::Target};
use observe::prometheus::{encoding::text::encode, registry::Registry};
use pool::{
    goals::{ExportState, Role},
    ids::{DiskId, Epoch, NodeName, VolumeId},
    names::{self, DmRole},
    units::{ExtentSize, Extents, Sectors},
    volume::{Leg, Map, Segment},
};
use tokio::{runtime::Runtime, sync::watch};

use csi_proto::node::ExportState as ProtoState;

use self::fake::Fake;
use super::{
    Agent, Goals,
    model::{AttachmentGoal, ExportGoal, ExportKey, ExportStanding, Remote, Standing, VolumeMap},
};
use crate::{
    disks_api::{DataArea, Disks, RecordError, RunRecord},
    retirements::Retirements,
};

const LOCAL: DiskId = DiskId::from_u128(1);
const REMOTE: DiskId = DiskId::from_u128(2);
const OTHER: DiskId = DiskId::from_u128(3);
const LIMIT: Duration = Duration::from_secs(30);

fn me() -> NodeName {
    "n1".parse().unwrap()
}

struct Room {
    changes: watch::Sender<u64>,
    wipes: Arc<Retirements>,
    kernel: Weak<Fake>,
    /// A disk whose label does not answer.
    hangs: watch::Receiver<Option<DiskId>>,
    /// A disk that does not serve.
    gone: watch::Receiver<Option<DiskId>>,
}

#[async_trait]
impl Disks for Room {
    fn data_area(&self, disk: DiskId) -> Option<DataArea> {
        let gone = *self.gone.borrow();
        let minor = [LOCAL, REMOTE, OTHER].iter().position(|d| *d == disk && gone != Some(disk))?;
        Some(DataArea {
            dev: DevNo::new(254, minor as u32),
            path: "/dev/vda".into(),
            start: Sectors::new(2048),
            len: Sectors::new(1 << 30),
        })
    }

    async fn record_runs(&self, r: RunRecord) -> Result<(), RecordError> {
        self.wipes.check(r.disk, r.volume, r.epoch)?;
        drop(self.hangs.clone().wait_for(|d| *d != Some(r.disk)).await);
        let written = self.kernel.upgrade().is_some_and(|k| k.label(r.disk));
        written.then_some(()).ok_or(RecordError::NotServing(r.disk))
    }

    fn retirements(&self) -> Arc<Retirements> {
        self.wipes.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn map(extents: u64) -> VolumeMap {
    let seg = |start, count, disk, first| Segment {
        start: Extents::new(start),
        count: Extents::new(count),
        legs: vec![Leg { disk, first: Extents::new(first) }],
        stripe: None,
        spare: None,
    };
    let segments = vec![seg(0, 4, LOCAL, 3), seg(4, extents - 4, REMOTE, 0)];
    VolumeMap { name: "v".into(), extent_size: ExtentSize::DEFAULT, map: Map(segments) }
}

fn goal(volume: VolumeId, epoch: u64, role: Role, extents: u64) -> AttachmentGoal {
    let remote =
        Remote { host: "n2".parse().unwrap(), address: [10, 0, 0, 2].into(), port: 4420, ready: true };
    AttachmentGoal {
        volume,
        epoch: Epoch::new(epoch),
        role,
        map: Some(map(extents)),
        remotes: BTreeMap::from([(REMOTE, remote)]),
    }
}

/// One life of the plugin on a kernel that outlives it.
struct Life {
    rt: Option<Runtime>,
    agent: Option<Arc<Agent>>,
    kernel: Weak<Fake>,
    /// Who held the kernel before.
    holders: usize,
    wipes: Arc<Retirements>,
    disks: watch::Sender<u64>,
    hang: watch::Sender<Option<DiskId>>,
    gone: watch::Sender<Option<DiskId>>,
}

impl Life {
    fn start(kernel: &Arc<Fake>) -> Self {
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (disks, wipes) = (watch::Sender::new(0), Arc::<Retirements>::default());
        let (changes, kernel_too) = (disks.clone(), Arc::downgrade(kernel));
        let (hang, hangs) = watch::channel(None);
        let (gone, goes) = watch::channel(None);
        let room = Arc::new(Room { changes, wipes: wipes.clone(), kernel: kernel_too, hangs, gone: goes });
        let holders = Arc::strong_count(kernel);
        let agent = rt.block_on(Agent::start(me(), kernel.clone(), room)).unwrap();
        let kernel = Arc::downgrade(kernel);
        Self { rt: Some(rt), agent: Some(agent), kernel, holders, wipes, disks, hang, gone }
    }

    fn agent(&self) -> &Arc<Agent> {
        self.agent.as_ref().unwrap()
    }

    fn tell(&self, goals: Goals) {
        let _in = self.rt.as_ref().unwrap().enter();
        self.agent().apply(goals);
    }

    fn attach(&self, g: AttachmentGoal) {
        self.tell(Goals { attachments: vec![g], ..Goals::default() });
    }

    fn standing(&self, v: VolumeId) -> (Epoch, Standing) {
        let s = self.agent().book().observe(v).borrow().clone();
        (s.epoch, s.standing)
    }

    fn until(&self, v: VolumeId, epoch: u64, want: Standing) {
        self.wait(&format!("{want:?} at {epoch}"), || self.standing(v) == (Epoch::new(epoch), want));
    }

    fn wait(&self, what: &str, ok: impl Fn() -> bool) {
        let start = Instant::now();
        while !ok() {
            assert!(start.elapsed() < LIMIT, "waited for {what}; {:?}", self.agent().book().full());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(rt) = self.rt.take() {
            rt.shutdown_timeout(Duration::from_secs(5));
        }
        self.agent = None;
        // A process takes its threads with it: none of this life may act in the next one.
        let start = Instant::now();
        while self.kernel.strong_count() > self.holders && !std::thread::panicking() {
            assert!(start.elapsed() < LIMIT, "threads of a dead life go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const V: VolumeId = VolumeId::from_u128(7);

fn kernel_with_import(extents: u64) -> Arc<Fake> {
    let k = Arc::new(Fake::default());
    k.import(names::slice_id(V, REMOTE, &me()), ExtentSize::DEFAULT.sectors_of(Extents::new(extents)));
    k
}

/// Brings a kernel from `before` to `after`, killed after every possible number of acts and begun again, and lets
/// `check` look at each outcome.
fn cut_off_everywhere(before: &[(Role, bool)], after: Role, want: Standing, check: impl Fn(&Fake, usize)) {
    for cut in 0.. {
        let k = kernel_with_import(8);
        let mut epoch = 0;
        {
            let life = Life::start(&k);
            for (role, held) in before {
                epoch += 1;
                life.attach(goal(V, epoch, *role, 8));
                life.until(V, epoch, reached(*role));
                k.lock().held = *held;
            }
        }
        k.lock().log.clear();
        k.lock().left = Some(cut);
        epoch += 1;
        let first = Life::start(&k);
        first.attach(goal(V, epoch, after, 8));
        first.wait("the cut", || k.lock().left == Some(0) || first.standing(V) == (Epoch::new(epoch), want));
        let whole = first.standing(V) == (Epoch::new(epoch), want) && k.lock().left != Some(0);
        drop(first);
        k.lock().left = None;
        let second = Life::start(&k);
        second.attach(goal(V, epoch, after, 8));
        second.until(V, epoch, want);
        // What is left over behind a device that is open already goes too.
        second.wait("the remains", || {
            want != Standing::Open || !k.lock().devices.contains_key(&DmRole::Map(V))
        });
        check(&k, cut as usize);
        if whole {
            return;
        }
    }
}

fn reached(r: Role) -> Standing {
    match r {
        Role::Writer | Role::Reader => Standing::Open,
        Role::Guard => Standing::Guarded,
        Role::FenceIfQuiet => Standing::Fenced,
        Role::Absent => Standing::Absent,
    }
}

fn roles(k: &Fake) -> Vec<DmRole> {
    k.lock().devices.keys().cloned().collect()
}

fn top_kinds(k: &Fake) -> Vec<String> {
    let w = k.lock();
    let t = w.devices[&DmRole::Top(V)].found.as_ref().unwrap().table.clone().unwrap();
    t.lines().iter().map(|l| l.target.kind().to_owned()).collect()
}

#[test]
fn a_writer_is_built_from_wherever_it_was_left() {
    cut_off_everywhere(&[], Role::Writer, Standing::Open, |k, cut| {
        assert_eq!(roles(k), [DmRole::Top(V), DmRole::Leg(V, REMOTE)], "cut after {cut}");
        assert_eq!(top_kinds(k), ["linear", "linear"]);
    });
}

#[test]
fn a_guard_is_built_from_wherever_it_was_left() {
    cut_off_everywhere(&[], Role::Guard, Standing::Guarded, |k, cut| {
        assert_eq!(roles(k).len(), 4, "cut after {cut}");
        assert_eq!(top_kinds(k), ["delay"]);
    });
}

#[test]
fn a_held_write_goes_through_when_its_node_becomes_the_writer() {
    cut_off_everywhere(&[(Role::Guard, true)], Role::Writer, Standing::Open, |k, cut| {
        let log = k.lock().log.clone();
        assert!(log.contains(&"held write went through".into()), "cut after {cut}: {log:?}");
        assert!(!log.contains(&"held write failed".into()), "cut after {cut}: {log:?}");
        assert_eq!(top_kinds(k), ["linear", "linear"]);
    });
}

#[test]
fn a_held_write_fails_when_its_node_is_to_go() {
    cut_off_everywhere(&[(Role::Guard, true)], Role::Absent, Standing::Absent, |k, cut| {
        let log = k.lock().log.clone();
        assert!(log.contains(&"held write failed".into()), "cut after {cut}: {log:?}");
        assert!(!log.contains(&"held write went through".into()), "cut after {cut}: {log:?}");
        assert_eq!(roles(k), []);
    });
}

#[test]
fn for_how_long_a_write_is_held_is_measured_until_it_goes_through_or_fails() {
    for (last, outcome, other) in [(Role::Writer, "released", "failed"), (Role::Absent, "failed", "released")]
    {
        let k = kernel_with_import(8);
        let life = Life::start(&k);
        let sees = |epoch| {
            let held = || life.agent().book().full().attachments.iter().any(|a| a.held && a.epoch == epoch);
            life.wait("the sight of the write", held);
        };
        life.attach(goal(V, 1, Role::Guard, 8));
        life.until(V, 1, Standing::Guarded);
        k.lock().held = true;
        sees(1);
        let seen = Instant::now();
        // The cut-over begins: the same guard and the same write, under another epoch.
        life.attach(goal(V, 2, Role::Guard, 8));
        sees(2);
        let measured = |of: &str, outcome: &str| {
            let mut registry = Registry::default();
            life.agent().held_writes().register(&mut registry);
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let begins = format!("weir_node_held_write_seconds_{of}{{outcome=\"{outcome}\"}} ");
            text.lines().find_map(|l| l.strip_prefix(&begins)).expect(&begins).parse::<f64>().unwrap()
        };
        assert_eq!((measured("count", outcome), measured("count", other)), (0.0, 0.0), "it is held");
        let at_least = seen.elapsed().as_secs_f64();
        life.attach(goal(V, 3, last, 8));
        life.until(V, 3, reached(last));
        assert_eq!((measured("count", outcome), measured("count", other)), (1.0, 0.0), "{last:?}");
        let sum = measured("sum", outcome);
        assert!(sum >= at_least, "{sum} s, and it was held for {at_least} s before it was let go");
    }
}

#[test]
fn a_commit_that_was_cut_off_can_still_be_aborted() {
    for cut in 0..6 {
        let k = kernel_with_import(8);
        {
            let life = Life::start(&k);
            life.attach(goal(V, 1, Role::Guard, 8));
            life.until(V, 1, Standing::Guarded);
            k.lock().held = true;
            k.lock().left = Some(cut);
            life.attach(goal(V, 2, Role::Writer, 8));
            life.wait("the cut", || {
                k.lock().left == Some(0) || life.standing(V) == (Epoch::new(2), Standing::Open)
            });
        }
        let committed = !k.lock().held;
        k.lock().left = None;
        let life = Life::start(&k);
        life.attach(goal(V, 3, Role::Absent, 8));
        life.until(V, 3, Standing::Absent);
        let log = k.lock().log.clone();
        assert_eq!(log.contains(&"held write went through".into()), committed, "cut after {cut}: {log:?}");
        assert_eq!(log.contains(&"held write failed".into()), !committed, "cut after {cut}: {log:?}");
        assert_eq!(roles(&k), []);
    }
}

#[test]
fn a_source_is_fenced_when_quiet_and_only_then() {
    cut_off_everywhere(&[(Role::Writer, false)], Role::FenceIfQuiet, Standing::Fenced, |k, _| {
        assert_eq!(top_kinds(k), ["error"]);
    });
    let k = kernel_with_import(8);
    let life = Life::start(&k);
    life.attach(goal(V, 1, Role::Writer, 8));
    life.until(V, 1, Standing::Open);
    k.lock().writing = true;
    life.attach(goal(V, 2, Role::FenceIfQuiet, 8));
    life.wait("busy", || life.agent().book().full().attachments.iter().any(|a| a.busy && a.epoch == 2));
    assert_eq!(top_kinds(&k), ["linear", "linear"], "the table is untouched");
    // It is asked once: going quiet later changes nothing under this epoch.
    k.lock().writing = false;
    life.attach(goal(V, 2, Role::FenceIfQuiet, 8));
    life.attach(goal(V, 3, Role::Writer, 8));
    life.until(V, 3, Standing::Open);
    assert_eq!(top_kinds(&k), ["linear", "linear"]);
}

#[test]
fn a_fenced_source_writes_again_under_a_newer_epoch() {
    let before = [(Role::Writer, false), (Role::FenceIfQuiet, false)];
    cut_off_everywhere(&before, Role::Writer, Standing::Open, |k, _| {
        assert_eq!(top_kinds(k), ["linear", "linear"]);
    });
}

#[test]
fn everything_goes_from_wherever_it_was_left() {
    cut_off_everywhere(&[(Role::Writer, false)], Role::Absent, Standing::Absent, |k, cut| {
        let first = k.lock().log.first().cloned().unwrap_or_default();
        assert!(first.starts_with("set weir-"), "cut after {cut}: the fence comes first: {first}");
        assert_eq!(roles(k), []);
    });
}

#[test]
fn what_is_in_use_goes_when_it_is_let_go() {
    let k = kernel_with_import(8);
    let life = Life::start(&k);
    life.attach(goal(V, 1, Role::Writer, 8));
    life.until(V, 1, Standing::Open);
    k.lock().devices.get_mut(&DmRole::Top(V)).unwrap().open = true;
    k.lock().devices.get_mut(&DmRole::Leg(V, REMOTE)).unwrap().path_failed = true;
    life.attach(goal(V, 2, Role::Absent, 8));
    life.until(V, 2, Standing::Fenced);
    life.wait("queued I/O to be failed", || k.lock().log.iter().any(|l| l.starts_with("fail queued")));
    k.lock().devices.get_mut(&DmRole::Top(V)).unwrap().open = false;
    life.until(V, 2, Standing::Absent);
}

#[test]
fn an_older_goal_is_refused() {
    let k = kernel_with_import(8);
    let life = Life::start(&k);
    life.attach(goal(V, 5, Role::Writer, 8));
    life.until(V, 5, Standing::Open);
    life.attach(goal(V, 4, Role::Absent, 8));
    life.attach(goal(V, 6, Role::Writer, 8));
    life.until(V, 6, Standing::Open);
    assert!(!k.lock().log.iter().any(|l| l.starts_with("remove")));
}

#[test]
fn a_device_grows_when_its_import_has() {
    let k = kernel_with_import(8);
    let life = Life::start(&k);
    life.attach(goal(V, 1, Role::Writer, 8));
    life.until(V, 1, Standing::Open);
    life.attach(goal(V, 2, Role::Writer, 12));
    life.wait("a reason", || {
        life.agent().book().full().attachments.iter().any(|a| a.epoch == 2 && !a.reason.is_empty())
    });
    assert_eq!(life.standing(V), (Epoch::new(2), Standing::Open), "it goes on at its old size");
    k.import(names::slice_id(V, REMOTE, &me()), ExtentSize::DEFAULT.sectors_of(Extents::new(12)));
    let larger = ExtentSize::DEFAULT.bytes_of(Extents::new(12));
    life.wait("the new size", || life.agent().book().observe(V).borrow().size == larger);
}

#[test]
fn a_path_that_came_back_is_taken_up_and_a_new_one_too() {
    let k = kernel_with_import(8);
    let life = Life::start(&k);
    life.attach(goal(V, 1, Role::Writer, 8));
    life.until(V, 1, Standing::Open);
    let leg = DmRole::Leg(V, REMOTE);
    let slice = names::slice_id(V, REMOTE, &me());
    // The path fails once its lender is known to be away: before, it would be tried again at once.
    k.lock().fabric.imports.get_mut(&slice).unwrap().live = false;
    k.notify();
    life.wait("the view", || !life.agent().ctx.imports.import(V, REMOTE).unwrap().live);
    k.lock().devices.get_mut(&leg).unwrap().path_failed = true;
    life.attach(goal(V, 2, Role::Writer, 8));
    life.agent().lock().attachments[&V].handle.poke();
    life.wait("queueing", || life.agent().book().full().attachments.iter().any(|a| !a.queueing.is_empty()));
    assert!(!k.lock().log.iter().any(|l| l.starts_with("reinstate")), "not while its controller is away");
    k.lock().fabric.imports.get_mut(&slice).unwrap().live = true;
    life.wait("no queueing", || life.agent().book().full().attachments.iter().all(|a| a.queueing.is_empty()));
    assert!(k.lock().log.iter().any(|l| l.starts_with("reinstate")));
    // Under another device number: a new table for the leg, none for the top.
    let tops = k.lock().log.iter().filter(|l| l.contains(&DmRole::Top(V).dm_name())).count();
    k.import(slice, ExtentSize::DEFAULT.sectors_of(Extents::new(8)));
    let dev = k.lock().fabric.imports[&slice].dev;
    life.wait("the new path", || {
        let w = k.lock();
        let t = w.devices[&leg].found.as_ref().unwrap().table.clone().unwrap();
        matches!(t.lines()[0].target, Target::MultipathBio { path: Some(p), .. } if p == dev)
    });
    assert_eq!(
        k.lock().log.iter().filter(|l| l.contains(&format!("{} ", DmRole::Top(V).dm_name()))).count(),
        0
    );
    assert!(tops > 0);
}

#[test]
fn an_export_is_made_fenced_and_taken_away_from_wherever_it_was_left() {
    let key = ExportKey { volume: V, disk: LOCAL, consumer: "n2".parse().unwrap() };
    let goal =
        |epoch, state| ExportGoal { key: key.clone(), epoch: Epoch::new(epoch), state, map: Some(map(8)) };
    let steps = [
        (ExportState::Serving, ExportStanding::Serving),
        (ExportState::Fenced, ExportStanding::Fenced),
        (ExportState::Serving, ExportStanding::Serving),
        (ExportState::Absent, ExportStanding::Absent),
    ];
    let says = |life: &Life, epoch: u64, s: ExportStanding| {
        let want = crate::convert::export_to_proto(&super::model::ExportReport {
            key: key.clone(),
            epoch: Epoch::new(epoch),
            standing: s,
            reason: String::new(),
        });
        life.agent().book().full().exports.contains(&want)
    };
    for cut in 0..4 {
        let k = Arc::new(Fake::default());
        for (n, (state, standing)) in steps.iter().enumerate() {
            let epoch = n as u64 + 1;
            k.lock().left = Some(cut);
            let life = Life::start(&k);
            life.tell(Goals { full: true, exports: vec![goal(epoch, *state)], ..Goals::default() });
            life.wait("the cut", || k.lock().left == Some(0) || says(&life, epoch, *standing));
            drop(life);
            k.lock().left = None;
            let life = Life::start(&k);
            life.tell(Goals { full: true, exports: vec![goal(epoch, *state)], ..Goals::default() });
            life.wait(&format!("{standing:?}, cut after {cut}"), || says(&life, epoch, *standing));
            assert_eq!(k.lock().exported.is_empty(), *state == ExportState::Absent);
        }
        assert_eq!(roles(&k), []);
    }
}

#[test]
fn nothing_is_served_by_a_goal_that_a_wipe_has_overtaken() {
    let key = ExportKey { volume: V, disk: LOCAL, consumer: "n2".parse().unwrap() };
    let k = Arc::new(Fake::default());
    let life = Life::start(&k);
    let tell = |epoch, extents| {
        let (key, epoch, map) = (key.clone(), Epoch::new(epoch), Some(map(extents)));
        let goal = ExportGoal { key, epoch, state: ExportState::Serving, map };
        life.tell(Goals { exports: vec![goal], ..Goals::default() });
    };
    let said = || life.agent().book().full().exports.pop().map(|e| (e.epoch, e.state(), e.reason));
    let serves = |epoch| said() == Some((epoch, ProtoState::ExportServing, String::new()));
    let refused = |epoch| {
        said().is_some_and(|(e, s, why)| {
            (e, s) == (epoch, ProtoState::ExportUnknown) && why.contains("that are wiped")
        })
    };
    // Before there is anything.
    life.wipes.raise(LOCAL, V, Epoch::new(5));
    tell(4, 8);
    life.wait("a refusal", || refused(4));
    assert!(roles(&k).is_empty() && k.lock().exported.is_empty());
    tell(5, 8);
    life.wait("a slice by the goal that knows of the wipe", || serves(5));
    // What stands is left as it is, and gets no other table.
    let acts = k.lock().log.len();
    life.wipes.raise(LOCAL, V, Epoch::new(7));
    life.disks.send_modify(|n| *n += 1);
    tell(6, 9);
    life.wait("a refusal", || refused(6));
    assert_eq!(k.lock().log.len(), acts);
    assert!(!roles(&k).is_empty() && !k.lock().exported.is_empty());
    tell(7, 9);
    life.wait("its next table", || serves(7));
    assert!(!life.wipes.is_acted_on(LOCAL, V));
}

/// The cost of one volume must not grow with their number.
#[test]
fn three_hundred_volumes_start_and_restart_at_a_cost_that_is_even() {
    let looks_for = |count: u128| {
        let k = Arc::new(Fake::default());
        let volumes: Vec<_> = (1..=count).map(VolumeId::from_u128).collect();
        for v in &volumes {
            k.import(names::slice_id(*v, REMOTE, &me()), ExtentSize::DEFAULT.sectors_of(Extents::new(8)));
        }
        let goals = Goals {
            full: true,
            attachments: volumes.iter().map(|v| goal(*v, 1, Role::Writer, 8)).collect(),
            ..Goals::default()
        };
        let open = |life: &Life| {
            let r = life.agent().book().full();
            r.attachments.iter().filter(|a| a.state == 4 && a.reason.is_empty()).count() == volumes.len()
        };
        {
            let life = Life::start(&k);
            life.tell(goals.clone());
            life.wait("all", || open(&life));
        }
        let (looks, acts) = (k.looks.load(Ordering::SeqCst), k.acts.load(Ordering::SeqCst));
        assert_eq!(u128::from(acts), 2 * count, "a leg and a top each, once");
        let life = Life::start(&k);
        life.tell(goals);
        life.wait("all again", || open(&life));
        assert_eq!(k.acts.load(Ordering::SeqCst), acts, "a restart touches nothing");
        looks as f64 / count as f64
    };
    let (few, many) = (looks_for(10), looks_for(300));
    assert!(many < few * 3.0, "{few} looks each for 10 volumes, {many} for 300");
}
