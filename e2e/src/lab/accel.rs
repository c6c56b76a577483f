//! Does KVM really work here? A device file proves nothing: nested hosts offer one that fails, or crawls.

use super::cache;
use super::tools::find_tool;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What runs a node's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator: works everywhere, ten times slower.
    Tcg,
}

impl Accel {
    /// Its name in QEMU.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// A real KVM boots the probe in a tenth of this; emulated ones were seen to take 5 s.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// What QEMU exits with once the probe has written 0x10 to isa-debug-exit: (0x10 << 1) | 1.
const PROBE_EXIT: i32 = 33;
/// mov al,0x10; out 0xf4,al; hlt; jmp $-1
const PROBE: [u8; 7] = [0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];

/// Chooses, by trying. The answer is kept until the host reboots; `WEIR_LAB_ACCEL=kvm|tcg` decides otherwise.
///
/// # Errors
/// An unknown `WEIR_LAB_ACCEL`, no QEMU, or no cache folder.
pub fn choose() -> Result<Accel> {
    match std::env::var("WEIR_LAB_ACCEL").ok().as_deref() {
        None | Some("") => {}
        Some("kvm") => return Ok(Accel::Kvm),
        Some("tcg") => return Ok(Accel::Tcg),
        Some(other) => bail!("WEIR_LAB_ACCEL={other}: it is kvm or tcg"),
    }
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let kept = cache::dir()?.join("accel");
    match fs::read_to_string(&kept).ok().as_deref().and_then(|text| text.strip_prefix(boot_id.as_str())) {
        Some("kvm") => return Ok(Accel::Kvm),
        Some("tcg") => return Ok(Accel::Tcg),
        _ => {}
    }
    let accel = if probe()? { Accel::Kvm } else { Accel::Tcg };
    let tmp = kept.with_extension(std::process::id().to_string());
    fs::write(&tmp, format!("{boot_id}{}", accel.as_str())).context("keep the answer")?;
    fs::rename(&tmp, &kept).context("keep the answer")?;
    Ok(accel)
}

/// Boots one sector under KVM that says it lived.
fn probe() -> Result<bool> {
    let mut sector = vec![0; 512];
    sector[..PROBE.len()].copy_from_slice(&PROBE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let floppy = cache::dir()?.join(format!("probe-{}.img", std::process::id()));
    fs::write(&floppy, sector).context("write the probe")?;
    let alive = boot(&floppy);
    fs::remove_file(&floppy).context("remove the probe")?;
    alive
}

fn boot(floppy: &Path) -> Result<bool> {
    let mut child = Command::new(find_tool("qemu-system-x86_64")?)
        .args(["-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none", "-M", "pc", "-m", "16"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-boot", "a", "-drive"])
        .arg(format!("file={},if=floppy,format=raw", floppy.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start QEMU")?;
    let start = Instant::now();
    while start.elapsed() < PROBE_LIMIT {
        if let Some(status) = child.try_wait().context("wait for QEMU")? {
            return Ok(status.code() == Some(PROBE_EXIT));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().context("kill QEMU")?;
    child.wait().context("wait for QEMU")?;
    Ok(false)
}
