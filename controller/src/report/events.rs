//! Events: what has happened to a claim, a node or a disk, where a person would look (`kubectl describe`).
//!
//! One object of its own for each happening: they are few, and each says something else. Must not know: what led to it.

use k8s_openapi::{
    api::{
        core::v1::{Event, EventSource, ObjectReference},
        core::v1::{Node, PersistentVolumeClaim},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, ResourceExt, api::PostParams};

use crate::cluster::ask;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Happening {
    /// Whether a person should look at it.
    pub(super) warning: bool,
    /// In one word, for programs.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
}

/// To what it happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// A claim, by namespace and name.
    Claim(String, String),
    /// A node of the cluster.
    Node(String),
    /// A disk.
    Disk(String),
    /// A pool, with its UID.
    Pool(String, Option<String>),
}

/// Where events of objects without a namespace are kept, as Kubernetes does.
const DEFAULT: &str = "default";

impl Subject {
    /// Where its events are kept.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Subject::Claim(namespace, _) => namespace,
            Subject::Node(_) | Subject::Disk(_) | Subject::Pool(..) => DEFAULT,
        }
    }
}

fn reference<K: Resource<DynamicType = ()>>(
    name: &str,
    namespace: Option<&str>,
    uid: Option<String>,
) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        uid,
        ..ObjectReference::default()
    }
}

/// The object that it is about, as an event names it; `None` when it is not there any more.
async fn involved(client: &Client, subject: &Subject) -> kube::Result<Option<ObjectReference>> {
    Ok(match subject {
        Subject::Claim(namespace, name) => {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let found = ask(api.get_metadata_opt(name)).await?;
            found.map(|c| reference::<PersistentVolumeClaim>(name, Some(namespace), c.uid()))
        }
        // kubectl looks for a node's events under its name in place of the UID, where the kubelet puts them.
        Subject::Node(name) => Some(reference::<Node>(name, None, Some(name.clone()))),
        Subject::Disk(name) => {
            let api: Api<api::NodeDisk> = Api::all(client.clone());
            let found = ask(api.get_metadata_opt(name)).await?;
            found.map(|d| reference::<api::NodeDisk>(name, None, d.uid()))
        }
        Subject::Pool(name, uid) => Some(reference::<api::StoragePool>(name, None, uid.clone())),
    })
}

/// Says it.
///
/// # Errors
/// The API server does not take it.
pub(super) async fn say(client: &Client, subject: &Subject, what: &Happening) -> kube::Result<()> {
    let Some(involved) = involved(client, subject).await? else { return Ok(()) };
    let namespace = subject.namespace();
    let now = Some(Time(Timestamp::now()));
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("weir-{}", uuid::Uuid::new_v4().simple())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: involved,
        type_: Some(if what.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(what.reason.to_owned()),
        message: Some(what.message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("weir-controller".to_owned()), host: None }),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    ask(api.create(&PostParams::default(), &event)).await.map(drop)
}
