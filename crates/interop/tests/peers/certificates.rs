//! CAs and certificates for both ends: those of Testudo's own CA, and those that others make.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use testudo_crypto::{KeyType, SigningKey, SystemRandom, sha1};
use testudo_ike::{
    CertificateCredential, CertificateVerifier, FailedCheck, Identity, LocalIdentity,
    PeerExpectation, VerifiedPeer, VerifyError,
};
use testudo_interop::Place;
use testudo_model::UnixTime;
use testudo_pki::{
    Ca, CaOptions, CertificateCheck, ExpectedPeer, NodeIdentity, TrustBundle, certificate_request,
    chain_from_pem, chain_to_pem, key_from_pem, key_to_pem, verify_chain,
};

/// A certificate with its intermediates and its key.
pub struct Issued {
    /// DER, the certificate itself first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 in PEM.
    key: Vec<u8>,
}

impl Issued {
    pub fn leaf_pem(&self) -> Vec<u8> {
        chain_to_pem(&[&self.chain[0]]).into_bytes()
    }

    pub fn intermediates_pem(&self) -> Vec<Vec<u8>> {
        let others = self.chain[1..].iter();
        others
            .map(|der| chain_to_pem(&[der]).into_bytes())
            .collect()
    }

    pub fn key_pem(&self) -> Vec<u8> {
        self.key.clone()
    }

    pub fn into_identity(self, name: &str) -> LocalIdentity {
        LocalIdentity {
            id: Identity::Fqdn(name.into()),
            certificate: Some(CertificateCredential {
                key: key_from_pem(&self.key).unwrap(),
                chain: self.chain,
            }),
        }
    }
}

/// Testudo's own CA.
pub struct Authority {
    pub ca: Ca,
    now: u64,
}

impl Authority {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let ca = Ca::generate(&CaOptions::default(), now, &mut SystemRandom::new()).unwrap();
        Self { ca, now }
    }

    /// For `NAME.node.testudo`.
    pub fn issue(&self, name: &str, kind: KeyType) -> Issued {
        let node = NodeIdentity::new(name, "1").unwrap();
        let key = SigningKey::generate(kind).unwrap();
        let request = certificate_request(&key, &node).unwrap();
        let issued = self
            .ca
            .sign_request(&request, &node, 3600, self.now, &mut SystemRandom::new())
            .unwrap();
        Issued {
            chain: vec![issued.der],
            key: key_to_pem(&key).unwrap().as_bytes().to_vec(),
        }
    }

    /// Accepts certificates of the node `peer` under this CA.
    pub fn verifier(&self) -> Arc<dyn CertificateVerifier + Send + Sync> {
        trusting(self.ca.certificate(), &[])
    }
}

/// How another CA makes a key: the arguments of `openssl genpkey`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    P256,
    P384,
    P521,
    Rsa2048,
    Rsa3072,
}

impl Kind {
    fn arguments(self) -> &'static str {
        match self {
            Kind::P256 => "-algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            Kind::P384 => "-algorithm EC -pkeyopt ec_paramgen_curve:P-384",
            Kind::P521 => "-algorithm EC -pkeyopt ec_paramgen_curve:P-521",
            Kind::Rsa2048 => "-algorithm RSA -pkeyopt rsa_keygen_bits:2048",
            Kind::Rsa3072 => "-algorithm RSA -pkeyopt rsa_keygen_bits:3072",
        }
    }
}

/// A CA made with openssl, as those of other systems are: with intermediates and CRLs.
pub struct ForeignCa {
    place: Arc<Place>,
    name: String,
    /// DER, from this CA up to below the root.
    chain: Vec<Vec<u8>>,
}

impl ForeignCa {
    /// A root.
    pub fn new(kind: Kind) -> Self {
        let place = Arc::new(Place::new().unwrap());
        let config = "[req]\ndistinguished_name = dn\n[dn]\n\
             [ca]\nbasicConstraints = critical, CA:TRUE\nsubjectKeyIdentifier = hash\n\
             keyUsage = critical, keyCertSign, cRLSign\n\
             [sub]\nbasicConstraints = critical, CA:TRUE\nsubjectKeyIdentifier = hash\n\
             authorityKeyIdentifier = keyid\nkeyUsage = critical, keyCertSign, cRLSign\n";
        place.write("openssl.cnf", config.as_bytes()).unwrap();
        let name = fresh("root");
        let root = Self {
            place,
            name,
            chain: Vec::new(),
        };
        root.key(&root.name, kind);
        root.openssl(&format!(
            "req -x509 -config openssl.cnf -extensions ca -days 2 -sha256 -subj /CN={0} \
             -key {0}.key -out {0}.pem",
            root.name
        ));
        root
    }

    /// A CA under this one.
    pub fn subordinate(&self, kind: Kind) -> Self {
        let name = fresh("sub");
        self.key(&name, kind);
        self.sign(&name, "-extfile openssl.cnf -extensions sub");
        let mut chain = vec![self.der(&name)];
        chain.extend(self.chain.clone());
        Self {
            place: self.place.clone(),
            name,
            chain,
        }
    }

    /// For `NAME.node.testudo`.
    pub fn issue(&self, name: &str, kind: Kind) -> Issued {
        let file = fresh(name);
        self.key(&file, kind);
        let names = format!(
            "basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n\
             subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n\
             subjectAltName = DNS:{name}.node.testudo, URI:testudo:node:1\n"
        );
        self.place
            .write(&format!("{file}.ext"), names.as_bytes())
            .unwrap();
        self.sign(&file, &format!("-extfile {file}.ext"));
        let mut chain = vec![self.der(&file)];
        chain.extend(self.chain.clone());
        Issued {
            chain,
            key: std::fs::read(self.place.file(&format!("{file}.key"))).unwrap(),
        }
    }

    /// Its own certificate.
    pub fn certificate_pem(&self) -> String {
        std::fs::read_to_string(self.file("pem")).unwrap()
    }

    /// Its list of revoked certificates, in PEM.
    pub fn crl(&self, revoked: &[&Issued]) -> Vec<u8> {
        let mut index = String::new();
        for issued in revoked {
            let facts = testudo_pki::CertificateFacts::read(&issued.chain[0]).unwrap();
            let serial = facts.serial.to_uppercase();
            index += &format!("R\t491231235959Z\t200101000000Z\t{serial}\tunknown\t/CN=x\n");
        }
        let name = &self.name;
        self.place
            .write(&format!("{name}.index"), index.as_bytes())
            .unwrap();
        let config = format!(
            "[ca]\ndefault_ca = c\n[c]\ndatabase = {name}.index\ndefault_md = sha256\n\
             default_crl_days = 1\ncrl_extensions = x\n[x]\nauthorityKeyIdentifier = keyid\n"
        );
        self.place
            .write(&format!("{name}.cnf"), config.as_bytes())
            .unwrap();
        self.openssl(&format!(
            "ca -gencrl -config {name}.cnf -cert {name}.pem -keyfile {name}.key -out {name}.crl"
        ));
        std::fs::read(self.file("crl")).unwrap()
    }

    /// Accepts certificates of the node `peer` under this CA.
    pub fn verifier(&self) -> Arc<dyn CertificateVerifier + Send + Sync> {
        self.verifier_with(&[])
    }

    /// The same, but for those of a list of revoked ones, in PEM.
    pub fn verifier_with(&self, crl: &[u8]) -> Arc<dyn CertificateVerifier + Send + Sync> {
        trusting(&self.der(&self.name), crl)
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.place.file(&format!("{}.{ending}", self.name))
    }

    fn der(&self, name: &str) -> Vec<u8> {
        let text = std::fs::read_to_string(self.place.file(&format!("{name}.pem"))).unwrap();
        chain_from_pem(&text).unwrap().remove(0)
    }

    fn key(&self, name: &str, kind: Kind) {
        self.openssl(&format!("genpkey {} -out {name}.key", kind.arguments()));
    }

    /// Signs a certificate for the key of that name.
    fn sign(&self, name: &str, extensions: &str) {
        self.openssl(&format!(
            "req -new -config openssl.cnf -subj /CN={name} -key {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {0}.pem -CAkey {0}.key -CAcreateserial -days 1 -sha256 \
             {extensions} -out {name}.pem",
            self.name
        ));
    }

    fn openssl(&self, line: &str) {
        let mut command = Command::new("openssl");
        command.args(line.split_whitespace());
        let output = command.current_dir(self.place.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {text}");
    }
}

/// No two CAs of a run have the same name.
fn fresh(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{word}-{}-{n}", std::process::id())
}

/// Accepts certificates of the node `peer` under that CA that are not on the list.
fn trusting(ca: &[u8], crl: &[u8]) -> Arc<dyn CertificateVerifier + Send + Sync> {
    let mut bundle = TrustBundle::new();
    bundle.add(ca).unwrap();
    let errors = bundle.add_revocation_lists_from_pem(std::str::from_utf8(crl).unwrap());
    assert!(errors.is_empty(), "{errors:?}");
    Arc::new(Verifier { bundle })
}

struct Verifier {
    bundle: TrustBundle,
}

impl CertificateVerifier for Verifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        _: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let node = NodeIdentity::new("peer", "1").unwrap();
        let now = u64::try_from(now.0).unwrap();
        let peer =
            verify_chain(chain, &self.bundle, ExpectedPeer::Node(&node), now).map_err(|e| {
                VerifyError {
                    check: match e.check {
                        CertificateCheck::Revoked => FailedCheck::CertificateRevoked,
                        _ => FailedCheck::CertificateUnknownCa,
                    },
                    text: e.to_string(),
                }
            })?;
        Ok(VerifiedPeer {
            spki: peer.spki,
            not_after: UnixTime(i64::try_from(peer.times.not_after).unwrap()),
            serial: peer.serial,
            subject: peer.identity.dns_name(),
            issuer: peer.issuer,
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        self.bundle.facts().map(|ca| sha1(&[&ca.spki])).collect()
    }
}
