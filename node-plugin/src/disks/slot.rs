//! One disk that is opened: its label, on a thread of its own. Everything that reads or writes the label goes
//! through here, one after the other.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
};

use disk_format::{
    ClaimRequest, Claimed, Force, Geometry, Identity, Label, LabelDisk, OpenMode, RunEntry, RunState,
    Storage, StorageError, UpdateLabelError, VolumeSummary, claim, release, rescue::runs_of_map,
};
use kernel::DevNo;
use observe::chain;
use pool::{
    ids::{DiskId, Epoch, VolumeId},
    layout::{Layout, Sharing},
    units::{Bytes, Extents, SECTOR, Sectors},
    volume::Map,
};
use tokio::sync::oneshot;

use super::hardware::Hardware;
use crate::{
    disks_api::{DataArea, RecordError, RunRecord},
    retirements::Retirements,
};

/// A [`Storage`] whose kind is not known.
pub(super) struct AnyStorage(Box<dyn Storage + Send>);

impl Storage for AnyStorage {
    fn size(&self) -> Bytes {
        self.0.size()
    }
    fn block_size(&self) -> u32 {
        self.0.block_size()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError> {
        self.0.write_at(offset, buf)
    }
    fn sync(&mut self) -> Result<(), StorageError> {
        self.0.sync()
    }
}

/// Extents to be wiped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WipeJob {
    /// The wipe's number.
    pub(super) wipe: u64,
    /// Whose data it was; `None` for a fresh disk.
    pub(super) volume: Option<VolumeId>,
    /// Epoch of the volume's record that gave the runs up, where it is known.
    pub(super) epoch: Option<Epoch>,
    /// (first, count), never empty.
    pub(super) runs: Vec<(Extents, Extents)>,
}

impl WipeJob {
    fn meets(&self, first: Extents, count: Extents) -> bool {
        let end = |f: Extents, n: Extents| f.get().saturating_add(n.get());
        self.runs.iter().any(|(f, n)| f.get() < end(first, count) && first.get() < end(*f, *n))
    }
}

/// Why a wipe does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WipeStop {
    /// It may later.
    Wait(String),
    /// It will not, as it was asked for.
    Refused(String),
    /// The disk has failed.
    Failed(String),
}

type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What a slot is asked.
pub(super) enum Ask {
    Record(Box<RunRecord>, Reply<(), RecordError>),
    /// Checks a wipe and reserves its extents; answers (byte offset, bytes) to zero.
    BeginWipe(WipeJob, Reply<Vec<(Bytes, Bytes)>, WipeStop>),
    /// Ends the reservation; strikes the runs from the label when they are zeroed.
    EndWipe(WipeJob, bool, Reply<(), WipeStop>),
    /// Erases the label, or answers why not.
    Release(oneshot::Sender<String>),
}

/// How a slot has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody asks any more.
    Closed,
    /// The label is erased.
    Released,
    /// The disk has failed.
    Failed(String),
}

/// What a slot is for.
pub(super) enum Purpose {
    /// Serve the disk whose label is there.
    Serve,
    /// Write a label first.
    Claim(ClaimRequest, Force),
}

/// What a slot has opened.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) area: DataArea,
    pub(super) identity: Identity,
    pub(super) generation: u64,
}

/// A slot's open disk.
pub(super) struct Slot {
    hardware: Arc<dyn Hardware>,
    retirements: Arc<Retirements>,
    disk: DiskId,
    dev: DevNo,
    path: PathBuf,
    label: LabelDisk<AnyStorage>,
    wiping: Vec<WipeJob>,
}

impl Slot {
    /// Opens a disk, claiming it first if that is the purpose. Repairs a label of which one copy is bad.
    pub(super) fn open(
        hardware: Arc<dyn Hardware>,
        retirements: Arc<Retirements>,
        disk: DiskId,
        dev: DevNo,
        path: PathBuf,
        purpose: Purpose,
    ) -> Result<(Self, Opened), String> {
        if let Purpose::Claim(request, force) = purpose {
            let s = hardware.open(&path, OpenMode::Exclusive).map_err(|e| chain(&e))?;
            match claim(AnyStorage(s), &request, force).map_err(|e| chain(&e))? {
                Claimed::Created(_) => tracing::info!(%disk, path = %path.display(), "claimed"),
                Claimed::Identity(_) => {}
            }
            // The exclusive open ends here: device-mapper needs it for itself.
        }
        let s = hardware.open(&path, OpenMode::Shared).map_err(|e| chain(&e))?;
        let label = LabelDisk::open(AnyStorage(s)).map_err(|e| chain(&e))?;
        let identity = label.label().identity().clone();
        if identity.disk != disk {
            return Err(format!("the label is that of disk {}", identity.disk));
        }
        hardware.hold(disk, dev).map_err(|e| chain(&e))?;
        let opened = Opened {
            area: data_area(dev, path.clone(), &identity.geometry),
            generation: label.label().generation(),
            identity,
        };
        Ok((Self { hardware, retirements, disk, dev, path, label, wiping: Vec::new() }, opened))
    }

    /// Serves until its end.
    pub(super) fn serve(mut self, asks: &Receiver<Ask>) -> End {
        while let Ok(ask) = asks.recv() {
            match ask {
                Ask::Record(r, reply) => {
                    let out = self.record(&r);
                    let failed = out.as_ref().err().and_then(storage_failure);
                    answer(reply, out);
                    if let Some(why) = failed {
                        return End::Failed(why);
                    }
                }
                Ask::BeginWipe(job, reply) => {
                    let out = self.begin_wipe(&job);
                    answer(reply, out);
                }
                Ask::EndWipe(job, zeroed, reply) => {
                    let out = self.end_wipe(&job, zeroed);
                    let failed = out.clone().err();
                    answer(reply, out);
                    if let Some(WipeStop::Failed(why)) = failed {
                        return End::Failed(why);
                    }
                }
                Ask::Release(reply) => match self.release() {
                    Ok(None) => return End::Released,
                    Ok(Some((back, why))) => {
                        self = *back;
                        answer(reply, why);
                    }
                    Err(why) => return End::Failed(why),
                },
            }
        }
        End::Closed
    }

    fn record(&mut self, r: &RunRecord) -> Result<(), RecordError> {
        let (disk, volume) = (self.disk, r.volume);
        // Here and not where it was asked for: a wipe that is heard of from now on comes to this thread later.
        self.retirements.check(disk, volume, r.epoch)?;
        let refused = |why: String| {
            // Two volumes on one extent, or a map that does not fit its disk: a person has to look.
            tracing::error!(%disk, %volume, epoch = %r.epoch, "the label refuses runs: {why}");
            RecordError::Refused { disk, volume, why }
        };
        let geometry = &self.label.label().identity().geometry;
        if geometry.extent_size != r.extent_size {
            let (is, got) = (geometry.extent_size.bytes(), r.extent_size.bytes());
            return Err(refused(format!("its extents have {is}, the map's have {got}")));
        }
        let mut runs = runs_of_map(&r.map, disk, r.epoch, RunState::Live);
        runs.extend(spare_on(&r.map, disk, r.epoch));
        if let Some(w) = self.wiping.iter().find(|w| runs.iter().any(|r| w.meets(r.first, r.count))) {
            return Err(refused(format!("wipe {} of some of the extents has not ended", w.wipe)));
        }
        let now = self.label.label();
        let summary = VolumeSummary {
            name: if r.name.is_empty() { volume.to_string() } else { r.name.clone() },
            size: r.extent_size.bytes_of(r.map.extents()),
            layout: layout_of(&r.map),
            sharing: now.volumes().get(&volume).map_or(Sharing::Migrate, |v| v.summary.sharing),
            epoch: r.epoch,
            params: now.volumes().get(&volume).map(|v| v.summary.params.clone()).unwrap_or_default(),
        };
        let mut next = now.clone();
        next.set_runs(volume, &summary, &runs).map_err(|e| refused(e.to_string()))?;
        // An epoch alone is no reason to write: it grows with every attachment, and what a label is there for is
        // where things lie.
        if same_place(now, &next, volume) {
            return Ok(());
        }
        match self.label.update(next) {
            Ok(_) => Ok(()),
            Err(e @ (UpdateLabelError::TableFull { .. } | UpdateLabelError::Invalid(_))) => {
                Err(refused(chain(&e)))
            }
            Err(e) => Err(RecordError::Io { disk, source: Box::new(e) }),
        }
    }

    /// Where to zero. Nowhere when the label has none of the extents as the volume's: it names them before they are
    /// mapped and until they are zeroed, so this wipe was done before, or nothing was ever written there.
    fn begin_wipe(&mut self, job: &WipeJob) -> Result<Vec<(Bytes, Bytes)>, WipeStop> {
        let g = &self.label.label().identity().geometry;
        let mut ranges = Vec::new();
        for (first, count) in &job.runs {
            let end = first.checked_add(*count).filter(|e| *e <= g.extents && !count.is_zero());
            let at = g.offset_of(*first).filter(|_| end.is_some());
            let at = at.ok_or_else(|| {
                WipeStop::Refused(format!(
                    "extents {first}+{count} are not all on the disk, which has {}",
                    g.extents
                ))
            })?;
            ranges.push((at, g.extent_size.bytes_of(*count)));
        }
        let labelled = self.claimed(job)?;
        if job.volume.is_some_and(|v| self.retirements.is_acted_on(self.disk, v)) {
            return Err(WipeStop::Wait("something is still being done by a goal that is older".to_owned()));
        }
        let mapped = self.hardware.mappings(self.dev).map_err(|e| WipeStop::Wait(chain(&e)))?;
        let sectors = |b: Bytes| Sectors::new(b.get() / SECTOR);
        let in_use =
            mapped.iter().find(|m| ranges.iter().any(|(at, len)| m.meets(sectors(*at), sectors(*len))));
        if let Some(m) = in_use {
            return Err(WipeStop::Wait(format!("{} still maps some of the extents", m.by)));
        }
        self.wiping.retain(|w| w.wipe != job.wipe);
        self.wiping.push(job.clone());
        Ok(if labelled || job.volume.is_none() { ranges } else { vec![] })
    }

    /// Whether any extent of a wipe is its volume's, as the label has it.
    ///
    /// # Errors
    /// When one is another volume's, or came back to the volume after it had given them up.
    fn claimed(&self, job: &WipeJob) -> Result<bool, WipeStop> {
        let mut own = false;
        for (v, e) in self.label.label().volumes() {
            for r in e.runs.values().filter(|r| job.meets(r.first, r.count)) {
                let since = job.epoch.filter(|at| r.epoch > *at);
                if Some(*v) == job.volume && since.is_none() {
                    own = true;
                    continue;
                }
                let mut why = format!("extents {}+{} are volume {v}'s, says the label", r.first, r.count);
                if let (true, Some(at)) = (Some(*v) == job.volume, since) {
                    why += &format!(", since epoch {}; the wipe is of what it gave up at {at}", r.epoch);
                }
                tracing::error!(disk = %self.disk, wipe = job.wipe, "wipe refused: {why}");
                return Err(WipeStop::Refused(why));
            }
        }
        Ok(own)
    }

    fn end_wipe(&mut self, job: &WipeJob, zeroed: bool) -> Result<(), WipeStop> {
        self.wiping.retain(|w| w.wipe != job.wipe);
        let (Some(volume), true) = (job.volume, zeroed) else { return Ok(()) };
        let mut next = self.label.label().clone();
        let mut struck = false;
        for (first, count) in &job.runs {
            struck |=
                next.remove_runs(volume, *first, *count).map_err(|e| WipeStop::Refused(e.to_string()))?;
        }
        if !struck {
            return Ok(());
        }
        // Also after a restart nothing older is recorded, as long as the volume has other runs here.
        next.raise_epoch(volume, job.epoch.unwrap_or_default());
        self.label.update(next).map(drop).map_err(|e| WipeStop::Failed(chain(&e)))
    }

    /// `Ok(None)`: released. `Ok(Some)`: refused, the slot goes on. `Err`: the disk has failed.
    fn release(self) -> Result<Option<(Box<Self>, String)>, String> {
        let mapped = self.hardware.mappings(self.dev).map_err(|e| chain(&e))?;
        if let Some(m) = mapped.first() {
            let why = format!("{} still maps it", m.by);
            return Ok(Some((Box::new(self), why)));
        }
        let held = self.label.label().volumes().len();
        if held > 0 || !self.wiping.is_empty() {
            let why = format!("{held} volumes are on its label, {} wipes run", self.wiping.len());
            return Ok(Some((Box::new(self), why)));
        }
        let uid = self.label.label().identity().pool_uid;
        release(self.label.into_storage(), uid, self.disk).map_err(|e| chain(&e))?;
        self.hardware.unhold(self.disk).map_err(|e| chain(&e))?;
        tracing::info!(disk = %self.disk, path = %self.path.display(), "released");
        Ok(None)
    }
}

/// Whoever asked may have gone on: then nobody needs the answer.
fn answer<T>(reply: oneshot::Sender<T>, out: T) {
    if reply.send(out).is_err() {
        tracing::debug!("an answer of the label came too late");
    }
}

fn storage_failure(e: &RecordError) -> Option<String> {
    match e {
        RecordError::Io { source, .. } => Some(chain(&**source)),
        RecordError::NotServing(_) | RecordError::Refused { .. } | RecordError::Overtaken(_) => None,
    }
}

fn data_area(dev: DevNo, path: PathBuf, g: &Geometry) -> DataArea {
    DataArea {
        dev,
        path,
        start: Sectors::new(g.data_offset.get() / SECTOR),
        len: g.extent_size.sectors_of(g.extents),
    }
}

/// The spare of a map on this disk, as its label is to hold it: never as the truth.
fn spare_on(map: &Map, disk: DiskId, epoch: Epoch) -> Option<RunEntry> {
    let (s, spare) = map.spare().filter(|(_, p)| p.place.disk == disk)?;
    Some(RunEntry {
        start: s.start,
        first: spare.place.first,
        count: s.leg_count(),
        leg: spare.leg as u16,
        legs: s.legs.len() as u16,
        stripe: s.stripe,
        epoch,
        state: if spare.filling { RunState::Filling } else { RunState::Retired },
    })
}

/// Whether two labels say the same of a volume but for epochs.
fn same_place(a: &Label, b: &Label, volume: VolumeId) -> bool {
    let place = |r: &RunEntry| (r.start, r.first, r.count, r.leg, r.legs, r.stripe, r.state);
    let said = |l: &Label| {
        let e = l.volumes().get(&volume)?;
        let s = &e.summary;
        let runs: Vec<_> = e.runs.values().map(place).collect();
        Some((s.name.clone(), s.size, s.layout, runs))
    };
    said(a).is_some() && said(a) == said(b)
}

/// The layout as far as the map shows it.
fn layout_of(map: &Map) -> Layout {
    let most = map.0.iter().max_by_key(|s| s.legs.len());
    match most.map(|s| (s.stripe, s.legs.len() as u32)) {
        Some((Some(st), stripes)) => Layout::Striped { stripes, chunk: st.chunk },
        Some((None, replicas)) if replicas > 1 => Layout::Mirrored { replicas },
        Some((None, _)) | None => Layout::Linear,
    }
}
