//! A controller with TLS on loopback, two nodes that obey it, and the program.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant, SystemTime},
};

use controller::{config::Config, fault::Fault, serve};
use csi_proto::node as wire;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use wire::node_session_client::NodeSessionClient;

pub(crate) const MIB: u64 = 1 << 20;
const EXTENT: u64 = 4 * MIB;
const EXTENTS: u64 = 10;

pub(crate) struct Stand {
    dir: tempfile::TempDir,
    port: u16,
    nodes: BTreeMap<&'static str, mpsc::Sender<wire::NodeMessage>>,
    _stop: watch::Sender<bool>,
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, f: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !f() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for (name, organization) in [("controller", ""), ("n1", ""), ("n2", ""), ("me", "weir:operators")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if !organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

impl Stand {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        certificates(dir.path());
        let ports: Vec<u16> = {
            let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            held.iter().map(|l| l.local_addr().unwrap().port()).collect()
        };
        let text = format!(
            "listen: {{csi: 'tcp://127.0.0.1:{}', nodes: '127.0.0.1:{}', operator: {{at: 'tcp://127.0.0.1:{}'}}}}\n\
             tls: {{ca: {at}/ca.crt, cert: {at}/controller.crt, key: {at}/controller.key}}\n\
             store: {{path: {at}/store.redb}}\n\
             lendByForecast: true\n\
             pools:\n- metadata: {{name: p}}\n  spec: {{extentSize: 4Mi, freshDisks: trust, devices: [{{paths: ['/dev/n*']}}]}}\n",
            ports[0], ports[1], ports[2]
        );
        let config = Config::parse(Path::new("test.yaml"), &text).unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move { serve::run(config, None, Fault::none(), stopped).await.unwrap() });
        let mut stand = Self { dir, port: ports[2], nodes: BTreeMap::new(), _stop: stop };
        // It turns nodes away before it reigns, and serves operators only from then on.
        until("the controller reigns", || stand.run("me", &["status"]).status.success()).await;
        for name in ["n1", "n2"] {
            let node = stand.node(name, ports[1]).await;
            stand.nodes.insert(name, node);
        }
        until("both disks serve", || {
            let s = stand.run("me", &["status", "-o", "json"]);
            s.status.success()
                && serde_json::from_slice::<Value>(&s.stdout).unwrap()["pools"][0]["freeBytes"]
                    == 2 * EXTENTS * EXTENT
        })
        .await;
        stand
    }

    fn pem(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    /// A node with one disk, that does what it is told.
    async fn node(&self, name: &'static str, port: u16) -> mpsc::Sender<wire::NodeMessage> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.pem("ca.crt")))
            .identity(Identity::from_pem(self.pem(&format!("{name}.crt")), self.pem(&format!("{name}.key"))));
        let endpoint =
            Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().tls_config(tls).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let channel = loop {
            match endpoint.connect().await {
                Ok(c) => break c,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let (tx, rx) = mpsc::channel(64);
        let hello = wire::Hello {
            node: name.into(),
            boot_id: "b".into(),
            storage_address: "127.0.0.1".into(),
            storage_port: 4420,
            ..wire::Hello::default()
        };
        let device = wire::Device {
            device_id: name.into(),
            path: format!("/dev/{name}"),
            size_bytes: (EXTENTS + 1) * EXTENT,
            logical_block: 512,
            physical_block: 512,
            content: wire::DeviceContent::Blank.into(),
            ..wire::Device::default()
        };
        let full = wire::Report { full: true, devices: vec![device], ..wire::Report::default() };
        for m in [wire::node_message::Message::Hello(hello), wire::node_message::Message::Report(full)] {
            tx.send(wire::NodeMessage { message: Some(m) }).await.unwrap();
        }
        let mut heard =
            NodeSessionClient::new(channel).session(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let say = tx.clone();
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_millis(500));
            loop {
                let message = tokio::select! {
                    m = heard.message() => match m {
                        Ok(Some(m)) => match m.message {
                            Some(wire::controller_message::Message::Goals(g)) => wire::node_message::Message::Report(obey(name, g)),
                            _ => continue,
                        },
                        _ => return,
                    },
                    _ = beat.tick() => wire::node_message::Message::Heartbeat(wire::Heartbeat::default()),
                };
                if say.send(wire::NodeMessage { message: Some(message) }).await.is_err() {
                    return;
                }
            }
        });
        tx
    }

    /// The node says what its disk did in the last hours: 300 of load.
    pub(crate) async fn record(&self, node: &str, hours: u64) {
        let disks = self.json(&["disks"]);
        let disk = disks.as_array().unwrap().iter().find(|d| d["node"] == node).unwrap()["disk"].clone();
        let disk = disk.as_str().unwrap().to_owned();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut series = forecast::Series::new(forecast::Shape::DISK);
        // From the beginning of an hour on, so that it counts in full.
        for at in ((now / 3600 - hours + 1) * 3600..now).step_by(10) {
            series.record(at, 300.0);
        }
        let history = wire::History {
            of: Some(wire::history::Of::Disk(disk.clone())),
            series: series.encode(),
            model: forecast::DeviceModel::new(forecast::DeviceClass::Ssd).encode(),
            ..wire::History::default()
        };
        let sample = wire::DiskSample {
            disk,
            disk_class: wire::DiskClass::Ssd.into(),
            load: 300.0,
            queue: 0.5,
            latency_s: Some(0.002),
            ..wire::DiskSample::default()
        };
        let old = wire::Recording { histories: vec![history], ..wire::Recording::default() };
        let new =
            wire::Recording { sequence: 1, at_s: now + 1, disks: vec![sample], ..wire::Recording::default() };
        for r in [old, new] {
            let m = wire::NodeMessage { message: Some(wire::node_message::Message::Recording(r)) };
            self.nodes[node].send(m).await.unwrap();
        }
        until("the sample has arrived", || {
            self.json(&["disks"]).as_array().unwrap().iter().any(|d| !d["activity"].is_null())
        })
        .await;
    }

    fn run(&self, who: &str, args: &[&str]) -> Output {
        self.command(who, args).output().unwrap()
    }

    fn command(&self, who: &str, args: &[&str]) -> Command {
        let file = |name: String| -> PathBuf { self.dir.path().join(name) };
        let mut c = Command::new(env!("CARGO_BIN_EXE_weir"));
        c.env_clear().env("HOME", self.dir.path()).env("COLUMNS", "400");
        if !args.contains(&"--endpoint") && !args.contains(&"--lab") {
            c.env("WEIR_ENDPOINT", format!("https://127.0.0.1:{}", self.port))
                .env("WEIR_CA", file("ca.crt".into()))
                .env("WEIR_CERT", file(format!("{who}.crt")))
                .env("WEIR_KEY", file(format!("{who}.key")));
        }
        c.args(args);
        c
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.run("me", args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn table(&self, args: &[&str]) -> String {
        self.ok(args)
    }

    pub(crate) fn narrow(&self, args: &[&str], columns: u16) -> String {
        let file = |name: &str| self.dir.path().join(name);
        let out = Command::new(env!("CARGO_BIN_EXE_kubectl-weir"))
            .env_clear()
            .env("COLUMNS", columns.to_string())
            .args(["--endpoint", &format!("https://127.0.0.1:{}", self.port)])
            .args(["--ca".as_ref(), file("ca.crt").as_os_str()])
            .args([
                "--cert".as_ref(),
                file("me.crt").as_os_str(),
                "--key".as_ref(),
                file("me.key").as_os_str(),
            ])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// Runs it until it has written a line, and presses Ctrl-C then: its exit code and what it said on stderr.
    pub(crate) fn interrupted(&self, args: &[&str]) -> (Option<i32>, String) {
        use std::io::{BufRead as _, BufReader, Read as _};
        let mut child =
            self.command("me", args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap().code(), said)
    }

    pub(crate) fn fails(&self, args: &[&str]) -> String {
        self.fails_as("me", args)
    }

    pub(crate) fn fails_as(&self, who: &str, args: &[&str]) -> String {
        let out = self.run(who, args);
        assert!(!out.status.success(), "{args:?} succeeded: {}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8(out.stderr).unwrap()
    }
}

fn obey(node: &str, g: wire::Goals) -> wire::Report {
    let disk = |d: wire::DiskGoal| wire::ObservedDisk {
        disk: d.disk,
        epoch: d.epoch,
        condition: wire::DiskCondition::Serving.into(),
        extents: EXTENTS,
        device_id: node.into(),
        path: format!("/dev/{node}"),
        ..wire::ObservedDisk::default()
    };
    let export = |e: wire::ExportGoal| wire::ObservedExport {
        volume: e.volume,
        disk: e.disk,
        consumer: e.consumer,
        epoch: e.epoch,
        state: e.state,
        ..wire::ObservedExport::default()
    };
    let attachment = |a: wire::AttachmentGoal| {
        let open = match a.role() {
            wire::AttachmentRole::RoleWriter => wire::AttachmentState::AttachmentOpen,
            _ => wire::AttachmentState::AttachmentAbsent,
        };
        let map = a.map.unwrap_or_default();
        let filling = map.segments.iter().any(|s| s.spare.as_ref().is_some_and(|p| p.filling));
        let mirror = if filling { wire::MirrorState::MirrorWhole } else { wire::MirrorState::MirrorGone };
        wire::ObservedAttachment {
            volume: a.volume,
            epoch: a.epoch,
            state: open.into(),
            mirror: Some(wire::Mirror { state: mirror.into(), ..wire::Mirror::default() }),
            size_bytes: map.segments.iter().map(|s| s.count).sum::<u64>() * map.extent_size,
            ..wire::ObservedAttachment::default()
        }
    };
    let wipe = |w: wire::WipeGoal| wire::ObservedWipe {
        disk: w.disk,
        wipe: w.wipe,
        done: true,
        ..wire::ObservedWipe::default()
    };
    wire::Report {
        disks: g.disks.into_iter().map(disk).collect(),
        exports: g.exports.into_iter().map(export).collect(),
        attachments: g.attachments.into_iter().map(attachment).collect(),
        wipes: g.wipes.into_iter().map(wipe).collect(),
        ..wire::Report::default()
    }
}
