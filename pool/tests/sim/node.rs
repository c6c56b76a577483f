//! A node: what its kernel holds (survives its plugin, lost at reboot), what its disks' labels hold (survives
//! all), what its plugin remembers (lost with the plugin), and the plugin's work: one kernel step at a time.
//!
//! A transport that was lost and made anew drops what the lender still had in flight from the old one; without
//! that, NVMe over fabrics itself would reorder writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use pool::{
    goals::{ExportState, Role},
    ids::{Epoch, Term},
    volume::Map,
};

use crate::{
    mirror::{MirrorDev, Table},
    oracle::Write,
    types::{
        AttachmentSeen, Checked, D, ExportSeen, Goal, Goals, Mutation, N, QUIET, Seen, Spared, V, Violation,
        disk_number, extents_of, places,
    },
    world::World,
};

/// The table of a volume's top device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Top {
    Open {
        read_only: bool,
    },
    /// `through`: the write leg is the real map already, the top still holds.
    Guard {
        through: bool,
    },
    Fenced,
}

/// For whom a write goes to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Top,
    /// A mirror, for a write from above.
    Side(usize),
    /// A mirror, to fill its spare.
    Copy,
}

/// A write that waits in the consumer's kernel for its lender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queued {
    pub(crate) write: Write,
    /// It was sent, and no answer has come.
    pub(crate) sent: bool,
    /// It was sent over a transport that is lost: it is replayed.
    pub(crate) replay: bool,
    pub(crate) via: Via,
}

/// A volume's device on its consumer.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// Where its table puts each extent.
    pub(crate) map: Vec<(D, usize)>,
    /// It reaches the extents of the mirror through that.
    pub(crate) mirrored: bool,
    pub(crate) top: Top,
    pub(crate) spell: u64,
    pub(crate) held: Vec<Write>,
    pub(crate) last_write: u64,
}

/// A slice for one consumer on a host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) fenced: bool,
    /// Where it has which of the volume's extents.
    pub(crate) table: BTreeMap<usize, usize>,
    /// What the lender's kernel has taken and not run.
    pub(crate) inflight: Vec<Write>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) devices: BTreeMap<V, Device>,
    pub(crate) mirrors: BTreeMap<V, MirrorDev>,
    /// What waits for a lender.
    pub(crate) queues: BTreeMap<V, Vec<Queued>>,
    pub(crate) slices: BTreeMap<(V, D, N), Slice>,
    /// Hosts to which the transport must be made anew.
    pub(crate) lost: BTreeSet<N>,
}

/// What a plugin works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Attachment(V),
    Export(V, D, N),
    Wipe(u64),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Plugin {
    pub(crate) goals: BTreeMap<Object, Goal>,
    /// Refused to fence under this epoch.
    pub(crate) busy: BTreeMap<V, Epoch>,
    /// What was reported last on this session.
    pub(crate) reported: BTreeMap<Object, Seen>,
    /// Wipes done.
    pub(crate) wiped: BTreeSet<u64>,
    /// Wipes refused, once and for all.
    pub(crate) refused: BTreeSet<u64>,
    /// It begins no wipe before: the disks open late, or another wipe goes on.
    pub(crate) wipes_from: u64,
}

pub(crate) struct Node {
    pub(crate) up: bool,
    /// Counts plugin starts: a connection does not outlive either end.
    pub(crate) incarnation: u64,
    pub(crate) plugin: Option<Plugin>,
    pub(crate) kernel: Kernel,
    /// Durable.
    pub(crate) term: Term,
    /// Durable, on the disks: whose each extent is, and since which epoch of its volume.
    pub(crate) label: BTreeMap<(D, usize), (V, Epoch)>,
    /// Extents that were ever wiped here: for the books.
    pub(crate) was_wiped: BTreeSet<D>,
    /// What was ever exported; only a broken node makes use of it.
    pub(crate) served: BTreeMap<(V, D, N), BTreeMap<usize, usize>>,
    pub(crate) control_cut: bool,
    pub(crate) storage_cut: bool,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            up: true,
            incarnation: 0,
            plugin: Some(Plugin::default()),
            kernel: Kernel::default(),
            term: Term::ZERO,
            label: BTreeMap::new(),
            was_wiped: BTreeSet::new(),
            served: BTreeMap::new(),
            control_cut: false,
            storage_cut: false,
        }
    }
}

impl World {
    /// Takes in goals. Terms are durable before anything is obeyed; epochs are remembered by the plugin only.
    pub(crate) fn take_goals(&mut self, n: N, m: Goals) {
        let obeys_any_term = self.broken(Mutation::NodeIgnoresTerms);
        let obeys_any_epoch = self.broken(Mutation::NodeIgnoresEpochs);
        let node = &mut self.nodes[n];
        if m.term < node.term && !obeys_any_term {
            self.cov.hit("node: goals of a deposed controller refused");
            return;
        }
        node.term = node.term.max(m.term);
        let Some(plugin) = &mut node.plugin else { return };
        for g in m.goals {
            let (object, epoch) = match &g {
                Goal::Attachment { v, epoch, .. } => (Object::Attachment(*v), *epoch),
                Goal::Export { v, disk, consumer, epoch, .. } => {
                    (Object::Export(*v, *disk, *consumer), *epoch)
                }
                Goal::Wipe { wipe, .. } => (Object::Wipe(*wipe), Epoch::ZERO),
            };
            let known = match plugin.goals.get(&object) {
                Some(Goal::Attachment { epoch, .. } | Goal::Export { epoch, .. }) => *epoch,
                Some(Goal::Wipe { .. }) | None => Epoch::ZERO,
            };
            if epoch < known && !obeys_any_epoch {
                self.cov.hit("node: goal of an older epoch refused");
                continue;
            }
            plugin.goals.insert(object, later(plugin.goals.get(&object), g));
        }
    }

    /// One kernel step of the plugin of `n` towards one of its goals. Says whether there was one.
    pub(crate) fn plugin_step(&mut self, n: N, object: Object) -> Checked<bool> {
        let Some(goal) = self.nodes[n].plugin.as_ref().and_then(|p| p.goals.get(&object).cloned()) else {
            return Ok(false);
        };
        if !self.broken(Mutation::NodeServesWhatIsWiped) && self.is_overtaken(n, &goal) {
            self.cov.hit("step: a goal older than a wipe is not obeyed");
            return Ok(false);
        }
        match goal {
            Goal::Attachment { v, epoch, role, map, start } => {
                if !matches!(role, Role::FenceIfQuiet | Role::Absent) {
                    self.write_label(n, v, &map, None, epoch);
                }
                match role {
                    Role::Writer => self.step_open(n, v, &map, false, start),
                    Role::Reader => self.step_open(n, v, &map, true, start),
                    Role::Guard => self.step_guard(n, v, &map),
                    Role::FenceIfQuiet => self.step_fence_if_quiet(n, v, epoch),
                    Role::Absent => self.step_absent(n, v),
                }
            }
            Goal::Export { v, disk, consumer, epoch, state, map } => {
                if state == ExportState::Serving {
                    self.write_label(n, v, &map, Some(disk), epoch);
                }
                self.step_export(n, (v, disk, consumer), state, &map)
            }
            Goal::Wipe { v, wipe, disk, extents, epoch } => self.step_wipe(n, v, wipe, disk, &extents, epoch),
        }
    }

    /// Whether the host was told to wipe something of the volume on the disk since: what an older goal maps may be
    /// another's by now. Who is on the way out may stand there under such a goal, for nothing is said of it until it is
    /// to be fenced.
    fn is_overtaken(&self, n: N, goal: &Goal) -> bool {
        let Goal::Export { v, disk, epoch, state: ExportState::Serving, .. } = goal else { return false };
        let newer = |g: &Goal| matches!(g, Goal::Wipe { v: w, disk: d, epoch: e, .. } if (w, d) == (v, disk) && e > epoch);
        self.nodes[n].plugin.iter().flat_map(|p| p.goals.values()).any(newer)
    }

    fn step_open(&mut self, n: N, v: V, map: &Rc<Map>, read_only: bool, start: bool) -> Checked<bool> {
        let wish = Spared::of(map).filter(|s| s.filling && !read_only);
        let kernel = &self.nodes[n].kernel;
        let want = Top::Open { read_only };
        let mirror = kernel.mirrors.get(&v);
        let fits = |m: &MirrorDev| m.table != Table::Error && wish.as_ref().is_some_and(|s| m.is_of(s));
        let (stands, fits) = (mirror.is_some(), mirror.is_some_and(fits));
        let Some(d) = kernel.devices.get(&v) else {
            return if stands { self.remove_mirror(n, v) } else { self.set_up(n, v, map, want) };
        };
        match d.top {
            Top::Open { .. } if stands && d.mirrored && !fits => {
                let at = places(map);
                let m = &kernel.mirrors[&v];
                let keep = at[m.first..m.first + m.sync.len()].to_vec();
                if m.table == Table::Plain(keep.clone()) {
                    return self.swap_top(n, v, map, want, false);
                }
                let disks: BTreeSet<D> =
                    map.0.iter().flat_map(|s| s.legs.iter().map(|l| disk_number(l.disk))).collect();
                self.settle_mirror(n, v, keep, |d| disks.contains(&d))
            }
            Top::Open { .. } if stands && fits && !d.mirrored => self.swap_top(n, v, map, want, true),
            Top::Open { .. } if stands && fits => {
                let plain = kernel.mirrors[&v].table != Table::Mirror;
                Ok(plain && start && self.start_mirror(n, v))
            }
            _ if stands => self.remove_mirror(n, v),
            Top::Open { .. } if start && wish.is_some() => {
                if let Some(s) = &wish {
                    self.make_mirror(n, v, s);
                }
                Ok(true)
            }
            Top::Open { .. } if d.top != want || d.map != places(map) => {
                self.swap_top(n, v, map, want, false)
            }
            Top::Open { .. } => Ok(false),
            Top::Guard { .. } if read_only => Ok(false),
            Top::Guard { through: false } => {
                self.cov.hit("step: write leg swapped");
                self.device(n, v).top = Top::Guard { through: true };
                Ok(true)
            }
            Top::Fenced if read_only => {
                self.device(n, v).map = places(map);
                self.device(n, v).top = want;
                Ok(true)
            }
            Top::Guard { through: true } | Top::Fenced => {
                self.device(n, v).map = places(map);
                self.swap_open(n, v)
            }
        }
    }

    /// Another table for a top that is open. The suspend waits for what is on its way.
    fn swap_top(&mut self, n: N, v: V, map: &Map, top: Top, mirrored: bool) -> Checked<bool> {
        if !self.queue(n, v).is_empty() {
            return Ok(false);
        }
        self.oracle.opened(v, &places(map))?;
        let d = self.device(n, v);
        d.map = places(map);
        d.mirrored = mirrored;
        d.top = top;
        self.cov.hit(if mirrored { "step: top put on the mirror" } else { "step: top put past the mirror" });
        Ok(true)
    }

    fn step_guard(&mut self, n: N, v: V, map: &Rc<Map>) -> Checked<bool> {
        let kernel = &self.nodes[n].kernel;
        match (kernel.devices.contains_key(&v), kernel.mirrors.contains_key(&v)) {
            (false, true) => self.remove_mirror(n, v),
            (false, false) => self.set_up(n, v, map, Top::Guard { through: false }),
            (true, _) => Ok(false),
        }
    }

    /// From the top down, but for a mirror: what it holds would keep the top from being swapped.
    fn step_absent(&mut self, n: N, v: V) -> Checked<bool> {
        let kernel = &self.nodes[n].kernel;
        let top = kernel.devices.get(&v).map(|d| d.top);
        let mirror = kernel.mirrors.get(&v).map(|m| m.table.clone());
        match (top, mirror) {
            (_, Some(Table::Mirror)) => self.fence_mirror(n, v),
            (Some(Top::Open { .. } | Top::Guard { .. }), _) => self.fence_device(n, v),
            (Some(Top::Fenced), Some(Table::Plain(_))) => self.fence_mirror(n, v),
            (Some(Top::Fenced), _) => {
                // EBUSY while a VM has it open.
                if self.vms.contains_key(&(v, n)) {
                    return Ok(false);
                }
                self.nodes[n].kernel.devices.remove(&v);
                Ok(true)
            }
            (None, Some(_)) => self.remove_mirror(n, v),
            (None, None) => Ok(false),
        }
    }

    pub(crate) fn device(&mut self, n: N, v: V) -> &mut Device {
        self.nodes[n].kernel.devices.get_mut(&v).expect("the caller has seen it")
    }

    fn set_up(&mut self, n: N, v: V, map: &Rc<Map>, top: Top) -> Checked<bool> {
        let mut spell = self.oracle.spell(v, n).unwrap_or_default();
        if top == (Top::Open { read_only: false }) && spell == 0 {
            return Err(Violation(format!("node {n} opens volume {v} and was never entitled to")));
        }
        // A guard that is set up when the commit is on record already may open at once.
        if matches!(top, Top::Guard { .. }) && self.oracle.is_entitled(v, n) {
            spell -= 1;
        }
        self.oracle.opened(v, &places(map))?;
        let device =
            Device { map: places(map), mirrored: false, top, spell, held: vec![], last_write: self.now };
        self.nodes[n].kernel.devices.insert(v, device);
        Ok(true)
    }

    /// The top becomes the real map; what a guard held goes its way.
    fn swap_open(&mut self, n: N, v: V) -> Checked<bool> {
        let spell = self.oracle.spell(v, n).unwrap_or_default();
        let guarded = matches!(self.device(n, v).top, Top::Guard { .. });
        if spell == 0 || (guarded && spell <= self.device(n, v).spell) {
            return Err(Violation(format!(
                "(5) the guard of node {n} on volume {v} opens before the commit"
            )));
        }
        let now = self.now;
        let d = self.device(n, v);
        d.top = Top::Open { read_only: false };
        d.mirrored = false;
        d.spell = spell;
        d.last_write = now;
        let map = d.map.clone();
        self.oracle.opened(v, &map)?;
        self.release_held(n, v)?;
        Ok(true)
    }

    fn release_held(&mut self, n: N, v: V) -> Checked {
        let spell = self.oracle.spell(v, n).unwrap_or_default();
        for w in std::mem::take(&mut self.device(n, v).held) {
            self.cov.hit("data: a held write went through");
            self.submit(Write { spell, ..w })?;
        }
        Ok(())
    }

    fn step_fence_if_quiet(&mut self, n: N, v: V, epoch: Epoch) -> Checked<bool> {
        let kernel = &self.nodes[n].kernel;
        let mirror = kernel.mirrors.get(&v);
        let Some(d) = kernel.devices.get(&v) else { return Ok(false) };
        if d.top == Top::Fenced {
            return match mirror.is_some_and(|m| m.table != Table::Error) {
                true => self.fence_mirror(n, v),
                false => Ok(false),
            };
        }
        let queued = kernel.queues.get(&v).is_some_and(|q| q.iter().any(|q| q.via != Via::Copy));
        let inside = mirror.is_some_and(|m| !m.held.is_empty() || !m.pairs.is_empty());
        let recent = self.now.saturating_sub(d.last_write) < QUIET;
        if recent || queued || inside || !d.held.is_empty() {
            if let Some(p) = &mut self.nodes[n].plugin {
                p.busy.insert(v, epoch);
            }
            return Ok(false);
        }
        self.cov.hit("step: source fenced itself");
        if self.broken(Mutation::NodeLiesAboutFence) {
            return Ok(false);
        }
        self.fence_device(n, v)
    }

    /// Swaps the top for `error`. What waits for a lost path is failed first; what a lender is working on is
    /// waited for. A mirror goes on.
    fn fence_device(&mut self, n: N, v: V) -> Checked<bool> {
        let queue: Vec<Queued> = self.queue(n, v).iter().filter(|q| q.via == Via::Top).copied().collect();
        if queue.iter().any(|q| self.is_worked_on(q)) {
            return Ok(false);
        }
        if !queue.is_empty() {
            self.cov.hit("data: queued writes failed by a fence");
        }
        for q in queue {
            if q.sent {
                let host = self.host_of[q.write.disk];
                self.nodes[n].kernel.lost.insert(host);
            }
            self.failed(&q.write);
        }
        let leaks = self.device(n, v).top == Top::Guard { through: true };
        self.queue(n, v).retain(|q| q.via != Via::Top);
        if leaks {
            // Any suspend releases what is held to the write leg, which is the real map by now.
            self.release_held(n, v)?;
            for q in std::mem::take(self.queue(n, v)) {
                self.failed(&q.write);
            }
        }
        for w in std::mem::take(&mut self.device(n, v).held) {
            self.cov.hit("data: a held write was failed");
            self.failed(&w);
        }
        self.device(n, v).top = Top::Fenced;
        Ok(true)
    }

    pub(crate) fn is_in_flight(&self, w: &Write) -> bool {
        let host = &self.nodes[self.host_of[w.disk]];
        host.kernel
            .slices
            .get(&(w.v, w.disk, w.node))
            .is_some_and(|s| s.inflight.iter().any(|x| x.io == w.io))
    }

    fn write_label(&mut self, n: N, v: V, map: &Map, disk: Option<D>, epoch: Epoch) {
        for (d, e) in map.runs().flat_map(|r| extents_of(&r)) {
            if self.host_of[d] == n && disk.is_none_or(|x| x == d) {
                let at = self.nodes[n].label.entry((d, e)).or_insert((v, epoch));
                if at.0 != v {
                    *at = (v, epoch);
                }
            }
        }
    }

    fn step_export(&mut self, n: N, key: (V, D, N), state: ExportState, map: &Rc<Map>) -> Checked<bool> {
        let slice = self.nodes[n].kernel.slices.get(&key);
        let fenced = slice.map(|s| s.fenced);
        let table = slice_table(map, key.1);
        if state == ExportState::Serving && slice.is_none_or(|s| s.fenced || s.table != table) {
            self.oracle.mapped(key.0, key.1, table.values().copied())?;
        }
        match (state, fenced) {
            (ExportState::Serving, None) => {
                self.nodes[n].served.insert(key, table.clone());
                self.nodes[n].kernel.slices.insert(key, Slice { table, ..Slice::default() });
                Ok(true)
            }
            (ExportState::Serving, Some(true)) => {
                self.cov.hit("step: a fenced slice serves again");
                self.slice(n, key).fenced = false;
                self.slice(n, key).table = table;
                Ok(true)
            }
            (ExportState::Serving, Some(false)) if slice.is_some_and(|s| s.table != table) => {
                self.cov.hit("step: a slice got another table");
                // The suspend waits for what runs.
                for w in std::mem::take(&mut self.slice(n, key).inflight) {
                    self.complete(w)?;
                }
                self.slice(n, key).table = table;
                Ok(true)
            }
            (ExportState::Serving, Some(false))
            | (ExportState::Fenced, None | Some(true))
            | (ExportState::Absent, None) => Ok(false),
            (ExportState::Fenced | ExportState::Absent, Some(false)) => {
                // The suspend waits for what runs; what it cannot wait for fails.
                let runs = self.rng.one_in(2);
                let inflight = std::mem::take(&mut self.slice(n, key).inflight);
                self.slice(n, key).fenced = true;
                if !inflight.is_empty() {
                    self.cov.hit("data: a slice was fenced with writes in flight");
                }
                for w in inflight {
                    if runs {
                        self.complete(w)?;
                    }
                }
                Ok(true)
            }
            (ExportState::Absent, Some(true)) => {
                self.nodes[n].kernel.slices.remove(&key);
                Ok(true)
            }
        }
    }

    pub(crate) fn slice(&mut self, n: N, key: (V, D, N)) -> &mut Slice {
        self.nodes[n].kernel.slices.get_mut(&key).expect("the caller has seen it")
    }

    fn step_wipe(
        &mut self,
        n: N,
        v: V,
        wipe: u64,
        disk: D,
        extents: &[usize],
        epoch: Epoch,
    ) -> Checked<bool> {
        let again = self.broken(Mutation::NodeWipesAgain);
        let blind = self.broken(Mutation::DeleteUnderADevice);
        let old = !again && !self.broken(Mutation::NodeWipesWhatCameBack);
        let node = &self.nodes[n];
        let Some(p) = &node.plugin else { return Ok(false) };
        if (p.wiped.contains(&wipe) || p.refused.contains(&wipe)) && !again {
            return Ok(false);
        }
        if p.wipes_from > self.now && self.chaotic {
            return Ok(false);
        }
        let whose = |e: &usize| node.label.get(&(disk, *e)).copied();
        let other = extents.iter().filter_map(whose).any(|(o, _)| o != v) && !again;
        let newer = extents.iter().filter_map(whose).any(|(_, since)| since > epoch) && old;
        let own = extents.iter().filter_map(whose).any(|(o, _)| o == v);
        if other || newer {
            self.cov.hit(match other {
                true => "step: wipe of another volume's extents refused",
                false => "step: wipe of what has come back refused",
            });
            if let Some(p) = &mut self.nodes[n].plugin {
                p.refused.insert(wipe);
            }
            return Ok(true);
        }
        if !blind && extents.iter().any(|e| self.is_mapped(n, v, (disk, *e))) {
            self.cov.hit("step: wipe refused while mapped");
            if self.chaotic && self.rng.one_in(2) {
                self.pull_disk(n, v, disk, epoch);
            }
            return Ok(false);
        }
        for e in extents {
            if own || again {
                self.oracle.zeroed(v, disk, *e)?;
            } else {
                self.oracle.called_blank(v, disk, *e)?;
            }
            self.nobody_writes((disk, *e))?;
            self.nodes[n].label.remove(&(disk, *e));
        }
        self.nodes[n].was_wiped.insert(disk);
        if let Some(p) = &mut self.nodes[n].plugin {
            p.wiped.insert(wipe);
        }
        self.cov.hit(if own { "step: wiped" } else { "step: wiped before" });
        Ok(!again)
    }

    /// A disk goes and comes back: the slices that stood there by goals older than a wipe are no more, and the goals are
    /// still known.
    fn pull_disk(&mut self, n: N, v: V, disk: D, epoch: Epoch) {
        let node = &mut self.nodes[n];
        let Some(p) = &node.plugin else { return };
        let old = |key: &(V, D, N)| {
            let goal = p.goals.get(&Object::Export(key.0, key.1, key.2));
            let older = |e: &Epoch| *e < epoch;
            matches!(goal, Some(Goal::Export { state: ExportState::Serving, epoch: e, .. }) if older(e))
        };
        let all: Vec<(V, D, N)> =
            node.kernel.slices.keys().filter(|k| (k.0, k.1) == (v, disk) && old(k)).copied().collect();
        for key in all {
            self.cov.hit("fault: a disk was pulled under an older goal");
            node.kernel.slices.remove(&key);
        }
    }

    /// Whether a table of this node's kernel has a place of its own disks. A slice of the volume that is fenced and on
    /// its way out counts too: it is to be gone before anybody forgets it.
    fn is_mapped(&self, n: N, v: V, p: (D, usize)) -> bool {
        let kernel = &self.nodes[n].kernel;
        let device = kernel.devices.get(&v).filter(|d| d.top != Top::Fenced);
        let mirror = kernel.mirrors.get(&v);
        let covered = |e| mirror.is_some_and(|m| m.covers(e)) && device.is_some_and(|d| d.mirrored);
        let slices = kernel.slices.iter().filter(|(k, _)| (k.0, k.1) == (v, p.0));
        device.is_some_and(|d| (0..d.map.len()).any(|e| d.map[e] == p && !covered(e)))
            || mirror.is_some_and(|m| m.maps(p))
            || slices.into_iter().any(|(_, s)| s.fenced || s.table.values().any(|e| *e == p.1))
    }

    /// What the plugin of `n` sees of an object for which it has a goal.
    pub(crate) fn see(&self, n: N, object: Object) -> Option<Seen> {
        let node = &self.nodes[n];
        let plugin = node.plugin.as_ref()?;
        match plugin.goals.get(&object)? {
            Goal::Attachment { v, epoch, role, map, .. } => {
                let d = node.kernel.devices.get(v);
                let mirror = node.kernel.mirrors.get(v);
                let mut state = match d.map(|d| d.top) {
                    None | Some(Top::Fenced) if mirror.is_some_and(|m| m.table != Table::Error) => {
                        AttachmentSeen::Open
                    }
                    None if mirror.is_some() => AttachmentSeen::Fenced,
                    None => AttachmentSeen::Absent,
                    Some(Top::Fenced) => AttachmentSeen::Fenced,
                    Some(Top::Guard { .. }) => {
                        AttachmentSeen::Guarded { held: d.is_some_and(|d| !d.held.is_empty()) }
                    }
                    Some(Top::Open { .. }) => AttachmentSeen::Open,
                };
                if *role == Role::FenceIfQuiet && self.broken(Mutation::NodeLiesAboutFence) {
                    state = AttachmentSeen::Fenced;
                }
                let stands = matches!(state, AttachmentSeen::Open | AttachmentSeen::Guarded { .. });
                let busy = plugin.busy.get(v) == Some(epoch) && stands;
                let mirror = self.see_mirror(n, *v, Spared::of(map).filter(|s| s.filling).as_ref());
                Some(Seen::Attachment { v: *v, epoch: *epoch, state, busy, mirror })
            }
            Goal::Export { v, disk, consumer, epoch, .. } => {
                let state = match node.kernel.slices.get(&(*v, *disk, *consumer)).map(|s| s.fenced) {
                    None => ExportSeen::Absent,
                    Some(true) => ExportSeen::Fenced,
                    Some(false) => ExportSeen::Serving,
                };
                Some(Seen::Export { v: *v, disk: *disk, consumer: *consumer, epoch: *epoch, state })
            }
            Goal::Wipe { v, wipe, .. } => {
                let refused = plugin.refused.contains(wipe).then_some(Seen::WipeRefused { wipe: *wipe });
                plugin.wiped.contains(wipe).then_some(Seen::Wiped { v: *v, wipe: *wipe }).or(refused)
            }
        }
    }
}

/// Where a disk has which extents of a volume.
fn slice_table(map: &Map, disk: D) -> BTreeMap<usize, usize> {
    let mut out = BTreeMap::new();
    for s in &map.0 {
        for l in s.places().filter(|l| disk_number(l.disk) == disk) {
            for i in 0..s.count.get() {
                out.insert((s.start.get() + i) as usize, (l.first.get() + i) as usize);
            }
        }
    }
    out
}

/// The goal to obey. Under one epoch leave to start a mirror is not taken back.
fn later(known: Option<&Goal>, mut new: Goal) -> Goal {
    if let (Some(Goal::Attachment { epoch: a, start: true, .. }), Goal::Attachment { epoch: b, start, .. }) =
        (known, &mut new)
    {
        *start |= a == b;
    }
    new
}
