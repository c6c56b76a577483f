//! Claims, pods and what they find on their volumes.

use anyhow::{Context, Result, ensure};

use super::{
    Case, delete_claim, delete_pod,
    objects::{Claim, DEVICE, FOLDER, Mode, Pod, SAY},
    wait_gone, wait_pod,
};
use crate::kube::KubeCluster;

pub(super) const CASES: &[Case] = &[Case {
    name: "kube/pods",
    about: "Block, ext4 and xfs: a pod writes, a pod on another node reads it back",
    run: pods,
}];

/// A way to use a volume: its claim, and how a pod writes to it and reads from it.
struct Way {
    name: &'static str,
    class: &'static str,
    mode: Mode,
    size: &'static str,
}

const WAYS: [Way; 3] = [
    Way { name: "block", class: "weir", mode: Mode::Block, size: "64Mi" },
    Way { name: "ext4", class: "weir", mode: Mode::Filesystem, size: "64Mi" },
    // mkfs.xfs makes nothing smaller than 300 MB.
    Way { name: "xfs", class: "weir-xfs", mode: Mode::Filesystem, size: "512Mi" },
];

impl Way {
    fn place(&self) -> String {
        match self.mode {
            Mode::Block => DEVICE.to_owned(),
            Mode::Filesystem => format!("{FOLDER}/data"),
        }
    }

    /// The sum is made of what was meant to be written, not of what can be read back.
    fn write(&self) -> String {
        let place = self.place();
        format!(
            "set -e; dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; \
             dd if=/tmp/data of={place} bs=1M conv=notrunc,fsync 2>/dev/null; sha256sum </tmp/data >{SAY}"
        )
    }

    fn read(&self) -> String {
        format!("set -e; dd if={} bs=1M count=8 2>/dev/null | sha256sum >{SAY}", self.place())
    }

    fn run(&self, c: &KubeCluster, node: &str, script: &str) -> Result<()> {
        let pod = Pod { name: self.name, node: Some(node), claim: self.name, mode: self.mode, script };
        c.create(&[pod.object()])
    }
}

fn pods(c: &mut KubeCluster) -> Result<()> {
    let claims: Vec<_> = WAYS.iter().map(|w| Claim::of(w.name, w.class, w.mode, w.size).object()).collect();
    c.create(&claims)?;
    // All at once: most of the time goes by in waiting.
    for w in &WAYS {
        w.run(c, "n1", &w.write())?;
    }
    let mut wrote = Vec::new();
    for w in &WAYS {
        wrote.push(wait_pod(c, w.name).with_context(|| format!("the {} pod that writes", w.name))?);
    }
    for w in &WAYS {
        delete_pod(c, w.name)?;
        w.run(c, "n2", &w.read())?;
    }
    for (w, wrote) in WAYS.iter().zip(wrote) {
        let read = wait_pod(c, w.name).with_context(|| format!("the {} pod that reads", w.name))?;
        ensure!(read == wrote, "{}: {wrote} was written on n1, {read} was read on n2", w.name);
        delete_pod(c, w.name)?;
        delete_claim(c, w.name)?;
    }
    wait_gone(c)
}
