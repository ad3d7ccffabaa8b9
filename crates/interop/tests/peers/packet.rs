//! Echo requests and answers, made by hand.

use std::net::IpAddr;

use testudo_wire::ip::{Checksum, IpHeader, OuterHeader, protocol, pseudo_header};

/// An echo request.
pub fn echo(from: IpAddr, to: IpAddr, sequence: u16) -> Vec<u8> {
    let v4 = from.is_ipv4();
    let (kind, number) = if v4 {
        (8, protocol::ICMP)
    } else {
        (128, protocol::ICMPV6)
    };
    let mut body = vec![kind, 0, 0, 0, 0x7e, 0x57];
    body.extend(sequence.to_be_bytes());
    body.extend([0xa5; 56]);
    let mut sum = if v4 {
        Checksum::new()
    } else {
        pseudo_header(from, to, number, body.len())
    };
    sum.add(&body);
    let sum = sum.finish().to_be_bytes();
    body[2..4].copy_from_slice(&sum);
    let header = OuterHeader::new(from, to, number);
    let mut packet = vec![0; header.len()];
    header.write(&mut packet, body.len()).unwrap();
    packet.extend(body);
    packet
}

/// The number of the echo request that a packet answers.
pub fn answer(packet: &[u8], from: IpAddr, to: IpAddr) -> Option<u16> {
    let header = IpHeader::parse(packet).ok()?;
    let (at, number) = behind_header(from.is_ipv4());
    let ours = header.source == from && header.destination == to;
    ours.then(|| answer_body(packet.get(at..)?, number))?
}

/// Where the body of a packet begins, and the number of its protocol.
pub fn behind_header(v4: bool) -> (usize, u8) {
    match v4 {
        true => (20, protocol::ICMP),
        false => (40, protocol::ICMPV6),
    }
}

/// The same for a packet's body, as transport mode carries it.
pub fn answer_body(body: &[u8], number: u8) -> Option<u16> {
    let kind = match number {
        protocol::ICMP => 0,
        protocol::ICMPV6 => 129,
        _ => return None,
    };
    let ours = body.first() == Some(&kind)
        && body.get(4..6) == Some(&[0x7e, 0x57])
        && body.get(8..)?.starts_with(&[0xa5; 56]);
    let number = body.get(6..8)?;
    ours.then(|| u16::from_be_bytes([number[0], number[1]]))
}
