//! A peer whose certificate is wrong: an engine of its own in the place of node n2.

use testudo_crypto::{KeyType, SigningKey, SystemRandom};
use testudo_ike::{
    CertificateCredential, ChildConfig, Engine, EngineConfig, Event as IkeEvent, FailedCheck,
    Identity, LocalIdentity, PeerAddress, PeerAuth, PeerConfig,
};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::policy::EncapsulationMode;
use testudo_model::{BootId, NodeEncryptionSpec, NodeUid, PortRange, SaMode, TrafficSelector};
use testudo_pki::{Ca, CaOptions, NodeIdentity, Revoked, TrustBundle, certificate_request};

use super::*;
use crate::clock::seconds;
use crate::sockets::Sockets;
use crate::verifier::Trust;

/// Smaller than any UID that is made: the rogue begins.
const UID: &str = "00000000-0000-4000-8000-000000000002";

struct Rogue {
    engine: Engine,
    sockets: Sockets,
    clock: Clock,
    refused: bool,
}

impl Rogue {
    fn new(cluster: &Cluster, bundle: TrustBundle, chain: Vec<u8>, key: SigningKey) -> Rogue {
        let [ours, theirs] = [2, 1].map(|n| IpAddr::from(Ipv4Addr::new(127, cluster.subnet, 0, n)));
        let config = EngineConfig {
            port: cluster.ports.ike,
            nat_port: cluster.ports.nat,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(config, Box::new(SystemRandom::new()));
        engine.set_identity(LocalIdentity {
            id: Identity::Fqdn("n2.node.testudo".into()),
            certificate: Some(CertificateCredential {
                chain: vec![chain],
                key,
            }),
        });
        let trust = Trust {
            bundle,
            nodes: BTreeMap::new(),
        };
        engine.set_verifier(trust.verifier());
        let clock = Clock::start();
        let udp = |ip| TrafficSelector::host(ip).with(17, PortRange::ANY);
        let peer = PeerConfig {
            id: peer(1),
            remote_identity: Identity::Fqdn("n1.node.testudo".into()),
            auth: PeerAuth::Certificate,
            ppk: None,
            addresses: vec![PeerAddress {
                local: ours,
                remote: theirs,
            }],
            initiate: true,
            encapsulation: EncapsulationMode::Auto,
            suites: None,
            children: vec![ChildConfig {
                name: "v4".into(),
                mode: SaMode::Transport,
                local_ts: vec![udp(ours)],
                remote_ts: vec![udp(theirs)],
                resources: 0,
            }],
        };
        engine.set_peer(peer, clock.now()).unwrap();
        Rogue {
            engine,
            sockets: Sockets::open(&[ours], cluster.ports.ike, None).unwrap(),
            clock,
            refused: false,
        }
    }

    /// Works for a moment.
    async fn turn(&mut self) {
        let now = self.clock.now();
        self.engine.handle_timeout(now);
        self.drain();
        let wait = Duration::from_millis(20);
        if let Ok(datagrams) = tokio::time::timeout(wait, self.sockets.receive()).await {
            for d in datagrams {
                self.engine
                    .handle_datagram(self.clock.now(), d.local, d.remote, &d.bytes);
                self.drain();
            }
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            match event {
                IkeEvent::Failed(failure) => {
                    self.refused |= failure.check == FailedCheck::RefusedByPeer;
                }
                IkeEvent::IkeUp(_) => panic!("the agent let a rogue in"),
                _ => {}
            }
        }
        while let Some(out) = self.engine.poll_transmit() {
            self.sockets.send(out.local, out.remote, &out.bytes);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Flaw {
    OtherCa,
    Expired,
    OtherNode,
    BrokenSignature,
    Revoked,
}

/// A certificate for n2 with a flaw, and the CAs that n1 is to trust.
fn flawed(flaw: Flaw, bundle: &mut TrustBundle) -> (Vec<u8>, SigningKey) {
    let now = seconds(Clock::start().now().wall);
    let random = &mut SystemRandom::new();
    let past = now - 10 * 24 * 3600;
    let ca = Ca::generate(&CaOptions::default(), past, random).unwrap();
    if !matches!(flaw, Flaw::OtherCa) {
        bundle.add(ca.certificate()).unwrap();
    }
    let node = match flaw {
        Flaw::OtherNode => NodeIdentity::new("n3", UID).unwrap(),
        _ => NodeIdentity::new("n2", UID).unwrap(),
    };
    let made = if matches!(flaw, Flaw::Expired) {
        past
    } else {
        now
    };
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let request = certificate_request(&key, &node).unwrap();
    let issued = ca.sign_request(&request, &node, 24 * 3600, made, random);
    let mut der = issued.unwrap().der;
    if matches!(flaw, Flaw::Revoked) {
        let revoked = Revoked::certificate(&der, now).unwrap();
        let list = ca.revocation_list(&[revoked], 1, now, now + 3600).unwrap();
        bundle.add_revocation_list(&list).unwrap();
    }
    if matches!(flaw, Flaw::BrokenSignature) {
        *der.last_mut().unwrap() ^= 1;
    }
    (der, key)
}

/// The log line and `last_error` of n1 name the check and the peer; the rogue is told
/// AUTHENTICATION_FAILED and no more.
fn refused(subnet: u8, flaw: Flaw, check: &'static str) {
    on_one_thread(async move {
        let cluster = Cluster::new(subnet, 1);
        let bundle = async || cluster.store.get::<TrustBundleKind>(CLUSTER).await.unwrap();
        wait("the CA", async || bundle().await.is_some()).await;
        let published = bundle().await.unwrap();
        let mut trusted = TrustBundle::from_pem(&published.spec.certificates).unwrap();
        let own = trusted.clone();
        let (chain, key) = flawed(flaw, &mut trusted);
        let mut rogue = Rogue::new(&cluster, own, chain, key);
        let spec = NodeEncryptionSpec {
            uid: NodeUid::new(UID).unwrap(),
            boot_id: BootId::new("b").unwrap(),
            addresses: vec![Ipv4Addr::new(127, subnet, 0, 2).into()],
            pod_cidrs: Vec::new(),
            datapath: "user".into(),
            agent_socket: None,
        };
        cluster
            .store
            .apply(NodeEncryption::new("n2", spec))
            .await
            .unwrap();
        cluster.init().await;
        let certified = async || {
            let node = cluster.node(1).await;
            node.is_some_and(|n| n.status.certificate.is_some())
        };
        wait("n1's certificate", certified).await;
        // From here on n1 trusts the rogue's CA too, and no controller puts its own bundle back.
        cluster.controller.abort();
        let mut changed = published.clone();
        changed.metadata.resource_version = None;
        changed.spec.certificates = trusted.to_pem();
        changed.spec.revocation_lists = trusted.revocation_lists_to_pem();
        cluster.store.apply(changed).await.unwrap();

        let begin = Instant::now();
        loop {
            rogue.turn().await;
            let tunnels = Request::Get {
                get: Gettable::Tunnels,
            };
            let tunnels = cluster.ask(1, tunnels).await.tunnels.unwrap();
            let error = tunnels.first().and_then(|t| t.last_error.clone());
            if rogue.refused && error.as_ref().is_some_and(|e| e.contains(check)) {
                assert_eq!(tunnels[0].peer, peer(2));
                assert!(!tunnels[0].up);
                return;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{flaw:?}: {error:?}, refused {}",
                rogue.refused
            );
        }
    });
}

#[test]
fn a_certificate_of_another_ca_is_refused_by_name() {
    refused(21, Flaw::OtherCa, "certificate_unknown_ca");
}

#[test]
fn an_expired_certificate_is_refused_by_name() {
    refused(22, Flaw::Expired, "certificate_expired");
}

#[test]
fn a_certificate_of_another_node_is_refused_by_name() {
    refused(23, Flaw::OtherNode, "certificate_wrong_identity");
}

#[test]
fn a_revoked_certificate_is_refused_by_name() {
    refused(25, Flaw::Revoked, "certificate_revoked");
}

#[test]
fn a_certificate_with_a_broken_signature_is_refused_by_name() {
    refused(24, Flaw::BrokenSignature, "certificate_bad_signature");
}
