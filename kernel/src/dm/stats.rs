//! I/O counters of parts of a device (Documentation/admin-guide/device-mapper/statistics.rst).
//!
//! Invariants: a set of counters is found by the name of its program and survives every swap of the table and every restart
//! of ours. Making one waits for what is in flight, so it is made before a device first serves: see
//! [`Control::ensure_device_with`]. Must not know: volumes, what the numbers are for.

use pool::units::Sectors;

use super::{control::Control, error::DmError};

/// Counters that a device keeps for equal parts of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The kernel's number for it.
    pub id: u64,
    /// First sector.
    pub start: u64,
    /// Sectors in all.
    pub len: u64,
    /// Sectors of a part; the last one may be shorter.
    pub step: u64,
}

/// What one part has done since the region was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaStat {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// Reads completed.
    pub reads: u64,
    /// Sectors read.
    pub read_sectors: u64,
    /// Writes completed.
    pub writes: u64,
    /// Sectors written.
    pub write_sectors: u64,
}

impl Control {
    /// Makes a region of `program` over the first `len` sectors, in parts of `step`; its number.
    ///
    /// Waits for what is in flight on the device.
    pub fn stats_create(
        &self,
        uuid: &str,
        len: Sectors,
        step: Sectors,
        program: &str,
    ) -> Result<u64, DmError> {
        let said =
            self.message(uuid, 0, &format!("@stats_create 0+{} {} {program}", len.get(), step.get()))?;
        said.trim().parse().map_err(|_| strange(uuid, &said))
    }

    /// The regions of `program`.
    pub fn stats_list(&self, uuid: &str, program: &str) -> Result<Vec<Region>, DmError> {
        let said = self.message(uuid, 0, &format!("@stats_list {program}"))?;
        parse_regions(&said).ok_or_else(|| strange(uuid, &said))
    }

    /// The counters of a region, part by part.
    pub fn stats_print(&self, uuid: &str, region: u64) -> Result<Vec<AreaStat>, DmError> {
        let said = self.message(uuid, 0, &format!("@stats_print {region}"))?;
        parse_areas(&said).ok_or_else(|| strange(uuid, &said))
    }
}

fn strange(uuid: &str, said: &str) -> DmError {
    let why = format!("statistics {:?}", said.chars().take(80).collect::<String>());
    DmError::Malformed { op: "message", device: uuid.to_owned(), why }
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (start, len) = text.split_once('+')?;
    Some((start.parse().ok()?, len.parse().ok()?))
}

/// `ID: START+LEN STEP PROGRAM AUX...`, a line each.
fn parse_regions(text: &str) -> Option<Vec<Region>> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let id = words.next()?.strip_suffix(':')?.parse().ok()?;
        let (start, len) = range(words.next()?)?;
        Some(Region { id, start, len, step: words.next()?.parse().ok()? })
    };
    text.lines().filter(|l| !l.trim().is_empty()).map(one).collect()
}

/// `START+LEN` and thirteen counters, a line each.
fn parse_areas(text: &str) -> Option<Vec<AreaStat>> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, len) = range(words.next()?)?;
        let n: Vec<u64> = words.map(|w| w.parse().ok()).collect::<Option<_>>()?;
        let at = |i: usize| n.get(i).copied();
        Some(AreaStat {
            start,
            len,
            reads: at(0)?,
            read_sectors: at(2)?,
            writes: at(4)?,
            write_sectors: at(6)?,
        })
    };
    text.lines().filter(|l| !l.trim().is_empty()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_as_the_kernel_lists_them() {
        let text = "0: 0+2097152 131072 weir -\n3: 8192+100 100 weir - precise_timestamps\n";
        let all = parse_regions(text).unwrap();
        assert_eq!(all[0], Region { id: 0, start: 0, len: 2_097_152, step: 131_072 });
        assert_eq!((all.len(), all[1].id, all[1].start), (2, 3, 8192));
        assert_eq!(parse_regions(""), Some(vec![]));
        for bad in ["0 0+1 1 weir", "0: 1 1 weir", "x: 0+1 1", "0: 0+1"] {
            assert_eq!(parse_regions(bad), None, "{bad}");
        }
    }

    #[test]
    fn counters_as_the_kernel_prints_them() {
        let text = "0+8192 12 0 96 3 7 1 56 9 0 11 12 3 9\n8192+4096 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let all = parse_areas(text).unwrap();
        let first =
            AreaStat { start: 0, len: 8192, reads: 12, read_sectors: 96, writes: 7, write_sectors: 56 };
        assert_eq!(all[0], first);
        assert_eq!((all.len(), all[1].start, all[1].reads), (2, 8192, 0));
        assert_eq!(parse_areas("0+8192 1 2 3"), None);
        assert_eq!(parse_areas("0+8192 1 2 3 4 5 6 x"), None);
    }
}
