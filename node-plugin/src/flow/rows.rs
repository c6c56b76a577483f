//! What is remembered of each disk and volume: the last counters, histories, device models, heat. Pure: time and counters
//! are arguments.
//!
//! Invariants: bounded (a few KB each, volumes that have left for a week at most); a sample is a difference of two looks at
//! the same counters; the owner's load is what is not done for other nodes. Must not know: the kernel, files, messages.

use std::{collections::BTreeMap, time::Duration};

use csi_proto::node::DiskClass;
use forecast::{DeviceClass, DeviceModel, Observed, Series, Shape, Work};
use kernel::{block::DiskStat, health::Health};
use pool::{
    ids::{DiskId, VolumeId},
    units::SECTOR,
};

use super::{
    areas::Areas,
    look::{DiskLook, Look},
};

/// Seconds in which the heat of an area follows a change by two thirds: what is hot now is what is worth moving for hours.
const HEAT_S: f64 = 6.0 * 3600.0;
/// Volumes that have left whose history is kept, for when they come back: beyond these the oldest go.
const LEFT: usize = 1024;
/// Seconds after which the history of a volume that has left is worth nothing.
const LEFT_S: u64 = 7 * 24 * 3600;
/// What the controller may give into keeping for one disk.
const KEPT: usize = 16 << 10;

/// Counters at a moment.
type Before = Option<(Duration, DiskStat)>;

/// A disk.
#[derive(Clone, Debug)]
pub(super) struct DiskRow {
    before: Before,
    slices: BTreeMap<(VolumeId, u64), DiskStat>,
    /// The owner's own load.
    pub(super) series: Series,
    pub(super) model: DeviceModel,
    pub(super) health: Option<Health>,
    /// Media errors when it was first asked.
    pub(super) errors_before: Option<u64>,
    /// The controller's.
    pub(super) kept: Vec<u8>,
}

/// How much of a volume's I/O goes where.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Heat {
    pub(super) part_bytes: u64,
    pub(super) ios: Vec<f32>,
}

/// A volume.
#[derive(Clone, Debug)]
pub(super) struct VolumeRow {
    before: Before,
    areas: Option<(Duration, Areas)>,
    pub(super) series: Series,
    pub(super) heat: Heat,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) disks: BTreeMap<DiskId, DiskRow>,
    pub(super) volumes: BTreeMap<VolumeId, VolumeRow>,
}

/// What a disk did between two looks.
#[derive(Clone, Debug)]
pub(super) struct DiskSample {
    pub(super) disk: DiskId,
    pub(super) class: DiskClass,
    pub(super) all: Observed,
    pub(super) lent: f64,
    /// Of it, what each volume did.
    pub(super) loans: BTreeMap<VolumeId, f64>,
    pub(super) read_bytes_s: f64,
    pub(super) write_bytes_s: f64,
    pub(super) health: Option<(Health, u64)>,
}

/// What a volume did.
#[derive(Clone, Debug)]
pub(super) struct VolumeSample {
    pub(super) volume: VolumeId,
    pub(super) load: f64,
    /// A second.
    pub(super) reads: f64,
    pub(super) writes: f64,
    pub(super) read_bytes: f64,
    pub(super) bytes: f64,
    /// Where its areas were looked at.
    pub(super) heat: Option<Heat>,
}

/// The class as the model has it.
pub(super) fn class_of(class: DiskClass) -> DeviceClass {
    match class {
        DiskClass::Nvme => DeviceClass::Nvme,
        DiskClass::Ssd => DeviceClass::Ssd,
        DiskClass::Hdd => DeviceClass::Hdd,
        DiskClass::Unknown => DeviceClass::Unknown,
    }
}

/// What was done between two looks; `None` where a counter went back: it is another device then.
fn work(before: &DiskStat, now: &DiskStat, seconds: f64) -> Option<Work> {
    let since = |was: u64, is: u64| is.checked_sub(was).map(|n| n as f64);
    let read_bytes = since(before.read_sectors, now.read_sectors)? * SECTOR as f64;
    let write_bytes = since(before.write_sectors, now.write_sectors)? * SECTOR as f64;
    let io_ms = since(before.read_ms, now.read_ms)? + since(before.write_ms, now.write_ms)?;
    Some(Work {
        seconds,
        reads: since(before.reads, now.reads)?,
        writes: since(before.writes, now.writes)?,
        merged: since(before.reads_merged, now.reads_merged)?
            + since(before.writes_merged, now.writes_merged)?,
        read_bytes,
        write_bytes,
        io_seconds: io_ms / 1000.0,
        queue_seconds: since(before.weighted_ms, now.weighted_ms)? / 1000.0,
    })
}

/// Seconds since a look, if any time has passed.
fn since(before: &Before, mono: Duration) -> Option<(f64, &DiskStat)> {
    let (at, stat) = before.as_ref()?;
    let seconds = mono.checked_sub(*at)?.as_secs_f64();
    (seconds > 0.0).then_some((seconds, stat))
}

impl DiskRow {
    pub(super) fn new(class: DeviceClass) -> Self {
        Self {
            before: None,
            slices: BTreeMap::new(),
            series: Series::new(Shape::DISK),
            model: DeviceModel::new(class),
            health: None,
            errors_before: None,
            kept: Vec::new(),
        }
    }

    fn take(
        &mut self,
        disk: DiskId,
        mono: Duration,
        at_s: u64,
        seen: DiskLook,
        slices: BTreeMap<(VolumeId, u64), DiskStat>,
    ) -> Option<DiskSample> {
        if let Some(said) = seen.health {
            self.errors_before = self.errors_before.or(said.media_errors);
            self.health = Some(said);
        }
        let class = class_of(seen.class);
        if self.model.class() != class {
            self.model = DeviceModel::new(class);
        }
        let before = self.before.replace((mono, seen.stat));
        let lent_before = std::mem::replace(&mut self.slices, slices);
        let (seconds, was) = since(&before, mono)?;
        let done = work(was, &seen.stat, seconds)?;
        let all = done.observed(class)?;
        let mut loans = BTreeMap::new();
        for (key, now) in &self.slices {
            // A slice that is new has done all of it since.
            let was = lent_before.get(key).copied().unwrap_or_default();
            let load = work(&was, now, seconds).and_then(|w| w.observed(class)).map_or(0.0, |o| o.load);
            *loans.entry(key.0).or_default() += load;
        }
        let lent = loans.values().sum::<f64>().min(all.load);
        self.series.record(at_s, all.load - lent);
        self.model.observe(at_s, all);
        Some(DiskSample {
            disk,
            class: seen.class,
            all,
            lent,
            loans,
            read_bytes_s: done.read_bytes / seconds,
            write_bytes_s: done.write_bytes / seconds,
            health: self.health.map(|said| (said, self.errors_before.unwrap_or(0))),
        })
    }
}

impl VolumeRow {
    pub(super) fn new() -> Self {
        Self { before: None, areas: None, series: Series::new(Shape::VOLUME), heat: Heat::default() }
    }

    fn take(
        &mut self,
        volume: VolumeId,
        mono: Duration,
        at_s: u64,
        now: DiskStat,
        areas: Option<Areas>,
    ) -> Option<VolumeSample> {
        let heat = areas.and_then(|a| self.warm(mono, a));
        let before = self.before.replace((mono, now));
        let (seconds, was) = since(&before, mono)?;
        let done = work(was, &now, seconds)?;
        let load = done.observed(DeviceClass::Ssd)?.load;
        self.series.record(at_s, load);
        Some(VolumeSample {
            volume,
            load,
            reads: done.reads / seconds,
            writes: done.writes / seconds,
            read_bytes: done.read_bytes / seconds,
            bytes: (done.read_bytes + done.write_bytes) / seconds,
            heat,
        })
    }

    /// Lets the heat follow what the areas did since the last look at them.
    fn warm(&mut self, mono: Duration, now: Areas) -> Option<Heat> {
        let before = self.areas.replace((mono, now.clone()));
        let (at, was) = before?;
        let seconds = mono.checked_sub(at)?.as_secs_f64();
        if seconds <= 0.0 || was.part_bytes != now.part_bytes || was.ios.len() != now.ios.len() {
            return None;
        }
        if self.heat.part_bytes != now.part_bytes || self.heat.ios.len() != now.ios.len() {
            self.heat = Heat { part_bytes: now.part_bytes, ios: vec![0.0; now.ios.len()] };
        }
        let gain = seconds / (seconds + HEAT_S);
        for ((heat, is), was) in self.heat.ios.iter_mut().zip(&now.ios).zip(&was.ios) {
            let rate = is.checked_sub(*was)? as f64 / seconds;
            *heat += ((rate - f64::from(*heat)) * gain) as f32;
        }
        Some(self.heat.clone())
    }
}

impl Rows {
    /// Takes a look in; what every disk and volume did since the last one.
    pub(super) fn take(
        &mut self,
        mono: Duration,
        at_s: u64,
        mut look: Look,
    ) -> (Vec<DiskSample>, Vec<VolumeSample>) {
        let mut lent: BTreeMap<DiskId, BTreeMap<(VolumeId, u64), DiskStat>> = BTreeMap::new();
        for ((disk, volume, tag), stat) in look.slices {
            lent.entry(disk).or_default().insert((volume, tag), stat);
        }
        for (disk, row) in &mut self.disks {
            if !look.disks.contains_key(disk) {
                // It does not serve: what it will have done meanwhile is nobody's sample.
                row.before = None;
            }
        }
        let mut disks = Vec::new();
        for (disk, seen) in look.disks {
            let row = self.disks.entry(disk).or_insert_with(|| DiskRow::new(class_of(seen.class)));
            disks.extend(row.take(disk, mono, at_s, seen, lent.remove(&disk).unwrap_or_default()));
        }
        for (volume, row) in &mut self.volumes {
            if !look.volumes.contains_key(volume) {
                (row.before, row.areas) = (None, None);
            }
        }
        let mut volumes = Vec::new();
        for (volume, stat) in look.volumes {
            let row = self.volumes.entry(volume).or_insert_with(VolumeRow::new);
            volumes.extend(row.take(volume, mono, at_s, stat, look.areas.remove(&volume)));
        }
        self.forget(at_s);
        (disks, volumes)
    }

    /// Drops what is worth nothing any more.
    fn forget(&mut self, at_s: u64) {
        let newest = |s: &Series| s.latest().map_or(0, |(at, _)| at);
        let old = |s: &Series| newest(s).saturating_add(LEFT_S) < at_s;
        self.volumes.retain(|_, r| r.before.is_some() || !old(&r.series));
        self.disks.retain(|_, r| r.before.is_some() || !old(&r.series));
        let left: Vec<(u64, VolumeId)> = self
            .volumes
            .iter()
            .filter(|(_, r)| r.before.is_none())
            .map(|(v, r)| (newest(&r.series), *v))
            .collect();
        if left.len() > LEFT {
            let mut left = left;
            left.sort_unstable();
            for (_, v) in &left[..left.len() - LEFT] {
                self.volumes.remove(v);
            }
        }
    }

    /// Keeps what the controller says of a disk of ours.
    pub(super) fn keep(&mut self, disk: DiskId, state: Vec<u8>) {
        if let Some(row) = self.disks.get_mut(&disk).filter(|_| state.len() <= KEPT) {
            row.kept = state;
        }
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.disks.len() as u64, self.volumes.len() as u64)
    }
}
