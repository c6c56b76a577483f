//! Clients of a cluster, for tests that are plain threads: each call blocks.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use csi_proto::{
    admin::{DrainRequest, SurveyRequest, admin_client::AdminClient, drain_request},
    csi::{
        self, CapacityRange, TopologyRequirement, VolumeCapability,
        controller_client::ControllerClient,
        identity_client::IdentityClient,
        node_client::NodeClient,
        volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    },
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::lab::Forward;

/// Longest time a call may take: above every deadline inside of Weir.
const CALL: Duration = Duration::from_secs(90);

/// How a test uses a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Raw, one node.
    Block,
    /// Raw, several nodes: what KubeVirt asks for.
    SharedBlock,
    /// Mounted with this file system, one node.
    Fs(&'static str),
}

impl Use {
    /// As CSI says it.
    pub fn capability(self) -> VolumeCapability {
        let (access, mode) = match self {
            Use::Block => (AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter),
            Use::SharedBlock => (AccessType::Block(BlockVolume {}), Mode::MultiNodeMultiWriter),
            Use::Fs(t) => {
                let mount = MountVolume { fs_type: t.to_owned(), ..Default::default() };
                (AccessType::Mount(mount), Mode::SingleNodeWriter)
            }
        };
        VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type: Some(access) }
    }
}

/// A volume to make.
#[derive(Clone, Debug)]
pub struct NewVolume<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its size.
    pub bytes: u64,
    /// How it will be used.
    pub usage: Use,
    /// The node beside which it should lie.
    pub beside: Option<&'a str>,
    /// StorageClass parameters.
    pub parameters: &'a [(&'a str, &'a str)],
}

/// The controller's clients, and the runtime on which all clients run.
pub struct Clients {
    runtime: Runtime,
    channel: Channel,
}

impl Clients {
    /// Of the controller that speaks CSI at this port of the loopback.
    ///
    /// # Errors
    /// No runtime can be made.
    pub(super) fn new(port: u16) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = {
            let _entered = runtime.enter();
            Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.timeout(CALL).connect_lazy()
        };
        Ok(Self { runtime, channel })
    }

    pub(super) fn ready(&self) -> Result<bool> {
        let mut c = IdentityClient::new(self.channel.clone());
        let answer = self.runtime.block_on(c.probe(csi::ProbeRequest {}))?;
        Ok(answer.into_inner().ready.unwrap_or(true))
    }

    pub(super) fn survey(&self) -> Result<Value> {
        let mut c = AdminClient::new(self.channel.clone());
        let answer = self.runtime.block_on(c.survey(SurveyRequest {}))?;
        serde_json::from_str(&answer.into_inner().json).context("the survey is no JSON")
    }

    /// Has a node's disks emptied, or (`undo`) no longer.
    ///
    /// # Errors
    /// As the controller answers.
    pub fn drain_node(&self, node: &str, undo: bool) -> Result<(), Status> {
        let target = Some(drain_request::Target::Node(node.to_owned()));
        self.drain(DrainRequest { target, undo, dry_run: false }).map(drop)
    }

    /// What there is to do to empty a disk.
    ///
    /// # Errors
    /// As the controller answers.
    pub fn drain_dry(&self, disk: &str) -> Result<Value> {
        let target = Some(drain_request::Target::Disk(disk.to_owned()));
        let json = self.drain(DrainRequest { target, undo: false, dry_run: true })?;
        serde_json::from_str(&json).context("the answer is no JSON")
    }

    fn drain(&self, request: DrainRequest) -> Result<String, Status> {
        let mut c = AdminClient::new(self.channel.clone());
        Ok(self.runtime.block_on(c.drain(request))?.into_inner().json)
    }

    pub(super) fn node(&self, forward: Arc<Forward>) -> Result<NodeCsi<'_>> {
        let path: Arc<Path> = forward.path().into();
        let channel = {
            let _entered = self.runtime.enter();
            Endpoint::from_static("http://node")
                .timeout(CALL)
                .connect_with_connector_lazy(tower_connector(path))
        };
        let identity = IdentityClient::new(channel.clone());
        Ok(NodeCsi { clients: self, client: NodeClient::new(channel), identity, _forward: forward })
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    /// CreateVolume; returns the volume's id.
    ///
    /// # Errors
    /// As the controller says.
    pub fn create(&self, v: &NewVolume<'_>) -> Result<String, Status> {
        self.create_as(v, vec![v.usage.capability()])
    }

    /// CreateVolume with capabilities of one's own; returns the volume's id.
    ///
    /// # Errors
    /// As the controller says.
    pub fn create_as(
        &self,
        v: &NewVolume<'_>,
        capabilities: Vec<VolumeCapability>,
    ) -> Result<String, Status> {
        let topology = v.beside.map(|n| TopologyRequirement {
            requisite: vec![],
            preferred: vec![csi::Topology {
                segments: HashMap::from([("topology.weir.storage/node".to_owned(), n.to_owned())]),
            }],
        });
        let request = csi::CreateVolumeRequest {
            name: v.name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: v.bytes.cast_signed(), limit_bytes: 0 }),
            volume_capabilities: capabilities,
            parameters: v.parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            accessibility_requirements: topology,
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.controller().create_volume(request))?.into_inner();
        answer.volume.map(|v| v.volume_id).ok_or_else(|| Status::internal("no volume in the answer"))
    }

    /// DeleteVolume.
    ///
    /// # Errors
    /// As the controller says.
    pub fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.runtime.block_on(self.controller().delete_volume(request)).map(drop)
    }

    /// ControllerExpandVolume; returns the new size in bytes.
    ///
    /// # Errors
    /// As the controller says.
    pub fn expand(&self, id: &str, bytes: u64) -> Result<u64, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes.cast_signed(), limit_bytes: 0 }),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.controller().controller_expand_volume(request))?;
        Ok(answer.into_inner().capacity_bytes.cast_unsigned())
    }

    /// ControllerGetVolume: whether something is wrong with it, and what.
    ///
    /// # Errors
    /// As the controller says.
    pub fn condition(&self, id: &str) -> Result<(bool, String), Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        let answer = self.runtime.block_on(self.controller().controller_get_volume(request))?.into_inner();
        let condition = answer.status.and_then(|s| s.volume_condition);
        condition
            .map(|c| (c.abnormal, c.message))
            .ok_or_else(|| Status::internal("no condition in the answer"))
    }

    /// ControllerModifyVolume.
    ///
    /// # Errors
    /// As the controller says.
    pub fn modify(&self, id: &str, parameters: &[(&str, &str)]) -> Result<(), Status> {
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: id.to_owned(),
            mutable_parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        };
        self.runtime.block_on(self.controller().controller_modify_volume(request)).map(drop)
    }

    /// ControllerUnpublishVolume.
    ///
    /// # Errors
    /// As the controller says.
    pub fn unpublish(&self, id: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.runtime.block_on(self.controller().controller_unpublish_volume(request)).map(drop)
    }
}

/// The CSI Node client of one node.
pub struct NodeCsi<'a> {
    clients: &'a Clients,
    client: NodeClient<Channel>,
    identity: IdentityClient<Channel>,
    _forward: Arc<Forward>,
}

/// Where a volume is staged in a node.
pub fn stage_path(id: &str) -> String {
    format!("/run/lab/stage/{id}")
}

/// Where a volume is published in a node: a device for block, a folder for file systems.
pub fn publish_path(id: &str) -> String {
    format!("/run/lab/publish/{id}")
}

impl NodeCsi<'_> {
    fn request<T>(&self, message: T) -> Request<T> {
        Request::new(message)
    }

    /// Probe: the plugin answers.
    ///
    /// # Errors
    /// Nobody does.
    pub fn probe(&self) -> Result<(), Status> {
        self.clients.runtime.block_on(self.identity.clone().probe(csi::ProbeRequest {})).map(drop)
    }

    /// NodeStageVolume.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn stage(&self, id: &str, usage: Use) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: stage_path(id),
            volume_capability: Some(usage.capability()),
            ..Default::default()
        };
        self.clients.runtime.block_on(self.client.clone().node_stage_volume(self.request(request))).map(drop)
    }

    /// NodePublishVolume; returns where.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn publish(&self, id: &str, usage: Use) -> Result<String, Status> {
        self.publish_with(id, usage, &[])
    }

    /// The same for whoever runs in this control group.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn publish_for(&self, id: &str, usage: Use, group: &str) -> Result<String, Status> {
        self.publish_with(id, usage, &[("weir.storage/cgroup", group)])
    }

    fn publish_with(&self, id: &str, usage: Use, context: &[(&str, &str)]) -> Result<String, Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: stage_path(id),
            target_path: publish_path(id),
            volume_capability: Some(usage.capability()),
            volume_context: context.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        };
        self.clients.runtime.block_on(self.client.clone().node_publish_volume(self.request(request)))?;
        Ok(publish_path(id))
    }

    /// NodeUnpublishVolume.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn unpublish(&self, id: &str) -> Result<(), Status> {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: publish_path(id) };
        self.clients
            .runtime
            .block_on(self.client.clone().node_unpublish_volume(self.request(request)))
            .map(drop)
    }

    /// NodeUnstageVolume.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn unstage(&self, id: &str) -> Result<(), Status> {
        let request =
            csi::NodeUnstageVolumeRequest { volume_id: id.to_owned(), staging_target_path: stage_path(id) };
        self.clients
            .runtime
            .block_on(self.client.clone().node_unstage_volume(self.request(request)))
            .map(drop)
    }

    /// NodeExpandVolume.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn expand(&self, id: &str, bytes: u64, usage: Use) -> Result<(), Status> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: publish_path(id),
            staging_target_path: stage_path(id),
            capacity_range: Some(CapacityRange { required_bytes: bytes.cast_signed(), limit_bytes: 0 }),
            volume_capability: Some(usage.capability()),
            ..Default::default()
        };
        self.clients.runtime.block_on(self.client.clone().node_expand_volume(self.request(request))).map(drop)
    }

    /// NodeGetInfo; returns the node's id.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn info(&self) -> Result<String, Status> {
        let request = self.request(csi::NodeGetInfoRequest {});
        let answer = self.clients.runtime.block_on(self.client.clone().node_get_info(request))?;
        Ok(answer.into_inner().node_id)
    }

    /// Stages and publishes.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn attach(&self, id: &str, usage: Use) -> Result<String, Status> {
        self.stage(id, usage)?;
        self.publish(id, usage)
    }

    /// Unpublishes and unstages.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn detach(&self, id: &str) -> Result<(), Status> {
        self.unpublish(id)?;
        self.unstage(id)
    }
}

fn tower_connector(
    path: Arc<Path>,
) -> impl tower::Service<
    Uri,
    Response = hyper_util::rt::TokioIo<tokio::net::UnixStream>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<hyper_util::rt::TokioIo<tokio::net::UnixStream>>> + Send,
> + Send
+ 'static {
    tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move { Ok(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(&*path).await?)) }
    })
}
