//! What makes a node of the lab a node of a cluster: files in its folder that it reads at each boot.
//!
//! Must not know: how a node boots, or what runs on the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure as check};

use super::{
    binaries::{self, Program, ensure},
    images,
    plane::ControlPlane,
};
use crate::{
    agent::BOOT_SCRIPT,
    lab::{Node, names, state, tools::find_tool},
};

/// The 9p tag of the folder of programs, and where nodes mount it.
pub(super) const SHARE: &str = "kube";
const MOUNTED: &str = "/kube";
const SCRIPT: &str = include_str!("boot.sh");

/// What all nodes need; built once.
pub(super) struct Kit {
    words: Vec<(&'static str, String)>,
}

/// A file of the folder of programs, as nodes see it.
pub(super) fn seen(path: &Path) -> Result<PathBuf> {
    let inside = path.strip_prefix(binaries::dir()?).context("a program outside of its folder")?;
    Ok(Path::new(MOUNTED).join(inside))
}

fn folder(program: PathBuf) -> Result<String> {
    Ok(seen(program.parent().context("a program without a folder")?)?.display().to_string())
}

impl Kit {
    /// Builds what is not yet built. `images` is the archive of containerd's store as nodes see it.
    pub(super) fn new(images: &str) -> Result<Self> {
        let containerd = ensure(Program::CONTAINERD)?;
        ensure(Program::SHIM)?;
        ensure(Program::CTR)?;
        ensure(Program::CNI_LOOPBACK)?;
        ensure(Program::CNI_BRIDGE)?;
        let cni = ensure(Program::CNI_HOST_LOCAL)?;
        find_tool("nft")?;
        let words = vec![
            ("containerd_dir", folder(containerd)?),
            ("cni_dir", folder(cni)?),
            ("sandbox", images::BUSYBOX.to_owned()),
            ("runc", find_tool("runc")?.display().to_string()),
            ("kubelet", seen(&ensure(Program::KUBELET)?)?.display().to_string()),
            ("proxy", seen(&ensure(Program::PROXY)?)?.display().to_string()),
            ("images", images.to_owned()),
        ];
        Ok(Self { words })
    }

    /// Writes the files of one node.
    pub(super) fn prepare(&self, node: &Node, nodes: u8, plane: &ControlPlane) -> Result<()> {
        let dir = node.dir().join("kube");
        state::create_private_dir(&dir)?;
        let name = node.name();
        for (file, text) in [
            ("ca.crt", plane.ca()?),
            ("kubelet.kubeconfig", plane.node_kubeconfig(&format!("node-{name}"))?),
            ("proxy.kubeconfig", plane.node_kubeconfig("proxy")?),
        ] {
            state::write_private(&dir.join(file), text.as_bytes())?;
        }
        let script = self.render(node.number(), nodes)?;
        fs::write(node.dir().join(BOOT_SCRIPT), script).context("write the boot script")
    }

    fn render(&self, number: u8, nodes: u8) -> Result<String> {
        let others = (1..=nodes).filter(|n| *n != number);
        let route = |n| format!("ip route add 10.244.{n}.0/24 via {} dev eth1", names::storage_ip(n));
        let own = [
            ("number", number.to_string()),
            ("node_ip", names::storage_ip(number).to_string()),
            ("routes", others.map(route).collect::<Vec<_>>().join("\n")),
        ];
        let script = self
            .words
            .iter()
            .chain(&own)
            .fold(SCRIPT.to_owned(), |text, (word, value)| text.replace(&format!("@{word}@"), value));
        let left = script.lines().find(|l| !l.starts_with('#') && l.contains('@'));
        check!(left.is_none(), "a word of the boot script is not filled in: {left:?}");
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_script_has_no_word_left() {
        let words = ["containerd_dir", "cni_dir", "sandbox", "runc", "kubelet", "proxy", "images"];
        let mut kit = Kit { words: words.map(|w| (w, format!("/x/{w}"))).to_vec() };
        let script = kit.render(2, 3).unwrap();
        assert!(script.contains("--hostname-override=n2 ") && script.contains("10.244.2.0/24"));
        assert!(script.contains("ip route add 10.244.3.0/24 via 10.77.0.13 dev eth1"));
        assert!(!script.contains("10.244.2.0/24 via"));
        kit.words.pop();
        assert!(kit.render(2, 3).is_err());
    }
}
