//! A new certificate reaches the peers: which IKE SAs are authenticated anew, when, and when the
//! rotation is done. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use testudo_model::{Monotonic, PeerId};

/// A reauthentication that did not succeed in this time is begun again.
const AGAIN: Duration = Duration::from_secs(5);

/// A peer that shows an old certificate however often it is asked for the new one is asked ever more
/// rarely, until this lies between two times.
const RAREST: Duration = Duration::from_secs(300);

/// The peers that have not seen our certificate yet, and those whose own new one we have not seen.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    open: BTreeMap<PeerId, Open>,
    asked: BTreeMap<PeerId, Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// When reauthentication with the peer may begin again.
    due: Monotonic,
    /// What lies between that and the time after it.
    pause: Duration,
    /// Its new certificate has not come.
    late: bool,
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

    /// The peers that say that they show all a new certificate, and showed us an older one: an
    /// exchange that they had begun with that one ended late. They are asked again. What they say is
    /// their word alone, so it neither holds up what we say of our own certificate nor makes us ask
    /// without a pause.
    pub(crate) fn ask(&mut self, now: Monotonic, late: Vec<PeerId>) {
        self.asked.retain(|peer, asked| {
            asked.late = late.contains(peer);
            asked.late || asked.due > now
        });
        for peer in late {
            let asked = Asked {
                due: now,
                pause: AGAIN,
                late: true,
            };
            self.asked.entry(peer).or_insert(asked);
        }
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
        let mut begin = BTreeSet::new();
        for (peer, open) in &mut self.open {
            if open.due <= now {
                open.due = now + AGAIN;
                begin.insert(peer.clone());
            }
        }
        for (peer, asked) in &mut self.asked {
            if asked.late && asked.due <= now {
                asked.due = now + asked.pause;
                asked.pause = (asked.pause * 2).min(RAREST);
                begin.insert(peer.clone());
            }
        }
        begin.into_iter().collect()
    }

    /// Whether every peer has seen the certificate in use.
    pub(crate) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// When [`Rotation::begin`] has something next.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        let open = self.open.values().map(|open| open.due);
        let late = self.asked.values().filter(|asked| asked.late);
        open.chain(late.map(|asked| asked.due)).min()
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
        rotation.ask(at(2000), vec![peer("n2")]);
        assert_eq!(rotation.next(), Some(at(2000)));
        assert_eq!(rotation.begin(at(2500)), [peer("n2")]);
        assert_eq!(rotation.begin(at(2600)), []);
        // It has come.
        rotation.ask(at(2700), Vec::new());
        assert_eq!(rotation.next(), None);
    }

    /// A peer whose word is false, and that authenticates each time it is asked.
    #[test]
    fn a_peer_that_never_shows_what_it_says_is_asked_ever_more_rarely_and_holds_up_nothing() {
        let mut rotation = Rotation::default();
        let mut begun = Vec::new();
        for second in 0..1000 {
            // It takes its word back now and then.
            let late = (second % 7 != 3).then(|| peer("n2"));
            rotation.ask(at(second * 1000), late.into_iter().collect());
            if !rotation.begin(at(second * 1000)).is_empty() {
                begun.push(second);
            }
            rotation.strike(|_| Some(at(second * 1000)), |_| true);
            assert!(rotation.is_done());
        }
        let pauses: Vec<u64> = begun.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.iter().all(|pause| *pause >= 5), "{pauses:?}");
        assert!(begun.len() < 20, "{begun:?}");
    }
}
