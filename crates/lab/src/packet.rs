//! What a frame on the underlay is: ESP, IKE, a protected flow in clear, or something else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::layout::Layout;

const ETHERNET: usize = 14;
const UDP: u8 = 17;
const ESP: u8 = 50;
const IKE_PORT: u16 = 500;
const NAT_PORT: u16 = 4500;
/// IPv6 extension headers that are walked over, at most.
const EXTENSIONS: usize = 8;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    /// ESP alone: IP protocol 50.
    Esp,
    /// ESP in UDP 4500.
    EspInUdp,
    /// IKE on port 500 or 4500, and NAT keepalives.
    Ike,
    /// A packet of a protected flow, readable by everyone.
    ClearProtected,
    /// IP that is not protected: host traffic, ICMP.
    Other,
    /// No IP, or neighbour discovery.
    Link,
}

/// A frame as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Source of the outer IP header.
    pub source: Option<IpAddr>,
    /// Destination of the outer IP header.
    pub destination: Option<IpAddr>,
    /// What it carries.
    pub carries: Carries,
}

/// Tells frames apart for one lab.
#[derive(Debug, Clone)]
pub struct Classifier {
    overlay_port: Option<u16>,
    nodes: Vec<IpAddr>,
    pods: Vec<IpNet>,
}

impl Classifier {
    /// For the flows of this layout.
    pub fn new(layout: &Layout) -> Self {
        Self {
            overlay_port: layout.overlay_port,
            nodes: layout
                .nodes
                .iter()
                .flat_map(|node| node.addresses.clone())
                .collect(),
            pods: layout.cluster_cidrs.clone(),
        }
    }

    /// Looks at an Ethernet frame.
    pub fn frame(&self, bytes: &[u8]) -> Frame {
        let link = Frame {
            source: None,
            destination: None,
            carries: Carries::Link,
        };
        let Some((kind, packet)) = ethernet(bytes) else {
            return link;
        };
        let parsed = match kind {
            0x0800 => ipv4(packet),
            0x86dd => ipv6(packet),
            _ => return link,
        };
        let Some(ip) = parsed else { return link };
        Frame {
            source: Some(ip.source),
            destination: Some(ip.destination),
            carries: self.carries(&ip),
        }
    }

    fn carries(&self, ip: &Ip<'_>) -> Carries {
        if ip.protocol == ESP {
            return Carries::Esp;
        }
        let udp = (ip.protocol == UDP && ip.first_fragment)
            .then(|| udp(ip.payload))
            .flatten();
        if let Some((source, destination, payload)) = udp {
            if source == NAT_PORT || destination == NAT_PORT {
                // RFC 3948: four zero bytes mark IKE, a single 0xff is a keepalive, the rest
                // begins with an SPI.
                return match payload {
                    [0, 0, 0, 0, ..] => Carries::Ike,
                    [_, _, _, _, ..] => Carries::EspInUdp,
                    _ => Carries::Ike,
                };
            }
            if source == IKE_PORT || destination == IKE_PORT {
                return Carries::Ike;
            }
            if Some(destination) == self.overlay_port
                && self.nodes.contains(&ip.source)
                && self.nodes.contains(&ip.destination)
            {
                return Carries::ClearProtected;
            }
        }
        // Without an overlay no address of a pod may be seen at all: what a pod sends to a host
        // leaves under its node's address.
        if self.overlay_port.is_none() && (self.is_pod(ip.source) || self.is_pod(ip.destination)) {
            return Carries::ClearProtected;
        }
        if ip.destination.is_multicast() || is_discovery(ip) {
            return Carries::Link;
        }
        Carries::Other
    }

    fn is_pod(&self, address: IpAddr) -> bool {
        self.pods.iter().any(|cidr| cidr.contains(&address))
    }
}

struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    first_fragment: bool,
    payload: &'a [u8],
}

fn ethernet(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let kind = u16::from_be_bytes([*bytes.get(12)?, *bytes.get(13)?]);
    Some((kind, bytes.get(ETHERNET..)?))
}

fn ipv4(packet: &[u8]) -> Option<Ip<'_>> {
    let header = packet.get(..20)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let address = |at: usize| {
        let octets: [u8; 4] = header[at..at + 4].try_into().expect("four bytes of twenty");
        IpAddr::V4(Ipv4Addr::from(octets))
    };
    Some(Ip {
        source: address(12),
        destination: address(16),
        protocol: header[9],
        first_fragment: fragment == 0,
        payload: packet.get(length..)?,
    })
}

fn ipv6(packet: &[u8]) -> Option<Ip<'_>> {
    let header = packet.get(..40)?;
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16]
            .try_into()
            .expect("sixteen bytes of forty");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (source, destination) = (address(8), address(24));
    let mut protocol = header[6];
    let mut payload = &packet[40..];
    let mut first_fragment = true;
    for _ in 0..EXTENSIONS {
        let length = match (protocol, payload) {
            // Hop-by-hop, routing, destination options: length in units of 8 bytes after the first.
            (0 | 43 | 60, [_, units, ..]) => 8 + usize::from(*units) * 8,
            (44, [_, _, high, low, ..]) => {
                first_fragment &= u16::from_be_bytes([*high, *low]) >> 3 == 0;
                8
            }
            _ => break,
        };
        protocol = payload[0];
        payload = payload.get(length..)?;
    }
    Some(Ip {
        source,
        destination,
        protocol,
        first_fragment,
        payload,
    })
}

fn udp(payload: &[u8]) -> Option<(u16, u16, &[u8])> {
    let header = payload.get(..8)?;
    let source = u16::from_be_bytes([header[0], header[1]]);
    let destination = u16::from_be_bytes([header[2], header[3]]);
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // Ethernet pads short frames: what counts is UDP's own length.
    let body = payload.get(8..length.max(8)).unwrap_or(&payload[8..]);
    Some((source, destination, body))
}

/// Neighbour discovery: ICMPv6 types 133 to 137 (RFC 4861).
fn is_discovery(ip: &Ip<'_>) -> bool {
    ip.protocol == 58 && matches!(ip.payload.first(), Some(133..=137))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::spec::{LabSpec, Overlay};

    fn classifier(overlay: Overlay) -> Classifier {
        let mut spec = LabSpec::new("a", PathBuf::new());
        spec.overlay = overlay;
        Classifier::new(&Layout::new(&spec))
    }

    fn v4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let mut header = [0; 20];
        header[0] = 0x45;
        header[9] = protocol;
        header[12..16].copy_from_slice(&source);
        header[16..20].copy_from_slice(&destination);
        frame.extend(header);
        frame.extend(payload);
        frame
    }

    fn datagram(source: u16, destination: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = source.to_be_bytes().to_vec();
        bytes.extend(destination.to_be_bytes());
        bytes.extend(u16::try_from(body.len() + 8).unwrap().to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(body);
        bytes
    }

    const N1: [u8; 4] = [172, 18, 0, 1];
    const N2: [u8; 4] = [172, 18, 0, 2];

    #[test]
    fn udp_4500_is_esp_or_ike_by_its_first_bytes() {
        let classifier = classifier(Overlay::Vxlan);
        let carries = |body: &[u8]| {
            classifier
                .frame(&v4(N1, N2, UDP, &datagram(4500, 4500, body)))
                .carries
        };
        assert_eq!(carries(&[0, 0, 1, 0, 9]), Carries::EspInUdp);
        assert_eq!(carries(&[0, 0, 0, 0, 9]), Carries::Ike);
        assert_eq!(carries(&[0xff]), Carries::Ike);
        assert_eq!(
            classifier.frame(&v4(N1, N2, ESP, &[0; 8])).carries,
            Carries::Esp
        );
    }

    #[test]
    fn the_overlay_between_nodes_is_protected_and_nothing_else() {
        let classifier = classifier(Overlay::Vxlan);
        let to = |port| v4(N1, N2, UDP, &datagram(40_000, port, b"x"));
        assert_eq!(classifier.frame(&to(4789)).carries, Carries::ClearProtected);
        assert_eq!(classifier.frame(&to(4790)).carries, Carries::Other);
        let elsewhere = v4(N1, [9, 9, 9, 9], UDP, &datagram(40_000, 4789, b"x"));
        assert_eq!(classifier.frame(&elsewhere).carries, Carries::Other);
    }

    #[test]
    fn without_an_overlay_pod_addresses_are_protected() {
        let classifier = classifier(Overlay::Routed);
        let pod = [10, 244, 2, 11];
        assert_eq!(
            classifier.frame(&v4(N1, pod, 1, &[8])).carries,
            Carries::ClearProtected
        );
        assert_eq!(
            classifier.frame(&v4(pod, N1, 1, &[8])).carries,
            Carries::ClearProtected
        );
        assert_eq!(
            classifier.frame(&v4(N1, N2, 1, &[8])).carries,
            Carries::Other
        );
    }

    #[test]
    fn cut_frames_are_link_noise() {
        let classifier = classifier(Overlay::Vxlan);
        let whole = v4(N1, N2, UDP, &datagram(1, 4789, b"x"));
        for length in 0..34 {
            assert_eq!(
                classifier.frame(&whole[..length]).carries,
                Carries::Link,
                "{length}"
            );
        }
    }
}
