//! `weir-lab doctor`: what a machine needs for labs, in one table.

use crate::lab::accel::{self, Accel};
use crate::lab::cache;
use crate::lab::state;
use crate::lab::tools::{find_tool, run_tool};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use std::process::{Command, ExitCode};

/// A program, the Debian package it is in, what it is for, and how it says its version.
struct Tool {
    program: &'static str,
    package: &'static str,
    needed: Need,
    version: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// No lab without it.
    Lab,
    /// Some tests, the demo or the benchmark use it.
    Tests,
    /// Only where a real Kubernetes is built.
    Kubernetes,
}

const fn tool(
    program: &'static str,
    package: &'static str,
    needed: Need,
    version: &'static [&'static str],
) -> Tool {
    Tool { program, package, needed, version }
}

/// `./dev setup` reads the packages of this table.
const TOOLS: [Tool; 20] = [
    tool("cargo", "", Need::Lab, &["--version"]),
    tool("qemu-system-x86_64", "qemu-system-x86", Need::Lab, &["--version"]),
    tool("busybox", "busybox-static", Need::Lab, &[]),
    tool("modprobe", "kmod", Need::Lab, &["--version"]),
    tool("depmod", "kmod", Need::Lab, &[]),
    tool("apt-get", "", Need::Lab, &["--version"]),
    tool("dpkg-deb", "dpkg", Need::Lab, &["--version"]),
    tool("mkfs.ext4", "e2fsprogs", Need::Lab, &[]),
    tool("ip", "iproute2", Need::Lab, &["-V"]),
    tool("mkfs.xfs", "xfsprogs", Need::Tests, &["-V"]),
    tool("dmsetup", "dmsetup", Need::Tests, &[]),
    tool("lvm", "lvm2", Need::Tests, &[]),
    tool("thin_dump", "thin-provisioning-tools", Need::Tests, &["--version"]),
    tool("fio", "fio", Need::Tests, &["--version"]),
    tool("nvme", "nvme-cli", Need::Tests, &["version"]),
    tool("as", "binutils", Need::Tests, &["--version"]),
    tool("ld", "binutils", Need::Tests, &["--version"]),
    tool("go", "", Need::Kubernetes, &["version"]),
    tool("runc", "runc", Need::Kubernetes, &["--version"]),
    tool("nft", "nftables", Need::Kubernetes, &["--version"]),
];

/// The oldest Rust that builds this workspace.
const RUST: (u32, u32) = (1, 95);
/// MiB that three nodes take, and that their disks and the build take.
const MEMORY: u64 = 3 * 1024;
const DISK: u64 = 20 * 1024;

pub(super) fn run(packages: bool) -> Result<ExitCode> {
    if packages {
        let missing =
            TOOLS.iter().filter(|tool| !tool.package.is_empty() && find_tool(tool.program).is_err());
        let mut names: Vec<&str> = missing.map(|tool| tool.package).collect();
        names.dedup();
        println!("{}", names.join(" "));
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "what", "here", "what to do"]);
    let mut whole = true;
    for check in
        TOOLS.iter().map(check_tool).chain([check_kernel(), check_accel(), check_memory(), check_disk()])
    {
        whole &= check.state != State::Missing;
        table.add_row([check.state.sign(), &check.what, &check.found, &check.advice]);
    }
    println!("{table}");
    println!(
        "{}",
        if whole {
            "labs can run here"
        } else {
            "labs cannot run here yet: `./dev setup` as root installs what can be installed"
        }
    );
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Labs run, something else does not.
    Lacking,
    Missing,
}

impl State {
    fn sign(self) -> &'static str {
        match self {
            State::Good => "ok",
            State::Lacking => "--",
            State::Missing => "!!",
        }
    }
}

struct Check {
    state: State,
    what: String,
    found: String,
    advice: String,
}

fn check(state: State, what: &str, found: String, advice: &str) -> Check {
    let advice = if state == State::Good { String::new() } else { advice.to_owned() };
    Check { state, what: what.to_owned(), found, advice }
}

fn check_tool(tool: &Tool) -> Check {
    let absent = if tool.needed == Need::Lab { State::Missing } else { State::Lacking };
    let Ok(path) = find_tool(tool.program) else {
        let advice = match tool.package {
            "" if tool.program == "cargo" => "https://rustup.rs".to_owned(),
            "" if tool.program == "go" => "https://go.dev/dl, 1.26 or newer".to_owned(),
            "" => "labs need Debian or Ubuntu on amd64, for the kernel package".to_owned(),
            package => format!("apt-get install {package}"),
        };
        let used = match tool.needed {
            Need::Lab => "missing",
            Need::Tests => "missing; used by some tests",
            Need::Kubernetes => "missing; used for Kubernetes labs",
        };
        return check(absent, tool.program, used.to_owned(), &advice);
    };
    let said =
        if tool.version.is_empty() { None } else { run_tool(Command::new(&path).args(tool.version)).ok() };
    let line =
        said.as_deref().and_then(|text| text.lines().find(|l| !l.trim().is_empty())).unwrap_or_default();
    let found =
        if line.is_empty() { path.display().to_string() } else { line.trim().chars().take(60).collect() };
    if tool.program == "cargo" && parse_version(line).is_some_and(|version| version < RUST) {
        return check(
            State::Missing,
            tool.program,
            found,
            &format!("rustup update: {}.{} or newer", RUST.0, RUST.1),
        );
    }
    check(State::Good, tool.program, found, "")
}

/// The first two numbers of the first word that begins with a digit.
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let word = line.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split('.').map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn check_kernel() -> Check {
    match cache::cached_release() {
        Ok(Some(release)) => check(State::Good, "kernel for nodes", release, ""),
        Ok(None) => check(
            State::Lacking,
            "kernel for nodes",
            "not fetched yet".into(),
            "`lab up` fetches it with apt",
        ),
        Err(e) => check(State::Missing, "kernel for nodes", format!("{e:#}"), "remove the cache folder"),
    }
}

fn check_accel() -> Check {
    match accel::choose() {
        Ok(Accel::Kvm) => check(State::Good, "/dev/kvm", "works".into(), ""),
        Ok(Accel::Tcg) => check(
            State::Lacking,
            "/dev/kvm",
            "does not work: nodes are emulated (TCG)".into(),
            "a host with virtualisation, or group kvm; TCG is slower, all works",
        ),
        Err(e) => check(State::Missing, "/dev/kvm", format!("{e:#}"), "install qemu-system-x86"),
    }
}

fn check_memory() -> Check {
    let available = || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).context("MemAvailable")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
    };
    enough("memory", available(), MEMORY, "a node takes about 1 GiB")
}

fn check_disk() -> Check {
    let available = || -> Result<u64> {
        let root = state::root();
        let at = root.ancestors().find(|dir| dir.is_dir()).context("no folder")?;
        let stat = rustix::fs::statvfs(at).context("statvfs")?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
    };
    enough("disk space for labs", available(), DISK, "WEIR_LAB_DIR puts labs elsewhere")
}

fn enough(what: &str, available: Result<u64>, wanted: u64, advice: &str) -> Check {
    match available {
        Ok(mib) if mib >= wanted => check(State::Good, what, format!("{mib} MiB"), ""),
        Ok(mib) => check(State::Lacking, what, format!("{mib} MiB, better {wanted}"), advice),
        Err(e) => check(State::Lacking, what, format!("{e:#}"), advice),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions() {
        assert_eq!(parse_version("cargo 1.95.0 (f2d3ce0bd 2026-03-21)"), Some((1, 95)));
        assert_eq!(parse_version("cargo"), None);
    }
}
