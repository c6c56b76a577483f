//! The lab itself, on real nodes: slow, so run by `cargo test -p e2e --test lab -- --ignored`.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use e2e::lab::{Lab, Link};
use e2e::wait;
use std::time::{Duration, Instant};

const PING: &str = "busybox ping -c1 -W1 n2 >/dev/null";

#[test]
#[ignore = "boots QEMU nodes"]
fn nodes_take_commands_break_and_come_back() {
    let lab = Lab::builder().nodes(2).disks(1).disk_size(64 << 20).start().unwrap();
    let (n1, n2) = (lab.node(1), lab.node(2));

    assert_eq!(n1.run_ok("hostname").unwrap(), "n1");
    assert_eq!(n1.exec("echo out; echo err >&2; exit 3").unwrap().exit.code(), 3);
    assert!(format!("{:#}", n1.run_ok("echo why >&2; false").unwrap_err()).contains("why"));
    assert!(n1.exec("/no/such/thing").unwrap().exit.code() == 127);
    let start = Instant::now();
    assert!(n1.exec_within("sleep 100", Duration::from_secs(1)).is_err());
    assert!(start.elapsed() < Duration::from_secs(20));
    wait::until("the killed command to go", Duration::from_secs(20), || {
        Ok((!n1.exec("busybox pgrep -x sleep")?.ok()).then_some(()))
    })
    .unwrap();

    many_at_once(&lab);
    files_and_background(&lab);

    n1.run_ok(PING).unwrap();
    n2.cut(Link::Storage).unwrap();
    assert!(!n1.exec(PING).unwrap().ok(), "a cut link carries nothing");
    assert_eq!(n2.run_ok("hostname").unwrap(), "n2", "a cut node still takes commands");
    n2.heal(Link::Storage).unwrap();
    wait::until_ok("the healed link", Duration::from_secs(20), || n1.run_ok(PING)).unwrap();

    let boot = n1.running().unwrap().unwrap().boot_id;
    let mark = format!("echo mark | dd of={} conv=fsync,notrunc status=none", n1.disk(0));
    n1.run_ok(&format!("{mark} && echo kept >/var/lib/weir/kept && sync && touch /root/lost")).unwrap();
    n1.kill().unwrap();
    assert!(n1.running().unwrap().is_none());
    assert!(format!("{:#}", n1.exec("true").unwrap_err()).contains("n1 is down"));
    n1.start().unwrap();
    assert_ne!(n1.running().unwrap().unwrap().boot_id, boot);
    assert_eq!(n1.run_ok(&format!("head -c 4 {}; cat /var/lib/weir/kept", n1.disk(0))).unwrap(), "markkept");
    assert!(!n1.exec("test -e /root/lost").unwrap().ok(), "the root is fresh after a boot");

    let dir = lab.dir().to_owned();
    let pids: Vec<u32> = lab.nodes().iter().map(|n| n.running().unwrap().unwrap().qemu.pid).collect();
    drop(lab);
    assert!(!dir.exists());
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()));
}

fn many_at_once(lab: &Lab) {
    std::thread::scope(|scope| {
        for i in 0..40 {
            let node = lab.node(1 + i % 2);
            scope.spawn(move || {
                assert_eq!(node.run_ok(&format!("sleep 0.5; echo {i}")).unwrap(), i.to_string())
            });
        }
    });
}

fn files_and_background(lab: &Lab) {
    let n1 = lab.node(1);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761) as u8).collect();
    n1.write_file("/scratch/dir/file", &bytes).unwrap();
    assert!(n1.read_file("/scratch/dir/file").unwrap() == bytes);
    let server = n1.spawn("echo", "busybox nc -ll -p 5555 -e cat").unwrap();
    assert_eq!(n1.ended(&server).unwrap(), None);
    n1.signal(&server, "TERM").unwrap();
    let exit = wait::until("its end", Duration::from_secs(20), || n1.ended(&server)).unwrap();
    assert_eq!(exit.code(), 143);
    assert!(n1.log("echo").exists());
}
