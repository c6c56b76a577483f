//! How much can be had: what GetCapacity answers, by the same rules as a plan.

use super::{
    index::Pool,
    plan::{Need, blocks},
    refusal::Refusal,
    request::Request,
    view::{Ask, View},
};
use crate::{ids::NodeName, layout::Layout, units::Extents};

/// Room for volumes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Extents that volumes of the kind can have together.
    pub available: Extents,
    /// The largest volume: a plan for this size is accepted, a plan for one extent more is refused.
    pub maximum_volume: Extents,
}

impl Pool {
    /// The room for volumes as the request describes them; its size, limit and existing map do not matter. With a
    /// home it is the room for consumers on that node.
    pub fn capacity(&self, req: &Request) -> Result<Capacity, Refusal> {
        let req = Request { existing: crate::volume::Map::default(), limit: None, ..req.clone() };
        let stripes = match req.layout {
            Layout::Linear => 1,
            Layout::Striped { stripes, .. } => u64::from(stripes.max(1)),
            Layout::Mirrored { .. } => return Err(Refusal::NotSupported("layout: mirrored")),
            Layout::WholeDisk => 0,
        };
        let need = match stripes {
            0 => Need::Whole { size: 1, limit: u64::MAX },
            stripes => Need::Rows { stripes, rows: 1 },
        };
        let ask = self.ask(&req)?;
        let mut out = Capacity::default();
        for b in blocks(&ask, None) {
            let view = View::new(&ask, b);
            let (available, maximum) = if ask.local_only() {
                (local_available(&ask, &view), local_reach(&ask, b, need))
            } else {
                (available(&ask, &view), need.reach(&view))
            };
            out.available = out.available.plus(Extents::new(available));
            out.maximum_volume = out.maximum_volume.max(Extents::new(maximum));
        }
        Ok(out)
    }
}

fn sum(disks: Vec<super::runs::DiskRoom>) -> u64 {
    disks.into_iter().map(|(_, r)| r).sum()
}

fn available(ask: &Ask<'_>, view: &View<'_>) -> u64 {
    let home = ask.home.as_ref();
    let own = sum(view.home_disks());
    let own_lend = home.map_or(0, |h| sum(view.lend_disks(h)));
    view.lend_total() - own_lend + own
}

fn local_available(ask: &Ask<'_>, view: &View<'_>) -> u64 {
    match &ask.home {
        Some(_) => sum(view.home_disks()),
        None => view
            .by_local()
            .filter(|(_, n)| super::plan::may_be_home(ask.shelf, ask.req, n))
            .map(|(r, _)| r)
            .sum(),
    }
}

/// The most that can be had on one node alone: the home node, or the best of those that the consumer may be on.
pub(super) fn local_reach(ask: &Ask<'_>, block: u32, need: Need) -> u64 {
    let view = View::new(ask, block);
    if ask.home.is_some() {
        return need.reach(&view);
    }
    let mut best = 0;
    for (room, node) in view.by_local() {
        if room <= best {
            break;
        }
        if super::plan::may_be_home(ask.shelf, ask.req, node) {
            best = best.max(reach_on(ask, block, need, node));
        }
    }
    best
}

fn reach_on(ask: &Ask<'_>, block: u32, need: Need, node: &NodeName) -> u64 {
    let at = Ask {
        home: Some(node.clone()),
        zone: None,
        used: Vec::new(),
        used_disks: ask.used_disks.clone(),
        hints: ask.hints.clone(),
        ..*ask
    };
    need.reach(&View::new(&at, block))
}
