//! What asks for volumes: it starts VMs, moves them, gives up half way, and now and then does what it should not.

use pool::access::Mode;

use crate::{
    data::Vm,
    node::Top,
    types::{Checked, N, V},
    world::World,
};

const WRITER: Mode = Mode { read_only: false, multi_node: true, upkeep: false };

impl World {
    pub(crate) fn orchestrate(&mut self) -> Checked {
        let all: Vec<V> = self.store.records.keys().copied().collect();
        let Some(v) = self.rng.pick(&all) else { return Ok(()) };
        let n = self.rng.below(self.nodes.len());
        // Where moves matter, volumes stay where they are for the most part.
        let weights =
            if self.moves { [20, 40, 1, 4, 1, 1, 14, 6, 1] } else { [6, 24, 12, 20, 3, 2, 10, 6, 2] };
        match self.rng.weighted(&weights) {
            0 => self.ask(v, n),
            1 => {
                self.launch(v);
                Ok(())
            }
            2 => self.begin_move(v, n),
            3 => {
                self.switch_over(v);
                Ok(())
            }
            4 => self.stop_and_detach(v, n),
            5 => self.detach_idle(v, n),
            6 => {
                self.resume(v);
                Ok(())
            }
            7 => self.replace_dead(v, n),
            _ => self.give_up_for_it(v, n),
        }
    }

    fn request(&mut self, v: V, n: N, mode: Mode) -> Checked {
        let Some(c) = self.any_controller() else { return Ok(()) };
        self.attach(c, v, n, mode).map(|_| ())
    }

    /// Anybody asks, in any way; mostly in the way live migration wants.
    fn ask(&mut self, v: V, n: N) -> Checked {
        let mode = match self.rng.below(8) {
            0 => Mode { read_only: true, multi_node: true, upkeep: false },
            1 => Mode { read_only: false, multi_node: false, upkeep: false },
            2 => Mode { read_only: true, multi_node: false, upkeep: false },
            _ => WRITER,
        };
        self.request(v, n, mode)
    }

    /// A VM process opens the device; it runs if it is alone, and seldom if it is not.
    fn launch(&mut self, v: V) {
        let with: Vec<N> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].kernel.devices.contains_key(&v)).collect();
        let Some(n) = self.rng.pick(&with) else { return };
        let Some(d) = self.nodes[n].kernel.devices.get(&v) else { return };
        if d.top == Top::Fenced || self.vms.contains_key(&(v, n)) || self.is_kept_up(v) {
            return;
        }
        let read_only = d.top == Top::Open { read_only: true };
        let alone = !self.runs_somewhere(v);
        let multi = self.oracle.is_multi(v);
        let both = !alone && !multi && !read_only && self.rng.one_in(12);
        if both {
            self.cov.hit("vm: runs twice");
        }
        self.vms.insert((v, n), Vm { active: !read_only && (alone || multi || both), waits: vec![] });
    }

    /// Nobody has been given the volume: there is no device for a VM, though its node has one.
    fn is_kept_up(&self, v: V) -> bool {
        self.store.records.get(&v).is_some_and(|r| r.record.vol.access.upkeeper().is_some())
    }

    fn runs_somewhere(&self, v: V) -> bool {
        self.vms.iter().any(|((x, _), vm)| *x == v && vm.active)
    }

    fn begin_move(&mut self, v: V, n: N) -> Checked {
        if self.runs_somewhere(v) && !self.vms.contains_key(&(v, n)) {
            return self.request(v, n, WRITER);
        }
        Ok(())
    }

    /// QEMU's switchover: the source stops, everything it wrote is answered, the target runs.
    fn switch_over(&mut self, v: V) {
        let from = self.vms.iter().find(|((x, _), vm)| *x == v && vm.active).map(|(k, _)| *k);
        let to = self.vms.iter().find(|((x, _), vm)| *x == v && !vm.active).map(|(k, _)| *k);
        let (Some(from), Some(to)) = (from, to) else { return };
        if !self.vms[&from].waits.is_empty() || !self.nodes[to.1].kernel.devices.contains_key(&v) {
            return;
        }
        self.cov.hit("vm: switched over");
        self.say(|| format!("vm of v{v} goes on on n{} instead of n{}", to.1, from.1));
        if let Some(vm) = self.vms.get_mut(&from) {
            vm.active = false;
        }
        if let Some(vm) = self.vms.get_mut(&to) {
            vm.active = true;
        }
    }

    /// Ends a VM's process, if the kernel lets it go: what waits for a path cannot be killed.
    pub(crate) fn stop_vm(&mut self, v: V, n: N) -> bool {
        let Some(vm) = self.vms.get_mut(&(v, n)) else { return true };
        vm.active = false;
        if vm.waits.is_empty() {
            self.vms.remove(&(v, n));
            return true;
        }
        false
    }

    fn stop_and_detach(&mut self, v: V, n: N) -> Checked {
        if self.vms.contains_key(&(v, n)) && self.stop_vm(v, n) {
            return self.give_up(v, n);
        }
        Ok(())
    }

    fn detach_idle(&mut self, v: V, n: N) -> Checked {
        let runs = self.vms.get(&(v, n)).map(|vm| vm.active);
        if runs.is_none() || (runs == Some(false) && self.rng.one_in(2) && self.stop_vm(v, n)) {
            return self.give_up(v, n);
        }
        Ok(())
    }

    fn give_up(&mut self, v: V, n: N) -> Checked {
        let Some(c) = self.any_controller() else { return Ok(()) };
        self.detach(c, v, n).map(|_| ())
    }

    /// The orchestrator gives a volume up for a node, whatever runs there.
    fn give_up_for_it(&mut self, v: V, n: N) -> Checked {
        if !self.nodes[n].up || self.rng.one_in(4) {
            if self.vms.contains_key(&(v, n)) {
                self.cov.hit("vm: detached while it runs");
            }
            return self.give_up(v, n);
        }
        Ok(())
    }

    /// A stopped VM (after EIO) is resumed.
    fn resume(&mut self, v: V) {
        let stopped: Vec<N> =
            self.vms.iter().filter(|((x, _), vm)| *x == v && !vm.active).map(|((_, n), _)| *n).collect();
        let Some(n) = self.rng.pick(&stopped) else { return };
        let alone = !self.runs_somewhere(v);
        let writer = self.nodes[n].kernel.devices.get(&v).is_some_and(|d| d.top != Top::Fenced);
        if let Some(vm) = self.vms.get_mut(&(v, n)).filter(|_| alone && writer) {
            vm.active = true;
        }
    }

    /// The VM's node is taken for dead: it is started elsewhere.
    fn replace_dead(&mut self, v: V, n: N) -> Checked {
        let Some(c) = self.any_controller() else { return Ok(()) };
        let now = self.now;
        let Some(ctl) = self.controllers.get(&c) else { return Ok(()) };
        let Some(r) = ctl.records.get(&v) else { return Ok(()) };
        let dead = r.record.vol.access.holders().iter().any(|h| !ctl.alive(crate::types::number_of(h), now));
        if dead {
            return self.attach(c, v, n, WRITER).map(|_| ());
        }
        Ok(())
    }
}
