//! What must hold, judged from outside: what lies on disks, who was entitled to write by durable record, what was
//! acknowledged. It shares no decision with the code under test.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    access::{Access, AccessState, Sharing},
    ids::Epoch,
    volume::Map,
};

use crate::types::{Checked, D, DISK_EXTENTS, N, V, Violation, number_of, places};

/// One write of one block that stands for its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) v: V,
    pub(crate) node: N,
    /// Which spell of being entitled to write it was issued under; grows with each new writer of the volume.
    pub(crate) spell: u64,
    /// Grows with each write of the simulation.
    pub(crate) seq: u64,
    /// Logical extent.
    pub(crate) extent: usize,
    pub(crate) disk: D,
    /// Extent of the disk.
    pub(crate) at: usize,
}

/// What is true of one volume.
struct Truth {
    multi: bool,
    places: Vec<(D, usize)>,
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
            volumes: BTreeMap::new(),
        }
    }

    pub(crate) fn is_multi(&self, v: V) -> bool {
        self.volumes.get(&v).is_some_and(|t| t.multi)
    }

    /// The spell under which `node` writes from now on, if it ever was entitled.
    pub(crate) fn spell(&self, v: V, node: N) -> Option<u64> {
        self.volumes.get(&v).and_then(|t| t.spell_of.get(&node).copied())
    }

    pub(crate) fn is_entitled(&self, v: V, node: N) -> bool {
        self.volumes.get(&v).is_some_and(|t| t.entitled.contains(&node))
    }

    /// A volume was put on record.
    pub(crate) fn created(&mut self, v: V, map: &Map, sharing: Sharing) -> Checked {
        let places = places(map);
        for (d, e) in &places {
            if let Some(o) = self.owner[*d][*e].replace(v) {
                return fail(format!(
                    "(4) extent {e} of disk {d} given to volume {v} while volume {o} owns it"
                ));
            }
            if let Some(w) = self.cells[*d][*e] {
                return fail(format!("(4) extent {e} of disk {d} given to volume {v} with data of {w:?}"));
            }
        }
        let truth = Truth {
            multi: sharing == Sharing::MultiWriter,
            places,
            epoch: Epoch::ZERO,
            entitled: BTreeSet::new(),
            spell_of: BTreeMap::new(),
            spells: 0,
            acked: BTreeMap::new(),
        };
        self.volumes.insert(v, truth);
        Ok(())
    }

    /// A volume's record is gone: its extents are free.
    pub(crate) fn freed(&mut self, v: V) -> Checked {
        let Some(t) = self.volumes.remove(&v) else { return fail(format!("volume {v} was deleted twice")) };
        for (d, e) in t.places {
            self.owner[d][e] = None;
            if let Some(w) = self.cells[d][e] {
                return fail(format!("(4) extent {e} of disk {d} is free and holds data of {w:?}"));
            }
        }
        Ok(())
    }

    /// A volume's record changed.
    pub(crate) fn recorded(&mut self, v: V, s: &AccessState) -> Checked {
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
        if w.spell == 0 {
            return fail(format!("(5) {w:?} landed and its node was never entitled to write"));
        }
        let cell = &mut self.cells[w.disk][w.at];
        let multi = self.volumes.get(&w.v).is_some_and(|t| t.multi);
        if let Some(have) = cell.filter(|_| !multi) {
            if w.spell < have.spell {
                return fail(format!("(2) {w:?} landed after {have:?} of a later holder"));
            }
            if (w.spell, w.seq) < (have.spell, have.seq) {
                return fail(format!("(3) {w:?} landed over the later {have:?}"));
            }
        }
        *cell = Some(w);
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
        let (d, at) = t.places[extent];
        let Some(acked) = t.acked.get(&extent) else { return Ok(()) };
        match self.cells[d][at] {
            Some(w) if w.v == v && (w.spell, w.seq) >= *acked => Ok(()),
            have => fail(format!("(3) volume {v} extent {extent}: acknowledged {acked:?}, on disk {have:?}")),
        }
    }

    /// A node zeroed an extent.
    pub(crate) fn zeroed(&mut self, v: V, disk: D, at: usize, deleting: bool) -> Checked {
        self.cells[disk][at] = None;
        match self.owner[disk][at] {
            Some(o) if o == v && deleting => Ok(()),
            o => fail(format!("(3) the wipe for volume {v} zeroed extent {at} of disk {disk} of {o:?}")),
        }
    }
}
