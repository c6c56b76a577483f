//! Disks that are damaged, foreign, failing or hanging: what is not ours is left alone, what is sick harms nobody else,
//! and each is reported with its reason.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tonic::Code;

use super::{
    Case, Run, check_pattern,
    drain::ask,
    verifier::{Verifier, retry},
    write_pattern,
};
use crate::{
    cluster::{
        Cluster, PATIENCE, Spec,
        clients::{NewVolume, Use},
    },
    lab::Node,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "disks/torn-label",
        about: "one damaged copy of a label is repaired; with both damaged the disk is refused until they are back",
        run: Run::On(torn_label),
    },
    Case {
        name: "disks/foreign",
        about: "disks with a file system, partitions or LVM are never claimed, and it says why",
        run: Run::Alone(foreign),
    },
    Case {
        name: "disks/sata",
        about: "a SATA disk is claimed, bears a volume, and says how it is",
        run: Run::Alone(sata),
    },
    Case {
        name: "disks/io-errors",
        about: "a disk that returns errors is reported; other disks and the plugin go on",
        run: Run::Alone(|| sick(Illness::Errors)),
    },
    Case {
        name: "disks/hang",
        about: "a disk that hangs is reported; other disks and the plugin go on, and so does it once it answers",
        run: Run::Alone(|| sick(Illness::Hang)),
    },
];

/// Where the copies of a label lie, and how long their headers are: docs/on-disk-format.md.
const COPY_A: u64 = 1 << 20;
const HEADER: usize = 8192;
const MAGIC: &[u8] = b"WeirDiskLabe";

fn copy_b(disk_size: u64) -> u64 {
    (disk_size >> 20 << 20) - (5 << 20)
}

/// Something that is no header.
fn junk() -> Vec<u8> {
    (0..HEADER).map(|i| (i % 251) as u8 ^ 0xa5).collect()
}

fn torn_label(c: &Cluster) -> Result<()> {
    let node = c.node(3);
    let new = NewVolume {
        name: "torn-label",
        bytes: 64 << 20,
        usage: Use::Block,
        beside: Some("n3"),
        parameters: &[("locality", "require")],
    };
    let id = c.csi().create(&new)?;
    let dev = c.node_csi(3)?.attach(&id, Use::Block)?;
    write_pattern(node, &dev, 32, 81)?;
    c.node_csi(3)?.detach(&id)?;

    node.kill()?;
    let image = File::options().read(true).write(true).open(node.disk_image(0)).context("open the image")?;
    image.write_all_at(&junk(), COPY_A)?;
    c.revive(3)?;
    wait_disk(c, "n3", "serving again after copy A was damaged", |state| state == "serving")?;
    check_volume(c, &id)?;
    let mut header = vec![0; MAGIC.len()];
    crate::wait::until("copy A to be repaired", PATIENCE, || {
        image.read_exact_at(&mut header, COPY_A)?;
        Ok((header == MAGIC).then_some(()))
    })?;

    // Again, both copies, under the plugin's feet.
    c.kill_plugin(3)?;
    let areas = [COPY_A, copy_b(c.spec().disk_size)];
    let raw = node.disk(0);
    for (i, at) in areas.into_iter().enumerate() {
        node.run_ok(&format!("{} >/run/lab/copy{i}", read_area(&raw, at)))?;
    }
    // The plugin's hold on the disk keeps writers out, but not root with the raw device.
    node.write_file("/run/lab/junk", &junk())?;
    for at in areas {
        // Torn: a header's first sectors are new, the others are not.
        let torn = format!("dd if=/run/lab/junk of={raw} bs=512 seek={} count=8", at / 512 + 4);
        node.run_ok(&format!("{torn} oflag=direct conv=notrunc status=none"))?;
    }
    c.start_plugin(3, None)?;
    wait_disk(c, "n3", "refused with both copies torn", |state| state.contains("label"))?;
    println!("   refused: {}", reasons(&c.survey()?, "n3").join("; "));
    c.kill_plugin(3)?;
    for at in areas {
        node.run_ok(&write_area("/run/lab/junk", &raw, at))?;
    }
    c.start_plugin(3, None)?;
    wait_disk(c, "n3", "refused with both copies gone", |state| state.contains("no label"))?;
    let s = c.survey()?;
    println!("   refused: {}", reasons(&s, "n3").join("; "));
    ensure!(crate::cluster::find_volume(&s, &id).is_some(), "the volume is gone: {s}");
    let staged = c.node_csi(3)?.stage(&id, Use::Block);
    ensure!(staged.is_err(), "a volume was staged from a disk without a label");
    c.kill_plugin(3)?;
    for (i, at) in areas.into_iter().enumerate() {
        node.run_ok(&write_area(&format!("/run/lab/copy{i}"), &raw, at))?;
    }
    c.start_plugin(3, None)?;
    wait_disk(c, "n3", "serving again with its label back", |state| state == "serving")?;
    check_volume(c, &id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn read_area(device: &str, at: u64) -> String {
    format!("dd if={device} bs=4096 skip={} count={} iflag=direct status=none", at / 4096, HEADER / 4096)
}

fn write_area(file: &str, device: &str, at: u64) -> String {
    format!("dd if={file} of={device} bs=4096 seek={} oflag=direct conv=notrunc status=none", at / 4096)
}

fn check_volume(c: &Cluster, id: &str) -> Result<()> {
    let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::AlreadyExists];
    let csi = c.node_csi(3)?;
    retry("the volume on n3", &codes, || csi.stage(id, Use::Block))?;
    let dev = csi.publish(id, Use::Block)?;
    check_pattern(c.node(3), &dev, 32, 81)?;
    csi.detach(id)?;
    Ok(())
}

/// Waits until the state of a node's first disk, in lower case, is good.
fn wait_disk(c: &Cluster, node: &str, what: &str, good: impl Fn(&str) -> bool) -> Result<Value> {
    c.wait_survey(&format!("the disk of {node}: {what}"), |s| {
        let disks = s["disks"].as_array().map_or(&[][..], Vec::as_slice);
        let state = disks.iter().find(|d| d["node"] == node).and_then(|d| d["state"].as_str());
        state.is_some_and(|s| good(&s.to_lowercase()))
    })
}

/// All reasons that the survey gives about disks of a node.
fn reasons(s: &Value, node: &str) -> Vec<String> {
    let rows = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let texts = |v: &Value| rows(v).iter().filter_map(|t| t.as_str().map(str::to_owned)).collect::<Vec<_>>();
    let mut out: Vec<String> =
        rows(&s["nodes"]).iter().filter(|n| n["node"] == node).flat_map(|n| texts(&n["unclaimed"])).collect();
    let disks = rows(&s["disks"]);
    let states = disks.iter().filter(|d| d["node"] == node).filter_map(|d| d["state"].as_str());
    out.extend(states.filter(|s| s.contains(':')).map(str::to_owned));
    out
}

/// A cluster of one node whose plugin has not been started.
fn single(disks: u8, pool_disks: u8, extra: &[&str]) -> Result<Cluster> {
    let extra_devices = extra.iter().map(|e| (*e).to_owned()).collect();
    let pool_disks = Some(pool_disks);
    Cluster::boot(Spec {
        nodes: 1,
        disks,
        pool_disks,
        disk_size: 512 << 20,
        extra_devices,
        ..Spec::default()
    })
}

fn foreign() -> Result<()> {
    let c = single(4, 4, &[])?;
    let node = c.node(1);
    node.run_ok(&format!("mkfs.ext4 -q {}", node.disk(0)))?;
    node.write_file("/run/lab/gpt", &gpt(c.spec().disk_size / 512))?;
    let partitioned = node.disk(1);
    node.run_ok(&format!("dd if=/run/lab/gpt of={partitioned} bs=512 conv=fsync status=none"))?;
    node.run_ok(&format!("blockdev --rereadpt {partitioned}"))?;
    node.run_ok(&format!("pvcreate -q --config 'devices/use_devicesfile=0' {}", node.disk(2)))?;
    let real = |disk| node.run_ok(&format!("readlink -f {}", node.disk(disk)));
    let sum = |disk| {
        node.run_ok(&format!("dd if={} bs=1M count=16 iflag=direct status=none | sha256sum", node.disk(disk)))
    };
    let before = [sum(0)?, sum(1)?, sum(2)?];
    c.start_controller(None)?;
    c.start_plugin(1, None)?;
    wait_disk(&c, "n1", "claimed and serving", |state| state == "serving")?;
    let wanted = [(0, "ext4"), (1, "partition"), (2, "LVM")];
    for (disk, word) in wanted {
        let path = real(disk)?;
        let s = c.wait_survey(&format!("the reason why {path} is left alone"), |s| {
            reasons(s, "n1")
                .iter()
                .any(|r| r.contains(&path) && r.to_lowercase().contains(&word.to_lowercase()))
        })?;
        let said = reasons(&s, "n1").into_iter().find(|r| r.contains(&path)).unwrap_or_default();
        println!("   left alone: {said}");
    }
    let s = c.survey()?;
    ensure!(s["disks"].as_array().is_some_and(|d| d.len() == 1), "claimed: {}", s["disks"]);
    ensure!(s["disks"][0]["path"] == real(3)?.as_str(), "claimed: {}", s["disks"]);
    ensure!(before == [sum(0)?, sum(1)?, sum(2)?], "a foreign disk was written to");
    Ok(())
}

/// The first sectors of a disk with a GUID partition table (UEFI 2.10, chapter 5) of one partition.
fn gpt(sectors: u64) -> Vec<u8> {
    const SECTOR: usize = 512;
    /// Bytes and number of the entries, which begin at LBA 2.
    const ENTRY: usize = 128;
    const ENTRIES: usize = 128;
    let mut out = vec![0; 2 * SECTOR + ENTRY * ENTRIES];
    let put = |out: &mut Vec<u8>, at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    // The protective MBR: one partition of type EE over everything.
    put(&mut out, 446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    put(&mut out, 458, &u32::try_from(sectors - 1).unwrap_or(u32::MAX).to_le_bytes());
    put(&mut out, 510, &[0x55, 0xaa]);
    let entry = 2 * SECTOR;
    // "Linux filesystem data".
    put(&mut out, entry, &0x0FC6_3DAF_8483_4772_8E79_3D69_D847_7DE4_u128.to_be_bytes());
    put(&mut out, entry + 16, &[7; 16]);
    put(&mut out, entry + 32, &2048_u64.to_le_bytes());
    put(&mut out, entry + 40, &(sectors / 2).to_le_bytes());
    let entries = crc32(&out[entry..]);
    put(&mut out, SECTOR, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    for (at, value) in [(24, 1), (32, sectors - 1), (40, 34), (48, sectors - 34), (72, 2)] {
        put(&mut out, SECTOR + at, &value.to_le_bytes());
    }
    put(&mut out, SECTOR + 56, &[9; 16]);
    for (at, value) in [(80, ENTRIES as u32), (84, ENTRY as u32), (88, entries)] {
        put(&mut out, SECTOR + at, &value.to_le_bytes());
    }
    let header = crc32(&out[SECTOR..SECTOR + 92]);
    put(&mut out, SECTOR + 16, &header.to_le_bytes());
    out
}

/// CRC-32 as in IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

fn sata() -> Result<()> {
    const MIB: u64 = 64;
    let c = Cluster::boot(Spec { nodes: 1, disk_size: 512 << 20, sata_disks: true, ..Spec::default() })?;
    let node = c.node(1);
    node.run_ok("modprobe -a ahci sd_mod")?;
    c.start_controller(None)?;
    c.start_plugin(1, None)?;
    c.wait_for_disks()?;
    let path = c.survey()?["disks"][0]["path"].as_str().map(str::to_owned);
    let path = path.filter(|p| p.starts_with("/dev/sd")).context("no SATA disk was claimed")?;
    let bytes = MIB << 20;
    let new = NewVolume { name: "v", bytes, usage: Use::Block, beside: Some("n1"), parameters: &[] };
    let id = c.csi().create(&new)?;
    let device = c.node_csi(1)?.attach(&id, Use::Block)?;
    write_pattern(node, &device, MIB, 17)?;
    check_pattern(node, &device, MIB, 17)?;
    let target = format!("n1:{path}");
    let said = crate::wait::until("its health", PATIENCE, || {
        let said: Value = serde_json::from_str(&ask(&c, &["-o", "json", "forecast", &target])?)?;
        Ok(said["health"].as_str().filter(|h| !h.is_empty()).map(str::to_owned))
    })?;
    println!("   {target}: {said}");
    ensure!(said == "well", "an emulated disk is well, always: {said}");
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Illness {
    Errors,
    Hang,
}

/// The disk that falls ill: a loop device over a device-mapper device of ours over the node's second disk.
const SICK: &str = "/dev/loop0";

fn make_sick_disk(node: &Node) -> Result<String> {
    let raw = node.disk(1);
    let table = node.run_ok(&format!("echo 0 $(blockdev --getsz {raw}) linear $(readlink -f {raw}) 0"))?;
    node.run_ok(&format!(
        "dmsetup create sick --table '{table}' && losetup --direct-io=on {SICK} /dev/mapper/sick"
    ))?;
    Ok(table)
}

fn fall_ill(node: &Node, illness: Illness) -> Result<()> {
    let command = match illness {
        // The last sectors, which nothing uses, stay: else the disk beneath would be free, and taken for the one.
        Illness::Errors => {
            "s=$(($(blockdev --getsz /dev/mapper/sick) - 8)); \
             t=$(dmsetup table sick | cut -d' ' -f4); \
             printf '0 %s error\n%s 8 linear %s %s\n' $s $s $t $s >/run/lab/ill; \
             dmsetup suspend --noflush --nolockfs sick && dmsetup load sick /run/lab/ill && dmsetup resume sick"
        }
        Illness::Hang => "dmsetup suspend --noflush --nolockfs sick",
    };
    node.run_ok(command).map(drop)
}

fn recover(node: &Node, table: &str) -> Result<()> {
    let swap = format!(
        "dmsetup suspend --noflush --nolockfs sick; dmsetup load sick --table '{table}' && dmsetup resume sick"
    );
    node.run_ok(&swap).map(drop)
}

fn sick(illness: Illness) -> Result<()> {
    let c = single(2, 1, &[SICK])?;
    let node = c.node(1);
    let table = make_sick_disk(node)?;
    c.start_controller(None)?;
    c.start_plugin(1, None)?;
    c.wait_for_disks()?;
    // Of two volumes that each take most of a disk each has one for itself, and so it is with what is left.
    let make = |name, mib: u64| {
        let bytes = mib << 20;
        c.csi().create(&NewVolume { name, bytes, usage: Use::Block, beside: Some("n1"), parameters: &[] })
    };
    let used = [make("one", 300)?, make("two", 300)?];
    let idle = [make("three", 180)?, make("four", 180)?];
    let s = c.survey()?;
    let disks = s["disks"].as_array().cloned().unwrap_or_default();
    let ill =
        disks.iter().find(|d| d["path"] == SICK).context("the sick disk is not in the pool")?["disk"].clone();
    let (bad, good) = apart(&s, used, &ill)?;
    let (bad_idle, good_idle) = apart(&s, idle, &ill)?;
    let csi = c.node_csi(1)?;
    let bad_dev = csi.attach(&bad, Use::Block)?;
    let good_dev = csi.attach(&good, Use::Block)?;
    let victim = Verifier::start(&c, 1, "sick", &bad_dev, 91)?;
    let healthy = Verifier::start(&c, 1, "healthy", &good_dev, 92)?;
    fall_ill(node, illness)?;
    match illness {
        Illness::Errors => {
            crate::wait::until("errors on the sick disk", PATIENCE, || {
                Ok((victim.report()?.errors > 0).then_some(()))
            })?;
        }
        Illness::Hang => drop(victim.wait_stalled(Duration::from_secs(2))?),
    }
    std::thread::scope(|scope| -> Result<()> {
        let staged = scope.spawn(|| csi.stage(&bad_idle, Use::Block));
        let others = others_go_on(&c, &healthy, &good_idle).and_then(|()| reported(&c, &ill));
        let staged = staged.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        others?;
        let e = staged.err().context("a volume was staged on a disk that cannot be labelled")?;
        println!("   on the sick disk: {:?}: {}", e.code(), e.message());
        Ok(())
    })?;
    recover(node, &table)?;
    match illness {
        Illness::Hang => {
            victim.wait_writes(64)?;
            victim.finish()?;
        }
        Illness::Errors => {
            let r = victim.end()?;
            ensure!(r.mismatches.is_empty(), "{:?}", r.mismatches);
            // What failed is not tried again in place: whoever mended the disk starts the plugin anew.
            c.kill_plugin(1)?;
            c.start_plugin(1, None)?;
        }
    }
    let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::Internal];
    let csi = c.node_csi(1)?;
    retry("a volume of the disk that recovered", &codes, || csi.stage(&bad_idle, Use::Block))?;
    healthy.finish()?;
    for id in [bad, good, bad_idle, good_idle] {
        csi.detach(&id)?;
        c.csi().delete(&id)?;
    }
    c.wait_survey("the volumes to be gone", |s| s["volumes"].as_array().is_some_and(Vec::is_empty))?;
    Ok(())
}

/// Of two volumes on two disks: the one on the disk that is ill, and the other.
fn apart(s: &Value, ids: [String; 2], ill: &Value) -> Result<(String, String)> {
    let on_ill = |id: &str| -> Result<bool> {
        let row = crate::cluster::find_volume(s, id).context("a volume's row")?;
        let segments = row["segments"].as_array().context("its segments")?;
        let count = segments.iter().filter(|g| g[2] == *ill).count();
        ensure!(count == 0 || count == segments.len(), "volume {id} lies on both disks: {row}");
        Ok(count > 0)
    };
    let [a, b] = ids;
    match (on_ill(&a)?, on_ill(&b)?) {
        (true, false) => Ok((a, b)),
        (false, true) => Ok((b, a)),
        both => anyhow::bail!("{both:?}: the volumes do not lie on a disk each: {s}"),
    }
}

/// Volumes of other disks are brought up while one disk is ill, and the plugin answers: the disk gets well later, or never.
fn others_go_on(c: &Cluster, healthy: &Verifier, idle: &str) -> Result<()> {
    healthy.wait_writes(64)?;
    let csi = c.node_csi(1)?;
    let start = Instant::now();
    let dev = csi.attach(idle, Use::Block).context("a volume on the healthy disk")?;
    write_pattern(c.node(1), &dev, 8, 93)?;
    check_pattern(c.node(1), &dev, 8, 93)?;
    let took = start.elapsed();
    println!("   beside it a volume was brought up and used within {:.1} s", took.as_secs_f64());
    csi.info().context("NodeGetInfo while a disk is ill")?;
    healthy.wait_writes(64).map(drop)
}

/// Waits until the survey says that a disk is not well.
fn reported(c: &Cluster, ill: &Value) -> Result<()> {
    let state = |s: &Value| {
        let row = s["disks"].as_array().into_iter().flatten().find(|d| d["disk"] == *ill)?;
        row["state"].as_str().map(str::to_owned)
    };
    let s = c.wait_survey("the sick disk's condition", |s| {
        state(s).is_some_and(|s| s.to_lowercase() != "serving")
    })?;
    println!("   reported: {}", state(&s).unwrap_or_default());
    Ok(())
}
