//! What a disk of any kind says of its own health. Must not know: what is healthy enough.

use std::{io, path::Path};

use crate::{nvme::HealthLog, scsi::DiskHealth};

/// What a disk says; `None` for what its kind does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// It warns by its own thresholds: that it will fail soon, or is out of its bounds (SMART, SCSI's
    /// informational exceptions).
    pub fails: Option<bool>,
    /// NVMe's critical warning bits; 0 when all is well.
    pub critical_warning: Option<u8>,
    /// Spare blocks left, in percent.
    pub spare_percent: Option<u8>,
    /// Spare blocks below which the maker warns, in percent.
    pub spare_threshold_percent: Option<u8>,
    /// Endurance used, in percent; may pass 100.
    pub used_percent: Option<u8>,
    /// Media errors since it was made.
    pub media_errors: Option<u64>,
    /// Degrees Celsius.
    pub temperature_c: Option<i16>,
}

impl Health {
    /// Asks the disk `name` (`nvme0n1`, `sda`) under /dev.
    ///
    /// # Errors
    /// It cannot be opened, or does not answer: virtual disks and old ones do not.
    pub fn read(name: &str) -> io::Result<Self> {
        let path = Path::new("/dev").join(name);
        if name.starts_with("nvme") {
            HealthLog::read(&path).map(Self::from)
        } else {
            DiskHealth::read(&path).map(Self::from)
        }
    }
}

impl From<HealthLog> for Health {
    fn from(log: HealthLog) -> Self {
        Self {
            fails: None,
            critical_warning: Some(log.critical_warning),
            spare_percent: Some(log.spare_percent),
            spare_threshold_percent: Some(log.spare_threshold_percent),
            used_percent: Some(log.used_percent),
            media_errors: Some(log.media_errors),
            temperature_c: Some(log.temperature_c),
        }
    }
}

impl From<DiskHealth> for Health {
    fn from(said: DiskHealth) -> Self {
        let DiskHealth { fails, used_percent, media_errors, temperature_c } = said;
        Self { fails, used_percent, media_errors, temperature_c, ..Self::default() }
    }
}
