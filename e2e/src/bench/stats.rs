//! Order statistics of small samples.

/// The value below which the share `p` (0 to 1) of a sample lies: the nearest rank. `None` of nothing.
pub(super) fn percentile(sample: &[f64], p: f64) -> Option<f64> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Least, middle and greatest of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

/// Of a sample; `None` of nothing. The median of an even sample is the mean of the two in the middle.
pub(super) fn spread(sample: &[f64]) -> Option<Spread> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[half - 1], sorted[half])
    } else {
        sorted[half]
    };
    Some(Spread { min, median, max })
}

/// Least and greatest value that the median of what the sample was taken from may have, with 95 % confidence; it makes no
/// assumption about how values are distributed. Below six values, the whole sample. `None` of nothing.
pub(super) fn median_within(sample: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    // The number of values below the median is binomial(n, 1/2): leave out as many at each end as have less than 2.5 %.
    let (mut out, mut below, mut term) = (0, 0.0, 0.5_f64.powi(n as i32));
    for k in 0..n / 2 {
        below += term;
        if below > 0.025 {
            break;
        }
        out = k + 1;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    let skip = out.saturating_sub(1);
    Some((*sorted.get(skip)?, *sorted.get(n - 1 - skip)?))
}

/// Each of `of` over the one of `base` that was measured in the same round.
pub(super) fn ratios(of: &[f64], base: &[f64]) -> Vec<f64> {
    of.iter().zip(base).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_statistics() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(spread(&[]), None);
        let of = |n: i32| median_within(&(1..=n).map(f64::from).collect::<Vec<_>>());
        // From a table of the sign test's intervals.
        assert_eq!((of(5), of(6), of(15)), (Some((1.0, 5.0)), Some((1.0, 6.0)), Some((4.0, 12.0))));
        assert_eq!((of(0), of(1), of(20)), (None, Some((1.0, 1.0)), Some((6.0, 15.0))));
        assert_eq!(ratios(&[1.0, 2.0], &[2.0, 0.0]), [0.5]);
    }
}
