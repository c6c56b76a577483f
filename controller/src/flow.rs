//! What disks and volumes did, will do and can lend: histories that nodes record, forecasts made of them, offers.
//!
//! The nodes keep the histories; here stands a copy that follows what they report and is filled anew at the start of each
//! node's session, so a controller that starts, or takes over, needs no store for it. Invariants: bounded, a few KB a disk
//! and 1 KB a volume; a sample counts once, whatever is repeated or lost; what was not heard of for a minute lends nothing;
//! a disk of a node that has never recorded has no offer, which is not an offer of nothing. Must not know: records, the
//! core, messages.

mod ceilings;
mod loads;
pub mod moves;
mod offers;
pub mod sweep;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ceilings::Loans;
use forecast::{
    ClassScores, DeviceClass, DeviceModel, Forecast, Forecaster, Growth, HealthReport, Observed, Offer,
    Series, Shape, Taken,
};
use loads::{Peaks, Warm};
use pool::ids::{DiskId, NodeName, VolumeId};
use tokio::sync::mpsc;

pub use ceilings::{Borrowed, Ceiling, LoanIo};
pub use offers::{DiskFacts, SetOffer, reason_word};

/// The rate at which upper bounds of load are to be exceeded.
pub const VIOLATIONS: f64 = 0.05;
/// Messages on their way to a node: one a disk and hour, one every sweep; what finds no room waits for the next round.
const ON_THE_WAY: usize = 64;

/// What a node is told that is no goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// What it is to keep of its disks.
    Keep(Vec<(DiskId, Vec<u8>)>),
    /// What users of volumes may do there: all that there is.
    Ceilings(BTreeMap<VolumeId, Ceiling>),
}

/// What one disk did in one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskSample {
    /// Which.
    pub disk: DiskId,
    /// What it is made of.
    pub class: DeviceClass,
    /// Everything that it did.
    pub all: Observed,
    /// Of the load, for other nodes.
    pub lent: f64,
    /// Of that, what each volume did.
    pub loans: BTreeMap<VolumeId, f64>,
    /// Bytes read a second.
    pub read_bytes_s: f64,
    /// Bytes written a second.
    pub write_bytes_s: f64,
    /// What it says of its health, and the media errors when it was first asked.
    pub health: Option<(HealthReport, u64)>,
}

/// How much of a volume's I/O goes where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heat {
    /// Bytes of a part.
    pub part_bytes: u64,
    /// I/Os a second of each part, over the last hours.
    pub ios: Vec<f64>,
}

/// What is done in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
    /// Bytes read.
    pub read_bytes: f64,
    /// Bytes written.
    pub write_bytes: f64,
}

/// What one volume did in one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeSample {
    /// Which.
    pub volume: VolumeId,
    /// Reference I/Os a second, as on flash.
    pub load: f64,
    /// What that was.
    pub rates: Rates,
    /// Where its parts were looked at.
    pub heat: Option<Heat>,
}

/// What a node has kept.
#[derive(Clone, Debug, PartialEq)]
pub enum History {
    /// Of a disk.
    Disk {
        /// Which.
        disk: DiskId,
        /// Its owner's load.
        series: Box<Series>,
        /// What it can do, where that could be read.
        model: Option<Box<DeviceModel>>,
        /// What this controller or one before had given into keeping.
        growth: Option<Growth>,
    },
    /// Of a volume.
    Volume {
        /// Which.
        volume: VolumeId,
        /// Its load.
        series: Box<Series>,
        /// Its parts.
        heat: Heat,
    },
}

/// What a node sends at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// Grows by one with each.
    pub sequence: u64,
    /// Seconds since 1970, by the node's clock.
    pub at_s: u64,
    /// Samples of disks.
    pub disks: Vec<DiskSample>,
    /// Samples of volumes.
    pub volumes: Vec<VolumeSample>,
    /// What was recorded before.
    pub histories: Vec<History>,
}

/// What is known of a disk.
#[derive(Clone, Debug)]
struct DiskRow {
    node: NodeName,
    series: Series,
    model: DeviceModel,
    load: Forecaster,
    /// What it did of late, all in all.
    peaks: Peaks,
    /// Of it, for other nodes.
    lent_peaks: Peaks,
    growth: Growth,
    /// The hour up to which growth was given into keeping.
    kept_hour: u64,
    /// When the newest sample arrived, by our clock.
    sampled_s: Option<u64>,
    sample: Option<DiskSample>,
    health: Option<(HealthReport, u64)>,
    offer: Option<Offer>,
    loans: Loans,
}

impl DiskRow {
    fn new(node: NodeName, class: DeviceClass) -> Self {
        Self {
            node,
            series: Series::new(Shape::DISK),
            model: DeviceModel::new(class),
            load: Forecaster::new(VIOLATIONS),
            peaks: Peaks::of_minutes(),
            lent_peaks: Peaks::of_an_hour(),
            growth: Growth::new(),
            kept_hour: 0,
            sampled_s: None,
            sample: None,
            health: None,
            offer: None,
            loans: Loans::default(),
        }
    }

    fn take(&mut self, now_s: u64, at_s: u64, sample: DiskSample) {
        if self.model.class() != sample.class {
            self.model = DeviceModel::new(sample.class);
        }
        match self.series.record(at_s, sample.all.load - sample.lent) {
            Taken::Yes | Taken::Restarted => {}
            // Said twice, or out of order: it counts once.
            Taken::Late | Taken::NoNumber => return,
        }
        self.model.observe(at_s, sample.all);
        self.peaks.take(now_s, sample.all.load);
        self.lent_peaks.take(now_s, sample.lent);
        self.sampled_s = Some(now_s);
        self.health = sample.health.or(self.health);
        self.sample = Some(sample);
    }
}

/// What is known of a volume.
#[derive(Clone, Debug)]
struct VolumeRow {
    series: Series,
    heat: Heat,
    rates: Rates,
    /// Its load, as slowly as heat follows.
    warm: Warm,
    /// What it did of late.
    peaks: Peaks,
    /// When the newest sample arrived, by our clock.
    sampled_s: Option<u64>,
}

impl VolumeRow {
    fn new() -> Self {
        Self {
            series: Series::new(Shape::VOLUME),
            heat: Heat::default(),
            rates: Rates::default(),
            warm: Warm::default(),
            peaks: Peaks::of_minutes(),
            sampled_s: None,
        }
    }
}

#[derive(Debug, Default)]
struct NodeRow {
    sequence: u64,
    to_node: Option<mpsc::Sender<ToNode>>,
    /// It was told of ceilings, and not that there are none any more.
    bounded: bool,
}

/// What was heard, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Recordings taken in.
    pub recordings: u64,
    /// Recordings that never came, as gaps in the numbering show.
    pub lost: u64,
    /// Histories taken in.
    pub histories: u64,
}

#[derive(Debug)]
struct State {
    disks: BTreeMap<DiskId, DiskRow>,
    volumes: BTreeMap<VolumeId, VolumeRow>,
    nodes: HashMap<NodeName, NodeRow>,
    classes: [ClassScores; 4],
    heard: Heard,
}

/// A disk as its history shows it.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// Its node, as samples said.
    pub node: NodeName,
    /// Its newest sample.
    pub sample: Option<DiskSample>,
    /// How long ago that arrived, in seconds.
    pub age_s: Option<u64>,
    /// Its health.
    pub health: Option<(HealthReport, u64)>,
    /// Its owner's load.
    pub series: Series,
    /// What it can do.
    pub model: DeviceModel,
    /// Its owner's load to come, by horizon.
    pub forecasts: Vec<Forecast>,
    /// What it can lend.
    pub offer: Option<Offer>,
}

/// A volume as its history shows it.
#[derive(Clone, Debug)]
pub struct VolumeView {
    /// Its load.
    pub series: Series,
    /// Its parts.
    pub heat: Heat,
    /// Bytes a second in the newest sample.
    pub bytes_s: f64,
}

/// All histories. Shared by whoever hears nodes, weighs offers, or answers people.
#[derive(Debug)]
pub struct Flow {
    state: Mutex<State>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                disks: BTreeMap::new(),
                volumes: BTreeMap::new(),
                nodes: HashMap::new(),
                classes: std::array::from_fn(|_| ClassScores::new()),
                heard: Heard::default(),
            }),
        }
    }
}

fn class_index(class: DeviceClass) -> usize {
    match class {
        DeviceClass::Nvme => 0,
        DeviceClass::Ssd => 1,
        DeviceClass::Hdd => 2,
        DeviceClass::Unknown => 3,
    }
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Rows are whole after every step, so a panic elsewhere spoils none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a node says; `now_s` is our own clock.
    pub fn take(&self, node: &NodeName, now_s: u64, r: Recording) {
        let mut s = self.lock();
        let state = &mut *s;
        for h in r.histories {
            state.heard.histories += 1;
            state.replay(node, h);
        }
        if r.disks.is_empty() && r.volumes.is_empty() {
            return;
        }
        let row = state.nodes.entry(node.clone()).or_default();
        let before = std::mem::replace(&mut row.sequence, r.sequence);
        state.heard.recordings += 1;
        // A smaller number is a plugin that has started anew.
        if before > 0 && r.sequence > before {
            state.heard.lost += r.sequence - before - 1;
        }
        for d in r.disks {
            let row = state.disks.entry(d.disk).or_insert_with(|| DiskRow::new(node.clone(), d.class));
            row.node.clone_from(node);
            row.take(now_s, r.at_s, d);
        }
        for v in r.volumes {
            let row = state.volumes.entry(v.volume).or_insert_with(VolumeRow::new);
            row.series.record(r.at_s, v.load);
            row.warm.take(now_s, v.load);
            row.peaks.take(now_s, v.load);
            row.sampled_s = Some(now_s);
            row.rates = v.rates;
            row.heat = v.heat.unwrap_or_else(|| std::mem::take(&mut row.heat));
        }
    }

    /// Where what this node is told comes out, for its session; an earlier one's runs dry.
    pub fn to_node(&self, node: &NodeName) -> mpsc::Receiver<ToNode> {
        let (tx, rx) = mpsc::channel(ON_THE_WAY);
        self.lock().nodes.entry(node.clone()).or_default().to_node = Some(tx);
        rx
    }

    /// One disk; `None` where nothing is known of it.
    pub fn disk(&self, id: DiskId, now_s: u64) -> Option<DiskView> {
        let s = self.lock();
        let r = s.disks.get(&id)?;
        Some(DiskView {
            node: r.node.clone(),
            sample: r.sample.clone(),
            age_s: r.sampled_s.map(|at| now_s.saturating_sub(at)),
            health: r.health,
            series: r.series.clone(),
            model: r.model.clone(),
            forecasts: forecast::HORIZONS_H.iter().map(|h| r.load.forecast(*h)).collect(),
            offer: r.offer,
        })
    }

    /// One volume; `None` where nothing is known of it.
    pub fn volume(&self, id: VolumeId) -> Option<VolumeView> {
        let s = self.lock();
        let r = s.volumes.get(&id)?;
        Some(VolumeView {
            series: r.series.clone(),
            heat: r.heat.clone(),
            bytes_s: r.rates.read_bytes + r.rates.write_bytes,
        })
    }

    /// What is expected of a volume over the next hours.
    pub fn volume_forecast(&self, id: VolumeId, horizon_h: u32) -> Option<Forecast> {
        let (series, class) = {
            let s = self.lock();
            (s.volumes.get(&id)?.series.clone(), s.classes[class_index(DeviceClass::Ssd)].clone())
        };
        // Reading a history takes milliseconds: not under the lock.
        Some(Forecaster::replayed(&series, &class, VIOLATIONS).forecast(horizon_h))
    }

    /// What was heard.
    pub fn heard(&self) -> Heard {
        self.lock().heard
    }

    /// How many disks and volumes have a history.
    pub fn counts(&self) -> (u64, u64) {
        let s = self.lock();
        (s.disks.len() as u64, s.volumes.len() as u64)
    }

    /// The offers as they stand.
    pub fn offers(&self) -> Vec<(DiskId, Offer)> {
        self.lock().disks.iter().filter_map(|(d, r)| Some((*d, r.offer?))).collect()
    }
}

impl State {
    fn replay(&mut self, node: &NodeName, h: History) {
        match h {
            History::Disk { disk, series, model, growth } => {
                let class = model.as_ref().map_or(DeviceClass::Unknown, |m| m.class());
                let row = self.disks.entry(disk).or_insert_with(|| DiskRow::new(node.clone(), class));
                let fresh = series.latest().map(|l| l.0) >= row.series.latest().map(|l| l.0);
                row.series.absorb(&series);
                // The node has seen every sample, we perhaps not.
                if let Some(model) = model.filter(|_| fresh) {
                    row.model = *model;
                }
                if let Some(growth) = growth.filter(|g| g.confidence() > row.growth.confidence()) {
                    row.growth = growth;
                }
            }
            History::Volume { volume, series, heat } => {
                let row = self.volumes.entry(volume).or_insert_with(VolumeRow::new);
                let fresh = series.latest().map(|l| l.0) >= row.series.latest().map(|l| l.0);
                row.series.absorb(&series);
                if fresh && !heat.ios.is_empty() {
                    row.heat = heat;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
