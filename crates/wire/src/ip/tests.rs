use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::udp;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A UDP packet with right checksums.
fn udp_packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let outer = OuterHeader::new(source, destination, protocol::UDP);
    let mut packet = vec![0; outer.len()];
    outer
        .write(&mut packet, udp::HEADER_LEN + payload.len())
        .unwrap();
    let start = packet.len();
    packet.extend(udp::header(4000, 4789, payload.len()).unwrap());
    packet.extend(payload);
    udp::write_checksum(&mut packet[start..], source, destination);
    packet
}

fn pairs() -> [(IpAddr, IpAddr); 2] {
    [
        (ip("10.0.0.1"), ip("10.0.0.2")),
        (ip("fd00::1"), ip("fd00::2")),
    ]
}

/// An IPv6 packet with these extension headers: (its own number, its bytes without "next").
fn v6_with(extensions: &[(u8, Vec<u8>)], last: u8, payload: &[u8]) -> Vec<u8> {
    let first = extensions.first().map_or(last, |e| e.0);
    let mut body = Vec::new();
    for (index, (_, bytes)) in extensions.iter().enumerate() {
        body.push(extensions.get(index + 1).map_or(last, |e| e.0));
        body.extend(bytes);
    }
    body.extend(payload);
    let outer = OuterHeader::new(ip("fd00::1"), ip("fd00::2"), first);
    let mut packet = vec![0; 40];
    outer.write(&mut packet, body.len()).unwrap();
    packet.extend(body);
    packet
}

#[test]
fn a_known_checksum_comes_out() {
    // The example that textbooks have: 45 00 00 73 ... gives b861.
    let mut header = [
        0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
    ];
    let mut sum = Checksum::new();
    sum.add(&header);
    assert_eq!(sum.finish(), 0xb861);
    header[10..12].copy_from_slice(&[0xb8, 0x61]);
    let mut packet = header.to_vec();
    packet.resize(0x73, 0);
    let parsed = IpHeader::parse(&packet).unwrap();
    assert!(parsed.checksum_is_valid(&packet));
    packet[8] -= 1;
    assert!(!parsed.checksum_is_valid(&packet));
}

#[test]
fn headers_are_read_with_ports_and_checksums() {
    for (source, destination) in pairs() {
        let mut packet = udp_packet(source, destination, b"hello");
        let header = IpHeader::parse(&packet).unwrap();
        assert_eq!((header.source, header.destination), (source, destination));
        assert_eq!(header.protocol, protocol::UDP);
        assert_eq!(header.total_len, packet.len());
        assert_eq!(
            header.ports(&packet),
            Some(Ports {
                source: 4000,
                destination: 4789
            })
        );
        assert!(header.checksum_is_valid(&packet) && transport_is_valid(&packet, &header));
        assert_eq!(header.fragment, None);
        assert!(header.dont_fragment);
        *packet.last_mut().unwrap() ^= 1;
        assert!(!transport_is_valid(&packet, &header));
        assert!(write_transport(&mut packet, &header));
        assert!(transport_is_valid(&packet, &header));
        // A buffer longer than the packet is no error, a shorter one is.
        packet.push(0);
        assert_eq!(IpHeader::parse(&packet).unwrap(), header);
        packet.truncate(header.total_len - 1);
        assert_eq!(IpHeader::parse(&packet).unwrap_err().reason(), "bad_length");
    }
}

#[test]
fn wrong_lengths_and_versions_are_refused() {
    for (source, destination) in pairs() {
        let packet = udp_packet(source, destination, b"hello");
        for length in 0..packet.len() {
            assert!(IpHeader::parse(&packet[..length]).is_err());
        }
    }
    let mut packet = udp_packet(ip("10.0.0.1"), ip("10.0.0.2"), b"hello");
    for ihl in 0..5 {
        packet[0] = 0x40 | ihl;
        assert_eq!(IpHeader::parse(&packet).unwrap_err().reason(), "bad_length");
    }
    packet[0] = 0x4f;
    assert_eq!(IpHeader::parse(&packet).unwrap_err().reason(), "bad_length");
    for version in [0, 5, 7, 15] {
        packet[0] = version << 4;
        assert_eq!(IpHeader::parse(&packet).unwrap_err().reason(), "bad_value");
    }
    packet[0] = 0x45;
    for total in [0u16, 19, 34, 65535] {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        assert_eq!(IpHeader::parse(&packet).unwrap_err().reason(), "bad_length");
    }
}

#[test]
fn fragments_have_no_ports_but_the_first() {
    let mut packet = udp_packet(ip("10.0.0.1"), ip("10.0.0.2"), b"hello");
    packet[4..8].copy_from_slice(&[0x12, 0x34, 0x20, 0]);
    let first = IpHeader::parse(&packet).unwrap();
    assert_eq!(
        first.fragment,
        Some(Fragment {
            offset: 0,
            more: true,
            id: 0x1234
        })
    );
    assert!(first.ports(&packet).is_some());
    packet[6..8].copy_from_slice(&[0, 2]);
    let later = IpHeader::parse(&packet).unwrap();
    assert_eq!(
        later.fragment,
        Some(Fragment {
            offset: 16,
            more: false,
            id: 0x1234
        })
    );
    assert_eq!(later.ports(&packet), None);
    assert!(!write_transport(&mut packet, &later));
}

#[test]
fn ipv6_extension_headers_are_walked_within_a_bound() {
    let hop = (protocol::HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]);
    let options = (protocol::DESTINATION_OPTIONS, [&[1][..], &[0; 14]].concat());
    let fragment = |field: u16| {
        let bytes = [&[0][..], &field.to_be_bytes(), &[0, 0, 0, 9]].concat();
        (protocol::FRAGMENT, bytes)
    };
    let udp = udp::header(1, 2, 0).unwrap();
    let packet = v6_with(&[hop.clone(), options.clone()], protocol::UDP, &udp);
    let header = IpHeader::parse(&packet).unwrap();
    assert_eq!(
        (header.protocol, header.header_len, header.protocol_at),
        (protocol::UDP, 64, 48)
    );
    assert_eq!(
        header.ports(&packet),
        Some(Ports {
            source: 1,
            destination: 2
        })
    );

    let packet = v6_with(
        &[hop.clone(), fragment(1), options.clone()],
        protocol::UDP,
        &udp,
    );
    let header = IpHeader::parse(&packet).unwrap();
    assert_eq!(
        header.fragment,
        Some(Fragment {
            offset: 0,
            more: true,
            id: 9
        })
    );
    assert!(header.ports(&packet).is_some());

    // What follows a later fragment's header is data, not another header.
    let packet = v6_with(&[fragment(8), options.clone()], protocol::UDP, &udp);
    let header = IpHeader::parse(&packet).unwrap();
    assert_eq!(
        header.fragment,
        Some(Fragment {
            offset: 8,
            more: false,
            id: 9
        })
    );
    assert_eq!(
        (header.protocol, header.header_len),
        (protocol::DESTINATION_OPTIONS, 48)
    );

    // An atomic fragment is a whole packet (RFC 6946).
    let packet = v6_with(&[fragment(0)], protocol::UDP, &udp);
    assert_eq!(IpHeader::parse(&packet).unwrap().fragment, None);

    let eight = v6_with(&vec![hop.clone(); 8], protocol::UDP, &udp);
    assert!(IpHeader::parse(&eight).is_ok());
    let nine = v6_with(&vec![hop.clone(); 9], protocol::UDP, &udp);
    assert_eq!(IpHeader::parse(&nine).unwrap_err().reason(), "too_many");
    // An extension header that says it is longer than the packet.
    let packet = v6_with(
        &[(protocol::ROUTING, vec![255, 0, 0, 0, 0, 0, 0])],
        protocol::UDP,
        &udp,
    );
    assert_eq!(IpHeader::parse(&packet).unwrap_err().reason(), "truncated");
}

#[test]
fn transport_mode_there_and_back_gives_the_same_packet() {
    let packets = [
        udp_packet(ip("10.0.0.1"), ip("10.0.0.2"), b"hello"),
        udp_packet(ip("fd00::1"), ip("fd00::2"), b"hello"),
        v6_with(
            &[(protocol::HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0])],
            protocol::UDP,
            &udp::header(1, 2, 0).unwrap(),
        ),
    ];
    for packet in packets {
        let mut header = IpHeader::parse(&packet).unwrap();
        let before = header;
        let payload = header.payload().len();
        let mut changed = packet.clone();
        set_payload(&mut changed, &mut header, protocol::ESP, payload + 40).unwrap();
        changed.resize(header.total_len, 0);
        let read = IpHeader::parse(&changed).unwrap();
        assert_eq!(read, header);
        assert_eq!(
            (read.protocol, read.total_len),
            (protocol::ESP, packet.len() + 40)
        );
        assert!(read.checksum_is_valid(&changed));
        set_payload(&mut changed, &mut header, protocol::UDP, payload).unwrap();
        changed.truncate(header.total_len);
        assert_eq!(changed, packet);
        assert_eq!(header, before);
        assert!(set_payload(&mut changed, &mut header, protocol::UDP, 65536).is_err());
        assert!(set_payload(&mut changed[..10], &mut header, protocol::UDP, 1).is_err());
    }
}

#[test]
fn a_partial_checksum_is_completed() {
    for (source, destination) in pairs() {
        let good = udp_packet(source, destination, b"some payload of odd length.");
        let header = IpHeader::parse(&good).unwrap();
        let mut packet = good.clone();
        let at = header.header_len;
        let partial =
            pseudo_header(source, destination, protocol::UDP, header.payload().len()).partial();
        packet[at + 6..at + 8].copy_from_slice(&partial.to_be_bytes());
        assert!(complete_partial(&mut packet, at, 6));
        assert_eq!(packet, good);
        let length = packet.len();
        for (start, offset) in [
            (length + 1, 0),
            (length, 0),
            (at, length),
            (0, length - 1),
            (1, usize::MAX),
        ] {
            assert!(!complete_partial(&mut packet, start, offset));
        }
    }
}

#[test]
fn a_udp_checksum_is_never_zero() {
    for (source, destination) in pairs() {
        // The two bytes of payload that make the sum come out as zero.
        let mut packet = udp_packet(source, destination, &[0, 0]);
        let header = IpHeader::parse(&packet).unwrap();
        let at = header.header_len;
        packet.copy_within(at + 6..at + 8, at + 8);
        assert!(write_transport(&mut packet, &header));
        assert_eq!(packet[at + 6..at + 8], [0xff, 0xff]);
        packet[at + 6..at + 8].fill(0);
        udp::write_checksum(&mut packet[at..], source, destination);
        assert_eq!(packet[at + 6..at + 8], [0xff, 0xff]);
        assert!(transport_is_valid(&packet, &header));
        let partial = pseudo_header(source, destination, protocol::UDP, 10).partial();
        packet[at + 6..at + 8].copy_from_slice(&partial.to_be_bytes());
        assert!(complete_partial(&mut packet, at, 6));
        assert_eq!(packet[at + 6..at + 8], [0xff, 0xff]);
    }
}

/// A SYN with these options, padded with "no operation".
fn syn(source: IpAddr, destination: IpAddr, options: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[13] = 2;
    tcp.extend(options);
    tcp.resize(tcp.len().next_multiple_of(4), 1);
    tcp[12] = (tcp.len() / 4 * 16) as u8;
    let outer = OuterHeader::new(source, destination, protocol::TCP);
    let mut packet = vec![0; outer.len()];
    outer.write(&mut packet, tcp.len()).unwrap();
    packet.extend(tcp);
    let header = IpHeader::parse(&packet).unwrap();
    assert!(write_transport(&mut packet, &header));
    packet
}

#[test]
fn the_mss_of_a_syn_is_lowered_and_never_raised() {
    for (source, destination) in pairs() {
        // On an even byte and on an odd one.
        for options in [
            &[2, 4, 0x05, 0xb4][..],
            &[1, 2, 4, 0x05, 0xb4],
            &[8, 3, 0, 2, 4, 0x05, 0xb4],
        ] {
            let mut packet = syn(source, destination, options);
            let header = IpHeader::parse(&packet).unwrap();
            assert!(!clamp_mss(&mut packet, &header, 1520));
            assert!(clamp_mss(&mut packet, &header, 1400));
            assert!(transport_is_valid(&packet, &header));
            let at = header.header_len + 20 + options.len() - 2;
            let mss = u16::from_be_bytes([packet[at], packet[at + 1]]);
            assert_eq!(
                usize::from(mss),
                1400 - 20 - if header.is_v4() { 20 } else { 40 }
            );
            assert!(!clamp_mss(&mut packet, &header, 1400));
        }
        for options in [
            &[2, 0][..],
            &[2],
            &[2, 255, 5, 5],
            &[0, 2, 4, 5, 0xb4],
            &[8, 1],
            &[2, 3, 0xff],
        ] {
            let mut packet = syn(source, destination, options);
            let header = IpHeader::parse(&packet).unwrap();
            assert!(!clamp_mss(&mut packet, &header, 100));
        }
    }
}

#[test]
fn traffic_class_and_hop_limit_change_with_the_checksum() {
    for (source, destination) in pairs() {
        let mut packet = udp_packet(source, destination, b"x");
        let mut header = IpHeader::parse(&packet).unwrap();
        set_traffic_class(&mut packet, &mut header, 0xb9);
        assert!(decrement_hop_limit(&mut packet, &mut header));
        assert_eq!(IpHeader::parse(&packet).unwrap(), header);
        assert_eq!((header.traffic_class, header.hop_limit), (0xb9, 63));
        assert!(header.checksum_is_valid(&packet));
        header.hop_limit = 1;
        assert!(!decrement_hop_limit(&mut packet, &mut header));
    }
    // RFC 6040, figure 4: rows are the inner marks, columns the outer ones, in the order 0 to 3.
    let table = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for inner in 0..4u8 {
        for outer in 0..4u8 {
            let expected = table[usize::from(inner)][usize::from(outer)].map(|ecn: u8| 0xa0 | ecn);
            assert_eq!(
                decapsulate_ecn(0xa0 | inner, 0x40 | outer),
                expected,
                "{inner} {outer}"
            );
        }
    }
}

#[test]
fn too_big_tells_the_mtu_to_whom_it_may() {
    for (source, destination) in pairs() {
        let packet = udp_packet(source, destination, &[7; 3000]);
        let header = IpHeader::parse(&packet).unwrap();
        let message = too_big(&packet, &header, 1400, destination).unwrap();
        assert!(message.len() <= if header.is_v4() { 576 } else { 1280 });
        let read = IpHeader::parse(&message).unwrap();
        assert_eq!((read.source, read.destination), (destination, source));
        assert!(read.checksum_is_valid(&message));
        assert!(transport_is_valid(&message, &read));
        let icmp = &message[read.payload()];
        assert_eq!(icmp[4..8], [0, 0, 5, 120]);
        assert_eq!(icmp[8..], packet[..icmp.len() - 8]);
        if header.is_v4() {
            let mut sum = Checksum::new();
            sum.add(icmp);
            assert_eq!((icmp[0], icmp[1], sum.finish()), (3, 4, 0));
        } else {
            assert_eq!((icmp[0], icmp[1]), (2, 0));
        }
        // Never about an ICMP error, nor in the other family.
        assert_eq!(too_big(&message, &read, 1400, source), None);
        let other = if header.is_v4() {
            ip("::1")
        } else {
            ip("10.0.0.9")
        };
        assert_eq!(too_big(&packet, &header, 1400, other), None);
    }
}

#[test]
fn udp_encapsulation_is_told_apart() {
    use udp::Encapsulated::{Esp, Ike, Keepalive, Short};
    assert_eq!(udp::classify(&[0xff]), Keepalive);
    for short in [&[][..], &[0], &[0, 0], &[0, 0, 0], &[0xff, 0xff]] {
        assert_eq!(udp::classify(short), Short);
    }
    assert_eq!(udp::classify(&[0, 0, 0, 0, 9]), Ike(&[9]));
    assert_eq!(udp::classify(&[0, 0, 0, 0]), Ike(&[]));
    assert_eq!(udp::classify(&[0, 0, 1, 0]), Esp(&[0, 0, 1, 0]));
    assert_eq!(udp::header(1, 2, 65528), None);
    assert_eq!(udp::header(1, 2, usize::MAX), None);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(mut bytes in vec(any::<u8>(), 0..200), version in 0u8..8, mtu in any::<u16>()) {
        if let Some(first) = bytes.first_mut() {
            *first = (*first & 0x0f) | if version < 6 { version << 4 } else { 0x60 };
        }
        // Half the packets get a length that fits, so that more than the length check is seen.
        if mtu % 2 == 0 && bytes.len() >= 40 {
            let v6 = bytes[0] >> 4 == 6;
            let (place, said) = if v6 { (4, bytes.len() - 40) } else { (2, bytes.len()) };
            bytes[place..place + 2].copy_from_slice(&(said as u16).to_be_bytes());
            if v6 { bytes[6] = [0, 43, 44, 60][usize::from(bytes[6] % 4)]; }
        }
        let _ = udp::classify(&bytes);
        let Ok(mut header) = IpHeader::parse(&bytes) else { return Ok(()) };
        prop_assert!(header.header_len <= header.total_len && header.total_len <= bytes.len());
        prop_assert!(header.protocol_at < header.header_len);
        let _ = header.ports(&bytes);
        let _ = header.checksum_is_valid(&bytes);
        let _ = too_big(&bytes, &header, mtu, ip("10.0.0.1"));
        let _ = too_big(&bytes, &header, mtu, ip("fd00::1"));
        clamp_mss(&mut bytes, &header, mtu.into());
        if write_transport(&mut bytes, &header) {
            prop_assert!(transport_is_valid(&bytes, &header));
        }
        let _ = decrement_hop_limit(&mut bytes, &mut header);
        set_traffic_class(&mut bytes, &mut header, 3);
        let length = header.payload().len();
        set_payload(&mut bytes, &mut header, protocol::ESP, length).unwrap();
    }

    #[test]
    fn outer_headers_read_back(
        v4 in any::<Option<(u32, u32)>>(), v6 in any::<(u128, u128)>(), class in any::<u8>(),
        hop_limit in any::<u8>(), id in any::<u16>(), dont_fragment in any::<bool>(), payload in 0usize..2000,
    ) {
        let (source, destination) = match v4 {
            Some((a, b)) => (IpAddr::V4(Ipv4Addr::from_bits(a)), IpAddr::V4(Ipv4Addr::from_bits(b))),
            None => (IpAddr::V6(Ipv6Addr::from_bits(v6.0)), IpAddr::V6(Ipv6Addr::from_bits(v6.1))),
        };
        let outer = OuterHeader {
            source, destination, protocol: protocol::ESP, traffic_class: class, hop_limit, dont_fragment, id,
        };
        let mut packet = vec![0; outer.len() + payload];
        prop_assert_eq!(outer.write(&mut packet, payload).unwrap(), outer.len());
        let read = IpHeader::parse(&packet).unwrap();
        prop_assert_eq!((read.source, read.destination), (source, destination));
        prop_assert_eq!((read.traffic_class, read.hop_limit), (class, hop_limit));
        prop_assert_eq!(read.dont_fragment, dont_fragment || v4.is_none());
        prop_assert_eq!(read.payload(), outer.len()..packet.len());
        prop_assert!(read.checksum_is_valid(&packet));
        prop_assert!(outer.write(&mut packet, 65536).is_err());
        prop_assert!(outer.write(&mut [0; 19], 0).is_err());
    }

    #[test]
    fn an_updated_checksum_is_a_computed_one(mut words in vec(any::<u16>(), 2..40), place in any::<u8>(), new in any::<u16>()) {
        let sum_of = |words: &[u16]| {
            let mut sum = Checksum::new();
            words.iter().for_each(|w| sum.add(&w.to_be_bytes()));
            sum
        };
        words[0] |= 1; // not all zero, where two forms of zero would differ
        let before = sum_of(&words).finish();
        let place = 1 + usize::from(place) % (words.len() - 1);
        let after = update(before, words[place], new);
        words[place] = new;
        prop_assert_eq!(after, sum_of(&words).finish());
        let mut by_word = Checksum::new();
        words.iter().for_each(|w| by_word.add_u16(*w));
        prop_assert_eq!(by_word.finish(), after);
    }
}
