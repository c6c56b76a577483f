//! Why a volume cannot be placed: what is missing, and where.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiskId, NodeName, PoolName},
    units::{ExtentSize, Extents},
};

/// What one node has room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRoom {
    /// The node.
    pub node: NodeName,
    /// Extents that the request could get there.
    pub room: Extents,
}

/// A pool's room, as it stands against a request that is too large.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// The pool.
    pub pool: PoolName,
    /// Its extent size.
    pub extent_size: ExtentSize,
    /// New extents that were wanted.
    pub needed: Extents,
    /// New extents that could be had, lenders not counted.
    pub available: Extents,
    /// `needed` less `available`.
    pub missing: Extents,
    /// Nodes with room.
    pub nodes: u64,
    /// Those with most room, most first, a few at most.
    pub most: Vec<NodeRoom>,
    /// Free extents that do not count: kept in reserve, not on offer, or of no use to the layout.
    pub held_back: Extents,
    /// Free extents on disks that take nothing new: draining, missing, unhealthy.
    pub not_serving: Extents,
}

/// Why a volume cannot be placed or grown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such pool.
    #[error("pool {pool} does not exist; there are: {}", list(.known))]
    NoSuchPool {
        /// The one asked for.
        pool: PoolName,
        /// A few that there are.
        known: Vec<PoolName>,
    },
    /// A volume of no extents.
    #[error("a volume needs at least one extent")]
    ZeroSize,
    /// The layout makes the volume larger than the limit allows.
    #[error("the {layout} layout needs {needed} extents, the limit is {limit}")]
    SizeLimit {
        /// The layout's name.
        layout: &'static str,
        /// Extents needed.
        needed: Extents,
        /// Extents allowed.
        limit: Extents,
    },
    /// The product cannot do this yet.
    #[error("{0} is not supported yet")]
    NotSupported(&'static str),
    /// The volume cannot grow.
    #[error("a {0} volume cannot grow")]
    CannotGrow(&'static str),
    /// The volume has extents on a disk that the index does not know.
    #[error("the volume has extents on disk {0}, which is not known")]
    UnknownDisk(DiskId),
    /// There is not enough room.
    #[error("{0}")]
    NotEnoughSpace(Box<Shortage>),
    /// There is room, but on too many nodes.
    #[error("the volume would borrow from {needed} nodes, {allowed} are allowed (maxLenders)")]
    TooManyLenders {
        /// The fewest that suffice.
        needed: u64,
        /// How many are allowed.
        allowed: u64,
    },
    /// There are not enough disks for the stripes.
    #[error("{stripes} stripes need as many disks, pool {pool} has {usable} with room")]
    NotEnoughDisks {
        /// The pool.
        pool: PoolName,
        /// Stripes wanted.
        stripes: u64,
        /// Disks with room.
        usable: u64,
    },
    /// There is no entirely free disk that is large enough (and small enough).
    #[error(
        "no entirely free disk of {needed} extents or more{} in pool {pool}: {entirely_free} are entirely free, the largest of {largest}",
        .limit.map(|l| format!(" (and at most {l})")).unwrap_or_default()
    )]
    NoFreeDisk {
        /// The pool.
        pool: PoolName,
        /// Extents wanted.
        needed: Extents,
        /// Extents allowed.
        limit: Option<Extents>,
        /// Disks that are entirely free and may be had.
        entirely_free: u64,
        /// Extents of the largest of these.
        largest: Extents,
    },
    /// The volume must lie beside its consumer, and there it cannot.
    #[error("locality: require: {}", local_room(.node.as_ref(), *.needed, *.available))]
    LocalityUnsatisfiable {
        /// The node; `None` when several were possible and none had room: `available` is then the best one's.
        node: Option<NodeName>,
        /// Extents wanted.
        needed: Extents,
        /// Extents that could be had there.
        available: Extents,
    },
    /// No node, or no disk, is where the request wants it.
    #[error("topology cannot be satisfied: {0}")]
    TopologyUnsatisfiable(String),
    /// There is room, but only on disks of different logical block sizes together.
    #[error("{needed} extents would need disks of different logical block sizes: {}", list_blocks(.by_block))]
    BlockSizesMixed {
        /// Extents wanted.
        needed: Extents,
        /// Extents that could be had, by block size in bytes.
        by_block: Vec<(u32, Extents)>,
    },
}

/// What sort of answer a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request can never be met as it stands.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// It may be met when there is more room, or elsewhere.
    NoRoom,
    /// The size cannot be had within the limit that was given.
    OutOfRange,
}

impl Refusal {
    /// What sort of answer it is.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Refusal::ZeroSize | Refusal::NotSupported(_) | Refusal::CannotGrow(_) => RefusalKind::Invalid,
            Refusal::NoSuchPool { .. } | Refusal::UnknownDisk(_) => RefusalKind::NotFound,
            Refusal::SizeLimit { .. } => RefusalKind::OutOfRange,
            Refusal::NotEnoughSpace(_)
            | Refusal::TooManyLenders { .. }
            | Refusal::NotEnoughDisks { .. }
            | Refusal::NoFreeDisk { .. }
            | Refusal::LocalityUnsatisfiable { .. }
            | Refusal::TopologyUnsatisfiable(_)
            | Refusal::BlockSizesMixed { .. } => RefusalKind::NoRoom,
        }
    }
}

fn local_room(node: Option<&NodeName>, needed: Extents, available: Extents) -> String {
    match node {
        Some(n) => format!("node {n} has room for {available} of {needed} extents"),
        None => format!(
            "no node has room for all {needed} extents; the most that one has room for is {available}"
        ),
    }
}

fn list(names: &[PoolName]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(PoolName::to_string).collect::<Vec<_>>().join(", ")
}

fn list_blocks(by_block: &[(u32, Extents)]) -> String {
    by_block.iter().map(|(b, n)| format!("{n} on disks of {b} B")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |n: Extents| match self.extent_size.checked_bytes_of(n) {
            Some(b) => b.to_string(),
            None => format!("{n} extents"),
        };
        let plural = if self.nodes == 1 { "" } else { "s" };
        write!(
            f,
            "volume needs {}; pool {} has {} free on {} node{plural}",
            size(self.needed),
            self.pool,
            size(self.available),
            self.nodes
        )?;
        for (i, n) in self.most.iter().enumerate() {
            write!(f, "{} {} {}", if i == 0 { ":" } else { "," }, n.node, size(n.room))?;
        }
        let more = self.nodes.saturating_sub(self.most.len() as u64);
        if more > 0 {
            write!(f, ", {more} more with less")?;
        }
        write!(f, "; {} missing", size(self.missing))?;
        if !self.held_back.is_zero() {
            write!(
                f,
                " ({} free but kept in reserve, not on offer, or of no use to the layout)",
                size(self.held_back)
            )?;
        }
        if !self.not_serving.is_zero() {
            write!(f, " ({} free on disks that take nothing new)", size(self.not_serving))?;
        }
        Ok(())
    }
}
