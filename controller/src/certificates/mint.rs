//! Making keys and certificates, and reading what matters of one. Must not know: when one is due, where it is kept.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use x509_parser::prelude::{GeneralName, parse_x509_certificate};

/// Clocks of nodes may be behind by this, in seconds.
pub(super) const SKEW: i64 = 3600;

/// A certificate and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its key: a secret.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair(..)")
    }
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// Making it failed.
    #[error("cannot make a certificate: {0}")]
    Rcgen(#[from] rcgen::Error),
    /// A time that no certificate can carry.
    #[error("cannot make a certificate for that time: {0}")]
    Time(#[from] time::error::ComponentRange),
}

/// What matters of a certificate. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) issuer: String,
    pub(super) from: i64,
    pub(super) until: i64,
    /// Names and addresses that it is for, sorted.
    pub(super) names: Vec<String>,
}

impl Facts {
    /// Of the first certificate of a text; `None` when it is none.
    pub(super) fn of(pem: &str) -> Option<Self> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
        let (_, cert) = parse_x509_certificate(&block.contents).ok()?;
        let common = |n: &x509_parser::x509::X509Name<'_>| {
            n.iter_common_name().next().and_then(|a| a.as_str().ok()).unwrap_or_default().to_owned()
        };
        let mut names: Vec<String> = match cert.subject_alternative_name() {
            Ok(Some(alt)) => alt.value.general_names.iter().filter_map(alternative).collect(),
            Ok(None) | Err(_) => vec![],
        };
        names.sort();
        Some(Self {
            name: common(cert.subject()),
            issuer: common(cert.issuer()),
            from: cert.validity().not_before.timestamp(),
            until: cert.validity().not_after.timestamp(),
            names,
        })
    }
}

fn alternative(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(n) => Some((*n).to_owned()),
        GeneralName::IPAddress(b) => <[u8; 4]>::try_from(*b)
            .map(|v4| std::net::IpAddr::from(v4).to_string())
            .or_else(|_| <[u8; 16]>::try_from(*b).map(|v6| std::net::IpAddr::from(v6).to_string()))
            .ok(),
        _ => None,
    }
}

fn between(mut params: CertificateParams, now: i64, life: i64) -> Result<CertificateParams, MintError> {
    params.not_before = OffsetDateTime::from_unix_timestamp(now - SKEW)?;
    params.not_after = OffsetDateTime::from_unix_timestamp(now + life)?;
    Ok(params)
}

/// The CA's side of its certificate: the same whenever it is made from the same name.
fn ca_params(name: &str) -> Result<CertificateParams, MintError> {
    let mut params = CertificateParams::new(vec![])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// A CA with a name that no other one has.
pub(super) fn ca(now: i64, life: i64) -> Result<Pair, MintError> {
    let key = KeyPair::generate()?;
    let name = format!("weir {}", uuid::Uuid::new_v4().simple());
    let cert = between(ca_params(&name)?, now, life)?.self_signed(&key)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// A server's certificate of a CA.
pub(super) fn server(ca: &Pair, names: &[String], now: i64, life: i64) -> Result<Pair, MintError> {
    let issuer = Facts::of(&ca.cert).map(|f| f.name).unwrap_or_default();
    let issuer = Issuer::new(ca_params(&issuer)?, KeyPair::from_pem(&ca.key)?);
    let key = KeyPair::generate()?;
    let mut params = between(CertificateParams::new(names)?, now, life)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "weir-controller");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = params.signed_by(&key, &issuer)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// Whether a key is one that can sign.
pub(super) fn is_key(pem: &str) -> bool {
    KeyPair::from_pem(pem).is_ok()
}
