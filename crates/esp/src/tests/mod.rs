//! Vectors, properties, threads.

mod cbc;
mod packets;
mod sequence;
mod table;
mod vectors;
mod window;

use testudo_crypto::{Cipher, DangerousSeededRandom, Random};

use crate::{
    DEFAULT_REPLAY_WINDOW, HEAD_ROOM, InboundParameters, InboundSa, OutboundParameters, OutboundSa,
    Sealed, SoftLimits, TAIL_ROOM,
};

const SPI: u32 = 0x0102_0304;
const KEYMAT: [u8; 36] = [7; 36];

/// A pair of SAs whose first packet has number `after + 1`.
fn pair_after(esn: bool, limits: SoftLimits, after: u64) -> (OutboundSa, InboundSa) {
    let cipher = Cipher::AES_256_GCM;
    let out = OutboundParameters {
        spi: SPI,
        cipher,
        keymat: &KEYMAT,
        esn,
        limits,
    };
    let inbound = InboundParameters {
        spi: SPI,
        cipher,
        keymat: &KEYMAT,
        esn,
        replay_window: DEFAULT_REPLAY_WINDOW,
    };
    (
        OutboundSa::dangerous_starting_after(&out, after).unwrap(),
        InboundSa::starting_after(&inbound, after).unwrap(),
    )
}

fn pair(esn: bool) -> (OutboundSa, InboundSa) {
    pair_after(esn, SoftLimits::NONE, 0)
}

/// A buffer with `payload` at its place.
fn buffer(payload: &[u8], tfc: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; HEAD_ROOM + payload.len() + tfc + TAIL_ROOM];
    buffer[HEAD_ROOM..HEAD_ROOM + payload.len()].copy_from_slice(payload);
    buffer
}

/// The sealed packet, cut to its length.
fn seal(sa: &OutboundSa, payload: &[u8]) -> (Vec<u8>, Sealed) {
    let mut packet = buffer(payload, 0);
    let sealed = sa.seal(&mut packet, payload.len(), 4).unwrap();
    packet.truncate(sealed.len);
    (packet, sealed)
}

fn shuffle<T>(items: &mut [T], random: &mut DangerousSeededRandom) {
    for end in (1..items.len()).rev() {
        items.swap(end, below(random, end as u64 + 1) as usize);
    }
}

fn below(random: &mut DangerousSeededRandom, bound: u64) -> u64 {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    u64::from_be_bytes(bytes) % bound
}
