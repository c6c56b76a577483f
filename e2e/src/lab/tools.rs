//! Programs of the host that the lab uses, and how to get them.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Finds a program on PATH or in the folders of the system administrator.
///
/// # Errors
/// It is nowhere.
pub fn find_tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
        .with_context(|| format!("{name} is not installed (./dev doctor says where it comes from)"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// What runs a program, given as its first argument, with mounts of its own, as root among them.
///
/// # Errors
/// The tool for it is missing.
pub fn own_mounts() -> Result<Command> {
    let mut c = Command::new(find_tool("unshare")?);
    c.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        c.arg("--map-root-user");
    }
    Ok(c)
}

/// Runs a program to its end; its output is shown only if it fails.
///
/// # Errors
/// It could not be run, or it failed: with all it said.
pub fn run_tool(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}
