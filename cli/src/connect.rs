//! The way to a controller's Operator service: an endpoint, a lab, or a cluster.
//!
//! In a cluster the service listens on the loopback of the pod that reigns: kubectl forwards a port to it. So whoever may
//! forward ports to that pod may operate, Kubernetes's own rights decide, and no certificate has to be handed out.

use std::{
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use csi_proto::operator::operator_client::OperatorClient;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};

use crate::args::To;

/// Where a configuration is looked for when none is named, first the person's own.
const CONFIGS: [&str; 2] = [".config/weir/cli.yaml", "/etc/weir/cli.yaml"];
/// The port in the controller's pod.
const POD_PORT: u16 = 9503;
/// How long the way may take.
const DIAL: Duration = Duration::from_secs(10);
/// How long an answer may take: longer than any deadline inside of the controller.
const ANSWER: Duration = Duration::from_secs(60);
/// Pages are at most so long.
const LONGEST: usize = 64 << 20;

/// Why no controller was reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: serde_yaml::Error,
    },
    /// An endpoint that is none.
    #[error("{0:?} is no endpoint: https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH is expected")]
    Endpoint(String),
    /// TLS.
    #[error("the certificates cannot be used: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// Nobody answers there.
    #[error("no controller answers at {at}: {why}")]
    Dial {
        /// Where.
        at: String,
        /// Why.
        why: String,
    },
    /// There is no such lab.
    #[error("lab {name} has no controller: {} is not there", path.display())]
    Lab {
        /// Its name.
        name: String,
        /// What was looked for.
        path: PathBuf,
    },
    /// kubectl.
    #[error("cannot run kubectl: {0}; without a cluster give --endpoint, --lab or --config")]
    Kubectl(#[source] io::Error),
    /// kubectl refused.
    #[error("kubectl {what}: {said}; without a cluster give --endpoint, --lab or --config")]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// Nobody reigns.
    #[error("no controller reigns in namespace {namespace}: its Lease {lease} has no holder that is a pod")]
    Nobody {
        /// The namespace.
        namespace: String,
        /// The Lease that was looked at.
        lease: String,
    },
}

/// Where a controller is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Place {
    endpoint: String,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// A controller that is reached, and what keeps the way open.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: OperatorClient<Channel>,
    /// Ends with this value.
    _forward: Option<Forward>,
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::File { path: path.to_owned(), source })
}

fn parse(path: &Path) -> Result<Place, ConnectError> {
    serde_yaml::from_slice(&read(path)?)
        .map_err(|source| ConnectError::Config { path: path.to_owned(), source })
}

/// What a lab's cluster wrote for us, in the labs' folder: WEIR_LAB_DIR, or `.lab` here or above.
fn lab(name: &str) -> Result<Place, ConnectError> {
    let here = std::env::current_dir().unwrap_or_default();
    let root = match std::env::var_os("WEIR_LAB_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            here.ancestors().map(|d| d.join(".lab")).find(|d| d.is_dir()).unwrap_or_else(|| here.join(".lab"))
        }
    };
    let path = root.join(name).join("operator.yaml");
    if path.is_file() { parse(&path) } else { Err(ConnectError::Lab { name: name.to_owned(), path }) }
}

/// The place that the command line or a configuration names; `None`: the kubeconfig's cluster.
fn place(to: &To) -> Result<Option<Place>, ConnectError> {
    if let Some(endpoint) = &to.endpoint {
        let (ca, cert, key) = (to.ca.clone(), to.cert.clone(), to.key.clone());
        return Ok(Some(Place { endpoint: endpoint.clone(), ca, cert, key }));
    }
    if let Some(name) = &to.lab {
        return lab(name).map(Some);
    }
    if let Some(path) = &to.config {
        return parse(path).map(Some);
    }
    if to.context.is_some() {
        return Ok(None);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    // An absolute path replaces what it is joined to.
    let found = CONFIGS.iter().map(|c| home.join(c)).find(|p| p.is_file());
    found.map(|p| parse(&p)).transpose()
}

/// Reaches the controller.
pub(crate) async fn connect(to: &To) -> Result<Connection, ConnectError> {
    let (place, forward) = match place(to)? {
        Some(p) => (p, None),
        None => {
            let f = Forward::start(to)?;
            (Place { endpoint: format!("http://127.0.0.1:{}", f.port), ..Place::default() }, Some(f))
        }
    };
    let client = OperatorClient::new(dial(&place).await?).max_decoding_message_size(LONGEST);
    Ok(Connection { client, _forward: forward })
}

async fn dial(place: &Place) -> Result<Channel, ConnectError> {
    let bad = || ConnectError::Endpoint(place.endpoint.clone());
    let failed = |e: tonic::transport::Error| {
        use std::error::Error as _;
        let mut why = e.to_string();
        let mut cause = e.source();
        while let Some(c) = cause {
            why = c.to_string();
            cause = c.source();
        }
        ConnectError::Dial { at: place.endpoint.clone(), why }
    };
    if let Some(path) = place.endpoint.strip_prefix("unix://") {
        let path = PathBuf::from(path);
        let by_path = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://operator").timeout(ANSWER);
        return endpoint.connect_with_connector(by_path).await.map_err(failed);
    }
    let secure = place.endpoint.starts_with("https://");
    if !secure && !place.endpoint.starts_with("http://") {
        return Err(bad());
    }
    let mut endpoint = Endpoint::from_shared(place.endpoint.clone()).map_err(|_| bad())?;
    endpoint = endpoint.connect_timeout(DIAL).timeout(ANSWER);
    if secure {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &place.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(cert), Some(key)) = (&place.cert, &place.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls).map_err(ConnectError::Tls)?;
    }
    endpoint.connect().await.map_err(failed)
}

/// A port of this machine that leads into the pod that reigns.
#[derive(Debug)]
struct Forward {
    child: Child,
    port: u16,
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() && self.child.wait().is_err() {
            eprintln!("kubectl port-forward did not end");
        }
    }
}

fn kubectl(to: &To) -> Command {
    let mut c = Command::new("kubectl");
    if let Some(context) = &to.context {
        c.args(["--context", context]);
    }
    c.args(["--namespace", &to.namespace]);
    c
}

/// The pod in a Lease's holder: its name, and a UUID of the process behind it.
fn holder_pod(holder: &str) -> Option<&str> {
    let cut = holder.len().checked_sub(37)?;
    let (pod, rest) = holder.split_at_checked(cut)?;
    let uuid = rest.strip_prefix('-')?;
    let dashes = uuid.char_indices().filter(|(_, c)| *c == '-').map(|(i, _)| i);
    (!pod.is_empty() && dashes.eq([8, 13, 18, 23])).then_some(pod)
}

/// `Forwarding from 127.0.0.1:40001 -> 9503`
fn forwarded_port(line: &str) -> Option<u16> {
    line.strip_prefix("Forwarding from 127.0.0.1:")?.split_whitespace().next()?.parse().ok()
}

impl Forward {
    fn start(to: &To) -> Result<Self, ConnectError> {
        let lease = kubectl(to)
            .args(["get", "lease", &to.lease, "-o", "jsonpath={.spec.holderIdentity}"])
            .stdin(Stdio::null())
            .output()
            .map_err(ConnectError::Kubectl)?;
        if !lease.status.success() {
            let said = String::from_utf8_lossy(&lease.stderr).trim().to_owned();
            return Err(ConnectError::Refused { what: "get lease", said });
        }
        let holder = String::from_utf8_lossy(&lease.stdout).trim().to_owned();
        let nobody = || ConnectError::Nobody { namespace: to.namespace.clone(), lease: to.lease.clone() };
        let pod = holder_pod(&holder).ok_or_else(nobody)?;
        let child = kubectl(to)
            .args(["port-forward", "--address", "127.0.0.1", &format!("pod/{pod}"), &format!(":{POD_PORT}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ConnectError::Kubectl)?;
        let mut forward = Self { child, port: 0 };
        forward.port = forward.wait_port()?;
        Ok(forward)
    }

    /// Waits until kubectl says which port it is.
    fn wait_port(&mut self) -> Result<u16, ConnectError> {
        let refused = |said: String| ConnectError::Refused { what: "port-forward", said };
        let Some(out) = self.child.stdout.take() else { return Err(refused("no output".to_owned())) };
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            // Read to its end: kubectl writes a line for each connection and must not block.
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(port) = forwarded_port(&line)
                    && tx.send(port).is_err()
                {
                    return;
                }
            }
        });
        rx.recv_timeout(DIAL).map_err(|e| {
            let mut said = String::new();
            if e == mpsc::RecvTimeoutError::Disconnected
                && let Some(mut err) = self.child.stderr.take()
                && io::Read::read_to_string(&mut err, &mut said).is_err()
            {
                said.clear();
            }
            let said = said.trim();
            refused(if said.is_empty() { format!("no port after {DIAL:?}") } else { said.to_owned() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_that_reigns() {
        let holder = "weir-controller-7d4b9c-x2x5q-0f8fad5b-d9cb-469f-a165-70867728950e";
        assert_eq!(holder_pod(holder), Some("weir-controller-7d4b9c-x2x5q"));
        for bad in [
            "",
            "weir-controller",
            "-0f8fad5b-d9cb-469f-a165-70867728950e",
            "pod-é0f8fad5bd9cb469fa16570867728950e",
        ] {
            assert_eq!(holder_pod(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_port_that_kubectl_took() {
        assert_eq!(forwarded_port("Forwarding from 127.0.0.1:40001 -> 9503"), Some(40001));
        assert_eq!(forwarded_port("Forwarding from [::1]:40001 -> 9503"), None);
    }
}
