//! A new certificate reaches the peers: which IKE SAs are authenticated anew, when, and when the
//! rotation is done. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use testudo_model::{Monotonic, PeerId};

/// A reauthentication that did not succeed in this time is begun again.
const AGAIN: Duration = Duration::from_secs(5);

/// The peers that have not seen our certificate yet, or whose own new one we have not seen.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    open: BTreeMap<PeerId, Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    /// An authentication before this moment does not count.
    since: Monotonic,
    /// When reauthentication with the peer is to begin.
    due: Monotonic,
}

impl Rotation {
    /// A new certificate is in use from `now` on; `connected` are the peers that know the old
    /// one. Nodes take turns at a rotation, so that as a rule only one end of a pair begins.
    pub(crate) fn start(&mut self, now: Monotonic, connected: impl IntoIterator<Item = PeerId>) {
        let open = Open {
            since: now,
            due: now,
        };
        self.open = connected.into_iter().map(|peer| (peer, open)).collect();
    }

    /// A peer says that it shows all a new certificate, and showed us an older one: an exchange that
    /// it had begun with that one ended late. It is asked again.
    pub(crate) fn ask(&mut self, now: Monotonic, peer: PeerId) {
        let open = Open {
            since: now,
            due: now,
        };
        self.open.entry(peer).or_insert(open);
    }

    /// Strikes off the peers that were authenticated since, and those that are not connected any
    /// more: they will see the new certificate when they come back.
    pub(crate) fn strike(
        &mut self,
        authenticated: impl Fn(&PeerId) -> Option<Monotonic>,
        connected: impl Fn(&PeerId) -> bool,
    ) {
        self.open.retain(|peer, open| {
            connected(peer) && authenticated(peer).is_none_or(|at| at < open.since)
        });
    }

    /// The peers with which to begin now.
    pub(crate) fn begin(&mut self, now: Monotonic) -> Vec<PeerId> {
        let due = self.open.iter_mut().filter(|(_, open)| open.due <= now);
        due.map(|(peer, open)| {
            open.due = now + AGAIN;
            peer.clone()
        })
        .collect()
    }

    /// Whether every peer has seen the certificate in use.
    pub(crate) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// When [`Rotation::begin`] has something next.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        self.open.values().map(|open| open.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic(Duration::from_millis(millis))
    }

    fn peer(name: &str) -> PeerId {
        PeerId::new(name).unwrap()
    }

    #[test]
    fn every_peer_is_begun_with_until_it_has_seen_the_certificate() {
        let mut rotation = Rotation::default();
        rotation.start(at(1000), [peer("n2"), peer("n3")]);
        assert_eq!(rotation.begin(at(1000)), [peer("n2"), peer("n3")]);
        assert_eq!(rotation.begin(at(1001)), []);
        // n3 was authenticated since, n2 before.
        let seen = |p: &PeerId| Some(if *p == peer("n3") { at(1200) } else { at(900) });
        rotation.strike(seen, |_| true);
        assert!(!rotation.is_done());
        assert_eq!(rotation.next(), Some(at(6000)));
        assert_eq!(rotation.begin(at(6000)), [peer("n2")]);
        rotation.strike(|_| Some(at(6100)), |_| true);
        assert!(rotation.is_done());
        assert_eq!(rotation.next(), None);
    }

    #[test]
    fn a_peer_that_went_away_does_not_hold_up_the_rotation() {
        let mut rotation = Rotation::default();
        rotation.start(at(10), [peer("n2")]);
        rotation.strike(|_| Some(at(5)), |_| false);
        assert!(rotation.is_done());
    }

    #[test]
    fn a_peer_whose_old_certificate_came_late_is_asked_again() {
        let mut rotation = Rotation::default();
        rotation.start(at(1000), [peer("n2")]);
        rotation.strike(|_| Some(at(1100)), |_| true);
        assert!(rotation.is_done());
        rotation.ask(at(2000), peer("n2"));
        rotation.ask(at(2500), peer("n2"));
        // What was authenticated before it was asked does not count.
        rotation.strike(|_| Some(at(1100)), |_| true);
        assert_eq!(rotation.begin(at(2500)), [peer("n2")]);
        assert_eq!(rotation.begin(at(2600)), []);
        rotation.strike(|_| Some(at(2600)), |_| true);
        assert!(rotation.is_done());
    }
}
