//! What an NVMe device says of its own health: log page 02h (NVMe base specification, SMART / health information).
//!
//! Must not know: what is healthy enough.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// Bytes of the log page.
const PAGE: usize = 512;
/// Milliseconds that the device may take.
const PATIENCE_MS: u32 = 5000;
/// `_IOWR('N', 0x41, struct nvme_admin_cmd)` of linux/nvme_ioctl.h.
const ADMIN_CMD: libc::c_ulong =
    (3 << 30) | ((size_of::<AdminCmd>() as libc::c_ulong) << 16) | (0x4e << 8) | 0x41;
const GET_LOG_PAGE: u8 = 0x02;
const HEALTH_LOG: u32 = 0x02;
const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// struct `nvme_admin_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct AdminCmd {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// What the log page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthLog {
    /// Critical warning bits; 0 when all is well.
    pub critical_warning: u8,
    /// Degrees Celsius.
    pub temperature_c: i16,
    /// Spare blocks left, in percent.
    pub spare_percent: u8,
    /// Spare blocks below which the maker warns, in percent.
    pub spare_threshold_percent: u8,
    /// Endurance used, in percent; may pass 100.
    pub used_percent: u8,
    /// Media errors since it was made.
    pub media_errors: u64,
}

impl HealthLog {
    /// Asks the device at `path` (`/dev/nvme0n1`).
    ///
    /// # Errors
    /// The device cannot be opened, or refuses: one of another kind answers `ENOTTY`.
    pub fn read(path: &Path) -> io::Result<Self> {
        let device = File::open(path)?;
        let mut page = [0_u8; PAGE];
        let dwords = u32::try_from(PAGE / 4 - 1).unwrap_or(0);
        let mut cmd = AdminCmd {
            opcode: GET_LOG_PAGE,
            nsid: ALL_NAMESPACES,
            addr: page.as_mut_ptr() as u64,
            data_len: PAGE as u32,
            cdw10: HEALTH_LOG | (dwords << 16),
            timeout_ms: PATIENCE_MS,
            ..AdminCmd::default()
        };
        // SAFETY: the command says how long the page is, and both outlive the call.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), ADMIN_CMD as _, &raw mut cmd) };
        match rc {
            0 => Ok(Self::parse(&page)),
            n if n < 0 => Err(io::Error::last_os_error()),
            status => Err(io::Error::other(format!("the device answers status 0x{status:x}"))),
        }
    }

    /// From the bytes of the log page.
    #[must_use]
    pub fn parse(page: &[u8; PAGE]) -> Self {
        let kelvin = i32::from(u16::from_le_bytes([page[1], page[2]]));
        let errors: [u8; 8] = std::array::from_fn(|i| page[160 + i]);
        // 128 bits; more than 64 of them are as good as all.
        let beyond = page[168..176].iter().any(|b| *b != 0);
        Self {
            critical_warning: page[0],
            temperature_c: i16::try_from(kelvin - 273).unwrap_or(i16::MAX),
            spare_percent: page[3],
            spare_threshold_percent: page[4],
            used_percent: page[5],
            media_errors: if beyond { u64::MAX } else { u64::from_le_bytes(errors) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_page_of_a_drive() {
        // `nvme smart-log -b` of a data centre drive, the bytes that matter.
        let mut page = [0_u8; PAGE];
        page[..6].copy_from_slice(&[0x04, 0x36, 0x01, 100, 10, 3]);
        page[160] = 7;
        let log = HealthLog::parse(&page);
        assert_eq!((log.critical_warning, log.temperature_c), (4, 37));
        assert_eq!((log.spare_percent, log.spare_threshold_percent, log.used_percent), (100, 10, 3));
        assert_eq!(log.media_errors, 7);
        page[170] = 1;
        assert_eq!(HealthLog::parse(&page).media_errors, u64::MAX);
    }

    #[test]
    fn the_command_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<AdminCmd>(), 72);
        assert_eq!(ADMIN_CMD, 0xc048_4e41);
        let e = HealthLog::read(Path::new("/dev/null")).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOTTY));
    }
}
