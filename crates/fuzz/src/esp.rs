//! ESP packets: any bytes, and real ones with something changed.

use testudo_crypto::Cipher;
use testudo_esp::{
    InboundParameters, InboundSa, MAX_TAIL_ROOM, OutboundParameters, OutboundSa, SoftLimits,
};

use crate::bytes::{Source, damage};

const SPI: u32 = 0x1234_5678;
/// As long as any cipher takes.
const KEYMAT: [u8; 96] = [0x5a; 96];

/// Any bytes, then real packets in any order, some changed. Only what was sealed is opened, and
/// once.
pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let choice = source.u8();
    let esn = choice & 1 != 0;
    let cipher = match (choice >> 4 & 7, choice & 2) {
        (0 | 7, 0) => Cipher::AES_256_GCM,
        (0 | 7, _) => Cipher::AES_128_GCM,
        // The six of AES-CBC.
        (n, _) => Cipher::all()
            .nth(usize::from(n) + 1)
            .expect("there are eight ciphers"),
    };
    // Near the places where 32 bits wrap.
    let start = match choice >> 2 & 3 {
        0 => 0,
        1 => u64::from(u32::MAX) - 8,
        2 if esn => (7 << 32) - 3,
        _ => 100_000,
    };
    let (out, inbound) = pair(cipher, esn, start);
    let any = data.to_vec();
    assert!(inbound.open(&mut any.clone()).is_err());

    let mut sent: Vec<Sent> = Vec::new();
    for _ in 0..64 {
        if source.is_empty() {
            break;
        }
        match source.u8() % 4 {
            0 => sent.extend(send(&mut source, &out)),
            1 if !sent.is_empty() => {
                let at = source.below(sent.len());
                deliver(&inbound, &mut sent[at]);
            }
            2 if !sent.is_empty() => {
                let at = source.below(sent.len());
                let mut packet = sent[at].packet.clone();
                damage(&mut source, &mut packet);
                if packet != sent[at].packet {
                    let bad = inbound.open(&mut packet);
                    assert!(bad.is_err(), "a changed packet was opened");
                }
            }
            _ => {
                let len = usize::from(source.u8());
                let mut packet = SPI.to_be_bytes().to_vec();
                packet.extend(source.take(len));
                assert!(inbound.open(&mut packet).is_err(), "a forged packet");
            }
        }
    }
    let counters = inbound.counters();
    let opened = sent.iter().filter(|s| s.opened).count();
    assert_eq!(counters.packets, opened as u64);
}

struct Sent {
    packet: Vec<u8>,
    payload: Vec<u8>,
    next_header: u8,
    sequence: u64,
    opened: bool,
}

fn pair(cipher: Cipher, esn: bool, start: u64) -> (OutboundSa, InboundSa) {
    let keymat = &KEYMAT[..cipher.keymat_len()];
    let out = OutboundParameters {
        spi: SPI,
        cipher,
        keymat,
        esn,
        limits: SoftLimits::NONE,
    };
    let inbound = InboundParameters {
        spi: SPI,
        cipher,
        keymat,
        esn,
        replay_window: 64,
    };
    (
        OutboundSa::dangerous_starting_after(&out, start).expect("key material of its length"),
        InboundSa::starting_after(&inbound, start).expect("key material of its length"),
    )
}

fn send(source: &mut Source<'_>, out: &OutboundSa) -> Option<Sent> {
    let (len, tfc) = (usize::from(source.u8()), usize::from(source.u8() % 64));
    let next_header = source.u8();
    let payload = source.take(len).to_vec();
    let head = out.head_room();
    let mut packet = vec![0; head + payload.len() + tfc + MAX_TAIL_ROOM];
    packet[head..head + payload.len()].copy_from_slice(&payload);
    // A counter that has run out is the only reason: there is room.
    let sealed = out
        .seal_padded(&mut packet, payload.len(), tfc, next_header)
        .ok()?;
    packet.truncate(sealed.len);
    Some(Sent {
        packet,
        payload,
        next_header,
        sequence: sealed.sequence,
        opened: false,
    })
}

fn deliver(inbound: &InboundSa, sent: &mut Sent) {
    let mut packet = sent.packet.clone();
    let Ok(opened) = inbound.open(&mut packet) else {
        return;
    };
    assert!(!sent.opened, "a packet was opened twice");
    sent.opened = true;
    assert_eq!(opened.sequence, sent.sequence);
    assert_eq!(opened.next_header, sent.next_header);
    // Padding against traffic analysis stays: the inner packet knows its length.
    assert!(packet[opened.payload].starts_with(&sent.payload));
}
