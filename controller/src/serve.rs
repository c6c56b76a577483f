//! Wires the parts of a controller together and runs it until it is told to stop.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use ::api::{DeviceClass, FreshDisks, StoragePoolSpec};
use csi_proto::{
    admin::admin_server::AdminServer,
    csi::{controller_server::ControllerServer, identity_server::IdentityServer},
};
use observe::{Operations, Told};
use pool::ids::{NodeName, PoolName};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{
    Extensions, Status,
    metadata::MetadataMap,
    transport::{
        Server,
        server::{Router, TcpConnectInfo, TcpIncoming, TlsConnectInfo},
    },
};
use tower::layer::util::{Identity, Stack};

use crate::{
    admin::AdminService,
    api::Api,
    config::{Config, Endpoint},
    core::{self, Core, CoreConfig, Handle},
    csi::{ControllerService, IdentityService},
    fault::Fault,
    metrics,
    session::{self, Identify},
    store::embedded::Embedded,
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
}

/// Believes the certificate that a connection showed.
struct ByCertificate;

#[async_trait::async_trait]
impl Identify for ByCertificate {
    async fn node(&self, connection: &Extensions, _: &MetadataMap) -> Result<Option<NodeName>, Status> {
        let certs = connection.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
        match tls::peer_nodes(certs).into_iter().next() {
            Some(n) => Ok(Some(n)),
            None => Err(Status::unauthenticated(
                "the certificate names no node: its common name must be the node's",
            )),
        }
    }
}

/// Runs a controller until `stop` says so or the core fails. Stopping it stops no I/O.
///
/// # Errors
/// See [`ServeError`].
pub async fn run(config: Config, fault: Fault, mut stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    let store = Arc::new(Embedded::open(&config.store.path)?);
    let nodes_listener = bind(&config.listen.nodes.to_string()).await?;
    let (core, handle) = Core::start(core_config(&config), store, fault).await?;
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
    let (identify, tls): (Arc<dyn Identify>, _) = match &config.tls {
        Some(t) => (Arc::new(ByCertificate), Some(tls::server(t)?)),
        None => (Arc::new(session::Unproven), None),
    };
    let mut sessions = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)));
    if let Some(t) = tls {
        sessions = sessions.tls_config(t)?;
    }
    let sessions = sessions.add_service(session::Service::new(handle, identify).into_server());
    let incoming = TcpIncoming::from(nodes_listener).with_nodelay(Some(true));
    tracing::info!(csi = ?config.listen.csi, nodes = %config.listen.nodes, "weir-controller is up");

    tokio::select! {
        r = core.run() => r?,
        r = sessions.serve_with_incoming(incoming) => r?,
        r = serve_csi(csi, &config.listen.csi) => r?,
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
fn core_config(c: &Config) -> CoreConfig {
    CoreConfig {
        pools: c.pools.iter().map(|p| core_pool(p.metadata.name.clone(), &p.spec)).collect(),
        lease: Duration::from_millis(c.lease.lease_ms.into()),
        heartbeat: Duration::from_millis(c.lease.heartbeat_ms.into()),
        ..CoreConfig::default()
    }
}

/// The core's view of a pool.
fn core_pool(name: PoolName, spec: &StoragePoolSpec) -> core::PoolSpec {
    let nodes =
        |n: &::api::NodeSelector| core::NodeSelector { names: n.names.clone(), labels: n.labels.clone() };
    let class = |k: &DeviceClass| match k {
        DeviceClass::Hdd => pool::disk::DiskClass::Hdd,
        DeviceClass::Ssd => pool::disk::DiskClass::Ssd,
        DeviceClass::Nvme => pool::disk::DiskClass::Nvme,
    };
    let devices = |d: &::api::DeviceSelector| core::DeviceSelector {
        paths: d.paths.clone(),
        serials: d.serials.clone(),
        classes: d.classes.iter().map(class).collect(),
        min_size: Some(d.min_size.bytes()).filter(|b| !b.is_zero()),
    };
    core::PoolSpec {
        name,
        extent_size: spec.extent_size.0,
        logical_block: spec.logical_block,
        nodes: spec.nodes.iter().map(nodes).collect(),
        devices: spec.devices.iter().map(devices).collect(),
        fresh_disks: match spec.fresh_disks {
            FreshDisks::Wipe => core::FreshDisks::Wipe,
            FreshDisks::Trust => core::FreshDisks::Trust,
        },
        max_lenders: spec.max_lenders,
        reserve: spec.reserve.bytes(),
    }
}
