//! Device model, growth and offers: what a simulated device teaches, and what is lent.

use forecast::{
    ClassScores, DeviceClass, DeviceModel, Drift, Facts, Fault, Forecaster, Growth, HealthReport, Hour,
    Observed, Offer, Reason, Work, offer,
};
use proptest::prelude::*;

const NOW_S: u64 = 1_700_000_000;
const TIB: u64 = 1 << 40;

/// SplitMix64: a number from 0 to 1.
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A device that serves `capability` I/Os a second at most, each in at least `idle` seconds, give or take a tenth.
fn look(state: &mut u64, capability: f64, idle: f64, queue: f64) -> Observed {
    let vary = 0.9 + 0.2 * unit(state);
    let latency = idle.max(queue / capability) * vary;
    Observed { load: queue / latency, queue, latency: Some(latency) }
}

fn taught(capability: f64, idle: f64) -> DeviceModel {
    let mut state = 7;
    let mut model = DeviceModel::new(DeviceClass::Ssd);
    for i in 0..400_u64 {
        let queue = if i % 3 == 0 { 0.5 } else { unit(&mut state) * 64.0 };
        model.observe(NOW_S + 10 * i, look(&mut state, capability, idle, queue));
    }
    model
}

#[test]
fn capability_and_latency_are_learned() {
    for (capability, idle) in [(50_000.0, 100e-6), (2_000.0, 2e-3), (300.0, 5e-3)] {
        let model = taught(capability, idle);
        let found = model.capability();
        assert!((0.85 * capability..1.0 * capability).contains(&found), "{found} of {capability}");
        for queue in [0.5, 40.0, 64.0] {
            let real = idle.max(queue / capability);
            let said = model.latency(queue);
            assert!((said - real).abs() < 0.12 * real, "queue {queue}: {said}, really {real}");
        }
        assert!(model.latency_quantile(40.0, 0.95) > model.latency(40.0));
        assert!(model.latency_under(0.9 * found) > 5.0 * model.latency_under(0.0));
        assert_eq!((model.confidence(), model.drift()), (1.0, None));
    }
}

#[test]
fn a_new_device_is_believed_half_its_class_and_what_it_shows() {
    let mut model = DeviceModel::new(DeviceClass::Hdd);
    assert_eq!(model.capability(), 75.0);
    assert!(model.confidence() < 0.3);
    model.observe(NOW_S, Observed { load: 500.0, queue: 0.8, latency: Some(1e-3) });
    assert!(model.capability() >= 399.0);
    let mut probed = DeviceModel::new(DeviceClass::Nvme);
    probed.seed(400_000.0, 80e-6);
    assert_eq!(probed.capability(), 300_000.0);
    probed.seed(f64::NAN, 1.0);
    assert_eq!(probed.capability(), 300_000.0);
}

#[test]
fn a_device_that_slows_down_is_noticed_and_learned_anew() {
    let mut model = taught(20_000.0, 200e-6);
    let mut state = 11;
    let start = NOW_S + 10_000;
    for i in 0..300_u64 {
        let queue = if i % 3 == 0 { 0.5 } else { unit(&mut state) * 64.0 };
        model.observe(start + 10 * i, look(&mut state, 6_000.0, 700e-6, queue));
    }
    let (at_s, drift) = model.drift().expect("a drift");
    assert_eq!(drift, Drift::Slower);
    assert!(at_s < start + 300, "noticed after {} s", at_s - start);
    assert!((4_500.0..6_600.0).contains(&model.capability()), "{}", model.capability());
    assert!((model.latency(40.0) - 40.0 / 6_000.0).abs() < 1.5e-3, "{}", model.latency(40.0));
    assert_eq!(DeviceModel::decode(&model.encode()), Ok(model));
}

#[test]
fn usual_variation_is_no_drift() {
    let mut model = taught(20_000.0, 200e-6);
    let mut state = 13;
    for i in 0..3000_u64 {
        let queue = 40.0 * unit(&mut state);
        let weather = 1.0 + 0.12 * f64::from(u8::from((i / 360) % 2 == 0));
        model.observe(NOW_S + 10_000 + 10 * i, look(&mut state, 20_000.0 * weather, 200e-6, queue));
    }
    assert_eq!(model.drift(), None);
    assert!(model.capability() > 17_000.0);
}

#[test]
fn counters_become_load() {
    let work = Work {
        seconds: 10.0,
        reads: 1000.0,
        read_bytes: 1000.0 * 4096.0,
        io_seconds: 0.2,
        queue_seconds: 0.2,
        ..Work::default()
    };
    let seen = work.observed(DeviceClass::Nvme).expect("counters");
    assert!((seen.load - 125.0).abs() < 1e-9 && (seen.queue - 0.02).abs() < 1e-9, "{seen:?}");
    assert!((seen.latency.expect("I/O") - 0.0002).abs() < 1e-12);
    let idle = Work { seconds: 10.0, ..Work::default() }.observed(DeviceClass::Nvme);
    assert_eq!(idle, Some(Observed { load: 0.0, queue: 0.0, latency: None }));
    for broken in
        [Work { seconds: 0.0, ..work }, Work { reads: -1.0, ..work }, Work { io_seconds: f64::NAN, ..work }]
    {
        assert_eq!(broken.observed(DeviceClass::Nvme), None);
    }
}

fn facts() -> Facts {
    Facts {
        now_s: NOW_S,
        sampled_s: Some(NOW_S - 10),
        serving: true,
        health: HealthReport::default(),
        media_errors_before: 3,
        size: 4 * TIB,
        used: TIB,
        lent: 0,
        rebuild_bytes: TIB / 4,
        watermark: TIB / 4,
        recall_bytes_s: 500e6,
        lent_io: 1000.0,
        rebuild_io: 500.0,
    }
}

/// A week of an owner that uses a constant `peak` and takes a GiB an hour.
fn owner(peak: f64) -> (Forecaster, Growth) {
    let mut class = ClassScores::new();
    let (mut load, mut growth) = (Forecaster::new(0.05), Growth::new());
    for back in (0..168).rev() {
        let number = NOW_S / 3600 - back;
        load.observe(Hour { number, mean: 0.5 * peak, peak, late: 0.5 * peak }, &mut class);
        growth.observe(number, TIB - (back << 30));
    }
    (load, growth)
}

fn asked(facts: &Facts, peak: f64) -> Offer {
    let (load, growth) = owner(peak);
    offer(facts, &taught(20_000.0, 200e-6), &load, &growth)
}

#[test]
fn an_offer_adds_up() {
    let made = asked(&facts(), 5000.0);
    let Offer { bytes, io, ledger, .. } = made;
    assert_eq!(bytes, ledger.free - ledger.growth - ledger.kept_bytes);
    assert_eq!((ledger.free, ledger.kept_bytes), (3 * TIB, TIB / 2));
    // 3 TiB come back in 1.8 h, and an hour of margin: three hours at a GiB each, and what 56 such stretches do not show.
    assert_eq!(ledger.recall_h, 3);
    assert!((3 << 30..4 << 30).contains(&ledger.growth), "{ledger:?}");
    assert!((io - (ledger.usable_io - ledger.own_peak - 1500.0)).abs() < 1e-6);
    assert!((5000.0..5100.0).contains(&ledger.own_peak), "{ledger:?}");
    assert!((8000.0..9500.0).contains(&io), "{io}");
    assert_eq!((made.space_reason, made.io_reason), (Reason::Lends, Reason::Lends));
    assert_eq!((made.until_s, made.confidence), (NOW_S + 3600, 1.0));
}

#[test]
fn who_cannot_lend_says_why() {
    let health = |health| Facts { health, ..facts() };
    let none = HealthReport::default();
    let cases = [
        (Facts { serving: false, ..facts() }, Reason::NotServing),
        (Facts { sampled_s: None, ..facts() }, Reason::NeverSampled),
        (Facts { sampled_s: Some(NOW_S - 61), ..facts() }, Reason::Stale { age_s: 61 }),
        (
            health(HealthReport { fails: Some(true), critical_warning: Some(4), ..none }),
            Reason::Unhealthy(Fault::Fails),
        ),
        (
            health(HealthReport { critical_warning: Some(4), ..none }),
            Reason::Unhealthy(Fault::CriticalWarning { bits: 4 }),
        ),
        (
            health(HealthReport { media_errors: Some(5), ..none }),
            Reason::Unhealthy(Fault::MediaErrors { new: 2 }),
        ),
        (
            health(HealthReport { spare_percent: Some(9), ..none }),
            Reason::Unhealthy(Fault::SpareLow { percent: 9 }),
        ),
        (
            health(HealthReport { used_percent: Some(101), ..none }),
            Reason::Unhealthy(Fault::WornOut { percent: 101 }),
        ),
        (
            health(HealthReport { temperature_c: Some(85), temperature_limit_c: Some(80), ..none }),
            Reason::Unhealthy(Fault::Hot { celsius: 85 }),
        ),
    ];
    for (facts, reason) in cases {
        let made = asked(&facts, 5000.0);
        assert_eq!((made.bytes, made.io, made.space_reason, made.io_reason), (0, 0.0, reason, reason));
        assert!(reason.to_string().starts_with("lends nothing: "));
    }
    let fine =
        HealthReport { media_errors: Some(3), spare_percent: Some(100), used_percent: Some(99), ..none };
    assert!(asked(&health(fine), 5000.0).bytes > 0);
    assert_eq!(asked(&facts(), 50_000.0).io_reason, Reason::Busy);
    assert_eq!(asked(&Facts { used: 4 * TIB, ..facts() }, 1.0).space_reason, Reason::NoSpace);
}

#[test]
fn an_unknown_load_lends_no_io() {
    let (load, growth) = owner(10.0);
    let model = taught(20_000.0, 200e-6);
    let later = Facts { now_s: NOW_S + 5 * 3600, sampled_s: Some(NOW_S + 5 * 3600), ..facts() };
    let made = offer(&later, &model, &load, &growth);
    assert_eq!((made.io, made.io_reason), (0.0, Reason::LoadUnknown));
    let earlier = Facts { now_s: NOW_S - 5 * 3600, sampled_s: Some(NOW_S - 5 * 3600), ..facts() };
    assert_eq!(offer(&earlier, &model, &load, &growth).io_reason, Reason::LoadUnknown);
    let fresh = offer(&facts(), &model, &Forecaster::new(0.05), &Growth::new());
    assert_eq!((fresh.io, fresh.io_reason, fresh.confidence), (0.0, Reason::LoadUnknown, 0.0));
    assert!(fresh.bytes > 0 && fresh.ledger.growth > TIB / 200, "{fresh:?}");
}

#[test]
fn growth_bounds_hold() {
    let (mut missed, mut asked) = (0.0, 0.0);
    for seed in 0..40 {
        let (mut growth, mut state, mut used) = (Growth::new(), seed, 1_u64 << 40);
        let course: Vec<u64> = (0..500)
            .map(|_| {
                let step =
                    if unit(&mut state) < 0.05 { 64.0 * unit(&mut state) } else { unit(&mut state) - 0.4 };
                used = used.saturating_add_signed((step * (1 << 30) as f64) as i64);
                used
            })
            .collect();
        for (now, used) in (0_u64..).zip(&course) {
            growth.observe(now, *used);
            let now = usize::try_from(now).expect("small");
            if now >= 168 && now + 8 < course.len() {
                let most = course[now..=now + 8].iter().max().expect("hours").saturating_sub(*used);
                missed += f64::from(u8::from(most > growth.bound(8, 0.01, u64::MAX)));
                asked += 1.0;
            }
        }
        assert_eq!(Growth::decode(&growth.encode()), Ok(growth));
    }
    assert!(missed / asked < 0.02, "{missed} of {asked}");
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![2 => 0.0_f64..1e6, 1 => any::<u64>().prop_map(f64::from_bits)]
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![0..8 * TIB, any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anything_observed_is_survived(
        looks in proptest::collection::vec((number(), number(), proptest::option::of(number())), 0..200),
        asked in number(),
        seed in (number(), number()),
    ) {
        let mut model = DeviceModel::new(DeviceClass::Unknown);
        model.seed(seed.0, seed.1);
        for (i, (load, queue, latency)) in (0_u64..).zip(looks) {
            model.observe(i, Observed { load, queue, latency });
            for value in [
                model.capability(), model.latency(asked), model.latency_under(asked), model.latency_quantile(asked, 0.9),
            ] {
                prop_assert!(value.is_finite() && value >= 0.0, "{value}: {model:?}");
            }
            prop_assert!((0.0..=1.0).contains(&model.confidence()));
        }
        prop_assert_eq!(DeviceModel::decode(&model.encode()), Ok(model));
    }

    #[test]
    fn an_offer_never_exceeds_what_is_there(
        size in bytes(), used in bytes(), lent in bytes(), kept in bytes(), recall in number(),
        io in (number(), number()), uses in proptest::collection::vec((0_u64..200, bytes()), 0..60),
    ) {
        let mut growth = Growth::new();
        let mut number = NOW_S / 3600 - 168;
        for (step, used) in uses {
            number += step;
            growth.observe(number, used);
        }
        let (load, _) = owner(100.0);
        let model = taught(20_000.0, 200e-6);
        let facts = Facts {
            size, used, lent, rebuild_bytes: kept, recall_bytes_s: recall, lent_io: io.0, rebuild_io: io.1, ..facts()
        };
        let made = offer(&facts, &model, &load, &growth);
        prop_assert!(made.bytes <= size.saturating_sub(used).saturating_sub(kept));
        prop_assert!(made.io >= 0.0 && made.io <= 0.8 * model.capability());
        let more = offer(&Facts { used: used.saturating_add(TIB), lent: lent.saturating_add(TIB), ..facts }, &model, &load, &growth);
        prop_assert!(more.bytes <= made.bytes, "more used, more offered");
    }
}
