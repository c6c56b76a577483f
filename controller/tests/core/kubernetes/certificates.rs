//! Certificates that the reigning controller makes, keeps in a real API server and renews under way.

use controller::{
    certificates::{
        cluster::{KeepError, Keeper},
        plan::{CA_LIFE, CA_OVERLAP, SETTLE},
    },
    config::KubernetesTls,
    tls,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Server};

use super::{tokens::ensure, *};

const NAMES: [&str; 3] = ["certs-tls", "certs-ca-key", "certs-ca"];

async fn empty(client: &Client) -> KubernetesTls {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    for name in [NAMES[0], NAMES[1]] {
        drop(secrets.delete(name, &DeleteParams::default()).await.ok());
        ensure(&secrets, json!({ "metadata": { "name": name } })).await;
    }
    drop(bundles.delete(NAMES[2], &DeleteParams::default()).await.ok());
    ensure(&bundles, json!({ "metadata": { "name": NAMES[2] } })).await;
    let [secret, ca_secret, bundle] = NAMES.map(str::to_owned);
    let names = vec!["weir.ns.svc".to_owned()];
    KubernetesTls { namespace: Some("default".into()), secret, ca_secret, bundle, names }
}

async fn bundle(client: &Client) -> String {
    let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    bundles.get(NAMES[2]).await.unwrap().data.unwrap_or_default().remove("ca.crt").unwrap_or_default()
}

async fn versions(client: &Client) -> Vec<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let mut out = vec![bundles.get(NAMES[2]).await.unwrap().resource_version().unwrap()];
    for name in [NAMES[0], NAMES[1]] {
        out.push(secrets.get(name).await.unwrap().resource_version().unwrap());
    }
    out
}

fn count(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn certificates_are_made_once_and_renewed_when_due() {
    let _one = ONE.lock().await;
    let client = client().await;
    let keeper = Keeper::new(client.clone(), empty(&client).await);
    assert_eq!(keeper.read().await.unwrap(), None, "an empty Secret is not there yet, and no mistake");
    let now = 1_800_000_000;
    let first = keeper.renew(now).await.unwrap();
    assert!(first.is_some());
    assert_eq!(keeper.read().await.unwrap(), first, "others see the same");
    let stand = versions(&client).await;
    assert_eq!(keeper.renew(now + 60).await.unwrap(), first);
    assert_eq!(versions(&client).await, stand, "nothing is due, nothing is written");

    let overlap = now + CA_LIFE - CA_OVERLAP + 60;
    let second = keeper.renew(overlap).await.unwrap();
    assert_eq!(count(&bundle(&client).await), 2, "the next CA is published before it is used");
    let third = keeper.renew(overlap + SETTLE).await.unwrap();
    assert!(first != second && second != third);
    assert_eq!(count(&bundle(&client).await), 2, "the old CA stays published while it is valid");

    // Two that believe to reign: one of them is told that it does not know the newest.
    let far = overlap + SETTLE + CA_LIFE - CA_OVERLAP + 60;
    let (a, b) = tokio::join!(keeper.renew(far), keeper.renew(far));
    let conflict = |r: &Result<_, KeepError>| matches!(r, Err(KeepError::Api { source, .. }) if source.to_string().contains("modified"));
    assert!(a.is_ok() || b.is_ok());
    assert!(conflict(&a) || conflict(&b) || a.unwrap() == b.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn nodes_dial_with_the_published_ca_whoever_reigns() {
    let _one = ONE.lock().await;
    let client = client().await;
    let config = empty(&client).await;
    let (reign, reigns) = watch::channel(false);
    let settings = Keeper::new(client.clone(), config.clone()).keep(reigns);
    let mut standby = Keeper::new(client.clone(), config).keep(watch::channel(false).1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("https://{}", listener.local_addr().unwrap());
    let (role, roles) = watch::channel(controller::session::Role::Standby(Some("10.0.0.7:9500".into())));
    let service = controller::session::Front::new(roles).into_server();
    let serve = Server::builder().add_service(service);
    let server = tokio::spawn(serve.serve_with_incoming(tls::incoming(listener, settings)));

    let dial = |ca: String, name: &'static str| {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(name);
        Endpoint::from_shared(to.clone()).unwrap().tls_config(tls).unwrap()
    };
    assert!(bundle(&client).await.is_empty(), "nobody reigns, nothing is made");
    reign.send_replace(true);
    let channel =
        until("a connection", || async { dial(bundle(&client).await, "weir.ns.svc").connect().await.ok() })
            .await;
    assert!(dial(bundle(&client).await, "another.ns.svc").connect().await.is_err());
    standby.wait_for(Option::is_some).await.unwrap();

    let mut node = csi_proto::node::node_session_client::NodeSessionClient::new(channel);
    let refused = node.detach(csi_proto::node::DetachRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert_eq!(refused.metadata().get(csi_proto::LEADER).unwrap(), "10.0.0.7:9500");
    role.send_replace(controller::session::Role::Starting);
    let refused = node.detach(csi_proto::node::DetachRequest::default()).await.unwrap_err();
    assert!(refused.metadata().get(csi_proto::LEADER).is_none(), "{refused:?}");
    server.abort();
}
