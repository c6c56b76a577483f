//! TLS of the node sessions: the server's side of it, and who a peer is by its certificate.
//!
//! A node's certificate names it as the subject's common name; a DNS name among the subject alternative names counts
//! as well. A session may speak for that node only. Invariant: each connection is greeted with the newest settings; those
//! that stand are not disturbed by a change. Must not know: where certificates come from.

use std::{io, sync::Arc, time::Duration};

use pool::ids::NodeName;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};
use tokio_stream::wrappers::ReceiverStream;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at one time: ten thousand nodes dial when a controller begins.
const GREETED: usize = 256;
/// Pause after a connection could not be accepted (no descriptors left).
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Something is no PEM, or holds nothing of what it should.
    #[error("{what}: {why}")]
    Pem {
        /// What was being read.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// Certificate and key do not go together, or cannot be used.
    #[error("the certificate or its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The CA of clients.
    #[error("the CA of nodes' certificates cannot be used: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What a server needs, PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pem {
    /// CAs of nodes' certificates; without them nodes show none.
    pub clients: Option<Vec<u8>>,
    /// The server's certificate and those above it.
    pub cert: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(c) if c.is_empty() => Err(TlsError::Pem { what, why: "it holds no certificate".to_owned() }),
        Ok(c) => Ok(c),
        Err(e) => Err(TlsError::Pem { what, why: e.to_string() }),
    }
}

/// The server's settings. Where there are CAs of clients, these must show a certificate of one, or may leave it out where
/// `tokens` say who they are; what is shown must be good either way.
///
/// # Errors
/// See [`TlsError`].
pub fn server(pem: &Pem, tokens: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &pem.clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for c in certificates("the CA of nodes' certificates", ca)? {
                roots.add(c)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if tokens { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&pem.key)
        .map_err(|e| TlsError::Pem { what: "the key", why: e.to_string() })?;
    let mut config = builder.with_single_cert(certificates("the certificate", &pem.cert)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connections that have shaken hands. While there are no settings, callers are turned away.
pub fn incoming(
    listener: TcpListener,
    settings: watch::Receiver<Option<Arc<ServerConfig>>>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (greeted, out) = mpsc::channel(1);
    tokio::spawn(accept(listener, settings, greeted));
    ReceiverStream::new(out)
}

async fn accept(
    listener: TcpListener,
    settings: watch::Receiver<Option<Arc<ServerConfig>>>,
    greeted: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let room = Arc::new(Semaphore::new(GREETED));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            a = listener.accept() => a,
            () = greeted.closed() => return,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(e) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(config) = settings.borrow().clone() else {
            tracing::debug!("a caller was turned away: there is no certificate yet");
            continue;
        };
        let greeted = greeted.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(e) = socket.set_nodelay(true) {
                tracing::debug!(error = %e, "a connection without nodelay");
            }
            match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(socket)).await {
                Ok(Ok(stream)) => {
                    if greeted.send(Ok(stream)).await.is_err() {
                        tracing::debug!("a connection came as the server ended");
                    }
                }
                Ok(Err(e)) => tracing::debug!(error = %e, "a handshake failed"),
                Err(_) => tracing::debug!("a handshake took too long"),
            }
        });
    }
}

/// The organization (O) in the certificates of people who may operate: no node has it.
pub const OPERATORS: &str = "weir:operators";

/// Whether a peer is an operator by its certificate.
pub fn is_operator(certs: Option<Arc<Vec<CertificateDer<'static>>>>) -> bool {
    let Some(certs) = certs else { return false };
    let Some(leaf) = certs.first() else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(leaf) else { return false };
    cert.subject().iter_organization().any(|o| o.as_str() == Ok(OPERATORS))
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
