//! Wires the parts of a node plugin together and runs it until it is told to stop. Stopping it stops no I/O: the
//! kernel keeps what stands.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use observe::{Operations, Told};
use tokio::{
    net::{TcpListener, UnixStream},
    sync::watch,
};

use crate::{
    agent::{self, Agent, real::Kernel},
    config::{Config, ConfigError, storage_address},
    csi::{self, Faults, IdentityService, KernelTools, NodeService, NodeSettings},
    disks::{self, KernelHardware},
    disks_api::disk_link,
    flow::{self, Recorder, look::KernelEye},
    kubelet::{self, readiness},
    limits::{LimitError, Limiter},
    metrics::{self, Gauges},
    session::{Session, SessionConfig, term::TermError},
};

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long writing the histories down may take at the end.
const SAVE: Duration = Duration::from_secs(3);

/// Why a node plugin ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration does not fit this node.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address for exports was not found.
    #[error(transparent)]
    Address(#[from] crate::config::AddressError),
    /// A file that is needed cannot be read or made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel cannot be reached.
    #[error(
        "the kernel's device-mapper or NVMe controls cannot be used: {0} (is weir-node root, and is dm_mod loaded?)"
    )]
    Kernel(#[from] agent::ground::GroundError),
    /// What is remembered of limited users cannot be read.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// The agent did not start.
    #[error(transparent)]
    Agent(#[from] agent::StartError),
    /// The kernel's counters cannot be read.
    #[error(transparent)]
    Counters(#[from] flow::look::LookError),
    /// The session could not be prepared.
    #[error(transparent)]
    Term(#[from] TermError),
    /// Health and metrics cannot be served.
    #[error("HTTP on {at}: {source}")]
    Http {
        /// Where.
        at: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CSI could not be served.
    #[error(transparent)]
    Csi(#[from] csi::SocketError),
}

/// Runs a node plugin until `stop` says so.
///
/// # Errors
/// See [`ServeError`].
pub async fn run(config: Config, faults: Faults, mut stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    let storage =
        SocketAddr::new(storage_address(&config.storage, &config.controllers)?, config.storage_port);
    fs::create_dir_all(&config.state_dir)
        .map_err(|source| ServeError::File { path: config.state_dir.clone(), source })?;
    // Bound first: a second plugin on the node ends here, before it touches anything.
    let socket = csi::bind(&config.csi_socket).await?;

    let (link, room_link) = disk_link();
    let room = disks::start(Arc::new(KernelHardware { devices: config.devices.clone() }), room_link, true);
    let kernel = Arc::new(Kernel::open(&config.node, storage)?);
    let agent = Agent::start(config.node.clone(), kernel, room).await?;
    let boot_id = read_boot_id()?;
    let limits = Arc::new(Limiter::open(Path::new(CGROUPS), &config.state_dir, &boot_id)?);
    tokio::spawn(limits.clone().keep(agent.calls().clone()));
    let recorder = Recorder::open(&config.state_dir);
    let eye = Arc::new(KernelEye::open()?);
    let recording = tokio::spawn(recorder.clone().run(eye, agent.calls().clone(), flow::EVERY, stop.clone()));
    let (ready, session_up) = watch::channel(Err("no controller has been reached yet".to_owned()));
    let session = SessionConfig {
        node: config.node.clone(),
        controllers: config.controllers.iter().map(|e| e.as_str().to_owned()).collect(),
        tls: config.tls.clone(),
        token: config.token.clone(),
        boot_id,
        storage,
        topology: config.topology.clone(),
        features: vec![],
        max_volumes: config.max_volumes,
        state_dir: config.state_dir.clone(),
        recorder: Some(recorder.clone()),
        limits: Some(limits.clone()),
    };
    let volumes = Arc::new(Session::start(session, agent.clone(), link, ready)?);

    let identity = IdentityService::new(config.driver_name.clone(), session_up.clone());
    let operations = Operations::new(&config.driver_name);
    let settings = NodeSettings {
        node: config.node.clone(),
        topology: config.topology.clone().into_iter().collect(),
        max_volumes: config.max_volumes,
    };
    let node = NodeService::new(settings, volumes, Arc::new(KernelTools), limits, faults);
    let registered = config.kubelet_registry.clone().map(|registry| {
        let (tell, standing) = watch::channel(kubelet::Standing::Waiting);
        let (driver, csi_socket) = (config.driver_name.clone(), config.csi_socket.clone());
        let plugin = kubelet::Plugin { driver, csi_socket, registry };
        tokio::spawn(kubelet::keep(plugin, tell, stop.clone()));
        standing
    });
    if let Some(at) = config.http {
        let ready = match registered.clone() {
            // What probes CSI is told of the session alone: the kubelet may ask before it registers the plugin.
            Some(kubelet) => readiness::follow(session_up.clone(), kubelet, readiness::PATIENCE),
            None => session_up.clone(),
        };
        let gauges = Gauges { agent, recorder, session_up, registered };
        let told = Told {
            live: live_check(config.csi_socket.clone()),
            ready,
            metrics: watch::channel(Arc::new(metrics::registry(gauges, &operations))).1,
        };
        let listener =
            TcpListener::bind(at).await.map_err(|source| ServeError::Http { at: at.to_string(), source })?;
        let mut stop = stop.clone();
        let until = async move { drop(stop.wait_for(|s| *s).await) };
        tokio::spawn(async move {
            if let Err(e) = observe::serve(listener, told, until).await {
                tracing::error!(%at, error = %e, "health and metrics are not served any more");
            }
        });
    }
    tracing::info!(k8s_node = %config.node, %storage, csi = %config.csi_socket.display(), "weir-node is up");
    let stopped = async move {
        // A sender that is gone stops the plugin as well.
        drop(stop.wait_for(|s| *s).await);
        tracing::info!("told to stop");
    };
    csi::serve(socket, &config.csi_socket, identity, node, operations, stopped).await?;
    // It ends with `stop`; the file system may be away, which must not keep the process.
    match tokio::time::timeout(SAVE, recording).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::error!(error = %e, "recording did not end well"),
        Err(_) => tracing::warn!("the histories of the last minutes could not be written down in {SAVE:?}"),
    }
    Ok(())
}

/// The process lives when its CSI socket takes connections.
fn live_check(socket: PathBuf) -> observe::Check {
    Arc::new(move || {
        let socket = socket.clone();
        Box::pin(async move {
            let dialled = UnixStream::connect(&socket).await;
            dialled.map(drop).map_err(|e| format!("CSI socket {}: {e}", socket.display()))
        })
    })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, ServeError> {
    fs::read(path).map_err(|source| ServeError::File { path: path.clone(), source })
}

fn read_boot_id() -> Result<String, ServeError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    Ok(String::from_utf8_lossy(&read(&path)?).trim().to_owned())
}
