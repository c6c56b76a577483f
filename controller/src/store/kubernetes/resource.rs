//! Records as resources of any of their kinds. Must not know: requests.

use std::hash::{DefaultHasher, Hasher};

use api::{LogicalVolume, NodeDisk, RECORD_FINALIZER, StorageNode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pool::{
    ids::Term,
    record::{Key, Record},
};
use serde_json::Value;

use crate::store::Version;

/// A kind of resource that is a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Disk,
    Node,
    Volume,
}

/// All kinds, in the order in which they are loaded: what others refer to first.
pub(super) const KINDS: [Kind; 3] = [Kind::Disk, Kind::Node, Kind::Volume];

impl Kind {
    /// The resource under which a record is found.
    pub(super) fn and_name(key: &Key) -> (Kind, String) {
        match key {
            Key::Disk(d) => (Kind::Disk, d.to_string()),
            Key::Node(n) => (Kind::Node, n.to_string()),
            Key::Volume(v) => (Kind::Volume, v.to_string()),
        }
    }

    /// Its name in URLs.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Kind::Disk => "nodedisks",
            Kind::Node => "storagenodes",
            Kind::Volume => "logicalvolumes",
        }
    }
}

/// A resource that is no record.
#[derive(Debug, thiserror::Error)]
#[error("{resource} makes no sense")]
pub(super) struct Unreadable {
    pub(super) resource: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

#[derive(Clone, Debug)]
enum Typed {
    Disk(Box<NodeDisk>),
    Node(Box<StorageNode>),
    Volume(Box<LogicalVolume>),
}

/// A resource that is a record.
#[derive(Clone, Debug)]
pub(super) struct Resource(Typed);

/// Runs the same on whatever it is.
macro_rules! each {
    ($self:expr, $r:ident => $what:expr) => {
        match &$self.0 {
            Typed::Disk($r) => $what,
            Typed::Node($r) => $what,
            Typed::Volume($r) => $what,
        }
    };
}

impl Resource {
    /// The resource of a record, written under `term`.
    pub(super) fn of(record: &Record, term: Term) -> Self {
        let mut typed = match record {
            Record::Disk(d) => Typed::Disk(Box::new(NodeDisk::of(d, term))),
            Record::Node(n) => Typed::Node(Box::new(StorageNode::of(n, term))),
            Record::Volume(v) => Typed::Volume(Box::new(LogicalVolume::of(v, term))),
        };
        let meta = match &mut typed {
            Typed::Disk(r) => &mut r.metadata,
            Typed::Node(r) => &mut r.metadata,
            Typed::Volume(r) => &mut r.metadata,
        };
        meta.finalizers = Some(vec![RECORD_FINALIZER.to_owned()]);
        Self(typed)
    }

    /// What the API server says of a resource, without what is no part of a record and would take more memory than that: who
    /// wrote which field, and the status.
    pub(super) fn parse(kind: Kind, mut value: Value) -> Result<Self, Unreadable> {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        if let Some(r) = value.as_object_mut() {
            r.remove("status");
        }
        let name = value["metadata"]["name"].as_str().unwrap_or("(no name)").to_owned();
        let bad = |source: serde_json::Error| Unreadable {
            resource: format!("{}/{name}", kind.plural()),
            source: Box::new(source),
        };
        Ok(Self(match kind {
            Kind::Disk => Typed::Disk(serde_json::from_value(value).map_err(bad)?),
            Kind::Node => Typed::Node(serde_json::from_value(value).map_err(bad)?),
            Kind::Volume => Typed::Volume(serde_json::from_value(value).map_err(bad)?),
        }))
    }

    pub(super) fn record(&self) -> Result<Record, Unreadable> {
        let bad = |source| Unreadable {
            resource: format!("{}/{}", self.kind().plural(), self.name()),
            source: Box::new(source),
        };
        Ok(match &self.0 {
            Typed::Disk(r) => Record::Disk(Box::new(r.record().map_err(bad)?)),
            Typed::Node(r) => Record::Node(Box::new(r.record().map_err(bad)?)),
            Typed::Volume(r) => Record::Volume(Box::new(r.record().map_err(bad)?)),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        match &self.0 {
            Typed::Disk(_) => Kind::Disk,
            Typed::Node(_) => Kind::Node,
            Typed::Volume(_) => Kind::Volume,
        }
    }

    fn meta(&self) -> &ObjectMeta {
        each!(self, r => &r.metadata)
    }

    pub(super) fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    pub(super) fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    pub(super) fn resource_version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }

    /// Its version as a number: they are, in every API server that stores in etcd.
    pub(super) fn version(&self) -> Option<Version> {
        self.resource_version().parse().ok().map(Version)
    }

    /// The reign under which it was written last.
    pub(super) fn term(&self) -> Term {
        Term::new(each!(self, r => r.spec.term))
    }

    pub(super) fn value(&self) -> Result<Value, serde_json::Error> {
        each!(self, r => serde_json::to_value(r.as_ref()))
    }

    pub(super) fn spec(&self) -> Result<Value, serde_json::Error> {
        each!(self, r => serde_json::to_value(&r.spec))
    }

    /// Tells specs apart, the term included.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut h = DefaultHasher::new();
        // A spec is made of maps with text keys, lists and numbers: there is nothing that JSON cannot say.
        h.write(&each!(self, r => serde_json::to_vec(&r.spec)).unwrap_or_default());
        h.finish()
    }

    /// Whether it still is a record, whoever has asked for its deletion.
    pub(super) fn is_guarded(&self) -> bool {
        self.meta().finalizers.iter().flatten().any(|f| f == RECORD_FINALIZER)
    }

    /// Its other finalizers, if it is a record that has lost its own; of one that is being deleted nobody can give it back.
    pub(super) fn bare(&self) -> Option<Box<[String]>> {
        let lost = !self.is_guarded() && self.meta().deletion_timestamp.is_none();
        lost.then(|| self.other_finalizers().into())
    }

    /// Whether its record has not been changed since it was made.
    pub(super) fn is_as_made(&self) -> bool {
        self.meta().generation == Some(1)
    }

    /// Deleted by the store, and kept only by the finalizers of others.
    pub(super) fn is_dead(&self) -> bool {
        self.meta().deletion_timestamp.is_some() && !self.is_guarded()
    }

    pub(super) fn other_finalizers(&self) -> Vec<String> {
        self.meta().finalizers.iter().flatten().filter(|f| *f != RECORD_FINALIZER).cloned().collect()
    }
}
