//! Extents move under verified I/O: a disk or a node is emptied while its volumes are in use, and whoever dies in the
//! middle, nothing is lost and nothing is left behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tonic::Code;

use super::{
    Case, Run, check_pattern,
    crash::die_at,
    drain::ask,
    faults::{carry, carry_back},
    verifier::{Verifier, hosts, retry, third, wait_alive, wait_held},
    write_pattern,
};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
        find_volume,
    },
    wait,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "moves/live",
        about: "a disk is emptied under verified I/O, striped and linear; nothing new goes there",
        run: Run::On(live),
    },
    Case {
        name: "moves/idle",
        about: "a node is emptied of a volume that nobody uses, and a user gets it at once",
        run: Run::On(idle),
    },
    Case {
        name: "moves/migrate",
        about: "a live migration in the middle of a move: the move yields, and nothing is lost",
        run: Run::On(migrate),
    },
    Case {
        name: "moves/target-dies",
        about: "the host of the new place dies in the middle: I/O goes on, and the move goes elsewhere",
        run: Run::On(target_dies),
    },
    Case {
        name: "moves/plugin-dies",
        about: "the consumer's plugin dies in the middle of a move and comes back",
        run: Run::On(plugin_dies),
    },
    Case {
        name: "moves/source-carried",
        about: "a lender dies in the middle of a move and its disk comes to the consumer; the host of the new place dies too: I/O goes on",
        run: Run::On(source_carried),
    },
    Case { name: "moves/crash", about: "the controller dies at every step of a move", run: Run::On(crash) },
];

/// The pool disk of a node.
fn disk_of(c: &Cluster, n: u8) -> Result<String> {
    let name = c.node(n).name();
    let s = c.survey()?;
    let mut disks = s["disks"].as_array().into_iter().flatten();
    let row = disks.find(|d| d["node"] == name.as_str()).context("the node has no disk")?;
    Ok(row["disk"].as_str().unwrap_or_default().to_owned())
}

fn drained(s: &Value, n: &str) -> bool {
    let mut rows = s["drains"].as_array().into_iter().flatten().filter(|d| d["node"] == n).peekable();
    let empty = |d: &Value| d["left_bytes"] == 0 && d["wiping_bytes"] == 0;
    rows.peek().is_some() && rows.all(empty) && s["moves"].as_array().is_some_and(Vec::is_empty)
}

pub(crate) fn wait_drained(c: &Cluster, n: u8) -> Result<()> {
    let name = c.node(n).name();
    c.wait_survey(&format!("{name} to be empty"), |s| drained(s, &name)).map(drop)
}

/// Waits until a move of the volume is copying; where to.
pub(crate) fn wait_copying(c: &Cluster, id: &str) -> Result<u8> {
    let row = |s: &Value| {
        let mut rows = s["moves"].as_array().into_iter().flatten();
        rows.find(|m| m["volume"] == id && m["filling"] == true && m["copied"].as_u64() > Some(0)).cloned()
    };
    let s = c.wait_survey("a move to be under way", |s| row(s).is_some())?;
    let to = row(&s).map(|m| m["to"].clone()).unwrap_or_default();
    let disk = s["disks"].as_array().into_iter().flatten().find(|d| d["disk"] == to).context("its disk")?;
    let node = disk["node"].as_str().unwrap_or_default();
    node.strip_prefix('n').and_then(|n| n.parse().ok()).with_context(|| format!("{node} is no node of a lab"))
}

fn new(name: &str, mib: u64, usage: Use) -> NewVolume<'_> {
    NewVolume { name, bytes: mib << 20, usage, beside: Some("n1"), parameters: &[] }
}

/// Undoes the emptying of n1 and takes the volume away.
fn end(c: &Cluster, id: &str, held_by: &[u8]) -> Result<()> {
    c.csi().drain_node("n1", true)?;
    for n in held_by {
        c.node_csi(*n)?.detach(id)?;
    }
    c.csi().delete(id)?;
    Ok(())
}

fn live(c: &Cluster) -> Result<()> {
    let striped = NewVolume {
        parameters: &[("layout", "striped"), ("stripes", "2")],
        ..new("stripes", 64, Use::Block)
    };
    let all = [c.csi().create(&new("line", 96, Use::Block))?, c.csi().create(&striped)?];
    let mut verifiers = vec![];
    for (i, id) in all.iter().enumerate() {
        let dev = c.node_csi(1)?.attach(id, Use::Block)?;
        verifiers.push(Verifier::start(c, 1, &format!("live{i}"), &dev, 90 + i as u64)?);
    }
    let plan = c.csi().drain_dry(&disk_of(c, 1)?)?;
    ensure!(plan[0]["volumes"] == 2 && plan[0]["blocked"].as_array().is_some_and(Vec::is_empty), "{plan}");
    c.csi().drain_node("n1", false)?;
    wait_drained(c, 1)?;
    for id in &all {
        ensure!(!hosts(c, id)?.contains(&1), "{id} still lies on n1");
    }
    for v in verifiers {
        v.goes_on_for(Duration::from_secs(2))?;
        v.finish()?;
    }
    let other = c.csi().create(&new("other", 64, Use::Block))?;
    ensure!(!hosts(c, &other)?.contains(&1), "a volume was placed on a node that is being emptied");
    c.csi().delete(&other)?;
    for id in &all {
        c.node_csi(1)?.detach(id)?;
        c.csi().delete(id)?;
    }
    c.csi().drain_node("n1", true)?;
    Ok(())
}

fn idle(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&new("idle", 96, Use::Block))?;
    let csi = c.node_csi(1)?;
    let dev = csi.attach(&id, Use::Block)?;
    write_pattern(c.node(1), &dev, 48, 95)?;
    csi.detach(&id)?;
    c.csi().drain_node("n1", false)?;
    wait_copying(c, &id)?;
    // A user elsewhere takes it out of the mover's hands.
    let other = c.node_csi(3)?;
    let dev = retry("attach", &[Code::DeadlineExceeded], || other.attach(&id, Use::Block))?;
    wait_held(c, &id, "Attached", &[3])?;
    check_pattern(c.node(3), &dev, 48, 95)?;
    other.detach(&id)?;
    wait_drained(c, 1)?;
    wait_held(c, &id, "Detached", &[])?;
    ensure!(!hosts(c, &id)?.contains(&1), "it still lies on n1");
    let dev = other.attach(&id, Use::Block)?;
    check_pattern(c.node(3), &dev, 48, 95)?;
    end(c, &id, &[3])
}

fn migrate(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&new("move-migrate", 96, Use::SharedBlock))?;
    let source = c.node_csi(1)?.attach(&id, Use::SharedBlock)?;
    write_pattern(c.node(1), &source, 48, 96)?;
    c.csi().drain_node("n1", false)?;
    wait_copying(c, &id)?;
    c.node(1).run_ok(&super::migrate::write_block(&source, super::migrate::BLOCK, "while it moved"))?;
    // An attach may say that it needs longer than one request; the kubelet then asks again.
    let csi = c.node_csi(2)?;
    let target = retry("attach", &[Code::DeadlineExceeded], || csi.attach(&id, Use::SharedBlock))?;
    check_pattern(c.node(2), &target, 48, 96).context("reads on the target before the switch-over")?;
    let read = || super::migrate::read_block(c, 2, &target, super::migrate::BLOCK);
    ensure!(read()? == "while it moved", "a write during the move is lost");
    c.node(2).run_ok(&super::migrate::write_block(&target, super::migrate::BLOCK, "by the target"))?;
    wait_held(c, &id, "Attached", &[2])?;
    c.node_csi(1)?.detach(&id)?;
    wait_drained(c, 1)?;
    ensure!(read()? == "by the target", "the held write is lost");
    check_pattern(c.node(2), &target, 48, 96)?;
    end(c, &id, &[2])
}

fn target_dies(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&new("move-target", 96, Use::Block))?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "move-target", &dev, 97)?;
    c.csi().drain_node("n1", false)?;
    let target = wait_copying(c, &id)?;
    c.node(target).kill()?;
    v.goes_on_for(Duration::from_secs(5)).context("I/O after the death of the new place's host")?;
    let other = third(1, target);
    c.wait_survey("all to lie on the third node", |s| {
        let disk = |d: &Value| {
            let mut disks = s["disks"].as_array().into_iter().flatten();
            disks.any(|x| x["disk"] == *d && x["node"] == c.node(other).name().as_str())
        };
        let row = find_volume(s, &id);
        row.is_some_and(|r| r["segments"].as_array().is_some_and(|all| all.iter().all(|s| disk(&s[2]))))
    })?;
    v.goes_on_for(Duration::from_secs(2))?;
    c.revive(target)?;
    wait_alive(c, target, true)?;
    v.finish()?;
    end(c, &id, &[1])
}

fn plugin_dies(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&new("move-plugin", 96, Use::Block))?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "move-plugin", &dev, 98)?;
    c.csi().drain_node("n1", false)?;
    wait_copying(c, &id)?;
    c.kill_plugin(1)?;
    v.goes_on_for(Duration::from_secs(2))?;
    c.start_plugin(1, None)?;
    wait_drained(c, 1)?;
    ensure!(!hosts(c, &id)?.contains(&1), "it still lies on n1");
    v.finish()?;
    end(c, &id, &[1])
}

/// n1 uses what n3 lends and moves to n2. n3 dies, its disk comes to n1 and the copy goes on there, until n2 dies too.
fn source_carried(c: &Cluster) -> Result<()> {
    c.csi().drain_node("n1", false)?;
    let id = c.csi().create(&NewVolume { beside: Some("n3"), ..new("move-carried", 192, Use::Block) })?;
    ensure!(hosts(c, &id)? == [3], "volume {id} lies on {:?}", hosts(c, &id)?);
    let disk = disk_of(c, 3)?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "move-carried", &dev, 100)?;
    v.wait_writes(128)?;
    c.csi().drain_node("n3", false)?;
    ensure!(wait_copying(c, &id)? == 2, "it goes to another node than n2");
    c.node(3).kill()?;
    v.wait_stalled(Duration::from_secs(1))?;
    wait_alive(c, 3, false)?;
    carry(c, 3, 1)?;
    ask(c, &["forget", "n3"])?;
    c.wait_survey("the disk to be n1's", |s| {
        let mut disks = s["disks"].as_array().into_iter().flatten();
        disks.any(|d| d["disk"] == disk.as_str() && d["node"] == "n1")
    })?;
    c.node(2).kill()?;
    wait_alive(c, 2, false)?;
    c.wait_survey("the move to be called off", |s| s["moves"].as_array().is_some_and(Vec::is_empty))?;
    v.goes_on_for(Duration::from_secs(2))?;
    ensure!(hosts(c, &id)? == [1], "volume {id} lies on {:?}", hosts(c, &id)?);
    let left = || c.node(1).run_ok("cat /sys/block/dm-*/dm/name | grep -v ^weir-hold-");
    wait::until("n1 to have nothing but the volume's device", PATIENCE, || {
        Ok((left()?.trim() == format!("weir-{id}")).then_some(()))
    })
    .with_context(|| format!("it has {:?}", left()))?;
    c.revive(2)?;
    wait_alive(c, 2, true)?;
    v.finish()?;
    // What was being emptied still is, wherever it stands.
    end(c, &id, &[1])?;
    carry_back(c, 1, 3)?;
    c.wait_for_disks()
}

fn crash(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&new("move-crash", 48, Use::Block))?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "move-crash", &dev, 99)?;
    // Before the first move can begin.
    c.kill_controller()?;
    die_at(c, &["move-begin", "move-switch", "move-end"], || c.csi().drain_node("n1", false))?;
    wait_drained(c, 1)?;
    ensure!(!hosts(c, &id)?.contains(&1), "it still lies on n1");
    v.finish()?;
    end(c, &id, &[1])
}
