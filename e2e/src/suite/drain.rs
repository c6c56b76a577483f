//! A node is emptied as an operator does it, with `weir drain`, while a VM lives on it and everybody dies once in the middle.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Case, Run,
    moves::wait_copying,
    verifier::{hosts, wait_alive},
    vm,
};
use crate::{
    cluster::{Cluster, PATIENCE},
    lab::{
        process::{self, Lifetime},
        program,
    },
    wait,
};

pub(super) const CASES: &[Case] = &[Case {
    name: "moves/drain-vm",
    about: "`weir drain` of the node that a live VM's volume lies on; controller, consumer and lender die in the middle",
    run: Run::On(drain),
}];

/// Long enough that everybody dies in the middle of the copy, which begins anew each time.
const BYTES: u64 = 256 << 20;
/// Steps of the guest that show it goes on.
const STEPS: usize = 50;
const LIMIT: Duration = Duration::from_secs(120);

/// `weir`, for this cluster.
fn weir(c: &Cluster, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("weir")?);
    command.arg("--config").arg(c.lab().dir().join("operator.yaml")).args(words);
    Ok(command)
}

/// What it answers.
pub(super) fn ask(c: &Cluster, words: &[&str]) -> Result<String> {
    let out = weir(c, words)?.output().context("start weir")?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "weir {}: {said}{}", words.join(" "), String::from_utf8_lossy(&out.stderr));
    Ok(said)
}

/// A `weir` that goes on, and where it says how it goes.
fn begin(c: &Cluster, words: &[&str]) -> Result<(Child, PathBuf)> {
    let log = c.lab().dir().join("weir.log");
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut command = weir(c, words)?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok((process::start(command, Lifetime::Owned)?, log))
}

fn drain(c: &Cluster) -> Result<()> {
    let (id, _, machine) = vm::set_up(c, "drain-vm", BYTES)?;
    ensure!(hosts(c, &id)? == [1], "the volume does not lie on n1 alone: {:?}", hosts(c, &id)?);
    let plan = ask(c, &["drain", "n1", "--dry-run"])?;
    ensure!(plan.contains("256Mi of 256Mi"), "a dry run says: {plan}");
    let (mut weir, log) = begin(c, &["drain", "n1"])?;
    let goes_on = |who: &str| {
        let after = || format!("the VM after the death of the {who} in the middle of a drain");
        machine.wait_progress(STEPS, LIMIT).with_context(after)
    };

    wait_copying(c, &id)?;
    c.kill_controller()?;
    c.start_controller(None)?;
    goes_on("controller")?;

    wait_copying(c, &id)?;
    c.kill_plugin(1)?;
    goes_on("consumer's plugin")?;
    c.start_plugin(1, None)?;
    wait_alive(c, 1, true)?;

    let lender = wait_copying(c, &id)?;
    c.node(lender).kill()?;
    goes_on("new place's host")?;
    let status = wait::until("`weir drain` to end", 4 * PATIENCE, || Ok(weir.try_wait()?))?;
    let said = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    ensure!(status.success(), "`weir drain` ended with {status}:\n{said}");
    println!("   {}", said.lines().last().unwrap_or_default());
    ensure!(!hosts(c, &id)?.contains(&1), "the volume still lies on n1");
    c.revive(lender)?;
    wait_alive(c, lender, true)?;

    let seen = machine.wait_progress(4 * STEPS, LIMIT).context("the VM after the drain")?;
    println!("   the VM did {} verified I/Os, none went wrong", seen.ios);
    ask(c, &["undrain", "n1"])?;
    machine.kill()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}
