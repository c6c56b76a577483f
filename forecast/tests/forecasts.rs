//! Forecasts and bounds: sensible for any input, right for simple ones, and violated as often as they say.

use forecast::{ClassScores, Forecaster, GREATEST, HORIZONS_H, Hour, Series, Shape};
use proptest::prelude::*;

const FIRST: u64 = 472_000;

fn hour(number: u64, mean: f64, peak: f64) -> Hour {
    Hour { number: FIRST + number, mean, peak, late: mean }
}

/// SplitMix64: a number from 0 to 1.
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn check(forecaster: &Forecaster) -> Result<(), TestCaseError> {
    for horizon in 0..30 {
        let said = forecaster.forecast(horizon);
        for value in [said.mean, said.peak_bound] {
            prop_assert!(value.is_finite() && (0.0..=GREATEST).contains(&value), "{said:?}");
        }
        prop_assert!(said.peak_bound >= said.mean, "{said:?}");
        prop_assert!((0.0..=1.0).contains(&said.confidence), "{said:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn anything_is_answered_sensibly(
        hours in proptest::collection::vec(
            (prop_oneof![9 => Just(1_u64), 1 => 0_u64..60, 1 => any::<u64>()], any::<[u64; 3]>(), any::<bool>()), 1..90),
        wanted in any::<f64>(),
    ) {
        let mut class = ClassScores::new();
        let mut forecaster = Forecaster::new(wanted);
        let mut number = 0_u64;
        for (step, bits, tame) in hours {
            number = number.saturating_add(step);
            let [mean, peak, late] = bits.map(|b| if tame { (b % 1000) as f64 } else { f64::from_bits(b) });
            forecaster.observe(Hour { number, mean, peak, late }, &mut class);
            check(&forecaster)?;
        }
        let back = Forecaster::decode(&forecaster.encode()).expect("own bytes");
        prop_assert_eq!(&back, &forecaster);
        let class_back = ClassScores::decode(&class.encode()).expect("own bytes");
        prop_assert_eq!(class_back, class);
    }

    #[test]
    fn no_damage_goes_unseen(
        count in 0_u64..60, place in any::<proptest::sample::Index>(), flip in 1_u8..=255,
    ) {
        let mut class = ClassScores::new();
        let mut forecaster = Forecaster::new(0.05);
        (0..count).for_each(|n| forecaster.observe(hour(n, (n % 7) as f64, 9.0), &mut class));
        for mut bytes in [forecaster.encode(), class.encode()] {
            let at = place.index(bytes.len());
            let short = bytes[..at].to_vec();
            bytes[at] ^= flip;
            for wrong in [short, bytes] {
                prop_assert!(Forecaster::decode(&wrong).is_err() && ClassScores::decode(&wrong).is_err());
            }
        }
    }
}

#[test]
fn before_the_first_hour_nothing_is_known() {
    let said = Forecaster::new(0.05).forecast(1);
    assert_eq!((said.mean, said.peak_bound, said.confidence), (0.0, 0.0, 0.0));
}

#[test]
fn a_clock_that_was_ahead_does_not_silence_a_forecaster() {
    let mut class = ClassScores::new();
    let mut forecaster = Forecaster::new(0.05);
    for n in (0..30).chain([5000]).chain(31..40) {
        forecaster.observe(hour(n, 10.0, 10.0), &mut class);
    }
    assert_eq!(forecaster.newest_hour(), Some(FIRST + 39));
    assert!((forecaster.forecast(1).mean - 10.0).abs() < 0.1);
    forecaster.observe(hour(38, 99.0, 99.0), &mut class);
    assert_eq!(forecaster.newest_hour(), Some(FIRST + 39));
}

#[test]
fn a_constant_stays_one() {
    let mut class = ClassScores::new();
    let mut forecaster = Forecaster::new(0.05);
    (0..200).for_each(|n| forecaster.observe(hour(n, 1000.0, 1000.0), &mut class));
    for horizon in HORIZONS_H {
        let said = forecaster.forecast(horizon);
        assert!((said.mean - 1000.0).abs() < 1.0, "{said:?}");
        assert!((1000.0..1050.0).contains(&said.peak_bound), "{said:?}");
        assert_eq!(said.confidence, 1.0);
    }
    assert!(forecaster.encode().len() < 7500, "{} bytes", forecaster.encode().len());
}

#[test]
fn a_day_repeats_also_after_an_outage() {
    let load = |n: u64| if (8..18).contains(&(n % 24)) { 900.0 } else { 100.0 };
    let mut class = ClassScores::new();
    let mut forecaster = Forecaster::new(0.05);
    let mut worst: f64 = 0.0;
    for n in (0..240).filter(|n| !(180..207).contains(n)) {
        forecaster.observe(hour(n, load(n), load(n)), &mut class);
        if n < 120 {
            continue;
        }
        for horizon in HORIZONS_H {
            let length = u64::from(horizon);
            let mean = (1..=length).map(|k| load(n + k)).sum::<f64>() / f64::from(horizon);
            let said = forecaster.forecast(horizon);
            worst = worst.max((said.mean - mean).abs() / mean);
            let peak = (1..=length).map(|k| load(n + k)).fold(0.0, f64::max);
            assert!(said.peak_bound >= 0.99 * peak, "hour {n}: {said:?}, the peak is {peak}");
        }
    }
    assert!(worst < 0.05, "off by {worst}");
}

#[test]
fn a_history_feeds_a_forecaster_once() {
    let mut series = Series::new(Shape::DISK);
    let (mut one, mut other) = (Forecaster::new(0.05), Forecaster::new(0.05));
    let (mut class_one, mut class_other) = (ClassScores::new(), ClassScores::new());
    for sample in 0..360 * 30_u64 {
        let value = if (sample / 360) % 5 == 0 { 5e6 } else { 1e6 };
        series.record(FIRST * 3600 + 10 * sample, value);
        if sample % 1000 == 0 {
            one.catch_up(&series, &mut class_one);
        }
    }
    one.catch_up(&series, &mut class_one);
    other.catch_up(&series, &mut class_other);
    assert_eq!(one.newest_hour(), Some(FIRST + 28));
    assert_eq!(one, other);
    assert_eq!(class_one, class_other);
    assert_eq!(Forecaster::replayed(&series, &ClassScores::new(), 0.05), one);
}

/// Loads as nodes have them: a daily course, a nightly backup, noise, and rare bursts of up to 20 times the usual.
fn burst_load(seed: u64, hours: u64) -> Vec<Hour> {
    let mut state = seed;
    let scale = 100.0 + 900.0 * unit(&mut state);
    let backup = (unit(&mut state) * 24.0) as u64;
    let course = |n: u64| if (8..18).contains(&(n % 24)) { 1.0 } else { 0.3 };
    (0..hours)
        .map(|n| {
            let noise = 0.5 + unit(&mut state);
            let burst = if unit(&mut state) < 0.03 { 20.0 * unit(&mut state) } else { 0.0 };
            let night = if n % 24 == backup { 6.0 * (0.7 + 0.6 * unit(&mut state)) } else { 0.0 };
            let mean = scale * (course(n) * noise + 0.3 * burst + night);
            hour(n, mean, mean * (1.2 + unit(&mut state)) + scale * burst)
        })
        .collect()
}

#[test]
fn bounds_are_violated_as_often_as_they_say() {
    let hours = 420;
    let nodes: Vec<Vec<Hour>> = (0..16).map(|seed| burst_load(seed, hours)).collect();
    for wanted in [0.05, 0.2] {
        let mut class = ClassScores::new();
        let mut forecasters = vec![Forecaster::new(wanted); nodes.len()];
        let mut violated = [0.0; 4];
        let mut decisions = [0.0; 4];
        for now in 0..usize::try_from(hours).expect("hours") {
            for (node, forecaster) in nodes.iter().zip(&mut forecasters) {
                forecaster.observe(node[now], &mut class);
                for (i, horizon) in HORIZONS_H.iter().enumerate().filter(|_| now >= 210) {
                    let Some(came) = node.get(now + 1..=now + *horizon as usize) else { continue };
                    let peak = came.iter().map(|h| h.peak).fold(0.0, f64::max);
                    decisions[i] += 1.0;
                    violated[i] += f64::from(u8::from(peak > forecaster.forecast(*horizon).peak_bound));
                }
            }
        }
        // Bounds of half a day see few independent days in two weeks: they may be wider than they must.
        for (i, least) in [(0, 0.8), (1, 0.8), (2, 0.5)] {
            let rate = violated[i] / decisions[i] / wanted;
            assert!((least..1.2).contains(&rate), "{} h: {rate} times {wanted}", HORIZONS_H[i]);
        }
    }
}
