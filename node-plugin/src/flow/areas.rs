//! Coarse counters over the parts of a volume's device, kept by the kernel (dm-stats).
//!
//! Invariants: they are begun once, on a device that cannot have any I/O yet: making them waits for what is in flight, which
//! may never come back from a lender that is away, or from a guard that holds a write. A device that has none is used
//! without. Must not know: what the numbers are for.

use std::collections::BTreeMap;

use kernel::dm::{AreaStat, Control, DmError, Table};
use pool::{ids::VolumeId, names::DmRole, units::Sectors};

/// Parts of a volume: each costs the kernel 104 bytes a CPU.
const PARTS: u64 = 16;
/// Parts are whole multiples of the smallest extent (4 MiB), in sectors.
const GRAIN: u64 = 8192;
/// By which name the counters are found again.
const PROGRAM: &str = "weir";

/// Sectors of a part of a device of so many.
fn step(len: u64) -> u64 {
    len.div_ceil(PARTS).div_ceil(GRAIN).max(1) * GRAIN
}

/// Begins the counters of a device that is being made, where it is the top of a volume.
pub fn begin(control: &Control, role: &DmRole, table: &Table) {
    let DmRole::Top(volume) = role else { return };
    let len = table.len().get();
    if let Err(e) = control.stats_create(&role.dm_uuid(), Sectors::new(len), Sectors::new(step(len)), PROGRAM)
    {
        tracing::warn!(%volume, error = %e, "no counters by area: what of the volume is hot stays unknown");
    }
}

/// The counters of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// Bytes of a part.
    pub part_bytes: u64,
    /// I/Os completed in each since the device was made.
    pub ios: Vec<u64>,
}

/// The counters of these volumes; one that has none is left out.
///
/// # Errors
/// The kernel's, for anything but a device that has gone meanwhile.
pub fn read(
    control: &Control,
    volumes: impl IntoIterator<Item = VolumeId>,
) -> Result<BTreeMap<VolumeId, Areas>, DmError> {
    let mut out = BTreeMap::new();
    for v in volumes {
        let uuid = DmRole::Top(v).dm_uuid();
        let found = control.stats_list(&uuid, PROGRAM).and_then(|regions| match regions.first() {
            Some(r) => control.stats_print(&uuid, r.id).map(|areas| Some((r.step, areas))),
            None => Ok(None),
        });
        match found {
            Ok(Some((step, areas))) => drop(out.insert(v, sum_up(step, &areas))),
            Ok(None) => {}
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

fn sum_up(step: u64, areas: &[AreaStat]) -> Areas {
    let ios = areas.iter().map(|a| a.reads.saturating_add(a.writes)).collect();
    Areas { part_bytes: step.saturating_mul(pool::units::SECTOR), ios }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_volume_in_whole_extents() {
        for len in [1, GRAIN, 16 * GRAIN, 16 * GRAIN + 1, 1 << 31] {
            let s = step(len);
            assert!(s.is_multiple_of(GRAIN) && s * PARTS >= len, "{len}: {s}");
            assert!(len.div_ceil(s) <= PARTS, "{len}: {s}");
        }
    }
}
