//! What a disk can lend for the next hour, why no more, and how sure that is.
//!
//! I/O: 0.8 of capability, less the owner's own peak bound, what rebuilding may need, and what is lent already.
//! Space: the size, less what is used, what the owner may take until lent space would be back (a recall moves every lent
//! byte) and an hour more, a fifth of the disk at most, what rebuilding may need, and the watermark.
//!
//! Invariants: what was not heard of for a minute, is not fit or does not serve lends nothing; every offer adds up from
//! its ledger; nothing is ever offered twice. Must not know who asks.

use crate::device::{DeviceModel, Drift};
use crate::forecaster::Forecaster;
use crate::growth::{Growth, share};
use crate::health::{Fault, HealthReport, fault};
use crate::number::{or_zero, ratio};

/// Seconds after which a device that was not heard of lends nothing.
pub const STALE_S: u64 = 60;
/// Seconds an offer holds: a peak bound of 24 h is worth little (model: violated 4 to 10 times as often when reused).
pub const OFFER_S: u64 = 3600;
/// The share of the capability that is given out at all.
pub const USABLE: f64 = 0.8;
/// How often the owner may need space sooner than the recall is done.
const GROWTH_RATE: f64 = 0.01;
/// The most of a disk that is kept for its owner's growth. Where volumes come and go within minutes the bound on growth is
/// the whole disk, which would then never lend; what an owner takes beyond this is recalled as it takes it.
const MOST_GROWTH: f64 = 0.2;
/// Hours beyond the recall itself, until someone has decided on it.
const RECALL_MARGIN_H: f64 = 1.0;
/// Longer recalls are not planned with: a week.
const LONGEST_RECALL_H: f64 = 168.0;
/// Hours after which a forecast is none any more.
const FORECAST_OLD_H: u64 = 3;
/// Seconds for which a drift lowers confidence.
const DRIFT_S: u64 = 6 * 3600;

/// What is so now.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Facts {
    /// Seconds since 1970.
    pub now_s: u64,
    /// When the disk was last sampled.
    pub sampled_s: Option<u64>,
    /// It serves: not draining, missing or released.
    pub serving: bool,
    /// What it says of its health.
    pub health: HealthReport,
    /// Media errors it had when it was claimed.
    pub media_errors_before: u64,
    /// Bytes it has.
    pub size: u64,
    /// Bytes in use, lent ones included.
    pub used: u64,
    /// Bytes lent.
    pub lent: u64,
    /// Bytes kept for rebuilding.
    pub rebuild_bytes: u64,
    /// Bytes never given out.
    pub watermark: u64,
    /// Bytes a second at which lent space can be taken back.
    pub recall_bytes_s: f64,
    /// Reference I/Os a second that are lent.
    pub lent_io: f64,
    /// Reference I/Os a second kept for rebuilding.
    pub rebuild_io: f64,
}

/// Why a disk lends what it lends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Reason {
    /// It can spare that.
    Lends,
    /// It does not serve.
    NotServing,
    /// It was never sampled.
    NeverSampled,
    /// It was not heard of for this many seconds.
    Stale {
        /// Seconds.
        age_s: u64,
    },
    /// It is not fit.
    Unhealthy(Fault),
    /// Its owner's load is not known, or no longer.
    LoadUnknown,
    /// It is full, or its owner is about to need what is free.
    NoSpace,
    /// Its owner may need all that it can do.
    Busy,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lends => write!(f, "lends what it can spare"),
            Self::NotServing => write!(f, "lends nothing: it does not serve"),
            Self::NeverSampled => write!(f, "lends nothing: it was never sampled"),
            Self::Stale { age_s } => write!(f, "lends nothing: not heard of for {age_s} s"),
            Self::Unhealthy(fault) => write!(f, "lends nothing: {fault}"),
            Self::LoadUnknown => write!(f, "lends no I/O: its own load of the last hours is not known"),
            Self::NoSpace => write!(f, "lends no space: its owner needs or may need what is free"),
            Self::Busy => write!(f, "lends no I/O: its owner may need all that it can do"),
        }
    }
}

/// How an offer adds up.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Ledger {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that the owner may take before a recall is done.
    pub growth: u64,
    /// Hours such a recall takes, and the margin.
    pub recall_h: u32,
    /// Bytes kept back: for rebuilding, and the watermark.
    pub kept_bytes: u64,
    /// Reference I/Os a second that may be given out at all.
    pub usable_io: f64,
    /// The owner's own peak within the hour.
    pub own_peak: f64,
    /// What is lent and what is kept for rebuilding.
    pub kept_io: f64,
}

/// What a disk offers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Offer {
    /// Bytes.
    pub bytes: u64,
    /// Reference I/Os a second.
    pub io: f64,
    /// Until when (seconds since 1970).
    pub until_s: u64,
    /// Why that many bytes.
    pub space_reason: Reason,
    /// Why that much I/O.
    pub io_reason: Reason,
    /// From 0 to 1: how much device model, load forecast and growth rest on.
    pub confidence: f64,
    /// How it adds up; zeros where the disk lends nothing at all.
    pub ledger: Ledger,
}

impl Offer {
    fn nothing(facts: &Facts, reason: Reason) -> Self {
        Self {
            bytes: 0,
            io: 0.0,
            until_s: facts.now_s.saturating_add(OFFER_S),
            space_reason: reason,
            io_reason: reason,
            confidence: 1.0,
            ledger: Ledger::default(),
        }
    }
}

/// What keeps a disk from lending anything.
fn barred(facts: &Facts) -> Option<Reason> {
    if !facts.serving {
        return Some(Reason::NotServing);
    }
    let Some(sampled) = facts.sampled_s else { return Some(Reason::NeverSampled) };
    // A sample from a clock that is ahead is fresh; how far ahead is for others to complain about.
    let age_s = facts.now_s.saturating_sub(sampled);
    if age_s > STALE_S {
        return Some(Reason::Stale { age_s });
    }
    fault(&facts.health, facts.media_errors_before).map(Reason::Unhealthy)
}

/// What the disk can lend for the next hour. `load` forecasts the owner's own load, in reference I/Os a second, loans left
/// out; `growth` is the owner's own use.
#[must_use]
pub fn offer(facts: &Facts, model: &DeviceModel, load: &Forecaster, growth: &Growth) -> Offer {
    if let Some(reason) = barred(facts) {
        return Offer::nothing(facts, reason);
    }
    let mut ledger = Ledger::default();
    let bytes = space(facts, growth, &mut ledger);
    let said = load.forecast(1);
    let hours = load.newest_hour().map(|newest| newest..=newest.saturating_add(FORECAST_OLD_H));
    let known = hours.is_some_and(|hours| hours.contains(&(facts.now_s / 3600)));
    let io = if known { spare_io(facts, model, said.peak_bound, &mut ledger) } else { 0.0 };
    let drifting = model
        .drift()
        .is_some_and(|(at_s, drift)| drift == Drift::Slower && facts.now_s.saturating_sub(at_s) < DRIFT_S);
    let doubt = if drifting { 0.5 } else { 1.0 };
    Offer {
        bytes,
        io,
        until_s: facts.now_s.saturating_add(OFFER_S),
        space_reason: if bytes > 0 { Reason::Lends } else { Reason::NoSpace },
        io_reason: match (known, io > 0.0) {
            (false, _) => Reason::LoadUnknown,
            (true, true) => Reason::Lends,
            (true, false) => Reason::Busy,
        },
        confidence: doubt * model.confidence().min(said.confidence).min(growth.confidence()),
        ledger,
    }
}

fn space(facts: &Facts, growth: &Growth, ledger: &mut Ledger) -> u64 {
    ledger.free = facts.size.saturating_sub(facts.used);
    ledger.kept_bytes = facts.rebuild_bytes.saturating_add(facts.watermark);
    // All that will be lent has to be taken back: what is lent now, and what is offered.
    let back = facts.lent.saturating_add(ledger.free) as f64;
    let hours = ratio(back, or_zero(facts.recall_bytes_s) * 3600.0, LONGEST_RECALL_H);
    // At most a week, far below u32's range.
    ledger.recall_h = (hours + RECALL_MARGIN_H).min(LONGEST_RECALL_H).ceil() as u32;
    let most = share(facts.size, MOST_GROWTH);
    ledger.growth = growth.bound(ledger.recall_h, GROWTH_RATE, facts.size).min(most);
    ledger.free.saturating_sub(ledger.growth).saturating_sub(ledger.kept_bytes)
}

fn spare_io(facts: &Facts, model: &DeviceModel, own_peak: f64, ledger: &mut Ledger) -> f64 {
    ledger.usable_io = USABLE * model.capability();
    ledger.own_peak = own_peak;
    ledger.kept_io = or_zero(facts.lent_io) + or_zero(facts.rebuild_io);
    (ledger.usable_io - ledger.own_peak - ledger.kept_io).max(0.0)
}
