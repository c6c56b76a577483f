#![allow(clippy::unwrap_used)]

use forecast::{DeviceModel, Fault, Growth, HealthReport, Observed, Reason, Series, Shape};
use pool::{
    alloc,
    disk::DiskClass,
    units::{ExtentSize, Extents},
};

use super::*;

const START: u64 = 1_700_000_000 / 3600 * 3600;
const DISK: DiskId = DiskId::from_u128(0xd1);
const VOLUME: VolumeId = VolumeId::from_u128(0xa1);

fn node() -> NodeName {
    "n1".parse().unwrap()
}

fn sample(load: f64, lent: f64) -> DiskSample {
    DiskSample {
        disk: DISK,
        class: DeviceClass::Ssd,
        all: Observed { load, queue: 0.5, latency: Some(2e-4) },
        lent,
        loans: [(VOLUME, lent)].into(),
        read_bytes_s: 0.0,
        write_bytes_s: 0.0,
        health: None,
    }
}

fn recording(sequence: u64, at_s: u64, load: f64, lent: f64) -> Recording {
    let volume = VolumeSample { volume: VOLUME, load, rates: Rates::default(), heat: None };
    Recording { sequence, at_s, disks: vec![sample(load, lent)], volumes: vec![volume], histories: vec![] }
}

fn facts() -> DiskFacts {
    DiskFacts {
        disk: DISK,
        node: node(),
        pool: "p".parse().unwrap(),
        class: DiskClass::Ssd,
        extent_size: ExtentSize::DEFAULT,
        extents: Extents::new(10_000),
        free: Extents::new(8000),
        owned: Extents::new(2000),
        loans: [(VOLUME, Borrowed { by: "n2".parse().unwrap(), extents: Extents::new(500) })].into(),
        still: true,
        reserve: Extents::ZERO,
        serving: true,
        offer: None,
    }
}

/// So many hours of a load of 1000, a tenth of it lent.
fn fed(hours: u64) -> (Flow, u64) {
    let flow = Flow::default();
    let end = START + hours * 3600;
    for (n, at) in (START..end).step_by(10).enumerate() {
        flow.take(&node(), at, recording(n as u64 + 1, at, 1000.0, 100.0));
    }
    (flow, end)
}

fn weighed(flow: &Flow, now: u64, f: DiskFacts) -> (Offer, Option<alloc::Offer>) {
    let set = flow.weigh(now, &[f]);
    let offer = flow.disk(DISK, now).unwrap().offer.unwrap();
    (offer, set.first().and_then(|s| s.offer))
}

#[test]
fn what_is_said_twice_counts_once_and_what_is_lost_is_counted() {
    let flow = Flow::default();
    for (sequence, at, load) in [(1, 10, 5.0), (1, 10, 5.0), (2, 20, 7.0), (6, 60, 9.0), (5, 50, 99.0)] {
        flow.take(&node(), START + at, recording(sequence, START + at, load, 0.0));
    }
    let d = flow.disk(DISK, START + 70).unwrap();
    assert_eq!(d.sample.unwrap().all.load, 9.0);
    assert_eq!((d.series.latest(), d.age_s), (Some((START + 60, 9.0)), Some(10)));
    assert_eq!(flow.heard(), Heard { recordings: 5, lost: 3, histories: 0 });
}

#[test]
fn a_disk_that_is_heard_of_lends_and_a_silent_one_does_not() {
    let (flow, now) = fed(30);
    let (offer, set) = weighed(&flow, now, facts());
    assert_eq!((offer.space_reason, offer.io_reason), (Reason::Lends, Reason::Lends), "{offer:?}");
    assert!(offer.bytes > 0 && offer.bytes < 8000 * (16 << 20));
    // 80 % of half of what its class does, less its own load and what is lent.
    assert!(offer.io > 6000.0 && offer.io < 7000.0, "{offer:?}");
    let set = set.unwrap();
    assert!(set.lendable.get() > 7000 && set.lendable.get() < 8000 && set.score > 500, "{set:?}");

    let (offer, set) = weighed(&flow, now + 100, facts());
    assert!(matches!(offer.space_reason, Reason::Stale { age_s: 110 }), "{offer:?}");
    assert_eq!(set, Some(alloc::Offer { lendable: Extents::ZERO, score: 0 }));
}

#[test]
fn a_sick_disk_lends_nothing() {
    let (flow, now) = fed(30);
    let mut r = recording(99_999, now, 1000.0, 0.0);
    r.disks[0].health = Some((HealthReport { media_errors: Some(7), ..HealthReport::default() }, 5));
    flow.take(&node(), now, r);
    let (offer, set) = weighed(&flow, now + 1, facts());
    assert_eq!(offer.io_reason, Reason::Unhealthy(Fault::MediaErrors { new: 2 }));
    assert_eq!(set.map(|s| s.lendable), Some(Extents::ZERO));
}

#[test]
fn what_was_never_sampled_or_is_another_nodes_has_no_offer() {
    let flow = Flow::default();
    assert!(flow.weigh(START, &[facts()]).is_empty());
    let (flow, now) = fed(1);
    let stands = Some(alloc::Offer { lendable: Extents::new(5), score: 3 });
    let moved = DiskFacts { node: "n2".parse().unwrap(), offer: stands, ..facts() };
    let void = SetOffer { disk: DISK, free_then: facts().free, offer: None };
    assert_eq!(flow.weigh(now, &[moved]), [void]);
}

#[test]
fn small_changes_are_not_news() {
    let (flow, now) = fed(30);
    let (_, set) = weighed(&flow, now, facts());
    assert!(flow.weigh(now + 1, &[DiskFacts { offer: set, ..facts() }]).is_empty());
    let fuller = DiskFacts { offer: set, free: Extents::new(7000), owned: Extents::new(3000), ..facts() };
    assert_eq!(flow.weigh(now + 2, &[fuller]).len(), 1);
}

#[test]
fn a_controller_that_starts_knows_what_the_nodes_kept() {
    let (old, now) = fed(30);
    let mut news = old.to_node(&node());
    old.weigh(now, &[facts()]);
    let ToNode::Keep(kept) = news.try_recv().unwrap() else { panic!("something else") };
    assert_eq!(kept[0].0, DISK);
    let view = old.disk(DISK, now).unwrap();

    let fresh = Flow::default();
    let history = History::Disk {
        disk: DISK,
        series: Box::new(Series::decode(&view.series.encode()).unwrap()),
        model: Some(Box::new(DeviceModel::decode(&view.model.encode()).unwrap())),
        growth: Some(Growth::decode(&kept[0].1).unwrap()),
    };
    let volume = History::Volume {
        volume: VOLUME,
        series: Box::new(old.volume(VOLUME).unwrap().series),
        heat: Heat { part_bytes: 1, ios: vec![1.0] },
    };
    let histories = vec![history, volume];
    fresh.take(&node(), now, Recording { histories: histories.clone(), ..Recording::default() });
    assert_eq!(fresh.counts(), (1, 1));
    assert!(fresh.weigh(now, &[facts()]).is_empty(), "a history is no sample");
    fresh.take(&node(), now, recording(7, now, 1000.0, 100.0));
    // Said again at the next session: nothing counts twice.
    fresh.take(&node(), now, Recording { histories, ..Recording::default() });
    let (offer, _) = weighed(&fresh, now + 1, facts());
    assert_eq!(offer.io_reason, Reason::Lends);
    let (a, b) = (fresh.disk(DISK, now).unwrap(), view);
    let at = |d: &DiskView| d.series.interval(forecast::Resolution::Hour, START / 3600 + 7);
    assert!(at(&a).is_some() && at(&a) == at(&b));
    let forecast = fresh.volume_forecast(VOLUME, 1).unwrap();
    assert!((forecast.mean - 1000.0).abs() < 20.0, "{forecast:?}");
}

#[test]
fn what_moves_about_keeps_its_history() {
    let flow = Flow::default();
    let piece = |from: u64, load: f64| {
        let mut s = Series::new(Shape::VOLUME);
        (START + from..START + from + 7200)
            .step_by(10)
            .for_each(|at| assert_eq!(s.record(at, load), Taken::Yes));
        History::Volume { volume: VOLUME, series: Box::new(s), heat: Heat::default() }
    };
    for (name, h) in [("n2", piece(10_800, 2.0)), ("n1", piece(0, 1.0))] {
        flow.take(&name.parse().unwrap(), START, Recording { histories: vec![h], ..Recording::default() });
    }
    let series = flow.volume(VOLUME).unwrap().series;
    let mean = |h| series.interval(forecast::Resolution::Hour, START / 3600 + h).map(|i| i.mean.round());
    assert_eq!([mean(0), mean(1), mean(2), mean(3)], [Some(1.0), Some(1.0), None, Some(2.0)]);
}

#[test]
fn what_the_core_does_not_know_is_forgotten() {
    let (flow, now) = fed(1);
    flow.forget(now, &[].into());
    assert_eq!(flow.counts(), (1, 1), "it may be on its way to the record");
    flow.forget(now + 700, &[DISK].into());
    assert_eq!(flow.counts(), (1, 1));
    flow.forget(now + 8 * 24 * 3600, &[].into());
    assert_eq!(flow.counts(), (0, 0));
}

#[test]
fn a_borrower_is_slowed_while_the_lenders_owner_waits_and_never_below_its_floor() {
    let flow = Flow::default();
    let borrower: NodeName = "n2".parse().unwrap();
    let mut news = flow.to_node(&borrower);
    let mut now = START;
    // The borrower asks for 8 times what its part of the disk is worth, and does what it may.
    let mut round = |own: f64, may: f64, still: bool| {
        now += 10;
        let lent = may.min(3200.0);
        let waits = own > 0.0 && own + lent > 3600.0;
        let all = Observed {
            load: own + lent,
            queue: if waits { 32.0 } else { 1.0 },
            latency: Some(if waits { 8e-3 } else { 2e-4 }),
        };
        let disks = vec![DiskSample { all, ..sample(own + lent, lent) }];
        flow.take(&node(), now, Recording { sequence: now, at_s: now, disks, ..Recording::default() });
        let rates = Rates { reads: lent, writes: 0.0, read_bytes: 4096.0 * lent, write_bytes: 0.0 };
        let volumes = vec![VolumeSample { volume: VOLUME, load: lent, rates, heat: None }];
        flow.take(&borrower, now, Recording { sequence: now, at_s: now, volumes, ..Recording::default() });
        flow.weigh(now, &[DiskFacts { still, ..facts() }]);
        flow.weigh(now + 1, &[DiskFacts { still, ..facts() }]);
        let count = flow.tell_ceilings(now);
        assert_eq!(count as u64, flow.bounded());
        (news.try_recv().ok(), flow.loans(DISK)[&VOLUME])
    };
    let told = |n: Option<ToNode>| match n {
        Some(ToNode::Ceilings(all)) => all.get(&VOLUME).copied(),
        other => panic!("{other:?}"),
    };
    let (nothing, io) = round(0.0, 3200.0, true);
    assert_eq!((nothing, io.load, io.ceiling), (None, 3200.0, None), "no owner, nobody waits");
    assert!((399.0..401.0).contains(&io.floor), "0.8 of 10,000, a twentieth of the extents: {io:?}");
    assert_eq!(round(2000.0, 3200.0, false).0, None, "it wipes: whose waiting that is cannot be told");
    let (first, io) = round(2000.0, 3200.0, true);
    let c = told(first).unwrap();
    // Floor 400, and half of what was above: once for two looks at one sample.
    assert_eq!((io.ceiling, c.reads, c.writes, c.read_bytes), (Some(1800.0), 1800, 450, 1800 * 4096));
    let mut may = 1800.0;
    for _ in 0..20 {
        let (next, io) = round(3500.0, may, true);
        may = told(next).unwrap().reads as f64;
        assert!(may >= io.floor && io.ceiling.unwrap() >= io.floor, "{io:?}");
    }
    assert!(may < 600.0, "{may}");
    for _ in 0..2 {
        told(round(0.0, may, true).0).unwrap();
    }
    assert_eq!(told(round(0.0, may, true).0), None, "the owner rests: lifted, and said so");
    assert_eq!(round(0.0, 3200.0, true).0, None, "once");
}

#[test]
fn a_burst_is_not_held_to_the_lull_in_which_its_volume_was_sampled() {
    let flow = Flow::default();
    let borrower: NodeName = "n2".parse().unwrap();
    let mut news = flow.to_node(&borrower);
    let all = Observed { load: 5200.0, queue: 32.0, latency: Some(8e-3) };
    let disks = vec![DiskSample { all, ..sample(5200.0, 3200.0) }];
    flow.take(&node(), START, Recording { sequence: 1, at_s: START, disks, ..Recording::default() });
    let mut told = |load: f64, rates: Rates| {
        let volumes = vec![VolumeSample { volume: VOLUME, load, rates, heat: None }];
        let at_s = START + load as u64 + 1;
        flow.take(&borrower, START, Recording { sequence: 1, at_s, volumes, ..Recording::default() });
        flow.weigh(START, &[facts()]);
        flow.tell_ceilings(START);
        match news.try_recv().ok() {
            Some(ToNode::Ceilings(all)) => all.get(&VOLUME).copied(),
            other => {
                assert_eq!(other, None);
                None
            }
        }
    };
    assert_eq!(told(0.0, Rates::default()), None);
    // Writes were not done at all: they may come at once, and the floor is theirs.
    let few = Rates { reads: 900.0, read_bytes: 900.0 * 4096.0, ..Rates::default() };
    let c = told(900.0, few).unwrap();
    assert_eq!((c.writes, c.write_bytes), (400, 400 * 4096), "{c:?}");
}
