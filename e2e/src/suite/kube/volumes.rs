//! Volumes as claims ask for them: where they are put, what there is room for, how they grow, and who may use them.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Case, delete_claim, delete_pod,
    io::PodIo,
    objects::{Claim, DEVICE, FOLDER, Mode, Pod, SAY},
    record, wait_gone, wait_phase, wait_pod,
};
use crate::{
    kube::{
        KubeCluster,
        cluster::{PATIENCE, items},
    },
    lab::{program, tools::run_tool},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kube/placement",
        about: "beside the pod while there is room, the rest borrowed; what fits nowhere waits, and capacity says so",
        run: placement,
    },
    Case {
        name: "kube/cli",
        about: "weir and the kubeconfig are enough to see volumes, loans and why",
        run: cli,
    },
    Case { name: "kube/expand", about: "volumes grow under I/O: raw and with a file system", run: expand },
    Case {
        name: "kube/access",
        about: "two pods on one node share a volume; ReadWriteOncePod lets one in",
        run: access,
    },
];

const MIB: u64 = 1 << 20;

/// Bytes in a quantity such as `3024Mi`.
fn bytes(quantity: &str) -> Result<u64> {
    let digits = quantity.trim_end_matches(char::is_alphabetic);
    let unit: u64 = match &quantity[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => MIB,
        "Gi" => 1 << 30,
        unit => anyhow::bail!("{quantity:?} has the unit {unit:?}"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("{quantity:?} is no quantity"))? * unit)
}

/// Free bytes of all disks, as they say themselves.
fn free(c: &KubeCluster) -> Result<u64> {
    let disks = c.get(&["nodedisks"])?;
    items(&disks["items"]).iter().map(|d| bytes(d["status"]["free"].as_str().unwrap_or_default())).sum()
}

/// Waits until every node's capacity object says what is free in the pool now; returns that.
fn wait_capacity(c: &KubeCluster) -> Result<u64> {
    let nodes = c.lab().nodes().len();
    c.wait("capacity objects to say what is free", PATIENCE, || {
        let free = free(c)?;
        let list = c.get(&["csistoragecapacities", "-A"])?;
        let of_class: Vec<_> =
            items(&list["items"]).iter().filter(|o| o["storageClassName"] == "weir").collect();
        ensure!(of_class.len() == nodes, "there are {} for {nodes} nodes", of_class.len());
        for o in of_class {
            let says = bytes(o["capacity"].as_str().unwrap_or_default())?;
            ensure!(says == free, "{} says {says}, free are {free}", o["nodeTopology"]);
            ensure!(o["maximumVolumeSize"] == o["capacity"], "a volume may have all of it");
        }
        Ok(Some(free))
    })
}

/// MiB of a volume on each node, as its record and the disks' have it.
fn placed(c: &KubeCluster, claim: &str) -> Result<Vec<(String, u64)>> {
    let volume = record(c, claim)?;
    let disks = c.get(&["nodedisks"])?;
    let extent = volume["spec"]["extentSize"].as_u64().context("the extent's size")?;
    let mut out: Vec<(String, u64)> = vec![];
    for s in items(&volume["spec"]["segments"]) {
        let count = s["count"].as_u64().context("a segment's length")?;
        for leg in items(&s["legs"]) {
            let disk = items(&disks["items"]).iter().find(|d| d["metadata"]["name"] == leg["disk"]);
            let node =
                disk.context("a segment's disk")?["spec"]["node"].as_str().context("its node")?.to_owned();
            let mib = count * extent / MIB;
            match out.iter_mut().find(|(n, _)| *n == node) {
                Some((_, sum)) => *sum += mib,
                None => out.push((node, mib)),
            }
        }
    }
    Ok(out)
}

fn placement(c: &mut KubeCluster) -> Result<()> {
    let all = wait_capacity(c)?;
    // A disk has 2032 MiB, wherever it is.
    let near = Claim::of("near", "weir", Mode::Block, "256Mi");
    let wide = Claim::of("wide", "weir", Mode::Block, "2560Mi");
    let too_large = format!("{}Mi", all / MIB + 1024);
    let huge = Claim::of("huge", "weir", Mode::Block, &too_large);
    c.create(&[near.object(), wide.object(), huge.object()])?;
    let script = format!("dd if=/dev/urandom of={DEVICE} bs=1M count=1 2>/dev/null; sleep 3600");
    let pod = |name, node| Pod { name, node, claim: name, mode: Mode::Block, script: &script }.object();
    c.create(&[pod("near", Some("n2")), pod("huge", None)])?;
    wait_phase(c, "near", "Running")?;
    ensure!(placed(c, "near")? == [("n2".to_owned(), 256)], "not beside its pod: {:?}", placed(c, "near")?);
    c.create(&[pod("wide", Some("n3"))])?;
    wait_phase(c, "wide", "Running")?;
    let at = placed(c, "wide")?;
    let here = at.iter().find(|(n, _)| n == "n3").map_or(0, |(_, mib)| *mib);
    ensure!(here == 2032, "n3's disk is not filled first: {at:?}");
    ensure!(at.iter().map(|(_, mib)| mib).sum::<u64>() == 2560, "{at:?}");
    c.wait("its row to say what it borrows", PATIENCE, || {
        let row = record(c, "wide")?;
        let borrowed = row["status"]["borrowed"].as_str().unwrap_or_default();
        ensure!(borrowed.starts_with("528Mi from 1 node"), "its row says it borrows {borrowed:?}");
        Ok(Some(()))
    })?;
    let left = wait_capacity(c)?;
    ensure!(left + (256 + 2560) * MIB == all, "{left} are left of {all}");
    says_what_is_missing(c)?;
    for name in ["near", "wide", "huge"] {
        delete_pod(c, name)?;
        delete_claim(c, name)?;
    }
    wait_gone(c)
}

/// `weir` finds the reigning controller by the cluster alone and shows what a volume borrows.
fn cli(c: &mut KubeCluster) -> Result<()> {
    c.create(&[Claim::of("wide", "weir", Mode::Block, "2560Mi").object()])?;
    c.create(&[Pod {
        name: "wide",
        node: Some("n3"),
        claim: "wide",
        mode: Mode::Block,
        script: "sleep 3600",
    }
    .object()])?;
    wait_phase(c, "wide", "Running")?;
    let id = record(c, "wide")?["metadata"]["name"].as_str().context("its id")?.to_owned();
    let ask = |what: &[&str]| {
        let mut weir = Command::new(program("weir")?);
        weir.env("KUBECONFIG", c.plane().kubeconfig()).env("PATH", c.plane().path()?);
        run_tool(weir.args(what))
    };
    for (what, want) in [
        (&["volumes", "-o", "json"][..], id.as_str()),
        (&["loans"], "528Mi"),
        (&["explain", &id], "n3"),
        (&["status"], "default"),
    ] {
        let said = ask(what)?;
        ensure!(said.contains(want), "weir {} does not show {want}:\n{said}", what.join(" "));
    }
    println!("{}", ask(&["status"])?);
    delete_pod(c, "wide")?;
    delete_claim(c, "wide")?;
    wait_gone(c)
}

/// The claim that fits nowhere waits, with an event that says how much is missing and what there is on each node.
fn says_what_is_missing(c: &KubeCluster) -> Result<()> {
    let event = c.wait("an event that says what is missing", PATIENCE, || {
        let list =
            c.get(&["events", "--field-selector", "involvedObject.name=huge,reason=InsufficientCapacity"])?;
        let found =
            items(&list["items"]).iter().find(|e| e["involvedObject"]["kind"] == "PersistentVolumeClaim");
        Ok(found.and_then(|e| e["message"].as_str()).map(str::to_owned))
    })?;
    println!("   {event}");
    for word in ["missing", "n1", "n2", "n3"] {
        ensure!(event.contains(word), "the event lacks {word:?}: {event}");
    }
    let claim = c.get(&["pvc", "huge"])?;
    ensure!(claim["status"]["phase"] == "Pending", "it is {}", claim["status"]["phase"]);
    Ok(())
}

/// Asks for more and waits until the claim has it.
fn grow(c: &KubeCluster, claim: &str, size: &str) -> Result<()> {
    let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
    c.plane().kubectl(&["patch", "pvc", claim, "-p", &patch])?;
    c.wait(&format!("claim {claim} to have {size}"), PATIENCE, || {
        let has = c.get(&["pvc", claim])?["status"]["capacity"]["storage"].clone();
        ensure!(has == size, "it has {has}");
        Ok(Some(()))
    })
}

fn expand(c: &mut KubeCluster) -> Result<()> {
    let raw = Claim::of("raw", "weir", Mode::Block, "64Mi");
    let ext4 = Claim::of("ext4", "weir", Mode::Filesystem, "64Mi");
    let xfs = Claim::of("xfs", "weir-xfs", Mode::Filesystem, "512Mi");
    c.create(&[raw.object(), ext4.object(), xfs.object()])?;
    let io = [
        (PodIo::start(c, 1, "raw", "raw", Mode::Block, 11)?, "128Mi"),
        (PodIo::start(c, 1, "ext4", "ext4", Mode::Filesystem, 12)?, "192Mi"),
        (PodIo::start(c, 1, "xfs", "xfs", Mode::Filesystem, 13)?, "640Mi"),
    ];
    let io = io.into_iter().map(|(io, size)| Ok((io.begun(c)?, size))).collect::<Result<Vec<_>>>()?;
    for ((io, size), name) in io.iter().zip(["raw", "ext4", "xfs"]) {
        grow(c, name, size)?;
        io.wait_writes(16)?;
        let script = if name == "raw" {
            format!("blockdev --getsize64 {DEVICE}")
        } else {
            format!("df -B1 --output=size {FOLDER} | tail -1")
        };
        let seen = c.wait("a pod to say its size", PATIENCE, || {
            c.plane().kubectl(&["exec", name, "--", "sh", "-c", &script]).map(Some)
        })?;
        let (seen, want): (u64, _) =
            (seen.trim().parse().with_context(|| format!("{seen:?}"))?, bytes(size)?);
        // A file system keeps some for itself.
        let enough = if name == "raw" { seen == want } else { (want * 3 / 4..=want).contains(&seen) };
        ensure!(enough, "the pod of {name} sees {seen} bytes of {want}");
    }
    for ((io, _), name) in io.into_iter().zip(["raw", "ext4", "xfs"]) {
        io.finish(c)?;
        delete_claim(c, name)?;
    }
    wait_gone(c)
}

fn access(c: &mut KubeCluster) -> Result<()> {
    let shared = Claim::of("shared", "weir", Mode::Filesystem, "64Mi");
    let alone = Claim { access: "ReadWriteOncePod", ..Claim::of("alone", "weir", Mode::Filesystem, "64Mi") };
    c.create(&[shared.object(), alone.object()])?;
    let pod = |name, claim, script: &str| {
        Pod { name, node: Some("n2"), claim, mode: Mode::Filesystem, script }.object()
    };
    let writer = format!("echo hello >{FOLDER}/word; sync; sleep 3600");
    let reader = format!("until [ -e {FOLDER}/word ]; do sleep 1; done; cat {FOLDER}/word >{SAY}");
    c.create(&[
        pod("one", "shared", &writer),
        pod("two", "shared", &reader),
        pod("first", "alone", "sleep 3600"),
    ])?;
    ensure!(wait_pod(c, "two")? == "hello", "the second pod reads something else");
    wait_phase(c, "first", "Running")?;
    c.create(&[pod("second", "alone", "exit 0")])?;
    c.wait("the second pod to be held back", PATIENCE, || {
        let p = c.get(&["pod", "second"])?;
        let why = items(&p["status"]["conditions"]).iter().find(|c| c["type"] == "PodScheduled");
        let why = why.and_then(|w| w["message"].as_str()).unwrap_or_default().to_owned();
        ensure!(why.contains("ReadWriteOncePod"), "it says {why:?}");
        Ok(Some(()))
    })?;
    delete_pod(c, "first")?;
    wait_pod(c, "second").context("the second pod, once the first is gone")?;
    for name in ["one", "two", "second"] {
        delete_pod(c, name)?;
    }
    for name in ["shared", "alone"] {
        delete_claim(c, name)?;
    }
    wait_gone(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        assert_eq!(bytes("3Gi").unwrap(), 3 << 30);
        assert_eq!(bytes("3024Mi").unwrap(), 3024 << 20);
        assert_eq!(bytes("17").unwrap(), 17);
        assert!(bytes("3Zi").is_err() && bytes("").is_err());
    }
}
