//! The controllers and their store. Each controller runs `AccessState::on` and `plan_goals` over its own copy of
//! the records; confirmations, leases and what was sent are its memory and die with it.
//!
//! The store compares and swaps single records. In every second world it refuses whoever is no longer the active
//! controller. In the others it looks at the version only, as Kubernetes does, so that a deposed controller can
//! still change what its successor has not changed yet. There a controller tells nobody anything about a record
//! before it has put its own term on it, and never touches one with a later term.

use std::{collections::BTreeMap, rc::Rc};

use pool::{
    access::{
        Access, AccessState, Confirmations, Event, Facts, Gone, Mode, Notice, Outcome, Place, Refusal,
        Sharing,
    },
    goals::{AttachmentGoal, Role, View, plan_goals},
    ids::{DiskId, Epoch, NodeName, Term, VolumeId},
    layout::params::{ClaimRef, VolumeParams},
    moving::Mirror,
    record::{Lifecycle, VolumeRecord},
    units::ExtentSize,
    volume::Map,
};

use crate::{
    moves::{Flight, Pending},
    types::{
        AttachmentSeen, Checked, D, ExportSeen, Goal, Goals, LEASE, Mutation, N, PATIENCE, Seen, V,
        Violation, disk_id, disk_number, extents_of, name_of, number_of, places,
    },
    world::World,
};

/// What is durable of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) vol: Rc<VolumeRecord>,
    /// Its map.
    pub(crate) map: Rc<Map>,
    /// The controller that wrote it last.
    pub(crate) term: u64,
}

impl Record {
    pub(crate) fn new(vol: VolumeRecord) -> Self {
        Self { map: Rc::new(vol.map.clone()), vol: Rc::new(vol), term: 0 }
    }

    pub(crate) fn is_deleting(&self) -> bool {
        self.vol.lifecycle == Lifecycle::Deleting
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Versioned {
    pub(crate) version: u64,
    pub(crate) record: Record,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) records: BTreeMap<V, Versioned>,
    pub(crate) term: u64,
    /// Refuses deposed controllers.
    pub(crate) fenced: bool,
    pub(crate) versions: u64,
    /// Writes under way, of which nobody knows yet how they end.
    pub(crate) flights: Vec<Flight>,
}

impl Store {
    /// Replaces the record if `version` is still the newest (`None`: there is none yet). `None`: refused.
    pub(crate) fn swap(&mut self, term: u64, v: V, version: Option<u64>, to: Option<Record>) -> Option<u64> {
        // Making a volume takes extents that no record names yet: only the active controller may, in any store.
        let deposed = (self.fenced || version.is_none()) && term != self.term;
        if deposed || self.records.get(&v).map(|r| r.version) != version {
            return None;
        }
        self.versions += 1;
        let version = self.versions;
        match to {
            Some(record) => self.records.insert(v, Versioned { version, record }),
            None => self.records.remove(&v),
        };
        Some(version)
    }

    pub(crate) fn is_deleting(&self, v: V) -> bool {
        self.records.get(&v).is_some_and(|r| r.record.is_deleting())
    }
}

/// One reign of a controller.
pub(crate) struct Controller {
    pub(crate) records: BTreeMap<V, Versioned>,
    confirmed: BTreeMap<V, Confirmations>,
    pub(crate) heard: Vec<u64>,
    left: BTreeMap<(V, NodeName), u64>,
    /// What was said last on a node's session.
    sent: BTreeMap<(N, V), Vec<Goal>>,
    /// The present session of each node.
    pub(crate) present: BTreeMap<N, u64>,
    /// What a node said of its mirror in that.
    pub(crate) mirrors: BTreeMap<(V, N), (Epoch, Mirror)>,
    /// Under which epoch a host last said that it serves a slice.
    serving: BTreeMap<(V, D, N), Epoch>,
    wiped: std::collections::BTreeSet<u64>,
    /// Writes whose outcome is not known.
    pub(crate) pending: BTreeMap<V, Pending>,
}

impl Controller {
    pub(crate) fn alive(&self, n: N, now: u64) -> bool {
        now.saturating_sub(self.heard[n]) < LEASE
    }

    /// A node comes with a new session: it was told nothing in it, and has said nothing.
    pub(crate) fn meet(&mut self, n: N, session: u64, remembers: bool) {
        self.sent.retain(|(x, _), _| *x != n);
        self.present.insert(n, session);
        if !remembers {
            self.mirrors.retain(|(_, x), _| *x != n);
        }
    }
}

fn phase(a: &Access) -> &'static str {
    match a {
        Access::Detached => "Detached",
        Access::Granting { .. } => "Granting",
        Access::Attached { .. } => "Attached",
        Access::Guarded { .. } => "Guarded",
        Access::CuttingOver { source_left: false, .. } => "CuttingOver",
        Access::CuttingOver { source_left: true, .. } => "CuttingOver(left)",
    }
}

fn label(e: &Event) -> &'static str {
    match e {
        Event::Attach { .. } => "attach",
        Event::Detach { .. } => "detach",
        Event::HeldWrite { .. } => "held",
        Event::SourceBusy { .. } => "busy",
        Event::Review => "review",
    }
}

fn notice(n: &Notice) -> &'static str {
    match n {
        Notice::Attached(_) => "notice: attached",
        Notice::Detached(_) => "notice: detached",
        Notice::Evicted(_) => "notice: evicted",
        Notice::MigrationStarted { .. } => "notice: migration started",
        Notice::CutOverStarted { .. } => "notice: cut-over started",
        Notice::Migrated { .. } => "notice: migrated",
        Notice::MigrationAborted { .. } => "notice: migration aborted",
        Notice::Conflict { .. } => "notice: conflict",
    }
}

impl World {
    /// A new controller takes over: it loads the records, and knows nothing else.
    pub(crate) fn elect(&mut self) {
        self.store.term += 1;
        let term = self.store.term;
        let c = Controller {
            records: self.store.records.clone(),
            confirmed: BTreeMap::new(),
            heard: vec![self.now; self.nodes.len()],
            left: BTreeMap::new(),
            sent: BTreeMap::new(),
            present: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            serving: BTreeMap::new(),
            wiped: std::collections::BTreeSet::new(),
            pending: BTreeMap::new(),
        };
        self.controllers.insert(term, c);
        self.say(|| format!("controller {term} takes over"));
    }

    fn hosts(&self, disks: impl IntoIterator<Item = DiskId>) -> BTreeMap<DiskId, NodeName> {
        disks.into_iter().map(|d| (d, self.names[self.host_of[disk_number(d)]].clone())).collect()
    }

    /// Holds what is on record now against the oracle.
    pub(crate) fn on_record(&mut self, v: V, to: &Record) -> Checked {
        let moved = if self.oracle.knows(v) {
            self.oracle.recorded(v, &to.vol, &to.map)?
        } else {
            self.oracle.created(v, &to.vol, &to.map)?
        };
        moved.into_iter().try_for_each(|p| self.nobody_writes(p))
    }

    /// Writes a record, and only then takes it for true.
    pub(crate) fn write(&mut self, c: u64, v: V, to: Record) -> Checked<bool> {
        let to = Record { term: c, ..to };
        let version = self.controllers[&c].records.get(&v).map(|r| r.version);
        let done = self.store.swap(c, v, version, Some(to.clone()));
        let keeps = self.broken(Mutation::GoalsWithoutRecord);
        let Some(ctl) = self.controllers.get_mut(&c) else { return Ok(false) };
        match done {
            Some(version) => {
                ctl.records.insert(v, Versioned { version, record: to.clone() });
                self.on_record(v, &to)?;
                Ok(true)
            }
            None => {
                if let Some(r) = ctl.records.get_mut(&v).filter(|_| keeps) {
                    r.record = to;
                } else {
                    self.refused(c, v);
                }
                Ok(false)
            }
        }
    }

    /// A record could not be written by controller `c`.
    pub(crate) fn refused(&mut self, c: u64, v: V) {
        let Some(ctl) = self.controllers.get_mut(&c) else { return };
        if self.store.fenced {
            self.cov.hit("controller: a deposed one could not record");
            return;
        }
        self.cov.hit("controller: somebody else had changed the record");
        match self.store.records.get(&v) {
            Some(r) => ctl.records.insert(v, r.clone()),
            None => ctl.records.remove(&v),
        };
    }

    /// Lets an event happen to a volume in the eyes of controller `c`. `None`: it is unknown to it, or it could
    /// not be recorded. Where somebody else had changed the record, the event is looked at again in its light:
    /// a node says things once.
    pub(crate) fn event(&mut self, c: u64, v: V, e: &Event) -> Checked<Option<Result<(), Refusal>>> {
        match self.event_once(c, v, e)? {
            None if !self.store.fenced => self.event_once(c, v, e),
            done => Ok(done),
        }
    }

    fn event_once(&mut self, c: u64, v: V, e: &Event) -> Checked<Option<Result<(), Refusal>>> {
        let Some(r) = self.own(c, v).filter(|r| !r.record.is_deleting()) else { return Ok(None) };
        let Some(ctl) = self.controllers.get(&c) else { return Ok(None) };
        let record = r.record.clone();
        let access = &record.vol.access;
        let disks = self.hosts(record.map.disks());
        let now = self.now;
        let alive = |n: &NodeName| ctl.alive(number_of(n), now);
        let confirmed = self.believed(ctl, v, &record);
        let facts =
            Facts { disks: &disks, alive: &alive, sharing: record.vol.params.sharing, confirmed: &confirmed };
        let outcome = access.on(e, &facts);
        let before = phase(&access.access);
        match outcome {
            Err(refusal) => {
                let why = match &refusal {
                    Refusal::InUse { .. } => "in use",
                    Refusal::OtherMode { .. } => "other mode",
                    Refusal::StillLeaving { .. } => "still leaving",
                };
                self.cov.hit(&format!("refused: {why} in {before}"));
                self.refusal_is_true(access, e, &refusal)?;
                Ok(Some(Err(refusal)))
            }
            Ok(Outcome::Unchanged) => Ok(Some(Ok(()))),
            Ok(Outcome::Changed(access, notices)) => {
                self.cov.hit(&format!("{}: {before} -> {}", label(e), phase(&access.access)));
                let mut access = access;
                for n in &notices {
                    self.cov.hit(notice(n));
                    if let Notice::Evicted(x) = n {
                        self.saw_eviction(number_of(x));
                    }
                }
                self.say(|| format!("c{c} v{v} {e:?} -> {access:?} {notices:?}"));
                if self.broken(Mutation::LeaverForgottenEarly) {
                    let forget = |n: &NodeName, l: &pool::access::Leaving| {
                        let fenced = |p| p == Place::Device || confirmed.gone(n, p, l.since).is_some();
                        !disks.values().any(|h| h == n) && l.places().all(fenced)
                    };
                    access.leaving.retain(|n, l| !forget(n, l));
                }
                let to = self.settled_spare(&record, access);
                Ok(self.write(c, v, to)?.then_some(Ok(())))
            }
        }
    }

    fn saw_eviction(&mut self, n: N) {
        self.cov.hit(if self.nodes[n].up {
            "eviction: of a node that lives"
        } else {
            "eviction: of a dead node"
        });
    }

    /// A refusal must name a true reason: somebody else who holds it, or an access that is not gone.
    fn refusal_is_true(&self, s: &AccessState, e: &Event, r: &Refusal) -> Checked {
        let Event::Attach { node, .. } = e else {
            return Err(Violation(format!("{e:?} was refused: {r}")));
        };
        let ok = match r {
            Refusal::InUse { holders } => {
                !holders.is_empty()
                    && !holders.contains(node)
                    && holders.iter().all(|h| s.holders().contains(h))
            }
            Refusal::OtherMode { node: n } => n == node && s.holders().contains(n),
            Refusal::StillLeaving { node: n } => {
                n == node && (s.leaving.contains_key(n) || !s.holders().contains(n))
            }
        };
        if ok { Ok(()) } else { Err(Violation(format!("untrue refusal of {node}: {r}; {s:?}"))) }
    }

    /// What a controller takes for confirmed; the broken ones take more.
    fn believed(&self, ctl: &Controller, v: V, record: &Record) -> Confirmations {
        let mut c = ctl.confirmed.get(&v).cloned().unwrap_or_default();
        let late = Epoch::new(u64::MAX);
        let mut claim = |n: &NodeName, place| c.note(n, place, late, Some(Gone::Fenced));
        match self.cfg.mutation {
            Mutation::GrantWithoutFence => {
                for (n, l) in &record.vol.access.leaving {
                    l.places().for_each(|p| claim(n, p));
                }
            }
            Mutation::CommitBeforeLenders => {
                if let Access::CuttingOver { source, .. } = &record.vol.access.access {
                    record.map.disks().into_iter().for_each(|d| claim(source, Place::Export(d)));
                }
            }
            Mutation::OldConfirmationsCount => {
                for n in &self.names {
                    for p in record.map.disks().into_iter().map(Place::Export).chain([Place::Device]) {
                        if let Some(g) = ctl.confirmed.get(&v).and_then(|k| k.gone(n, p, Epoch::ZERO)) {
                            c.note(n, p, late, Some(g));
                        }
                    }
                }
            }
            _ => {}
        }
        c
    }

    /// Whether terms on records stand in for a store that knows who is active.
    pub(crate) fn adopts(&self) -> bool {
        !self.store.fenced && !self.broken(Mutation::RecordsNotAdopted)
    }

    /// Puts the term of `c` on the records that it has only read so far.
    pub(crate) fn adopt(&mut self, c: u64) -> Checked {
        let Some(ctl) = self.controllers.get(&c) else { return Ok(()) };
        let others = ctl.records.iter().filter(|(v, r)| r.record.term < c && !ctl.pending.contains_key(v));
        let all: Vec<V> = others.map(|(v, _)| *v).collect();
        for v in all {
            let Some(r) = self.controllers.get(&c).and_then(|x| x.records.get(&v)) else { continue };
            let record = r.record.clone();
            if self.write(c, v, record)? {
                self.cov.hit("controller: adopted a record");
            }
        }
        Ok(())
    }

    /// What a node said reaches a controller: in the order of a session, or late and by itself (`None`).
    pub(crate) fn hear(&mut self, c: u64, n: N, session: Option<u64>, said: &[Seen]) -> Checked {
        let now = self.now;
        let any = self.broken(Mutation::OldWordsOnMirrors);
        for s in said {
            if self.rng.one_in(400) && self.active() == Some(c) && self.chaotic {
                self.cov.hit("fault: controller crashed within a message");
                self.end_controller(c);
            }
            let Some(ctl) = self.controllers.get_mut(&c) else { return Ok(()) };
            ctl.heard[n] = now;
            match s {
                Seen::Attachment { v, epoch, state, busy, mirror } => {
                    if any || (session.is_some() && ctl.present.get(&n).copied() == session) {
                        let at = ctl.mirrors.entry((*v, n)).or_insert((*epoch, *mirror));
                        if !any || at.1 != Mirror::Whole || *epoch > at.0 {
                            *at = (*epoch, *mirror);
                        }
                    }
                    let gone = match state {
                        AttachmentSeen::Absent => Some(Gone::Absent),
                        AttachmentSeen::Fenced => Some(Gone::Fenced),
                        AttachmentSeen::Guarded { .. } | AttachmentSeen::Open => None,
                    };
                    let node = name_of(n);
                    ctl.confirmed.entry(*v).or_default().note(&node, Place::Device, *epoch, gone);
                    if *state == (AttachmentSeen::Guarded { held: true }) {
                        self.event(c, *v, &Event::HeldWrite { node: node.clone(), epoch: *epoch })?;
                    }
                    if *busy {
                        self.event(c, *v, &Event::SourceBusy { node, epoch: *epoch })?;
                    }
                    self.event(c, *v, &Event::Review)?;
                }
                Seen::Export { v, disk, consumer, epoch, state } => {
                    let gone = match state {
                        ExportSeen::Absent => Some(Gone::Absent),
                        ExportSeen::Fenced => Some(Gone::Fenced),
                        ExportSeen::Serving => None,
                    };
                    if *state == ExportSeen::Serving {
                        let e = ctl.serving.entry((*v, *disk, *consumer)).or_insert(*epoch);
                        *e = (*e).max(*epoch);
                    }
                    let place = Place::Export(disk_id(*disk));
                    ctl.confirmed.entry(*v).or_default().note(&name_of(*consumer), place, *epoch, gone);
                    self.event(c, *v, &Event::Review)?;
                }
                Seen::Wiped { v, wipe } => {
                    ctl.wiped.insert(*wipe);
                    self.wiped(c, *v)?;
                }
                // What is on record as given up is nobody else's: only a word that comes late can be of such a wipe.
                Seen::WipeRefused { wipe } => {
                    let waits = |r: &Versioned| r.record.vol.retired.iter().any(|x| x.wipe == *wipe);
                    if self.store.records.values().any(waits) {
                        return Err(Violation(format!("wipe {wipe} is on record and node {n} refuses it")));
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn wiped(&mut self, c: u64, v: V) -> Checked {
        if !self.wiped_once(c, v)? && !self.store.fenced {
            self.wiped_once(c, v)?;
        }
        Ok(())
    }

    /// The record of `v`, if `c` may change it now.
    pub(crate) fn own(&self, c: u64, v: V) -> Option<&Versioned> {
        let ctl = self.controllers.get(&c)?;
        let r = ctl.records.get(&v).filter(|_| !ctl.pending.contains_key(&v))?;
        (!self.adopts() || r.record.term <= c).then_some(r)
    }

    fn wiped_once(&mut self, c: u64, v: V) -> Checked<bool> {
        let Some(r) = self.own(c, v) else { return Ok(true) };
        let Some(ctl) = self.controllers.get(&c) else { return Ok(true) };
        let version = r.version;
        let mut to = VolumeRecord::clone(&r.record.vol);
        to.retired.retain(|x| !ctl.wiped.contains(&x.wipe));
        if to.retired.len() == r.record.vol.retired.len() {
            return Ok(true);
        }
        if to.is_spent() { self.remove(c, v, version) } else { self.write(c, v, Record::new(to)) }
    }

    fn remove(&mut self, c: u64, v: V, version: u64) -> Checked<bool> {
        let done = self.store.swap(c, v, Some(version), None).is_some();
        if done {
            self.cov.hit("volume: deleted, its extents are free");
            self.say(|| format!("c{c} v{v} is gone"));
            let went = self.oracle.freed(v)?;
            went.into_iter().try_for_each(|p| self.nobody_writes(p))?;
        }
        let now = self.store.records.get(&v).cloned();
        if let Some(ctl) = self.controllers.get_mut(&c) {
            match now.filter(|_| !self.store.fenced) {
                Some(r) => ctl.records.insert(v, r),
                None if done || !self.store.fenced => ctl.records.remove(&v),
                None => None,
            };
        }
        Ok(done)
    }

    /// Deletes a volume if it is idle: the record says so first, wipes follow from it.
    pub(crate) fn delete(&mut self, c: u64, v: V) -> Checked {
        let Some(r) = self.own(c, v) else { return Ok(()) };
        let (version, to) = (r.version, r.record.vol.clone());
        let rash = self.broken(Mutation::DeleteUnderADevice) && to.access.access == Access::Detached;
        if r.record.is_deleting() || !(to.access.is_idle() || rash) {
            return Ok(());
        }
        if self.broken(Mutation::FreeBeforeWipe) {
            return self.remove(c, v, version).map(|_| ());
        }
        if to.moving.is_some() {
            self.cov.hit("volume: deleted while a move had not ended");
        }
        let to = VolumeRecord { lifecycle: Lifecycle::Deleting, ..to.retire_all(|| self.draw()) };
        self.say(|| format!("c{c} v{v} is to be deleted"));
        self.write(c, v, Record::new(to)).map(|_| ())
    }

    /// A number for a wipe.
    pub(crate) fn draw(&mut self) -> u64 {
        self.wipes += 1;
        self.wipes
    }

    /// The goals for node `n` that have not been said on its session.
    pub(crate) fn unsaid(&mut self, c: u64, n: N) -> Checked<Option<Goals>> {
        if self.adopts() {
            self.adopt(c)?;
        }
        let adopts = self.adopts();
        let Some(ctl) = self.controllers.get(&c) else { return Ok(None) };
        let mut news: Vec<(V, Vec<Goal>)> = vec![];
        let rash = self.broken(Mutation::GoalsWhileSwitching);
        for (v, r) in &ctl.records {
            // While the record that switches is being written, nobody is told to start a mirror.
            if (adopts && r.record.term != c) || (ctl.pending.contains_key(v) && !rash) {
                continue;
            }
            let goals = self.plan(ctl, *v, &r.record, n)?;
            if ctl.sent.get(&(n, *v)).map_or(&[][..], |g| g) != goals {
                news.push((*v, goals));
            }
        }
        if news.is_empty() {
            return Ok(None);
        }
        let mut all = vec![];
        let Some(ctl) = self.controllers.get_mut(&c) else { return Ok(None) };
        for (v, goals) in news {
            all.extend(goals.iter().cloned());
            ctl.sent.insert((n, v), goals);
        }
        Ok(Some(Goals { term: Term::new(c), goals: all }))
    }

    fn plan(&self, ctl: &Controller, v: V, record: &Record, n: N) -> Checked<Vec<Goal>> {
        let mut out = vec![];
        let disks = self.hosts(record.vol.disks());
        let now = self.now;
        let patient = |x: &NodeName| {
            ctl.alive(number_of(x), now)
                && ctl.left.get(&(v, x.clone())).is_none_or(|t| now.saturating_sub(*t) < PATIENCE)
        };
        let confirmed = self.believed(ctl, v, record);
        let view = View {
            access: &record.vol.access,
            map: &record.map,
            retired: &record.vol.retired,
            disks: &disks,
            confirmed: &confirmed,
            patient: &patient,
        };
        let mut goals = plan_goals(&view);
        if self.broken(Mutation::OwnDiskTooEarly) {
            tell_holders(&record.vol.access, &mut goals.attachments);
        }
        let mut told = std::collections::BTreeSet::new();
        for g in &goals.attachments {
            if !told.insert(&g.node) {
                return Err(Violation(format!("two goals for {} of volume {v}: {goals:?}", g.node)));
            }
        }
        let mut told = std::collections::BTreeSet::new();
        for g in &goals.exports {
            if !told.insert((g.disk, &g.consumer)) {
                return Err(Violation(format!("two goals for a slice of volume {v}: {goals:?}")));
            }
        }
        // Exports first: a host that is also a consumer is told of both in one message.
        for g in goals.exports.iter().filter(|g| g.host == self.names[n]) {
            out.push(Goal::Export {
                v,
                disk: disk_number(g.disk),
                consumer: number_of(&g.consumer),
                epoch: g.epoch,
                state: g.state,
                map: record.map.clone(),
            });
        }
        for g in goals.attachments.iter().filter(|g| g.node == self.names[n]) {
            let start = self.spare_is_served(ctl, v, record, n);
            out.push(Goal::Attachment { v, epoch: g.epoch, role: g.role, map: record.map.clone(), start });
        }
        for r in record.vol.retired.iter().filter(|r| self.host_of[disk_number(r.disk)] == n) {
            let extents = r.runs().flat_map(|r| extents_of(&r)).map(|p| p.1).collect();
            let epoch = r.epoch;
            out.push(Goal::Wipe { v, wipe: r.wipe, disk: disk_number(r.disk), extents, epoch });
        }
        if self.broken(Mutation::WipeBeforeEnd)
            && let Some((s, p)) = record.map.spare().filter(|(_, p)| !p.filling)
            && self.host_of[disk_number(p.place.disk)] == n
        {
            let first = p.place.first.get() as usize;
            let extents = (first..first + s.count.get() as usize).collect();
            let wipe = u64::MAX - record.vol.access.epoch.get();
            let epoch = record.vol.access.epoch;
            out.push(Goal::Wipe { v, wipe, disk: disk_number(p.place.disk), extents, epoch });
        }
        Ok(out)
    }

    /// Whether consumer `n` can get at the spare that it is to fill: its host has said so since the move began.
    fn spare_is_served(&self, ctl: &Controller, v: V, record: &Record, n: N) -> bool {
        let (Some((_, p)), Some(m)) = (record.map.spare(), &record.vol.moving) else { return false };
        let disk = disk_number(p.place.disk);
        p.filling
            && (self.host_of[disk] == n || ctl.serving.get(&(v, disk, n)).is_some_and(|e| *e >= m.since))
    }

    /// Notes since when somebody is leaving, for the controller's patience.
    pub(crate) fn note_leavers(&mut self, c: u64) {
        let now = self.now;
        let Some(ctl) = self.controllers.get_mut(&c) else { return };
        for (v, r) in &ctl.records {
            let s = &r.record.vol.access;
            let giving_up = match &s.access {
                Access::CuttingOver { source, source_left: true, .. } => Some(source),
                Access::CuttingOver { source_left: false, .. }
                | Access::Detached
                | Access::Granting { .. }
                | Access::Attached { .. }
                | Access::Guarded { .. } => None,
            };
            for n in s.leaving.keys().chain(giving_up) {
                ctl.left.entry((*v, n.clone())).or_insert(now);
            }
        }
        ctl.left.retain(|(v, n), _| {
            ctl.records.get(v).is_some_and(|r| {
                let s = &r.record.vol.access;
                s.leaving.contains_key(n)
                    || matches!(&s.access, Access::CuttingOver { source, source_left: true, .. } if source == n)
            })
        });
    }

    /// Puts a new volume on record, on extents that no record owns.
    pub(crate) fn create(&mut self, c: u64, map: Map, sharing: Sharing) -> Checked {
        self.next_volume += 1;
        let v = self.next_volume;
        self.say(|| format!("c{c} v{v} {sharing:?} on {:?}", places(&map)));
        let vol = VolumeRecord {
            id: VolumeId::from_u128(u128::from(v)),
            name: String::new(),
            pool: "p".parse().expect("is a pool's name"),
            extent_size: ExtentSize::DEFAULT,
            params: VolumeParams { sharing, ..VolumeParams::default() },
            claim: ClaimRef::default(),
            map,
            access: AccessState::default(),
            lifecycle: Lifecycle::Active,
            moving: None,
            retired: vec![],
            history: vec![],
            explanation: None,
        };
        self.write(c, v, Record::new(vol)).map(|_| ())
    }

    pub(crate) fn attach(&mut self, c: u64, v: V, n: N, mode: Mode) -> Checked<Option<Result<(), Refusal>>> {
        self.event(c, v, &Event::Attach { node: name_of(n), mode })
    }

    pub(crate) fn detach(&mut self, c: u64, v: V, n: N) -> Checked<Option<Result<(), Refusal>>> {
        self.event(c, v, &Event::Detach { node: name_of(n) })
    }
}

/// Breaks the rule that a consumer opens nothing on its own disks before strangers are fenced there.
fn tell_holders(s: &AccessState, told: &mut Vec<AttachmentGoal>) {
    let Access::Attached { holders } = &s.access else { return };
    for (n, m) in holders {
        if told.iter().all(|g| g.node != *n) {
            let role = if m.read_only { Role::Reader } else { Role::Writer };
            told.push(AttachmentGoal { node: n.clone(), epoch: s.epoch, role });
        }
    }
}
