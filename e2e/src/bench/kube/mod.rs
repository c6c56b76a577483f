//! What a volume costs in a cluster: from claim to bound, from pod to device, from deletion to nothing, and how many writes
//! the API server takes for it; beside a driver that does nothing, behind the same provisioner, in the same run and on the
//! same node, so that what the cluster itself takes is known.
//!
//! Must not know: how Weir does what it does. It asks as people do, and reads what the API server says.

mod driver;
mod report;
mod watch;
mod writes;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    bench::machine::Machine,
    kube::{BUSYBOX, KubeCluster, cluster::Spec},
    wait,
};
use driver::{Flavour, NODE};
use report::Report;
use watch::Watch;

/// How long each step of a round may take: fifty pods at once are a quarter of an hour for an emulated node of one processor.
const LIMIT: Duration = Duration::from_secs(3600);

/// What to run, and where the results go.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Write the results there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few rounds and no fifty at once: to see that all works, not for numbers.
    #[arg(long)]
    quick: bool,
    /// Only so many at once (1, 10 or 50; repeat for several), and no counting of writes.
    #[arg(long, value_name = "N", value_parser = one_of_the_steps)]
    parallel: Vec<usize>,
    /// Measure on a cluster that `./dev kube up` started, and leave it running.
    #[arg(long, value_name = "NAME")]
    on: Option<String>,
}

/// So many volumes at once, so many times, of these kinds.
#[derive(Clone, Copy, Debug)]
struct Step {
    parallel: usize,
    rounds: usize,
    flavours: &'static [Flavour],
}

/// All that there is to measure. Fifty file systems at once say what ten do, and cost an emulated node ten minutes.
const STEPS: [Step; 3] = [
    Step { parallel: 1, rounds: 5, flavours: &Flavour::ALL },
    Step { parallel: 10, rounds: 2, flavours: &Flavour::ALL },
    Step { parallel: 50, rounds: 1, flavours: &[Flavour::Weir, Flavour::Floor] },
];

fn one_of_the_steps(text: &str) -> Result<usize, String> {
    let known = STEPS.map(|s| s.parallel);
    match text.parse() {
        Ok(n) if known.contains(&n) => Ok(n),
        _ => Err(format!("one of {known:?}")),
    }
}

impl Options {
    fn steps(&self) -> Vec<Step> {
        let wanted = |s: &Step| {
            if self.parallel.is_empty() {
                !self.quick || s.parallel <= 10
            } else {
                self.parallel.contains(&s.parallel)
            }
        };
        let rounds = |s: Step| Step { rounds: if self.quick { 1 } else { s.rounds }, ..s };
        STEPS.into_iter().filter(wanted).map(rounds).collect()
    }

    /// Volumes of which the API server's writes are counted.
    fn counted(&self) -> usize {
        match (self.parallel.is_empty(), self.quick) {
            (false, _) => 0,
            (true, true) => 5,
            (true, false) => 25,
        }
    }
}

/// Milliseconds of each volume of a round.
#[derive(Clone, Debug, Default)]
struct Times {
    bound: Vec<f64>,
    ready: Vec<f64>,
    deleted: Vec<f64>,
}

/// Runs what is asked for and reports it.
///
/// # Errors
/// Something could not be measured.
pub fn run(options: &Options) -> Result<()> {
    let cluster = match &options.on {
        Some(name) => KubeCluster::open(name)?,
        None => {
            println!("starting a cluster of three nodes with Weir on it");
            // Fifty volumes of each kind at a time, fifty pods on one node.
            let spec = Spec { disk_size: 16 << 30, memory: 3072, ..Spec::default() };
            let cluster = KubeCluster::up(&spec)?;
            cluster.install()?;
            cluster
        }
    };
    let mut report = Report::of(Machine::of(cluster.lab())?);
    let done = measure(&cluster, options, &mut report);
    let cleaned = driver::remove(&cluster);
    // What was measured before something failed is not lost.
    report.sum_up();
    print!("{}", report.render());
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    done.and(cleaned)
}

fn measure(c: &KubeCluster, options: &Options, report: &mut Report) -> Result<()> {
    driver::install(c)?;
    let watch = Watch::start(c)?;
    // The first pod of a node is slower than all others.
    for flavour in Flavour::ALL {
        round(c, &watch, flavour, "warm", 1)?;
    }
    if options.counted() > 0 {
        for flavour in [Flavour::Weir, Flavour::Floor] {
            eprintln!("counting the writes of {} volumes: {flavour}", options.counted());
            report.api_writes.insert(flavour.as_str(), count(c, &watch, flavour, options.counted())?);
        }
    }
    for step in options.steps() {
        for n in 0..step.rounds {
            let mut order = step.flavours.to_vec();
            order.rotate_left(n % step.flavours.len());
            for flavour in order {
                eprintln!("{} at once, round {} of {}: {flavour}", step.parallel, n + 1, step.rounds);
                let times = round(c, &watch, flavour, &format!("r{n}"), step.parallel)?;
                report.add(flavour, step.parallel, &times);
            }
            eprintln!("{}", report.table());
        }
    }
    Ok(())
}

/// The whole life of some volumes at once.
fn round(c: &KubeCluster, watch: &Watch, flavour: Flavour, tag: &str, parallel: usize) -> Result<Times> {
    let names: Vec<String> =
        (0..parallel).map(|i| format!("{}-{tag}-{parallel}-{i}", flavour.as_str())).collect();
    let bound = provision(c, watch, flavour, &names)?;
    let ready = start_pods(c, watch, flavour, &names)?;
    let mut args = vec!["delete", "pod", "--wait=true", "--grace-period=1"];
    args.extend(names.iter().map(String::as_str));
    c.plane().kubectl(&args)?;
    let deleted = delete(c, watch, &names)?;
    watch.forget();
    Ok(Times { bound, ready, deleted })
}

/// From the API server's first word of a claim to its being bound.
fn provision(c: &KubeCluster, watch: &Watch, flavour: Flavour, names: &[String]) -> Result<Vec<f64>> {
    let claims: Vec<Value> = names.iter().map(|n| flavour.claim(n)).collect();
    c.create(&claims)?;
    each(names, |name| {
        let seen = watch.claim(name);
        Some(span(seen.added?, seen.bound?))
    })
    .with_context(|| c.pods_at_a_glance())
}

/// From the API server's first word of a pod to its container's having read its device, or written to its folder: by the
/// time at which this host sees the file that the container then writes.
fn start_pods(c: &KubeCluster, watch: &Watch, flavour: Flavour, names: &[String]) -> Result<Vec<f64>> {
    let dir = c.node(NODE).dir().join("bench");
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove old marks"),
        _ => fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?,
    }
    let pods: Vec<Value> = names.iter().map(|n| pod(flavour, n)).collect();
    c.create(&pods)?;
    each(names, |name| {
        let at = fs::metadata(dir.join(name)).and_then(|m| m.modified()).ok()?;
        Some(span(watch.pod_added(name)?, at))
    })
    .with_context(|| c.pods_at_a_glance())
}

fn delete(c: &KubeCluster, watch: &Watch, names: &[String]) -> Result<Vec<f64>> {
    let mut args = vec!["delete", "pvc", "--wait=false"];
    args.extend(names.iter().map(String::as_str));
    c.plane().kubectl(&args)?;
    each(names, |name| {
        let seen = watch.claim(name);
        Some(span(seen.deleting?, watch.volume_gone(&seen.volume?)?))
    })
}

/// Writes to the API server for one volume from its claim to its end, by what was written.
fn count(c: &KubeCluster, watch: &Watch, flavour: Flavour, volumes: usize) -> Result<BTreeMap<String, f64>> {
    let names: Vec<String> = (0..volumes).map(|i| format!("{}-count-{i}", flavour.as_str())).collect();
    let before = writes::settled(c)?;
    provision(c, watch, flavour, &names)?;
    delete(c, watch, &names)?;
    let after = writes::settled(c)?;
    watch.forget();
    Ok(writes::per_volume(&before, &after, volumes))
}

/// Waits until all of them have been seen; milliseconds of each.
fn each(names: &[String], look: impl Fn(&str) -> Option<f64>) -> Result<Vec<f64>> {
    wait::until("all volumes of a round", LIMIT, || {
        Ok(names.iter().map(|n| look(n)).collect::<Option<Vec<f64>>>())
    })
}

/// Milliseconds from one to the other.
fn span(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

fn pod(flavour: Flavour, name: &str) -> Value {
    let (key, entry, test) = match flavour {
        Flavour::Weir => (
            "volumeDevices",
            json!({"name": "v", "devicePath": "/dev/volume"}),
            "dd if=/dev/volume of=/dev/null bs=4096 count=1",
        ),
        Flavour::WeirFile | Flavour::Floor => {
            ("volumeMounts", json!({"name": "v", "mountPath": "/volume"}), "echo x > /volume/x")
        }
    };
    let mut container = json!({
        "name": "c",
        "image": BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", format!("{test} && echo > /host/bench/{name}")],
        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
    });
    if let Some(list) = container[key].as_array_mut() {
        list.push(entry);
    } else {
        container[key] = json!([entry]);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            // An emulated node with fifty pods to start gives up on one now and then: that is waited for, and counts.
            "restartPolicy": "OnFailure",
            "automountServiceAccountToken": false,
            // A pod's own network is set up by several programs and has nothing to do with its volume.
            "hostNetwork": true,
            "nodeSelector": {"kubernetes.io/hostname": driver::node_name()},
            "containers": [container],
            "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": name}},
                {"name": "host", "hostPath": {"path": "/host", "type": "Directory"}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn what_is_asked_for_is_measured() {
        let steps = |args: &[&str]| {
            let words = ["x"].iter().chain(args);
            Command::try_parse_from(words).map(|c| {
                let steps = c.options.steps().iter().map(|s| (s.parallel, s.rounds)).collect::<Vec<_>>();
                (steps, c.options.counted())
            })
        };
        assert_eq!(steps(&[]).unwrap(), (vec![(1, 5), (10, 2), (50, 1)], 25));
        assert_eq!(steps(&["--quick"]).unwrap(), (vec![(1, 1), (10, 1)], 5));
        assert_eq!(steps(&["--parallel", "50", "--parallel", "1"]).unwrap(), (vec![(1, 5), (50, 1)], 0));
        let error = steps(&["--parallel", "7"]).err().unwrap().to_string();
        assert!(error.contains("one of [1, 10, 50]"), "{error}");
    }
}
