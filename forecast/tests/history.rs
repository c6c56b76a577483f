//! Histories against a slow, obvious oracle, and their persistent form.

use std::collections::BTreeMap;

use forecast::{DecodeError, Resolution, Series, Shape, Taken};
use proptest::prelude::*;

const START: u64 = 1_700_000_000;

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.002 * b.abs() + 1e-3
}

/// Samples every 10 s from `START` on, with gaps: (how many samples, how many missing after them, value).
fn runs() -> impl Strategy<Value = Vec<(u16, u16, f64)>> {
    let gap = prop_oneof![3 => Just(0_u16), 3 => 0_u16..40, 1 => 300_u16..900];
    proptest::collection::vec((1_u16..90, gap, prop_oneof![Just(0.0), 0.0_f64..1e9]), 1..60)
}

fn record(runs: &[(u16, u16, f64)], series: &mut Series) -> Vec<(u64, f64)> {
    let mut at = START;
    let mut taken = Vec::new();
    for (count, gap, value) in runs {
        for i in 0..*count {
            // A little of a pattern, so that means and peaks differ.
            let value = value * f64::from(1 + i % 7);
            assert_eq!(series.record(at, value), Taken::Yes);
            taken.push((at, value));
            at += 10;
        }
        at += 10 * u64::from(*gap);
    }
    taken
}

/// (mean, peak) by number of the interval, of those of which half was seen.
fn roll(values: &BTreeMap<u64, f64>, finer_s: u64, length_s: u64) -> BTreeMap<u64, (f64, f64)> {
    let mut parts: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (at, value) in values {
        parts.entry(at / length_s).or_default().push(*value);
    }
    parts.retain(|_, seen| seen.len() as u64 * 2 >= length_s / finer_s);
    let both = |v: &Vec<f64>| (v.iter().sum::<f64>() / v.len() as f64, v.iter().copied().fold(0.0, f64::max));
    parts.iter().map(|(number, seen)| (*number, both(seen))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rollups_are_what_an_oracle_says(runs in runs()) {
        let mut series = Series::new(Shape::DISK);
        let taken = record(&runs, &mut series);
        let mut values: BTreeMap<u64, f64> = taken.iter().copied().collect();
        let mut finer = 10;
        for resolution in Resolution::ALL {
            let rolled = roll(&values, finer, resolution.seconds());
            let open = taken.last().expect("a sample").0 / resolution.seconds();
            let kept = series.kept(resolution);
            prop_assert_eq!(kept.end, open);
            for number in kept {
                let wanted = rolled.get(&number);
                let found = series.interval(resolution, number);
                prop_assert_eq!(found.is_some(), wanted.is_some(), "{:?} {}", resolution, number);
                if let (Some(found), Some((mean, peak))) = (found, wanted) {
                    prop_assert!(near(found.mean, *mean), "{} for {mean}", found.mean);
                    prop_assert!(near(found.peak, *peak), "{} for {peak}", found.peak);
                }
            }
            prop_assert!(series.interval(resolution, open).is_none());
            values = rolled.into_iter().map(|(n, (mean, _))| (n * resolution.seconds(), mean)).collect();
            finer = resolution.seconds();
        }
    }

    #[test]
    fn what_is_stored_comes_back_and_goes_on_alike(runs in runs(), more in runs()) {
        let mut series = Series::new(Shape::VOLUME);
        record(&runs, &mut series);
        let mut back = Series::decode(&series.encode()).expect("own bytes");
        prop_assert_eq!(&back, &series);
        let base = series.latest().expect("a sample").0;
        for (i, (_, gap, value)) in more.iter().enumerate() {
            let at = base + 10 * (i as u64 + 1) + 10 * u64::from(*gap);
            prop_assert_eq!(series.record(at, *value), back.record(at, *value));
        }
        prop_assert_eq!(back.encode(), series.encode());
    }

    #[test]
    fn no_damage_goes_unseen(runs in runs(), place in any::<proptest::sample::Index>(), flip in 1_u8..=255) {
        let mut series = Series::new(Shape::VOLUME);
        record(&runs, &mut series);
        let mut bytes = series.encode();
        let cut = place.index(bytes.len());
        prop_assert!(Series::decode(&bytes[..cut]).is_err());
        bytes[cut] ^= flip;
        prop_assert!(Series::decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_and_samples_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        samples in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..40),
    ) {
        prop_assert!(Series::decode(&bytes).is_err());
        let mut series = Series::new(Shape::DISK);
        for (at, bits) in samples {
            let taken = series.record(at, f64::from_bits(bits));
            prop_assert_eq!(taken == Taken::NoNumber, !f64::from_bits(bits).is_finite());
        }
        prop_assert_eq!(Series::decode(&series.encode()).expect("own bytes"), series);
    }
}

#[test]
fn a_week_of_a_disk_takes_two_kilobytes() {
    let mut series = Series::new(Shape::DISK);
    for i in 0..8 * 8640_u64 {
        series.record(START + 10 * i, 1e9 + i as f64);
    }
    assert!(series.encode().len() < 2300, "{} bytes", series.encode().len());
    assert!(Series::new(Shape::DISK).encode().len() < 200);
    assert_eq!(
        series.kept(Resolution::Hour).filter_map(|n| series.interval(Resolution::Hour, n)).count(),
        168
    );
    let mean = series.recent_mean(Resolution::Minute, 6).expect("minutes");
    assert!(near(mean, 1e9 + 69_100.0), "{mean}");
}

#[test]
fn late_and_broken_samples_change_nothing() {
    let mut series = Series::new(Shape::DISK);
    assert_eq!(series.record(START, 5.0), Taken::Yes);
    let before = series.clone();
    assert_eq!(series.record(START, 6.0), Taken::Late);
    assert_eq!(series.record(START - 100, 6.0), Taken::Late);
    assert_eq!(series.record(START + 10, f64::NAN), Taken::NoNumber);
    assert_eq!(series, before);
}

#[test]
fn a_clock_that_was_ahead_does_not_silence_a_series() {
    let mut series = Series::new(Shape::DISK);
    assert_eq!(series.record(START, 5.0), Taken::Yes);
    assert_eq!(series.record(u64::MAX, 5.0), Taken::Yes);
    assert_eq!(series.record(START + 10, 6.0), Taken::Restarted);
    assert_eq!(series.record(START + 20, 6.0), Taken::Yes);
    assert_eq!(series.latest(), Some((START + 20, 6.0)));
    assert_eq!(series.kept(Resolution::Hour).end, START / 3600);
}

#[test]
fn another_version_is_told_from_damage() {
    let mut bytes = Series::new(Shape::DISK).encode();
    bytes[2] = 9;
    assert_eq!(Series::decode(&bytes), Err(DecodeError::Version { kind: "history", found: 9, known: 1 }));
    bytes[1] = b'X';
    assert_eq!(Series::decode(&bytes), Err(DecodeError::Other { kind: "history" }));
}

#[test]
fn two_halves_of_a_history_become_one() {
    let hours = |from: u64, to: u64, value: f64| {
        let mut s = Series::new(Shape::VOLUME);
        for at in (from * 3600..to * 3600).step_by(10) {
            s.record(at, value);
        }
        s
    };
    let (first, second) = (hours(1000, 1010, 5.0), hours(1012, 1015, 7.0));
    for (mut one, other) in [(first.clone(), second.clone()), (second.clone(), first.clone())] {
        one.absorb(&other);
        assert_eq!(one.latest(), second.latest());
        let mean = |n| one.interval(Resolution::Hour, n).map(|i| i.mean.round() as i64);
        assert_eq!((mean(1003), mean(1009), mean(1011), mean(1013)), (Some(5), Some(5), None, Some(7)));
        let again = one.clone();
        one.absorb(&other);
        assert_eq!(one, again);
    }
    let mut disk = Series::new(Shape::DISK);
    disk.absorb(&second);
    assert_eq!(disk.latest(), None, "another shape is another quantity");
}
