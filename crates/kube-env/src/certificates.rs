//! Keys and certificates of a cluster: one CA, a certificate for each who speaks to the API server,
//! and kubeconfigs. All are made anew for each cluster and are readable by their owner alone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// What a clock may be behind ours.
const BACKDATE: Duration = Duration::HOUR;
/// No cluster of a test lives for so long.
const LIFETIME: Duration = Duration::days(365);

/// Who a certificate is for.
pub(crate) struct Subject<'a> {
    /// The name of its files.
    pub(crate) file: &'a str,
    /// The common name: the user that the API server sees.
    pub(crate) name: &'a str,
    /// The organisation: the group that the API server sees.
    pub(crate) group: Option<&'a str>,
    /// Names under which it is reached; none: it is a client.
    pub(crate) hosts: &'a [&'a str],
    /// Addresses under which it is reached.
    pub(crate) addresses: &'a [IpAddr],
}

/// A folder with a CA and what it signed: for each file `NAME.crt` and `NAME.key`.
pub(crate) struct Certificates {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// A new CA (`ca.crt`, `ca.key`), and the key that signs service accounts' tokens
    /// (`service-account.key`).
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        private_folder(folder)?;
        let key = KeyPair::generate().context("the CA's key")?;
        let mut params = params("kubernetes", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key).context("the CA's certificate")?;
        private_file(&folder.join("ca.crt"), certificate.pem().as_bytes())?;
        private_file(&folder.join("ca.key"), key.serialize_pem().as_bytes())?;
        let tokens = KeyPair::generate().context("the key of service accounts")?;
        let path = folder.join("service-account.key");
        private_file(&path, tokens.serialize_pem().as_bytes())?;
        let public = folder.join("service-account.pub");
        private_file(&public, tokens.public_key_pem().as_bytes())?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Takes up what [`Certificates::create`] wrote.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("ca.key");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let key = KeyPair::from_pem(&text).context("the CA's key")?;
        let path = folder.join("ca.crt");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let issuer = Issuer::from_ca_cert_pem(&text, key).context("the CA's certificate")?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
        })
    }

    /// A file of the folder.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Signs a certificate with a key of its own: a server's if it has names or addresses.
    pub(crate) fn sign(&self, subject: &Subject<'_>) -> Result<()> {
        let key = KeyPair::generate().context("a key")?;
        let mut params = params(subject.name, subject.group);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let serves = !subject.hosts.is_empty() || !subject.addresses.is_empty();
        params.extended_key_usages = vec![if serves {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        for host in subject.hosts {
            let name = (*host).try_into().with_context(|| (*host).to_owned())?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = subject.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("the certificate of {}", subject.name))?;
        let file = subject.file;
        private_file(
            &self.path(&format!("{file}.crt")),
            certificate.pem().as_bytes(),
        )?;
        private_file(
            &self.path(&format!("{file}.key")),
            key.serialize_pem().as_bytes(),
        )
    }

    /// Signs a client's certificate and writes a kubeconfig with it, which names its files.
    pub(crate) fn kubeconfig(
        &self,
        subject: &Subject<'_>,
        server: &str,
        path: &Path,
    ) -> Result<()> {
        self.sign(subject)?;
        let file = subject.file;
        let crt = self.path(&format!("{file}.crt"));
        let key = self.path(&format!("{file}.key"));
        let config = kubeconfig(file, server, [&self.path("ca.crt"), &crt, &key]);
        let text = serde_json::to_string_pretty(&config).context("a kubeconfig")?;
        private_file(path, format!("{text}\n").as_bytes())
    }
}

/// A kubeconfig that names files: of the CA, of the client's certificate and of its key.
pub(crate) fn kubeconfig(
    user: &str,
    server: &str,
    [ca, certificate, key]: [impl serde::Serialize; 3],
) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "testudo", "cluster": {
            "server": server,
            "certificate-authority": ca,
        }}],
        "users": [{ "name": user, "user": {
            "client-certificate": certificate,
            "client-key": key,
        }}],
        "contexts": [{ "name": "testudo", "context": { "cluster": "testudo", "user": user }}],
        "current-context": "testudo",
    })
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        let kind = DnType::OrganizationName;
        params.distinguished_name.push(kind, group);
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFETIME;
    params.use_authority_key_identifier_extension = true;
    params
}

/// Makes a folder that its owner alone can enter, and those above it.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| path.display().to_string())
}

/// Writes a file that its owner alone can read; a reader sees all of it or none.
pub(crate) fn private_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(bytes)?;
        fs::rename(&partial, path)
    };
    write().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn all_that_is_written_is_its_owners_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("pki");
        let certificates = Certificates::create(&folder).unwrap();
        let admin = Subject {
            file: "admin",
            name: "kubernetes-admin",
            group: Some("system:masters"),
            hosts: &[],
            addresses: &[],
        };
        let path = folder.join("admin.kubeconfig");
        certificates
            .kubeconfig(&admin, "https://192.0.2.1", &path)
            .unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        let mut files = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
            files += 1;
        }
        assert_eq!(files, 7);
        let config: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(
            config["clusters"][0]["cluster"]["server"],
            "https://192.0.2.1"
        );
        let again = Certificates::load(&folder).unwrap();
        again.sign(&admin).unwrap();
        let key = config["users"][0]["user"]["client-key"].as_str().unwrap();
        assert!(fs::read_to_string(key).unwrap().contains("PRIVATE KEY"));
    }
}
