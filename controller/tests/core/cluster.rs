//! The cluster as the controller sees it, behind an API server that is scripted: it holds objects in memory, and some requests
//! come to grief.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use controller::{
    api::Api as _,
    core::CoreConfig,
    pools::{self, Found},
    report::{Reporter, Waiting},
};
use http::{Method, Request, Response};
use kube::{Client, client::Body};
use pool::{ids::VolumeId, units::ExtentSize};
use serde_json::{Value, json};

use crate::{
    node::{Node, quick},
    rig::{RWX, Rig, request, start},
    stores::Memory,
    world::until,
};

const POOLS: &str = "/apis/weir.storage/v1alpha1/storagepools";
const NODES: &str = "/apis/weir.storage/v1alpha1/storagenodes";
const DISKS: &str = "/apis/weir.storage/v1alpha1/nodedisks";
const VOLUMES: &str = "/apis/weir.storage/v1alpha1/logicalvolumes";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
/// The last part of a path that names no object.
const COLLECTIONS: [&str; 7] = [
    "storagepools",
    "storagenodes",
    "nodedisks",
    "logicalvolumes",
    "storageclasses",
    "persistentvolumeclaims",
    "events",
];

/// What comes of a request in place of an answer.
#[derive(Clone, Copy)]
enum Grief {
    /// A refusal with this code.
    Refused(u16),
    /// Nothing, for ever.
    Silence,
}

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// By method and how the path begins.
    griefs: Vec<(Method, String, Grief)>,
}

/// The API server.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

fn response(code: u16, body: &Value) -> Response<Body> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn failure(code: u16) -> Response<Body> {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "because", "reason": reason,
        "code": code,
    });
    response(code, &status)
}

/// A merge patch.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn claims(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims")
}

impl Server {
    fn client(&self) -> Client {
        let me = self.clone();
        Client::new(tower::service_fn(move |r| me.clone().answer(r)), "default")
    }

    fn put(&self, collection: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.0.lock().unwrap().objects.insert(format!("{collection}/{name}"), object);
    }

    fn grief(&self, method: Method, path: &str, grief: Grief) {
        self.0.lock().unwrap().griefs.push((method, path.to_owned(), grief));
    }

    fn no_grief(&self) {
        self.0.lock().unwrap().griefs.clear();
    }

    /// A condition of an object: its status, reason and message.
    fn condition(&self, collection: &str, name: &str, kind: &str) -> Option<(String, String, String)> {
        let state = self.0.lock().unwrap();
        let all = state.objects.get(&format!("{collection}/{name}"))?["status"]["conditions"].as_array()?;
        let found = all.iter().find(|c| c["type"] == kind)?;
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Waits until a condition has this reason, and gives its message.
    async fn reason(&self, collection: &str, name: &str, kind: &str, reason: &str) -> String {
        until(&format!("{name}: {kind} because of {reason}"), || async {
            self.condition(collection, name, kind).filter(|(_, r, _)| r == reason).map(|(_, _, m)| m)
        })
        .await
    }

    /// Waits for an event about an object, and gives its message.
    async fn event(&self, kind: &str, name: &str, reason: &str) -> String {
        until(&format!("an event {reason} on {kind} {name}"), || async {
            let state = self.0.lock().unwrap();
            let about = |e: &&Value| {
                let of = &e["involvedObject"];
                of["kind"] == kind && of["name"] == name && e["reason"] == reason
            };
            state.objects.values().find(about).map(|e| e["message"].as_str().unwrap().to_owned())
        })
        .await
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let path = parts.uri.path();
        let grief = {
            let state = self.0.lock().unwrap();
            let hit =
                |(m, p, _): &&(Method, String, Grief)| *m == parts.method && path.starts_with(p.as_str());
            state.griefs.iter().find(hit).map(|(_, _, g)| *g)
        };
        match grief {
            Some(Grief::Silence) => std::future::pending().await,
            Some(Grief::Refused(code)) => return Ok(failure(code)),
            None => {}
        }
        if parts.uri.query().is_some_and(|q| q.contains("watch=true")) {
            // Nothing changes that is watched.
            std::future::pending::<()>().await;
        }
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(self.serve(&parts.method, path, body))
    }

    fn serve(&self, method: &Method, path: &str, body: Value) -> Response<Body> {
        let mut state = self.0.lock().unwrap();
        if *method == Method::POST {
            let name = body["metadata"]["name"].as_str().unwrap();
            state.objects.insert(format!("{path}/{name}"), body.clone());
            return response(201, &body);
        }
        if *method == Method::PATCH {
            let Some(object) = state.objects.get_mut(path.trim_end_matches("/status")) else {
                return failure(404);
            };
            merge(object, &body);
            return response(200, object);
        }
        let (parent, last) = path.rsplit_once('/').unwrap();
        if !COLLECTIONS.contains(&last) {
            return state.objects.get(path).map_or_else(|| failure(404), |o| response(200, o));
        }
        let of = |at: &str| {
            let collection = at.rsplit_once('/').unwrap().0;
            collection.starts_with(parent) && collection.rsplit_once('/').unwrap().1 == last
        };
        let items: Vec<_> = state.objects.iter().filter(|(at, _)| of(at)).map(|(_, o)| o).collect();
        let metadata = json!({ "resourceVersion": "1" });
        response(200, &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }))
    }

    /// Has the objects of all nodes and disks, without anything that the store would have written into them.
    async fn mirror(&self, rig: &Rig) {
        let survey = rig.core.survey().await;
        for n in survey.nodes {
            self.put(NODES, json!({ "metadata": { "name": n.node.as_str(), "generation": 1 } }));
        }
        for d in survey.disks {
            self.put(DISKS, json!({ "metadata": { "name": d.disk.to_string(), "generation": 1 } }));
        }
    }

    /// Makes a volume with a claim of the same name.
    async fn volume(&self, rig: &Rig, name: &str, home: &str) -> VolumeId {
        let mut r = request(name, 4, Some(home));
        for (k, v) in [("pvc/name", name), ("pvc/namespace", "default"), ("pv/name", name)] {
            r.parameters.insert(format!("csi.storage.k8s.io/{k}"), v.to_owned());
        }
        let id = rig.core.create_volume(r).await.unwrap().id;
        self.put(&claims("default"), json!({ "metadata": { "name": name, "uid": name } }));
        // Not what a volume's type says: statuses are written all the same.
        self.put(
            VOLUMES,
            json!({ "metadata": { "name": id.to_string(), "generation": 1 }, "spec": { "term": -1 } }),
        );
        id
    }
}

fn pool(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    merge(&mut spec, &json!({ "devices": [{ "paths": ["/dev/none*"] }] }));
    json!({ "apiVersion": "weir.storage/v1alpha1", "kind": "StoragePool", "metadata": { "name": name, "uid": name }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_makes_no_sense_is_left_out_and_the_others_are_there() {
    let server = Server::default();
    server.put(POOLS, pool("good", json!({ "extentSize": "4Mi" })));
    for (name, spec) in [
        ("odd", json!({ "extentSize": "3Mi" })),
        ("long", json!({ "extentSize": "99999999999999999999" })),
        ("later", json!({ "ofALaterVersion": true })),
        ("many", json!({ "maxLenders": 65 })),
    ] {
        server.put(POOLS, pool(name, spec));
    }
    let mut none = pool("none", json!({}));
    none["spec"]["extentSize"] = Value::Null;
    server.put(POOLS, none);
    server.put(POOLS, json!({ "metadata": { "name": "empty" } }));
    let found = pools::in_cluster(&server.client(), &Found::default()).await.unwrap();
    assert_eq!(found.pools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["good"]);
    let out: Vec<_> = found.left_out.keys().map(String::as_str).collect();
    assert_eq!(out, ["empty", "later", "long", "many", "none", "odd"]);
    assert!(found.left_out["odd"].contains("3145728 is not a power of two"), "{found:?}");
    assert!(found.left_out["later"].contains("ofALaterVersion"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_starts_with_the_pools_once_they_can_be_read() {
    let server = Server::default();
    server.put(POOLS, pool("good", json!({})));
    // There is no such kind yet; then it is there, and its storage is not.
    for code in [404, 429, 500] {
        server.grief(Method::GET, POOLS, Grief::Refused(code));
        let client = server.client();
        let found = pools::at_start(&client, |why| {
            assert!(why.contains("are the CRDs installed?") && why.contains("because"), "{why}");
            server.no_grief();
        });
        let found = tokio::time::timeout(Duration::from_secs(60), found).await.expect("it goes on");
        assert_eq!(found.pools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["good"], "{code}");
    }
}

/// A volume is there under a pool as it should be; the next controller starts with this configuration.
async fn started_again(config: CoreConfig) -> (Rig, VolumeId) {
    let store = Arc::new(Memory::default());
    let rig = Rig::over(quick(), store.clone(), &[20, 20]).await;
    let v = rig.create("v", 30, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    let (world, nodes) = (rig.world.clone(), rig.nodes.clone());
    rig.end().await;

    let (core, task) = start(config, store).await;
    for n in &nodes {
        n.connect(&core).await;
    }
    (Rig::of(world, core, nodes, task), v.id)
}

/// It moves to the other node, ends there and gives back its extents.
async fn lives_on(rig: &Rig, v: VolumeId) {
    rig.attach(v, 0, &RWX).await.unwrap();
    rig.attach(v, 1, &RWX).await.unwrap();
    rig.nodes[1].write(v).await;
    until("n2 has it", || async {
        let row = rig.settled(v, "Attached").await;
        (row.holders == [rig.name(1)]).then_some(())
    })
    .await;
    rig.detach(v, 1).await.unwrap();
    rig.core.delete_volume(v).await.unwrap();
    rig.free(40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_pool_that_is_left_out_work_on() {
    let (rig, v) = started_again(CoreConfig { pools: vec![], ..quick() }).await;
    lives_on(&rig, v).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_made_again_with_other_extents_is_left_out_and_its_volumes_work_on() {
    let mut config = quick();
    config.pools[0].extent_size = ExtentSize::new(8 << 20).unwrap();
    let (rig, v) = started_again(config).await;
    let server = Server::default();
    server.put(POOLS, pool("p", json!({ "extentSize": "8Mi" })));
    let reporter = tokio::spawn(Reporter::new(server.client(), rig.core.clone()).run());
    let why = server.reason(POOLS, "p", "Ready", "LeftOut").await;
    assert!(why.contains("extents of 8 MiB are wanted, but its disks have extents of 4 MiB"), "{why}");
    assert!(server.event("StoragePool", "p", "LeftOut").await.contains("8 MiB"));

    let late = Node::new(&rig.world, "n3", &[20]);
    late.connect(&rig.core).await;
    until("n3's device is refused", || async {
        let s = rig.core.survey().await;
        let n3 = s.nodes.into_iter().find(|n| n.node == late.name)?;
        n3.unclaimed.iter().any(|why| why.contains("selected by no pool")).then_some(())
    })
    .await;
    lives_on(&rig, v).await;
    reporter.abort();
    late.vanish().await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_keeps_no_other_status_waiting() {
    let (server, rig) = (Server::default(), Rig::new(&[20, 20]).await);
    server.mirror(&rig).await;
    server.put(POOLS, pool("p", json!({})));
    server.put(POOLS, pool("odd", json!({ "extentSize": "3Mi" })));
    let mut volumes = vec![];
    for name in ["a", "b", "c", "d"] {
        volumes.push(server.volume(&rig, name, "n1").await.to_string());
    }
    volumes.sort();
    server.grief(Method::PATCH, &format!("{VOLUMES}/{}", volumes[0]), Grief::Refused(403));
    server.grief(Method::GET, NODES, Grief::Refused(500));
    let reporter = tokio::spawn(Reporter::new(server.client(), rig.core.clone()).run());
    let why = server.reason(POOLS, "odd", "Ready", "LeftOut").await;
    assert!(why.contains("not a power of two"), "{why}");
    assert!(server.event("StoragePool", "odd", "LeftOut").await.contains("not a power of two"));
    server.reason(POOLS, "p", "Ready", "Serving").await;
    for id in &volumes[1..] {
        server.reason(VOLUMES, id, "Settled", "Settled").await;
    }
    assert_eq!(server.condition(VOLUMES, &volumes[0], "Settled"), None);
    server.no_grief();
    server.reason(VOLUMES, &volumes[0], "Settled", "Settled").await;
    server.reason(NODES, "n1", "Alive", "Heard").await;
    reporter.abort();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_answered_keeps_nothing_else_waiting() {
    let (server, rig) = (Server::default(), Rig::new(&[20]).await);
    server.mirror(&rig).await;
    let mut volumes = vec![];
    for name in ["a", "b"] {
        volumes.push(server.volume(&rig, name, "n1").await.to_string());
    }
    volumes.sort();
    server.grief(Method::PATCH, &format!("{VOLUMES}/{}", volumes[0]), Grief::Silence);
    let reporter = tokio::spawn(Reporter::new(server.client(), rig.core.clone()).run());
    let silent = Server::default();
    silent.grief(Method::GET, POOLS, Grief::Silence);
    let (client, before) = (silent.client(), Found::default());
    let look = tokio::time::timeout(Duration::from_secs(60), pools::in_cluster(&client, &before));
    let (looked, _) = tokio::join!(look, server.reason(VOLUMES, &volumes[1], "Settled", "Settled"));
    let e = looked.unwrap().unwrap_err();
    assert!(e.to_string().contains("has not answered"), "{e}");
    reporter.abort();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_nobody_uses_say_that_a_disk_is_missing_or_a_node_dead() {
    let (server, rig) = (Server::default(), Rig::new(&[20, 20, 20]).await);
    server.mirror(&rig).await;
    let mut volumes = vec![];
    for (name, home) in [("a", "n1"), ("b", "n2"), ("c", "n3")] {
        volumes.push(server.volume(&rig, name, home).await.to_string());
    }
    let reporter = tokio::spawn(Reporter::new(server.client(), rig.core.clone()).run());
    for id in &volumes {
        server.reason(VOLUMES, id, "Settled", "Settled").await;
    }
    let (disk, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[0].connect(&rig.core).await;
    rig.nodes[1].vanish().await;
    let why = server.reason(VOLUMES, &volumes[0], "Settled", "Degraded").await;
    assert!(why.contains("is missing"), "{why}");
    let why = server.reason(VOLUMES, &volumes[1], "Settled", "Degraded").await;
    assert!(why.contains("has not been heard of"), "{why}");
    let told = server.event("PersistentVolumeClaim", "a", "DiskMissing").await;
    assert!(told.contains(&disk.to_string()), "{told}");
    server.event("PersistentVolumeClaim", "b", "LenderLost").await;
    assert_eq!(server.condition(VOLUMES, &volumes[2], "Settled").unwrap().1, "Settled");
    assert_eq!(
        server.0.lock().unwrap().objects.values().filter(|o| o["involvedObject"]["name"] == "c").count(),
        0,
        "nothing has happened to c"
    );

    rig.nodes[0].push("n1-serial-0", disk, size);
    rig.nodes[0].connect(&rig.core).await;
    server.reason(VOLUMES, &volumes[0], "Settled", "Settled").await;
    reporter.abort();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_told_keeps_none_from_being_told() {
    let (server, rig) = (Server::default(), Rig::new(&[20]).await);
    for class in ["closed", "weir"] {
        server.put(CLASSES, json!({ "metadata": { "name": class }, "provisioner": "csi.test" }));
    }
    for (namespace, class) in [("a", "closed"), ("b", "weir"), ("c", "weir")] {
        let claim = json!({
            "metadata": { "name": "big", "namespace": namespace },
            "spec": { "storageClassName": class, "resources": { "requests": { "storage": "1Pi" } } },
            "status": { "phase": "Pending" },
        });
        server.put(&claims(namespace), claim);
    }
    server.grief(Method::GET, &format!("{CLASSES}/closed"), Grief::Refused(403));
    server.grief(Method::POST, "/api/v1/namespaces/b/events", Grief::Refused(403));
    let waiting = Waiting::new(server.client(), rig.core.clone(), "csi.test".to_owned());
    let waiting = tokio::spawn(waiting.run());
    server.event("PersistentVolumeClaim", "big", "InsufficientCapacity").await;
    {
        let state = server.0.lock().unwrap();
        let at: Vec<_> = state.objects.keys().filter(|k| k.contains("/events/")).collect();
        assert!(at.iter().all(|k| k.starts_with("/api/v1/namespaces/c/")), "{at:?}");
    }
    waiting.abort();
    rig.end().await;
}
