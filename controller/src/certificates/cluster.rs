//! The CA and the server's certificate in the cluster: two Secrets and a ConfigMap that are there (the chart makes them
//! empty) and are filled, read and renewed here.
//!
//! Only who reigns writes, and only over what it has read (by resourceVersion); others read what to show. The order of writes
//! is CA, bundle, server's certificate: a certificate is never shown before the CA that nodes need for it stands in the
//! bundle. The rights it takes are `get` and `update` on these three names. Must not know: when something is due.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use super::{
    mint::{MintError, Pair},
    plan::{Material, renewed},
};
use crate::{
    cluster,
    config::KubernetesTls,
    tls::{self, Pem, TlsError},
};

/// How often the objects are looked at.
const LOOK: Duration = Duration::from_secs(60);
/// The same while there is nothing to show yet, or something failed.
const SOON: Duration = Duration::from_secs(2);
/// Names of entries, as Kubernetes's TLS Secrets have them.
const CA: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NEXT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why certificates could not be read or renewed.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The API server.
    #[error("{what}: {source}")]
    Api {
        /// Which object.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Making one.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// What there is makes no server.
    #[error("the certificate in the cluster: {0}")]
    Tls(#[from] TlsError),
}

/// Where they are kept.
#[derive(Clone)]
pub struct Keeper {
    secrets: Api<Secret>,
    bundles: Api<ConfigMap>,
    config: KubernetesTls,
}

/// Seconds since 1970.
fn clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn ask<T>(what: &str, f: impl Future<Output = kube::Result<T>>) -> Result<T, KeepError> {
    let answer = cluster::ask(f).await;
    answer.map_err(|e| KeepError::Api { what: what.to_owned(), source: Box::new(e) })
}

fn text(data: Option<&BTreeMap<String, ByteString>>, entry: &str) -> Option<String> {
    let bytes = data?.get(entry)?.0.clone();
    String::from_utf8(bytes).ok().filter(|t| !t.is_empty())
}

fn pair(secret: &Secret, cert: &str, key: &str) -> Option<Pair> {
    let data = secret.data.as_ref();
    Some(Pair { cert: text(data, cert)?, key: text(data, key)? })
}

/// Puts a pair into a Secret, or takes it out.
fn set(secret: &mut Secret, cert: &str, key: &str, pair: Option<&Pair>) {
    let data = secret.data.get_or_insert_default();
    for (entry, value) in [(cert, pair.map(|p| &p.cert)), (key, pair.map(|p| &p.key))] {
        match value {
            Some(v) => drop(data.insert(entry.to_owned(), ByteString(v.clone().into_bytes()))),
            None => drop(data.remove(entry)),
        }
    }
}

/// The certificates of a text, each with its lines.
fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = bundle.split_inclusive(END).filter(|p| p.contains(END));
    parts.map(|p| format!("{}\n", p.trim())).collect()
}

impl Keeper {
    /// In the namespace of `config`, or that of the client.
    pub fn new(client: Client, config: KubernetesTls) -> Self {
        let namespace = config.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Self {
            secrets: Api::namespaced(client.clone(), &namespace),
            bundles: Api::namespaced(client, &namespace),
            config,
        }
    }

    /// The server's certificate as others have made it.
    ///
    /// # Errors
    /// See [`KeepError`].
    pub async fn read(&self) -> Result<Option<Pair>, KeepError> {
        let name = &self.config.secret;
        let secret = ask(&format!("Secret {name}"), self.secrets.get(name)).await?;
        Ok(pair(&secret, CERT, KEY))
    }

    /// Renews what is due, and gives the certificate to show.
    ///
    /// # Errors
    /// See [`KeepError`]. A conflict: somebody else has written; the next attempt reads that.
    pub async fn renew(&self, now: i64) -> Result<Option<Pair>, KeepError> {
        let KubernetesTls { secret, ca_secret, bundle, names, .. } = &self.config;
        let (s, c, b) =
            (format!("Secret {secret}"), format!("Secret {ca_secret}"), format!("ConfigMap {bundle}"));
        let mut ca_object = ask(&c, self.secrets.get(ca_secret)).await?;
        let mut bundle_object = ask(&b, self.bundles.get(bundle)).await?;
        let mut serving_object = ask(&s, self.secrets.get(secret)).await?;
        let published = bundle_object.data.as_ref().and_then(|d| d.get(CA)).map_or(vec![], |t| split(t));
        let have = Material {
            current: pair(&ca_object, CA, CA_KEY),
            next: pair(&ca_object, NEXT, NEXT_KEY),
            bundle: published,
            serving: pair(&serving_object, CERT, KEY),
        };
        let want = renewed(&have, names, now)?;
        let params = PostParams::default();
        if want.current != have.current || want.next != have.next {
            tracing::info!(secret = ca_secret, next = want.next.is_some(), "the CA is renewed");
            set(&mut ca_object, CA, CA_KEY, want.current.as_ref());
            set(&mut ca_object, NEXT, NEXT_KEY, want.next.as_ref());
            ask(&c, self.secrets.replace(ca_secret, &params, &ca_object)).await?;
        }
        if want.bundle != have.bundle {
            tracing::info!(
                config_map = bundle,
                cas = want.bundle.len(),
                "the CAs that nodes trust are published"
            );
            bundle_object.data.get_or_insert_default().insert(CA.to_owned(), want.bundle.concat());
            ask(&b, self.bundles.replace(bundle, &params, &bundle_object)).await?;
        }
        if want.serving != have.serving {
            tracing::info!(secret, "the controller's certificate is renewed");
            set(&mut serving_object, CERT, KEY, want.serving.as_ref());
            ask(&s, self.secrets.replace(secret, &params, &serving_object)).await?;
        }
        Ok(want.serving)
    }

    /// Keeps the settings of the server: reads them, and renews them while `reigns` says so. Ends with the last receiver.
    pub fn keep(self, reigns: watch::Receiver<bool>) -> watch::Receiver<Option<Arc<ServerConfig>>> {
        let (tx, rx) = watch::channel(None);
        tokio::spawn(self.run(reigns, tx));
        rx
    }

    async fn run(self, mut reigns: watch::Receiver<bool>, tx: watch::Sender<Option<Arc<ServerConfig>>>) {
        let (mut shown, mut said) = (None, String::new());
        loop {
            let reigning = *reigns.borrow_and_update();
            let found = if reigning { self.renew(clock()).await } else { self.read().await };
            let made = found.and_then(|found| match found {
                Some(p) if shown.as_ref() != Some(&p) => {
                    let pem = Pem {
                        clients: None,
                        cert: p.cert.clone().into_bytes(),
                        key: p.key.clone().into_bytes(),
                    };
                    tx.send_replace(Some(tls::server(&pem, true)?));
                    shown = Some(p);
                    Ok(())
                }
                Some(_) | None => Ok(()),
            });
            let pause = match made {
                Ok(()) => {
                    said.clear();
                    if shown.is_some() { LOOK } else { SOON }
                }
                Err(e) => {
                    let why = e.to_string();
                    if why != said {
                        tracing::warn!(error = why, "certificates cannot be kept up; will retry");
                    }
                    said = why;
                    SOON
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = tx.closed() => return,
                // Whoever has just begun to reign sees to it at once; a sender that is gone changes nothing more.
                Ok(()) = reigns.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_comes_apart_into_its_certificates() {
        let one = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        let two = one.replace("AA", "BB");
        assert_eq!(split(&format!("{one}{two}")), [one.to_owned(), two]);
        assert!(split("").is_empty() && split("nothing").is_empty());
    }
}
