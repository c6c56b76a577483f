//! The first root file system: busybox and the modules it takes to reach the host's root, read-only under a tmpfs.
//!
//! Invariant: it is rebuilt whenever the busybox or this file's script changed, as its name in the cache carries both.

use super::cache::Kernel;
use super::tools::{find_tool, run_tool};
use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What must be loaded before the root can be mounted.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Mounts the shares, moves the kernel's file systems over, and hands the machine to the agent.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
fail() { echo "LAB initrd: $1 failed" >/dev/console; sleep 1; poweroff -f; }
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for f in /m/*; do insmod $f || fail "insmod $f"; done
p9=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $p9,cache=loose,ro root /lower || fail "mount of the host's root"
mount -t tmpfs -o size=256m,mode=755 ov /ov; mkdir /ov/u /ov/w
mount -t overlay -o lowerdir=/lower,upperdir=/ov/u,workdir=/ov/w ov /new || fail "overlay"
mkdir -p /new/lab/bin /new/lib/modules /new/proc /new/sys /new/dev
mount -t 9p -o $p9,cache=none,ro lab /new/lab/bin || fail "mount of /lab/bin"
mount -t 9p -o $p9,cache=loose,ro modules /new/lib/modules || fail "mount of /lib/modules"
mount --move /dev /new/dev; mount --move /proc /new/proc; mount --move /sys /new/sys
exec switch_root /new /lab/bin/weir-lab agent boot
"#;

const FOLDERS: [&str; 8] = ["bin", "m", "proc", "sys", "dev", "lower", "ov", "new"];

/// Builds the initrd if it is missing or out of date.
///
/// # Errors
/// busybox is missing, or a file cannot be read or written.
pub(super) fn ensure(kernel: &Kernel) -> Result<()> {
    let busybox = find_tool("busybox")?;
    let stamp = format!("{:?} {INIT}", fs::metadata(&busybox)?.modified()?);
    let stamp_file = kernel.initrd.with_extension("stamp");
    if kernel.initrd.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    let tmp = kernel.initrd.with_extension("tmp");
    fs::write(&tmp, build(kernel, &MODULES, &FOLDERS, INIT)?).context("write the initrd")?;
    fs::rename(&tmp, &kernel.initrd).context("rename the initrd")?;
    fs::write(&stamp_file, stamp).context("write the initrd's stamp")
}

/// The modules and all they need, in loading order.
fn files(kernel: &Kernel, modules: &[&str]) -> Result<Vec<PathBuf>> {
    let base = kernel.modules.parent().and_then(Path::parent).context("modules folder")?;
    let mut files: Vec<PathBuf> = Vec::new();
    for module in modules {
        let text = run_tool(
            Command::new(find_tool("modprobe")?)
                .args(["-S", &kernel.release, "--show-depends", module])
                .arg("-d")
                .arg(base),
        )?;
        for line in text.lines() {
            // "insmod PATH [options]"; what is built in is "builtin NAME".
            if let Some(path) = line.strip_prefix("insmod ").and_then(|l| l.split_whitespace().next()) {
                let path = PathBuf::from(path);
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
    }
    Ok(files)
}

/// An initrd of busybox, empty folders (of which `bin` and `m` are needed), these modules and all they need as /m/NN-NAME
/// in loading order, and a script as /init.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn build(kernel: &Kernel, modules: &[&str], folders: &[&str], init: &str) -> Result<Vec<u8>> {
    let busybox = find_tool("busybox")?;
    let mut archive = Vec::new();
    for folder in folders {
        archive = Builder::new(folder).mode(0o040_755).write(archive, 0).finish()?;
    }
    archive = add(archive, "bin/busybox", 0o100_755, &fs::read(&busybox)?)?;
    archive = add(archive, "bin/sh", 0o120_777, b"busybox")?;
    archive = add(archive, "init", 0o100_755, init.as_bytes())?;
    for (index, module) in files(kernel, modules)?.iter().enumerate() {
        let name = module.file_stem().context("a module's name")?.to_string_lossy();
        archive = add(
            archive,
            &format!("m/{index:02}-{}", name.trim_end_matches(".ko")),
            0o100_644,
            &read_module(module)?,
        )?;
    }
    Ok(trailer(archive)?)
}

fn add(archive: Vec<u8>, name: &str, mode: u32, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut file = Builder::new(name).mode(mode).write(archive, u32::try_from(bytes.len())?);
    file.write_all(bytes)?;
    Ok(file.finish()?)
}

/// A module's bytes, unpacked: not every busybox can.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let unpack = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let output = Command::new(find_tool(unpack)?)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("run {unpack}"))?;
    anyhow::ensure!(output.status.success(), "{unpack} -dc {}: {}", path.display(), output.status);
    Ok(output.stdout)
}
