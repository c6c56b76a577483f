//! The cluster's name server: addresses of services, asked of the API server when somebody asks for them.
//!
//! Invariants: it answers what it is asked and asks nobody else; while the API server is away, what was known last holds.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::tools::run_tool;

/// Its name among a cluster's companions.
pub(super) const NAME: &str = "dns";
/// How long an answer of the API server is good.
const FRESH: Duration = Duration::from_secs(2);
const TYPE_A: u16 = 1;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const HEADER: usize = 12;

/// Where it listens and whom it asks.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port on the loopback.
    #[arg(long)]
    port: u16,
    /// The kubectl.
    #[arg(long)]
    kubectl: PathBuf,
    /// Its kubeconfig.
    #[arg(long)]
    kubeconfig: PathBuf,
}

/// Names of services and their addresses.
type Names = HashMap<String, Vec<Ipv4Addr>>;

/// Answers until it is killed.
///
/// # Errors
/// The port is taken.
pub fn serve(args: &Args) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, args.port)).context("listen")?;
    let (mut names, mut asked) = (Names::new(), None::<Instant>);
    let mut query = [0; 1500];
    loop {
        let (len, from) = socket.recv_from(&mut query).context("receive")?;
        if asked.is_none_or(|t| t.elapsed() > FRESH) {
            match look_up(args) {
                Ok(found) => names = found,
                Err(e) => eprintln!("{e:#}"),
            }
            asked = Some(Instant::now());
        }
        if let Some(answer) = answer(&query[..len], &names)
            && let Err(e) = socket.send_to(&answer, from)
        {
            eprintln!("answer {from}: {e}");
        }
    }
}

fn look_up(args: &Args) -> Result<Names> {
    let mut kubectl = Command::new(&args.kubectl);
    kubectl.arg("--kubeconfig").arg(&args.kubeconfig);
    kubectl.args(["get", "services,endpointslices", "-A", "-o", "json", "--request-timeout=3s"]);
    let list: Value = serde_json::from_str(&run_tool(&mut kubectl)?).context("parse kubectl's answer")?;
    Ok(parse_list(&list))
}

/// A service's own address; for one without, those of its pods that are ready.
fn parse_list(list: &Value) -> Names {
    let mut names = Names::new();
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let full = |service: &Value, item: &Value| {
        let (service, space) = (service.as_str()?, item["metadata"]["namespace"].as_str()?);
        Some(format!("{service}.{space}.svc.cluster.local"))
    };
    for item in items.iter().filter(|i| i["kind"] == "Service") {
        let Some(name) = full(&item["metadata"]["name"], item) else { continue };
        let ip = item["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
        names.insert(name, ip.into_iter().collect());
    }
    for item in items.iter().filter(|i| i["kind"] == "EndpointSlice") {
        let service = &item["metadata"]["labels"]["kubernetes.io/service-name"];
        let Some(name) = full(service, item) else { continue };
        let headless = items.iter().any(|i| {
            i["kind"] == "Service"
                && i["spec"]["clusterIP"] == "None"
                && full(&i["metadata"]["name"], i).as_ref() == Some(&name)
        });
        if headless {
            let endpoints = item["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
            let ready = endpoints.iter().filter(|e| e["conditions"]["ready"] != false);
            let ips = ready.flat_map(|e| e["addresses"].as_array().into_iter().flatten());
            names.entry(name).or_default().extend(ips.filter_map(|ip| ip.as_str()?.parse::<Ipv4Addr>().ok()));
        }
    }
    names
}

/// The answer to a query; `None` for what is none.
fn answer(query: &[u8], names: &Names) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
    if query.get(2)? & 0x80 != 0 || word(4)? != 1 {
        return None;
    }
    let (mut name, mut at) = (Vec::new(), HEADER);
    loop {
        match usize::from(*query.get(at)?) {
            0 => break,
            n if n < 64 => {
                name.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + n)?).to_ascii_lowercase());
                at += 1 + n;
            }
            _ => return None,
        }
    }
    let (kind, class) = (word(at + 1)?, word(at + 3)?);
    let found = names.get(&name.join(".")).filter(|_| class == CLASS_IN);
    let ips = found.filter(|_| kind == TYPE_A || kind == TYPE_ANY).map_or(&[][..], Vec::as_slice);
    // Authoritative, recursion as asked for and available; no such name where there is none.
    let flags = [0x84 | (query[2] & 1), 0x80 | if found.is_some() { 0 } else { 3 }];
    let mut out =
        [&query[..2], &flags, &[0, 1], &u16::try_from(ips.len()).ok()?.to_be_bytes(), &[0; 4]].concat();
    out.extend_from_slice(query.get(HEADER..at + 5)?);
    for ip in ips {
        // The name at the query's, for five seconds.
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        out.extend_from_slice(&ip.octets());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut q = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            q.push(u8::try_from(label.len()).unwrap());
            q.extend_from_slice(label.as_bytes());
        }
        q.extend_from_slice(&[0, 0, kind, 0, 1]);
        q
    }

    #[test]
    fn services_are_found_by_name_and_others_are_not() {
        let list = serde_json::json!({"items": [
            {"kind": "Service", "metadata": {"name": "a", "namespace": "s"}, "spec": {"clusterIP": "10.96.1.2"}},
            {"kind": "Service", "metadata": {"name": "b", "namespace": "s"}, "spec": {"clusterIP": "None"}},
            {"kind": "EndpointSlice", "metadata": {"namespace": "s", "labels": {"kubernetes.io/service-name": "b"}},
             "endpoints": [{"addresses": ["10.244.1.9"], "conditions": {"ready": true}},
                           {"addresses": ["10.244.1.8"], "conditions": {"ready": false}}]},
        ]});
        let names = parse_list(&list);
        let ask = |name: &str, kind| answer(&query(name, kind), &names).unwrap();
        let a = ask("A.s.svc.cluster.local", 1);
        assert_eq!((a[3] & 15, a[7], &a[a.len() - 4..]), (0, 1, &[10, 96, 1, 2][..]));
        assert!(ask("b.s.svc.cluster.local", 1).ends_with(&[10, 244, 1, 9]));
        let six = ask("a.s.svc.cluster.local", 28);
        assert_eq!((six[3] & 15, six[7]), (0, 0), "a name without such an address is still a name");
        assert_eq!(ask("example.org", 1)[3] & 15, 3);
        assert!(answer(&[0; 5], &names).is_none() && answer(&a, &names).is_none());
    }
}
