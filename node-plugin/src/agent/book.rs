//! The newest word on every object, what of it the controller has not been told, and who else listens.
//!
//! Must not know: sessions (it is asked), the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use csi_proto::node as proto;
use kernel::dm::dev_node_path;
use pool::{ids::VolumeId, moving::Mirror, names::DmRole};
use tokio::sync::{Notify, watch};

use super::model::{AttachmentReport, ExportKey, ExportReport, ExportStanding, Standing};
use crate::{
    convert::{attachment_to_proto, export_to_proto},
    disks_api::DiskWord,
    volumes_api::VolumeState,
};

/// The newest word on everything.
#[derive(Debug, Default)]
pub struct Book {
    inner: Mutex<Inner>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    attachments: BTreeMap<VolumeId, AttachmentReport>,
    exports: BTreeMap<ExportKey, ExportReport>,
    devices: BTreeMap<String, proto::Device>,
    disks: BTreeMap<String, proto::ObservedDisk>,
    wipes: BTreeMap<(String, u64), proto::ObservedWipe>,
    news: News,
    listeners: HashMap<VolumeId, watch::Sender<VolumeState>>,
}

/// Numbers of objects, by the names of their states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Volumes with devices here.
    pub attachments: BTreeMap<String, u64>,
    /// Slices for other nodes.
    pub exports: BTreeMap<String, u64>,
    /// Pool disks.
    pub disks: BTreeMap<String, u64>,
    /// Legs that have no path: their I/O waits.
    pub queueing: u64,
    /// Guards that hold a write.
    pub held: u64,
    /// Wipes under way or waiting.
    pub wiping: u64,
}

/// Keys of what has not been sent.
#[derive(Debug, Default)]
struct News {
    attachments: BTreeSet<VolumeId>,
    exports: BTreeSet<ExportKey>,
    devices: BTreeSet<String>,
    disks: BTreeSet<String>,
    wipes: BTreeSet<(String, u64)>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an attachment.
    pub fn attachment(&self, r: AttachmentReport) {
        let mut i = self.lock();
        if let Some(l) = i.listeners.get(&r.volume) {
            l.send_replace(state_of(&r));
        }
        i.news.attachments.insert(r.volume);
        i.attachments.insert(r.volume, r);
        drop(i);
        self.news.notify_one();
    }

    /// Whether a mirror copies.
    pub fn is_copying(&self) -> bool {
        self.lock().attachments.values().any(|a| matches!(a.mirror, Some(Mirror::Copying(..))))
    }

    /// Takes note of an export.
    pub fn export(&self, r: ExportReport) {
        let mut i = self.lock();
        i.news.exports.insert(r.key.clone());
        i.exports.insert(r.key.clone(), r);
        drop(i);
        self.news.notify_one();
    }

    /// Takes note of what the disk room says.
    pub fn disk_word(&self, w: DiskWord) {
        let mut i = self.lock();
        match w {
            DiskWord::Device(d) => {
                i.news.devices.insert(d.device_id.clone());
                i.devices.insert(d.device_id.clone(), d);
            }
            DiskWord::Disk(d) => {
                i.news.disks.insert(d.disk.clone());
                i.disks.insert(d.disk.clone(), d);
            }
            DiskWord::Wipe(w) => {
                let key = (w.disk.clone(), w.wipe);
                i.news.wipes.insert(key.clone());
                i.wipes.insert(key, w);
            }
        }
        drop(i);
        self.news.notify_one();
    }

    /// Forgets objects that are gone and that the controller no longer speaks of.
    pub fn forget(&self, attachments: &[VolumeId], exports: &[ExportKey]) {
        let mut i = self.lock();
        for v in attachments {
            i.attachments.remove(v);
            i.news.attachments.remove(v);
        }
        for k in exports {
            i.exports.remove(k);
            i.news.exports.remove(k);
        }
    }

    /// Forgets finished wipes that are not among `wanted`.
    pub fn forget_wipes(&self, wanted: &BTreeSet<(String, u64)>) {
        let mut i = self.lock();
        i.wipes.retain(|k, w| !w.done || wanted.contains(k));
        let Inner { wipes, news, .. } = &mut *i;
        news.wipes.retain(|k| wipes.contains_key(k));
    }

    /// Attachments and exports of which nothing is left.
    pub fn absent(&self) -> (Vec<VolumeId>, Vec<ExportKey>) {
        let i = self.lock();
        let gone = i.exports.values().filter(|r| r.standing == ExportStanding::Absent).map(|r| r.key.clone());
        let volumes = i.attachments.values().filter(|r| r.standing == Standing::Absent).map(|r| r.volume);
        (volumes.collect(), gone.collect())
    }

    /// Listens to a volume.
    pub fn observe(&self, v: VolumeId) -> watch::Receiver<VolumeState> {
        let mut i = self.lock();
        // Those whom nobody listens to any more make room.
        i.listeners.retain(|k, l| *k == v || l.receiver_count() > 0);
        let now = i.attachments.get(&v).map(state_of).unwrap_or_default();
        i.listeners.entry(v).or_insert_with(|| watch::Sender::new(now)).subscribe()
    }

    /// Everything, as the first report of a session. What was news is not any more.
    pub fn full(&self) -> proto::Report {
        let mut i = self.lock();
        i.news = News::default();
        i.devices.retain(|_, d| !d.gone);
        proto::Report {
            full: true,
            devices: i.devices.values().cloned().collect(),
            disks: i.disks.values().cloned().collect(),
            exports: i.exports.values().map(export_to_proto).collect(),
            attachments: i.attachments.values().map(attachment_to_proto).collect(),
            wipes: i.wipes.values().cloned().collect(),
        }
    }

    /// What is new since the last report; `None` when nothing is.
    pub fn delta(&self) -> Option<proto::Report> {
        let mut i = self.lock();
        let n = std::mem::take(&mut i.news);
        let r = proto::Report {
            full: false,
            devices: n.devices.iter().filter_map(|k| i.devices.get(k).cloned()).collect(),
            disks: n.disks.iter().filter_map(|k| i.disks.get(k).cloned()).collect(),
            exports: n.exports.iter().filter_map(|k| i.exports.get(k).map(export_to_proto)).collect(),
            attachments: n
                .attachments
                .iter()
                .filter_map(|k| i.attachments.get(k).map(attachment_to_proto))
                .collect(),
            wipes: n.wipes.iter().filter_map(|k| i.wipes.get(k).cloned()).collect(),
        };
        let empty = r.devices.is_empty()
            && r.disks.is_empty()
            && r.exports.is_empty()
            && r.attachments.is_empty()
            && r.wipes.is_empty();
        (!empty).then_some(r)
    }

    /// How many objects are in which state.
    pub fn counts(&self) -> Counts {
        let i = self.lock();
        let mut c = Counts::default();
        for r in i.attachments.values() {
            *c.attachments.entry(format!("{:?}", r.standing)).or_default() += 1;
            c.queueing += r.queueing.len() as u64;
            c.held += u64::from(r.held);
        }
        for r in i.exports.values() {
            *c.exports.entry(format!("{:?}", r.standing)).or_default() += 1;
        }
        for d in i.disks.values() {
            *c.disks.entry(format!("{:?}", d.condition())).or_default() += 1;
        }
        c.wiping = i.wipes.values().filter(|w| !w.done).count() as u64;
        c
    }

    /// Waits for news. Many that come at once wake once.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

fn state_of(r: &AttachmentReport) -> VolumeState {
    let device = (!r.size.is_zero()).then(|| dev_node_path(&DmRole::Top(r.volume).dm_name()));
    VolumeState {
        epoch: r.epoch,
        standing: r.standing,
        size: r.size.to_bytes(),
        device,
        queueing: r.queueing.clone(),
        reason: r.reason.clone(),
    }
}
