//! The services over a kernel and an agent that exist in memory only. Between two calls of a test the service is
//! made anew: whatever it knows must come from the kernel.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use csi_proto::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
    node_server::Node, volume_capability as vc,
};
use kernel::{
    DevNo,
    mount::{FsKind, FsStats, Mount, Probe},
};
use pool::{
    ids::{Epoch, VolumeId},
    units::Bytes,
};
use tokio::sync::watch;
use tonic::{Code, Request, Status};

use super::{
    AccessMode, Faults, NodeService, NodeSettings, Point, Tools,
    tools::{ToolError, Top},
};
use crate::volumes_api::{AttachMode, Attached, Standing, VolumeState, Volumes, VolumesError};

const V: VolumeId = VolumeId::from_u128(0x77);
const DEV: DevNo = DevNo::new(253, 7);

/// What there is of the kernel.
struct Machine {
    attached: bool,
    size: u64,
    content: Probe,
    fs_bytes: u64,
    mounts: Vec<Mount>,
    open_elsewhere: bool,
    log: Vec<&'static str>,
    state: watch::Sender<VolumeState>,
    attach_error: Option<VolumesError>,
    hang: Option<Duration>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Machine>>);

impl Fake {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Machine {
            attached: false,
            size: 64 << 20,
            content: Probe::Blank,
            fs_bytes: 0,
            mounts: Vec::new(),
            open_elsewhere: false,
            log: Vec::new(),
            state: watch::Sender::default(),
            attach_error: None,
            hang: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }

    fn done(&self, what: &'static str) {
        self.lock().log.push(what);
    }

    fn count(&self, what: &str) -> usize {
        self.lock().log.iter().filter(|l| **l == what).count()
    }

    fn service(&self, faults: Faults) -> NodeService {
        let settings =
            NodeSettings { node: "n1".parse().unwrap(), topology: Default::default(), max_volumes: 300 };
        let nowhere = Path::new("/nonexistent");
        let limits = Arc::new(crate::limits::Limiter::open(nowhere, nowhere, "boot").unwrap());
        NodeService::new(settings, Arc::new(self.clone()), Arc::new(self.clone()), limits, faults)
    }
}

fn mount(dev: DevNo, root: &str, at: &Path, fs: &str, options: &[String]) -> Mount {
    let options: Vec<String> =
        if options.iter().any(|o| o == "ro") { vec!["ro".into()] } else { vec!["rw".into()] };
    Mount {
        id: 1,
        parent: 1,
        dev,
        root: root.into(),
        mount_point: at.to_owned(),
        options: options.clone(),
        fs_type: fs.into(),
        source: "fake".into(),
        super_options: options,
    }
}

#[tonic::async_trait]
impl Volumes for Fake {
    async fn attach(&self, volume: VolumeId, _: AttachMode, _: Instant) -> Result<Attached, VolumesError> {
        self.done("attach");
        let hang = self.lock().hang;
        if let Some(d) = hang {
            tokio::time::sleep(d).await;
        }
        let mut m = self.lock();
        if let Some(e) = m.attach_error.take() {
            return Err(e);
        }
        if volume != V {
            return Err(VolumesError::Refused(Box::new(Status::not_found("no such volume"))));
        }
        m.attached = true;
        Ok(Attached {
            epoch: Epoch::new(1),
            size: Bytes::new(m.size),
            fs_type: String::new(),
            device: "/dev/mapper/top".into(),
            guarded: false,
        })
    }

    async fn detach(&self, volume: VolumeId, _: Instant) -> Result<(), VolumesError> {
        self.done("detach");
        if volume == V {
            let mut m = self.lock();
            assert!(!m.mounts.iter().any(|m| m.dev == DEV), "detached while mounted");
            m.attached = false;
        }
        Ok(())
    }

    fn observe(&self, _: VolumeId) -> watch::Receiver<VolumeState> {
        self.lock().state.subscribe()
    }
}

impl Tools for Fake {
    fn top(&self, volume: VolumeId) -> Result<Option<Top>, ToolError> {
        let m = self.lock();
        Ok((m.attached && volume == V).then(|| Top {
            dev: DEV,
            path: "/dev/mapper/top".into(),
            size: Bytes::new(m.size),
            open_count: 0,
            read_only: false,
        }))
    }
    fn mounts(&self) -> Result<Vec<Mount>, ToolError> {
        Ok(self.lock().mounts.clone())
    }
    fn device_at(&self, path: &Path) -> Result<Option<DevNo>, ToolError> {
        let m = self.lock();
        let bound = m.mounts.iter().any(|m| m.mount_point == path && m.root == Path::new("/mapper/top"));
        Ok((bound || path == Path::new("/dev/mapper/top")).then_some(DEV))
    }
    fn fs_alive(&self, _: DevNo) -> bool {
        let m = self.lock();
        m.open_elsewhere || m.mounts.iter().any(|m| m.dev == DEV)
    }
    fn probe(&self, _: &Path, _: Duration) -> Result<Probe, ToolError> {
        Ok(self.lock().content.clone())
    }
    fn make_fs(&self, _: &Path, kind: FsKind, _: Duration) -> Result<(), ToolError> {
        self.done("mkfs");
        let mut m = self.lock();
        assert_eq!(m.content, Probe::Blank, "formatted over something");
        m.content = Probe::Fs(kind);
        m.fs_bytes = m.size;
        Ok(())
    }
    fn check(&self, _: &Path, _: FsKind, _: Duration) -> Result<(), ToolError> {
        assert!(!self.lock().mounts.iter().any(|m| m.dev == DEV), "checked while mounted");
        self.done("fsck");
        Ok(())
    }
    fn mount(&self, _: &Path, target: &Path, kind: FsKind, options: &[String]) -> Result<(), ToolError> {
        self.done("mount");
        self.lock().mounts.push(mount(DEV, "/", target, kind.as_str(), options));
        Ok(())
    }
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), ToolError> {
        self.done("bind");
        let ro = Vec::from_iter(read_only.then(|| "ro".to_owned()));
        let mut m = self.lock();
        let new = match m.mounts.iter().find(|m| m.mount_point == source).cloned() {
            Some(fs) => {
                Mount { super_options: fs.super_options, ..mount(DEV, "/", target, &fs.fs_type, &ro) }
            }
            None => mount(DevNo::new(0, 5), "/mapper/top", target, "devtmpfs", &ro),
        };
        m.mounts.push(new);
        Ok(())
    }
    fn unmount(&self, path: &Path) -> Result<(), ToolError> {
        self.done("unmount");
        self.lock().mounts.retain(|m| m.mount_point != path);
        Ok(())
    }
    fn fs_bytes(&self, _: &Path, _: FsKind) -> Result<Option<u64>, ToolError> {
        Ok(Some(self.lock().fs_bytes))
    }
    fn grow(&self, _: &Path, at: &Path, _: FsKind, _: Duration) -> Result<(), ToolError> {
        self.done("grow");
        let mut m = self.lock();
        assert!(m.mounts.iter().any(|m| m.mount_point == at && !m.is_read_only()));
        m.fs_bytes = m.size;
        Ok(())
    }
    fn usage(&self, _: &Path) -> Result<FsStats, ToolError> {
        Ok(FsStats { total: 100, available: 60, used: 30, inodes: 10, inodes_free: 4 })
    }
}

/// A node with its folders.
struct Bench {
    fake: Fake,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { fake: Fake::new(), dir: tempfile::tempdir().unwrap() }
    }
    fn path(&self, name: &str) -> PathBuf {
        std::fs::canonicalize(self.dir.path()).unwrap().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
    async fn stage_with(&self, faults: Faults, cap: &VolumeCapability) -> Result<(), Status> {
        let r = NodeStageVolumeRequest {
            volume_id: V.to_string(),
            staging_target_path: self.text("staging"),
            volume_capability: Some(cap.clone()),
            ..Default::default()
        };
        self.fake.service(faults).node_stage_volume(Request::new(r)).await.map(drop)
    }
    async fn stage(&self, cap: &VolumeCapability) -> Result<(), Status> {
        self.stage_with(Faults::None, cap).await
    }
    async fn unstage(&self) -> Result<(), Status> {
        let r =
            NodeUnstageVolumeRequest { volume_id: V.to_string(), staging_target_path: self.text("staging") };
        self.fake.service(Faults::None).node_unstage_volume(Request::new(r)).await.map(drop)
    }
    async fn publish(&self, target: &str, cap: &VolumeCapability, readonly: bool) -> Result<(), Status> {
        let r = NodePublishVolumeRequest {
            volume_id: V.to_string(),
            staging_target_path: self.text("staging"),
            target_path: self.text(target),
            volume_capability: Some(cap.clone()),
            readonly,
            ..Default::default()
        };
        self.fake.service(Faults::None).node_publish_volume(Request::new(r)).await.map(drop)
    }
    async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let r = NodeUnpublishVolumeRequest { volume_id: V.to_string(), target_path: self.text(target) };
        self.fake.service(Faults::None).node_unpublish_volume(Request::new(r)).await.map(drop)
    }
}

fn block(mode: AccessMode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(vc::AccessType::Block(vc::BlockVolume {})),
        access_mode: Some(vc::AccessMode { mode: mode as i32 }),
    }
}

fn fs(mode: AccessMode, kind: &str) -> VolumeCapability {
    let m = vc::MountVolume { fs_type: kind.into(), ..Default::default() };
    VolumeCapability {
        access_type: Some(vc::AccessType::Mount(m)),
        access_mode: Some(vc::AccessMode { mode: mode as i32 }),
    }
}

fn code(r: Result<(), Status>) -> Code {
    r.map_or_else(|e| e.code(), |()| Code::Ok)
}

const RWO: AccessMode = AccessMode::SingleNodeWriter;

#[tokio::test]
async fn a_file_system_is_made_once_and_lives_through_stage_and_unstage() {
    let b = Bench::new();
    for _ in 0..2 {
        b.stage(&fs(RWO, "xfs")).await.unwrap();
        b.stage(&fs(RWO, "xfs")).await.unwrap();
        b.publish("t1", &fs(RWO, "xfs"), false).await.unwrap();
        b.publish("t1", &fs(RWO, "xfs"), false).await.unwrap();
        b.publish("t2", &fs(RWO, "xfs"), true).await.unwrap();
        assert_eq!(code(b.publish("t1", &fs(RWO, "xfs"), true).await), Code::AlreadyExists);
        assert_eq!(code(b.unstage().await), Code::FailedPrecondition, "still published");
        for t in ["t1", "t1", "t2", "never"] {
            b.unpublish(t).await.unwrap();
            assert!(!b.path(t).exists());
        }
        b.unstage().await.unwrap();
        b.unstage().await.unwrap();
        assert!(!b.fake.lock().attached);
    }
    assert_eq!(b.fake.count("mkfs"), 1);
    assert_eq!(b.fake.lock().content, Probe::Fs(FsKind::Xfs));
}

#[tokio::test]
async fn a_crash_at_any_point_of_stage_is_made_good_by_the_next_call() {
    for p in [Point::StageAttached, Point::StageFormatted, Point::StageMounted] {
        let b = Bench::new();
        assert_eq!(code(b.stage_with(Faults::Cut(p), &fs(RWO, "")).await), Code::Internal, "{p}");
        b.stage(&fs(RWO, "")).await.unwrap();
        assert_eq!(b.fake.lock().mounts.len(), 1, "{p}");
        assert_eq!(b.fake.lock().content, Probe::Fs(FsKind::Ext4), "ext4 is the default");
        assert_eq!((b.fake.count("mkfs"), b.fake.count("mount")), (1, 1), "{p}");
        b.unstage().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_formatted_over() {
    let b = Bench::new();
    b.fake.lock().content = Probe::Other("a gpt partition table".into());
    let e = b.stage(&fs(RWO, "ext4")).await.unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition);
    assert!(e.message().contains("gpt") && e.message().contains(&V.to_string()), "{}", e.message());
    b.fake.lock().content = Probe::Fs(FsKind::Xfs);
    assert_eq!(code(b.stage(&fs(RWO, "ext4")).await), Code::FailedPrecondition);
    b.fake.lock().content = Probe::Blank;
    assert_eq!(code(b.stage(&fs(AccessMode::MultiNodeReaderOnly, "")).await), Code::FailedPrecondition);
    assert_eq!(b.fake.count("mkfs"), 0);
}

#[tokio::test]
async fn readers_neither_check_nor_grow() {
    let b = Bench::new();
    b.fake.lock().content = Probe::Fs(FsKind::Ext4);
    let ro = fs(AccessMode::MultiNodeReaderOnly, "");
    b.stage(&ro).await.unwrap();
    b.stage(&ro).await.unwrap();
    assert_eq!(code(b.publish("t", &fs(RWO, ""), false).await), Code::FailedPrecondition);
    b.publish("t", &ro, false).await.unwrap();
    let m = b.fake.lock();
    assert!(m.mounts.iter().all(Mount::is_read_only));
    assert_eq!(m.log, ["attach", "mount", "attach", "bind"]);
}

#[tokio::test]
async fn a_volume_that_grew_while_it_was_away_is_grown_when_staged() {
    let b = Bench::new();
    b.fake.lock().content = Probe::Fs(FsKind::Ext4);
    b.fake.lock().fs_bytes = 32 << 20;
    b.stage(&fs(RWO, "")).await.unwrap();
    b.stage(&fs(RWO, "")).await.unwrap();
    assert_eq!(b.fake.count("grow"), 1);
}

#[tokio::test]
async fn a_file_system_that_turned_read_only_is_mounted_anew_when_nobody_uses_it() {
    let b = Bench::new();
    b.stage(&fs(RWO, "")).await.unwrap();
    b.fake.lock().mounts[0].super_options = vec!["ro".into()];
    b.stage(&fs(RWO, "")).await.unwrap();
    assert_eq!((b.fake.count("fsck"), b.fake.count("mount")), (2, 2));
    b.publish("t", &fs(RWO, ""), false).await.unwrap();
    b.fake.lock().mounts[0].super_options = vec!["ro".into()];
    assert_eq!(code(b.stage(&fs(RWO, "")).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn block_volumes_are_bound_as_device_nodes() {
    let b = Bench::new();
    let cap = block(AccessMode::MultiNodeMultiWriter);
    assert_eq!(code(b.publish("pub/t", &cap, false).await), Code::FailedPrecondition, "not staged");
    b.stage(&cap).await.unwrap();
    b.publish("pub/t", &cap, false).await.unwrap();
    b.publish("pub/t", &cap, false).await.unwrap();
    assert_eq!(code(b.publish("pub/t", &cap, true).await), Code::AlreadyExists);
    assert_eq!(code(b.publish("pub/t", &fs(RWO, ""), false).await), Code::FailedPrecondition);
    assert!(b.path("pub/t").is_file());
    b.publish("pub/t2", &cap, true).await.unwrap();
    assert_eq!(code(b.unstage().await), Code::FailedPrecondition);
    b.unpublish("pub/t").await.unwrap();
    b.unpublish("pub/t2").await.unwrap();
    b.unstage().await.unwrap();
    assert_eq!((b.fake.count("mkfs"), b.fake.count("bind")), (0, 2));
}

#[tokio::test]
async fn a_single_writer_is_published_once() {
    let b = Bench::new();
    for (cap, one, two) in [
        (block(AccessMode::SingleNodeSingleWriter), "p/a", "p/b"),
        (fs(AccessMode::SingleNodeSingleWriter, ""), "a", "b"),
    ] {
        b.stage(&cap).await.unwrap();
        b.publish(one, &cap, false).await.unwrap();
        b.publish(one, &cap, false).await.unwrap();
        assert_eq!(code(b.publish(two, &cap, false).await), Code::FailedPrecondition);
        b.unpublish(one).await.unwrap();
        b.publish(two, &cap, false).await.unwrap();
        b.unpublish(two).await.unwrap();
        b.unstage().await.unwrap();
    }
}

#[tokio::test]
async fn somebody_elses_mounts_are_left_alone() {
    let b = Bench::new();
    b.stage(&fs(RWO, "")).await.unwrap();
    let foreign = mount(DevNo::new(8, 1), "/", &b.path("t"), "ext4", &[]);
    b.fake.lock().mounts.push(foreign);
    std::fs::create_dir(b.path("t")).unwrap();
    assert_eq!(code(b.publish("t", &fs(RWO, ""), false).await), Code::AlreadyExists);
    assert_eq!(code(b.unpublish("t").await), Code::FailedPrecondition);
    assert_eq!(b.fake.count("unmount"), 0);
}

#[tokio::test]
async fn a_second_operation_on_the_same_volume_is_aborted() {
    let b = Bench::new();
    b.fake.lock().hang = Some(Duration::from_secs(60));
    let service = b.fake.service(Faults::None);
    let request = || {
        Request::new(NodeStageVolumeRequest {
            volume_id: V.to_string(),
            staging_target_path: "/staging".into(),
            volume_capability: Some(block(RWO)),
            ..Default::default()
        })
    };
    let first = tokio::spawn({
        let s = service.clone();
        async move { s.node_stage_volume(request()).await }
    });
    let until = Instant::now() + Duration::from_secs(30);
    while b.fake.count("attach") == 0 {
        assert!(Instant::now() < until);
        tokio::task::yield_now().await;
    }
    let e = service.node_stage_volume(request()).await.unwrap_err();
    assert_eq!(e.code(), Code::Aborted);
    first.abort();
    assert!(first.await.is_err());
    // The caller that went away took the lock along.
    b.fake.lock().hang = None;
    service.node_stage_volume(request()).await.unwrap();
}

#[tokio::test]
async fn the_agents_refusals_are_passed_on() {
    let b = Bench::new();
    let refused = || VolumesError::Refused(Box::new(Status::failed_precondition("held by n2")));
    b.fake.lock().attach_error = Some(refused());
    let e = b.stage(&fs(RWO, "")).await.unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition);
    assert!(e.message().contains("held by n2"), "{}", e.message());
    b.fake.lock().attach_error = Some(VolumesError::NoController { last: "refused".into() });
    assert_eq!(code(b.stage(&fs(RWO, "")).await), Code::Unavailable);
}

#[tokio::test]
async fn a_file_system_alive_in_another_namespace_is_not_detached() {
    let b = Bench::new();
    b.stage(&fs(RWO, "")).await.unwrap();
    b.fake.lock().open_elsewhere = true;
    assert_eq!(code(b.unstage().await), Code::DeadlineExceeded);
    assert_eq!(b.fake.count("detach"), 0);
    b.fake.lock().open_elsewhere = false;
    b.unstage().await.unwrap();
}

async fn stats(
    b: &Bench,
    volume: &str,
    path: &str,
) -> Result<csi_proto::csi::NodeGetVolumeStatsResponse, Status> {
    let r = NodeGetVolumeStatsRequest {
        volume_id: volume.into(),
        volume_path: path.into(),
        ..Default::default()
    };
    b.fake.service(Faults::None).node_get_volume_stats(Request::new(r)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn usage_and_condition() {
    let b = Bench::new();
    b.stage(&fs(RWO, "")).await.unwrap();
    b.publish("t", &fs(RWO, ""), false).await.unwrap();
    let s = stats(&b, &V.to_string(), &b.text("t")).await.unwrap();
    assert_eq!(
        s.usage.iter().map(|u| (u.total, u.used, u.available)).collect::<Vec<_>>(),
        [(100, 30, 60), (10, 6, 4)]
    );
    assert!(!s.volume_condition.unwrap().abnormal);
    let waiting = VolumeState {
        standing: Standing::Open,
        queueing: vec![pool::ids::DiskId::from_u128(5)],
        ..Default::default()
    };
    b.fake.lock().state.send_replace(waiting);
    let c = stats(&b, &V.to_string(), &b.text("t")).await.unwrap().volume_condition.unwrap();
    assert!(c.abnormal && c.message.contains("000000000005"), "{}", c.message);
    for (v, p) in
        [("nobody", b.text("t")), (&V.to_string(), b.text("x")), (&V.to_string(), "some/path".into())]
    {
        assert_eq!(stats(&b, v, &p).await.unwrap_err().code(), Code::NotFound, "{v} {p}");
    }
    assert_eq!(stats(&b, "", "/x").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(stats(&b, &V.to_string(), "").await.unwrap_err().code(), Code::InvalidArgument);
}

async fn expand(b: &Bench, path: &str, to: i64, cap: Option<VolumeCapability>) -> Result<i64, Status> {
    let r = NodeExpandVolumeRequest {
        volume_id: V.to_string(),
        volume_path: path.into(),
        capacity_range: (to != 0).then_some(CapacityRange { required_bytes: to, limit_bytes: 0 }),
        volume_capability: cap,
        ..Default::default()
    };
    let out = b.fake.service(Faults::None).node_expand_volume(Request::new(r)).await;
    out.map(|r| r.into_inner().capacity_bytes)
}

#[tokio::test]
async fn growth_waits_for_the_device_and_grows_the_file_system() {
    let b = Bench::new();
    b.stage(&fs(RWO, "xfs")).await.unwrap();
    b.publish("t", &fs(RWO, "xfs"), true).await.unwrap();
    let path = b.text("t");
    assert_eq!(expand(&b, &path, 0, None).await.unwrap(), 64 << 20, "nothing asked for");
    let grown = async {
        let until = Instant::now() + Duration::from_secs(30);
        while b.fake.lock().state.receiver_count() == 0 {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        let mut m = b.fake.lock();
        m.size = 128 << 20;
        m.state.send_replace(VolumeState { size: Bytes::new(m.size), ..Default::default() });
    };
    let (got, ()) = tokio::join!(expand(&b, &path, 100 << 20, None), grown);
    assert_eq!(got.unwrap(), 128 << 20);
    assert_eq!(b.fake.count("grow"), 1);
    assert_eq!(expand(&b, "some/path", 0, None).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(expand(&b, &b.text("no"), 0, None).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(expand(&b, &path, -1, None).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn block_growth_is_the_devices_alone() {
    let b = Bench::new();
    let cap = block(RWO);
    b.stage(&cap).await.unwrap();
    b.publish("p/t", &cap, false).await.unwrap();
    std::fs::create_dir_all(b.path("staging")).unwrap();
    assert_eq!(expand(&b, &b.text("p/t"), 64 << 20, None).await.unwrap(), 64 << 20);
    assert_eq!(expand(&b, &b.text("staging"), 0, Some(cap)).await.unwrap(), 64 << 20);
    assert_eq!(expand(&b, &b.text("staging"), 0, None).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(b.fake.count("grow"), 0);
}

#[tokio::test]
async fn what_is_missing_is_an_invalid_argument() {
    let b = Bench::new();
    let s = b.fake.service(Faults::None);
    let good = NodeStageVolumeRequest {
        volume_id: "odd".into(),
        staging_target_path: "/s".into(),
        volume_capability: Some(fs(RWO, "")),
        ..Default::default()
    };
    for (r, want) in [
        (NodeStageVolumeRequest { volume_id: String::new(), ..good.clone() }, Code::InvalidArgument),
        (
            NodeStageVolumeRequest { staging_target_path: String::new(), ..good.clone() },
            Code::InvalidArgument,
        ),
        (NodeStageVolumeRequest { volume_capability: None, ..good.clone() }, Code::InvalidArgument),
        (good.clone(), Code::NotFound),
    ] {
        assert_eq!(s.node_stage_volume(Request::new(r)).await.unwrap_err().code(), want);
    }
    let publish = NodePublishVolumeRequest {
        volume_id: V.to_string(),
        target_path: "/t".into(),
        volume_capability: Some(fs(RWO, "")),
        ..Default::default()
    };
    for (r, want) in [
        (NodePublishVolumeRequest { target_path: String::new(), ..publish.clone() }, Code::InvalidArgument),
        (NodePublishVolumeRequest { volume_capability: None, ..publish.clone() }, Code::InvalidArgument),
        (publish.clone(), Code::FailedPrecondition),
    ] {
        assert_eq!(s.node_publish_volume(Request::new(r)).await.unwrap_err().code(), want);
    }
    let unknown = || NodeUnstageVolumeRequest { volume_id: "odd".into(), staging_target_path: "/s".into() };
    s.node_unstage_volume(Request::new(unknown())).await.unwrap();
    let mut none = unknown();
    none.staging_target_path.clear();
    assert_eq!(s.node_unstage_volume(Request::new(none)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn secrets_and_mount_flags_reach_no_message() {
    let b = Bench::new();
    b.fake.lock().content = Probe::Other("x".into());
    let mut cap = fs(RWO, "");
    if let Some(vc::AccessType::Mount(m)) = &mut cap.access_type {
        m.mount_flags = vec!["password=hunter2".into()];
    }
    let e = b.stage(&cap).await.unwrap_err();
    assert!(!e.message().contains("hunter2"), "{}", e.message());
}
