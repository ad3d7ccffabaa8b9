//! Requests and answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use testudo_model::{PeerId, Phase, UnixTime};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Request {
    /// Read something.
    Get {
        /// What.
        get: Gettable,
    },
    /// Have something done.
    Do {
        /// What.
        #[serde(rename = "do")]
        action: Actions,
        /// With whom; all peers if absent.
        #[serde(default)]
        peer: Option<PeerId>,
    },
}

/// What can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gettable {
    /// Every tunnel with all its fields.
    Tunnels,
    /// The agent as a whole.
    Status,
    /// Every counter of dropped packets and messages.
    Drops,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actions {
    /// New keys for the children.
    RekeyChild,
    /// New keys for the IKE SAs.
    RekeyIke,
    /// New IKE SAs, authenticated anew.
    Reauthenticate,
}

/// The answer. Exactly one of the optional parts is there when `ok`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Answer to `tunnels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<Vec<TunnelView>>,
    /// Answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusView>,
    /// Answer to `drops`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<Drops>,
    /// Answer to an action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionResult>,
}

impl Response {
    /// A refusal.
    pub fn error(text: impl Into<String>) -> Response {
        Response {
            error: Some(text.into()),
            ..Response::default()
        }
    }
}

/// What an action set off. The result shows in the tunnels' counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResult {
    /// SAs or peers for which it was begun.
    pub begun: u32,
    /// Why it was not begun for others.
    pub refused: Vec<String>,
}

/// One tunnel: a peer and an address family. The first fields are those of Kube-OVN's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelView {
    /// The node that answers.
    pub node: String,
    /// The peer.
    pub peer: PeerId,
    /// The local device that carries the packets.
    pub interface: String,
    /// `vxlan`, `geneve`, `udp` or `routed`.
    pub tunnel_type: String,
    /// Our address.
    #[serde(rename = "localIP")]
    pub local_ip: Option<IpAddr>,
    /// The peer's address.
    #[serde(rename = "remoteIP")]
    pub remote_ip: Option<IpAddr>,
    /// `IPv4` or `IPv6`.
    pub address_family: String,
    /// Packet mark, where the datapath uses one.
    pub mark: Option<String>,
    /// Our certificate's subject.
    pub local_certificate: Option<String>,
    /// The CA that issued our certificate.
    #[serde(rename = "localCA")]
    pub local_ca: Option<String>,
    /// The peer's certificate's subject, proven.
    pub remote_certificate: Option<String>,
    /// The CA that issued the peer's certificate.
    #[serde(rename = "remoteCA")]
    pub remote_ca: Option<String>,
    /// When the peer's certificate ends.
    pub remote_certificate_not_after: Option<UnixTime>,
    /// Whether a pre-shared key is used; the key itself is never shown.
    #[serde(rename = "PSK")]
    pub psk: bool,
    /// The largest inner packet without fragments, bytes.
    #[serde(rename = "MTU")]
    pub mtu: Option<u32>,
    /// Policies that the kernel has for this peer now: XFRM policies; with the userspace datapath
    /// routing rules. `None`: it could not be asked.
    pub kernel_policies_installed: Option<u32>,
    /// Security associations that stand in the datapath now, both directions counted; with the kernel
    /// datapath, in the kernel.
    pub security_associations_installed: u32,
    /// Connections that are active: established IKE SAs.
    pub connections_active: u32,
    /// Whether packets can flow both ways.
    pub up: bool,
    /// How ESP travels: `ESP` or `UDP`.
    pub encapsulation: Option<String>,
    /// UDP is used because ESP was found to be filtered on the path, by this end or the peer.
    #[serde(default)]
    pub esp_filtered: bool,
    /// The IKE SA in use.
    pub ike: Option<IkeView>,
    /// The children, the one that sends first.
    pub children: Vec<ChildView>,
    /// Packets opened on all children there were.
    pub packets_in: u64,
    /// Packets sealed on all children there were.
    pub packets_out: u64,
    /// Bytes opened.
    pub bytes_in: u64,
    /// Bytes sealed.
    pub bytes_out: u64,
    /// Rekeys of children since the agent began.
    pub child_rekeys: u64,
    /// Rekeys of the IKE SA since the agent began.
    pub ike_rekeys: u64,
    /// Authentications since the agent began.
    pub authentications: u64,
    /// The last error, cleared when the tunnel comes up.
    pub last_error: Option<String>,
    /// When it happened.
    pub last_error_at: Option<UnixTime>,
}

/// An IKE SA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IkeView {
    /// SPI of the initiator, hex.
    pub initiator_spi: String,
    /// SPI of the responder, hex.
    pub responder_spi: String,
    /// Whether we began it.
    pub initiator: bool,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Whether a NAT was seen, or UDP is forced.
    pub nat: bool,
    /// The algorithms.
    pub suite: String,
    /// Age, seconds.
    pub age: u64,
}

/// A child: a pair of ESP SAs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildView {
    /// Its name with the peer.
    pub name: String,
    /// 0, or the CPU or queue that it is for.
    #[serde(default)]
    pub resource: u32,
    /// SPI of the packets that come in, hex.
    pub spi_in: String,
    /// SPI of the packets that leave, hex.
    pub spi_out: String,
    /// `transport` or `tunnel`.
    pub mode: String,
    /// What its packets are protected with: `AES_GCM_16_256`.
    #[serde(default)]
    pub cipher: String,
    /// Whether packets leave on it.
    pub sending: bool,
    /// Age, seconds.
    pub age: u64,
    /// Packets opened.
    pub packets_in: u64,
    /// Packets sealed.
    pub packets_out: u64,
    /// Bytes opened.
    pub bytes_in: u64,
    /// Bytes sealed.
    pub bytes_out: u64,
    /// The highest sequence number accepted.
    pub sequence_in: u64,
    /// The highest sequence number sent.
    pub sequence_out: u64,
    /// Our side's selectors.
    pub local: Vec<String>,
    /// The peer's side's selectors.
    pub remote: Vec<String>,
}

/// The agent as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// The node.
    pub node: String,
    /// The agent's process.
    pub pid: u32,
    /// The phase in force.
    pub phase: Phase,
    /// The roll-out step that the phase answers.
    pub rollout: u64,
    /// `user`, `kernel`, or `none` while it cannot be opened.
    pub datapath: String,
    /// Why it is not the kernel's, where `Auto` might have taken that.
    #[serde(default)]
    pub datapath_note: Option<String>,
    /// Tunnels that stand.
    pub tunnels_up: u32,
    /// Tunnels that should stand.
    pub tunnels_expected: u32,
    /// What pods' MTU may be at most.
    pub effective_mtu: Option<u32>,
    /// The rotation whose certificate is in use on all tunnels.
    pub rotation: u64,
    /// When our certificate ends.
    pub certificate_not_after: Option<UnixTime>,
    /// What is wrong now, a sentence each.
    pub problems: Vec<String>,
    /// Since when the store cannot be reached; what it said last is in force.
    #[serde(default)]
    pub store_away_since: Option<UnixTime>,
    /// Seconds since the agent began.
    pub uptime: u64,
}

/// Counters of what was dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Packets, by the datapath.
    pub datapath: BTreeMap<String, u64>,
    /// Messages, by the IKE engine.
    pub ike: BTreeMap<String, u64>,
    /// Negotiations that failed, by check.
    pub failures: BTreeMap<String, u64>,
    /// Datagrams and requests, by the agent.
    pub agent: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Request {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn requests_read_as_documented() {
        assert_eq!(
            request(r#"{"get":"tunnels"}"#),
            Request::Get {
                get: Gettable::Tunnels
            }
        );
        let rekey = Request::Do {
            action: Actions::RekeyChild,
            peer: Some(PeerId::new("n2").unwrap()),
        };
        assert_eq!(request(r#"{"do":"rekey-child","peer":"n2"}"#), rekey);
        for all in [r#"{"do":"rekey-ike"}"#, r#"{"do":"rekey-ike","peer":null}"#] {
            let Request::Do { action, peer } = request(all) else {
                panic!("{all}");
            };
            assert_eq!((action, peer), (Actions::RekeyIke, None));
        }
        assert!(serde_json::from_str::<Request>(r#"{"do":"format"}"#).is_err());
    }
}
