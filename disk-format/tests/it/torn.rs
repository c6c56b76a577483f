//! Power loss at every step of an update: of what was not synced, any subset of 512-byte sectors is lost.

use std::{cell::RefCell, rc::Rc};

use disk_format::{Label, LabelDisk, MemDisk, Storage, StorageError, UpdateLabelError, layout, read_label};
use pool::units::{Bytes, Extents};
use proptest::prelude::*;

use crate::common::{add, empty_disk, run, summary, volume};

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Sync,
}

/// A disk that notes what was done to it, and fails from the operation `fail_at` on.
#[derive(Clone, Debug)]
struct Recorder {
    disk: MemDisk,
    log: Rc<RefCell<Vec<Op>>>,
    fail_at: usize,
}

impl Recorder {
    fn new(disk: MemDisk) -> Self {
        Self { disk, log: Rc::default(), fail_at: usize::MAX }
    }

    fn note(&self, op: Op) -> Result<(), StorageError> {
        if self.log.borrow().len() >= self.fail_at {
            let source = std::io::Error::other("injected");
            return Err(StorageError::Io { op: "write", offset: 0, len: 0, source });
        }
        self.log.borrow_mut().push(op);
        Ok(())
    }
}

impl Storage for Recorder {
    fn size(&self) -> Bytes {
        self.disk.size()
    }
    fn block_size(&self) -> u32 {
        self.disk.block_size()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError> {
        self.note(Op::Write(offset.get(), buf.to_vec()))?;
        self.disk.write_at(offset, buf)
    }
    fn sync(&mut self) -> Result<(), StorageError> {
        self.note(Op::Sync)?;
        self.disk.sync()
    }
}

/// What is on the disk when power is lost after the first `steps` operations: all that was synced, and of the
/// rest each sector for which `keep` says so.
fn crashed(before: &MemDisk, log: &[Op], steps: usize, mut keep: impl FnMut(usize) -> bool) -> MemDisk {
    let done = &log[..steps];
    let synced = done.iter().rposition(|o| matches!(o, Op::Sync)).map_or(0, |i| i + 1);
    let mut disk = before.clone();
    let mut n = 0;
    for (i, op) in done.iter().enumerate() {
        let Op::Write(at, bytes) = op else { continue };
        for (k, sector) in bytes.chunks(512).enumerate() {
            let kept = i < synced || keep(n);
            n += usize::from(i >= synced);
            if kept {
                disk.write_at(Bytes::new(at + 512 * k as u64), sector).expect("memory does not fail");
            }
        }
    }
    disk
}

/// A disk with two pages in use, and a change that touches both: the state before and after.
fn change() -> (MemDisk, Label, Label) {
    let mut d = empty_disk();
    for v in 0..70 {
        add(&mut d, 100 + v, run(0, 10 * v as u64, 3));
    }
    let old = d.label().clone();
    let mut new = old.clone();
    new.remove_volume(volume(103));
    new.add_runs(volume(1), &summary(1), &[run(0, 900, 5), run(5, 950, 5)]).expect("free extents");
    new.add_runs(volume(169), &summary(9), &[run(0, 690, 4)]).expect("the run grows");
    (d.into_storage(), old, new)
}

/// The operations of the update, and the label as written.
fn log_of(disk: &MemDisk, new: &Label) -> (Vec<Op>, Label) {
    let mut d = LabelDisk::open(Recorder::new(disk.clone())).expect("a good label");
    d.update(new.clone()).expect("it does not fail");
    let written = d.label().clone();
    let log = d.into_storage().log.borrow().clone();
    (log, written)
}

fn check(disk: MemDisk, old: &Label, new: &Label, must_be_new: bool) {
    let found = read_label(&disk).expect("one copy is whole");
    if must_be_new {
        assert_eq!(&found.label, new);
    } else {
        assert!(&found.label == old || &found.label == new, "a label that never was");
    }
    // Opening repairs, and a repaired disk goes on from where it was.
    let mut d = LabelDisk::open(disk).expect("it opens");
    assert_eq!(d.label(), &found.label);
    let next = d.label().without_volume(volume(110));
    d.update(next).expect("it writes");
    assert_eq!(d.label().generation(), found.label.generation() + 1);
    let again = read_label(&d.into_storage()).expect("it reads");
    assert!(matches!(again.other, disk_format::OtherCopy::Same));
}

#[test]
fn every_step_and_every_prefix_leaves_old_or_new() {
    let (disk, old, new) = change();
    let (log, new) = log_of(&disk, &new);
    assert_eq!(log.iter().filter(|o| matches!(o, Op::Sync)).count(), 2);
    let first_sync = log.iter().position(|o| matches!(o, Op::Sync)).unwrap() + 1;
    for steps in 0..=log.len() {
        let sectors = 8 * 5;
        for cut in 0..=sectors {
            let must = steps >= first_sync;
            check(crashed(&disk, &log, steps, |n| n < cut), &old, &new, must);
            check(crashed(&disk, &log, steps, |n| n >= cut), &old, &new, must);
        }
    }
}

#[test]
fn a_failed_write_latches_and_the_disk_opens_anew() {
    let (disk, old, new) = change();
    let (log, written) = log_of(&disk, &new);
    for fail_at in 0..log.len() {
        let mut r = Recorder::new(disk.clone());
        r.fail_at = fail_at;
        let mut d = LabelDisk::open(r).unwrap();
        assert!(matches!(d.update(new.clone()), Err(UpdateLabelError::Storage(_))));
        assert!(matches!(d.update(new.clone()), Err(UpdateLabelError::Latched)));
        check(d.into_storage().disk, &old, &written, false);
    }
}

#[test]
fn an_update_of_a_full_node_is_a_few_small_writes() {
    let mut d = empty_disk();
    let mut label = d.label().clone();
    for v in 0..300u64 {
        label.add_runs(volume(1000 + u128::from(v)), &summary(1), &[run(0, 3 * v, 2)]).unwrap();
    }
    d.update(label).unwrap();
    let disk = d.into_storage();
    let new =
        read_label(&disk).unwrap().label.with_runs_added(volume(5), &summary(1), &[run(0, 2, 1)]).unwrap();
    let (log, _) = log_of(&disk, &new);
    let bytes: usize = log.iter().map(|o| if let Op::Write(_, b) = o { b.len() } else { 0 }).sum();
    let writes = log.iter().filter(|o| matches!(o, Op::Write(..))).count();
    assert!(
        writes <= 6 && bytes <= 2 * (layout::HEADER_LEN + 2 * layout::BLOCK),
        "{writes} writes, {bytes} bytes"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn any_subset_of_unsynced_sectors_leaves_old_or_new(
        step in any::<prop::sample::Index>(),
        keep in prop::collection::vec(any::<bool>(), 64),
    ) {
        let (disk, old, new) = change();
        let (log, new) = log_of(&disk, &new);
        let steps = step.index(log.len() + 1);
        check(crashed(&disk, &log, steps, |n| keep[n % 64]), &old, &new, false);
    }

    /// Crash upon crash: each time the label is one that was asked for, and its generation never goes back.
    #[test]
    fn chains_of_crashes_never_go_back(
        chain in prop::collection::vec((0u64..40, any::<prop::sample::Index>(), any::<u64>()), 1..12),
    ) {
        let mut disk = empty_disk().into_storage();
        let mut generation = 1;
        for (slot, step, keep) in chain {
            let mut d = LabelDisk::open(Recorder::new(disk.clone())).unwrap();
            let old = d.label().clone();
            prop_assert!(old.generation() >= generation);
            let v = volume(u128::from(slot) + 1);
            let next = if old.volumes().contains_key(&v) {
                old.without_volume(v)
            } else {
                old.with_runs_added(v, &summary(1), &[run(0, slot * 20, 20)]).unwrap()
            };
            d.update(next).unwrap();
            let new = d.label().clone();
            // The log begins with the repair that opening made, if any: crashes hit that too.
            let log = d.into_storage().log.borrow().clone();
            let steps = step.index(log.len() + 1);
            disk = crashed(&disk, &log, steps, |n| keep >> (n % 64) & 1 == 1);
            let found = read_label(&disk).unwrap().label;
            prop_assert!(found == old || found == new);
            generation = found.generation();
            prop_assert_eq!(found.free_extents(), old.identity().geometry.extents.minus(
                Extents::new(20 * found.volumes().len() as u64)));
        }
    }
}
