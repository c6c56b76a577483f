//! The contract of every store.

use std::{future::Future, sync::Arc};

use controller::store::{Store, StoreError, Version, embedded::Embedded};
use pool::{
    disk::Domain,
    record::{Key, NodeRecord, Record},
};

use crate::stores::Memory;

pub(crate) fn node(name: &str, port: u32) -> Record {
    Record::Node(Box::new(NodeRecord {
        name: name.parse().unwrap(),
        domain: Domain::default(),
        address: "10.0.0.1".into(),
        port,
        boot_id: String::new(),
        forgotten: false,
    }))
}

pub(crate) fn key(name: &str) -> Key {
    Key::Node(name.parse().unwrap())
}

pub(crate) async fn all(store: &dyn Store, max: usize) -> Vec<(Version, Record)> {
    let (mut out, mut after) = (vec![], None);
    loop {
        let page = store.load(after, max).await.unwrap();
        assert!(page.records.len() <= max);
        out.extend(page.records.into_iter().map(|s| (s.version, s.record)));
        after = page.next;
        if after.is_none() {
            return out;
        }
    }
}

pub(crate) fn is_conflict<T: std::fmt::Debug>(r: Result<T, StoreError>) -> bool {
    matches!(r, Err(StoreError::Conflict { .. }))
}

/// What every store must do. `reopen` gives the same store again, as a new process would see it.
pub(crate) async fn contract<F: Future<Output = Arc<dyn Store>>>(
    reopen: impl Fn(Option<Arc<dyn Store>>) -> F,
) {
    let s = reopen(None).await;
    assert!(all(s.as_ref(), 10).await.is_empty());
    let (r1, r2) = (s.begin().await.unwrap(), s.begin().await.unwrap());
    assert!(r2.term > r1.term);
    assert_eq!(r2.system, r1.system);

    let v1 = s.put(None, node("a", 1)).await.unwrap();
    assert!(is_conflict(s.put(None, node("a", 2)).await), "it is there already");
    let v2 = s.put(Some(v1), node("a", 2)).await.unwrap();
    assert_ne!(v1, v2);
    assert!(is_conflict(s.put(Some(v1), node("a", 3)).await), "an old version");
    assert!(is_conflict(s.delete(v1, key("a")).await), "an old version");
    assert_eq!(all(s.as_ref(), 10).await, [(v2, node("a", 2))]);
    s.delete(v2, key("a")).await.unwrap();
    assert!(is_conflict(s.delete(v2, key("a")).await), "it is gone");
    let v3 = s.put(None, node("a", 4)).await.unwrap();
    assert!(v3 != v1 && v3 != v2, "a version is never used twice");

    let names: Vec<_> = (0..25).map(|i| format!("n{i:02}")).collect();
    let puts = names.iter().map(|n| s.put(None, node(n, 1)));
    let versions = futures::future::try_join_all(puts).await.unwrap();
    assert_eq!(all(s.as_ref(), 7).await.len(), 26, "pages neither lose nor repeat");
    assert_eq!(all(s.as_ref(), 26).await.len(), 26);

    // Of several who change one record at once exactly one succeeds, and the others spoil nothing for their neighbours.
    let race = (0..8).map(|i| s.put(Some(versions[0]), node("n00", 100 + i)));
    let others = names[1..].iter().zip(&versions[1..]).map(|(n, v)| s.put(Some(*v), node(n, 2)));
    let (race, others) =
        futures::join!(futures::future::join_all(race), futures::future::try_join_all(others));
    assert_eq!(race.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(others.unwrap().len(), 24);

    let before = all(s.as_ref(), 100).await;
    let s = reopen(Some(s)).await;
    assert_eq!(all(s.as_ref(), 100).await, before, "all of it is durable, versions included");
    let r3 = s.begin().await.unwrap();
    assert!(r3.term > r2.term);
    assert_eq!(r3.system, r1.system, "it is the same system for good");
    let v4 = s.put(None, node("z", 1)).await.unwrap();
    assert!(before.iter().all(|(v, _)| *v != v4), "nor after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_keeps_the_contract() {
    let memory = Memory::default();
    contract(|_| {
        let m = memory.clone();
        async move { Arc::new(m) as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.redb");
    contract(|old| {
        let path = path.clone();
        async move {
            drop(old);
            Arc::new(Embedded::open(&path).unwrap()) as Arc<dyn Store>
        }
    })
    .await;
}

#[tokio::test]
async fn a_second_controller_is_told_that_the_store_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.redb");
    let first = Embedded::open(&path).unwrap();
    let Err(second) = Embedded::open(&path) else { panic!("both have it open") };
    assert!(matches!(second, StoreError::Locked { .. }), "{second}");
    assert!(second.to_string().contains("in use by another controller"), "{second}");
    drop(first);
    assert!(Embedded::open(&path).is_ok());
}
