//! UDP encapsulation of ESP and IKE on port 4500 (RFC 3948), and plain UDP headers.

use core::net::IpAddr;

use crate::ip::{protocol, pseudo_header};

/// The port of IKE without encapsulation.
pub const IKE_PORT: u16 = 500;
/// The port of encapsulated ESP and of IKE with the non-ESP marker.
pub const NAT_T_PORT: u16 = 4500;
/// Stands before IKE on port 4500, where ESP has its SPI (RFC 3948, 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// The whole of a NAT keepalive (RFC 3948, 2.3).
pub const KEEPALIVE: [u8; 1] = [0xff];
/// Bytes of a UDP header.
pub const HEADER_LEN: usize = 8;

/// What a datagram on port 4500 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulated<'a> {
    /// A NAT keepalive: to be dropped without a word.
    Keepalive,
    /// An IKE message, the marker taken off.
    Ike(&'a [u8]),
    /// An ESP packet: SPI first, and not 0. [`crate::esp::Header::parse`] checks the rest.
    Esp(&'a [u8]),
    /// Too short to be any of them.
    Short,
}

/// Tells keepalive, IKE and ESP apart (RFC 3948, 2).
pub fn classify(datagram: &[u8]) -> Encapsulated<'_> {
    if datagram == KEEPALIVE {
        return Encapsulated::Keepalive;
    }
    match datagram.split_first_chunk::<4>() {
        None => Encapsulated::Short,
        Some((&NON_ESP_MARKER, ike)) => Encapsulated::Ike(ike),
        Some(_) => Encapsulated::Esp(datagram),
    }
}

/// A UDP header with a checksum of 0, which RFC 3948, 2.1 asks for. None when the datagram would
/// be longer than 65535 bytes.
pub fn header(
    source_port: u16,
    destination_port: u16,
    payload_len: usize,
) -> Option<[u8; HEADER_LEN]> {
    let length = u16::try_from(payload_len.checked_add(HEADER_LEN)?).ok()?;
    let mut out = [0; HEADER_LEN];
    out[0..2].copy_from_slice(&source_port.to_be_bytes());
    out[2..4].copy_from_slice(&destination_port.to_be_bytes());
    out[4..6].copy_from_slice(&length.to_be_bytes());
    Some(out)
}

/// Writes the checksum of a whole UDP datagram, header first, which IPv6 needs where zero is not
/// agreed on (RFC 8200, 8.1). Nothing is done when the header is not whole or the families differ.
pub fn write_checksum(datagram: &mut [u8], source: IpAddr, destination: IpAddr) {
    if datagram.len() < HEADER_LEN || source.is_ipv4() != destination.is_ipv4() {
        return;
    }
    datagram[6..8].fill(0);
    let mut sum = pseudo_header(source, destination, protocol::UDP, datagram.len());
    sum.add(datagram);
    let value = match sum.finish() {
        // 0 means "no checksum": its twin is sent instead (RFC 768).
        0 => 0xffff,
        value => value,
    };
    datagram[6..8].copy_from_slice(&value.to_be_bytes());
}
