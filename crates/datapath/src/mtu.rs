//! How much ESP with AES-GCM adds to a packet.

use testudo_model::{Encapsulation, SaMode};

/// SPI, sequence number, IV (RFC 4303 2, RFC 4106 3.1).
const ESP_HEAD: u32 = 16;
/// The ICV (RFC 4106 6).
const ESP_ICV: u32 = 16;
/// Pad length and next header.
const ESP_TRAILER: u32 = 2;
const UDP: u32 = 8;

fn outer(encapsulation: &Encapsulation) -> (u32, u32) {
    let ip = if encapsulation.remote().is_ipv4() {
        20
    } else {
        40
    };
    let udp = match encapsulation {
        Encapsulation::None { .. } => 0,
        Encapsulation::Udp { .. } => UDP,
    };
    (ip, udp)
}

/// The largest inner packet, IP header included, whose sealed packet fits `path_mtu` bytes.
pub fn inner_mtu(mode: SaMode, encapsulation: &Encapsulation, path_mtu: u32) -> u32 {
    let (ip, udp) = outer(encapsulation);
    let room = path_mtu.saturating_sub(ip + udp + ESP_HEAD + ESP_ICV);
    // The trailer ends on a multiple of four (RFC 4303 2.4).
    let payload = (room / 4 * 4).saturating_sub(ESP_TRAILER);
    match mode {
        SaMode::Tunnel => payload,
        SaMode::Transport if payload == 0 => 0,
        SaMode::Transport => payload + ip,
    }
}

/// The length of the IP packet that carries an inner packet of `inner` bytes.
pub fn outer_len(mode: SaMode, encapsulation: &Encapsulation, inner: u32) -> u32 {
    let (ip, udp) = outer(encapsulation);
    let payload = match mode {
        SaMode::Tunnel => inner,
        SaMode::Transport => inner.saturating_sub(ip),
    };
    ip + udp + ESP_HEAD + (payload + ESP_TRAILER).next_multiple_of(4) + ESP_ICV
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_inner_packet_fits_and_the_next_does_not() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let udp = |ip| Encapsulation::Udp {
            local: std::net::SocketAddr::new(ip, 4500),
            remote: std::net::SocketAddr::new(ip, 4500),
        };
        let raw = |ip| Encapsulation::None {
            local: ip,
            remote: ip,
        };
        for mode in [SaMode::Transport, SaMode::Tunnel] {
            for encapsulation in [raw(v4), raw(v6), udp(v4), udp(v6)] {
                for path in [1280, 1400, 1500, 9000, 9001, 9002, 9003] {
                    let inner = inner_mtu(mode, &encapsulation, path);
                    assert!(outer_len(mode, &encapsulation, inner) <= path);
                    assert!(outer_len(mode, &encapsulation, inner + 1) > path);
                }
                assert_eq!(inner_mtu(mode, &encapsulation, 20), 0);
            }
        }
        assert_eq!(inner_mtu(SaMode::Transport, &raw(v4), 1500), 1466);
        assert_eq!(inner_mtu(SaMode::Transport, &udp(v4), 1500), 1458);
        assert_eq!(inner_mtu(SaMode::Tunnel, &raw(v4), 1500), 1446);
    }
}
