//! CSI Controller: volumes. Snapshots are not offered yet, and their calls answer UNIMPLEMENTED.

use std::{collections::BTreeMap, sync::Arc};

use csi_proto::csi::{
    self,
    controller_server::Controller,
    controller_service_capability as cap,
    list_volumes_response::{Entry, VolumeStatus},
};
use tonic::{Request, Response, Status};

use super::convert::{
    bytes_i64, parse_capabilities, parse_capability, parse_node, parse_range, parse_segments, parse_topology,
    parse_volume_id, render_condition, render_nodes, render_volume,
};
use crate::{
    api::{Api, ApiError, CreateVolume},
    status::status,
};
use pool::units::Bytes;

/// Bytes of a volume whose request names no size.
const DEFAULT_SIZE: Bytes = Bytes::gib(1);

/// Longest volume name, in bytes: what CSI allows for strings.
const MAX_NAME: usize = 128;

/// The Controller service.
pub struct ControllerService {
    api: Arc<dyn Api>,
}

impl ControllerService {
    /// Over this core.
    pub fn new(api: Arc<dyn Api>) -> Self {
        Self { api }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn to_map(m: std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
    m.into_iter().collect()
}

fn refused(op: &'static str) -> impl Fn(ApiError) -> Status {
    move |e| {
        match &e {
            ApiError::Internal(_) => tracing::error!(op, error = %e, "request failed"),
            _ => tracing::info!(op, error = %e, "request refused"),
        }
        status(&e)
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    #[tracing::instrument(skip_all, fields(op = "CreateVolume", name = %r.get_ref().name))]
    async fn create_volume(&self, r: Request<csi::CreateVolumeRequest>) -> Answer<csi::CreateVolumeResponse> {
        let r = r.into_inner();
        if r.name.is_empty() {
            return Err(Status::invalid_argument("name is empty"));
        }
        if r.name.len() > MAX_NAME {
            return Err(Status::invalid_argument(format!(
                "name has {} bytes: at most {MAX_NAME} are allowed",
                r.name.len()
            )));
        }
        if r.volume_content_source.is_some() {
            return Err(Status::invalid_argument(
                "volume_content_source: volumes from snapshots or other volumes are not offered yet",
            ));
        }
        let capabilities = parse_capabilities(&r.volume_capabilities)?;
        let (required, limit) = parse_range(r.capacity_range.as_ref())?;
        let required = required.unwrap_or_else(|| limit.map_or(DEFAULT_SIZE, |l| l.min(DEFAULT_SIZE)));
        let request = CreateVolume {
            name: r.name,
            required,
            limit,
            parameters: to_map(r.parameters),
            mutable_parameters: to_map(r.mutable_parameters),
            capabilities,
            topology: parse_topology(r.accessibility_requirements.as_ref()),
        };
        let v = self.api.create_volume(request).await.map_err(refused("CreateVolume"))?;
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(render_volume(&v)) }))
    }

    #[tracing::instrument(skip_all, fields(op = "DeleteVolume", volume = %r.get_ref().volume_id))]
    async fn delete_volume(&self, r: Request<csi::DeleteVolumeRequest>) -> Answer<csi::DeleteVolumeResponse> {
        // An id that no volume of ours can have names a volume that is not there: deleted already.
        if let Ok(id) = parse_volume_id(&r.get_ref().volume_id)? {
            self.api.delete_volume(id).await.map_err(refused("DeleteVolume"))?;
        }
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    #[tracing::instrument(skip_all, fields(op = "ControllerPublishVolume", volume = %r.get_ref().volume_id,
        k8s_node = %r.get_ref().node_id))]
    async fn controller_publish_volume(
        &self,
        r: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        let r = r.into_inner();
        let id = parse_volume_id(&r.volume_id)?;
        let node = parse_node(&r.node_id)?;
        let capability = r
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let capability = parse_capability(capability)?;
        if r.readonly {
            return Err(Status::invalid_argument(
                "readonly: publishing read-only to a node is not offered; ask for a reader access mode, or for a \
                 read-only mount in the pod",
            ));
        }
        let no = refused("ControllerPublishVolume");
        let (id, node) = (id.map_err(&no)?, node.map_err(&no)?);
        self.api.attach(id, node, capability, true).await.map_err(&no)?;
        Ok(Response::new(csi::ControllerPublishVolumeResponse { publish_context: Default::default() }))
    }

    #[tracing::instrument(skip_all, fields(op = "ControllerUnpublishVolume", volume = %r.get_ref().volume_id,
        k8s_node = %r.get_ref().node_id))]
    async fn controller_unpublish_volume(
        &self,
        r: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        let r = r.into_inner();
        let id = parse_volume_id(&r.volume_id)?;
        let node = if r.node_id.is_empty() { Ok(None) } else { parse_node(&r.node_id)?.map(Some) };
        // Neither an unknown volume nor an unknown node can be attached: done.
        if let (Ok(id), Ok(node)) = (id, node) {
            match self.api.detach(id, node, true).await {
                Ok(()) | Err(ApiError::NoVolume(_) | ApiError::NoNode(_)) => {}
                Err(e) => return Err(refused("ControllerUnpublishVolume")(e)),
            }
        }
        Ok(Response::new(csi::ControllerUnpublishVolumeResponse {}))
    }

    #[tracing::instrument(skip_all, fields(op = "ValidateVolumeCapabilities", volume = %r.get_ref().volume_id))]
    async fn validate_volume_capabilities(
        &self,
        r: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        let r = r.into_inner();
        let id = parse_volume_id(&r.volume_id)?;
        if r.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is empty: at least one is needed"));
        }
        let no = refused("ValidateVolumeCapabilities");
        let id = id.map_err(&no)?;
        let why = match parse_capabilities(&r.volume_capabilities) {
            Ok(c) => self.api.validate(id, c, to_map(r.parameters.clone())).await.map_err(&no)?,
            // The form is right as far as the specification goes, but no volume of ours can do it. The volume
            // must exist all the same.
            Err(s) => {
                self.api.volume(id).await.map_err(&no)?;
                Some(s.message().to_owned())
            }
        };
        let confirmed = csi::validate_volume_capabilities_response::Confirmed {
            volume_context: r.volume_context,
            volume_capabilities: r.volume_capabilities,
            parameters: r.parameters,
            mutable_parameters: r.mutable_parameters,
        };
        Ok(Response::new(csi::ValidateVolumeCapabilitiesResponse {
            confirmed: why.is_none().then_some(confirmed),
            message: why.unwrap_or_default(),
        }))
    }

    async fn list_volumes(&self, r: Request<csi::ListVolumesRequest>) -> Answer<csi::ListVolumesResponse> {
        let r = r.into_inner();
        let max = usize::try_from(r.max_entries).map_err(|_| {
            Status::invalid_argument(format!("max_entries is {}: it cannot be negative", r.max_entries))
        })?;
        let page = self.api.volumes(max, &r.starting_token).await.map_err(refused("ListVolumes"))?;
        let entry = |v: &crate::api::VolumeInfo| Entry {
            volume: Some(render_volume(v)),
            status: Some(VolumeStatus {
                published_node_ids: render_nodes(v),
                volume_condition: Some(render_condition(v)),
            }),
        };
        Ok(Response::new(csi::ListVolumesResponse {
            entries: page.volumes.iter().map(entry).collect(),
            next_token: page.next.unwrap_or_default(),
        }))
    }

    async fn get_capacity(&self, r: Request<csi::GetCapacityRequest>) -> Answer<csi::GetCapacityResponse> {
        let r = r.into_inner();
        let nothing = csi::GetCapacityResponse::default;
        // No room for volumes that could never be made.
        if r.volume_capabilities.iter().any(|c| parse_capability(c).is_err()) {
            return Ok(Response::new(nothing()));
        }
        let at = r.accessible_topology.as_ref().map(parse_segments).filter(|s| !s.is_empty());
        let c = self.api.capacity(to_map(r.parameters), at).await.map_err(refused("GetCapacity"))?;
        Ok(Response::new(csi::GetCapacityResponse {
            available_capacity: bytes_i64(c.available),
            maximum_volume_size: Some(bytes_i64(c.maximum_volume)),
            minimum_volume_size: Some(bytes_i64(c.minimum_volume)),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        use cap::{Rpc, Type, rpc::Type as T};
        let capabilities = [
            T::CreateDeleteVolume,
            T::PublishUnpublishVolume,
            T::ListVolumes,
            T::ListVolumesPublishedNodes,
            T::GetCapacity,
            T::ExpandVolume,
            T::ModifyVolume,
            T::GetVolume,
            T::VolumeCondition,
            T::SingleNodeMultiWriter,
        ]
        .map(|t| csi::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) })
        .into();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    #[tracing::instrument(skip_all, fields(op = "ControllerExpandVolume", volume = %r.get_ref().volume_id))]
    async fn controller_expand_volume(
        &self,
        r: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        let r = r.into_inner();
        let id = parse_volume_id(&r.volume_id)?;
        let range =
            r.capacity_range.as_ref().ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
        let (required, limit) = parse_range(Some(range))?;
        let required = required.or(limit).ok_or_else(|| {
            Status::invalid_argument("capacity_range names neither required_bytes nor limit_bytes")
        })?;
        let block = match &r.volume_capability {
            Some(c) => parse_capability(c)?.block,
            None => false,
        };
        let no = refused("ControllerExpandVolume");
        let v = self.api.expand(id.map_err(&no)?, required, limit).await.map_err(&no)?;
        Ok(Response::new(csi::ControllerExpandVolumeResponse {
            capacity_bytes: bytes_i64(v.size),
            node_expansion_required: !block,
        }))
    }

    async fn controller_get_volume(
        &self,
        r: Request<csi::ControllerGetVolumeRequest>,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        let no = refused("ControllerGetVolume");
        let id = parse_volume_id(&r.get_ref().volume_id)?.map_err(&no)?;
        let v = self.api.volume(id).await.map_err(&no)?;
        Ok(Response::new(csi::ControllerGetVolumeResponse {
            volume: Some(render_volume(&v)),
            status: Some(csi::controller_get_volume_response::VolumeStatus {
                published_node_ids: render_nodes(&v),
                volume_condition: Some(render_condition(&v)),
            }),
        }))
    }

    async fn controller_modify_volume(
        &self,
        r: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Answer<csi::ControllerModifyVolumeResponse> {
        let r = r.into_inner();
        let no = refused("ControllerModifyVolume");
        let id = parse_volume_id(&r.volume_id)?.map_err(&no)?;
        self.api.modify(id, r.mutable_parameters.into_iter().collect()).await.map_err(&no)?;
        Ok(Response::new(csi::ControllerModifyVolumeResponse {}))
    }

    async fn create_snapshot(
        &self,
        _: Request<csi::CreateSnapshotRequest>,
    ) -> Answer<csi::CreateSnapshotResponse> {
        Err(no_snapshots())
    }

    async fn delete_snapshot(
        &self,
        _: Request<csi::DeleteSnapshotRequest>,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        Err(no_snapshots())
    }

    async fn list_snapshots(
        &self,
        _: Request<csi::ListSnapshotsRequest>,
    ) -> Answer<csi::ListSnapshotsResponse> {
        Err(no_snapshots())
    }

    async fn get_snapshot(&self, _: Request<csi::GetSnapshotRequest>) -> Answer<csi::GetSnapshotResponse> {
        Err(no_snapshots())
    }
}

fn no_snapshots() -> Status {
    Status::unimplemented("snapshots are not offered yet")
}
