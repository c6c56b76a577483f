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
    suite::{self, Case, Run, When},
};

/// Passed, failed, left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that there was no time for.
    pub skipped: u64,
    /// What made parts fail, to be said again at the end: what was printed at the time has scrolled away.
    pub causes: Vec<String>,
}

impl Tally {
    fn one(ok: bool) -> Self {
        Self { passed: u64::from(ok), failed: u64::from(!ok), ..Self::default() }
    }

    /// Of a part that came to an error.
    fn failure(name: &str, e: &anyhow::Error) -> Self {
        let cause = e.root_cause().to_string();
        let lines: Vec<&str> = cause.lines().take(CAUSE_LINES).collect();
        Self { causes: vec![format!("{name}: {}", lines.join("\n    "))], ..Self::one(false) }
    }

    fn skipped() -> Self {
        Self { skipped: 1, ..Self::default() }
    }

    fn add(&mut self, o: Tally) {
        self.passed += o.passed;
        self.failed += o.failed;
        self.skipped += o.skipped;
        self.causes.extend(o.causes);
    }
}

/// The most lines that are said again of what made a part fail.
const CAUSE_LINES: usize = 30;

/// A part of the tests that needs no cluster.
#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Tally>,
}

const STEPS: [Step; 8] = [
    Step { name: "format", about: "rustfmt finds nothing to change", run: format },
    Step { name: "lint", about: "clippy finds nothing to warn of", run: lint },
    Step { name: "unit", about: "unit, property, simulation and contract tests", run: unit },
    Step {
        name: "manifests",
        about: "deploy/weir.yaml is the chart rendered; what its options make fits together",
        run: manifests,
    },
    Step {
        name: "kube/sanity",
        about: "csi-sanity on a controller whose records are custom resources",
        run: kube_sanity,
    },
    Step { name: "kube/store", about: "the store and identities against a real API server", run: kube_store },
    Step {
        name: "kube/chart",
        about: "who makes certificates is decided once: helm install and upgrade on an API server",
        run: kube_chart,
    },
    Step {
        name: "kube/scale",
        about: "100,000 volumes in a real API server, loaded page by page",
        run: kube_scale,
    },
];

/// Names and descriptions of all parts.
pub fn list() -> Vec<(String, String)> {
    let steps = STEPS.iter().map(|s| (s.name, s.about));
    let cases = suite::cases().into_iter().map(|c| (c.name, c.about));
    let kube = suite::kube::cases().into_iter().map(|c| (c.name, c.about));
    steps.chain(cases).chain(kube).map(|(name, about)| (name.to_owned(), about.to_owned())).collect()
}

/// What of the tests to run.
struct Choice<'a> {
    names: &'a [String],
    begun: Instant,
    limit: Duration,
}

impl Choice<'_> {
    /// Whether it is to run at all, if there is time.
    fn wants(&self, name: &str) -> bool {
        if self.names.is_empty() {
            suite::when(name) != When::ByName
        } else {
            self.names.iter().any(|n| name.starts_with(n.as_str()))
        }
    }

    /// Whether it must wait until what always runs has run.
    fn can_wait(&self, name: &str) -> bool {
        self.names.is_empty() && suite::when(name) != When::Always
    }

    /// Whether there is no time for it any more; says so.
    fn leaves_out(&self, name: &str) -> bool {
        let late = self.can_wait(name) && self.begun.elapsed() >= self.limit;
        if late {
            println!(
                "skipped {name}: the run has taken {} min; ./dev test {name}",
                self.limit.as_secs() / 60
            );
        }
        late
    }
}

/// Runs the parts whose names begin with one of `names`, or all when there are none, and prints the tally. Those on
/// Kubernetes run on the cluster `on`, if one is named. Without names, what need not run each time begins only within `limit` of
/// the start.
///
/// # Errors
/// A name that fits nothing. Failed tests are no error: they are in the tally.
pub fn run(names: &[String], on: Option<&str>, limit: Duration) -> Result<Tally> {
    for n in names {
        if !list().iter().any(|(name, _)| name.starts_with(n.as_str())) {
            let known: Vec<_> = list().into_iter().map(|(n, _)| n).collect();
            bail!("there is no test {n:?}; there are: {}", known.join(", "));
        }
    }
    let choice = Choice { names, begun: Instant::now(), limit };
    let mut kube: Vec<_> = suite::kube::cases().into_iter().filter(|c| choice.wants(c.name)).collect();
    // A stable sort: those that always run stay in their order.
    kube.sort_by_key(|c| match suite::when(c.name) {
        When::IfTime(at) if names.is_empty() => at + 1,
        When::IfTime(_) | When::Always | When::ByName => 0,
    });
    let ahead = if kube.is_empty() || on.is_some() { None } else { Some(build_ahead()?) };
    let mut tally = Tally::default();
    let (later, first): (Vec<Step>, Vec<Step>) =
        STEPS.into_iter().filter(|s| choice.wants(s.name)).partition(|s| choice.can_wait(s.name));
    tally.add(run_steps(&first, &choice));
    let cases: Vec<Case> = suite::cases().into_iter().filter(|c| choice.wants(c.name)).collect();
    tally.add(run_cases(&cases));
    if let Some(mut builder) = ahead {
        // What failed is said when it is needed.
        builder.wait().context("wait for the programs of a cluster")?;
    }
    tally.add(run_steps(&later, &choice));
    tally.add(run_kube_cases(&kube, on, &choice));
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    for cause in &tally.causes {
        println!("failed {cause}");
    }
    println!("{} passed, {} failed{skipped}", tally.passed, tally.failed);
    Ok(tally)
}

fn run_steps(steps: &[Step], choice: &Choice<'_>) -> Tally {
    let mut tally = Tally::default();
    for s in steps {
        if choice.leaves_out(s.name) {
            tally.add(Tally::skipped());
            continue;
        }
        let start = Instant::now();
        println!("== {}: {}", s.name, s.about);
        tally.add(ended(s.name, start, (s.run)()));
    }
    tally
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
        tally.add(ended(case.name, start, result.map(|()| Tally::one(true))));
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
fn run_kube_cases(cases: &[suite::kube::Case], on: Option<&str>, choice: &Choice<'_>) -> Tally {
    let mut tally = Tally::default();
    let mut cluster: Option<KubeCluster> = None;
    for case in cases {
        if choice.leaves_out(case.name) {
            tally.add(Tally::skipped());
            continue;
        }
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
        tally.add(ended(case.name, start, result.map(|()| Tally::one(true))));
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

/// An error as people read it: what led to what, without the stack.
fn told(e: &anyhow::Error) -> String {
    e.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n-- because: ")
}

/// Says how a part that began at `start` went.
fn ended(name: &str, start: Instant, result: Result<Tally>) -> Tally {
    let mut tally = result.unwrap_or_else(|e| {
        println!("{}", told(&e));
        Tally::failure(name, &e)
    });
    if tally.failed > 0 && tally.causes.is_empty() {
        tally.causes.push(format!("{name}: {} failed, as said where it ran", tally.failed));
    }
    let word = if tally.failed == 0 { "ok" } else { "FAILED" };
    println!("{word:<7}{name} ({:.1} s)", start.elapsed().as_secs_f64());
    // Lines of a long run should reach a log as they come; a closed pipe is not a failed test.
    drop(std::io::stdout().flush());
    tally
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

fn kube_chart() -> Result<Tally> {
    manifests::sources().map(|()| Tally::one(true))
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
    Some(Tally { passed: count(" passed")?, failed: count(" failed")?, ..Tally::default() })
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
        assert_eq!(parse_result(line), Some(Tally { passed: 12, failed: 3, ..Tally::default() }));
        assert_eq!(parse_result("running 3 tests"), None);
    }

    #[test]
    fn a_name_that_fits_nothing_is_refused() {
        assert!(
            run(&["no-such-test".to_owned()], None, Duration::ZERO)
                .unwrap_err()
                .to_string()
                .contains("format")
        );
    }

    #[test]
    fn what_need_not_run_each_time_is_left_out_when_the_time_is_over() {
        let run = |names: &[&str], minutes: u64| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let choice =
                Choice { names: &names, begun: Instant::now(), limit: Duration::from_secs(60 * minutes) };
            ["unit", "kube/pods", "kube/rolling", "kube/scale"]
                .map(|name| choice.wants(name) && !choice.leaves_out(name))
        };
        assert_eq!(run(&[], 60), [true, true, true, false]);
        assert_eq!(run(&[], 0), [true, true, false, false]);
        assert_eq!(run(&["kube/"], 0), [false, true, true, true], "what is named runs");
    }

    #[test]
    fn times_are_said_of_tests_that_there_are() {
        let known = list();
        for name in suite::IF_TIME.iter().chain(&suite::BY_NAME) {
            assert!(known.iter().any(|(n, _)| n == name), "there is no test {name}");
        }
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = list().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), list().len());
    }
}
