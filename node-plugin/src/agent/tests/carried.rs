//! Disks that are carried from one node to another under a volume in use, and mirrors that stand on them.

use kernel::dm::Table;
use pool::volume::Spare;

use super::*;

#[test]
fn what_a_leg_queues_goes_on_when_its_disk_has_come_here() {
    for cut in 0.. {
        let k = kernel_with_import(8);
        let (leg, slice) = (DmRole::Leg(V, REMOTE), names::slice_id(V, REMOTE, &me()));
        {
            let life = Life::start(&k);
            life.attach(goal(V, 1, Role::Writer, 8));
            life.until(V, 1, Standing::Open);
        }
        {
            let mut w = k.lock();
            w.devices.get_mut(&leg).unwrap().path_failed = true;
            w.fabric.imports.get_mut(&slice).unwrap().live = false;
            w.log.clear();
            w.left = Some(cut);
        }
        let here = AttachmentGoal { remotes: BTreeMap::new(), ..goal(V, 2, Role::Writer, 8) };
        let first = Life::start(&k);
        first.attach(here.clone());
        let alone = || roles(&k) == [DmRole::Top(V)];
        first.wait("the cut", || k.lock().left == Some(0) || alone());
        let whole = k.lock().left != Some(0);
        drop(first);
        k.lock().left = None;
        let second = Life::start(&k);
        second.attach(here);
        second.wait("the top alone", alone);
        second.until(V, 2, Standing::Open);
        assert_eq!(top_kinds(&k), ["linear", "linear"]);
        let log = k.lock().log.clone();
        assert!(!log.iter().any(|l| l.starts_with("fail queued")), "cut after {cut}: {log:?}");
        let at = |what: &str| log.iter().position(|l| *l == what);
        let (near, leg) = (DmRole::Near(V, REMOTE).dm_name(), leg.dm_name());
        assert!(at(&format!("set {near}")) < at(&format!("set {leg}")), "{log:?}");
        assert!(
            at(&format!("label {REMOTE}")).is_some_and(|l| Some(l) < at(&format!("set {near}"))),
            "{log:?}"
        );
        if whole {
            return;
        }
    }
}

/// A writer of a volume on two disks, of which these are another node's.
fn on_two(epoch: u64, remotes: &[DiskId]) -> AttachmentGoal {
    let mut g = goal(V, epoch, Role::Writer, 8);
    let far = g.remotes[&REMOTE].clone();
    g.remotes = remotes.iter().map(|d| (*d, far.clone())).collect();
    if let Some(m) = &mut g.map {
        m.map.0[0].legs[0].disk = OTHER;
    }
    g
}

fn kernel_with_two_imports() -> Arc<Fake> {
    let k = kernel_with_import(8);
    k.import(names::slice_id(V, OTHER, &me()), ExtentSize::DEFAULT.sectors_of(Extents::new(8)));
    k
}

#[test]
fn a_label_that_does_not_answer_holds_up_no_other_leg() {
    let k = kernel_with_two_imports();
    let life = Life::start(&k);
    life.attach(on_two(1, &[REMOTE, OTHER]));
    life.until(V, 1, Standing::Open);
    life.hang.send_replace(Some(OTHER));
    k.lock().devices.get_mut(&DmRole::Leg(V, OTHER)).unwrap().path_failed = true;
    k.lock().log.clear();
    life.attach(on_two(2, &[REMOTE]));
    let says = |what: String| k.lock().log.contains(&what);
    k.lock().devices.get_mut(&DmRole::Leg(V, REMOTE)).unwrap().path_failed = true;
    life.agent().lock().attachments[&V].handle.poke();
    life.wait("the other leg", || says(format!("reinstate {}", DmRole::Leg(V, REMOTE).dm_name())));
    assert!(!says(format!("label {OTHER}")) && !says(format!("set {}", DmRole::Near(V, OTHER).dm_name())));
    life.hang.send_replace(None);
    life.wait("what is remote alone", || roles(&k) == [DmRole::Top(V), DmRole::Leg(V, REMOTE)]);
    life.until(V, 2, Standing::Open);
}

/// The pass over the top is inside of the kernel all the while, and writes no label.
#[test]
fn a_disk_that_comes_while_the_top_waits_for_its_leg_is_taken_up() {
    let k = kernel_with_two_imports();
    let life = Life::start(&k);
    life.attach(on_two(1, &[REMOTE, OTHER]));
    life.until(V, 1, Standing::Open);
    k.lock().fabric.imports.values_mut().for_each(|m| m.live = false);
    k.notify();
    let away = |d| life.agent().ctx.imports.import(V, d).is_some_and(|m| !m.live);
    life.wait("the view", || [REMOTE, OTHER].into_iter().all(away));
    {
        let mut w = k.lock();
        for d in [REMOTE, OTHER] {
            w.devices.get_mut(&DmRole::Leg(V, d)).unwrap().path_failed = true;
        }
        w.log.clear();
    }
    life.attach(on_two(2, &[OTHER]));
    let near = |d| k.lock().devices.contains_key(&DmRole::Near(V, d));
    life.wait("the first one's leg to go on", || near(REMOTE));
    life.attach(on_two(3, &[]));
    life.disks.send_modify(|n| *n += 1);
    life.wait("the top alone", || roles(&k) == [DmRole::Top(V)]);
    life.until(V, 3, Standing::Open);
    let log = k.lock().log.clone();
    assert!(!log.iter().any(|l| l.starts_with("fail queued") || l.starts_with("reinstate")), "{log:?}");
    let at = |what: String| log.iter().position(|l| *l == what);
    let label = at(format!("label {OTHER}"));
    assert!(label.is_some() && label < at(format!("set {}", DmRole::Near(V, OTHER).dm_name())), "{log:?}");
}

/// A writer of a volume all on [`REMOTE`], of which a piece has a spare on [`OTHER`]; these disks are another node's.
fn moving(epoch: u64, remotes: &[DiskId], filling: bool) -> AttachmentGoal {
    let mut g = on_two(epoch, remotes);
    if let Some(m) = &mut g.map {
        m.map.0[0].legs[0] = Leg { disk: REMOTE, first: Extents::new(20) };
        let place = Leg { disk: OTHER, first: Extents::new(9) };
        m.map.0[1].spare = Some(Spare { leg: 0, place, filling });
    }
    g
}

/// The table of the mirror's device.
fn mirror(k: &Fake) -> Option<Table> {
    k.lock().devices.get(&DmRole::Mirror(V))?.found.as_ref()?.table.clone()
}

fn copies(k: &Fake) -> bool {
    mirror(k).is_some_and(|t| matches!(t.lines()[0].target, Target::Mirror { .. }))
}

/// A leg's path fails, and its lender is away.
fn cut_off(k: &Fake, disk: DiskId) {
    let mut w = k.lock();
    w.fabric.imports.get_mut(&names::slice_id(V, disk, &me())).unwrap().live = false;
    w.devices.get_mut(&DmRole::Leg(V, disk)).unwrap().path_failed = true;
    drop(w);
    k.notify();
}

/// The controller may be switching to the spare: the mirror stays on the leg, and the top too, whose swap would wait for what the
/// mirror may come to hold.
#[test]
fn a_mirror_outlives_that_what_it_copies_comes_here() {
    for cut in 0.. {
        let k = kernel_with_two_imports();
        {
            let life = Life::start(&k);
            life.attach(moving(1, &[REMOTE, OTHER], true));
            life.until(V, 1, Standing::Open);
            life.wait("the mirror", || copies(&k));
            let before = mirror(&k);
            cut_off(&k, REMOTE);
            k.lock().log.clear();
            life.attach(moving(2, &[OTHER], true));
            life.wait("the leg to go on", || !k.lock().devices[&DmRole::Leg(V, REMOTE)].path_failed);
            life.until(V, 2, Standing::Open);
            assert_eq!(mirror(&k), before);
            let log = k.lock().log.clone();
            assert!(!log.contains(&format!("set {}", DmRole::Top(V).dm_name())), "{log:?}");
            // The disk fails once, and is well again.
            k.lock().devices.get_mut(&DmRole::Leg(V, REMOTE)).unwrap().path_failed = true;
            life.agent().lock().attachments[&V].handle.poke();
            life.wait("the leg to go on again", || !k.lock().devices[&DmRole::Leg(V, REMOTE)].path_failed);
        }
        k.lock().log.clear();
        k.lock().left = Some(cut);
        let first = Life::start(&k);
        first.attach(moving(3, &[OTHER], false));
        let alone = || roles(&k) == [DmRole::Top(V)];
        first.wait("the cut", || k.lock().left == Some(0) || alone());
        let whole = k.lock().left != Some(0);
        drop(first);
        k.lock().left = None;
        let second = Life::start(&k);
        second.attach(moving(3, &[OTHER], false));
        second.wait("the top alone", alone);
        second.until(V, 3, Standing::Open);
        assert_eq!(top_kinds(&k), ["linear", "linear"]);
        let log = k.lock().log.clone();
        let at = |what: DmRole| log.iter().position(|l| *l == format!("set {}", what.dm_name()));
        let replaced = at(DmRole::Mirror(V));
        assert!(replaced.is_some() && replaced < at(DmRole::Top(V)), "{log:?}");
        if whole {
            return;
        }
    }
}

#[test]
fn a_mirror_outlives_that_its_spare_is_not_to_be_found() {
    let k = kernel_with_two_imports();
    let life = Life::start(&k);
    life.attach(moving(1, &[REMOTE], true));
    life.until(V, 1, Standing::Open);
    life.wait("the mirror", || copies(&k));
    let before = mirror(&k);
    life.gone.send_replace(Some(OTHER));
    k.lock().log.clear();
    life.attach(moving(2, &[REMOTE], true));
    life.until(V, 2, Standing::Open);
    assert_eq!(mirror(&k), before);
    life.attach(moving(3, &[REMOTE], false));
    life.wait("the mirror to go", || mirror(&k).is_none());
    life.until(V, 3, Standing::Open);
}

/// What it holds can go on nowhere but where the map has it.
#[test]
fn a_mirror_of_a_disk_that_was_carried_away_gives_way_to_its_leg() {
    let k = kernel_with_two_imports();
    let life = Life::start(&k);
    life.attach(moving(1, &[OTHER], true));
    life.until(V, 1, Standing::Open);
    life.wait("the mirror", || copies(&k));
    k.lock().log.clear();
    life.attach(moving(2, &[REMOTE, OTHER], false));
    life.wait("the leg alone", || roles(&k) == [DmRole::Top(V), DmRole::Leg(V, REMOTE)]);
    life.until(V, 2, Standing::Open);
    let log = k.lock().log.clone();
    let at = |what: DmRole| log.iter().position(|l| *l == format!("set {}", what.dm_name()));
    let replaced = at(DmRole::Mirror(V));
    assert!(replaced.is_some() && replaced < at(DmRole::Top(V)), "{log:?}");
}

/// The volume has come here from another node, and its move goes on at once.
#[test]
fn what_a_guard_holds_goes_through_before_its_volume_is_mirrored() {
    // The new place is on this node: it is there at once.
    let far = [REMOTE];
    for cut in 0.. {
        let k = kernel_with_two_imports();
        {
            let life = Life::start(&k);
            let mut guard = AttachmentGoal { role: Role::Guard, ..moving(1, &far, false) };
            guard.map.as_mut().unwrap().map.0[1].spare = None;
            life.attach(guard);
            life.until(V, 1, Standing::Guarded);
        }
        {
            let mut w = k.lock();
            (w.held, w.left) = (true, Some(cut));
            w.log.clear();
        }
        let first = Life::start(&k);
        first.attach(moving(2, &far, true));
        let behind = |k: &Fake| roles(k).iter().any(|r| matches!(r, DmRole::Map(_) | DmRole::WriteLeg(_)));
        let done = || copies(&k) && !behind(&k);
        first.wait("the cut", || k.lock().left == Some(0) || done());
        let whole = k.lock().left != Some(0);
        drop(first);
        k.lock().left = None;
        let second = Life::start(&k);
        second.attach(moving(2, &far, true));
        second.wait("the mirror alone", done);
        second.until(V, 2, Standing::Open);
        let log = k.lock().log.clone();
        let said: Vec<_> = log.iter().filter(|l| l.starts_with("held")).collect();
        assert_eq!(said, ["held write went through"], "cut after {cut}: {log:?}");
        if whole {
            return;
        }
    }
}

/// The volume grows when its move has been called off. What a mirror with a failed side holds does not wait for the new part.
#[test]
fn a_mirror_goes_though_a_disk_of_the_map_is_away() {
    let all = [REMOTE, OTHER];
    let k = kernel_with_two_imports();
    let life = Life::start(&k);
    life.attach(moving(1, &all, true));
    life.until(V, 1, Standing::Open);
    life.wait("the mirror", || copies(&k));
    life.gone.send_replace(Some(LOCAL));
    let mut grown = moving(2, &all, false);
    let legs = vec![Leg { disk: LOCAL, first: Extents::new(3) }];
    let more = Segment { start: Extents::new(8), count: Extents::new(4), legs, stripe: None, spare: None };
    grown.map.as_mut().unwrap().map.0.push(more);
    life.attach(grown.clone());
    life.wait("the mirror to give way", || mirror(&k).is_some() && !copies(&k));
    assert_eq!(top_kinds(&k), ["linear", "linear"]);
    life.gone.send_replace(None);
    life.disks.send_modify(|n| *n += 1);
    life.wait("the mirror to go", || mirror(&k).is_none());
    life.until(V, 2, Standing::Open);
    assert_eq!(top_kinds(&k), ["linear", "linear"]);
}
