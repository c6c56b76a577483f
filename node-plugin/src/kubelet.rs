//! Making the plugin known to the kubelet: a socket in its registry folder says where CSI is served.
//!
//! Invariants: whatever the kubelet answers, the plugin goes on serving; a refused registration, a socket that somebody
//! removed and a kubelet that starts anew all end in a socket that the kubelet finds. Must not know: CSI itself.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use csi_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status};

use crate::agent::Backoff;

mod authority;
pub mod readiness;

/// The kind of plugin that a CSI driver is to the kubelet.
const TYPE: &str = "CSIPlugin";
/// Versions of CSI, as the kubelet compares them: the major one counts.
const VERSIONS: &[&str] = &["1.0.0"];
/// How often it is looked whether the socket is still there.
const LOOK: Duration = Duration::from_secs(10);
/// Pauses before another try after a refusal or a failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the kubelet has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet.
    Waiting,
    /// It uses the plugin.
    Registered,
    /// It does not, or the socket could not be made.
    Refused(String),
}

/// What is to be registered.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The driver's name.
    pub driver: String,
    /// Where CSI is served; the kubelet must see it under the same path.
    pub csi_socket: PathBuf,
    /// The kubelet's registry folder.
    pub registry: PathBuf,
}

#[derive(Clone)]
struct Service {
    plugin: Arc<Plugin>,
    standing: watch::Sender<Standing>,
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: TYPE.to_owned(),
            name: self.plugin.driver.clone(),
            endpoint: self.plugin.csi_socket.display().to_string(),
            supported_versions: VERSIONS.iter().map(|v| (*v).to_owned()).collect(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let r = request.into_inner();
        let now = if r.plugin_registered { Standing::Registered } else { Standing::Refused(r.error) };
        match &now {
            Standing::Refused(why) => tracing::error!(why, "the kubelet does not take the plugin"),
            Standing::Waiting | Standing::Registered => tracing::info!("registered with the kubelet"),
        }
        self.standing.send_replace(now);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Keeps the plugin registered until `stop` says so; the standing is told to whoever subscribes.
pub async fn keep(plugin: Plugin, standing: watch::Sender<Standing>, mut stop: watch::Receiver<bool>) {
    let path = plugin.registry.join(format!("{}-reg.sock", plugin.driver));
    let service = Service { plugin: Arc::new(plugin), standing };
    let mut pause = Backoff::new(AGAIN.0, AGAIN.1);
    loop {
        service.standing.send_replace(Standing::Waiting);
        let end = serve_once(&service, &path, &mut stop).await;
        if *stop.borrow() {
            return;
        }
        match end {
            Ok(true) => pause.reset(),
            Ok(false) => {}
            Err(e) => {
                let why = format!("{}: {e}", path.display());
                tracing::error!("the kubelet cannot find the plugin: {why}");
                service.standing.send_replace(Standing::Refused(why));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause.pause()) => {}
            r = stop.wait_for(|s| *s) => { drop(r); return }
        }
    }
}

/// Serves one socket until it is not there any more (true), the kubelet refuses (false), or all stops.
async fn serve_once(service: &Service, path: &Path, stop: &mut watch::Receiver<bool>) -> io::Result<bool> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    let made = fs::symlink_metadata(path)?.ino();
    let mut standing = service.standing.subscribe();
    let (tell, mut ended) = watch::channel(None);
    let until = async move {
        let refused = standing.wait_for(|s| matches!(s, Standing::Refused(_)));
        let gone = async {
            while fs::symlink_metadata(path).is_ok_and(|m| m.ino() == made) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let why = tokio::select! {
            r = refused => { drop(r); Some(false) }
            () = gone => Some(true),
            r = stop.wait_for(|s| *s) => { drop(r); None }
        };
        tell.send_replace(why);
    };
    tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(service.clone()))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener).map(|kubelet| kubelet.map(authority::mend)),
            until,
        )
        .await
        .map_err(io::Error::other)?;
    let why = *ended.borrow_and_update();
    if why != Some(true) {
        remove(path)?;
    }
    Ok(why == Some(true))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use csi_proto::registration::registration_client::RegistrationClient;
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixStream;
    use tonic::transport::{Channel, Endpoint};

    use super::*;

    async fn dial(path: &Path) -> RegistrationClient<Channel> {
        let limit = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let at = path.to_owned();
            let connector = tower::service_fn(move |_| {
                let at = at.clone();
                async move { UnixStream::connect(at).await.map(TokioIo::new) }
            });
            match Endpoint::from_static("http://kubelet").connect_with_connector(connector).await {
                Ok(c) => return RegistrationClient::new(c),
                Err(e) => assert!(tokio::time::Instant::now() < limit, "no socket: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A call as the kubelet's plugin watcher makes it, byte for byte: its authority is the socket's path.
    #[tokio::test]
    async fn the_path_of_the_socket_is_taken_for_an_authority() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("plugins_registry");
        let path = registry.join("csi.weir.storage-reg.sock");
        let plugin = Plugin { driver: "csi.weir.storage".into(), csi_socket: "/csi.sock".into(), registry };
        let (stop, stopped) = watch::channel(false);
        let run = tokio::spawn(keep(plugin, watch::channel(Standing::Waiting).0, stopped));
        dial(&path).await;
        let mut kubelet = UnixStream::connect(&path).await.unwrap();
        let block = fluke_hpack::Encoder::new().encode(
            [
                (&b":method"[..], &b"POST"[..]),
                (b":scheme", b"http"),
                (b":path", b"/pluginregistration.Registration/GetInfo"),
                (b":authority", b"%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcsi.weir.storage-reg.sock"),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            ]
            .into_iter(),
        );
        let mut call = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        call.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap(), 1, 4, 0, 0, 0, 1]);
        call.extend_from_slice(&block);
        call.extend_from_slice(&[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        kubelet.write_all(&call).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(9).any(|w| w == b"/csi.sock") {
            let mut some = [0; 512];
            let read = tokio::time::timeout(Duration::from_secs(30), kubelet.read(&mut some)).await;
            let n = read.expect("an answer").unwrap();
            assert!(n > 0, "the connection was closed: {answer:?}");
            answer.extend_from_slice(&some[..n]);
        }
        stop.send_replace(true);
        drop(kubelet);
        run.await.unwrap();
    }

    #[tokio::test]
    async fn the_kubelet_is_told_where_csi_is_and_may_refuse_at_first() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = Plugin {
            driver: "csi.weir.storage".into(),
            csi_socket: "/var/lib/kubelet/plugins/csi.weir.storage/csi.sock".into(),
            registry: dir.path().join("plugins_registry"),
        };
        let path = plugin.registry.join("csi.weir.storage-reg.sock");
        let (stop, stopped) = watch::channel(false);
        let (standing, mut seen) = watch::channel(Standing::Waiting);
        let run = tokio::spawn(keep(plugin, standing, stopped));
        let mut kubelet = dial(&path).await;
        let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.weir.storage"));
        assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/csi.weir.storage/csi.sock");
        assert_eq!(info.supported_versions, ["1.0.0"]);
        // A file system may give a number again at once.
        let made = || fs::symlink_metadata(&path).map(|m| (m.ino(), m.ctime(), m.ctime_nsec())).unwrap();
        let first = made();
        let no = RegistrationStatus { plugin_registered: false, error: "not yet".into() };
        kubelet.notify_registration_status(no).await.unwrap();
        seen.wait_for(|s| *s == Standing::Refused("not yet".into())).await.unwrap();
        drop(kubelet);
        // A new socket comes, which the kubelet notices.
        seen.wait_for(|s| *s == Standing::Waiting).await.unwrap();
        let mut kubelet = dial(&path).await;
        assert_ne!(made(), first);
        let yes = RegistrationStatus { plugin_registered: true, error: String::new() };
        kubelet.notify_registration_status(yes).await.unwrap();
        seen.wait_for(|s| *s == Standing::Registered).await.unwrap();
        drop(kubelet);
        stop.send_replace(true);
        run.await.unwrap();
        assert!(!path.exists(), "nothing stays behind");
    }
}
