//! What the chart makes of values: rendered with helm, parsed, and held against itself.
//!
//! [`faults`] finds what no API server would: a monitor of a port that nobody has, a volume from an object that is not there.
//! Must not know: a cluster.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure as check};
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    kube::{
        ControlPlane, Program,
        cluster::{RELEASE, WEIR, chart, items},
        ensure,
    },
    lab::tools::run_tool,
    suite,
};

/// The version that charts are rendered for.
const KUBERNETES: &str = "1.36.0";

/// One way to render the chart.
struct Rendering {
    name: &'static str,
    /// A file in the chart's folder ci; the chart's own values if empty.
    values: &'static str,
    flags: &'static [&'static str],
    /// What is there already when the chart is installed so.
    given: &'static [(&'static str, &'static str)],
    /// What must be so beyond [`faults`].
    expect: fn(&Objects) -> Result<()>,
}

const RENDERINGS: [Rendering; 4] = [
    Rendering { name: "its own values", values: "", flags: &[], given: &[], expect: plain },
    Rendering {
        name: "its own values, with cert-manager there",
        values: "",
        flags: &["--api-versions", "cert-manager.io/v1"],
        given: &[],
        expect: by_cert_manager,
    },
    Rendering {
        name: "everything",
        values: "everything-values.yaml",
        flags: &[],
        given: &[("Secret", "registry")],
        expect: everything,
    },
    Rendering {
        name: "host network",
        values: "host-network-values.yaml",
        flags: &[],
        given: &[
            ("Secret", "our-certificates"),
            ("ServiceAccount", "our-controller"),
            ("ServiceAccount", "our-node"),
        ],
        expect: host_network,
    },
];

/// Values that make no sense, and a word of what is said of them.
const REFUSED: [(&str, &str); 5] = [
    ("driverName=CSI.weir.storage", "/driverName"),
    ("controller.replica=3", "replica"),
    ("tls.source=secret", "tls.secretName"),
    (
        "node.storageNetwork.interface=eth1,node.storageNetwork.cidr=10.0.0.0/8",
        "at most one of interface and cidr",
    ),
    ("kubevirt.defaultVirtClass=none", "none of storageClasses (weir)"),
];

/// Renders the chart in every way, and says what is wrong: by rendering, with its name.
///
/// # Errors
/// helm cannot be had.
pub(crate) fn check_all() -> Result<Vec<(&'static str, Result<()>)>> {
    let helm = ensure(Program::HELM)?;
    let refused = REFUSED.iter().map(|(values, says)| (*values, refused(&helm, values, says)));
    Ok(RENDERINGS.iter().map(|r| (r.name, r.check(&helm))).chain(refused).collect())
}

/// helm, about to render the chart.
fn template(helm: &Path) -> Command {
    let mut c = Command::new(helm);
    c.args(["template", RELEASE]).arg(chart()).args(["--namespace", WEIR, "--kube-version", KUBERNETES]);
    c
}

fn refused(helm: &Path, values: &str, says: &str) -> Result<()> {
    let Err(e) = run_tool(template(helm).args(["--set", values])) else { bail!("it is not refused") };
    let said = format!("{e:#}");
    check!(said.contains(says), "the refusal does not say {says:?}: {said}");
    Ok(())
}

impl Rendering {
    fn check(&self, helm: &Path) -> Result<()> {
        let mut c = template(helm);
        c.args(self.flags);
        if !self.values.is_empty() {
            c.arg("--values").arg(chart().join("ci").join(self.values));
        }
        let objects = Objects::parse(&run_tool(&mut c)?)?;
        let found = faults(&objects, self.given);
        check!(found.is_empty(), "{}", found.join("\n"));
        programs_understand(&objects)?;
        (self.expect)(&objects)
    }
}

/// cert-manager's kinds, as far as a chart can tell whether they are there.
const CERT_MANAGER: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: certificates.cert-manager.io}
  spec:
    group: cert-manager.io
    scope: Namespaced
    names: {kind: Certificate, plural: certificates}
    versions:
    - &version
      name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: issuers.cert-manager.io}
  spec: {group: cert-manager.io, scope: Namespaced, names: {kind: Issuer, plural: issuers}, versions: [*version]}
";

/// Who makes certificates is decided once: what is installed later changes nothing for a release that is there. On an API
/// server alone: nothing is run.
///
/// # Errors
/// It is not so.
pub(crate) fn sources() -> Result<()> {
    let helm = ensure(Program::HELM)?;
    let cache = tempfile::tempdir().context("a folder for helm")?;
    suite::kube::with_api_server(|plane| {
        let run = |what: &str, name: &str, more: &[&str]| {
            let mut c = Command::new(&helm);
            for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECACHEDIR"] {
                c.env(variable, cache.path());
            }
            c.arg("--kubeconfig").arg(plane.kubeconfig()).args([what, name]).arg(chart());
            c.args(["--namespace", name]).args(more);
            run_tool(&mut c).with_context(|| format!("helm {what} {name}"))
        };
        let has = |kind: &str, name: &str| {
            let space = name.split('-').next().unwrap_or_default();
            plane
                .kubectl(&["get", kind, name, "-n", space, "--ignore-not-found", "-o", "name"])
                .map(|s| !s.is_empty())
        };
        let named = |release: &str| {
            format!(
                "fullnameOverride={release},driverName={release}.example,storageClasses[0].name={release}"
            )
        };
        run("install", "old", &["--create-namespace", "--set", &named("old")])?;
        check!(has("configmap", "old-ca")?, "without cert-manager the controller makes the CA");
        kinds(plane, true)?;
        run("upgrade", "old", &["--reset-then-reuse-values"])?;
        check!(has("configmap", "old-ca")? && !has("certificate", "old-tls")?, "an upgrade changed the CA");
        run("install", "new", &["--create-namespace", "--set", &named("new")])?;
        check!(
            has("certificate", "new-tls")? && !has("configmap", "new-ca")?,
            "cert-manager is there, and not used"
        );
        // As cert-manager would.
        let space = ["-n", "new"];
        plane.kubectl(&[&["create", "secret", "generic", "new-tls"], &space[..]].concat())?;
        let note = "cert-manager.io/certificate-name=new-tls";
        plane.kubectl(&[&["annotate", "secret", "new-tls", note], &space[..]].concat())?;
        run("upgrade", "new", &["--reset-then-reuse-values"])?;
        check!(has("certificate", "new-tls")? && !has("configmap", "new-ca")?, "an upgrade changed the CA");
        kinds(plane, false)?;
        let Err(refusal) = run("upgrade", "new", &["--reset-then-reuse-values"]) else {
            bail!("an upgrade took the CA from cert-manager, which is gone")
        };
        let said = format!("{refusal:#}");
        check!(said.contains("cert-manager is not there"), "{said}");
        Ok(())
    })
}

/// Makes cert-manager's kinds, or takes them away.
fn kinds(plane: &ControlPlane, there: bool) -> Result<()> {
    if there {
        plane.kubectl_with(&["apply", "-f", "-"], CERT_MANAGER)?;
        let all = ["crd/certificates.cert-manager.io", "crd/issuers.cert-manager.io"];
        return plane
            .kubectl(&[&["wait", "--for=condition=Established", "--timeout=180s"], &all[..]].concat())
            .map(drop);
    }
    plane.kubectl_with(&["delete", "-f", "-"], CERT_MANAGER).map(drop)
}

/// The chart alone: the controller's own CA, and `weir` by a port of the pod.
fn plain(o: &Objects) -> Result<()> {
    own_ca(o, true)?;
    let at = operator(o)?;
    check!(at == "tcp://127.0.0.1:9503", "the operator's service is at {at}");
    for kind in ["NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule", "PersistentVolumeClaim"] {
        check!(o.of(kind).next().is_none(), "a {kind} that nobody asked for");
    }
    check!(o.containers().all(|(_, c)| c["name"] != "csi-attacher"), "csi-attacher without attachRequired");
    check!(!o.allows("volumeattachments", "patch"), "rights of csi-attacher without attachRequired");
    Ok(())
}

fn by_cert_manager(o: &Objects) -> Result<()> {
    own_ca(o, false)
}

fn everything(o: &Objects) -> Result<()> {
    own_ca(o, false)?;
    check!(o.of("CSIDriver").all(|d| d["spec"]["attachRequired"] == true), "attachRequired");
    check!(o.containers().any(|(_, c)| c["name"] == "csi-attacher"), "there is no csi-attacher");
    for resource in ["volumeattachments", "volumeattachments/status"] {
        check!(o.allows(resource, "patch"), "csi-attacher may not patch {resource}");
    }
    let wanted = [
        ("NetworkPolicy", "weir-controller"),
        ("ServiceMonitor", "weir-controller"),
        ("PodMonitor", "weir-node"),
        ("PrometheusRule", "weir"),
        ("StoragePool", "default"),
        ("StorageClass", "weir-striped"),
        ("Job", "weir-storage-profiles"),
        ("Job", "weir-uninstall-check"),
        ("PersistentVolumeClaim", "weir-test-volume"),
        ("Pod", "weir-test-controller"),
    ];
    for (kind, name) in wanted {
        o.get(kind, name)?;
    }
    for p in o.pods() {
        check!(p.spec["imagePullSecrets"][0]["name"] == "registry", "{p} does not say how its image is got");
        check!(p.spec["nodeSelector"].is_object(), "{p} goes to any node");
        check!(p.spec["tolerations"].is_array(), "{p} tolerates nothing");
    }
    // Whatever serves metrics is asked for them.
    let asked: BTreeSet<_> = ["ServiceMonitor", "PodMonitor"]
        .into_iter()
        .flat_map(|kind| o.of(kind))
        .flat_map(|m| items(&m["spec"]["endpoints"]).iter().chain(items(&m["spec"]["podMetricsEndpoints"])))
        .filter_map(|e| e["port"].as_str())
        .collect();
    for p in o.pods() {
        for port in p.ports().into_iter().filter(|n| *n != "session") {
            check!(asked.contains(port), "{p} has metrics at {port}, and no monitor asks");
        }
    }
    // helm test is no scraper, and has to come in.
    let policy = o.get("NetworkPolicy", "weir-controller")?;
    let test = o.get("Pod", "weir-test-controller")?;
    let admitted =
        items(&policy["spec"]["ingress"]).iter().flat_map(|rule| items(&rule["from"])).any(|from| {
            from["podSelector"].is_object() && fits(&from["podSelector"], &test["metadata"]["labels"])
        });
    check!(admitted, "the NetworkPolicy keeps helm test out");
    Ok(())
}

fn host_network(o: &Objects) -> Result<()> {
    let pod = &o.get("Deployment", "store-controller")?["spec"]["template"]["spec"];
    check!(pod["hostNetwork"] == true, "the controllers are not in the nodes' network");
    let at = operator(o)?;
    check!(at.starts_with("unix://"), "any process of the node may operate at {at}");
    for kind in ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount", "Job"] {
        check!(o.of(kind).next().is_none(), "a {kind}, which others make here");
    }
    Ok(())
}

/// Whether the controller makes the certificates, or cert-manager does.
fn own_ca(o: &Objects, own: bool) -> Result<()> {
    let bundle = o.get("ConfigMap", "weir-ca").is_ok();
    let writes = o.allows("secrets", "update");
    let issued = o.of("Certificate").count() == 2 && o.of("Issuer").count() == 2;
    let told = config(o, "weir-controller", "controller.yaml")?["tls"]["kubernetes"].is_object();
    let all = [bundle == own, writes == own, issued != own, told == own];
    check!(
        all == [true; 4],
        "certificates are {}the controller's in part: {all:?}",
        if own { "" } else { "not " }
    );
    Ok(())
}

/// Where the controller serves `weir`.
fn operator(o: &Objects) -> Result<String> {
    let name = o.named_like("Deployment", "-controller").context("the controller's Deployment")?;
    let config = config(o, name, "controller.yaml")?;
    config["listen"]["operator"]["at"].as_str().map(str::to_owned).context("listen.operator")
}

/// A file in a ConfigMap.
fn config(o: &Objects, map: &str, file: &str) -> Result<Value> {
    let text = o.get("ConfigMap", map)?["data"][file].as_str().with_context(|| format!("{file} in {map}"))?;
    serde_yaml::from_str(text).with_context(|| format!("parse {file}"))
}

/// Both programs take the files that the chart writes for them.
fn programs_understand(o: &Objects) -> Result<()> {
    let here = std::env::current_exe().context("find this program")?;
    let dir = here.parent().context("this program's folder")?;
    let scratch = tempfile::tempdir().context("a folder for configurations")?;
    for (suffix, file, program) in
        [("-controller", "controller.yaml", "weir-controller"), ("-node", "node.yaml", "weir-node")]
    {
        let map = o.named_like("ConfigMap", suffix).with_context(|| format!("a ConfigMap ..{suffix}"))?;
        let text = o.get("ConfigMap", map)?["data"][file].as_str().with_context(|| file.to_owned())?;
        let path: PathBuf = scratch.path().join(file);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let mut c = Command::new(dir.join(program));
        run_tool(c.arg("--check-config").arg("--config").arg(&path))?;
    }
    Ok(())
}

/// What was rendered.
struct Objects(Vec<Value>);

/// A pod, or the template of some.
struct Pod<'a> {
    kind: &'a str,
    name: &'a str,
    labels: &'a Value,
    spec: &'a Value,
}

impl fmt::Display for Pod<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        items(&self.spec["initContainers"]).iter().chain(items(&self.spec["containers"]))
    }

    /// Names of its containers' ports.
    fn ports(&self) -> BTreeSet<&'a str> {
        self.containers().flat_map(|c| items(&c["ports"])).filter_map(|p| p["name"].as_str()).collect()
    }
}

impl Objects {
    fn parse(text: &str) -> Result<Self> {
        let parsed: Result<Vec<_>, _> =
            serde_yaml::Deserializer::from_str(text).map(Value::deserialize).collect();
        let all = parsed.context("parse what helm rendered")?;
        Ok(Self(all.into_iter().filter(|v| !v.is_null()).collect()))
    }

    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |v| v["kind"] == kind)
    }

    fn get(&self, kind: &str, name: &str) -> Result<&Value> {
        let mut all = self.0.iter().filter(|v| v["kind"] == kind);
        all.find(|v| v["metadata"]["name"] == name).with_context(|| format!("there is no {kind} {name}"))
    }

    fn named_like<'a>(&'a self, kind: &'a str, suffix: &str) -> Option<&'a str> {
        self.of(kind).filter_map(|v| v["metadata"]["name"].as_str()).find(|n| n.ends_with(suffix))
    }

    fn pods(&self) -> impl Iterator<Item = Pod<'_>> {
        self.0.iter().filter_map(|v| {
            let pod = if v["kind"] == "Pod" { v } else { &v["spec"]["template"] };
            let (kind, name) = (v["kind"].as_str()?, v["metadata"]["name"].as_str()?);
            let spec = &pod["spec"];
            spec["containers"].is_array().then_some(Pod {
                kind,
                name,
                labels: &pod["metadata"]["labels"],
                spec,
            })
        })
    }

    fn containers(&self) -> impl Iterator<Item = (Pod<'_>, &Value)> {
        self.pods().flat_map(|p| {
            let (kind, name, labels, spec) = (p.kind, p.name, p.labels, p.spec);
            p.containers().map(move |c| (Pod { kind, name, labels, spec }, c))
        })
    }

    fn selected<'a>(&'a self, selector: &'a Value) -> impl Iterator<Item = Pod<'a>> {
        self.pods().filter(move |p| fits(selector, p.labels))
    }

    /// Whether any role has the right.
    fn allows(&self, resource: &str, verb: &str) -> bool {
        let has = |list: &Value, word: &str| items(list).iter().any(|w| w == word);
        let rules = self.of("ClusterRole").chain(self.of("Role")).flat_map(|r| items(&r["rules"]));
        rules.into_iter().any(|r| has(&r["resources"], resource) && has(&r["verbs"], verb))
    }
}

/// Whether labels are what a selector asks for: `matchLabels` of it, or all of it where it is a Service's.
fn fits(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.get("matchLabels").unwrap_or(selector).as_object();
    wanted.is_some_and(|w| !w.is_empty() && w.iter().all(|(k, v)| labels[k] == *v))
}

/// What objects say of others that is not so. `given`: kinds and names of what others make.
fn faults(o: &Objects, given: &[(&str, &str)]) -> Vec<String> {
    let mut out = twice(o);
    services(o, &mut out);
    monitors(o, &mut out);
    policies(o, &mut out);
    alerts(o, &mut out);
    let mut there: BTreeSet<(&str, &str)> = given.iter().copied().collect();
    for v in &o.0 {
        if let (Some(kind), Some(name)) = (v["kind"].as_str(), v["metadata"]["name"].as_str()) {
            there.insert((kind, name));
        }
    }
    for c in o.of("Certificate") {
        there.extend(c["spec"]["secretName"].as_str().map(|s| ("Secret", s)));
    }
    for p in o.pods() {
        references(&p, &there, &mut out);
    }
    for b in o.of("RoleBinding").chain(o.of("ClusterRoleBinding")) {
        for r in [&b["roleRef"]].into_iter().chain(items(&b["subjects"])) {
            expect_there(&format!("{} {}", b["kind"], b["metadata"]["name"]), r, &there, &mut out);
        }
    }
    out
}

/// Objects of one name.
fn twice(o: &Objects) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let name = |v: &Value| format!("{} {} {}", v["apiVersion"], v["kind"], v["metadata"]["name"]);
    let all = o.0.iter().map(name);
    all.filter(|n| n.contains("null") || !seen.insert(n.clone()))
        .map(|n| format!("{n}: incomplete, or twice"))
        .collect()
}

/// Alerts ask for metrics and labels' values that docs/metrics.md knows.
fn alerts(o: &Objects, out: &mut Vec<String>) {
    let known = include_str!("../../docs/metrics.md");
    let rules =
        o.of("PrometheusRule").flat_map(|r| items(&r["spec"]["groups"])).flat_map(|g| items(&g["rules"]));
    for rule in rules {
        let (alert, expr) = (&rule["alert"], rule["expr"].as_str().unwrap_or_default());
        let names =
            expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("weir_"));
        let mut rows = Vec::new();
        for name in names {
            match known.lines().find(|l| l.starts_with(&format!("| `{name}`"))) {
                Some(row) => rows.push(row),
                None => out.push(format!("alert {alert}: no metric is named {name}")),
            }
        }
        if rows.is_empty() {
            out.push(format!("alert {alert}: asks for nothing of Weir's"));
        }
        // Every second part of what quotes divide.
        for value in expr.split('"').skip(1).step_by(2) {
            if !rows.iter().any(|r| r.contains(&format!("`{value}`"))) {
                out.push(format!("alert {alert}: nothing has the value {value}"));
            }
        }
    }
}

/// A Service leads to ports of pods.
fn services(o: &Objects, out: &mut Vec<String>) {
    for s in o.of("Service") {
        let targets = items(&s["spec"]["ports"]).iter().map(|p| p["targetPort"].as_str());
        on_pods(o, s, &s["spec"]["selector"], targets, out);
    }
}

/// Monitors ask ports that exist.
fn monitors(o: &Objects, out: &mut Vec<String>) {
    for m in o.of("PodMonitor") {
        let ports = items(&m["spec"]["podMetricsEndpoints"]).iter().map(|e| e["port"].as_str());
        on_pods(o, m, &m["spec"]["selector"], ports, out);
    }
    for m in o.of("ServiceMonitor") {
        let services =
            || o.of("Service").filter(move |s| fits(&m["spec"]["selector"], &s["metadata"]["labels"]));
        if services().next().is_none() {
            out.push(format!("ServiceMonitor {}: no Service fits", m["metadata"]["name"]));
        }
        for s in services() {
            let has: BTreeSet<_> =
                items(&s["spec"]["ports"]).iter().filter_map(|p| p["name"].as_str()).collect();
            let asked = items(&m["spec"]["endpoints"]).iter().map(|e| e["port"].as_str().unwrap_or_default());
            let missing = asked.filter(|p| !has.contains(p));
            out.extend(missing.map(|p| format!("ServiceMonitor {}: no port {p:?}", m["metadata"]["name"])));
        }
    }
}

/// Policies and budgets are for pods that exist, and for ports of theirs.
fn policies(o: &Objects, out: &mut Vec<String>) {
    for p in o.of("NetworkPolicy") {
        let rules = items(&p["spec"]["ingress"]).iter();
        let ports = rules.flat_map(|r| items(&r["ports"])).map(|port| port["port"].as_str());
        on_pods(o, p, &p["spec"]["podSelector"], ports, out);
    }
    for b in o.of("PodDisruptionBudget") {
        on_pods(o, b, &b["spec"]["selector"], [], out);
    }
}

/// There are pods that a selector of `of` fits, and each has the ports.
fn on_pods<'a>(
    o: &Objects,
    of: &Value,
    selector: &Value,
    ports: impl IntoIterator<Item = Option<&'a str>>,
    out: &mut Vec<String>,
) {
    let who = format!("{} {}", of["kind"], of["metadata"]["name"]);
    if o.selected(selector).next().is_none() {
        out.push(format!("{who}: no pod fits"));
    }
    for port in ports {
        let Some(port) = port else {
            out.push(format!("{who}: a port without a name"));
            continue;
        };
        let lacking = o.selected(selector).filter(|p| !p.ports().contains(port));
        out.extend(lacking.map(|p| format!("{who}: {p} has no port {port:?}")));
    }
}

/// What a pod needs is there.
fn references(p: &Pod<'_>, there: &BTreeSet<(&str, &str)>, out: &mut Vec<String>) {
    let mut needs = |kind: &str, name: &Value| {
        if let Some(name) = name.as_str()
            && !there.contains(&(kind, name))
        {
            out.push(format!("{p}: there is no {kind} {name}"));
        }
    };
    needs("ServiceAccount", &p.spec["serviceAccountName"]);
    for s in items(&p.spec["imagePullSecrets"]) {
        needs("Secret", &s["name"]);
    }
    for v in items(&p.spec["volumes"]) {
        needs("ConfigMap", &v["configMap"]["name"]);
        needs("Secret", &v["secret"]["secretName"]);
        needs("PersistentVolumeClaim", &v["persistentVolumeClaim"]["claimName"]);
    }
    let volumes: BTreeSet<_> = items(&p.spec["volumes"]).iter().filter_map(|v| v["name"].as_str()).collect();
    let ports = p.ports();
    for c in p.containers() {
        let mounts = items(&c["volumeMounts"]).iter().filter_map(|m| m["name"].as_str());
        out.extend(mounts.filter(|m| !volumes.contains(m)).map(|m| format!("{p}: no volume is named {m}")));
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            if let Some(port) = c[probe]["httpGet"]["port"].as_str().filter(|port| !ports.contains(port)) {
                out.push(format!("{p}: {probe} asks port {port}, which there is not"));
            }
        }
    }
}

fn expect_there(who: &str, r: &Value, there: &BTreeSet<(&str, &str)>, out: &mut Vec<String>) {
    let (kind, name) = (r["kind"].as_str().unwrap_or_default(), r["name"].as_str().unwrap_or_default());
    if !there.contains(&(kind, name)) {
        out.push(format!("{who}: there is no {kind} {name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Deployment of one container, its Service, and what is to be judged beside them.
    fn with(more: &str) -> Objects {
        let all = format!(
            "
kind: Deployment
apiVersion: apps/v1
metadata: {{name: d}}
spec:
  template:
    metadata: {{labels: {{app: x}}}}
    spec:
      serviceAccountName: a
      containers:
      - ports: [{{name: http, containerPort: 1}}]
        readinessProbe: {{httpGet: {{port: http}}}}
        securityContext: &s {{privileged: false}}
      - {{ports: [], securityContext: *s}}
---
kind: Service
apiVersion: v1
metadata: {{name: d, labels: {{app: x}}}}
spec: {{selector: {{app: x}}, ports: [{{name: web, targetPort: http}}]}}
---
# Nothing but a remark.
---
{more}"
        );
        Objects::parse(&all).expect("YAML")
    }

    #[test]
    fn what_fits_together_has_no_fault() {
        let more = "
kind: ServiceMonitor
apiVersion: monitoring.coreos.com/v1
metadata: {name: d}
spec: {selector: {matchLabels: {app: x}}, endpoints: [{port: web}]}";
        assert_eq!(faults(&with(more), &[("ServiceAccount", "a")]), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_there_is_said() {
        let cases = [
            ("", "no ServiceAccount a"),
            (
                "{kind: PodMonitor, apiVersion: m, metadata: {name: m}, spec: {selector: {matchLabels: {app: y}}}}",
                "no pod fits",
            ),
            (
                "{kind: PodMonitor, apiVersion: m, metadata: {name: m}, spec: {selector: {matchLabels: {app: x}}, \
                 podMetricsEndpoints: [{port: metrics}]}}",
                "no port \"metrics\"",
            ),
            (
                "{kind: ServiceMonitor, apiVersion: m, metadata: {name: m}, spec: {selector: {matchLabels: {app: x}}, \
                 endpoints: [{port: http}]}}",
                "no port \"http\"",
            ),
            (
                "{kind: NetworkPolicy, apiVersion: n, metadata: {name: m}, spec: {podSelector: {matchLabels: {app: x}}, \
                 ingress: [{ports: [{port: gone}]}]}}",
                "no port \"gone\"",
            ),
            ("{kind: Deployment, apiVersion: apps/v1, metadata: {name: d}}", "twice"),
            (
                "{kind: Pod, apiVersion: v1, metadata: {name: p}, spec: {volumes: [{name: v, configMap: {name: c}}], \
                 containers: [{volumeMounts: [{name: w}]}]}}",
                "no ConfigMap c",
            ),
            (
                "{kind: Pod, apiVersion: v1, metadata: {name: p}, spec: {containers: [{volumeMounts: [{name: w}]}]}}",
                "no volume is named w",
            ),
            (
                "{kind: PrometheusRule, apiVersion: m, metadata: {name: r}, spec: {groups: [{rules: [{alert: A, expr: weir_gone > 0}]}]}}",
                "no metric is named weir_gone",
            ),
            (
                "{kind: PrometheusRule, apiVersion: m, metadata: {name: r}, spec: {groups: [{rules: \
                 [{alert: A, expr: 'weir_nodes{state=\"gone\"} > 0'}]}]}}",
                "nothing has the value gone",
            ),
            (
                "{kind: RoleBinding, apiVersion: r, metadata: {name: b}, roleRef: {kind: Role, name: r}}",
                "no Role r",
            ),
        ];
        for (more, says) in cases {
            let found = faults(&with(more), &[]).join("\n");
            assert!(found.contains(says), "{says}: {found}");
        }
    }

    #[test]
    fn a_right_is_a_resource_with_a_verb() {
        let o = with(
            "{kind: Role, apiVersion: r, metadata: {name: r}, rules: [{resources: [a], verbs: [get]}, {resources: [b], verbs: [patch]}]}",
        );
        assert!(o.allows("a", "get") && o.allows("b", "patch") && !o.allows("a", "patch"));
    }
}
