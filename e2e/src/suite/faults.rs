//! Nodes that die, networks that part, and writes that are held meanwhile. Verified I/O runs through all of it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    Case, Run,
    basic::too_large_for_one,
    check_pattern,
    drain::ask,
    migrate::{BLOCK, read_block, write_block},
    verifier::{
        Verifier, check_slots, hosts, is_alive, lender, refused, retry, slots, third, wait_alive, wait_held,
        wait_nobody_leaves,
    },
    write_pattern,
};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
    },
    lab::{Background, Link, Node},
    proto::Exit,
    wait,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "faults/lender-killed",
        about: "I/O queues while a lender is dead, and goes on when it is back; nothing acknowledged is lost",
        run: Run::On(lender_killed),
    },
    Case {
        name: "faults/consumer-killed",
        about: "a dead consumer's volume goes to another node once its lease is over",
        run: Run::On(consumer_killed),
    },
    Case {
        name: "faults/consumer-killed-with-extents",
        about: "a volume that lies on its dead consumer waits for it, and says so",
        run: Run::On(consumer_killed_with_extents),
    },
    Case {
        name: "faults/node-forgotten",
        about: "a node that never comes back is forgotten; what it held goes on elsewhere; booted anew it takes part again",
        run: Run::On(node_forgotten),
    },
    Case {
        name: "faults/disks-carried",
        about: "a dead node's disks are put into another: taken there with all that lies on them once it is forgotten, and back",
        run: Run::On(disks_carried),
    },
    Case {
        name: "faults/partitioned-control",
        about: "cut off from the controller I/O goes on; another node takes over behind the lenders' fences",
        run: Run::On(|c| taken_over(c, "cut-control", Link::Control)),
    },
    Case {
        name: "faults/partitioned-both",
        about: "cut off from everyone a consumer queues; what it queued never arrives once it is evicted",
        run: Run::On(|c| taken_over(c, "cut-both", Link::Both)),
    },
    Case {
        name: "faults/partitioned-storage",
        about: "cut off from its lenders a consumer queues, stays the holder, and goes on",
        run: Run::On(partitioned_storage),
    },
    Case {
        name: "faults/controller-dies-while-held",
        about: "a held write outlives the controller, and is done by the next one",
        run: Run::On(|c| held_without_controller(c, "held-controller", Duration::ZERO)),
    },
    Case {
        name: "faults/lender-dies-while-held",
        about: "a held write waits for a lender that died, and is done when it is back",
        run: Run::On(lender_dies_while_held),
    },
    Case {
        name: "faults/long-hold",
        about: "a write that is held for long (WEIR_LAB_HOLD seconds, else 75) is done in the end",
        run: Run::On(long_hold),
    },
];

/// What a node may answer while another's access is being taken down.
const NOT_YET: [Code; 4] =
    [Code::FailedPrecondition, Code::Unavailable, Code::DeadlineExceeded, Code::Aborted];

/// Above the lease, so that whoever is silent for so long is dead by then.
const PAST_THE_LEASE: Duration = Duration::from_secs(8);

fn lender_killed(c: &Cluster) -> Result<()> {
    let id = borrowing(c, "lender-killed", Use::Block)?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let lender = lender(c, &id, 1)?;
    let v = Verifier::start(c, 1, "lender-killed", &dev, 11)?;
    c.node(lender).kill()?;
    v.wait_stalled(Duration::from_secs(2))?;
    wait_alive(c, lender, false)?;
    let (abnormal, why) = c.csi().condition(&id)?;
    let name = c.node(lender).name();
    ensure!(abnormal && why.contains(&name), "the volume's condition does not name {name}: {why:?}");
    v.wait_stalled(PAST_THE_LEASE)?;
    c.revive(lender)?;
    v.wait_writes(128)?;
    v.finish()?;
    let (abnormal, why) = c.csi().condition(&id)?;
    ensure!(!abnormal, "the volume's condition is still {why:?}");
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

/// A volume with its home on n1 that is larger than n1.
fn borrowing(c: &Cluster, name: &str, usage: Use) -> Result<String> {
    let bytes = too_large_for_one(c);
    Ok(c.csi().create(&NewVolume { name, bytes, usage, beside: Some("n1"), parameters: &[] })?)
}

/// A volume that lies on n2 alone, for use on other nodes.
fn lent(c: &Cluster, name: &str) -> Result<String> {
    let new = NewVolume { name, bytes: 256 << 20, usage: Use::Block, beside: Some("n2"), parameters: &[] };
    let id = c.csi().create(&new)?;
    ensure!(hosts(c, &id)? == [2], "volume {id} lies on {:?}", hosts(c, &id)?);
    Ok(id)
}

fn consumer_killed(c: &Cluster) -> Result<()> {
    let id = lent(c, "consumer-killed")?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "consumer-killed", &dev, 21)?;
    v.wait_writes(128)?;
    c.node(1).kill()?;
    let early = c.node_csi(3)?.stage(&id, Use::Block);
    // Unless so much time has passed meanwhile that it was given up.
    if is_alive(&c.survey()?, "n1") == Some(true) {
        refused("attaching what a silent node holds", early, Code::FailedPrecondition, &["n1"])?;
    }
    let known = v.last_words()?;
    let csi = c.node_csi(3)?;
    retry("n3 to get the volume", &NOT_YET, || csi.stage(&id, Use::Block))?;
    let dev = csi.publish(&id, Use::Block)?;
    check_slots(&slots(c, 3, &dev)?, &known)?;
    let v = Verifier::start(c, 3, "consumer-next", &dev, 22)?;
    c.revive(1)?;
    wait_nobody_leaves(c, &id)?;
    v.wait_writes(128)?;
    let after = v.finish()?;
    check_slots(&slots(c, 3, &dev)?, &after)?;
    wait_held(c, &id, "Attached", &[3])?;
    csi.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn node_forgotten(c: &Cluster) -> Result<()> {
    // One volume lies elsewhere, of the other a part is lost with the node.
    let id = lent(c, "forgotten-held")?;
    let bytes = too_large_for_one(c) - (256 << 20);
    let lost =
        NewVolume { name: "forgotten-lost", bytes, usage: Use::Block, beside: Some("n3"), parameters: &[] };
    let lost = c.csi().create(&lost)?;
    ensure!(hosts(c, &lost)?.contains(&3), "volume {lost} lies on {:?}", hosts(c, &lost)?);
    let dev = c.node_csi(3)?.attach(&id, Use::Block)?;
    c.node_csi(3)?.attach(&lost, Use::Block)?;
    let v = Verifier::start(c, 3, "forgotten", &dev, 91)?;
    v.wait_writes(128)?;
    says_no(c, &["forget", "n3"], &["n3 is alive", "weir drain n3"])?;
    c.node(3).kill()?;
    let known = v.last_words()?;
    wait_alive(c, 3, false)?;
    says_no(c, &["forget", "n3"], &["node n3 holds parts of a volume", "forgotten-lost"])?;
    c.csi().delete(&lost)?;
    let said = ask(c, &["forget", "n3"])?;
    ensure!(said.contains("node n3 is forgotten"), "weir forget says: {said}");
    c.wait_survey("nothing to be left of n3", |s| {
        let none = |what: &str| s[what].as_array().is_some_and(|all| all.iter().all(|r| r["node"] != "n3"));
        let of_volumes = s["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        let rid = of_volumes.iter().all(|v| v["holders"] == json!([]) && v["leaving"] == json!([]));
        let disks = s["disks"].as_array().map_or(&[][..], Vec::as_slice);
        let clean = disks.iter().all(|d| d["unwiped"].as_u64() == Some(0));
        none("nodes") && none("disks") && of_volumes.len() == 1 && rid && clean
    })?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    check_slots(&slots(c, 1, &dev)?, &known)?;
    let v = Verifier::start(c, 1, "forgotten-next", &dev, 92)?;
    v.wait_writes(128)?;

    c.revive(3)?;
    c.wait_survey("n3 to take part again, its disks left alone", |s| {
        let n3 = s["nodes"].as_array().into_iter().flatten().find(|n| n["node"] == "n3");
        let left_alone = |n: &Value| n["unclaimed"].to_string().contains("not on record");
        n3.is_some_and(|n| n["alive"] == true && left_alone(n))
    })?;
    v.wait_writes(128)?;
    v.finish()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    for disk in 0..c.spec().pool_disks() {
        erase(c.node(3), &c.node(3).disk(disk))?;
    }
    c.wait_for_disks()
}

fn disks_carried(c: &Cluster) -> Result<()> {
    let on_n3 = |name: &str| -> Result<String> {
        let new =
            NewVolume { name, bytes: 128 << 20, usage: Use::Block, beside: Some("n3"), parameters: &[] };
        let id = c.csi().create(&new)?;
        ensure!(hosts(c, &id)? == [3], "volume {id} lies on {:?}", hosts(c, &id)?);
        Ok(id)
    };
    // One is used there, one borrowed by who will have the disks, one by somebody else.
    let (home, lent, far) = (on_n3("carried-home")?, on_n3("carried-lent")?, on_n3("carried-far")?);
    let there = Verifier::start(c, 3, "carried-home", &c.node_csi(3)?.attach(&home, Use::Block)?, 95)?;
    let lent_dev = c.node_csi(1)?.attach(&lent, Use::Block)?;
    let borrower = Verifier::start(c, 1, "carried-lent", &lent_dev, 96)?;
    let third = Verifier::start(c, 2, "carried-far", &c.node_csi(2)?.attach(&far, Use::Block)?, 98)?;
    for v in [&there, &borrower, &third] {
        v.wait_writes(128)?;
    }
    c.node(3).kill()?;
    let known = there.last_words()?;
    wait_alive(c, 3, false)?;
    says_no(
        c,
        &["forget", "n3"],
        &["node n3 holds parts of 3 volumes", "carried-home", "carried-lent", "carried-far"],
    )?;

    carry(c, 3, 1)?;
    borrower.wait_stalled(Duration::from_secs(2))?;
    ask(c, &["forget", "n3"])?;
    c.wait_survey("the disks to serve in n1", |s| {
        in_state(s, "n1", "serving") == 2 * usize::from(c.spec().pool_disks())
    })?;
    borrower.wait_writes(128)?;
    third.wait_writes(128)?;
    let csi = c.node_csi(1)?;
    retry("n1 to get the volume of the lost node", &NOT_YET, || csi.stage(&home, Use::Block))?;
    let dev = csi.publish(&home, Use::Block)?;
    check_slots(&slots(c, 1, &dev)?, &known)?;
    let here = Verifier::start(c, 1, "carried-on", &dev, 97)?;
    here.wait_writes(128)?;
    let known = here.finish()?;
    borrower.finish()?;
    third.finish()?;
    csi.detach(&home)?;
    csi.detach(&lent)?;
    c.node_csi(2)?.detach(&far)?;
    for id in [&lent, &far] {
        c.csi().delete(id)?;
    }
    carry_back(c, 1, 3)?;
    let csi = c.node_csi(3)?;
    let dev = retry("n3 to get its volume", &NOT_YET, || csi.attach(&home, Use::Block))?;
    check_slots(&slots(c, 3, &dev)?, &known)?;
    csi.detach(&home)?;
    c.csi().delete(&home)?;
    c.wait_for_disks()
}

fn rows(s: &Value, what: &str) -> Vec<Value> {
    s[what].as_array().cloned().unwrap_or_default()
}

/// How many disks of a node are in this state.
fn in_state(s: &Value, node: &str, state: &str) -> usize {
    rows(s, "disks").iter().filter(|d| d["node"] == node && d["state"] == state).count()
}

/// Puts the disks of a node that is dead into another one, which says what to do about that.
pub(super) fn carry(c: &Cluster, from: u8, to: u8) -> Result<()> {
    let (disks, former, name) = (c.spec().pool_disks(), c.node(from).name(), c.node(to).name());
    for disk in 0..disks {
        c.node(to).plug(disk, c.node(from), disk)?;
    }
    c.wait_survey(&format!("{name} to say whose disks it has, and what to do"), |s| {
        let node = rows(s, "nodes").into_iter().find(|n| n["node"] == name.as_str()).unwrap_or_default();
        let left_alone = node["unclaimed"].to_string();
        left_alone.matches(&format!("weir forget {former}")).count() == usize::from(disks)
    })
    .map(drop)
}

/// Puts them back, once all that was freed is wiped, and boots the node that they came from.
pub(super) fn carry_back(c: &Cluster, from: u8, to: u8) -> Result<()> {
    c.wait_survey("the space to be wiped", |s| {
        rows(s, "disks").iter().all(|d| d["unwiped"].as_u64() == Some(0))
    })?;
    let (disks, name) = (c.spec().pool_disks(), c.node(to).name());
    for disk in 0..disks {
        c.node(from).unplug(disk)?;
    }
    c.revive(to)?;
    c.wait_survey(&format!("the disks to serve in {name} again"), |s| {
        in_state(s, &name, "serving") == usize::from(disks)
    })
    .map(drop)
}

/// Erases both ends of a disk, where its label stands, as docs/operations.md says; and says so to who listens, as udev would.
fn erase(node: &Node, device: &str) -> Result<()> {
    node.run_ok(&format!(
        "set -e; mib=$(( $(blockdev --getsize64 {device}) / 1048576 )); dd if=/dev/zero of={device} bs=1M count=8 conv=fsync; \
         dd if=/dev/zero of={device} bs=1M count=8 seek=$(( mib - 8 )) conv=fsync; \
         echo change >/sys/class/block/$(basename $(readlink -f {device}))/uevent"
    ))
    .map(drop)
}

/// `weir` refuses, and says all of this.
fn says_no(c: &Cluster, words: &[&str], parts: &[&str]) -> Result<()> {
    let said = match ask(c, words) {
        Ok(said) => bail!("weir {} did not fail: {said}", words.join(" ")),
        Err(e) => format!("{e:#}"),
    };
    for part in parts {
        ensure!(said.contains(part), "it does not say {part:?}: {said}");
    }
    Ok(())
}

fn consumer_killed_with_extents(c: &Cluster) -> Result<()> {
    let id = borrowing(c, "consumer-home", Use::Block)?;
    let other = third(1, lender(c, &id, 1)?);
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "consumer-home", &dev, 31)?;
    v.wait_writes(128)?;
    c.node(1).kill()?;
    let known = v.last_words()?;
    wait_alive(c, 1, false)?;
    let csi = c.node_csi(other)?;
    refused("attaching a volume of a dead node", csi.stage(&id, Use::Block), Code::Unavailable, &["n1"])?;
    c.revive(1)?;
    retry("the volume once its node is back", &NOT_YET, || csi.stage(&id, Use::Block))?;
    let dev = csi.publish(&id, Use::Block)?;
    check_slots(&slots(c, other, &dev)?, &known)?;
    wait_held(c, &id, "Attached", &[other])?;
    csi.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

/// n1 uses a volume of n2 and is cut off; n3 gets it; then n1 comes back.
fn taken_over(c: &Cluster, name: &str, link: Link) -> Result<()> {
    let id = lent(c, name)?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let old = Verifier::start(c, 1, name, &dev, 41)?;
    c.node(1).cut(link)?;
    if link == Link::Control {
        old.goes_on_for(PAST_THE_LEASE).context("I/O without the controller")?;
    } else {
        old.wait_stalled(Duration::from_secs(2))?;
    }
    wait_alive(c, 1, false)?;
    let csi = c.node_csi(3)?;
    retry("n3 to get the volume", &NOT_YET, || csi.stage(&id, Use::Block))?;
    let new_dev = csi.publish(&id, Use::Block)?;
    // The fences stand, so nothing of n1 comes any more: what it knows as acknowledged must be there.
    let found = slots(c, 3, &new_dev)?;
    check_slots(&found, &old.report()?)?;
    let new = Verifier::start(c, 3, &format!("{name}-next"), &new_dev, 42)?;
    new.wait_writes(128)?;
    c.node(1).heal(link)?;
    wait_alive(c, 1, true)?;
    let evicted = old.end()?;
    check_slots(&found, &evicted).context("what the evicted node took for acknowledged")?;
    ensure!(evicted.errors > 0, "the evicted node's writer never learned that it was evicted: {evicted:?}");
    wait_nobody_leaves(c, &id)?;
    new.wait_writes(128)?;
    let after = new.finish()?;
    check_slots(&slots(c, 3, &new_dev)?, &after).context("a late write of the evicted node")?;
    c.node_csi(1)?.detach(&id)?;
    wait_held(c, &id, "Attached", &[3])?;
    csi.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn partitioned_storage(c: &Cluster) -> Result<()> {
    let id = lent(c, "cut-storage")?;
    let dev = c.node_csi(1)?.attach(&id, Use::Block)?;
    let v = Verifier::start(c, 1, "cut-storage", &dev, 51)?;
    c.node(1).cut(Link::Storage)?;
    v.wait_stalled(PAST_THE_LEASE)?;
    let other = c.node_csi(3)?.stage(&id, Use::Block);
    refused("attaching what a living node holds", other, Code::FailedPrecondition, &["n1"])?;
    c.node(1).heal(Link::Storage)?;
    v.wait_writes(128)?;
    v.finish()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

/// A migration from n1 whose target holds a write, with the controller dead.
struct Held {
    id: String,
    source: String,
    target: u8,
    target_dev: String,
    lender: u8,
    write: Background,
}

const SEED: u32 = 8;

fn hold_write(c: &Cluster, name: &str) -> Result<Held> {
    let id = borrowing(c, name, Use::SharedBlock)?;
    let lender = lender(c, &id, 1)?;
    let target = third(1, lender);
    let source = c.node_csi(1)?.attach(&id, Use::SharedBlock)?;
    write_pattern(c.node(1), &source, 32, SEED)?;
    let target_dev = c.node_csi(target)?.attach(&id, Use::SharedBlock)?;
    wait_held(c, &id, "Guarded", &[1, target])?;
    c.kill_controller()?;
    let script = write_block(&target_dev, BLOCK, "held");
    let write = c.node(target).spawn(&format!("write-{name}"), &format!("sh -c \"{script}\""))?;
    let m = Held { id, source, target, target_dev, lender, write };
    wait::until("the guard to hold the write", PATIENCE, || Ok((held_writes(c, target)? > 0).then_some(())))?;
    m.still_held(c)?;
    Ok(m)
}

/// Writes that the guards of a node hold, as device-mapper counts them: `NAME: 0 SECTORS delay READS WRITES FLUSHES`.
fn held_writes(c: &Cluster, n: u8) -> Result<u64> {
    let status = c.node(n).run_ok("dmsetup status --target delay")?;
    let counts = status.lines().filter_map(|l| {
        let words: Vec<_> = l.split_whitespace().skip_while(|w| *w != "delay").collect();
        words.get(2)?.parse::<u64>().ok()
    });
    Ok(counts.sum())
}

impl Held {
    fn still_held(&self, c: &Cluster) -> Result<()> {
        let ended = c.node(self.target).ended(&self.write)?;
        ensure!(ended.is_none(), "the write ended while it had to be held: {ended:?}");
        Ok(())
    }

    /// The write goes through, the source is fenced, and every byte is right.
    fn conclude(self, c: &Cluster) -> Result<()> {
        let exit = wait::until("the held write to end", PATIENCE, || c.node(self.target).ended(&self.write))?;
        ensure!(exit == Exit::Code(0), "the held write failed: {exit:?}");
        wait_held(c, &self.id, "Attached", &[self.target])?;
        ensure!(read_block(c, self.target, &self.target_dev, BLOCK)? == "held", "the held write is lost");
        let late = c.node(1).exec(&write_block(&self.source, BLOCK, "too late"))?;
        ensure!(!late.ok(), "the source can still write after the cut-over");
        ensure!(read_block(c, self.target, &self.target_dev, BLOCK)? == "held", "a late write got through");
        check_pattern(c.node(self.target), &self.target_dev, 32, SEED)?;
        for n in [1, self.target] {
            c.node_csi(n)?.detach(&self.id)?;
        }
        c.csi().delete(&self.id)?;
        Ok(())
    }
}

fn held_without_controller(c: &Cluster, name: &str, time: Duration) -> Result<()> {
    let m = hold_write(c, name)?;
    let start = std::time::Instant::now();
    while start.elapsed() < time {
        m.still_held(c)?;
        ensure!(held_writes(c, m.target)? > 0, "the guard holds nothing any more");
        check_pattern(c.node(m.target), &m.target_dev, 4, SEED).context("reads while a write is held")?;
    }
    c.start_controller(None)?;
    m.conclude(c)
}

fn lender_dies_while_held(c: &Cluster) -> Result<()> {
    let m = hold_write(c, "held-lender")?;
    c.node(m.lender).kill()?;
    c.start_controller(None)?;
    wait_held(c, &m.id, "CuttingOver", &[1, m.target])?;
    wait_alive(c, m.lender, false)?;
    m.still_held(c)?;
    c.revive(m.lender)?;
    m.conclude(c)
}

fn long_hold(c: &Cluster) -> Result<()> {
    const SECONDS: u64 = 75;
    let seconds = match std::env::var("WEIR_LAB_HOLD") {
        Ok(text) => {
            text.parse().with_context(|| format!("WEIR_LAB_HOLD={text:?} is no number of seconds"))?
        }
        Err(_) => SECONDS,
    };
    held_without_controller(c, "held-long", Duration::from_secs(seconds))
}
