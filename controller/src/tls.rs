//! TLS of the node sessions: the server's side of it, and who a peer is by its certificate.
//!
//! A node's certificate names it as the subject's common name; a DNS name among the subject alternative names counts
//! as well. A session may speak for that node only.

use std::{fs, path::PathBuf, sync::Arc};

use pool::ids::NodeName;
use tonic::transport::{Certificate, CertificateDer, Identity, ServerTlsConfig};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("cannot read TLS file {}: {source}", path.display())]
pub struct TlsError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// The server's configuration: clients must show a certificate of the CA, or may leave it out where `tokens` say who
/// they are. A certificate that is shown must be of the CA either way.
///
/// # Errors
/// A file that cannot be read.
pub fn server(t: &config::Tls, tokens: bool) -> Result<ServerTlsConfig, TlsError> {
    let read = |path: &PathBuf| fs::read(path).map_err(|source| TlsError { path: path.clone(), source });
    let identity = Identity::from_pem(read(&t.cert)?, read(&t.key)?);
    let ca = Certificate::from_pem(read(&t.ca)?);
    Ok(ServerTlsConfig::new().identity(identity).client_ca_root(ca).client_auth_optional(tokens))
}

/// The nodes that a peer may speak for: the names in its certificate that are node names.
pub fn peer_nodes(certs: Option<Arc<Vec<CertificateDer<'static>>>>) -> Vec<NodeName> {
    let Some(certs) = certs else { return vec![] };
    let Some(leaf) = certs.first() else { return vec![] };
    let Ok((_, cert)) = X509Certificate::from_der(leaf) else { return vec![] };
    let common = cert.subject().iter_common_name().filter_map(|a| a.as_str().ok());
    let mut names: Vec<NodeName> = common.filter_map(|n| n.parse().ok()).collect();
    if let Ok(Some(alt)) = cert.subject_alternative_name() {
        names.extend(alt.value.general_names.iter().filter_map(|g| match g {
            GeneralName::DNSName(n) => n.parse().ok(),
            _ => None,
        }));
    }
    names
}
