//! Whether a device is fit to lend, from what it says of itself.
//!
//! Invariants: what is not said is not held against it; only what is said is. Must not know where it was read.

/// What NVMe SMART, SCSI log pages or SATA's SMART say; `None` for what a device does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HealthReport {
    /// It warns by its own thresholds: that it will fail soon, or is out of its bounds.
    pub fails: Option<bool>,
    /// NVMe's critical warning bits.
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
    /// Degrees Celsius at which the maker warns.
    pub temperature_limit_c: Option<i16>,
}

/// Why a device is not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It warns by its own thresholds.
    Fails,
    /// It warns.
    CriticalWarning {
        /// NVMe's bits.
        bits: u8,
    },
    /// It runs out of spare blocks.
    SpareLow {
        /// What is left, in percent.
        percent: u8,
    },
    /// Its endurance is used up.
    WornOut {
        /// What is used, in percent.
        percent: u8,
    },
    /// Media errors came since it was claimed.
    MediaErrors {
        /// How many.
        new: u64,
    },
    /// It is too hot.
    Hot {
        /// Degrees Celsius.
        celsius: i16,
    },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fails => f.write_str("the disk warns, by its own thresholds"),
            Self::CriticalWarning { bits } => write!(f, "the device gives a critical warning (0x{bits:02x})"),
            Self::SpareLow { percent } => write!(f, "only {percent} % of its spare blocks are left"),
            Self::WornOut { percent } => write!(f, "{percent} % of its endurance is used"),
            Self::MediaErrors { new } => write!(f, "{new} new media errors"),
            Self::Hot { celsius } => write!(f, "it is too hot ({celsius} degrees Celsius)"),
        }
    }
}

/// Spare blocks that are low where the maker gives no threshold, in percent.
const SPARE_LOW: u8 = 10;

/// What is wrong with a device, if anything; `errors_before` are the media errors it had when it was claimed.
#[must_use]
pub fn fault(report: &HealthReport, errors_before: u64) -> Option<Fault> {
    let threshold = report.spare_threshold_percent.unwrap_or(SPARE_LOW);
    let new = report.media_errors.map_or(0, |errors| errors.saturating_sub(errors_before));
    let critical =
        report.critical_warning.filter(|bits| *bits != 0).map(|bits| Fault::CriticalWarning { bits });
    let spare =
        report.spare_percent.filter(|left| *left < threshold).map(|percent| Fault::SpareLow { percent });
    let worn = report.used_percent.filter(|used| *used >= 100).map(|percent| Fault::WornOut { percent });
    let media = (new > 0).then_some(Fault::MediaErrors { new });
    let hot = report.temperature_c.zip(report.temperature_limit_c);
    let hot = hot.filter(|(is, limit)| is >= limit).map(|(celsius, _)| Fault::Hot { celsius });
    let fails = report.fails.filter(|fails| *fails).map(|_| Fault::Fails);
    fails.or(critical).or(media).or(spare).or(worn).or(hot)
}
