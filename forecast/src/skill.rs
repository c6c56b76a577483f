//! How wrong each expert has been, and what they say together.
//!
//! Invariants: a combination lies between the least and the greatest of what was said; weights do not change when
//! the series is scaled. Must not know what the experts are.

use crate::number::{or_zero, power, weighted_median};

/// The mean error of N experts, forgotten over the last hundred decisions or so.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Skill<const N: usize> {
    pub(crate) errors: [f32; N],
    pub(crate) seen: u16,
}

impl<const N: usize> Skill<N> {
    pub(crate) fn new() -> Self {
        Self { errors: [0.0; N], seen: 0 }
    }

    /// Takes what each expert's last forecast cost; the newest counts at least `gain`.
    pub(crate) fn learn(&mut self, costs: [f64; N], gain: f64) {
        self.seen = self.seen.saturating_add(1);
        let gain = gain.max(1.0 / f64::from(self.seen));
        for (error, cost) in self.errors.iter_mut().zip(costs) {
            let next = f64::from(*error) + (or_zero(cost) - f64::from(*error)) * gain;
            *error = narrow(next);
        }
    }

    /// The errors as floats.
    pub(crate) fn mean_errors(&self) -> [f64; N] {
        self.errors.map(f64::from)
    }
}

/// The nearest f32 of a sane number.
pub(crate) fn narrow(value: f64) -> f32 {
    // Sane numbers are at most 1e15, far within f32's range.
    or_zero(value) as f32
}

/// Weights (least error / error)^exponent: 1 for the best, nothing is divided by 0.
fn weights<const N: usize>(errors: &[f64; N], exponent: u32) -> [f64; N] {
    let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = errors.iter().copied().fold(0.0, f64::max);
    let floor = 1e-6 * greatest;
    errors.map(|error| if error > 0.0 { power((least + floor) / (error + floor), exponent) } else { 1.0 })
}

/// The weighted mean.
pub(crate) fn blend<const N: usize>(said: &[f64; N], errors: &[f64; N], exponent: u32) -> f64 {
    let weights = weights(errors, exponent);
    let sum: f64 = said.iter().zip(weights).map(|(value, weight)| value * weight).sum();
    sum / weights.iter().sum::<f64>()
}

/// The weighted median and the weighted mean, halved: the median follows bursts less, the mean drifts better.
pub(crate) fn consensus<const N: usize>(said: &[f64; N], errors: &[f64; N]) -> f64 {
    let weights = weights(errors, 4);
    let mut pairs: Vec<(f64, f64)> = said.iter().copied().zip(weights).collect();
    0.5 * weighted_median(&mut pairs) + 0.5 * blend(said, errors, 8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn together_they_stay_between_and_scale(
            said in proptest::array::uniform5(0.0_f64..1e15),
            errors in proptest::array::uniform5(0.0_f64..1e15),
        ) {
            let low = said.iter().copied().fold(f64::INFINITY, f64::min);
            let high = said.iter().copied().fold(0.0, f64::max);
            let one = consensus(&said, &errors);
            prop_assert!(one >= low * 0.999_999 && one <= high * 1.000_001, "{one} of {said:?}");
            let half = consensus(&said.map(|v| v * 0.5), &errors.map(|v| v * 0.5));
            prop_assert!((half - 0.5 * one).abs() <= 1e-9 * one, "{half} is not half of {one}");
        }
    }

    #[test]
    fn who_was_never_wrong_is_followed() {
        assert_eq!(consensus(&[1.0, 9.0, 9.0], &[0.0, 5.0, 5.0]), 1.0);
        assert_eq!(blend(&[2.0, 4.0], &[0.0, 0.0], 3), 3.0);
    }

    #[test]
    fn errors_are_averaged_then_forgotten() {
        let mut skill = Skill::<1>::new();
        skill.learn([4.0], 0.01);
        skill.learn([0.0], 0.01);
        assert_eq!(skill.mean_errors(), [2.0]);
        for _ in 0..1000 {
            skill.learn([10.0], 0.01);
        }
        assert!((skill.mean_errors()[0] - 10.0).abs() < 0.01);
        skill.learn([f64::NAN], 0.5);
        assert!(skill.mean_errors()[0] < 6.0);
    }
}
