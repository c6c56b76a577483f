//! The two tables of a guard: a device that serves reads and holds writes.
//!
//! The write leg fails whatever reaches it, because any suspend of a delay device releases what it holds: a
//! held write may only ever get EIO or, once the write leg has been swapped for the real map, go through. It is
//! flakey over the real map rather than `error`, so that discard stays advertised and is held like a write.
//! Committing: swap the write leg to the real map, then the top. Aborting: swap the top for `error`.

use pool::units::Sectors;

use super::table::{BadTable, DelayLeg, Table, Target};
use crate::DevNo;

/// Milliseconds that dm-delay holds a write when nothing happens: one hour. When it runs out, the write reaches
/// the write leg and fails; it never reaches the disk. Whoever waits longer must commit or abort before.
pub const HOLD_MS: u32 = 3_600_000;

/// The write leg over the real map.
pub fn guard_write_leg(real: DevNo, len: Sectors) -> Result<Table, BadTable> {
    Table::single(len, Target::FlakeyErrorWrites { dev: real, offset: Sectors::ZERO })
}

/// The device on top: reads and bare flushes pass to the real map, writes are held before the write leg.
pub fn guard_top(real: DevNo, write_leg: DevNo, len: Sectors) -> Result<Table, BadTable> {
    let leg = |dev, delay_ms| DelayLeg { dev, offset: Sectors::ZERO, delay_ms };
    Table::single(
        len,
        Target::Delay { read: leg(real, 0), write: Some(leg(write_leg, HOLD_MS)), flush: Some(leg(real, 0)) },
    )
}
