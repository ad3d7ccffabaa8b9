//! Who holds certificates: every one that was signed and has not ended, by the node that it was given to,
//! so that it can be taken back when the node is gone.
//!
//! A document of its own in the safe, written before a certificate is given out: what nobody has
//! written down nobody has. In lines: a node by name and UID, then by CA (what its fingerprint begins
//! with) serial number and end of each certificate, and since when it is taken back, all in hex.
//!
//! ```text
//! testudo-register 1
//! node n1 3f0c1f8e-7a1d-4c8c-9a57-2f4f9c1d0a01 seen
//! ca 8c7f3a2b11d0e4f5 5a1f…-74565a80 61b0…-74565b02!6b0276f8
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;

use anyhow::{Context, bail, ensure};
use testudo_crypto::SecretBytes;
use testudo_pki::{CertificateFacts, Revoked};
use tracing::warn;

use crate::safe::{Document, Safe, SafeError, Unusable, Version};

/// The first line.
const HEAD: &str = "testudo-register 1";
/// Certificates of one node that are good and have not ended.
pub(crate) const MOST_OF_ONE: usize = 64;
/// The same with those that were taken back: one node must not take all the room.
const MOST_EVER: usize = 8 * MOST_OF_ONE;
/// From so many on those that a node has followed up by later ones are taken back, but for the last few.
const SUPERSEDED: usize = MOST_OF_ONE / 2;
const LAST: usize = 8;
/// Bytes in all: the document stays under the megabyte that is read, and that a Secret may have.
const MOST_BYTES: usize = 900_000;
/// So much of a CA's fingerprint tells it from the others.
const CA_DIGITS: usize = 16;
/// At most what a certificate takes: serial number, end, time of revocation.
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
    /// Too many of one node.
    #[error(
        "the node has {MOST_OF_ONE} certificates that have not ended: shorten \
         spec.certificates.nodeLifetime, or rotate the CA"
    )]
    OfOne,
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
        if self.bytes >= MOST_BYTES {
            return Err(Full::InAll);
        }
        let there = self.entries.get(&holder);
        let good = |entry: &Entry| entry.given.iter().filter(|g| g.revoked.is_none()).count();
        if there.is_some_and(|entry| entry.given.len() >= MOST_EVER || good(entry) >= MOST_OF_ONE) {
            return Err(Full::OfOne);
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

    /// Takes back what a node was given well before the certificate that it shows: one that loses what it
    /// holds at each boot asks for another each time. How many those are.
    pub(crate) fn supersede(&mut self, holder: &Holder, ca: &str, shown: &str, at: u64) -> usize {
        let Some(entry) = self.entries.get_mut(holder) else {
            return 0;
        };
        let good = entry.given.iter_mut().filter(|g| g.revoked.is_none());
        let good: Vec<&mut Given> = good.collect();
        if good.len() < SUPERSEDED {
            return 0;
        }
        // In the order in which they were given.
        let mut of_it: Vec<&mut Given> = good.into_iter().filter(|g| g.ca == ca).collect();
        let Some(place) = of_it.iter().position(|g| g.serial == shown) else {
            return 0;
        };
        let old = place.saturating_sub(LAST);
        for given in &mut of_it[..old] {
            given.revoked = Some(at);
        }
        old
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

    /// The document's text.
    fn to_text(&self) -> String {
        let mut text = format!("{HEAD}\n");
        for (holder, entry) in &self.entries {
            let seen = if entry.seen { " seen" } else { "" };
            let _ = writeln!(text, "node {} {}{seen}", holder.name, holder.uid);
            let cas: BTreeSet<&str> = entry.given.iter().map(|given| given.ca.as_str()).collect();
            for ca in cas {
                let _ = write!(text, "ca {ca}");
                for given in entry.given.iter().filter(|given| given.ca == ca) {
                    let _ = write!(text, " {}-{:x}", given.serial, given.not_after);
                    if let Some(at) = given.revoked {
                        let _ = write!(text, "!{at:x}");
                    }
                }
                text.push('\n');
            }
        }
        text
    }

    fn from_text(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().enumerate();
        ensure!(
            lines.next().is_some_and(|(_, line)| line == HEAD),
            "it does not begin with \"{HEAD}\""
        );
        let mut register = Self::default();
        let mut holder = None;
        for (at, line) in lines {
            let read = register.read_line(line, &mut holder);
            read.with_context(|| format!("line {}", at + 1))?;
        }
        register.measure();
        Ok(register)
    }

    fn read_line(&mut self, line: &str, holder: &mut Option<Holder>) -> anyhow::Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["node", name, uid, ref rest @ ..] => {
                let seen = match rest {
                    [] => false,
                    ["seen"] => true,
                    _ => bail!("{rest:?} is not known"),
                };
                let found = Holder {
                    name: name.to_owned(),
                    uid: uid.to_owned(),
                };
                self.entries.entry(found.clone()).or_default().seen = seen;
                *holder = Some(found);
            }
            ["ca", ca, ref certificates @ ..] => {
                let holder = holder.as_ref().context("certificates of no node")?;
                for text in certificates {
                    let given = Given::read(ca, text);
                    let given = given.with_context(|| format!("{text:?} is no certificate"))?;
                    let entry = self.entries.entry(holder.clone()).or_default();
                    entry.given.push(given);
                }
            }
            _ => bail!("it is neither a node nor a CA"),
        }
        Ok(())
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

    fn read(ca: &str, text: &str) -> Option<Self> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let (serial, times) = text.split_once('-')?;
        serial_bytes(serial)?;
        let (not_after, revoked) = match times.split_once('!') {
            Some((end, at)) => (number(end)?, Some(number(at)?)),
            None => (number(times)?, None),
        };
        Some(Self {
            ca: ca.to_owned(),
            serial: serial.to_owned(),
            not_after,
            revoked,
        })
    }
}

/// What tells a CA from the others.
pub(crate) fn ca_of(facts: &CertificateFacts) -> &str {
    facts
        .fingerprint
        .get(..CA_DIGITS)
        .unwrap_or(&facts.fingerprint)
}

/// The register as it is kept.
pub(crate) struct Kept {
    pub(crate) register: Register,
    version: Option<Version>,
}

impl Kept {
    /// Takes it up at the start. Where no CA was ever `published` an empty one is made, before any node can
    /// trust what is signed; where one was, a register that is not there was lost, and an empty one in its
    /// place would forget who holds what: [`Unusable`].
    pub(crate) async fn begin<K: Safe>(safe: &K, published: bool) -> anyhow::Result<Self> {
        let mut kept = Self::open(safe).await?;
        if kept.version.is_none() {
            if published {
                return Err(missing(safe).into());
            }
            let text = SecretBytes::new(kept.register.to_text().into_bytes());
            kept.version = Some(safe.replace(Document::Register, &text, None).await?);
        }
        Ok(kept)
    }

    /// As it stands; one that cannot be read is not replaced by an empty one.
    async fn open<K: Safe>(safe: &K) -> anyhow::Result<Self> {
        let Some(sealed) = safe.read(Document::Register).await? else {
            return Ok(Self {
                register: Register::default(),
                version: None,
            });
        };
        let text = std::str::from_utf8(sealed.text.as_bytes()).context("it is not text");
        let read = text.and_then(Register::from_text);
        let register = read.map_err(|error| Unusable {
            reason: "RegisterUnusable",
            text: format!(
                "{}: the register of certificates cannot be used; restore it, or move it away if \
                 no node was ever deleted: {error:#}",
                safe.place(Document::Register)
            ),
        })?;
        Ok(Self {
            register,
            version: Some(sealed.version),
        })
    }

    /// Which text of the document this is; `None` where there is none.
    pub(crate) fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Takes up what stands in the safe. What is gone or broken is not taken up: [`Unusable`].
    pub(crate) async fn take_up<K: Safe>(&mut self, safe: &K) -> anyhow::Result<()> {
        let fresh = Self::open(safe).await?;
        if fresh.version.is_none() && self.version.is_some() {
            return Err(missing(safe).into());
        }
        *self = fresh;
        Ok(())
    }

    /// Keeps `next` if it differs; `false`: somebody has changed it, and it was read again.
    pub(crate) async fn put<K: Safe>(&mut self, safe: &K, next: Register) -> anyhow::Result<bool> {
        if next == self.register {
            return Ok(true);
        }
        let text = SecretBytes::new(next.to_text().into_bytes());
        let over = self.version.as_ref();
        match safe.replace(Document::Register, &text, over).await {
            Ok(version) => {
                self.version = Some(version);
                self.register = next;
                Ok(true)
            }
            Err(error @ SafeError::Changed(_)) => {
                warn!("{error}");
                self.take_up(safe).await?;
                Ok(false)
            }
            Err(SafeError::Failed(error)) => Err(error),
        }
    }
}

/// The register is gone, and nobody but a person can say that an empty one may take its place.
fn missing<K: Safe>(safe: &K) -> Unusable {
    Unusable {
        reason: "RegisterMissing",
        text: format!(
            "{} with the register of certificates is gone: restore it. To begin with an empty one, which \
             knows of no certificate but those that nodes show, make it with the one line \"{HEAD}\"",
            safe.place(Document::Register)
        ),
    }
}

/// A certificate's serial number; none where the text is no hex of 1 to 32 bytes.
pub(crate) fn serial_bytes(text: &str) -> Option<Vec<u8>> {
    crate::signer::unhex(text, 32).filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn holder(name: &str, uid: &str) -> Holder {
        Holder {
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn given(ca: &str, serial: u64, not_after: u64) -> Given {
        Given {
            ca: ca.to_owned(),
            serial: format!("{serial:032x}"),
            not_after,
            revoked: None,
        }
    }

    #[test]
    fn a_node_that_was_seen_and_is_gone_is_found_whatever_its_name_is_now() {
        let mut register = Register::default();
        let (old, new) = (holder("n1", "u1"), holder("n1", "u2"));
        register.give(old.clone(), given("a", 1, NOW + 10)).unwrap();
        assert_eq!(register.missing(&BTreeSet::new()), [(old.clone(), false)]);
        let present = BTreeSet::from([old.clone()]);
        register.see(&present);
        assert!(register.missing(&present).is_empty());
        // Made anew under its name.
        let present = BTreeSet::from([new.clone()]);
        register.give(new.clone(), given("a", 2, NOW + 10)).unwrap();
        register.see(&present);
        assert_eq!(register.missing(&present), [(old.clone(), true)]);
        assert_eq!(register.revoke(&old, NOW), 1);
        assert!(register.missing(&present).is_empty());
        assert!(register.is_out(&old) && !register.is_out(&new));
        // It may come back, by a certificate of its own.
        register.give(old.clone(), given("b", 3, NOW + 10)).unwrap();
        assert!(!register.is_out(&old));
        assert_eq!(register.revoked_by("a", None).len(), 1);
        assert!(register.revoked_by("b", None).is_empty());
    }

    #[test]
    fn what_has_ended_and_what_is_of_a_ca_that_is_gone_is_forgotten() {
        let mut register = Register::default();
        let n1 = holder("n1", "u1");
        for (ca, serial, not_after) in [("a", 1, NOW), ("a", 2, NOW + 10), ("b", 3, NOW + 10)] {
            let given = given(ca, serial, not_after);
            register.give(n1.clone(), given).unwrap();
        }
        register.revoke(&n1, NOW);
        let list = |ca: &str, named: &[u64]| {
            let serials = named.iter().map(|serial| format!("{serial:032x}"));
            (ca.to_owned(), serials.collect::<BTreeSet<String>>())
        };
        let ended = Some(NOW + MARGIN + 1);
        let both = BTreeMap::from([list("a", &[1, 2]), list("b", &[])]);
        // A clock that is not believed ends nothing.
        register.forget(None, &both);
        assert_eq!(register.revoked_by("a", None).len(), 2);
        // First the list ceases to name it, and then it is forgotten.
        assert_eq!(register.revoked_by("a", ended).len(), 1);
        register.forget(ended, &both);
        assert_eq!(register.serials_of("a").len(), 2);
        let both = BTreeMap::from([list("a", &[2]), list("b", &[])]);
        register.forget(ended, &both);
        assert_eq!(register.serials_of("a").len(), 1);
        register.forget(None, &BTreeMap::from([list("b", &[])]));
        assert_eq!(register.serials_of("a").len(), 0);
        register.forget(Some(NOW + MARGIN + 11), &both);
        assert_eq!(register, Register::default());
    }

    #[tokio::test]
    async fn one_that_is_lost_is_not_replaced_by_an_empty_one_once_a_ca_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let safe = crate::DirSafe::open(&testudo_store::DirStore::open(dir.path()).unwrap());
        // The first start of all: it is made, and the next start finds it.
        let first = Kept::begin(&safe, false).await.unwrap();
        assert!(first.version().is_some());
        let mut kept = Kept::begin(&safe, true).await.unwrap();
        assert_eq!(kept.version(), first.version());
        let mut next = kept.register.clone();
        next.give(holder("n1", "u1"), given("a", 1, NOW)).unwrap();
        assert!(kept.put(&safe, next.clone()).await.unwrap());

        let file = dir.path().join("secrets/certificates");
        std::fs::remove_file(&file).unwrap();
        for error in [
            Kept::begin(&safe, true).await.err().unwrap(),
            kept.take_up(&safe).await.unwrap_err(),
        ] {
            let unusable = error.downcast::<Unusable>().unwrap();
            assert_eq!(unusable.reason, "RegisterMissing");
        }
        assert!(!file.exists());
        // Nothing that was known is forgotten.
        assert_eq!(kept.register, next);

        // On purpose, by hand.
        testudo_store::files::write_private(&file, HEAD.as_bytes()).unwrap();
        let empty = Kept::begin(&safe, true).await.unwrap();
        assert_eq!(empty.register, Register::default());
    }

    #[test]
    fn it_is_bounded() {
        let mut register = Register::default();
        let one = holder("n1", "u1");
        for serial in 0..MOST_OF_ONE as u64 {
            register.give(one.clone(), given("a", serial, NOW)).unwrap();
        }
        let more = register.give(one, given("a", 99, NOW));
        assert_eq!(more, Err(Full::OfOne));
        let mut all = 0;
        let full = loop {
            let holder = holder(&format!("node-{:020}.example", all / 2), &"u".repeat(36));
            match register.give(holder.clone(), given(&"f".repeat(CA_DIGITS), all, NOW)) {
                Ok(()) => all += 1,
                Err(full) => break full,
            }
            register.revoke(&holder, NOW);
        };
        println!("{all} certificates of {} nodes", all / 2);
        assert_eq!(full, Full::InAll);
        let bytes = register.to_text().len() as u64;
        assert!(bytes < testudo_store::files::MAX_PRIVATE_BYTES, "{bytes}");
    }

    #[test]
    fn a_node_that_loses_its_state_at_each_boot_gets_certificates_on_and_on() {
        let mut register = Register::default();
        let one = holder("n1", "u1");
        let other = holder("n2", "u2");
        register.give(other.clone(), given("a", 999, NOW)).unwrap();
        for boot in 0..MOST_EVER as u64 {
            register.give(one.clone(), given("a", boot, NOW)).unwrap();
            let shown = given("a", boot, NOW).serial;
            register.supersede(&one, "a", &shown, NOW);
            // What it shows and the last few stay good.
            for last in boot.saturating_sub(LAST as u64)..=boot {
                assert!(
                    register.has(&one, &given("a", last, NOW)),
                    "{last} at {boot}"
                );
            }
        }
        assert!(!register.is_out(&one));
        assert!(register.has(&other, &given("a", 999, NOW)));
        // What others show, or nobody has given, takes nothing back.
        let before = register.clone();
        assert_eq!(register.supersede(&one, "a", "77", NOW), 0);
        assert_eq!(
            register.supersede(&other, "a", &given("a", 5, NOW).serial, NOW),
            0
        );
        assert_eq!(register, before);
        let more = register.give(one, given("a", 7777, NOW));
        assert_eq!(more, Err(Full::OfOne));
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        let mut register = Register::default();
        register
            .give(holder("n1", "u1"), given("a", 1, NOW))
            .unwrap();
        register
            .give(holder("n2", "u2"), given("a", 2, NOW))
            .unwrap();
        register.revoke(&holder("n2", "u2"), NOW);
        register.see(&BTreeSet::from([holder("n1", "u1")]));
        let text = register.to_text();
        assert_eq!(Register::from_text(&text).unwrap(), register);
        for (broken, part) in [
            (text.replace("testudo-register 1", "x"), "does not begin"),
            (text.replace('!', "?"), "line 5"),
            (text.replace(&format!("{NOW:x}"), "x"), "line 3"),
            (format!("{HEAD}\nca a 01-1\n"), "of no node"),
            (text.replace(" seen", " heard"), "line 2"),
            (format!("{text}more\n"), "line 6"),
        ] {
            let error = Register::from_text(&broken).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
