//! What happens next to a volume: looks at its record, at what has been reported and at who asks, and begins at most
//! one write. Called whenever any of these may have changed; called once too often it changes nothing.
//!
//! Must not know: how goals are told (`publish`), how volumes are made or grown (`grow`).

use pool::{
    access::{Access, AccessState, Event, Notice, Outcome, Refusal},
    ids::{NodeName, VolumeId},
    record::{Lifecycle, Retired, VolumeRecord, render_notice},
    volume::Run,
};

use super::{
    engine::{Engine, Timer},
    grow::Growth,
    nodes::Node,
    volume::{After, Pending, Queued, Request, Volume, Waiter, Want, answer},
};
use crate::{api::ApiError, fault::Cause};

/// The most requests that wait for one volume: more are somebody who does not wait for answers.
const QUEUE: usize = 16;

/// A step: what the record is to be, and for whom.
pub(super) struct Step {
    pub(super) next: VolumeRecord,
    pub(super) cause: Cause,
    pub(super) after: After,
}

/// What a request comes to for now.
enum Verdict {
    /// It stays in line.
    Wait(Queued),
    /// A record is to be written for it.
    Write(Box<Pending>),
    /// It has been answered, or waits for nodes.
    Done,
}

impl Engine {
    /// Puts a request about a volume in line.
    pub(super) fn ask(&mut self, id: VolumeId, request: Request) {
        let now = self.now.mono;
        let deadline = now + self.config.request_deadline;
        let Some(v) = self.volumes.get_mut(&id) else {
            request.fail(ApiError::NoVolume(id.to_string()));
            return;
        };
        v.queue.retain(|q| !q.request.is_abandoned());
        if v.queue.len() >= QUEUE {
            request.fail(ApiError::Busy(format!("volume {id} has {QUEUE} requests waiting already")));
            return;
        }
        if let Request::Detach { node, .. } = &request {
            overtake(v, id, node.as_ref());
        }
        v.queue.push_back(Queued { deadline, request });
        self.arm(deadline, Timer::Volume(id));
        self.advance(id);
    }

    /// Does what can be done about a volume now.
    pub(super) fn advance(&mut self, id: VolumeId) {
        self.vouch(id);
        while let Some(v) = self.volumes.get(&id)
            && v.pending.is_none()
        {
            let own = self.own_step(v).or_else(|| self.plan_end(id)).or_else(|| self.plan_move_step(id));
            if let Some(pending) = own {
                self.write_volume(id, pending);
                break;
            }
            if !self.serve_queue(id) {
                break;
            }
        }
        self.publish(id);
        self.note_mover(id);
        self.check_waiters(id);
    }

    /// What the record and the reports ask for by themselves.
    fn own_step(&self, v: &Volume) -> Option<Pending> {
        let held = v.live.attachments.iter().filter(|(_, a)| a.held);
        let held = held.map(|(n, a)| Event::HeldWrite { node: n.clone(), epoch: a.epoch });
        let busy = v.live.attachments.iter().filter(|(_, a)| a.busy);
        let busy = busy.map(|(n, a)| Event::SourceBusy { node: n.clone(), epoch: a.epoch });
        // Whoever never comes back has given it up.
        let holders = v.record.access.holders().into_iter();
        let gone = holders.filter(|n| self.is_forgotten(n)).map(|node| Event::Detach { node });
        let events = gone.chain(busy).chain(held).chain([Event::Review]);
        self.with_facts(v, |facts| {
            for e in events {
                if let Ok(Outcome::Changed(state, notices)) = v.record.access.on(&e, facts) {
                    return Some(self.step(v, state, &notices, After::Nothing).into());
                }
            }
            None
        })
    }

    /// The record after a transition of its access.
    pub(super) fn step(&self, v: &Volume, state: AccessState, notices: &[Notice], after: After) -> Step {
        let mut next = v.record.clone();
        let cause = cause_of(&v.record.access, &state, notices);
        next.access = state;
        if v.record.is_filling() {
            next = next.with_spare_settled();
        }
        for n in notices {
            let text = render_notice(n);
            tracing::info!(volume = %next.id, epoch = %next.access.epoch, "{text}");
            next.note(self.now.unix_ms, text);
        }
        Step { next, cause, after }
    }

    /// What is next on a volume's way out: retire its extents, strike off what is wiped, erase the record.
    fn plan_end(&mut self, id: VolumeId) -> Option<Pending> {
        let v = self.volumes.get(&id)?;
        let out = match v.record.lifecycle {
            Lifecycle::Active => false,
            Lifecycle::Deleting => v.record.access.is_idle() && v.version.is_some(),
        };
        if !out {
            return self.strike_wiped(v);
        }
        if !v.record.map.0.is_empty() {
            let record = v.record.clone();
            let retire: Vec<Run> = record.map.runs().collect();
            let mut next = record.retire_all(|| self.draw_wipe());
            next.note(self.now.unix_ms, "nobody uses it any more: its extents are being wiped");
            return Some(Pending {
                retire,
                ..Step { next, cause: Cause::Retire, after: After::Nothing }.into()
            });
        }
        if v.record.is_spent() {
            return Some(Pending {
                next: None,
                cause: Cause::Erase,
                after: After::Nothing,
                reserved: vec![],
                retire: vec![],
                release: vec![],
            });
        }
        self.strike_wiped(v)
    }

    /// The record without what is wiped.
    fn strike_wiped(&self, v: &Volume) -> Option<Pending> {
        let is_done = |r: &Retired| v.live.wiped.contains(&(r.disk, r.wipe)) || self.is_out(r.disk);
        if !v.record.retired.iter().any(is_done) {
            return None;
        }
        let mut next = v.record.clone();
        let (done, rest): (Vec<_>, Vec<_>) = next.retired.drain(..).partition(is_done);
        next.retired = rest;
        let release = done.iter().flat_map(|r| r.runs()).collect();
        Some(Pending { release, ..Step { next, cause: Cause::Wiped, after: After::Nothing }.into() })
    }

    /// Serves requests in line until one needs a write. `false` when nothing more can be done now.
    fn serve_queue(&mut self, id: VolumeId) -> bool {
        let Some(v) = self.volumes.get_mut(&id) else { return false };
        let line = std::mem::take(&mut v.queue);
        let (mut waiting, mut write) = (std::collections::VecDeque::new(), None);
        for q in line {
            if write.is_some() {
                waiting.push_back(q);
                continue;
            }
            if q.request.is_abandoned() {
                continue;
            }
            match self.serve(id, q) {
                Verdict::Wait(q) => waiting.push_back(q),
                Verdict::Write(p) => write = Some(p),
                Verdict::Done => {}
            }
        }
        let Some(v) = self.volumes.get_mut(&id) else { return false };
        v.queue = waiting;
        if let Some(p) = write {
            self.write_volume(id, *p);
        }
        false
    }

    fn serve(&mut self, id: VolumeId, q: Queued) -> Verdict {
        match &q.request {
            Request::Attach { .. } => self.serve_attach(id, q),
            Request::Detach { .. } => self.serve_detach(id, q),
            Request::Delete { .. } => self.serve_delete(id, q),
            Request::Expand { required, limit, .. } => {
                let (required, limit) = (*required, *limit);
                match self.plan_expand(id, required, limit) {
                    Ok(Growth::Record(next, reserved)) => {
                        let after = After::Request(q);
                        let step = Step { next: *next, cause: Cause::Expand, after };
                        Verdict::Write(Box::new(Pending { reserved, ..step.into() }))
                    }
                    Ok(Growth::AfterMove) => match self.called_off(id) {
                        Some(step) => {
                            let (cause, after) = (Cause::Expand, After::Again(q));
                            Verdict::Write(Box::new(Pending { cause, after, ..step }))
                        }
                        None => Verdict::Wait(q),
                    },
                    Ok(Growth::None) => {
                        self.after_durable(id, After::Request(q));
                        Verdict::Done
                    }
                    Err(e) => {
                        q.request.fail(e);
                        Verdict::Done
                    }
                }
            }
            Request::Modify { limits, .. } => match self.plan_modify(id, *limits) {
                Ok(Some(next)) => {
                    let after = After::Request(q);
                    Verdict::Write(Box::new(Step { next, cause: Cause::Modify, after }.into()))
                }
                Ok(None) => {
                    self.after_durable(id, After::Request(q));
                    Verdict::Done
                }
                Err(e) => {
                    q.request.fail(e);
                    Verdict::Done
                }
            },
        }
    }

    fn serve_attach(&mut self, id: VolumeId, q: Queued) -> Verdict {
        let Request::Attach { arrival, mode, .. } = &q.request else { return Verdict::Wait(q) };
        let (node, mode) = (arrival.node.clone(), *mode);
        let Some(v) = self.volumes.get(&id) else { return Verdict::Done };
        if v.record.lifecycle == Lifecycle::Deleting {
            q.request.fail(ApiError::NoVolume(format!("{id} (it is being deleted)")));
            return Verdict::Done;
        }
        // Forgotten while it waited.
        if !self.nodes.get(&node).is_some_and(Node::is_known) {
            q.request.fail(ApiError::NoNode(node.to_string()));
            return Verdict::Done;
        }
        if let Some(stranger) = arrival.stranger(&v.record.access.users()) {
            let why = format!(
                "volume {id}: node {stranger} has taken it while it was looked up whether {node} may have it: ask again"
            );
            q.request.fail(ApiError::Busy(why));
            return Verdict::Done;
        }
        let event = Event::Attach { node, mode };
        let outcome = self.with_facts(v, |facts| v.record.access.on(&event, facts));
        match outcome {
            Ok(Outcome::Changed(state, notices)) => {
                Verdict::Write(Box::new(self.step(v, state, &notices, After::Request(q)).into()))
            }
            Ok(Outcome::Unchanged) => {
                self.after_durable(id, After::Request(q));
                Verdict::Done
            }
            Err(Refusal::StillLeaving { node }) if self.now.mono < q.deadline => {
                tracing::debug!(volume = %id, k8s_node = %node, "attach waits for the former access to go");
                Verdict::Wait(q)
            }
            Err(r) => {
                q.request.fail(refused(id, &r));
                Verdict::Done
            }
        }
    }

    fn serve_detach(&mut self, id: VolumeId, q: Queued) -> Verdict {
        let Request::Detach { node, .. } = &q.request else { return Verdict::Wait(q) };
        let Some(v) = self.volumes.get(&id) else { return Verdict::Done };
        let nodes = match node {
            Some(n) => vec![n.clone()],
            None => v.record.access.holders(),
        };
        let (state, notices) = self.with_facts(v, |facts| {
            let (mut state, mut all) = (v.record.access.clone(), vec![]);
            for node in nodes {
                if let Ok(Outcome::Changed(next, notices)) = state.on(&Event::Detach { node }, facts) {
                    state = next;
                    all.extend(notices);
                }
            }
            (state, all)
        });
        if state == v.record.access {
            self.after_durable(id, After::Request(q));
            return Verdict::Done;
        }
        Verdict::Write(Box::new(self.step(v, state, &notices, After::Request(q)).into()))
    }

    fn serve_delete(&mut self, id: VolumeId, q: Queued) -> Verdict {
        let Some(v) = self.volumes.get(&id) else { return Verdict::Done };
        if v.record.lifecycle == Lifecycle::Deleting {
            self.after_durable(id, After::Request(q));
            return Verdict::Done;
        }
        let users = v.record.access.users();
        let (alive, dead): (Vec<_>, Vec<_>) = users.into_iter().partition(|n| self.alive(n));
        if !alive.is_empty() {
            let e = format!("volume {id} is in use on {}: detach it there first", names(&alive));
            q.request.fail(ApiError::Precondition(e));
            return Verdict::Done;
        }
        // The dead cannot give it up, and are shut out as if somebody else wanted it: whoever deletes a volume has seen that nobody
        // is to use it. Its extents wait for them.
        let state = self.without(v, v.record.access.upkeeper().into_iter().chain(&dead));
        let mut next = self.step(v, state, &[], After::Nothing).next;
        if !dead.is_empty() {
            let text = format!("given up for {}, which is not heard of", names(&dead));
            tracing::warn!(volume = %id, "{text}");
            next.note(self.now.unix_ms, text);
        }
        next.lifecycle = Lifecycle::Deleting;
        next.note(self.now.unix_ms, "deletion began");
        tracing::info!(volume = %id, "deletion began");
        Verdict::Write(Box::new(Step { next, cause: Cause::Delete, after: After::Request(q) }.into()))
    }

    /// Who has access to a volume once these nodes have given it up.
    fn without<'a>(&self, v: &Volume, nodes: impl Iterator<Item = &'a NodeName>) -> AccessState {
        self.with_facts(v, |facts| {
            nodes.fold(v.record.access.clone(), |state, node| {
                match state.on(&Event::Detach { node: node.clone() }, facts) {
                    Ok(Outcome::Changed(next, _)) => next,
                    Ok(Outcome::Unchanged) | Err(_) => state,
                }
            })
        })
    }

    /// Goes on with a request whose decision is durable.
    pub(super) fn after_durable(&mut self, id: VolumeId, after: After) {
        let (now, resize) = (self.now.mono, self.config.resize_wait);
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let Queued { deadline, request } = match after {
            After::Nothing => return,
            After::Created(reply) => {
                let info = self.info(id).ok_or_else(|| ApiError::NoVolume(id.to_string()));
                answer(reply, info);
                return;
            }
            After::Again(q) => {
                v.queue.push_front(q);
                return;
            }
            After::Request(q) => q,
        };
        let waiter = match request {
            Request::Attach { arrival, wait: true, reply, .. } => {
                Waiter { deadline, want: Want::Attached { node: arrival.node, reply } }
            }
            Request::Attach { reply, .. } => {
                answer(reply, Ok(attached(&v.record)));
                return;
            }
            Request::Detach { node, wait: true, reply } => {
                let nodes = node.map_or_else(|| v.leavers().into_iter().collect(), |n| vec![n]);
                Waiter { deadline, want: Want::Gone { nodes, reply } }
            }
            Request::Detach { reply, .. } | Request::Delete { reply } | Request::Modify { reply, .. } => {
                answer(reply, Ok(()));
                return;
            }
            Request::Expand { reply, .. } => {
                Waiter { deadline: now + resize, want: Want::Resized { size: v.record.size(), reply } }
            }
        };
        let at = waiter.deadline;
        v.live.waiters.push(waiter);
        self.arm(at, Timer::Volume(id));
        self.check_waiters(id);
    }
}

/// Answers what waits for `node` to get the volume: it is about to be taken away.
fn overtake(v: &mut Volume, id: VolumeId, node: Option<&NodeName>) {
    let theirs = |n: &NodeName| node.is_none_or(|d| d == n);
    let why = |n: &NodeName| ApiError::Busy(format!("volume {id} is being detached from {n}"));
    let mut rest = std::collections::VecDeque::new();
    for q in std::mem::take(&mut v.queue) {
        match &q.request {
            Request::Attach { arrival, .. } if theirs(&arrival.node) => {
                let e = why(&arrival.node);
                q.request.fail(e);
            }
            Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Delete { .. }
            | Request::Expand { .. }
            | Request::Modify { .. } => {
                rest.push_back(q);
            }
        }
    }
    v.queue = rest;
    for w in std::mem::take(&mut v.live.waiters) {
        match w.want {
            Want::Attached { node: n, reply } if theirs(&n) => answer(reply, Err(why(&n))),
            want => v.live.waiters.push(Waiter { want, ..w }),
        }
    }
}

impl From<Step> for Pending {
    fn from(s: Step) -> Self {
        Pending {
            next: Some(Box::new(s.next)),
            cause: s.cause,
            after: s.after,
            reserved: vec![],
            retire: vec![],
            release: vec![],
        }
    }
}

/// What holders are told about an attachment that is on record.
pub(super) fn attached(r: &VolumeRecord) -> crate::api::Attached {
    let fs_type = r.params.fs_type.map(|f| f.as_str().to_owned()).unwrap_or_default();
    crate::api::Attached { epoch: r.access.epoch, size: r.size(), fs_type }
}

pub(super) fn names(nodes: &[NodeName]) -> String {
    nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

fn refused(id: VolumeId, r: &Refusal) -> ApiError {
    let text = format!("volume {id}: {r}");
    match r {
        Refusal::InUse { .. } => ApiError::Precondition(text),
        Refusal::OtherMode { .. } => ApiError::Incompatible(text),
        Refusal::StillLeaving { .. } => ApiError::Unfinished(text),
    }
}

/// What a transition is for, by name.
fn cause_of(old: &AccessState, new: &AccessState, notices: &[Notice]) -> Cause {
    let noticed = notices.iter().find_map(|n| match n {
        Notice::Migrated { .. } => Some(Cause::Commit),
        Notice::MigrationStarted { .. } => Some(Cause::Guard),
        Notice::CutOverStarted { .. } => Some(Cause::CutOver),
        Notice::MigrationAborted { .. } | Notice::Conflict { .. } => Some(Cause::Abort),
        Notice::Evicted(_) => Some(Cause::Evict),
        Notice::Detached(_) => Some(Cause::Detach),
        Notice::Attached(_) => None,
    });
    match (noticed, &old.access, &new.access) {
        (Some(c), _, _) => c,
        (None, Access::Granting { .. }, Access::Attached { .. }) => Cause::Grant,
        (None, Access::CuttingOver { .. }, Access::CuttingOver { .. }) if old.epoch != new.epoch => {
            Cause::CutOverLeft
        }
        (None, _, _) if old.epoch == new.epoch => Cause::Left,
        (None, _, _) => Cause::Attach,
    }
}
