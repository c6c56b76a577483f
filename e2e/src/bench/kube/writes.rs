//! Writes that the API server has taken, by its own count.
//!
//! Only of what belongs to volumes: leases, nodes, pods and tokens are written whether there are volumes or not.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};

use crate::kube::KubeCluster;

/// What is written for a volume.
const OF_VOLUMES: [&str; 7] = [
    "persistentvolumeclaims",
    "persistentvolumes",
    "events",
    "csistoragecapacities",
    "logicalvolumes",
    "nodedisks",
    "volumeattachments",
];
const VERBS: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
/// Reports of state are gathered for some seconds; so long nothing must have been written.
const STILL: Duration = Duration::from_secs(15);

/// Writes by resource, with the subresource where there is one.
pub(super) type Writes = BTreeMap<String, u64>;

/// The counts once they have stood still.
pub(super) fn settled(c: &KubeCluster) -> Result<Writes> {
    let mut last = read(c)?;
    // What writes all the time, such as an event that repeats, would keep this here for ever.
    for _ in 0..8 {
        std::thread::sleep(STILL);
        let now = read(c)?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

fn read(c: &KubeCluster) -> Result<Writes> {
    parse(&c.plane().kubectl(&["get", "--raw", "/metrics"])?)
}

/// What was written meanwhile, for each of so many volumes; what was not written is left out.
pub(super) fn per_volume(before: &Writes, after: &Writes, volumes: usize) -> BTreeMap<String, f64> {
    let more = |(k, n): (&String, &u64)| {
        let n = n.saturating_sub(before.get(k).copied().unwrap_or(0));
        (n > 0).then(|| (k.clone(), n as f64 / volumes.max(1) as f64))
    };
    after.iter().filter_map(more).collect()
}

fn parse(metrics: &str) -> Result<Writes> {
    let mut writes = Writes::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("apiserver_request_total{") else { continue };
        let (labels, count) = rest.rsplit_once("} ").with_context(|| format!("parse {line:?}"))?;
        let label = |name: &str| {
            let value = labels.split(',').find_map(|l| l.strip_prefix(name)?.strip_prefix("=\""));
            value.map_or("", |v| v.trim_end_matches('"'))
        };
        let (resource, sub) = (label("resource"), label("subresource"));
        if OF_VOLUMES.contains(&resource) && VERBS.contains(&label("verb")) && label("code").starts_with('2')
        {
            let name = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
            let count: f64 = count.parse().with_context(|| format!("parse {line:?}"))?;
            *writes.entry(name).or_default() += count as u64;
        }
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_read_from_the_api_servers_metrics() {
        let line = |verb: &str, resource: &str, sub: &str, code: u32, n: &str| {
            format!(
                "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"\",group=\"\",\
                 resource=\"{resource}\",scope=\"resource\",subresource=\"{sub}\",verb=\"{verb}\",version=\"v1\"}} {n}\n"
            )
        };
        let text = [
            line("PATCH", "persistentvolumes", "status", 200, "3"),
            line("PUT", "persistentvolumes", "status", 200, "2"),
            line("PUT", "persistentvolumes", "", 409, "7"),
            line("LIST", "persistentvolumes", "", 200, "9"),
            line("PUT", "leases", "", 200, "100"),
            line("POST", "events", "", 201, "1e+01"),
        ];
        let before = parse(&text.concat()).unwrap();
        let want = [("events".to_owned(), 10), ("persistentvolumes/status".to_owned(), 5)];
        assert_eq!(before, want.into());
        let mut after = before.clone();
        after.insert("events".to_owned(), 25);
        assert_eq!(per_volume(&before, &after, 10), [("events".to_owned(), 1.5)].into());
        assert!(parse("apiserver_request_total{verb=\"PUT\"").is_err());
    }
}
