//! `weir-lab demo`: Weir doing its work on real kernels, from nothing to a live migration and beyond, for people to watch.
//!
//! Invariant: every figure is measured in this run; every claim is a check that can fail, and one that fails ends the demo
//! with a message and a bad exit code.

mod image;
mod interrupt;
mod map;
mod measure;
mod migrate;
mod screen;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use owo_colors::AnsiColors;
use serde::Serialize;

use self::{image::Image, map::Map, screen::Screen};
use crate::{
    cluster::{
        Cluster, Spec,
        clients::{NewVolume, Use},
    },
    lab::accel,
    vm::{Guest, Settings, Vm, gaps, guest::Window},
};

/// How long anything that is waited for may take.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// What the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Two kilobytes that do nothing but verified I/O.
    Small,
    /// The distribution's kernel, with a file system on the volume.
    Linux,
}

/// What the demo should do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What the VM runs; unless said, Linux where nodes have KVM themselves.
    pub guest: Option<Kind>,
    /// Where to write the figures.
    pub json: Option<PathBuf>,
    /// Leave the cluster and its VM running.
    pub keep: bool,
}

/// The figures, as `--json` has them.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Figures {
    /// Size of the volume.
    pub volume_bytes: u64,
    /// How much of it lies on other nodes than the VM's first.
    pub borrowed_bytes: u64,
    /// How many nodes lend it.
    pub lenders: usize,
    /// Bytes written to any pool disk during the migration that the VM did not write.
    pub copied_bytes: u64,
    /// From the last verified step on the source to the first on the target.
    pub pause_ms: f64,
    /// Reads and writes that the VM's verifier found right.
    pub verifier_ios: u64,
    /// Those it found wrong, or that failed.
    pub verifier_errors: u64,
    /// Length of the demo.
    pub seconds: f64,
}

/// Runs it.
///
/// # Errors
/// What did not work, or which check failed.
pub fn run(options: &Options) -> Result<Figures> {
    interrupt::end_labs_on_interrupt()?;
    let screen = Screen::new();
    screen.say(
        "Weir's demo: one pool from the disks of three machines, a VM on it, and a move without a copy.\n",
    );
    let cluster = boot(&screen, options.keep)?;
    let figures = Demo::new(&screen, &cluster, options.guest)
        .and_then(|demo| demo.run())
        .map_err(|e| e.context(cluster.logs()))?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    look_next(&screen, &cluster, options.keep);
    Ok(figures)
}

fn boot(screen: &Screen, keep: bool) -> Result<Cluster> {
    let how = accel::choose()?.as_str();
    let persistent = keep.then(|| "demo".to_owned());
    let spec = Spec { trust_fresh_disks: true, persistent, ..Spec::default() };
    screen.step(&format!("boot three machines ({how}), start Weir, pool their disks"), |_| {
        let c = Cluster::start(spec)?;
        let pool: u64 = u64::from(c.spec().nodes) * u64::from(c.spec().disks) * c.spec().disk_size;
        let text = format!("Linux {}, {} MiB in {} disks", c.lab().kernel(), pool / MIB, c.spec().nodes);
        Ok((c, text))
    })
}

/// What the steps share.
struct Demo<'a> {
    screen: &'a Screen,
    c: &'a Cluster,
    id: String,
    image: Image,
    guest: Guest,
}

impl<'a> Demo<'a> {
    fn new(screen: &'a Screen, c: &'a Cluster, kind: Option<Kind>) -> Result<Self> {
        // More than two nodes have, so that the third lends too.
        let bytes = c.spec().disk_size * u64::from(c.spec().disks) * 9 / 4;
        let id = screen.step(&format!("make a volume of {} MiB, for use on n1", bytes / MIB), |_| {
            let usage = Use::SharedBlock;
            let id = c.csi().create(&NewVolume {
                name: "demo",
                bytes,
                usage,
                beside: Some("n1"),
                parameters: &[],
            })?;
            let map = Map::new(&c.survey()?, &id, c.spec().extent_size)?;
            ensure!(map.volume_bytes > map.largest_node(), "a single node could hold the volume");
            let loans = map.loans("n1");
            ensure!(!loans.is_empty(), "nothing was borrowed");
            let list: Vec<_> =
                loans.iter().map(|(node, bytes)| format!("{} MiB from {node}", bytes / MIB)).collect();
            Ok((id, format!("no node has so much; n1 borrows {}", list.join(" and "))))
        })?;
        let image = screen.step("make a disk image of real files on the host", |_| {
            let image = Image::make(c.node(1))?;
            let text = format!("ext4, {} MiB, {} files of {}", image::SIZE / MIB, image.files, image.source);
            Ok((image, text))
        })?;
        let kind = match kind {
            Some(kind) => kind,
            None if has_kvm(c)? => Kind::Linux,
            None => Kind::Small,
        };
        let window = Window { start: image::SIZE, end: bytes };
        let guest = match kind {
            Kind::Small => Guest::Small(window),
            Kind::Linux => Guest::Linux(window, c.lab().kernel_files().clone()),
        };
        Ok(Self { screen, c, id, image, guest })
    }

    fn map(&self) -> Result<Map> {
        Map::new(&self.c.survey()?, &self.id, self.c.spec().extent_size)
    }

    fn run(self) -> Result<Figures> {
        let device = self.screen.step("attach it on n1, write the image to it", |_| {
            let device = self.c.node_csi(1)?.attach(&self.id, Use::SharedBlock)?;
            self.image.write(self.c.node(1), &device)?;
            Ok((device, String::new()))
        })?;
        self.screen.step("check the image on n1", |_| {
            self.image.check(self.c.node(1), &device)?;
            Ok(((), "fsck is content, every file has its digest".to_owned()))
        })?;
        let source = self.start_vm(&device)?;
        let before = self.map()?;
        self.show("The pool before the migration", &before, "n1");

        let moved = migrate::run(&self, source)?;
        let after = self.map()?;
        ensure!(after.places() == before.places(), "the migration moved data");
        self.show("The pool after it: the same extents, seen from n2", &after, "n2");
        self.screen.say("");

        self.screen.step("check the image on n2", |_| {
            self.image.check(self.c.node(2), &moved.device)?;
            Ok(((), "fsck is content, every file has its digest".to_owned()))
        })?;
        self.plugin_killed(&moved.vm)?;
        self.lender_rebooted(&moved.vm, &after)?;
        let last = self.screen.step("check it all once more", |step| {
            step.note("the guest reads every block again");
            let counters = moved.vm.wait_progress(1000, LIMIT)?;
            self.image.check(self.c.node(2), &moved.device)?;
            let errors = counters.errors + counters.bad;
            Ok((
                counters,
                format!("{} verified reads and writes, {errors} errors, every file right", counters.ios),
            ))
        })?;
        let loans = before.loans("n1");
        let figures = Figures {
            volume_bytes: before.volume_bytes,
            borrowed_bytes: loans.values().sum(),
            lenders: loans.len(),
            copied_bytes: moved.copied,
            pause_ms: millis(moved.pause),
            verifier_ios: last.ios,
            verifier_errors: last.errors + last.bad,
            seconds: (self.screen.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        };
        self.summary(&figures);
        Ok(figures)
    }

    fn show(&self, heading: &str, map: &Map, node: &str) {
        self.screen.heading(heading);
        self.screen.say(&map.render(node, self.screen));
    }

    fn start_vm(&self, device: &str) -> Result<Vm> {
        self.screen.step("start a VM on it in n1 (cache=none, io=native)", |step| {
            let settings = Settings { name: "demo", device, guest: &self.guest, incoming: false };
            step.note("what the guest needs on the volume");
            self.guest.prepare(self.c.node(1), device)?;
            let vm = Vm::start(self.c.node(1), settings)?;
            step.note("the guest reads back and verifies what it writes");
            let counters = vm.wait_progress(500, LIMIT)?;
            Ok((vm, format!("{} verified reads and writes so far, all over the volume", counters.ios)))
        })
    }

    /// n1 is a lender now: its plugin dies, the kernel goes on lending.
    fn plugin_killed(&self, vm: &Vm) -> Result<()> {
        self.screen.step("kill weir-node on n1, which lends most of the volume, and start it again", |step| {
            let from = Instant::now();
            self.c.kill_plugin(1)?;
            step.note("nothing of Weir runs on n1");
            vm.wait_progress(200, LIMIT).context("the VM while weir-node is dead on n1")?;
            self.c.start_plugin(1, None)?;
            self.c.wait_for_disks()?;
            vm.wait_progress(200, LIMIT).context("the VM after weir-node is back on n1")?;
            Ok(((), format!("the VM worked on; its longest wait for an I/O: {:.0} ms", longest(vm, from))))
        })
    }

    /// n3's part of the volume queues, and comes back.
    fn lender_rebooted(&self, vm: &Vm, map: &Map) -> Result<()> {
        ensure!(map.loans("n2").contains_key("n3"), "n3 lends nothing: {:?}", map.loans("n2"));
        self.screen.step("pull the plug of n3, another lender, and boot it again", |step| {
            let from = Instant::now();
            self.c.node(3).kill()?;
            step.note("the VM waits as soon as it needs what lies there");
            self.c.revive(3)?;
            step.note("n3 is up, Weir lends again");
            self.c.wait_for_disks()?;
            let counters = vm.wait_progress(500, LIMIT).context("the VM after n3 is back")?;
            ensure!(vm.status()? == "running", "the VM is {}", vm.status()?);
            let wait = longest(vm, from) / 1000.0;
            Ok(((), format!("the VM waited {wait:.1} s for it and saw no error in {} I/Os", counters.ios)))
        })
    }

    fn summary(&self, f: &Figures) {
        let good = |ok: bool, text: String| {
            self.screen.paint(text, if ok { AnsiColors::Green } else { AnsiColors::Red })
        };
        self.screen.heading("What was seen");
        let borrowed = format!("{} MiB from {} nodes", f.borrowed_bytes / MIB, f.lenders);
        for (what, value) in [
            ("volume", format!("{} MiB, of which n1 borrowed {borrowed}", f.volume_bytes / MIB)),
            ("copied by the migration", good(f.copied_bytes == 0, format!("{} bytes", f.copied_bytes))),
            ("pause of the migration", format!("{:.0} ms", f.pause_ms)),
            ("verified reads and writes", f.verifier_ios.to_string()),
            ("errors the VM saw", good(f.verifier_errors == 0, f.verifier_errors.to_string())),
            ("time", format!("{:.0} s", f.seconds)),
        ] {
            self.screen.say(&format!("  {what:<28}{value}"));
        }
    }
}

/// Whether a VM in a node can have the processor itself.
fn has_kvm(c: &Cluster) -> Result<bool> {
    let try_it = "modprobe -q kvm_intel || modprobe -q kvm_amd; test -w /dev/kvm";
    Ok(c.lab().config().accel == accel::Accel::Kvm
        && c.node(1).exec(try_it)?.ok()
        && c.node(2).exec(try_it)?.ok())
}

fn longest(vm: &Vm, from: Instant) -> f64 {
    millis(gaps(&[vm.console()], from, Instant::now()).into_iter().max().unwrap_or_default())
}

/// Milliseconds, to a tenth.
fn millis(d: Duration) -> f64 {
    (d.as_secs_f64() * 10_000.0).round() / 10.0
}

fn look_next(screen: &Screen, c: &Cluster, keep: bool) {
    screen.heading("Where to look next");
    let lines: &[&str] = if keep {
        &[
            "./dev lab --name demo status            the machines, still running with the VM on n2",
            "./dev lab --name demo exec n2 'dmsetup table'   the volume as n2's kernel has it",
            "./dev lab --name demo exec n1 'dmsetup table'   what n1 lends",
            "./dev lab --name demo logs n2 weir-node         what the plugin did",
            "./dev lab --name demo down              end it",
        ]
    } else {
        &[
            "./dev demo --keep     leaves the machines running, to look into them",
            "./dev test            what holds when things break",
            "ARCHITECTURE.md       how it is built",
            "docs/limitations.md   what it cannot do",
        ]
    };
    lines.iter().for_each(|line| screen.say(&format!("  {line}")));
    if keep {
        screen.say(&format!("  {}   the controller's log", c.controller_log().display()));
    }
}
