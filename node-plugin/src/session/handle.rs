//! The agent as the CSI service sees it.

use std::{future::Future, path::PathBuf, sync::Arc, time::Instant};

use async_trait::async_trait;
use csi_proto::node::{AttachRequest, AttachResponse, DetachRequest, node_session_client::NodeSessionClient};
use kernel::dm::dev_node_path;
use pool::{
    ids::{Epoch, NodeName, VolumeId},
    names::DmRole,
    units::Bytes,
};
use tokio::{sync::watch, time::Duration};
use tonic::{Code, Status, transport::Channel};

use super::token::authorized;
use crate::{
    agent::book::Book,
    volumes_api::{AttachMode, Attached, Standing, VolumeState, Volumes, VolumesError},
};

/// Pause before a request is made again over a session that has just failed it.
const AGAIN: Duration = Duration::from_millis(100);

/// Attach, detach and observe volumes of this node.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    node: NodeName,
    book: Arc<Book>,
    channel: watch::Receiver<Result<Channel, String>>,
    token: Option<PathBuf>,
}

impl AgentHandle {
    pub(super) fn new(
        node: NodeName,
        book: Arc<Book>,
        channel: watch::Receiver<Result<Channel, String>>,
        token: Option<PathBuf>,
    ) -> Self {
        Self { node, book, channel, token }
    }

    /// Whether there is a session now; else why not.
    pub fn session(&self) -> Result<(), String> {
        self.channel.borrow().as_ref().map(drop).map_err(Clone::clone)
    }

    /// Where a volume's device is, or would be.
    pub fn device_path(volume: VolumeId) -> PathBuf {
        dev_node_path(&DmRole::Top(volume).dm_name())
    }

    /// Makes a request over whatever session there is, again when it is lost on the way: requests change nothing
    /// when they are made twice.
    async fn request<T, F>(
        &self,
        deadline: Instant,
        make: impl Fn(NodeSessionClient<Channel>) -> F,
    ) -> Result<T, VolumesError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let until = tokio::time::Instant::from_std(deadline);
        let mut rx = self.channel.clone();
        let mut last = String::new();
        loop {
            let channel = rx.borrow_and_update().clone();
            match channel {
                Ok(c) => match tokio::time::timeout_at(until, make(NodeSessionClient::new(c))).await {
                    Ok(Ok(r)) => return Ok(r.into_inner()),
                    Ok(Err(s)) if !is_lost(&s) => return Err(VolumesError::Refused(Box::new(s))),
                    Ok(Err(s)) => {
                        s.message().clone_into(&mut last);
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(_) => {
                        let s = Status::deadline_exceeded("the controller is still at it; ask again");
                        return Err(VolumesError::Refused(Box::new(s)));
                    }
                },
                Err(why) => {
                    last = why;
                    match tokio::time::timeout_at(until, rx.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => return Err(VolumesError::NoController { last }),
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(VolumesError::NoController { last });
            }
        }
    }

    async fn wait_ready(
        &self,
        volume: VolumeId,
        granted: &AttachResponse,
        deadline: Instant,
    ) -> Result<VolumeState, VolumesError> {
        let mut rx = self.observe(volume);
        let ready = |s: &VolumeState| {
            s.epoch >= Epoch::new(granted.epoch) && matches!(s.standing, Standing::Open | Standing::Guarded)
        };
        let until = tokio::time::Instant::from_std(deadline);
        let found = match tokio::time::timeout_at(until, rx.wait_for(ready)).await {
            Ok(Ok(s)) => Some(s.clone()),
            Ok(Err(_)) | Err(_) => None,
        };
        found.ok_or_else(|| {
            let s = rx.borrow().clone();
            let reason = if s.reason.is_empty() {
                format!("it is {:?} under epoch {}, granted was {}", s.standing, s.epoch, granted.epoch)
            } else {
                s.reason
            };
            VolumesError::NotReady { volume, reason }
        })
    }
}

/// Whether a request failed because its connection did. A controller that answers says so without a source, and what
/// it answers is for whoever asked: "unavailable" names the node that a volume has to wait for.
fn is_lost(s: &Status) -> bool {
    use std::error::Error as _;
    s.source().is_some() && matches!(s.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

#[async_trait]
impl Volumes for AgentHandle {
    async fn attach(
        &self,
        volume: VolumeId,
        mode: AttachMode,
        deadline: Instant,
    ) -> Result<Attached, VolumesError> {
        let request = AttachRequest {
            node: self.node.to_string(),
            volume: volume.to_string(),
            read_only: mode.read_only,
            multi_node: mode.multi_node,
            block: mode.block,
        };
        let granted = self
            .request(deadline, |mut c| {
                let r = request.clone();
                let r = authorized(r, self.token.as_deref());
                async move { c.attach(r?).await }
            })
            .await?;
        let s = self.wait_ready(volume, &granted, deadline).await?;
        Ok(Attached {
            epoch: s.epoch,
            size: if s.size == Bytes::ZERO { Bytes::new(granted.size_bytes) } else { s.size },
            fs_type: granted.fs_type,
            device: Self::device_path(volume),
            guarded: s.standing == Standing::Guarded,
        })
    }

    async fn detach(&self, volume: VolumeId, deadline: Instant) -> Result<(), VolumesError> {
        let request = DetachRequest { node: self.node.to_string(), volume: volume.to_string() };
        self.request(deadline, |mut c| {
            let r = request.clone();
            let r = authorized(r, self.token.as_deref());
            async move { c.detach(r?).await }
        })
        .await
        .map(drop)
    }

    fn observe(&self, volume: VolumeId) -> watch::Receiver<VolumeState> {
        self.book.observe(volume)
    }
}
