//! Signatures made by the real tools, on image files, through the real file storage. A tool that is not on this
//! machine is left out, and said so.

use std::{fs::File, path::Path, process::Command};

use disk_format::{
    ClaimError, FileStorage, Force, LabelDisk, OpenMode, claim, probe_signatures, read_label, release,
};

use crate::common::{request, run, summary, volume};

const SIZE: u64 = 512 << 20;

fn image(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    File::create(&path).and_then(|f| f.set_len(SIZE)).expect("an image file");
    path
}

/// Runs a tool on an image; `None` when the machine has no such tool.
fn make(tool: &str, args: &[&str], path: &Path) -> Option<()> {
    let out = match Command::new(tool).args(args).arg(path).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{tool} is not on this machine: left out");
            return None;
        }
        r => r.expect("the tool runs"),
    };
    assert!(out.status.success(), "{tool}: {}", String::from_utf8_lossy(&out.stderr));
    Some(())
}

#[test]
fn what_the_tools_write_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let tools: [(&str, &[&str], &str); 9] = [
        ("mkfs.ext2", &["-q", "-F"], "ext"),
        ("mkfs.ext4", &["-q", "-F"], "ext"),
        ("mkfs.xfs", &["-q", "-f"], "xfs"),
        ("mkswap", &[], "swap"),
        ("mkfs.btrfs", &["-q"], "btrfs"),
        ("mkfs.vfat", &[], "vfat"),
        ("mkfs.exfat", &[], "exfat"),
        ("mkfs.ntfs", &["-F", "-Q", "-q"], "ntfs"),
        ("mkfs.f2fs", &["-q"], "f2fs"),
    ];
    for (tool, args, name) in tools {
        let path = image(dir.path(), tool);
        if make(tool, args, &path).is_none() {
            continue;
        }
        let s = FileStorage::open(&path, OpenMode::Exclusive).unwrap();
        let found = probe_signatures(&s).unwrap();
        assert!(found.iter().any(|f| f.name.starts_with(name)), "{tool}: {found:?}");
        assert!(matches!(claim(s, &request(), Force::No), Err(ClaimError::Signatures(_))), "{tool}");
        let s = FileStorage::open(&path, OpenMode::Exclusive).unwrap();
        claim(s, &request(), Force::WipeSignatures).unwrap();
    }
}

#[test]
fn a_label_on_a_file_is_written_opened_and_erased() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "disk");
    let open = |mode| FileStorage::open(&path, mode).unwrap();
    let mut d = claim(open(OpenMode::Exclusive), &request(), Force::No).unwrap().into_disk();
    let l = d.label().with_runs_added(volume(1), &summary(1), &[run(0, 3, 4)]).unwrap();
    d.update(l).unwrap();
    let label = d.label().clone();
    drop(d);
    assert_eq!(read_label(&open(OpenMode::Read)).unwrap().label, label);
    let mut d = LabelDisk::open(open(OpenMode::Shared)).unwrap();
    let l = d.label().without_volume(volume(1));
    d.update(l).unwrap();
    release(d.into_storage(), request().pool_uid, request().disk).unwrap();
    assert!(probe_signatures(&open(OpenMode::Read)).unwrap().is_empty());
    assert!(FileStorage::open(dir.path(), OpenMode::Read).is_err());
    assert!(FileStorage::open(&dir.path().join("none"), OpenMode::Read).is_err());
}
