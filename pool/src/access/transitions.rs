//! The transition table: what an event makes of who may touch a volume. Invariants: those of [`super`]; it only reads what it
//! is given, and a refusal changes nothing.

use std::collections::BTreeMap;

use super::{Access, AccessState, Event, Facts, Leaving, Mode, Notice, Outcome, Place, Refusal, Sharing};
use crate::ids::{Epoch, NodeName};

impl AccessState {
    /// The transition table.
    ///
    /// # Errors
    /// When the event is a request that must not be granted now; the state is unchanged.
    pub fn on(&self, event: &Event, facts: &Facts<'_>) -> Result<Outcome, Refusal> {
        match event {
            Event::Attach { node, mode } => self.on_attach(node, *mode, facts),
            Event::Detach { node } => Ok(self.on_detach(node, facts)),
            Event::HeldWrite { node, epoch } => Ok(self.on_held(node, *epoch, facts)),
            Event::SourceBusy { node, epoch } => Ok(self.on_busy(node, *epoch, facts)),
            Event::Review => Ok(self.on_review(facts)),
        }
    }

    fn on_attach(&self, node: &NodeName, mode: Mode, facts: &Facts<'_>) -> Result<Outcome, Refusal> {
        if self.leaving.contains_key(node) {
            return Err(Refusal::StillLeaving { node: node.clone() });
        }
        let alive = |n: &NodeName| (facts.alive)(n);
        if let Some(keeper) = self.upkeeper() {
            return Ok(self.take_over(keeper, node, mode, facts));
        }
        match &self.access {
            // The controller's own work waits for nobody.
            _ if mode.upkeep && !self.is_idle() => Err(Refusal::InUse { holders: self.holders() }),
            Access::Detached => Ok(self.grant(node, mode, &[], &[], facts)),
            Access::Granting { node: n, mode: m } if n == node => Self::same(node, *m, mode),
            Access::Granting { node: n, .. } if alive(n) => Err(Refusal::InUse { holders: vec![n.clone()] }),
            Access::Granting { node: n, .. } => Ok(self.grant(node, mode, &[], &[n], facts)),
            Access::Attached { holders } => self.attach_beside(holders, node, mode, facts),
            Access::Guarded { source, target, .. }
            | Access::CuttingOver { source, target, source_left: false, .. }
                if node == source || node == target =>
            {
                if mode.multi_node && !mode.read_only {
                    Ok(Outcome::Unchanged)
                } else {
                    Err(Refusal::OtherMode { node: node.clone() })
                }
            }
            Access::Guarded { source, target, .. } => match (alive(source), alive(target)) {
                // The target died before it wrote: the source may migrate to somebody else.
                (true, false) if mode.multi_node && !mode.read_only => {
                    let mut next = self.bump();
                    next.leave(target, false, facts);
                    let notices = vec![
                        Notice::MigrationAborted { source: source.clone(), target: target.clone() },
                        Notice::MigrationStarted { source: source.clone(), target: node.clone() },
                    ];
                    next.guard(source, node);
                    Ok(Outcome::Changed(next, notices))
                }
                (false, false) => Ok(self.grant(node, mode, &[source], &[target], facts)),
                (true, _) | (false, true) => {
                    Err(Refusal::InUse { holders: vec![source.clone(), target.clone()] })
                }
            },
            Access::CuttingOver { target, source_left: true, .. } if node == target => Ok(Outcome::Unchanged),
            // It gave the volume up, and is as good as leaving: it must not become a holder before it is gone.
            Access::CuttingOver { source, source_left: true, .. } if node == source => {
                Err(Refusal::StillLeaving { node: node.clone() })
            }
            Access::CuttingOver { source, target, .. } if !alive(source) && !alive(target) => {
                Ok(self.grant(node, mode, &[source], &[target], facts))
            }
            Access::CuttingOver { .. } => Err(Refusal::InUse { holders: self.holders() }),
        }
    }

    /// A user takes the volume from the controller's own work: at once on the same node, elsewhere as from the dead. One
    /// who only reads gets it on the same node when the writer that stood there has gone, and has to ask again: as a
    /// reader the node could lose the volume without being fenced, though its device may not have heard yet.
    fn take_over(&self, keeper: &NodeName, node: &NodeName, mode: Mode, facts: &Facts<'_>) -> Outcome {
        if mode.upkeep {
            return Outcome::Unchanged;
        }
        if keeper == node {
            let mut next = self.bump();
            if mode.read_only {
                next.leave(keeper, true, facts);
                next.access = Access::Detached;
                return Outcome::Changed(next, vec![]);
            }
            next.access = Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) };
            return Outcome::Changed(next, vec![Notice::Attached(node.clone())]);
        }
        match self.grant(node, mode, &[keeper], &[], facts) {
            // Nobody has lost anything.
            Outcome::Changed(next, notices) => {
                let news = notices.into_iter().filter(|n| !matches!(n, Notice::Evicted(_)));
                Outcome::Changed(next, news.collect())
            }
            Outcome::Unchanged => Outcome::Unchanged,
        }
    }

    fn attach_beside(
        &self,
        holders: &BTreeMap<NodeName, Mode>,
        node: &NodeName,
        mode: Mode,
        facts: &Facts<'_>,
    ) -> Result<Outcome, Refusal> {
        if let Some(m) = holders.get(node) {
            return Self::same(node, *m, mode);
        }
        let living: BTreeMap<_, _> = holders.iter().filter(|(n, _)| (facts.alive)(n)).collect();
        if living.is_empty() {
            let (readers, writers): (Vec<_>, Vec<_>) = holders.iter().partition(|(_, m)| m.read_only);
            let names =
                |v: Vec<(&NodeName, &Mode)>| v.into_iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
            let (readers, writers) = (names(readers), names(writers));
            return Ok(self.grant(
                node,
                mode,
                &writers.iter().collect::<Vec<_>>(),
                &readers.iter().collect::<Vec<_>>(),
                facts,
            ));
        }
        let all_multi = mode.multi_node && living.values().all(|m| m.multi_node);
        let all_read = mode.read_only && living.values().all(|m| m.read_only);
        if all_multi && (all_read || facts.sharing == Sharing::MultiWriter) {
            let mut next = self.bump();
            let mut holders = holders.clone();
            holders.insert(node.clone(), mode);
            next.access = Access::Attached { holders };
            return Ok(Outcome::Changed(next, vec![Notice::Attached(node.clone())]));
        }
        // Here the volume has one writer, or readers beside which a writer has no place.
        if let (true, Some((source, m)), 1) = (all_multi, living.first_key_value(), holders.len())
            && !m.read_only
            && !mode.read_only
        {
            let mut next = self.bump();
            next.guard(source, node);
            let notice = Notice::MigrationStarted { source: (*source).clone(), target: node.clone() };
            return Ok(Outcome::Changed(next, vec![notice]));
        }
        Err(Refusal::InUse { holders: living.keys().map(|n| (*n).clone()).collect() })
    }

    fn on_detach(&self, node: &NodeName, facts: &Facts<'_>) -> Outcome {
        let mut next = self.bump();
        let notices = match &self.access {
            Access::Granting { node: n, .. } if n == node => {
                next.leave(node, false, facts);
                next.access = Access::Detached;
                vec![Notice::Detached(node.clone())]
            }
            Access::Attached { holders } if holders.contains_key(node) => {
                let mut rest = holders.clone();
                let wrote = rest.remove(node).is_some_and(|m| !m.read_only);
                next.leave(node, wrote, facts);
                next.access =
                    if rest.is_empty() { Access::Detached } else { Access::Attached { holders: rest } };
                vec![Notice::Detached(node.clone())]
            }
            Access::Guarded { source, target, .. } if node == source => {
                next.access = Self::cutting(source, target, true, next.epoch);
                vec![Notice::CutOverStarted { source: source.clone(), target: target.clone() }]
            }
            Access::Guarded { source, target, .. }
            | Access::CuttingOver { source, target, source_left: false, .. }
                if node == target =>
            {
                // The guard let nothing through, so the source may go on even if it had fenced itself.
                next.leave(target, false, facts);
                next.access = Self::sole_writer(source);
                vec![Notice::MigrationAborted { source: source.clone(), target: target.clone() }]
            }
            Access::CuttingOver { source, target, source_left: false, .. } if node == source => {
                next.access = Self::cutting(source, target, true, next.epoch);
                vec![]
            }
            Access::CuttingOver { source, target, source_left: true, .. } if node == target => {
                next.leave(target, false, facts);
                next.leave(source, true, facts);
                next.access = Access::Detached;
                vec![Notice::Detached(source.clone()), Notice::Detached(target.clone())]
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => return Outcome::Unchanged,
        };
        Outcome::Changed(next, notices)
    }

    fn on_held(&self, node: &NodeName, epoch: Epoch, facts: &Facts<'_>) -> Outcome {
        match &self.access {
            Access::Guarded { source, target, since } if node == target && epoch >= *since => {
                let mut next = self.bump();
                next.access = Self::cutting(source, target, !(facts.alive)(source), next.epoch);
                let notice = Notice::CutOverStarted { source: source.clone(), target: target.clone() };
                Outcome::Changed(next, vec![notice])
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => Outcome::Unchanged,
        }
    }

    fn on_busy(&self, node: &NodeName, epoch: Epoch, facts: &Facts<'_>) -> Outcome {
        match &self.access {
            Access::CuttingOver { source, target, source_left: false, since }
                if node == source && epoch >= *since =>
            {
                let mut next = self.bump();
                next.leave(target, false, facts);
                next.access = Self::sole_writer(source);
                let notice = Notice::Conflict { source: source.clone(), target: target.clone() };
                Outcome::Changed(next, vec![notice])
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => Outcome::Unchanged,
        }
    }

    fn on_review(&self, facts: &Facts<'_>) -> Outcome {
        // Who is gone is dropped without a new epoch: nobody's rights change by it.
        let mut next = self.clone();
        next.leaving.retain(|n, l| !l.is_gone(n, facts.confirmed));
        let dropped = next.leaving.len() < self.leaving.len();
        let step = match &next.access {
            Access::Granting { node, mode } => next.review_grant(node, *mode, facts),
            Access::CuttingOver { source, target, source_left, since } => {
                next.review_cut_over(source, target, *source_left, *since, facts)
            }
            Access::Detached | Access::Attached { .. } | Access::Guarded { .. } => Outcome::Unchanged,
        };
        match step {
            Outcome::Unchanged if dropped => Outcome::Changed(next, vec![]),
            Outcome::Unchanged | Outcome::Changed(..) => step,
        }
    }

    /// A grant waits for every place of a leaver that can still be reached. Places that cannot give their disk to
    /// nobody until they have confirmed the fence ([`AccessState::open_for`]).
    fn review_grant(&self, node: &NodeName, mode: Mode, facts: &Facts<'_>) -> Outcome {
        let waits = self.leaving.iter().filter(|(_, l)| l.wrote).any(|(n, l)| {
            l.places().any(|p| {
                let who = match p {
                    Place::Device => Some(n),
                    Place::Export(d) => facts.disks.get(&d),
                };
                who.is_some_and(|w| (facts.alive)(w)) && facts.confirmed.gone(n, p, l.since).is_none()
            })
        });
        if waits {
            return Outcome::Unchanged;
        }
        let mut next = self.bump();
        next.access = Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) };
        Outcome::Changed(next, vec![Notice::Attached(node.clone())])
    }

    fn review_cut_over(
        &self,
        source: &NodeName,
        target: &NodeName,
        source_left: bool,
        since: Epoch,
        facts: &Facts<'_>,
    ) -> Outcome {
        let source_alive = (facts.alive)(source);
        let self_fenced = facts.confirmed.gone(source, Place::Device, since).is_some();
        if !source_left && !source_alive && !self_fenced {
            let mut next = self.bump();
            next.access = Self::cutting(source, target, true, next.epoch);
            return Outcome::Changed(next, vec![]);
        }
        // A dead source that hosts disks of the volume may still write to them: wait for it.
        let source_done = self_fenced || (!source_alive && !facts.hosts_any(source));
        let exports_done = facts
            .exported_to(source)
            .all(|d| facts.confirmed.gone(source, Place::Export(d), since).is_some());
        if !source_done || !exports_done {
            return Outcome::Unchanged;
        }
        let mut next = self.bump();
        // Every disk has fenced it: what is left is to take the remains down.
        next.leave(source, false, facts);
        next.access = Self::sole_writer(target);
        Outcome::Changed(next, vec![Notice::Migrated { source: source.clone(), target: target.clone() }])
    }

    /// The state in which `node` gets the volume as its only holder; `writers` and `readers` lose it.
    fn grant(
        &self,
        node: &NodeName,
        mode: Mode,
        writers: &[&NodeName],
        readers: &[&NodeName],
        facts: &Facts<'_>,
    ) -> Outcome {
        let mut next = self.bump();
        let mut notices = vec![];
        for (n, wrote) in writers.iter().map(|n| (*n, true)).chain(readers.iter().map(|n| (*n, false))) {
            next.leave(n, wrote, facts);
            notices.push(Notice::Evicted(n.clone()));
        }
        if next.leaving.values().any(|l| l.wrote) {
            next.access = Access::Granting { node: node.clone(), mode };
        } else {
            next.access = Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) };
            notices.push(Notice::Attached(node.clone()));
        }
        Outcome::Changed(next, notices)
    }

    fn leave(&mut self, node: &NodeName, wrote: bool, facts: &Facts<'_>) {
        let disks = facts.exported_to(node).collect();
        self.leaving.insert(node.clone(), Leaving { since: self.epoch, wrote, disks });
    }

    fn guard(&mut self, source: &NodeName, target: &NodeName) {
        let since = self.epoch;
        self.access = Access::Guarded { source: source.clone(), target: target.clone(), since };
    }

    fn bump(&self) -> AccessState {
        AccessState { epoch: self.epoch.next(), ..self.clone() }
    }

    fn cutting(source: &NodeName, target: &NodeName, source_left: bool, since: Epoch) -> Access {
        Access::CuttingOver { source: source.clone(), target: target.clone(), source_left, since }
    }

    /// The one holder after a migration: both sides had asked for a mode that admits several nodes.
    fn sole_writer(node: &NodeName) -> Access {
        let mode = Mode { read_only: false, multi_node: true, upkeep: false };
        Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) }
    }

    fn same(node: &NodeName, have: Mode, want: Mode) -> Result<Outcome, Refusal> {
        if have == want { Ok(Outcome::Unchanged) } else { Err(Refusal::OtherMode { node: node.clone() }) }
    }
}
