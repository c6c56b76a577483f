//! Forecasts: what a disk or a volume has done, what it will do, and what it can lend.
//!
//! Invariants: pure (no clock, no I/O, no randomness: time is an argument), deterministic to the bit on every machine
//! (no transcendental functions), bounded in memory, and sensible for any input: not a number, nothing, a constant,
//! the hugest. Must not know pools, records, the kernel or who asks.

mod ceilings;
mod codec;
mod conformal;
mod device;
mod experts;
mod forecaster;
mod growth;
mod health;
mod history;
mod number;
mod offer;
mod skill;
mod stored;
mod strength;

pub use ceilings::{Ceilings, Loan, floor};
pub use codec::DecodeError;
pub use conformal::ClassScores;
pub use device::{DeviceClass, DeviceModel, Drift, Observed, Work};
pub use experts::Hour;
pub use forecaster::{Forecast, Forecaster};
pub use growth::Growth;
pub use health::{Fault, HealthReport, fault};
pub use history::{Interval, Resolution, SAMPLE_S, Series, Shape, Taken};
pub use number::GREATEST;
pub use offer::{Facts, Ledger, OFFER_S, Offer, Reason, STALE_S, USABLE, offer};
pub use strength::{MOST_OF_ONE, Strength};

/// The horizons that are forecast, in hours.
pub const HORIZONS_H: [u32; 4] = [1, 4, 12, 24];
