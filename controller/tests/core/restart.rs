//! The controller is stopped at every write of a whole story, before and after it took place, and started again from
//! the same file: nothing is lost, nothing is left over, nobody writes beside anyone, nobody reads another's data.

use std::{path::Path, sync::Arc, time::Duration};

use controller::{
    api::{Api, ApiError, DrainRow, Survey, Target},
    core::{CoreConfig, CoreError, Handle, seen::Attachment},
    store::embedded::Embedded,
};
use pool::ids::VolumeId;
use tokio::task::JoinHandle;

use crate::{
    node::{Node, quick},
    rig::{RWX, extents, request, start},
    stores::{Stop, Stopping},
    world::{World, until},
};

/// A controller that is started again whenever it has stopped.
struct Keeper<'a> {
    path: &'a Path,
    nodes: &'a [Node],
    core: Handle,
    task: JoinHandle<Result<(), CoreError>>,
    starts: u64,
}

/// All is asked for until it is so, whoever is taken for dead meanwhile.
fn hasty() -> CoreConfig {
    CoreConfig { lease: Duration::from_millis(600), ..quick() }
}

impl<'a> Keeper<'a> {
    async fn new(path: &'a Path, nodes: &'a [Node], at: u64, stop: Stop) -> Self {
        let store = Stopping::new(Embedded::open(path).unwrap(), at, stop);
        let (core, task) = start(hasty(), Arc::new(store)).await;
        for n in nodes {
            n.connect(&core).await;
        }
        Self { path, nodes, core, task, starts: 1 }
    }

    /// Starts it again if it has stopped.
    async fn mend(&mut self) {
        if self.core.ready().await.is_ok() {
            return;
        }
        let ended = (&mut self.task).await.unwrap();
        assert!(matches!(ended, Err(CoreError::Store(_))), "it stopped for another reason: {ended:?}");
        for n in self.nodes {
            n.vanish().await;
        }
        let store = open(self.path).await;
        let (core, task) = start(hasty(), Arc::new(store)).await;
        (self.core, self.task) = (core, task);
        self.starts += 1;
        for n in self.nodes {
            n.connect(&self.core).await;
        }
    }

    /// Asks until the answer is `Ok`, as an orchestrator does.
    async fn ask<T, F: Future<Output = Result<T, ApiError>>>(
        &mut self,
        what: &str,
        f: impl Fn(Handle) -> F,
    ) -> T {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            match f(self.core.clone()).await {
                Ok(t) => return t,
                Err(e) => assert!(tokio::time::Instant::now() < deadline, "{what}: {e}"),
            }
            self.mend().await;
            tokio::task::yield_now().await;
        }
    }

    /// Waits for a state of the pool.
    async fn see(&mut self, what: &str, f: impl Fn(&Survey) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            self.mend().await;
            let s = self.core.survey().await;
            if f(&s) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "in vain: {what}: {s:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Opens the store as soon as the one who had it has let go of it.
async fn open(path: &Path) -> Embedded {
    until("the store is free", || async { Embedded::open(path).ok() }).await
}

fn phase(s: &Survey, id: VolumeId) -> Option<&str> {
    s.volumes.iter().find(|v| v.volume == id).map(|v| v.phase.as_str())
}

/// The story. Gives how often the controller had to be started.
async fn story(at: u64, stop: Stop) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.redb");
    let world = World::default();
    let nodes = [Node::new(&world, "n1", &[8]), Node::new(&world, "n2", &[8])];
    let mut k = Keeper::new(&path, &nodes, at, stop).await;
    let all_free = |s: &Survey| {
        s.disks.len() == 2 && s.disks.iter().map(|d| d.free.get()).sum::<u64>() == extents(16).get()
    };
    k.see("the disks are claimed and wiped", all_free).await;
    let [a, b] = [nodes[0].name.clone(), nodes[1].name.clone()];

    let v = k.ask("create", async |c: Handle| c.create_volume(request("v", 10, Some("n1"))).await).await;
    k.ask("attach", async |c: Handle| c.attach(v.id, a.clone(), RWX, true).await).await;
    k.ask("grow", async |c: Handle| c.expand(v.id, extents(12), None).await).await;
    let limit = || [("iops".to_owned(), "100".to_owned())].into();
    k.ask("limit", async |c: Handle| c.modify(v.id, limit()).await).await;
    k.ask("guard", async |c: Handle| c.attach(v.id, b.clone(), RWX, true).await).await;
    nodes[1].write(v.id).await;
    k.see("the cut-over is done", |s| {
        s.volumes.iter().any(|r| r.volume == v.id && r.phase == "Attached" && r.holders == [b.clone()])
    })
    .await;
    k.ask("unstage", async |c: Handle| c.detach(v.id, Some(a.clone()), true).await).await;
    k.ask("back", async |c: Handle| c.attach(v.id, a.clone(), RWX, true).await).await;
    k.ask("abort", async |c: Handle| c.detach(v.id, Some(a.clone()), true).await).await;
    assert_ne!(nodes[0].attachment(v.id), Some(Attachment::Open));
    k.ask("detach", async |c: Handle| c.detach(v.id, None, true).await).await;
    k.see("nobody has it", |s| phase(s, v.id) == Some("Detached")).await;
    k.ask("delete", async |c: Handle| c.delete_volume(v.id).await).await;
    k.see("all is wiped and free again", |s| s.volumes.is_empty() && all_free(s)).await;
    assert_eq!(world.dirty(), 0);
    world.check();
    k.starts
}

/// The story of a disk that is emptied: of a volume in use, and of one that nobody uses.
async fn emptying(at: u64, stop: Stop) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.redb");
    let world = World::default();
    let nodes = [Node::new(&world, "n1", &[4]), Node::new(&world, "n2", &[8])];
    let mut k = Keeper::new(&path, &nodes, at, stop).await;
    let free = |s: &Survey| s.disks.iter().map(|d| d.free.get()).sum::<u64>();
    k.see("the disks are claimed and wiped", |s| s.disks.len() == 2 && free(s) == extents(12).get()).await;
    let a = nodes[0].name.clone();
    let v = k.ask("create", async |c: Handle| c.create_volume(request("v", 2, Some("n1"))).await).await;
    k.ask("create", async |c: Handle| c.create_volume(request("w", 2, Some("n1"))).await).await;
    k.ask("attach", async |c: Handle| c.attach(v.id, a.clone(), RWX, true).await).await;
    let drain = Target::Node(a.clone());
    k.ask("drain", async |c: Handle| c.drain(drain.clone(), false, false).await).await;
    k.see("it is empty", |s| {
        let left = |d: &DrainRow| d.node != a || d.left_bytes + d.wiping_bytes > 0;
        !s.drains.is_empty() && !s.drains.iter().any(left) && s.moves.is_empty()
    })
    .await;
    k.see("nobody holds what nobody uses", |s| {
        let held: Vec<_> =
            s.volumes.iter().map(|r| (r.volume == v.id, r.phase.as_str(), r.leaving.len())).collect();
        held.contains(&(true, "Attached", 0)) && held.contains(&(false, "Detached", 0))
    })
    .await;
    assert_eq!(nodes[0].attachment(v.id), Some(Attachment::Open));
    k.see("what was left is wiped", |s| free(s) == extents(8).get()).await;
    world.check();
    k.starts
}

/// The story of a node that never comes back: it held a volume that lies elsewhere, and one that lay on it as well and is
/// deleted. Both are rid of it, and it comes back as a new one.
async fn forgetting(at: u64, stop: Stop) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.redb");
    let world = World::default();
    let nodes = ["n1", "n2", "n3"].map(|n| Node::new(&world, n, &[8]));
    let mut k = Keeper::new(&path, &nodes, at, stop).await;
    let free = |s: &Survey| s.disks.iter().map(|d| d.free.get()).sum::<u64>();
    k.see("the disks are claimed and wiped", |s| s.disks.len() == 3 && free(s) == extents(24).get()).await;
    let lost = &nodes[2];
    let n3 = lost.name.clone();
    let v = k.ask("create", async |c: Handle| c.create_volume(request("v", 10, Some("n3"))).await).await;
    let w = k.ask("create", async |c: Handle| c.create_volume(request("w", 4, Some("n1"))).await).await;
    for id in [v.id, w.id] {
        k.ask("attach", async |c: Handle| c.attach(id, n3.clone(), RWX, true).await).await;
    }
    lost.perish().await;
    k.see("it is dead", |s| s.nodes.iter().any(|n| n.node == n3 && !n.alive)).await;
    let gone = Target::Node(n3.clone());
    let refused = k.core.part(gone.clone(), true).await;
    assert!(refused.is_err(), "what lies on it is still wanted: {refused:?}");
    k.ask("delete", async |c: Handle| c.delete_volume(v.id).await).await;
    k.ask("forget", async |c: Handle| match c.part(gone.clone(), true).await? {
        p if p.done => Ok(()),
        p => Err(ApiError::Busy(format!("{p:?}"))),
    })
    .await;
    k.see("nothing is left of it", |s| {
        let w = s.volumes.iter().find(|r| r.volume == w.id);
        let rid = w.is_some_and(|w| w.holders.is_empty() && w.leaving.is_empty());
        let of_it = s.disks.iter().any(|d| d.node == n3) || s.nodes.iter().any(|n| n.node == n3);
        rid && s.volumes.len() == 1 && !of_it && free(s) == extents(12).get()
    })
    .await;
    lost.boot();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while k.core.survey().await.nodes.iter().all(|n| n.node != n3 || !n.alive) {
        assert!(tokio::time::Instant::now() < deadline, "it is not taken in again");
        k.mend().await;
        lost.connect(&k.core).await;
    }
    k.see("its old disk is left alone", |s| {
        let n = s.nodes.iter().find(|n| n.node == n3);
        n.is_some_and(|n| n.unclaimed.iter().any(|why| why.contains("not on record")))
    })
    .await;
    k.ask("attach", async |c: Handle| c.attach(w.id, n3.clone(), RWX, true).await).await;
    world.check();
    k.starts
}

async fn every_write_of_forgetting(stop: Stop) {
    let mut at = 1;
    while forgetting(at, stop).await > 1 {
        at += 1;
    }
    assert!(at > 15, "the story has only {at} writes: it tells nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_before_every_write_of_forgetting_a_node() {
    every_write_of_forgetting(Stop::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_after_every_write_of_forgetting_a_node() {
    every_write_of_forgetting(Stop::After).await;
}

async fn every_write(stop: Stop) {
    let mut at = 1;
    while story(at, stop).await > 1 {
        at += 1;
    }
    assert!(at > 20, "the story has only {at} writes: it tells nothing");
}

async fn every_write_of_emptying(stop: Stop) {
    let mut at = 1;
    while emptying(at, stop).await > 1 {
        at += 1;
    }
    assert!(at > 15, "the story has only {at} writes: it tells nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_before_every_write_of_a_drain() {
    every_write_of_emptying(Stop::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_after_every_write_of_a_drain() {
    every_write_of_emptying(Stop::After).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_before_every_write() {
    every_write(Stop::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_after_every_write() {
    every_write(Stop::After).await;
}
