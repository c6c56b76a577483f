//! The certificates and keys of a control plane, as files. Must not know: who is started with them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

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
    issuer: rcgen::Issuer<'static, KeyPair>,
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
        let pki = Self { dir, issuer: rcgen::Issuer::new(params, key) };
        pki.issue("apiserver", "kube-apiserver", None, &SERVER_NAMES)?;
        pki.issue("admin", "admin", Some("system:masters"), &[])?;
        let tokens = KeyPair::generate()?;
        write(&dir.join("sa.key"), &tokens.serialize_pem())?;
        write(&dir.join("sa.pub"), &tokens.public_key_pem())?;
        Ok(pki)
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
        let cert = params.signed_by(&key, &self.issuer)?;
        write(&self.dir.join(format!("{file}.crt")), &cert.pem())?;
        write(&self.dir.join(format!("{file}.key")), &key.serialize_pem())
    }

    /// A kubeconfig of the client whose certificate stands in `file`.crt.
    pub(super) fn kubeconfig(&self, file: &str, server: &str) -> Result<std::path::PathBuf> {
        let dir = self.dir.display();
        let path = self.dir.join(format!("{file}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: lab, cluster: {{server: '{server}', certificate-authority: '{dir}/ca.crt'}}}}]\n\
             users: [{{name: {file}, user: {{client-certificate: '{dir}/{file}.crt', client-key: '{dir}/{file}.key'}}}}]\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: {file}}}}}]\ncurrent-context: lab\n"
        );
        write(&path, &text)?;
        Ok(path)
    }
}
