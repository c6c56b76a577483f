//! Wires the parts of a controller together and runs it until it is told to stop.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use csi_proto::{
    admin::admin_server::AdminServer,
    csi::{controller_server::ControllerServer, identity_server::IdentityServer},
};
use kube::Client;
use observe::Operations;
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
    admission::cluster::ByPods,
    certificates::{self, cluster::Keeper},
    cluster,
    config::{Config, Endpoint, KubernetesStore, NodeTokens, Store as StoreConfig, Tls},
    core::{self, Core, CoreConfig, Handle, PoolSpec},
    csi::{ControllerService, IdentityService},
    face::Face,
    fault::Fault,
    flow::{
        moves::{Moves, Pace},
        sweep,
    },
    identity::{ByCertificate, ByToken, Expected, Refusals},
    operator::Operator,
    pools,
    report::{Reporter, Waiting},
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
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] certificates::FilesError),
    /// There is no way to the cluster.
    #[error(transparent)]
    Cluster(#[from] cluster::ConnectError),
    /// Another controller may reign now.
    #[error("the reign is over: {0}")]
    Deposed(String),
}

/// The way to the cluster, where one is needed.
async fn client(config: &Config) -> Result<Option<Client>, ServeError> {
    let needed = config.node_tokens.is_some()
        || matches!(config.store, StoreConfig::Kubernetes(_))
        || matches!(config.tls, Some(Tls::Kubernetes(_)));
    Ok(if needed { Some(cluster::connect(config.kubeconfig.as_deref()).await?) } else { None })
}

/// Runs a controller until `stop` says so or the core fails. Stopping it stops no I/O.
///
/// `address`: where this process is reached by nodes and by other controllers, without the port.
///
/// # Errors
/// See [`ServeError`].
pub async fn run(
    config: Config,
    address: Option<IpAddr>,
    fault: Fault,
    stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let client = client(&config).await?;
    let operations = Operations::new(&config.driver_name);
    let face = Face::new(&operations);
    face.serve_http(&config, stop.clone()).await?;
    let sessions = serve_sessions(&config, client.clone(), &face).await?;
    let csi = serve_csi(&config, &face, operations.clone()).await?;
    tokio::select! {
        r = work(&config, address, client, &face, operations, fault, stop) => r?,
        r = sessions => r?,
        r = csi => r?,
    }
    face.abdicate();
    Ok(())
}

/// Answers CSI from the start: sidecars of a standby wait for it to reign rather than for a socket to be there.
async fn serve_csi(
    config: &Config,
    face: &Face,
    operations: Operations,
) -> Result<impl Future<Output = Result<(), ServeError>>, ServeError> {
    let api = face.api();
    let csi = Server::builder()
        .layer(operations)
        .add_service(IdentityServer::new(IdentityService::new(api.clone(), config.driver_name.clone())))
        .add_service(ControllerServer::new(ControllerService::new(api.clone())))
        .add_service(AdminServer::new(AdminService::new(api)));
    let listener = Listener::bind(&config.listen.csi).await?;
    Ok(async move { Ok(listener.serve(csi).await?) })
}

/// Keeps the records and reigns, where and when it may, until it is told to stop.
async fn work(
    config: &Config,
    address: Option<IpAddr>,
    client: Option<Client>,
    face: &Face,
    operations: Operations,
    fault: Fault,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    match (&config.store, client) {
        (StoreConfig::Kubernetes(k), Some(client)) => {
            let store = Arc::new(Kubernetes::new(client.clone(), lease(k, address, config, &client)));
            let served = tokio::select! {
                r = in_cluster(config, &client, store.clone(), face, operations, fault) => r,
                why = store.deposed() => Err(ServeError::Deposed(why)),
                () = told(&mut stop) => Ok(()),
            };
            face.abdicate();
            if let Err(e) = store.release().await {
                tracing::warn!(error = %e, "the Lease was not given up; it runs out by itself");
            }
            served
        }
        (StoreConfig::Embedded(path), client) => {
            let store = Arc::new(Embedded::open(path)?);
            let pools = config.pools.iter();
            let pools = pools.map(|p| pools::core_pool(p.metadata.name.clone(), &p.spec)).collect();
            tokio::select! {
                r = reign(config, pools, client, store, face, operations, fault) => r,
                () = told(&mut stop) => Ok(()),
            }
        }
        // `client` makes one whenever the store asks for it.
        (StoreConfig::Kubernetes(_), None) => Ok(()),
    }
}

/// Waits until it is told to stop; a sender that is gone tells so as well.
async fn told(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|s| *s).await);
    tracing::info!("told to stop");
}

/// Reigns over the cluster's pools for as long as they stay as they are; then a new start takes them up.
async fn in_cluster(
    config: &Config,
    client: &Client,
    store: Arc<Kubernetes>,
    face: &Face,
    operations: Operations,
    fault: Fault,
) -> Result<(), ServeError> {
    let other = store.other();
    let known = pools::at_start(client, |why| face.held_up(why)).await;
    face.starts();
    tokio::select! {
        r = reign(config, known.pools.clone(), Some(client.clone()), store, face, operations, fault) => r,
        () = face.stand_by(other) => Ok(()),
        () = pools::changed(client, &known) => {
            tracing::info!("the cluster's StoragePools have changed: ending, to start with them");
            Ok(())
        }
    }
}

/// Which Lease, and who this is.
fn lease(k: &KubernetesStore, address: Option<IpAddr>, config: &Config, client: &Client) -> LeaseConfig {
    let namespace = k.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}-{}", host.trim(), uuid::Uuid::new_v4());
    let duration = Duration::from_secs(k.lease_seconds.into());
    LeaseConfig {
        duration,
        deadline: duration * 2 / 3,
        retry: duration * 2 / 15,
        address: address.map(|ip| SocketAddr::new(ip, config.listen.nodes.port()).to_string()),
        ..LeaseConfig::new(namespace, k.lease.clone(), identity)
    }
}

/// Who tells callers apart.
fn identify(config: &Config, client: Option<Client>, refused: &Refusals) -> Arc<dyn Identify> {
    match (&config.node_tokens, client) {
        (Some(NodeTokens { audience, service_account }), Some(client)) => {
            let expected = Expected { audience: audience.clone(), service_account: service_account.clone() };
            Arc::new(ByToken::new(client, expected, refused.clone()))
        }
        _ if config.tls.is_some() => Arc::new(ByCertificate),
        _ => Arc::new(session::Unproven),
    }
}

/// Loads what is on record, decides and serves until a part of that fails.
async fn reign(
    config: &Config,
    pools: Vec<PoolSpec>,
    client: Option<Client>,
    store: Arc<dyn Store>,
    face: &Face,
    operations: Operations,
    fault: Fault,
) -> Result<(), ServeError> {
    let refused = Refusals::default();
    let identify = identify(config, client.clone(), &refused);
    let (core, handle) = Core::start(core_config(config, pools), store, fault).await?;
    let (handle, reporters) = match (&config.store, client) {
        (StoreConfig::Kubernetes(_), Some(client)) => {
            let admission = ByPods::new(client.clone(), config.driver_name.clone());
            let handle = handle.with_admission(Arc::new(admission));
            let waiting = Waiting::new(client.clone(), handle.clone(), config.driver_name.clone());
            (handle.clone(), Some((Reporter::new(client, handle), waiting)))
        }
        (StoreConfig::Kubernetes(_), None) | (StoreConfig::Embedded(_), _) => (handle, None),
    };
    let report = async {
        match reporters {
            // Each runs for as long as the core does.
            Some((reporter, waiting)) => drop(tokio::join!(reporter.run(), waiting.run())),
            None => std::future::pending().await,
        }
    };
    face.measure(&handle, &operations, &refused);
    let operator = serve_operator(config, handle.clone());
    let sweeps = sweep::keep_sweeping(handle.flow().clone(), handle.clone());
    let moves = Moves::new(handle.clone(), pace(config)).keep_looking();
    face.reign(handle, identify);
    tracing::info!(csi = ?config.listen.csi, nodes = %config.listen.nodes, "weir-controller is up");
    tokio::select! {
        r = core.run() => r?,
        r = operator => r?,
        () = report => {}
        // It ends with the core.
        () = async { tokio::join!(sweeps, moves); std::future::pending().await } => {}
    }
    Ok(())
}

/// Serves nodes' sessions for as long as the process lives, whoever reigns.
async fn serve_sessions(
    config: &Config,
    client: Option<Client>,
    face: &Face,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>> + use<>, ServeError> {
    let listener = bind(&config.listen.nodes.to_string()).await?;
    let tokens = config.node_tokens.is_some();
    let settings = match (&config.tls, client) {
        (Some(Tls::Files(files)), _) => Some(certificates::watch_files(files.clone(), tokens)?),
        (Some(Tls::Kubernetes(k)), Some(client)) => Some(Keeper::new(client, k.clone()).keep(face.reigns())),
        // `client` makes one whenever certificates ask for it.
        (Some(Tls::Kubernetes(_)), None) | (None, _) => None,
    };
    let sessions = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(face.sessions().into_server());
    Ok(async move {
        match settings {
            Some(settings) => sessions.serve_with_incoming(tls::incoming(listener, settings)).await,
            None => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                sessions.serve_with_incoming(incoming).await
            }
        }
    })
}

/// Where a service is served.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(at: &Endpoint) -> Result<Self, ServeError> {
        match at {
            Endpoint::Tcp(a) => bind(&a.to_string()).await.map(Self::Tcp),
            Endpoint::Unix(path) => bind_unix(path)
                .map(Self::Unix)
                .map_err(|source| ServeError::Listen { at: path.display().to_string(), source }),
        }
    }

    async fn serve(self, router: Router<Stack<Operations, Identity>>) -> Result<(), tonic::transport::Error> {
        match self {
            Self::Tcp(l) => router.serve_with_incoming(TcpListenerStream::new(l)).await,
            Self::Unix(l) => router.serve_with_incoming(UnixListenerStream::new(l)).await,
        }
    }
}

/// Serves operators where the configuration says so.
async fn serve_operator(config: &Config, core: Handle) -> Result<(), ServeError> {
    let Some(listen) = &config.listen.operator else { return std::future::pending().await };
    let proven = listen.proven(config.tls.as_ref());
    let router = Server::builder().tcp_nodelay(true).add_service(Operator::new(core, proven).into_server());
    match (&listen.at, config.tls.as_ref().filter(|_| proven)) {
        (Endpoint::Tcp(a), Some(Tls::Files(files))) => {
            let settings = certificates::watch_files(files.clone(), false)?;
            let listener = bind(&a.to_string()).await?;
            router.serve_with_incoming(tls::incoming(listener, settings)).await?;
        }
        // Without a CA of operators' certificates nobody can prove anything: all are refused.
        (at, Some(Tls::Kubernetes(_)) | None) | (at @ Endpoint::Unix(_), Some(Tls::Files(_))) => {
            match Listener::bind(at).await? {
                Listener::Tcp(l) => router.serve_with_incoming(TcpListenerStream::new(l)).await?,
                Listener::Unix(l) => router.serve_with_incoming(UnixListenerStream::new(l)).await?,
            }
        }
    }
    Ok(())
}

pub(crate) async fn bind(at: &str) -> Result<TcpListener, ServeError> {
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

/// When moves are looked for.
fn pace(c: &Config) -> Pace {
    let time = |s: api::Span| Duration::from_secs(s.as_seconds());
    Pace { settle: time(c.moves.settle), every: time(c.moves.every) }
}

/// The core's view of the configuration.
fn core_config(c: &Config, pools: Vec<PoolSpec>) -> CoreConfig {
    CoreConfig {
        pools,
        lease: Duration::from_millis(c.lease.lease_ms.into()),
        heartbeat: Duration::from_millis(c.lease.heartbeat_ms.into()),
        lend_by_forecast: c.lend_by_forecast,
        ..CoreConfig::default()
    }
}
