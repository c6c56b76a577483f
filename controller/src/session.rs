//! The node session's gRPC service: streams between node plugins and the core. Invariants: every id and enum of a
//! message is checked before the core sees it; the caller's identity must be the node that it speaks for; a session
//! that ends, ends alone. Must not know: what the core decides.

mod front;
mod goals;
mod recordings;
mod reports;

use std::{pin::Pin, sync::Arc, time::Duration};

use csi_proto::node::{
    AttachRequest, AttachResponse, ControllerMessage, DetachRequest, DetachResponse, NodeMessage, Welcome,
    controller_message, node_message, node_session_server,
};
use pool::{
    access::Mode,
    ids::{BadId, NodeName, VolumeId},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    api::{Api, Capability},
    core::{Handle, OpenError, Session, told},
    flow::{Flow, ToNode, sweep},
    status::status,
};

pub use front::{Front, Role};

/// How long a node may take to introduce itself.
const HELLO: Duration = Duration::from_secs(5);
/// Messages on their way to one node: beyond these, goals gather in the box, where newer ones replace older ones.
const IN_FLIGHT: usize = 2;

/// Tells who is calling.
#[async_trait::async_trait]
pub trait Identify: Send + Sync + 'static {
    /// The node that the connection or the request proves to come from; `None` where nothing is proven and nothing
    /// has to be (plain connections on one machine).
    async fn node(&self, connection: &Extensions, metadata: &MetadataMap)
    -> Result<Option<NodeName>, Status>;

    /// A caller was refused for speaking for a node that it is not.
    fn impostor(&self) {}
}

/// Believes every caller: for a lab and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unproven;

#[async_trait::async_trait]
impl Identify for Unproven {
    async fn node(&self, _: &Extensions, _: &MetadataMap) -> Result<Option<NodeName>, Status> {
        Ok(None)
    }
}

/// The service.
#[derive(Clone)]
pub struct Service {
    core: Handle,
    identify: Arc<dyn Identify>,
}

impl Service {
    /// A service in front of the core.
    pub fn new(core: Handle, identify: Arc<dyn Identify>) -> Self {
        Self { core, identify }
    }

    /// It, ready to be added to a server.
    pub fn into_server(self) -> node_session_server::NodeSessionServer<Self> {
        node_session_server::NodeSessionServer::new(self)
    }

    async fn proven<T>(&self, request: &Request<T>) -> Result<Option<NodeName>, Status> {
        self.identify.node(request.extensions(), request.metadata()).await
    }
}

/// Holds the node that is spoken for against the one that is speaking.
fn check(identify: &dyn Identify, proven: Option<&NodeName>, claimed: &str) -> Result<NodeName, Status> {
    let claimed: NodeName = claimed.parse().map_err(|e: BadId| Status::invalid_argument(e.to_string()))?;
    match proven {
        Some(p) if *p != claimed => {
            identify.impostor();
            tracing::warn!(k8s_node = %p, %claimed, "a node speaks for another one: refused");
            Err(Status::permission_denied(format!("this connection belongs to node {p}, not to {claimed}")))
        }
        Some(_) | None => Ok(claimed),
    }
}

fn no_session(e: &OpenError) -> Status {
    match e {
        OpenError::Outdated { .. } | OpenError::Forgotten { .. } => {
            Status::failed_precondition(e.to_string())
        }
        OpenError::Returning { .. } | OpenError::Stopping => Status::unavailable(e.to_string()),
    }
}

type Out = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

#[async_trait::async_trait]
impl node_session_server::NodeSession for Service {
    type SessionStream = Out;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let proven = self.proven(&request).await?;
        let mut from_node = request.into_inner();
        let (to_node, out) = mpsc::channel(IN_FLIGHT);
        let (core, identify) = (self.core.clone(), self.identify.clone());
        // The answer's headers must not wait for the node's first message: some clients send it only after them.
        tokio::spawn(async move {
            if let Err(status) = converse(&core, &*identify, proven, &mut from_node, &to_node).await
                && to_node.send(Err(status)).await.is_err()
            {
                tracing::debug!("a session's node was gone before it was told why");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let proven = self.proven(&request).await?;
        let r = request.into_inner();
        let node = check(&*self.identify, proven.as_ref(), &r.node)?;
        let id = volume(&r.volume)?;
        let mode = Mode { read_only: r.read_only, multi_node: r.multi_node, upkeep: false };
        let capability = Capability { block: r.block, fs_type: String::new(), mode };
        let a = self.core.attach(id, node, capability, true).await.map_err(|e| status(&e))?;
        let (epoch, size_bytes, fs_type) = (a.epoch.get(), a.size.get(), a.fs_type);
        Ok(Response::new(AttachResponse { epoch, size_bytes, fs_type }))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        let proven = self.proven(&request).await?;
        let r = request.into_inner();
        let node = check(&*self.identify, proven.as_ref(), &r.node)?;
        self.core.detach(volume(&r.volume)?, Some(node), true).await.map_err(|e| status(&e))?;
        Ok(Response::new(DetachResponse {}))
    }
}

fn volume(text: &str) -> Result<VolumeId, Status> {
    text.parse().map_err(|e: BadId| Status::invalid_argument(e.to_string()))
}

/// One session from its first message to its end.
async fn converse(
    core: &Handle,
    identify: &dyn Identify,
    proven: Option<NodeName>,
    from_node: &mut Streaming<NodeMessage>,
    to_node: &mpsc::Sender<Result<ControllerMessage, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO, from_node.next()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))?;
    let hello = match first {
        Some(Ok(NodeMessage { message: Some(node_message::Message::Hello(h)) })) => h,
        Some(Ok(_)) => return Err(Status::invalid_argument("the first message of a session is a hello")),
        Some(Err(e)) => return Err(e),
        None => return Ok(()),
    };
    let node = check(identify, proven.as_ref(), &hello.node)?;
    let hello = reports::parse_hello(node, hello);
    let session = core.open(hello).await.map_err(|e| no_session(&e))?;
    let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
    let welcome = controller_message::Message::Welcome(Welcome {
        term: core.term().get(),
        pool_system: core.system().to_string(),
        heartbeat_ms: millis(core.heartbeat()),
        lease_ms: millis(core.lease()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    if to_node.send(Ok(ControllerMessage { message: Some(welcome) })).await.is_err() {
        return Ok(());
    }
    let out = session.outbox();
    let to_tell = core.flow().to_node(session.node());
    tokio::select! {
        r = listen(core.flow(), &session, from_node) => r,
        r = tell(&out, to_node) => r,
        r = tell_on(to_tell, to_node) => r,
    }
}

/// Tells the node what is no goal.
async fn tell_on(
    mut news: mpsc::Receiver<ToNode>,
    to_node: &mpsc::Sender<Result<ControllerMessage, Status>>,
) -> Result<(), Status> {
    while let Some(news) = news.recv().await {
        let message = Some(recordings::render(news));
        if to_node.send(Ok(ControllerMessage { message })).await.is_err() {
            return Ok(());
        }
    }
    // Another session of the node has its place now; that ends this one by another way.
    std::future::pending().await
}

async fn listen(
    flow: &Flow,
    session: &Session,
    from_node: &mut Streaming<NodeMessage>,
) -> Result<(), Status> {
    while let Some(message) = from_node.next().await {
        let report = match message?.message {
            Some(node_message::Message::Report(r)) => Some(reports::parse_report(r)),
            Some(node_message::Message::Heartbeat(_)) => None,
            Some(node_message::Message::Recording(r)) => {
                flow.take(session.node(), sweep::unix_s(), recordings::parse(r));
                None
            }
            Some(node_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument("a session has one hello"));
            }
            // From a newer plugin: what it means is unknown, that it lives is not.
            None => None,
        };
        if let Some(r) = &report {
            tracing::debug!(k8s_node = %session.node(), report = ?r, "heard");
        }
        session.heard(report).await.map_err(|e| no_session(&e))?;
    }
    Ok(())
}

async fn tell(
    out: &told::Outbox,
    to_node: &mpsc::Sender<Result<ControllerMessage, Status>>,
) -> Result<(), Status> {
    loop {
        // Room first: what waits in the box can still be replaced by something newer.
        let Ok(room) = to_node.reserve().await else { return Ok(()) };
        match out.next().await {
            told::Next::Goals { full, goals } => {
                tracing::debug!(full, ?goals, "told");
                let goals = goals::render(full, goals);
                let message = Some(controller_message::Message::Goals(goals));
                room.send(Ok(ControllerMessage { message }));
            }
            told::Next::Close(told::Close::Replaced) => {
                return Err(Status::aborted("the node has opened another session"));
            }
            told::Next::Close(told::Close::Forgotten) => {
                return Err(Status::failed_precondition("the node is forgotten"));
            }
            told::Next::Close(told::Close::Stopping) => {
                return Err(Status::unavailable("the controller is stopping"));
            }
        }
    }
}
