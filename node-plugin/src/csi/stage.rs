//! Stage: attach, then for a file system probe, make, check, mount, grow. Unstage: unmount, detach.
//!
//! Each step looks at what stands and does what is missing, so a call that follows a crash at any point ends as the
//! first one would have. Nothing is formatted but a device on which a successful read found no signature at all.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kernel::{
    DevNo,
    mount::{FsKind, Mount, Probe},
};
use pool::ids::VolumeId;

use super::{
    CsiError, NodeService,
    capability::{Access, Capability, parse_fs},
    faults::Point,
    locks::Lock,
    paths,
    tools::{ToolError, Tools, Top},
};
use crate::volumes_api::{AttachMode, Attached};

/// The kubelet waits two minutes for a call, and asks again.
const ATTACH: Duration = Duration::from_secs(110);
/// Reads of a few blocks; a lender that is away makes them wait.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// Making, checking or growing a file system of many terabytes.
pub(super) const FS_TOOL: Duration = Duration::from_secs(900);
/// A mount replays a journal, an unmount writes back what is dirty.
pub(super) const MOUNT: Duration = Duration::from_secs(110);
/// Time that the last user of a file system in another mount namespace has to go.
const LAST_CLOSE: Duration = Duration::from_secs(5);

impl NodeService {
    /// Runs one step with the tools on a thread of its own.
    pub(super) async fn step<T: Send + 'static>(
        &self,
        lock: &Lock,
        what: &str,
        within: Duration,
        f: impl FnOnce(&dyn Tools) -> Result<T, ToolError> + Send + 'static,
    ) -> Result<T, CsiError> {
        let (volume, tools) = (lock.volume(), self.tools.clone());
        let call = move || f(&*tools).map_err(|source| CsiError::Tool { volume, source });
        self.work.run(lock, what, within, call).await
    }

    /// The same with a call that works on paths.
    pub(super) async fn on_path<T: Send + 'static>(
        &self,
        lock: &Lock,
        what: &str,
        f: impl FnOnce(VolumeId) -> Result<T, CsiError> + Send + 'static,
    ) -> Result<T, CsiError> {
        let volume = lock.volume();
        self.work.run(lock, what, LOOK, move || f(volume)).await
    }

    /// The volume's device and the table of mounts.
    pub(super) async fn observe(&self, lock: &Lock) -> Result<(Option<Top>, Vec<Mount>), CsiError> {
        let volume = lock.volume();
        self.step(lock, "look at the kernel", LOOK, move |t| Ok((t.top(volume)?, t.mounts()?))).await
    }

    pub(super) async fn stage(
        &self,
        lock: Lock,
        staging: PathBuf,
        capability: Capability,
    ) -> Result<(), CsiError> {
        let volume = lock.volume();
        let flag_ro =
            matches!(&capability.access, Access::Mount { flags, .. } if flags.iter().any(|f| f == "ro"));
        let read_only = capability.reads_only() || flag_ro;
        let mode = AttachMode {
            read_only: capability.reads_only(),
            multi_node: capability.is_multi_node(),
            block: capability.is_block(),
        };
        let attached = self
            .volumes
            .attach(volume, mode, Instant::now() + ATTACH)
            .await
            .map_err(|source| CsiError::Volumes { volume, source })?;
        self.faults.at(Point::StageAttached)?;
        let (top, mounts) = self.observe(&lock).await?;
        let top = top.ok_or_else(|| CsiError::NotYet {
            volume,
            why: "it is attached, but its device is not there".to_owned(),
        })?;
        match capability.access {
            // The staging folder of a block volume stays empty: what is staged is the device.
            Access::Block => Ok(()),
            Access::Mount { fs, flags } => {
                let wanted = Wanted { staging, fs, flags, read_only };
                self.stage_fs(&lock, wanted, &attached, top, mounts).await
            }
        }?;
        tracing::info!(epoch = %attached.epoch, size = %attached.size, guarded = attached.guarded, "staged");
        Ok(())
    }

    async fn stage_fs(
        &self,
        lock: &Lock,
        wanted: Wanted,
        attached: &Attached,
        top: Top,
        mounts: Vec<Mount>,
    ) -> Result<(), CsiError> {
        let volume = lock.volume();
        if attached.guarded {
            let why = "another node has not given it up yet; a file system is mounted once it has".to_owned();
            return Err(CsiError::NotYet { volume, why });
        }
        let path = wanted.staging.clone();
        let resolved = self.on_path(lock, "make the staging folder", move |v| {
            paths::ensure_folder(v, &path)?;
            paths::resolve(v, &path)
        });
        let staging = resolved.await?.unwrap_or_else(|| wanted.staging.clone());
        let kind = match standing(volume, &mounts, &top, &staging, wanted.read_only)? {
            Standing::Mounted(kind) => kind,
            Standing::Broken => {
                tracing::warn!("the file system turned read-only after an error: unmounted, to be checked");
                let at = staging.clone();
                self.step(lock, "unmount", MOUNT, move |t| t.unmount(&at)).await?;
                self.mount_fs(lock, &wanted, attached, &top, &staging).await?
            }
            Standing::Bare => self.mount_fs(lock, &wanted, attached, &top, &staging).await?,
        };
        self.faults.at(Point::StageMounted)?;
        if !wanted.read_only {
            self.grow_if_smaller(lock, &top, &staging, kind).await?;
        }
        Ok(())
    }

    /// From a bare device to a mounted file system.
    async fn mount_fs(
        &self,
        lock: &Lock,
        wanted: &Wanted,
        attached: &Attached,
        top: &Top,
        staging: &Path,
    ) -> Result<FsKind, CsiError> {
        let volume = lock.volume();
        let device = top.path.clone();
        let found = self.step(lock, "probe the device", FS_TOOL, move |t| t.probe(&device, LOOK)).await?;
        let read_only = wanted.read_only || top.read_only;
        let kind = match (found, wanted.fs) {
            (Probe::Fs(found), Some(asked)) if found != asked => {
                let why = format!("it carries {}, and {} was asked for", found.as_str(), asked.as_str());
                return Err(CsiError::Precondition { volume, why });
            }
            (Probe::Fs(found), _) => found,
            (Probe::Other(what), _) => {
                let why = format!(
                    "it carries {what}, which is not formatted over; use it as a block volume, or wipe it there"
                );
                return Err(CsiError::Precondition { volume, why });
            }
            (Probe::Blank | Probe::Unfinished(_), _) if read_only => {
                let why = "it carries no file system, and none is made for a reader".to_owned();
                return Err(CsiError::Precondition { volume, why });
            }
            (blank @ (Probe::Blank | Probe::Unfinished(_)), asked) => {
                // What was begun and cut off is begun again as the same kind.
                let begun = if let Probe::Unfinished(k) = blank { Some(k) } else { None };
                let kind = begun.or(asked).or(parse_fs(&attached.fs_type)?).unwrap_or(FsKind::Ext4);
                let device = top.path.clone();
                let make = move |t: &dyn Tools| t.make_fs(&device, kind, FS_TOOL);
                self.step(lock, "make the file system", FS_TOOL, make).await?;
                tracing::info!(fs = kind.as_str(), "made a file system");
                self.faults.at(Point::StageFormatted)?;
                kind
            }
        };
        if !read_only {
            let device = top.path.clone();
            let check = move |t: &dyn Tools| t.check(&device, kind, FS_TOOL);
            self.step(lock, "check the file system", FS_TOOL, check).await?;
        }
        let mut options = wanted.flags.clone();
        if read_only && !options.iter().any(|o| o == "ro") {
            options.push("ro".to_owned());
        }
        if kind == FsKind::Xfs && !options.iter().any(|o| o == "nouuid") {
            // Copies of one file system (clones, restored snapshots) share its UUID and may meet on a node.
            options.push("nouuid".to_owned());
        }
        let (device, at) = (top.path.clone(), staging.to_owned());
        self.step(lock, "mount", MOUNT, move |t| t.mount(&device, &at, kind, &options)).await?;
        Ok(kind)
    }

    /// Grows a file system that is smaller than its device.
    pub(super) async fn grow_if_smaller(
        &self,
        lock: &Lock,
        top: &Top,
        mount_point: &Path,
        kind: FsKind,
    ) -> Result<(), CsiError> {
        let device = top.path.clone();
        let spans = self.step(lock, "read the superblock", LOOK, move |t| t.fs_bytes(&device, kind)).await?;
        if spans.is_some_and(|n| !is_smaller(n, top.size.get())) {
            return Ok(());
        }
        let (device, at) = (top.path.clone(), mount_point.to_owned());
        let grow = move |t: &dyn Tools| t.grow(&device, &at, kind, FS_TOOL);
        self.step(lock, "grow the file system", FS_TOOL, grow).await?;
        tracing::info!(fs = kind.as_str(), to = %top.size, "grew the file system");
        Ok(())
    }

    pub(super) async fn unstage(&self, lock: Lock, staging: PathBuf) -> Result<(), CsiError> {
        let volume = lock.volume();
        let resolved = self.on_path(&lock, "resolve the path", {
            let staging = staging.clone();
            move |v| paths::resolve(v, &staging)
        });
        let staging = resolved.await?.unwrap_or(staging);
        let (top, mounts) = self.observe(&lock).await?;
        if let Some(top) = &top {
            let used = self.uses(&lock, &mounts, top, &staging).await?;
            if let Some(at) = used.first() {
                let why = format!("it is still published at {}: unpublish it first", at.display());
                return Err(CsiError::Precondition { volume, why });
            }
        }
        if let Some(m) = mounts.iter().rfind(|m| m.mount_point == staging) {
            if top.as_ref().is_none_or(|t| t.dev != m.dev) {
                let why = format!("{} has {} mounted, which is not this volume", staging.display(), m.source);
                return Err(CsiError::Precondition { volume, why });
            }
            let at = staging.clone();
            self.step(&lock, "unmount", MOUNT, move |t| t.unmount(&at)).await?;
        }
        self.faults.at(Point::UnstageUnmounted)?;
        if let Some(top) = &top {
            self.wait_for_last_user(&lock, top.dev).await?;
        }
        self.volumes
            .detach(volume, Instant::now() + ATTACH)
            .await
            .map_err(|source| CsiError::Volumes { volume, source })?;
        tracing::info!("unstaged");
        Ok(())
    }

    /// A file system may live on in another mount namespace after it was unmounted here, and detaching fails what
    /// it has not written back. (A block device is not waited for: detaching is what ends a write that is held.)
    async fn wait_for_last_user(&self, lock: &Lock, dev: DevNo) -> Result<(), CsiError> {
        let until = Instant::now() + LAST_CLOSE;
        let mut pause = Duration::from_millis(5);
        while self.step(lock, "look at the kernel", LOOK, move |t| Ok(t.fs_alive(dev))).await? {
            if Instant::now() >= until {
                return Err(CsiError::NotYet {
                    volume: lock.volume(),
                    why: "its file system is still mounted somewhere else on this node (in a container's mount \
                          namespace?); it is detached once that has ended"
                        .to_owned(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Where the volume is mounted or bound, apart from its staging path.
    pub(super) async fn uses(
        &self,
        lock: &Lock,
        mounts: &[Mount],
        top: &Top,
        staging: &Path,
    ) -> Result<Vec<PathBuf>, CsiError> {
        let mut used: Vec<PathBuf> = mounts
            .iter()
            .filter(|m| m.dev == top.dev && m.mount_point != staging)
            .map(|m| m.mount_point.clone())
            .collect();
        let nodes: Vec<PathBuf> =
            mounts.iter().filter(|m| is_node_of(m, top)).map(|m| m.mount_point.clone()).collect();
        let dev = top.dev;
        let bound = self.step(lock, "look at the targets", LOOK, move |t| {
            let same = |p: &PathBuf| t.device_at(p).map(|d| d == Some(dev));
            nodes.into_iter().filter_map(|p| same(&p).map(|s| s.then_some(p)).transpose()).collect()
        });
        let bound: Vec<PathBuf> = bound.await?;
        used.extend(bound);
        Ok(used)
    }
}

/// Whether a mount may be a bind of the device's node: its root is then the node's path in its file system.
fn is_node_of(m: &Mount, top: &Top) -> bool {
    let name = m.root.file_name();
    name.is_some_and(|n| {
        Some(n) == top.path.file_name() || n.to_str() == Some(&format!("dm-{}", top.dev.minor))
    })
}

/// ext4 counts in blocks of up to 64 KiB and leaves out a group too small for its own tables; xfs likewise leaves
/// out a small rest. Volumes grow by extents of at least 4 MiB.
fn is_smaller(spans: u64, device: u64) -> bool {
    const SLACK: u64 = 1 << 20;
    spans.saturating_add(SLACK) < device
}

/// A file system as it is to be staged.
struct Wanted {
    staging: PathBuf,
    fs: Option<FsKind>,
    flags: Vec<String>,
    read_only: bool,
}

/// What stands at the staging path.
enum Standing {
    /// Nothing.
    Bare,
    /// The volume, usable.
    Mounted(FsKind),
    /// The volume, turned read-only by its file system.
    Broken,
}

fn standing(
    volume: VolumeId,
    mounts: &[Mount],
    top: &Top,
    staging: &Path,
    read_only: bool,
) -> Result<Standing, CsiError> {
    let Some(m) = mounts.iter().rfind(|m| m.mount_point == staging) else { return Ok(Standing::Bare) };
    if m.dev != top.dev {
        let why = format!("{} has {} mounted, which is not this volume", staging.display(), m.source);
        return Err(CsiError::Precondition { volume, why });
    }
    match (m.is_super_read_only(), read_only) {
        (false, true) => Err(CsiError::Exists {
            volume,
            path: staging.to_owned(),
            why: "writable, and read-only was asked for".to_owned(),
        }),
        (true, false) if top.read_only => Err(CsiError::Exists {
            volume,
            path: staging.to_owned(),
            why: "read-only, and writable was asked for".to_owned(),
        }),
        (true, false) if mounts.iter().any(|o| o.dev == top.dev && o.mount_point != staging) => {
            let why = "its file system turned read-only after an error and is in use: end its pods first"
                .to_owned();
            Err(CsiError::Precondition { volume, why })
        }
        (true, false) => Ok(Standing::Broken),
        (true, true) | (false, false) => FsKind::parse(&m.fs_type)
            .map(Standing::Mounted)
            .map_err(|e| CsiError::Tool { volume, source: e.into() }),
    }
}
