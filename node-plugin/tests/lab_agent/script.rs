//! A controller that says what the test says, and remembers what nodes answer.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use csi_proto::node::{
    self as proto,
    node_session_server::{NodeSession, NodeSessionServer},
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

type Out = Result<proto::ControllerMessage, Status>;

#[derive(Default)]
pub struct State {
    sessions: HashMap<String, mpsc::UnboundedSender<Out>>,
    exports: BTreeMap<(String, String, String), (String, proto::ExportGoal)>,
    attachments: BTreeMap<(String, String), proto::AttachmentGoal>,
    pub seen_exports: BTreeMap<(String, String, String), (Instant, proto::ObservedExport)>,
    pub seen_attachments: BTreeMap<(String, String), (Instant, proto::ObservedAttachment)>,
    pub hellos: Vec<proto::Hello>,
}

#[derive(Clone)]
pub struct Script {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    term: u64,
}

pub const PATIENCE: Duration = Duration::from_secs(60);

impl Script {
    pub fn start(rt: &Runtime, term: u64) -> Self {
        let listener = rt.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let s = Self { state: Arc::default(), address: listener.local_addr().unwrap(), term };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = NodeSessionServer::new(s.clone());
        rt.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        s
    }

    fn send(&self, node: &str, goals: proto::Goals) {
        let g = self.state.lock().unwrap();
        if let Some(tx) = g.sessions.get(node) {
            let message = Some(proto::controller_message::Message::Goals(goals));
            drop(tx.send(Ok(proto::ControllerMessage { message })));
        }
    }

    pub fn export(&self, host: &str, goal: proto::ExportGoal) {
        let key = (goal.volume.clone(), goal.disk.clone(), goal.consumer.clone());
        self.state.lock().unwrap().exports.insert(key, (host.to_owned(), goal.clone()));
        self.send(host, proto::Goals { exports: vec![goal], ..Default::default() });
    }

    pub fn attach(&self, node: &str, goal: proto::AttachmentGoal) {
        let key = (node.to_owned(), goal.volume.clone());
        self.state.lock().unwrap().attachments.insert(key, goal.clone());
        self.send(node, proto::Goals { attachments: vec![goal], ..Default::default() });
    }

    pub fn until<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let g = self.state.lock().unwrap();
            if let Some(x) = look(&g) {
                return x;
            }
            if start.elapsed() > PATIENCE {
                let (a, e) = (g.seen_attachments.values(), g.seen_exports.values());
                panic!("waited for {what}; {:?}; {:?}", a.collect::<Vec<_>>(), e.collect::<Vec<_>>());
            }
            drop(g);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn until_attachment(
        &self,
        node: &str,
        epoch: u64,
        what: &str,
        ok: impl Fn(&proto::ObservedAttachment) -> bool,
    ) -> (Instant, proto::ObservedAttachment) {
        self.until(&format!("{node} at {epoch}: {what}"), |s| {
            let found =
                s.seen_attachments.iter().find(|((n, _), (_, o))| n == node && o.epoch >= epoch && ok(o));
            found.map(|(_, x)| x.clone())
        })
    }

    pub fn until_export(&self, disk: &str, consumer: &str, epoch: u64, state: proto::ExportState) -> Instant {
        self.until(&format!("export of {disk} to {consumer} at {epoch}: {state:?}"), |s| {
            let found = s.seen_exports.values().find(|(_, o)| {
                o.disk == disk && o.consumer == consumer && o.epoch >= epoch && o.state() == state
            });
            found.map(|(t, _)| *t)
        })
    }

    fn note(&self, node: &str, r: proto::Report) {
        let (now, mut s) = (Instant::now(), self.state.lock().unwrap());
        for o in r.exports {
            s.seen_exports.insert((o.volume.clone(), o.disk.clone(), o.consumer.clone()), (now, o));
        }
        for o in r.attachments {
            s.seen_attachments.insert((node.to_owned(), o.volume.clone()), (now, o));
        }
    }
}

#[tonic::async_trait]
impl NodeSession for Script {
    type SessionStream = Pin<Box<dyn Stream<Item = Out> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|m| m.message);
        let Some(proto::node_message::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let node = hello.node.clone();
        let (tx, rx) = mpsc::unbounded_channel();
        let welcome =
            proto::Welcome { term: self.term, heartbeat_ms: 500, lease_ms: 5000, ..Default::default() };
        let mut goals = proto::Goals { full: true, ..Default::default() };
        {
            let mut s = self.state.lock().unwrap();
            goals.exports.extend(s.exports.values().filter(|(h, _)| *h == node).map(|(_, g)| g.clone()));
            goals
                .attachments
                .extend(s.attachments.iter().filter(|((n, _), _)| *n == node).map(|(_, g)| g.clone()));
            for m in [
                proto::controller_message::Message::Welcome(welcome),
                proto::controller_message::Message::Goals(goals),
            ] {
                drop(tx.send(Ok(proto::ControllerMessage { message: Some(m) })));
            }
            s.sessions.insert(node.clone(), tx);
            s.hellos.push(hello);
        }
        let me = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(m)) = inbound.next().await {
                if let Some(proto::node_message::Message::Report(r)) = m.message {
                    me.note(&node, r);
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }

    async fn attach(
        &self,
        _: Request<proto::AttachRequest>,
    ) -> Result<Response<proto::AttachResponse>, Status> {
        Err(Status::unimplemented("the script attaches by itself"))
    }

    async fn detach(
        &self,
        _: Request<proto::DetachRequest>,
    ) -> Result<Response<proto::DetachResponse>, Status> {
        Err(Status::unimplemented("the script detaches by itself"))
    }
}
