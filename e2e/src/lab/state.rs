//! A lab on disk: the folder, what was asked for, and what runs. Any process can open a lab from this.

use super::accel::Accel;
use super::names::{self, Nic};
use super::process::{Identity, Lifetime};
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a lab was asked to be; `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// The lab's name, also its folder's.
    pub name: String,
    /// Number of nodes.
    pub nodes: u8,
    /// Pool disks a node.
    pub disks: u8,
    /// Bytes of each pool disk.
    pub disk_size: u64,
    /// I/Os a second that each of them does at most.
    #[serde(default)]
    pub disk_iops: Option<u32>,
    /// They are SATA disks; else virtio's.
    #[serde(default)]
    pub sata_disks: bool,
    /// The pool disks' logical block size: 512 or 4096.
    pub logical_block_size: u32,
    /// MiB of memory a node.
    pub memory: u32,
    /// Processors a node.
    pub cpus: u8,
    /// Ports of the host that lead into nodes; see [`super::Builder::forward`].
    pub forwards: Vec<String>,
    /// Folders of the host that nodes can mount, read-only: the 9p tag and the path.
    #[serde(default)]
    pub shares: Vec<(String, PathBuf)>,
    /// What runs them.
    pub accel: Accel,
    /// Where eth1 meets: a multicast group and port of this lab alone.
    pub storage_net: (Ipv4Addr, u16),
    /// Whether the nodes outlive the process that started them.
    pub lifetime: Lifetime,
    /// Who started the lab.
    pub owner: Identity,
}

/// What runs as a node; `node.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its QEMU.
    pub qemu: Identity,
    /// The process that leads to its agent.
    pub relay: Identity,
    /// The kernel's boot id; known once the node is ready.
    pub boot_id: String,
    /// Which links are cut.
    pub cut: Vec<String>,
}

/// The folder of all labs: `WEIR_LAB_DIR`, or `.lab` in the workspace.
#[must_use]
pub fn root() -> PathBuf {
    match std::env::var_os("WEIR_LAB_DIR").filter(|v| !v.is_empty()) {
        // Absolute, as programs of the lab are started in folders of their own.
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| PathBuf::from(dir)),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).join(".lab"),
    }
}

/// A lab's folder.
///
/// # Errors
/// The name is no plain file name.
pub fn dir(name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(!name.is_empty() && name.len() <= 64 && name.chars().all(plain), "{name:?} is no name for a lab");
    Ok(root().join(name))
}

/// Creates a folder that only its owner can enter.
///
/// # Errors
/// Those of the file system.
pub fn create_private_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))
}

/// Writes a file whole or not at all, readable by its owner alone.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = path.with_extension("json.tmp");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(bytes)?;
        fs::rename(&tmp, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Writes `value` as JSON.
///
/// # Errors
/// Those of the file system.
pub fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    write_private(path, &serde_json::to_vec_pretty(value)?)
}

/// Reads what [`save`] wrote; `None` if there is none.
///
/// # Errors
/// Those of the file system, or it is something else.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display())).map(Some)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// Removes a file that may not be there.
///
/// # Errors
/// It is there and stays.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// `bytes` random bytes, in hexadecimal.
///
/// # Errors
/// The host has no random numbers.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut buffer)
        .context("read random bytes")?;
    Ok(buffer.iter().map(|b| format!("{b:02x}")).collect())
}

/// A multicast group and port that nobody on this host uses.
///
/// # Errors
/// Multicast does not work here.
pub fn free_storage_net() -> Result<(Ipv4Addr, u16)> {
    let mut last = None;
    for _ in 0..16 {
        let random = u32::from_str_radix(&random_hex(4)?, 16)?;
        let [_, a, b, c] = random.to_be_bytes();
        let net = (Ipv4Addr::new(239, 192 | (a & 0x3f), b, c), 20_000 + (random % 10_000) as u16);
        // QEMU shares the port with SO_REUSEADDR; a plain bind fails if anyone has it.
        match UdpSocket::bind(net) {
            Ok(_) => return Ok(net),
            Err(e) => last = Some(e),
        }
    }
    Err(anyhow::anyhow!(
        "no multicast address can be bound: {}",
        last.map_or_else(String::new, |e| e.to_string())
    ))
}

/// A node's folder in its lab.
#[must_use]
pub fn node_dir(lab: &Path, number: u8) -> PathBuf {
    lab.join(names::node(number))
}

/// Words for a link in `node.json` and on the command line.
#[must_use]
pub fn link_name(nic: Nic) -> &'static str {
    nic.qemu_name()
}
