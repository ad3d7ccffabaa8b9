//! What a node says of CAs, and whose certificate it asks for again.

use testudo_crypto::SystemRandom;
use testudo_ike::{CertificateFacts, DownReason, IkeDown, IkeId, IkeUp};
use testudo_model::bundle::TrustBundleSpec;
use testudo_model::{BootId, NodeEncryptionSpec, NodeUid, TrustBundle, UnixTime};
use testudo_pki::{Ca, CaOptions};
use testudo_store::Event as Seen;

use super::upkeep::{at, strict_node};
use super::*;
use crate::fixtures::ike_up;
use crate::node::Node;
use crate::objects::Told;

fn new_ca() -> Ca {
    let now = u64::try_from(at(0).wall.0).unwrap();
    Ca::generate(&CaOptions::default(), now, &mut SystemRandom::new()).unwrap()
}

/// The first signs.
fn trust(node: &mut Node, cas: &[&Ca]) {
    let spec = TrustBundleSpec {
        certificates: cas.iter().map(|ca| ca.certificate_pem()).collect(),
        ..TrustBundleSpec::default()
    };
    let bundle = TrustBundle::new(CLUSTER, spec);
    node.take(Told::Bundle(Seen::Modified(bundle)));
}

/// What the node `n2` says of the CA of its certificate.
fn says(node: &mut Node, presented: Option<&str>) {
    let spec = NodeEncryptionSpec {
        uid: NodeUid::new("00000000-0000-4000-8000-000000000002").unwrap(),
        boot_id: BootId::new("b").unwrap(),
        addresses: vec![Ipv4Addr::new(127, 0, 0, 2).into()],
        pod_cidrs: Vec::new(),
        datapath: "user".into(),
        agent_socket: None,
    };
    let mut object = NodeEncryption::new("n2", spec);
    object.status.authorities.presented = presented.map(str::to_owned);
    node.take(Told::Node(Seen::Modified(object)));
}

/// An IKE SA with `n2` stands on a certificate of this CA.
fn shows(node: &mut Node, ike: u64, issuer: &str) {
    let up = IkeUp {
        ike: IkeId(ike),
        certificate: Some(CertificateFacts {
            serial: "1".to_owned(),
            subject: "n2".to_owned(),
            issuer: issuer.to_owned(),
            not_after: UnixTime(i64::MAX),
        }),
        ..ike_up()
    };
    node.core.tunnels.ike_up(&up, at(1));
}

fn ends(node: &mut Node, ike: u64) {
    node.core.tunnels.ike_down(&IkeDown {
        ike: IkeId(ike),
        peer: peer(2),
        reason: DownReason::Replaced,
    });
}

/// A node says which CAs it trusts, the one that signs first, and on which its IKE SAs stand: each as
/// long as one does, and not which its peers showed last.
#[tokio::test]
async fn a_node_says_on_which_cas_its_ike_sas_stand() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = strict_node(dir.path(), &Fake::default());
    let (old, new) = (new_ca(), new_ca());
    let (old_name, new_name) = (&old.facts().subject, &new.facts().subject);
    assert!(node.authorities().is_empty());
    trust(&mut node, &[&new, &old]);
    node.update(at(100));
    let said = node.authorities();
    assert_eq!(said.trusted, [new_name.clone(), old_name.clone()]);
    assert_eq!((said.presented, said.showing.len()), (None, 0));
    assert_eq!(said.peers, [""; 0]);
    shows(&mut node, 1, old_name);
    shows(&mut node, 2, old_name);
    assert_eq!(node.authorities().peers, std::slice::from_ref(old_name));
    shows(&mut node, 3, new_name);
    assert_eq!(node.authorities().peers.len(), 2);
    ends(&mut node, 1);
    assert_eq!(node.authorities().peers.len(), 2);
    ends(&mut node, 2);
    assert_eq!(node.authorities().peers, std::slice::from_ref(new_name));
}

/// Asked again is a connected peer whose word does not fit what it showed, and no other.
#[tokio::test]
async fn who_says_new_and_showed_old_is_late() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = strict_node(dir.path(), &Fake::default());
    let (old, new) = (new_ca(), new_ca());
    let (old_name, new_name) = (&old.facts().subject, &new.facts().subject);
    shows(&mut node, 1, old_name);
    says(&mut node, Some(new_name));
    assert_eq!(node.late_certificates(), [], "nothing is known of CAs");
    trust(&mut node, &[&new, &old]);
    node.update(at(100));
    shows(&mut node, 1, old_name);
    assert_eq!(node.late_certificates(), [peer(2)]);
    for word in [None, Some(old_name.as_str())] {
        says(&mut node, word);
        assert_eq!(node.late_certificates(), [], "it is still to come");
    }
    says(&mut node, Some(new_name));
    ends(&mut node, 1);
    assert_eq!(node.late_certificates(), [], "it is to call first");
    shows(&mut node, 2, old_name);
    assert_eq!(node.late_certificates(), [peer(2)]);
    shows(&mut node, 3, new_name);
    assert_eq!(node.late_certificates(), [], "it has come");
    // The old CA signs again: the new certificate is the late one.
    trust(&mut node, &[&old, &new]);
    says(&mut node, Some(old_name));
    node.update(at(200));
    assert_eq!(node.late_certificates(), [peer(2)]);
}
