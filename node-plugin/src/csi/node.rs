//! The Node service: reads requests, takes the volume's lock, calls the operation, turns errors into statuses.

use std::{collections::HashMap, sync::Arc};

use csi_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology, node_server::Node,
    node_service_capability as cap,
};
use pool::ids::{NodeName, VolumeId};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::{
    CsiError, Faults, Tools,
    capability::{Capability, volume_id},
    locks::{Lock, Locks},
    paths,
    work::Work,
};
use crate::{
    limits::{Limiter, Who},
    volumes_api::Volumes,
};

/// What the service says about its node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node.
    pub node: NodeName,
    /// Topology segments with their full keys.
    pub topology: HashMap<String, String>,
    /// Volumes that it can hold at once.
    pub max_volumes: u32,
}

/// The Node service.
#[derive(Clone)]
pub struct NodeService {
    pub(super) volumes: Arc<dyn Volumes>,
    pub(super) tools: Arc<dyn Tools>,
    pub(super) work: Work,
    pub(super) limits: Arc<Limiter>,
    pub(super) faults: Faults,
    locks: Locks,
    settings: Arc<NodeSettings>,
}

impl NodeService {
    /// The service of a node.
    pub fn new(
        settings: NodeSettings,
        volumes: Arc<dyn Volumes>,
        tools: Arc<dyn Tools>,
        limits: Arc<Limiter>,
        faults: Faults,
    ) -> Self {
        Self {
            volumes,
            tools,
            work: Work::new(),
            limits,
            faults,
            locks: Locks::default(),
            settings: Arc::new(settings),
        }
    }

    /// One operation on one volume: under its lock, in its span, with its outcome logged.
    async fn operation<T, F: Future<Output = Result<T, CsiError>>>(
        &self,
        op: &'static str,
        volume: VolumeId,
        run: impl FnOnce(Lock) -> F,
    ) -> Result<Response<T>, Status> {
        let span = tracing::info_span!("csi", op, %volume, k8s_node = %self.settings.node);
        let lock = self.locks.take(volume, op).map_err(|e| e.status())?;
        async {
            match run(lock).await {
                Ok(answer) => {
                    tracing::debug!("done");
                    Ok(Response::new(answer))
                }
                Err(e) => {
                    tracing::warn!(code = ?e.code(), "{e}");
                    Err(e.status())
                }
            }
        }
        .instrument(span)
        .await
    }
}

/// Required strings, looked at before anything else about the request.
fn require(fields: &[(&str, &str)]) -> Result<(), CsiError> {
    fields.iter().find(|(_, v)| v.is_empty()).map_or(Ok(()), |(name, _)| Err(CsiError::missing(name)))
}

fn status<T>(r: Result<T, CsiError>) -> Result<T, Status> {
    r.map_err(|e| e.status())
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let r = request.into_inner();
        status(require(&[("volume_id", &r.volume_id), ("staging_target_path", &r.staging_target_path)]))?;
        let capability = status(Capability::parse(r.volume_capability.as_ref()))?;
        let volume = status(volume_id(&r.volume_id))?;
        let staging = status(paths::parse("staging_target_path", &r.staging_target_path))?;
        let run = |lock| async move {
            self.stage(lock, staging, capability).await.map(|()| NodeStageVolumeResponse {})
        };
        self.operation("NodeStageVolume", volume, run).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let r = request.into_inner();
        status(require(&[("volume_id", &r.volume_id), ("staging_target_path", &r.staging_target_path)]))?;
        let volume = match volume_id(&r.volume_id) {
            Err(CsiError::NoSuchVolume { .. }) => return Ok(Response::new(NodeUnstageVolumeResponse {})),
            other => status(other)?,
        };
        let staging = status(paths::parse("staging_target_path", &r.staging_target_path))?;
        let run =
            |lock| async move { self.unstage(lock, staging).await.map(|()| NodeUnstageVolumeResponse {}) };
        self.operation("NodeUnstageVolume", volume, run).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let r = request.into_inner();
        status(require(&[("volume_id", &r.volume_id), ("target_path", &r.target_path)]))?;
        let capability = status(Capability::parse(r.volume_capability.as_ref()))?;
        let volume = status(volume_id(&r.volume_id))?;
        if r.staging_target_path.is_empty() {
            let why = "staging_target_path is required: stage the volume first".to_owned();
            return Err(CsiError::Precondition { volume, why }.status());
        }
        let staging = status(paths::parse("staging_target_path", &r.staging_target_path))?;
        let target = status(paths::parse("target_path", &r.target_path))?;
        let read_only = r.readonly || capability.reads_only();
        let who = Who::named(&r.volume_context);
        let run = |lock| async move {
            let done = self.publish(lock, staging, target, capability, read_only, who).await;
            done.map(|()| NodePublishVolumeResponse {})
        };
        self.operation("NodePublishVolume", volume, run).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let r = request.into_inner();
        status(require(&[("volume_id", &r.volume_id), ("target_path", &r.target_path)]))?;
        let volume = match volume_id(&r.volume_id) {
            Err(CsiError::NoSuchVolume { .. }) => return Ok(Response::new(NodeUnpublishVolumeResponse {})),
            other => status(other)?,
        };
        let target = status(paths::parse("target_path", &r.target_path))?;
        let run =
            |lock| async move { self.unpublish(lock, target).await.map(|()| NodeUnpublishVolumeResponse {}) };
        self.operation("NodeUnpublishVolume", volume, run).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let r = request.into_inner();
        status(require(&[("volume_id", &r.volume_id), ("volume_path", &r.volume_path)]))?;
        let volume = status(volume_id(&r.volume_id))?;
        // Statistics change nothing: they need no lock, and are wanted while an operation hangs most of all.
        self.stats(volume, &r.volume_path).await.map(Response::new).map_err(|e| e.status())
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let r = request.into_inner();
        status(require(&[("volume_id", &r.volume_id), ("volume_path", &r.volume_path)]))?;
        let volume = status(volume_id(&r.volume_id))?;
        let capability = match &r.volume_capability {
            Some(c) => Some(status(Capability::parse(Some(c)))?),
            None => None,
        };
        let run = |lock| async move { self.expand(lock, r.volume_path, r.capacity_range, capability).await };
        self.operation("NodeExpandVolume", volume, run).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use cap::rpc::Type;
        let offered = [
            Type::StageUnstageVolume,
            Type::GetVolumeStats,
            Type::ExpandVolume,
            Type::VolumeCondition,
            Type::SingleNodeMultiWriter,
        ];
        let capabilities = offered
            .into_iter()
            .map(|t| NodeServiceCapability { r#type: Some(cap::Type::Rpc(cap::Rpc { r#type: t as i32 })) })
            .collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let s = &self.settings;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: s.node.to_string(),
            max_volumes_per_node: i64::from(s.max_volumes),
            accessible_topology: Some(Topology { segments: s.topology.clone() }),
        }))
    }
}
