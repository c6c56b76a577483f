//! The session with the controller: dialled again for ever, one at a time. Goals go in, reports come out.
//!
//! Invariants
//! - A controller of a lower term than one obeyed before is refused; a higher one is kept durably before any of its
//!   goals is taken up.
//! - Every session begins with everything that is known; then what changes is sent, many changes in one message when
//!   they come faster than they can be sent.
//! - Reading and writing do not wait for each other, and heartbeats wait for neither.
//!
//! Must not know: what goals mean.

pub mod handle;
pub mod term;
mod tls;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, Hasher as _},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use csi_proto::{
    LEADER,
    node::{self as proto, node_session_client::NodeSessionClient},
};
use observe::{Verdict, chain};
use pool::{
    ids::{NodeName, Term},
    layout::params::Limits,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};

use self::{
    handle::AgentHandle,
    term::{TermError, TermFile},
};
use crate::{
    agent::{Agent, Backoff, Goals, book::Book},
    config::Tls,
    convert,
    disks_api::{DiskLink, DiskOrder},
    flow::Recorder,
    limits::Limiter,
};

/// Pause before the controller is dialled again, at first and at most.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long dialling may take.
const DIAL: Duration = Duration::from_secs(5);
/// How long the answer to a request for a session, and the first message, may take: the controller may have to ask who
/// this is, and says itself when it could not find out.
const ANSWER: Duration = csi_proto::IDENTIFY.saturating_add(Duration::from_secs(5));
/// How often, and for how long at most, a silent connection is asked whether it lives.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(8));
/// Bounds on the heartbeat that a controller may ask for.
const HEARTBEAT_MS: (u32, u32) = (100, 60_000);

/// What the session needs to know.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// This node.
    pub node: NodeName,
    /// Controllers as URIs (`http://10.0.2.2:7000`), never empty: dialled in turn. Names are resolved again for each
    /// attempt.
    pub controllers: Vec<String>,
    /// TLS, where the controller wants it: files that are read for every dial.
    pub tls: Option<Tls>,
    /// The file of the token that says which node this is, where no certificate does.
    pub token: Option<PathBuf>,
    /// This boot: /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Where other nodes reach this node's exports.
    pub storage: SocketAddr,
    /// Topology segments.
    pub topology: BTreeMap<String, String>,
    /// What the kernel can do.
    pub features: Vec<String>,
    /// Volumes that the node can hold at once.
    pub max_volumes: u32,
    /// Where the term is kept.
    pub state_dir: PathBuf,
    /// What is recorded on this node, where anything is.
    pub recorder: Option<Arc<Recorder>>,
    /// What keeps volumes' users within their limits.
    pub limits: Option<Arc<Limiter>>,
}

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("controller address {0:?} is not a URI: {1}")]
    Address(String, #[source] tonic::transport::Error),
    #[error("TLS: {0}")]
    Tls(#[from] tls::ReadError),
    #[error("dial: {0}")]
    Dial(#[source] tonic::transport::Error),
    #[error("the controller says: {0}")]
    Status(#[from] tonic::Status),
    #[error("the controller did not answer within {ANSWER:?}")]
    Silent,
    #[error("the controller closed the session")]
    Closed,
    #[error("the first message is not a welcome")]
    NoWelcome,
    #[error("its term {got} is lower than {seen}, which was obeyed before: it has been replaced")]
    OldTerm { got: Term, seen: Term },
    #[error(transparent)]
    Term(#[from] TermError),
    #[error("the task that keeps the term did not end: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The session.
pub struct Session {
    config: SessionConfig,
    /// The one that is dialled now.
    controller: String,
    agent: Arc<Agent>,
    book: Arc<Book>,
    orders: mpsc::UnboundedSender<DiskOrder>,
    term: Option<TermFile>,
    channel: watch::Sender<Result<Channel, String>>,
    ready: watch::Sender<Verdict>,
}

impl Session {
    /// Starts the session; it ends with the process. The handle is for the CSI service. `ready` is good
    /// while a controller is there that has said all that this node should have.
    pub fn start(
        config: SessionConfig,
        agent: Arc<Agent>,
        disks: DiskLink,
        ready: watch::Sender<Verdict>,
    ) -> Result<AgentHandle, TermError> {
        let term = Some(TermFile::open(&config.state_dir)?);
        let book = agent.book();
        let (channel, rx) = watch::channel(Err(String::new()));
        let handle = AgentHandle::new(config.node.clone(), book.clone(), rx, config.token.clone());
        let DiskLink { orders, mut words } = disks;
        let for_words = book.clone();
        tokio::spawn(async move {
            while let Some(w) = words.recv().await {
                for_words.disk_word(w);
            }
        });
        let controller = String::new();
        tokio::spawn(Self { config, controller, agent, book, orders, term, channel, ready }.run());
        Ok(handle)
    }

    async fn run(mut self) {
        let mut backoff = Backoff::new(REDIAL.0, REDIAL.1);
        let mut last = String::new();
        let mut sent_on: Option<String> = None;
        for attempt in 0_usize.. {
            let n = self.config.controllers.len().max(1);
            let listed = self.config.controllers.get(attempt % n).cloned().unwrap_or_default();
            let was_sent = sent_on.is_some();
            self.controller = sent_on.take().unwrap_or(listed);
            let mut welcomed = false;
            let Err(e) = self.one(&mut welcomed).await;
            let why = chain(&e);
            // At once, and once: whoever is sent on from there as well begins again with the list.
            if let Some(leader) = leader(&self.controller, &e).filter(|_| !was_sent) {
                info!(controller = self.controller, leader, "sent on to the reigning controller");
                sent_on = Some(leader);
                continue;
            }
            if welcomed {
                backoff.reset();
            }
            // The same reason again and again is said once.
            if welcomed || why != last {
                warn!(controller = self.controller, error = why, "no session, will dial again");
            }
            last.clone_from(&why);
            drop(self.ready.send_replace(Err(format!("no session with a controller: {why}"))));
            drop(self.channel.send_replace(Err(why)));
            tokio::time::sleep(jittered(backoff.pause())).await;
        }
    }

    async fn one(&mut self, welcomed: &mut bool) -> Result<std::convert::Infallible, SessionError> {
        let channel = self.dial().await?;
        let mut client = NodeSessionClient::new(channel.clone());
        let (tx, rx) = mpsc::channel(8);
        let hello = proto::NodeMessage { message: Some(proto::node_message::Message::Hello(self.hello())) };
        tx.send(hello).await.map_err(|_| SessionError::Closed)?;
        let request = token::authorized(ReceiverStream::new(rx), self.config.token.as_deref())?;
        let mut inbound = timeout(client.session(request)).await??.into_inner();
        let first = timeout(inbound.message()).await??.ok_or(SessionError::Closed)?;
        let Some(proto::controller_message::Message::Welcome(w)) = first.message else {
            return Err(SessionError::NoWelcome);
        };
        self.obey(Term::new(w.term)).await?;
        if self.orders.send(DiskOrder::System(w.pool_system)).is_err() {
            tracing::error!("nobody takes goals for disks any more");
        }
        info!(controller = self.controller, term = w.term, version = w.version, "session");
        *welcomed = true;
        drop(self.channel.send_replace(Ok(channel)));
        let heartbeat =
            Duration::from_millis(u64::from(w.heartbeat_ms.clamp(HEARTBEAT_MS.0, HEARTBEAT_MS.1)));
        tokio::select! {
            e = self.read(&mut inbound) => Err(e),
            e = self.write(&tx) => Err(e),
            e = self.record(&tx) => Err(e),
            e = beat(&tx, heartbeat) => Err(e),
        }
    }

    async fn dial(&self) -> Result<Channel, SessionError> {
        let bad = |e| SessionError::Address(self.controller.clone(), e);
        let mut e = Endpoint::from_shared(self.controller.clone())
            .map_err(bad)?
            .connect_timeout(DIAL)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true);
        if let Some(tls) = &self.config.tls {
            e = e.tls_config(tls::settings(tls)?).map_err(bad)?;
        }
        e.connect().await.map_err(SessionError::Dial)
    }

    fn hello(&self) -> proto::Hello {
        let c = &self.config;
        proto::Hello {
            node: c.node.to_string(),
            boot_id: c.boot_id.clone(),
            plugin_version: env!("CARGO_PKG_VERSION").into(),
            storage_address: c.storage.ip().to_string(),
            storage_port: c.storage.port().into(),
            topology: c.topology.clone().into_iter().collect(),
            term_seen: self.term.as_ref().map_or(0, |t| t.seen().get()),
            features: c.features.clone(),
            max_volumes: c.max_volumes,
        }
    }

    /// Keeps a controller's term, or refuses it.
    async fn obey(&mut self, got: Term) -> Result<(), SessionError> {
        let mut file = match self.term.take() {
            Some(f) => f,
            // An attempt to keep it was cut off: what was kept is on disk.
            None => TermFile::open(&self.config.state_dir)?,
        };
        let seen = file.seen();
        if got < seen {
            self.term = Some(file);
            return Err(SessionError::OldTerm { got, seen });
        }
        let (file, kept) = tokio::task::spawn_blocking(move || {
            let kept = file.keep(got);
            (file, kept)
        })
        .await?;
        self.term = Some(file);
        Ok(kept?)
    }

    async fn read(&self, inbound: &mut Streaming<proto::ControllerMessage>) -> SessionError {
        loop {
            match inbound.message().await {
                Ok(Some(proto::ControllerMessage {
                    message: Some(proto::controller_message::Message::Goals(g)),
                })) => self.take(g),
                Ok(Some(proto::ControllerMessage {
                    message: Some(proto::controller_message::Message::Keep(k)),
                })) => {
                    if let Some(r) = &self.config.recorder {
                        r.keep(k);
                    }
                }
                Ok(Some(proto::ControllerMessage {
                    message: Some(proto::controller_message::Message::Ceilings(c)),
                })) => {
                    if let Some(l) = &self.config.limits {
                        l.bound(convert::ceilings(&c));
                    }
                }
                // A second welcome, or a message of a later version.
                Ok(Some(_)) => {}
                Ok(None) => return SessionError::Closed,
                Err(s) => return s.into(),
            }
        }
    }

    fn take(&self, g: proto::Goals) {
        if g.full {
            drop(self.ready.send_replace(Ok(())));
        }
        let mut goals = Goals { full: g.full, ..Goals::default() };
        for e in &g.exports {
            match convert::export_goal(e) {
                Ok(x) => goals.exports.push(x),
                Err(error) => warn!(volume = e.volume, disk = e.disk, %error, "export goal refused"),
            }
        }
        for a in &g.attachments {
            match convert::attachment_goal(a) {
                Ok(x) => {
                    if let Some(l) = &self.config.limits {
                        // What is taken down has none.
                        l.hear(x.volume, if x.builds() { convert::limits(a) } else { Limits::default() });
                    }
                    goals.attachments.push(x);
                }
                Err(error) => warn!(volume = a.volume, %error, "attachment goal refused"),
            }
        }
        // A goal that could not be read is not one that was not given.
        let all_read =
            goals.exports.len() == g.exports.len() && goals.attachments.len() == g.attachments.len();
        goals.full &= all_read;
        self.agent.apply(goals);
        if g.full {
            let wanted: BTreeSet<_> = g.wipes.iter().map(|w| (w.disk.clone(), w.wipe)).collect();
            self.book.forget_wipes(&wanted);
        }
        let disks = g.disks.into_iter().map(DiskOrder::Disk);
        let wipes = g.wipes.into_iter().map(DiskOrder::Wipe);
        let end = g.full.then_some(DiskOrder::FullGoalsEnd);
        for o in disks.chain(wipes).chain(end) {
            if self.orders.send(o).is_err() {
                tracing::error!("nobody takes goals for disks any more");
                return;
            }
        }
    }

    async fn write(&self, tx: &mpsc::Sender<proto::NodeMessage>) -> SessionError {
        let mut report = Some(self.book.full());
        loop {
            if let Some(r) = report {
                let m = proto::NodeMessage { message: Some(proto::node_message::Message::Report(r)) };
                if tx.send(m).await.is_err() {
                    return SessionError::Closed;
                }
            }
            self.book.news().await;
            report = self.book.delta();
        }
    }
}

impl Session {
    /// Sends what was recorded before, then what is recorded now. What a slow session misses is kept on the node.
    async fn record(&self, tx: &mpsc::Sender<proto::NodeMessage>) -> SessionError {
        let Some(recorder) = &self.config.recorder else { return std::future::pending().await };
        let mut news = recorder.listen();
        news.mark_unchanged();
        let mut next = recorder.histories();
        loop {
            for r in next {
                let m = proto::NodeMessage { message: Some(proto::node_message::Message::Recording(r)) };
                if tx.send(m).await.is_err() {
                    return SessionError::Closed;
                }
            }
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
            next = news.borrow_and_update().iter().map(|r| (**r).clone()).collect();
        }
    }
}

/// Where a controller that stands by says that the reigning one is, in the scheme in which it was dialled itself.
fn leader(dialled: &str, e: &SessionError) -> Option<String> {
    let SessionError::Status(s) = e else { return None };
    let address: SocketAddr = s.metadata().get(LEADER)?.to_str().ok()?.parse().ok()?;
    let (scheme, _) = dialled.split_once("://")?;
    Some(format!("{scheme}://{address}"))
}

async fn beat(tx: &mpsc::Sender<proto::NodeMessage>, every: Duration) -> SessionError {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for sequence in 0.. {
        ticks.tick().await;
        let beat = proto::Heartbeat { sequence };
        let m = proto::NodeMessage { message: Some(proto::node_message::Message::Heartbeat(beat)) };
        if tx.send(m).await.is_err() {
            break;
        }
    }
    SessionError::Closed
}

async fn timeout<T>(f: impl Future<Output = T>) -> Result<T, SessionError> {
    tokio::time::timeout(ANSWER, f).await.map_err(|_| SessionError::Silent)
}

/// Between half and all of a pause, so that a thousand nodes do not dial in step. Randomness: the standard
/// library's hash keys are drawn anew for each state.
fn jittered(d: Duration) -> Duration {
    let mut h = std::hash::RandomState::new().build_hasher();
    h.write_u8(0);
    d / 2 + d.mul_f64((h.finish() % 1024) as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_sends_on_to_an_address_and_to_nothing_else() {
        let says = |text: &str| {
            let mut s = tonic::Status::unavailable("stands by");
            s.metadata_mut().insert(LEADER, text.parse().unwrap());
            leader("https://weir.ns.svc:9500", &s.into())
        };
        assert_eq!(says("10.0.0.7:9500").as_deref(), Some("https://10.0.0.7:9500"));
        assert_eq!(says("[fd00::7]:9500").as_deref(), Some("https://[fd00::7]:9500"));
        assert_eq!(says("evil.example:1"), None);
        assert_eq!(leader("https://x:1", &tonic::Status::unavailable("").into()), None);
    }
}
