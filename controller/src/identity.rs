//! Who is calling: by the certificate of the connection, or by a projected service account token that the API server
//! has checked.
//!
//! Invariants: a token counts only if the API server vouches for it, for our audience, for the node plugin's own service
//! account, and names the node that its pod runs on; the node is that claim and nothing the caller says. Where tokens
//! are configured a caller that shows one is judged by it alone. Must not know: sessions, what nodes are for.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use observe::prometheus::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use pool::ids::NodeName;
use tonic::{
    Extensions, Status,
    metadata::MetadataMap,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{session::Identify, tls};

/// Where a token's claims name the node of its pod (KEP-4193).
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";
/// For how long an answer of the API server is good for further calls with the same token: a session's attaches and
/// detaches come in bursts, and a revoked token must not last.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// How long the API server may take.
const REVIEW: Duration = csi_proto::IDENTIFY;
/// Longer ones are no tokens of an API server.
const LONGEST: usize = 16 << 10;

/// Believes the certificate that a connection showed.
pub struct ByCertificate;

fn by_certificate(connection: &Extensions) -> Option<NodeName> {
    let certs = connection.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
    tls::peer_nodes(certs).into_iter().next()
}

#[async_trait::async_trait]
impl Identify for ByCertificate {
    async fn node(&self, connection: &Extensions, _: &MetadataMap) -> Result<Option<NodeName>, Status> {
        match by_certificate(connection) {
            Some(n) => Ok(Some(n)),
            None => Err(Status::unauthenticated(
                "the certificate names no node: its common name must be the node's",
            )),
        }
    }
}

/// Whose tokens count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The audience that they are made for.
    pub audience: String,
    /// `NAMESPACE:NAME` of the node plugin's service account.
    pub service_account: String,
}

/// Why a token does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The API server does not vouch for it: expired, forged, for another audience, of a pod that is gone.
    #[error("the API server does not vouch for the token: {0}")]
    Unauthenticated(String),
    /// It is somebody else's.
    #[error("the token is of {0}, which is not the node plugin's service account")]
    OtherAccount(String),
    /// It names no node, or none that can be one.
    #[error("the token names no node: it must be a projected token of a pod")]
    NoNode,
}

/// The node that a reviewed token proves.
pub fn proven_node(status: &TokenReviewStatus, expected: &Expected) -> Result<NodeName, Refusal> {
    let vouched = status.authenticated == Some(true);
    // An API server that knows nothing of audiences leaves them out, and has then not checked ours.
    let ours = status.audiences.iter().flatten().any(|a| *a == expected.audience);
    if !vouched || !ours {
        let why = status.error.clone().filter(|e| !e.is_empty());
        return Err(Refusal::Unauthenticated(why.unwrap_or_else(|| "it is not for us".to_owned())));
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name.strip_prefix("system:serviceaccount:") != Some(expected.service_account.as_str()) {
        return Err(Refusal::OtherAccount(name));
    }
    let extra = user.extra.unwrap_or_default();
    match extra.get(NODE_CLAIM).map(Vec::as_slice) {
        Some([node]) => node.parse().map_err(|_| Refusal::NoNode),
        Some(_) | None => Err(Refusal::NoNode),
    }
}

/// Callers that were refused, counted by why.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Family<[(&'static str, &'static str); 1], Counter>);

impl Refusals {
    /// Makes them part of what is told.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Callers on the session port that could not prove to be the node they speak for";
        registry.register("weir_sessions_refused", help, self.0.clone());
    }

    fn count(&self, reason: &'static str) {
        self.0.get_or_create(&[("reason", reason)]).inc();
    }

    /// How many for this reason.
    pub fn counted(&self, reason: &'static str) -> u64 {
        self.0.get_or_create(&[("reason", reason)]).get()
    }
}

impl Refusal {
    /// As metrics have it.
    const fn as_str(&self) -> &'static str {
        match self {
            Refusal::Unauthenticated(_) => "unauthenticated",
            Refusal::OtherAccount(_) => "other-account",
            Refusal::NoNode => "no-node",
        }
    }
}

/// Believes tokens that the API server has reviewed, and certificates where no token is shown.
pub struct ByToken {
    reviews: Api<TokenReview>,
    expected: Expected,
    refused: Refusals,
    /// Answers that are still good. Keys are secrets: they are shown to nobody.
    known: Mutex<HashMap<String, (NodeName, Instant)>>,
}

impl ByToken {
    /// Tokens that the cluster of `client` reviews.
    pub fn new(client: Client, expected: Expected, refused: Refusals) -> Self {
        Self { reviews: Api::all(client), expected, refused, known: Mutex::new(HashMap::new()) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (NodeName, Instant)>> {
        // Every critical section leaves the map whole, so a panic elsewhere poisons nothing.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn review(&self, token: &str) -> Result<NodeName, Status> {
        let fresh = |(_, at): &(NodeName, Instant)| at.elapsed() < GOOD_FOR;
        if let Some((node, _)) = self.known().get(token).filter(|k| fresh(k)) {
            return Ok(node.clone());
        }
        let spec = TokenReviewSpec {
            audiences: Some(vec![self.expected.audience.clone()]),
            token: Some(token.to_owned()),
        };
        let ask = TokenReview { spec, ..TokenReview::default() };
        let answer = tokio::time::timeout(REVIEW, self.reviews.create(&PostParams::default(), &ask)).await;
        let answer = match answer {
            Ok(Ok(a)) => a,
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "a node's token cannot be checked");
                return Err(Status::unavailable(
                    "the token cannot be checked: the API server refuses or is away",
                ));
            }
            Err(_) => {
                return Err(Status::unavailable("the token cannot be checked: the API server is silent"));
            }
        };
        match proven_node(&answer.status.unwrap_or_default(), &self.expected) {
            Ok(node) => {
                let mut known = self.known();
                known.retain(|_, k| fresh(k));
                known.insert(token.to_owned(), (node.clone(), Instant::now()));
                Ok(node)
            }
            Err(e) => {
                self.refused.count(e.as_str());
                tracing::warn!(error = %e, "a node's token is refused");
                Err(Status::unauthenticated(e.to_string()))
            }
        }
    }
}

/// The token that a request carries.
fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, Status> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let text = value.to_str().ok().and_then(|t| t.strip_prefix("Bearer ")).map(str::trim);
    match text.filter(|t| !t.is_empty() && t.len() <= LONGEST) {
        Some(t) => Ok(Some(t)),
        None => Err(Status::unauthenticated("the authorization is no bearer token")),
    }
}

#[async_trait::async_trait]
impl Identify for ByToken {
    async fn node(
        &self,
        connection: &Extensions,
        metadata: &MetadataMap,
    ) -> Result<Option<NodeName>, Status> {
        let token = bearer(metadata).inspect_err(|_| self.refused.count("no-token"))?;
        if let Some(token) = token {
            return self.review(token).await.map(Some);
        }
        match by_certificate(connection) {
            Some(n) => Ok(Some(n)),
            None => {
                self.refused.count("nothing-shown");
                tracing::warn!("a caller shows neither a token nor a certificate: refused");
                Err(Status::unauthenticated("neither a token nor a certificate that names a node was shown"))
            }
        }
    }

    fn impostor(&self) {
        self.refused.count("other-node");
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn expected() -> Expected {
        Expected { audience: "weir".into(), service_account: "weir:weir-node".into() }
    }

    fn good() -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["weir".into()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:weir:weir-node".into()),
                extra: Some([(NODE_CLAIM.to_owned(), vec!["n1".to_owned()])].into()),
                ..UserInfo::default()
            }),
        }
    }

    #[test]
    fn only_a_pod_of_the_node_plugin_on_that_node_is_believed() {
        assert_eq!(proven_node(&good(), &expected()).map(|n| n.to_string()), Ok("n1".into()));
        let with = |f: &dyn Fn(&mut TokenReviewStatus)| {
            let mut s = good();
            f(&mut s);
            proven_node(&s, &expected()).unwrap_err()
        };
        let is_unauthenticated = |r| matches!(r, Refusal::Unauthenticated(_));
        assert!(is_unauthenticated(with(&|s| s.authenticated = None)));
        assert!(is_unauthenticated(with(&|s| s.audiences = None)));
        assert!(is_unauthenticated(with(&|s| s.audiences = Some(vec!["other".into()]))));
        for user in ["system:serviceaccount:other:weir-node", "system:serviceaccount:weir:default", "admin"] {
            let other = with(&|s| s.user.as_mut().unwrap().username = Some(user.into()));
            assert_eq!(other, Refusal::OtherAccount(user.into()));
        }
        assert_eq!(with(&|s| s.user.as_mut().unwrap().extra = None), Refusal::NoNode);
        for nodes in [vec![], vec!["n1".to_owned(), "n2".to_owned()], vec!["N!".to_owned()]] {
            let claim = [(NODE_CLAIM.to_owned(), nodes)];
            assert_eq!(
                with(&|s| s.user.as_mut().unwrap().extra = Some(claim.clone().into())),
                Refusal::NoNode
            );
        }
    }

    #[test]
    fn only_bearer_tokens_are_taken() {
        let of = |v: &str| {
            let mut m = MetadataMap::new();
            m.insert("authorization", v.parse().unwrap());
            bearer(&m).map(|t| t.map(str::to_owned)).ok()
        };
        assert_eq!(of("Bearer abc"), Some(Some("abc".into())));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("Bearer "), None);
        assert_eq!(of(&format!("Bearer {}", "x".repeat(LONGEST + 1))), None);
        assert_eq!(bearer(&MetadataMap::new()).ok(), Some(None));
    }
}
