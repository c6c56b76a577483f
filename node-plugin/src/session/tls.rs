//! TLS towards a controller, from files that others renew: they are read for every dial. Must not know: who is dialled.

use std::{fs, path::PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::config::Tls;

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub(super) struct ReadError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

fn read(path: &PathBuf) -> Result<Vec<u8>, ReadError> {
    fs::read(path).map_err(|source| ReadError { path: path.clone(), source })
}

/// The settings that the files hold now.
pub(super) fn settings(t: &Tls) -> Result<ClientTlsConfig, ReadError> {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&t.ca)?));
    if let (Some(cert), Some(key)) = (&t.cert, &t.key) {
        config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(match &t.server_name {
        Some(n) => config.domain_name(n),
        None => config,
    })
}
