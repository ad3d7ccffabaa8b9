//! How far the rotations are in which every node does its part, for the policy's status: that of the nodes'
//! certificates, which agents carry out by themselves, and that of the CA.

use std::time::Instant;

use testudo_model::policy::{Mode, NODE_ROTATION, RotationProgress, rotation_of};
use testudo_model::{
    EncryptionPolicy, EncryptionPolicyStatus, NodeEncryption, TrustBundleStatus, UnixTime,
};
use testudo_store::Store;
use tracing::{info, warn};

use crate::leader::not_ready;
use crate::news::{About, News};
use crate::run::Controller;
use crate::safe::Safe;
use crate::stragglers;

/// Of the nodes that are waited for, so many are named.
const MOST_NAMED: usize = 20;

/// How far the renewal is that `testudo certs rotate` asks for; `None`: none was asked for, or encryption
/// is off. A node without a certificate has no part in it. What was done once stays done: an agent that is
/// started anew says nothing of it for a moment.
pub(crate) fn of_certificates(
    policy: &EncryptionPolicy,
    nodes: &[&NodeEncryption],
    unreadable: &[String],
    now: UnixTime,
) -> Option<RotationProgress> {
    let number = asked(policy);
    if number == 0 || policy.spec.mode == Mode::Disabled {
        return None;
    }
    let old = policy.status.certificate_rotation.as_ref();
    let old = old.filter(|old| old.number == number);
    let part = nodes.iter().filter(|n| n.status.certificate.is_some());
    let behind = part
        .clone()
        .filter(|n| n.status.rotation < rotation_of(policy, n.name()));
    let mut waiting_on: Vec<String> = behind.map(|n| n.name().to_owned()).collect();
    waiting_on.extend(unreadable.iter().cloned());
    if old.is_some_and(|old| old.nodes > 0 && old.waiting() == 0) {
        waiting_on.clear();
    }
    waiting_on.sort_unstable();
    let nodes = count(part.count() + unreadable.len());
    let done = nodes.saturating_sub(count(waiting_on.len()));
    waiting_on.truncate(MOST_NAMED);
    Some(RotationProgress {
        number,
        phase: None,
        done,
        nodes,
        waiting_on,
        since: old.and_then(|old| old.since).or(Some(now)),
    })
}

/// How often a renewal was asked for, of all nodes and of single ones: each time it is another rotation.
fn asked(policy: &EncryptionPolicy) -> u64 {
    let annotations = policy.metadata.annotations.iter();
    let single = annotations.filter(|(key, _)| key.starts_with(NODE_ROTATION));
    let single = single.filter_map(|(_, text)| text.parse::<u32>().ok());
    single.fold(policy.spec.certificates.rotation, |sum, own| {
        sum.saturating_add(u64::from(own))
    })
}

/// How far the CA's rotation is, by what was told of it last; `None`: there was none.
pub(crate) fn of_the_ca(
    told: Option<&TrustBundleStatus>,
    nodes: usize,
) -> Option<RotationProgress> {
    let told = told.filter(|told| told.rotation > 0)?;
    let nodes = count(nodes);
    let names = told.waiting_on.iter().take(MOST_NAMED);
    Some(RotationProgress {
        number: told.rotation,
        phase: Some(told.phase),
        done: nodes.saturating_sub(u32::try_from(told.waiting).unwrap_or(u32::MAX)),
        nodes,
        waiting_on: names.map(|waiting| waiting.node.clone()).collect(),
        since: told.since,
    })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What of a rotation is a step, and no mere progress of one.
pub(crate) fn step(progress: Option<&RotationProgress>) -> Option<impl PartialEq + use<>> {
    progress.map(|p| (p.number, p.phase, p.since, p.waiting() == 0))
}

/// Tells in the log that a renewal of certificates was begun or is done; what others are to hear of it. The
/// CA's rotation is told by whoever leads it.
pub(crate) fn news(old: &EncryptionPolicyStatus, new: &EncryptionPolicyStatus) -> Option<News> {
    let (old, new) = (&old.certificate_rotation, &new.certificate_rotation);
    let new = new.as_ref()?;
    let another = old.as_ref().is_none_or(|old| old.number != new.number);
    let waited = old.as_ref().is_some_and(|old| old.waiting() > 0);
    let (number, nodes) = (new.number, new.nodes);
    let head = format!("rotation {number} of the nodes' certificates");
    let (action, text) = match new.waiting() {
        0 if nodes > 0 && (waited || another && old.is_some()) => {
            ("Step", format!("{head}: all {nodes} nodes are done"))
        }
        waiting if waiting > 0 && another => (
            "Begin",
            format!("{head}: {waiting} of {nodes} nodes are to renew"),
        ),
        _ => return None,
    };
    info!("{text}");
    Some(News::good(
        About::Policy,
        "CertificateRotation",
        action,
        text,
    ))
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// Says who has let a renewal of the nodes' certificates wait for long.
    pub(crate) fn name_those_who_do_not_renew(&mut self, status: &EncryptionPolicyStatus) {
        let rotation = status.certificate_rotation.as_ref();
        let Some(rotation) = rotation.filter(|rotation| rotation.waiting() > 0) else {
            self.renewal_wave = Default::default();
            return;
        };
        let now = Instant::now();
        let waiting = rotation.waiting() as usize;
        self.renewal_wave.take(rotation.number, waiting, now);
        if !self.renewal_wave.runs_out(now) {
            let until = self.renewal_wave.until().filter(|until| *until > now);
            until
                .into_iter()
                .for_each(|until| self.absent.look_at(until));
            return;
        }
        let world = &self.world;
        let why = |name: &String| {
            let request = world.requests.objects.get(name);
            let denied = request.and_then(|request| request.status.denied.as_ref());
            let denied = denied.map(|denied| format!("its request is denied: {denied}"));
            let node = world.nodes.objects.get(name);
            denied.or_else(|| Some(not_ready(node?)?.to_owned()))
        };
        let some = rotation.waiting_on.iter().map(|n| (&**n, why(n)));
        let text = format!(
            "rotation {} of the nodes' certificates waits on {}",
            rotation.number,
            stragglers::nodes(waiting, some)
        );
        warn!("{text}");
        let news = News::bad(About::Policy, "CertificateStragglers", "Wait", text);
        self.safe.tell(news);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use testudo_model::{CaPhase, CaWaiting};

    fn node(name: &str, rotation: u64, certificate: bool) -> NodeEncryption {
        let mut node: NodeEncryption = serde_json::from_value(json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "NodeEncryption",
            "metadata": { "name": name },
            "spec": {
                "uid": name, "bootId": "boot", "addresses": ["10.0.0.1"], "datapath": "user",
            },
            "status": { "rotation": rotation },
        }))
        .unwrap();
        if certificate {
            node.status.certificate = Some(testudo_model::CertificateFacts {
                subject: name.to_owned(),
                issuer: "CA".to_owned(),
                serial: "1".to_owned(),
                not_before: UnixTime(1),
                not_after: UnixTime(2),
            });
        }
        node
    }

    fn at(
        policy: &mut EncryptionPolicy,
        nodes: &[NodeEncryption],
        now: i64,
    ) -> (u32, u32, Vec<String>) {
        let nodes: Vec<&NodeEncryption> = nodes.iter().collect();
        let progress = of_certificates(policy, &nodes, &[], UnixTime(now));
        policy.status.certificate_rotation = progress.clone();
        let progress = progress.unwrap();
        (progress.done, progress.nodes, progress.waiting_on)
    }

    #[test]
    fn a_rotation_counts_those_who_have_a_certificate_and_stays_done() {
        let mut policy = EncryptionPolicy::new("cluster", Default::default());
        let nodes = [
            node("n1", 1, true),
            node("n2", 0, true),
            node("n3", 0, false),
        ];
        policy.spec.certificates.rotation = 1;
        let off = of_certificates(&policy, &[&nodes[1]], &[], UnixTime(5));
        assert_eq!(off, None, "while it is off nobody renews");
        policy.spec.mode = Mode::Full;
        assert_eq!(at(&mut policy, &nodes, 5), (1, 2, vec!["n2".to_owned()]));
        let begun = policy.status.clone();
        let told = news(&EncryptionPolicyStatus::default(), &begun).unwrap();
        assert!(told.text.contains("1 of 2 nodes are to renew"), "{told:?}");
        let nodes = [node("n1", 1, true), node("n2", 1, true)];
        assert_eq!(at(&mut policy, &nodes, 7), (2, 2, vec![]));
        let done = policy.status.certificate_rotation.clone().unwrap();
        assert_eq!((done.number, done.since), (1, Some(UnixTime(5))));
        let told = news(&begun, &policy.status).unwrap();
        assert!(told.text.contains("all 2 nodes are done"), "{told:?}");
        // An agent that has just begun.
        let nodes = [node("n1", 0, true), node("n2", 1, true)];
        let before = policy.status.clone();
        assert_eq!(at(&mut policy, &nodes, 9), (2, 2, vec![]));
        assert_eq!(news(&before, &policy.status), None);
        // One node alone is another rotation.
        let key = format!("{NODE_ROTATION}n2");
        policy.metadata.annotations.insert(key, "1".to_owned());
        let nodes = [node("n1", 1, true), node("n2", 1, true)];
        assert_eq!(at(&mut policy, &nodes, 11), (1, 2, vec!["n2".to_owned()]));
        assert_eq!(policy.status.certificate_rotation.unwrap().number, 2);
    }

    #[test]
    fn names_are_bounded_and_counts_are_not() {
        let mut policy = EncryptionPolicy::new("cluster", Default::default());
        policy.spec.mode = Mode::Full;
        policy.spec.certificates.rotation = 3;
        let nodes: Vec<_> = (0..300).map(|n| node(&format!("n{n}"), 2, true)).collect();
        let (done, all, named) = at(&mut policy, &nodes, 1);
        assert_eq!((done, all, named.len()), (0, 300, MOST_NAMED));
        let told = TrustBundleStatus {
            rotation: 2,
            phase: CaPhase::Issuing,
            waiting: 40,
            waiting_on: vec![CaWaiting {
                node: "n7".to_owned(),
                reason: "x".to_owned(),
            }],
            ..TrustBundleStatus::default()
        };
        let ca = of_the_ca(Some(&told), 300).unwrap();
        assert_eq!((ca.number, ca.done, ca.nodes), (2, 260, 300));
        assert_eq!(ca.waiting_on, ["n7"]);
        assert_eq!(of_the_ca(Some(&TrustBundleStatus::default()), 3), None);
    }
}
