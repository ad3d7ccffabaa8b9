//! What the kernel tells on its own.

use std::net::IpAddr;

use super::selector::{self, XfrmSelector};
use super::{XfrmPolicy, XfrmPolicyKey, XfrmSaId, XfrmTemplate, abi, mark};
use crate::message::{Message, attributes, read_u32};

/// A notification, and whose request caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XfrmNotice {
    /// The port of the socket that asked for it ([`Xfrm::port`](super::Xfrm::port)); 0: the
    /// kernel itself.
    pub port: u32,
    /// What happened.
    pub event: XfrmEvent,
}

/// An SA in a notification. Its keys, which the kernel tells too, are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct XfrmSaName {
    /// Its name.
    pub id: XfrmSaId,
    /// Its request ID.
    pub reqid: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XfrmEvent {
    /// An SA has passed a limit.
    Expire {
        /// Which.
        sa: XfrmSaName,
        /// The hard one: the SA is gone.
        hard: bool,
    },
    /// A packet matched a policy whose SA is not there. The kernel has put a larval SA in its
    /// place, which swallows packets and raises no second event until it is removed.
    Acquire {
        /// The larval SA.
        id: XfrmSaId,
        /// The packet.
        selector: XfrmSelector,
        /// The first template of the policy.
        template: XfrmTemplate,
    },
    /// A good packet of an SA inside UDP came from another end than the SA's.
    Mapping {
        /// Which.
        sa: XfrmSaName,
        /// Where it comes from now.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// An SA was added or changed.
    SaSet(XfrmSaName),
    /// An SA was removed.
    SaDeleted(XfrmSaName),
    /// All SAs were removed.
    SasFlushed,
    /// A policy was added or changed.
    PolicySet(XfrmPolicy),
    /// A policy was removed.
    PolicyDeleted(XfrmPolicyKey),
    /// All policies were removed.
    PoliciesFlushed,
}

impl XfrmNotice {
    /// `None` for what is not about ESP or the main policies, and for what is malformed.
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let event = match message.kind {
            abi::EXPIRE => XfrmEvent::Expire {
                sa: sa_name(message.body, message.body, abi::EXPIRE_LEN)?,
                hard: *message.body.get(abi::SA_LEN)? != 0,
            },
            abi::ACQUIRE => acquire(message.body)?,
            abi::MAPPING => mapping(message.body)?,
            abi::NEWSA | abi::UPDSA => {
                XfrmEvent::SaSet(sa_name(message.body, message.body, abi::SA_LEN)?)
            }
            abi::DELSA => {
                let info = attribute(message.body, abi::SA_ID_LEN, abi::SA)?;
                XfrmEvent::SaDeleted(sa_name(info, message.body, abi::SA_ID_LEN)?)
            }
            abi::FLUSHSA => match *message.body.first()? {
                // 0 and 255 are any protocol.
                abi::PROTO_ESP | 0 | 255 => XfrmEvent::SasFlushed,
                _ => return None,
            },
            abi::NEWPOLICY | abi::UPDPOLICY => {
                let policy = XfrmPolicy::parse_body(message.body, abi::POLICY_LEN, message.body)?;
                XfrmEvent::PolicySet(policy)
            }
            abi::DELPOLICY => {
                let info = attribute(message.body, abi::POLICY_ID_LEN, abi::POLICY)?;
                let policy = XfrmPolicy::parse_body(info, abi::POLICY_ID_LEN, message.body)?;
                XfrmEvent::PolicyDeleted(policy.key())
            }
            abi::POLEXPIRE => {
                if *message.body.get(abi::POLICY_LEN)? == 0 {
                    return None;
                }
                let body = message.body;
                let policy = XfrmPolicy::parse_body(body, abi::POLEXPIRE_LEN, body)?;
                XfrmEvent::PolicyDeleted(policy.key())
            }
            abi::FLUSHPOLICY => XfrmEvent::PoliciesFlushed,
            _ => return None,
        };
        Some(Self {
            port: message.port,
            event,
        })
    }
}

fn attribute(body: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    attributes(body, skip)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// Name and request ID from an `xfrm_usersa_info`; the mark stands in an attribute of `body`.
fn sa_name(info: &[u8], body: &[u8], skip: usize) -> Option<XfrmSaName> {
    let info = info.get(..abi::SA_LEN)?;
    if info[76] != abi::PROTO_ESP {
        return None;
    }
    let family = selector::family(info, 212)?;
    let mark = match attribute(body, skip, abi::MARK) {
        Some(value) => mark(value)?,
        None => (0, 0),
    };
    Some(XfrmSaName {
        id: XfrmSaId {
            destination: selector::address(info, 56, family)?,
            spi: u32::from_be_bytes(info[72..76].try_into().ok()?),
            mark,
        },
        reqid: read_u32(info, 208)?,
    })
}

/// `xfrm_user_acquire`.
fn acquire(body: &[u8]) -> Option<XfrmEvent> {
    let templates = attribute(body, abi::ACQUIRE_LEN, abi::TMPL)?;
    let template = XfrmTemplate::parse(templates.get(..abi::TMPL_LEN)?)?;
    let family = selector::family(templates, 24)?;
    Some(XfrmEvent::Acquire {
        id: XfrmSaId {
            destination: selector::address(body, 0, family)?,
            spi: u32::from_be_bytes(body.get(16..20)?.try_into().ok()?),
            mark: (0, 0),
        },
        selector: XfrmSelector::parse_packet(body.get(40..)?)?,
        template,
    })
}

/// `xfrm_user_mapping`.
fn mapping(body: &[u8]) -> Option<XfrmEvent> {
    let body = body.get(..abi::MAPPING_LEN)?;
    let id = XfrmSaId::parse(body)?;
    let family = selector::family(body, 20)?;
    Some(XfrmEvent::Mapping {
        sa: XfrmSaName {
            id,
            reqid: read_u32(body, 24)?,
        },
        address: selector::address(body, 44, family)?,
        port: selector::port(body, 62)?,
    })
}
