//! Nodes by their projected service account tokens, as the API server reviews them.

use controller::{
    identity::{ByToken, Expected, Refusals},
    session::Identify,
};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::PostParams;
use serde_json::Value;
use tonic::{Code, Extensions, Status, metadata::MetadataMap};

use super::*;

/// A token of a service account, bound to a pod where one is given.
async fn token(client: &Client, account: &str, audience: &str, pod: Option<&Pod>) -> String {
    let mut spec = json!({ "audiences": [audience], "expirationSeconds": 600 });
    if let Some(p) = pod {
        let (name, uid) = (p.name_any(), p.uid().unwrap());
        spec["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid });
    }
    let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let request = http::Request::post(format!("/api/v1/namespaces/default/serviceaccounts/{account}/token"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body).unwrap())
        .unwrap();
    let answer: Value = client.request(request).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// Makes it if it is not there.
pub(super) async fn ensure<K>(api: &Api<K>, object: Value) -> K
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    match api.create(&PostParams::default(), &object).await {
        Ok(made) => made,
        Err(kube::Error::Api(s)) if s.code == 409 => api.get(&object.name_any()).await.unwrap(),
        Err(e) => panic!("{e}"),
    }
}

async fn ask(by: &ByToken, token: &str) -> Result<Option<String>, Status> {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    by.node(&Extensions::new(), &metadata).await.map(|n| n.map(|n| n.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn a_node_is_who_its_token_says() {
    let _one = ONE.lock().await;
    let client = client().await;
    let nodes: Api<Node> = Api::all(client.clone());
    ensure(&nodes, json!({ "metadata": { "name": "tokens-n1" } })).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    for name in ["weir-node", "stranger"] {
        ensure(&accounts, json!({ "metadata": { "name": name } })).await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod = |name: &str, account: &str| {
        json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": "tokens-n1",
                "serviceAccountName": account,
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "c", "image": "none" }],
            },
        })
    };
    let ours = ensure(&pods, pod("tokens-node", "weir-node")).await;
    let others = ensure(&pods, pod("tokens-stranger", "stranger")).await;

    let expected = || Expected { audience: "weir".into(), service_account: "default:weir-node".into() };
    let refusals = Refusals::default();
    let by = ByToken::new(client.clone(), expected(), refusals.clone());
    let good = token(&client, "weir-node", "weir", Some(&ours)).await;
    assert_eq!(ask(&by, &good).await.unwrap().as_deref(), Some("tokens-n1"));

    let refused = |r: Result<Option<String>, Status>, says: &str| {
        let s = r.unwrap_err();
        assert_eq!(s.code(), Code::Unauthenticated, "{s:?}");
        assert!(s.message().contains(says), "{s:?}");
    };
    let other_audience = token(&client, "weir-node", "somebody", Some(&ours)).await;
    refused(ask(&by, &other_audience).await, "does not vouch");
    let stranger = token(&client, "stranger", "weir", Some(&others)).await;
    refused(ask(&by, &stranger).await, "default:stranger");
    let unbound = token(&client, "weir-node", "weir", None).await;
    refused(ask(&by, &unbound).await, "names no node");
    refused(ask(&by, "no.token.atall").await, "does not vouch");
    let mut forged = good.clone();
    forged.truncate(good.len() - 4);
    refused(ask(&by, &format!("{forged}AAAA")).await, "does not vouch");
    let nothing = by.node(&Extensions::new(), &MetadataMap::new()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::Unauthenticated);

    let counted =
        ["unauthenticated", "other-account", "no-node", "nothing-shown"].map(|r| refusals.counted(r));
    assert_eq!(counted, [3, 1, 1, 1]);

    for name in ["tokens-node", "tokens-stranger"] {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(name, &now).await.unwrap();
    }
}
