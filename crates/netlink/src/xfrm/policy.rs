//! Policies: which packets want which transformation (RFC 4301 4.4.1, the SPD).

use std::fmt;
use std::net::IpAddr;

use super::selector::{self, XfrmDirection, XfrmMode, XfrmSelector};
use super::{abi, mark};
use crate::Family;
use crate::message::{Message, Request, attributes, read_u32};

/// Which SA a policy's packets want. Always ESP when written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmTemplate {
    /// The SA's source; unspecified is any.
    pub source: IpAddr,
    /// The SA's destination; unspecified is any.
    pub destination: IpAddr,
    /// The SA's SPI; 0 is any.
    pub spi: u32,
    /// The SA's mode.
    pub mode: XfrmMode,
    /// The SA's request ID; 0 is any.
    pub reqid: u32,
    /// Inbound: packets that came in clear are accepted as well (`level use`).
    pub optional: bool,
}

/// What becomes of packets that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XfrmAction {
    /// They pass as the templates say; without templates as they are.
    Allow,
    /// They are dropped.
    Block,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmPolicy {
    /// Which way.
    pub direction: XfrmDirection,
    /// Which packets.
    pub selector: XfrmSelector,
    /// What becomes of them.
    pub action: XfrmAction,
    /// Its place: of several that match the one with the lowest number holds.
    pub priority: u32,
    /// The packet mark it wants, and the mask it is compared under; 0/0 is any.
    pub mark: (u32, u32),
    /// The XFRM interface; 0 is none.
    pub if_id: u32,
    /// The transformations, in order; Testudo writes one or none.
    pub templates: Vec<XfrmTemplate>,
}

impl XfrmPolicy {
    /// What makes it the same policy to the kernel: two of the same key cannot stand together.
    pub fn key(&self) -> XfrmPolicyKey {
        XfrmPolicyKey {
            direction: self.direction,
            selector: self.selector,
            mark: self.mark,
            if_id: self.if_id,
        }
    }
}

/// Names a policy in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmPolicyKey {
    /// Which way.
    pub direction: XfrmDirection,
    /// Which packets.
    pub selector: XfrmSelector,
    /// Mark and mask.
    pub mark: (u32, u32),
    /// The XFRM interface.
    pub if_id: u32,
}

impl XfrmPolicy {
    /// The request that makes it. `abi::NEWPOLICY` refuses one whose key stands already,
    /// `abi::UPDPOLICY` replaces it.
    pub(super) fn request(&self, kind: u16, operation: String) -> Request {
        let mut fixed = [0; abi::POLICY_LEN];
        fixed[..abi::SELECTOR_LEN].copy_from_slice(&self.selector.encode());
        // No end by bytes or packets: all ones (XFRM_INF); seconds have 0 for none.
        fixed[56..88].fill(0xff);
        fixed[152..156].copy_from_slice(&self.priority.to_ne_bytes());
        fixed[160] = self.direction.raw();
        fixed[161] = match self.action {
            XfrmAction::Allow => abi::POLICY_ALLOW,
            XfrmAction::Block => abi::POLICY_BLOCK,
        };
        let mut request = Request::new(kind, 0, &fixed, operation);
        if !self.templates.is_empty() {
            let templates: Vec<u8> = self.templates.iter().flat_map(template_bytes).collect();
            request.attr(abi::TMPL, &templates);
        }
        named(&mut request, self.mark, self.if_id);
        request
    }

    /// A policy of the kernel's main table; `None` for what the type cannot say (policies of
    /// sockets, sub-policies, selectors with interfaces or users).
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        Self::parse_body(message.body, abi::POLICY_LEN, message.body)
    }

    /// `info` begins with `xfrm_userpolicy_info`; the attributes of `body` follow `skip` bytes.
    pub(super) fn parse_body(info: &[u8], skip: usize, body: &[u8]) -> Option<Self> {
        let info = info.get(..abi::POLICY_LEN)?;
        let mut policy = Self {
            direction: XfrmDirection::from_raw(info[160])?,
            selector: XfrmSelector::parse(info)?,
            action: match info[161] {
                abi::POLICY_ALLOW => XfrmAction::Allow,
                _ => XfrmAction::Block,
            },
            priority: read_u32(info, 152)?,
            mark: (0, 0),
            if_id: 0,
            templates: Vec::new(),
        };
        for (kind, value) in attributes(body, skip) {
            match kind {
                abi::TMPL => policy.templates.extend(
                    value
                        .chunks_exact(abi::TMPL_LEN)
                        .take(abi::MAX_TEMPLATES)
                        .filter_map(XfrmTemplate::parse),
                ),
                abi::MARK => policy.mark = mark(value)?,
                abi::IF_ID => policy.if_id = read_u32(value, 0)?,
                abi::POLICY_TYPE if value.first() != Some(&abi::POLICY_TYPE_MAIN) => return None,
                _ => {}
            }
        }
        Some(policy)
    }
}

impl XfrmPolicyKey {
    /// A request about the policy of this key: `abi::DELPOLICY` or `abi::GETPOLICY`.
    pub(super) fn request(&self, kind: u16, operation: String) -> Request {
        let mut fixed = [0; abi::POLICY_ID_LEN];
        fixed[..abi::SELECTOR_LEN].copy_from_slice(&self.selector.encode());
        fixed[60] = self.direction.raw();
        let mut request = Request::new(kind, 0, &fixed, operation);
        named(&mut request, self.mark, self.if_id);
        request
    }
}

/// The attributes that are part of a policy's name.
fn named(request: &mut Request, mark: (u32, u32), if_id: u32) {
    if mark != (0, 0) {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&mark.0.to_ne_bytes());
        value[4..].copy_from_slice(&mark.1.to_ne_bytes());
        request.attr(abi::MARK, &value);
    }
    if if_id != 0 {
        request.u32(abi::IF_ID, if_id);
    }
}

/// As `xfrm_user_tmpl`.
fn template_bytes(template: &XfrmTemplate) -> [u8; abi::TMPL_LEN] {
    let mut out = [0; abi::TMPL_LEN];
    selector::put_address(&mut out, template.destination);
    out[16..20].copy_from_slice(&template.spi.to_be_bytes());
    out[20] = abi::PROTO_ESP;
    let family = Family::of(&template.destination);
    out[24..26].copy_from_slice(&u16::from(family.raw()).to_ne_bytes());
    selector::put_address(&mut out[28..], template.source);
    out[44..48].copy_from_slice(&template.reqid.to_ne_bytes());
    out[48] = template.mode.raw();
    out[50] = u8::from(template.optional);
    // Any algorithm: which one it is the SA says.
    out[52..64].fill(0xff);
    out
}

impl XfrmTemplate {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let family = selector::family(bytes, 24)?;
        Some(Self {
            source: selector::address(bytes, 28, family)?,
            destination: selector::address(bytes, 0, family)?,
            spi: u32::from_be_bytes(bytes.get(16..20)?.try_into().ok()?),
            mode: XfrmMode::from_raw(*bytes.get(48)?),
            reqid: read_u32(bytes, 44)?,
            optional: *bytes.get(50)? != 0,
        })
    }
}

impl fmt::Display for XfrmPolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            XfrmDirection::In => "in",
            XfrmDirection::Out => "out",
            XfrmDirection::Forward => "fwd",
        };
        write!(f, "{direction} {}", self.selector)?;
        if self.mark.1 != 0 {
            write!(f, " mark {:#x}/{:#x}", self.mark.0, self.mark.1)?;
        }
        match self.if_id {
            0 => Ok(()),
            id => write!(f, " if_id {id}"),
        }
    }
}
