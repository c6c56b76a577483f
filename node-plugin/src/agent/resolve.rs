//! From the pure room's tables with symbolic devices to tables with numbers.
//!
//! Must not know: how a device gets its number.

use kernel::{
    DevNo,
    dm::{BadTable, DelayLeg, Line, Stripe, Table, Target as Kt},
};
use pool::{
    stack::{Dev, Row, Target},
    units::Sectors,
};

/// Milliseconds that a guard holds a write when nothing happens: one day. When they are over, the write goes to the
/// write leg and fails, so that the VM stops with an error and the disk stays as it was. A held write cannot be given
/// more time (any suspend of dm-delay lets go of it), hence the length; dm-delay takes up to 2^31 - 1 ms (its timer
/// works with a signed number), and 24 h lie far within what the kernel's timer wheel can hold in one go.
pub const HOLD_MS: u32 = 86_400_000;

/// Why rows cannot be turned into a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A device that the rows need is not there (yet).
    #[error("{0:?} is not there")]
    Missing(Dev),
    /// The rows are no table.
    #[error(transparent)]
    Bad(#[from] BadTable),
}

/// Where a symbolic device begins: its number and the sector that counts as its first.
pub type Lookup<'a> = dyn Fn(&Dev) -> Option<(DevNo, Sectors)> + 'a;

/// The kernel's table for these rows.
pub fn resolve(rows: &[Row], at: &Lookup<'_>) -> Result<Table, ResolveError> {
    let find = |d: &Dev| at(d).ok_or_else(|| ResolveError::Missing(d.clone()));
    let mut lines = Vec::with_capacity(rows.len());
    for r in rows {
        let target = match &r.target {
            Target::Linear { dev, offset } => {
                let (dev, base) = find(dev)?;
                Kt::Linear { dev, offset: base.plus(*offset) }
            }
            Target::Striped { chunk, legs } => {
                let stripe = |(d, o): &(Dev, Sectors)| {
                    find(d).map(|(dev, base)| Stripe { dev, offset: base.plus(*o) })
                };
                Kt::Striped { chunk: *chunk, stripes: legs.iter().map(stripe).collect::<Result<_, _>>()? }
            }
            Target::Hole | Target::Error => Kt::Error,
            Target::Multipath { path } => {
                Kt::MultipathBio { path: Some(find(path)?.0), queue_if_no_path: true }
            }
            Target::Mirror { region, legs } => {
                let leg = |(d, o): &(Dev, Sectors)| {
                    find(d).map(|(dev, base)| Stripe { dev, offset: base.plus(*o) })
                };
                Kt::Mirror { region: *region, legs: legs.iter().map(leg).collect::<Result<_, _>>()? }
            }
            Target::FailWrites { dev } => {
                let (dev, offset) = find(dev)?;
                Kt::FlakeyErrorWrites { dev, offset }
            }
            Target::Guard { map, write_leg } => {
                let leg = |(dev, offset), delay_ms| DelayLeg { dev, offset, delay_ms };
                let (map, wr) = (find(map)?, find(write_leg)?);
                Kt::Delay { read: leg(map, 0), write: Some(leg(wr, HOLD_MS)), flush: Some(leg(map, 0)) }
            }
        };
        lines.push(Line { start: r.start, len: r.len, target });
    }
    Ok(Table::new(lines)?)
}

/// Whether two tables are the same.
pub fn same_table(a: &Table, b: &Table) -> bool {
    a == b
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool::ids::DiskId;

    #[test]
    fn rows_get_their_numbers() {
        let disk = Dev::Disk(DiskId::from_u128(1));
        let row = |start, len, target| Row { start: Sectors::new(start), len: Sectors::new(len), target };
        let rows = vec![
            row(0, 8, Target::Hole),
            row(8, 8, Target::Linear { dev: disk.clone(), offset: Sectors::new(16) }),
        ];
        let at = |d: &Dev| (*d == disk).then_some((DevNo::new(254, 0), Sectors::new(2048)));
        let t = resolve(&rows, &at).unwrap();
        assert_eq!(t.lines()[0].target, Kt::Error);
        assert_eq!(t.lines()[1].target.render(), "254:0 2064");
        assert_eq!(resolve(&rows, &|_| None), Err(ResolveError::Missing(disk.clone())));
    }
}
