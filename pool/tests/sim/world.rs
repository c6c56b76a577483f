//! The world: nodes, controllers, sessions, VMs, and the choice of what happens next. Everything follows from the
//! seed; one step is one thing that happens somewhere.

use std::collections::{BTreeMap, VecDeque};

use pool::{
    access::Sharing,
    ids::NodeName,
    units::Extents,
    volume::{Leg, Map, Segment},
};

use crate::{
    controller::{Controller, Store},
    data::Vm,
    node::{Kernel, Node, Object, Plugin, Slice},
    oracle::Oracle,
    rng::Rng,
    types::{
        Checked, Coverage, D, DISK_EXTENTS, Goals, Mutation, N, Seen, V, disk_id, disk_number, extents_of,
        name_of, places,
    },
};

/// How a run is set up.
#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) mutation: Mutation,
    pub(crate) trace: bool,
}

/// A session between a node and a controller.
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) controller: u64,
    to_node: VecDeque<Goals>,
    to_controller: VecDeque<Vec<Seen>>,
}

/// A message of a session that has ended, or a second copy: it may still arrive. Neither end's process has died.
enum Late {
    ToNode { node: N, incarnation: u64, goals: Goals },
    ToController { controller: u64, node: N, said: Vec<Seen> },
}

pub(crate) struct World {
    pub(crate) cfg: Config,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    pub(crate) cov: Coverage,
    pub(crate) names: Vec<NodeName>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) host_of: Vec<N>,
    pub(crate) oracle: Oracle,
    pub(crate) store: Store,
    pub(crate) controllers: BTreeMap<u64, Controller>,
    pub(crate) sessions: Vec<Option<Session>>,
    late: Vec<Late>,
    /// Faults still happen.
    pub(crate) chaotic: bool,
    /// How often faults come, against all else: some worlds are calm enough for long stories.
    faults: u32,
    /// Access changes seldom, and much is written: some worlds are for moves.
    pub(crate) moves: bool,
    /// The disk from which each volume was moved last.
    pub(crate) left: BTreeMap<V, D>,
    pub(crate) vms: BTreeMap<(V, N), Vm>,
    pub(crate) next_volume: V,
    pub(crate) seq: u64,
    pub(crate) ios: u64,
    pub(crate) wipes: u64,
    session_ids: u64,
}

impl World {
    pub(crate) fn new(cfg: Config) -> Self {
        let mut rng = Rng::new(cfg.seed);
        let nodes = 3 + rng.below(3);
        // Every second world has a node without disks.
        let bare = rng.one_in(2);
        let mut host_of = vec![];
        for n in 0..nodes {
            let disks = if bare && n == 0 { 0 } else { 1 + rng.below(2) };
            host_of.extend(std::iter::repeat_n(n, disks));
        }
        let mut w = Self {
            cfg,
            rng,
            now: 0,
            cov: Coverage::default(),
            names: (0..nodes).map(name_of).collect(),
            nodes: (0..nodes).map(|_| Node::new()).collect(),
            oracle: Oracle::new(host_of.len()),
            host_of,
            store: Store {
                fenced: cfg.seed.is_multiple_of(2) && cfg.mutation != Mutation::RecordsNotAdopted,
                ..Store::default()
            },
            chaotic: true,
            controllers: BTreeMap::new(),
            sessions: (0..nodes).map(|_| None).collect(),
            late: vec![],
            moves: cfg.seed % 5 < 2,
            left: BTreeMap::new(),
            faults: [1, 4, 12, 30][cfg.seed as usize % 4],
            vms: BTreeMap::new(),
            next_volume: 0,
            seq: 0,
            ios: 0,
            wipes: 0,
            session_ids: 0,
        };
        w.elect();
        w
    }

    pub(crate) fn broken(&self, m: Mutation) -> bool {
        self.cfg.mutation == m
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.cfg.trace {
            println!("{:5} {}", self.now, what());
        }
    }

    /// The controller that may record, if it lives.
    pub(crate) fn active(&self) -> Option<u64> {
        self.controllers.contains_key(&self.store.term).then_some(self.store.term)
    }

    pub(crate) fn any_controller(&mut self) -> Option<u64> {
        let all: Vec<u64> = self.controllers.keys().copied().collect();
        if self.rng.one_in(4) { self.rng.pick(&all) } else { self.active().or(all.last().copied()) }
    }

    /// Runs the faulty part.
    pub(crate) fn chaos(&mut self) -> Checked {
        for _ in 0..1 + self.rng.below(3) {
            self.new_volume()?;
        }
        for _ in 0..self.cfg.steps {
            self.step()?;
            self.check_writers()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Checked {
        self.now += 1;
        self.heartbeats();
        let n = self.rng.below(self.nodes.len());
        let f = self.faults;
        let weights = if self.moves {
            [400, 180, 180, 220, 60, 200, 400, 360, 240, 90, 70, f, 60, 20, 10, 1, 70, 50, 4, 6]
        } else {
            [360, 140, 140, 180, 80, 160, 160, 180, 120, 60, 200, f, 50, 20, 10, 4, 80, 60, 8, 12]
        };
        match self.rng.weighted(&weights) {
            0 => self.some_plugin_step(n),
            1 => self.deliver_to_node(n),
            2 => self.deliver_to_controller(n),
            3 => {
                self.report(n);
                Ok(())
            }
            4 => self.some_review(),
            5 => self.some_send(n),
            6 => self.some_write(),
            7 => self.some_transport(n),
            8 => self.some_completion(n),
            9 => {
                self.dial(n);
                Ok(())
            }
            10 => self.orchestrate(),
            11 => {
                self.fault(n);
                Ok(())
            }
            12 => {
                self.heal(n);
                Ok(())
            }
            13 => self.arrive_late(),
            14 => {
                self.duplicate(n);
                Ok(())
            }
            16 => self.some_move(),
            17 => self.some_copy(n),
            18 => self.land_some_write(),
            19 => {
                self.learn_some_outcome();
                Ok(())
            }
            _ => self.come_and_go(),
        }
    }

    pub(crate) fn heartbeats(&mut self) {
        for n in 0..self.nodes.len() {
            if let Some(s) = &self.sessions[n]
                && (self.now + n as u64).is_multiple_of(8)
                && let Some(c) = self.controllers.get_mut(&s.controller)
            {
                c.heard[n] = self.now;
            }
        }
    }

    fn some_plugin_step(&mut self, n: N) -> Checked {
        let Some(p) = &self.nodes[n].plugin else { return Ok(()) };
        let tops = self.moves && self.rng.one_in(2);
        let wanted = |o: &Object| !tops || matches!(o, Object::Attachment(_));
        let objects: Vec<Object> = p.goals.keys().copied().filter(wanted).collect();
        let Some(o) = self.rng.pick(&objects) else { return Ok(()) };
        if self.plugin_step(n, o)? {
            self.say(|| format!("n{n} step {o:?}, sees {:?}", self.see(n, o)));
            let wiped = self.moves && matches!(o, Object::Wipe(_));
            if wiped && self.rng.one_in(3) {
                self.restart_over_a_wipe(n)?;
            } else if self.rng.one_in(40) {
                self.cov.hit("fault: plugin crashed after a kernel step");
                self.crash_plugin(n);
            }
        }
        Ok(())
    }

    pub(crate) fn deliver_to_node(&mut self, n: N) -> Checked {
        if let Some(m) = self.sessions[n].as_mut().and_then(|s| s.to_node.pop_front()) {
            self.take_goals(n, m);
        }
        Ok(())
    }

    pub(crate) fn deliver_to_controller(&mut self, n: N) -> Checked {
        if let Some(s) = &mut self.sessions[n]
            && let Some(said) = s.to_controller.pop_front()
        {
            let (c, id) = (s.controller, s.id);
            self.hear(c, n, Some(id), &said)?;
        }
        Ok(())
    }

    /// The plugin says what has changed since it last did.
    pub(crate) fn report(&mut self, n: N) {
        let Some(p) = &self.nodes[n].plugin else { return };
        let news: Vec<(Object, Seen)> = p
            .goals
            .keys()
            .filter_map(|o| self.see(n, *o).map(|s| (*o, s)))
            .filter(|(o, s)| p.reported.get(o) != Some(s))
            .collect();
        let (Some(s), Some(p)) = (&mut self.sessions[n], &mut self.nodes[n].plugin) else { return };
        if !news.is_empty() {
            s.to_controller.push_back(news.iter().map(|(_, s)| s.clone()).collect());
            p.reported.extend(news);
        }
    }

    fn some_review(&mut self) -> Checked {
        let Some(c) = self.any_controller() else { return Ok(()) };
        self.note_leavers(c);
        let all: Vec<V> = self.controllers[&c].records.keys().copied().collect();
        if let Some(v) = self.rng.pick(&all) {
            self.event(c, v, &pool::access::Event::Review)?;
            self.wiped(c, v)?;
        }
        Ok(())
    }

    fn some_copy(&mut self, n: N) -> Checked {
        let all: Vec<V> = self.nodes[n].kernel.mirrors.keys().copied().collect();
        match self.rng.pick(&all) {
            Some(v) => self.copy_step(n, v),
            None => Ok(()),
        }
    }

    pub(crate) fn some_send(&mut self, n: N) -> Checked {
        let Some(c) = self.sessions[n].as_ref().map(|s| s.controller) else { return Ok(()) };
        if let Some(goals) = self.unsaid(c, n)? {
            self.say(|| format!("c{c} tells n{n} {goals:?}"));
            if let Some(s) = &mut self.sessions[n] {
                s.to_node.push_back(goals);
            }
        }
        Ok(())
    }

    fn some_write(&mut self) -> Checked {
        let vms: Vec<(V, N)> = self.vms.iter().filter(|(_, vm)| vm.active).map(|(k, _)| *k).collect();
        match self.rng.pick(&vms) {
            Some((v, n)) if self.rng.one_in(4) => self.vm_reads(v, n),
            Some((v, n)) => self.vm_writes(v, n),
            None => Ok(()),
        }
    }

    fn some_transport(&mut self, n: N) -> Checked {
        let all = self.queued(n);
        match self.rng.pick(&all) {
            Some((v, i)) => self.transport(n, v, i),
            None => Ok(()),
        }
    }

    pub(crate) fn queued(&self, n: N) -> Vec<(V, usize)> {
        let queues = &self.nodes[n].kernel.queues;
        queues.iter().flat_map(|(v, q)| (0..q.len()).map(|i| (*v, i))).collect()
    }

    pub(crate) fn in_flight(&self, n: N) -> Vec<(V, D, N)> {
        let slices = &self.nodes[n].kernel.slices;
        slices.iter().filter(|(_, s)| !s.fenced && !s.inflight.is_empty()).map(|(k, _)| *k).collect()
    }

    pub(crate) fn some_completion(&mut self, n: N) -> Checked {
        let all = self.in_flight(n);
        match self.rng.pick(&all) {
            Some(key) => {
                let w = self.slice(n, key).inflight.remove(0);
                self.complete(w)
            }
            None => Ok(()),
        }
    }

    /// The node's plugin opens a session with some controller. A second one replaces the first.
    pub(crate) fn dial(&mut self, n: N) {
        if self.nodes[n].control_cut || self.nodes[n].plugin.is_none() {
            return;
        }
        if self.sessions[n].is_some() && !self.rng.one_in(10) {
            return;
        }
        let all: Vec<u64> = self.controllers.keys().copied().collect();
        let Some(mut c) = self.rng.pick(&all) else { return };
        if self.moves && !self.rng.one_in(4) {
            c = self.active().unwrap_or(c);
        }
        if self.nodes[n].term.get() > c && !self.broken(Mutation::NodeIgnoresTerms) {
            self.cov.hit("node: session with a deposed controller refused");
            return;
        }
        self.hang_up(n);
        let node = &mut self.nodes[n];
        node.term = node.term.max(pool::ids::Term::new(c));
        if let Some(p) = &mut node.plugin {
            p.reported.clear();
        }
        let now = self.now;
        self.session_ids += 1;
        let id = self.session_ids;
        let remembers = self.broken(Mutation::OldWordsOnMirrors);
        if let Some(ctl) = self.controllers.get_mut(&c) {
            ctl.meet(n, id, remembers);
            ctl.heard[n] = now;
        }
        let session = Session { id, controller: c, to_node: VecDeque::new(), to_controller: VecDeque::new() };
        self.sessions[n] = Some(session);
    }

    /// A session ends: what was under way is lost or late.
    pub(crate) fn hang_up(&mut self, n: N) {
        let Some(s) = self.sessions[n].take() else { return };
        let incarnation = self.nodes[n].incarnation;
        let late_ones = !self.cfg.seed.is_multiple_of(3);
        for goals in s.to_node {
            if late_ones && self.rng.one_in(2) {
                self.late.push(Late::ToNode { node: n, incarnation, goals });
            }
        }
        for said in s.to_controller {
            if late_ones && self.rng.one_in(2) {
                self.late.push(Late::ToController { controller: s.controller, node: n, said });
            }
        }
    }

    pub(crate) fn arrive_late(&mut self) -> Checked {
        if self.late.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.late.len());
        match self.late.swap_remove(i) {
            Late::ToNode { node, incarnation, goals } => {
                if self.nodes[node].incarnation == incarnation && self.nodes[node].plugin.is_some() {
                    self.cov.hit("session: late goals");
                    self.say(|| format!("late at n{node}: {goals:?}"));
                    self.take_goals(node, goals);
                }
                Ok(())
            }
            Late::ToController { controller, node, said } => {
                if self.controllers.contains_key(&controller) {
                    self.cov.hit("session: late observations");
                    self.say(|| format!("late at c{controller}: n{node} {said:?}"));
                    self.hear(controller, node, None, &said)?;
                }
                Ok(())
            }
        }
    }

    fn duplicate(&mut self, n: N) {
        let incarnation = self.nodes[n].incarnation;
        let Some(s) = &self.sessions[n] else { return };
        if let Some(goals) = s.to_node.front().cloned() {
            self.late.push(Late::ToNode { node: n, incarnation, goals });
        }
        if let Some(said) = s.to_controller.front().cloned() {
            self.late.push(Late::ToController { controller: s.controller, node: n, said });
        }
    }

    // ------------------------------------------------------------ faults

    fn fault(&mut self, n: N) {
        let n = if self.rng.one_in(2) { self.some_mover().unwrap_or(n) } else { n };
        if !self.store.flights.is_empty()
            && self.rng.one_in(3)
            && let Some(c) = self.active()
        {
            self.cov.hit("fault: controller crashed while a switch was being written");
            self.end_controller(c);
            return;
        }
        self.say(|| format!("fault at n{n}"));
        if self.rng.one_in(2)
            && let Some(n) = self.some_whole()
        {
            self.cov.hit("fault: node down whose mirror is whole");
            self.power_off(n);
            self.power_on(n);
            return;
        }
        match self.rng.below(9) {
            0 | 1 => self.crash_plugin(n),
            2 => self.power_off(n),
            3 => {
                self.power_off(n);
                self.power_on(n);
            }
            4 => {
                self.cov.hit("fault: control link cut");
                self.nodes[n].control_cut = true;
                self.hang_up(n);
            }
            5 => {
                self.cov.hit("fault: storage link cut");
                self.nodes[n].storage_cut = true;
            }
            6 => {
                self.cov.hit("fault: both links cut");
                self.nodes[n].control_cut = true;
                self.nodes[n].storage_cut = true;
                self.hang_up(n);
            }
            7 => {
                if let Some(c) = self.active() {
                    self.cov.hit("fault: controller crashed");
                    self.end_controller(c);
                }
            }
            _ => {
                if self.controllers.len() < 3 {
                    self.cov.hit("fault: controller deposed and goes on");
                    self.elect();
                }
            }
        }
    }

    pub(crate) fn heal(&mut self, n: N) {
        self.nodes[n].control_cut = false;
        self.nodes[n].storage_cut = false;
        if !self.nodes[n].up {
            self.power_on(n);
        } else if self.nodes[n].plugin.is_none() {
            self.nodes[n].incarnation += 1;
            let busy = if self.moves { self.rng.below(800) as u64 } else { 0 };
            self.nodes[n].plugin = Some(Plugin { wipes_from: self.now + busy, ..Plugin::default() });
        }
        if self.active().is_none() {
            self.elect();
        }
        let deposed = self.controllers.keys().next().copied().filter(|c| *c != self.store.term);
        if let Some(c) = deposed.filter(|_| self.rng.one_in(30)) {
            self.end_controller(c);
        }
    }

    pub(crate) fn end_controller(&mut self, c: u64) {
        for n in 0..self.nodes.len() {
            if self.sessions[n].as_ref().is_some_and(|s| s.controller == c) {
                self.hang_up(n);
            }
        }
        self.controllers.remove(&c);
        self.say(|| format!("controller {c} is gone"));
    }

    pub(crate) fn crash_plugin(&mut self, n: N) {
        self.cov.hit("fault: plugin crashed");
        self.hang_up(n);
        self.nodes[n].plugin = None;
        self.nodes[n].incarnation += 1;
    }

    /// The plugin ends with its word on a wipe under way, comes back, and is told of the wipe again before the word is
    /// there. Then the volume may get the extents back.
    fn restart_over_a_wipe(&mut self, n: N) -> Checked {
        self.cov.hit("fault: plugin crashed with its word on a wipe under way");
        self.report(n);
        self.crash_plugin(n);
        self.heal(n);
        self.dial(n);
        self.some_send(n)?;
        self.deliver_to_node(n)?;
        for _ in 0..3 {
            self.arrive_late()?;
        }
        let gone: Vec<V> =
            self.left.iter().filter(|(_, d)| self.host_of[**d] == n).map(|(v, _)| *v).collect();
        for v in gone {
            if let Some(c) = self.active()
                && self.store.records.get(&v).is_some_and(|r| r.record.vol.retired.is_empty())
                && self.begin_some_move(c, v)?
            {
                self.cov.hit("move: begun after a wipe whose node has forgotten it");
            }
        }
        Ok(())
    }

    fn power_off(&mut self, n: N) {
        self.cov.hit("fault: node down");
        self.say(|| format!("n{n} is down"));
        self.hang_up(n);
        let node = &mut self.nodes[n];
        node.up = false;
        node.plugin = None;
        node.incarnation += 1;
        node.kernel = Kernel { lost: (0..self.names.len()).collect(), ..Kernel::default() };
        if self.cfg.mutation == Mutation::NodeExportsAtBoot {
            node.kernel.slices = node
                .served
                .iter()
                .map(|(k, t)| (*k, Slice { table: t.clone(), ..Slice::default() }))
                .collect();
        }
        self.vms.retain(|(_, x), _| *x != n);
    }

    fn power_on(&mut self, n: N) {
        self.say(|| format!("n{n} is up"));
        self.nodes[n].up = true;
        self.nodes[n].plugin = Some(Plugin::default());
    }

    // ------------------------------------------------------------ volumes

    /// Makes a volume of two to eight extents anywhere on free ones.
    pub(crate) fn new_volume(&mut self) -> Checked {
        let Some(c) = self.active() else { return Ok(()) };
        if !self.may_allocate(c)? {
            return Ok(());
        }
        let mine = self.controllers[&c].records.values();
        let runs = mine.flat_map(|r| r.record.vol.runs().collect::<Vec<_>>());
        let owned: Vec<(D, usize)> = runs.flat_map(|r| extents_of(&r)).collect();
        let mut map = Map::default();
        for _ in 0..2 + self.rng.below(3) {
            let d = self.rng.below(self.host_of.len());
            let free: Vec<usize> = (0..DISK_EXTENTS)
                .filter(|e| !owned.contains(&(d, *e)) && !places(&map).contains(&(d, *e)))
                .collect();
            let Some(e) = free.first() else { continue };
            let count = if free.contains(&(e + 1)) { 1 + self.rng.below(2) as u64 } else { 1 };
            map.push(Segment {
                start: map.extents(),
                count: Extents::new(count),
                legs: vec![Leg { disk: disk_id(d), first: Extents::new(*e as u64) }],
                stripe: None,
                spare: None,
            });
        }
        if map.0.is_empty() {
            return Ok(());
        }
        let reused =
            map.disks().into_iter().any(|d| self.nodes.iter().any(|n| n.was_wiped.contains(&disk_number(d))));
        if reused {
            self.cov.hit("volume: made on a disk with wiped extents");
        }
        let sharing = if self.rng.one_in(6) { Sharing::MultiWriter } else { Sharing::Migrate };
        self.create(c, map, sharing)
    }

    fn come_and_go(&mut self) -> Checked {
        if self.store.records.len() < 3 && self.rng.one_in(2) {
            return self.new_volume();
        }
        let Some(c) = self.any_controller() else { return Ok(()) };
        let all: Vec<V> = self.controllers[&c].records.keys().copied().collect();
        match self.rng.pick(&all) {
            Some(v) => self.delete(c, v),
            None => Ok(()),
        }
    }
}
