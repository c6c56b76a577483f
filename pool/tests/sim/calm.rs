//! After the faults: everything must come to an end, in a bounded number of rounds.

use pool::access::{Access, Event, Mode};

use crate::{
    node::{Object, Top},
    types::{Checked, N, V, Violation, disk_number, name_of, number_of},
    world::World,
};

/// Rounds within which everything has settled. One round lets everybody do everything once; a lease is ten of
/// them, patience twenty, and a message needs one each way.
const ROUNDS: usize = 120;

impl World {
    /// Ends all faults and sees that everything converges; then uses, empties and deletes every volume.
    pub(crate) fn calm(&mut self) -> Checked {
        self.say(|| "calm".into());
        self.chaotic = false;
        for n in 0..self.nodes.len() {
            self.heal(n);
        }
        let deposed: Vec<u64> = self.controllers.keys().copied().filter(|c| *c != self.store.term).collect();
        for c in deposed {
            self.end_controller(c);
        }
        self.until("settles", Self::settled)?;
        self.until("drains", Self::nothing_queued)?;
        self.empty()?;
        self.use_all()?;
        self.empty()?;
        let all: Vec<V> = self.store.records.keys().copied().collect();
        for v in all {
            self.delete(self.store.term, v)?;
        }
        self.until("is deleted", |w| {
            w.store.records.is_empty().then_some(()).ok_or("volumes remain".into())
        })?;
        // All extents are free and blank: the oracle checks both.
        for _ in 0..4 {
            self.new_volume()?;
        }
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> Result<(), String>) -> Checked {
        let mut why = String::new();
        for _ in 0..ROUNDS {
            self.round()?;
            match done(self) {
                Ok(()) => return Ok(()),
                Err(e) => why = e,
            }
        }
        Err(Violation(format!("(liveness) not everything {what} in {ROUNDS} rounds: {why}")))
    }

    /// Everybody does everything once.
    pub(crate) fn round(&mut self) -> Checked {
        self.arrive_late()?;
        let c = self.store.term;
        for _ in 0..6 {
            self.now += 1;
            self.heartbeats();
        }
        self.note_leavers(c);
        let all: Vec<V> = self.store.records.keys().copied().collect();
        for v in all {
            self.event(c, v, &Event::Review)?;
            self.wiped(c, v)?;
            self.step_move(c, v, false, true)?;
        }
        self.land_some_write()?;
        self.learn_some_outcome();
        for n in 0..self.nodes.len() {
            if self.sessions[n].is_none() {
                self.dial(n);
            }
            self.some_send(n)?;
            self.deliver_to_node(n)?;
            let objects: Vec<Object> = match &self.nodes[n].plugin {
                Some(p) => p.goals.keys().copied().collect(),
                None => vec![],
            };
            for o in objects {
                self.plugin_step(n, o)?;
                self.check_writers()?;
            }
            let mirrors: Vec<V> = self.nodes[n].kernel.mirrors.keys().copied().collect();
            for v in mirrors {
                self.copy_step(n, v)?;
            }
            for (v, i) in self.queued(n).into_iter().rev() {
                self.transport(n, v, i)?;
            }
            while !self.in_flight(n).is_empty() {
                self.some_completion(n)?;
            }
            self.report(n);
            self.deliver_to_controller(n)?;
        }
        self.stop_failed_vms();
        self.check_writers()
    }

    /// A VM whose device is fenced is not to be saved: its process ends.
    fn stop_failed_vms(&mut self) {
        let fenced =
            |w: &Self, v: V, n: N| w.nodes[n].kernel.devices.get(&v).is_none_or(|d| d.top == Top::Fenced);
        let all: Vec<(V, N)> = self.vms.keys().copied().collect();
        for (v, n) in all {
            if fenced(self, v, n) {
                self.stop_vm(v, n);
            }
        }
    }

    fn settled(&self) -> Result<(), String> {
        for (v, r) in &self.store.records {
            let s = &r.record.vol.access;
            if r.record.is_deleting() {
                continue;
            }
            if !s.leaving.is_empty() {
                return Err(format!("volume {v}: somebody is leaving: {s:?}"));
            }
            match &s.access {
                Access::Granting { .. } | Access::CuttingOver { .. } => {
                    return Err(format!("volume {v} is on its way: {s:?}"));
                }
                Access::Detached => {}
                Access::Attached { holders } => {
                    for (h, m) in holders {
                        self.holds(*v, number_of(h), Top::Open { read_only: m.read_only })?;
                    }
                }
                Access::Guarded { source, target, .. } => {
                    self.holds(*v, number_of(source), Top::Open { read_only: false })?;
                    self.holds(*v, number_of(target), Top::Guard { through: false })?;
                }
            }
        }
        self.moves_have_ended()
    }

    /// The device is as it should be, and every lender serves it.
    fn holds(&self, v: V, n: N, want: Top) -> Result<(), String> {
        let top = self.nodes[n].kernel.devices.get(&v).map(|d| d.top);
        if top != Some(want) {
            return Err(format!("volume {v} on node {n} is {top:?}, not {want:?}"));
        }
        for d in self.store.records[&v].record.map.disks() {
            let host = self.host_of[disk_number(d)];
            let serving =
                self.nodes[host].kernel.slices.get(&(v, disk_number(d), n)).is_some_and(|s| !s.fenced);
            if host != n && !serving {
                return Err(format!("volume {v}: node {host} does not serve node {n}"));
            }
        }
        Ok(())
    }

    fn nothing_queued(&self) -> Result<(), String> {
        match (0..self.nodes.len()).find(|n| !self.queued(*n).is_empty()) {
            None => Ok(()),
            Some(n) => Err(format!("node {n} has queued writes")),
        }
    }

    fn idle(&self) -> Result<(), String> {
        for (v, r) in &self.store.records {
            let devices = self.nodes.iter().any(|n| n.kernel.devices.contains_key(v));
            let slices = self.nodes.iter().any(|n| n.kernel.slices.keys().any(|k| k.0 == *v));
            if !r.record.vol.access.is_idle() || devices || slices {
                return Err(format!("volume {v} is not idle: {:?}", r.record.vol.access));
            }
        }
        Ok(())
    }

    /// Gives up every volume everywhere.
    fn empty(&mut self) -> Checked {
        let all: Vec<V> = self.store.records.keys().copied().collect();
        for v in all {
            for n in 0..self.nodes.len() {
                self.stop_vm(v, n);
                self.detach(self.store.term, v, n)?;
            }
        }
        self.until("is given up", Self::idle)
    }

    /// Every volume can be had by any node, which can write all of it.
    fn use_all(&mut self) -> Checked {
        let mode = Mode { read_only: false, multi_node: false, upkeep: false };
        let all: Vec<V> = self.store.records.keys().copied().collect();
        for v in all {
            if self.store.is_deleting(v) {
                continue;
            }
            let n = self.rng.below(self.nodes.len());
            match self.attach(self.store.term, v, n, mode)? {
                Some(Ok(())) => {}
                r => {
                    return Err(Violation(format!(
                        "(liveness) idle volume {v} refused to {}: {r:?}",
                        name_of(n)
                    )));
                }
            }
            self.until("is attached", Self::settled)?;
            if self.begin_some_move(self.store.term, v)? {
                self.cov.hit("move: begun in the calm");
                self.until("is moved", Self::settled)?;
            }
            self.vms.insert((v, n), crate::data::Vm { active: true, waits: vec![] });
            for _ in 0..8 {
                self.vm_writes(v, n)?;
            }
            self.until("is written", Self::nothing_queued)?;
        }
        Ok(())
    }
}
