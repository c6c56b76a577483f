//! The data path: what VMs write, through whatever their node's kernel lets them, and how it gets to a disk.

use crate::{
    node::{Queued, Top, Via},
    oracle::Write,
    types::{Checked, D, Mutation, N, V, Violation, disk_number},
    world::World,
};

/// A VM's process on a node: it has the volume's device open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vm {
    /// It runs here, rather than being stopped or a migration's empty target.
    pub(crate) active: bool,
    /// Writes without an answer: extent and number.
    pub(crate) waits: Vec<(usize, u64)>,
}

impl World {
    /// Whether two nodes reach each other over the storage network.
    pub(crate) fn reaches(&self, a: N, b: N) -> bool {
        [a, b].iter().all(|n| self.nodes[*n].up && !self.nodes[*n].storage_cut)
    }

    /// The VM on `n` writes to some extent to which it has no write under way.
    pub(crate) fn vm_writes(&mut self, v: V, n: N) -> Checked {
        let Some(d) = self.nodes[n].kernel.devices.get(&v) else { return Ok(()) };
        let (top, spell) = (d.top, d.spell);
        let extent = self.rng.below(d.map.len());
        self.seq += 1;
        let (disk, at) = d.map[extent];
        let w = Write { v, node: n, spell, seq: self.seq, io: 0, copy: false, extent, disk, at };
        let Some(vm) = self.vms.get_mut(&(v, n)).filter(|vm| vm.active) else { return Ok(()) };
        if vm.waits.iter().any(|(e, _)| *e == extent) || top == (Top::Open { read_only: true }) {
            return Ok(());
        }
        vm.waits.push((extent, w.seq));
        self.say(|| format!("vm on n{n} writes {w:?} through {top:?}"));
        let now = self.now;
        self.device(n, v).last_write = now;
        match top {
            Top::Open { .. } => self.submit(w),
            Top::Guard { .. } if self.broken(Mutation::GuardLeaks) => self.submit(w),
            Top::Guard { .. } => {
                self.cov.hit("data: a guard held a write");
                self.device(n, v).held.push(w);
                Ok(())
            }
            Top::Fenced => {
                self.cov.hit("data: a fenced device failed a write");
                self.failed(&w);
                Ok(())
            }
        }
    }

    /// A write below the top device.
    pub(crate) fn submit(&mut self, w: Write) -> Checked {
        let d = self.device(w.node, w.v);
        let ((disk, at), mirrored) = (d.map[w.extent], d.mirrored);
        let mirror = self.nodes[w.node].kernel.mirrors.get(&w.v);
        if mirrored && mirror.is_some_and(|m| m.covers(w.extent)) {
            return self.mirror_write(w);
        }
        self.issue(Write { disk, at, ..w }, Via::Top)
    }

    /// A write to one place.
    pub(crate) fn issue(&mut self, w: Write, via: Via) -> Checked {
        self.ios += 1;
        let q = Queued { write: Write { io: self.ios, ..w }, sent: false, replay: false, via };
        if via != Via::Top && self.chaotic && self.rng.one_in(60) {
            self.cov.hit("fault: a side of a mirror fails a write");
            return self.ended(&q, false);
        }
        if self.host_of[w.disk] == w.node {
            self.oracle.landed(q.write)?;
            return self.ended(&q, true);
        }
        self.queue(w.node, w.v).push(q);
        Ok(())
    }

    /// A write to one place is over.
    pub(crate) fn ended(&mut self, q: &Queued, ok: bool) -> Checked {
        match (q.via, ok) {
            (Via::Top, true) => self.acknowledge(q.write),
            (Via::Top, false) => {
                self.failed(&q.write);
                Ok(())
            }
            (Via::Side(side), ok) => self.side_done(&q.write, side, ok),
            (Via::Copy, ok) => self.copy_done(&q.write, ok),
        }
    }

    pub(crate) fn queue(&mut self, n: N, v: V) -> &mut Vec<Queued> {
        self.nodes[n].kernel.queues.entry(v).or_default()
    }

    /// Whether a lender that is reached works on it: then its end is waited for.
    pub(crate) fn is_worked_on(&self, q: &Queued) -> bool {
        q.sent && self.reaches(q.write.node, self.host_of[q.write.disk]) && self.is_in_flight(&q.write)
    }

    pub(crate) fn acknowledge(&mut self, w: Write) -> Checked {
        if let Some(vm) = self.vms.get_mut(&(w.v, w.node)) {
            vm.waits.retain(|(_, seq)| *seq != w.seq);
        }
        self.oracle.acknowledged(w)
    }

    /// A VM reads what it may write.
    pub(crate) fn vm_reads(&mut self, v: V, n: N) -> Checked {
        let kernel = &self.nodes[n].kernel;
        let Some(d) = kernel.devices.get(&v).filter(|d| d.top == (Top::Open { read_only: false })) else {
            return Ok(());
        };
        if !self.oracle.is_entitled(v, n) || self.oracle.spell(v, n) != Some(d.spell) {
            return Ok(());
        }
        let extent = self.rng.below(d.map.len());
        let mirror = kernel.mirrors.get(&v).filter(|m| d.mirrored && m.covers(extent));
        let from = mirror.map_or(Some(d.map[extent]), |m| m.reads(extent));
        from.map_or(Ok(()), |p| self.oracle.read(v, extent, p))
    }

    /// The VM gets EIO and stops (werror=stop).
    pub(crate) fn failed(&mut self, w: &Write) {
        if let Some(vm) = self.vms.get_mut(&(w.v, w.node)) {
            vm.waits.retain(|(_, seq)| *seq != w.seq);
            vm.active = false;
        }
    }

    /// A lender's kernel runs a write, and answers if there is still somebody to answer to.
    pub(crate) fn complete(&mut self, w: Write) -> Checked {
        self.say(|| format!("lands {w:?}"));
        self.oracle.landed(w)?;
        let host = self.host_of[w.disk];
        let connected = self.reaches(w.node, host) && !self.nodes[w.node].kernel.lost.contains(&host);
        let queue = self.queue(w.node, w.v);
        match queue.iter().position(|x| x.write.io == w.io && x.sent).filter(|_| connected) {
            Some(i) => {
                let q = queue.remove(i);
                self.ended(&q, true)
            }
            None => {
                self.cov.hit("data: a write ran late at its lender");
                Ok(())
            }
        }
    }

    /// The consumer's kernel tries one of its queued writes.
    pub(crate) fn transport(&mut self, n: N, v: V, i: usize) -> Checked {
        let Some(q) = self.queue(n, v).get(i).copied() else { return Ok(()) };
        let disk = q.write.disk;
        let host = self.host_of[disk];
        let key = (v, disk, n);
        let reached = self.reaches(n, host);
        let slice = self.nodes[host].kernel.slices.get(&key).filter(|_| reached);
        // A slice keeps the volume's addresses: it decides where an extent lies on its disk.
        let at = slice.and_then(|s| s.table.get(&q.write.extent).copied());
        match slice.map(|s| (s.fenced || at.is_none(), s.inflight.iter().any(|x| x.io == q.write.io))) {
            Some((false, true)) if q.sent => Ok(()),
            None | Some((false, _)) if q.sent => {
                self.nodes[n].kernel.lost.insert(host);
                self.queue(n, v)[i] = Queued { sent: false, replay: true, ..q };
                Ok(())
            }
            None => {
                if reached {
                    self.cov.hit("data: a write waits for its export");
                }
                Ok(())
            }
            Some((true, _)) => {
                self.cov.hit(if q.replay {
                    "data: a replay failed at a fenced slice"
                } else {
                    "data: a write failed at a fenced slice"
                });
                self.queue(n, v).remove(i);
                self.ended(&q, false)
            }
            Some((false, _)) => {
                if self.nodes[n].kernel.lost.remove(&host) {
                    for (_, s) in self.nodes[host].kernel.slices.iter_mut().filter(|(k, _)| k.2 == n) {
                        s.inflight.clear();
                    }
                }
                if q.replay {
                    self.cov.hit("data: a write was replayed");
                }
                let write = Write { at: at.unwrap_or(q.write.at), ..q.write };
                self.slice(host, key).inflight.push(write);
                self.queue(n, v)[i].sent = true;
                Ok(())
            }
        }
    }

    /// Invariant 1: who could put a write on a volume's extents now, by kernel state alone.
    pub(crate) fn check_writers(&self) -> Checked {
        for (v, r) in &self.store.records {
            if self.oracle.is_multi(*v) {
                continue;
            }
            for disk in r.record.vol.map.0.iter().flat_map(|s| s.legs.iter().map(|l| l.disk)) {
                let d = disk_number(disk);
                let able: Vec<N> = (0..self.nodes.len()).filter(|n| self.can_write(*n, *v, d)).collect();
                if able.len() > 1 {
                    return Err(Violation(format!(
                        "(1) nodes {able:?} can write to volume {v} on disk {d} of node {}",
                        self.host_of[d]
                    )));
                }
            }
        }
        Ok(())
    }

    fn can_write(&self, n: N, v: V, disk: D) -> bool {
        let host = self.host_of[disk];
        let open =
            self.nodes[n].kernel.devices.get(&v).is_some_and(|d| d.top == Top::Open { read_only: false });
        if host == n {
            return open;
        }
        // Whether they reach each other does not matter: they may, the next moment.
        let writes = |w: &Write| w.disk == disk && !w.copy;
        let queued = || {
            let q = self.nodes[n].kernel.queues.get(&v);
            q.is_some_and(|q| q.iter().any(|q| writes(&q.write)))
        };
        self.nodes[host]
            .kernel
            .slices
            .get(&(v, disk, n))
            .is_some_and(|s| !s.fenced && (open || queued() || s.inflight.iter().any(writes)))
    }

    /// Who could still put something in a place, by kernel state alone; nobody may by the time that it is wiped, or
    /// changes hands.
    pub(crate) fn nobody_writes(&self, p: (D, usize)) -> Checked {
        let host = self.host_of[p.0];
        let mut who = vec![];
        for (n, node) in self.nodes.iter().enumerate() {
            for (v, d) in node.kernel.devices.iter().filter(|_| n == host) {
                let mirror = node.kernel.mirrors.get(v).filter(|_| d.mirrored);
                let mapped = |e: usize| d.map[e] == p && mirror.is_none_or(|m| !m.covers(e));
                if d.top != Top::Fenced && (0..d.map.len()).any(mapped) {
                    who.push(format!("the device of volume {v} on node {n}"));
                }
            }
            for (v, m) in node.kernel.mirrors.iter().filter(|_| n == host) {
                if m.maps(p) {
                    who.push(format!("the mirror of volume {v} on node {n}"));
                }
            }
            for q in node.kernel.queues.values().flatten() {
                if (q.write.disk, q.write.at) == p {
                    who.push(format!("{:?}, queued on node {n}", q.write));
                }
            }
            for (k, s) in node.kernel.slices.iter().filter(|(k, s)| k.1 == p.0 && !s.fenced) {
                if s.table.values().any(|e| *e == p.1) || s.inflight.iter().any(|w| w.at == p.1) {
                    who.push(format!("the slice {k:?} of node {n}"));
                }
            }
        }
        if who.is_empty() {
            return Ok(());
        }
        Err(Violation(format!(
            "(4) extent {} of disk {} is nobody's and can be written by {who:?}",
            p.1, p.0
        )))
    }
}
