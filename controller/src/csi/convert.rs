//! CSI messages to and from the words of [`crate::api`].

use std::collections::BTreeMap;

use csi_proto::csi::{
    self, CapacityRange, Volume, VolumeCapability, VolumeCondition,
    volume_capability::{AccessType, access_mode::Mode as CsiMode},
};
use pool::{
    access::Mode,
    ids::{NodeName, VolumeId},
    units::Bytes,
};
use tonic::Status;

use crate::api::{ApiError, Capability, Topology, VolumeInfo};

/// What a capability asks for.
///
/// # Errors
/// INVALID_ARGUMENT when its form is wrong, or it is something that no volume of ours can do.
pub(super) fn parse_capability(c: &VolumeCapability) -> Result<Capability, Status> {
    let raw = c.access_mode.as_ref().map_or(0, |m| m.mode);
    let mode = CsiMode::try_from(raw)
        .map_err(|_| Status::invalid_argument(format!("access mode {raw} is not known")))?;
    let (block, fs_type) = match &c.access_type {
        Some(AccessType::Block(_)) => (true, String::new()),
        Some(AccessType::Mount(m)) => (false, m.fs_type.clone()),
        None => return Err(Status::invalid_argument("volume capability names neither block nor mount")),
    };
    let mode = match mode {
        CsiMode::Unknown => return Err(Status::invalid_argument("volume capability has no access mode")),
        CsiMode::SingleNodeWriter | CsiMode::SingleNodeSingleWriter | CsiMode::SingleNodeMultiWriter => {
            Mode { read_only: false, multi_node: false, upkeep: false }
        }
        CsiMode::SingleNodeReaderOnly => Mode { read_only: true, multi_node: false, upkeep: false },
        CsiMode::MultiNodeReaderOnly => Mode { read_only: true, multi_node: true, upkeep: false },
        CsiMode::MultiNodeMultiWriter if block => Mode { read_only: false, multi_node: true, upkeep: false },
        CsiMode::MultiNodeMultiWriter => {
            return Err(Status::invalid_argument(
                "ReadWriteMany is offered for raw block volumes only (volumeMode: Block): a file system that two \
                 nodes mount would be destroyed",
            ));
        }
        CsiMode::MultiNodeSingleWriter => {
            return Err(Status::invalid_argument(
                "access mode MULTI_NODE_SINGLE_WRITER is not offered: use a single-node mode",
            ));
        }
    };
    if !matches!(fs_type.as_str(), "" | "ext4" | "xfs") {
        return Err(Status::invalid_argument(format!(
            "file system {fs_type:?} is not offered: ext4 and xfs are"
        )));
    }
    Ok(Capability { block, fs_type, mode })
}

/// All capabilities of a request; there must be at least one.
pub(super) fn parse_capabilities(c: &[VolumeCapability]) -> Result<Vec<Capability>, Status> {
    if c.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities is empty: at least one is needed"));
    }
    c.iter().map(parse_capability).collect()
}

/// (required, limit); a bound that is absent is `None`.
pub(super) fn parse_range(r: Option<&CapacityRange>) -> Result<(Option<Bytes>, Option<Bytes>), Status> {
    let Some(r) = r else { return Ok((None, None)) };
    let bound = |what: &str, n: i64| match u64::try_from(n) {
        Ok(0) => Ok(None),
        Ok(n) => Ok(Some(Bytes::new(n))),
        Err(_) => {
            Err(Status::invalid_argument(format!("capacity_range.{what} is {n}: it cannot be negative")))
        }
    };
    let (required, limit) =
        (bound("required_bytes", r.required_bytes)?, bound("limit_bytes", r.limit_bytes)?);
    if let (Some(req), Some(lim)) = (required, limit)
        && lim < req
    {
        return Err(Status::out_of_range(format!(
            "limit_bytes {} is below required_bytes {}",
            lim.get(),
            req.get()
        )));
    }
    Ok((required, limit))
}

/// The id of a volume that a request names.
///
/// # Errors
/// INVALID_ARGUMENT when it is empty. A text that no volume of ours can have is `Ok(Err(text))`: unknown.
pub(super) fn parse_volume_id(s: &str) -> Result<Result<VolumeId, ApiError>, Status> {
    if s.is_empty() {
        return Err(Status::invalid_argument("volume_id is empty"));
    }
    Ok(s.parse().map_err(|_| ApiError::NoVolume(s.chars().take(128).collect())))
}

/// The node that a request names.
pub(super) fn parse_node(s: &str) -> Result<Result<NodeName, ApiError>, Status> {
    if s.is_empty() {
        return Err(Status::invalid_argument("node_id is empty"));
    }
    Ok(s.parse().map_err(|_| ApiError::NoNode(s.chars().take(128).collect())))
}

pub(super) fn parse_topology(t: Option<&csi::TopologyRequirement>) -> Topology {
    let all = |v: &[csi::Topology]| v.iter().map(parse_segments).collect();
    t.map(|t| Topology { requisite: all(&t.requisite), preferred: all(&t.preferred) }).unwrap_or_default()
}

pub(super) fn parse_segments(t: &csi::Topology) -> BTreeMap<String, String> {
    t.segments.clone().into_iter().collect()
}

pub(super) fn render_volume(v: &VolumeInfo) -> Volume {
    Volume {
        capacity_bytes: bytes_i64(v.size),
        volume_id: v.id.to_string(),
        volume_context: v.context.clone().into_iter().collect(),
        content_source: None,
        accessible_topology: v
            .accessible
            .iter()
            .map(|s| csi::Topology { segments: s.clone().into_iter().collect() })
            .collect(),
    }
}

pub(super) fn render_condition(v: &VolumeInfo) -> VolumeCondition {
    VolumeCondition {
        abnormal: v.abnormal.is_some(),
        message: v.abnormal.clone().unwrap_or_else(|| "all disks of the volume are serving".to_owned()),
    }
}

pub(super) fn render_nodes(v: &VolumeInfo) -> Vec<String> {
    v.published.iter().map(ToString::to_string).collect()
}

/// Bytes for a CSI field; sizes of real volumes fit.
pub(super) fn bytes_i64(b: Bytes) -> i64 {
    i64::try_from(b.get()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use csi_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn cap(block: bool, mode: CsiMode) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(if block {
                AccessType::Block(BlockVolume {})
            } else {
                AccessType::Mount(MountVolume::default())
            }),
        }
    }

    #[test]
    fn many_writers_only_on_block() {
        assert!(parse_capability(&cap(true, CsiMode::MultiNodeMultiWriter)).unwrap().mode.multi_node);
        let e = parse_capability(&cap(false, CsiMode::MultiNodeMultiWriter)).unwrap_err();
        assert!(e.code() == tonic::Code::InvalidArgument && e.message().contains("Block"), "{e}");
        assert!(parse_capability(&cap(true, CsiMode::MultiNodeSingleWriter)).is_err());
        assert!(parse_capability(&cap(true, CsiMode::Unknown)).is_err());
        assert!(parse_capability(&VolumeCapability::default()).is_err());
    }

    #[test]
    fn ranges_are_checked() {
        let r = |a, b| parse_range(Some(&CapacityRange { required_bytes: a, limit_bytes: b }));
        assert_eq!(r(0, 0).unwrap(), (None, None));
        assert_eq!(r(5, 9).unwrap(), (Some(Bytes::new(5)), Some(Bytes::new(9))));
        assert_eq!(r(-1, 0).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(r(9, 5).unwrap_err().code(), tonic::Code::OutOfRange);
    }
}
