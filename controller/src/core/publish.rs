//! From a volume's record to what nodes are told, and from what they report to the requests that wait for it.
//! Invariants: goals follow from the durable record and from confirmations alone. Must not know: transitions.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    goals::{ExportState, Role, View, plan_goals},
    ids::{NodeName, VolumeId},
};

use super::{
    engine::{Engine, Timer},
    steps::{attached, names},
    told::{Goal, GoalKey, Remote},
    volume::{Volume, Waiter, Want, answer},
};
use crate::{api::ApiError, fault::Cause};

type Told = BTreeMap<(NodeName, GoalKey), Goal>;

impl Engine {
    /// Tells nodes what a volume's record asks of them.
    pub(super) fn publish(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get(&id) else { return };
        if v.version.is_none() || (!v.is_active() && v.live.goals.is_empty() && v.live.nodes.is_empty()) {
            return;
        }
        self.time_leavers(id);
        let told = self.plan_told(id);
        let involved = self.involved(id);
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let keys: BTreeSet<_> = told.keys().cloned().collect();
        let old = std::mem::replace(&mut v.live.goals, keys);
        let before = std::mem::replace(&mut v.live.nodes, involved.clone());
        if v.record.access.is_idle() {
            // Nothing of it stands anywhere, so there is nothing left to know.
            v.live.attachments.clear();
            v.live.exports.clear();
            v.live.confirmed = pool::access::Confirmations::default();
        }
        for (node, key) in old.iter().filter(|k| !told.contains_key(*k)) {
            self.node_mut(node).untell(key);
        }
        for n in before.difference(&involved) {
            self.node_mut(n).volumes.remove(&id);
        }
        for n in involved.difference(&before) {
            self.node_mut(n).volumes.insert(id);
        }
        for ((node, key), goal) in told {
            self.node_mut(&node).tell(key, goal);
        }
    }

    /// Takes back everything that nodes were told about a volume that is no more.
    pub(super) fn unpublish(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let (goals, nodes) = (std::mem::take(&mut v.live.goals), std::mem::take(&mut v.live.nodes));
        for (node, key) in goals {
            self.node_mut(&node).untell(&key);
        }
        for n in nodes {
            self.node_mut(&n).volumes.remove(&id);
        }
    }

    /// Everyone whose coming or going matters to the volume.
    fn involved(&self, id: VolumeId) -> BTreeSet<NodeName> {
        let Some(v) = self.volumes.get(&id).filter(|v| v.is_active()) else { return BTreeSet::new() };
        let mut out: BTreeSet<NodeName> = self.hosts(&v.record.disks()).into_values().collect();
        out.extend(v.record.access.holders());
        out.extend(v.leavers());
        out
    }

    /// Starts the clock of leavers that are new, and drops that of those who are gone.
    fn time_leavers(&mut self, id: VolumeId) {
        let (now, patience) = (self.now.mono, self.config.patience);
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let leavers = v.leavers();
        v.live.leaving.retain(|n, _| leavers.contains(n));
        let mut new = false;
        for n in leavers {
            v.live.leaving.entry(n).or_insert_with(|| {
                new = true;
                now
            });
        }
        if new {
            self.arm(now + patience, Timer::Volume(id));
        }
    }

    fn patient(&self, v: &Volume, node: &NodeName) -> bool {
        let since = v.live.leaving.get(node).copied().unwrap_or(self.now.mono);
        self.alive(node) && self.now.mono < since + self.config.patience
    }

    fn plan_told(&mut self, id: VolumeId) -> Told {
        let Some(v) = self.volumes.get_mut(&id) else { return Told::new() };
        let map = v.told_map();
        let Some(v) = self.volumes.get(&id) else { return Told::new() };
        let disks = self.hosts(&v.record.disks());
        let goals = plan_goals(&View {
            access: &v.record.access,
            map: &v.record.map,
            retired: &v.record.retired,
            disks: &disks,
            confirmed: &v.live.confirmed,
            patient: &|n| self.patient(v, n),
        });
        let mut told = Told::new();
        for e in goals.exports {
            let with_map = match e.state {
                ExportState::Serving => Some(map.clone()),
                ExportState::Fenced | ExportState::Absent => None,
            };
            let goal = Goal::Export { epoch: e.epoch, state: e.state, map: with_map };
            told.insert((e.host, GoalKey::Export(id, e.disk, e.consumer)), goal);
        }
        // While the record that switches to the spare is being written, nobody is asked to fill it: see `pool::moving`.
        let switching = v.pending.as_ref().is_some_and(|p| p.cause == Cause::MoveSwitch);
        for a in goals.attachments.into_iter().filter(|_| !switching) {
            let remotes = match a.role {
                Role::Writer | Role::Reader | Role::Guard | Role::FenceIfQuiet => self.remotes(v, &a.node),
                // What is taken down needs no way to anywhere.
                Role::Absent => vec![],
            };
            let (map, limits) = (map.clone(), v.record.params.limits);
            let goal = Goal::Attachment { epoch: a.epoch, role: a.role, map, remotes, limits };
            told.insert((a.node, GoalKey::Attachment(id)), goal);
        }
        for r in &v.record.retired {
            let Some(host) = disks.get(&r.disk) else { continue };
            let extent_size = v.record.extent_size;
            let goal = Goal::Wipe { volume: Some(id), runs: r.runs.clone(), extent_size, epoch: r.epoch };
            told.insert((host.clone(), GoalKey::Wipe(r.disk, r.wipe)), goal);
        }
        told
    }

    fn remotes(&self, v: &Volume, node: &NodeName) -> Vec<Remote> {
        let hosts = self.hosts(&v.record.map.disks());
        let away = hosts.into_iter().filter(|(_, h)| h != node);
        away.map(|(disk, host)| {
            let (address, port) = self.nodes.get(&host).map(super::nodes::Node::address).unwrap_or_default();
            Remote { disk, ready: v.leg_ready(disk, node), host, address, port }
        })
        .collect()
    }

    /// Answers the requests whose wait is over.
    pub(super) fn check_waiters(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let waiters = std::mem::take(&mut v.live.waiters);
        let mut rest = Vec::new();
        for w in waiters {
            rest.extend(self.check_waiter(id, w));
        }
        if let Some(v) = self.volumes.get_mut(&id) {
            rest.append(&mut v.live.waiters);
            v.live.waiters = rest;
        }
    }

    /// Answers one, or gives it back.
    fn check_waiter(&self, id: VolumeId, w: Waiter) -> Option<Waiter> {
        let v = self.volumes.get(&id)?;
        let late = self.now.mono >= w.deadline;
        let deadline = w.deadline;
        match w.want {
            Want::Attached { reply, .. } if reply.is_closed() => None,
            Want::Gone { reply, .. } if reply.is_closed() => None,
            Want::Attached { node, reply } => match self.attach_outcome(v, &node, late) {
                Some(out) => {
                    answer(reply, out);
                    None
                }
                None => Some(Waiter { deadline, want: Want::Attached { node, reply } }),
            },
            Want::Gone { nodes, reply } => {
                let there: Vec<_> =
                    nodes.iter().filter(|n| self.alive(n) && !v.device_gone(n)).cloned().collect();
                if there.is_empty() {
                    answer(reply, Ok(()));
                } else if late {
                    let e = format!("volume {id} is still being taken down on {}", names(&there));
                    answer(reply, Err(ApiError::Unfinished(e)));
                } else {
                    return Some(Waiter { deadline, want: Want::Gone { nodes, reply } });
                }
                None
            }
            Want::Resized { size, reply } => {
                let holders = v.record.access.holders();
                let small = holders
                    .iter()
                    .any(|n| self.alive(n) && v.live.attachments.get(n).is_none_or(|a| a.size < size));
                if small && !late {
                    return Some(Waiter { deadline, want: Want::Resized { size, reply } });
                }
                answer(reply, self.info(id).ok_or_else(|| ApiError::NoVolume(id.to_string())));
                None
            }
        }
    }

    /// What an attach comes to, or `None` while it may still come to something.
    fn attach_outcome(
        &self,
        v: &Volume,
        node: &NodeName,
        late: bool,
    ) -> Option<Result<crate::api::Attached, ApiError>> {
        let id = v.record.id;
        if !v.record.access.holders().contains(node) {
            return Some(Err(ApiError::Busy(format!("volume {id} was taken from {node} again"))));
        }
        if v.usable_on(node).is_some() {
            return Some(Ok(attached(&v.record)));
        }
        let hosts = self.hosts(&v.record.map.disks());
        if let Some((disk, host)) = hosts.iter().find(|(_, h)| *h != node && !self.alive(h)) {
            let e = format!(
                "volume {id} needs disk {disk} of node {host}, which has not been heard of for {}",
                self.silence(host)
            );
            return Some(Err(ApiError::Unavailable(e)));
        }
        late.then(|| Err(ApiError::Unfinished(format!("volume {id} on {node}: {}", self.obstacle(v, node)))))
    }

    /// What an attachment waits for, for people.
    fn obstacle(&self, v: &Volume, node: &NodeName) -> String {
        for (n, l) in v.record.access.leaving.iter().filter(|(n, _)| *n != node) {
            if v.record.map.disks().iter().any(|d| !l.fenced_at(n, *d, &v.live.confirmed)) {
                return format!("the fence of {n} is not confirmed everywhere yet");
            }
        }
        let hosts = self.hosts(&v.record.map.disks());
        if let Some((d, h)) = hosts.iter().find(|(d, h)| *h != node && !v.leg_ready(**d, node)) {
            let why = v.live.exports.get(&(*d, node.clone())).map(|e| e.reason.as_str()).unwrap_or_default();
            return format!("node {h} does not export its part yet {why}");
        }
        match v.live.attachments.get(node) {
            Some(a) if !a.reason.is_empty() => a.reason.clone(),
            Some(a) if !a.queueing.is_empty() => "a path to a lender is down".to_owned(),
            Some(_) | None if !self.alive(node) => format!("not heard of for {}", self.silence(node)),
            Some(_) | None => "the node has not brought its device up yet".to_owned(),
        }
    }
}
