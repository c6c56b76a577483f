//! What people see in the cluster of a core that keeps its records there.

use std::fmt::Debug;

use api::{Condition, ConditionStatus, StoragePool};
use controller::{api::Api as _, core::Handle, report::Reporter};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim};
use serde::de::DeserializeOwned;

use super::{tokens::ensure, *};
use crate::{
    node::quick,
    rig::{RWX, Rig, request},
};

async fn wait<K: Clone + Debug + DeserializeOwned>(
    what: &str,
    api: &Api<K>,
    name: &str,
    is: impl Fn(&K) -> bool,
) -> K {
    until(what, || async {
        let found = api.get(name).await.unwrap();
        is(&found).then_some(found)
    })
    .await
}

fn says(all: &[Condition], kind: &str, status: ConditionStatus) -> bool {
    all.iter().any(|c| c.kind == kind && c.status == status && c.observed_generation > 0)
}

async fn event(client: &Client, kind: &str, reason: &str) -> Event {
    let events: Api<Event> = Api::all(client.clone());
    until(&format!("an event {reason} on a {kind}"), || async {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        all.into_iter()
            .find(|e| e.involved_object.kind.as_deref() == Some(kind) && e.reason.as_deref() == Some(reason))
    })
    .await
}

async fn claimed(core: &Handle, name: &str) -> String {
    let mut r = request(name, 14, Some("n1"));
    for (k, v) in [("pvc/name", "report-claim"), ("pvc/namespace", "default"), ("pv/name", name)] {
        r.parameters.insert(format!("csi.storage.k8s.io/{k}"), v.to_owned());
    }
    core.create_volume(r).await.unwrap().id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn statuses_and_events_tell_what_the_core_knows() {
    let _one = ONE.lock().await;
    let client = clean("report").await;
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    events.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let pools: Api<StoragePool> = Api::all(patient().await);
    let spec = json!({ "devices": [{ "paths": ["/dev/none*"] }] });
    ensure(&pools, json!({ "metadata": { "name": "default" }, "spec": spec })).await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let spec = json!({
        "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "resources": { "requests": { "storage": "1Gi" } },
        "storageClassName": "none",
    });
    ensure(&claims, json!({ "metadata": { "name": "report-claim" }, "spec": spec })).await;

    let store = Arc::new(Kubernetes::new(client.clone(), lease("report", "r")));
    let rig = Rig::over(quick(), store, &[10, 10]).await;
    let reporter = tokio::spawn(Reporter::new(client.clone(), rig.core.clone()).run());
    let nodes: Api<StorageNode> = Api::all(client.clone());
    wait("n1 to be alive", &nodes, "n1", |n| {
        n.status.as_ref().is_some_and(|s| says(&s.conditions, "Alive", ConditionStatus::True))
    })
    .await;
    let disks: Api<NodeDisk> = Api::all(client.clone());
    let disk = disks.list(&ListParams::default()).await.unwrap().items[0].name_any();
    let ready = |d: &NodeDisk| {
        d.status
            .as_ref()
            .is_some_and(|s| s.free.is_some() && says(&s.conditions, "Ready", ConditionStatus::True))
    };
    wait("a disk to be ready", &disks, &disk, ready).await;

    let id = claimed(&rig.core, "report-1").await;
    rig.attach(id.parse().unwrap(), 0, &RWX).await.unwrap();
    let volumes: Api<LogicalVolume> = Api::all(client.clone());
    let there = wait("the volume to be attached", &volumes, &id, |v| {
        v.status.as_ref().is_some_and(|s| s.state.as_deref() == Some("Attached"))
    })
    .await;
    let status = there.status.unwrap();
    assert_eq!(status.nodes.as_deref(), Some("n1"));
    assert!(status.borrowed.unwrap().ends_with("from 1 node"), "14 extents do not fit on n1");
    assert!(says(&status.conditions, "Settled", ConditionStatus::True));

    rig.nodes[1].vanish().await;
    rig.dead(1).await;
    wait("n2 to be dead", &nodes, "n2", |n| {
        n.status.as_ref().is_some_and(|s| says(&s.conditions, "Alive", ConditionStatus::False))
    })
    .await;
    wait("the volume to be degraded", &volumes, &id, |v| {
        v.status.as_ref().is_some_and(|s| says(&s.conditions, "Settled", ConditionStatus::False))
    })
    .await;
    assert_eq!(event(&client, "Node", "StorageSilent").await.type_.as_deref(), Some("Warning"));
    let lost = event(&client, "PersistentVolumeClaim", "LenderLost").await;
    assert_eq!(lost.involved_object.name.as_deref(), Some("report-claim"));
    assert!(lost.message.unwrap().contains("n2"));
    reporter.abort();
}
