//! Doors for a fuzzer: what is inside an encrypted message, and how much an engine holds.
//!
//! Only with the feature `fuzzing`, which no program of ours asks for: [`reseal`] and [`seal`]
//! speak as an authenticated peer would that has lost its mind.

use testudo_wire::ike::{EncryptedLayout, HEADER_LEN, Header, Message, PayloadType, Sealing};

use crate::engine::Engine;
use crate::keys::IkeKeys;
use crate::message;
use crate::sa::{IkeSa, State};

/// What an engine holds; all zero once it has no peers and nobody waits for anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// IKE SAs in any state.
    pub sas: usize,
    /// Their SPIs.
    pub spis: usize,
    /// Children in any state.
    pub children: usize,
    /// Their SPIs.
    pub child_spis: usize,
    /// Half-open SAs, as counted.
    pub half_open: usize,
    /// IKE_SA_INIT requests that are remembered.
    pub inits: usize,
    /// Deadlines.
    pub timers: usize,
}

/// Counts what `engine` holds.
pub fn sizes(engine: &Engine) -> Sizes {
    Sizes {
        sas: engine.sas.len(),
        spis: engine.by_spi.len(),
        children: engine.children.len(),
        child_spis: engine.by_spi_in.len(),
        half_open: engine.half_open_total,
        inits: engine.inits.len(),
        timers: engine.timers.len(),
    }
}

/// Opens `datagram`, which `sender` made for `receiver`, lets `change` change its header, the
/// type of its first payload and its payloads, and seals it again with the sender's keys.
/// `None`: it is not encrypted, or not under keys that both hold.
pub fn reseal(
    sender: &mut Engine,
    receiver: &Engine,
    datagram: &[u8],
    change: impl FnOnce(&mut Header, u8, Vec<u8>) -> (u8, Vec<u8>),
) -> Option<Vec<u8>> {
    let parsed = Message::parse(datagram).ok()?;
    let mut header = parsed.header;
    let (theirs, ours) = if header.flags.initiator {
        (header.responder_spi, header.initiator_spi)
    } else {
        (header.initiator_spi, header.responder_spi)
    };
    let id = *receiver.by_spi.get(&theirs)?;
    let keys = keys_of(receiver.sas.get(&id)?)?;
    let plain = message::unprotect(keys, datagram, &parsed).ok()?;
    let bytes = plain.inner().ok()?.to_vec();
    let (first, bytes) = change(&mut header, plain.first.0, bytes);
    let id = *sender.by_spi.get(&ours)?;
    let keys = keys_of_mut(sender.sas.get_mut(&id)?)?;
    seal_raw(keys, header, first, &bytes)
}

/// A message that `sender` never meant to send: its newest IKE SA's header with this exchange,
/// message ID and direction, and these payloads, the first of type `first`.
pub fn seal(
    sender: &mut Engine,
    exchange: u8,
    message_id: u32,
    response: bool,
    first: u8,
    payloads: &[u8],
) -> Option<Vec<u8>> {
    let sa = sender
        .sas
        .values_mut()
        .rev()
        .find(|sa| keys_of(sa).is_some())?;
    let header = if response {
        sa.answer_header(exchange.into(), message_id)
    } else {
        sa.request_header(exchange.into(), message_id)
    };
    seal_raw(keys_of_mut(sa)?, header, first, payloads)
}

fn keys_of(sa: &IkeSa) -> Option<&IkeKeys> {
    match &sa.state {
        State::IntermediateSent(s) => Some(&s.keys),
        State::AuthSent(s) => Some(&s.keys),
        State::HalfOpen(s) => Some(&s.keys),
        State::Refusing(s) => Some(&s.keys),
        State::Established(s) => Some(&s.keys),
        _ => None,
    }
}

fn keys_of_mut(sa: &mut IkeSa) -> Option<&mut IkeKeys> {
    match &mut sa.state {
        State::IntermediateSent(s) => Some(&mut s.keys),
        State::AuthSent(s) => Some(&mut s.keys),
        State::HalfOpen(s) => Some(&mut s.keys),
        State::Refusing(s) => Some(&mut s.keys),
        State::Established(s) => Some(&mut s.keys),
        _ => None,
    }
}

/// One SK payload around any bytes at all, padded as the cipher needs it.
fn seal_raw(keys: &mut IkeKeys, mut header: Header, first: u8, payloads: &[u8]) -> Option<Vec<u8>> {
    let EncryptedLayout {
        iv_len,
        icv_len,
        block_len,
    } = keys.layout();
    let text_len = (payloads.len() + 1).next_multiple_of(block_len);
    let length = u16::try_from(4 + iv_len + text_len + icv_len).ok()?;
    header.next_payload = PayloadType::SK;
    header.length = u32::try_from(HEADER_LEN).ok()? + u32::from(length);
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend([first, 0]);
    bytes.extend(length.to_be_bytes());
    let iv = bytes.len()..bytes.len() + iv_len;
    let plaintext = iv.end..iv.end + text_len;
    let icv = plaintext.end..plaintext.end + icv_len;
    bytes.resize(icv.end, 0);
    bytes[plaintext.start..plaintext.start + payloads.len()].copy_from_slice(payloads);
    bytes[plaintext.end - 1] = (text_len - payloads.len() - 1) as u8;
    let sealing = Sealing {
        aad: 0..iv.start,
        bytes,
        iv,
        plaintext,
        icv,
    };
    message::seal(keys, sealing).ok()
}
