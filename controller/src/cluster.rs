//! The way to the cluster's API server. Must not know: what is asked of it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tracing_subscriber::EnvFilter;

/// For how long an API server that is to answer may say nothing: longer than a watch may have no news (290 s, and 5 s
/// until the watcher gives it up), so that this ends only what nobody else limits.
const SILENCE: Duration = Duration::from_secs(310);

/// How long the API server may take for a request that nothing urgent waits for.
const ANSWER: Duration = Duration::from_secs(10);

/// The API server has taken a request and says nothing.
#[derive(Debug, thiserror::Error)]
#[error("the API server has not answered for {0:?}")]
struct Silent(Duration);

/// Asks the API server. One that never answers is given up after 10 s, as one that cannot be reached.
///
/// # Errors
/// The request's, or [`kube::Error::Service`] after that time.
pub(crate) async fn ask<T>(f: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(ANSWER, f).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(Box::new(Silent(ANSWER)))),
    }
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig file.
    #[error("cannot use kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The pod's service account.
    #[error("not in a pod with a service account, and no kubeconfig is configured: {0}")]
    InCluster(#[source] kube::config::InClusterError),
    /// The client.
    #[error("cannot make a client of the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client: by a kubeconfig file, or as the pod's service account.
///
/// # Errors
/// See [`ConnectError`]. The API server itself is not asked.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let bad = |source| ConnectError::Kubeconfig { path: path.to_owned(), source };
            let file = Kubeconfig::read_from(path).map_err(bad)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(bad)?
        }
        None => Config::incluster().map_err(ConnectError::InCluster)?,
    };
    // Whether a request may be made again is for those to say who know what it was.
    config.default_retry = false;
    client(config, SILENCE).map_err(|e| ConnectError::Client(Box::new(e)))
}

/// A filter that keeps the bodies out of the log that the client finds unreadable: they may be Secrets.
pub fn discreet(filter: EnvFilter) -> EnvFilter {
    filter.add_directive("kube_client::client=error".parse().expect("a directive"))
}

/// A client that gives a request up when nothing comes back for this long. The time that a connection waits for its next
/// request does not count.
fn client(mut config: Config, silence: Duration) -> kube::Result<Client> {
    (config.read_timeout, config.reset_reader_on_write) = (Some(silence), true);
    Client::try_from(config)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::Api;
    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn bodies_that_the_client_cannot_read_are_not_logged() {
        for wish in ["info", "debug", "kube_client=trace"] {
            let log = tracing_subscriber::registry().with(discreet(EnvFilter::new(wish)));
            tracing::subscriber::with_default(log, || {
                assert!(!tracing::enabled!(target: "kube_client::client", Level::WARN), "{wish}");
                assert!(tracing::enabled!(target: "kube_client::client", Level::ERROR), "{wish}");
            });
        }
    }

    #[tokio::test]
    async fn an_api_server_that_says_nothing_is_given_up() {
        // Connections are made by the system, and nobody takes them.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = client(Config::new(url.parse().unwrap()), Duration::from_millis(50)).unwrap();
        let namespaces: Api<Namespace> = Api::all(client);
        let asked = tokio::time::timeout(Duration::from_secs(20), namespaces.get_opt("default"));
        assert!(asked.await.expect("it is given up").is_err());
    }
}
