//! The parsers of what comes from the network before any key is known.

use testudo_wire::ike::{Chain, EncryptedLayout, Header, Message, Payload, parse_chain};
use testudo_wire::ip::IpHeader;
use testudo_wire::{esp, udp};

/// Any datagram. What is read of it means the same when it is written and read once more.
pub(crate) fn run(data: &[u8]) {
    let _ = Header::parse(data);
    let _ = udp::classify(data);
    let _ = IpHeader::parse(data);
    let _ = esp::Header::parse(data);
    let _ = esp::Trailer::parse(data);
    let Ok(message) = Message::parse(data) else {
        return;
    };
    if let Some(encrypted) = &message.encrypted {
        // GCM, and CBC with the three lengths of HMAC's check value.
        for (iv_len, icv_len) in [(8, 16), (16, 16), (16, 24), (16, 32)] {
            let layout = EncryptedLayout {
                iv_len,
                icv_len,
                block_len: if iv_len == 16 { 16 } else { 1 },
            };
            if let Ok(ranges) = encrypted.ranges(layout) {
                assert_eq!(ranges.icv.end, data.len());
                assert_eq!(ranges.aad.end, ranges.iv.start);
            }
        }
        // As if it were in clear.
        let _ = parse_chain(encrypted.first_inner, &data[encrypted.body.clone()]);
    }
    for parsed in &message.payloads {
        write_again(&parsed.payload);
    }
}

fn write_again(payload: &Payload) {
    let mut chain = Chain::new();
    let Ok(range) = chain.push(payload) else {
        return;
    };
    let Ok(again) = Payload::decode(payload.kind(), false, &chain.bytes()[range], 0) else {
        panic!("what was written cannot be read: {payload:?}");
    };
    // What the reader marked as not to be used is not written.
    let text = format!("{payload:?}");
    if !text.contains("unknown_attribute: true") && !text.contains("unknown: ") {
        assert_eq!(&again, payload);
    }
}
