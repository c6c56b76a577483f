//! Moves of extents, as a controller makes them: it begins some, looks what has become of them, and writes the record that
//! switches without knowing at once how that ends.

use pool::{
    access::{Access, AccessState, Event, Mode},
    ids::{DiskId, Epoch},
    moving::{CannotMove, Mirror, MoveCause, MoveFacts, MoveStep, Piece},
    record::VolumeRecord,
    units::Extents,
    volume::Leg,
};

use crate::{
    controller::{Record, Versioned},
    types::{Checked, D, DISK_EXTENTS, Mutation, V, disk_id, disk_number, extents_of, name_of, number_of},
    world::World,
};

/// A write on its way to the store. Whoever sent it may be gone by the time that it gets there.
pub(crate) struct Flight {
    c: u64,
    v: V,
    version: u64,
    to: Record,
}

/// A write that a controller waits for.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    to: Record,
    /// Once it is known: the version that it got.
    done: Option<Option<u64>>,
}

impl World {
    /// The record after a change of its access.
    pub(crate) fn settled_spare(&mut self, record: &Record, access: AccessState) -> Record {
        let next = VolumeRecord { access, ..VolumeRecord::clone(&record.vol) };
        if self.broken(Mutation::SpareFilledForMany) {
            return Record::new(next);
        }
        let filled = next.is_filling();
        let next = next.with_spare_settled();
        if filled && !next.is_filling() {
            self.cov.hit("move: called off by a change of access");
        } else if filled {
            self.cov.hit("move: goes on over a change of access");
        }
        Record::new(next)
    }

    /// A controller does something about the moves of a volume.
    pub(crate) fn some_move(&mut self) -> Checked {
        let Some(c) = self.any_controller() else { return Ok(()) };
        let all: Vec<V> = self.controllers[&c].records.keys().copied().collect();
        let Some(v) = self.rng.pick(&all) else { return Ok(()) };
        let r = &self.controllers[&c].records[&v].record;
        if r.vol.moving.is_some() {
            let (tired, rash) = (self.rng.one_in(300), self.rng.one_in(3));
            return self.step_move(c, v, tired, rash);
        }
        let keeper = r.vol.access.upkeeper().map(number_of);
        match (keeper, r.vol.access.is_idle()) {
            (Some(k), _) if self.rng.one_in(12) => self.detach(c, v, k).map(|_| ()),
            (None, true) if self.rng.one_in(12) => self.keep_up(c, v),
            _ if self.rng.one_in(3) => self.begin_some_move(c, v).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Holds a volume that nobody uses, where one of its disks is.
    fn keep_up(&mut self, c: u64, v: V) -> Checked {
        let disks: Vec<DiskId> = self.controllers[&c].records[&v].record.map.disks().into_iter().collect();
        let Some(d) = self.rng.pick(&disks) else { return Ok(()) };
        let node = name_of(self.host_of[disk_number(d)]);
        self.event(c, v, &Event::Attach { node, mode: Mode::UPKEEP })?;
        self.cov.hit("move: upkeep");
        Ok(())
    }

    /// Begins to move a random run of a volume, if it can be moved.
    pub(crate) fn begin_some_move(&mut self, c: u64, v: V) -> Checked<bool> {
        if !self.may_allocate(c)? {
            return Ok(false);
        }
        let Some(r) = self.own(c, v).filter(|r| !r.record.is_deleting()) else { return Ok(false) };
        let vol = r.record.vol.clone();
        if vol.access.sole_holder().is_none() || vol.moving.is_some() {
            return Ok(false);
        }
        let s = vol.map.0[self.rng.below(vol.map.0.len())].clone();
        let skip = self.rng.below(s.count.get() as usize) as u64;
        let count = 1 + self.rng.below((s.count.get() - skip) as usize) as u64;
        // Back to where the last move came from, as likely as not.
        let left = self.left.get(&v).copied().filter(|_| self.rng.one_in(2));
        let disk: D = left.unwrap_or(self.rng.below(self.host_of.len()));
        let Some(first) = self.free_run(c, disk, count as usize) else { return Ok(false) };
        let piece = Piece {
            start: s.start.plus(Extents::new(skip)),
            count: Extents::new(count),
            leg: 0,
            to: Leg { disk: disk_id(disk), first: Extents::new(first as u64) },
        };
        let next = match vol.begin_move(piece, MoveCause::Drain) {
            Ok(next) => next,
            Err(CannotMove::Wiping(_)) => {
                self.cov.hit("move: waits for a wipe on its disk");
                return Ok(false);
            }
            Err(_) => return Ok(false),
        };
        self.say(|| format!("c{c} v{v} begins a move: {piece:?} {:?}", next.map));
        let used = vol.access.users();
        self.cov.hit(if used.is_empty() { "move: begun in upkeep" } else { "move: begun under a user" });
        if count > 1 {
            self.cov.hit("move: of several extents");
        }
        self.write(c, v, Record::new(next))
    }

    /// Whether `c` may give extents away: where the store does not know who is active, once its term is on every record,
    /// so that no other can give the same ones to a volume that it has only read.
    pub(crate) fn may_allocate(&mut self, c: u64) -> Checked<bool> {
        if !self.adopts() {
            return Ok(true);
        }
        self.adopt(c)?;
        Ok(self.controllers.get(&c).is_some_and(|ctl| ctl.records.values().all(|r| r.record.term == c)))
    }

    fn free_run(&self, c: u64, disk: D, count: usize) -> Option<usize> {
        let ctl = &self.controllers[&c];
        let pending = ctl.pending.values().map(|p| &p.to);
        let mine = ctl.records.values().map(|r| &r.record).chain(pending);
        let owned: Vec<(D, usize)> =
            mine.flat_map(|r| r.vol.runs().collect::<Vec<_>>()).flat_map(|r| extents_of(&r)).collect();
        let free = |e: usize| e < DISK_EXTENTS && !owned.contains(&(disk, e));
        (0..DISK_EXTENTS).find(|e| (*e..e + count).all(free))
    }

    /// Does what is next for a move. `tired`: it is not wanted any more. `rash`: it ends with the spare's host.
    pub(crate) fn step_move(&mut self, c: u64, v: V, tired: bool, rash: bool) -> Checked {
        let Some(r) = self.own(c, v) else { return Ok(()) };
        let Some(ctl) = self.controllers.get(&c) else { return Ok(()) };
        let (version, vol) = (r.version, r.record.vol.clone());
        let (Some(m), Some((_, p))) = (&vol.moving, vol.map.spare()) else { return Ok(()) };
        if r.record.is_deleting() {
            return Ok(());
        }
        let host = self.host_of[disk_number(p.place.disk)];
        let mut mirror = ctl.mirrors.get(&(v, number_of(&m.by))).copied();
        let obstacle = tired || (rash && !ctl.alive(host, self.now));
        let late = Epoch::new(u64::MAX);
        if self.broken(Mutation::SwitchBeforeWhole) && matches!(mirror, Some((_, Mirror::Copying(..)))) {
            mirror = Some((late, Mirror::Whole));
        }
        if self.broken(Mutation::SpareGivenUpEarly) && !p.filling {
            mirror = Some((late, Mirror::Gone));
        }
        let mut asked = VolumeRecord::clone(&vol);
        if self.broken(Mutation::SpareFilledForMany) && p.filling {
            let holders = [(m.by.clone(), Mode { upkeep: false, ..Mode::UPKEEP })].into();
            asked.access.access = Access::Attached { holders };
            asked.access.leaving.clear();
        }
        let mut wipe = self.wipes;
        let step = asked.step_move(&MoveFacts { mirror, obstacle }, || {
            wipe += 1;
            wipe
        });
        self.wipes = wipe;
        self.say(|| format!("c{c} v{v} move: {mirror:?} obstacle {obstacle}: {}", name_step(&step)));
        let again = |next: Box<VolumeRecord>| {
            let access = AccessState { epoch: next.access.epoch, ..vol.access.clone() };
            Record::new(VolumeRecord { access, ..*next })
        };
        match step {
            MoveStep::Wait => Ok(()),
            MoveStep::Switch(next) => {
                self.cov.hit("move: the switch is being written");
                let to = Record { term: c, ..again(next) };
                self.store.flights.push(Flight { c, v, version, to: to.clone() });
                if let Some(ctl) = self.controllers.get_mut(&c) {
                    ctl.pending.insert(v, Pending { to, done: None });
                }
                Ok(())
            }
            MoveStep::CallOff(next) => {
                self.cov.hit(match mirror {
                    Some((_, Mirror::Broken)) => "move: called off, the mirror is broken",
                    Some(_) | None => "move: called off",
                });
                self.write(c, v, again(next)).map(|_| ())
            }
            MoveStep::End(next, run) => {
                if self.write(c, v, again(next))? {
                    self.left.insert(v, disk_number(run.disk));
                    self.cov.hit("move: ended");
                }
                Ok(())
            }
        }
    }

    /// A write reaches the store, or (when its sender is gone) may not.
    pub(crate) fn land_some_write(&mut self) -> Checked {
        if self.store.flights.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.store.flights.len());
        let f = self.store.flights.swap_remove(i);
        let orphan = !self.controllers.contains_key(&f.c);
        if orphan && self.rng.one_in(3) {
            self.cov.hit("switch: lost with its controller");
            return Ok(());
        }
        let version = self.store.swap(f.c, f.v, Some(f.version), Some(f.to.clone()));
        self.say(|| format!("switch of v{} by c{}: {version:?}", f.v, f.c));
        if version.is_some() {
            self.cov.hit(if orphan {
                "switch: written after its controller's end"
            } else {
                "switch: written"
            });
            self.on_record(f.v, &f.to)?;
        } else {
            self.cov.hit("switch: refused");
        }
        if let Some(p) = self.controllers.get_mut(&f.c).and_then(|ctl| ctl.pending.get_mut(&f.v)) {
            p.done = Some(version);
        }
        Ok(())
    }

    /// A controller hears how a write went.
    pub(crate) fn learn_some_outcome(&mut self) {
        let known = |(c, v, p): (u64, V, &Pending)| p.done.map(|d| (c, v, d));
        let all = self.controllers.iter().flat_map(|(c, x)| x.pending.iter().map(|(v, p)| (*c, *v, p)));
        let all: Vec<_> = all.filter_map(known).collect();
        let Some((c, v, done)) = self.rng.pick(&all) else { return };
        let Some(ctl) = self.controllers.get_mut(&c) else { return };
        let Some(p) = ctl.pending.remove(&v) else { return };
        match done {
            Some(version) => {
                ctl.records.insert(v, Versioned { version, record: p.to });
            }
            None => self.refused(c, v),
        }
    }

    /// A node that has to do with a move, if there is one: faults come there more often.
    pub(crate) fn some_mover(&mut self) -> Option<usize> {
        let moving = self.store.records.values().filter_map(|r| {
            let (_, p) = r.record.map.spare()?;
            Some((number_of(&r.record.vol.moving.as_ref()?.by), self.host_of[disk_number(p.place.disk)]))
        });
        let nodes: Vec<usize> = moving.flat_map(|(by, host)| [by, by, host]).collect();
        self.rng.pick(&nodes)
    }

    /// A node of whose mirror the active controller believes that it is whole.
    pub(crate) fn some_whole(&mut self) -> Option<usize> {
        let ctl = self.controllers.get(&self.store.term)?;
        let whole: Vec<usize> =
            ctl.mirrors.iter().filter(|(_, w)| w.1 == Mirror::Whole).map(|((_, n), _)| *n).collect();
        self.rng.pick(&whole)
    }

    /// Whether no move is under way and nothing waits for a wipe.
    pub(crate) fn moves_have_ended(&self) -> Result<(), String> {
        for (v, r) in &self.store.records {
            if let Some(m) = &r.record.vol.moving {
                let node = &self.nodes[number_of(&m.by)].kernel;
                let (mirror, queue) = (node.mirrors.get(v), node.queues.get(v));
                return Err(format!("volume {v} has a move that does not end: {m:?} {mirror:?} {queue:?}"));
            }
            if let Some(x) = r.record.vol.retired.first().filter(|_| !r.record.is_deleting()) {
                return Err(format!("volume {v} has a run that is not wiped: {x:?}"));
            }
            let stray = |d: D, n: usize| {
                let holders = r.record.vol.access.holders();
                !r.record.map.disks().contains(&disk_id(d)) || !holders.contains(&name_of(n))
            };
            for (n, node) in self.nodes.iter().enumerate() {
                if node.kernel.mirrors.contains_key(v) {
                    return Err(format!("volume {v} has a mirror on node {n}"));
                }
                let mut slices = node.kernel.slices.keys().filter(|k| k.0 == *v);
                if let Some(k) = slices.find(|k| stray(k.1, k.2)).filter(|_| !self.is_shared(*v)) {
                    return Err(format!("node {n} has the slice {k:?} for nobody"));
                }
            }
        }
        Ok(())
    }

    fn is_shared(&self, v: V) -> bool {
        matches!(&self.store.records[&v].record.vol.access.access, Access::Guarded { .. })
    }
}

fn name_step(s: &MoveStep) -> &'static str {
    match s {
        MoveStep::Wait => "wait",
        MoveStep::Switch(_) => "switch",
        MoveStep::CallOff(_) => "call off",
        MoveStep::End(..) => "end",
    }
}
