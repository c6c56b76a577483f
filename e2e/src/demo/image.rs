//! A disk image as people have them: an ext4 file system made on the host from real files, with a digest of them all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::lab::{
    Node,
    tools::{find_tool, run_tool},
};

/// Bytes of the image.
pub(super) const SIZE: u64 = 48 << 20;
/// Bytes of files to put in it: enough to be real, few enough for an emulated node to read twice.
const ENOUGH: u64 = 12 << 20;
/// Where real files are found: the first of these that there is.
const SOURCES: [&str; 3] = ["/usr/share/doc", "/usr/share/perl", "/etc"];
/// Copying and checking in an emulated node.
const LIMIT: Duration = Duration::from_secs(180);
/// Prints one digest for all files below the working directory.
const DIGEST: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum";
const NAME: &str = "image.ext4";

/// An image in the folder of a node.
#[derive(Debug)]
pub(super) struct Image {
    digest: String,
    pub(super) files: u64,
    pub(super) source: &'static str,
}

impl Image {
    /// Makes it, where `node` sees it as `/host/image.ext4`.
    ///
    /// # Errors
    /// No mkfs.ext4, or no files.
    pub(super) fn make(node: &Node) -> Result<Image> {
        let staging = node.dir().join("image");
        fs::create_dir_all(&staging)?;
        let source = SOURCES.into_iter().find(|s| Path::new(s).is_dir()).context("no files for an image")?;
        let files = copy_some(Path::new(source), &staging)?;
        ensure!(files > 0, "{source} has no files that can be read");
        let digest = run_tool(Command::new("sh").args(["-c", DIGEST]).current_dir(&staging))?;
        let image = node.dir().join(NAME);
        fs::File::create(&image)?.set_len(SIZE)?;
        let mut mkfs = Command::new(find_tool("mkfs.ext4")?);
        mkfs.args(["-q", "-F", "-L", "weir-demo", "-E", "lazy_itable_init=0", "-d"])
            .arg(&staging)
            .arg(&image);
        run_tool(&mut mkfs)?;
        fs::remove_dir_all(&staging)?;
        Ok(Image { digest: digest.trim().to_owned(), files, source })
    }

    /// Writes it to the front of `device`.
    ///
    /// # Errors
    /// A write failed.
    pub(super) fn write(&self, node: &Node, device: &str) -> Result<()> {
        let script = format!(
            "dd if=/host/{NAME} of={device} bs=1M oflag=direct conv=notrunc,fsync status=none && rm /host/{NAME}"
        );
        node.exec_within(&script, LIMIT)?.check(&script).map(drop)
    }

    /// Checks the file system on `device` without a write to it, and every file in it against those it was made of.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn check(&self, node: &Node, device: &str) -> Result<()> {
        let script = format!(
            "set -e; blockdev --flushbufs {device}; e2fsck -fn {device} >&2
            mkdir -p /run/lab/image; mount -t ext4 -o ro,noload {device} /run/lab/image
            cd /run/lab/image; {DIGEST}; cd /; umount /run/lab/image"
        );
        let got = node.exec_within(&script, LIMIT)?.check("check the file system")?;
        ensure!(got.trim() == self.digest, "the files on {} are not those that were written", node.name());
        Ok(())
    }
}

/// Copies files from `from` until there are enough; returns how many.
fn copy_some(from: &Path, to: &Path) -> Result<u64> {
    let (mut bytes, mut files) = (0, 0);
    let mut queue: Vec<PathBuf> = vec![from.to_owned()];
    while let Some(dir) = queue.pop() {
        // A folder that may not be read is not part of the image.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort_unstable_by(|a, b| b.cmp(a));
        for path in paths {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                queue.push(path);
                continue;
            }
            if !meta.is_file() || meta.len() > ENOUGH / 4 || bytes >= ENOUGH {
                continue;
            }
            let Ok(content) = fs::read(&path) else { continue };
            let place = to.join(path.strip_prefix(from).context("a path outside its folder")?);
            fs::create_dir_all(place.parent().context("a file's folder")?)?;
            bytes += content.len() as u64;
            files += 1;
            fs::write(&place, content).with_context(|| format!("write {}", place.display()))?;
        }
        if bytes >= ENOUGH {
            break;
        }
    }
    Ok(files)
}
