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
    oracle::Write,
    types::{
        AttachmentSeen, Checked, D, ExportSeen, Goal, Goals, Mutation, N, QUIET, Seen, V, Violation, places,
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

/// A write that waits in the consumer's kernel for its lender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queued {
    pub(crate) write: Write,
    /// It was sent, and no answer has come.
    pub(crate) sent: bool,
    /// It was sent over a transport that is lost: it is replayed.
    pub(crate) replay: bool,
}

/// A volume's device on its consumer.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) map: Rc<Map>,
    pub(crate) top: Top,
    pub(crate) spell: u64,
    pub(crate) queue: Vec<Queued>,
    pub(crate) held: Vec<Write>,
    pub(crate) last_write: u64,
}

/// A slice for one consumer on a host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) fenced: bool,
    /// What the lender's kernel has taken and not run.
    pub(crate) inflight: Vec<Write>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) devices: BTreeMap<V, Device>,
    pub(crate) slices: BTreeMap<(V, D, N), Slice>,
    /// Hosts to which the transport must be made anew.
    pub(crate) lost: BTreeSet<N>,
}

/// What a plugin works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Attachment(V),
    Export(V, D, N),
    Wipe(V, D),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Plugin {
    pub(crate) goals: BTreeMap<Object, Goal>,
    /// Refused to fence under this epoch.
    busy: BTreeMap<V, Epoch>,
    /// What was reported last on this session.
    pub(crate) reported: BTreeMap<Object, Seen>,
}

pub(crate) struct Node {
    pub(crate) up: bool,
    /// Counts plugin starts: a connection does not outlive either end.
    pub(crate) incarnation: u64,
    pub(crate) plugin: Option<Plugin>,
    pub(crate) kernel: Kernel,
    /// Durable.
    pub(crate) term: Term,
    /// Durable, on the disks: whose each extent is.
    pub(crate) label: BTreeMap<(D, usize), V>,
    /// Durable, on the disks: wipes done.
    pub(crate) wiped: BTreeSet<(V, D)>,
    /// What was ever exported; only a broken node makes use of it.
    pub(crate) served: BTreeSet<(V, D, N)>,
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
            wiped: BTreeSet::new(),
            served: BTreeSet::new(),
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
                Goal::Wipe { v, disk, .. } => (Object::Wipe(*v, *disk), Epoch::ZERO),
            };
            let known = match plugin.goals.get(&object) {
                Some(Goal::Attachment { epoch, .. } | Goal::Export { epoch, .. }) => *epoch,
                Some(Goal::Wipe { .. }) | None => Epoch::ZERO,
            };
            if epoch < known && !obeys_any_epoch {
                self.cov.hit("node: goal of an older epoch refused");
                continue;
            }
            plugin.goals.insert(object, g);
        }
    }

    /// One kernel step of the plugin of `n` towards one of its goals. Says whether there was one.
    pub(crate) fn plugin_step(&mut self, n: N, object: Object) -> Checked<bool> {
        let Some(goal) = self.nodes[n].plugin.as_ref().and_then(|p| p.goals.get(&object).cloned()) else {
            return Ok(false);
        };
        match goal {
            Goal::Attachment { v, epoch, role, map } => self.step_attachment(n, v, epoch, role, &map),
            Goal::Export { v, disk, consumer, state, map, .. } => {
                self.step_export(n, (v, disk, consumer), state, &map)
            }
            Goal::Wipe { v, disk, extents } => self.step_wipe(n, v, disk, &extents),
        }
    }

    fn step_attachment(&mut self, n: N, v: V, epoch: Epoch, role: Role, map: &Rc<Map>) -> Checked<bool> {
        let top = self.nodes[n].kernel.devices.get(&v).map(|d| d.top);
        let want = |read_only| Top::Open { read_only };
        match (role, top) {
            (Role::Writer, None) => self.set_up(n, v, map, want(false)),
            (Role::Reader, None) => self.set_up(n, v, map, want(true)),
            (Role::Guard, None) => self.set_up(n, v, map, Top::Guard { through: false }),
            (Role::Writer, Some(Top::Guard { through: false })) => {
                self.cov.hit("step: write leg swapped");
                self.device(n, v).top = Top::Guard { through: true };
                Ok(true)
            }
            (
                Role::Writer,
                Some(Top::Guard { through: true } | Top::Fenced | Top::Open { read_only: true }),
            ) => self.swap_open(n, v),
            (Role::Reader, Some(Top::Fenced)) => {
                self.device(n, v).top = want(true);
                Ok(true)
            }
            (Role::Writer, Some(Top::Open { read_only: false }))
            | (Role::Reader, Some(Top::Open { .. } | Top::Guard { .. }))
            | (Role::Guard, Some(_)) => Ok(false),
            (Role::FenceIfQuiet, Some(Top::Open { .. } | Top::Guard { .. })) => {
                self.step_fence_if_quiet(n, v, epoch)
            }
            (Role::FenceIfQuiet, Some(Top::Fenced) | None) | (Role::Absent, None) => Ok(false),
            (Role::Absent, Some(Top::Open { .. } | Top::Guard { .. })) => self.fence_device(n, v),
            (Role::Absent, Some(Top::Fenced)) => {
                // EBUSY while a VM has it open.
                if self.vms.contains_key(&(v, n)) {
                    return Ok(false);
                }
                self.nodes[n].kernel.devices.remove(&v);
                Ok(true)
            }
        }
    }

    pub(crate) fn device(&mut self, n: N, v: V) -> &mut Device {
        self.nodes[n].kernel.devices.get_mut(&v).expect("the caller has seen it")
    }

    fn set_up(&mut self, n: N, v: V, map: &Rc<Map>, top: Top) -> Checked<bool> {
        self.write_label(n, v, map, None);
        let mut spell = self.oracle.spell(v, n).unwrap_or_default();
        if top == (Top::Open { read_only: false }) && spell == 0 {
            return Err(Violation(format!("node {n} opens volume {v} and was never entitled to")));
        }
        // A guard that is set up when the commit is on record already may open at once.
        if matches!(top, Top::Guard { .. }) && self.oracle.is_entitled(v, n) {
            spell -= 1;
        }
        let device =
            Device { map: map.clone(), top, spell, queue: vec![], held: vec![], last_write: self.now };
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
        d.spell = spell;
        d.last_write = now;
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
        let now = self.now;
        let d = self.device(n, v);
        if now.saturating_sub(d.last_write) < QUIET || !d.queue.is_empty() || !d.held.is_empty() {
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
    /// waited for.
    fn fence_device(&mut self, n: N, v: V) -> Checked<bool> {
        let queue = self.device(n, v).queue.clone();
        for q in &queue {
            if q.sent && self.reaches(n, self.host_of[q.write.disk]) && self.is_in_flight(&q.write) {
                return Ok(false);
            }
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
        self.device(n, v).queue.clear();
        if leaks {
            // Any suspend releases what is held to the write leg, which is the real map by now.
            self.release_held(n, v)?;
            for q in std::mem::take(&mut self.device(n, v).queue) {
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

    fn is_in_flight(&self, w: &Write) -> bool {
        let host = &self.nodes[self.host_of[w.disk]];
        host.kernel
            .slices
            .get(&(w.v, w.disk, w.node))
            .is_some_and(|s| s.inflight.iter().any(|x| x.seq == w.seq))
    }

    fn write_label(&mut self, n: N, v: V, map: &Map, disk: Option<D>) {
        for (d, e) in places(map) {
            if self.host_of[d] == n && disk.is_none_or(|x| x == d) {
                self.nodes[n].label.insert((d, e), v);
            }
        }
    }

    fn step_export(&mut self, n: N, key: (V, D, N), state: ExportState, map: &Rc<Map>) -> Checked<bool> {
        let fenced = self.nodes[n].kernel.slices.get(&key).map(|s| s.fenced);
        match (state, fenced) {
            (ExportState::Serving, None) => {
                self.write_label(n, key.0, map, Some(key.1));
                self.nodes[n].kernel.slices.insert(key, Slice::default());
                self.nodes[n].served.insert(key);
                Ok(true)
            }
            (ExportState::Serving, Some(true)) => {
                self.cov.hit("step: a fenced slice serves again");
                self.slice(n, key).fenced = false;
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

    fn step_wipe(&mut self, n: N, v: V, disk: D, extents: &[usize]) -> Checked<bool> {
        let again = self.broken(Mutation::NodeWipesAgain);
        let blind = self.broken(Mutation::DeleteUnderADevice);
        let node = &self.nodes[n];
        let mapped = !blind
            && (node.kernel.devices.contains_key(&v)
                || node.kernel.slices.keys().any(|(x, d, _)| (*x, *d) == (v, disk)));
        if node.wiped.contains(&(v, disk)) && !again {
            return Ok(false);
        }
        let owners: BTreeSet<V> =
            extents.iter().filter_map(|e| node.label.get(&(disk, *e)).copied()).collect();
        if owners.iter().any(|o| *o != v) && !again {
            self.cov.hit("step: wipe of another volume's extents refused");
            return Ok(false);
        }
        if mapped {
            self.cov.hit("step: wipe refused while mapped");
            return Ok(false);
        }
        let deleting = self.store.is_deleting(v);
        for e in extents {
            self.oracle.zeroed(v, disk, *e, deleting)?;
            self.nodes[n].label.remove(&(disk, *e));
        }
        self.nodes[n].wiped.insert((v, disk));
        self.cov.hit("step: wiped");
        Ok(!again)
    }

    /// What the plugin of `n` sees of an object for which it has a goal.
    pub(crate) fn see(&self, n: N, object: Object) -> Option<Seen> {
        let node = &self.nodes[n];
        let plugin = node.plugin.as_ref()?;
        match plugin.goals.get(&object)? {
            Goal::Attachment { v, epoch, role, .. } => {
                let d = node.kernel.devices.get(v);
                let mut state = match d.map(|d| d.top) {
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
                Some(Seen::Attachment { v: *v, epoch: *epoch, state, busy })
            }
            Goal::Export { v, disk, consumer, epoch, .. } => {
                let state = match node.kernel.slices.get(&(*v, *disk, *consumer)).map(|s| s.fenced) {
                    None => ExportSeen::Absent,
                    Some(true) => ExportSeen::Fenced,
                    Some(false) => ExportSeen::Serving,
                };
                Some(Seen::Export { v: *v, disk: *disk, consumer: *consumer, epoch: *epoch, state })
            }
            Goal::Wipe { v, disk, .. } => {
                node.wiped.contains(&(*v, *disk)).then_some(Seen::Wiped { v: *v, disk: *disk })
            }
        }
    }
}
