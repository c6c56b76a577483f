//! The test command: everything or a part, with one line a test and one for all.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::{Cluster, Spec},
    kube::{self, KubeCluster},
    lab::process::{self, Lifetime},
    manifests,
    suite::{self, Case, Run},
};

/// Passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
}

impl Tally {
    fn one(ok: bool) -> Self {
        Self { passed: u64::from(ok), failed: u64::from(!ok) }
    }

    fn add(&mut self, o: Tally) {
        self.passed += o.passed;
        self.failed += o.failed;
    }
}

/// A part of the tests that needs no cluster.
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Tally>,
}

const STEPS: [Step; 4] = [
    Step { name: "format", about: "rustfmt finds nothing to change", run: format },
    Step { name: "lint", about: "clippy finds nothing to warn of", run: lint },
    Step { name: "unit", about: "unit, property, simulation and contract tests", run: unit },
    Step {
        name: "manifests",
        about: "deploy/weir.yaml is the chart rendered; what its options make fits together",
        run: manifests,
    },
];

/// Steps that only run when they are named: they need Go, and minutes for their first build.
const NAMED_STEPS: [Step; 3] = [
    Step { name: "kube/store", about: "the store and identities against a real API server", run: kube_store },
    Step {
        name: "kube/sanity",
        about: "csi-sanity on a controller whose records are custom resources",
        run: kube_sanity,
    },
    Step {
        name: "kube/scale",
        about: "100,000 volumes in a real API server, loaded page by page",
        run: kube_scale,
    },
];

/// Names and descriptions of all parts.
pub fn list() -> Vec<(String, String)> {
    let steps = STEPS.iter().chain(&NAMED_STEPS).map(|s| (s.name, s.about));
    let cases = suite::cases().into_iter().map(|c| (c.name, c.about));
    let kube = suite::kube::cases().into_iter().map(|c| (c.name, c.about));
    steps.chain(cases).chain(kube).map(|(name, about)| (name.to_owned(), about.to_owned())).collect()
}

/// Runs the parts whose names begin with one of `names`, or all when there are none, and prints the tally. Those on
/// Kubernetes run on the cluster `on`, if one is named.
///
/// # Errors
/// A name that fits nothing. Failed tests are no error: they are in the tally.
pub fn run(names: &[String], on: Option<&str>) -> Result<Tally> {
    for n in names {
        if !list().iter().any(|(name, _)| name.starts_with(n.as_str())) {
            let known: Vec<_> = list().into_iter().map(|(n, _)| n).collect();
            bail!("there is no test {n:?}; there are: {}", known.join(", "));
        }
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| name.starts_with(n.as_str()));
    let kube: Vec<_> = suite::kube::cases()
        .into_iter()
        .filter(|c| wanted(c.name) && (c.by_default || !names.is_empty()))
        .collect();
    let ahead = if kube.is_empty() || on.is_some() { None } else { Some(build_ahead()?) };
    let mut tally = Tally::default();
    let named_steps = NAMED_STEPS.iter().filter(|_| !names.is_empty());
    for s in STEPS.iter().chain(named_steps).filter(|s| wanted(s.name)) {
        let start = Instant::now();
        println!("== {}: {}", s.name, s.about);
        let t = (s.run)().unwrap_or_else(|e| {
            println!("{e:#}");
            Tally::one(false)
        });
        report(s.name, t.failed == 0, start.elapsed());
        tally.add(t);
    }
    let cases: Vec<Case> = suite::cases()
        .into_iter()
        .filter(|c| wanted(c.name) && (c.by_default() || !names.is_empty()))
        .collect();
    tally.add(run_cases(&cases));
    if let Some(mut builder) = ahead {
        // What failed is said when it is needed.
        builder.wait().context("wait for the programs of a cluster")?;
    }
    tally.add(run_kube_cases(&kube, on));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally)
}

/// Builds what a Kubernetes cluster is made of, beside the other tests and with what these leave of the machine.
fn build_ahead() -> Result<Child> {
    let mut c = Command::new(std::env::current_exe().context("find this program")?);
    c.args(["kube", "build", "--yielding"]).stdin(Stdio::null());
    process::start(c, Lifetime::Owned)
}

/// Runs cases on one cluster after the other's end: a case leaves the cluster as it found it, or else fails and costs
/// the next one a new cluster.
fn run_cases(cases: &[Case]) -> Tally {
    let mut tally = Tally::default();
    let mut cluster: Option<Cluster> = None;
    for case in cases {
        let start = Instant::now();
        println!("== {}: {}", case.name, case.about);
        let shared = cluster.take();
        let result = match case.run {
            Run::On(run) => shared
                .map_or_else(|| Cluster::start(Spec::default()).context("start a cluster"), Ok)
                .and_then(|c| on(run, c).map(|c| cluster = Some(c))),
            Run::Alone(run) => {
                drop(shared);
                run()
            }
        };
        if let Err(e) = &result {
            println!("{e:?}");
        }
        report(case.name, result.is_ok(), start.elapsed());
        tally.add(Tally::one(result.is_ok()));
    }
    tally
}

/// Runs a case on a cluster, which is good for another one if it went well.
fn on(run: fn(&Cluster) -> Result<()>, c: Cluster) -> Result<Cluster> {
    let result = run(&c).and_then(|()| suite::tidy(&c).context("the cluster after the test"));
    match result {
        Ok(()) => Ok(c),
        Err(e) => Err(e.context(c.logs())),
    }
}

/// The same for cases on Kubernetes.
fn run_kube_cases(cases: &[suite::kube::Case], on: Option<&str>) -> Tally {
    let mut tally = Tally::default();
    let mut cluster: Option<KubeCluster> = None;
    for case in cases {
        let start = Instant::now();
        println!("== {}: {}", case.name, case.about);
        let result = match cluster.take() {
            Some(c) => Ok(c),
            None => on.map_or_else(start_kube, KubeCluster::open).context("get a Kubernetes cluster"),
        }
        .and_then(|mut c| {
            (case.run)(&mut c).map_err(|e| e.context(c.pods_at_a_glance()))?;
            cluster = Some(c);
            Ok(())
        });
        if let Err(e) = &result {
            println!("{e:?}");
        }
        report(case.name, result.is_ok(), start.elapsed());
        tally.add(Tally::one(result.is_ok()));
    }
    tally
}

fn start_kube() -> Result<KubeCluster> {
    let start = Instant::now();
    let cluster = KubeCluster::up(&kube::cluster::Spec::default())?;
    println!("   nodes ready after {:.0} s", start.elapsed().as_secs_f64());
    cluster.install()?;
    println!("   Weir there after {:.0} s", start.elapsed().as_secs_f64());
    Ok(cluster)
}

fn report(name: &str, ok: bool, took: Duration) {
    let word = if ok { "ok" } else { "FAILED" };
    println!("{word:<7}{name} ({:.1} s)", took.as_secs_f64());
    // Lines of a long run should reach a log as they come; a closed pipe is not a failed test.
    drop(std::io::stdout().flush());
}

fn format() -> Result<Tally> {
    let ok = cargo(&["fmt", "--all", "--check"])?.wait()?.success();
    Ok(Tally::one(ok))
}

fn lint() -> Result<Tally> {
    let ok =
        cargo(&["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"])?.wait()?.success();
    Ok(Tally::one(ok))
}

fn unit() -> Result<Tally> {
    cargo_tests(&["test", "-q", "--workspace", "--no-fail-fast"], &[])
}

fn manifests() -> Result<Tally> {
    let helm = kube::ensure(kube::Program::HELM)?;
    let mut c = Command::new(root()?.join("deploy/render.sh"));
    let ok = c.arg("--check").env("HELM", helm).status().context("run deploy/render.sh")?.success();
    if !ok {
        println!("deploy/weir.yaml is not what deploy/render.sh makes of the chart");
    }
    let mut tally = Tally::one(ok);
    for (rendering, result) in manifests::check_all()? {
        if let Err(e) = &result {
            println!("the chart with {rendering}: {e:#}");
        }
        tally.add(Tally::one(result.is_ok()));
    }
    Ok(tally)
}

/// The tests of the controller that are left out everywhere else, with an API server.
fn kube_store() -> Result<Tally> {
    kube_tests("kubernetes", &[])
}

fn kube_sanity() -> Result<Tally> {
    suite::sanity::on_kubernetes().map(|()| Tally::one(true))
}

fn kube_scale() -> Result<Tally> {
    kube_tests("kubernetes::many_volumes", &[("WEIR_TEST_VOLUMES", "100000")])
}

fn kube_tests(filter: &str, env: &[(&str, &str)]) -> Result<Tally> {
    suite::kube::with_api_server(|plane| {
        let kubeconfig = plane.kubeconfig().to_str().context("the kubeconfig's path")?;
        let env: Vec<_> = env.iter().copied().chain([("WEIR_TEST_KUBECONFIG", kubeconfig)]).collect();
        // Of the whole workspace: another selection would compile shared libraries once more.
        let args = ["test", "-q", "--workspace", "--test", "core", filter, "--", "--ignored", "--nocapture"];
        let tally = cargo_tests(&args, &env)?;
        anyhow::ensure!(tally.passed + tally.failed > 0, "no test is named {filter}");
        Ok(tally)
    })
}

fn cargo_tests(args: &[&str], env: &[(&str, &str)]) -> Result<Tally> {
    let mut child = cargo_with(args, env)?;
    let stdout = child.stdout.take().context("cargo's output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        match parse_result(&line) {
            Some(t) => tally.add(t),
            None if is_noise(&line) => {}
            None => println!("{line}"),
        }
    }
    let ok = child.wait()?.success();
    if !ok && tally.failed == 0 {
        // It did not compile, or a test binary died.
        tally.failed = 1;
    }
    Ok(tally)
}

fn is_noise(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with("running ") || line.bytes().all(|b| b == b'.' || b == b'i')
}

/// Counts from a line such as `test result: ok. 8 passed; 0 failed; 0 ignored; ...`.
fn parse_result(line: &str) -> Option<Tally> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let before = rest.split(word).next()?;
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|s| !s.is_empty())?.parse().ok()
    };
    Some(Tally { passed: count(" passed")?, failed: count(" failed")? })
}

fn cargo(args: &[&str]) -> Result<Child> {
    cargo_with(args, &[])
}

fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's folder")
}

fn cargo_with(args: &[&str], env: &[(&str, &str)]) -> Result<Child> {
    let mut c = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    // What cargo said to this program of its own package: build scripts that ask for it would be run anew by the cargo
    // below, and all that stands on them compiled anew.
    let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
        c.env_remove(name);
    }
    c.args(args).envs(env.iter().copied()).current_dir(root()?).stdin(Stdio::null());
    if args[0] == "test" {
        c.stdout(Stdio::piped());
    }
    c.spawn().with_context(|| format!("run cargo {}", args.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(parse_result(line), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(parse_result("running 3 tests"), None);
    }

    #[test]
    fn a_name_that_fits_nothing_is_refused() {
        assert!(run(&["no-such-test".to_owned()], None).unwrap_err().to_string().contains("format"));
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = list().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), list().len());
    }
}
