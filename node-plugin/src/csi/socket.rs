//! The unix socket on which CSI is served.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use csi_proto::csi::{identity_server::IdentityServer, node_server::NodeServer};
use observe::Operations;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

use super::{IdentityService, NodeService};

/// Why CSI is not served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another plugin answers there.
    #[error("{}: another process serves this socket; end it first, or give another --csi-endpoint", .0.display())]
    Taken(PathBuf),
    /// Something that is no socket is there.
    #[error("{}: it is not a socket, and is not removed", .0.display())]
    NotASocket(PathBuf),
    /// A call failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// Which.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server failed.
    #[error("CSI server: {0}")]
    Serve(#[from] tonic::transport::Error),
}

fn fail(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { op, path, source }
}

/// Listens at `path`, for root alone. A socket that a dead plugin left is replaced; a live one is not.
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(fail("create folder", dir))?;
    }
    match fs::symlink_metadata(path) {
        Ok(m) if !m.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(SocketError::Taken(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(fail("remove stale socket", path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(fail("look at", path)(e)),
    }
    let listener = UnixListener::bind(path).map_err(fail("listen at", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail("restrict", path))?;
    Ok(listener)
}

/// Serves until `stop` ends; what is running then is finished. The socket is removed.
pub async fn serve(
    listener: UnixListener,
    path: &Path,
    identity: IdentityService,
    node: NodeService,
    operations: Operations,
    stop: impl Future<Output = ()>,
) -> Result<(), SocketError> {
    tonic::transport::Server::builder()
        .layer(operations)
        .add_service(IdentityServer::new(identity))
        .add_service(NodeServer::new(node))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("a/b/csi.sock");
        let first = bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path).await, Err(SocketError::Taken(_))));
        drop(first);
        drop(bind(&path).await.unwrap());
        let file = t.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(bind(&file).await, Err(SocketError::NotASocket(_))));
    }
}
