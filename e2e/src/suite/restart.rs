//! Plugins that are killed and started again, and nodes that are rebooted: I/O does not notice the one, and nothing is
//! exported after the other before the controller has confirmed it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Case, Run,
    basic::too_large_for_one,
    verifier::{Verifier, lender, wait_alive},
};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
    },
    lab::Node,
    wait,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "restart/plugin",
        about: "weir-node killed and started again under I/O, on consumer and lender: no error, same tables",
        run: Run::On(plugin),
    },
    Case {
        name: "restart/controller",
        about: "the controller killed and started again under I/O: no error, same tables",
        run: Run::On(controller),
    },
    Case {
        name: "restart/plugin-during-stage",
        about: "weir-node killed at each of its crash points; the call made again succeeds",
        run: Run::On(during_stage),
    },
    Case {
        name: "restart/reboot",
        about: "after a reboot a lender exports nothing before the controller has confirmed it",
        run: Run::On(reboot),
    },
];

fn borrowing(c: &Cluster, name: &str) -> Result<(String, String, u8)> {
    let bytes = too_large_for_one(c);
    let id =
        c.csi().create(&NewVolume { name, bytes, usage: Use::Block, beside: Some("n1"), parameters: &[] })?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let lender = lender(c, &id, 1)?;
    Ok((id, dev, lender))
}

/// Every device of ours in a node with its number and table, and everything that it exports.
fn kernel_state(node: &Node) -> Result<String> {
    let tables = node.run_ok("dmsetup table | grep ^weir- | sort; dmsetup info -c --noheadings -o name,major,minor,open | grep ^weir- | sort")?;
    let exports = node.run_ok(
        "cd /sys/kernel/config/nvmet && ls -d subsystems/*/namespaces/* ports/*/subsystems/* 2>/dev/null | sort; true",
    )?;
    Ok(format!("{tables}\n{exports}"))
}

/// Runs `act` under verified I/O and demands that no kernel state changed.
fn unnoticed(c: &Cluster, name: &str, seed: u64, act: impl Fn(&Verifier, u8) -> Result<()>) -> Result<()> {
    let (id, dev, lender) = borrowing(c, name)?;
    let v = Verifier::start(c, 1, name, &dev, seed)?;
    v.wait_writes(64)?;
    let before = [kernel_state(c.node(1))?, kernel_state(c.node(lender))?];
    act(&v, lender)?;
    v.wait_writes(128)?;
    for (n, before) in [1, lender].into_iter().zip(before) {
        let after = kernel_state(c.node(n))?;
        ensure!(before == after, "the kernel of n{n} was\n{before}\nand is\n{after}");
    }
    v.finish()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn plugin(c: &Cluster) -> Result<()> {
    unnoticed(c, "restart-plugin", 61, |v, lender| {
        for n in [1, lender] {
            c.kill_plugin(n)?;
            // Above the lease: the controller takes the node for dead, and still nothing may happen to it.
            v.goes_on_for(Duration::from_secs(7))?;
            c.start_plugin(n, None)?;
            wait_alive(c, n, true)?;
            v.goes_on_for(Duration::from_secs(3))?;
        }
        Ok(())
    })
}

fn controller(c: &Cluster) -> Result<()> {
    unnoticed(c, "restart-controller", 62, |v, lender| {
        c.kill_controller()?;
        v.goes_on_for(Duration::from_secs(7))?;
        c.start_controller(None)?;
        for n in [1, lender] {
            wait_alive(c, n, true)?;
        }
        v.goes_on_for(Duration::from_secs(5)).map(drop)
    })
}

/// Kills the plugin of n1 at `point` of `call`, starts it again, and makes the call again.
fn die_at<T>(c: &Cluster, point: &str, call: impl Fn() -> Result<T>) -> Result<T> {
    c.kill_plugin(1)?;
    c.start_plugin(1, Some(point))?;
    if call().is_ok() {
        bail!("weir-node passed {point} alive");
    }
    wait::until(&format!("weir-node to die at {point}"), PATIENCE, || Ok(c.plugin_ended(1)?.then_some(())))?;
    println!("   died at {point}");
    c.start_plugin(1, None)?;
    wait::until_ok(&format!("the call that died at {point}"), PATIENCE, call)
}

fn during_stage(c: &Cluster) -> Result<()> {
    let make = |name, bytes, usage| {
        c.csi().create(&NewVolume { name, bytes, usage, beside: Some("n1"), parameters: &[] })
    };
    let block = make("stage-block", 64 << 20, Use::Block)?;
    let fs = Use::Fs("ext4");
    let mount = make("stage-mount", 128 << 20, fs)?;
    let stage = |id: &str, usage| -> Result<()> { Ok(c.node_csi(1)?.stage(id, usage)?) };
    let publish = |id: &str, usage| -> Result<String> { Ok(c.node_csi(1)?.publish(id, usage)?) };

    die_at(c, "stage.attached", || stage(&block, Use::Block))?;
    let dev = die_at(c, "publish.target", || publish(&block, Use::Block))?;
    c.node(1).run_ok(&format!("dd if=/dev/urandom of={dev} bs=1M count=4 oflag=direct status=none"))?;
    c.node_csi(1)?.detach(&block)?;

    die_at(c, "stage.formatted", || stage(&mount, fs))?;
    let dir = publish(&mount, fs)?;
    c.node(1).run_ok(&format!("echo kept >{dir}/file && sync -f {dir}/file"))?;
    c.node_csi(1)?.unpublish(&mount)?;
    die_at(c, "unstage.unmounted", || Ok(c.node_csi(1)?.unstage(&mount)?))?;
    die_at(c, "stage.mounted", || stage(&mount, fs))?;
    let dir = publish(&mount, fs)?;
    let kept = c.node(1).run_ok(&format!("cat {dir}/file"))?;
    ensure!(kept == "kept", "the file system was made again: {kept:?}");
    c.node_csi(1)?.detach(&mount)?;
    for id in [block, mount] {
        c.csi().delete(&id)?;
    }
    Ok(())
}

/// What a node offers on the storage network.
fn exported(node: &Node) -> Result<String> {
    node.run_ok("ls -d /sys/kernel/config/nvmet/ports/*/subsystems/* 2>/dev/null; true")
}

fn reboot(c: &Cluster) -> Result<()> {
    let (id, dev, lender) = borrowing(c, "reboot")?;
    let v = Verifier::start(c, 1, "reboot", &dev, 63)?;
    let node = c.node(lender);
    ensure!(!exported(node)?.is_empty(), "the lender exports nothing to begin with");
    c.kill_controller()?;
    node.kill()?;
    c.revive(lender)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        let out = exported(node)?;
        ensure!(out.is_empty(), "exported without the controller's word: {out}");
    }
    v.wait_stalled(Duration::from_secs(5))?;
    c.start_controller(None)?;
    wait::until("the export to come back", PATIENCE, || Ok((!exported(node)?.is_empty()).then_some(())))
        .with_context(|| c.logs())?;
    v.wait_writes(128)?;
    v.finish()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}
