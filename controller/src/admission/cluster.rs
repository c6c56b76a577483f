//! Who uses a claim, from the cluster: the PersistentVolume says which claim, the pods of its namespace on the nodes in
//! question say who. Asked when a second node wants a volume and at no other time, with consistent reads.
//!
//! What KubeVirt's pods look like (kubevirt.io/api v1.9): a launcher has the label `kubevirt.io: virt-launcher` and a
//! VirtualMachineInstance as its controlling owner; what attaches hotplugged disks has `kubevirt.io: hotplug-disk` and a
//! launcher pod as its controlling owner. Must not know: the rule.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PersistentVolume, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use pool::ids::NodeName;

use super::{Admission, Denied, Newcomer, PodUse, Vm, decide};
use crate::cluster;

/// PersistentVolumes on a page, where a volume's has to be looked for.
const PAGE: u32 = 500;
/// The label that says what a pod is to KubeVirt, and its values.
const APP: &str = "kubevirt.io";
const LAUNCHER: &str = "virt-launcher";
const HOTPLUG: &str = "hotplug-disk";

/// The rule of live migration, by the cluster's pods.
pub struct ByPods {
    client: Client,
    driver: String,
}

async fn ask<T>(f: impl Future<Output = kube::Result<T>>) -> Result<T, Denied> {
    cluster::ask(f).await.map_err(|e| Denied::Unknown(e.to_string()))
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    namespace: String,
    name: String,
}

impl ByPods {
    /// For volumes of this CSI driver.
    pub fn new(client: Client, driver: String) -> Self {
        Self { client, driver }
    }

    /// The claim that a PersistentVolume is bound to, if it is the volume's. One that was released still names its last claim, beside
    /// another that took the volume over.
    fn claim(&self, pv: &PersistentVolume, volume: &str) -> Option<Claim> {
        let phase = pv.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Released" | "Failed")) {
            return None;
        }
        let spec = pv.spec.as_ref()?;
        spec.csi.as_ref().filter(|c| c.driver == self.driver && c.volume_handle == volume)?;
        let claim = spec.claim_ref.as_ref()?;
        Some(Claim { namespace: claim.namespace.clone()?, name: claim.name.clone()? })
    }

    /// The claim of the PersistentVolume that is named as the volume is: a provisioner names them alike.
    async fn likely_claim(&self, newcomer: &Newcomer) -> Result<Option<Claim>, Denied> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = ask(volumes.get_opt(&newcomer.name)).await?;
        Ok(found.and_then(|v| self.claim(&v, &newcomer.volume.to_string())))
    }

    /// All claims that the volume is bound to: people may call PersistentVolumes anything, and make several of one volume.
    async fn all_claims(&self, newcomer: &Newcomer) -> Result<Vec<Claim>, Denied> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let (id, mut found) = (newcomer.volume.to_string(), vec![]);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = ask(volumes.list(&page)).await?;
            found.extend(listed.items.iter().filter_map(|v| self.claim(v, &id)));
            match listed.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(found),
            }
        }
    }

    /// The pods that use these claims on the nodes in question.
    async fn users(&self, newcomer: &Newcomer, claims: &[Claim]) -> Result<Vec<PodUse>, Denied> {
        let mut pods = vec![];
        for node in newcomer.holders.iter().chain(&newcomer.dead).chain([&newcomer.node]) {
            for claim in claims {
                pods.extend(self.pods(claim, node).await?);
            }
        }
        Ok(pods)
    }

    /// The pods on a node that use the claim.
    async fn pods(&self, claim: &Claim, node: &NodeName) -> Result<Vec<PodUse>, Denied> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &claim.namespace);
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let listed = ask(pods.list(&here)).await?;
        Ok(uses(&listed.items, &claim.name, node))
    }
}

#[async_trait::async_trait]
impl Admission for ByPods {
    async fn admit(&self, newcomer: &Newcomer) -> Result<(), Denied> {
        let mut claims = Vec::from_iter(self.likely_claim(newcomer).await?);
        let mut pods = self.users(newcomer, &claims).await?;
        // That nobody has it where it is held would admit everybody: then all claims are looked up.
        let held = |p: &PodUse| newcomer.holders.contains(&p.node) || newcomer.dead.contains(&p.node);
        if !pods.iter().any(held) {
            claims = self.all_claims(newcomer).await?;
            pods = self.users(newcomer, &claims).await?;
        }
        let names: Vec<_> = claims.iter().map(|c| format!("{}/{}", c.namespace, c.name)).collect();
        if names.is_empty() {
            let holders: Vec<_> =
                newcomer.holders.iter().chain(&newcomer.dead).map(NodeName::as_str).collect();
            return Err(Denied::Refused(format!(
                "volume {} is held by node {}, and no PersistentVolume of driver {} says which claim it belongs to: a \
                 second node is admitted for the pods of one virtual machine only",
                newcomer.volume,
                holders.join(", "),
                self.driver
            )));
        }
        decide(newcomer, &names.join(" and "), &pods).map_err(Denied::Refused)
    }
}

/// Those of a node's pods that use a claim and are not finished.
fn uses(pods: &[Pod], claim: &str, node: &NodeName) -> Vec<PodUse> {
    let by_uid: BTreeMap<String, &Pod> = pods.iter().filter_map(|p| p.uid().map(|u| (u, p))).collect();
    let mut out = vec![];
    for p in pods.iter().filter(|p| uses_claim(p, claim) && !is_finished(p)) {
        out.push(PodUse {
            name: p.name_any(),
            node: node.clone(),
            vm: virtual_machine(p, &by_uid),
            ending: p.metadata.deletion_timestamp.is_some(),
        });
    }
    out
}

fn is_finished(p: &Pod) -> bool {
    let phase = p.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn uses_claim(p: &Pod, claim: &str) -> bool {
    let volumes = p.spec.as_ref().and_then(|s| s.volumes.as_ref());
    volumes.into_iter().flatten().any(|v| {
        let named = v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == claim);
        // The claim of a generic ephemeral volume is named after the pod and the volume.
        named || (v.ephemeral.is_some() && claim == format!("{}-{}", p.name_any(), v.name))
    })
}

fn controller(p: &Pod) -> Option<&OwnerReference> {
    p.owner_references().iter().find(|o| o.controller == Some(true))
}

/// The virtual machine instance that a pod works for; label and owner must agree.
fn virtual_machine(p: &Pod, by_uid: &BTreeMap<String, &Pod>) -> Option<Vm> {
    let owner = controller(p)?;
    match p.labels().get(APP).map(String::as_str) {
        Some(LAUNCHER) => {
            let ours =
                owner.kind == "VirtualMachineInstance" && owner.api_version.starts_with("kubevirt.io/");
            ours.then(|| Vm { name: owner.name.clone(), uid: owner.uid.clone() })
        }
        Some(HOTPLUG) if owner.kind == "Pod" && owner.api_version == "v1" => {
            let launcher = by_uid.get(&owner.uid)?;
            // No chains: what owns it must be a launcher itself.
            let is_launcher = launcher.labels().get(APP).is_some_and(|l| l == LAUNCHER);
            if is_launcher { virtual_machine(launcher, by_uid) } else { None }
        }
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, app: Option<&str>, owner: Value, volumes: Value) -> Pod {
        let mut meta = json!({ "name": name, "uid": format!("uid-{name}"), "ownerReferences": owner });
        if let Some(app) = app {
            meta["labels"] = json!({ "kubevirt.io": app });
        }
        serde_json::from_value(json!({ "metadata": meta, "spec": { "containers": [], "volumes": volumes } }))
            .unwrap()
    }

    fn vmi(name: &str) -> Value {
        json!([{ "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": name, "uid": "v", "controller": true }])
    }

    fn owned_by(pod: &str) -> Value {
        json!([{ "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": format!("uid-{pod}"), "controller": true }])
    }

    fn disk(claim: &str) -> Value {
        json!([{ "name": "disk", "persistentVolumeClaim": { "claimName": claim } }])
    }

    #[test]
    fn launchers_and_hotplug_pods_are_of_their_vm_and_imitations_are_not() {
        let node: NodeName = "n1".parse().unwrap();
        let replica_set = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "r", "controller": true }]);
        let mut not_controlling = vmi("a");
        not_controlling[0]["controller"] = json!(false);
        let mut ended = pod("ended", Some(LAUNCHER), vmi("a"), disk("c"));
        ended.status = serde_json::from_value(json!({ "phase": "Succeeded" })).unwrap();
        let mut ending = pod("ending", Some(LAUNCHER), vmi("a"), disk("c"));
        ending.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let ephemeral = json!([{ "name": "v", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } }]);
        let pods = [
            pod("launcher", Some(LAUNCHER), vmi("a"), disk("c")),
            pod("hp", Some(HOTPLUG), owned_by("launcher"), disk("c")),
            pod("label-only", Some(LAUNCHER), replica_set.clone(), disk("c")),
            pod("owner-only", None, vmi("a"), disk("c")),
            pod("not-controlling", Some(LAUNCHER), not_controlling, disk("c")),
            pod("hp-of-nobody", Some(HOTPLUG), owned_by("gone"), disk("c")),
            pod("hp-of-a-job", Some(HOTPLUG), owned_by("label-only"), disk("c")),
            pod("hp-of-hp", Some(HOTPLUG), owned_by("hp"), disk("c")),
            pod("plain", None, json!([]), disk("c")),
            pod("another-claim", Some(LAUNCHER), vmi("a"), disk("d")),
            ended,
            ending,
            pod("eph", None, json!([]), ephemeral),
        ];
        let found = uses(&pods, "c", &node);
        let vm = |name: &str| {
            found
                .iter()
                .find(|p| p.name == name)
                .map(|p| p.vm.as_ref().map(|v| (v.name.as_str(), v.uid.as_str())))
        };
        for name in ["launcher", "hp", "ending"] {
            assert_eq!(vm(name), Some(Some(("a", "v"))), "{name}");
        }
        for name in [
            "label-only",
            "owner-only",
            "not-controlling",
            "hp-of-nobody",
            "hp-of-a-job",
            "hp-of-hp",
            "plain",
        ] {
            assert_eq!(vm(name), Some(None), "{name}");
        }
        assert_eq!((vm("another-claim"), vm("ended")), (None, None));
        assert!(found.iter().all(|p| p.ending == (p.name == "ending")));
        assert_eq!(uses(&pods, "eph-v", &node).len(), 1);
    }
}
