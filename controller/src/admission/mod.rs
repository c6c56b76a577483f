//! Who may be the second node of a volume that several nodes may hold: for a live migration another pod of the same virtual
//! machine, and nobody else. A node that holds the volume is never asked about: losing whoever answers stops no I/O.
//!
//! [`decide`] is the rule, as a function of the pods that use the claim. `sharing: multiWriter` lifts it: then nobody asks.
//! Where there is no Kubernetes ([`Everybody`]) the orchestrator is believed. Must not know: records, how a second node
//! is brought in.

pub mod cluster;

use std::collections::BTreeSet;

use pool::ids::{NodeName, VolumeId};

/// A pod that uses the volume's claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUse {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: NodeName,
    /// The virtual machine instance that it belongs to, as its launcher or as a hotplug attachment; `None`: to none.
    pub vm: Option<Vm>,
    /// Whether it is on its way out. It may still write.
    pub ending: bool,
}

/// A virtual machine instance. One that was deleted and made again under its name is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vm {
    /// Its name, which its successor may have as well.
    pub name: String,
    /// Its identity.
    pub uid: String,
}

/// A request for a volume that other nodes hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// The volume.
    pub volume: VolumeId,
    /// Its name, which is its PersistentVolume's where a provisioner made it.
    pub name: String,
    /// Who asks.
    pub node: NodeName,
    /// Who holds it and is alive.
    pub holders: Vec<NodeName>,
    /// Who holds it and has not been heard of for longer than a lease: they will be fenced for whoever comes.
    pub dead: Vec<NodeName>,
}

/// Why a node is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The rule: for people, with who holds the volume.
    #[error("{0}")]
    Refused(String),
    /// It cannot be told now.
    #[error("whether another node may have the volume cannot be told now: {0}")]
    Unknown(String),
}

/// Says who may be the second node.
#[async_trait::async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Whether a node that does not hold the volume may have it beside those that do.
    async fn admit(&self, newcomer: &Newcomer) -> Result<(), Denied>;
}

/// Believes the orchestrator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everybody;

#[async_trait::async_trait]
impl Admission for Everybody {
    async fn admit(&self, _: &Newcomer) -> Result<(), Denied> {
        Ok(())
    }
}

fn described(p: &PodUse) -> String {
    match &p.vm {
        Some(vm) => format!("virtual machine {} (pod {} on node {})", vm.name, p.name, p.node),
        None => format!("pod {} on node {}, which is no virtual machine's,", p.name, p.node),
    }
}

const LIFTED: &str =
    "A second node is for the live migration of one virtual machine; sharing: multiWriter lifts that";

/// Whether the newcomer may have the volume, by the pods that use its claim. Finished pods are not among them.
///
/// Beside a living holder only the same instance of a virtual machine may come. What a dead one held may be gone on with: by anybody where it
/// was no virtual machine's, by the next instance of the same virtual machine where it was.
///
/// # Errors
/// The reason, with who holds the volume.
pub fn decide(newcomer: &Newcomer, claim: &str, pods: &[PodUse]) -> Result<(), String> {
    let coming: Vec<&PodUse> = pods.iter().filter(|p| p.node == newcomer.node && !p.ending).collect();
    succeeds(newcomer, claim, pods, &coming)?;
    let holding: Vec<&PodUse> = pods.iter().filter(|p| newcomer.holders.contains(&p.node)).collect();
    // Nobody uses it there any more: what is left will be taken down.
    let Some(holder) = holding.first() else { return Ok(()) };
    let first = coming.first().ok_or_else(|| nobody(newcomer, claim, holder))?;
    let vms: BTreeSet<Option<&Vm>> = holding.iter().chain(&coming).map(|p| p.vm.as_ref()).collect();
    if vms.len() == 1 && !vms.contains(&None) {
        return Ok(());
    }
    // The one that does not fit is named, not just the first.
    let odd = coming.iter().find(|p| p.vm.is_none() || p.vm != holder.vm).unwrap_or(first);
    let beside = holding.iter().find(|p| p.vm.is_none() || p.vm != odd.vm).unwrap_or(holder);
    let again = match (&beside.vm, &odd.vm) {
        (Some(a), Some(b)) if a.name == b.name => " The one that was deleted still runs there.",
        _ => "",
    };
    Err(format!(
        "claim {claim} is held by {}: {} cannot have it too.{again} {LIFTED}",
        described(beside),
        described(odd)
    ))
}

/// Whether those who come may go on with what was a virtual machine's on a dead node.
fn succeeds(newcomer: &Newcomer, claim: &str, pods: &[PodUse], coming: &[&PodUse]) -> Result<(), String> {
    for left in pods.iter().filter(|p| newcomer.dead.contains(&p.node)) {
        let Some(vm) = &left.vm else { continue };
        if coming.is_empty() {
            return Err(nobody(newcomer, claim, left));
        }
        let same = |p: &&&PodUse| p.vm.as_ref().is_some_and(|v| v.name == vm.name);
        if let Some(odd) = coming.iter().find(|p| !same(p)) {
            return Err(format!(
                "claim {claim} is held by {}, which has not been heard of: {} cannot have it. Delete that pod with --force, or taint the node \
                 node.kubernetes.io/out-of-service, to give the virtual machine up",
                described(left),
                described(odd)
            ));
        }
    }
    Ok(())
}

fn nobody(newcomer: &Newcomer, claim: &str, holder: &PodUse) -> String {
    format!(
        "claim {claim} is held by {}, and no pod on node {} uses it. {LIFTED}",
        described(holder),
        newcomer.node
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(n: u8) -> NodeName {
        format!("n{n}").parse().unwrap()
    }

    fn newcomer(holders: &[u8]) -> Newcomer {
        Newcomer {
            volume: "00000000-0000-0000-0000-000000000001".parse().unwrap(),
            name: "pvc-1".into(),
            node: node(2),
            holders: holders.iter().map(|n| node(*n)).collect(),
            dead: vec![],
        }
    }

    /// `vm` is a name, and an instance's number after it where there are several.
    fn pod(name: &str, n: u8, vm: Option<&str>) -> PodUse {
        let vm = vm.map(|v| Vm { name: v[..1].to_owned(), uid: v.to_owned() });
        PodUse { name: name.into(), node: node(n), vm, ending: false }
    }

    #[test]
    fn only_a_pod_of_the_same_vm_may_come_beside() {
        let ending = |p: PodUse| PodUse { ending: true, ..p };
        let launcher = |n| pod("virt-launcher-a", n, Some("a"));
        let hotplug = |n| pod("hp-volume-a", n, Some("a"));
        let other = |n| pod("virt-launcher-b", n, Some("b"));
        let plain = |n| pod("job", n, None);
        for (what, pods, good) in [
            ("a migration", vec![launcher(1), launcher(2)], true),
            ("a hotplugged volume's migration", vec![hotplug(1), launcher(1), hotplug(2), launcher(2)], true),
            ("the source ends already", vec![ending(launcher(1)), launcher(2)], true),
            ("nobody uses it where it is held", vec![other(2)], true),
            ("another VM", vec![launcher(1), other(2)], false),
            ("another VM beside the same", vec![launcher(1), launcher(2), other(2)], false),
            ("another VM while the last one ends", vec![ending(launcher(1)), other(2)], false),
            ("no VM's pod", vec![launcher(1), plain(2)], false),
            ("two pods of no VM", vec![plain(1), plain(2)], false),
            ("a VM beside no VM's pod", vec![plain(1), launcher(2)], false),
            ("no pod at all", vec![launcher(1)], false),
            ("one that ends before it has begun", vec![launcher(1), ending(launcher(2))], false),
            ("pods elsewhere do not count", vec![launcher(1), launcher(2), other(3)], true),
            (
                "the next instance while the last one runs",
                vec![pod("old", 1, Some("a1")), pod("new", 2, Some("a2"))],
                false,
            ),
        ] {
            assert_eq!(decide(&newcomer(&[1]), "ns/c", &pods).is_ok(), good, "{what}");
        }
    }

    #[test]
    fn a_refusal_says_who_holds_it_and_who_may_not_come() {
        let pods = [pod("virt-launcher-a", 1, Some("a")), pod("virt-launcher-b", 2, Some("b"))];
        let why = decide(&newcomer(&[1]), "shop/disk", &pods).unwrap_err();
        for part in [
            "shop/disk",
            "held by virtual machine a (pod virt-launcher-a on node n1)",
            "virtual machine b",
            "n2",
            "multiWriter",
        ] {
            assert!(why.contains(part), "{why}");
        }
        let pods = [pod("virt-launcher-a", 1, Some("a")), pod("job", 2, None)];
        assert!(
            decide(&newcomer(&[1]), "c", &pods)
                .unwrap_err()
                .contains("pod job on node n2, which is no virtual machine's")
        );
    }

    #[test]
    fn what_a_dead_node_held_is_gone_on_with_by_the_same_vm() {
        let old = |vm| pod("old", 1, vm);
        let new = |vm| pod("new", 2, vm);
        for (what, pods, good) in [
            ("the next instance", vec![old(Some("a1")), new(Some("a2"))], true),
            ("the same one", vec![old(Some("a1")), new(Some("a1"))], true),
            ("another VM", vec![old(Some("a1")), new(Some("b1"))], false),
            ("no VM's pod after a VM", vec![old(Some("a1")), new(None)], false),
            ("nobody", vec![old(Some("a1"))], false),
            ("a Deployment's next pod", vec![old(None), new(None)], true),
            ("nothing is left of the old pod", vec![new(Some("b1"))], true),
        ] {
            let gone = Newcomer { dead: vec![node(1)], ..newcomer(&[]) };
            let said = decide(&gone, "ns/c", &pods);
            assert_eq!(said.is_ok(), good, "{what}: {said:?}");
        }
        let gone = Newcomer { dead: vec![node(1)], ..newcomer(&[]) };
        let why = decide(&gone, "ns/c", &[old(Some("a1")), new(Some("b1"))]).unwrap_err();
        assert!(
            why.contains("virtual machine a (pod old on node n1)") && why.contains("out-of-service"),
            "{why}"
        );
    }

    fn any_pod() -> impl Strategy<Value = PodUse> {
        let vm = proptest::option::of("[ab][12]");
        (vm, 1_u8..4, any::<bool>(), "[a-z]{1,3}")
            .prop_map(|(vm, n, ending, name)| PodUse { ending, ..pod(&name, n, vm.as_deref()) })
    }

    proptest! {
        /// Said the slow way: whoever is admitted shares its VM with everybody who may write.
        #[test]
        fn two_strangers_never_hold_it(pods in proptest::collection::vec(any_pod(), 0..8)) {
            let admitted = decide(&newcomer(&[1, 3]), "c", &pods).is_ok();
            let writers: Vec<_> = pods.iter().filter(|p| p.node != node(2)).collect();
            let coming: Vec<_> = pods.iter().filter(|p| p.node == node(2) && !p.ending).collect();
            let strangers = writers.iter().any(|w| coming.iter().any(|c| w.vm.is_none() || w.vm != c.vm));
            let torn = writers.iter().any(|w| writers.iter().any(|x| w.vm != x.vm));
            let expected = writers.is_empty() || (!coming.is_empty() && !strangers && !torn);
            prop_assert_eq!(admitted, expected);
        }
    }
}
