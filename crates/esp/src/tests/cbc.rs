//! AES-CBC with HMAC-SHA2: RFC 3602's packets, what the MAC covers, refusals.

use testudo_crypto::{CBC_IV_LEN, Cbc, Cipher, EtmKey, EtmSuite, Integrity, Prf};

use super::SPI;
use crate::{
    DropReason, InboundParameters, InboundSa, MAX_HEAD_ROOM, MAX_TAIL_ROOM, OutboundParameters,
    OutboundSa, SoftLimits, cbc,
};

fn ciphers() -> impl Iterator<Item = (Cipher, EtmSuite)> {
    Cipher::all().filter_map(|cipher| match cipher {
        Cipher::Cbc(suite) => Some((cipher, suite)),
        Cipher::Gcm(_) => None,
    })
}

fn keymat(cipher: Cipher) -> Vec<u8> {
    (1..).take(cipher.keymat_len()).collect()
}

/// A pair of SAs whose first packet has number `after + 1`.
fn pair(cipher: Cipher, esn: bool, after: u64) -> (OutboundSa, InboundSa) {
    let keymat = &keymat(cipher)[..];
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
        OutboundSa::dangerous_starting_after(&out, after).unwrap(),
        InboundSa::starting_after(&inbound, after).unwrap(),
    )
}

fn seal(sa: &OutboundSa, payload: &[u8]) -> Vec<u8> {
    let head = sa.head_room();
    let mut packet = vec![0xee; head];
    packet.extend(payload);
    packet.resize(head + payload.len() + MAX_TAIL_ROOM, 0xee);
    let sealed = sa.seal(&mut packet, payload.len(), 4).unwrap();
    packet.truncate(sealed.len);
    packet
}

#[test]
fn every_payload_length_makes_the_round_trip() {
    for (cipher, suite) in ciphers() {
        for esn in [false, true] {
            let (out, inbound) = pair(cipher, esn, 0);
            assert_eq!(out.head_room(), MAX_HEAD_ROOM);
            for len in (0..100).chain([1400, 9000, 65_535]) {
                let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
                let mut packet = seal(&out, &payload);
                assert_eq!(packet.len(), out.sealed_len(len));
                let body = packet.len() - MAX_HEAD_ROOM - suite.integrity.icv_len();
                assert_eq!(body % CBC_IV_LEN, 0);
                assert!(body - len - 2 < CBC_IV_LEN);
                let opened = inbound.open(&mut packet).unwrap();
                assert_eq!(opened.next_header, 4);
                assert_eq!(packet[opened.payload], payload);
            }
        }
    }
}

/// RFC 4303 section 2.8: SPI, sequence number, IV and ciphertext, and behind them the high half
/// of an extended sequence number, which is not sent.
#[test]
fn the_icv_covers_what_the_rfc_says() {
    for (cipher, suite) in ciphers() {
        let prf = match suite.integrity {
            Integrity::HmacSha256_128 => Prf::HmacSha256,
            Integrity::HmacSha384_192 => Prf::HmacSha384,
            Integrity::HmacSha512_256 => Prf::HmacSha512,
        };
        // KEYMAT has the cipher's key in front (RFC 7296, 2.17).
        let auth = keymat(cipher).split_off(suite.cbc.key_len());
        for (esn, high) in [(false, &[][..]), (true, &[0, 0, 0, 7])] {
            let after = if esn { 7 << 32 } else { 0 };
            let (out, _) = pair(cipher, esn, after);
            let packet = seal(&out, b"some payload");
            let (covered, icv) = packet.split_at(packet.len() - suite.integrity.icv_len());
            let whole = prf.compute(&auth, &[covered, high]);
            assert_eq!(icv, &whole.as_bytes()[..icv.len()]);
            assert_eq!(packet[4..8], [0, 0, 0, 1]);
        }
    }
}

#[test]
fn whatever_is_changed_or_cut_or_repeated_is_dropped() {
    for (cipher, suite) in ciphers() {
        let (out, inbound) = pair(cipher, true, (1 << 32) - 2);
        let good = seal(&out, b"the payload");
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x40;
            assert!(inbound.open(&mut bad).is_err(), "byte {index}");
            let mut cut = good[..index].to_vec();
            assert!(inbound.open(&mut cut).is_err(), "cut to {index}");
        }
        let least = MAX_HEAD_ROOM + CBC_IV_LEN + suite.integrity.icv_len();
        assert_eq!(
            inbound.open(&mut good[..least - 1].to_vec()),
            Err(DropReason::TooShort)
        );
        let mut long = [&good[..], &[0; 16]].concat();
        assert_eq!(inbound.open(&mut long), Err(DropReason::BadIntegrity));
        // None of it has moved the window.
        assert!(inbound.open(&mut good.clone()).unwrap().first);
        assert_eq!(inbound.open(&mut good.clone()), Err(DropReason::Replayed));
        // Across the turn of the low half.
        for _ in 0..3 {
            assert!(inbound.open(&mut seal(&out, b"more")).is_ok());
        }
        assert_eq!(inbound.counters().sequence, (1 << 32) + 2);
    }
}

#[test]
fn the_two_ends_must_agree_on_esn_and_cipher() {
    let all: Vec<_> = ciphers().map(|(cipher, _)| cipher).collect();
    let ((out, _), (_, inbound)) = (pair(all[0], true, 0), pair(all[0], false, 0));
    let packet = seal(&out, b"payload");
    assert!(inbound.open(&mut packet.clone()).is_err());
    for other in &all[1..] {
        let (_, inbound) = pair(*other, true, 0);
        assert!(inbound.open(&mut packet.clone()).is_err());
    }
}

#[test]
fn keys_of_the_wrong_length_make_no_sa() {
    for (cipher, _) in ciphers() {
        for len in [0, 1, cipher.keymat_len() - 1, cipher.keymat_len() + 1] {
            let made = OutboundSa::new(&OutboundParameters {
                spi: SPI,
                cipher,
                keymat: &vec![0; len],
                esn: true,
                limits: SoftLimits::NONE,
            });
            assert!(made.is_err());
        }
    }
}

#[test]
fn no_two_packets_have_one_iv() {
    for (cipher, _) in ciphers() {
        let (out, _) = pair(cipher, true, 0);
        let ivs: std::collections::BTreeSet<_> = (0..100)
            .map(|_| seal(&out, b"same")[8..24].to_vec())
            .collect();
        assert_eq!(ivs.len(), 100);
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let byte = |pair: &[u32]| (pair[0] * 16 + pair[1]) as u8;
    digits.chunks(2).map(byte).collect()
}

/// RFC 3602 section 4, cases 5 to 8: transport and tunnel mode packets, without a MAC.
#[test]
fn rfc_3602_4_packets() {
    for (key, next_header, payload, packet) in RFC_3602 {
        let (payload, expected) = (unhex(payload), unhex(packet));
        let suite = EtmSuite {
            cbc: Cbc::Aes128,
            integrity: Integrity::HmacSha256_128,
        };
        let key = EtmKey::new(suite, &unhex(key), &[0; 32]).unwrap();
        let word = |at: usize| u32::from_be_bytes(expected[at..at + 4].try_into().unwrap());
        let numbers = (word(0), word(4).into(), false);
        let iv: [u8; CBC_IV_LEN] = expected[8..24].try_into().unwrap();
        let mut packet = vec![0xee; cbc::sealed_len(&key, payload.len())];
        packet[cbc::HEAD..][..payload.len()].copy_from_slice(&payload);
        let lengths = (payload.len(), 0);
        cbc::write_with(&key, iv, &mut packet, lengths, *next_header, numbers).unwrap();
        assert_eq!(packet[..packet.len() - 16], expected);
    }
}

/// Key, next header, payload; then SPI, sequence number, IV and ciphertext.
const RFC_3602: &[(&str, u8, &str, &str)] = &[
    (
        "90d382b410eeba7ad938c46cec1a82bf",
        1,
        "08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
         202122232425262728292a2b2c2d2e2f3031323334353637",
        "0000432100000001e96e8c08ab465763fd098d45dd3ff893f663c25d325c18c6a9453e194e120849
         a4870b66cc6b9965330013b4898dc856a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c
         538ab50c551b874aa269add047ad2d5913ac19b7cfbad4a6",
    ),
    (
        "90d382b410eeba7ad938c46cec1a82bf",
        1,
        "0800b5e8a80a0500a69c083d0b660e00777777777777777777777777",
        "000043210000000869d08df7d203329db093fc4924e5bd80f51995881ec4e0c4488987ce742e8109
         689bb379d2d750c0d915dca346a89f75",
    ),
    (
        "0123456789abcdef0123456789abcdef",
        4,
        "45000054090400004001f988c0a87b03c0a87bc808009f76a90a0100b49c083d02a2040008090a0b
         0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f30313233
         34353637",
        "0000876500000002f4e765244f6407adf13dc1380f673f37773b5241a4c449225e4f3ce5ed611b0c
         237ca96cf74a93013c1b0ea1a0cf70f8e4ecaec78ac53aad7a0f022b859243c647752e94a859352b
         8a4d4d2decd136e5c177f132ad3fbfb2201ac9904c74ee0a109e0ca1e4dfe9d5a100b842f1c22f0d",
    ),
    (
        "0123456789abcdef0123456789abcdef",
        4,
        "45000044090c00004001f990c0a87b03c0a87bc80800d63caa0a0200c69c083da3de0300ffffffff
         ffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "000087650000000585d47224b5f3dd5d2101d4ea8dffab2215b92683819596a8047232cc00f7048f
         e45318e11f8a0f62ede3c3fc61203bb50f980a08c9843fd3a1b06d5c07ff9639b7eb7dfb3512e5de
         435e7207ed971ef3d2726d9b5ef6affc6d17a0decbb13892",
    ),
];
