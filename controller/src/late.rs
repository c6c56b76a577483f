//! The core's API for those who connect before there is a core: on a standby, or while records are loaded.
//!
//! Sidecars find the plugin at once, are told that it is not ready, and wait; the same connection serves them once this
//! controller reigns. Must not know: who reigns instead.

use std::collections::BTreeMap;

use pool::{
    ids::{NodeName, VolumeId},
    units::Bytes,
};
use tokio::sync::watch;

use crate::{
    api::{
        Api, ApiError, Attached, Capability, Capacity, CreateVolume, DrainRow, Segments, Survey, Target,
        VolumeInfo, VolumePage,
    },
    core::Handle,
};

/// The core's API as soon as there is one.
pub(crate) struct Late(watch::Receiver<Option<Handle>>);

impl Late {
    /// By what the receiver holds.
    pub(crate) fn new(core: watch::Receiver<Option<Handle>>) -> Self {
        Self(core)
    }

    fn now(&self) -> Result<Handle, ApiError> {
        const NOT_NOW: &str = "this controller does not reign: it stands by, or is still starting";
        self.0.borrow().clone().ok_or_else(|| ApiError::Unavailable(NOT_NOW.to_owned()))
    }
}

#[async_trait::async_trait]
impl Api for Late {
    async fn create_volume(&self, request: CreateVolume) -> Result<VolumeInfo, ApiError> {
        self.now()?.create_volume(request).await
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<(), ApiError> {
        self.now()?.delete_volume(id).await
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeInfo, ApiError> {
        self.now()?.volume(id).await
    }

    async fn volumes(&self, max: usize, token: &str) -> Result<VolumePage, ApiError> {
        self.now()?.volumes(max, token).await
    }

    async fn capacity(
        &self,
        parameters: BTreeMap<String, String>,
        at: Option<Segments>,
    ) -> Result<Capacity, ApiError> {
        self.now()?.capacity(parameters, at).await
    }

    async fn validate(
        &self,
        id: VolumeId,
        capabilities: Vec<Capability>,
        parameters: BTreeMap<String, String>,
    ) -> Result<Option<String>, ApiError> {
        self.now()?.validate(id, capabilities, parameters).await
    }

    async fn expand(
        &self,
        id: VolumeId,
        required: Bytes,
        limit: Option<Bytes>,
    ) -> Result<VolumeInfo, ApiError> {
        self.now()?.expand(id, required, limit).await
    }

    async fn modify(&self, id: VolumeId, parameters: BTreeMap<String, String>) -> Result<(), ApiError> {
        self.now()?.modify(id, parameters).await
    }

    async fn attach(
        &self,
        id: VolumeId,
        node: NodeName,
        capability: Capability,
        wait: bool,
    ) -> Result<Attached, ApiError> {
        self.now()?.attach(id, node, capability, wait).await
    }

    async fn detach(&self, id: VolumeId, node: Option<NodeName>, wait: bool) -> Result<(), ApiError> {
        self.now()?.detach(id, node, wait).await
    }

    async fn ready(&self) -> Result<(), String> {
        self.now().map_err(|e| e.to_string())?.ready().await
    }

    async fn survey(&self) -> Survey {
        match self.now() {
            Ok(h) => h.survey().await,
            Err(_) => Survey::default(),
        }
    }

    async fn drain(&self, target: Target, undo: bool, dry_run: bool) -> Result<Vec<DrainRow>, ApiError> {
        self.now()?.drain(target, undo, dry_run).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn before_there_is_a_core_nothing_is_done_and_nothing_is_ready() {
        let (_core, none) = watch::channel(None);
        let late = Late::new(none);
        assert!(late.ready().await.unwrap_err().contains("does not reign"));
        let answer = late.delete_volume(VolumeId::from_u128(1)).await;
        assert!(matches!(answer, Err(ApiError::Unavailable(_))), "{answer:?}");
        assert_eq!(late.survey().await, Survey::default());
    }
}
