//! Numbers that cannot surprise: 16-bit packed values, order statistics, small powers.
//!
//! Invariants: nothing here returns NaN or an infinity, whatever goes in; only additions, multiplications,
//! divisions and comparisons are used, so every machine computes the same bits. Must not know what a number means.

/// The greatest value that is kept: anything above counts as this.
pub const GREATEST: f64 = 1.0e15;

/// A finite value of at least 0 and at most [`GREATEST`]; `None` for NaN and infinities. Negative counts as 0.
pub(crate) fn sane(value: f64) -> Option<f64> {
    value.is_finite().then(|| value.clamp(0.0, GREATEST))
}

/// `value`, or 0 where it is no number.
pub(crate) fn or_zero(value: f64) -> f64 {
    sane(value).unwrap_or(0.0)
}

/// `base` to a small power by multiplication (`powi` has no specified precision).
pub(crate) fn power(base: f64, exponent: u32) -> f64 {
    (0..exponent).fold(1.0, |product, _| product * base)
}

/// `a / b`, or `otherwise` where that is no finite number.
pub(crate) fn ratio(a: f64, b: f64, otherwise: f64) -> f64 {
    let value = a / b;
    if value.is_finite() { value } else { otherwise }
}

/// A value of at least 0 in 16 bits: 6 of exponent, 10 of fraction, one code for "missing". Steps are below 0.1 %;
/// less than 6.2e-5 is 0, more than [`GREATEST`] is about [`GREATEST`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Packed(u16);

impl Packed {
    /// Nothing is known.
    pub(crate) const MISSING: Self = Self(u16::MAX);
    /// Exactly 0.
    pub(crate) const ZERO: Self = Self(0);

    const BIAS: i64 = 14;

    /// The nearest packed value; missing for NaN and infinities.
    pub(crate) fn new(value: f64) -> Self {
        let Some(value) = sane(value) else { return Self::MISSING };
        // Half of the last kept bit is added first; a carry into the exponent is then right by itself.
        let bits = value.to_bits() + (1 << 41);
        let exponent = i64::try_from(bits >> 52).unwrap_or(0) - 1023 + Self::BIAS;
        let fraction = (bits >> 42) & 0x3ff;
        match u16::try_from(exponent) {
            Err(_) => Self::ZERO,
            Ok(exponent) if exponent > 63 => Self(u16::MAX - 1),
            Ok(exponent) => Self(((exponent << 10) | u16::try_from(fraction).unwrap_or(0)).min(u16::MAX - 1)),
        }
    }

    /// What is packed, `None` if missing.
    pub(crate) fn get(self) -> Option<f64> {
        match self {
            Self::MISSING => None,
            Self::ZERO => Some(0.0),
            Self(code) => {
                let exponent = u64::from(code >> 10) + 1023 - 14;
                let value = f64::from_bits((exponent << 52) | (u64::from(code & 0x3ff) << 42));
                Some(value.min(GREATEST))
            }
        }
    }

    /// What is packed, 0 if missing.
    pub(crate) fn or_zero(self) -> f64 {
        self.get().unwrap_or(0.0)
    }

    /// The 16 bits as they are stored.
    pub(crate) fn code(self) -> u16 {
        self.0
    }

    /// The value of stored bits: every pattern is one.
    pub(crate) fn from_code(code: u16) -> Self {
        Self(code)
    }
}

/// The median; 0 of nothing. Sorts in place.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => 0.5 * (values[middle - 1] + values[middle]),
    }
}

/// The value where half of the weight is reached; 0 of nothing. Sorts in place.
pub(crate) fn weighted_median(values: &mut [(f64, f64)]) -> f64 {
    values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let half = 0.5 * values.iter().map(|v| v.1).sum::<f64>();
    let mut reached = 0.0;
    for (value, weight) in values.iter() {
        reached += weight;
        if reached >= half {
            return *value;
        }
    }
    values.last().map_or(0.0, |v| v.0)
}

/// The split-conformal quantile of sorted values: of n exchangeable values and one more, that one exceeds the
/// ceil((n + 1)(1 - rate))-th with a probability of at most `rate`. Where n is too small for that, a fifth above the
/// greatest. `None` of nothing.
pub(crate) fn conformal_quantile(sorted: &[f64], rate: f64) -> Option<f64> {
    let greatest = *sorted.last()?;
    let below = (whole(sorted.len()) + 1.0) * (1.0 - rate.clamp(0.0, 1.0));
    let place = (0..sorted.len()).find(|i| whole(*i) + 1.0 >= below);
    Some(place.map_or(1.2 * greatest, |i| sorted[i]))
}

/// A count as a float.
pub(crate) fn whole(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_keeps_a_tenth_of_a_percent(value in 1e-4_f64..1e15) {
            let back = Packed::new(value).get().expect("a number");
            prop_assert!((back - value).abs() <= value * 0.0005, "{value} became {back}");
            prop_assert_eq!(Packed::new(back), Packed::new(value));
        }

        #[test]
        fn anything_packs(bits in any::<u64>(), code in any::<u16>()) {
            let value = f64::from_bits(bits);
            let packed = Packed::new(value);
            prop_assert_eq!(packed.get().is_none(), !value.is_finite());
            if let Some(back) = Packed::from_code(code).get() {
                prop_assert!(back.is_finite() && (0.0..=GREATEST).contains(&back));
            }
        }

        #[test]
        fn packing_keeps_order(a in 0.0_f64..2e15, b in 0.0_f64..2e15) {
            let (low, high) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(Packed::new(low).code() <= Packed::new(high).code());
        }

        #[test]
        fn a_conformal_quantile_is_exceeded_as_often_as_said(
            mut values in proptest::collection::vec(0.0_f64..1e6, 40..200), rate in 0.05_f64..0.5,
        ) {
            // Leave one out: the oracle of the definition.
            values.sort_unstable_by(f64::total_cmp);
            let mut above = 0;
            for i in 0..values.len() {
                let mut others = values.clone();
                let one = others.remove(i);
                above += u32::from(one > conformal_quantile(&others, rate).expect("not empty"));
            }
            prop_assert!(f64::from(above) <= rate * whole(values.len()) + 1e-9);
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(weighted_median(&mut [(5.0, 1.0), (1.0, 1.0), (2.0, 3.0)]), 2.0);
        assert_eq!(weighted_median(&mut []), 0.0);
        assert_eq!(weighted_median(&mut [(7.0, 0.0)]), 7.0);
    }

    #[test]
    fn a_bound_of_few_values_lies_above_all() {
        assert_eq!(conformal_quantile(&[1.0, 2.0], 0.05), Some(2.4));
        assert_eq!(conformal_quantile(&[], 0.05), None);
    }
}
