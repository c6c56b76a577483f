//! Nodes made of a trace's devices: who lives on which, and what each node's disk carries hour by hour.
//!
//! Invariants: an hour of which less than three quarters of the expected samples are there is unknown, not idle.
//! Must not know forecasts or policies.

use forecast::Hour;

use crate::random::Random;
use crate::trace::Trace;

/// Device numbers by node: `each` to a node, in the order of their names, or shuffled by a seed.
#[must_use]
pub fn group(devices: usize, each: usize, seed: Option<u64>) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..devices).collect();
    if let Some(seed) = seed {
        Random::new(seed).shuffle(&mut order);
    }
    order.chunks(each.max(1)).map(<[usize]>::to_vec).collect()
}

/// What the given devices carry together, in KB/s: one entry an hour of the trace, `None` where it is unknown.
#[must_use]
pub fn hours(trace: &Trace, devices: &[usize]) -> Vec<Option<Hour>> {
    let each = trace.steps_per_hour();
    let first_hour = trace.start_s / 3600;
    let lives: Vec<_> = devices.iter().map(|d| trace.devices[*d].lifetime()).collect();
    (0..trace.steps / each)
        .map(|hour| {
            let steps = hour * each..(hour + 1) * each;
            let mut expected = 0_usize;
            let mut seen = 0_usize;
            let mut sums = vec![0.0_f64; each];
            for (device, life) in devices.iter().zip(&lives) {
                for (sum, step) in sums.iter_mut().zip(steps.clone()).filter(|(_, step)| life.contains(step))
                {
                    let value = trace.devices[*device].kb_s[step];
                    expected += 1;
                    seen += usize::from(!value.is_nan());
                    *sum += if value.is_nan() { 0.0 } else { f64::from(value) };
                }
            }
            let quarter = &sums[each - (each / 4).max(1)..];
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            (seen * 4 >= expected * 3).then(|| Hour {
                number: first_hour + hour as u64,
                mean: mean(&sums),
                peak: sums.iter().copied().fold(0.0, f64::max),
                late: mean(quarter),
            })
        })
        .collect()
}
