//! Who holds certificates: every one that was signed and has not ended, by the node that it was given to,
//! so that it can be taken back when the node is gone.
//!
//! A document of its own in the safe, written before a certificate is given out: what nobody has
//! written down nobody has.

mod kept;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use testudo_pki::{CertificateFacts, Revoked};

pub(crate) use kept::Kept;

/// Certificates of one node by one CA that are good and have not ended. Of the next CA it gets as many: the end of
/// too many is that the CA is replaced.
pub(crate) const MOST_OF_ONE: usize = 64;
/// The same with those that were taken back: one node must not take all the room, and few CAs are trusted at a
/// time.
const MOST_EVER: usize = 8 * MOST_OF_ONE;
/// From so many on those that a node has followed up by later ones are taken back, but for the last few.
const SUPERSEDED: usize = MOST_OF_ONE / 2;
const LAST: usize = 8;
/// Bytes in all: the document stays under the megabyte that is read, and that a Secret may have.
const MOST_BYTES: usize = 900_000;
/// So many more for the first certificates by a CA of nodes that have others: where there is no room the CA is
/// replaced, and each needs one of the next before those of before are forgotten.
const RESERVE: usize = 100_000;
/// So much of a CA's fingerprint tells it from the others.
const CA_DIGITS: usize = 16;
/// At most what a certificate takes in the text: serial number, end, time of revocation.
const BYTES_OF_ONE: usize = 54;
/// A certificate is kept for so long past its end, seconds: clocks differ, and jump.
const MARGIN: u64 = 24 * 3600;

/// A node of one life: one that is made anew under its name has another UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A certificate that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// What SHA-256 of the CA's certificate begins with, hex: [`ca_of`].
    pub(crate) ca: String,
    /// Hex, without leading zeros.
    pub(crate) serial: String,
    /// Its end, seconds since 1970.
    pub(crate) not_after: u64,
    /// Since when it is taken back.
    pub(crate) revoked: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// The node has been among those of the cluster.
    seen: bool,
    given: Vec<Given>,
}

/// Why no certificate is written down, and so none given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Too many of one node are good.
    #[error(
        "the node has {MOST_OF_ONE} certificates by this CA that have not ended: shorten \
         spec.certificates.nodeLifetime, or rotate the CA"
    )]
    OfOne,
    /// Too many of one node with those that were taken back.
    #[error(
        "the node was given {MOST_EVER} certificates by this CA, most of which were taken back again: see why it \
         asks so often (does it lose its state?), and rotate the CA"
    )]
    Ever,
    /// Too many in all.
    #[error(
        "so many certificates have not ended that no more can be kept track of: shorten \
         spec.certificates.nodeLifetime, or rotate the CA"
    )]
    InAll,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    entries: BTreeMap<Holder, Entry>,
    /// Of [`MOST_BYTES`]: what the text takes at most.
    bytes: usize,
}

impl Register {
    /// Writes down a certificate that is about to be given out.
    pub(crate) fn give(&mut self, holder: Holder, given: Given) -> Result<(), Full> {
        let there = self.entries.get(&holder);
        let of_it = there.into_iter().flat_map(|entry| &entry.given);
        let of_it: Vec<&Given> = of_it.filter(|there| there.ca == given.ca).collect();
        let next = there.is_some() && of_it.is_empty();
        if self.bytes >= MOST_BYTES + if next { RESERVE } else { 0 } {
            return Err(Full::InAll);
        }
        if of_it.iter().filter(|g| g.revoked.is_none()).count() >= MOST_OF_ONE {
            return Err(Full::OfOne);
        }
        if of_it.len() >= MOST_EVER {
            return Err(Full::Ever);
        }
        self.put(holder, given);
        Ok(())
    }

    fn put(&mut self, holder: Holder, given: Given) {
        let entry = self.entries.entry(holder);
        if let std::collections::btree_map::Entry::Vacant(new) = &entry {
            self.bytes += bytes_of(new.key(), 0);
        }
        entry.or_default().given.push(given);
        self.bytes += BYTES_OF_ONE;
    }

    /// Adds up anew what the text takes.
    fn measure(&mut self) {
        let entries = self.entries.iter();
        let each = entries.map(|(holder, entry)| bytes_of(holder, entry.given.len()));
        self.bytes = each.sum();
    }

    /// The share of its room that is taken.
    pub(crate) fn fill(&self) -> f64 {
        self.bytes as f64 / MOST_BYTES as f64
    }

    /// The share of its room that would be free if this CA's certificates were worthless and each node that
    /// has a good one had one of another CA.
    pub(crate) fn freed_without(&self, ca: &str) -> f64 {
        let freed = self.entries.iter().map(|(holder, entry)| {
            let of_it = entry.given.iter().filter(|given| given.ca == ca).count();
            match (of_it == entry.given.len(), entry.is_good()) {
                (true, false) => bytes_of(holder, of_it),
                (_, true) => of_it.saturating_sub(1) * BYTES_OF_ONE,
                (false, false) => of_it * BYTES_OF_ONE,
            }
        });
        freed.sum::<usize>() as f64 / MOST_BYTES as f64
    }

    fn given(&self) -> impl Iterator<Item = &Given> {
        self.entries.values().flat_map(|entry| &entry.given)
    }

    /// CA ([`ca_of`]) and serial number (hex) of all that was written down for anybody.
    pub(crate) fn known(&self) -> HashSet<(&str, &str)> {
        let given = self.given();
        given
            .map(|given| (given.ca.as_str(), given.serial.as_str()))
            .collect()
    }

    /// The CAs ([`ca_of`]) of all certificates that were not taken back.
    pub(crate) fn good_cas(&self) -> BTreeSet<&str> {
        let good = self.given().filter(|given| given.revoked.is_none());
        good.map(|given| given.ca.as_str()).collect()
    }

    /// Notes who is among the nodes of the cluster.
    pub(crate) fn see(&mut self, present: &BTreeSet<Holder>) {
        for (holder, entry) in &mut self.entries {
            entry.seen |= present.contains(holder);
        }
    }

    /// Holders of certificates that are good and who are not `present`, having been seen once or not.
    pub(crate) fn missing(&self, present: &BTreeSet<Holder>) -> Vec<(Holder, bool)> {
        self.entries
            .iter()
            .filter(|(holder, entry)| entry.is_good() && !present.contains(holder))
            .map(|(holder, entry)| (holder.clone(), entry.seen))
            .collect()
    }

    /// All lives of the node of this name.
    pub(crate) fn of_name(&self, name: &str) -> Vec<Holder> {
        let named = self.entries.keys().filter(|holder| holder.name == name);
        named.cloned().collect()
    }

    /// Whether the holder was given this one, and it was not taken back.
    pub(crate) fn has(&self, holder: &Holder, given: &Given) -> bool {
        let entry = self.entries.get(holder);
        entry.is_some_and(|entry| given.revoked.is_none() && entry.given.contains(given))
    }

    /// Takes all certificates of a holder back; how many those are.
    pub(crate) fn revoke(&mut self, holder: &Holder, at: u64) -> usize {
        let Some(entry) = self.entries.get_mut(holder) else {
            return 0;
        };
        let good = entry.given.iter_mut().filter(|g| g.revoked.is_none());
        good.map(|given| given.revoked = Some(at)).count()
    }

    /// Takes back what a node was given and will not use any more, by the certificate that it shows. One that
    /// loses what it holds at each boot asks for another each time: what it was given well before. One that asks
    /// and does not take what it gets: what it was given since, but for the last, of which one may be under way.
    /// How many those are.
    pub(crate) fn supersede(&mut self, holder: &Holder, ca: &str, shown: &str, at: u64) -> usize {
        let Some(entry) = self.entries.get_mut(holder) else {
            return 0;
        };
        let good = entry.given.iter_mut().filter(|g| g.revoked.is_none());
        // In the order in which they were given.
        let mut of_it: Vec<&mut Given> = good.filter(|g| g.ca == ca).collect();
        if of_it.len() < SUPERSEDED {
            return 0;
        }
        let Some(place) = of_it.iter().position(|g| g.serial == shown) else {
            return 0;
        };
        let before = 0..place.saturating_sub(LAST);
        let since = place + 1..of_it.len().saturating_sub(LAST);
        let mut count = 0;
        for place in before.chain(since) {
            of_it[place].revoked = Some(at);
            count += 1;
        }
        count
    }

    /// Whether all that the holder was ever given and has not ended was taken back.
    pub(crate) fn is_out(&self, holder: &Holder) -> bool {
        let entry = self.entries.get(holder);
        entry.is_some_and(|entry| !entry.given.is_empty() && !entry.is_good())
    }

    /// What a CA has taken back and is to say so, those first that end last. What has ended at `now` need
    /// not be said any more.
    pub(crate) fn revoked_by(&self, ca: &str, now: Option<u64>) -> Vec<Revoked> {
        let of_it = self.given().filter(|given| given.ca == ca);
        let of_it = of_it.filter(|given| !given.has_ended(now));
        let mut taken: Vec<(&Given, u64)> = of_it
            .filter_map(|given| Some((given, given.revoked?)))
            .collect();
        taken.sort_by_key(|(given, _)| std::cmp::Reverse(given.not_after));
        taken
            .into_iter()
            .map(|(given, at)| Revoked {
                serial: serial_bytes(&given.serial).unwrap_or_default(),
                at,
            })
            .collect()
    }

    /// Names of nodes with certificates that are taken back, have not ended at `now`, and are in none of the
    /// `lists` ([`Register::forget`]).
    pub(crate) fn unlisted(
        &self,
        now: Option<u64>,
        lists: &BTreeMap<String, BTreeSet<String>>,
    ) -> Vec<String> {
        let unlisted = |given: &Given| {
            let list = lists.get(&given.ca);
            let named = list.is_none_or(|named| named.contains(&given.serial));
            given.revoked.is_some() && !named && !given.has_ended(now)
        };
        let entries = self.entries.iter();
        let with_such = entries.filter(|(_, entry)| entry.given.iter().any(unlisted));
        let names: BTreeSet<&str> = with_such.map(|(holder, _)| holder.name.as_str()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Serial numbers (hex) of a CA's certificates that were written down, ended or not.
    pub(crate) fn serials_of(&self, ca: &str) -> BTreeSet<&str> {
        let of_it = self.given().filter(|given| given.ca == ca);
        of_it.map(|given| given.serial.as_str()).collect()
    }

    /// Forgets what has ended at `now`, and what is of CAs that are not trusted. `lists` has those that are
    /// ([`ca_of`]), each with the serial numbers (hex) that its list names: what stands in a list is
    /// remembered, because what a list names and nobody remembers stays there.
    pub(crate) fn forget(&mut self, now: Option<u64>, lists: &BTreeMap<String, BTreeSet<String>>) {
        for entry in self.entries.values_mut() {
            entry.given.retain(|given| match lists.get(&given.ca) {
                Some(named) => named.contains(&given.serial) || !given.has_ended(now),
                None => false,
            });
        }
        self.entries.retain(|_, entry| !entry.given.is_empty());
        self.measure();
    }
}

/// What a node of so many certificates takes at most.
fn bytes_of(holder: &Holder, given: usize) -> usize {
    // The words of both lines, with a second CA while one follows another.
    let lines = holder.name.len() + holder.uid.len() + 12 + 2 * (CA_DIGITS + 5);
    lines + given * BYTES_OF_ONE
}

impl Entry {
    fn is_good(&self) -> bool {
        self.given.iter().any(|given| given.revoked.is_none())
    }
}

impl Given {
    /// The one that a CA has just signed.
    pub(crate) fn new(ca: &CertificateFacts, facts: &CertificateFacts) -> Self {
        Self {
            ca: ca_of(ca).to_owned(),
            serial: facts.serial.clone(),
            not_after: facts.times.not_after,
            revoked: None,
        }
    }

    /// Whether its end is well past; `None`: nobody knows what time it is.
    fn has_ended(&self, now: Option<u64>) -> bool {
        now.is_some_and(|now| self.not_after.saturating_add(MARGIN) < now)
    }
}

/// What tells a CA from the others.
pub(crate) fn ca_of(facts: &CertificateFacts) -> &str {
    facts
        .fingerprint
        .get(..CA_DIGITS)
        .unwrap_or(&facts.fingerprint)
}

/// A certificate's serial number; none where the text is no hex of 1 to 32 bytes.
pub(crate) fn serial_bytes(text: &str) -> Option<Vec<u8>> {
    crate::signer::unhex(text, 32).filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests;
