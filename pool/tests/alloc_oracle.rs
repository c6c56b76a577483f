//! Random lives of random small pools, each step held against the oracle: no extent owned twice, none lost, every
//! plan within the rules, every refusal true.

mod alloc_common;
#[path = "alloc_common/model.rs"]
mod model;

use std::collections::BTreeSet;

use alloc_common::{disk, e, name};
use model::{Cell, Model, ModelDisk, rows_of};
use pool::{
    alloc::{Offer, Plan, Pool, Refusal, Request, TopologyTerm},
    disk::{Disk, DiskState, Domain, Health, LastSeen, NODE_KEY},
    ids::{NodeName, VolumeId},
    layout::{Layout, Locality},
    units::Sectors,
    volume::{Map, Run},
};
use proptest::prelude::*;

const NODES: [&str; 6] = ["n0", "n1", "n2", "n3", "n4", "diskless"];

#[derive(Clone, Debug)]
struct Wish {
    layout: u8,
    size: u64,
    slack: Option<u64>,
    home: Option<usize>,
    locality: u8,
    lenders: u32,
    zone: Option<u8>,
    block: Option<bool>,
    required: Vec<usize>,
    seed: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Create(Wish),
    Grow(usize, Wish),
    Delete(usize),
    Wipe(usize),
    State(usize, u8),
    Reserve(usize, u64),
    Zone(usize, u8),
    Offer(usize, Option<(u64, u32)>),
}

fn wish() -> impl Strategy<Value = Wish> {
    let required = prop_oneof![4 => Just(vec![]), 1 => proptest::collection::vec(0..6usize, 1..3)];
    (
        (0..7u8, 1..26u64, proptest::option::weighted(0.2, 0..4u64)),
        (proptest::option::weighted(0.7, 0..6usize), 0..4u8, 0..5u32),
        (proptest::option::weighted(0.2, 0..3u8), proptest::option::weighted(0.1, any::<bool>())),
        (required, any::<u64>()),
    )
        .prop_map(
            |((layout, size, slack), (home, locality, lenders), (zone, block), (required, seed))| Wish {
                layout,
                size,
                slack,
                home,
                locality,
                lenders,
                zone,
                block,
                required,
                seed,
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => wish().prop_map(Op::Create),
        5 => (any::<usize>(), wish()).prop_map(|(v, w)| Op::Grow(v, w)),
        3 => any::<usize>().prop_map(Op::Delete),
        2 => any::<usize>().prop_map(Op::Wipe),
        2 => (any::<usize>(), 0..8u8).prop_map(|(d, s)| Op::State(d, s)),
        1 => (any::<usize>(), 0..5u64).prop_map(|(d, r)| Op::Reserve(d, r)),
        1 => (any::<usize>(), 0..3u8).prop_map(|(d, z)| Op::Zone(d, z)),
        1 => (any::<usize>(), proptest::option::of((0..9u64, 0..1001u32))).prop_map(|(d, o)| Op::Offer(d, o)),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let one = (0..5usize, 1..10u64, 0..5u8, 0..3u64, proptest::collection::vec(any::<bool>(), 10), 0..4u8);
    (proptest::collection::vec(one, 1..9), proptest::array::uniform5(0..3u8)).prop_map(|(disks, zones)| {
        let mut m = Model::default();
        for (i, (node, size, block, reserve, dirty, dirt)) in disks.into_iter().enumerate() {
            let d = Disk {
                logical_block: if block == 0 { 512 } else { 4096 },
                reserve: e(if reserve == 2 { 2 } else { 0 }),
                domain: zone(zones[node]),
                ..disk(i as u128 + 1, NODES[node], size)
            };
            let cell = |d: &bool| if *d && dirt == 0 { Cell::Aside } else { Cell::Free };
            let cells = dirty.iter().take(size as usize).map(cell).collect();
            m.disks.insert(d.id, ModelDisk { disk: d, cells, offer: None });
        }
        m
    })
}

fn zone(z: u8) -> Domain {
    if z == 0 { Domain::default() } else { Domain::zone_named(&format!("z{z}")) }
}

fn request(w: &Wish) -> Request {
    let striped = |stripes| Layout::Striped { stripes, chunk: Sectors::new(128) };
    let home = w.home.map(|h| name(NODES[h]));
    let mut r = alloc_common::request(w.size);
    r.layout = match w.layout {
        0..=2 => Layout::Linear,
        3 => striped(2),
        4 => striped(3),
        5 => striped(4),
        _ => Layout::WholeDisk,
    };
    r.locality = match w.locality {
        0 => Locality::Require,
        1 => Locality::None,
        _ => Locality::Prefer,
    };
    r.limit = w.slack.map(|s| e(w.size + s));
    r.max_lenders = w.lenders;
    r.domains = w.zone.map(|z| zone(z).labels().clone()).into_iter().collect();
    r.logical_block = w.block.map(|b| if b { 512 } else { 4096 });
    let term = |n: &usize| TopologyTerm::from([(NODE_KEY.to_owned(), NODES[*n].to_owned())]);
    if home.is_none() && r.locality == Locality::Require {
        r.topology.required = w.required.iter().map(term).collect();
    }
    r.home = home;
    r.seed = w.seed;
    r
}

/// The oracle's homes, the required topology minded.
fn open_homes(m: &Model, r: &Request) -> Vec<NodeName> {
    let required = |n: &NodeName| {
        r.topology.required.is_empty()
            || r.topology.required.iter().any(|t| t.get(NODE_KEY).is_some_and(|v| v == n.as_str()))
    };
    m.nodes().into_iter().filter(required).collect()
}

fn possible(m: &Model, r: &Request, size: u64, lenders: usize) -> bool {
    if r.locality == Locality::Require && r.home.is_none() {
        return open_homes(m, r).into_iter().any(|h| {
            let at = Request { home: Some(h), topology: Default::default(), ..r.clone() };
            m.possible(&at, size, 0)
        });
    }
    m.possible(r, size, lenders)
}

fn new_size(r: &Request) -> u64 {
    let size = r.size.get() - r.existing.extents().get();
    match r.layout {
        Layout::Striped { stripes, .. } => size.next_multiple_of(u64::from(stripes)),
        Layout::Linear | Layout::WholeDisk | Layout::Mirrored { .. } => size,
    }
}

fn over_limit(r: &Request) -> bool {
    let size = new_size(r) + r.existing.extents().get();
    r.layout != Layout::WholeDisk && r.limit.is_some_and(|l| e(size) > l)
}

/// Holds a plan against the rules.
fn check_plan(m: &Model, r: &Request, p: &Plan) -> Result<(), TestCaseError> {
    prop_assert_eq!(p.map.check(), Ok(()));
    let size = new_size(r);
    let added: u64 = p.added.iter().map(|x| x.count.get()).sum();
    prop_assert_eq!(added + r.existing.extents().get(), p.extents.get());
    prop_assert_eq!(p.extents, p.map.extents());
    prop_assert!(!over_limit(r) && r.limit.is_none_or(|l| p.extents <= l));
    match r.layout {
        Layout::WholeDisk => {
            prop_assert_eq!(p.added.len(), 1);
            prop_assert!(added >= size);
            prop_assert_eq!(p.added[0].count, m.disks[&p.added[0].disk].disk.extents);
        }
        _ => prop_assert_eq!(added, size),
    }
    // Appended, and exactly what is said to be added.
    let (old, new) = (rows_of(&r.existing), rows_of(&p.map));
    prop_assert_eq!(&new[..old.len()], &old[..]);
    let mut cells: Vec<_> = new[old.len()..].iter().flat_map(|r| r.1.clone()).collect();
    let one = |x: &Run| (x.first.get()..x.end().get()).map(|i| (x.disk, e(i))).collect::<Vec<_>>();
    let mut said: Vec<_> = p.added.iter().flat_map(one).collect();
    cells.sort_unstable();
    said.sort_unstable();
    prop_assert_eq!(&cells, &said);
    prop_assert!(said.windows(2).all(|w| w[0] != w[1]), "an extent twice");
    // Where it lies.
    let home = p.home.as_ref();
    if r.home.is_some() && r.locality != Locality::None {
        prop_assert_eq!(home, r.home.as_ref());
    }
    let block: BTreeSet<u32> = p.map.disks().iter().map(|d| m.disks[d].disk.logical_block).collect();
    prop_assert_eq!(block, BTreeSet::from([p.logical_block]));
    prop_assert!(r.logical_block.is_none_or(|b| b == p.logical_block));
    let mut nodes = m.used_nodes(&p.map);
    nodes.retain(|n| home != Some(n));
    prop_assert_eq!(nodes.iter().cloned().collect::<Vec<_>>(), p.lenders.clone());
    let mut before = m.used_nodes(&r.existing);
    before.retain(|n| home != Some(n));
    prop_assert!(nodes.len() <= before.len().max(r.max_lenders as usize), "too many lenders");
    for d in p.added.iter().map(|x| x.disk).collect::<BTreeSet<_>>() {
        let taken = said.iter().filter(|c| c.0 == d).count() as u64;
        let disk = &m.disks[&d];
        let at_home = home == Some(&disk.disk.node);
        prop_assert!(taken <= disk.room(at_home), "more than there is room for");
        prop_assert!(at_home || r.locality != Locality::Require, "not local");
        prop_assert!(
            r.domains.is_empty()
                || r.domains
                    .iter()
                    .any(|t| t.iter().all(|(k, v)| disk.disk.domain.labels().get(k) == Some(v)))
        );
    }
    for c in &said {
        prop_assert_eq!(m.disks[&c.0].cells[c.1.get() as usize], Cell::Free);
    }
    preferences(m, r, p, added)
}

/// What the policy prefers, where the rules leave a choice.
fn preferences(m: &Model, r: &Request, p: &Plan, added: u64) -> Result<(), TestCaseError> {
    let home = p.home.as_ref();
    let block = BTreeSet::from([p.logical_block]);
    let node = |x: &Run| m.disks[&x.disk].disk.node.clone();
    match r.layout {
        Layout::Linear => {
            let own: u64 = m.rooms(r, &block, home, &BTreeSet::new()).iter().map(|(_, r)| r).sum();
            let local: u64 = p.added.iter().filter(|x| home == Some(&node(x))).map(|x| x.count.get()).sum();
            prop_assert_eq!(local, own.min(added), "not local first");
            let zoneless = m.disks.values().all(|d| d.disk.domain.zone().is_none());
            if zoneless && let Some(fewer) = p.lenders.len().checked_sub(1) {
                let mut before = m.used_nodes(&r.existing);
                before.retain(|n| home != Some(n));
                let at = Request { home: home.cloned(), ..r.clone() };
                prop_assert!(
                    fewer < before.len() || !m.possible_in(&at, added, &block, fewer),
                    "fewer lenders suffice"
                );
            }
            for w in p.map.0.windows(2) {
                let (a, b) = (&w[0], &w[1]);
                prop_assert!(
                    a.legs[0].disk != b.legs[0].disk || a.legs[0].first.plus(a.count) != b.legs[0].first,
                    "not merged"
                );
            }
        }
        Layout::Striped { stripes, .. } => {
            let k = stripes as usize;
            prop_assert!(p.map.0.iter().all(|s| s.legs.len() == k && s.stripe.is_some()));
            let rows = added / u64::from(stripes);
            let distinct = m.lender_sets(r, home, r.max_lenders as usize).iter().any(|set| {
                let fit = m.rooms(r, &block, home, set).into_iter().filter(|(_, room)| *room >= rows);
                fit.map(|(d, _)| m.disks[&d].disk.node.clone()).collect::<BTreeSet<_>>().len() >= k
            });
            let nodes: BTreeSet<_> = p.added.iter().map(node).collect();
            prop_assert!(!distinct || nodes.len() == k, "stripes share a node without need");
        }
        Layout::WholeDisk | Layout::Mirrored { .. } => {}
    }
    Ok(())
}

/// Holds a refusal against the oracle.
fn check_refusal(m: &Model, r: &Request, refusal: &Refusal) -> Result<(), TestCaseError> {
    let size = new_size(r);
    let all = usize::MAX / 2;
    match refusal {
        Refusal::SizeLimit { .. } => prop_assert!(over_limit(r)),
        Refusal::CannotGrow(_) => {
            prop_assert!(r.layout == Layout::WholeDisk && !r.existing.extents().is_zero());
        }
        other => {
            prop_assert!(!possible(m, r, size, r.max_lenders as usize), "{} and yet it is possible", other)
        }
    }
    match refusal {
        Refusal::TooManyLenders { needed, allowed } => {
            prop_assert_eq!(*allowed, u64::from(r.max_lenders));
            prop_assert!(possible(m, r, size, *needed as usize));
            prop_assert!(!possible(m, r, size, *needed as usize - 1));
        }
        Refusal::NotEnoughSpace(s) => {
            prop_assert_eq!(s.needed.get(), size);
            prop_assert_eq!(s.missing.get() + s.available.get(), size);
            prop_assert!(s.available.is_zero() || possible(m, r, s.available.get(), all));
            prop_assert!(!possible(m, r, s.available.get() + 1, all));
        }
        Refusal::LocalityUnsatisfiable { available, .. } => {
            let r = Request { limit: None, ..r.clone() };
            prop_assert!(available.is_zero() || possible(m, &r, available.get(), 0));
            prop_assert!(!possible(m, &r, available.get() + 1, 0));
        }
        Refusal::BlockSizesMixed { .. } => {
            prop_assert!(!possible(m, r, size, all));
            prop_assert!(m.possible_in(r, size, &m.blocks_for(r), all));
        }
        Refusal::NotEnoughDisks { stripes, usable, .. } => {
            prop_assert!(usable < stripes);
            prop_assert!(!possible(m, r, 1, all));
        }
        Refusal::TopologyUnsatisfiable(_)
        | Refusal::NoFreeDisk { .. }
        | Refusal::SizeLimit { .. }
        | Refusal::CannotGrow(_) => {}
        other => prop_assert!(false, "unexpected refusal: {}", other),
    }
    Ok(())
}

/// The index agrees with the model, cell by cell.
fn check_index(m: &Model, pool: &Pool) -> Result<(), TestCaseError> {
    prop_assert_eq!(pool.check(), Ok(()));
    for (id, d) in &m.disks {
        let usage = pool.usage(*id).expect("a known disk");
        let count = |f: fn(&Cell) -> bool| e(d.cells.iter().filter(|c| f(c)).count() as u64);
        prop_assert_eq!(usage.free, count(|c| *c == Cell::Free));
        prop_assert_eq!(usage.owned, count(|c| matches!(c, Cell::Owned(_))));
        prop_assert_eq!(usage.set_aside, count(|c| *c == Cell::Aside));
        prop_assert_eq!(pool.free_of(*id).expect("a known disk").iter().collect::<Vec<_>>(), d.free_runs());
        for (v, run) in pool.owners(*id) {
            for i in run.first.get()..run.end().get() {
                prop_assert_eq!(d.cells[i as usize], Cell::Owned(v));
            }
        }
    }
    Ok(())
}

struct Life {
    model: Model,
    pool: Pool,
    wishes: Vec<(VolumeId, Wish)>,
    dirty: Vec<Vec<Run>>,
    next: u128,
}

impl Life {
    fn place(&mut self, volume: VolumeId, r: &Request) -> Result<bool, TestCaseError> {
        let answer = self.pool.plan(r);
        prop_assert_eq!(&answer, &self.model.rebuild().plan(r), "not a function of the input");
        match answer {
            Err(refusal) => check_refusal(&self.model, r, &refusal).map(|()| false),
            Ok(plan) => {
                check_plan(&self.model, r, &plan)?;
                prop_assert!(self.pool.apply(volume, &plan).is_ok());
                self.model.set(&plan.added, Cell::Free, Cell::Owned(volume));
                for x in &plan.added {
                    let d = self.model.disks.get_mut(&x.disk).expect("a known disk");
                    if let Some(o) = d.offer.as_mut().filter(|_| plan.home.as_ref() != Some(&d.disk.node)) {
                        o.lendable = o.lendable.saturating_sub(x.count);
                    }
                }
                self.model.volumes.insert(volume, plan.map);
                Ok(true)
            }
        }
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let disks: Vec<_> = self.model.disks.keys().copied().collect();
        match op {
            Op::Create(w) => {
                self.next += 1;
                let v = VolumeId::from_u128(self.next);
                if self.place(v, &request(w))? {
                    self.wishes.push((v, w.clone()));
                }
            }
            Op::Grow(i, w) if !self.wishes.is_empty() => {
                let (v, first) = self.wishes[i % self.wishes.len()].clone();
                let map: Map = self.model.volumes[&v].clone();
                let mut r = request(&Wish { layout: first.layout, required: vec![], ..w.clone() });
                r.logical_block = None;
                r.size = map.extents().plus(e(w.size.div_ceil(3)));
                r.limit = w.slack.map(|s| r.size.plus(e(s)));
                if r.locality == Locality::Require && r.home.is_none() {
                    r.locality = Locality::Prefer;
                }
                r.existing = map;
                self.place(v, &r)?;
            }
            Op::Delete(i) if !self.wishes.is_empty() => {
                let (v, _) = self.wishes.remove(i % self.wishes.len());
                let runs: Vec<Run> = self.model.volumes.remove(&v).expect("alive").runs().collect();
                prop_assert!(self.pool.retire(v, &runs).is_ok());
                self.model.set(&runs, Cell::Owned(v), Cell::Aside);
                self.dirty.push(runs);
            }
            Op::Wipe(i) if !self.dirty.is_empty() => {
                let runs = self.dirty.remove(i % self.dirty.len());
                prop_assert!(self.pool.release_runs(&runs).is_ok());
                self.model.set(&runs, Cell::Aside, Cell::Free);
            }
            Op::Grow(..) | Op::Delete(_) | Op::Wipe(_) => {}
            Op::State(i, s) => self.update(disks[i % disks.len()], |d| {
                d.state = match s {
                    0 => DiskState::Draining,
                    1 => DiskState::Missing { was: LastSeen::Serving },
                    _ => DiskState::Serving,
                };
                d.health = if *s == 2 { Health::Suspect } else { Health::Good };
            })?,
            Op::Reserve(i, n) => self.update(disks[i % disks.len()], |d| d.reserve = e(*n))?,
            Op::Zone(i, z) => self.update(disks[i % disks.len()], |d| d.domain = zone(*z))?,
            Op::Offer(i, o) => {
                let id = disks[i % disks.len()];
                let offer = o.map(|(n, score)| Offer { lendable: e(n), score });
                prop_assert!(self.pool.set_offer(id, offer).is_ok());
                self.model.disks.get_mut(&id).expect("a known disk").offer = offer;
            }
        }
        check_index(&self.model, &self.pool)
    }

    fn update(&mut self, id: pool::ids::DiskId, f: impl FnOnce(&mut Disk)) -> Result<(), TestCaseError> {
        let mut d = self.model.disks[&id].disk.clone();
        f(&mut d);
        prop_assert!(self.pool.update_disk(d.clone()).is_ok());
        for o in self.model.disks.values_mut().filter(|o| o.disk.node == d.node) {
            o.disk.domain = d.domain.clone();
        }
        self.model.disks.get_mut(&id).expect("a known disk").disk = d;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_keep_the_rules(model in model(), ops in proptest::collection::vec(op(), 1..24)) {
        let pool = model.rebuild();
        let whole = pool.clone();
        let mut life = Life { model, pool, wishes: vec![], dirty: vec![], next: 0 };
        check_index(&life.model, &life.pool)?;
        for op in &ops {
            life.step(op)?;
        }
        // Everything given back is what there was.
        for (v, map) in std::mem::take(&mut life.model.volumes) {
            let runs: Vec<Run> = map.runs().collect();
            prop_assert!(life.pool.retire(v, &runs).is_ok());
            life.dirty.push(runs);
        }
        for runs in &life.dirty {
            prop_assert!(life.pool.release_runs(runs).is_ok());
        }
        for d in whole.disks() {
            prop_assert_eq!(whole.free_of(d.id), life.pool.free_of(d.id));
        }
        prop_assert_eq!(life.pool.check(), Ok(()));
    }

    #[test]
    fn capacity_is_what_a_plan_accepts(model in model(), wish in wish(), ops in proptest::collection::vec(op(), 0..6)) {
        let pool = model.rebuild();
        let mut life = Life { model, pool, wishes: vec![], dirty: vec![], next: 0 };
        for op in &ops {
            life.step(op)?;
        }
        let mut r = request(&wish);
        r.limit = None;
        let Ok(c) = life.pool.capacity(&r) else {
            return Ok(());
        };
        r.size = c.maximum_volume;
        if !c.maximum_volume.is_zero() {
            let plan = life.pool.plan(&r);
            prop_assert!(plan.is_ok(), "{:?}", plan);
            prop_assert!(c.available >= c.maximum_volume);
        }
        r.size = r.size.plus(e(1));
        prop_assert!(life.pool.plan(&r).is_err());
    }
}
