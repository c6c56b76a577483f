//! Drains as people ask for them: a dry run changes nothing, and one that is taken back, at whatever step, leaves
//! everything as it should be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use controller::{
    api::{Api, ApiError, Survey, Target},
    core::CoreConfig,
    store::{Page, Reign, Store, StoreError, Version},
};
use pool::record::{Key, Record};
use tokio::sync::Notify;

use crate::{
    node::quick,
    rig::{ROX, RWO, Rig, extents, request},
    stores::{Memory, Stop},
    world::until,
};

/// Holds one write, until it is told to go on; counts all.
#[derive(Default)]
struct Gate {
    writes: AtomicU64,
    hold: AtomicU64,
    held: Notify,
    go_on: Notify,
}

struct Gated {
    inner: Memory,
    gate: Arc<Gate>,
    stop: Stop,
}

impl Gated {
    async fn pass(&self, n: u64, side: Stop) {
        if self.stop == side && n == self.gate.hold.load(Ordering::SeqCst) {
            self.gate.held.notify_one();
            self.gate.go_on.notified().await;
        }
    }
}

#[async_trait::async_trait]
impl Store for Gated {
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError> {
        self.inner.load(after, max).await
    }

    async fn put(&self, expected: Option<Version>, record: Record) -> Result<Version, StoreError> {
        let n = self.gate.writes.fetch_add(1, Ordering::SeqCst) + 1;
        self.pass(n, Stop::Before).await;
        let done = self.inner.put(expected, record).await;
        self.pass(n, Stop::After).await;
        done
    }

    async fn delete(&self, expected: Version, key: Key) -> Result<(), StoreError> {
        self.inner.delete(expected, key).await
    }

    async fn begin(&self) -> Result<Reign, StoreError> {
        self.inner.begin().await
    }
}

async fn gated(sizes: &[u64], stop: Stop) -> (Rig, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let store = Gated { inner: Memory::default(), gate: gate.clone(), stop };
    // Nobody dies here, however slow the machine is.
    let config = CoreConfig { lease: Duration::from_secs(20), ..quick() };
    (Rig::over(config, Arc::new(store), sizes).await, gate)
}

fn drained(s: &Survey) -> bool {
    let rest = |d: &controller::api::DrainRow| d.left_bytes + d.wiping_bytes;
    !s.drains.is_empty() && s.drains.iter().all(|d| rest(d) == 0) && s.moves.is_empty()
}

/// A drain of n1, taken back while its `at`th write is held. Whether it came to that.
async fn taken_back(at: u64, stop: Stop) -> bool {
    let (rig, gate) = gated(&[10, 14], stop).await;
    let v = rig.create("v", 5, Some("n1")).await;
    let w = rig.create("w", 4, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.settled(v.id, "Attached").await;
    let target = Target::Node(rig.name(0));
    gate.hold.store(gate.writes.load(Ordering::SeqCst) + at, Ordering::SeqCst);
    let core = rig.core.clone();
    let drain = tokio::spawn({
        let target = target.clone();
        async move { core.drain(target, false, false).await }
    });
    let came = tokio::select! {
        () = gate.held.notified() => true,
        () = until("the drain ends", || async { drained(&rig.core.survey().await).then_some(()) }) => false,
    };
    let core = rig.core.clone();
    let undo = tokio::spawn(async move { core.drain(target, true, false).await });
    // It is in line before this question, so it has been taken in when that is answered.
    tokio::task::yield_now().await;
    rig.core.ready().await.unwrap();
    gate.go_on.notify_one();
    drain.await.unwrap().unwrap();
    undo.await.unwrap().unwrap();
    until("all is at rest", || async {
        let s = rig.core.survey().await;
        let rest = s.drains.is_empty()
            && s.moves.is_empty()
            && s.disks.iter().all(|d| d.state == "serving" && d.unwiped.get() == 0)
            && s.volumes.iter().all(|r| r.leaving.is_empty());
        rest.then_some(())
    })
    .await;
    let (rv, rw) = (rig.settled(v.id, "Attached").await, rig.settled(w.id, "Detached").await);
    for (row, n) in [(&rv, 5), (&rw, 4)] {
        assert_eq!(row.segments.iter().map(|s| s.1).sum::<u64>(), n, "{row:?}");
    }
    let free: u64 = rig.core.survey().await.disks.iter().map(|d| d.free.get()).sum();
    assert_eq!(free, extents(24 - 9).get());
    // The disk lends again: only with it there is room for this.
    rig.core.create_volume(request("all", 15, None)).await.unwrap();
    rig.end().await;
    came
}

async fn taken_back_at_every_write(stop: Stop) {
    let mut at = 1;
    while taken_back(at, stop).await {
        at += 1;
    }
    assert!(at > 12, "the drain has only {at} writes: it tells nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_back_before_every_write() {
    taken_back_at_every_write(Stop::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_back_after_every_write() {
    taken_back_at_every_write(Stop::After).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_goes_where_and_changes_nothing() {
    let (rig, gate) = gated(&[12, 6, 8], Stop::Before).await;
    let v = rig.create("v", 5, Some("n1")).await;
    rig.create("w", 4, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.settled(v.id, "Attached").await;
    let before = (rig.core.survey().await, gate.writes.load(Ordering::SeqCst));
    let rows = rig.core.drain(Target::Node(rig.name(0)), false, true).await.unwrap();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.volumes, row.left_bytes, row.draining), (2, extents(9).get(), false));
    let plan = row.plan.as_ref().unwrap();
    assert_eq!((plan.bytes, plan.unplanned_bytes), (extents(9).get(), 0));
    assert_eq!(plan.moves.iter().map(|m| m.bytes).sum::<u64>(), extents(9).get());
    assert!(plan.moves.iter().all(|m| m.to != row.disk && m.to_node != rig.name(0)), "{plan:?}");
    assert!(row.blocked.is_empty() && !row.pace.measured && row.eta_s.is_some(), "{row:?}");
    let again = rig.core.drain(Target::Node(rig.name(0)), false, true).await.unwrap();
    assert_eq!(again, rows, "the first one has left something behind");
    assert_eq!((rig.core.survey().await, gate.writes.load(Ordering::SeqCst)), before);
    // All that was free still is.
    rig.create("rest", 26 - 9, None).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_stays_and_how_much_room_is_missing() {
    let rig = Rig::new(&[12, 6]).await;
    rig.create("big", 8, Some("n1")).await;
    let r = rig.create("read", 2, Some("n1")).await;
    rig.attach(r.id, 1, &ROX).await.unwrap();
    rig.settled(r.id, "Attached").await;
    let disk = rig.core.survey().await.disks.iter().find(|d| d.node == rig.name(0)).unwrap().disk;
    let rows = rig.core.drain(Target::Disk(disk), false, true).await.unwrap();
    let plan = rows[0].plan.as_ref().unwrap();
    assert_eq!(plan.bytes, extents(6).get(), "n2 has room for six");
    let missing: u64 = rows[0].blocked.iter().map(|b| b.missing_bytes).sum();
    assert_eq!(missing, extents(4).get(), "{rows:?}");
    assert!(rows[0].blocked.iter().all(|b| !b.passing && !b.advice.is_empty()), "{rows:?}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_node_is_dead_says_so() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    rig.nodes[0].vanish().await;
    rig.dead(0).await;
    let target = Target::Node(rig.name(0));
    rig.core.drain(target.clone(), false, false).await.unwrap();
    let row = until("it says why nothing moves", || async {
        let p = rig.core.drain_progress(target.clone()).await.unwrap();
        p.disks.into_iter().find(|d| !d.blocked.is_empty())
    })
    .await;
    assert!(row.draining && row.blocked[0].why.contains("has not been heard of"), "{row:?}");
    assert_eq!((row.blocked[0].volume, row.eta_s), (v.id, None));
    // It goes on as soon as the node is back.
    rig.nodes[0].connect(&rig.core).await;
    until("it is empty", || async { drained(&rig.core.survey().await).then_some(()) }).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_volumes_that_cannot_move_than_one_look_sees_do_not_hold_up_the_rest() {
    let config = CoreConfig { lease: Duration::from_secs(20), ..quick() };
    let rig = Rig::over(config, Arc::new(Memory::default()), &[300, 10]).await;
    // All but the last, by id, are only read.
    let mut all = vec![];
    for i in 0..262 {
        all.push(rig.create(&format!("v{i}"), 1, Some("n1")).await.id);
    }
    all.sort();
    let last = all.pop().unwrap();
    for id in &all {
        rig.attach(*id, 0, &ROX).await.unwrap();
    }
    let disk = rig.core.survey().await.disks.iter().find(|d| d.node == rig.name(0)).unwrap().disk;
    rig.core.drain(Target::Disk(disk), false, false).await.unwrap();
    until("the last one has moved", || async {
        rig.row(last).await?.segments.iter().all(|s| s.2 != disk).then_some(())
    })
    .await;
    let p = rig.core.drain_progress(Target::Disk(disk)).await.unwrap();
    assert_eq!(p.disks[0].blocked.len() + p.disks[0].more_blocked, 261);
    assert!(p.disks[0].blocked[0].why.contains("read-only"), "{:?}", p.disks[0].blocked[0]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_says_how_many_moves_there_may_be_at_a_time() {
    for (per_disk, per_node, most) in [(1, 8, 1), (3, 8, 3), (3, 2, 2)] {
        let mut config = CoreConfig { lease: Duration::from_secs(20), ..quick() };
        let budget = &mut config.pools[0].moving.budget;
        (budget.per_disk, budget.per_node) = (per_disk, per_node);
        let rig = Rig::over(config, Arc::new(Memory::default()), &[10, 20]).await;
        for i in 0..4 {
            let v = rig.create(&format!("v{i}"), 1, Some("n1")).await;
            rig.attach(v.id, 0, &RWO).await.unwrap();
        }
        rig.nodes[0].set_slow(true).await;
        rig.core.drain(Target::Node(rig.name(0)), false, false).await.unwrap();
        let moves = async || rig.core.survey().await.moves.len();
        until("as many as may be are under way", || async { (moves().await == most).then_some(()) }).await;
        // Two more looks of the mover.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(moves().await, most);
        rig.nodes[0].set_slow(false).await;
        until("it is empty", || async { drained(&rig.core.survey().await).then_some(()) }).await;
        rig.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_name_a_node_or_a_disk() {
    let rig = Rig::new(&[4, 4]).await;
    let disk = rig.core.survey().await.disks.iter().find(|d| d.node == rig.name(1)).unwrap().disk;
    let find = async |t: &str| rig.core.find_target(t.to_owned()).await;
    assert_eq!(find("n1").await, Ok(Target::Node(rig.name(0))));
    assert_eq!(find(&disk.to_string()).await, Ok(Target::Disk(disk)));
    assert_eq!(find(&disk.to_string()[..8]).await, Ok(Target::Disk(disk)));
    let e = find("n7").await.unwrap_err();
    assert!(matches!(&e, ApiError::NoTarget { .. }) && e.to_string().contains("n1, n2"), "{e}");
    rig.end().await;
}
