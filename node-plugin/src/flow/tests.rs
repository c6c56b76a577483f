#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use kernel::{block::DiskStat, health::Health};
use pool::ids::{DiskId, VolumeId};

use super::{
    areas::Areas,
    look::{DiskLook, Look, LookError},
    *,
};

const DISK: DiskId = DiskId::from_u128(0xd1);
const VOLUME: VolumeId = VolumeId::from_u128(0xa1);
const START: u64 = 1_700_000_000;

fn reads(n: u64) -> DiskStat {
    DiskStat { reads: n, read_sectors: 8 * n, read_ms: n, weighted_ms: n, ..DiskStat::default() }
}

/// A look after which the disk has made `n` reads, `lent` of them for another node, and the volume the rest.
fn look(n: u64, lent: u64) -> Look {
    let disk = DiskLook { class: proto::DiskClass::Ssd, stat: reads(n), health: None };
    Look {
        disks: [(DISK, disk)].into(),
        slices: [((DISK, VolumeId::from_u128(7), 1), reads(lent))].into(),
        volumes: [(VOLUME, reads(n - lent))].into(),
        areas: [(VOLUME, Areas { part_bytes: 4 << 20, ios: vec![n - lent, 0] })].into(),
    }
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn last(r: &Recorder) -> Arc<proto::Recording> {
    r.listen().borrow().clone().unwrap()
}

#[test]
fn a_sample_is_a_difference_and_lent_work_is_not_the_owners() {
    let t = tempfile::tempdir().unwrap();
    let r = Recorder::open(t.path());
    r.take(s(0), START, look(1000, 400));
    assert_eq!(last(&r).disks.len(), 0, "counters since boot are no sample");
    r.take(s(10), START + 10, look(3000, 900));
    let first = last(&r);
    let d = &first.disks[0];
    // 200 reads of 4 KiB a second: each 1 and 4096/32768.
    assert!((d.load - 225.0).abs() < 0.1, "{d:?}");
    assert!((d.lent - 56.25).abs() < 0.1, "{d:?}");
    assert_eq!((d.latency_s, d.read_bytes_s), (Some(0.001), 819_200.0));
    let v = &first.volumes[0];
    assert!(
        (v.load - 168.75).abs() < 0.1 && v.heat.len() == 2 && v.heat[0] > 0.0 && v.heat[1] == 0.0,
        "{v:?}"
    );
    assert_eq!((first.sequence, first.at_s), (2, START + 10));
    let own = r.lock().rows.disks[&DISK].series.latest().unwrap().1;
    assert!((own - 168.75).abs() < 0.2, "{own}");
}

#[test]
fn what_went_back_or_away_is_no_sample() {
    let t = tempfile::tempdir().unwrap();
    let r = Recorder::open(t.path());
    r.take(s(0), START, look(5000, 0));
    r.take(s(10), START + 10, look(10, 0));
    assert!(last(&r).disks.is_empty(), "another device under the same name");
    r.take(s(20), START + 20, Look::default());
    r.take(s(30), START + 30, look(5000, 0));
    assert!(last(&r).disks.is_empty() && last(&r).volumes.is_empty(), "it was away");
    r.take(s(40), START + 40, look(5100, 0));
    assert_eq!(last(&r).disks.len(), 1);
    r.take(s(40), START + 41, look(5200, 0));
    assert!(last(&r).disks.is_empty(), "no time has passed");
}

#[test]
fn histories_survive_and_are_sent_in_parts() {
    let t = tempfile::tempdir().unwrap();
    let health = Health { temperature_c: Some(40), ..Health::default() };
    {
        let r = Recorder::open(t.path());
        for n in 0..400 {
            let mut l = look(1000 * n, 100 * n);
            l.disks.get_mut(&DISK).unwrap().health = Some(Health { media_errors: Some(3 + n), ..health });
            for v in 0..200 {
                l.volumes.insert(VolumeId::from_u128(1000 + v), reads(n * (v as u64 + 1)));
            }
            r.take(s(10 * n), START + 10 * n, l);
        }
        r.keep(proto::Keep { disks: vec![proto::Kept { disk: DISK.to_string(), state: b"grown".to_vec() }] });
        r.save().unwrap();
        let newest = last(&r).disks[0].health.unwrap();
        assert_eq!((newest.media_errors, newest.media_errors_before), (Some(402), 3));
    }
    let r = Recorder::open(t.path());
    assert_eq!(r.counts(), (1, 201));
    let parts = r.histories();
    let all: Vec<_> = parts.iter().flat_map(|p| &p.histories).collect();
    assert_eq!(all.len(), 202);
    assert!(parts.len() > 1 || parts[0].histories.len() == 202);
    let disk = all.iter().find(|h| h.of == Some(proto::history::Of::Disk(DISK.to_string()))).unwrap();
    assert_eq!(disk.kept, b"grown");
    let series = forecast::Series::decode(&disk.series).unwrap();
    assert_eq!(series.latest().unwrap().0, START + 3990);
    forecast::DeviceModel::decode(&disk.model).unwrap();
    assert_eq!(r.lock().rows.disks[&DISK].errors_before, Some(3));
    // A week after it left, a volume's history is worth nothing.
    r.take(s(1), START + 3990 + 8 * 24 * 3600, Look::default());
    assert_eq!(r.counts(), (0, 0));
}

#[test]
fn damage_costs_only_what_is_damaged() {
    let t = tempfile::tempdir().unwrap();
    let r = Recorder::open(t.path());
    r.take(s(0), START, look(0, 0));
    r.take(s(10), START + 10, look(100, 0));
    r.save().unwrap();
    let path = t.path().join("recording");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, &bad).unwrap();
        // Nothing panics; what is read has passed its checksums.
        Recorder::open(t.path()).histories();
        std::fs::write(&path, &whole[..at]).unwrap();
        Recorder::open(t.path()).histories();
    }
    std::fs::write(&path, b"something else").unwrap();
    assert_eq!(Recorder::open(t.path()).counts(), (0, 0));
}

struct Counting(AtomicU64);

impl Eye for Counting {
    fn look(&self, _: Wants) -> Result<Look, LookError> {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        if n == 1 { Err(std::io::Error::other("once").into()) } else { Ok(look(100 * n, 0)) }
    }
}

#[tokio::test]
async fn the_timer_goes_on_after_a_failed_look_and_writes_down_at_the_end() {
    let t = tempfile::tempdir().unwrap();
    let r = Recorder::open(t.path());
    let (stop, stopped) = watch::channel(false);
    let mut news = r.listen();
    let eye = Arc::new(Counting(AtomicU64::new(0)));
    let run = tokio::spawn(r.clone().run(eye, Calls::default(), Duration::from_millis(5), stopped));
    let enough = news.wait_for(|n| n.as_ref().is_some_and(|n| n.sequence >= 3 && !n.disks.is_empty()));
    tokio::time::timeout(Duration::from_secs(30), enough).await.unwrap().unwrap();
    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(30), run).await.unwrap().unwrap();
    assert_eq!(Recorder::open(t.path()).counts(), (1, 1));
}
