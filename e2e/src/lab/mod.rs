//! Labs: a few QEMU nodes with disks and networks of their own.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use e2e::lab::{Lab, Link};
//! let lab = Lab::builder().nodes(3).disks(2).start()?;
//! let n1 = lab.node(1);
//! assert_eq!(n1.run_ok("hostname")?, "n1");
//! n1.cut(Link::Storage)?;
//! assert!(!lab.node(2).exec("busybox ping -c1 -W1 n1")?.ok());
//! # Ok(()) }
//! ```
//!
//! A lab made by a test ends with it: dropping it kills its nodes, and the kernel kills them if the test dies first. A
//! lab made by `weir-lab lab up` stays; [`Lab::open`] finds it again. Labs side by side share nothing but the host.

pub mod accel;
pub mod cache;
pub mod client;
pub mod companions;
mod forward;
pub(crate) mod initrd;
pub mod names;
pub mod node;
pub mod process;
mod qemu;
pub mod qmp;
pub mod relay;
pub mod state;
pub mod tools;

use anyhow::{Context, Result, bail, ensure};
use node::Shared;
use process::{Identity, Lifetime};
use state::Config;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use client::{Chunk, Output, Stdin};
pub use forward::Forward;
pub use node::{Background, Link, Node, argv, shell};

/// The program of the lab itself, in a lab's folder of programs.
const WEIR_LAB: &str = "weir-lab";
/// Programs that are put into a new lab's /lab/bin if they have been built beside the running one.
const PROGRAMS: [&str; 3] = ["weir-node", "weir-controller", "weir"];

/// What a lab should be; see [`Lab::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    name: Option<String>,
    nodes: u8,
    disks: u8,
    disk_size: u64,
    disk_iops: Option<u32>,
    sata_disks: bool,
    logical_block_size: u32,
    memory: u32,
    cpus: u8,
    forwards: Vec<String>,
    shares: Vec<(String, PathBuf)>,
    programs: Vec<PathBuf>,
    lifetime: Lifetime,
}

impl Builder {
    /// The lab's name; tests that give none get one of their own.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Number of nodes; 3 unless said.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Pool disks a node; 1 unless said.
    #[must_use]
    pub fn disks(mut self, disks: u8) -> Self {
        self.disks = disks;
        self
    }

    /// Bytes of each pool disk, sparse; 4 GiB unless said.
    #[must_use]
    pub fn disk_size(mut self, bytes: u64) -> Self {
        self.disk_size = bytes;
        self
    }

    /// I/Os a second that each pool disk does at most; as many as the host's unless said.
    #[must_use]
    pub fn disk_iops(mut self, most: Option<u32>) -> Self {
        self.disk_iops = most;
        self
    }

    /// Pool disks are SATA disks, six at most, of which nodes know once they have loaded ahci and sd_mod; virtio disks unless said.
    #[must_use]
    pub fn sata_disks(mut self, sata: bool) -> Self {
        self.sata_disks = sata;
        self
    }

    /// Logical block size of the pool disks: 512 (unless said) or 4096.
    #[must_use]
    pub fn logical_block_size(mut self, bytes: u32) -> Self {
        self.logical_block_size = bytes;
        self
    }

    /// MiB of memory a node; 640 unless said.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// Processors a node; 1 unless said.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// A port of the host that leads into each node's eth0, as QEMU's hostfwd has it, `{n}` being the node's number:
    /// `tcp:127.0.0.1{n}:10250-:10250`.
    #[must_use]
    pub fn forward(mut self, hostfwd: &str) -> Self {
        self.forwards.push(hostfwd.to_owned());
        self
    }

    /// A folder of the host that nodes can mount, read-only, by this 9p tag.
    #[must_use]
    pub fn share(mut self, tag: &str, path: impl Into<PathBuf>) -> Self {
        self.shares.push((tag.to_owned(), path.into()));
        self
    }

    /// A program to be copied to /lab/bin.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.programs.push(path.into());
        self
    }

    /// Let the nodes outlive this process.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.lifetime = Lifetime::Persistent;
        self
    }

    /// Creates the lab and boots all its nodes at once.
    ///
    /// # Errors
    /// Something is missing on this host, or a node does not come up; nothing is left behind.
    pub fn start(self) -> Result<Lab> {
        let mut lab = self.create()?;
        lab.each(Node::start)?;
        lab.keep();
        Ok(lab)
    }

    /// Creates the lab and boots nothing yet: whoever does that may first put files into the nodes' folders. The lab ends
    /// with the handle until [`Lab::keep`] is called.
    ///
    /// # Errors
    /// Something is missing on this host; nothing is left behind.
    pub fn create(self) -> Result<Lab> {
        let config = self.config()?;
        let dir = state::dir(&config.name)?;
        let kernel = cache::kernel()?;
        claim(&config.name, &dir)?;
        let mut lab = Lab::new(config, dir, kernel);
        lab.doomed = true;
        state::save(&lab.shared.dir.join("lab.json"), &lab.shared.config)?;
        state::create_private_dir(&lab.shared.dir.join("bin"))?;
        lab.install_as(&own_program()?, WEIR_LAB)?;
        for path in built_programs().into_iter().chain(self.programs) {
            lab.install(&path)?;
        }
        for node in &lab.nodes {
            state::create_private_dir(&node.dir())?;
        }
        Ok(lab)
    }

    fn config(&self) -> Result<Config> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!((1..=names::MAX_NODES).contains(&self.nodes), "a lab has 1 to {} nodes", names::MAX_NODES);
        ensure!(self.disks <= 16, "a node has at most 16 pool disks");
        ensure!(matches!(self.logical_block_size, 512 | 4096), "logical blocks are of 512 or 4096 bytes");
        ensure!(
            self.disk_size > 0 && self.disk_size.is_multiple_of(4096),
            "a disk is a multiple of 4096 bytes"
        );
        let pid = std::process::id();
        let name =
            self.name.clone().unwrap_or_else(|| format!("t{pid}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        Ok(Config {
            name,
            nodes: self.nodes,
            disks: self.disks,
            disk_size: self.disk_size,
            disk_iops: self.disk_iops,
            sata_disks: self.sata_disks,
            logical_block_size: self.logical_block_size,
            memory: self.memory,
            cpus: self.cpus,
            forwards: self.forwards.clone(),
            shares: self.shares.clone(),
            accel: accel::choose()?,
            storage_net: state::free_storage_net()?,
            lifetime: self.lifetime,
            owner: Identity::of(pid).context("read this process's start")?,
        })
    }
}

/// Creates a lab's folder, or takes over that of a test that died.
fn claim(name: &str, dir: &Path) -> Result<()> {
    state::create_private_dir(&state::root())?;
    match fs::create_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(|| format!("create {}", dir.display())),
    }
    let config: Option<Config> = state::load(&dir.join("lab.json"))?;
    if config.is_some_and(|config| config.lifetime == Lifetime::Persistent || config.owner.alive()) {
        bail!("lab {name} is there already: `lab status` shows it, `lab down` removes it");
    }
    fs::remove_dir_all(dir)
        .and_then(|()| fs::create_dir(dir))
        .with_context(|| format!("renew {}", dir.display()))
}

/// A program built beside this one (or, for tests, in the folder above).
///
/// # Errors
/// It was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("find this program")?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: `cargo build --bins`"))
}

/// The weir-lab that becomes a lab's agent and relay. It is this very process where that is weir-lab, even if the file
/// has been built anew since: the three must speak the same protocol.
fn own_program() -> Result<PathBuf> {
    let me = std::env::current_exe().context("find this program")?;
    let mine =
        me.file_name().is_some_and(|name| name.to_string_lossy().trim_end_matches(" (deleted)") == WEIR_LAB);
    if mine { Ok(PathBuf::from("/proc/self/exe")) } else { program(WEIR_LAB) }
}

/// Those of Weir's programs that have been built.
#[must_use]
pub fn built_programs() -> Vec<PathBuf> {
    PROGRAMS.iter().filter_map(|name| program(name).ok()).collect()
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    nodes: Vec<Arc<Node>>,
    /// Whether the lab ends with this handle.
    doomed: bool,
}

impl Lab {
    /// A lab of three nodes with one disk of 4 GiB each, unless told otherwise.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            name: None,
            nodes: 3,
            disks: 1,
            disk_size: 4 << 30,
            disk_iops: None,
            sata_disks: false,
            logical_block_size: 512,
            memory: 640,
            cpus: 1,
            forwards: Vec::new(),
            shares: Vec::new(),
            programs: Vec::new(),
            lifetime: Lifetime::Owned,
        }
    }

    fn new(config: Config, dir: PathBuf, kernel: cache::Kernel) -> Lab {
        let numbers = 1..=config.nodes;
        let shared = Arc::new(Shared { config, dir, kernel });
        let nodes = numbers.map(|number| Arc::new(Node::new(Arc::clone(&shared), number))).collect();
        Lab { shared, nodes, doomed: false }
    }

    /// Lets the lab live as long as it was asked to, now that it is up.
    pub fn keep(&mut self) {
        self.doomed = self.shared.config.lifetime == Lifetime::Owned;
    }

    /// A lab that someone else started; it goes on when this handle is gone.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Lab> {
        let dir = state::dir(name)?;
        let config = state::load(&dir.join("lab.json"))?
            .with_context(|| format!("there is no lab {name}: `./dev lab --name {name} up` makes one"))?;
        Ok(Lab::new(config, dir, cache::kernel()?))
    }

    /// The names of all labs on disk.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all() -> Result<Vec<String>> {
        let mut names = Vec::new();
        let Ok(entries) = fs::read_dir(state::root()) else { return Ok(names) };
        for entry in entries {
            let entry = entry?;
            if entry.path().join("lab.json").is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What it was asked to be.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The kernel its nodes run.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.shared.kernel.release
    }

    /// That kernel's files, which nodes see under the same paths.
    #[must_use]
    pub fn kernel_files(&self) -> &cache::Kernel {
        &self.shared.kernel
    }

    /// Node `number`, from 1.
    ///
    /// # Panics
    /// There is no such node: a mistake in the test.
    #[must_use]
    pub fn node(&self, number: u8) -> &Arc<Node> {
        self.find(&names::node(number)).expect("a node of this lab")
    }

    /// All nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The node of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&Arc<Node>> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| {
            format!("lab {} has nodes n1 to n{}, and no {name}", self.config().name, self.nodes.len())
        })
    }

    /// Does something to all nodes at once.
    ///
    /// # Errors
    /// The first that failed, after all have ended.
    pub fn each<T: Send>(&self, act: impl Fn(&Node) -> Result<T> + Sync) -> Result<Vec<T>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| act(node))).collect();
            let done: Vec<Result<T>> = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            done.into_iter().collect()
        })
    }

    /// Copies a program to every node's /lab/bin. A node that runs the old one must end it before it starts the new one.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn install(&self, path: &Path) -> Result<()> {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        self.install_as(path, &name.to_string_lossy())
    }

    fn install_as(&self, path: &Path, name: &str) -> Result<()> {
        let bin = self.shared.dir.join("bin");
        let tmp = bin.join(format!(".{name}"));
        fs::copy(path, &tmp)
            .and_then(|_| fs::rename(&tmp, bin.join(name)))
            .with_context(|| format!("copy {} into the lab", path.display()))
    }

    /// Kills all nodes and companions and removes all they had.
    ///
    /// # Errors
    /// A node does not die, or its files stay.
    pub fn down(mut self) -> Result<()> {
        self.doomed = false;
        self.each(Node::kill)?;
        let companions = companions::dir(&self.shared.dir);
        if companions.is_dir() {
            companions::Companions::open(&companions, self.config().lifetime)?.kill_all()?;
        }
        fs::remove_dir_all(&self.shared.dir).with_context(|| format!("remove {}", self.shared.dir.display()))
    }
}

impl Drop for Lab {
    /// Ends a lab of this process. A test that failed leaves its logs behind, and so does `WEIR_LAB_KEEP=1`.
    fn drop(&mut self) {
        if !self.doomed {
            return;
        }
        let killed = self.each(Node::kill);
        let keep = std::thread::panicking() || std::env::var_os("WEIR_LAB_KEEP").is_some();
        let dir = &self.shared.dir;
        let removed = if keep { self.remove_images() } else { fs::remove_dir_all(dir) };
        if let Err(e) = killed.and(removed.map_err(Into::into)) {
            eprintln!("weir-lab: end lab {}: {e:#}", self.config().name);
        }
        if keep {
            eprintln!("weir-lab: consoles and logs are in {}", dir.display());
        }
    }
}

impl Lab {
    fn remove_images(&self) -> std::io::Result<()> {
        for node in &self.nodes {
            for entry in fs::read_dir(node.dir())? {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == "img") {
                    fs::remove_file(path)?;
                }
            }
        }
        fs::remove_dir_all(self.shared.dir.join("bin"))
    }
}
