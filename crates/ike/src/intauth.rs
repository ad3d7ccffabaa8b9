//! What AUTH covers of the IKE_INTERMEDIATE exchanges (RFC 9242, 3.3.2).

use testudo_wire::ike::{Chain, Header, Message, PayloadType};

use crate::keys::IkeKeys;

/// The MACs over all IKE_INTERMEDIATE messages so far, each over the one before and its message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IntAuth {
    initiator: Vec<u8>,
    responder: Vec<u8>,
    /// Exchanges that are complete.
    pub(crate) done: usize,
}

impl IntAuth {
    /// Takes in a message of ours. `keys` are those that protect it.
    pub(crate) fn add_ours(&mut self, keys: &IkeKeys, header: &Header, chain: &Chain) {
        let covered = covered(whole(header, chain.first()), chain.bytes());
        self.add(keys, header, &keys.sk_p.0, &covered);
    }

    /// Takes in a message of the peer's: `message`, parsed from `datagram`, of which `inner` are
    /// the payloads inside, beginning with one of type `first`. Of a fragmented message it is the
    /// datagram that completed it.
    pub(crate) fn add_theirs(
        &mut self,
        keys: &IkeKeys,
        (datagram, message): (&[u8], &Message<'_>),
        first: PayloadType,
        inner: &[u8],
    ) {
        let encrypted = message.encrypted.as_ref();
        let sent_whole = encrypted
            .filter(|e| e.fragment.is_none())
            .and_then(|e| datagram.get(..e.body.start));
        let before = match sent_whole {
            // As it was sent, with whatever is in its reserved bits or clear before it.
            Some(bytes) => bytes.to_vec(),
            None => whole(&message.header, first),
        };
        let covered = covered(before, inner);
        self.add(keys, &message.header, &keys.sk_p.1, &covered);
    }

    /// IntAuth_iN = prf (SK_piN, IntAuth_iN-1 | IntAuth_iNA | IntAuth_iNP), and for the responder
    /// with SK_pr.
    fn add(
        &mut self,
        keys: &IkeKeys,
        header: &Header,
        sk_p: &testudo_crypto::SecretBytes,
        covered: &[u8],
    ) {
        let side = if header.flags.initiator {
            &mut self.initiator
        } else {
            &mut self.responder
        };
        let mac = keys.prf(sk_p.as_bytes(), &[side, covered]);
        *side = mac.as_bytes().to_vec();
        self.done += usize::from(header.flags.response);
    }

    /// The message ID of IKE_AUTH.
    pub(crate) fn auth_message_id(&self) -> u32 {
        // At most seven are done.
        1 + self.done as u32
    }

    /// IntAuth: what is signed after all else; nothing where there was no such exchange
    /// (lesson L41).
    pub(crate) fn octets(&self) -> Vec<u8> {
        if self.done == 0 {
            return Vec::new();
        }
        let id = self.auth_message_id().to_be_bytes();
        [&self.initiator[..], &self.responder, &id].concat()
    }
}

/// The header and the Encrypted payload's generic header of a message that is not cut.
fn whole(header: &Header, first: PayloadType) -> Vec<u8> {
    let header = Header {
        next_payload: PayloadType::SK,
        ..*header
    };
    [&header.to_bytes()[..], &[first.0, 0, 0, 0]].concat()
}

/// A | P: both lengths in A count no IV, padding, pad length and ICV.
fn covered(mut before: Vec<u8>, inner: &[u8]) -> Vec<u8> {
    let generic = before.len() - 4;
    let length = u32::try_from(before.len() + inner.len()).unwrap_or(u32::MAX);
    before[24..28].copy_from_slice(&length.to_be_bytes());
    let length = u16::try_from(4 + inner.len()).unwrap_or(u16::MAX);
    before[generic + 2..].copy_from_slice(&length.to_be_bytes());
    before.extend(inner);
    before
}

#[cfg(test)]
mod tests {
    use testudo_crypto::{Cipher, KeMethod, Prf, SecretBytes, hmac_sha256};
    use testudo_wire::ike::{ExchangeType, Notify, NotifyType, Payload};

    use super::*;
    use crate::addke::Rounds;
    use crate::keys::{Seeds, Suite};
    use crate::message;

    fn keys(initiator: bool) -> IkeKeys {
        let suite = Suite {
            cipher: Cipher::AES_256_GCM,
            prf: Prf::HmacSha256,
            ke: KeMethod::X25519,
            additional: Rounds::default(),
        };
        let seeds = Seeds {
            nonce_i: &[1; 32],
            nonce_r: &[2; 32],
            spi_i: 3,
            spi_r: 4,
        };
        let seed = SecretBytes::new(vec![5; 32]);
        IkeKeys::derive(suite, &seed, &seeds, initiator, false)
            .ok()
            .unwrap()
    }

    fn header(initiator: bool, id: u32) -> Header {
        Header::new(
            3,
            4,
            ExchangeType::IKE_INTERMEDIATE,
            initiator,
            !initiator,
            id,
        )
    }

    fn payload(len: usize) -> Payload {
        Payload::Notify(Notify::new(NotifyType::COOKIE, vec![9; len]))
    }

    /// The header with its Adjusted Length, the Encrypted payload's generic header with its
    /// Adjusted Payload Length, and the payload inside, written out (RFC 9242, 3.3.2).
    fn by_hand(initiator: bool, id: u8, len: u8) -> Vec<u8> {
        let flags = if initiator { 0x08 } else { 0x20 };
        let mut out = vec![0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4];
        out.extend([46, 0x20, 43, flags, 0, 0, 0, id]);
        out.extend([0, 0, 0, 28 + 4 + 8 + len]);
        out.extend([41, 0, 0, 4 + 8 + len]);
        out.extend([0, 0, 0, 8 + len, 0, 0, 0x40, 0x06]);
        out.extend(vec![9; len.into()]);
        out
    }

    #[test]
    fn it_is_that_of_the_rfc() {
        let keys = keys(true);
        let mut auth = IntAuth::default();
        assert_eq!(auth.octets(), b"");
        assert_eq!(auth.auth_message_id(), 1);
        let (pi, pr) = (keys.sk_p.0.as_bytes(), keys.sk_p.1.as_bytes());
        let (mut i, mut r) = (Vec::new(), Vec::new());
        let mut other = super::tests::keys(false);
        for (id, len) in [(1, 10), (2, 20)] {
            let chain = message::inner(&[payload(len.into())]).ok().unwrap();
            auth.add_ours(&keys, &header(true, id.into()), &chain);
            let answer = header(false, id.into());
            let sent = message::protect_chain(&mut other, &answer, &chain)
                .ok()
                .unwrap();
            let parsed = Message::parse(sent.whole()).unwrap();
            let message = (sent.whole(), &parsed);
            auth.add_theirs(&keys, message, chain.first(), chain.bytes());
            i = hmac_sha256(pi, &[&i, &by_hand(true, id, len)]).to_vec();
            r = hmac_sha256(pr, &[&r, &by_hand(false, id, len)]).to_vec();
        }
        assert_eq!(auth.octets(), [&i[..], &r, &[0, 0, 0, 3]].concat());
        assert_eq!(auth.auth_message_id(), 3);
    }

    #[test]
    fn fragments_count_as_the_message_that_they_are_of() {
        let mut theirs = keys(false);
        theirs.largest = Some(200);
        let chain = message::inner(&[payload(1000)]).ok().unwrap();
        let header = header(false, 1);
        let sent = message::protect_chain(&mut theirs, &header, &chain)
            .ok()
            .unwrap();
        assert!(sent.iter().count() > 5);
        let keys = keys(true);
        let mut whole = IntAuth::default();
        let covered = covered(super::whole(&header, chain.first()), chain.bytes());
        whole.add(&keys, &header, &keys.sk_p.1, &covered);
        for datagram in sent.iter() {
            let parsed = Message::parse(datagram).unwrap();
            let mut cut = IntAuth::default();
            cut.add_theirs(&keys, (datagram, &parsed), chain.first(), chain.bytes());
            assert_eq!(cut, whole);
        }
    }
}
