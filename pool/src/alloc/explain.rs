//! Why a volume lies where it lies: kept in its record for `explain`. Short, whatever the pool's size.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::{index::Slot, linear::Share, view::View};
use crate::{
    ids::{DiskId, NodeName},
    layout::Locality,
    units::Extents,
};

/// Why extents were taken from a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhyChosen {
    /// It is beside the consumer.
    Local,
    /// Its node lends to the volume already.
    LenderAlready,
    /// Its node is among the fewest lenders that suffice, those with most room (or the best offer) first.
    MostRoom,
    /// It holds a stripe.
    Stripe,
    /// It was entirely free and the tightest fit.
    WholeDisk,
}

/// Why a disk or a node was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhyPassed {
    /// Others sufficed.
    NotNeeded,
    /// Others had more room or a better offer.
    LessRoom,
    /// It has no room.
    Full,
    /// It takes nothing new: draining, missing, unhealthy.
    TakesNothingNew,
    /// Its logical block size is another one.
    OtherBlockSize,
    /// It is outside the allowed domains.
    OtherDomain,
}

/// Extents taken from one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The disk.
    pub disk: DiskId,
    /// Its node.
    pub node: NodeName,
    /// How many.
    pub extents: Extents,
    /// Why.
    pub why: WhyChosen,
    /// How gladly it lent, from 0 to 1000.
    #[serde(default)]
    pub score: u32,
}

/// A candidate that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The disk, where it is one and not a node with all its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskId>,
    /// The node.
    pub node: NodeName,
    /// Extents that it had room for.
    pub room: Extents,
    /// Why not.
    pub why: WhyPassed,
    /// How gladly it would have lent, from 0 to 1000.
    #[serde(default)]
    pub score: u32,
}

/// Why a plan is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The consumer's node that was planned for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<NodeName>,
    /// The locality that was asked for.
    pub locality: Locality,
    /// The logical block size that was settled on, in bytes.
    pub logical_block: u32,
    /// What was taken, the first few disks.
    pub chosen: Vec<Chosen>,
    /// Disks taken beyond those listed.
    pub more_chosen: u64,
    /// A few candidates that were not taken.
    pub passed: Vec<Passed>,
}

/// Disks taken that are listed one by one: twice the lenders that a volume usually has.
const LISTED: usize = 16;
/// Nodes passed over that are listed.
const PASSED_NODES: usize = 4;
/// The home node's disks passed over that are listed.
const PASSED_DISKS: usize = 8;

impl Explanation {
    pub(super) fn of(view: &View<'_>, shares: &[Share]) -> Self {
        let one = |s: &Share| Chosen {
            disk: s.disk,
            node: s.node.clone(),
            extents: Extents::new(s.count),
            why: s.why,
            score: view.pool.slots.get(&s.disk).map_or(0, Slot::score),
        };
        let mut passed = home_passed(view, shares);
        let taken: BTreeSet<&NodeName> = shares.iter().map(|s| &s.node).collect();
        let borrowed = shares.iter().any(|s| view.ask.home.as_ref() != Some(&s.node));
        let why = if borrowed { WhyPassed::LessRoom } else { WhyPassed::NotNeeded };
        let others = view.by_lend(None).filter(|(_, n)| !taken.contains(n)).take(PASSED_NODES);
        passed.extend(others.map(|(room, n)| Passed {
            disk: None,
            node: n.clone(),
            room: Extents::new(room),
            why,
            // Scores are 1000 at most.
            score: u32::try_from(view.score(n)).unwrap_or(u32::MAX),
        }));
        Self {
            home: view.ask.home.clone(),
            locality: view.ask.req.locality,
            logical_block: view.block,
            chosen: shares.iter().take(LISTED).map(one).collect(),
            more_chosen: shares.len().saturating_sub(LISTED) as u64,
            passed,
        }
    }
}

/// The home node's disks that were not taken, and why.
fn home_passed(view: &View<'_>, shares: &[Share]) -> Vec<Passed> {
    let Some((home, node)) = view.ask.home.as_ref().and_then(|h| view.ask.shelf.nodes.get_key_value(h))
    else {
        return Vec::new();
    };
    let taken: BTreeSet<DiskId> = shares.iter().map(|s| s.disk).collect();
    let others = node.disks.values().flatten().filter(|d| !taken.contains(d)).take(PASSED_DISKS);
    let passed = others.filter_map(|d| {
        let slot = view.pool.slots.get(d)?;
        let why = if !view.ask.allows(&node.domain) {
            WhyPassed::OtherDomain
        } else if !slot.disk.takes_new_data() {
            WhyPassed::TakesNothingNew
        } else if slot.local() == 0 {
            WhyPassed::Full
        } else if slot.disk.logical_block != view.block {
            WhyPassed::OtherBlockSize
        } else {
            WhyPassed::NotNeeded
        };
        let (disk, node, score) = (Some(*d), home.clone(), slot.score());
        Some(Passed { disk, node, room: Extents::new(slot.local()), why, score })
    });
    passed.collect()
}

impl fmt::Display for WhyChosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyChosen::Local => "beside the consumer",
            WhyChosen::LenderAlready => "lends to this volume already",
            WhyChosen::MostRoom => "most room to lend",
            WhyChosen::Stripe => "holds a stripe",
            WhyChosen::WholeDisk => "entirely free, the tightest fit",
        })
    }
}

impl fmt::Display for WhyPassed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyPassed::NotNeeded => "not needed",
            WhyPassed::LessRoom => "others had more room or a better offer",
            WhyPassed::Full => "no room",
            WhyPassed::TakesNothingNew => "takes nothing new",
            WhyPassed::OtherBlockSize => "another logical block size",
            WhyPassed::OtherDomain => "outside the allowed domains",
        })
    }
}

impl fmt::Display for Explanation {
    /// One line a disk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.home {
            Some(h) => writeln!(f, "planned for node {h}, locality {}", self.locality)?,
            None => writeln!(f, "planned for no node in particular, locality {}", self.locality)?,
        }
        for c in &self.chosen {
            writeln!(f, "+ {} on {}: {} extents, {}", c.disk, c.node, c.extents, c.why)?;
        }
        if self.more_chosen > 0 {
            writeln!(f, "+ {} more disks", self.more_chosen)?;
        }
        for p in &self.passed {
            match p.disk {
                Some(d) => writeln!(f, "- {d} on {}: room for {}, {}", p.node, p.room, p.why)?,
                None => writeln!(f, "- {}: room for {}, {}", p.node, p.room, p.why)?,
            }
        }
        Ok(())
    }
}
