//! What a volume's users may do of I/O, as fio sees it: set before they begin, changed while they go on.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, basic::too_large_for_one, verifier::wait_alive};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
    },
    lab::Node,
    wait,
};

pub(super) const CASES: &[Case] = &[Case {
    name: "limits/live",
    about: "iops and throughput of a borrowed volume hold within 5 %, change live, and survive a restart of the plugin",
    run: live,
}];

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
