//! Generated load: devices with a daily course, working days, nightly backups, noise and bursts.
//!
//! Invariants: the same arguments give the same trace. Must not know what it is used for.

use crate::random::Random;
use crate::trace::{Device, Trace};

/// Seconds a step.
const STEP_S: u64 = 300;
const STEPS_A_DAY: usize = 288;
/// 2023-11-13, a Monday, 0:00 UTC.
const START_S: u64 = 1_699_833_600;

/// A trace of that many devices and days.
#[must_use]
pub fn generate(devices: usize, days: usize, seed: u64) -> Trace {
    let steps = days * STEPS_A_DAY;
    let devices = (0..devices).map(|number| {
        let own = Random::new(seed).bits() ^ Random::new(number as u64 ^ 0x5eed).bits();
        Device { name: format!("gen{number:06}"), kb_s: load(&mut Random::new(own), steps) }
    });
    Trace { start_s: START_S, step_s: STEP_S, steps, devices: devices.collect() }
}

fn load(random: &mut Random, steps: usize) -> Vec<f32> {
    // Most are small, a few carry most: the fourth power of an even number spreads over four decades.
    let even = random.unit();
    let scale = 5.0 + 4000.0 * even * even * even * even;
    let daytime = random.unit();
    let backup_at = random.below(STEPS_A_DAY);
    let backup_steps = 3 + random.below(24);
    let backup = if random.unit() < 0.4 { 3.0 + 12.0 * random.unit() } else { 0.0 };
    let burst_rate = 0.002 * random.unit();
    let (mut burst, mut slow) = (0.0, 1.0);
    (0..steps)
        .map(|step| {
            let (day, at) = (step / STEPS_A_DAY, step % STEPS_A_DAY);
            let working = day % 7 < 5 && (96..216).contains(&at);
            slow += 0.05 * (0.4 + 1.2 * random.unit() - slow);
            if random.unit() < burst_rate {
                burst = 5.0 + 40.0 * random.unit();
            }
            burst = if burst < 1.0 { 0.0 } else { burst * 0.85 };
            let in_backup = (at + STEPS_A_DAY - backup_at) % STEPS_A_DAY < backup_steps;
            let course = if working { 1.0 } else { 1.0 - 0.8 * daytime };
            let noise = 0.5 + random.unit();
            let night = if in_backup { backup * (0.7 + 0.6 * random.unit()) } else { 0.0 };
            // A rate in KB/s: f32 is what traces hold.
            (scale * (course * slow * noise + night + burst)) as f32
        })
        .collect()
}
