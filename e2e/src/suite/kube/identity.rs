//! Who may speak for a node: only whoever shows a token of the node plugin's account that was made for a pod there.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use csi_proto::node::{Hello, NodeMessage, node_message::Message, node_session_client::NodeSessionClient};
use futures::{StreamExt, stream};
use rcgen::{KeyPair, SigningKey};
use serde_json::Value;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

use super::{Case, leader};
use crate::kube::{
    KubeCluster,
    cluster::{PATIENCE, WEIR, condition, items},
};

pub(super) const CASES: &[Case] = &[Case {
    name: "kube/identity",
    about: "a token of another node, none, an expired one, one for somebody else: refused, logged and counted",
    run: identity,
}];

/// The name on the controllers' certificate.
const SERVER: &str = "weir-controller.weir-system.svc";

/// A port of a pod on this host's loopback, as long as this lives.
struct Forwarded {
    kubectl: Child,
    /// It writes a line for each connection, and would end if nobody held the other end.
    _said: BufReader<ChildStdout>,
    port: u16,
}

impl Forwarded {
    fn to(c: &KubeCluster, pod: &str, port: u16) -> Result<Self> {
        let mut command = c.plane().kubectl_command();
        command.args(["port-forward", "-n", WEIR, &format!("pod/{pod}"), &format!(":{port}")]);
        let mut kubectl =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("run kubectl")?;
        let mut line = String::new();
        let mut said = BufReader::new(kubectl.stdout.take().context("kubectl's output")?);
        said.read_line(&mut line).context("read from kubectl")?;
        // Forwarding from 127.0.0.1:41234 -> 9500
        let port = line.split("127.0.0.1:").nth(1).and_then(|r| r.split(' ').next()).map(str::parse);
        match port {
            Some(Ok(port)) => Ok(Self { kubectl, _said: said, port }),
            _ => {
                drop(kubectl.kill());
                bail!("kubectl port-forward says {line:?}")
            }
        }
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        if let Err(e) = self.kubectl.kill().and_then(|()| self.kubectl.wait()) {
            eprintln!("weir-lab: kubectl port-forward is left: {e}");
        }
    }
}

/// Begins a session as `node` with what is shown; returns how that is answered.
fn speak(at: &Forwarded, ca: &str, node: &str, token: Option<&str>) -> Result<Result<(), Status>> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(SERVER);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", at.port))?
        .tls_config(tls)?
        .timeout(Duration::from_secs(30));
    let hello = Hello {
        node: node.to_owned(),
        boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
        plugin_version: "test".to_owned(),
        storage_address: "10.77.0.99".to_owned(),
        storage_port: 4420,
        ..Hello::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = endpoint.connect().await.context("dial the controller")?;
        // It stays open: how the first message is answered is all that counts.
        let first = NodeMessage { message: Some(Message::Hello(hello)) };
        let mut request = Request::new(stream::iter([first]).chain(stream::pending()));
        if let Some(token) = token {
            request
                .metadata_mut()
                .insert("authorization", MetadataValue::try_from(format!("Bearer {token}"))?);
        }
        let answer = async {
            let mut stream = NodeSessionClient::new(channel).session(request).await?.into_inner();
            stream.message().await.map(drop)
        };
        Ok(answer.await)
    })
}

/// The value of a counter with a label, from a page of metrics; 0 if it is not there.
fn counted(page: &str, name: &str, reason: &str) -> u64 {
    let key = format!("{name}_total{{reason=\"{reason}\"}} ");
    page.lines().find_map(|l| l.strip_prefix(&key)?.trim().parse().ok()).unwrap_or(0)
}

fn metrics(at: &Forwarded) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", at.port)).context("dial the metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read the metrics")?;
    ensure!(text.contains("weir_"), "no metrics: {text}");
    Ok(text)
}

/// A token of the node plugin's account for a pod of it.
fn token(c: &KubeCluster, pod: &str, audience: &str) -> Result<String> {
    let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={pod}"), "--duration=10m"]
        .map(str::to_owned);
    let mut args =
        ["create", "token", "weir-node", "-n", WEIR, "--audience", audience].map(str::to_owned).to_vec();
    args.extend(bound);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Ok(c.plane().kubectl(&args)?.trim().to_owned())
}

/// The same token, but one that ran out an hour ago: signed with the cluster's own key.
fn expired(c: &KubeCluster, token: &str) -> Result<String> {
    let mut parts = token.split('.');
    let (head, body) = (parts.next().context("a token's head")?, parts.next().context("a token's body")?);
    let mut claims: Value = serde_json::from_slice(&BASE64.decode(body)?).context("a token's claims")?;
    for claim in ["exp", "iat", "nbf"] {
        let at = claims[claim].as_i64().with_context(|| format!("the claim {claim}"))?;
        claims[claim] = Value::from(at - 4200);
    }
    let signed = format!("{head}.{}", BASE64.encode(claims.to_string()));
    let key = c.plane().companions().dir().join("pki/sa.key");
    let pem = fs::read_to_string(&key).with_context(|| format!("read {}", key.display()))?;
    let signature = raw(&KeyPair::from_pem(&pem)?.sign(signed.as_bytes())?)?;
    Ok(format!("{signed}.{}", BASE64.encode(signature)))
}

/// An ECDSA signature as RFC 7518 3.4 has it, from SEQUENCE { r INTEGER, s INTEGER } in DER.
fn raw(der: &[u8]) -> Result<Vec<u8>> {
    const WIDTH: usize = 32;
    let mut rest = der.get(2..).context("no signature")?;
    let mut out = vec![];
    for _ in 0..2 {
        let [2, length, ..] = rest else { bail!("no integer in the signature") };
        let end = 2 + usize::from(*length);
        let number = rest.get(2..end).context("the signature is cut off")?;
        let digits = &number[number.len().saturating_sub(WIDTH)..];
        out.resize(out.len() + WIDTH - digits.len(), 0);
        out.extend_from_slice(digits);
        rest = &rest[end..];
    }
    Ok(out)
}

fn identity(c: &mut KubeCluster) -> Result<()> {
    let pods = c.get(&["pods", "-n", WEIR, "-l", "app.kubernetes.io/component=node"])?;
    let on_n1 =
        items(&pods["items"]).iter().find(|p| p["spec"]["nodeName"] == "n1").context("n1's plugin")?;
    let on_n1 = on_n1["metadata"]["name"].as_str().context("its name")?;
    let reigning = leader(c)?;
    let (sessions, http) = (Forwarded::to(c, &reigning, 9500)?, Forwarded::to(c, &reigning, 9501)?);
    let bundle = c.get(&["configmap", "-n", WEIR, "weir-ca"])?;
    let ca = bundle["data"].as_object().and_then(|d| d.values().find_map(Value::as_str)).context("the CA")?;
    let good = token(c, on_n1, "weir")?;
    let old = expired(c, &good)?;
    let elsewhere = token(c, on_n1, "somebody-else")?;
    let tries = [
        ("another node's token", "n2", Some(&good), Code::PermissionDenied, "other-node"),
        ("no token", "n1", None, Code::Unauthenticated, "nothing-shown"),
        ("an expired token", "n1", Some(&old), Code::Unauthenticated, "unauthenticated"),
        ("a token for somebody else", "n1", Some(&elsewhere), Code::Unauthenticated, "unauthenticated"),
    ];
    for (what, node, token, code, reason) in tries {
        let before = counted(&metrics(&http)?, "weir_sessions_refused", reason);
        let Err(status) = speak(&sessions, ca, node, token.map(String::as_str))? else {
            bail!("{what} was not refused")
        };
        ensure!(
            status.code() == code,
            "{what}: {:?} instead of {code:?}: {}",
            status.code(),
            status.message()
        );
        let after = counted(&metrics(&http)?, "weir_sessions_refused", reason);
        ensure!(after > before, "{what} was not counted as {reason}: {before}, then {after}");
        println!("   {what}: {}", status.message());
    }
    c.wait("the log to say so", PATIENCE, || {
        let log = c.plane().kubectl(&["logs", "-n", WEIR, &reigning, "-c", "controller", "--tail=-1"])?;
        for words in
            ["a node speaks for another one: refused", "a node's token is refused", "neither a token nor"]
        {
            ensure!(log.contains(words), "the log does not say {words:?}");
        }
        Ok(Some(()))
    })?;
    for node in ["n1", "n2"] {
        c.wait(&format!("{node}'s own plugin to be heard of"), PATIENCE, || {
            let n = c.get(&["storagenodes", node])?;
            ensure!(condition(&n, "Alive") == Some("True"), "{}", n["status"]);
            Ok(Some(()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_have_two_numbers_of_one_width() {
        let der = [&[0x30, 0x26, 2, 1, 5, 2, 33, 0][..], &[9; 32]].concat();
        let want = [&[0; 31][..], &[5], &[9; 32]].concat();
        assert_eq!(raw(&der).unwrap(), want);
        assert!(raw(&der[..9]).is_err());
    }

    #[test]
    fn counters_are_read_from_a_page() {
        let page =
            "# TYPE weir_sessions_refused counter\nweir_sessions_refused_total{reason=\"other-node\"} 3\n";
        assert_eq!(counted(page, "weir_sessions_refused", "other-node"), 3);
        assert_eq!(counted(page, "weir_sessions_refused", "no-token"), 0);
    }
}
