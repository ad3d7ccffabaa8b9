//! SAs as the kernel is given them.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use testudo_model::{
    Cipher, Encapsulation, InboundSaSpec, OutboundSaSpec, SaLimits, SaMode, TrafficSelector,
};
use testudo_netlink::{
    PortMatch, XfrmAlgorithm, XfrmDirection, XfrmEncapsulation, XfrmKey, XfrmLimits, XfrmMode,
    XfrmReplay, XfrmSa, XfrmSaId, XfrmSelector,
};

use crate::probe::Facts;

/// The largest window that the kernel takes (XFRMA_REPLAY_ESN_MAX), packets.
const LARGEST_WINDOW: u32 = 4096;
const UDP: u8 = 17;
/// What one key seals at most. With 2^48 blocks of AES, in GCM and in CBC, an attacker who sees all
/// tells them from random ones with a probability of 2^-33 (blocks squared over 2^129). Half of them
/// are those of so many bytes, the others the two that each packet may cost beside.
const MOST_BYTES: u64 = 1 << 51;
const MOST_PACKETS: u64 = 1 << 46;
/// A peer that has moved is told of once in this time, not at each packet.
const MAPPING_INTERVAL: Duration = Duration::from_secs(1);

/// What an SA gets beside what was negotiated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extras {
    pub(crate) facts: Facts,
    pub(crate) reqid: u32,
    /// The overlay's port: nothing else may come out of an SA in transport mode.
    pub(crate) overlay: Option<u16>,
    pub(crate) output_mark: Option<(u32, u32)>,
    /// The longest that an SA stands.
    pub(crate) hard_time: Option<Duration>,
}

/// The SA that opens what a peer sends.
pub(crate) fn inbound(spec: &InboundSaSpec, extras: &Extras) -> XfrmSa {
    let (local, remote) = (spec.encapsulation.local(), spec.encapsulation.remote());
    let udp = matches!(spec.encapsulation, Encapsulation::Udp { .. });
    XfrmSa {
        id: XfrmSaId {
            destination: local,
            spi: spec.spi.0,
            mark: (0, 0),
        },
        source: remote,
        reqid: extras.reqid,
        mode: mode(spec.mode),
        selector: inbound_selector(spec, extras.overlay),
        algorithm: algorithm(spec.cipher, spec.keymat.as_bytes()),
        encapsulation: ports(&spec.encapsulation, XfrmDirection::In),
        replay: XfrmReplay {
            // An ESN window of 0 is refused.
            window: spec.replay_window.clamp(32, LARGEST_WINDOW),
            esn: spec.esn,
            ..XfrmReplay::default()
        },
        direction: extras.facts.directions.then_some(XfrmDirection::In),
        limits: XfrmLimits {
            // The second packet is told of, which says that the first one was good.
            soft_packets: Some(1),
            hard_time: extras.hard_time,
            ..XfrmLimits::default()
        },
        output_mark: None,
        if_id: 0,
        cpu: None,
        mapping_interval: udp.then_some(MAPPING_INTERVAL),
    }
}

/// The SA that seals what we send, or what one CPU of ours sends.
pub(crate) fn outbound(spec: &OutboundSaSpec, extras: &Extras, cpu: Option<u32>) -> XfrmSa {
    XfrmSa {
        id: XfrmSaId {
            destination: spec.encapsulation.remote(),
            spi: spec.spi.0,
            mark: (0, 0),
        },
        source: spec.encapsulation.local(),
        reqid: extras.reqid,
        mode: mode(spec.mode),
        // Policies say what goes in.
        selector: None,
        algorithm: algorithm(spec.cipher, spec.keymat.as_bytes()),
        encapsulation: ports(&spec.encapsulation, XfrmDirection::Out),
        replay: XfrmReplay {
            window: outbound_window(extras.facts),
            esn: spec.esn,
            ..XfrmReplay::default()
        },
        direction: extras.facts.directions.then_some(XfrmDirection::Out),
        limits: outbound_limits(&spec.limits, spec.esn, extras.hard_time),
        output_mark: extras.output_mark,
        if_id: 0,
        cpu,
        mapping_interval: None,
    }
}

/// An agent that runs replaces an SA at its soft limits. One that does not come back leaves it to the
/// kernel, which removes it at its hard ones: no sequence number and no key does more than it may.
fn outbound_limits(limits: &SaLimits, esn: bool, hard_time: Option<Duration>) -> XfrmLimits {
    let most_packets = match esn {
        true => MOST_PACKETS,
        // The last sequence number (RFC 4303 3.3.3); the kernel seals none past it either, but
        // does not say so.
        false => u32::MAX.into(),
    };
    let before = |most: u64| most / 4 * 3;
    XfrmLimits {
        soft_bytes: Some(limits.soft_bytes.min(before(MOST_BYTES))),
        soft_packets: Some(limits.soft_packets.min(before(most_packets))),
        hard_bytes: Some(MOST_BYTES),
        hard_packets: Some(most_packets),
        hard_time,
        ..XfrmLimits::default()
    }
}

/// Kernels that know directions want no window on the way out; older ones want one with ESN.
pub(crate) fn outbound_window(facts: Facts) -> u32 {
    u32::from(!facts.directions)
}

/// Whether an SA that was found is one that seals. Kernels that do not tell directions have been
/// given a window of 1 with these.
pub(crate) fn is_outbound(sa: &XfrmSa) -> bool {
    match sa.direction {
        Some(direction) => direction == XfrmDirection::Out,
        None => sa.replay.window <= 1,
    }
}

/// Whether each key of an SA that was read is there. A kernel that hides them gives zeros.
pub(crate) fn has_keys(algorithm: &XfrmAlgorithm) -> bool {
    let there = |key: &XfrmKey| key.as_bytes().iter().any(|byte| *byte != 0);
    match algorithm {
        XfrmAlgorithm::Aead { key, .. } => there(key),
        XfrmAlgorithm::CipherAndIntegrity {
            cipher_key,
            integrity_key,
            ..
        } => there(cipher_key) && there(integrity_key),
        XfrmAlgorithm::None => false,
    }
}

/// UDP's ports as they are on the wire.
pub(crate) fn ports(
    encapsulation: &Encapsulation,
    direction: XfrmDirection,
) -> Option<XfrmEncapsulation> {
    let Encapsulation::Udp { local, remote } = encapsulation else {
        return None;
    };
    let (source, destination) = match direction {
        XfrmDirection::Out => (local, remote),
        _ => (remote, local),
    };
    Some(XfrmEncapsulation {
        source_port: source.port(),
        destination_port: destination.port(),
    })
}

fn mode(mode: SaMode) -> XfrmMode {
    match mode {
        SaMode::Transport => XfrmMode::Transport,
        SaMode::Tunnel => XfrmMode::Tunnel,
    }
}

/// Names and keys as the kernel has them: an AEAD's key is followed by its salt (RFC 4106 8.1).
fn algorithm(cipher: Cipher, keymat: &[u8]) -> XfrmAlgorithm {
    match cipher {
        Cipher::Gcm(_) => XfrmAlgorithm::Aead {
            name: "rfc4106(gcm(aes))".into(),
            key: XfrmKey::new(keymat),
            icv_bits: 128,
        },
        Cipher::Cbc(_) => {
            let at = cipher.encryption_len().min(keymat.len());
            let (cipher_key, integrity_key) = keymat.split_at(at);
            // RFC 4868: the key is as long as the hash, the check value half of it.
            let integrity = match cipher.integrity_len() {
                48 => "hmac(sha384)",
                64 => "hmac(sha512)",
                _ => "hmac(sha256)",
            };
            let icv_bits = u32::try_from(cipher.integrity_len() * 4).expect("hashes are short");
            XfrmAlgorithm::CipherAndIntegrity {
                cipher: "cbc(aes)".into(),
                cipher_key: XfrmKey::new(cipher_key),
                integrity: integrity.into(),
                integrity_key: XfrmKey::new(integrity_key),
                icv_bits,
            }
        }
    }
}

/// What may come out of an inbound SA, where one selector says it; where the negotiated ones are
/// more than one, policies say it alone.
fn inbound_selector(spec: &InboundSaSpec, overlay: Option<u16>) -> Option<XfrmSelector> {
    let transport = spec.mode == SaMode::Transport;
    let (mut source, destination, protocol, destination_port) = match overlay {
        // In transport mode the packet's addresses are those on the wire.
        Some(port) if transport => {
            let (local, remote) = (spec.encapsulation.local(), spec.encapsulation.remote());
            let port = PortMatch::exactly(port);
            (IpNet::from(remote), IpNet::from(local), UDP, port)
        }
        _ => {
            let ([local], [remote]) = (spec.local.as_slice(), spec.remote.as_slice()) else {
                return None;
            };
            let protocol = local.protocol.max(remote.protocol);
            (net(remote)?, net(local)?, protocol, PortMatch::ANY)
        }
    };
    if transport && matches!(spec.encapsulation, Encapsulation::Udp { .. }) {
        // What a NAT made of the source address stays on the packet.
        source = IpNet::new(source.addr(), 0).ok()?.trunc();
    }
    Some(XfrmSelector {
        source,
        destination,
        protocol,
        source_port: PortMatch::ANY,
        destination_port,
    })
}

/// The prefix that holds exactly a selector's addresses, if there is one.
fn net(selector: &TrafficSelector) -> Option<IpNet> {
    let bits = match (selector.first, selector.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => return None,
    };
    let net = IpNet::new(selector.first, u8::try_from(bits).ok()?).ok()?;
    (net.network() == selector.first && net.broadcast() == selector.last).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> TrafficSelector {
        let mut selector = TrafficSelector::prefix(first.parse::<IpAddr>().unwrap().into());
        selector.last = last.parse().unwrap();
        selector
    }

    #[test]
    fn a_range_that_is_a_prefix_is_one() {
        let prefix = |first, last| net(&range(first, last)).map(|net| net.to_string());
        assert_eq!(prefix("10.0.0.0", "10.0.0.255").unwrap(), "10.0.0.0/24");
        assert_eq!(prefix("10.0.0.7", "10.0.0.7").unwrap(), "10.0.0.7/32");
        assert_eq!(prefix("0.0.0.0", "255.255.255.255").unwrap(), "0.0.0.0/0");
        assert_eq!(prefix("fd00::", "fd00::ffff").unwrap(), "fd00::/112");
        assert_eq!(prefix("10.0.0.1", "10.0.0.2"), None);
        assert_eq!(prefix("10.0.0.0", "10.0.0.254"), None);
    }

    fn spec(mode: SaMode, encapsulation: Encapsulation, side: &str) -> InboundSaSpec {
        let prefix = |net: &str| vec![TrafficSelector::prefix(net.parse().unwrap())];
        InboundSaSpec {
            child: testudo_model::ChildId(1),
            peer: "b".to_owned().try_into().unwrap(),
            spi: testudo_model::Spi(0x1234_5678),
            cipher: Cipher::AES_256_GCM,
            keymat: testudo_crypto::SecretBytes::new(vec![7; 36]),
            esn: true,
            replay_window: 100_000,
            mode,
            encapsulation,
            local: prefix("10.244.1.0/24"),
            remote: prefix(side),
        }
    }

    #[test]
    fn of_an_inbound_sa_comes_what_was_negotiated_and_of_an_overlays_its_packets_alone() {
        let ends = Encapsulation::None {
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.0.0.2".parse().unwrap(),
        };
        let udp = Encapsulation::Udp {
            local: "10.0.0.1:4500".parse().unwrap(),
            remote: "10.0.0.2:1111".parse().unwrap(),
        };
        let shown = |mode, encapsulation, overlay| {
            let spec = spec(mode, encapsulation, "10.244.2.0/24");
            inbound_selector(&spec, overlay).unwrap().to_string()
        };
        let tunnel = shown(SaMode::Tunnel, ends, Some(6081));
        assert_eq!(tunnel, "src 10.244.2.0/24 dst 10.244.1.0/24");
        let overlay = shown(SaMode::Transport, ends, Some(6081));
        assert_eq!(
            overlay,
            "src 10.0.0.2/32 dst 10.0.0.1/32 proto 17 dport 6081"
        );
        let behind_nat = shown(SaMode::Transport, udp, Some(6081));
        assert_eq!(
            behind_nat,
            "src 0.0.0.0/0 dst 10.0.0.1/32 proto 17 dport 6081"
        );
        let extras = Extras {
            facts: Facts::default(),
            reqid: 1,
            overlay: None,
            output_mark: None,
            hard_time: None,
        };
        let made = inbound(&spec(SaMode::Tunnel, udp, "10.244.2.0/24"), &extras);
        assert_eq!(made.replay.window, LARGEST_WINDOW);
        let ports = made.encapsulation.unwrap();
        assert_eq!((ports.source_port, ports.destination_port), (1111, 4500));
    }

    #[test]
    fn a_successor_is_wanted_before_an_sa_must_end() {
        let limits = |soft_bytes, soft_packets, esn| {
            let soft = SaLimits {
                soft_bytes,
                soft_packets,
            };
            outbound_limits(&soft, esn, None)
        };
        for esn in [false, true] {
            let never = limits(u64::MAX, u64::MAX, esn);
            assert!(never.soft_bytes < never.hard_bytes);
            assert!(never.soft_packets < never.hard_packets);
            assert_eq!(never.hard_bytes, Some(MOST_BYTES));
            let asked = limits(1000, 10, esn);
            assert_eq!(
                (asked.soft_bytes, asked.soft_packets),
                (Some(1000), Some(10))
            );
        }
        assert_eq!(limits(1, 1, false).hard_packets, Some(u32::MAX.into()));
        // All blocks: of bytes, of what does not fill one, and of each packet's tag.
        assert_eq!(MOST_BYTES / 16 + 2 * MOST_PACKETS, 1 << 48);
    }

    #[test]
    fn each_cipher_has_the_kernels_name_and_its_keys() {
        for cipher in Cipher::all() {
            let keymat: Vec<u8> = (0..cipher.keymat_len()).map(|i| i as u8).collect();
            match algorithm(cipher, &keymat) {
                XfrmAlgorithm::Aead { key, .. } => {
                    assert!(matches!(cipher, Cipher::Gcm(_)));
                    assert_eq!(key.as_bytes(), keymat);
                }
                XfrmAlgorithm::CipherAndIntegrity {
                    cipher_key,
                    integrity_key,
                    icv_bits,
                    ..
                } => {
                    let bits = usize::from(cipher.key_bits());
                    assert_eq!(cipher_key.as_bytes().len() * 8, bits);
                    assert_eq!(integrity_key.as_bytes().len() * 4, icv_bits as usize);
                    let all = [cipher_key.as_bytes(), integrity_key.as_bytes()].concat();
                    assert_eq!(all, keymat);
                }
                XfrmAlgorithm::None => panic!("{cipher:?} has no name"),
            }
        }
    }
}
