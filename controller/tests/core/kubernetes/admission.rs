//! Who may be the second node, by pods in a real API server.

use controller::admission::{Admission, Denied, Newcomer, cluster::ByPods};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, ServiceAccount};
use serde_json::Value;

use super::{tokens::ensure, *};

const VOLUME: &str = "00000000-0000-0000-0000-00000000ad01";

fn launcher(name: &str, node: &str, vm: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": { "kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": vm },
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": vm, "uid": format!("vmi-{vm}"),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": spec(node),
    })
}

fn hotplug(name: &str, node: &str, owner: &Pod) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": { "kubevirt.io": "hotplug-disk" },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod", "name": owner.name_any(), "uid": owner.uid(),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": spec(node),
    })
}

fn spec(node: &str) -> Value {
    using(node, "admission-claim")
}

fn using(node: &str, claim: &str) -> Value {
    json!({
        "nodeName": node,
        "serviceAccountName": "admission",
        "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "c", "image": "none" }],
        "volumes": [{ "name": "disk", "persistentVolumeClaim": { "claimName": claim } }],
    })
}

fn volume(name: &str, claim: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": "1Gi" },
            "accessModes": ["ReadWriteMany"],
            "volumeMode": "Block",
            "csi": { "driver": "csi.weir.storage", "volumeHandle": VOLUME },
            "claimRef": { "namespace": "default", "name": claim },
        },
    })
}

/// As the cluster's own controllers would write it.
async fn is_in_phase(volumes: &Api<PersistentVolume>, name: &str, phase: &str) {
    let patch = Patch::Merge(json!({ "status": { "phase": phase } }));
    volumes.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn a_second_node_is_admitted_for_pods_of_one_vm() {
    let _one = ONE.lock().await;
    let client = client().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    ensure(&accounts, json!({ "metadata": { "name": "admission" } })).await;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let by = ByPods::new(client.clone(), "csi.weir.storage".into());
    let newcomer = Newcomer {
        volume: VOLUME.parse().unwrap(),
        name: "pvc-admission".into(),
        node: "adm-n2".parse().unwrap(),
        holders: vec!["adm-n1".parse().unwrap()],
        dead: vec![],
    };
    let refused = |r: Result<(), Denied>, says: &str| {
        let Err(Denied::Refused(why)) = r else { panic!("{r:?}: refused with {says:?} was expected") };
        assert!(why.contains(says), "{why}");
    };
    refused(by.admit(&newcomer).await, "no PersistentVolume");
    // Not named as the volume is: a person's own.
    ensure(&volumes, volume("admission-pv", "admission-claim")).await;
    assert_eq!(by.admit(&newcomer).await, Ok(()), "nobody uses it where it is held");
    let source = ensure(&pods, launcher("adm-source", "adm-n1", "vm-a")).await;
    refused(by.admit(&newcomer).await, "no pod on node adm-n2");
    let target = ensure(&pods, launcher("adm-target", "adm-n2", "vm-a")).await;
    assert_eq!(by.admit(&newcomer).await, Ok(()), "a migration");
    // The claim that had the volume before, and what still runs with it.
    ensure(&volumes, volume("pvc-admission", "former-claim")).await;
    ensure(&pods, json!({ "metadata": { "name": "adm-former" }, "spec": using("adm-n1", "former-claim") }))
        .await;
    is_in_phase(&volumes, "pvc-admission", "Bound").await;
    refused(by.admit(&newcomer).await, "adm-former");
    is_in_phase(&volumes, "pvc-admission", "Released").await;
    assert_eq!(by.admit(&newcomer).await, Ok(()), "a claim that has it no more says nothing");
    ensure(&pods, hotplug("adm-hp-1", "adm-n1", &source)).await;
    ensure(&pods, hotplug("adm-hp-2", "adm-n2", &target)).await;
    assert_eq!(by.admit(&newcomer).await, Ok(()), "with a hotplugged disk");
    ensure(&pods, launcher("adm-other", "adm-n2", "vm-b")).await;
    refused(by.admit(&newcomer).await, "held by virtual machine vm-a");
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete("adm-other", &now).await.unwrap();
    ensure(&pods, json!({ "metadata": { "name": "adm-job" }, "spec": spec("adm-n2") })).await;
    refused(by.admit(&newcomer).await, "no virtual machine's");

    for name in ["adm-former", "adm-job", "adm-hp-1", "adm-hp-2", "adm-source", "adm-target"] {
        pods.delete(name, &now).await.unwrap();
    }
    for name in ["admission-pv", "pvc-admission"] {
        volumes.delete(name, &DeleteParams::default()).await.unwrap();
    }
}
