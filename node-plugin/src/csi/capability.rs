//! Reading and judging what a caller asks for: ids, capabilities, access modes. Pure.

use csi_proto::csi::{VolumeCapability, volume_capability};
use kernel::mount::FsKind;
use pool::ids::VolumeId;

use super::error::CsiError;

pub use volume_capability::access_mode::Mode as AccessMode;

/// Block device or file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The raw device.
    Block,
    /// A mounted file system.
    Mount {
        /// The kind asked for; `None` leaves the choice to the volume.
        fs: Option<FsKind>,
        /// Mount options. May be sensitive: not to be logged.
        flags: Vec<String>,
    },
}

/// A capability that this driver can satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As what.
    pub access: Access,
    /// By whom.
    pub mode: AccessMode,
}

/// The longest string that CSI allows where it does not say otherwise.
const MAX_STRING: usize = 128;

impl Capability {
    /// From the wire. What is missing or cannot be had is `INVALID_ARGUMENT`.
    pub fn parse(cap: Option<&VolumeCapability>) -> Result<Self, CsiError> {
        use volume_capability::AccessType;
        let cap = cap.ok_or(CsiError::missing("volume_capability"))?;
        let mode = cap.access_mode.as_ref().ok_or(CsiError::missing("volume_capability.access_mode"))?;
        let mode = AccessMode::try_from(mode.mode)
            .ok()
            .filter(|m| *m != AccessMode::Unknown)
            .ok_or(CsiError::Argument("the access mode is not one that CSI 1.12 knows".to_owned()))?;
        let access = match &cap.access_type {
            None => return Err(CsiError::missing("volume_capability.access_type (block or mount)")),
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(m)) => {
                if !m.volume_mount_group.is_empty() {
                    let why =
                        "volume_mount_group is not supported: the driver does not offer VOLUME_MOUNT_GROUP";
                    return Err(CsiError::Argument(why.to_owned()));
                }
                // Flags may come as one comma-separated string, as in an fstab.
                let flags = m.mount_flags.iter().flat_map(|f| f.split(','));
                let flags = flags.map(str::trim).filter(|f| !f.is_empty()).map(str::to_owned).collect();
                Access::Mount { fs: parse_fs(&m.fs_type)?, flags }
            }
        };
        let c = Self { access, mode };
        c.check_mode()?;
        Ok(c)
    }

    /// A file system that several nodes write to at once is damaged; a device is its user's own affair.
    fn check_mode(&self) -> Result<(), CsiError> {
        if self.access == Access::Block {
            return Ok(());
        }
        match self.mode {
            AccessMode::MultiNodeMultiWriter | AccessMode::MultiNodeSingleWriter => {
                Err(CsiError::Argument(format!(
                    "{} is only possible for block volumes: {} cannot be mounted on several nodes while one of them \
                     writes; ask for volumeMode Block, or for an access mode of a single node",
                    self.mode.as_str_name(),
                    "ext4 and xfs"
                )))
            }
            AccessMode::Unknown
            | AccessMode::SingleNodeWriter
            | AccessMode::SingleNodeReaderOnly
            | AccessMode::MultiNodeReaderOnly
            | AccessMode::SingleNodeSingleWriter
            | AccessMode::SingleNodeMultiWriter => Ok(()),
        }
    }

    /// Whether the mode only reads.
    pub fn reads_only(&self) -> bool {
        matches!(self.mode, AccessMode::SingleNodeReaderOnly | AccessMode::MultiNodeReaderOnly)
    }

    /// Whether the mode admits several nodes.
    pub fn is_multi_node(&self) -> bool {
        matches!(
            self.mode,
            AccessMode::MultiNodeReaderOnly
                | AccessMode::MultiNodeSingleWriter
                | AccessMode::MultiNodeMultiWriter
        )
    }

    /// Whether it is a raw device.
    pub fn is_block(&self) -> bool {
        self.access == Access::Block
    }
}

/// A file system by name; empty leaves it open.
pub(super) fn parse_fs(name: &str) -> Result<Option<FsKind>, CsiError> {
    if name.is_empty() {
        return Ok(None);
    }
    FsKind::parse(name).map(Some).map_err(|_| {
        CsiError::Argument(format!("file system {:?} is not supported: ext4 or xfs", clip(name)))
    })
}

/// What a caller sent, short enough for a message.
fn clip(s: &str) -> String {
    s.chars().take(64).collect()
}

/// A volume id. One that no volume of ours can have is `NOT_FOUND`: as far as the caller can tell, the volume is
/// not there.
pub(super) fn volume_id(s: &str) -> Result<VolumeId, CsiError> {
    if s.is_empty() {
        return Err(CsiError::missing("volume_id"));
    }
    if s.len() > MAX_STRING {
        return Err(CsiError::Argument(format!("volume_id is longer than {MAX_STRING} bytes")));
    }
    s.parse().map_err(|_| CsiError::NoSuchVolume { volume: clip(s) })
}

#[cfg(test)]
mod tests {
    use csi_proto::csi::volume_capability as vc;
    use tonic::Code;

    use super::*;

    pub(crate) fn cap(block: bool, mode: AccessMode, fs: &str) -> VolumeCapability {
        let access_type = if block {
            vc::AccessType::Block(vc::BlockVolume {})
        } else {
            vc::AccessType::Mount(vc::MountVolume { fs_type: fs.into(), ..Default::default() })
        };
        VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(vc::AccessMode { mode: mode as i32 }),
        }
    }

    #[test]
    fn every_mode_for_block_and_mount() {
        use AccessMode as M;
        for (mode, mount) in [
            (M::SingleNodeWriter, true),
            (M::SingleNodeReaderOnly, true),
            (M::MultiNodeReaderOnly, true),
            (M::SingleNodeSingleWriter, true),
            (M::SingleNodeMultiWriter, true),
            (M::MultiNodeSingleWriter, false),
            (M::MultiNodeMultiWriter, false),
        ] {
            assert!(Capability::parse(Some(&cap(true, mode, ""))).is_ok(), "{mode:?}");
            assert_eq!(Capability::parse(Some(&cap(false, mode, ""))).is_ok(), mount, "{mode:?}");
        }
        let e = Capability::parse(Some(&cap(false, M::MultiNodeMultiWriter, "ext4"))).unwrap_err();
        assert!(e.to_string().contains("MULTI_NODE_MULTI_WRITER") && e.to_string().contains("Block"), "{e}");
    }

    #[test]
    fn what_is_missing_or_unknown_is_an_invalid_argument() {
        let good = || cap(false, AccessMode::SingleNodeWriter, "xfs");
        let mut no_type = good();
        no_type.access_type = None;
        let mut no_mode = good();
        no_mode.access_mode = None;
        let mut odd_mode = good();
        odd_mode.access_mode = Some(vc::AccessMode { mode: 99 });
        let mut group = good();
        group.access_type = Some(vc::AccessType::Mount(vc::MountVolume {
            volume_mount_group: "5".into(),
            ..Default::default()
        }));
        let cases = [None, Some(no_type), Some(no_mode), Some(odd_mode), Some(group)];
        let fs = Some(cap(false, AccessMode::SingleNodeWriter, "ntfs"));
        for c in cases.into_iter().chain([fs]) {
            let e = Capability::parse(c.as_ref()).unwrap_err();
            assert_eq!(e.status().code(), Code::InvalidArgument, "{c:?}: {e}");
        }
    }

    #[test]
    fn ids() {
        assert_eq!(volume_id("").unwrap_err().status().code(), Code::InvalidArgument);
        assert_eq!(volume_id(&"x".repeat(129)).unwrap_err().status().code(), Code::InvalidArgument);
        assert_eq!(volume_id("nobody").unwrap_err().status().code(), Code::NotFound);
        assert!(volume_id("00000000-0000-0000-0000-000000000001").is_ok());
    }
}
