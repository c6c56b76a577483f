//! The controller killed right before and right after every record it writes, and started again: whoever asked asks
//! again, everything converges, nothing leaks (which [`super::tidy`] checks after each case).

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use tonic::Status;

use super::{
    Case, Run,
    basic::too_large_for_one,
    check_pattern,
    migrate::{BLOCK, read_block, write_block},
    verifier::{lender, third, wait_alive, wait_held, wait_nobody_leaves},
    write_pattern,
};
use crate::{
    cluster::{
        Cluster, PATIENCE, Spec,
        clients::{NewVolume, Use},
    },
    lab::Link,
    proto::Exit,
    wait,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "crash/claim",
        about: "the controller dies while it takes a new node and its disks in",
        run: Run::Alone(claim),
    },
    Case {
        name: "crash/volume",
        about: "the controller dies while a volume is made, attached, grown, detached, deleted and wiped",
        run: Run::On(volume),
    },
    Case {
        name: "crash/migrate",
        about: "the controller dies at each step of a live migration",
        run: Run::On(migrate),
    },
    Case {
        name: "crash/abort",
        about: "the controller dies while a migration is given up",
        run: Run::On(abort),
    },
    Case {
        name: "crash/source-leaves",
        about: "the controller dies as the source of a cut-over that waits for a lender gives up",
        run: Run::On(source_leaves),
    },
    Case {
        name: "crash/evict",
        about: "the controller dies while a dead node's volume is fenced and given to another",
        run: Run::On(evict),
    },
];

/// Calls `act`, as an orchestrator does, until it succeeds, while the controller dies at each of `points` in turn and
/// is started again; each is passed before and after its write. At last the controller runs as before.
pub(super) fn die_at<T: Send>(
    c: &Cluster,
    points: &[&str],
    act: impl Fn() -> Result<T, Status> + Sync,
) -> Result<T> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut last = None;
            wait::until("the call to succeed", 3 * PATIENCE, || {
                if over.load(Ordering::SeqCst) {
                    bail!("given up; last answer: {last:?}");
                }
                act().map(Some).or_else(|e| {
                    last = Some(e);
                    Ok(None)
                })
            })
        });
        let died = kill_at_each(c, points).and_then(|()| c.start_controller(None));
        if died.is_err() {
            over.store(true, Ordering::SeqCst);
        }
        let done = caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        died.and(done).with_context(|| c.logs())
    })
}

fn kill_at_each(c: &Cluster, points: &[&str]) -> Result<()> {
    for point in points.iter().flat_map(|p| [format!("{p}.before"), format!("{p}.after")]) {
        c.kill_controller()?;
        c.start_controller(Some(&point))?;
        wait::until(&format!("the controller to die at {point}"), PATIENCE, || {
            Ok(c.controller_ended()?.then_some(()))
        })?;
        println!("   died at {point}");
    }
    c.kill_controller()
}

fn claim() -> Result<()> {
    // Disks are claimed once: this needs a cluster of its own.
    let c = Cluster::boot(Spec { nodes: 1, disk_size: 256 << 20, ..Spec::default() })?;
    c.start_plugin(1, None)?;
    die_at(&c, &["node", "claim", "disk", "fresh"], || Ok(()))?;
    c.wait_for_disks()?;
    let new = NewVolume {
        name: "claimed",
        bytes: 64 << 20,
        usage: Use::Block,
        beside: Some("n1"),
        parameters: &[],
    };
    let id = c.csi().create(&new)?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    write_pattern(c.node(1), &dev, 32, 71)?;
    check_pattern(c.node(1), &dev, 32, 71)?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    super::tidy(&c)
}

fn volume(c: &Cluster) -> Result<()> {
    let bytes = too_large_for_one(c);
    let new = NewVolume { name: "crash", bytes, usage: Use::Block, beside: Some("n1"), parameters: &[] };
    let id = die_at(c, &["create"], || c.csi().create(&new))?;
    let again = c.csi().create(&new)?;
    ensure!(id == again, "the same request made {id} and then {again}");
    let csi = c.node_csi(1)?;
    die_at(c, &["attach"], || csi.stage(&id, Use::Block))?;
    let dev = csi.publish(&id, Use::Block)?;
    write_pattern(c.node(1), &dev, 32, 72)?;
    let grown = die_at(c, &["expand"], || c.csi().expand(&id, bytes + (128 << 20)))?;
    ensure!(grown == bytes + (128 << 20), "grown to {grown}");
    csi.expand(&id, grown, Use::Block)?;
    let size: u64 = c.node(1).run_ok(&format!("blockdev --getsize64 {dev}"))?.trim().parse()?;
    ensure!(size == grown, "the device has {size} bytes, {grown} were promised");
    check_pattern(c.node(1), &dev, 32, 72)?;
    csi.unpublish(&id)?;
    die_at(c, &["detach", "left"], || csi.unstage(&id))?;
    // Wiping goes on after the answer: the later points are passed by then or soon after.
    die_at(c, &["delete", "retire", "wiped", "erase"], || c.csi().delete(&id))
}

/// A migration from n1 in phase Guarded, and its target.
fn guarded(c: &Cluster, name: &str, points: &[&str]) -> Result<(String, u8, String, String)> {
    let new = NewVolume {
        name,
        bytes: too_large_for_one(c),
        usage: Use::SharedBlock,
        beside: Some("n1"),
        parameters: &[],
    };
    let id = c.csi().create(&new)?;
    let target = third(1, lender(c, &id, 1)?);
    let source = c.node_csi(1)?.attach(&id, Use::SharedBlock)?;
    write_pattern(c.node(1), &source, 16, 73)?;
    let csi = c.node_csi(target)?;
    die_at(c, points, || csi.stage(&id, Use::SharedBlock))?;
    let target_dev = csi.publish(&id, Use::SharedBlock)?;
    wait_held(c, &id, "Guarded", &[1, target])?;
    Ok((id, target, source, target_dev))
}

fn migrate(c: &Cluster) -> Result<()> {
    let (id, target, source, target_dev) = guarded(c, "crash-migrate", &["guard"])?;
    let script = write_block(&target_dev, BLOCK, "by the target");
    let write = c.node(target).spawn("crash-migrate", &format!("sh -c \"{script}\""))?;
    die_at(c, &["cutover", "commit"], || Ok(()))?;
    let exit = wait::until("the held write to end", PATIENCE, || c.node(target).ended(&write))?;
    ensure!(exit == Exit::Code(0), "the held write failed: {exit:?}");
    wait_held(c, &id, "Attached", &[target])?;
    ensure!(read_block(c, target, &target_dev, BLOCK)? == "by the target", "the held write is lost");
    ensure!(!c.node(1).exec(&write_block(&source, BLOCK, "too late"))?.ok(), "the source can still write");
    check_pattern(c.node(target), &target_dev, 16, 73)?;
    for n in [1, target] {
        c.node_csi(n)?.detach(&id)?;
    }
    c.csi().delete(&id)?;
    Ok(())
}

fn abort(c: &Cluster) -> Result<()> {
    let (id, target, source, _) = guarded(c, "crash-abort", &[])?;
    let csi = c.node_csi(target)?;
    csi.unpublish(&id)?;
    die_at(c, &["abort"], || csi.unstage(&id))?;
    wait_held(c, &id, "Attached", &[1])?;
    c.node(1).run_ok(&write_block(&source, BLOCK, "goes on"))?;
    check_pattern(c.node(1), &source, 16, 73)?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn source_leaves(c: &Cluster) -> Result<()> {
    let (id, target, _, target_dev) = guarded(c, "crash-leave", &[])?;
    let lender = lender(c, &id, 1)?;
    c.node(lender).cut(Link::Control)?;
    wait_alive(c, lender, false)?;
    let script = write_block(&target_dev, BLOCK, "by the target");
    let write = c.node(target).spawn("crash-leave", &format!("sh -c \"{script}\""))?;
    wait_held(c, &id, "CuttingOver", &[1, target])?;
    let csi = c.node_csi(1)?;
    csi.unpublish(&id)?;
    die_at(c, &["cutover-left"], || csi.unstage(&id))?;
    let ended = c.node(target).ended(&write)?;
    ensure!(ended.is_none(), "the write ended before the lender had fenced the source: {ended:?}");
    c.node(lender).heal(Link::Control)?;
    let exit = wait::until("the held write to end", PATIENCE, || c.node(target).ended(&write))?;
    ensure!(exit == Exit::Code(0), "the held write failed: {exit:?}");
    wait_held(c, &id, "Attached", &[target])?;
    check_pattern(c.node(target), &target_dev, 16, 73)?;
    c.node_csi(target)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn evict(c: &Cluster) -> Result<()> {
    let new = NewVolume {
        name: "crash-evict",
        bytes: 128 << 20,
        usage: Use::Block,
        beside: Some("n2"),
        parameters: &[],
    };
    let id = c.csi().create(&new)?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    write_pattern(c.node(1), &dev, 16, 74)?;
    c.node(1).cut(Link::Both)?;
    let csi = c.node_csi(3)?;
    die_at(c, &["evict", "grant"], || csi.stage(&id, Use::Block))?;
    let new_dev = csi.publish(&id, Use::Block)?;
    check_pattern(c.node(3), &new_dev, 16, 74)?;
    write_pattern(c.node(3), &new_dev, 16, 75)?;
    let late = c.node(1).spawn("late-write", &format!("sh -c \"{}\"", write_block(&dev, 0, "late")))?;
    c.node(1).heal(Link::Both)?;
    let exit = wait::until("the evicted node's write to end", PATIENCE, || c.node(1).ended(&late))?;
    ensure!(exit != Exit::Code(0), "the evicted node wrote");
    wait_nobody_leaves(c, &id)?;
    check_pattern(c.node(3), &new_dev, 16, 75).context("after the evicted node is back")?;
    c.node_csi(1)?.detach(&id)?;
    csi.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}
