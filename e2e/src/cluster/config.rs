//! The configuration files of a lab's cluster.

use std::{net::TcpListener, path::Path};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::{Value, json};

use super::Spec;
use crate::lab::Node;

/// Where the plugin of a node speaks CSI.
pub(super) const NODE_SOCKET: &str = "/run/weir/csi.sock";

/// The controller's ports on the host's loopback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) csi: u16,
    pub(super) nodes: u16,
    pub(super) operator: u16,
}

impl Ports {
    /// Three that are free now. Another program may take them before the controller does: it then says so.
    pub(super) fn pick() -> Result<Self> {
        let held = || TcpListener::bind("127.0.0.1:0");
        let (csi, nodes, operator) = (held()?, held()?, held()?);
        let port = |l: &TcpListener| l.local_addr().map(|a| a.port());
        Ok(Self { csi: port(&csi)?, nodes: port(&nodes)?, operator: port(&operator)? })
    }
}

/// The pool of the lab's disks, as the custom resource has it and the configuration as well.
pub(super) fn pool(spec: &Spec) -> Value {
    let serials: Vec<_> = (0..spec.pool_disks()).map(|disk| format!("weir-n*-d{disk}")).collect();
    let mut devices = vec![json!({"serials": serials})];
    devices.extend(spec.extra_devices.iter().map(|path| json!({"paths": [path]})));
    json!({
        "apiVersion": "weir.storage/v1alpha1",
        "kind": "StoragePool",
        "metadata": {"name": "default"},
        "spec": {
            "extentSize": spec.extent_size,
            "freshDisks": if spec.trust_fresh_disks { "trust" } else { "wipe" },
            "devices": devices,
            "reserve": spec.reserve,
            "moving": spec.moving,
        },
    })
}

pub(super) fn controller(spec: &Spec, ports: Ports, dir: &Path) -> String {
    let tls = dir.join("tls");
    let mut config = json!({
        "listen": {
            "csi": format!("tcp://127.0.0.1:{}", ports.csi),
            "nodes": format!("127.0.0.1:{}", ports.nodes),
            "operator": {"at": format!("tcp://127.0.0.1:{}", ports.operator)},
        },
        // Where a pool has anything move, it is soon.
        "moves": {"settle": "5s", "every": "2s"},
        "lendByForecast": spec.lend_by_forecast,
        "tls": {"ca": tls.join("ca.crt"), "cert": tls.join("controller.crt"), "key": tls.join("controller.key")},
    });
    if let Some(kubeconfig) = &spec.kubeconfig {
        config["kubeconfig"] = json!(kubeconfig);
        config["store"] = json!({"kubernetes": {"namespace": "default", "lease": "weir-controller"}});
    } else {
        config["store"] = json!({"path": dir.join("controller.redb")});
        config["pools"] = json!([pool(spec)]);
    }
    // JSON is YAML.
    format!("{config:#}\n")
}

/// What `weir --lab` reads.
pub(super) fn operator(ports: Ports, dir: &Path) -> String {
    let tls = dir.join("tls");
    format!(
        "endpoint: https://127.0.0.1:{}\nca: {tls}/ca.crt\ncert: {tls}/operator.crt\nkey: {tls}/operator.key\n",
        ports.operator,
        tls = tls.display()
    )
}

pub(super) fn node(node: &Node, spec: &Spec, ports: Ports) -> String {
    // Whoever names a device of a kind that is left out otherwise has to name all of them.
    let devices = match spec.extra_devices.as_slice() {
        [] => String::new(),
        extra => format!("devices: ['/dev/vd*', '{}']\n", extra.join("', '")),
    };
    format!(
        "node: {}\ncontroller:\n  endpoints: ['https://10.0.2.2:{}']\n  \
         tls: {{ca: {TLS_DIR}/ca.crt, cert: {TLS_DIR}/node.crt, key: {TLS_DIR}/node.key}}\n\
         csi:\n  endpoint: unix://{NODE_SOCKET}\nstorage:\n  address: {}\n{devices}",
        node.name(),
        ports.nodes,
        node.storage_ip()
    )
}

/// Where a node keeps its TLS files.
pub(super) const TLS_DIR: &str = "/etc/weir/tls";

/// The lab's own CA, with a certificate for the controller and one for each node that names it.
pub(super) struct Pki {
    ca: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub(super) struct Pair {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Pki {
    pub(super) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "weir lab");
        let ca = params.self_signed(&key)?;
        Ok(Self { ca, issuer: rcgen::Issuer::new(params, key) })
    }

    pub(super) fn ca(&self) -> String {
        self.ca.pem()
    }

    /// For the controller, as nodes and the host reach it.
    pub(super) fn controller(&self) -> Result<Pair> {
        self.issue("weir-controller", "", &["10.0.2.2", "127.0.0.1", "localhost"])
    }

    /// For the node of this name.
    pub(super) fn node(&self, name: &str) -> Result<Pair> {
        self.issue(name, "", &[])
    }

    /// For whoever operates the lab.
    pub(super) fn operator(&self) -> Result<Pair> {
        self.issue("lab", "weir:operators", &[])
    }

    fn issue(&self, name: &str, organization: &str, also: &[&str]) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(also.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        if !organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}
