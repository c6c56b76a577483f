//! What is fetched once and kept for all labs of this user: the distribution's kernel, and whether KVM works.
//!
//! Invariants: nothing is installed on the host; a folder under its final name is complete (it is renamed last).

use super::initrd;
use super::tools::{find_tool, run_tool};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An unpacked kernel: vmlinuz, modules, and the initrd made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as in `uname -r`.
    pub release: String,
    /// The bootable image.
    pub vmlinuz: PathBuf,
    /// The folder that a node sees as /lib/modules.
    pub modules: PathBuf,
    /// The first root file system.
    pub initrd: PathBuf,
}

/// The cache's folder.
///
/// # Errors
/// No home, or it cannot be created.
pub fn dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    let dir = base.join("weir-lab");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Holds the cache for this process alone, until dropped.
fn lock(dir: &Path) -> Result<File> {
    let file = File::create(dir.join("lock")).context("create the cache's lock")?;
    flock(&file, FlockOperation::LockExclusive).context("lock the cache")?;
    Ok(file)
}

/// The kernel that nodes boot: the one in the cache, or the distribution's newest, fetched now.
///
/// # Errors
/// No kernel could be had, and what to do about it.
pub fn kernel() -> Result<Kernel> {
    let dir = dir()?;
    let _lock = lock(&dir)?;
    let kernels = dir.join("kernel");
    fs::create_dir_all(&kernels).context("create the kernel cache")?;
    let unpacked = match cached(&kernels)? {
        Some(found) => found,
        None => {
            fetch(&kernels).context("get the distribution's kernel (./dev doctor says what is missing)")?
        }
    };
    open(&unpacked)
}

/// The kernel that is there without fetching one.
///
/// # Errors
/// The cache cannot be read.
pub fn cached_release() -> Result<Option<String>> {
    cached(&dir()?.join("kernel"))?.map(|found| Ok(open(&found)?.release)).transpose()
}

/// The most recently unpacked kernel.
fn cached(kernels: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(kernels) else { return Ok(None) };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("tmp-") && entry.path().join("root").is_dir() {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

fn open(unpacked: &Path) -> Result<Kernel> {
    let modules = modules_dir(unpacked);
    let release = only_entry(&modules)?;
    let vmlinuz = unpacked.join("root/boot").join(format!("vmlinuz-{release}"));
    ensure!(vmlinuz.is_file(), "{} is missing", vmlinuz.display());
    let initrd = unpacked.join("initrd");
    let kernel = Kernel { release, vmlinuz, modules, initrd };
    initrd::ensure(&kernel)?;
    Ok(kernel)
}

/// /lib may have moved to /usr/lib in newer packages.
fn modules_dir(unpacked: &Path) -> PathBuf {
    let merged = unpacked.join("root/usr/lib/modules");
    if merged.is_dir() { merged } else { unpacked.join("root/lib/modules") }
}

fn only_entry(dir: &Path) -> Result<String> {
    let names: Vec<String> = fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    match names.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("{} holds {} kernels and not one", dir.display(), names.len()),
    }
}

/// Downloads and unpacks the kernel with apt and dpkg-deb.
fn fetch(kernels: &Path) -> Result<PathBuf> {
    let packages = resolve()?;
    let name = packages[0].clone();
    let tmp = kernels.join(format!("tmp-{}", std::process::id()));
    if tmp.exists() {
        fs::remove_dir_all(&tmp)?;
    }
    fs::create_dir_all(tmp.join("root")).with_context(|| format!("create {}", tmp.display()))?;
    eprintln!("weir-lab: fetching {} (once)", packages.join(", "));
    run_tool(Command::new("apt-get").args(["-qq", "download"]).args(&packages).current_dir(&tmp))?;
    for entry in fs::read_dir(&tmp)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run_tool(Command::new("dpkg-deb").arg("-x").arg(&path).arg(tmp.join("root")))?;
            fs::remove_file(&path)?;
        }
    }
    // depmod looks in BASE/lib/modules only.
    let modules = modules_dir(&tmp);
    let base = modules.parent().and_then(Path::parent).context("modules folder")?;
    let release = only_entry(&modules)?;
    run_tool(Command::new(find_tool("depmod")?).arg("-b").arg(base).arg(&release))?;
    let done = kernels.join(&name);
    fs::rename(&tmp, &done).with_context(|| format!("rename to {}", done.display()))?;
    Ok(done)
}

/// Package names of the distribution's current kernel; the image first.
fn resolve() -> Result<Vec<String>> {
    if let Some(found) = look_up()? {
        return Ok(found);
    }
    if rustix::process::geteuid().is_root() {
        run_tool(Command::new("apt-get").args(["-qq", "update"]))?;
        if let Some(found) = look_up()? {
            return Ok(found);
        }
    }
    bail!("apt knows neither linux-image-amd64 nor linux-image-generic: run `apt-get update` as root")
}

fn look_up() -> Result<Option<Vec<String>>> {
    for meta in ["linux-image-amd64", "linux-image-generic"] {
        let output = Command::new("apt-cache")
            .args(["depends", "--important", meta])
            .output()
            .context("run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let packages = parse_depends(&text);
        if packages.iter().any(|p| p.starts_with("linux-image-")) {
            return Ok(Some(packages));
        }
    }
    Ok(None)
}

/// The image package and, where the distribution splits them, those of its modules.
fn parse_depends(text: &str) -> Vec<String> {
    let depends = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    let mut packages: Vec<String> = Vec::new();
    for package in depends.filter(|p| !p.starts_with('<')) {
        if let Some(version) = package.strip_prefix("linux-modules-extra-") {
            packages.push(format!("linux-modules-{version}"));
            packages.push(package.to_owned());
        } else if package.starts_with("linux-image-") {
            packages.insert(0, package.to_owned());
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::parse_depends;

    #[test]
    fn kernels_of_debian_and_ubuntu() {
        assert_eq!(
            parse_depends("linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n"),
            ["linux-image-6.1.0-56-amd64"]
        );
        let ubuntu = "linux-image-generic\n  Depends: linux-image-6.8.0-60-generic\n  Depends: linux-modules-extra-6.8.0-60-generic\n  Depends: linux-firmware\n";
        assert_eq!(
            parse_depends(ubuntu),
            [
                "linux-image-6.8.0-60-generic",
                "linux-modules-6.8.0-60-generic",
                "linux-modules-extra-6.8.0-60-generic"
            ]
        );
        assert!(parse_depends("E: No packages found").is_empty());
    }
}
