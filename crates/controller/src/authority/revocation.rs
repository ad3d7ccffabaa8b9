//! What a CA's revocation list is to say, and when it is to be signed anew.

use std::collections::{BTreeMap, BTreeSet};

use testudo_pki::{BACKDATE, Ca, Revoked, TrustBundle, hex};

use crate::register::{Register, ca_of};

/// A list says that the next one comes after so many seconds; it comes after half of them.
const LIFE: u64 = 30 * 24 * 3600;
/// Certificates of one CA that its list can name: two lists fit beside the CAs into what a safe holds.
pub(crate) const MOST: usize = 5000;

/// What came of [`super::Authority::revoke`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// Lists that were signed.
    pub(crate) signed: usize,
    /// Certificates that are taken back and found no room in a list.
    pub(crate) left_out: usize,
    /// Nobody was faster.
    pub(crate) done: bool,
}

/// A list to be signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) revoked: Vec<Revoked>,
    pub(super) number: u64,
    pub(super) next_update: u64,
    pub(super) left_out: usize,
}

/// The list that `ca` has to sign now; `None` where the one that is there will do, or none is needed.
pub(super) fn due(
    ca: &Ca,
    bundle: &TrustBundle,
    register: &Register,
    now: u64,
    sure: bool,
) -> Option<Wanted> {
    let facts = ca.facts();
    let known = bundle.revocations_of(&facts.spki);
    let (list, lists) = known.unwrap_or_default();
    let ours = register.serials_of(ca_of(facts));
    // By serial number, without the zeros that some write before it.
    let mut wanted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let by_hand = list
        .revoked
        .iter()
        .filter(|revoked| !ours.contains(hex(stripped(&revoked.serial)).as_str()));
    let said: BTreeMap<Vec<u8>, u64> = list
        .revoked
        .iter()
        .map(|revoked| (stripped(&revoked.serial).to_vec(), revoked.at))
        .collect();
    let mut left_out = 0;
    let taken = register.revoked_by(ca_of(facts), sure.then_some(now));
    // Whom a list has named once is not good again before the certificate's end: those come first.
    let (named, new): (Vec<&Revoked>, Vec<&Revoked>) = taken
        .iter()
        .partition(|revoked| said.contains_key(stripped(&revoked.serial)));
    for revoked in by_hand.chain(named).chain(new) {
        match wanted.len() < MOST {
            true => {
                wanted.insert(stripped(&revoked.serial).to_vec(), revoked.at);
            }
            false => left_out += 1,
        }
    }
    // When each was taken back is told, and decides nothing.
    let says_it = said.keys().eq(wanted.keys()) && lists <= 1;
    let next = list.next_update.unwrap_or(u64::MAX);
    let old = now >= next.saturating_sub(LIFE / 2);
    // Whoever signed it had a clock that was ahead: until then nobody goes by it.
    let early = list.this_update > now.saturating_add(BACKDATE);
    let fine = says_it && (lists == 0 || !(sure && (old || early)));
    (!fine).then(|| Wanted {
        revoked: wanted
            .into_iter()
            .map(|(serial, at)| Revoked { serial, at })
            .collect(),
        number: list.number.saturating_add(1),
        next_update: now.saturating_add(LIFE),
        left_out,
    })
}

/// How many of those that the register wants taken back the list does not name, where none is due: they have
/// no room.
pub(super) fn surplus(
    ca: &Ca,
    bundle: &TrustBundle,
    register: &Register,
    now: u64,
    sure: bool,
) -> usize {
    let facts = ca.facts();
    let (list, _) = bundle.revocations_of(&facts.spki).unwrap_or_default();
    let said = list.revoked.iter().map(|revoked| stripped(&revoked.serial));
    let said: BTreeSet<&[u8]> = said.collect();
    let taken = register.revoked_by(ca_of(facts), sure.then_some(now));
    let left = taken
        .iter()
        .filter(|revoked| !said.contains(stripped(&revoked.serial)));
    left.count()
}

fn stripped(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

#[cfg(test)]
mod tests {
    use testudo_crypto::SystemRandom;
    use testudo_pki::CaOptions;

    use super::*;
    use crate::register::{Given, Holder};

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 24 * 3600;

    struct World {
        ca: Ca,
        bundle: TrustBundle,
        register: Register,
    }

    impl World {
        fn new() -> Self {
            let ca = Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap();
            let mut bundle = TrustBundle::new();
            bundle.add(ca.certificate()).unwrap();
            let register = Register::default();
            Self {
                ca,
                bundle,
                register,
            }
        }

        fn give(&mut self, node: &str, serial: &str) -> Holder {
            self.give_until(node, serial, NOW + 90 * DAY)
        }

        fn give_until(&mut self, node: &str, serial: &str, not_after: u64) -> Holder {
            let holder = Holder {
                name: node.to_owned(),
                uid: "u".to_owned(),
            };
            let given = Given {
                ca: ca_of(self.ca.facts()).to_owned(),
                serial: serial.to_owned(),
                not_after,
                revoked: None,
            };
            self.register.give(holder.clone(), given).unwrap();
            holder
        }

        fn due(&self, now: u64, sure: bool) -> Option<Wanted> {
            due(&self.ca, &self.bundle, &self.register, now, sure)
        }

        /// The serial numbers of the list that was due.
        fn sign(&mut self, now: u64) -> Vec<String> {
            let list = self.due(now, true).expect("one is due");
            let der = self
                .ca
                .revocation_list(&list.revoked, list.number, now, list.next_update)
                .unwrap();
            self.bundle.replace_revocation_list(&der).unwrap();
            list.revoked.iter().map(|r| hex(&r.serial)).collect()
        }
    }

    #[test]
    fn a_list_is_signed_when_what_it_says_changes_and_before_the_next_is_promised() {
        let mut world = World::new();
        let (n1, n2) = (world.give("n1", "51"), world.give("n2", "52"));
        assert_eq!(world.due(NOW, true), None, "nothing to be said");
        world.register.revoke(&n1, NOW);
        assert_eq!(world.sign(NOW), ["51"]);
        assert_eq!(world.due(NOW, true), None);
        world.register.revoke(&n2, NOW + 1);
        assert_eq!(world.sign(NOW + 1), ["51", "52"]);
        // Before its time is over, and only by a clock that is believed.
        assert_eq!(world.due(NOW + 14 * DAY, true), None);
        assert_eq!(world.due(NOW + 16 * DAY, false), None);
        assert_eq!(world.sign(NOW + 16 * DAY), ["51", "52"]);
        // They leave when they have ended.
        let ended = NOW + 92 * DAY;
        assert!(world.sign(ended).is_empty());
        assert_eq!(world.due(ended, true), None);
    }

    #[test]
    fn what_a_list_has_named_stays_in_it_when_there_is_no_room_for_more() {
        let mut world = World::new();
        // These end first of all.
        let early: BTreeSet<String> = (0..MOST).map(|n| format!("1{n:07x}")).collect();
        for serial in &early {
            let holder = world.give_until(serial, serial, NOW + 10 * DAY);
            world.register.revoke(&holder, NOW);
        }
        assert_eq!(world.sign(NOW).len(), MOST);
        for serial in ["51", "52"] {
            let holder = world.give(serial, serial);
            world.register.revoke(&holder, NOW + 1);
        }
        assert_eq!(world.due(NOW + 1, true), None, "nothing can be added");
        let left = surplus(&world.ca, &world.bundle, &world.register, NOW + 1, true);
        assert_eq!(left, 2);
        // Their end makes room.
        let named: BTreeSet<String> = world.sign(NOW + 16 * DAY).into_iter().collect();
        assert_eq!(named, BTreeSet::from(["51".to_owned(), "52".to_owned()]));
    }

    #[test]
    fn what_somebody_revoked_by_hand_stays_revoked() {
        let mut world = World::new();
        let entry = |serial: u8| Revoked {
            serial: vec![0, serial],
            at: NOW,
        };
        for (number, serial) in [(7, 0x80), (8, 0x90)] {
            let list = world
                .ca
                .revocation_list(&[entry(serial)], number, NOW + number, NOW + DAY);
            world.bundle.add_revocation_list(&list.unwrap()).unwrap();
        }
        // Two lists of one CA, of which the newest counts: one is made of it.
        assert_eq!(world.sign(NOW + 9), ["90"]);
        let n1 = world.give("n1", "51");
        world.register.revoke(&n1, NOW);
        assert_eq!(world.sign(NOW + 10), ["51", "90"]);
        let (facts, lists) = world.bundle.revocations_of(&world.ca.facts().spki).unwrap();
        assert_eq!((facts.number, lists), (10, 1));
    }

    #[test]
    fn a_list_from_the_future_is_signed_anew_when_the_clock_is_right() {
        let mut world = World::new();
        let n1 = world.give("n1", "51");
        world.register.revoke(&n1, NOW);
        world.sign(NOW + 30 * DAY);
        assert_eq!(world.due(NOW, false), None);
        assert_eq!(world.sign(NOW), ["51"]);
        assert_eq!(world.due(NOW, true), None);
    }
}
