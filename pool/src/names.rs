//! The one place that mints the names under which Weir's objects stand in the kernel: device-mapper names and
//! UUIDs, NVMe qualified names, slice ids. After a restart the node plugin reads them back with [`DmRole::parse`].
//!
//! Lengths: device-mapper keeps names and UUIDs in 128 bytes each with the final zero (`DM_NAME_LEN`,
//! `DM_UUID_LEN` in linux/dm-ioctl.h), so 127 characters at most; an NQN has at most 223 bytes (NVMe base
//! specification, 4.7). The tests hold every minted form against them.

use std::fmt::Write as _;

use crate::ids::{DiskId, NodeName, SliceId, VolumeId};

/// What a device-mapper device of Weir is for. The UUID carries it in full, the name is the readable twin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DmRole {
    /// The device that the VM opens.
    Top(VolumeId),
    /// The volume's real map, below a guard, while one stands.
    Map(VolumeId),
    /// The write leg of a guard: fails what reaches it.
    WriteLeg(VolumeId),
    /// Bio-based multipath above one imported slice.
    Leg(VolumeId, DiskId),
    /// The slice of a disk of the consumer's own, laid out as a lender's is: the path of a leg whose disk has come here.
    Near(VolumeId, DiskId),
    /// The mirror through which a volume's consumer fills a spare.
    Mirror(VolumeId),
    /// A lender's slice for one consumer; the tag is [`consumer_tag`].
    Slice(VolumeId, DiskId, u64),
}

/// What every device-mapper UUID of Weir begins with.
pub const DM_UUID_PREFIX: &str = "WEIR-";

impl DmRole {
    /// The volume it belongs to.
    pub fn volume(&self) -> VolumeId {
        match self {
            DmRole::Top(v)
            | DmRole::Map(v)
            | DmRole::WriteLeg(v)
            | DmRole::Mirror(v)
            | DmRole::Leg(v, _)
            | DmRole::Near(v, _)
            | DmRole::Slice(v, _, _) => *v,
        }
    }

    /// The device-mapper name. The top device is `weir-<volume id>`, which people see as `/dev/mapper/weir-...`.
    pub fn dm_name(&self) -> String {
        match self {
            DmRole::Top(v) => format!("weir-{v}"),
            DmRole::Map(v) => format!("weir-{v}-map"),
            DmRole::WriteLeg(v) => format!("weir-{v}-wr"),
            DmRole::Mirror(v) => format!("weir-{v}-mirror"),
            DmRole::Leg(v, d) => format!("weir-{v}-leg-{d}"),
            DmRole::Near(v, d) => format!("weir-{v}-near-{d}"),
            DmRole::Slice(v, d, c) => format!("weir-{}-slice-{}-{c:016x}", v.simple(), d.simple()),
        }
    }

    /// The device-mapper UUID: the truth about what the device is, immutable in the kernel.
    pub fn dm_uuid(&self) -> String {
        match self {
            DmRole::Top(v) => format!("{DM_UUID_PREFIX}top-{}", v.simple()),
            DmRole::Map(v) => format!("{DM_UUID_PREFIX}map-{}", v.simple()),
            DmRole::WriteLeg(v) => format!("{DM_UUID_PREFIX}wr-{}", v.simple()),
            DmRole::Mirror(v) => format!("{DM_UUID_PREFIX}mirror-{}", v.simple()),
            DmRole::Leg(v, d) => format!("{DM_UUID_PREFIX}leg-{}-{}", v.simple(), d.simple()),
            DmRole::Near(v, d) => format!("{DM_UUID_PREFIX}near-{}-{}", v.simple(), d.simple()),
            DmRole::Slice(v, d, c) => format!("{DM_UUID_PREFIX}slice-{}-{}-{c:016x}", v.simple(), d.simple()),
        }
    }

    /// The role that a device-mapper UUID carries, or `None` when it is not one of ours.
    pub fn parse(dm_uuid: &str) -> Option<DmRole> {
        let mut parts = dm_uuid.strip_prefix(DM_UUID_PREFIX)?.split('-');
        let kind = parts.next()?;
        let volume: VolumeId = parts.next()?.parse().ok()?;
        let role = match kind {
            "top" => DmRole::Top(volume),
            "map" => DmRole::Map(volume),
            "wr" => DmRole::WriteLeg(volume),
            "mirror" => DmRole::Mirror(volume),
            "leg" => DmRole::Leg(volume, parts.next()?.parse().ok()?),
            "near" => DmRole::Near(volume, parts.next()?.parse().ok()?),
            "slice" => {
                let disk = parts.next()?.parse().ok()?;
                DmRole::Slice(volume, disk, u64::from_str_radix(parts.next()?, 16).ok()?)
            }
            _ => return None,
        };
        (parts.next().is_none() && role.dm_uuid() == dm_uuid).then_some(role)
    }
}

/// Name and UUID of the small device that holds a served disk. Device-mapper opens what it maps exclusively, for
/// itself: while it stands, tables of ours may map the disk, and mkfs, mount and the like are refused.
pub fn disk_hold(disk: DiskId) -> (String, String) {
    (format!("weir-hold-{disk}"), format!("{DM_UUID_PREFIX}hold-{}", disk.simple()))
}

/// The disk that a device-mapper UUID of [`disk_hold`] names.
pub fn parse_disk_hold(dm_uuid: &str) -> Option<DiskId> {
    let disk: DiskId = dm_uuid.strip_prefix(DM_UUID_PREFIX)?.strip_prefix("hold-")?.parse().ok()?;
    (disk_hold(disk).1 == dm_uuid).then_some(disk)
}

/// The 128 bits by which labels know the system that a controller says it is of: a UUID as it is, other text by
/// its hash.
pub fn system_uid(text: &str) -> u128 {
    uuid::Uuid::try_parse(text).map_or_else(|_| fnv128(&[b"system", text.as_bytes()]), |u| u.as_u128())
}

/// What every NQN of Weir begins with. The date is that of the name's first use, as the NVMe base specification
/// asks.
pub const NQN_PREFIX: &str = "nqn.2026-01.storage.weir:";

/// The subsystem through which one consumer reaches its slices on one disk. One per (consumer, disk): a disk that
/// stalls stalls every namespace behind its controller, hence the disk in the key.
///
/// Long node names are cut and told apart by [`consumer_tag`].
pub fn subsystem_nqn(disk: DiskId, consumer: &NodeName) -> String {
    format!("{NQN_PREFIX}disk:{}:{:016x}:{consumer:.96}", disk.simple(), consumer_tag(consumer))
}

/// The host NQN with which a node connects, and which lenders admit.
pub fn host_nqn(node: &NodeName) -> String {
    format!("{NQN_PREFIX}node:{node}")
}

/// The host id that goes with [`host_nqn`]: the kernel wants one host id for one host NQN.
pub fn host_id(node: &NodeName) -> String {
    let id = SliceId::from_u128(fnv128(&[b"host", node.as_str().as_bytes()]));
    id.to_string()
}

/// Whether a subsystem is ours, and if so for which disk and consumer tag.
pub fn parse_subsystem_nqn(nqn: &str) -> Option<(DiskId, u64)> {
    let mut p = nqn.strip_prefix(NQN_PREFIX)?.strip_prefix("disk:")?.splitn(3, ':');
    Some((p.next()?.parse().ok()?, u64::from_str_radix(p.next()?, 16).ok()?))
}

/// 64 bits that stand for a consumer where its whole name has no room.
pub fn consumer_tag(consumer: &NodeName) -> u64 {
    let h = fnv128(&[b"consumer", consumer.as_str().as_bytes()]);
    (h >> 64) as u64 ^ h as u64
}

/// The id of what `consumer` sees of `volume` on `disk`: the uuid of the NVMe namespace, the same for as long as
/// the three are the same.
pub fn slice_id(volume: VolumeId, disk: DiskId, consumer: &NodeName) -> SliceId {
    let h = fnv128(&[&volume.to_bytes(), &disk.to_bytes(), consumer.as_str().as_bytes()]);
    // Version 8 and the RFC 9562 variant: a UUID whose bits are the maker's own.
    SliceId::from_u128(h & !(0xf << 76) & !(0x3 << 62) | 0x8 << 76 | 0x2 << 62)
}

/// FNV-1a over 128 bits (draft-eastlake-fnv), each part preceded by its length. Not a defence against someone
/// who picks names to collide: ids are drawn by the controller, and names are admitted by it.
fn fnv128(parts: &[&[u8]]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
    let mut h: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut eat = |b: u8| h = (h ^ u128::from(b)).wrapping_mul(PRIME);
    for p in parts {
        (p.len() as u64).to_le_bytes().into_iter().for_each(&mut eat);
        p.iter().copied().for_each(&mut eat);
    }
    h
}

/// A device-mapper table line's device argument.
pub fn dm_dev(major: u32, minor: u32) -> String {
    let mut s = String::with_capacity(12);
    write!(s, "{major}:{minor}").expect("writing to a String");
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles() -> Vec<DmRole> {
        let (v, d) = (VolumeId::from_u128(u128::MAX), DiskId::from_u128(u128::MAX - 1));
        vec![
            DmRole::Top(v),
            DmRole::Map(v),
            DmRole::WriteLeg(v),
            DmRole::Mirror(v),
            DmRole::Leg(v, d),
            DmRole::Near(v, d),
            DmRole::Slice(v, d, u64::MAX),
        ]
    }

    #[test]
    fn device_mapper_names_fit_and_read_back() {
        for r in roles() {
            assert!(r.dm_name().len() <= 127 && r.dm_uuid().len() <= 127, "{r:?}");
            assert_eq!(DmRole::parse(&r.dm_uuid()), Some(r));
        }
        for foreign in ["", "LVM-abc", "WEIR-", "WEIR-top-xyz", "WEIR-top-00000000000000000000000000000001-9"]
        {
            assert_eq!(DmRole::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_hold_is_no_role_and_reads_back() {
        let d = DiskId::from_u128(u128::MAX);
        let (name, uuid) = disk_hold(d);
        assert!(name.len() <= 127 && uuid.len() <= 127);
        assert_eq!(parse_disk_hold(&uuid), Some(d));
        assert_eq!(DmRole::parse(&uuid), None);
        assert!(roles().iter().all(|r| parse_disk_hold(&r.dm_uuid()).is_none()));
    }

    #[test]
    fn systems_are_told_apart() {
        assert_eq!(system_uid("00000000-0000-0000-0000-0000000000aa"), 0xaa);
        assert_eq!(system_uid("weir"), system_uid("weir"));
        assert_ne!(system_uid("weir"), system_uid("weir2"));
    }

    #[test]
    fn qualified_names_fit_and_read_back() {
        let long: NodeName = "n".repeat(128).parse().unwrap();
        let d = DiskId::from_u128(7);
        let nqn = subsystem_nqn(d, &long);
        assert!(nqn.len() <= 223 && host_nqn(&long).len() <= 223, "{}", nqn.len());
        assert_eq!(parse_subsystem_nqn(&nqn), Some((d, consumer_tag(&long))));
        assert_eq!(parse_subsystem_nqn(&host_nqn(&long)), None);
    }

    #[test]
    fn slice_ids_differ_by_each_part_and_are_uuids_of_version_8() {
        let (v, d, n) = (VolumeId::from_u128(1), DiskId::from_u128(1), "n1".parse::<NodeName>().unwrap());
        let a = slice_id(v, d, &n);
        assert_eq!(a, slice_id(v, d, &n));
        assert_ne!(a, slice_id(VolumeId::from_u128(2), d, &n));
        assert_ne!(a, slice_id(v, DiskId::from_u128(2), &n));
        assert_ne!(a, slice_id(v, d, &"n2".parse().unwrap()));
        assert_eq!(a.to_string().as_bytes()[14], b'8');
    }
}
