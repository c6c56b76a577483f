//! The data path: what VMs write, through whatever their node's kernel lets them, and how it gets to a disk.

use crate::{
    node::{Queued, Top},
    oracle::Write,
    types::{Checked, D, Mutation, N, V, Violation, disk_number, places},
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
        let at = places(&d.map);
        let extent = self.rng.below(at.len());
        self.seq += 1;
        let (disk, at) = at[extent];
        let w = Write { v, node: n, spell, seq: self.seq, extent, disk, at };
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
        if self.host_of[w.disk] == w.node {
            self.oracle.landed(w)?;
            return self.acknowledge(w);
        }
        self.device(w.node, w.v).queue.push(Queued { write: w, sent: false, replay: false });
        Ok(())
    }

    fn acknowledge(&mut self, w: Write) -> Checked {
        if let Some(vm) = self.vms.get_mut(&(w.v, w.node)) {
            vm.waits.retain(|(_, seq)| *seq != w.seq);
        }
        self.oracle.acknowledged(w)
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
        let queue = self.nodes[w.node].kernel.devices.get_mut(&w.v).map(|d| &mut d.queue);
        match queue.and_then(|q| {
            let i = q.iter().position(|x| x.write.seq == w.seq && x.sent)?;
            connected.then(|| q.remove(i))
        }) {
            Some(_) => self.acknowledge(w),
            None => {
                self.cov.hit("data: a write ran late at its lender");
                Ok(())
            }
        }
    }

    /// The consumer's kernel tries one of its queued writes.
    pub(crate) fn transport(&mut self, n: N, v: V, i: usize) -> Checked {
        let q = self.device(n, v).queue[i];
        let disk = q.write.disk;
        let host = self.host_of[disk];
        let key = (v, disk, n);
        let reached = self.reaches(n, host);
        let slice = self.nodes[host].kernel.slices.get(&key).filter(|_| reached);
        match slice.map(|s| (s.fenced, s.inflight.iter().any(|x| x.seq == q.write.seq))) {
            Some((false, true)) if q.sent => Ok(()),
            None | Some((false, _)) if q.sent => {
                self.nodes[n].kernel.lost.insert(host);
                self.device(n, v).queue[i] = Queued { sent: false, replay: true, ..q };
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
                self.device(n, v).queue.remove(i);
                self.failed(&q.write);
                Ok(())
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
                self.slice(host, key).inflight.push(q.write);
                self.device(n, v).queue[i].sent = true;
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
            for disk in r.record.map.disks() {
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
        let queued = || {
            let d = self.nodes[n].kernel.devices.get(&v);
            d.is_some_and(|d| d.queue.iter().any(|q| q.write.disk == disk))
        };
        self.nodes[host]
            .kernel
            .slices
            .get(&(v, disk, n))
            .is_some_and(|s| !s.fenced && (open || queued() || !s.inflight.is_empty()))
    }
}
