//! The store in a cluster, against a real API server: the one of the kubeconfig in `WEIR_TEST_KUBECONFIG`, with the chart's
//! CRDs. `./dev test kube/store` starts one and runs these.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use api::{LogicalVolume, NodeDisk, StorageNode};
use controller::{
    cluster,
    store::{
        Store, StoreError, Version,
        kubernetes::{Kubernetes, LeaseConfig},
    },
};
use k8s_openapi::{
    api::coordination::v1::Lease,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use pool::{
    access::{Access, Mode},
    record::{Key, Record, VolumeRecord},
};
use serde_json::json;

use crate::{
    scale::{disk, volume},
    store::{all, contract, is_conflict},
    world::until,
};

mod admission;
mod certificates;
mod outage;
mod pools;
mod report;
mod scripted;
mod tokens;
mod trouble;

const LEASES: &str = "default";

fn kubeconfig() -> PathBuf {
    std::env::var_os("WEIR_TEST_KUBECONFIG").expect("WEIR_TEST_KUBECONFIG names a kubeconfig").into()
}

/// The controller's client.
async fn client() -> Client {
    cluster::connect(Some(&kubeconfig())).await.unwrap()
}

/// For a test's own hands: it asks again where the API server asks for patience, as it does for a moment after a kind has
/// become another.
async fn patient() -> Client {
    let file = Kubeconfig::read_from(kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    assert!(config.default_retry);
    Client::try_from(config).unwrap()
}

/// A fast Lease of its own, and slow enough for an API server that shares a busy machine.
fn lease(name: &str, who: &str) -> LeaseConfig {
    LeaseConfig {
        duration: Duration::from_secs(10),
        deadline: Duration::from_secs(8),
        retry: Duration::from_millis(500),
        ..LeaseConfig::new(LEASES.into(), name.into(), format!("{who}-{}", uuid::Uuid::new_v4()))
    }
}

async fn clear<K>(client: &Client)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    // An API server that has just learnt of a kind does not know it for a moment.
    let all = until("a list", || async { api.list(&ListParams::default()).await.ok() }).await;
    for r in all {
        let name = r.name_any();
        let bare = json!({ "metadata": { "finalizers": null } });
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&bare)).await.unwrap();
        api.delete(&name, &DeleteParams::default()).await.unwrap();
    }
}

/// No record, and no Lease of this name.
async fn clean(name: &str) -> Client {
    let hands = patient().await;
    clear::<LogicalVolume>(&hands).await;
    clear::<NodeDisk>(&hands).await;
    clear::<StorageNode>(&hands).await;
    let leases: Api<Lease> = Api::namespaced(hands, LEASES);
    match leases.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(s)) if s.code == 404 => {}
        Err(e) => panic!("{e}"),
    }
    client().await
}

fn attached(i: u64) -> Record {
    let Record::Volume(mut v) = volume(i) else { panic!("no volume") };
    let mode = Mode { read_only: false, multi_node: false, upkeep: false };
    v.access.access = Access::Attached { holders: BTreeMap::from([("n1".parse().unwrap(), mode)]) };
    Record::Volume(v)
}

fn changed(record: &Record, what: &str) -> Record {
    let Record::Volume(v) = record else { panic!("no volume") };
    let mut v: VolumeRecord = v.as_ref().clone();
    v.note(1, what);
    Record::Volume(Box::new(v))
}

/// One test at a time: they share the API server's resources.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn kubernetes_store_keeps_the_contract() {
    let _one = ONE.lock().await;
    let client = clean("contract").await;
    contract(|old| {
        let client = client.clone();
        async move {
            // Its Lease runs out by itself, as that of a process that was killed.
            drop(old);
            Arc::new(Kubernetes::new(client, lease("contract", "c"))) as Arc<dyn Store>
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn a_deposed_controller_changes_nothing_that_its_successor_speaks_from() {
    let _one = ONE.lock().await;
    let client = clean("deposed").await;
    // It believes in its reign for long, and never renews it: a process that was stopped and goes on later.
    let long = LeaseConfig {
        deadline: Duration::from_secs(600),
        retry: Duration::from_secs(600),
        ..lease("deposed", "old")
    };
    let old = Kubernetes::new(client.clone(), long);
    let first = old.begin().await.unwrap();
    let (idle, held, fresh) = (changed(&volume(1), "used once"), attached(2), volume(4));
    let made = old.put(None, volume(1)).await.unwrap();
    let idle_at = old.put(Some(made), idle.clone()).await.unwrap();
    let fresh_at = old.put(None, fresh.clone()).await.unwrap();
    let held_at = old.put(None, held.clone()).await.unwrap();

    let new = Kubernetes::new(client.clone(), lease("deposed", "new"));
    let second = new.begin().await.unwrap();
    assert!(second.term > first.term);
    assert_eq!(second.system, first.system);
    let seen = all(&new, 100).await;
    let version = |r: &Record| seen.iter().find(|(_, s)| s == r).map(|(v, _)| *v).unwrap();
    assert_ne!(version(&held), held_at, "what goals follow from is written again under the new term");
    assert_ne!(version(&fresh), fresh_at, "so is what its maker may be about to take back");
    assert_eq!(version(&idle), idle_at, "what nobody is told of is left alone");

    assert!(
        is_conflict(old.put(Some(held_at), changed(&held, "late")).await),
        "the successor speaks from it"
    );
    let late = old.put(Some(idle_at), changed(&idle, "late")).await;
    assert!(late.is_ok(), "nobody speaks from it: {late:?}");
    assert!(is_conflict(new.put(Some(idle_at), changed(&idle, "now")).await), "and the successor notices");

    let made = old.put(None, volume(3)).await;
    assert!(matches!(made, Err(StoreError::OutcomeUnknown { .. })), "{made:?}");
    let volumes: Api<LogicalVolume> = Api::all(client.clone());
    let Key::Volume(id) = volume(3).key() else { panic!("no volume") };
    assert!(
        volumes.get_opt(&id.to_string()).await.unwrap().is_none(),
        "what was made too late is taken back"
    );
    assert!(old.deposed().await.contains("was taken by"));
    let after = old.put(Some(held_at), held.clone()).await;
    assert!(matches!(after, Err(StoreError::Latched(_))), "{after:?}");

    // Even with the right version: the API server itself refuses an older term.
    let Key::Volume(id) = held.key() else { panic!("no volume") };
    let older = json!({ "spec": { "term": first.term.get() } });
    let refused = volumes.patch(&id.to_string(), &PatchParams::default(), &Patch::Merge(&older)).await;
    let Err(kube::Error::Api(s)) = refused else { panic!("an older term was accepted") };
    assert!(s.code == 422 && s.message.contains("reign is over"), "{s:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn what_people_do_beside_the_record_does_not_disturb_it() {
    let _one = ONE.lock().await;
    let client = clean("people").await;
    let s = Kubernetes::new(client.clone(), lease("people", "p"));
    s.begin().await.unwrap();
    let record = attached(1);
    let v1 = s.put(None, record.clone()).await.unwrap();
    let volumes: Api<LogicalVolume> = Api::all(client.clone());
    let Key::Volume(id) = record.key() else { panic!("no volume") };
    let name = id.to_string();

    let label = json!({ "metadata": { "labels": { "of": "a person" } }, "status": { "state": "attached" } });
    volumes.patch(&name, &PatchParams::default(), &Patch::Merge(&label)).await.unwrap_err();
    let label = json!({ "metadata": { "labels": { "of": "a-person" } } });
    volumes.patch(&name, &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let status = json!({ "status": { "state": "attached", "nodes": "n1" } });
    volumes.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    volumes.delete(&name, &DeleteParams::default()).await.unwrap();

    let next = changed(&record, "after");
    let v2 = s.put(Some(v1), next.clone()).await.unwrap();
    let there = volumes.get(&name).await.unwrap();
    assert_eq!(there.labels().get("of").map(String::as_str), Some("a-person"));
    assert_eq!(there.status.and_then(|s| s.nodes).as_deref(), Some("n1"));
    assert!(there.metadata.deletion_timestamp.is_some(), "somebody wanted it gone");
    assert_eq!(all(&s, 10).await, [(v2, next)], "and it is a record for all that");

    s.delete(v2, record.key()).await.unwrap();
    assert!(volumes.get_opt(&name).await.unwrap().is_none());
    assert!(all(&s, 10).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn a_lease_that_was_deleted_is_made_again_beyond_every_term_on_record() {
    let _one = ONE.lock().await;
    let client = clean("again").await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let s = Kubernetes::new(client.clone(), lease("again", "a"));
    s.begin().await.unwrap();
    let first = s.begin().await.unwrap();
    s.put(None, disk()).await.unwrap();
    leases.delete("again", &DeleteParams::default()).await.unwrap();
    assert!(s.deposed().await.contains("deleted"));
    // Long enough that nobody waits it out.
    let long = |who| LeaseConfig {
        duration: Duration::from_secs(120),
        deadline: Duration::from_secs(100),
        ..lease("again", who)
    };
    let s = Kubernetes::new(client.clone(), long("b"));
    let second = s.begin().await.unwrap();
    assert!(second.term > first.term, "{second:?} after {first:?}");
    assert_eq!(u64::try_from(transitions(&leases, "again").await).unwrap(), second.term.get());

    s.release().await.unwrap();
    let s = Kubernetes::new(client, long("c"));
    let free = tokio::time::timeout(Duration::from_secs(60), s.begin()).await;
    assert!(free.expect("a Lease that was given up is free at once").unwrap().term > second.term);
}

/// The schema of volumes' records as the cluster has it.
fn schema(crd: &mut CustomResourceDefinition) -> &mut JSONSchemaProps {
    let whole = crd.spec.versions[0].schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()).unwrap();
    whole.properties.as_mut().and_then(|p| p.get_mut("spec")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn a_cluster_with_older_crds_refuses_records_and_says_what_to_do() {
    let _one = ONE.lock().await;
    let client = clean("older").await;
    let s = Kubernetes::new(client.clone(), lease("older", "o"));
    s.begin().await.unwrap();
    let record = attached(1);
    let v1 = s.put(None, record.clone()).await.unwrap();
    let put = async |at: Option<Version>, record: Record| {
        until("an answer", || async {
            match s.put(at, record.clone()).await {
                Err(StoreError::NotNow(_)) => None,
                answer => Some(answer),
            }
        })
        .await
    };
    let crds: Api<CustomResourceDefinition> = Api::all(client);
    let change = async |change: &dyn Fn(&mut JSONSchemaProps)| {
        let name = "logicalvolumes.weir.storage";
        let mut crd = crds.get(name).await.unwrap();
        change(schema(&mut crd));
        crds.replace(name, &PostParams::default(), &crd).await.unwrap();
    };
    let known = schema(&mut crds.get("logicalvolumes.weir.storage").await.unwrap()).clone();
    change(&|spec| drop(spec.properties.as_mut().and_then(|p| p.remove("history")))).await;
    // It takes a moment until the API server goes by it; meanwhile records are made.
    let mut made = 1;
    let created = loop {
        made += 1;
        match put(None, volume(made)).await {
            Ok(_) if made < 2_000 => tokio::time::sleep(Duration::from_millis(10)).await,
            done => break done,
        }
    };
    let updated = put(Some(v1), changed(&record, "now")).await;
    change(&|spec| *spec = known.clone()).await;

    for refused in [created, updated] {
        let e = refused.unwrap_err();
        let said = observe::chain(&e);
        assert!(matches!(e, StoreError::Refused { .. }), "{e:?}");
        assert!(
            said.contains("unknown field \"spec.history\"") && said.contains("kubectl apply --server-side"),
            "{said}"
        );
    }
    until("the cluster knows the field again", || async { s.put(None, volume(made)).await.ok() }).await;
    // What was on record is as it was: nothing had been written without the field.
    put(Some(v1), changed(&record, "later")).await.unwrap();
}

async fn transitions(leases: &Api<Lease>, name: &str) -> i32 {
    leases.get(name).await.unwrap().spec.and_then(|s| s.lease_transitions).unwrap()
}

/// `WEIR_TEST_VOLUMES` says how many; 2,000 unless it does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn many_volumes_load_page_by_page() {
    use futures::StreamExt;
    let _one = ONE.lock().await;
    let client = clean("many").await;
    let count: u64 = std::env::var("WEIR_TEST_VOLUMES").map_or(2_000, |n| n.parse().unwrap());
    let s = Kubernetes::new(client.clone(), lease("many", "m"));
    s.begin().await.unwrap();
    let begun = std::time::Instant::now();
    let made: Vec<Version> = futures::stream::iter(0..count)
        .map(|i| s.put(None, volume(i)))
        .buffered(64)
        .map(|r| r.unwrap())
        .collect()
        .await;
    println!("{count} records made in {:?}", begun.elapsed());
    s.release().await.unwrap();
    drop(s);

    let s = Kubernetes::new(client.clone(), lease("many", "n"));
    s.begin().await.unwrap();
    let (begun, mut after, mut loaded, mut longest) = (std::time::Instant::now(), None, 0, Duration::ZERO);
    loop {
        let page_begun = std::time::Instant::now();
        let page = s.load(after, 4096).await.unwrap();
        longest = longest.max(page_begun.elapsed());
        loaded += page.records.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    println!("{loaded} records loaded in {:?}, the longest page took {longest:?}", begun.elapsed());
    assert_eq!(loaded, made.len());
    drop(s);
    // Whoever asks for so many has an API server for this alone; taking them away would cost more than all of the above.
    if std::env::var_os("WEIR_TEST_VOLUMES").is_none() {
        clear_fast(&client).await;
    }
}

/// Many volumes are gone sooner by many hands.
async fn clear_fast(client: &Client) {
    use futures::StreamExt;
    let api: Api<LogicalVolume> = Api::all(client.clone());
    loop {
        let page = api.list_metadata(&ListParams::default().limit(5000)).await.unwrap();
        if page.items.is_empty() {
            return;
        }
        let bare = json!({ "metadata": { "finalizers": null } });
        futures::stream::iter(page.items)
            .for_each_concurrent(64, |r| {
                let (api, bare) = (api.clone(), bare.clone());
                async move {
                    let name = r.name_any();
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(&bare)).await.unwrap();
                    api.delete(&name, &DeleteParams::default()).await.unwrap();
                }
            })
            .await;
    }
}
