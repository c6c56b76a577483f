//! Certificates in files, read anew when they change (cert-manager, a person). Must not know: who writes them.

use std::{fs, path::Path, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use crate::{
    config::TlsFiles,
    tls::{self, Pem, TlsError},
};

/// How often files are looked at: the kubelet takes about a minute to bring a changed Secret into a pod.
const LOOK: Duration = Duration::from_secs(10);

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One cannot be read.
    #[error("cannot read TLS file {}: {source}", path.display())]
    Read {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What they hold makes no server.
    #[error("TLS files: {0}")]
    Tls(#[from] TlsError),
}

fn read(files: &TlsFiles) -> Result<Pem, FilesError> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| FilesError::Read { path: path.to_owned(), source });
    let clients = files.ca.as_deref().map(read).transpose()?;
    Ok(Pem { clients, cert: read(&files.cert)?, key: read(&files.key)? })
}

/// The settings that files hold now and later; the watch ends with its last receiver.
///
/// # Errors
/// They make no server at first. Later mistakes are said in the log, and the last good settings stay.
pub fn watch_files(
    files: TlsFiles,
    tokens: bool,
) -> Result<watch::Receiver<Option<Arc<ServerConfig>>>, FilesError> {
    let mut known = read(&files)?;
    let (tx, rx) = watch::channel(Some(tls::server(&known, tokens)?));
    tokio::spawn(async move {
        let mut said = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = tx.closed() => return,
            }
            let again = read(&files).and_then(|pem| {
                if pem == known {
                    return Ok(None);
                }
                // Certificate and key are two files: between two writes they do not go together.
                let config = tls::server(&pem, tokens)?;
                known = pem;
                Ok(Some(config))
            });
            match again {
                Ok(Some(config)) => {
                    tracing::info!(cert = %files.cert.display(), "the certificate was renewed");
                    tx.send_replace(Some(config));
                    said.clear();
                }
                Ok(None) => said.clear(),
                Err(e) if said == e.to_string() => {}
                Err(e) => {
                    said = e.to_string();
                    tracing::error!(
                        error = said,
                        "the certificate cannot be renewed; the last one stays in use"
                    );
                }
            }
        }
    });
    Ok(rx)
}
