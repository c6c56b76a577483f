//! What a SCSI or SATA disk says of its own health, by SG_IO: log pages 03h, 11h and 2Fh (SPC-4, SBC-3), or SMART's status
//! through an ATA pass-through (SAT-3, ACS-2).
//!
//! Invariants: a page that the disk refuses or cuts says nothing; only what a disk answers counts. Must not know: what is
//! healthy enough.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

/// `SG_IO` of scsi/sg.h.
const SG_IO: libc::c_ulong = 0x2285;
/// Milliseconds that a command may take.
const PATIENCE_MS: u32 = 5000;
/// Bytes of a log page that are read: those asked for are shorter.
const PAGE: usize = 512;
const SENSE: usize = 64;

const INQUIRY: u8 = 0x12;
const LOG_SENSE: u8 = 0x4d;
const ATA_PASS_THROUGH_16: u8 = 0x85;
/// Current cumulative values, in the page control field of LOG SENSE.
const CUMULATIVE: u8 = 0x40;

const READ_ERRORS: u8 = 0x03;
const SOLID_STATE: u8 = 0x11;
const INFORMATIONAL: u8 = 0x2f;

/// struct `sg_io_hdr` of scsi/sg.h.
#[repr(C)]
struct SgIo {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

const TO_NOBODY: i32 = -1;
const FROM_DEVICE: i32 = -3;
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;

/// What a disk says; `None` for what it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskHealth {
    /// It warns by its own thresholds: that it will fail soon, or is out of its bounds.
    pub fails: Option<bool>,
    /// Endurance used, in percent; at most 255.
    pub used_percent: Option<u8>,
    /// Reads that it could not do, since it was made.
    pub media_errors: Option<u64>,
    /// Degrees Celsius.
    pub temperature_c: Option<i16>,
}

impl DiskHealth {
    /// Asks the disk at `path` (`/dev/sda`).
    ///
    /// # Errors
    /// The device cannot be opened, is no SCSI device (`ENOTTY`, say), or answers nothing of all this.
    pub fn read(path: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut about = [0; 36];
        command(&device, &[INQUIRY, 0, 0, 0, 36, 0], &mut about)?;
        let said = if is_ata(&about) { Self::of_ata(&device)? } else { Self::of_scsi(&device) };
        if said == Self::default() {
            return Err(io::Error::other("the disk says nothing of its health"));
        }
        Ok(said)
    }

    fn of_ata(device: &File) -> io::Result<Self> {
        let done = command(device, &smart_return_status(), &mut [])?;
        Ok(Self { fails: ata_fails(&done.sense), ..Self::default() })
    }

    fn of_scsi(device: &File) -> Self {
        let page = |code| {
            let mut page = [0; PAGE];
            let cdb = log_sense(code);
            let answer = command(device, &cdb, &mut page).ok().filter(|done| done.status == GOOD);
            answer.map(|done| page[..done.bytes].to_vec()).unwrap_or_default()
        };
        Self::of_pages(&page(INFORMATIONAL), &page(READ_ERRORS), &page(SOLID_STATE))
    }

    /// From the bytes of log pages 2Fh (informational exceptions), 03h (read errors) and 11h (solid state media); an empty
    /// one was not given.
    #[must_use]
    pub fn of_pages(informational: &[u8], read_errors: &[u8], solid_state: &[u8]) -> Self {
        let said = parameter(informational, INFORMATIONAL, 0x0000);
        // Additional sense codes 5Dh (failure prediction threshold exceeded) and 0Bh (a warning: too hot, degraded).
        let fails = said.and_then(|p| p.first()).map(|asc| matches!(asc, 0x5d | 0x0b));
        // FFh is "not known", and so is 0 for many.
        let degrees = said.and_then(|p| p.get(2)).filter(|c| !matches!(c, 0 | 0xff));
        let lost = parameter(read_errors, READ_ERRORS, 0x0006);
        Self {
            fails,
            used_percent: parameter(solid_state, SOLID_STATE, 0x0001).and_then(|p| p.get(3)).copied(),
            media_errors: lost
                .map(|p| p.iter().fold(0_u64, |n, b| n.saturating_mul(256).saturating_add((*b).into()))),
            temperature_c: degrees.map(|c| i16::from(*c)),
        }
    }
}

/// SAT names the vendor of what stands behind it so.
fn is_ata(inquiry: &[u8; 36]) -> bool {
    &inquiry[8..16] == b"ATA     "
}

fn log_sense(page: u8) -> [u8; 10] {
    let [high, low] = (PAGE as u16).to_be_bytes();
    [LOG_SENSE, 0, CUMULATIVE | page, 0, 0, 0, 0, high, low, 0]
}

/// SMART RETURN STATUS: command B0h, feature DAh, its signature in LBA mid and high; no data, registers wanted back.
fn smart_return_status() -> [u8; 16] {
    const NO_DATA: u8 = 3 << 1;
    const REGISTERS_BACK: u8 = 1 << 5;
    let mut cdb = [0; 16];
    cdb[0] = ATA_PASS_THROUGH_16;
    cdb[1] = NO_DATA;
    cdb[2] = REGISTERS_BACK;
    cdb[4] = 0xda;
    cdb[10] = 0x4f;
    cdb[12] = 0xc2;
    cdb[14] = 0xb0;
    cdb
}

/// What SMART's signature came back as: unchanged, all is well; turned round (F4h, 2Ch), a threshold is exceeded. The
/// registers come in a descriptor of kind 09h, or in the fixed format's fields.
fn ata_fails(sense: &[u8]) -> Option<bool> {
    let signature = match sense.first()? & 0x7f {
        0x72 | 0x73 => {
            let mut rest = sense.get(8..)?;
            loop {
                let [kind, more, ..] = *rest else { return None };
                let descriptor = rest.get(..usize::from(more) + 2)?;
                if kind == 0x09 {
                    break (*descriptor.get(9)?, *descriptor.get(11)?);
                }
                rest = &rest[descriptor.len()..];
            }
        }
        0x70 | 0x71 => (*sense.get(10)?, *sense.get(11)?),
        _ => return None,
    };
    match signature {
        (0x4f, 0xc2) => Some(false),
        (0xf4, 0x2c) => Some(true),
        _ => None,
    }
}

/// The value of a log page's parameter; `None` when the page is another one or has no such parameter.
fn parameter(page: &[u8], code: u8, wanted: u16) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    if page[0] & 0x3f != code {
        return None;
    }
    let mut rest = &page[4..page.len().min(4 + length)];
    while let [high, low, _, bytes, ..] = *rest {
        let end = 4 + usize::from(bytes);
        let value = rest.get(4..end)?;
        if u16::from_be_bytes([high, low]) == wanted {
            return Some(value);
        }
        rest = &rest[end..];
    }
    None
}

/// How a command ended.
struct Done {
    status: u8,
    sense: Vec<u8>,
    /// Of the data.
    bytes: usize,
}

fn command(device: &File, cdb: &[u8], data: &mut [u8]) -> io::Result<Done> {
    let mut sense = [0; SENSE];
    let mut io = SgIo {
        interface_id: i32::from(b'S'),
        dxfer_direction: if data.is_empty() { TO_NOBODY } else { FROM_DEVICE },
        cmd_len: u8::try_from(cdb.len()).map_err(io::Error::other)?,
        mx_sb_len: SENSE as u8,
        iovec_count: 0,
        dxfer_len: u32::try_from(data.len()).map_err(io::Error::other)?,
        dxferp: data.as_mut_ptr(),
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: PATIENCE_MS,
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the header says how long command, data and sense are, and all of them outlive the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), SG_IO as _, &raw mut io) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if io.host_status != 0 || !matches!(io.status, GOOD | CHECK_CONDITION) {
        return Err(io::Error::other(format!(
            "the command ended with status 0x{:x}, the host adapter's 0x{:x}",
            io.status, io.host_status
        )));
    }
    let left = usize::try_from(io.resid).unwrap_or(0);
    Ok(Done {
        status: io.status,
        sense: sense[..usize::from(io.sb_len_wr).min(SENSE)].to_vec(),
        bytes: data.len().saturating_sub(left),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(code: u8, parameters: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![];
        for (number, value) in parameters {
            body.extend(number.to_be_bytes());
            body.extend([0x03, value.len() as u8]);
            body.extend(*value);
        }
        let mut page = vec![code, 0];
        page.extend((body.len() as u16).to_be_bytes());
        page.extend(body);
        page
    }

    #[test]
    fn log_pages_are_read_and_what_is_missing_says_nothing() {
        let well = page(0x2f, &[(0, &[0, 0, 38, 70])]);
        let errors = page(0x03, &[(0, &[0, 9]), (6, &[0, 0, 1, 2])]);
        let worn = page(0x11, &[(1, &[0, 0, 0, 12])]);
        let said = DiskHealth::of_pages(&well, &errors, &worn);
        let want = DiskHealth {
            fails: Some(false),
            used_percent: Some(12),
            media_errors: Some(258),
            temperature_c: Some(38),
        };
        assert_eq!(said, want);
        assert_eq!(DiskHealth::of_pages(&page(0x2f, &[(0, &[0x5d, 0x10])]), &[], &[]).fails, Some(true));
        assert_eq!(DiskHealth::of_pages(&[], &[], &[]), DiskHealth::default());
        // Another page than was asked for, a page that ends in the middle of a parameter.
        assert_eq!(DiskHealth::of_pages(&errors, &worn, &well), DiskHealth::default());
        for n in 0..errors.len() {
            let cut = DiskHealth::of_pages(&[], &errors[..n], &[]);
            assert_eq!(cut, DiskHealth::default(), "{n} bytes");
        }
        let huge = page(0x03, &[(6, &[0xff; 16])]);
        assert_eq!(DiskHealth::of_pages(&[], &huge, &[]).media_errors, Some(u64::MAX));
    }

    #[test]
    fn smart_answers_in_either_format_of_sense_data() {
        let descriptor = |mid, high| {
            let mut s = vec![0x72, 1, 0, 0x1d, 0, 0, 0, 14 + 6, 0x00, 4, 0, 0, 0, 0];
            s.extend([0x09, 0x0c, 0, 0, 0, 0, 0, 0, 0, mid, 0, high, 0, 0x50]);
            s
        };
        assert_eq!(ata_fails(&descriptor(0x4f, 0xc2)), Some(false));
        assert_eq!(ata_fails(&descriptor(0xf4, 0x2c)), Some(true));
        assert_eq!(ata_fails(&descriptor(0, 0)), None);
        let whole = descriptor(0x4f, 0xc2);
        assert!((0..whole.len()).all(|n| ata_fails(&whole[..n]).is_none()));
        let mut fixed = vec![0x70, 0, 1, 0, 0x50, 0, 0, 10, 0, 0, 0xf4, 0x2c, 0, 0x1d];
        assert_eq!(ata_fails(&fixed), Some(true));
        fixed[0] = 0x7f;
        assert_eq!(ata_fails(&fixed), None);
    }

    #[test]
    fn the_header_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<SgIo>(), 88);
        let e = DiskHealth::read(Path::new("/dev/null")).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOTTY));
    }
}
