//! A core and its nodes, as stories begin.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use controller::{
    api::{Api, ApiError, Capability, CreateVolume, DiskRow, Topology, VolumeInfo, VolumeRow},
    core::{Core, CoreConfig, CoreError, Handle},
    fault::Fault,
    store::Store,
};
use pool::{
    access::Mode,
    disk::NODE_KEY,
    ids::{DiskId, NodeName, VolumeId},
    units::{Bytes, Extents},
};
use tokio::task::JoinHandle;

use crate::{
    node::{EXTENT, Node, quick},
    stores::Memory,
    world::{World, until},
};

pub(crate) const RWO: Capability = capability(false, false);
pub(crate) const RWX: Capability = capability(true, false);
pub(crate) const ROX: Capability = capability(true, true);

const fn capability(multi_node: bool, read_only: bool) -> Capability {
    Capability { block: true, fs_type: String::new(), mode: Mode { read_only, multi_node, upkeep: false } }
}

pub(crate) fn extents(n: u64) -> Bytes {
    EXTENT.bytes_of(Extents::new(n))
}

pub(crate) fn request(name: &str, n: u64, home: Option<&str>) -> CreateVolume {
    let segment = |h: &str| BTreeMap::from([(NODE_KEY.to_owned(), h.to_owned())]);
    CreateVolume {
        name: name.into(),
        required: extents(n),
        limit: None,
        parameters: BTreeMap::new(),
        mutable_parameters: BTreeMap::new(),
        capabilities: vec![],
        topology: Topology { requisite: vec![], preferred: home.map(segment).into_iter().collect() },
    }
}

/// Nothing goes on because a request has waited for long enough.
pub(crate) fn patient() -> CoreConfig {
    CoreConfig { request_deadline: Duration::from_secs(60), ..quick() }
}

pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) core: Handle,
    pub(crate) nodes: Vec<Node>,
    task: JoinHandle<Result<(), CoreError>>,
}

pub(crate) async fn start(
    config: CoreConfig,
    store: Arc<dyn Store>,
) -> (Handle, JoinHandle<Result<(), CoreError>>) {
    let (core, handle) = Core::start(config, store, Fault::none()).await.unwrap();
    (handle, tokio::spawn(core.run()))
}

impl Rig {
    /// Nodes n1, n2, ... each with one device of so many extents, claimed and clean.
    pub(crate) async fn new(sizes: &[u64]) -> Self {
        Self::with(quick(), sizes).await
    }

    pub(crate) async fn with(config: CoreConfig, sizes: &[u64]) -> Self {
        Self::over(config, Arc::new(Memory::default()), sizes).await
    }

    pub(crate) async fn over(config: CoreConfig, store: Arc<dyn Store>, sizes: &[u64]) -> Self {
        let world = World::default();
        let (core, task) = start(config, store).await;
        let node = |(i, n): (usize, &u64)| Node::new(&world, &format!("n{}", i + 1), &[*n]);
        let nodes: Vec<Node> = sizes.iter().enumerate().map(node).collect();
        for n in &nodes {
            n.connect(&core).await;
        }
        let rig = Self { world, core, nodes, task };
        rig.free(sizes.iter().sum()).await;
        rig
    }

    /// Of parts that were made elsewhere.
    pub(crate) fn of(
        world: World,
        core: Handle,
        nodes: Vec<Node>,
        task: JoinHandle<Result<(), CoreError>>,
    ) -> Self {
        Self { world, core, nodes, task }
    }

    /// Waits until so many extents are free.
    pub(crate) async fn free(&self, n: u64) {
        until(&format!("{n} extents are free"), || async {
            let free: u64 = self.core.survey().await.disks.iter().map(|d| d.free.get()).sum();
            (free == extents(n).get()).then_some(())
        })
        .await;
    }

    pub(crate) async fn create(&self, name: &str, n: u64, home: Option<&str>) -> VolumeInfo {
        self.core.create_volume(request(name, n, home)).await.unwrap()
    }

    pub(crate) async fn attach(&self, id: VolumeId, node: usize, c: &Capability) -> Result<(), ApiError> {
        self.core.attach(id, self.name(node), c.clone(), true).await.map(|_| ())
    }

    pub(crate) async fn detach(&self, id: VolumeId, node: usize) -> Result<(), ApiError> {
        self.core.detach(id, Some(self.name(node)), true).await
    }

    pub(crate) fn name(&self, node: usize) -> NodeName {
        self.nodes[node].name.clone()
    }

    pub(crate) async fn row(&self, id: VolumeId) -> Option<VolumeRow> {
        self.core.survey().await.volumes.into_iter().find(|v| v.volume == id)
    }

    /// The first disk of a node.
    pub(crate) async fn disk_of(&self, node: usize) -> DiskId {
        let disks = self.core.survey().await.disks;
        disks.iter().find(|d| d.node == self.name(node)).unwrap().disk
    }

    /// Waits until a disk is this node's, and in a state of which this is said.
    pub(crate) async fn disk_is(&self, disk: DiskId, node: usize, state: &str) {
        until(&format!("disk {disk} to be {state:?} in {}", self.name(node)), || async {
            let disks = self.core.survey().await.disks;
            let is = |d: &DiskRow| d.disk == disk && d.node == self.name(node) && d.state.contains(state);
            disks.iter().any(is).then_some(())
        })
        .await;
    }

    /// Waits until the volume is in this phase and nobody is leaving.
    pub(crate) async fn settled(&self, id: VolumeId, phase: &str) -> VolumeRow {
        until(&format!("{id} is {phase}"), || async {
            self.row(id).await.filter(|r| r.phase == phase && r.leaving.is_empty())
        })
        .await
    }

    pub(crate) async fn dead(&self, node: usize) {
        let name = self.name(node);
        until("the lease runs out", || async {
            self.core.survey().await.nodes.iter().any(|n| n.node == name && !n.alive).then_some(())
        })
        .await;
    }

    pub(crate) async fn end(self) {
        self.world.check();
        drop(self.core);
        for n in &self.nodes {
            n.vanish().await;
        }
        self.task.await.unwrap().unwrap();
    }
}
