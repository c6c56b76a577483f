//! What a user does wrong: the code is the specification's, and the message says what is wrong with which object.

use anyhow::{Context, Result, ensure};
use csi_proto::csi::{
    VolumeCapability,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use tonic::Code;

use super::{Case, Run, verifier::refused};
use crate::cluster::{
    Cluster,
    clients::{NewVolume, Use, publish_path},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "errors/parameters",
        about: "volumes that cannot be are refused, with the reason",
        run: Run::On(parameters),
    },
    Case {
        name: "errors/room",
        about: "a volume too large is refused with what is missing where",
        run: Run::On(room),
    },
    Case {
        name: "errors/in-use",
        about: "what is in use is neither deleted nor given away, and the holder is named",
        run: Run::On(in_use),
    },
    Case {
        name: "errors/order",
        about: "calls in the wrong order, or on what does not exist",
        run: Run::On(order),
    },
];

/// A volume that nobody could object to.
const PLAIN: NewVolume<'static> =
    NewVolume { name: "plain", bytes: 64 << 20, usage: Use::Block, beside: None, parameters: &[] };

fn parameters(c: &Cluster) -> Result<()> {
    type Row = (&'static str, [(&'static str, &'static str); 1], &'static [&'static str]);
    let table: [Row; 7] = [
        ("an unknown parameter", [("colour", "blue")], &["colour", "locality", "maxLenders"]),
        ("a bad locality", [("locality", "maybe")], &["locality", "maybe", "prefer", "require", "none"]),
        ("an unknown pool", [("pool", "nosuch")], &["nosuch", "default"]),
        ("no number", [("maxLenders", "many")], &["maxLenders", "many", "64"]),
        ("an unknown layout", [("layout", "heap")], &["layout", "heap", "linear", "striped"]),
        ("an unknown file system", [("fsType", "btrfs")], &["btrfs", "ext4", "xfs"]),
        ("a limit of nothing", [("iops", "0")], &["iops", "above 0"]),
    ];
    for (what, parameters, words) in table {
        let new = NewVolume { parameters: &parameters, ..PLAIN };
        refused(what, c.csi().create(&new), Code::InvalidArgument, words)?;
    }
    let new = NewVolume { usage: Use::Fs("btrfs"), ..PLAIN };
    refused("a volume with btrfs", c.csi().create(&new), Code::InvalidArgument, &["btrfs", "ext4", "xfs"])?;
    let shared = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".to_owned(),
            ..Default::default()
        })),
    };
    let made = c.csi().create_as(&PLAIN, vec![shared]);
    refused("a shared file system", made, Code::InvalidArgument, &["ReadWriteMany", "volumeMode: Block"])?;
    let unnamed = NewVolume { name: "", ..PLAIN };
    refused("a volume without a name", c.csi().create(&unnamed), Code::InvalidArgument, &["name"])
}

fn room(c: &Cluster) -> Result<()> {
    let disk = c.spec().disk_size;
    let all = disk * u64::from(c.spec().nodes) * u64::from(c.spec().disks);
    let too_large = NewVolume { bytes: all * 2, ..PLAIN };
    let words = ["pool default", "n1", "n2", "n3", "missing"];
    refused("twice the pool", c.csi().create(&too_large), Code::ResourceExhausted, &words)?;
    let local = NewVolume {
        bytes: disk + (disk >> 1),
        beside: Some("n2"),
        parameters: &[("locality", "require")],
        ..PLAIN
    };
    let words = ["locality: require", "no node", "384", "252"];
    refused("more than any node has", c.csi().create(&local), Code::ResourceExhausted, &words)?;
    let few = NewVolume {
        bytes: 2 * disk + (disk >> 1),
        beside: Some("n1"),
        parameters: &[("maxLenders", "1")],
        ..PLAIN
    };
    let words = ["2 nodes", "1 are allowed", "maxLenders"];
    refused("more than one lender has", c.csi().create(&few), Code::ResourceExhausted, &words)?;
    let id = c.csi().create(&PLAIN)?;
    let grown = c.csi().expand(&id, all * 2);
    let e = grown.err().context("a volume grew to twice the pool")?;
    ensure!(
        matches!(e.code(), Code::ResourceExhausted | Code::OutOfRange) && e.message().contains("missing"),
        "{:?}: {}",
        e.code(),
        e.message()
    );
    c.csi().delete(&id)?;
    Ok(())
}

fn in_use(c: &Cluster) -> Result<()> {
    let id = c.csi().create(&NewVolume { beside: Some("n1"), ..PLAIN })?;
    let differs = c.csi().create(&NewVolume { bytes: 128 << 20, ..PLAIN });
    refused("the same name, another size", differs, Code::AlreadyExists, &["plain", "67108864"])?;
    c.node_csi(1)?.attach(&id, Use::Block)?;
    refused("deleting what is in use", c.csi().delete(&id), Code::FailedPrecondition, &["n1", "detach"])?;
    let other = c.node_csi(2)?.stage(&id, Use::Block);
    refused("attaching what n1 holds", other, Code::FailedPrecondition, &["n1"])?;
    let other = c.node_csi(2)?.stage(&id, Use::SharedBlock);
    refused("sharing what n1 holds alone", other, Code::FailedPrecondition, &["n1"])?;
    let unstaged = c.node_csi(1)?.unstage(&id);
    refused("unstaging what is published", unstaged, Code::FailedPrecondition, &["unpublish"])?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn order(c: &Cluster) -> Result<()> {
    let ghost = "0190a0a0-0000-7000-8000-000000000000";
    let n1 = c.node_csi(1)?;
    refused("staging a ghost", n1.stage(ghost, Use::Block), Code::NotFound, &[ghost])?;
    refused("growing a ghost", c.csi().expand(ghost, 1 << 30), Code::NotFound, &[ghost])?;
    c.csi().delete(ghost).context("deleting what is not there is done already")?;
    let id = c.csi().create(&PLAIN)?;
    let early = n1.publish(&id, Use::Block);
    refused("publishing before staging", early, Code::FailedPrecondition, &["stage"])?;
    n1.detach(&id).context("unpublishing and unstaging what never was is done already")?;
    let dev = n1.attach(&id, Use::Block)?;
    c.node(1).run_ok(&format!("mkfs.ext4 -q {dev}"))?;
    n1.detach(&id)?;
    let foreign = n1.stage(&id, Use::Fs("xfs"));
    refused("xfs on ext4", foreign, Code::FailedPrecondition, &["ext4", "xfs"])?;
    let left = c.node(1).run_ok(&format!("ls {} 2>/dev/null; true", publish_path(&id)))?;
    ensure!(left.is_empty(), "{left} was left behind");
    n1.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}
