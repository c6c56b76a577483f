//! What answers nodes on the session port for as long as the process lives: the reigning controller's service, or, where
//! another one reigns, the way to it.
//!
//! Must not know: how it is decided who reigns.

use csi_proto::{
    LEADER,
    node::{AttachRequest, AttachResponse, DetachRequest, DetachResponse, NodeMessage, node_session_server},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::{Out, Service};

/// What this controller is now.
#[derive(Clone, Default)]
pub enum Role {
    /// Not known yet, or records are being loaded.
    #[default]
    Starting,
    /// Another one reigns; at this address, if it says so.
    Standby(Option<String>),
    /// This one does.
    Reigning(Service),
}

/// The service on the session port.
pub struct Front {
    role: watch::Receiver<Role>,
}

impl Front {
    /// Answers as `role` says at the time.
    pub fn new(role: watch::Receiver<Role>) -> Self {
        Self { role }
    }

    /// It, ready to be added to a server.
    pub fn into_server(self) -> node_session_server::NodeSessionServer<Self> {
        node_session_server::NodeSessionServer::new(self)
    }

    fn service(&self) -> Result<Service, Status> {
        match &*self.role.borrow() {
            Role::Reigning(s) => Ok(s.clone()),
            Role::Starting => Err(Status::unavailable("this controller is starting")),
            Role::Standby(leader) => Err(elsewhere(leader.as_deref())),
        }
    }
}

fn elsewhere(leader: Option<&str>) -> Status {
    let Some(leader) = leader else {
        return Status::unavailable("this controller stands by, and does not know where the reigning one is");
    };
    let mut s = Status::unavailable(format!("this controller stands by; {leader} reigns"));
    if let Ok(value) = leader.parse() {
        s.metadata_mut().insert(LEADER, value);
    }
    s
}

#[async_trait::async_trait]
impl node_session_server::NodeSession for Front {
    type SessionStream = Out;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.service()?.session(request).await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        self.service()?.attach(request).await
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        self.service()?.detach(request).await
    }
}
