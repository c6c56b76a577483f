//! Extents move because it is worth it, under verified I/O: a lender needs its room, a disk is overloaded, a volume has migrated.
//! Each case has a cluster of its own, in whose pool things move soon.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case, Run,
    verifier::{Verifier, hosts, wait_held},
};
use crate::{
    cluster::{
        Cluster, Spec,
        clients::{NewVolume, Use},
        find_volume,
    },
    wait,
};

/// How long a plan may take: samples come every 10 s, heat every minute, and a disk's strength shows after minutes of load.
const SOON: Duration = Duration::from_secs(900);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "moves/recall",
        about: "a lender's owner eats into its reserve: what it lent leaves, under verified I/O, until the reserve is whole",
        run: Run::Alone(recall),
    },
    Case {
        name: "moves/spill-home",
        about: "an overloaded disk gives extents away, and they come home once the load has gone",
        run: Run::Alone(spill_home),
    },
    Case {
        name: "moves/gravity",
        about: "a volume that has migrated gets its extents to where it is",
        run: Run::Alone(gravity),
    },
];

/// A cluster in whose pool only one thing moves by itself, and that soon.
fn cluster(cause: &str, reserve: u64) -> Result<Cluster> {
    let mut moving = Spec::still();
    for (key, value) in
        [(cause, json!(true)), ("hold", json!("5s")), ("still", json!("5s")), ("permillePerDay", json!(1000))]
    {
        moving[key] = value;
    }
    Cluster::start(Spec {
        moving,
        reserve,
        trust_fresh_disks: true,
        lend_by_forecast: true,
        ..Spec::default()
    })
}

/// Emulated disks call themselves turning: of such a one that is new and idle no load of a test is expected, and nothing goes there.
fn call_disks_flash(c: &Cluster) -> Result<()> {
    c.lab().nodes().iter().try_for_each(|node| {
        node.run_ok("for r in /sys/block/vd*/queue/rotational; do echo 0 > $r; done").map(drop)
    })
}

fn new(name: &str, mib: u64, usage: Use) -> NewVolume<'_> {
    NewVolume { name, bytes: mib << 20, usage, beside: Some("n1"), parameters: &[] }
}

/// Bytes of a volume on a node.
fn bytes_on(c: &Cluster, id: &str, n: u8) -> Result<u64> {
    let s = c.survey()?;
    let row = find_volume(&s, id).context("the volume's row")?;
    let name = c.node(n).name();
    let rows = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let disks = rows(&s["disks"]);
    let here = |seg: &&Value| disks.iter().any(|d| d["disk"] == seg[2] && d["node"] == name.as_str());
    let all = rows(&row["segments"]);
    Ok(all.iter().filter(here).filter_map(|seg| seg[1].as_u64()).sum::<u64>() * c.spec().extent_size)
}

/// Waits until so much of a volume on a node satisfies `good`.
fn wait_on(c: &Cluster, id: &str, n: u8, what: &str, good: impl Fn(u64) -> bool) -> Result<u64> {
    wait::until(what, SOON, || Ok(Some(bytes_on(c, id, n)?).filter(|b| good(*b)))).with_context(|| c.logs())
}

/// The volume's history has a line with these words.
fn says(c: &Cluster, id: &str, words: &str) -> Result<()> {
    let row = c.volume_row(id)?.context("the volume's row")?;
    let lines = row["history"].as_array().cloned().unwrap_or_default();
    let said = lines.iter().filter_map(Value::as_str).any(|l| l.contains(words));
    ensure!(said, "its history does not say {words:?}: {lines:?}");
    Ok(())
}

fn recall() -> Result<()> {
    // Three disks of 1 GiB, 256 MiB of each are its owner's.
    let c = cluster("recall", 256 << 20)?;
    let borrower = c.csi().create(&new("borrower", 1200, Use::Block))?;
    let dev = c.node_csi(1)?.attach(&borrower, Use::Block)?;
    let lender = super::verifier::lender(&c, &borrower, 1)?;
    let lent = bytes_on(&c, &borrower, lender)?;
    let v = Verifier::start(&c, 1, "recall", &dev, 101)?;
    // What is left to the owner but 64 MiB.
    let free = (1024 << 20) - lent;
    let name = c.node(lender).name();
    let own =
        c.csi().create(&NewVolume { beside: Some(&name), ..new("own", (free >> 20) - 128, Use::Block) })?;
    c.node_csi(lender)?.attach(&own, Use::Block)?;
    ensure!(hosts(&c, &own)? == [lender], "the owner's volume does not fit on its own disk");
    wait_on(&c, &borrower, lender, "lent extents to leave", |b| b < lent)?;
    c.wait_survey("the reserve to be whole", |s| {
        let mut disks = s["disks"].as_array().into_iter().flatten();
        disks.any(|d| d["node"] == name.as_str() && d["free"].as_u64() >= Some(256 << 20))
    })?;
    says(&c, &borrower, "recall: its lender has")?;
    v.goes_on_for(Duration::from_secs(2))?;
    v.finish().map(drop)
}

fn spill_home() -> Result<()> {
    let mut moving = Spec::still();
    for (key, value) in [
        ("spill", json!(true)),
        ("gravity", json!(true)),
        ("hold", json!("20s")),
        ("still", json!("10s")),
        ("permillePerDay", json!(1000)),
    ] {
        moving[key] = value;
    }
    let c =
        Cluster::start(Spec { moving, trust_fresh_disks: true, lend_by_forecast: true, ..Spec::default() })?;
    call_disks_flash(&c)?;
    let id = c.csi().create(&new("spill", 128, Use::Block))?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(&c, 1, "spill", &dev, 102)?;
    // More than the disk can do: it has no rest, and says how much it can.
    let reader = format!(
        "for i in 1 2 3 4 5 6; do (while [ ! -e /run/lab/spill.end ]; do dd if={dev} of=/dev/null bs=64k iflag=direct \
         status=none; done) & done; wait"
    );
    c.node(1).run_ok("mkdir -p /run/lab && rm -f /run/lab/spill.end")?;
    let load = c.node(1).spawn("spill-load", &format!("sh -c '{reader}'"))?;
    let total = 128 << 20;
    let left = wait_on(&c, &id, 1, "extents to leave an overloaded disk", |b| b < total);
    c.node(1).run_ok("touch /run/lab/spill.end")?;
    wait::until("the load to end", SOON, || c.node(1).ended(&load))?;
    left?;
    says(&c, &id, "spill: the disk is forecast to do")?;
    wait_on(&c, &id, 1, "all of it to come home", |b| b == total)?;
    says(&c, &id, "gravity: its node has room")?;
    v.goes_on_for(Duration::from_secs(2))?;
    v.finish().map(drop)
}

fn gravity() -> Result<()> {
    let c = cluster("gravity", 0)?;
    call_disks_flash(&c)?;
    let id = c.csi().create(&new("gravity", 96, Use::SharedBlock))?;
    c.node_csi(1)?.attach(&id, Use::SharedBlock)?;
    let dev = c.node_csi(2)?.attach(&id, Use::SharedBlock)?;
    c.node(2).run_ok(&super::migrate::write_block(&dev, super::migrate::BLOCK, "by the target"))?;
    wait_held(&c, &id, "Attached", &[2])?;
    c.node_csi(1)?.detach(&id)?;
    let v = Verifier::start(&c, 2, "gravity", &dev, 103)?;
    wait_on(&c, &id, 2, "all of it to come to n2", |b| b == 96 << 20)?;
    says(&c, &id, "gravity: its node has room")?;
    v.goes_on_for(Duration::from_secs(2))?;
    v.finish().map(drop)
}
