//! The disk room over disks in memory: real threads, real labels, no kernel.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use csi_proto::node::{self as proto, DeviceContent, DiskClass, DiskCondition, DiskRole};
use disk_format::{MemDisk, OpenMode, Storage, StorageError};
use kernel::{DevNo, block::Rejected};
use pool::{
    ids::{DiskId, Epoch, VolumeId},
    units::{Bytes, ExtentSize, Extents, Sectors},
    volume::{Leg, Map, Segment},
};

use super::{Found, Hardware, HardwareError, Mapping, start};
use crate::disks_api::{DiskLink, DiskOrder, DiskWord, Disks, RecordError, RunRecord, disk_link};

const D: DiskId = DiskId::from_u128(0xd1);
const V: VolumeId = VolumeId::from_u128(0x77);
const W: VolumeId = VolumeId::from_u128(0x88);
const SYSTEM: &str = "00000000-0000-0000-0000-0000000000aa";
const EXTENT: ExtentSize = ExtentSize::MIN;

#[derive(Default)]
struct Rack {
    disks: BTreeMap<String, Arc<Mutex<MemDisk>>>,
    held: Vec<DiskId>,
    /// Devices that lie beneath somebody else's.
    beneath: Vec<String>,
    mapped: Vec<Mapping>,
    zeroed: Vec<(u64, u64)>,
    /// Paths whose reads do not return.
    hung: Vec<String>,
    write_fails: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<(Mutex<Rack>, Condvar)>);

struct Disk {
    disk: Arc<Mutex<MemDisk>>,
    rack: Fake,
    path: String,
}

impl Fake {
    fn with<T>(&self, f: impl FnOnce(&mut Rack) -> T) -> T {
        let out = f(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        out
    }
    fn insert(&self, name: &str) {
        let disk = MemDisk::new(Bytes::mib(64), 512);
        self.with(|r| r.disks.insert(name.to_owned(), Arc::new(Mutex::new(disk))));
    }
    fn put(&self, name: &str, at: u64, bytes: &[u8]) {
        let d = self.with(|r| r.disks[name].clone());
        d.lock().unwrap().put(Bytes::new(at), bytes);
    }
}

impl Storage for Disk {
    fn size(&self) -> Bytes {
        self.disk.lock().unwrap().size()
    }
    fn block_size(&self) -> u32 {
        512
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError> {
        let (lock, cond) = &*self.rack.0;
        let r = cond.wait_while(lock.lock().unwrap(), |r| r.hung.contains(&self.path)).unwrap();
        drop(r);
        self.disk.lock().unwrap().read_at(offset, buf)
    }
    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError> {
        let (lock, cond) = &*self.rack.0;
        drop(cond.wait_while(lock.lock().unwrap(), |r| r.hung.contains(&self.path)).unwrap());
        if self.rack.with(|r| r.write_fails) {
            let source = std::io::Error::from_raw_os_error(libc::EIO);
            return Err(StorageError::Io { op: "write", offset: offset.get(), len: buf.len(), source });
        }
        self.disk.lock().unwrap().write_at(offset, buf)
    }
    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

impl Hardware for Fake {
    fn list(&self) -> Result<Vec<Found>, HardwareError> {
        Ok(self.with(|r| {
            let rejected = |name: &String| match (r.beneath.contains(name), r.held.is_empty()) {
                (true, _) => Some(Rejected::Held(vec!["dm-1 (mpatha)".into()])),
                (false, false) => Some(Rejected::Ours(vec!["dm-0".into()])),
                (false, true) => None,
            };
            let found = |(n, name): (usize, &String)| Found {
                dev: DevNo::new(254, n as u32),
                path: PathBuf::from(format!("/dev/{name}")),
                size: Bytes::mib(64),
                logical_block: 512,
                physical_block: 4096,
                class: DiskClass::Ssd,
                serial: name.clone(),
                wwn: String::new(),
                model: "fake".into(),
                rejected: rejected(name),
            };
            r.disks.keys().enumerate().map(found).collect()
        }))
    }
    fn open(&self, path: &Path, _: OpenMode) -> Result<Box<dyn Storage + Send>, StorageError> {
        let path = path.file_name().unwrap().to_str().unwrap().to_owned();
        let gone = || StorageError::Io {
            op: "open",
            offset: 0,
            len: 0,
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        };
        let disk = self.with(|r| r.disks.get(&path).cloned()).ok_or_else(gone)?;
        Ok(Box::new(Disk { disk, rack: self.clone(), path }))
    }
    fn hold(&self, disk: DiskId, _: DevNo) -> Result<(), HardwareError> {
        self.with(|r| r.held.push(disk));
        Ok(())
    }
    fn unhold(&self, disk: DiskId) -> Result<(), HardwareError> {
        self.with(|r| r.held.retain(|d| *d != disk));
        Ok(())
    }
    fn mappings(&self, _: DevNo) -> Result<Vec<Mapping>, HardwareError> {
        Ok(self.with(|r| r.mapped.clone()))
    }
    fn zero(
        &self,
        _: &Path,
        offset: Bytes,
        len: Bytes,
        abort: &AtomicBool,
        progress: &mut dyn FnMut(Bytes),
    ) -> Result<(), HardwareError> {
        assert!(!abort.load(Ordering::Relaxed));
        self.with(|r| r.zeroed.push((offset.get(), len.get())));
        progress(len);
        Ok(())
    }
}

/// A room and the session's side of it.
struct Bench {
    fake: Fake,
    link: DiskLink,
    room: Arc<super::DiskRoom>,
}

impl Bench {
    fn over(fake: Fake) -> Self {
        let (link, ours) = disk_link();
        let room = start(Arc::new(fake.clone()), ours, false);
        link.orders.send(DiskOrder::System(SYSTEM.into())).unwrap();
        Self { fake, link, room }
    }
    fn goal(&self, epoch: u64, role: DiskRole, device: &str, force: bool) {
        let goal = proto::DiskGoal {
            disk: D.to_string(),
            epoch,
            role: role as i32,
            device_id: device.into(),
            pool: "p".into(),
            extent_size: EXTENT.bytes().get(),
            force,
        };
        self.link.orders.send(DiskOrder::Disk(goal)).unwrap();
    }
    /// A wipe of what `volume` gave up at `epoch`; 0: at one that is not known.
    fn wipe(&self, wipe: u64, volume: Option<VolumeId>, epoch: u64, first: u64, count: u64) {
        let goal = proto::WipeGoal {
            disk: D.to_string(),
            wipe,
            volume: volume.map(|v| v.to_string()).unwrap_or_default(),
            runs: vec![proto::Run { first, count }],
            extent_size: EXTENT.bytes().get(),
            epoch,
        };
        self.link.orders.send(DiskOrder::Wipe(goal)).unwrap();
    }
    async fn until<T>(&mut self, what: &str, mut f: impl FnMut(DiskWord) -> Option<T>) -> T {
        let wait = async {
            loop {
                let word = self.link.words.recv().await.expect("the room lives");
                if let Some(t) = f(word) {
                    return t;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap_or_else(|_| panic!("no word of {what}"))
    }
    async fn disk(&mut self, want: DiskCondition) -> proto::ObservedDisk {
        self.until(want.as_str_name(), |w| match w {
            DiskWord::Disk(d) if d.condition == want as i32 => Some(d),
            _ => None,
        })
        .await
    }
    async fn device(&mut self, want: DeviceContent) -> proto::Device {
        self.until(want.as_str_name(), |w| match w {
            DiskWord::Device(d) if d.content == want as i32 && !d.gone => Some(d),
            _ => None,
        })
        .await
    }
    async fn wiped(&mut self, done: bool) -> proto::ObservedWipe {
        self.until("a wipe", |w| match w {
            DiskWord::Wipe(x) if x.done == done => Some(x),
            _ => None,
        })
        .await
    }
    async fn claimed() -> Self {
        let fake = Fake::default();
        fake.insert("vda");
        let mut b = Self::over(fake);
        b.goal(1, DiskRole::Claim, "vda", false);
        let d = b.disk(DiskCondition::Serving).await;
        assert_eq!((d.epoch, d.path.as_str()), (1, "/dev/vda"));
        b
    }
}

fn record(volume: VolumeId, first: u64, count: u64, epoch: u64) -> RunRecord {
    let leg = Leg { disk: D, first: Extents::new(first) };
    let s = Segment {
        start: Extents::ZERO,
        count: Extents::new(count),
        legs: vec![leg],
        stripe: None,
        spare: None,
    };
    let map = Map(vec![s]);
    RunRecord { disk: D, volume, name: "v".into(), map, extent_size: EXTENT, epoch: Epoch::new(epoch) }
}

#[tokio::test]
async fn a_blank_disk_is_claimed_found_again_and_released() {
    let b = Bench::claimed().await;
    let area = b.room.data_area(D).unwrap();
    assert_eq!((area.start, area.path.to_str()), (Sectors::new(16384), Some("/dev/vda")));
    assert_eq!(b.fake.with(|r| r.held.clone()), [D]);
    // Another life of the plugin: the label says who it is, wherever it is.
    let mut b = Bench::over(b.fake);
    assert!(b.room.data_area(D).is_none(), "not without a goal");
    b.goal(2, DiskRole::Serve, "elsewhere", false);
    let d = b.disk(DiskCondition::Serving).await;
    assert_eq!((d.epoch, d.device_id.as_str()), (2, "vda"));
    b.goal(3, DiskRole::Release, "vda", false);
    b.disk(DiskCondition::Released).await;
    assert!(b.room.data_area(D).is_none() && b.fake.with(|r| r.held.is_empty()));
    b.device(DeviceContent::Blank).await;
    let mut b = Bench::over(b.fake);
    b.goal(3, DiskRole::Release, "vda", false);
    b.disk(DiskCondition::Released).await;
}

#[tokio::test]
async fn a_disk_with_a_signature_is_not_claimed_unless_forced() {
    let fake = Fake::default();
    fake.insert("vda");
    fake.put("vda", 0x438, b"\x53\xef");
    let mut b = Bench::over(fake);
    let dev = b.device(DeviceContent::Foreign).await;
    assert!(dev.findings[0].contains("ext4"), "{:?}", dev.findings);
    b.goal(1, DiskRole::Claim, "vda", false);
    let d = b.disk(DiskCondition::Failed).await;
    assert!(d.reason.contains("ext4"), "{}", d.reason);
    b.goal(2, DiskRole::Claim, "vda", true);
    b.disk(DiskCondition::Serving).await;
}

#[tokio::test]
async fn a_signature_that_came_after_the_look_stops_the_claim() {
    let fake = Fake::default();
    fake.insert("vda");
    let mut b = Bench::over(fake);
    b.device(DeviceContent::Blank).await;
    b.fake.put("vda", 0, b"XFSB");
    b.goal(1, DiskRole::Claim, "vda", false);
    let d = b.disk(DiskCondition::Failed).await;
    assert!(d.reason.contains("xfs"), "{}", d.reason);
}

#[tokio::test]
async fn a_disk_that_is_not_there_is_missing_and_one_that_hangs_is_not() {
    let fake = Fake::default();
    fake.insert("vda");
    fake.insert("vdb");
    fake.with(|r| r.hung.push("vda".into()));
    let mut b = Bench::over(fake);
    b.device(DeviceContent::Blank).await;
    b.goal(1, DiskRole::Serve, "gone", false);
    let (mut room, fake) = (b.link.words, b.fake);
    // vda has not answered: the disk may be there.
    let none = tokio::time::timeout(Duration::from_millis(300), room.recv()).await;
    assert!(none.is_err(), "{none:?}");
    fake.with(|r| r.hung.clear());
    loop {
        match tokio::time::timeout(Duration::from_secs(60), room.recv()).await.unwrap().unwrap() {
            DiskWord::Disk(d) => {
                assert_eq!(d.condition, DiskCondition::Missing as i32);
                break;
            }
            DiskWord::Device(_) | DiskWord::Wipe(_) => {}
        }
    }
}

#[tokio::test]
async fn runs_are_recorded_once_and_conflicts_are_refused() {
    let b = Bench::claimed().await;
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap();
    let image = |b: &Bench| b.fake.with(|r| r.disks["vda"].lock().unwrap().clone());
    let before = image(&b);
    b.room.record_runs(record(V, 2, 3, 9)).await.unwrap();
    assert!(before == image(&b), "nothing new was said, nothing is written");
    for (bad, why) in [
        (record(W, 4, 1, 1), "overlap"),
        (record(V, 2, 3, 4), "older"),
        (record(W, 1000, 1, 1), "last extent"),
        (RunRecord { extent_size: ExtentSize::DEFAULT, ..record(W, 9, 1, 1) }, "16 MiB"),
    ] {
        let e = b.room.record_runs(bad).await.unwrap_err();
        assert!(matches!(e, RecordError::Refused { .. }) && e.to_string().contains(why), "{e}");
    }
    let stranger = RunRecord { disk: DiskId::from_u128(9), ..record(V, 2, 3, 5) };
    assert!(matches!(b.room.record_runs(stranger).await, Err(RecordError::NotServing(_))));
}

#[tokio::test]
async fn a_disk_that_hangs_is_reported_and_so_is_its_return() {
    let mut b = Bench::claimed().await;
    b.fake.with(|r| r.hung.push("vda".into()));
    let room = b.room.clone();
    let asked = tokio::spawn(async move { room.record_runs(record(V, 2, 3, 5)).await });
    let d = b.disk(DiskCondition::Failed).await;
    assert!(d.reason.contains("hangs"), "{}", d.reason);
    b.fake.with(|r| r.hung.clear());
    let d = b.disk(DiskCondition::Serving).await;
    assert_eq!(d.reason, "");
    asked.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_wipe_waits_for_tables_zeroes_and_strikes() {
    let mut b = Bench::claimed().await;
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap();
    let at = 16384 + 2 * EXTENT.sectors().get();
    let m = Mapping { by: "weir-x".into(), start: Sectors::new(at), len: Sectors::new(8) };
    b.fake.with(|r| r.mapped.push(m));
    b.wipe(7, Some(V), 0, 2, 3);
    let w = b.wiped(false).await;
    assert!(w.reason.contains("weir-x"), "{}", w.reason);
    assert!(b.fake.with(|r| r.zeroed.is_empty()));
    b.fake.with(|r| r.mapped.clear());
    let w = b.wiped(true).await;
    assert_eq!((w.wipe, w.extents_done, w.reason.as_str()), (7, 3, ""));
    assert_eq!(b.fake.with(|r| r.zeroed.clone()), [(at * 512, 3 * EXTENT.bytes().get())]);
    // Struck: another volume may have them.
    b.room.record_runs(record(W, 2, 3, 1)).await.unwrap();
    // The same wipe again is done, and touches nothing.
    b.wipe(7, Some(V), 0, 2, 3);
    b.wiped(true).await;
    assert_eq!(b.fake.with(|r| r.zeroed.len()), 1);
    // A new one of extents that are somebody's is refused, also after a restart.
    let mut b = Bench::over(b.fake);
    b.goal(2, DiskRole::Serve, "vda", false);
    b.wipe(7, Some(V), 0, 2, 3);
    let w = b
        .until("a refusal", |w| match w {
            DiskWord::Wipe(x) if x.reason.contains(&W.to_string()) => Some(x),
            _ => None,
        })
        .await;
    assert!(!w.done && w.refused);
    assert_eq!(b.fake.with(|r| r.zeroed.len()), 1);
}

impl Bench {
    /// Another life of the plugin, in which the disk serves.
    async fn again(self) -> Self {
        let mut b = Bench::over(self.fake);
        b.goal(2, DiskRole::Serve, "vda", false);
        b.disk(DiskCondition::Serving).await;
        b
    }
    fn zeroed(&self) -> usize {
        self.fake.with(|r| r.zeroed.len())
    }
}

#[tokio::test]
async fn a_wipe_that_comes_again_is_done_and_never_takes_what_has_come_back() {
    let mut b = Bench::claimed().await;
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap();
    b.wipe(7, Some(V), 6, 2, 3);
    b.wiped(true).await;
    assert_eq!(b.zeroed(), 1);
    // The plugin ends before anybody hears of it.
    let mut b = b.again().await;
    b.wipe(7, Some(V), 6, 2, 3);
    let w = b.wiped(true).await;
    assert_eq!((w.extents_done, w.refused, w.reason.as_str()), (3, false, ""));
    assert_eq!(b.zeroed(), 1, "it was done before");
    // The volume gets some of them back; then the wipe comes once more.
    b.room.record_runs(record(V, 4, 2, 8)).await.unwrap();
    let mut b = b.again().await;
    b.wipe(7, Some(V), 6, 2, 3);
    let w = b.wiped(false).await;
    assert!(w.refused && w.reason.contains("since epoch 8"), "{w:?}");
    assert_eq!(b.zeroed(), 1);
    b.room.record_runs(record(V, 4, 2, 9)).await.unwrap();
    // What it gives up after that is another wipe.
    b.wipe(8, Some(V), 9, 4, 2);
    assert!(b.wiped(true).await.wipe == 8 && b.zeroed() == 2);
}

#[tokio::test]
async fn nothing_is_recorded_by_a_goal_that_a_wipe_has_overtaken() {
    let mut b = Bench::claimed().await;
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap();
    let old = b.room.retirements().begin(D, V, Epoch::new(5)).unwrap();
    b.wipe(7, Some(V), 6, 2, 2);
    let w = b.wiped(false).await;
    assert!(!w.refused && w.reason.contains("older"), "{}", w.reason);
    assert_eq!(b.zeroed(), 0, "a table may be on its way");
    let overtaken = |e| matches!(e, Err(RecordError::Overtaken(_)));
    assert!(overtaken(b.room.record_runs(record(V, 2, 3, 5)).await), "not while it is wiped");
    drop(old);
    b.wiped(true).await;
    assert!(overtaken(b.room.record_runs(record(V, 2, 3, 5)).await), "nor afterwards");
    b.room.record_runs(record(W, 2, 2, 1)).await.unwrap();
    // The label keeps it in mind as long as it has something of the volume.
    let b = b.again().await;
    let e = b.room.record_runs(record(V, 2, 3, 5)).await.unwrap_err();
    assert!(e.to_string().contains("older"), "{e}");
}

#[tokio::test]
async fn a_disk_that_holds_volumes_is_not_released() {
    let mut b = Bench::claimed().await;
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap();
    b.goal(2, DiskRole::Release, "vda", false);
    let d = b
        .until("a refusal", |w| match w {
            DiskWord::Disk(d) if !d.reason.is_empty() => Some(d),
            _ => None,
        })
        .await;
    assert_eq!(d.condition, DiskCondition::Serving as i32);
    assert!(d.reason.contains("1 volumes"), "{}", d.reason);
}

#[tokio::test]
async fn a_label_that_cannot_be_written_fails_the_disk_and_its_end_brings_it_back() {
    let mut b = Bench::claimed().await;
    b.fake.with(|r| r.write_fails = true);
    let e = b.room.record_runs(record(V, 2, 3, 5)).await.unwrap_err();
    assert!(matches!(e, RecordError::Io { .. }), "{e}");
    let d = b.disk(DiskCondition::Failed).await;
    assert!(!d.reason.is_empty());
    assert!(b.room.data_area(D).is_none());
    b.fake.with(|r| r.write_fails = false);
    b.disk(DiskCondition::Serving).await;
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap();
}

#[tokio::test]
async fn a_path_beneath_the_device_is_not_the_disk_whatever_it_shows() {
    let b = Bench::claimed().await;
    let same = b.fake.with(|r| r.disks["vda"].clone());
    b.fake.with(|r| r.disks.insert("sda".into(), same));
    b.fake.with(|r| r.beneath.push("sda".into()));
    let mut b = Bench::over(b.fake);
    b.goal(2, DiskRole::Serve, "vda", false);
    let d = b.disk(DiskCondition::Serving).await;
    assert_eq!(d.device_id, "vda");
    // Nor is it taken in its stead when the disk fails.
    b.fake.with(|r| r.write_fails = true);
    b.room.record_runs(record(V, 2, 3, 5)).await.unwrap_err();
    b.disk(DiskCondition::Failed).await;
    b.fake.with(|r| {
        r.disks.remove("vda");
        r.write_fails = false;
    });
    let serving = Duration::from_millis(300);
    let word = tokio::time::timeout(serving, b.disk(DiskCondition::Serving)).await;
    assert!(word.is_err(), "{word:?}");
}

#[tokio::test]
async fn two_devices_with_one_label_are_both_refused() {
    let b = Bench::claimed().await;
    let copy = b.fake.with(|r| r.disks["vda"].lock().unwrap().clone());
    b.fake.with(|r| r.disks.insert("vdb".into(), Arc::new(Mutex::new(copy))));
    let mut b = Bench::over(b.fake);
    b.device(DeviceContent::Weir).await;
    b.device(DeviceContent::Weir).await;
    b.goal(2, DiskRole::Serve, "vda", false);
    let d = b.disk(DiskCondition::Failed).await;
    assert!(d.reason.contains("vda, vdb"), "{}", d.reason);
}
