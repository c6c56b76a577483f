//! The agent on two real nodes, against a controller that says what the test says. Slow, so run by
//! `cargo build -p e2e --bins; cargo build -p node-plugin --examples; cargo test -p node-plugin --test lab_agent -- --ignored`.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)] // helpers of tests are tests

mod script;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use csi_proto::node as proto;
use e2e::{
    lab::{Background, Lab, Node},
    wait,
};
use pool::{
    ids::{DiskId, VolumeId},
    names::DmRole,
};
use script::{PATIENCE, Script};

const EXTENT: u64 = 4 << 20;
const VOLUME: VolumeId = VolumeId::from_u128(0xa1);

fn disk(node: u8) -> String {
    DiskId::from_u128(0xd0 + u128::from(node)).to_string()
}

fn top() -> String {
    format!("/dev/mapper/{}", DmRole::Top(VOLUME).dm_name())
}

/// Eight extents on the disk of n1, eight on that of n2; then `more` on that of n1.
fn map(more: u64) -> proto::VolumeMap {
    let segment = |start, count, node, first| proto::Segment {
        start,
        count,
        legs: vec![proto::Leg { disk: disk(node), first }],
        stripe_chunk: 0,
        spare: None,
    };
    let mut segments = vec![segment(0, 8, 1, 4), segment(8, 8, 2, 2)];
    if more > 0 {
        segments.push(segment(16, more, 1, 20));
    }
    proto::VolumeMap { name: "v".into(), extent_size: EXTENT, segments }
}

struct World {
    lab: Lab,
    script: Script,
    more: u64,
}

impl World {
    fn start_agent(&self, n: u8) -> Background {
        let node = self.lab.node(n);
        let cmd = format!(
            "/lab/bin/agent-node n{n} http://10.0.2.2:{} {}:4420 /var/lib/weir {}={}",
            self.script.address.port(),
            node.storage_ip(),
            disk(n),
            node.disk(0)
        );
        node.spawn("agent", &cmd).unwrap()
    }

    fn remote(&self, host: u8) -> proto::Remote {
        proto::Remote {
            disk: disk(host),
            host: format!("n{host}"),
            address: self.lab.node(host).storage_ip().to_string(),
            port: 4420,
            ready: true,
        }
    }

    /// A goal for the consumer `n`, whose other disk is on `host`.
    fn attach(&self, n: u8, epoch: u64, role: proto::AttachmentRole) {
        let goal = proto::AttachmentGoal {
            volume: VOLUME.to_string(),
            epoch,
            role: role.into(),
            map: Some(map(self.more)),
            remotes: vec![self.remote(3 - n)],
            limits: None,
        };
        self.script.attach(&format!("n{n}"), goal);
    }

    /// A goal for the export of the other node's disk to `n`.
    fn export(&self, n: u8, epoch: u64, state: proto::ExportState) {
        let goal = proto::ExportGoal {
            volume: VOLUME.to_string(),
            disk: disk(3 - n),
            consumer: format!("n{n}"),
            epoch,
            state: state.into(),
            map: Some(map(self.more)),
        };
        self.script.export(&format!("n{}", 3 - n), goal);
    }

    fn until_export(&self, n: u8, epoch: u64, state: proto::ExportState) -> Instant {
        self.script.until_export(&disk(3 - n), &format!("n{n}"), epoch, state)
    }

    fn until_state(&self, n: u8, epoch: u64, state: proto::AttachmentState) -> Instant {
        self.script.until_attachment(&format!("n{n}"), epoch, state.as_str_name(), |o| o.state() == state).0
    }

    fn node(&self, n: u8) -> &Node {
        self.lab.node(n)
    }
}

/// Writes `text` at a byte offset of a multiple of 4096, and says so when it is done.
fn write(text: &str, at: u64) -> String {
    format!(
        "printf '%-4096s' '{text}' >/tmp/w.$$ && dd if=/tmp/w.$$ of={} bs=4096 seek={} oflag=direct conv=notrunc status=none",
        top(),
        at / 4096
    )
}

fn read(node: &Node, at: u64) -> String {
    let cmd = format!("dd if={} bs=4096 skip={} count=1 iflag=direct status=none", top(), at / 4096);
    node.run_ok(&cmd).unwrap().trim_end().to_owned()
}

const REMOTE_OF_N1: u64 = 9 * EXTENT;

#[test]
#[ignore = "boots QEMU nodes"]
fn a_volume_lives_moves_and_survives() {
    let rt = tokio::runtime::Runtime::new().unwrap();
    let script = Script::start(&rt, 5);
    let agent: PathBuf =
        std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/agent-node");
    let lab = Lab::builder().nodes(2).disks(1).disk_size(256 << 20).program(agent).start().unwrap();
    let mut w = World { lab, script, more: 0 };
    let agents = [w.start_agent(1), w.start_agent(2)];

    opens(&w);
    cuts_over(&w);
    conflicts(&w);
    w.more = 2;
    grows(&w);
    plugin_restarts(&w, &agents[1]);
    lender_reboots(&w);
    goes(&w);
}

fn opens(w: &World) {
    let t = Instant::now();
    w.export(1, 1, proto::ExportState::ExportServing);
    w.attach(1, 1, proto::AttachmentRole::RoleWriter);
    w.until_export(1, 1, proto::ExportState::ExportServing);
    let open = w.until_state(1, 1, proto::AttachmentState::AttachmentOpen);
    println!("attach over two nodes: {:?}", open - t);
    let n1 = w.node(1);
    assert_eq!(n1.run_ok(&format!("blockdev --getsize64 {}", top())).unwrap(), (16 * EXTENT).to_string());
    for at in [0, 4 * EXTENT, REMOTE_OF_N1, 16 * EXTENT - 4096] {
        n1.run_ok(&write(&format!("at {at}"), at)).unwrap();
        assert_eq!(read(n1, at), format!("at {at}"));
    }
    let on = |n: u8, extent: u64| {
        let at = (1 << 20) + extent * EXTENT;
        let cmd = format!(
            "dd if={} bs=4096 skip={} count=1 iflag=direct status=none",
            w.node(n).disk(0),
            at / 4096
        );
        w.node(n).run_ok(&cmd).unwrap().trim_end().to_owned()
    };
    assert_eq!(on(1, 4), "at 0", "local extents lie where the map says");
    assert_eq!(on(2, 3), format!("at {REMOTE_OF_N1}"), "remote extents lie where the map says");
}

/// n1 writes, n2 stands guard, n2's first write moves the volume.
fn cuts_over(w: &World) {
    w.export(2, 2, proto::ExportState::ExportServing);
    w.export(1, 2, proto::ExportState::ExportServing);
    w.attach(1, 2, proto::AttachmentRole::RoleWriter);
    w.attach(2, 2, proto::AttachmentRole::RoleGuard);
    w.until_state(2, 2, proto::AttachmentState::AttachmentGuarded);
    assert_eq!(read(w.node(2), REMOTE_OF_N1), format!("at {REMOTE_OF_N1}"), "a guard reads");

    let writer = w
        .node(2)
        .spawn("held", &format!("sh -c \"{}\"", write("moved", 4 * EXTENT).replace('$', "\\$")))
        .unwrap();
    let (held, _) = w.script.until_attachment("n2", 2, "held", |o| o.held);
    assert_eq!(w.node(2).ended(&writer).unwrap(), None, "the write is held");
    assert_eq!(read(w.node(1), 4 * EXTENT), format!("at {}", 4 * EXTENT), "and has not reached the disk");

    let t0 = Instant::now();
    w.attach(2, 3, proto::AttachmentRole::RoleGuard);
    w.attach(1, 3, proto::AttachmentRole::RoleFenceIfQuiet);
    let fenced = w.until_state(1, 3, proto::AttachmentState::AttachmentFenced);
    w.export(1, 3, proto::ExportState::ExportFenced);
    let exports = w.until_export(1, 3, proto::ExportState::ExportFenced);
    w.export(2, 4, proto::ExportState::ExportServing);
    w.attach(2, 4, proto::AttachmentRole::RoleWriter);
    let open = w.until_state(2, 4, proto::AttachmentState::AttachmentOpen);
    println!(
        "cut-over: decided {:?} after the report; source fenced {:?}, exports fenced {:?}, open {:?}",
        t0 - held,
        fenced - t0,
        exports - fenced,
        open - exports
    );
    let exit = wait::until("the held write to go through", PATIENCE, || w.node(2).ended(&writer)).unwrap();
    assert!(exit.code() == 0, "{exit:?}");
    assert_eq!(read(w.node(2), 4 * EXTENT), "moved");
    assert!(!w.node(1).exec(&write("too late", 0)).unwrap().ok(), "the source is fenced");
    w.attach(1, 4, proto::AttachmentRole::RoleAbsent);
    w.until_state(1, 4, proto::AttachmentState::AttachmentAbsent);
    w.export(1, 4, proto::ExportState::ExportAbsent);
    w.until_export(1, 4, proto::ExportState::ExportAbsent);
    w.until_state(2, 4, proto::AttachmentState::AttachmentOpen);
    let left = w.node(2).run_ok("ls /dev/mapper").unwrap();
    assert!(!left.contains("-map") && !left.contains("-wr"), "the guard is gone: {left}");
    wait::until("n1 to let go of its connection", PATIENCE, || {
        Ok(w.node(1)
            .run_ok("ls /dev/mapper; ls /sys/class/nvme")?
            .lines()
            .all(|l| l == "control")
            .then_some(()))
    })
    .unwrap();
}

/// n2 goes on writing while n1's guard holds a write: n2 wins, n1's write fails and never reaches the disk.
fn conflicts(w: &World) {
    w.export(1, 5, proto::ExportState::ExportServing);
    w.export(2, 5, proto::ExportState::ExportServing);
    w.attach(2, 5, proto::AttachmentRole::RoleWriter);
    w.attach(1, 5, proto::AttachmentRole::RoleGuard);
    w.until_state(1, 5, proto::AttachmentState::AttachmentGuarded);
    let busy = w
        .node(2)
        .spawn(
            "busy",
            &format!("dd if=/dev/zero of={} bs=4096 oflag=direct seek=64 count=4000 conv=notrunc", top()),
        )
        .unwrap();
    let writer = w
        .node(1)
        .spawn("loser", &format!("sh -c \"{}\"", write("stray", 4 * EXTENT).replace('$', "\\$")))
        .unwrap();
    w.script.until_attachment("n1", 5, "held", |o| o.held);
    w.attach(1, 6, proto::AttachmentRole::RoleGuard);
    w.attach(2, 6, proto::AttachmentRole::RoleFenceIfQuiet);
    w.script.until_attachment("n2", 6, "busy", |o| o.busy);
    w.attach(2, 7, proto::AttachmentRole::RoleWriter);
    w.attach(1, 7, proto::AttachmentRole::RoleAbsent);
    w.until_state(2, 7, proto::AttachmentState::AttachmentOpen);
    w.until_state(1, 7, proto::AttachmentState::AttachmentAbsent);
    let exit = wait::until("the stray write to fail", PATIENCE, || w.node(1).ended(&writer)).unwrap();
    assert!(exit.code() != 0);
    let exit = wait::until("the writer that won", PATIENCE, || w.node(2).ended(&busy)).unwrap();
    assert!(exit.code() == 0, "the source never noticed");
    assert_eq!(read(w.node(2), 4 * EXTENT), "moved");
    w.export(1, 7, proto::ExportState::ExportAbsent);
    w.until_export(1, 7, proto::ExportState::ExportAbsent);
}

fn grows(w: &World) {
    w.export(2, 8, proto::ExportState::ExportServing);
    w.attach(2, 8, proto::AttachmentRole::RoleWriter);
    w.script.until_attachment("n2", 8, "larger", |o| o.size_bytes == 18 * EXTENT);
    let n2 = w.node(2);
    n2.run_ok(&write("grown", 17 * EXTENT)).unwrap();
    assert_eq!(read(n2, 17 * EXTENT), "grown");
    assert_eq!(read(n2, 4 * EXTENT), "moved");
}

/// The plugin dies and comes back while I/O runs: nothing is touched.
fn plugin_restarts(w: &World, agent: &Background) {
    let n2 = w.node(2);
    let busy = n2
        .spawn(
            "busy2",
            &format!("dd if=/dev/zero of={} bs=4096 oflag=direct seek=64 count=8000 conv=notrunc", top()),
        )
        .unwrap();
    n2.signal(agent, "KILL").unwrap();
    wait::until("the agent to be gone", PATIENCE, || n2.ended(agent)).unwrap();
    let before = w.script.state.lock().unwrap().hellos.len();
    let t = Instant::now();
    w.start_agent(2);
    w.script.until("its session", |s| (s.hellos.len() > before).then_some(()));
    let (open, o) = w
        .script
        .until_attachment("n2", 8, "open again", |o| o.state() == proto::AttachmentState::AttachmentOpen);
    println!("restart: open reported {:?} after the start", open.saturating_duration_since(t));
    assert_eq!(o.size_bytes, 18 * EXTENT);
    let hello = w.script.state.lock().unwrap().hellos.last().unwrap().clone();
    assert_eq!(hello.term_seen, 5, "the term survives");
    let log = std::fs::read_to_string(n2.log("agent")).unwrap();
    let tail = log.rsplit("read back from the kernel").next().unwrap();
    assert!(!tail.contains(" act "), "nothing was touched: {tail}");
    let exit = wait::until("the writer", PATIENCE, || n2.ended(&busy)).unwrap();
    assert!(exit.code() == 0);
}

fn lender_reboots(w: &World) {
    let n2 = w.node(2);
    w.node(1).kill().unwrap();
    let writer =
        n2.spawn("waits", &format!("sh -c \"{}\"", write("waited", EXTENT).replace('$', "\\$"))).unwrap();
    w.script.until_attachment("n2", 8, "queueing", |o| o.queueing == [disk(1)]);
    assert_eq!(n2.ended(&writer).unwrap(), None, "I/O waits for the lender");
    w.node(1).start().unwrap();
    let t = Instant::now();
    w.start_agent(1);
    let exit = wait::until("the write to go through", PATIENCE, || n2.ended(&writer)).unwrap();
    println!("lender back: the write went through {:?} after its agent's start", t.elapsed());
    assert!(exit.code() == 0);
    w.script.until_attachment("n2", 8, "paths", |o| o.queueing.is_empty());
    assert_eq!(read(n2, EXTENT), "waited");
    assert_eq!(read(n2, 17 * EXTENT), "grown");
}

/// The device is in use, and its lender gone: it goes all the same, with an error for whoever has it open.
fn goes(w: &World) {
    let n2 = w.node(2);
    w.node(1).kill().unwrap();
    let writer =
        n2.spawn("fails", &format!("sh -c \"{}\"", write("lost", EXTENT).replace('$', "\\$"))).unwrap();
    w.script.until_attachment("n2", 8, "queueing", |o| !o.queueing.is_empty());
    let t = Instant::now();
    w.attach(2, 9, proto::AttachmentRole::RoleAbsent);
    let gone = w.until_state(2, 9, proto::AttachmentState::AttachmentAbsent);
    println!("gone with a dead lender and a queued write: {:?}", gone - t);
    let exit = wait::until("the queued write to fail", PATIENCE, || n2.ended(&writer)).unwrap();
    assert!(exit.code() != 0);
    wait::until("the connection to go", Duration::from_secs(90), || {
        Ok(n2.run_ok("ls /dev/mapper; ls /sys/class/nvme")?.lines().all(|l| l == "control").then_some(()))
    })
    .unwrap();
}
