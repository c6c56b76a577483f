//! What the users of a volume may do of I/O: limits that the controller gives, set on the control groups of the pods that have the
//! volume published here, and changed while I/O goes on; and for as long as the owner of a disk waits that the volume borrows from,
//! ceilings. The lesser of both holds.
//!
//! Invariants: a volume with limits is published only to somebody on whom they are set; whoever had it published before a restart
//! is known after it. A ceiling that is not said again goes: no record has it. Limits are each user's own: two pods with one volume may do twice as much. Must not know: how the
//! kernel limits, what a pod is beyond its uid.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kernel::{
    Class, DevNo, Ensured,
    cgroup::{CgroupError, Cgroups, IoMax},
};
use pool::{ids::VolumeId, layout::params::Limits};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::agent::calls::Calls;

/// What says of a pod which it is (podInfoOnMount).
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
/// Where there are no pods: the control group of whoever will use the volume, below /sys/fs/cgroup.
const GROUP: &str = "weir.storage/cgroup";
/// The file, in the plugin's folder of state.
const FILE: &str = "users.yaml";
/// How long ceilings stand without being said again: a controller says them every 10 s, and another one reigns within half a minute.
const STAND: Duration = Duration::from_secs(60);

/// Why limits are not in force.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The kernel.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Nobody to set them on.
    #[error(
        "it has limits ({limits}), and who will use it is not said: neither {POD_UID} (CSIDriver: podInfoOnMount) nor {GROUP} is in the volume context"
    )]
    Nobody {
        /// The volume's.
        limits: Limits,
    },
    /// A pod without a control group.
    #[error(
        "it has limits ({limits}), and pod {uid} has no control group below /sys/fs/cgroup that this plugin sees"
    )]
    NoGroup {
        /// The volume's.
        limits: Limits,
        /// The pod's.
        uid: String,
    },
    /// A control group that is none.
    #[error("{GROUP}: {0:?} is no folder below /sys/fs/cgroup")]
    BadGroup(String),
    /// What is remembered cannot be written down.
    #[error("{op} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LimitError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            LimitError::Cgroup(e) => e.class(),
            LimitError::NoGroup { .. } => Class::Transient,
            LimitError::Nobody { .. } | LimitError::BadGroup(_) => Class::Permanent,
            LimitError::File { source, .. } => Class::of_io(source),
        }
    }
}

/// Who is to be limited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A pod, by its uid.
    Pod(String),
    /// A control group, by its path below the hierarchy's root.
    Group(String),
}

impl Who {
    /// Whom the volume context of a publish names.
    pub fn named(context: &std::collections::HashMap<String, String>) -> Option<Self> {
        let of = |key: &str| context.get(key).filter(|v| !v.is_empty()).cloned();
        of(GROUP).map(Self::Group).or_else(|| of(POD_UID).map(Self::Pod))
    }
}

/// Somebody who has a volume published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct User {
    group: PathBuf,
    /// The volume's device, as `major:minor`.
    dev: String,
}

/// Users by volume and target path.
type Users = BTreeMap<VolumeId, BTreeMap<PathBuf, User>>;

/// What is remembered: numbers of devices are another boot's no more.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    boot: String,
    users: Users,
}

#[derive(Debug, Default)]
struct State {
    limits: BTreeMap<VolumeId, Limits>,
    ceilings: BTreeMap<VolumeId, IoMax>,
    /// When they were said.
    said: Option<Instant>,
    users: Users,
    /// Volumes whose limits have changed and are not in force yet.
    due: BTreeSet<VolumeId>,
}

impl State {
    fn limits(&self, volume: VolumeId) -> Limits {
        self.limits.get(&volume).copied().unwrap_or_default()
    }

    /// What is to be in force.
    fn io_max(&self, volume: VolumeId) -> IoMax {
        let ceiling = self.ceilings.get(&volume).copied().unwrap_or_default();
        io_max(self.limits(volume)).lesser(ceiling)
    }
}

/// Keeps limits in force.
#[derive(Debug)]
pub struct Limiter {
    cgroups: Cgroups,
    root: PathBuf,
    file: PathBuf,
    boot: String,
    state: Mutex<State>,
    changed: Notify,
}

impl Limiter {
    /// With the users that an earlier life of the plugin had in this boot, as far as they are still there.
    ///
    /// # Errors
    /// What was remembered cannot be read. A file that is not understood is no error: it is said and left behind.
    pub fn open(root: &Path, state_dir: &Path, boot: &str) -> Result<Self, LimitError> {
        let file = state_dir.join(FILE);
        let kept: Remembered = match fs::read_to_string(&file) {
            Ok(text) => serde_yaml::from_str(&text).unwrap_or_else(|e| {
                tracing::error!(path = %file.display(), error = %e, "not understood: limits that change reach pods that start from now on only");
                Remembered::default()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Remembered::default(),
            Err(source) => return Err(LimitError::File { op: "read", path: file, source }),
        };
        let mut users = if kept.boot == boot { kept.users } else { Users::new() };
        users.values_mut().for_each(|u| u.retain(|_, u| u.group.is_dir()));
        users.retain(|_, u| !u.is_empty());
        let state = Mutex::new(State { users, ..State::default() });
        Ok(Self {
            cgroups: Cgroups::at(root),
            root: root.to_owned(),
            file,
            boot: boot.to_owned(),
            state,
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller's word on a volume.
    pub fn hear(&self, volume: VolumeId, limits: Limits) {
        let mut s = self.lock();
        let known = if limits == Limits::default() {
            s.limits.remove(&volume)
        } else {
            s.limits.insert(volume, limits)
        };
        // What an earlier life set is not known: it is looked at.
        if known.unwrap_or_default() != limits || (known.is_none() && s.users.contains_key(&volume)) {
            tracing::info!(%volume, %limits, "limits");
            s.due.insert(volume);
            self.changed.notify_one();
        }
    }

    /// All ceilings that there are; those that were and are not named are lifted.
    pub fn bound(&self, ceilings: BTreeMap<VolumeId, IoMax>) {
        let mut s = self.lock();
        let before = std::mem::replace(&mut s.ceilings, ceilings);
        s.said = Some(Instant::now());
        let all: BTreeSet<VolumeId> = before.keys().chain(s.ceilings.keys()).copied().collect();
        for volume in all {
            let (was, is) = (before.get(&volume), s.ceilings.get(&volume).copied());
            match (was, is) {
                (None, Some(max)) => {
                    tracing::info!(%volume, ?max, "slowed: the owner of a disk that it borrows from waits");
                }
                (Some(_), None) => tracing::info!(%volume, "slowed no more"),
                (Some(_) | None, _) => {}
            }
            if was.copied() != is && s.users.contains_key(&volume) {
                s.due.insert(volume);
            }
        }
        self.changed.notify_one();
    }

    /// Lifts ceilings that nobody has said for a while; how long those that stand have left.
    fn expire(&self) -> Duration {
        let (none, age) = {
            let s = self.lock();
            (s.ceilings.is_empty(), s.said.map_or(STAND, |at| at.elapsed()))
        };
        if !none && age >= STAND {
            self.bound(BTreeMap::new());
        }
        // Where there is none, any time is soon enough.
        if none { STAND } else { STAND.saturating_sub(age).max(Duration::from_secs(1)) }
    }

    /// Puts changes in force until the process ends.
    pub async fn keep(self: Arc<Self>, calls: Calls) {
        loop {
            // Whether anything changed or the time is over: both are looked at.
            drop(tokio::time::timeout(self.expire(), self.changed.notified()).await);
            while let Some(volume) = { self.lock().due.pop_first() } {
                let me = self.clone();
                match calls.run(format!("limit volume {volume}"), move || me.apply(volume)).await {
                    Ok(Ok(users)) => tracing::debug!(%volume, users, "limits are in force"),
                    Ok(Err(e)) => tracing::error!(%volume, error = %e, "limits are not in force"),
                    Err(e) => tracing::error!(%volume, error = %e, "limits are not in force"),
                }
            }
        }
    }

    /// Sets a volume's limits on all of its users; on how many they were others. The first error, once all are tried.
    fn apply(&self, volume: VolumeId) -> Result<usize, LimitError> {
        let (max, users) = {
            let s = self.lock();
            let users: BTreeSet<User> =
                s.users.get(&volume).into_iter().flat_map(|u| u.values().cloned()).collect();
            (s.io_max(volume), users)
        };
        let mut done = Ok(0);
        for u in users {
            let Ok(dev) = u.dev.parse() else { continue };
            match (self.cgroups.set_io_max(&u.group, dev, max), &mut done) {
                (Ok(Ensured::Swapped), Ok(n)) => *n += 1,
                // The others' are set nevertheless.
                (Err(e), Ok(_)) => done = Err(e.into()),
                (Ok(_) | Err(_), _) => {}
            }
        }
        done
    }

    /// Sets a volume's limits on somebody who is about to use it. Blocks.
    ///
    /// # Errors
    /// They cannot be set: then it must not be published.
    pub fn enter(
        &self,
        volume: VolumeId,
        target: &Path,
        dev: DevNo,
        who: Option<&Who>,
    ) -> Result<(), LimitError> {
        let (limits, max) = {
            let s = self.lock();
            (s.limits(volume), s.io_max(volume))
        };
        let Some(group) = self.group(who, limits)? else { return Ok(()) };
        self.cgroups.set_io_max(&group, dev, max)?;
        let mut s = self.lock();
        s.users.entry(volume).or_default().insert(target.to_owned(), User { group, dev: dev.to_string() });
        // They may have changed meanwhile.
        if s.io_max(volume) != max {
            s.due.insert(volume);
            self.changed.notify_one();
        }
        self.save(&s.users)
    }

    fn group(&self, who: Option<&Who>, limits: Limits) -> Result<Option<PathBuf>, LimitError> {
        let free = limits == Limits::default();
        match who {
            None if free => Ok(None),
            None => Err(LimitError::Nobody { limits }),
            Some(Who::Pod(uid)) => match self.cgroups.pod(uid)? {
                None if !free => Err(LimitError::NoGroup { limits, uid: uid.clone() }),
                found => Ok(found),
            },
            Some(Who::Group(path)) => {
                let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(path));
                let plain = below.components().all(|c| matches!(c, std::path::Component::Normal(_)));
                let dir = self.root.join(below);
                if !plain || below.as_os_str().is_empty() || !dir.is_dir() {
                    return Err(LimitError::BadGroup(path.clone()));
                }
                Ok(Some(dir))
            }
        }
    }

    /// Somebody uses a volume no more. Blocks.
    ///
    /// # Errors
    /// Limits cannot be lifted from a group that lives on.
    pub fn leave(&self, volume: VolumeId, target: &Path) -> Result<(), LimitError> {
        let mut s = self.lock();
        let Some(users) = s.users.get_mut(&volume) else { return Ok(()) };
        let Some(gone) = users.remove(target) else { return Ok(()) };
        let stays = users.values().any(|u| *u == gone);
        if users.is_empty() {
            s.users.remove(&volume);
        }
        self.save(&s.users)?;
        drop(s);
        if let (false, Ok(dev)) = (stays, gone.dev.parse()) {
            self.cgroups.set_io_max(&gone.group, dev, IoMax::default())?;
        }
        Ok(())
    }

    /// Written anew and then renamed, so that there is a whole file at any time.
    fn save(&self, users: &Users) -> Result<(), LimitError> {
        let new = self.file.with_extension("new");
        let failed = |op, path: &Path| {
            let path = path.to_owned();
            move |source| LimitError::File { op, path, source }
        };
        let all = Remembered { boot: self.boot.clone(), users: users.clone() };
        let text = serde_yaml::to_string(&all).map_err(io::Error::other).map_err(failed("write", &new))?;
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &self.file).map_err(failed("rename to", &self.file))
    }
}

/// Reads and writes are limited each for themselves: the kernel has no common count.
fn io_max(l: Limits) -> IoMax {
    let bytes = l.throughput.map(|b| b.get());
    IoMax { rbps: bytes, wbps: bytes, riops: l.iops, wiops: l.iops }
}

#[cfg(test)]
mod tests {
    use pool::units::Bytes;

    use super::*;

    const V: VolumeId = VolumeId::from_u128(7);
    const UID: &str = "5c3cae4f-6de0-470e-8165-611c8a81b73b";

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let b = Self { dir: tempfile::tempdir().expect("a folder") };
            fs::create_dir_all(b.pod()).expect("the pod's group");
            fs::write(b.pod().join("io.max"), "").expect("its file");
            fs::create_dir(b.dir.path().join("state")).expect("a folder");
            b
        }

        fn pod(&self) -> PathBuf {
            self.dir.path().join("cg/kubepods/burstable").join(format!("pod{UID}"))
        }

        fn limiter(&self) -> Limiter {
            self.booted("a")
        }

        fn booted(&self, boot: &str) -> Limiter {
            let (root, state) = (self.dir.path().join("cg"), self.dir.path().join("state"));
            Limiter::open(&root, &state, boot).expect("a limiter")
        }

        fn set(&self) -> String {
            fs::read_to_string(self.pod().join("io.max")).expect("io.max")
        }
    }

    fn limits(iops: u64) -> Limits {
        Limits { iops: Some(iops), throughput: Some(Bytes::mib(1)) }
    }

    fn due(l: &Limiter) -> Vec<VolumeId> {
        std::mem::take(&mut l.lock().due).into_iter().collect()
    }

    #[test]
    fn a_pod_is_limited_before_it_gets_the_volume_and_while_it_has_it() {
        let b = Bench::new();
        let l = b.limiter();
        let (dev, pod, at) = (DevNo::new(253, 3), Who::Pod(UID.into()), Path::new("/target"));
        l.hear(V, limits(200));
        assert_eq!(due(&l), [V]);
        assert_eq!(l.apply(V).expect("nobody yet"), 0);
        l.enter(V, at, dev, Some(&pod)).expect("limited");
        assert_eq!(b.set(), "253:3 rbps=1048576 wbps=1048576 riops=200 wiops=200");
        l.hear(V, limits(200));
        assert!(due(&l).is_empty(), "it is so already");
        l.hear(V, limits(300));
        assert_eq!((due(&l), l.apply(V).expect("changed")), (vec![V], 1));
        assert!(b.set().ends_with("riops=300 wiops=300"), "{}", b.set());
        l.hear(V, Limits::default());
        assert_eq!((due(&l), l.apply(V).expect("lifted")), (vec![V], 1));
        assert_eq!(b.set(), "253:3 rbps=max wbps=max riops=max wiops=max");
    }

    #[test]
    fn a_restart_forgets_nobody_who_is_still_there() {
        let b = Bench::new();
        let (dev, pod, at) = (DevNo::new(253, 3), Who::Pod(UID.into()), Path::new("/target"));
        b.limiter().enter(V, at, dev, Some(&pod)).expect("published without limits");
        let l = b.limiter();
        l.hear(V, limits(100));
        assert_eq!((due(&l), l.apply(V).expect("set")), (vec![V], 1));
        assert!(b.set().contains("riops=100"));
        // Lifted while the plugin was away: the first word says so, and it is looked at.
        let l = b.limiter();
        l.hear(V, Limits::default());
        assert_eq!((due(&l), l.apply(V).expect("lifted")), (vec![V], 1));
        l.leave(V, at).expect("left");
        l.leave(V, at).expect("again");
        assert!(b.limiter().lock().users.is_empty());
        b.limiter().enter(V, at, dev, Some(&pod)).expect("published");
        assert!(b.booted("b").lock().users.is_empty(), "the number is another device's by now");
        fs::remove_dir_all(b.pod()).expect("the pod has gone");
        assert!(b.limiter().lock().users.is_empty());
    }

    #[test]
    fn a_ceiling_holds_beside_limits_and_goes_when_nobody_says_it() {
        let b = Bench::new();
        let l = b.limiter();
        let (dev, pod, at) = (DevNo::new(253, 3), Who::Pod(UID.into()), Path::new("/target"));
        let ceiling = |iops| IoMax { riops: Some(iops), wiops: Some(9), rbps: None, wbps: Some(1 << 30) };
        let settle = |l: &Limiter| due(l).into_iter().for_each(|v| assert!(l.apply(v).expect("set") < 2));
        l.hear(V, limits(200));
        l.enter(V, at, dev, Some(&pod)).expect("limited");
        l.bound([(V, ceiling(500))].into());
        settle(&l);
        assert_eq!(b.set(), "253:3 rbps=1048576 wbps=1048576 riops=200 wiops=9");
        l.bound([(V, ceiling(100))].into());
        settle(&l);
        assert!(b.set().ends_with("riops=100 wiops=9"), "{}", b.set());
        assert!(l.expire() > STAND / 2 && due(&l).is_empty(), "it was said just now");
        l.lock().said = Instant::now().checked_sub(STAND);
        l.expire();
        settle(&l);
        assert!(b.set().ends_with("riops=200 wiops=200"), "{}", b.set());
        // Of a plugin that ended meanwhile the next one knows nothing.
        l.bound([(V, ceiling(100))].into());
        settle(&l);
        let l = b.limiter();
        l.hear(V, limits(200));
        settle(&l);
        assert!(b.set().ends_with("riops=200 wiops=200"), "{}", b.set());
        // Somebody who comes while it stands.
        l.bound([(V, ceiling(50))].into());
        l.leave(V, at).expect("left");
        l.enter(V, at, dev, Some(&pod)).expect("limited");
        assert!(b.set().ends_with("riops=50 wiops=9"), "{}", b.set());
    }

    #[test]
    fn two_targets_in_one_group_share_its_limits() {
        let b = Bench::new();
        let l = b.limiter();
        let (dev, pod) = (DevNo::new(253, 3), Who::Pod(UID.into()));
        l.hear(V, limits(50));
        for at in ["/a", "/b"] {
            l.enter(V, Path::new(at), dev, Some(&pod)).expect("limited");
        }
        l.leave(V, Path::new("/a")).expect("left");
        assert!(b.set().contains("riops=50"), "one is still there");
        l.leave(V, Path::new("/b")).expect("left");
        assert!(b.set().contains("riops=max"));
    }

    #[test]
    fn nobody_gets_a_limited_volume_without_limits() {
        let b = Bench::new();
        let l = b.limiter();
        let (dev, at) = (DevNo::new(253, 3), Path::new("/target"));
        l.enter(V, at, dev, None).expect("no limits, nobody to limit");
        l.hear(V, limits(50));
        let nobody = l.enter(V, at, dev, None).expect_err("nobody");
        assert!(nobody.to_string().contains("podInfoOnMount"), "{nobody}");
        let other = Who::Pod("00000000-0000-0000-0000-000000000000".into());
        assert!(matches!(l.enter(V, at, dev, Some(&other)), Err(LimitError::NoGroup { .. })));
        for bad in ["", "..", "kubepods/../..", "/etc", "no/such"] {
            let e = l.enter(V, at, dev, Some(&Who::Group(bad.into()))).expect_err(bad);
            assert!(matches!(e, LimitError::BadGroup(_)), "{bad}: {e}");
        }
        fs::remove_file(b.pod().join("io.max")).expect("no controller");
        let group = Who::Group(format!("kubepods/burstable/pod{UID}"));
        let e = l.enter(V, at, dev, Some(&group)).expect_err("no controller");
        assert!(e.to_string().contains("subtree_control"), "{e}");
        assert!(l.lock().users.is_empty());
    }

    #[test]
    fn who_is_named() {
        let context =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert_eq!(Who::named(&context(&[])), None);
        assert_eq!(Who::named(&context(&[(POD_UID, "u")])), Some(Who::Pod("u".into())));
        assert_eq!(Who::named(&context(&[(POD_UID, "u"), (GROUP, "g")])), Some(Who::Group("g".into())));
        assert_eq!(Who::named(&context(&[(GROUP, "")])), None);
    }
}
