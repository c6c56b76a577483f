//! What is asked of the allocator.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    disk::{Domain, NODE_KEY, ZONE_KEY},
    ids::{DiskId, NodeName, PoolName},
    layout::{Layout, Locality, params::DEFAULT_LENDERS},
    units::Extents,
    volume::Map,
};

/// Topology segments as CSI gives them: all of them must hold.
pub type TopologyTerm = BTreeMap<String, String>;

/// Where the consumer may be (CSI's accessibility requirements). It says nothing about where the extents may be,
/// except through `locality: require`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The consumer will be in one of these; empty means anywhere.
    pub required: Vec<TopologyTerm>,
    /// The best first; the first is where Kubernetes's scheduler wants the pod, where it has spoken.
    pub preferred: Vec<TopologyTerm>,
}

/// A volume to place, or to grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// From this pool.
    pub pool: PoolName,
    /// The size wanted in all, what is there included. Striped volumes are rounded up to whole rows, whole-disk ones
    /// to the disk.
    pub size: Extents,
    /// No larger than this.
    pub limit: Option<Extents>,
    /// How the extents are put together.
    pub layout: Layout,
    /// How much the volume holds to its consumer's node.
    pub locality: Locality,
    /// Where the consumer is; where that is not known, the topology may tell.
    pub home: Option<NodeName>,
    /// Where the consumer may be.
    pub topology: Topology,
    /// The extents lie only in domains that match one of these; empty means anywhere.
    pub domains: Vec<TopologyTerm>,
    /// Nodes that it may borrow from at most. Without a home every node is one.
    pub max_lenders: u32,
    /// Only disks with this logical block size, in bytes.
    pub logical_block: Option<u32>,
    /// Disks that are not to be used.
    pub avoid: BTreeSet<DiskId>,
    /// What the volume has already; it is only ever appended to.
    pub existing: Map,
    /// Decides between equals, and which candidates are sampled.
    pub seed: u64,
}

impl Request {
    /// A linear volume of `size` extents, anywhere in the pool, with the defaults of everything else.
    pub fn new(pool: PoolName, size: Extents) -> Self {
        Self {
            pool,
            size,
            limit: None,
            layout: Layout::Linear,
            locality: Locality::Prefer,
            home: None,
            topology: Topology::default(),
            domains: Vec::new(),
            max_lenders: DEFAULT_LENDERS,
            logical_block: None,
            avoid: BTreeSet::new(),
            existing: Map::default(),
            seed: 0,
        }
    }
}

/// Whether a node of this domain matches the term. `node` is `None` where only the domain is in question.
pub(super) fn term_matches(term: &TopologyTerm, node: Option<&NodeName>, domain: &Domain) -> bool {
    term.iter().all(|(k, v)| {
        if k == NODE_KEY { node.is_some_and(|n| n.as_str() == v) } else { domain.labels().get(k) == Some(v) }
    })
}

/// The node that the term names.
pub(super) fn term_node(term: &TopologyTerm) -> Option<NodeName> {
    term.get(NODE_KEY).and_then(|n| n.parse().ok())
}

/// The zone that the term names.
pub(super) fn term_zone(term: &TopologyTerm) -> Option<&str> {
    term.get(ZONE_KEY).map(String::as_str)
}

/// A well-mixed function of a seed and bytes (FNV-1a, then the finalizer of splitmix64): breaks ties.
pub(super) fn mix(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325 ^ seed;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}
