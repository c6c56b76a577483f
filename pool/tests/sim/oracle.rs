//! What must hold, judged from outside: what lies on disks, who was entitled to write by durable record, what was
//! acknowledged. It shares no decision with the code under test.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use pool::{
    access::{Access, AccessState, Sharing},
    ids::Epoch,
    record::VolumeRecord,
    volume::Map,
};

use crate::types::{Checked, D, DISK_EXTENTS, N, V, Violation, extents_of, number_of, places};

/// Extents that came to a volume or went from it.
pub(crate) type Moved = BTreeSet<(D, usize)>;

/// One write of one block that stands for its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) v: V,
    pub(crate) node: N,
    /// Which spell of being entitled to write it was issued under; grows with each new writer of the volume.
    pub(crate) spell: u64,
    /// Grows with each write of the simulation. What a mirror copies keeps the number of what was written.
    pub(crate) seq: u64,
    /// Tells the writes apart that one write comes down to.
    pub(crate) io: u64,
    /// Copied by a mirror from its leg. Without a number: the leg was blank.
    pub(crate) copy: bool,
    /// Logical extent.
    pub(crate) extent: usize,
    pub(crate) disk: D,
    /// Extent of the disk.
    pub(crate) at: usize,
}

/// What is true of one volume.
struct Truth {
    multi: bool,
    map: Rc<Map>,
    /// Where the record says that each extent lies.
    places: Vec<(D, usize)>,
    /// Everything that is its own.
    owned: BTreeSet<(D, usize)>,
    /// What of it awaits a wipe.
    retired: BTreeSet<(D, usize)>,
    epoch: Epoch,
    entitled: BTreeSet<N>,
    spell_of: BTreeMap<N, u64>,
    spells: u64,
    /// Last acknowledged write of each extent.
    acked: BTreeMap<usize, (u64, u64)>,
}

pub(crate) struct Oracle {
    cells: Vec<[Option<Write>; DISK_EXTENTS]>,
    owner: Vec<[Option<V>; DISK_EXTENTS]>,
    /// Wiped, and not free yet.
    wiped: BTreeSet<(D, usize)>,
    volumes: BTreeMap<V, Truth>,
}

fn fail<T>(what: String) -> Checked<T> {
    Err(Violation(what))
}

/// Who may write by this record.
fn entitled(s: &AccessState) -> BTreeSet<N> {
    match &s.access {
        Access::Detached | Access::Granting { .. } | Access::CuttingOver { source_left: true, .. } => {
            BTreeSet::new()
        }
        Access::Attached { holders } => {
            holders.iter().filter(|(_, m)| !m.read_only).map(|(n, _)| number_of(n)).collect()
        }
        Access::Guarded { source, .. } | Access::CuttingOver { source, source_left: false, .. } => {
            BTreeSet::from([number_of(source)])
        }
    }
}

impl Oracle {
    pub(crate) fn new(disks: usize) -> Self {
        Self {
            cells: vec![[None; DISK_EXTENTS]; disks],
            owner: vec![[None; DISK_EXTENTS]; disks],
            wiped: BTreeSet::new(),
            volumes: BTreeMap::new(),
        }
    }

    pub(crate) fn is_multi(&self, v: V) -> bool {
        self.volumes.get(&v).is_some_and(|t| t.multi)
    }

    pub(crate) fn knows(&self, v: V) -> bool {
        self.volumes.contains_key(&v)
    }

    /// The spell under which `node` writes from now on, if it ever was entitled.
    pub(crate) fn spell(&self, v: V, node: N) -> Option<u64> {
        self.volumes.get(&v).and_then(|t| t.spell_of.get(&node).copied())
    }

    pub(crate) fn is_entitled(&self, v: V, node: N) -> bool {
        self.volumes.get(&v).is_some_and(|t| t.entitled.contains(&node))
    }

    /// What lies in a place.
    pub(crate) fn cell(&self, (disk, at): (D, usize)) -> Option<Write> {
        self.cells[disk][at]
    }

    /// A volume was put on record.
    pub(crate) fn created(&mut self, v: V, r: &VolumeRecord, map: &Rc<Map>) -> Checked<Moved> {
        let truth = Truth {
            multi: r.params.sharing == Sharing::MultiWriter,
            map: Rc::new(Map::default()),
            places: vec![],
            owned: BTreeSet::new(),
            retired: BTreeSet::new(),
            epoch: Epoch::ZERO,
            entitled: BTreeSet::new(),
            spell_of: BTreeMap::new(),
            spells: 0,
            acked: BTreeMap::new(),
        };
        self.volumes.insert(v, truth);
        self.recorded(v, r, map)
    }

    /// A volume's record is gone: its extents are free.
    pub(crate) fn freed(&mut self, v: V) -> Checked<Moved> {
        let Some(t) = self.volumes.remove(&v) else { return fail(format!("volume {v} was deleted twice")) };
        for p in &t.owned {
            self.release(*p)?;
        }
        Ok(t.owned)
    }

    fn release(&mut self, (d, e): (D, usize)) -> Checked {
        self.owner[d][e] = None;
        self.wiped.remove(&(d, e));
        match self.cells[d][e] {
            Some(w) => fail(format!("(4) extent {e} of disk {d} is free and holds data of {w:?}")),
            None => Ok(()),
        }
    }

    fn take(&mut self, v: V, (d, e): (D, usize)) -> Checked {
        if let Some(o) = self.owner[d][e].replace(v) {
            return fail(format!("(4) extent {e} of disk {d} given to volume {v} while volume {o} owns it"));
        }
        match self.cells[d][e] {
            Some(w) => fail(format!("(4) extent {e} of disk {d} given to volume {v} with data of {w:?}")),
            None => Ok(()),
        }
    }

    /// A volume's record changed. Answers the extents that came to it or went from it.
    pub(crate) fn recorded(&mut self, v: V, r: &VolumeRecord, map: &Rc<Map>) -> Checked<Moved> {
        self.access_recorded(v, &r.access)?;
        let Some(t) = self.volumes.get_mut(&v) else { return fail(format!("volume {v} has no record")) };
        let owned: BTreeSet<_> = r.runs().flat_map(|x| extents_of(&x)).collect();
        t.retired = r.retired.iter().flat_map(|x| x.runs()).flat_map(|x| extents_of(&x)).collect();
        let before = std::mem::replace(&mut t.owned, owned.clone());
        let moved = *t.map != **map;
        if moved {
            t.map = map.clone();
            t.places = places(map);
        }
        let extents = t.places.len();
        let (came, went) = (&owned - &before, &before - &owned);
        for p in &came {
            self.take(v, *p)?;
        }
        for p in &went {
            self.release(*p)?;
        }
        for e in (0..extents).filter(|_| moved) {
            self.check_extent(v, e)?;
        }
        Ok(&came | &went)
    }

    fn access_recorded(&mut self, v: V, s: &AccessState) -> Checked {
        let Some(t) = self.volumes.get_mut(&v) else { return fail(format!("volume {v} has no record")) };
        if s.epoch < t.epoch {
            return fail(format!("(6) the epoch of volume {v} fell from {} to {}", t.epoch, s.epoch));
        }
        t.epoch = s.epoch;
        let now = entitled(s);
        if !t.multi && now.len() > 1 {
            return fail(format!("(1) volume {v} has writers {now:?} on record"));
        }
        for n in &now {
            if !t.entitled.contains(n) {
                t.spells += 1;
                t.spell_of.insert(*n, t.spells);
            }
        }
        t.entitled = now;
        for n in s.holders() {
            if s.leaving.contains_key(&n) {
                return fail(format!("volume {v}: {n} holds it and is leaving: {s:?}"));
            }
        }
        Ok(())
    }

    /// A write reached its disk.
    pub(crate) fn landed(&mut self, w: Write) -> Checked {
        if self.owner[w.disk][w.at] != Some(w.v) {
            return fail(format!("(4) {w:?} landed on an extent of {:?}", self.owner[w.disk][w.at]));
        }
        if w.spell == 0 && !w.copy {
            return fail(format!("(5) {w:?} landed and its node was never entitled to write"));
        }
        let truth = self.volumes.get(&w.v);
        // A spare is filled anew, and may get older data than it has.
        let ordered = truth.is_some_and(|t| !t.multi && t.places.get(w.extent) == Some(&(w.disk, w.at)));
        let cell = &mut self.cells[w.disk][w.at];
        if let Some(have) = cell.filter(|_| ordered) {
            if w.spell < have.spell {
                return fail(format!("(2) {w:?} landed after {have:?} of a later holder"));
            }
            if (w.spell, w.seq) < (have.spell, have.seq) {
                return fail(format!("(3) {w:?} landed over the later {have:?}"));
            }
        }
        *cell = (w.seq != 0).then_some(w);
        self.check_extent(w.v, w.extent)
    }

    /// A write was acknowledged to its VM.
    pub(crate) fn acknowledged(&mut self, w: Write) -> Checked {
        let Some(t) = self.volumes.get_mut(&w.v) else {
            return fail(format!("{w:?} was acknowledged without a volume"));
        };
        let e = t.acked.entry(w.extent).or_default();
        *e = (*e).max((w.spell, w.seq));
        self.check_extent(w.v, w.extent)
    }

    fn check_extent(&self, v: V, extent: usize) -> Checked {
        let Some(t) = self.volumes.get(&v).filter(|t| !t.multi) else { return Ok(()) };
        let Some((d, at)) = t.places.get(extent).copied() else { return Ok(()) };
        let Some(acked) = t.acked.get(&extent) else { return Ok(()) };
        match self.cells[d][at] {
            Some(w) if w.v == v && (w.spell, w.seq) >= *acked => Ok(()),
            have => fail(format!("(3) volume {v} extent {extent}: acknowledged {acked:?}, on disk {have:?}")),
        }
    }

    /// What the one who may write would read in a place must be what was acknowledged.
    pub(crate) fn read(&self, v: V, extent: usize, (d, at): (D, usize)) -> Checked {
        let Some(acked) = self.volumes.get(&v).filter(|t| !t.multi).and_then(|t| t.acked.get(&extent)) else {
            return Ok(());
        };
        match self.cells[d][at] {
            Some(w) if w.v == v && (w.spell, w.seq) >= *acked => Ok(()),
            have => {
                fail(format!("(3) volume {v} extent {extent} read: acknowledged {acked:?}, found {have:?}"))
            }
        }
    }

    /// A consumer opens a volume with its extents where `map` says.
    pub(crate) fn opened(&self, v: V, map: &[(D, usize)]) -> Checked {
        let Some(t) = self.volumes.get(&v) else {
            return fail(format!("volume {v} is opened and is no more"));
        };
        if t.places != map {
            return fail(format!("(3) volume {v} is opened at {map:?} and lies at {:?}", t.places));
        }
        (0..map.len()).try_for_each(|e| self.check_extent(v, e))
    }

    /// A table of a volume gets extents of a disk: they must be its own, and not be wiped already.
    pub(crate) fn mapped(&self, v: V, disk: D, extents: impl Iterator<Item = usize>) -> Checked {
        for e in extents {
            if self.owner[disk][e] != Some(v) || self.wiped.contains(&(disk, e)) {
                let o = self.owner[disk][e];
                return fail(format!(
                    "(4) volume {v} maps extent {e} of disk {disk}, which is wiped or of {o:?}"
                ));
            }
        }
        Ok(())
    }

    /// A node says that an extent is wiped, without a look at it.
    pub(crate) fn called_blank(&mut self, v: V, disk: D, at: usize) -> Checked {
        match self.cells[disk][at] {
            None => self.zeroed(v, disk, at),
            Some(w) => fail(format!("(4) extent {at} of disk {disk} is said to be wiped and holds {w:?}")),
        }
    }

    /// A node zeroed an extent. What is blank anyway may be zeroed by a node that has forgotten that it did so.
    pub(crate) fn zeroed(&mut self, v: V, disk: D, at: usize) -> Checked {
        let had = self.cells[disk][at].take();
        let retired = self.volumes.get(&v).is_some_and(|t| t.retired.contains(&(disk, at)));
        match (self.owner[disk][at], had) {
            (Some(o), _) if o == v && retired => {
                self.wiped.insert((disk, at));
                Ok(())
            }
            (_, None) => Ok(()),
            (o, Some(w)) => fail(format!(
                "(3) the wipe for volume {v} zeroed extent {at} of disk {disk} of {o:?} with {w:?}"
            )),
        }
    }
}
