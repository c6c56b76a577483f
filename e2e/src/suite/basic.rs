//! Volumes made, used, grown and deleted, without faults.

use anyhow::{Result, ensure};

use super::{Case, Run, check_pattern, write_pattern};
use crate::cluster::{
    Cluster,
    clients::{NewVolume, Use},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "basic/local",
        about: "a volume beside its node, written and read back",
        run: Run::On(local),
    },
    Case {
        name: "basic/borrow",
        about: "a volume larger than any node, written from one and read from another",
        run: Run::On(borrow),
    },
    Case {
        name: "basic/filesystems",
        about: "ext4 and xfs made, filled, grown while mounted",
        run: Run::On(filesystems),
    },
    Case {
        name: "basic/wipe",
        about: "a deleted volume's extents read as zeros to the next one",
        run: Run::On(wipe),
    },
];

fn local(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&NewVolume {
        name: "local",
        bytes: 64 << 20,
        usage: Use::Block,
        beside: Some("n1"),
        parameters: &[],
    })?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    write_pattern(c.node(1), &dev, 64, 1)?;
    check_pattern(c.node(1), &dev, 64, 1)?;
    let s = c.survey()?;
    let disks: Vec<_> = s["disks"].as_array().into_iter().flatten().filter(|d| d["node"] == "n1").collect();
    let row = crate::cluster::find_volume(&s, &id).cloned().unwrap_or_default();
    for seg in row["segments"].as_array().into_iter().flatten() {
        ensure!(disks.iter().any(|d| d["disk"] == seg[2]), "a segment lies on another node: {row}");
    }
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

/// Bytes that no single node of a cluster has.
pub(super) fn too_large_for_one(c: &Cluster) -> u64 {
    let node = u64::from(c.spec().disks) * c.spec().disk_size;
    (node + node / 4) >> 20 << 20
}

fn borrow(c: &Cluster) -> Result<()> {
    let bytes = too_large_for_one(c);
    let id = c.csi().create(&NewVolume {
        name: "borrow",
        bytes,
        usage: Use::Block,
        beside: Some("n1"),
        parameters: &[],
    })?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    // The beginning lies beside n1, the end was borrowed; an emulated node takes minutes to write all of it.
    const MIB: u64 = 16;
    let tail = (bytes >> 20) - MIB;
    write_pattern(c.node(1), &dev, MIB, 2)?;
    write_tail(c, 1, &dev, tail)?;
    c.node_csi(1)?.detach(&id)?;
    let dev = c.node_csi(3)?.attach(&id, Use::Block)?;
    check_pattern(c.node(3), &dev, MIB, 2)?;
    check_tail(c, 3, &dev, tail)?;
    c.node_csi(3)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

/// Writes a block at `mib` from the start of the device, and makes it durable.
fn write_tail(c: &Cluster, n: u8, dev: &str, mib: u64) -> Result<()> {
    let script = format!(
        "printf '%-4096s' 'borrowed' | dd of={dev} bs=4096 seek={} oflag=direct iflag=fullblock \
         conv=notrunc,fsync status=none",
        mib << 8
    );
    c.node(n).run_ok(&script).map(drop)
}

fn check_tail(c: &Cluster, n: u8, dev: &str, mib: u64) -> Result<()> {
    let script = format!("dd if={dev} bs=4096 skip={} count=1 iflag=direct status=none", mib << 8);
    let got = c.node(n).run_ok(&script)?;
    ensure!(got.trim_end() == "borrowed", "the borrowed end reads {:?}", &got[..got.len().min(40)]);
    Ok(())
}

fn filesystems(c: &Cluster) -> Result<()> {
    for fs in ["ext4", "xfs"] {
        let usage = Use::Fs(fs);
        // xfs makes nothing smaller than 300 MB.
        let id = c.csi().create(&NewVolume {
            name: fs,
            bytes: 512 << 20,
            usage,
            beside: Some("n2"),
            parameters: &[],
        })?;
        let node = c.node(2);
        let csi = c.node_csi(2)?;
        let dir = csi.attach(&id, usage)?;
        let size = |dir: &str| -> Result<u64> {
            Ok(node.run_ok(&format!("df -B1 --output=size {dir} | tail -1"))?.trim().parse()?)
        };
        node.run_ok(&format!("dd if=/dev/urandom of={dir}/data bs=1M count=32 conv=fsync status=none"))?;
        let sum = node.run_ok(&format!("sha256sum <{dir}/data"))?;
        let before = size(&dir)?;
        let grown = c.csi().expand(&id, 768 << 20)?;
        csi.expand(&id, grown, usage)?;
        ensure!(size(&dir)? > before + (128 << 20), "{fs} did not grow: {before} and then {}", size(&dir)?);
        csi.detach(&id)?;
        let dir = csi.attach(&id, usage)?;
        ensure!(node.run_ok(&format!("sha256sum <{dir}/data"))? == sum, "{fs} lost its data");
        csi.detach(&id)?;
        c.csi().delete(&id)?;
    }
    Ok(())
}

fn wipe(c: &Cluster) -> Result<()> {
    let make = |name| {
        c.csi().create(&NewVolume {
            name,
            bytes: 900 << 20,
            usage: Use::Block,
            beside: Some("n1"),
            parameters: &[("locality", "require")],
        })
    };
    let first = make("wipe-1")?;
    let dev = c.node_csi(1)?.attach(&first, Use::Block)?;
    write_pattern(c.node(1), &dev, 64, 3)?;
    c.node_csi(1)?.detach(&first)?;
    c.csi().delete(&first)?;
    // There is no room for the second one but the first one's.
    let mut second = Err(anyhow::anyhow!("not tried"));
    crate::wait::until("room for the next volume", crate::cluster::PATIENCE, || {
        second = make("wipe-2").map_err(Into::into);
        Ok(second.is_ok().then_some(()))
    })?;
    let second = second?;
    let dev = c.node_csi(1)?.attach(&second, Use::Block)?;
    let zeros = c
        .node(1)
        .run_ok(&format!("dd if={dev} bs=1M count=64 iflag=direct status=none | tr -d '\\0' | wc -c"))?;
    ensure!(zeros.trim() == "0", "{zeros} bytes of the former volume can be read");
    c.node_csi(1)?.detach(&second)?;
    c.csi().delete(&second)?;
    Ok(())
}
