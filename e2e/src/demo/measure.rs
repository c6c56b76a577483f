//! What the pool's disks were made to write, from their own counters.
//!
//! How `copied` is computed: while the VM stands still, the sectors written to every pool disk of every node are summed,
//! and the bytes that QEMU counted on the volume are noted; again after the migration. What the disks wrote beyond what
//! the VM wrote is what Weir wrote: copies of data, if it made any, and its own records on the disks.

use anyhow::{Context, Result, ensure};

use crate::{cluster::Cluster, vm::Vm};

/// A moment's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    disks: u64,
    vm: u64,
}

impl Counts {
    /// Stops `vm`, reads the counters, lets it go on; `earlier` is a QEMU that ran the same guest before.
    ///
    /// # Errors
    /// A node or a QEMU cannot be asked.
    pub(super) fn take(c: &Cluster, vm: &Vm, earlier: Option<u64>) -> Result<Counts> {
        vm.pause()?;
        let counts = disks(c).and_then(|d| Ok(Counts { disks: d, vm: vm.written()? + earlier.unwrap_or(0) }));
        vm.resume()?;
        counts
    }

    /// Bytes written to disks since `before` by anyone but the VM.
    ///
    /// # Errors
    /// The disks wrote less than the VM: they or QEMU count wrongly, and no figure can be given.
    pub(super) fn copied_since(self, before: Counts) -> Result<u64> {
        let (disks, vm) = (self.disks.checked_sub(before.disks), self.vm.checked_sub(before.vm));
        let (disks, vm) = disks.zip(vm).context("counters ran backwards: was a node rebooted?")?;
        ensure!(disks >= vm, "the VM wrote {vm} bytes, but the disks counted only {disks}");
        Ok(disks - vm)
    }

    /// Bytes that the VM wrote since `before`.
    pub(super) fn vm_since(self, before: Counts) -> u64 {
        self.vm.saturating_sub(before.vm)
    }
}

/// Bytes written to all pool disks since their nodes booted.
fn disks(c: &Cluster) -> Result<u64> {
    let count = c.spec().disks;
    let sums = c.lab().each(|node| {
        let mut bytes = 0;
        for disk in 0..count {
            let path = node.disk(disk);
            let stat =
                node.run_ok(&format!("cat /sys/class/block/$(basename $(readlink -f {path}))/stat"))?;
            bytes += sectors_written(&stat).with_context(|| format!("counters of {path}: {stat}"))? * 512;
        }
        Ok(bytes)
    })?;
    Ok(sums.into_iter().sum())
}

/// The seventh field of a disk's stat file.
fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_vm_did_not_write_was_copied() {
        let stat = "     123       0     4096      50      77       3     2048      60        0       80      110        0        0        0        0       10        5\n";
        assert_eq!(sectors_written(stat), Some(2048));
        let before = Counts { disks: 1000, vm: 500 };
        assert_eq!(Counts { disks: 1800, vm: 1300 }.copied_since(before).unwrap(), 0);
        assert_eq!(Counts { disks: 9000, vm: 1300 }.copied_since(before).unwrap(), 7200);
        assert!(Counts { disks: 1700, vm: 1300 }.copied_since(before).is_err());
        assert!(Counts { disks: 900, vm: 1300 }.copied_since(before).is_err());
    }
}
