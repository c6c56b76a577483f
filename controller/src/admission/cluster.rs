//! Who uses a claim, from the cluster: the PersistentVolume says which claim, the pods of its namespace on the nodes in
//! question say who. Asked when a second node wants a volume and at no other time, with consistent reads.
//!
//! What KubeVirt's pods look like (kubevirt.io/api v1.9): a launcher has the label `kubevirt.io: virt-launcher` and a
//! VirtualMachineInstance as its controlling owner; what attaches hotplugged disks has `kubevirt.io: hotplug-disk` and a
//! launcher pod as its controlling owner. Must not know: the rule.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{PersistentVolume, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use pool::ids::NodeName;

use super::{Admission, Denied, Newcomer, PodUse, decide};

/// How long the API server may take for one request.
const ANSWER: Duration = Duration::from_secs(10);
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

    async fn ask<T>(f: impl Future<Output = kube::Result<T>>) -> Result<T, Denied> {
        match tokio::time::timeout(ANSWER, f).await {
            Ok(r) => r.map_err(|e| Denied::Unknown(e.to_string())),
            Err(_) => Err(Denied::Unknown("the API server does not answer".to_owned())),
        }
    }

    fn claim(&self, pv: &PersistentVolume, volume: &str) -> Option<Claim> {
        let spec = pv.spec.as_ref()?;
        spec.csi.as_ref().filter(|c| c.driver == self.driver && c.volume_handle == volume)?;
        let claim = spec.claim_ref.as_ref()?;
        Some(Claim { namespace: claim.namespace.clone()?, name: claim.name.clone()? })
    }

    /// The claim that the volume is bound to.
    async fn find(&self, newcomer: &Newcomer) -> Result<Option<Claim>, Denied> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let id = newcomer.volume.to_string();
        // A provisioner names the volume as it names the PersistentVolume. People may call theirs anything.
        if let Some(claim) =
            Self::ask(volumes.get_opt(&newcomer.name)).await?.and_then(|v| self.claim(&v, &id))
        {
            return Ok(Some(claim));
        }
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = Self::ask(volumes.list(&page)).await?;
            if let Some(claim) = listed.items.iter().find_map(|v| self.claim(v, &id)) {
                return Ok(Some(claim));
            }
            match listed.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(None),
            }
        }
    }

    /// The pods on a node that use the claim.
    async fn pods(&self, claim: &Claim, node: &NodeName) -> Result<Vec<PodUse>, Denied> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &claim.namespace);
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let listed = Self::ask(pods.list(&here)).await?;
        Ok(uses(&listed.items, &claim.name, node))
    }
}

#[async_trait::async_trait]
impl Admission for ByPods {
    async fn admit(&self, newcomer: &Newcomer) -> Result<(), Denied> {
        let Some(claim) = self.find(newcomer).await? else {
            return Err(Denied::Refused(format!(
                "volume {} is held by node {}, and no PersistentVolume of driver {} says which claim it belongs to: a \
                 second node is admitted for the pods of one virtual machine only",
                newcomer.volume,
                newcomer.holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                self.driver
            )));
        };
        let mut pods = vec![];
        for node in newcomer.holders.iter().chain([&newcomer.node]) {
            pods.extend(self.pods(&claim, node).await?);
        }
        decide(newcomer, &format!("{}/{}", claim.namespace, claim.name), &pods).map_err(Denied::Refused)
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
fn virtual_machine(p: &Pod, by_uid: &BTreeMap<String, &Pod>) -> Option<String> {
    let owner = controller(p)?;
    match p.labels().get(APP).map(String::as_str) {
        Some(LAUNCHER) => {
            let ours =
                owner.kind == "VirtualMachineInstance" && owner.api_version.starts_with("kubevirt.io/");
            ours.then(|| owner.name.clone())
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
        let vm = |name: &str| found.iter().find(|p| p.name == name).map(|p| p.vm.as_deref());
        for name in ["launcher", "hp", "ending"] {
            assert_eq!(vm(name), Some(Some("a")), "{name}");
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
