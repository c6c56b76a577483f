//! Layout and numbers of linux/dm-ioctl.h (version 4). Offsets are fixed by that header's struct dm_ioctl,
//! which every architecture lays out alike.

/// Bytes of struct dm_ioctl.
pub(crate) const HEADER: usize = 312;
pub(crate) const OFF_VERSION: usize = 0;
pub(crate) const OFF_DATA_SIZE: usize = 12;
pub(crate) const OFF_DATA_START: usize = 16;
pub(crate) const OFF_TARGET_COUNT: usize = 20;
pub(crate) const OFF_OPEN_COUNT: usize = 24;
pub(crate) const OFF_FLAGS: usize = 28;
pub(crate) const OFF_EVENT_NR: usize = 32;
pub(crate) const OFF_DEV: usize = 40;
pub(crate) const OFF_NAME: usize = 48;
pub(crate) const NAME_LEN: usize = 128;
pub(crate) const OFF_UUID: usize = 176;
pub(crate) const UUID_LEN: usize = 129;

/// Bytes of struct dm_target_spec.
pub(crate) const SPEC: usize = 40;
pub(crate) const MAX_TYPE_NAME: usize = 16;

/// Commands, in the order of the header's enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cmd {
    Version = 0,
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Status = 7,
    Wait = 8,
    TableLoad = 9,
    TableClear = 10,
    TableDeps = 11,
    TableStatus = 12,
    ListVersions = 13,
    Message = 14,
    ArmPoll = 16,
}

impl Cmd {
    /// The ioctl request: `_IOWR(0xfd, cmd, struct dm_ioctl)`.
    pub(crate) fn request(self) -> libc::c_ulong {
        (3 << 30) | ((HEADER as libc::c_ulong) << 16) | (0xfd << 8) | self as libc::c_ulong
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Cmd::Version => "version",
            Cmd::ListDevices => "list devices",
            Cmd::Create => "create",
            Cmd::Remove => "remove",
            Cmd::Suspend => "suspend or resume",
            Cmd::Status => "status",
            Cmd::Wait => "wait",
            Cmd::TableLoad => "load table",
            Cmd::TableClear => "clear table",
            Cmd::TableDeps => "table dependencies",
            Cmd::TableStatus => "table status",
            Cmd::ListVersions => "list targets",
            Cmd::Message => "message",
            Cmd::ArmPoll => "arm poll",
        }
    }
}

pub(crate) mod flag {
    pub(crate) const READONLY: u32 = 1 << 0;
    pub(crate) const SUSPEND: u32 = 1 << 1;
    pub(crate) const STATUS_TABLE: u32 = 1 << 4;
    pub(crate) const ACTIVE_PRESENT: u32 = 1 << 5;
    pub(crate) const INACTIVE_PRESENT: u32 = 1 << 6;
    pub(crate) const BUFFER_FULL: u32 = 1 << 8;
    pub(crate) const SKIP_LOCKFS: u32 = 1 << 10;
    pub(crate) const NOFLUSH: u32 = 1 << 11;
    pub(crate) const QUERY_INACTIVE: u32 = 1 << 12;
    /// Asks the list of devices for UUIDs.
    pub(crate) const UUID: u32 = 1 << 14;
    pub(crate) const DATA_OUT: u32 = 1 << 16;
    pub(crate) const DEFERRED_REMOVE: u32 = 1 << 17;
}

/// What the upper half of `event_nr` tells udev when a device changes (libdevmapper.h, `DM_UDEV_*`). The lower
/// half, the cookie that libdevmapper would wait on, stays zero: nothing of ours waits for udev.
/// `DISABLE_SUBSYSTEM_RULES | DISABLE_DISK_RULES | DISABLE_OTHER_RULES`: no LVM, MD or multipath activation and
/// no by-uuid links from what a guest has written into its volume. udev may still make /dev/mapper/NAME.
pub(crate) const UDEV_FLAGS: u32 = (0x0002 | 0x0004 | 0x0008) << 16;
