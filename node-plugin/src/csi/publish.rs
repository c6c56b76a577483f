//! Publish: a bind of the staged folder, or of the device's node, at the workload's path. Unpublish: its end.

use std::path::{Path, PathBuf};

use kernel::mount::Mount;
use pool::ids::VolumeId;

use crate::limits::Who;

use super::{
    CsiError, NodeService,
    capability::{AccessMode, Capability},
    faults::Point,
    locks::Lock,
    paths,
    stage::{LOOK, MOUNT},
    tools::Top,
};

impl NodeService {
    pub(super) async fn publish(
        &self,
        lock: Lock,
        staging: PathBuf,
        target: PathBuf,
        capability: Capability,
        read_only: bool,
        who: Option<Who>,
    ) -> Result<(), CsiError> {
        let volume = lock.volume();
        let (staging, target) = self.resolve_both(&lock, staging, target).await?;
        let (top, mounts) = self.observe(&lock).await?;
        let not_staged = |why: String| CsiError::Precondition { volume, why };
        let top =
            top.ok_or_else(|| not_staged("it is not staged on this node: stage it first".to_owned()))?;
        let block = capability.is_block();
        let source = if block {
            top.path.clone()
        } else {
            check_staged(volume, &mounts, &top, &staging, read_only)?;
            staging.clone()
        };
        if self.is_published(&lock, &mounts, &top, &target, block, read_only).await? {
            return self.limit(&lock, &top, &target, who).await;
        }
        if capability.mode == AccessMode::SingleNodeSingleWriter {
            self.check_only_user(&lock, &mounts, &top, &staging, &target, block).await?;
        }
        self.limit(&lock, &top, &target, who).await?;
        let path = target.clone();
        let made = self.on_path(&lock, "make the target", move |v| {
            if block { paths::ensure_file(v, &path) } else { paths::ensure_folder(v, &path) }
        });
        made.await?;
        self.faults.at(Point::PublishTarget)?;
        let at = target.clone();
        self.step(&lock, "bind", MOUNT, move |t| t.bind(&source, &at, read_only)).await?;
        tracing::info!(target_path = %target.display(), read_only, block, "published");
        Ok(())
    }

    /// Puts the volume's limits in force on its user.
    async fn limit(&self, lock: &Lock, top: &Top, target: &Path, who: Option<Who>) -> Result<(), CsiError> {
        let (limits, at, dev) = (self.limits.clone(), target.to_owned(), top.dev);
        let enter = move |volume| {
            limits.enter(volume, &at, dev, who.as_ref()).map_err(|source| CsiError::Limit { volume, source })
        };
        self.on_path(lock, "limit its user", enter).await
    }

    async fn resolve_both(
        &self,
        lock: &Lock,
        staging: PathBuf,
        target: PathBuf,
    ) -> Result<(PathBuf, PathBuf), CsiError> {
        let both = self.on_path(lock, "resolve the paths", move |v| {
            if let Some(dir) = target.parent() {
                paths::ensure_folder(v, dir)?;
            }
            let s = paths::resolve(v, &staging)?.unwrap_or(staging);
            let t = paths::resolve(v, &target)?.unwrap_or(target);
            Ok((s, t))
        });
        both.await
    }

    /// Whether the target is what was asked for already; anything else that is mounted there is `ALREADY_EXISTS`.
    async fn is_published(
        &self,
        lock: &Lock,
        mounts: &[Mount],
        top: &Top,
        target: &Path,
        block: bool,
        read_only: bool,
    ) -> Result<bool, CsiError> {
        let volume = lock.volume();
        let Some(m) = mounts.iter().rfind(|m| m.mount_point == target) else { return Ok(false) };
        let exists = |why: String| Err(CsiError::Exists { volume, path: target.to_owned(), why });
        let is_fs = m.dev == top.dev;
        let at = target.to_owned();
        let is_node = !is_fs && {
            let dev = self.step(lock, "look at the target", LOOK, move |t| t.device_at(&at)).await?;
            dev == Some(top.dev)
        };
        match (block, is_node, is_fs) {
            (true, true, _) | (false, _, true) => {}
            (true, _, true) => {
                return exists("as a file system, and a block device was asked for".to_owned());
            }
            (false, true, _) => {
                return exists("as a block device, and a file system was asked for".to_owned());
            }
            (_, false, false) => return exists(format!("{} is mounted there", m.source)),
        }
        match (m.is_read_only() || (is_fs && m.is_super_read_only()), read_only) {
            (true, false) => exists("read-only, and writable was asked for".to_owned()),
            (false, true) => exists("writable, and read-only was asked for".to_owned()),
            (true, true) | (false, false) => Ok(true),
        }
    }

    /// SINGLE_NODE_SINGLE_WRITER admits one target path. Of binds of a node only those beside the target count: the
    /// kubelet binds what was published on to paths of its own. Of file systems only whole binds count: a pod's
    /// subpaths are binds of folders.
    async fn check_only_user(
        &self,
        lock: &Lock,
        mounts: &[Mount],
        top: &Top,
        staging: &Path,
        target: &Path,
        block: bool,
    ) -> Result<(), CsiError> {
        let volume = lock.volume();
        let used = self.uses(lock, mounts, top, staging).await?;
        let whole = |p: &PathBuf| {
            let m = mounts.iter().rfind(|m| m.mount_point == *p);
            m.is_some_and(|m| m.dev == top.dev && m.root == Path::new("/"))
        };
        let other = used
            .iter()
            .find(|p| *p != target && if block { p.parent() == target.parent() } else { whole(p) });
        match other {
            None => Ok(()),
            Some(p) => Err(CsiError::Precondition {
                volume,
                why: format!(
                    "it is published at {}, and SINGLE_NODE_SINGLE_WRITER admits one path at a time",
                    p.display()
                ),
            }),
        }
    }

    pub(super) async fn unpublish(&self, lock: Lock, target: PathBuf) -> Result<(), CsiError> {
        let resolved = self.on_path(&lock, "resolve the path", move |v| paths::resolve(v, &target));
        // Without its folder there is no target.
        let Some(target) = resolved.await? else { return Ok(()) };
        let volume = lock.volume();
        let (top, mounts) = self.observe(&lock).await?;
        if let Some(m) = mounts.iter().rfind(|m| m.mount_point == target) {
            self.check_ours(&lock, m, top.as_ref(), &target).await?;
            let at = target.clone();
            self.step(&lock, "unmount", MOUNT, move |t| t.unmount(&at)).await?;
            tracing::info!(target_path = %target.display(), "unpublished");
        }
        let (limits, at) = (self.limits.clone(), target.clone());
        let leave = move |volume| {
            // A user who has gone must not be kept by limits that cannot be lifted.
            if let Err(e) = limits.leave(volume, &at) {
                tracing::warn!(%volume, target_path = %at.display(), error = %e, "its limits may stay on a control group");
            }
            Ok(())
        };
        self.on_path(&lock, "lift its limits", leave).await?;
        self.on_path(&lock, "remove the target", move |_| paths::remove_target(volume, &target)).await
    }

    /// A mount of somebody else at the target is not ours to end. Where the volume's device has gone, a bind of
    /// its node stays behind: that one leads nowhere.
    async fn check_ours(
        &self,
        lock: &Lock,
        m: &Mount,
        top: Option<&Top>,
        target: &Path,
    ) -> Result<(), CsiError> {
        let volume = lock.volume();
        let at = target.to_owned();
        let node = self.step(lock, "look at the target", LOOK, move |t| t.device_at(&at)).await?;
        let ours = match top {
            Some(t) => m.dev == t.dev || node == Some(t.dev),
            None => node.is_some(),
        };
        if ours {
            return Ok(());
        }
        let why = format!("{} has {} mounted, which is not this volume", target.display(), m.source);
        Err(CsiError::Precondition { volume, why })
    }
}

fn check_staged(
    volume: VolumeId,
    mounts: &[Mount],
    top: &Top,
    staging: &Path,
    read_only: bool,
) -> Result<(), CsiError> {
    let staged = mounts.iter().rfind(|m| m.mount_point == staging).filter(|m| m.dev == top.dev);
    let why = match staged {
        None => format!("it is not staged at {}: stage it first", staging.display()),
        Some(m) if m.is_super_read_only() && !read_only => {
            "it is staged read-only, and writable was asked for".to_owned()
        }
        Some(_) => return Ok(()),
    };
    Err(CsiError::Precondition { volume, why })
}
