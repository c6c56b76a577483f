//! The store against an API server that refuses, forgets, loses answers and changes what it stores.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use controller::{api::Api as _, store::Class};
use observe::chain;
use tokio::sync::Notify;

use super::{
    scripted::{Ask, Fate, Scripted},
    *,
};
use crate::{
    node::quick,
    rig::{Rig, request},
};

const VOLUMES: &str = "/logicalvolumes";
const UNKNOWN_FIELD: &str = "LogicalVolume in version \"v1alpha1\" cannot be handled as a LogicalVolume: \
                             strict decoding error: unknown field \"spec.history\"";

/// A Lease that others may take soon.
fn short(who: &str) -> LeaseConfig {
    LeaseConfig {
        duration: Duration::from_secs(1),
        retry: Duration::from_millis(50),
        ..lease("trouble", who)
    }
}

/// A store that reigns over an empty cluster.
async fn reigning() -> (Scripted, Kubernetes) {
    let server = Scripted::new();
    let s = Kubernetes::new(server.client(), lease("trouble", "t"));
    s.begin().await.unwrap();
    (server, s)
}

/// Its successor.
async fn next(server: &Scripted, old: Kubernetes) -> Kubernetes {
    old.release().await.unwrap();
    let new = Kubernetes::new(server.client(), lease("trouble", "n"));
    new.begin().await.unwrap();
    new
}

/// Requests of this kind end in this order, others and later ones as they should.
fn in_turn(
    method: &'static str,
    part: &'static str,
    fates: Vec<Fate>,
) -> impl FnMut(&mut Ask) -> Fate + Send {
    let mut fates = fates.into_iter();
    move |ask| if ask.is(method, part) { fates.next().unwrap_or(Fate::Done) } else { Fate::Done }
}

/// It was refused, for this reason, and nothing happened.
fn assert_refused<T: std::fmt::Debug>(r: Result<T, StoreError>, why: &str) {
    let e = r.unwrap_err();
    assert!(matches!(e, StoreError::Refused { .. }) && e.class() == Class::Transient, "{e:?}");
    assert!(chain(&e).contains(why), "{}", chain(&e));
}

#[tokio::test]
async fn fields_that_the_cluster_does_not_know_are_refused_with_what_to_do() {
    let (server, s) = reigning().await;
    let v = s.put(None, attached(1)).await.unwrap();
    server.script(|ask| match ask.query.as_str() {
        "fieldValidation=Strict" => Fate::Instead(400, UNKNOWN_FIELD),
        _ => Fate::Done,
    });
    assert_refused(s.put(None, volume(2)).await, "unknown field \"spec.history\"");
    assert_refused(
        s.put(Some(v), changed(&attached(1), "now")).await,
        "kubectl apply --server-side --force-conflicts",
    );
    server.script(|_| Fate::Done);
    s.put(None, volume(2)).await.unwrap();
    s.put(Some(v), changed(&attached(1), "now")).await.unwrap();
}

#[tokio::test]
async fn what_is_stored_otherwise_than_it_was_written_does_not_count_as_written() {
    let (server, s) = reigning().await;
    let v = s.put(None, volume(1)).await.unwrap();
    server.script(|ask| {
        match ask.method.as_str() {
            "POST" => drop(ask.body["spec"].as_object_mut().unwrap().remove("history")),
            "PATCH" => drop(ask.body[1]["value"].as_object_mut().unwrap().remove("history")),
            _ => {}
        }
        Fate::Done
    });
    for altered in [s.put(None, volume(2)).await, s.put(Some(v), changed(&volume(1), "now")).await] {
        let e = altered.unwrap_err();
        assert!(matches!(e, StoreError::Altered { .. }) && e.class() == Class::Permanent, "{e:?}");
        assert!(
            chain(&e).contains("spec.history") && chain(&e).contains("-f charts/weir/crds"),
            "{}",
            chain(&e)
        );
    }
}

#[tokio::test]
async fn records_load_from_an_api_server_that_forgets_lists_at_every_write() {
    let (server, s) = reigning().await;
    s.put(None, disk()).await.unwrap();
    for i in 0..7 {
        s.put(None, attached(i)).await.unwrap();
    }
    let s = next(&server, s).await;
    server.forget_lists_at_writes();
    let seen = all(&s, 2).await;
    assert_eq!(seen.len(), 8, "all are written again, and none is lost or repeated");
    let (v, first) = seen[1].clone();
    s.put(Some(v), changed(&first, "now")).await.unwrap();
}

#[tokio::test]
async fn a_kind_that_is_not_served_yet_is_waited_for() {
    let late =
        || in_turn("GET", VOLUMES, vec![Fate::Instead(404, "no such kind"), Fate::Instead(500, "etcd")]);
    let server = Scripted::new();
    server.script(late());
    let s = Kubernetes::new(server.client(), lease("trouble", "t"));
    s.begin().await.unwrap();
    s.put(None, volume(1)).await.unwrap();
    let s = next(&server, s).await;
    server.script(late());
    assert_eq!(all(&s, 2).await.len(), 1);
}

#[tokio::test]
async fn a_list_that_expires_is_begun_anew() {
    let (server, s) = reigning().await;
    for i in 0..7 {
        s.put(None, volume(i)).await.unwrap();
    }
    let s = next(&server, s).await;
    let lists = Arc::new(AtomicUsize::new(0));
    let asked = lists.clone();
    server.script(move |ask| {
        let late = ask.path.ends_with(VOLUMES) && ask.query.contains("continue=");
        // The third page, once.
        if late && asked.fetch_add(1, Ordering::SeqCst) == 1 {
            Fate::Instead(410, "too old")
        } else {
            Fate::Done
        }
    });
    let seen = all(&s, 2).await;
    assert_eq!(lists.load(Ordering::SeqCst), 5);
    let names: BTreeSet<_> = seen.iter().map(|(_, r)| r.key().to_string()).collect();
    assert_eq!((seen.len(), names.len()), (7, 7), "none is lost or repeated");
    let stray = s.load(Some("2:3".into()), 2).await;
    assert!(matches!(stray, Err(StoreError::NotNow(_))), "{stray:?}");
}

#[tokio::test]
async fn a_refusal_is_told_and_changes_nothing() {
    let (server, s) = reigning().await;
    let v = s.put(None, attached(1)).await.unwrap();
    let deny = || vec![Fate::Instead(403, "admission webhook \"w\" denied the request")];
    for method in ["POST", "PATCH", "GET", "DELETE"] {
        server.script(in_turn(method, VOLUMES, deny()));
        match method {
            "POST" => assert_refused(s.put(None, volume(2)).await, "webhook \"w\" denied"),
            "PATCH" => {
                assert_refused(s.put(Some(v), changed(&attached(1), "a")).await, "webhook \"w\" denied")
            }
            _ => assert_refused(s.delete(v, attached(1).key()).await, "webhook \"w\" denied"),
        }
    }
    // The deletion had taken the finalizer; a record that goes on has it back, beside those of others.
    let there = || server.find(VOLUMES).unwrap()["metadata"]["finalizers"].clone();
    assert_eq!(there(), json!([]));
    let v = s.put(Some(v), changed(&attached(1), "b")).await.unwrap();
    assert_eq!(there(), json!(["weir.storage/record"]));
    s.delete(v, attached(1).key()).await.unwrap();
    assert!(server.find(VOLUMES).is_none());
}

#[tokio::test]
async fn a_refusal_after_an_answer_that_was_lost_is_no_outcome() {
    let (server, s) = reigning().await;
    let not_done = || vec![Fate::Instead(504, "timeout"), Fate::Instead(403, "denied")];
    let done = || vec![Fate::DoneBut(504), Fate::Instead(403, "denied")];

    server.script(in_turn("POST", VOLUMES, not_done()));
    let v1 = s.put(None, attached(1)).await.unwrap();
    server.script(in_turn("POST", VOLUMES, done()));
    s.put(None, attached(2)).await.unwrap();

    server.script(in_turn("PATCH", VOLUMES, not_done()));
    let v1 = s.put(Some(v1), changed(&attached(1), "a")).await.unwrap();
    server.script(in_turn("PATCH", VOLUMES, done()));
    let v1 = s.put(Some(v1), changed(&attached(1), "b")).await.unwrap();

    // Nor when it cannot be asked for.
    let mut fates = done().into_iter();
    let mut looks = vec![Fate::Instead(403, "denied"), Fate::Instead(401, "who are you")].into_iter();
    server.script(move |ask| match ask.method.as_str() {
        "PATCH" => fates.next().unwrap_or(Fate::Done),
        "GET" if ask.path.contains(VOLUMES) => looks.next().unwrap_or(Fate::Done),
        _ => Fate::Done,
    });
    let v1 = s.put(Some(v1), changed(&attached(1), "c")).await.unwrap();

    server.script(in_turn("DELETE", VOLUMES, not_done()));
    s.delete(v1, attached(1).key()).await.unwrap();
    assert_eq!(all(&s, 10).await.len(), 1);
}

#[tokio::test]
async fn an_api_server_that_knows_no_rights_yet_does_not_end_a_start() {
    let (server, s) = reigning().await;
    s.put(None, attached(1)).await.unwrap();
    s.release().await.unwrap();
    let s = Kubernetes::new(server.client(), lease("trouble", "n"));
    // Each kind of request is denied at first.
    let mut seen = BTreeSet::new();
    server.script(move |ask| {
        let new = seen.insert((ask.method.to_string(), ask.path.clone()));
        if new { Fate::Instead(if seen.len() % 2 == 0 { 401 } else { 403 }, "not yet") } else { Fate::Done }
    });
    let reign = tokio::time::timeout(Duration::from_secs(20), s.begin()).await.unwrap().unwrap();
    assert_eq!(reign.term.get(), 2);
    assert_eq!(all(&s, 10).await.len(), 1);
    assert_eq!(server.find(VOLUMES).unwrap()["spec"]["term"], json!(2));
}

#[tokio::test]
async fn a_lease_is_made_once_records_can_be_read() {
    let server = Scripted::new();
    server.script(in_turn(
        "GET",
        "/nodedisks",
        vec![Fate::Instead(403, "not yet"), Fate::Instead(401, "not yet")],
    ));
    let s = Kubernetes::new(server.client(), lease("trouble", "n"));
    assert_eq!(s.begin().await.unwrap().term.get(), 1);
}

#[tokio::test]
async fn a_record_that_the_successor_has_seen_is_not_taken_back() {
    let server = Scripted::new();
    // It believes in its reign for long, and renews it only when it is to be confirmed.
    let long =
        LeaseConfig { deadline: Duration::from_secs(600), retry: Duration::from_secs(600), ..short("old") };
    let old = Kubernetes::new(server.client(), long);
    old.begin().await.unwrap();
    let go_on = Arc::new(Notify::new());
    let held = go_on.clone();
    server.script(move |ask| {
        let holder = ask.body["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let renewal = ask.is("PUT", "/leases") && holder.starts_with("old");
        if renewal { Fate::DoneAfter(held.clone()) } else { Fate::Done }
    });
    let made = tokio::spawn(async move { old.put(None, volume(1)).await });
    until("the record", || async { server.find(VOLUMES) }).await;

    let new = Kubernetes::new(server.client(), short("new"));
    new.begin().await.unwrap();
    let seen = all(&new, 10).await;
    assert_eq!(seen.len(), 1);
    go_on.notify_one();
    let made = made.await.unwrap();
    assert!(matches!(made, Err(StoreError::OutcomeUnknown { .. })), "{made:?}");
    new.put(Some(seen[0].0), changed(&volume(1), "counted on")).await.expect("it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_goes_on_without_what_is_refused() {
    let server = Scripted::new();
    let s = Kubernetes::new(server.client(), lease("trouble", "core"));
    let rig = Rig::over(quick(), Arc::new(s), &[8]).await;
    server.script(in_turn(
        "POST",
        VOLUMES,
        vec![Fate::Instead(403, "admission webhook \"w\" denied the request")],
    ));
    let refused = rig.core.create_volume(request("v", 1, None)).await.unwrap_err();
    assert!(refused.to_string().contains("admission webhook \"w\" denied the request"), "{refused}");
    rig.core.create_volume(request("v", 1, None)).await.expect("nothing is taken, and the core goes on");
}
