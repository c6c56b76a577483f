//! The Identity service.

use csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server::Identity, plugin_capability as cap,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Whether the plugin has heard from a controller what this node should have.
pub type Readiness = watch::Receiver<observe::Verdict>;

/// The Identity service.
#[derive(Clone, Debug)]
pub struct IdentityService {
    name: String,
    ready: Readiness,
}

impl IdentityService {
    /// The identity of the driver `name`.
    pub fn new(name: String, ready: Readiness) -> Self {
        Self { name, ready }
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
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        use cap::{service::Type as Service, volume_expansion::Type as Expansion};
        let service = |t: Service| cap::Type::Service(cap::Service { r#type: t as i32 });
        let offered = [
            service(Service::ControllerService),
            service(Service::VolumeAccessibilityConstraints),
            cap::Type::VolumeExpansion(cap::VolumeExpansion { r#type: Expansion::Online as i32 }),
        ];
        let capabilities = offered.into_iter().map(|t| PluginCapability { r#type: Some(t) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(self.ready.borrow().is_ok()) }))
    }
}
