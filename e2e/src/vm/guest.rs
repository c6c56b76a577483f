//! What a VM boots: a small guest of our own, which is up at once even where an emulator runs in an emulator; or the
//! distribution's kernel with a file system on the volume.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::lab::{
    Node,
    cache::{self, Kernel},
    initrd,
    tools::{find_tool, run_tool},
};

/// Bytes of a block that the guest reads and writes at once.
pub const BLOCK: u64 = 4096;
/// Blocks that it cares for: few enough that each comes up again within seconds.
pub const SLOTS: u32 = 256;
/// A BIOS finds a geometry only on a disk of some size.
const BOOT_DISK: usize = 1 << 20;
/// Longest time to make a file system in an emulated node.
const MKFS_LIMIT: Duration = Duration::from_secs(120);
/// What stands before the parameters in the boot sector.
const MARK: &[u8; 8] = b"WEIRGST1";

/// The bytes of the volume within which a guest does its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First byte, a multiple of [`BLOCK`].
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// Two kilobytes of real mode (guest.S): blocks spread evenly over the window.
    Small(Window),
    /// Linux: an ext4 file system that fills the window, on which [`VERIFIER`] works.
    Linux(Window, Kernel),
}

/// What the Linux guest runs as process 1. It writes files and makes them durable, drops what it has cached, and reads
/// them back; the sums it holds them against are in its memory. It speaks as guest.S does.
const VERIFIER: &str = include_str!("verifier.sh");
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
const FOLDERS: [&str; 7] = ["bin", "m", "proc", "sys", "dev", "sums", "volume"];

impl Guest {
    /// The bytes of the volume that it may touch.
    #[must_use]
    pub fn window(&self) -> Window {
        match self {
            Guest::Small(window) | Guest::Linux(window, _) => *window,
        }
    }

    /// Its kernel, if it has one.
    #[must_use]
    pub fn kernel(&self) -> Option<&Path> {
        match self {
            Guest::Small(_) => None,
            Guest::Linux(_, kernel) => Some(&kernel.vmlinuz),
        }
    }

    /// What a number of steps of the small guest is for this one: a step of the Linux guest is a file, not a block.
    #[must_use]
    pub fn scale(&self, steps: usize) -> usize {
        match self {
            Guest::Small(_) => steps,
            Guest::Linux(..) => steps.div_ceil(25),
        }
    }

    /// How much longer it may take than the small guest: a kernel boots for a minute where an emulator runs in another.
    #[must_use]
    pub fn patience(&self) -> u32 {
        match self {
            Guest::Small(_) => 1,
            Guest::Linux(..) => 4,
        }
    }

    /// Makes the volume ready for its first boot. Nothing outside of the window is touched.
    ///
    /// # Errors
    /// No file system can be made.
    pub fn prepare(&self, node: &Node, device: &str) -> Result<()> {
        match self {
            Guest::Small(_) => Ok(()),
            Guest::Linux(Window { start, end }, _) => {
                let kib = (end - start) / 1024;
                let options = format!("offset={start},lazy_itable_init=1,lazy_journal_init=1,nodiscard");
                let script = format!("mkfs.ext4 -q -F -b 4096 -E {options} {device} {kib}k && sync");
                node.exec_within(&script, MKFS_LIMIT)?.check(&script).map(drop)
            }
        }
    }

    /// Puts what it boots into a folder of the node.
    pub(super) fn install(&self, node: &Node, dir: &str) -> Result<()> {
        match self {
            Guest::Small(window) => node.write_file(&format!("{dir}/boot.img"), &boot_disk(*window)?),
            Guest::Linux(_, kernel) => {
                let image = initrd::build(kernel, &MODULES, &FOLDERS, VERIFIER)?;
                node.write_file(&format!("{dir}/initrd"), &image)
            }
        }
    }
}

/// The small guest's boot disk for this window.
///
/// # Errors
/// No assembler, or the window is too small.
pub fn boot_disk(window: Window) -> Result<Vec<u8>> {
    let Window { start, end } = window;
    ensure!(start.is_multiple_of(BLOCK) && start < end, "{window:?} is no window");
    let stride = (end - start) / u64::from(SLOTS) / BLOCK * BLOCK / 512;
    ensure!(stride > 0, "{window:?} has no room for {SLOTS} blocks");
    let mut disk = assemble()?;
    let at =
        disk.windows(MARK.len()).position(|w| w == MARK).context("no parameters in the guest")? + MARK.len();
    let stride = u32::try_from(stride).context("the window is too large")?;
    let parameters = [&(start / 512).to_le_bytes()[..], &stride.to_le_bytes(), &SLOTS.to_le_bytes()].concat();
    disk[at..at + parameters.len()].copy_from_slice(&parameters);
    disk.resize(BOOT_DISK, 0);
    Ok(disk)
}

/// Assembles guest.S.
fn assemble() -> Result<Vec<u8>> {
    let dir = cache::dir()?.join(format!("guest-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let (source, object, binary) = (dir.join("guest.S"), dir.join("guest.o"), dir.join("guest.bin"));
    let built = fs::write(&source, include_str!("guest.S")).context("write guest.S").and_then(|()| {
        run_tool(Command::new(find_tool("as")?).args(["--32", "-o"]).arg(&object).arg(&source))?;
        let flags = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"];
        run_tool(Command::new(find_tool("ld")?).args(flags).arg(&binary).arg(&object))?;
        fs::read(&binary).context("read the guest")
    });
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    built
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_stand_in_the_boot_sector() {
        let disk = boot_disk(Window { start: 1 << 20, end: 1 << 30 }).unwrap();
        assert_eq!((disk.len(), &disk[510..512]), (BOOT_DISK, &[0x55, 0xaa][..]));
        let at = disk.windows(8).position(|w| w == MARK).unwrap() + 8;
        assert!(at + 16 <= 510);
        assert_eq!(disk[at..at + 8], (2048_u64).to_le_bytes());
        assert_eq!(disk[at + 8..at + 12], (8184_u32).to_le_bytes());
        assert_eq!(disk[at + 12..at + 16], SLOTS.to_le_bytes());
        assert!(boot_disk(Window { start: 0, end: 4096 }).is_err());
        assert!(boot_disk(Window { start: 1, end: 1 << 30 }).is_err());
    }
}
