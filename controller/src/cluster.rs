//! The way to the cluster's API server. Must not know: what is asked of it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

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
    Client::try_from(config).map_err(|e| ConnectError::Client(Box::new(e)))
}
