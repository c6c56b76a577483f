//! Container images made on this machine, as the archives that containerd imports: a program, the tools it calls and the
//! libraries these need, under the paths they have here; and a store that has them unpacked.
//!
//! Invariant: an archive under its final name is whole. Must not know: who runs them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::binaries::{self, Program, ensure};
use crate::{
    cluster::tail,
    lab::{
        process::{self, Lifetime},
        program,
        state::create_private_dir,
        tools::{find_tool, own_mounts, run_tool},
    },
    wait,
};

/// What sandboxes run, and small pods of tests.
pub const BUSYBOX: &str = "lab.local/busybox:1";
/// Nothing but links: for pods that mount their node's /usr, and so find all of its programs.
pub const TOOLBOX: &str = "lab.local/toolbox:1";
/// The sidecars, as the chart names them.
const PROVISIONER: &str = "registry.k8s.io/sig-storage/csi-provisioner:v6.3.0";
const RESIZER: &str = "registry.k8s.io/sig-storage/csi-resizer:v2.2.0";
/// The one that only some releases have: nodes do not begin with it.
pub const ATTACHER: &str = "registry.k8s.io/sig-storage/csi-attacher:v4.12.0";
/// The name under which the chart looks for Weir's own.
const WEIR: &str = "localhost/weir";
/// Tools that weir-node calls, and what its init container needs.
const TOOLS: [&str; 9] =
    ["blkid", "mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs", "xfs_growfs", "modprobe", "kmod", "busybox"];
/// Folders that a root has even if nothing lies in them.
const FOLDERS: [&str; 6] = ["tmp", "run", "etc", "proc", "sys", "dev"];
/// What containerd keeps of images: their content, what it knows of it, and the layers unpacked.
const STORE: [&str; 3] = [
    "io.containerd.content.v1.content",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.overlayfs",
];
/// Of containerd's plugins, those that want more of this machine than its files.
const NO_USE: [&str; 8] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
];

/// What an image is made of.
struct Recipe<'a> {
    /// Its name with a tag.
    name: &'a str,
    entrypoint: &'a [&'a str],
    /// Files here and their paths there.
    files: Vec<(PathBuf, PathBuf)>,
    /// Links: the path and where it leads.
    links: Vec<(&'a str, &'a str)>,
    /// Debug information is of no use there.
    strip: bool,
}

/// busybox and the sidecars: made once for what they are made of, and kept with the programs.
///
/// # Errors
/// One cannot be built.
pub(super) fn common() -> Result<Vec<PathBuf>> {
    let mut images = vec![busybox()?, toolbox()?];
    images.push(single(Program::PROVISIONER, PROVISIONER)?);
    images.push(single(Program::RESIZER, RESIZER)?);
    Ok(images)
}

/// An image of one static program: made once for each build of it.
///
/// # Errors
/// It cannot be built.
pub(super) fn single(program: Program, name: &str) -> Result<PathBuf> {
    let file = ensure(program)?;
    let entry = format!("/{}", program.name());
    let tar = file.with_extension("tar");
    if !tar.is_file() {
        let files = vec![(file, PathBuf::from(&entry))];
        write(&tar, Recipe { name, entrypoint: &[&entry], files, links: vec![], strip: false })?;
    }
    Ok(tar)
}

fn toolbox() -> Result<PathBuf> {
    let tar = binaries::dir()?.join("toolbox-1.tar");
    if !tar.is_file() {
        let links =
            vec![("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];
        let entrypoint = &["/bin/sleep", "2147483647"];
        write(&tar, Recipe { name: TOOLBOX, entrypoint, files: vec![], links, strip: false })?;
    }
    Ok(tar)
}

fn busybox() -> Result<PathBuf> {
    let file = find_tool("busybox")?;
    let seconds = file.metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let tar = binaries::dir()?.join(format!("busybox-{seconds}.tar"));
    if !tar.is_file() {
        let applets = run_tool(Command::new(&file).arg("--list"))?;
        let links: Vec<(String, &str)> =
            applets.lines().filter(|a| *a != "busybox").map(|a| (format!("bin/{a}"), "busybox")).collect();
        write(
            &tar,
            Recipe {
                name: BUSYBOX,
                entrypoint: &["/bin/busybox", "sleep", "2147483647"],
                files: vec![(file, "/bin/busybox".into())],
                links: links.iter().map(|(path, to)| (path.as_str(), *to)).collect(),
                strip: false,
            },
        )?;
    }
    Ok(tar)
}

/// Weir's own image, of the programs built beside this one, in `dir`.
///
/// # Errors
/// They are not built, or a tool is missing.
pub(super) fn weir(dir: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("{WEIR}:{version}");
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for p in ["weir-node", "weir-controller"] {
        let file = program(p)?;
        libraries.extend(closure(&file)?);
        files.push((file, Path::new("/usr/local/bin").join(p)));
    }
    for tool in TOOLS {
        let file = find_tool(tool)?;
        // The tool's own file, under the name by which it is called.
        let real = fs::canonicalize(&file).with_context(|| format!("resolve {}", file.display()))?;
        libraries.extend(closure(&real)?);
        files.push((real, Path::new("/usr/sbin").join(tool)));
    }
    for library in libraries {
        let real = fs::canonicalize(&library).with_context(|| format!("resolve {}", library.display()))?;
        files.push((real, merged(&library)));
    }
    let links = vec![
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("usr/bin/sh", "../sbin/busybox"),
    ];
    create_private_dir(dir)?;
    let tar = dir.join("weir.tar");
    write(
        &tar,
        Recipe { name: &name, entrypoint: &["/usr/local/bin/weir-controller"], files, links, strip: true },
    )?;
    Ok(tar)
}

/// Writes the store of a containerd that has imported and unpacked `images` to the archive `tar`. Nodes begin with it: an
/// emulated processor takes minutes for what takes seconds here.
///
/// # Errors
/// containerd cannot be built, does not come up, or refuses an image: with the end of its log.
pub(super) fn store(tar: &Path, images: &[PathBuf]) -> Result<()> {
    let work = tempfile::tempdir().context("make a folder for containerd")?;
    let (root, socket, log) = (work.path().join("root"), work.path().join("socket"), work.path().join("log"));
    let config = work.path().join("config.toml");
    let text = format!(
        "version = 3\nroot = {root:?}\nstate = {:?}\ndisabled_plugins = {NO_USE:?}\n[grpc]\naddress = {socket:?}\n",
        work.path().join("state"),
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    // It mounts what it unpacks.
    let mut containerd = own_mounts()?;
    containerd.arg(ensure(Program::CONTAINERD)?).arg("--config").arg(config);
    let file = fs::File::create(&log).context("make containerd's log")?;
    containerd.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut containerd = process::start(containerd, Lifetime::Owned)?;
    let done = fill(&socket, images).with_context(|| tail(&log));
    let pid = i32::try_from(containerd.id()).ok().and_then(Pid::from_raw).context("containerd's id")?;
    kill_process(pid, Signal::TERM).context("end containerd")?;
    containerd.wait().context("wait for containerd's end")?;
    done?;
    archive(&root, tar, &STORE)
}

fn fill(socket: &Path, images: &[PathBuf]) -> Result<()> {
    let ctr = ensure(Program::CTR)?;
    let ctr = |args: &[&str]| run_tool(Command::new(&ctr).arg("--address").arg(socket).args(args));
    wait::until_ok("containerd on this host", Duration::from_secs(120), || ctr(&["version"]).map(drop))?;
    for image in images {
        let path = image.to_str().context("an image's path is not text")?;
        ctr(&["--namespace", "k8s.io", "images", "import", "--snapshotter", "overlayfs", path])?;
    }
    Ok(())
}

/// The libraries of a program, and its loader; none for a static one.
fn closure(file: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(file).output().context("run ldd")?;
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

/// Paths from lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let path = line.rsplit_once("=> ").map_or(line, |(_, path)| path).trim();
            path.starts_with('/').then(|| PathBuf::from(path.split(" (").next().unwrap_or(path)))
        })
        .collect()
}

/// A path of a root whose /bin and /lib are links into /usr.
fn merged(path: &Path) -> PathBuf {
    if path.starts_with("/lib") || path.starts_with("/lib64") || path.starts_with("/lib32") {
        Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path))
    } else {
        path.to_owned()
    }
}

/// Writes an archive of one layer, as `docker save` would.
fn write(tar: &Path, recipe: Recipe<'_>) -> Result<()> {
    let work = tar.with_extension(format!("tmp-{}", std::process::id()));
    create_private_dir(&work)?;
    let done = stage(&work.join("root"), &recipe).and_then(|()| pack(&work, tar, &recipe));
    let removed = fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()));
    done.with_context(|| format!("make image {}", recipe.name)).and(removed)
}

fn stage(root: &Path, recipe: &Recipe<'_>) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for (from, to) in &recipe.files {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        if recipe.strip && to.starts_with(root.join("usr/local")) {
            run_tool(Command::new(find_tool("strip")?).arg("-o").arg(&to).arg(from))?;
        } else {
            fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    for (path, to) in &recipe.links {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        symlink(to, &path).with_context(|| format!("link {}", path.display()))?;
    }
    Ok(())
}

/// Writes parts of a folder to an archive that is the same each time, and nobody's.
fn archive(from: &Path, to: &Path, parts: &[&str]) -> Result<()> {
    let same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
    let mut tar = Command::new(find_tool("tar")?);
    run_tool(tar.args(same).arg("-C").arg(from).arg("-cf").arg(to).args(parts)).map(drop)
}

fn pack(work: &Path, tar: &Path, recipe: &Recipe<'_>) -> Result<()> {
    let content = work.join("content");
    fs::create_dir(&content)?;
    let layer = content.join("layer.tar");
    archive(&work.join("root"), &layer, &["."])?;
    let digest = run_tool(Command::new(find_tool("sha256sum")?).arg(&layer))?;
    let digest = digest.split_whitespace().next().context("sha256sum said nothing")?.to_owned();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [format!("PATH={path}")], "Entrypoint": recipe.entrypoint, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created_by": "weir-lab"}],
    });
    fs::write(content.join("config.json"), serde_json::to_vec(&config)?)?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [recipe.name], "Layers": ["layer.tar"]}]);
    fs::write(content.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let whole = work.join("image.tar");
    archive(&content, &whole, &["."])?;
    fs::rename(&whole, tar).with_context(|| format!("rename to {}", tar.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse_ldd(text);
        assert_eq!(
            found,
            [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
        assert_eq!(merged(&found[1]), Path::new("/usr/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(merged(Path::new("/usr/lib/x")), Path::new("/usr/lib/x"));
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn an_image_is_an_archive_with_a_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("x.tar");
        let files = vec![(PathBuf::from("/bin/sh"), PathBuf::from("/bin/sh"))];
        let recipe =
            Recipe { name: "x:1", entrypoint: &["/bin/sh"], files, links: vec![("a", "b")], strip: false };
        write(&tar, recipe).unwrap();
        let list = run_tool(Command::new("tar").arg("-tf").arg(&tar)).unwrap();
        for name in ["./manifest.json", "./config.json", "./layer.tar"] {
            assert!(list.lines().any(|l| l == name), "{list}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }
}
