//! The certificates and keys of a control plane, as files. Must not know: who is started with them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

/// Names under which the API server is reached: by the host, by nodes behind user networks, by pods.
const SERVER_NAMES: [&str; 6] =
    ["127.0.0.1", "10.0.2.2", "10.96.0.1", "localhost", "kubernetes.default", "kubernetes.default.svc"];

/// A CA.
pub(super) struct Pki<'a> {
    dir: &'a Path,
    /// Only with whoever made it.
    issuer: Option<rcgen::Issuer<'static, KeyPair>>,
}

/// Writes a file that only its owner reads.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

impl<'a> Pki<'a> {
    /// Makes a CA, the API server's certificate, the administrator's, and the key of service accounts' tokens in `dir`.
    pub(super) fn make(dir: &'a Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "weir lab");
        write(&dir.join("ca.crt"), &params.self_signed(&key)?.pem())?;
        let pki = Self { dir, issuer: Some(rcgen::Issuer::new(params, key)) };
        pki.issue("apiserver", "kube-apiserver", None, &SERVER_NAMES)?;
        pki.issue("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), &[])?;
        pki.client("admin", "admin", Some("system:masters"))?;
        let tokens = KeyPair::generate()?;
        write(&dir.join("sa.key"), &tokens.serialize_pem())?;
        write(&dir.join("sa.pub"), &tokens.public_key_pem())?;
        Ok(pki)
    }

    /// One that was made before: it issues nothing more.
    pub(super) fn open(dir: &'a Path) -> Self {
        Self { dir, issuer: None }
    }

    /// A client's certificate and key, as `file`.crt and `file`.key.
    pub(super) fn client(&self, file: &str, name: &str, group: Option<&str>) -> Result<()> {
        self.issue(file, name, group, &[])
    }

    fn issue(&self, file: &str, name: &str, group: Option<&str>, also: &[&str]) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(also.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(g) = group {
            params.distinguished_name.push(DnType::OrganizationName, g);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if also.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        let issuer = self.issuer.as_ref().context("the CA's key is gone")?;
        let cert = params.signed_by(&key, issuer)?;
        write(&self.dir.join(format!("{file}.crt")), &cert.pem())?;
        write(&self.dir.join(format!("{file}.key")), &key.serialize_pem())
    }

    /// A kubeconfig of the client whose certificate stands in `file`.crt, with that and its key in it.
    pub(super) fn kubeconfig(&self, file: &str, server: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{file}.kubeconfig"));
        write(&path, &self.render_kubeconfig(file, server)?)?;
        Ok(path)
    }

    /// Its text: a JSON document, which is YAML too.
    pub(super) fn render_kubeconfig(&self, file: &str, server: &str) -> Result<String> {
        let data = |name: String| -> Result<String> {
            let path = self.dir.join(name);
            Ok(base64(&fs::read(&path).with_context(|| format!("read {}", path.display()))?))
        };
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": server,
                "certificate-authority-data": data("ca.crt".to_owned())?,
            }}],
            "users": [{"name": file, "user": {
                "client-certificate-data": data(format!("{file}.crt"))?,
                "client-key-data": data(format!("{file}.key"))?,
            }}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": file}}],
            "current-context": "lab",
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }
}

/// As RFC 4648 has it, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |n, i| n << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() { digit as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_as_in_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
