//! The device-mapper devices that make a volume on a consumer and a slice on a host, as tables with symbolic
//! devices: the node plugin fills in the numbers. One place decides what lies where.
//!
//! A slice keeps the volume's own addresses: logical sector X of the volume is sector X of every slice that holds
//! it, and what a slice does not hold is a hole that fails I/O. So a slice's layout never shifts when extents
//! are added or moved, and a consumer needs no second map. Holes cost a table row, no space.
//!
//! Must not know: device numbers, ioctls, how a target is spelled.

use crate::{
    ids::{DiskId, NodeName, SliceId, VolumeId},
    names::{self, DmRole},
    units::{ExtentSize, Sectors},
    volume::{Leg, Map, Segment},
};

/// A device by what it is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dev {
    /// The data area of a disk of this node; offsets count from its first extent.
    Disk(DiskId),
    /// A device-mapper device of ours.
    Dm(DmRole),
    /// The block device of an imported slice.
    Import(SliceId),
}

/// What a run of sectors maps to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Straight through.
    Linear {
        /// To.
        dev: Dev,
        /// From this sector of it.
        offset: Sectors,
    },
    /// Interleaved over several.
    Striped {
        /// Sectors before the next one has its turn.
        chunk: Sectors,
        /// Each with its first sector.
        legs: Vec<(Dev, Sectors)>,
    },
    /// Fails all I/O: what a slice does not hold. Not flakey, though that would let the slice advertise discard: a
    /// flush goes to every target of a table, flakey fails it, and error is not sent it.
    Hole,
    /// Fails all I/O: a fence.
    Error,
    /// Bio-based multipath that queues without a path.
    Multipath {
        /// The path.
        path: Dev,
    },
    /// Every write goes to both, reads to the first, which is copied to the second. A write that fails on either is
    /// held until the table is swapped.
    Mirror {
        /// Sectors that are copied at a time.
        region: Sectors,
        /// The leg and the spare, each with its first sector.
        legs: [(Dev, Sectors); 2],
    },
    /// Passes reads, fails writes and discards.
    FailWrites {
        /// To.
        dev: Dev,
    },
    /// Reads and flushes go to `map` at once; writes are held, for `write_leg`.
    Guard {
        /// The real map.
        map: Dev,
        /// Where held writes end up.
        write_leg: Dev,
    },
}

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// First sector.
    pub start: Sectors,
    /// Sectors, never zero.
    pub len: Sectors,
    /// Where they go.
    pub target: Target,
}

/// A device with its table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DmDevice {
    /// What it is for.
    pub role: DmRole,
    /// Its table, in order and without gap.
    pub rows: Vec<Row>,
    /// Whether the device itself refuses writes.
    pub read_only: bool,
}

/// What the stack of a consumer should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopState {
    /// The map.
    Open {
        /// Reads only.
        read_only: bool,
    },
    /// The map behind a guard.
    Guarded,
    /// Fails everything.
    Fenced,
}

/// What stacks are planned from.
pub struct StackInput<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// Where it lies.
    pub map: &'a Map,
    /// The node that builds the stack.
    pub node: &'a NodeName,
    /// Whether a disk is this node's own.
    pub is_local: &'a dyn Fn(DiskId) -> bool,
}

impl StackInput<'_> {
    fn row(&self, s: &Segment, target: Target) -> Row {
        Row { start: self.extent_size.sectors_of(s.start), len: self.extent_size.sectors_of(s.count), target }
    }

    /// Where this node finds a place of a segment.
    fn place(&self, s: &Segment, l: &Leg) -> (Dev, Sectors) {
        if (self.is_local)(l.disk) {
            (Dev::Disk(l.disk), self.extent_size.sectors_of(l.first))
        } else {
            (Dev::Dm(DmRole::Leg(self.volume, l.disk)), self.extent_size.sectors_of(s.start))
        }
    }

    /// Sectors of the whole volume.
    pub fn size(&self) -> Sectors {
        self.extent_size.sectors_of(self.map.extents())
    }

    /// The one row of a device that stands in the mirror's stead: straight to where the map has what the mirror is of, whether the
    /// spare is being filled or given up. `None` without a spare.
    pub fn unmirrored_row(&self) -> Option<Row> {
        let (s, spare) = self.map.spare()?;
        let (dev, offset) = self.place(s, s.legs.get(spare.leg as usize)?);
        let len = self.extent_size.sectors_of(s.leg_count());
        Some(Row { start: Sectors::ZERO, len, target: Target::Linear { dev, offset } })
    }
}

/// Sectors that a mirror copies at a time: an extent (4 MiB at least) is a whole number of them, and a write waits
/// for at most one of them to be copied.
pub const MIRROR_REGION: Sectors = Sectors::new(1024);

/// The devices of a consumer from the bottom up: legs, then (while a writer fills a spare) the mirror, or (behind a
/// guard) map and write leg, then the top.
pub fn plan_consumer(i: &StackInput<'_>, state: TopState) -> Vec<DmDevice> {
    let top = DmRole::Top(i.volume);
    let device = |role, rows, read_only| DmDevice { role, rows, read_only };
    let whole = |target| vec![Row { start: Sectors::ZERO, len: i.size(), target }];
    if state == TopState::Fenced {
        return vec![device(top, whole(Target::Error), false)];
    }
    let mut out: Vec<DmDevice> = i
        .map
        .used_disks()
        .into_iter()
        .filter(|d| !(i.is_local)(*d))
        .map(|d| {
            let path = Dev::Import(names::slice_id(i.volume, d, i.node));
            let len = slice_size(i.map, i.extent_size, d);
            let row = Row { start: Sectors::ZERO, len, target: Target::Multipath { path } };
            device(DmRole::Leg(i.volume, d), vec![row], false)
        })
        .collect();
    let mirror = plan_mirror(i).filter(|_| state == TopState::Open { read_only: false });
    let real = plan_rows(i, mirror.is_some());
    out.extend(mirror);
    match state {
        TopState::Open { read_only } => out.push(device(top, real, read_only)),
        TopState::Guarded => {
            let map = DmRole::Map(i.volume);
            let leg = DmRole::WriteLeg(i.volume);
            out.push(device(map.clone(), real, false));
            let fail = Target::FailWrites { dev: Dev::Dm(map.clone()) };
            out.push(device(leg.clone(), whole(fail), false));
            let guard = Target::Guard { map: Dev::Dm(map), write_leg: Dev::Dm(leg) };
            out.push(device(top, whole(guard), false));
        }
        TopState::Fenced => {}
    }
    out
}

/// The mirror that fills the map's spare.
fn plan_mirror(i: &StackInput<'_>) -> Option<DmDevice> {
    let (s, spare) = i.map.spare().filter(|(_, p)| p.filling)?;
    let leg = s.legs.get(spare.leg as usize)?;
    let legs = [i.place(s, leg), i.place(s, &spare.place)];
    let len = i.extent_size.sectors_of(s.leg_count());
    let rows =
        vec![Row { start: Sectors::ZERO, len, target: Target::Mirror { region: MIRROR_REGION, legs } }];
    Some(DmDevice { role: DmRole::Mirror(i.volume), rows, read_only: false })
}

/// The rows of the volume's map as this node reaches it: local runs straight, remote ones through their leg.
pub fn plan_map_rows(i: &StackInput<'_>) -> Vec<Row> {
    plan_rows(i, false)
}

/// The rows of the map; `mirrored`: a leg whose spare is being filled is reached through the mirror.
fn plan_rows(i: &StackInput<'_>, mirrored: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![];
    for s in &i.map.0 {
        let filled = s.spare.filter(|p| mirrored && p.filling).map(|p| p.leg as usize);
        let place = |(n, l)| match filled {
            Some(leg) if leg == n => (Dev::Dm(DmRole::Mirror(i.volume)), Sectors::ZERO),
            Some(_) | None => i.place(s, l),
        };
        let target = match s.stripe {
            Some(st) => {
                Target::Striped { chunk: st.chunk, legs: s.legs.iter().enumerate().map(place).collect() }
            }
            None => {
                let (dev, offset) = place((0, &s.legs[0]));
                Target::Linear { dev, offset }
            }
        };
        push_merged(&mut rows, i.row(s, target));
    }
    rows
}

/// Sectors of the slice on `disk`: up to the end of the last segment that it holds.
pub fn slice_size(map: &Map, extent_size: ExtentSize, disk: DiskId) -> Sectors {
    let end =
        map.0.iter().filter(|s| s.places().any(|l| l.disk == disk)).map(|s| s.start.plus(s.leg_count()));
    extent_size.sectors_of(end.max().unwrap_or_default())
}

/// The table of a host's slice for one consumer.
pub fn plan_slice_rows(map: &Map, extent_size: ExtentSize, disk: DiskId) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![];
    let mut at = Sectors::ZERO;
    for s in &map.0 {
        let Some(leg) = s.places().find(|l| l.disk == disk) else { continue };
        let start = extent_size.sectors_of(s.start);
        if at < start {
            rows.push(Row { start: at, len: start.minus(at), target: Target::Hole });
        }
        let len = extent_size.sectors_of(s.leg_count());
        let target = Target::Linear { dev: Dev::Disk(disk), offset: extent_size.sectors_of(leg.first) };
        push_merged(&mut rows, Row { start, len, target });
        at = start.plus(len);
    }
    rows
}

/// Appends a row, merging it into the last where both are linear and continue each other.
fn push_merged(rows: &mut Vec<Row>, row: Row) {
    if let Some(last) = rows.last_mut()
        && last.start.plus(last.len) == row.start
        && let (Target::Linear { dev: a, offset: x }, Target::Linear { dev: b, offset: y }) =
            (&last.target, &row.target)
        && a == b
        && x.plus(last.len) == *y
    {
        last.len = last.len.plus(row.len);
        return;
    }
    rows.push(row);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{units::Extents, volume::Leg};

    fn seg(start: u64, count: u64, disk: u128, first: u64) -> Segment {
        Segment {
            start: Extents::new(start),
            count: Extents::new(count),
            legs: vec![Leg { disk: DiskId::from_u128(disk), first: Extents::new(first) }],
            stripe: None,
            spare: None,
        }
    }

    /// Slow oracle: where one logical sector ends up, through the consumer's rows and the host's.
    fn trace(
        map: &Map,
        es: ExtentSize,
        node: &NodeName,
        local: DiskId,
        sector: u64,
    ) -> Option<(DiskId, u64)> {
        let i = StackInput {
            volume: VolumeId::from_u128(1),
            extent_size: es,
            map,
            node,
            is_local: &|d| d == local,
        };
        let find = |rows: &[Row], x: u64| {
            rows.iter().find(|r| r.start.get() <= x && x < r.start.get() + r.len.get()).and_then(|r| match &r
                .target
            {
                Target::Linear { dev, offset } => Some((dev.clone(), offset.get() + x - r.start.get())),
                Target::Striped { chunk, legs } => {
                    let (c, rel) = (chunk.get(), x - r.start.get());
                    let (dev, off) = &legs[(rel / c) as usize % legs.len()];
                    let at = rel / c / legs.len() as u64 * c + rel % c;
                    Some((dev.clone(), off.get() + at))
                }
                _ => None,
            })
        };
        match find(&plan_map_rows(&i), sector)? {
            (Dev::Disk(d), x) => Some((d, x)),
            (Dev::Dm(DmRole::Leg(_, d)), x) => match find(&plan_slice_rows(map, es, d), x)? {
                (Dev::Disk(e), y) if e == d => Some((d, y)),
                _ => None,
            },
            _ => None,
        }
    }

    #[test]
    fn local_and_remote_paths_end_at_the_same_sector() {
        let es = ExtentSize::new(4 << 20).unwrap();
        let per = es.sectors().get();
        let striped = Segment {
            start: Extents::new(9),
            count: Extents::new(4),
            legs: vec![
                Leg { disk: DiskId::from_u128(1), first: Extents::new(50) },
                Leg { disk: DiskId::from_u128(2), first: Extents::new(60) },
            ],
            stripe: Some(crate::volume::Stripe { chunk: Sectors::new(128) }),
            spare: None,
        };
        let map = Map(vec![seg(0, 4, 1, 10), seg(4, 3, 2, 0), seg(7, 2, 1, 30), striped]);
        assert_eq!(map.check(), Ok(()));
        let node: NodeName = "n1".parse().unwrap();
        for sector in (0..13 * per).step_by(97) {
            let from = |local| trace(&map, es, &node, DiskId::from_u128(local), sector);
            assert!(from(9).is_some(), "sector {sector} is mapped");
            assert_eq!(from(1), from(9), "sector {sector}");
            assert_eq!(from(2), from(9), "sector {sector}");
        }
        assert_eq!(trace(&map, es, &node, DiskId::from_u128(9), 5 * per), Some((DiskId::from_u128(2), per)));
    }

    #[test]
    fn a_guard_stands_on_the_map_and_a_fence_alone() {
        let map = Map(vec![seg(0, 4, 1, 10), seg(4, 3, 2, 0)]);
        let node: NodeName = "n1".parse().unwrap();
        let local = DiskId::from_u128(1);
        let i = StackInput {
            volume: VolumeId::from_u128(1),
            extent_size: ExtentSize::DEFAULT,
            map: &map,
            node: &node,
            is_local: &|d| d == local,
        };
        let roles = |s| plan_consumer(&i, s).into_iter().map(|d| d.role.dm_name()).collect::<Vec<_>>();
        assert_eq!(roles(TopState::Guarded).len(), 4);
        assert_eq!(roles(TopState::Open { read_only: false }).len(), 2);
        assert_eq!(roles(TopState::Fenced).len(), 1);
        for s in [TopState::Guarded, TopState::Open { read_only: false }] {
            let top = plan_consumer(&i, s).pop().unwrap();
            assert_eq!(top.role, DmRole::Top(i.volume));
            assert_eq!(top.rows.iter().map(|r| r.len).sum::<Sectors>(), i.size());
        }
    }
}
