//! CSI Identity: who the plugin is, what it can do as a whole, whether it is ready.

use std::{collections::HashMap, sync::Arc};

use csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server::Identity, plugin_capability as cap,
};
use tonic::{Request, Response, Status};

use crate::api::Api;

/// The Identity service of a controller.
pub struct IdentityService {
    api: Arc<dyn Api>,
    name: String,
}

impl IdentityService {
    /// For the driver of this name.
    pub fn new(api: Arc<dyn Api>, name: String) -> Self {
        Self { api, name }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        use cap::{Service, Type, VolumeExpansion, service, volume_expansion};
        let capabilities = [
            Type::Service(Service { r#type: service::Type::ControllerService.into() }),
            Type::Service(Service { r#type: service::Type::VolumeAccessibilityConstraints.into() }),
            Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }),
        ]
        .map(|t| PluginCapability { r#type: Some(t) })
        .into();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = match self.api.ready().await {
            Ok(()) => true,
            Err(why) => {
                tracing::debug!(why, "not ready");
                false
            }
        };
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}
