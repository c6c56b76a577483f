//! The requests that the store makes, and what their failures mean. Invariant: nothing here is retried. Must not know:
//! what a record is for.

use std::{error::Error as _, time::Duration};

use api::{API_VERSION, RECORD_FINALIZER};
use kube::{Client, core::Status};
use serde_json::{Value, json};

use super::resource::{Kind, Resource, Unreadable};
use crate::store::StoreError;

/// How long a request may take: the API server gives up its own work on one after a minute, etcd's after some seconds.
const REQUEST: Duration = Duration::from_secs(10);
/// The namespace whose UID names the cluster for good: it cannot be deleted.
pub(super) const SYSTEM_NAMESPACE: &str = "kube-system";
/// Fields whose loss an error names.
const NAMED: usize = 8;
/// What a person does about fields that the API server does not know.
const OLD_CRDS: &str = "the CRDs in the cluster are older than this controller: kubectl apply --server-side --force-conflicts -f \
     charts/weir/crds";

/// Why a request was not answered with what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The resource has another version, or is there already.
    #[error("it has changed")]
    Conflict,
    /// There is no such resource.
    #[error("it is not there")]
    Gone,
    /// The request did not reach the API server, or was refused for now.
    #[error("nothing was done: {0}")]
    Unsent(String),
    /// It may have been carried out.
    #[error("not known whether it was done: {0}")]
    Unknown(String),
    /// It was refused, and nothing was done.
    #[error("refused: {0}")]
    Refused(String),
    /// It was refused to whoever asks; so it may be for a moment by an API server that has just started. Nothing was done.
    #[error(
        "denied: {0}; look at the controller's rights (the chart's ClusterRoles) and at the cluster's admission webhooks"
    )]
    Denied(String),
    /// A list has gone on for so long that the API server has forgotten the state that it shows.
    #[error("the list has expired: {0}")]
    Expired(String),
    /// It was done, and something else was stored than what was to be.
    #[error("stored otherwise than written: {0}; {crds}, or an admission webhook changes records", crds = OLD_CRDS)]
    Altered(String),
    /// The answer makes no sense.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Failure {
    /// Whether another attempt may do better.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Failure::Unsent(_) | Failure::Unknown(_))
    }

    /// The same while nothing has begun that waits for it: rights may come with an API server that is still starting.
    pub(super) fn may_pass_at_start(&self) -> bool {
        self.may_pass() || matches!(self, Failure::Denied(_))
    }

    pub(super) fn may_have_happened(&self) -> bool {
        matches!(self, Failure::Unknown(_))
    }

    /// Whether somebody did not want it: this attempt has done nothing.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Failure::Refused(_) | Failure::Denied(_))
    }

    /// What it is to whoever asked for `what`.
    pub(super) fn into_store(self, what: &str) -> StoreError {
        match self {
            Failure::Unsent(why) => StoreError::NotNow(why),
            Failure::Expired(_) => StoreError::NotNow(self.to_string()),
            Failure::Conflict | Failure::Gone | Failure::Unknown(_) => {
                StoreError::OutcomeUnknown { what: what.to_owned(), source: Box::new(self) }
            }
            Failure::Refused(_) | Failure::Denied(_) => {
                StoreError::Refused { what: what.to_owned(), source: Box::new(self) }
            }
            Failure::Altered(_) => StoreError::Altered { what: what.to_owned(), source: Box::new(self) },
            Failure::Unreadable(e) => StoreError::Corrupt { key: e.resource.clone(), source: Box::new(e) },
        }
    }
}

/// What an answer of the API server that is no success means.
fn judge_status(s: &Status) -> Failure {
    let text = format!("{} ({})", s.message, s.code);
    match s.code {
        404 => Failure::Gone,
        409 => Failure::Conflict,
        // Refused before anything was begun.
        429 => Failure::Unsent(text),
        401 | 403 => Failure::Denied(text),
        410 => Failure::Expired(text),
        // Something on the way did not want to wait any longer.
        408 => Failure::Unknown(text),
        400..=499 => Failure::Refused(refusal(s)),
        _ => Failure::Unknown(text),
    }
}

/// Why the API server does not take it. What it cannot decode it says back whole: only what is wrong with that is told.
fn refusal(s: &Status) -> String {
    let (text, ours) = match s.message.rsplit_once("strict decoding error: ") {
        Some((_, what)) => (what, what.contains("unknown field")),
        // A word that an enum does not have yet.
        None => (s.message.as_str(), s.message.contains("Unsupported value")),
    };
    if ours { format!("{text} ({}): {OLD_CRDS}", s.code) } else { format!("{text} ({})", s.code) }
}

pub(super) fn judge(e: &kube::Error) -> Failure {
    match e {
        kube::Error::Api(s) => judge_status(s),
        other => {
            // The chain ends in a connection that was never made, or the request may have been sent.
            let mut at: Option<&(dyn std::error::Error + 'static)> = Some(other);
            while let Some(e) = at {
                let unsent = e
                    .downcast_ref::<hyper_util::client::legacy::Error>()
                    .is_some_and(hyper_util::client::legacy::Error::is_connect);
                if unsent {
                    return Failure::Unsent(explain(other));
                }
                at = e.source();
            }
            Failure::Unknown(explain(other))
        }
    }
}

/// An error with its causes.
fn explain(e: &kube::Error) -> String {
    let mut text = e.to_string();
    let mut at = e.source();
    while let Some(e) = at {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        at = e.source();
    }
    text
}

/// A page of a list.
pub(super) struct Listed {
    pub(super) resources: Vec<Result<Resource, Unreadable>>,
    pub(super) next: Option<String>,
}

/// The API server.
pub(super) struct Wire {
    client: Client,
    /// How long a request may take.
    limit: Duration,
}

fn path(kind: Kind, name: &str) -> String {
    let base = format!("/apis/{API_VERSION}/{}", kind.plural());
    if name.is_empty() { base } else { format!("{base}/{name}") }
}

/// Fields that the API server does not know are refused, not dropped.
const STRICT: &str = "fieldValidation=Strict";

/// What is stored now, by the answer to a write: it must be what was written.
fn stored(wanted: &Resource, answer: Value) -> Result<Resource, Failure> {
    let how = match Resource::parse(wanted.kind(), answer) {
        Ok(r) if r.fingerprint() == wanted.fingerprint() => return Ok(r),
        Ok(r) => {
            let mut lost = vec![];
            if let (Ok(wanted), Ok(found)) = (wanted.spec(), r.spec()) {
                differences("spec", &wanted, &found, &mut lost);
            }
            lost.truncate(NAMED);
            lost.join(", ")
        }
        Err(e) => observe::chain(&e),
    };
    Err(Failure::Altered(how))
}

/// The paths at which two values differ.
fn differences(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for k in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let at = |m: &serde_json::Map<String, Value>| m.get(k).cloned().unwrap_or_default();
                differences(&format!("{path}.{k}"), &at(a), &at(b), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, out);
            }
        }
        (a, b) if a != b => out.push(path.to_owned()),
        (_, _) => {}
    }
}

impl Wire {
    pub(super) fn new(client: Client) -> Self {
        Self { client, limit: REQUEST }
    }

    async fn send(
        &self,
        method: &str,
        uri: &str,
        media: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let body = match body {
            Some(b) => serde_json::to_vec(b).map_err(|e| Failure::Refused(e.to_string()))?,
            None => vec![],
        };
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header(http::header::CONTENT_TYPE, media)
            .header(http::header::ACCEPT, "application/json")
            .body(body)
            .map_err(|e| Failure::Refused(e.to_string()))?;
        match tokio::time::timeout(self.limit, self.client.request::<Value>(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(judge(&e)),
            Err(_) => Err(Failure::Unknown(format!("no answer within {:?}", self.limit))),
        }
    }

    /// The UID of the cluster's own namespace; `None` while there is none.
    pub(super) async fn system(&self) -> Result<Option<String>, Failure> {
        let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}");
        match self.send("GET", &path, "application/json", None).await {
            Ok(n) => Ok(n["metadata"]["uid"].as_str().map(str::to_owned)),
            Err(Failure::Gone) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A page of all resources of a kind. All pages of a list show the state at its first.
    pub(super) async fn list(
        &self,
        kind: Kind,
        token: Option<String>,
        max: usize,
    ) -> Result<Listed, Failure> {
        let mut uri = format!("{}?limit={max}", path(kind, ""));
        if let Some(t) = token {
            // Tokens are base64 for URLs; padding and the like are escaped all the same.
            let escaped: String = t
                .bytes()
                .map(|b| {
                    if b.is_ascii_alphanumeric() || b"-_.".contains(&b) {
                        char::from(b).to_string()
                    } else {
                        format!("%{b:02X}")
                    }
                })
                .collect();
            uri = format!("{uri}&continue={escaped}");
        }
        let mut answer = self.send("GET", &uri, "application/json", None).await?;
        let next = answer["metadata"]["continue"].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let Value::Array(items) = answer["items"].take() else {
            return Err(Failure::Unknown("a list without items".to_owned()));
        };
        Ok(Listed { resources: items.into_iter().map(|v| Resource::parse(kind, v)).collect(), next })
    }

    pub(super) async fn get(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Result<Resource, Unreadable>>, Failure> {
        match self.send("GET", &path(kind, name), "application/json", None).await {
            Ok(v) => Ok(Some(Resource::parse(kind, v))),
            Err(Failure::Gone) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) async fn create(&self, r: &Resource) -> Result<Resource, Failure> {
        let body = r.value().map_err(|e| Failure::Refused(e.to_string()))?;
        let uri = format!("{}?{STRICT}", path(r.kind(), ""));
        let made = self.send("POST", &uri, "application/json", Some(&body)).await?;
        stored(r, made)
    }

    /// Replaces the spec, and nothing of what others keep beside it, if the resource still has this version. `bare`: it has
    /// lost the record's finalizer and has these; it gets its own back.
    pub(super) async fn replace_spec(
        &self,
        r: &Resource,
        version: &str,
        bare: Option<&[String]>,
    ) -> Result<Resource, Failure> {
        let spec = r.spec().map_err(|e| Failure::Refused(e.to_string()))?;
        let mut changes = vec![json!({ "op": "replace", "path": "/spec", "value": spec })];
        if let Some(others) = bare {
            let all: Vec<&str> = others.iter().map(String::as_str).chain([RECORD_FINALIZER]).collect();
            changes.push(json!({ "op": "add", "path": "/metadata/finalizers", "value": all }));
        }
        let uri = format!("{}?{STRICT}", path(r.kind(), r.name()));
        stored(r, self.patch(&uri, version, changes).await?)
    }

    pub(super) async fn set_finalizers(
        &self,
        kind: Kind,
        name: &str,
        all: &[String],
        version: &str,
    ) -> Result<Resource, Failure> {
        let change = json!({ "op": "replace", "path": "/metadata/finalizers", "value": all });
        Ok(Resource::parse(kind, self.patch(&path(kind, name), version, vec![change]).await?)?)
    }

    async fn patch(&self, uri: &str, version: &str, mut changes: Vec<Value>) -> Result<Value, Failure> {
        // A version that is not the present one is answered with a conflict.
        changes.insert(0, json!({ "op": "replace", "path": "/metadata/resourceVersion", "value": version }));
        self.send("PATCH", uri, "application/json-patch+json", Some(&Value::Array(changes))).await
    }

    pub(super) async fn delete(
        &self,
        kind: Kind,
        name: &str,
        uid: &str,
        version: &str,
    ) -> Result<(), Failure> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": uid, "resourceVersion": version },
        });
        self.send("DELETE", &path(kind, name), "application/json", Some(&body)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;
    use pool::{
        disk::Domain,
        ids::Term,
        record::{NodeRecord, Record},
    };

    use super::*;

    fn of(code: u16, message: &str) -> Failure {
        judge_status(&Status { code, message: message.to_owned(), ..Status::default() })
    }

    #[test]
    fn what_a_failure_means_follows_from_its_code() {
        assert!(matches!(of(409, ""), Failure::Conflict));
        assert!(matches!(of(404, ""), Failure::Gone));
        assert!(matches!(of(410, ""), Failure::Expired(_)));
        for code in [400, 401, 403, 413, 422] {
            let f = of(code, "");
            assert!(f.is_refusal() && !f.may_pass() && !f.may_have_happened(), "{code}");
            assert_eq!(f.may_pass_at_start(), code == 401 || code == 403, "{code}");
        }
        assert!(of(429, "").may_pass() && !of(429, "").may_have_happened());
        for code in [408, 500, 503, 504] {
            let f = of(code, "");
            assert!(f.may_pass() && f.may_have_happened() && !f.is_refusal(), "{code}");
        }
    }

    #[test]
    fn fields_that_the_cluster_does_not_know_are_named_with_what_to_do() {
        let made = "LogicalVolume in version \"v1alpha1\" cannot be handled as a LogicalVolume: \
                    strict decoding error: unknown field \"spec.moving\"";
        let patched = "\"\" is invalid: patch: Invalid value: \"{\\\"spec\\\":{\\\"name\\\":\\\"x\\\"}}\": \
                       strict decoding error: unknown field \"spec.a\", unknown field \"spec.b[0].c\"";
        let word =
            "NodeDisk \"d\" is invalid: spec.health: Unsupported value: \"odd\": supported values: \"good\"";
        for (code, message, named) in
            [(400, made, "spec.moving"), (422, patched, "spec.b[0].c"), (422, word, "odd")]
        {
            let said = of(code, message).to_string();
            assert!(said.contains(named) && said.contains("kubectl apply --server-side"), "{said}");
            assert!(!said.contains("Invalid value"), "the whole object is no reason: {said}");
        }
        let rule =
            of(422, "LogicalVolume \"v\" is invalid: spec: Invalid value: an epoch only grows").to_string();
        assert!(rule.contains("an epoch only grows") && !rule.contains("kubectl"), "{rule}");
    }

    fn node(domain: &[(&str, &str)]) -> Resource {
        let domain = domain.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (name, address) = ("n1".parse().unwrap(), "10.0.0.1".to_owned());
        let domain = Domain::new(domain);
        let record = NodeRecord { name, domain, address, port: 1, boot_id: String::new(), forgotten: false };
        Resource::of(&Record::Node(Box::new(record)), Term::new(1))
    }

    #[test]
    fn an_answer_that_is_not_what_was_written_says_which_fields() {
        let wanted = node(&[("rack", "r1"), ("zone", "z1")]);
        assert!(stored(&wanted, wanted.value().unwrap()).is_ok());
        let mut pruned = wanted.value().unwrap();
        pruned["spec"]["domain"].as_object_mut().unwrap().remove("zone");
        pruned["spec"]["port"] = json!(2);
        let Err(e) = stored(&wanted, pruned) else { panic!("it was taken") };
        assert!(e.to_string().contains("spec.domain.zone, spec.port; the CRDs"), "{e}");
        let mut unreadable = wanted.value().unwrap();
        unreadable["spec"].as_object_mut().unwrap().remove("address");
        let Err(e) = stored(&wanted, unreadable) else { panic!("it was taken") };
        assert!(matches!(&e, Failure::Altered(how) if how.contains("address")), "{e}");
        assert!(matches!(e.into_store("storagenodes/n1"), StoreError::Altered { .. }));
    }

    #[tokio::test]
    async fn no_request_waits_for_an_answer_for_good() {
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let wire = Wire { client: Client::new(silent, "default"), limit: Duration::from_millis(20) };
        let asked = tokio::time::timeout(Duration::from_secs(10), wire.system());
        assert!(matches!(asked.await, Ok(Err(Failure::Unknown(_)))));
    }
}
