//! A disk of the pool: what it is, where it stands, and what may be done with it.
//!
//! Invariants: a disk's extents and logical block size never change while it is claimed; its state changes only
//! through [`DiskState::after`]. Must not know: which runs of it are free (`free`, `alloc`), how the kernel calls it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiskId, NodeName, PoolName},
    units::{ExtentSize, Extents},
};

/// The topology key under which a node itself is a domain.
pub const NODE_KEY: &str = "topology.weir.storage/node";
/// The topology key of a zone: Kubernetes's well-known label.
pub const ZONE_KEY: &str = "topology.kubernetes.io/zone";

/// What a disk is made of; where nothing has been measured yet, the performance model starts from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskClass {
    /// Rotating.
    Hdd,
    /// Flash behind SATA or SAS.
    Ssd,
    /// Flash behind NVMe.
    Nvme,
}

/// How a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Nothing is held against it.
    #[default]
    Good,
    /// It serves what it holds and gets nothing new: media errors, wear, latency out of bounds.
    Suspect,
    /// It fails requests: what it holds should leave.
    Failing,
}

impl Health {
    /// Whether new data may go there.
    pub const fn takes_new_data(self) -> bool {
        match self {
            Health::Good => true,
            Health::Suspect | Health::Failing => false,
        }
    }
}

/// Where a disk or a node stands in the topology: label keys with their values, the node itself left out, so
/// that few distinct domains exist however many nodes do. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Domain(Arc<BTreeMap<String, String>>);

impl Domain {
    /// The domain with these labels.
    pub fn new(labels: BTreeMap<String, String>) -> Self {
        Self(Arc::new(labels))
    }

    /// The domain that is a zone and nothing else.
    pub fn zone_named(zone: &str) -> Self {
        Self::new(BTreeMap::from([(ZONE_KEY.to_owned(), zone.to_owned())]))
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Its zone, where it has one.
    pub fn zone(&self) -> Option<&str> {
        self.0.get(ZONE_KEY).map(String::as_str)
    }
}

impl From<BTreeMap<String, String>> for Domain {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self::new(labels)
    }
}

impl From<Domain> for BTreeMap<String, String> {
    fn from(d: Domain) -> Self {
        d.0.as_ref().clone()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(no labels)");
        }
        for (i, (k, v)) in self.0.iter().enumerate() {
            write!(f, "{}{k}={v}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// What a disk was when it was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LastSeen {
    /// [`DiskState::Claimed`].
    Claimed,
    /// [`DiskState::Serving`].
    Serving,
    /// [`DiskState::Draining`].
    Draining,
}

/// A disk's life in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskState {
    /// On record; its label is being written. Nothing lies on it.
    Claimed,
    /// Labelled and reachable: takes new extents.
    Serving,
    /// Serves what it holds, takes nothing new, is being emptied.
    Draining,
    /// Not seen now. What it holds still belongs to its volumes.
    Missing {
        /// What it returns to.
        was: LastSeen,
    },
    /// No longer of the pool.
    Released,
}

/// What may happen to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskEvent {
    /// Its node reports the label written and read back.
    Labelled,
    /// A person or a policy wants it emptied.
    Drain,
    /// The wish to empty it is taken back.
    Undrain,
    /// Its node reports it absent (a node that is silent reports nothing).
    Lost,
    /// Its node reports it present under the same identity.
    Found,
    /// It leaves the pool. The caller has made sure that no extent of it is owned or awaits a wipe.
    Release,
    /// A person says that it will never come back.
    Forget,
}

/// An event that is not allowed in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a disk that is {state} cannot take the event {event:?}: {why}")]
pub struct DiskTransitionError {
    /// The state.
    pub state: DiskState,
    /// The event.
    pub event: DiskEvent,
    /// What to do first.
    pub why: &'static str,
}

impl DiskState {
    /// The state after `event`. Reports and wishes that hold already change nothing.
    pub fn after(self, event: DiskEvent) -> Result<DiskState, DiskTransitionError> {
        use DiskEvent as E;
        use DiskState as S;
        let refuse = |why| Err(DiskTransitionError { state: self, event, why });
        match (self, event) {
            (S::Claimed, E::Labelled) => Ok(S::Serving),
            (S::Claimed, E::Lost) => Ok(S::Missing { was: LastSeen::Claimed }),
            (S::Claimed, E::Release) => Ok(S::Released),
            (S::Claimed, E::Found) => Ok(self),
            (S::Claimed, E::Drain | E::Undrain) => refuse("nothing lies on it yet: release it instead"),

            (S::Serving, E::Drain) => Ok(S::Draining),
            (S::Serving, E::Lost) => Ok(S::Missing { was: LastSeen::Serving }),
            (S::Serving, E::Labelled | E::Found | E::Undrain) => Ok(self),
            (S::Serving, E::Release) => refuse("drain it first"),

            (S::Draining, E::Undrain) => Ok(S::Serving),
            (S::Draining, E::Lost) => Ok(S::Missing { was: LastSeen::Draining }),
            (S::Draining, E::Release) => Ok(S::Released),
            (S::Draining, E::Labelled | E::Found | E::Drain) => Ok(self),

            (S::Missing { was }, E::Found) => Ok(was.into()),
            (S::Missing { .. }, E::Lost) => Ok(self),
            (S::Missing { was: LastSeen::Serving }, E::Drain) => Ok(S::Missing { was: LastSeen::Draining }),
            (S::Missing { was: LastSeen::Draining }, E::Undrain) => Ok(S::Missing { was: LastSeen::Serving }),
            (S::Missing { was: LastSeen::Draining }, E::Drain) => Ok(self),
            (S::Missing { was: LastSeen::Serving }, E::Undrain) => Ok(self),
            (S::Missing { was: LastSeen::Claimed }, E::Drain | E::Undrain) => {
                refuse("nothing lies on it yet")
            }
            (S::Missing { .. }, E::Labelled) => refuse("it must be seen again first"),
            (S::Missing { .. }, E::Release) => {
                refuse("its label cannot be cleared while it is away: wait for it, or forget it")
            }
            (S::Missing { .. }, E::Forget) => Ok(S::Released),

            (S::Released, E::Release | E::Forget) => Ok(self),
            (S::Released, E::Labelled | E::Drain | E::Undrain | E::Lost | E::Found) => {
                refuse("it left the pool; claiming it again gives it a new id")
            }
            (S::Claimed | S::Serving | S::Draining, E::Forget) => refuse("it is there: drain and release it"),
        }
    }

    /// Whether new extents may be placed on it.
    pub const fn takes_new_data(self) -> bool {
        match self {
            DiskState::Serving => true,
            DiskState::Claimed | DiskState::Draining | DiskState::Missing { .. } | DiskState::Released => {
                false
            }
        }
    }

    /// One word, for people and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            DiskState::Claimed => "claimed",
            DiskState::Serving => "serving",
            DiskState::Draining => "draining",
            DiskState::Missing { .. } => "missing",
            DiskState::Released => "released",
        }
    }
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<LastSeen> for DiskState {
    fn from(was: LastSeen) -> Self {
        match was {
            LastSeen::Claimed => DiskState::Claimed,
            LastSeen::Serving => DiskState::Serving,
            LastSeen::Draining => DiskState::Draining,
        }
    }
}

/// A claimed disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Its id, which stands in its label.
    pub id: DiskId,
    /// The node it is in.
    pub node: NodeName,
    /// The pool it belongs to.
    pub pool: PoolName,
    /// Data extents it has, whoever owns them.
    pub extents: Extents,
    /// Their size; the pool's.
    pub extent_size: ExtentSize,
    /// Logical block size in bytes: never mixed within a volume.
    pub logical_block: u32,
    /// Physical block size in bytes.
    pub physical_block: u32,
    /// What it is made of.
    pub class: DiskClass,
    /// Where it is in its life.
    pub state: DiskState,
    /// How it is.
    #[serde(default)]
    pub health: Health,
    /// Where it stands; the same for all disks of a node.
    #[serde(default)]
    pub domain: Domain,
    /// Extents kept for consumers on the disk's own node: never lent.
    #[serde(default)]
    pub reserve: Extents,
}

impl Disk {
    /// Whether new extents may be placed on it at all.
    pub const fn takes_new_data(&self) -> bool {
        self.state.takes_new_data() && self.health.takes_new_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [DiskEvent; 7] = [
        DiskEvent::Labelled,
        DiskEvent::Drain,
        DiskEvent::Undrain,
        DiskEvent::Lost,
        DiskEvent::Found,
        DiskEvent::Release,
        DiskEvent::Forget,
    ];

    #[test]
    fn a_disk_away_comes_back_as_what_it_was() {
        for s in [DiskState::Claimed, DiskState::Serving, DiskState::Draining] {
            let away = s.after(DiskEvent::Lost).expect("any disk can be lost");
            assert!(!away.takes_new_data());
            assert_eq!(away.after(DiskEvent::Lost), Ok(away));
            assert_eq!(away.after(DiskEvent::Found), Ok(s));
            assert!(away.after(DiskEvent::Release).is_err(), "not seeing it is not its end");
        }
        let away = DiskState::Serving.after(DiskEvent::Lost).and_then(|s| s.after(DiskEvent::Drain));
        assert_eq!(away.and_then(|s| s.after(DiskEvent::Found)), Ok(DiskState::Draining));
    }

    #[test]
    fn released_is_the_end_and_serving_is_never_released_at_once() {
        for e in EVENTS {
            let after = DiskState::Released.after(e);
            assert!(!after.is_ok_and(|s| s != DiskState::Released), "{e:?}");
        }
        assert!(DiskState::Serving.after(DiskEvent::Release).is_err());
        assert!(DiskState::Serving.after(DiskEvent::Forget).is_err());
    }

    #[test]
    fn states_read_as_text() {
        let s = serde_json::to_string(&DiskState::Missing { was: LastSeen::Draining }).expect("serializes");
        assert_eq!(s, r#"{"missing":{"was":"draining"}}"#);
        assert_eq!(serde_json::from_str::<DiskState>("\"serving\"").expect("parses"), DiskState::Serving);
        let d = Domain::zone_named("a");
        let text = serde_json::to_string(&d).expect("serializes");
        assert_eq!(text, r#"{"topology.kubernetes.io/zone":"a"}"#);
        assert_eq!(serde_json::from_str::<Domain>(&text).expect("parses"), d);
    }
}
