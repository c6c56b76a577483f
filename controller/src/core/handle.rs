//! The way to the core from outside: [`Handle`] for requests, [`Session`] for what a node says. Both send commands to
//! the owner task. Must not know: what the core does with them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use forecast::Strength;
use pool::{
    access::Mode,
    ids::{DiskId, NodeName, PoolName, Term, VolumeId},
    layout::{Sharing, params::Limits},
    planner::Proposal,
    units::Bytes,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    drains::DrainProgress,
    engine::Engine,
    facts::{DiskToPlan, Planning, VolumeToPlan, Wanted},
    measures::{Measures, Tally},
    nodes::Node,
    operate::{DiskLine, VolumeDetail, VolumeLine},
    query::unfit,
    report::{Fleet, VolumeReport},
    seen::{Hello, Report},
    told::{Close, Outbox},
    volume::{Arrival, Beside, Reply, Request, answer},
};
use crate::{
    admission::{Admission, Denied, Everybody, Newcomer},
    api::{
        Api, ApiError, Attached, Capability, Capacity, CreateVolume, DrainRow, NodeRow, Parting, Segments,
        Survey, Target, VolumeInfo, VolumePage,
    },
    flow::{DiskFacts, Flow, SetOffer},
    store::Reign,
};

/// A question to the owner task.
type Question = Box<dyn FnOnce(&Engine) + Send>;

/// What the owner task is asked to do.
pub(super) enum Command {
    Create { request: Box<CreateVolume>, reply: Reply<VolumeInfo> },
    Delete { id: VolumeId, reply: Reply<()> },
    Expand { id: VolumeId, required: Bytes, limit: Option<Bytes>, reply: Reply<VolumeInfo> },
    Modify { id: VolumeId, limits: Limits, reply: Reply<()> },
    Attach { id: VolumeId, arrival: Arrival, capability: Capability, wait: bool, reply: Reply<Attached> },
    Detach { id: VolumeId, node: Option<NodeName>, wait: bool, reply: Reply<()> },
    Part { target: Target, forget: bool, reply: Reply<Parting> },
    Drain { target: Target, undo: bool, dry_run: bool, reply: Reply<Vec<DrainRow>> },
    Propose { all: Vec<Proposal>, reply: Reply<Vec<(VolumeId, String)>> },
    Ask(Question),
    Open { hello: Box<Hello>, out: Arc<Outbox>, reply: oneshot::Sender<Result<u64, OpenError>> },
    Heard { node: NodeName, session: u64, report: Option<Box<Report>> },
    Closed { node: NodeName, session: u64 },
    Offers(Vec<SetOffer>),
    Strengths(BTreeMap<PoolName, Strength>),
}

impl Engine {
    /// Does what is asked.
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Create { request, reply } => self.create(*request, reply),
            Command::Delete { id, reply } => {
                if self.volumes.contains_key(&id) {
                    self.ask(id, Request::Delete { reply });
                } else {
                    answer(reply, Ok(()));
                }
            }
            Command::Expand { id, required, limit, reply } => {
                self.ask(id, Request::Expand { required, limit, reply });
            }
            Command::Modify { id, limits, reply } => self.ask(id, Request::Modify { limits, reply }),
            Command::Attach { id, arrival, capability, wait, reply } => {
                self.attach(id, arrival, &capability, wait, reply);
            }
            Command::Detach { id, node, wait, reply } => {
                // A volume that does not exist is attached nowhere.
                if self.volumes.contains_key(&id) {
                    self.ask(id, Request::Detach { node, wait, reply });
                } else {
                    answer(reply, Ok(()));
                }
            }
            Command::Part { target, forget, reply } => answer(reply, self.part(&target, forget)),
            Command::Drain { target, undo, dry_run, reply } => {
                self.drain(&target, undo, dry_run, reply);
            }
            Command::Propose { all, reply } => self.take_proposals(&all, reply),
            Command::Ask(question) => question(self),
            Command::Open { hello, out, reply } => {
                let (node, opened) = (hello.node.clone(), self.open_session(*hello, out));
                if let Err(Ok(session)) = reply.send(opened) {
                    self.close_session(&node, session);
                }
            }
            Command::Heard { node, session, report } => {
                if !self.is_current(&node, session) {
                    return;
                }
                self.heard(&node);
                if let Some(report) = report {
                    self.on_report(&node, *report);
                }
            }
            Command::Closed { node, session } => self.close_session(&node, session),
            Command::Offers(offers) => self.set_offers(offers),
            Command::Strengths(strengths) => self.set_strengths(strengths),
        }
    }

    fn attach(&mut self, id: VolumeId, arrival: Arrival, c: &Capability, wait: bool, reply: Reply<Attached>) {
        let Some(v) = self.volumes.get(&id) else {
            answer(reply, Err(ApiError::NoVolume(id.to_string())));
            return;
        };
        if !self.nodes.get(&arrival.node).is_some_and(Node::is_known) {
            answer(reply, Err(ApiError::NoNode(arrival.node.to_string())));
            return;
        }
        if let Some(why) = unfit(&v.record, c) {
            answer(reply, Err(ApiError::Invalid(format!("volume {id}: {why}"))));
            return;
        }
        let mode: Mode = c.mode;
        self.ask(id, Request::Attach { arrival, mode, wait, reply });
    }

    /// Who holds a volume of which a second node has to be judged; `None`: whoever is in order for the record may come.
    fn judged(&self, volume: VolumeId, node: NodeName) -> Option<Newcomer> {
        let r = &self.volumes.get(&volume)?.record;
        match r.params.sharing {
            Sharing::Migrate => {
                let (holders, dead) = r.access.users().into_iter().partition(|n| self.alive(n));
                Some(Newcomer { volume, name: r.name.clone(), node, holders, dead })
            }
            Sharing::MultiWriter => None,
        }
    }

    /// Ends every session: the controller stops.
    pub(super) fn close_sessions(&mut self) {
        for n in self.nodes.values_mut() {
            n.close(Close::Stopping);
        }
    }
}

/// Why a node gets no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The node has obeyed a younger controller.
    #[error(
        "node {node} has obeyed a controller of term {seen}; this one is of term {own} and must not command it"
    )]
    Outdated {
        /// The node.
        node: NodeName,
        /// What it has seen.
        seen: Term,
        /// This controller's.
        own: Term,
    },
    /// The node is forgotten.
    #[error(
        "node {node} is forgotten: what its kernel still has of volumes would come back to life beside them; boot it, and it may take \
         part again"
    )]
    Forgotten {
        /// The node.
        node: NodeName,
    },
    /// The node was forgotten and is booted; that is being written.
    #[error("node {node} was forgotten and is taken in again: try in a moment")]
    Returning {
        /// The node.
        node: NodeName,
    },
    /// The controller stops.
    #[error("the controller is stopping")]
    Stopping,
}

/// The way to the core. Cheap to clone; the core ends when the last one is dropped.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    reign: Reign,
    measures: Measures,
    flow: Arc<Flow>,
    heartbeat: Duration,
    lease: Duration,
    admission: Arc<dyn Admission>,
}

fn stopping() -> ApiError {
    ApiError::Unavailable("the controller is stopping".to_owned())
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        reign: Reign,
        measures: Measures,
        heartbeat: Duration,
        lease: Duration,
    ) -> Self {
        let admission = Arc::new(Everybody);
        Self { commands, reign, measures, flow: Arc::default(), heartbeat, lease, admission }
    }

    /// Asks `admission` before a second node gets a volume whose sharing is for migrations.
    pub fn with_admission(self, admission: Arc<dyn Admission>) -> Self {
        Self { admission, ..self }
    }

    /// Whether a node may have a volume beside those that hold it: that, and beside whom.
    async fn admit(&self, id: VolumeId, node: NodeName, mode: Mode) -> Result<Arrival, ApiError> {
        if !mode.multi_node || mode.read_only {
            return Ok(Arrival { node, beside: Beside::Anybody });
        }
        let asked = node.clone();
        let Some(newcomer) = self.question(move |e| e.judged(id, asked)).await? else {
            return Ok(Arrival { node, beside: Beside::Anybody });
        };
        let known: Vec<_> = newcomer.holders.iter().chain(&newcomer.dead).cloned().collect();
        if !known.is_empty() && !known.contains(&node) {
            self.admission.admit(&newcomer).await.map_err(|e| match e {
                Denied::Refused(why) => ApiError::Precondition(format!("volume {id}: {why}")),
                Denied::Unknown(_) => ApiError::Unavailable(format!("volume {id}: {e}")),
            })?;
        }
        Ok(Arrival { node, beside: Beside::Only(known) })
    }

    /// This controller's reign.
    pub fn term(&self) -> Term {
        self.reign.term
    }

    /// The identity of the system whose records it keeps.
    pub fn system(&self) -> uuid::Uuid {
        self.reign.system
    }

    /// What has been measured since the start; lives on as it grows.
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    /// What nodes have recorded, and what follows from it.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// What is so of at most `max` disks, by id, after the one given.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn disk_facts(&self, after: Option<DiskId>, max: usize) -> Result<Vec<DiskFacts>, ApiError> {
        self.question(move |e| e.disk_facts(after, max)).await
    }

    /// By what rules moves are planned.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn planning(&self) -> Result<Planning, ApiError> {
        self.question(Engine::planning).await
    }

    /// Looks at `max` disks after the one given, for planners; with the last one looked at.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn disks_to_plan(
        &self,
        after: Option<DiskId>,
        max: usize,
    ) -> Result<(Vec<DiskToPlan>, Option<DiskId>), ApiError> {
        self.question(move |e| e.disks_to_plan(after, max)).await
    }

    /// Looks at `max` volumes after the one given for those that planners want; with the last one looked at.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn volumes_to_plan(
        &self,
        after: Option<VolumeId>,
        max: usize,
        wanted: Arc<Wanted>,
    ) -> Result<(Vec<VolumeToPlan>, Option<VolumeId>), ApiError> {
        self.question(move |e| e.volumes_to_plan(after, max, &wanted)).await
    }

    /// A page of disks, by id.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn disk_lines(&self, after: Option<DiskId>, max: usize) -> Result<Vec<DiskLine>, ApiError> {
        self.question(move |e| e.disk_lines(after, max)).await
    }

    /// The disk that a person means: an id, how one begins, or NODE:PATH.
    ///
    /// # Errors
    /// None or several, or the controller is stopping.
    pub async fn find_disk(&self, text: String) -> Result<DiskLine, ApiError> {
        self.question(move |e| e.find_disk(&text)).await?
    }

    /// A page of volumes, by id.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn volume_lines(
        &self,
        after: Option<VolumeId>,
        max: usize,
    ) -> Result<Vec<VolumeLine>, ApiError> {
        self.question(move |e| e.volume_lines(after, max)).await
    }

    /// The volume that a person means: its name, its id, or how that begins.
    ///
    /// # Errors
    /// None or several, or the controller is stopping.
    pub async fn find_volume(&self, text: String) -> Result<VolumeId, ApiError> {
        self.question(move |e| e.find_volume(&text)).await?
    }

    /// The same with all that is known of it.
    ///
    /// # Errors
    /// As for [`Handle::find_volume`].
    pub async fn volume_detail(&self, text: String) -> Result<VolumeDetail, ApiError> {
        self.question(move |e| e.volume_detail(&text)).await?
    }

    /// Every node.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn node_rows(&self) -> Result<Vec<NodeRow>, ApiError> {
        self.question(Engine::node_rows).await
    }

    /// The nodes that have ever reported.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn known_nodes(&self) -> Result<std::collections::BTreeSet<NodeName>, ApiError> {
        self.question(Engine::known_nodes).await
    }

    /// The node or the disk that a person means.
    ///
    /// # Errors
    /// None or several, or the controller is stopping.
    pub async fn find_target(&self, text: String) -> Result<Target, ApiError> {
        self.question(move |e| e.find_target(&text)).await?
    }

    /// Has a disk released, or (`forget`) a disk or a node forgotten; says what is left of it on record.
    ///
    /// # Errors
    /// It may not leave yet: with what to do. Or the controller is stopping.
    pub async fn part(&self, target: Target, forget: bool) -> Result<Parting, ApiError> {
        self.request(|reply| Command::Part { target, forget, reply }).await
    }

    /// How the emptying of a disk or a node goes, be it asked for or not.
    ///
    /// # Errors
    /// There is no such thing, or the controller is stopping.
    pub async fn drain_progress(&self, target: Target) -> Result<DrainProgress, ApiError> {
        self.question(move |e| e.drain_progress(&target)).await?
    }

    /// Has moves begun that are worth while; gives those that may not begin now, and why.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn propose(&self, all: Vec<Proposal>) -> Result<Vec<(VolumeId, String)>, ApiError> {
        self.request(|reply| Command::Propose { all, reply }).await
    }

    /// Hands in what disks can lend.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn set_offers(&self, offers: Vec<SetOffer>) -> Result<(), ApiError> {
        self.commands.send(Command::Offers(offers)).await.map_err(|_| stopping())
    }

    /// Hands in what a usual disk of each pool can do.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn set_strengths(&self, strengths: BTreeMap<PoolName, Strength>) -> Result<(), ApiError> {
        self.commands.send(Command::Strengths(strengths)).await.map_err(|_| stopping())
    }

    /// How things stand, in numbers.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn tally(&self) -> Result<Tally, ApiError> {
        self.question(Engine::tally).await
    }

    /// Why there is no room for a volume of this size; `None` when there is.
    ///
    /// # Errors
    /// The parameters are no good, or the core has ended.
    pub async fn no_room(
        &self,
        parameters: BTreeMap<String, String>,
        size: Bytes,
    ) -> Result<Option<String>, ApiError> {
        self.question(move |e| e.no_room(parameters, size)).await?
    }

    /// A volume, for people; `None` when there is none.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn volume_report(&self, id: VolumeId) -> Result<Option<VolumeReport>, ApiError> {
        self.question(move |e| e.volume_report(id)).await
    }

    /// All disks and nodes, for people.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn fleet(&self) -> Result<Fleet, ApiError> {
        self.question(Engine::fleet).await
    }

    /// Volumes that have to do with a node.
    ///
    /// # Errors
    /// The controller is stopping.
    pub async fn volumes_at(&self, node: NodeName) -> Result<Vec<VolumeId>, ApiError> {
        self.question(move |e| e.volumes_at(&node)).await
    }

    /// How often a node has to say something.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// For how long a node may be silent.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    async fn request<T>(&self, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(make(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    async fn question<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.request(|reply| Command::Ask(Box::new(move |e| answer(reply, Ok(f(e)))))).await
    }

    /// Opens a session for a node whose identity the caller has checked.
    pub async fn open(&self, hello: Hello) -> Result<Session, OpenError> {
        let node = hello.node.clone();
        if hello.term_seen > self.term() {
            let e = OpenError::Outdated { node, seen: hello.term_seen, own: self.term() };
            tracing::error!(error = %e, "another controller commands this node");
            return Err(e);
        }
        let out = Arc::new(Outbox::default());
        let (reply, id) = oneshot::channel();
        let open = Command::Open { hello: Box::new(hello), out: out.clone(), reply };
        self.commands.send(open).await.map_err(|_| OpenError::Stopping)?;
        let id = id.await.map_err(|_| OpenError::Stopping)??;
        Ok(Session { commands: self.commands.clone(), node, id, out })
    }
}

/// A node's session with the core. Dropping it ends it.
pub struct Session {
    commands: mpsc::Sender<Command>,
    node: NodeName,
    id: u64,
    out: Arc<Outbox>,
}

impl Session {
    /// Whose it is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Where the node's goals come out.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.out.clone()
    }

    /// Hands in what the node said: a report, or a sign of life.
    pub async fn heard(&self, report: Option<Report>) -> Result<(), OpenError> {
        let heard =
            Command::Heard { node: self.node.clone(), session: self.id, report: report.map(Box::new) };
        self.commands.send(heard).await.map_err(|_| OpenError::Stopping)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let closed = Command::Closed { node: self.node.clone(), session: self.id };
        // When the core is busy the news can wait: the next session of the node replaces this one anyway.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(closed) {
            tracing::debug!(k8s_node = %self.node, "the end of a session was not noted");
        }
    }
}

#[async_trait::async_trait]
impl Api for Handle {
    async fn create_volume(&self, request: CreateVolume) -> Result<VolumeInfo, ApiError> {
        self.request(|reply| Command::Create { request: Box::new(request), reply }).await
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<(), ApiError> {
        self.request(|reply| Command::Delete { id, reply }).await
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeInfo, ApiError> {
        self.question(move |e| e.one(id)).await?
    }

    async fn volumes(&self, max: usize, token: &str) -> Result<VolumePage, ApiError> {
        let token = token.to_owned();
        self.question(move |e| e.page(max, &token)).await?
    }

    async fn capacity(
        &self,
        parameters: BTreeMap<String, String>,
        at: Option<Segments>,
    ) -> Result<Capacity, ApiError> {
        self.question(move |e| e.capacity(parameters, at)).await?
    }

    async fn validate(
        &self,
        id: VolumeId,
        capabilities: Vec<Capability>,
        parameters: BTreeMap<String, String>,
    ) -> Result<Option<String>, ApiError> {
        self.question(move |e| e.validate(id, &capabilities, parameters)).await?
    }

    async fn expand(
        &self,
        id: VolumeId,
        required: Bytes,
        limit: Option<Bytes>,
    ) -> Result<VolumeInfo, ApiError> {
        self.request(|reply| Command::Expand { id, required, limit, reply }).await
    }

    async fn modify(&self, id: VolumeId, parameters: BTreeMap<String, String>) -> Result<(), ApiError> {
        let limits = Limits::parse(parameters).map_err(|e| ApiError::Invalid(format!("volume {id}: {e}")))?;
        self.request(|reply| Command::Modify { id, limits, reply }).await
    }

    async fn attach(
        &self,
        id: VolumeId,
        node: NodeName,
        capability: Capability,
        wait: bool,
    ) -> Result<Attached, ApiError> {
        let arrival = self.admit(id, node, capability.mode).await?;
        self.request(|reply| Command::Attach { id, arrival, capability, wait, reply }).await
    }

    async fn detach(&self, id: VolumeId, node: Option<NodeName>, wait: bool) -> Result<(), ApiError> {
        self.request(|reply| Command::Detach { id, node, wait, reply }).await
    }

    async fn ready(&self) -> Result<(), String> {
        self.question(|_| ()).await.map_err(|e| e.to_string())
    }

    async fn drain(&self, target: Target, undo: bool, dry_run: bool) -> Result<Vec<DrainRow>, ApiError> {
        self.request(|reply| Command::Drain { target, undo, dry_run, reply }).await
    }

    async fn survey(&self) -> Survey {
        match self.question(Engine::survey).await {
            Ok(s) => s,
            Err(e) => {
                tracing::warn!(error = %e, "no survey");
                Survey { term: self.term().get(), ..Survey::default() }
            }
        }
    }
}
