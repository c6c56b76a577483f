//! What a volume's users may do of I/O, as fio sees it: set before they begin, changed while they go on; and what is left to them
//! while the owner of a disk that they borrow from waits for it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Case, Run,
    basic::too_large_for_one,
    drain::ask,
    verifier::{lender, wait_alive},
};
use crate::{
    cluster::{
        Cluster, PATIENCE, Spec,
        clients::{NewVolume, Use},
    },
    lab::{Background, Node},
    wait,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "limits/live",
        about: "iops and throughput of a borrowed volume hold within 5 %, change live, and survive a restart of the plugin",
        run: Run::On(live),
    },
    Case {
        name: "limits/lender",
        about: "while a lender's owner waits, what is borrowed is slowed, never below its floor, and freed afterwards",
        run: Run::Alone(owner_first),
    },
];

/// The control group of who uses the volume.
const GROUP: &str = "weir-limits";
/// What a limit may be exceeded by.
const MARGIN: f64 = 1.05;

/// What fio did in some seconds: writes and bytes a second.
fn fio(node: &Node, device: &str, block: &str) -> Result<(f64, f64)> {
    let text = node.run_ok(&format!(
        "echo $$ >/sys/fs/cgroup/{GROUP}/cgroup.procs && fio --name=w --filename={device} --rw=randwrite --bs={block} --direct=1 \
         --ioengine=libaio --iodepth=8 --time_based --runtime=8 --ramp_time=1 --output-format=json"
    ))?;
    let start = text.find('{').context("fio printed no JSON")?;
    let answer: Value = serde_json::from_str(&text[start..]).context("parse fio's answer")?;
    let job = &answer["jobs"][0];
    ensure!(job["error"] == 0, "fio failed: {job}");
    let number = |key: &str| job["write"][key].as_f64().with_context(|| format!("fio says no {key}"));
    Ok((number("iops")?, number("bw_bytes")?))
}

/// Waits until the plugin has set what the controller decided.
fn in_force(node: &Node, words: &str) -> Result<()> {
    wait::until(&format!("io.max to say {words:?}"), PATIENCE, || {
        let all = node.run_ok(&format!("cat /sys/fs/cgroup/{GROUP}/io.max"))?;
        Ok(all.lines().any(|l| l.ends_with(words)).then_some(()))
    })
}

fn live(c: &Cluster) -> Result<()> {
    let node = c.node(1);
    node.run_ok(&format!("mkdir -p /sys/fs/cgroup/{GROUP}"))?;
    let new = NewVolume {
        name: "limited",
        bytes: too_large_for_one(c),
        usage: Use::Block,
        beside: Some("n1"),
        parameters: &[("iops", "100")],
    };
    let id = c.csi().create(&new)?;
    c.node_csi(1)?.stage(&id, Use::Block)?;
    let device = c.node_csi(1)?.publish_for(&id, Use::Block, GROUP)?;
    let at_most = |what: &str, is: f64, limit: f64| {
        println!("   {what}: {is:.1} of {limit}");
        ensure!(is <= limit * MARGIN, "{what}: {is:.1} with a limit of {limit}");
        Ok(())
    };
    at_most("I/Os a second", fio(node, &device, "4k")?.0, 100.0)?;
    c.csi().modify(&id, &[("iops", "300")])?;
    in_force(node, "riops=300 wiops=300")?;
    let (more, _) = fio(node, &device, "4k")?;
    at_most("after a change", more, 300.0)?;
    ensure!(more > 100.0 * MARGIN, "{more:.1} I/Os a second: the former limit is still in force");
    c.kill_plugin(1)?;
    c.start_plugin(1, None)?;
    wait_alive(c, 1, true)?;
    c.csi().modify(&id, &[("throughput", "2Mi")])?;
    in_force(node, "rbps=2097152 wbps=2097152 riops=max wiops=max")?;
    at_most("bytes a second, the plugin started anew", fio(node, &device, "64k")?.1, f64::from(2 << 20))?;
    c.csi().modify(&id, &[])?;
    wait::until("no limit", PATIENCE, || {
        let all = node.run_ok(&format!("cat /sys/fs/cgroup/{GROUP}/io.max"))?;
        Ok(all.trim().is_empty().then_some(()))
    })?;
    let (free, _) = fio(node, &device, "4k")?;
    ensure!(free > 300.0 * MARGIN, "{free:.1} I/Os a second without any limit");
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    // Shells of this test have gone by now.
    node.run_ok(&format!("rmdir /sys/fs/cgroup/{GROUP}")).map(drop)
}

/// A fio that reads at random until it is told to end.
struct Load<'a> {
    node: &'a Node,
    pid_file: String,
    running: Background,
}

impl<'a> Load<'a> {
    /// From `offset` bytes of the device on, with what the shell is to do first.
    fn start(node: &'a Node, name: &str, device: &str, offset: u64, before: &str) -> Result<Self> {
        let pid_file = format!("/run/lab/{name}.pid");
        node.run_ok("mkdir -p /run/lab")?;
        let command = format!(
            "sh -c '{before} echo $$ >{pid_file}; exec fio --name=r --filename={device} --offset={offset} --rw=randread --bs=4k --direct=1 \
             --ioengine=libaio --iodepth=16 --time_based --runtime=1800'"
        );
        let running = node.spawn(name, &command)?;
        Ok(Self { node, pid_file, running })
    }

    fn end(self) -> Result<()> {
        self.node.run_ok(&format!("kill $(cat {})", self.pid_file))?;
        wait::until("fio to end", PATIENCE, || self.node.ended(&self.running)).map(drop)
    }
}

/// The only line of the group's limits, if there is one.
fn bound(node: &Node) -> Result<Option<String>> {
    let all = node.run_ok(&format!("cat /sys/fs/cgroup/{GROUP}/io.max"))?;
    Ok(all.lines().next().map(str::to_owned))
}

/// Reads a second of a device over some seconds in which the group's limits stayed the same, and how many it may do.
fn under_one_ceiling(node: &Node) -> Result<(f64, f64)> {
    wait::until("some seconds with one ceiling", PATIENCE, || {
        let Some(line) = bound(node)? else { return Ok(None) };
        let (dev, words) = line.split_once(' ').context("a line of io.max")?;
        let counted = node.run_ok(&format!(
            "up() {{ cut -d\\  -f1 /proc/uptime; }}; reads() {{ awk '{{print $1}}' /sys/dev/block/{dev}/stat; }}; up; reads; sleep 4; reads; up"
        ))?;
        if bound(node)?.as_deref() != Some(line.as_str()) {
            return Ok(None);
        }
        let n: Vec<f64> = counted.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        // The time is taken around the counts: what it takes to look makes the rate lower, not higher.
        let [t0, r0, r1, t1] = n[..] else { anyhow::bail!("counters: {counted:?}") };
        let riops = words.split_whitespace().find_map(|w| w.strip_prefix("riops="));
        let most = riops.and_then(|n| n.parse().ok()).with_context(|| format!("no riops in {line:?}"))?;
        Ok(Some(((r1 - r0) / (t1 - t0), most)))
    })
}

/// Bytes of a volume before the first that is not on `home`'s disk.
fn first_borrowed(c: &Cluster, id: &str, home: u8) -> Result<u64> {
    let (s, name) = (c.survey()?, c.node(home).name());
    let rows = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let row = c.volume_row(id)?.context("the volume's row")?;
    let disks = rows(&s["disks"]);
    let at_home = |seg: &Value| disks.iter().any(|d| d["disk"] == seg[2] && d["node"] == name.as_str());
    let away = rows(&row["segments"]).iter().filter(|s| !at_home(s)).filter_map(|s| s[0].as_u64()).min();
    Ok(away.context("nothing of it is borrowed")? * c.spec().extent_size)
}

fn owner_first() -> Result<()> {
    // The disks are what is scarce, not the emulated processors.
    let spec = Spec {
        nodes: 2,
        disk_iops: Some(600),
        trust_fresh_disks: true,
        lend_by_forecast: true,
        ..Spec::default()
    };
    let c = &Cluster::start(spec)?;
    let node = c.node(1);
    node.run_ok(&format!("mkdir -p /sys/fs/cgroup/{GROUP}"))?;
    let new = |name, bytes, beside| NewVolume {
        name,
        bytes,
        usage: Use::Block,
        beside: Some(beside),
        parameters: &[],
    };
    let id = c.csi().create(&new("borrower", too_large_for_one(c), "n1"))?;
    c.node_csi(1)?.stage(&id, Use::Block)?;
    let device = c.node_csi(1)?.publish_for(&id, Use::Block, GROUP)?;
    let n = lender(c, &id, 1)?;
    let own = c.csi().create(&new("own", 256 << 20, &c.node(n).name()))?;
    let own_device = c.node_csi(n)?.attach(&own, Use::Block)?;

    let borrowing = Load::start(
        node,
        "borrowing",
        &device,
        first_borrowed(c, &id, 1)?,
        &format!("echo $$ >/sys/fs/cgroup/{GROUP}/cgroup.procs;"),
    )?;
    let owner = Load::start(c.node(n), "owner", &own_device, 0, "")?;
    wait::until("what is borrowed to be slowed", 2 * PATIENCE, || bound(node))
        .with_context(|| ask(c, &["loans"]).unwrap_or_default())?;
    let (does, may) = under_one_ceiling(node)?;
    println!("   {does:.0} reads a second of {may:.0}");
    ensure!(does <= may * MARGIN, "{does:.1} reads a second with a ceiling of {may}");
    let said: Value = serde_json::from_str(&ask(c, &["-o", "json", "loans"])?).context("what weir says")?;
    println!("{}", ask(c, &["loans"])?);
    let loan = said.as_array().and_then(|l| l.iter().find(|l| l["volume"] == id.as_str()));
    let loan = loan.with_context(|| format!("weir names no such loan: {said}"))?;
    let (floor, ceiling) = (loan["floor"].as_f64(), loan["ceiling"].as_f64());
    ensure!(floor.is_some() && ceiling >= floor, "a ceiling below its floor, or none: {loan}");

    owner.end()?;
    wait::until("the ceiling to go, for the owner rests", 2 * PATIENCE, || {
        Ok(bound(node)?.is_none().then_some(()))
    })?;
    borrowing.end()?;
    for (n, id) in [(1, &id), (n, &own)] {
        c.node_csi(n)?.detach(id)?;
        c.csi().delete(id)?;
    }
    Ok(())
}
