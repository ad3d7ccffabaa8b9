//! A peer in tunnel mode that has another address: its outbound SA is made anew there, with the
//! key that the kernel gives back.
//!
//! One key never has two outbound SAs. First no policy names the old one any more, then it goes,
//! then the new one comes, and last the policies name it; what is sent meanwhile is blocked.

use testudo_datapath::{DatapathError, Event};
use testudo_model::{ChildId, Encapsulation, PeerId, SaDirection, Spi};
use testudo_netlink::{XfrmDirection, XfrmListedSa, XfrmSa, XfrmSaId};

use crate::core::{Core, refused};
use crate::pairs::misuse;
use crate::sa;

const OPERATION: &str = "rebind a pair";

/// How far the sequence numbers of an outbound SA are advanced when it is made anew with the same
/// key: more than the packets of threads that had looked their way up before the policies blocked,
/// and were sealed after the last number was read. No sequence number comes twice (RFC 4303
/// 3.3.3). The IV that the kernel makes of it is another matter: see [`Core::make_anew`].
const SEQUENCE_LEAP: u64 = 1 << 20;

impl Core {
    /// An outbound SA at the peer's new address.
    ///
    /// The kernel's IV for AES-GCM (seqiv) is the sequence number XOR a number that it draws for
    /// each SA. So two SAs with one key share no IV only with high probability: while both have
    /// numbers below 2^n they share some with a probability of 2^(n-64). This is why the child
    /// wants a successor, with a fresh key, at once; it wants one too when it is refused here.
    pub(crate) fn make_anew(
        &mut self,
        child: ChildId,
        old: &XfrmSaId,
        to: &Encapsulation,
    ) -> Result<(), DatapathError> {
        let done = self.move_outbound(child, old, to);
        if self.pairs.get(&child).is_some_and(|pair| !pair.lost) {
            self.events.push(Event::SoftLimit { child });
        }
        done
    }

    fn move_outbound(
        &mut self,
        child: ChildId,
        old: &XfrmSaId,
        to: &Encapsulation,
    ) -> Result<(), DatapathError> {
        let Some(pair) = self.pairs.get(&child) else {
            return Err(misuse(OPERATION, child, "is not installed"));
        };
        let (peer, before) = (pair.peer.clone(), pair.in_use());
        may_be_made_anew(&self.read(OPERATION, child, old)?.sa)?;
        let place = self.bindings.stop_using(&peer, Spi(old.spi));
        let listed = match self.take_out(child, &peer, old, place.is_some()) {
            Ok(listed) => listed,
            Err(error) => {
                // It stands, alone, and goes on.
                self.own(*old, child, SaDirection::Outbound);
                if let (Some(place), Some(before)) = (place, before) {
                    self.bindings.use_again(&peer, place, before);
                    self.block_or_try_again(&peer);
                }
                return Err(error);
            }
        };
        let sa = advanced(listed, to);
        let added = self.make_room(&sa.id).and_then(|()| {
            let added = self.xfrm.add_sa(&sa);
            added.map_err(|e| refused(OPERATION, &e))
        });
        let Some(pair) = self.pairs.get_mut(&child) else {
            return added;
        };
        if let Err(error) = added {
            // Nothing has the key any more, and the policies block.
            pair.outbound = None;
            if !std::mem::replace(&mut pair.lost, true) {
                self.events.push(Event::SaLost { child });
            }
            return Err(error);
        }
        pair.encapsulation = *to;
        if let Some(outbound) = &mut pair.outbound {
            outbound.id = sa.id;
        }
        let after = pair.in_use();
        self.own(sa.id, child, SaDirection::Outbound);
        if let (Some(place), Some(after)) = (place, after) {
            self.bindings.use_again(&peer, place, after);
            // What fails here stays blocked and is tried again.
            self.block_or_try_again(&peer);
        }
        Ok(())
    }

    /// Removes the old SA when no policy names it any more; gives it as it was in the end.
    fn take_out(
        &mut self,
        child: ChildId,
        peer: &PeerId,
        old: &XfrmSaId,
        used: bool,
    ) -> Result<XfrmListedSa, DatapathError> {
        if used {
            self.sync_peer(peer)?;
        }
        let listed = self.read(OPERATION, child, old)?;
        may_be_made_anew(&listed.sa)?;
        self.delete_sa(old)?;
        Ok(listed)
    }
}

/// The SA at the other address. The kernel counts from 0 again, the key has done what it has done.
fn advanced(listed: XfrmListedSa, to: &Encapsulation) -> XfrmSa {
    let XfrmListedSa { mut sa, used } = listed;
    let less = |most: Option<u64>, used: u64| most.map(|most| most.saturating_sub(used).max(1));
    sa.limits.hard_bytes = less(sa.limits.hard_bytes, used.bytes);
    sa.limits.hard_packets = less(sa.limits.hard_packets, used.packets);
    sa.id.destination = to.remote();
    sa.encapsulation = sa::ports(to, XfrmDirection::Out);
    sa.replay.sent = sa.replay.sent.saturating_add(SEQUENCE_LEAP);
    sa
}

/// A kernel in lockdown gives zeros for keys: an SA with these would seal with a key that everybody
/// knows.
fn may_be_made_anew(sa: &XfrmSa) -> Result<(), DatapathError> {
    let refuse = |reason: &str| {
        Err(DatapathError::Refused {
            operation: OPERATION.into(),
            reason: format!("{reason}; the child wants a successor"),
        })
    };
    if !sa::has_keys(&sa.algorithm) {
        return refuse("the kernel does not give keys back (lockdown=confidentiality)");
    }
    let last = sa.replay.sent.saturating_add(SEQUENCE_LEAP);
    let end = match sa.replay.esn {
        true => u64::MAX,
        false => u32::MAX.into(),
    };
    match last < end {
        true => Ok(()),
        false => refuse("too few sequence numbers are left"),
    }
}

#[cfg(test)]
mod tests {
    use testudo_netlink::{XfrmAlgorithm, XfrmKey, XfrmSaUse};

    use super::*;
    use crate::probe::sample;

    #[test]
    fn no_sa_is_made_of_keys_that_the_kernel_hides() {
        let mut sa = sample(true, &[7; 36]);
        assert!(may_be_made_anew(&sa).is_ok());
        sa.algorithm = sample(true, &[0; 36]).algorithm;
        let error = may_be_made_anew(&sa).unwrap_err().to_string();
        assert!(error.contains("lockdown"), "{error}");
        // One key that is hidden is enough.
        for (cipher, integrity) in [(0, 1), (1, 0)] {
            sa.algorithm = XfrmAlgorithm::CipherAndIntegrity {
                cipher: "cbc(aes)".into(),
                cipher_key: XfrmKey::new(&[cipher; 32]),
                integrity: "hmac(sha256)".into(),
                integrity_key: XfrmKey::new(&[integrity; 32]),
                icv_bits: 128,
            };
            assert!(may_be_made_anew(&sa).is_err());
        }
        sa.algorithm = XfrmAlgorithm::None;
        assert!(may_be_made_anew(&sa).is_err());
    }

    #[test]
    fn sequence_numbers_leap_and_never_wrap() {
        let to = Encapsulation::None {
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.0.0.3".parse().unwrap(),
        };
        let mut sa = sample(true, &[7; 36]);
        sa.replay.sent = 41;
        sa.limits.hard_bytes = Some(1000);
        sa.limits.hard_packets = Some(40);
        let used = XfrmSaUse {
            packets: 41,
            bytes: 900,
            ..XfrmSaUse::default()
        };
        let moved = advanced(XfrmListedSa { sa, used }, &to);
        assert_eq!(moved.replay.sent, 41 + SEQUENCE_LEAP);
        assert_eq!(
            moved.limits.hard_bytes,
            Some(100),
            "of what the key may seal"
        );
        assert_eq!(
            moved.limits.hard_packets,
            Some(1),
            "none is no limit at all"
        );
        assert_eq!(moved.id.destination, to.remote());
        for (esn, sent) in [(false, u64::from(u32::MAX)), (true, u64::MAX)] {
            let mut sa = sample(true, &[7; 36]);
            sa.replay.esn = esn;
            sa.replay.sent = sent - SEQUENCE_LEAP - 1;
            assert!(may_be_made_anew(&sa).is_ok());
            sa.replay.sent += 1;
            assert!(may_be_made_anew(&sa).is_err());
        }
    }
}
