//! The requests that the store makes, and what their failures mean. Invariant: nothing here is retried. Must not know:
//! what a record is for.

use std::{error::Error as _, time::Duration};

use api::API_VERSION;
use kube::{Client, core::Status};
use serde_json::{Value, json};

use super::resource::{Kind, Resource, Unreadable};
use crate::store::StoreError;

/// How long a request may take: the API server gives up its own work on one after a minute, etcd's after some seconds.
const REQUEST: Duration = Duration::from_secs(10);

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
    /// It was refused for good.
    #[error("refused: {0}")]
    Refused(String),
    /// The answer makes no sense.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Failure {
    /// Whether another attempt may do better.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Failure::Unsent(_) | Failure::Unknown(_))
    }

    pub(super) fn may_have_happened(&self) -> bool {
        matches!(self, Failure::Unknown(_))
    }

    /// What it is to whoever asked for `what`.
    pub(super) fn into_store(self, what: &str) -> StoreError {
        match self {
            Failure::Unsent(why) => StoreError::NotNow(why),
            Failure::Conflict | Failure::Gone | Failure::Unknown(_) => {
                StoreError::OutcomeUnknown { what: what.to_owned(), source: Box::new(self) }
            }
            Failure::Refused(_) => StoreError::Refused { what: what.to_owned(), source: Box::new(self) },
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
        // 410: a list that went on for so long that its state is forgotten.
        400..=403 | 405..=428 | 430..=499 => Failure::Refused(text),
        _ => Failure::Unknown(text),
    }
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
}

fn path(kind: Kind, name: &str) -> String {
    let base = format!("/apis/{API_VERSION}/{}", kind.plural());
    if name.is_empty() { base } else { format!("{base}/{name}") }
}

impl Wire {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
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
        match tokio::time::timeout(REQUEST, self.client.request::<Value>(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(judge(&e)),
            Err(_) => Err(Failure::Unknown(format!("no answer within {REQUEST:?}"))),
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
        let made = self.send("POST", &path(r.kind(), ""), "application/json", Some(&body)).await?;
        Ok(Resource::parse(r.kind(), made)?)
    }

    /// Replaces the spec, and nothing of what others keep beside it, if the resource still has this version.
    pub(super) async fn replace_spec(&self, r: &Resource, version: &str) -> Result<Resource, Failure> {
        let spec = r.spec().map_err(|e| Failure::Refused(e.to_string()))?;
        let change = json!({ "op": "replace", "path": "/spec", "value": spec });
        self.patch(r.kind(), r.name(), version, change).await
    }

    pub(super) async fn set_finalizers(
        &self,
        kind: Kind,
        name: &str,
        all: &[String],
        version: &str,
    ) -> Result<Resource, Failure> {
        self.patch(
            kind,
            name,
            version,
            json!({ "op": "replace", "path": "/metadata/finalizers", "value": all }),
        )
        .await
    }

    async fn patch(&self, kind: Kind, name: &str, version: &str, change: Value) -> Result<Resource, Failure> {
        // A version that is not the present one is answered with a conflict.
        let at = json!({ "op": "replace", "path": "/metadata/resourceVersion", "value": version });
        let body = json!([at, change]);
        let media = "application/json-patch+json";
        let answer = self.send("PATCH", &path(kind, name), media, Some(&body)).await?;
        Ok(Resource::parse(kind, answer)?)
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
    use super::*;

    #[test]
    fn what_a_failure_means_follows_from_its_code() {
        let of = |code: u16| judge_status(&Status { code, ..Status::default() });
        assert!(matches!(of(409), Failure::Conflict));
        assert!(matches!(of(404), Failure::Gone));
        for code in [400, 403, 410, 413, 422] {
            assert!(!of(code).may_pass(), "{code}");
        }
        assert!(of(429).may_pass() && !of(429).may_have_happened());
        for code in [500, 503, 504] {
            assert!(of(code).may_pass() && of(code).may_have_happened(), "{code}");
        }
    }
}
