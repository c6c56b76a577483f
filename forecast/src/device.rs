//! What one device can do: latency against outstanding I/O, capability, drift.
//!
//! Past the knee latency grows with the queue, L(Q) = L0 + s Q, and 1/s is what the device can do at most (BASIL,
//! FAST'10; Pesto, SoCC'11). L0 and s are fitted by recursive least squares with forgetting; capability is the 5 %
//! quantile of what was delivered past the knee, because cloud disks vary by 10-13 % and a loan must hold on bad days.
//!
//! Invariants: answers are finite and positive whatever was observed; without observations they are those of the
//! device's class, halved. Must not know the disk, its owner or what %util says (nothing, on NVMe).

use std::collections::VecDeque;

use crate::number::{Packed, or_zero, ratio, sane, whole};

/// What kind of device it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceClass {
    /// NVMe flash.
    Nvme,
    /// Flash behind SATA, SAS or virtio.
    Ssd,
    /// Turning platters.
    Hdd,
    /// Nobody knows: the least of all.
    Unknown,
}

impl DeviceClass {
    /// Base latency in seconds and reference I/Os a second: what the slower ones of the class do.
    fn usual(self) -> (f64, f64) {
        match self {
            Self::Nvme => (100e-6, 100_000.0),
            Self::Ssd => (250e-6, 20_000.0),
            Self::Hdd => (8e-3, 150.0),
            Self::Unknown => (8e-3, 100.0),
        }
    }

    /// What I/O costs there, in reference I/Os (a random read of 4 KiB).
    fn costs(self) -> Costs {
        match self {
            Self::Nvme => Costs { read: 1.0, write: 1.5, read_byte: 1.0 / 16384.0, write_byte: 1.0 / 8192.0 },
            Self::Ssd => Costs { read: 1.0, write: 1.5, read_byte: 1.0 / 32768.0, write_byte: 1.0 / 16384.0 },
            // A seek takes as long as 1 MiB.
            Self::Hdd | Self::Unknown => {
                Costs { read: 1.0, write: 1.0, read_byte: 1.0 / 1_048_576.0, write_byte: 1.0 / 1_048_576.0 }
            }
        }
    }

    /// The most that so many I/Os and bytes a second cost, whether they are read or written: reference I/Os a second.
    pub(crate) fn most(self, iops: f64, bytes_s: f64) -> f64 {
        let c = self.costs();
        or_zero(iops * c.read.max(c.write) + bytes_s * c.read_byte.max(c.write_byte))
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Nvme => 0,
            Self::Ssd => 1,
            Self::Hdd => 2,
            Self::Unknown => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Self::Nvme, Self::Ssd, Self::Hdd, Self::Unknown].into_iter().find(|class| class.code() == code)
    }
}

/// Reference I/Os by operation and byte.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Costs {
    read: f64,
    write: f64,
    read_byte: f64,
    write_byte: f64,
}

/// What a device did between two looks at its counters (differences of /proc/diskstats).
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Work {
    /// Seconds between the looks.
    pub seconds: f64,
    /// Reads that the device completed.
    pub reads: f64,
    /// Writes that it completed.
    pub writes: f64,
    /// I/Os of either kind that were merged into others: what comes in sequence costs little but its bytes.
    pub merged: f64,
    /// Bytes read.
    pub read_bytes: f64,
    /// Bytes written.
    pub write_bytes: f64,
    /// Sum of the I/Os' times, in seconds (the ticks of reads and writes).
    pub io_seconds: f64,
    /// Sum of outstanding I/Os over time, in seconds (`time_in_queue`).
    pub queue_seconds: f64,
}

/// What one look says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Observed {
    /// Reference I/Os a second.
    pub load: f64,
    /// Mean number of outstanding I/Os.
    pub queue: f64,
    /// Seconds an I/O took, `None` where there was none.
    pub latency: Option<f64>,
}

impl Work {
    /// Load, queue and latency; `None` if a counter is no number or no time has passed.
    #[must_use]
    pub fn observed(&self, class: DeviceClass) -> Option<Observed> {
        let all = [self.reads, self.writes, self.merged, self.read_bytes, self.write_bytes];
        let seconds = sane(self.seconds).filter(|s| *s > 0.0)?;
        if all.iter().chain([&self.io_seconds, &self.queue_seconds]).any(|v| sane(*v) != Some(*v)) {
            return None;
        }
        let costs = class.costs();
        let ios = self.reads + self.writes;
        let scattered = 1.0 - ratio(self.merged, self.merged + ios, 0.0);
        let operations = (self.reads * costs.read + self.writes * costs.write) * scattered;
        let bytes = self.read_bytes * costs.read_byte + self.write_bytes * costs.write_byte;
        Some(Observed {
            load: or_zero((operations + bytes) / seconds),
            queue: or_zero(self.queue_seconds / seconds).min(MOST_QUEUE),
            latency: (ios > 0.0).then(|| or_zero(self.io_seconds / ios).min(MOST_LATENCY)),
        })
    }
}

/// A queue longer than this says no more.
const MOST_QUEUE: f64 = 4096.0;
/// An I/O that takes longer hangs.
const MOST_LATENCY: f64 = 60.0;
/// Weight of the past at each sample past the knee.
const FORGETTING: f64 = 0.99;
/// Samples kept for quantiles.
pub(crate) const KEPT: usize = 64;
/// Samples past the knee that outweigh the class: a 5 % quantile needs 20.
const ENOUGH: usize = 20;
/// Samples after which latency when idle is known.
const IDLE_KNOWN: u16 = 20;
/// What a device of unknown strength is believed of its class.
const BELIEVED: f64 = 0.5;
/// What a short probe is believed: disks are fastest when new and idle.
const PROBED: f64 = 0.75;
/// Relative error that is no drift: twice the usual variation.
const SLACK: f64 = 0.25;
/// Sum of relative errors beyond the slack that is one: a minute of doubled latency at a sample every 10 s.
const ALARM: f64 = 5.0;

/// Which way a device has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drift {
    /// I/Os take longer than the model says.
    Slower,
    /// I/Os take less.
    Faster,
}

/// The model of one device.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceModel {
    pub(crate) class: DeviceClass,
    /// Reference I/Os a second that a probe delivered.
    pub(crate) probed: Option<f64>,
    /// Latency when little is outstanding.
    pub(crate) idle: f64,
    pub(crate) idle_seen: u16,
    /// L0 and s, and the covariance of their fit.
    pub(crate) fit: [f64; 2],
    pub(crate) spread: [f64; 3],
    /// The greatest load that was ever seen, fading.
    pub(crate) delivered: f64,
    /// Loads delivered past the knee.
    pub(crate) saturated: VecDeque<Packed>,
    /// Latency by what was expected of it.
    pub(crate) residuals: VecDeque<Packed>,
    pub(crate) slower: f64,
    pub(crate) faster: f64,
    /// The newest drift and when it was noticed.
    pub(crate) drift: Option<(u64, Drift)>,
}

impl DeviceModel {
    /// A device of which only the class is known.
    #[must_use]
    pub fn new(class: DeviceClass) -> Self {
        let (idle, capability) = class.usual();
        Self {
            class,
            probed: None,
            idle,
            idle_seen: 0,
            fit: [idle, 1.0 / (BELIEVED * capability)],
            // Classes are wide: a disk may be a hundred times slower than its class.
            spread: [100.0 * idle * idle, 0.0, 1e4 / (capability * capability)],
            delivered: 0.0,
            saturated: VecDeque::new(),
            residuals: VecDeque::new(),
            slower: 0.0,
            faster: 0.0,
            drift: None,
        }
    }

    /// Its class.
    #[must_use]
    pub fn class(&self) -> DeviceClass {
        self.class
    }

    /// Takes what a short probe delivered: reference I/Os a second, and seconds an I/O when idle.
    pub fn seed(&mut self, capability: f64, idle: f64) {
        if let (Some(capability), Some(idle)) = (sane(capability), sane(idle))
            && capability >= 1.0
            && (1e-7..=MOST_LATENCY).contains(&idle)
        {
            self.probed = Some(capability);
            self.idle = idle;
            self.fit = [idle, 1.0 / (PROBED * capability)];
        }
    }

    /// Takes one look at the device, of time `at_s` (seconds since 1970).
    pub fn observe(&mut self, at_s: u64, seen: Observed) {
        let load = or_zero(seen.load);
        self.delivered = load.max(self.delivered * 0.9999);
        let (Some(latency), Some(queue)) = (seen.latency.and_then(sane), sane(seen.queue)) else { return };
        let (latency, queue) = (latency.clamp(1e-7, MOST_LATENCY), queue.min(MOST_QUEUE));
        if queue < 1.0 {
            self.idle_seen = self.idle_seen.saturating_add(1);
            self.idle += (latency - self.idle) * (1.0 / f64::from(self.idle_seen)).max(0.02);
        }
        let past_knee = self.is_past(queue, latency);
        // What is not known yet cannot have changed; around the knee the model is coarse.
        if (past_knee && self.saturated.len() >= ENOUGH) || (queue < 1.0 && self.idle_seen > IDLE_KNOWN) {
            self.judge(at_s, ratio(latency, self.latency(queue), 1.0));
        }
        if past_knee {
            push(&mut self.saturated, load);
            self.learn(queue, latency);
        }
    }

    /// Recursive least squares of (1, queue) on latency.
    fn learn(&mut self, queue: f64, latency: f64) {
        let [a, b, c] = self.spread;
        // Errors count relative to the latency: a slow sample is also an uncertain one.
        let noise = FORGETTING * latency * latency;
        let (ga, gb) = (a + b * queue, b + c * queue);
        let all = noise + ga + gb * queue;
        let (ka, kb) = (ratio(ga, all, 0.0), ratio(gb, all, 0.0));
        let error = latency - (self.fit[0] + self.fit[1] * queue);
        let fit = [self.fit[0] + ka * error, self.fit[1] + kb * error];
        let spread = [(a - ka * ga) / FORGETTING, (b - ka * gb) / FORGETTING, (c - kb * gb) / FORGETTING];
        let fresh = Self::new(self.class).spread;
        let wild = spread[0] > 100.0 * fresh[0] || spread[2] > 100.0 * fresh[2];
        let sound = fit.iter().chain(&spread).all(|v| v.is_finite()) && spread[0] >= 0.0 && spread[2] >= 0.0;
        if sound {
            self.fit = [fit[0].clamp(0.0, MOST_LATENCY), fit[1].clamp(1e-9, MOST_LATENCY)];
        }
        self.spread = if sound && !wild { spread } else { fresh };
    }

    /// Two-sided CUSUM of the relative error. At an alarm what was learned of the old device is dropped.
    fn judge(&mut self, at_s: u64, by_expected: f64) {
        push(&mut self.residuals, by_expected);
        let slow = (by_expected - 1.0).min(2.0);
        let fast = (ratio(1.0, by_expected, 3.0) - 1.0).min(2.0);
        self.slower = (self.slower + slow - SLACK).max(0.0);
        self.faster = (self.faster + fast - SLACK).max(0.0);
        let drift = match (self.slower > ALARM, self.faster > ALARM) {
            (true, _) => Drift::Slower,
            (_, true) => Drift::Faster,
            _ => return,
        };
        self.drift = Some((at_s, drift));
        (self.slower, self.faster, self.idle_seen) = (0.0, 0.0, 0);
        self.spread = Self::new(self.class).spread;
        self.saturated.clear();
        self.residuals.clear();
        if drift == Drift::Slower {
            // What it once delivered, or a probe did, no longer counts.
            (self.delivered, self.probed) = (0.0, None);
        }
    }

    fn is_past(&self, queue: f64, latency: f64) -> bool {
        let slow = self.idle_seen >= IDLE_KNOWN && latency >= 2.0 * self.idle;
        queue >= 2.0 && (slow || queue >= 1.5 * self.knee())
    }

    /// Whether the device had so much to do that more of it only waited longer.
    #[must_use]
    pub fn is_past_knee(&self, seen: &Observed) -> bool {
        seen.latency.and_then(sane).zip(sane(seen.queue)).is_some_and(|(l, q)| self.is_past(q, l))
    }

    /// How many I/Os the device serves at once: latency when idle times I/Os a second at most (Little).
    fn knee(&self) -> f64 {
        self.idle / self.fit[1]
    }

    /// Expected seconds an I/O with `queue` outstanding.
    #[must_use]
    pub fn latency(&self, queue: f64) -> f64 {
        let queue = or_zero(queue).min(MOST_QUEUE);
        let [base, slope] = self.fit;
        let line = if queue >= self.knee() { base + slope * queue } else { 0.0 };
        line.max(self.idle).clamp(1e-7, 10.0 * MOST_QUEUE * MOST_LATENCY)
    }

    /// Seconds that a share `quantile` of I/Os stays under with `queue` outstanding.
    #[must_use]
    pub fn latency_quantile(&self, queue: f64, quantile: f64) -> f64 {
        self.latency(queue) * quantile_of(&self.residuals, or_zero(quantile).min(1.0)).unwrap_or(1.0)
    }

    /// Expected seconds an I/O under a load of so many reference I/Os a second (Little: Q = load * latency).
    #[must_use]
    pub fn latency_under(&self, load: f64) -> f64 {
        let used = ratio(or_zero(load), self.capability(), 1.0).min(0.98);
        self.idle / (1.0 - used)
    }

    /// Reference I/Os a second that it delivers on all but its worst days (5 % quantile). Before enough was seen past
    /// the knee: three quarters of the probe, or half of what its class does, or what it has been seen to do.
    #[must_use]
    pub fn capability(&self) -> f64 {
        let low = quantile_of(&self.saturated, 0.05).filter(|_| self.saturated.len() >= ENOUGH);
        if let Some(low) = low {
            return low.max(1.0);
        }
        let believed = self.probed.map_or(BELIEVED * self.class.usual().1, |probed| PROBED * probed);
        let slower = matches!(self.drift, Some((_, Drift::Slower)));
        let scarce = if slower { BELIEVED } else { 1.0 };
        (believed * scarce).max(0.8 * self.delivered).max(1.0)
    }

    /// The newest drift: when it was noticed (seconds since 1970), and which way.
    #[must_use]
    pub fn drift(&self) -> Option<(u64, Drift)> {
        self.drift
    }

    /// How much the capability rests on: 0.25 for the class alone, 0.5 for a probe, 1 for enough samples past the knee.
    #[must_use]
    pub fn confidence(&self) -> f64 {
        let from = if self.probed.is_some() { 0.5 } else { 0.25 };
        from + (1.0 - from) * (whole(self.saturated.len()) / whole(ENOUGH)).min(1.0)
    }
}

fn push(ring: &mut VecDeque<Packed>, value: f64) {
    if ring.len() == KEPT {
        ring.pop_front();
    }
    ring.push_back(Packed::new(value));
}

/// The value below which a share lies; `None` of nothing.
fn quantile_of(ring: &VecDeque<Packed>, share: f64) -> Option<f64> {
    let mut values: Vec<f64> = ring.iter().map(|v| v.or_zero()).collect();
    values.sort_unstable_by(f64::total_cmp);
    let place = (0..values.len()).find(|i| whole(*i) + 1.0 >= share * whole(values.len()));
    place.map(|i| values[i]).or(values.last().copied())
}
