//! Wires the parts of a controller together and runs it until it is told to stop.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use csi_proto::{
    admin::admin_server::AdminServer,
    csi::{controller_server::ControllerServer, identity_server::IdentityServer},
};
use kube::Client;
use observe::{Operations, Told};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{
    Server,
    server::{Router, TcpIncoming},
};
use tower::layer::util::{Identity, Stack};

use crate::{
    admin::AdminService,
    api::Api,
    cluster,
    config::{Config, Endpoint, KubernetesStore, NodeTokens, Store as StoreConfig},
    core::{self, Core, CoreConfig, Handle, PoolSpec},
    csi::{ControllerService, IdentityService},
    fault::Fault,
    flow::sweep,
    identity::{ByCertificate, ByToken, Expected},
    metrics, pools,
    session::{self, Identify},
    store::{
        Store,
        embedded::Embedded,
        kubernetes::{Kubernetes, LeaseConfig},
    },
    tls,
};

/// Why a controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not listen.
    #[error("cannot listen on {at}: {source}")]
    Listen {
        /// Where.
        at: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its store could not be opened.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// Its records could not be loaded.
    #[error(transparent)]
    Start(#[from] core::StartError),
    /// The core gave up.
    #[error(transparent)]
    Core(#[from] core::CoreError),
    /// A server failed.
    #[error("a server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A TLS file.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// There is no way to the cluster.
    #[error(transparent)]
    Cluster(#[from] cluster::ConnectError),
    /// The cluster's pools could not be read.
    #[error("the cluster's StoragePools cannot be read (are the CRDs installed?): {0}")]
    Pools(#[source] Box<kube::Error>),
    /// Another controller may reign now.
    #[error("the reign is over: {0}")]
    Deposed(String),
}

/// The way to the cluster, where one is needed.
async fn client(config: &Config) -> Result<Option<Client>, ServeError> {
    let needed = config.node_tokens.is_some() || matches!(config.store, StoreConfig::Kubernetes(_));
    Ok(if needed { Some(cluster::connect(config.kubeconfig.as_deref()).await?) } else { None })
}

/// Runs a controller until `stop` says so or the core fails. Stopping it stops no I/O.
///
/// # Errors
/// See [`ServeError`].
pub async fn run(config: Config, fault: Fault, mut stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    let client = client(&config).await?;
    match (&config.store, client) {
        (StoreConfig::Kubernetes(k), Some(client)) => {
            let store = Arc::new(Kubernetes::new(client.clone(), lease(k, &client)));
            let served = tokio::select! {
                r = in_cluster(&config, &client, store.clone(), fault, stop.clone()) => r,
                why = store.deposed() => Err(ServeError::Deposed(why)),
                // While it stands by; later its reign ends by itself.
                _ = stop.wait_for(|s| *s) => Ok(()),
            };
            if let Err(e) = store.release().await {
                tracing::warn!(error = %e, "the Lease was not given up; it runs out by itself");
            }
            served
        }
        (StoreConfig::Embedded(path), client) => {
            let store = Arc::new(Embedded::open(path)?);
            let pools = config.pools.iter();
            let pools = pools.map(|p| pools::core_pool(p.metadata.name.clone(), &p.spec)).collect();
            reign(&config, pools, client, store, fault, stop).await
        }
        // `client` makes one whenever the store asks for it.
        (StoreConfig::Kubernetes(_), None) => Ok(()),
    }
}

/// Reigns over the cluster's pools for as long as they stay as they are; then a new start takes them up.
async fn in_cluster(
    config: &Config,
    client: &Client,
    store: Arc<Kubernetes>,
    fault: Fault,
    stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let known = pools::in_cluster(client).await.map_err(|e| ServeError::Pools(Box::new(e)))?;
    tokio::select! {
        r = reign(config, known.clone(), Some(client.clone()), store, fault, stop) => r,
        () = pools::changed(client, &known) => {
            tracing::info!("the cluster's StoragePools have changed: ending, to start with them");
            Ok(())
        }
    }
}

/// Which Lease, and who this is.
fn lease(k: &KubernetesStore, client: &Client) -> LeaseConfig {
    let namespace = k.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}-{}", host.trim(), uuid::Uuid::new_v4());
    let duration = Duration::from_secs(k.lease_seconds.into());
    LeaseConfig {
        duration,
        deadline: duration * 2 / 3,
        retry: duration * 2 / 15,
        ..LeaseConfig::new(namespace, k.lease.clone(), identity)
    }
}

/// Who tells callers apart.
fn identify(config: &Config, client: Option<Client>) -> Arc<dyn Identify> {
    match (&config.node_tokens, client) {
        (Some(NodeTokens { audience, service_account }), Some(client)) => {
            let expected = Expected { audience: audience.clone(), service_account: service_account.clone() };
            Arc::new(ByToken::new(client, expected))
        }
        _ if config.tls.is_some() => Arc::new(ByCertificate),
        _ => Arc::new(session::Unproven),
    }
}

/// Loads what is on record, decides and serves until a part of that fails or `stop` says so.
async fn reign(
    config: &Config,
    pools: Vec<PoolSpec>,
    client: Option<Client>,
    store: Arc<dyn Store>,
    fault: Fault,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let identify = identify(config, client);
    let (core, handle) = Core::start(core_config(config, pools), store, fault).await?;
    // Not before: nodes that find nobody listening dial another controller.
    let nodes_listener = bind(&config.listen.nodes.to_string()).await?;
    let api: Arc<dyn Api> = Arc::new(handle.clone());

    let operations = Operations::default();
    let (ready, readiness) = watch::channel(Ok(()));
    if let Some(at) = config.listen.http {
        let told = Told {
            live: live_check(handle.clone()),
            ready: readiness,
            metrics: Arc::new(metrics::registry(&handle, &operations)),
        };
        let listener = bind(&at.to_string()).await?;
        let mut stop = stop.clone();
        let until = async move { drop(stop.wait_for(|s| *s).await) };
        tokio::spawn(async move {
            if let Err(e) = observe::serve(listener, told, until).await {
                tracing::error!(%at, error = %e, "health and metrics are not served any more");
            }
        });
    }
    let csi = Server::builder()
        .layer(operations)
        .add_service(IdentityServer::new(IdentityService::new(api.clone(), config.driver_name.clone())))
        .add_service(ControllerServer::new(ControllerService::new(api.clone())))
        .add_service(AdminServer::new(AdminService::new(api)));
    let mut sessions = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)));
    if let Some(t) = &config.tls {
        sessions = sessions.tls_config(tls::server(t, config.node_tokens.is_some())?)?;
    }
    let sweeps = sweep::keep_sweeping(handle.flow().clone(), handle.clone());
    let sessions = sessions.add_service(session::Service::new(handle, identify).into_server());
    let incoming = TcpIncoming::from(nodes_listener).with_nodelay(Some(true));
    tracing::info!(csi = ?config.listen.csi, nodes = %config.listen.nodes, "weir-controller is up");

    tokio::select! {
        r = core.run() => r?,
        r = sessions.serve_with_incoming(incoming) => r?,
        r = serve_csi(csi, &config.listen.csi) => r?,
        // It ends with the core.
        () = async { sweeps.await; std::future::pending().await } => {}
        _ = stop.wait_for(|s| *s) => tracing::info!("told to stop"),
    }
    drop(ready.send_replace(Err("stopping".to_owned())));
    Ok(())
}

/// The process lives when its core answers.
fn live_check(handle: Handle) -> observe::Check {
    Arc::new(move || {
        let handle = handle.clone();
        Box::pin(async move { handle.tally().await.map(drop).map_err(|e| e.to_string()) })
    })
}

async fn serve_csi(router: Router<Stack<Operations, Identity>>, at: &Endpoint) -> Result<(), ServeError> {
    match at {
        Endpoint::Tcp(a) => {
            let listener = bind(&a.to_string()).await?;
            router.serve_with_incoming(TcpListenerStream::new(listener)).await?;
        }
        Endpoint::Unix(path) => {
            let listener = bind_unix(path)
                .map_err(|source| ServeError::Listen { at: path.display().to_string(), source })?;
            router.serve_with_incoming(UnixListenerStream::new(listener)).await?;
        }
    }
    Ok(())
}

async fn bind(at: &str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(at).await.map_err(|source| ServeError::Listen { at: at.to_owned(), source })
}

/// Listens on a unix socket that only this user may open; one that a dead predecessor left is taken over, a living
/// one's is not.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another process listens there"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The core's view of the configuration.
fn core_config(c: &Config, pools: Vec<PoolSpec>) -> CoreConfig {
    CoreConfig {
        pools,
        lease: Duration::from_millis(c.lease.lease_ms.into()),
        heartbeat: Duration::from_millis(c.lease.heartbeat_ms.into()),
        ..CoreConfig::default()
    }
}
