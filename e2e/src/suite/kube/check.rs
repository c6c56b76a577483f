//! Walks the records and the kernels of all nodes and holds them against each other: every volume that a node holds stands
//! there, every lender has its slices, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::kube::{
    KubeCluster,
    cluster::{PATIENCE, items},
};

/// A device of ours as its name says: whose volume, and whether it is a lender's slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Device {
    node: String,
    /// The volume's id without dashes.
    volume: String,
    slice: bool,
}

/// From a name as `weir-<id>`, `weir-<id>-map` or `weir-<id without dashes>-slice-...`; `None` for what is not a volume's.
fn parse(node: &str, name: &str) -> Option<Device> {
    let rest = name.strip_prefix("weir-")?;
    let slice = rest.contains("-slice-");
    let id = rest.get(..if slice { 32 } else { 36 })?;
    let volume = id.replace('-', "");
    (volume.len() == 32).then(|| Device { node: node.to_owned(), volume, slice })
}

/// What stands in the kernels.
fn standing(c: &KubeCluster) -> Result<BTreeSet<Device>> {
    let mut all = BTreeSet::new();
    for node in c.lab().nodes() {
        let at = node.name();
        for name in crate::suite::devices(node)? {
            all.insert(parse(&at, &name).with_context(|| format!("{at} has the device {name}"))?);
        }
    }
    Ok(all)
}

/// What should stand by the records.
fn recorded(volumes: &[Value], disks: &[Value]) -> Result<BTreeSet<Device>> {
    let node_of: BTreeMap<&str, &str> = disks
        .iter()
        .filter_map(|d| Some((d["metadata"]["name"].as_str()?, d["spec"]["node"].as_str()?)))
        .collect();
    let mut all = BTreeSet::new();
    for v in volumes {
        let id = v["metadata"]["name"].as_str().context("a record's name")?.replace('-', "");
        let holders =
            v["spec"]["access"]["holders"].as_object().map(|h| h.keys().cloned().collect::<Vec<_>>());
        for holder in holders.unwrap_or_default() {
            for leg in items(&v["spec"]["segments"]).iter().flat_map(|s| items(&s["legs"])) {
                let disk = leg["disk"].as_str().context("a segment's disk")?;
                let lender = node_of.get(disk).with_context(|| format!("no record of disk {disk}"))?;
                if **lender != *holder {
                    all.insert(Device { node: (*lender).to_owned(), volume: id.clone(), slice: true });
                }
            }
            all.insert(Device { node: holder, volume: id.clone(), slice: false });
        }
    }
    Ok(all)
}

/// Waits until records and kernels agree; says how many devices do.
pub(super) fn agree(c: &KubeCluster) -> Result<usize> {
    c.wait("records and kernels to agree", PATIENCE, || {
        let (volumes, disks) = (c.get(&["logicalvolumes"])?, c.get(&["nodedisks"])?);
        let want = recorded(items(&volumes["items"]), items(&disks["items"]))?;
        let have = standing(c)?;
        let missing: Vec<_> = want.difference(&have).collect();
        let foreign: Vec<_> = have.difference(&want).collect();
        ensure!(missing.is_empty() && foreign.is_empty(), "missing: {missing:?}; not on record: {foreign:?}");
        Ok(Some(have.len()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "567d0122-3227-4b1c-940f-c12a832e8448";

    #[test]
    fn devices_are_told_by_their_names() {
        let simple = ID.replace('-', "");
        let of = |name: &str| parse("n1", name).map(|d| (d.volume, d.slice));
        assert_eq!(of(&format!("weir-{ID}")), Some((simple.clone(), false)));
        assert_eq!(of(&format!("weir-{ID}-leg-{ID}")), Some((simple.clone(), false)));
        assert_eq!(of(&format!("weir-{simple}-slice-{simple}-00")), Some((simple, true)));
        assert_eq!(of("weir-x"), None);
    }

    #[test]
    fn a_holder_and_each_lender_have_a_device() {
        let disks = [("a", "n1"), ("b", "n2"), ("c", "n3")]
            .map(|(id, node)| json!({"metadata": {"name": id}, "spec": {"node": node}}));
        let segments = json!([{"legs": [{"disk": "a"}]}, {"legs": [{"disk": "b"}, {"disk": "b"}]}]);
        let volume = |holders: Value| json!({"metadata": {"name": ID}, "spec": {"access": {"holders": holders}, "segments": segments}});
        let found = recorded(&[volume(json!({"n1": {}}))], &disks).unwrap();
        let at: Vec<_> = found.iter().map(|d| (d.node.as_str(), d.slice)).collect();
        assert_eq!(at, [("n1", false), ("n2", true)]);
        assert!(recorded(&[volume(json!({}))], &disks).unwrap().is_empty());
        assert!(recorded(&[volume(json!({"n1": {}}))], &disks[1..]).is_err());
    }
}
