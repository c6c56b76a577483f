//! The devices that are compared, set up so that only what is compared differs.
//!
//! Every bare measurement uses the very sectors on which the thing compared with it lies: `raw` those of the local
//! Weir volume, `nvme_tcp` those of the remote one. Same virtio disk, same image on the host, same allocation: what
//! differs is Weir's mapping. LVM2 needs a disk of its own; `raw_again` measures the bare sectors of its volume, and so
//! says how much two disks that are alike differ here: ratios within its spread are no difference. `nvme_tcp_again`
//! does the same for the remote side, on the lender's second disk.

use anyhow::{Context, Result, ensure};

use super::{fio, fio::Region};
use crate::{
    cluster::{
        Cluster,
        clients::{NewVolume, Use},
    },
    lab::Node,
    nvmet, suite,
};

/// A device that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Raw,
    RawAgain,
    Lvm2,
    WeirLocal,
    Loop,
    NvmeTcp,
    NvmeTcpAgain,
    WeirRemote,
}

impl Target {
    pub(super) const ALL: [Target; 8] = [
        Target::Raw,
        Target::RawAgain,
        Target::Lvm2,
        Target::WeirLocal,
        Target::Loop,
        Target::NvmeTcp,
        Target::NvmeTcpAgain,
        Target::WeirRemote,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Target::Raw => "raw",
            Target::RawAgain => "raw_again",
            Target::Lvm2 => "lvm2",
            Target::WeirLocal => "weir_local",
            Target::Loop => "loop",
            Target::NvmeTcp => "nvme_tcp",
            Target::NvmeTcpAgain => "nvme_tcp_again",
            Target::WeirRemote => "weir_remote",
        }
    }

    /// A second measurement of the same kind of thing, there to show the noise.
    pub(super) fn is_control(self) -> bool {
        matches!(self, Target::RawAgain | Target::NvmeTcpAgain)
    }

    /// What it is held against.
    pub(super) fn base(self) -> Target {
        match self {
            Target::Raw | Target::RawAgain | Target::Lvm2 | Target::WeirLocal | Target::Loop => Target::Raw,
            Target::NvmeTcp | Target::NvmeTcpAgain | Target::WeirRemote => Target::NvmeTcp,
        }
    }
}

/// Sets all targets up on node 1, with node 2 as the lender, and writes every region once.
pub(super) fn set_up(c: &Cluster, bytes: u64) -> Result<Vec<Region>> {
    let (n1, n2) = (c.node(1), c.node(2));
    let region = |target: Target, path: &str, offset| Region {
        name: target.as_str().to_owned(),
        path: path.to_owned(),
        offset,
        bytes,
    };
    let local = weir_volume(c, "bench-local", "n1", bytes)?;
    let raw = region(Target::Raw, &n1.disk(0), run_of(n1, &top(&local.id), &n1.disk(0), bytes)?);
    let remote = weir_volume(c, "bench-remote", "n2", bytes)?;
    let slice = slice_of(n2, &remote.id)?;
    let lent = region(Target::NvmeTcp, &n2.disk(0), run_of(n2, &slice, &n2.disk(0), bytes)?);
    let (lv, lv_offset) = lvm2(n1, bytes)?;
    let twin = region(Target::RawAgain, &n1.disk(1), lv_offset);
    let lent_twin = region(Target::NvmeTcpAgain, &n2.disk(1), lent.offset);
    let imports = nvmet::share(n2, n1, &[n2.disk(0), n2.disk(1)])?;
    for (node, r) in [(n1, &raw), (n1, &twin), (n2, &lent), (n2, &lent_twin)] {
        fio::fill(node, r)?;
    }
    let loop_device = loop_file(n1, bytes)?;
    let out = vec![
        raw,
        twin,
        region(Target::Lvm2, &lv, 0),
        region(Target::WeirLocal, &local.path, 0),
        region(Target::Loop, &loop_device, 0),
        region(Target::NvmeTcp, &imports[0], lent.offset),
        region(Target::NvmeTcpAgain, &imports[1], lent.offset),
        region(Target::WeirRemote, &remote.path, 0),
    ];
    for (a, b) in [(0, 3), (1, 2), (5, 7)] {
        same_data(n1, &out[a], &out[b])?;
    }
    Ok(out)
}

struct Volume {
    id: String,
    path: String,
}

/// A volume whole on `beside`, attached at node 1.
fn weir_volume(c: &Cluster, name: &str, beside: &str, bytes: u64) -> Result<Volume> {
    let id = c.csi().create(&NewVolume {
        name,
        bytes,
        usage: Use::Block,
        beside: Some(beside),
        parameters: &[],
    })?;
    let path = c.node_csi(1)?.attach(&id, Use::Block)?;
    Ok(Volume { id, path })
}

fn top(volume: &str) -> String {
    format!("weir-{volume}")
}

/// The lender's slice of a volume that has one.
fn slice_of(lender: &Node, volume: &str) -> Result<String> {
    let begin = format!("weir-{}-slice-", volume.replace('-', ""));
    let mut found: Vec<_> = suite::devices(lender)?.into_iter().filter(|d| d.starts_with(&begin)).collect();
    ensure!(found.len() == 1, "slices of {volume} on {}: {found:?}", lender.name());
    Ok(found.remove(0))
}

/// Byte of `disk` where a device-mapper device lies that should be one run of `bytes` on it.
fn run_of(node: &Node, device: &str, disk: &str, bytes: u64) -> Result<u64> {
    let table = node.run_ok(&format!("dmsetup table {device}"))?;
    let number = node.run_ok(&format!("cat /sys/class/block/$(basename $(readlink -f {disk}))/dev"))?;
    parse_run(&table, &number, bytes).with_context(|| format!("{device} on {}: {table:?}", node.name()))
}

fn parse_run(table: &str, number: &str, bytes: u64) -> Result<u64> {
    let words: Vec<&str> = table.split_whitespace().collect();
    let &["0", sectors, "linear", device, offset] = words.as_slice() else {
        anyhow::bail!("not one linear run");
    };
    ensure!(device == number, "not on the disk that is measured, {number}");
    ensure!(sectors.parse::<u64>()? << 9 >= bytes, "too small");
    Ok(offset.parse::<u64>()? << 9)
}

/// A linear logical volume on the node's second disk, and the byte where it begins there.
fn lvm2(node: &Node, bytes: u64) -> Result<(String, u64)> {
    let disk = node.disk(1);
    // No udev, no system directory that can be written, no daemon to ask.
    let config = "devices { scan=[\"/dev\"] obtain_device_list_from_udev=0 use_devicesfile=0 } \
                  activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 } \
                  global { locking_dir=\"/run/lvm-lock\" }";
    let script = format!(
        "set -e; mkdir -p /run/lvm-lock; lvm() {{ command lvm \"$@\" --config '{config}'; }}\n\
         lvm pvcreate -q -y {disk}; lvm vgcreate -q bench {disk}; \
         lvm lvcreate -q -y -an -Zn -Wn -n lv -L {bytes}b bench; lvm lvchange -q -ay bench/lv"
    );
    node.run_ok(&script).context("make an LVM2 volume")?;
    let offset = run_of(node, "bench-lv", &disk, bytes)?;
    Ok(("/dev/mapper/bench-lv".to_owned(), offset))
}

/// A file of an ext4 on the node's third disk, written once and behind a loop device with direct I/O.
fn loop_file(node: &Node, bytes: u64) -> Result<String> {
    let (disk, file) = (node.disk(2), "/run/bench-fs/file");
    let blocks = (bytes * 2) >> 12;
    node.run_ok(&format!(
        "set -e; mkfs.ext4 -q -F -b 4096 -E lazy_itable_init=1,nodiscard {disk} {blocks}; \
         mkdir -p /run/bench-fs; mount {disk} /run/bench-fs; fallocate -l {bytes} {file}"
    ))
    .context("make a file system for the loop device")?;
    let name = "the loop device's file".to_owned();
    fio::fill(node, &Region { name, path: file.to_owned(), offset: 0, bytes })?;
    let device = node.run_ok(&format!("sync; losetup --direct-io=on --show -f {file}"))?;
    let direct = node.run_ok(&format!("cat /sys/class/block/$(basename {device})/loop/dio"))?;
    ensure!(direct == "1", "{device} does no direct I/O");
    Ok(device)
}

/// Both regions show the same bytes: they are the same sectors.
fn same_data(node: &Node, a: &Region, b: &Region) -> Result<()> {
    let sum = |r: &Region| {
        node.run_ok(&format!(
            "dd if={} bs=64k skip={} count=16 iflag=direct,skip_bytes status=none | sha256sum",
            r.path, r.offset
        ))
    };
    ensure!(sum(a)? == sum(b)?, "{} and {} are not the same sectors", a.name, b.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_from_tables() {
        assert_eq!(parse_run("0 2048 linear 254:16 4096", "254:16", 1 << 20).unwrap(), 2 << 20);
        assert!(parse_run("0 2048 linear 254:32 4096", "254:16", 1 << 20).is_err());
        assert!(parse_run("0 1024 linear 254:16 4096", "254:16", 1 << 20).is_err());
        let two = "0 8 linear 254:16 0\n8 8 linear 254:16 64";
        assert!(parse_run(two, "254:16", 4096).is_err());
    }

    #[test]
    fn bases_are_their_own() {
        for t in Target::ALL {
            assert_eq!(t.base().base(), t.base());
            assert!(!t.base().is_control());
        }
    }
}
