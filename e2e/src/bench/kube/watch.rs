//! When this host saw what in the API server: kubectl's watches, each with a thread that reads it.
//!
//! Invariant: a time is that of the event's arrival here, for whichever driver.

use std::{
    collections::HashMap,
    process::{Child, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    kube::KubeCluster,
    lab::process::{self, Lifetime},
};

/// What was seen of a claim.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    pub(super) added: Option<SystemTime>,
    pub(super) bound: Option<SystemTime>,
    pub(super) deleting: Option<SystemTime>,
    /// Its PersistentVolume.
    pub(super) volume: Option<String>,
}

#[derive(Debug, Default)]
struct Seen {
    claims: HashMap<String, Claim>,
    pods: HashMap<String, SystemTime>,
    gone: HashMap<String, SystemTime>,
}

/// Watches of claims, volumes and pods.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    readers: Vec<Child>,
}

impl Watch {
    /// Begins to watch.
    pub(super) fn start(c: &KubeCluster) -> Result<Self> {
        let mut watch = Self { seen: Arc::default(), readers: Vec::new() };
        for kind in ["pvc", "pv", "pods"] {
            let mut command = c.plane().kubectl_command();
            command.args(["get", kind, "--watch", "--output-watch-events", "-o", "json"]);
            command.stdout(Stdio::piped());
            let mut child = process::start(command, Lifetime::Owned)?;
            let out = child.stdout.take().context("kubectl's output")?;
            watch.readers.push(child);
            let seen = watch.seen.clone();
            thread::spawn(move || {
                for event in serde_json::Deserializer::from_reader(out).into_iter::<Value>() {
                    match event {
                        Ok(event) => lock(&seen).take(kind, &event, SystemTime::now()),
                        // The end of a round's wait says that something was not seen.
                        Err(e) => return eprintln!("weir-lab: the watch of {kind} has ended: {e}"),
                    }
                }
            });
        }
        Ok(watch)
    }

    /// What was seen of a claim so far.
    pub(super) fn claim(&self, name: &str) -> Claim {
        lock(&self.seen).claims.get(name).cloned().unwrap_or_default()
    }

    /// When a pod was first seen.
    pub(super) fn pod_added(&self, name: &str) -> Option<SystemTime> {
        lock(&self.seen).pods.get(name).copied()
    }

    /// When the end of a PersistentVolume was seen.
    pub(super) fn volume_gone(&self, name: &str) -> Option<SystemTime> {
        lock(&self.seen).gone.get(name).copied()
    }

    /// Begins anew, for names that come again.
    pub(super) fn forget(&self) {
        *lock(&self.seen) = Seen::default();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for reader in &mut self.readers {
            if let Err(e) = reader.kill().and_then(|()| reader.wait()) {
                eprintln!("weir-lab: a watch does not end: {e}");
            }
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn take(&mut self, kind: &str, event: &Value, at: SystemTime) {
        let object = &event["object"];
        let Some(name) = object["metadata"]["name"].as_str() else { return };
        match (kind, event["type"].as_str()) {
            ("pvc", Some("ADDED" | "MODIFIED")) => {
                let claim = self.claims.entry(name.to_owned()).or_default();
                claim.added.get_or_insert(at);
                if object["status"]["phase"] == "Bound" {
                    claim.bound.get_or_insert(at);
                    claim.volume = object["spec"]["volumeName"].as_str().map(str::to_owned);
                }
                if !object["metadata"]["deletionTimestamp"].is_null() {
                    claim.deleting.get_or_insert(at);
                }
            }
            ("pods", Some("ADDED")) => {
                self.pods.insert(name.to_owned(), at);
            }
            ("pv", Some("DELETED")) => {
                self.gone.insert(name.to_owned(), at);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_sight_of_each_state_counts() {
        let mut seen = Seen::default();
        let at = |s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s);
        let claim = |phase: &str, more: Value| {
            let mut meta = json!({"name": "c"});
            if let (Some(m), Some(more)) = (meta.as_object_mut(), more.as_object()) {
                m.extend(more.clone());
            }
            json!({"metadata": meta, "spec": {"volumeName": "pv-1"}, "status": {"phase": phase}})
        };
        let event = |kind: &str, object: Value| json!({"type": kind, "object": object});
        seen.take("pvc", &event("ADDED", claim("Pending", json!({}))), at(1));
        seen.take("pvc", &event("MODIFIED", claim("Bound", json!({}))), at(2));
        seen.take("pvc", &event("MODIFIED", claim("Bound", json!({"x": 1}))), at(3));
        let gone = claim("Bound", json!({"deletionTimestamp": "now"}));
        seen.take("pvc", &event("MODIFIED", gone), at(4));
        seen.take("pv", &event("DELETED", json!({"metadata": {"name": "pv-1"}})), at(5));
        let c = &seen.claims["c"];
        assert_eq!((c.added, c.bound, c.deleting), (Some(at(1)), Some(at(2)), Some(at(4))));
        assert_eq!((c.volume.as_deref(), seen.gone.get("pv-1")), (Some("pv-1"), Some(&at(5))));
    }
}
