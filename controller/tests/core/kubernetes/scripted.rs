//! An API server in memory, as far as the store asks one, that can be told to answer otherwise.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// A request.
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body: Value,
}

impl Ask {
    /// Whether it is of this method, for something below this.
    pub(super) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }

    /// The value of a parameter of the query.
    fn param(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
    }
}

/// What becomes of a request.
pub(super) enum Fate {
    /// What it asks for.
    Done,
    /// The same, as soon as somebody says so.
    DoneAfter(Arc<Notify>),
    /// The same, and the answer is this error.
    DoneBut(u16),
    /// Nothing: the answer is this error.
    Instead(u16, &'static str),
}

type Script = Box<dyn FnMut(&mut Ask) -> Fate + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    /// What is left of lists, by the token that asks for it.
    lists: HashMap<String, Vec<Value>>,
    versions: u64,
    script: Option<Script>,
    /// Whether a write ends all lists: an API server that forgets at once.
    forgetful: bool,
}

/// The server.
#[derive(Clone, Default)]
pub(super) struct Scripted(Arc<Mutex<State>>);

type Outcome = Result<Value, (u16, String)>;

fn refuse<T>(code: u16, message: &str) -> Result<T, (u16, String)> {
    Err((code, message.to_owned()))
}

impl Scripted {
    pub(super) fn new() -> Self {
        let s = Self::default();
        let system =
            json!({ "metadata": { "name": "kube-system", "uid": uuid::Uuid::from_u128(7).to_string() } });
        s.0.lock().unwrap().objects.insert("/api/v1/namespaces/kube-system".into(), system);
        s
    }

    pub(super) fn client(&self) -> Client {
        let s = self.clone();
        let serve = move |r: Request<Body>| {
            let s = s.clone();
            async move { Ok::<_, Infallible>(s.serve(r).await) }
        };
        Client::new(tower::service_fn(serve), "default")
    }

    /// From now on requests end as `script` says.
    pub(super) fn script(&self, script: impl FnMut(&mut Ask) -> Fate + Send + 'static) {
        self.0.lock().unwrap().script = Some(Box::new(script));
    }

    pub(super) fn forget_lists_at_writes(&self) {
        self.0.lock().unwrap().forgetful = true;
    }

    /// The only object whose path has this in it.
    pub(super) fn find(&self, part: &str) -> Option<Value> {
        let s = self.0.lock().unwrap();
        let mut found = s.objects.iter().filter(|(path, _)| path.contains(part));
        let one = found.next().map(|(_, o)| o.clone());
        assert!(found.next().is_none(), "several of {part}");
        one
    }

    async fn serve(&self, r: Request<Body>) -> Response<Body> {
        let (parts, body) = r.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
        let mut ask = Ask { method: parts.method, path, query, body };
        let fate = match &mut self.0.lock().unwrap().script {
            Some(script) => script(&mut ask),
            None => Fate::Done,
        };
        let done = match fate {
            Fate::Done => self.0.lock().unwrap().perform(&ask),
            Fate::DoneAfter(sign) => {
                sign.notified().await;
                self.0.lock().unwrap().perform(&ask)
            }
            Fate::DoneBut(code) => {
                drop(self.0.lock().unwrap().perform(&ask));
                refuse(code, "the answer was lost")
            }
            Fate::Instead(code, message) => refuse(code, message),
        };
        let (code, body) = match done {
            Ok(body) => (200, body),
            Err((code, message)) => (code, failure(code, &message)),
        };
        Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap()
    }
}

impl State {
    fn perform(&mut self, ask: &Ask) -> Outcome {
        let there = self.objects.get(&ask.path).cloned();
        match (ask.method.as_str(), there) {
            ("GET", Some(o)) => Ok(o),
            ("GET", None) if ask.query.contains("limit=") => self.list(ask),
            ("POST", None) => {
                let name = ask.body["metadata"]["name"].as_str().unwrap();
                let path = format!("{}/{name}", ask.path);
                if self.objects.contains_key(&path) {
                    return refuse(409, "already exists");
                }
                let mut o = ask.body.clone();
                o["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
                o["metadata"]["generation"] = json!(1);
                Ok(self.store(path, o))
            }
            ("PUT", Some(o)) => {
                fresh(&o, &ask.body["metadata"]["resourceVersion"])?;
                Ok(self.store(ask.path.clone(), ask.body.clone()))
            }
            ("PATCH", Some(o)) => self.patch(ask, o),
            ("DELETE", Some(mut o)) => {
                fresh(&o, &ask.body["preconditions"]["resourceVersion"])?;
                if o["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
                    self.objects.remove(&ask.path);
                    return Ok(o);
                }
                o["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                Ok(self.store(ask.path.clone(), o))
            }
            (_, None) => refuse(404, "not found"),
            (method, Some(_)) => refuse(405, method),
        }
    }

    /// A JSON patch of members of objects, as the store makes them.
    fn patch(&mut self, ask: &Ask, mut o: Value) -> Outcome {
        let before = o["spec"].clone();
        for change in ask.body.as_array().unwrap() {
            let (path, value) = (change["path"].as_str().unwrap(), &change["value"]);
            if path == "/metadata/resourceVersion" {
                fresh(&o, value)?;
                continue;
            }
            let (parent, member) = path.rsplit_once('/').unwrap();
            let parent = o.pointer_mut(parent).unwrap();
            assert!(change["op"] == "add" || parent.get(member).is_some(), "{path} cannot be replaced");
            parent[member] = value.clone();
        }
        if o["spec"] != before {
            o["metadata"]["generation"] = json!(o["metadata"]["generation"].as_u64().unwrap() + 1);
        }
        Ok(self.store(ask.path.clone(), o))
    }

    fn list(&mut self, ask: &Ask) -> Outcome {
        let below = format!("{}/", ask.path);
        let mut items: Vec<Value> = match ask.param("continue") {
            Some(token) => match self.lists.remove(token) {
                Some(left) => left,
                None => return refuse(410, "The provided continue parameter is too old"),
            },
            None => {
                self.objects.iter().filter(|(p, _)| p.starts_with(&below)).map(|(_, o)| o.clone()).collect()
            }
        };
        let max: usize = ask.param("limit").unwrap().parse().unwrap();
        let left = items.split_off(max.min(items.len()));
        let token =
            if left.is_empty() { String::new() } else { format!("t{}", self.versions + left.len() as u64) };
        if !left.is_empty() {
            self.lists.insert(token.clone(), left);
        }
        Ok(json!({ "metadata": { "continue": token }, "items": items }))
    }

    fn store(&mut self, path: String, mut o: Value) -> Value {
        if self.forgetful {
            self.lists.clear();
        }
        self.versions += 1;
        o["metadata"]["resourceVersion"] = json!(self.versions.to_string());
        self.objects.insert(path, o.clone());
        o
    }
}

/// A Status as the API server makes it. The client tells what is not there by the reason, not by the code.
fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "",
    };
    json!({ "kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code })
}

fn fresh(o: &Value, version: &Value) -> Result<(), (u16, String)> {
    if o["metadata"]["resourceVersion"] == *version { Ok(()) } else { refuse(409, "it has been modified") }
}
