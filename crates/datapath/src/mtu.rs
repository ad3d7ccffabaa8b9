//! How much ESP adds to a packet.

use testudo_model::{Cipher, Encapsulation, SaMode};

/// SPI and sequence number (RFC 4303 2).
const ESP_HEADER: u32 = 8;
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

/// Bytes around what is encrypted, and what that is a multiple of: the cipher's block, at least
/// four (RFC 4303 2.4).
fn sizes(cipher: Cipher) -> (u32, u32) {
    // Each is below 64.
    let around = ESP_HEADER + (cipher.iv_len() + cipher.icv_len()) as u32;
    (around, cipher.block_len().max(4) as u32)
}

/// The largest inner packet, IP header included, whose sealed packet fits `path_mtu` bytes.
pub fn inner_mtu(
    mode: SaMode,
    cipher: Cipher,
    encapsulation: &Encapsulation,
    path_mtu: u32,
) -> u32 {
    let (around, block) = sizes(cipher);
    let (ip, udp) = outer(encapsulation);
    let room = path_mtu.saturating_sub(ip + udp + around);
    let payload = (room / block * block).saturating_sub(ESP_TRAILER);
    match mode {
        SaMode::Tunnel => payload,
        SaMode::Transport if payload == 0 => 0,
        SaMode::Transport => payload + ip,
    }
}

/// The length of the IP packet that carries an inner packet of `inner` bytes.
pub fn outer_len(mode: SaMode, cipher: Cipher, encapsulation: &Encapsulation, inner: u32) -> u32 {
    let (around, block) = sizes(cipher);
    let (ip, udp) = outer(encapsulation);
    let payload = match mode {
        SaMode::Tunnel => inner,
        SaMode::Transport => inner.saturating_sub(ip),
    };
    ip + udp + around + (payload + ESP_TRAILER).next_multiple_of(block)
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
        for (mode, cipher) in
            Cipher::all().flat_map(|cipher| [(SaMode::Transport, cipher), (SaMode::Tunnel, cipher)])
        {
            for encapsulation in [raw(v4), raw(v6), udp(v4), udp(v6)] {
                for path in [1280, 1400, 1500, 9000, 9001, 9002, 9003] {
                    let inner = inner_mtu(mode, cipher, &encapsulation, path);
                    assert!(outer_len(mode, cipher, &encapsulation, inner) <= path);
                    assert!(outer_len(mode, cipher, &encapsulation, inner + 1) > path);
                }
                assert_eq!(inner_mtu(mode, cipher, &encapsulation, 20), 0);
            }
        }
        let gcm = |mode, path| inner_mtu(mode, Cipher::AES_256_GCM, &path, 1500);
        assert_eq!(gcm(SaMode::Transport, raw(v4)), 1466);
        assert_eq!(gcm(SaMode::Transport, udp(v4)), 1458);
        assert_eq!(gcm(SaMode::Tunnel, raw(v4)), 1446);
        // AES-CBC-256 with HMAC-SHA2-512-256: 8 + 16 + 32 around whole blocks.
        let worst = Cipher::all().nth(4).unwrap();
        assert_eq!(worst.name(), "AES_CBC_256/HMAC_SHA2_512_256");
        assert_eq!(inner_mtu(SaMode::Tunnel, worst, &raw(v4), 1500), 1422);
    }
}
