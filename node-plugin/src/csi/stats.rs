//! Usage and condition of a published volume, and its growth.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use csi_proto::csi::{
    CapacityRange, NodeExpandVolumeResponse, NodeGetVolumeStatsResponse, VolumeCondition, VolumeUsage,
    volume_usage::Unit,
};
use kernel::mount::{FsKind, FsStats, Mount};
use pool::{ids::VolumeId, units::Bytes};

use super::{
    CsiError, NodeService,
    capability::Capability,
    locks::{Lock, Locks},
    paths,
    stage::LOOK,
    tools::Top,
};
use crate::volumes_api::{Standing, VolumeState};

/// A statfs of a file system whose lender is away waits; the kubelet asks every minute.
const STATFS: Duration = Duration::from_secs(20);
/// Time that the device has to reach its new size: the controller has granted it before the CO calls the node.
const GROWTH: Duration = Duration::from_secs(60);

/// What a volume is at a path.
enum At {
    Fs(Mount),
    Node,
    /// A folder that exists and has nothing of the volume.
    Folder,
}

impl NodeService {
    pub(super) async fn stats(
        &self,
        volume: VolumeId,
        path: &str,
    ) -> Result<NodeGetVolumeStatsResponse, CsiError> {
        // A lock of its own table: it only carries the volume's id, and hinders nobody.
        let lock = Locks::default().take(volume, "NodeGetVolumeStats")?;
        let (at, top, path) = self.find_at(&lock, path).await?;
        let state = self.volumes.observe(volume).borrow().clone();
        let (usage, broken) = match at {
            At::Node => (vec![usage_of_device(top.size)], false),
            At::Fs(m) => {
                let s = self.step(&lock, "statfs", STATFS, move |t| t.usage(&path)).await?;
                (usage_of_fs(&s), m.is_super_read_only() && !top.read_only && !m.is_read_only())
            }
            At::Folder => {
                let why = "nothing of it is mounted there".to_owned();
                return Err(CsiError::NotThere { volume, path, why });
            }
        };
        Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition(&state, broken)) })
    }

    pub(super) async fn expand(
        &self,
        lock: Lock,
        path: String,
        range: Option<CapacityRange>,
        capability: Option<Capability>,
    ) -> Result<NodeExpandVolumeResponse, CsiError> {
        let volume = lock.volume();
        let required = required(range)?;
        let (at, top, path) = self.find_at(&lock, &path).await?;
        let at = match at {
            At::Folder if capability.as_ref().is_some_and(Capability::is_block) => At::Node,
            At::Folder => {
                let why = "nothing of it is mounted there".to_owned();
                return Err(CsiError::NotThere { volume, path, why });
            }
            other => other,
        };
        let top = self.wait_for_size(&lock, top, required).await?;
        match at {
            At::Node | At::Folder => {}
            // A reader's file system cannot be grown from here; its writer does it.
            At::Fs(m) if m.is_super_read_only() => {}
            At::Fs(m) => {
                let kind =
                    FsKind::parse(&m.fs_type).map_err(|e| CsiError::Tool { volume, source: e.into() })?;
                let through = self.writable_mount(&lock, &top, &path).await?;
                self.grow_if_smaller(&lock, &top, &through, kind).await?;
            }
        }
        let capacity_bytes = i64::try_from(top.size.get()).unwrap_or(i64::MAX);
        Ok(NodeExpandVolumeResponse { capacity_bytes })
    }

    /// A mount point through which the file system can be changed: a read-only bind refuses it.
    async fn writable_mount(&self, lock: &Lock, top: &Top, path: &Path) -> Result<PathBuf, CsiError> {
        let (_, mounts) = self.observe(lock).await?;
        let writable = mounts.into_iter().find(|m| m.dev == top.dev && !m.is_read_only());
        Ok(writable.map_or_else(|| path.to_owned(), |m| m.mount_point))
    }

    /// What the volume is at a path; `NOT_FOUND` where it is nothing.
    async fn find_at(&self, lock: &Lock, path: &str) -> Result<(At, Top, PathBuf), CsiError> {
        let volume = lock.volume();
        let not_there = |why: &str| CsiError::NotThere {
            volume,
            path: PathBuf::from(path.chars().take(128).collect::<String>()),
            why: why.to_owned(),
        };
        let plain = paths::parse("volume_path", path).map_err(|e| not_there(&e.to_string()))?;
        let (top, mounts) = self.observe(lock).await?;
        let top = top.ok_or_else(|| not_there("it is not staged on this node"))?;
        let resolved = self.on_path(lock, "resolve the path", move |v| paths::resolve(v, &plain));
        let path = resolved.await?.ok_or_else(|| not_there("there is no such path"))?;
        if let Some(m) = mounts.into_iter().rfind(|m| m.mount_point == path && m.dev == top.dev) {
            return Ok((At::Fs(m), top, path));
        }
        let p = path.clone();
        if self.step(lock, "look at the path", LOOK, move |t| t.device_at(&p)).await? == Some(top.dev) {
            return Ok((At::Node, top, path));
        }
        let p = path.clone();
        match self.on_path(lock, "look at the path", move |v| paths::look(v, &p)).await? {
            paths::Found::Folder => Ok((At::Folder, top, path)),
            paths::Found::Nothing => Err(not_there("there is no such path")),
            paths::Found::File | paths::Found::Other => Err(not_there("something else is there")),
        }
    }

    /// Waits until the device has grown. The controller states the new map, the agent swaps the table: the state
    /// that the agent observes changes with it, and the kernel has the last word.
    async fn wait_for_size(&self, lock: &Lock, mut top: Top, required: Bytes) -> Result<Top, CsiError> {
        let volume = lock.volume();
        let mut state = self.volumes.observe(volume);
        let until = tokio::time::Instant::now() + GROWTH;
        while top.size < required {
            let not_yet = |size: Bytes| CsiError::NotYet {
                volume,
                why: format!(
                    "its device has {size} and is to have {required}; the controller has not grown it yet"
                ),
            };
            match tokio::time::timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(not_yet(top.size)),
            }
            top = self.observe(lock).await?.0.ok_or_else(|| not_yet(Bytes::ZERO))?;
        }
        Ok(top)
    }
}

fn required(range: Option<CapacityRange>) -> Result<Bytes, CsiError> {
    let Some(r) = range else { return Ok(Bytes::ZERO) };
    if r.required_bytes < 0 || r.limit_bytes < 0 {
        return Err(CsiError::OutOfRange("a capacity cannot be negative".to_owned()));
    }
    if r.limit_bytes > 0 && r.limit_bytes < r.required_bytes {
        return Err(CsiError::OutOfRange("limit_bytes is below required_bytes".to_owned()));
    }
    Ok(Bytes::new(r.required_bytes.unsigned_abs()))
}

fn usage_of_device(size: Bytes) -> VolumeUsage {
    let total = i64::try_from(size.get()).unwrap_or(i64::MAX);
    VolumeUsage { total, unit: Unit::Bytes as i32, ..Default::default() }
}

fn usage_of_fs(s: &FsStats) -> Vec<VolumeUsage> {
    let n = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    vec![
        VolumeUsage {
            available: n(s.available),
            total: n(s.total),
            used: n(s.used),
            unit: Unit::Bytes as i32,
        },
        VolumeUsage {
            available: n(s.inodes_free),
            total: n(s.inodes),
            used: n(s.inodes.saturating_sub(s.inodes_free)),
            unit: Unit::Inodes as i32,
        },
    ]
}

/// How the volume is, in words for people.
fn condition(state: &VolumeState, broken: bool) -> VolumeCondition {
    let mut wrong = Vec::new();
    if broken {
        wrong.push(
            "its file system turned read-only after an error: unstage it to have it checked".to_owned(),
        );
    }
    match state.standing {
        Standing::Fenced => wrong.push("it is fenced here and fails all I/O: another node has it".to_owned()),
        Standing::Guarded => {
            wrong.push("it holds its first write until the other node has let go".to_owned())
        }
        Standing::Open | Standing::Unknown | Standing::Absent => {}
    }
    if !state.queueing.is_empty() {
        let disks: Vec<String> = state.queueing.iter().map(ToString::to_string).collect();
        wrong.push(format!("I/O waits for disks that cannot be reached: {}", disks.join(", ")));
    }
    if !state.reason.is_empty() {
        wrong.push(state.reason.clone());
    }
    let abnormal = !wrong.is_empty();
    VolumeCondition { abnormal, message: if abnormal { wrong.join("; ") } else { "healthy".to_owned() } }
}
