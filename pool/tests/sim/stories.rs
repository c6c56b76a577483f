//! Two stories that chance tells too seldom, each with the rule that it is about and without it: a wipe that comes again
//! when the volume has its extents back, and a goal to serve what has been wiped since.

use pool::{access::Mode, ids::Term};

use crate::{
    STEPS,
    data::Vm,
    node::Object,
    types::{Checked, Goal, Goals, Mutation, N, V, Violation, disk_number, extents_of, places},
    world::{Config, World},
};

/// Seeds that are tried; few worlds have a volume that fits.
const SEEDS: u64 = 60;
const WRITER: Mode = Mode { read_only: false, multi_node: false, upkeep: false };

/// A volume that has moved away from another node than its holder's.
struct Moved {
    v: V,
    holder: N,
    host: N,
    /// What its host was told before the move ended, and the wipe.
    served: Goal,
    wipe: Goal,
}

impl World {
    fn rounds(&mut self, n: usize) -> Checked {
        (0..n).try_for_each(|_| self.round())
    }

    fn write_everywhere(&mut self, v: V, n: N) -> Checked {
        for _ in 0..40 {
            self.vms.entry((v, n)).or_insert_with(|| Vm { active: true, ..Vm::default() });
            self.vm_writes(v, n)?;
            self.round()?;
        }
        Ok(())
    }

    /// Has a volume in use move some of its extents; `None` when this world has nothing that fits.
    fn move_away(&mut self) -> Checked<Option<Moved>> {
        let c = self.store.term;
        self.chaotic = false;
        self.new_volume()?;
        let Some(v) = self.store.records.keys().next().copied().filter(|v| !self.oracle.is_multi(*v)) else {
            return Ok(None);
        };
        let holder = 0;
        self.attach(c, v, holder, WRITER)?;
        self.rounds(10)?;
        self.write_everywhere(v, holder)?;
        if !(0..20).any(|_| self.begin_some_move(c, v).is_ok_and(|begun| begun)) {
            return Ok(None);
        }
        let Some(leg) = self.store.records[&v].record.map.spare().map(|(s, p)| s.legs[p.leg as usize]) else {
            return Ok(None);
        };
        let (disk, host) = (disk_number(leg.disk), self.host_of[disk_number(leg.disk)]);
        if host == holder {
            return Ok(None);
        }
        let mut served = None;
        for _ in 0..60 {
            self.round()?;
            let Some(p) = &self.nodes[host].plugin else { return Ok(None) };
            let moving = self.store.records[&v].record.vol.moving.is_some();
            served = p.goals.get(&Object::Export(v, disk, holder)).filter(|_| moving).cloned().or(served);
            let wipe = p.goals.values().find(|g| matches!(g, Goal::Wipe { .. })).cloned();
            let struck = self.store.records[&v].record.vol.retired.is_empty();
            if let (Some(wipe), Some(served), true) = (wipe, &served, struck) {
                return Ok(Some(Moved { v, holder, host, served: served.clone(), wipe }));
            }
        }
        Err(Violation("a move does not end".into()))
    }

    fn tell(&mut self, n: N, goal: Goal) {
        self.take_goals(n, Goals { term: Term::new(self.store.term), goals: vec![goal] });
    }
}

/// `None`: this world has nothing that fits.
fn a_wipe_comes_again(w: &mut World) -> Checked<Option<()>> {
    let Some(m) = w.move_away()? else { return Ok(None) };
    let Goal::Wipe { disk, ref extents, .. } = m.wipe else { return Ok(None) };
    // It ends before its word arrives; the wipe is given to its next life, and waits there for its turn.
    w.crash_plugin(m.host);
    w.heal(m.host);
    w.rounds(5)?;
    let c = w.store.term;
    for _ in 0..200 {
        let back = places(&w.store.records[&m.v].record.map);
        if extents.iter().any(|e| back.contains(&(disk, *e)))
            && w.store.records[&m.v].record.vol.moving.is_none()
        {
            w.write_everywhere(m.v, m.holder)?;
            w.tell(m.host, m.wipe.clone());
            w.rounds(5)?;
            w.stop_vm(m.v, m.holder);
            w.detach(c, m.v, m.holder)?;
            // Nothing maps them any more.
            w.rounds(40)?;
            return Ok(Some(()));
        }
        w.begin_some_move(c, m.v)?;
        w.round()?;
    }
    Ok(None)
}

fn an_older_goal_stands(w: &mut World) -> Checked<Option<()>> {
    let Some(m) = w.move_away()? else { return Ok(None) };
    let Some(other) = (0..w.nodes.len()).find(|n| *n != m.holder && *n != m.host) else { return Ok(None) };
    let Goal::Export { disk, epoch, state, map, .. } = m.served else { return Ok(None) };
    let Goal::Wipe { ref extents, .. } = m.wipe else { return Ok(None) };
    let maps = |e: &usize| map.runs().flat_map(|r| extents_of(&r)).any(|p| p == (disk, *e));
    if !extents.iter().any(maps) {
        return Ok(None);
    }
    // Somebody who is on the way out had a slice by it; the disk was pulled and has come back.
    w.tell(m.host, Goal::Export { v: m.v, disk, consumer: other, epoch, state, map });
    w.plugin_step(m.host, Object::Export(m.v, disk, other))?;
    Ok(Some(()))
}

type Story = fn(&mut World) -> Checked<Option<()>>;

/// Tells a story in every world that has room for it; with the rule broken, one of them has to end badly.
fn tell(story: Story, rule: Mutation, seen: &str) {
    for mutation in [Mutation::None, rule] {
        let (mut told, mut noticed) = (0, vec![]);
        let mut refused = 0;
        for seed in 0..SEEDS {
            let mut w = World::new(Config { seed, steps: STEPS, mutation, trace: false });
            match story(&mut w) {
                Ok(Some(())) => told += 1,
                Ok(None) => {}
                Err(e) => noticed.push((seed, e.0)),
            }
            refused += w.cov.0.get(seen).copied().unwrap_or_default();
        }
        let first = noticed.first();
        println!("{mutation:?}: told {told} times, refused {refused}, noticed {}: {first:?}", noticed.len());
        if mutation == Mutation::None {
            assert!(noticed.is_empty(), "{noticed:?}");
            assert!(told > 0 && refused > 0, "told {told} times, refused {refused}");
        } else {
            let caught = noticed.iter().filter(|(_, e)| e.starts_with("(3)") || e.starts_with("(4)"));
            assert!(caught.count() > 0, "{mutation:?} is not caught: {noticed:?}");
        }
    }
}

#[test]
fn a_wipe_never_takes_what_has_come_back() {
    let seen = "step: wipe of what has come back refused";
    tell(a_wipe_comes_again, Mutation::NodeWipesWhatCameBack, seen);
}

#[test]
fn nothing_is_served_by_a_goal_older_than_a_wipe() {
    let seen = "step: a goal older than a wipe is not obeyed";
    tell(an_older_goal_stands, Mutation::NodeServesWhatIsWiped, seen);
}
