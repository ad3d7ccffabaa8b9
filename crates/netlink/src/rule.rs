//! Policy routing rules.

use ipnet::IpNet;

use crate::abi;
use crate::message::{Message, Request, attributes, read_ip, read_string, read_u16, read_u32};
use crate::{Family, Netlink, Result};

const FIXED: usize = 12;

/// What a rule does with the packets it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleAction {
    /// Look the route up in this table.
    Table(u32),
    /// Drop in silence.
    Blackhole,
    /// Drop and say "unreachable".
    Unreachable,
    /// Drop and say "prohibited".
    Prohibit,
    /// Another action, by its number; only read, never written.
    Other(u8),
}

/// A policy routing rule. Fields that are `None` match everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The family whose packets it sees.
    pub family: Family,
    /// Its place: lower numbers are asked first.
    pub priority: u32,
    /// What it does.
    pub action: RuleAction,
    /// The source prefix.
    pub from: Option<IpNet>,
    /// The destination prefix.
    pub to: Option<IpNet>,
    /// The name of the incoming link; `lo` is the host's own packets.
    pub iif: Option<String>,
    /// The IP protocol.
    pub ip_protocol: Option<u8>,
    /// The range of destination ports, both ends included.
    pub destination_ports: Option<(u16, u16)>,
    /// The packet mark and the mask it is compared under.
    pub mark: Option<(u32, u32)>,
    /// Who made it (rtproto).
    pub protocol: u8,
}

impl Rule {
    /// A rule for all packets of a family, looked up in a table, made by "static" (4).
    pub fn new(family: Family, priority: u32, action: RuleAction) -> Self {
        Self {
            family,
            priority,
            action,
            from: None,
            to: None,
            iif: None,
            ip_protocol: None,
            destination_ports: None,
            mark: None,
            protocol: 4,
        }
    }
}

impl Netlink {
    /// Adds a rule. The same rule twice is an error (EEXIST).
    pub fn add_rule(&mut self, rule: &Rule) -> Result<()> {
        let flags = abi::NLM_F_CREATE | abi::NLM_F_EXCL;
        self.execute(request(abi::RTM_NEWRULE, flags, rule, "add"))
    }

    /// Deletes the rule that has all of these properties.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<()> {
        self.execute(request(abi::RTM_DELRULE, 0, rule, "delete"))
    }

    /// The rules of a family, in the order in which the kernel asks them.
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>> {
        self.dump(
            || {
                let mut fixed = [0; FIXED];
                fixed[0] = family.raw();
                Request::new(abi::RTM_GETRULE, 0, &fixed, "list rules".into())
            },
            parse,
        )
    }
}

fn request(kind: u16, flags: u16, rule: &Rule, verb: &str) -> Request {
    let operation = format!(
        "{verb} rule of priority {} ({:?})",
        rule.priority, rule.action
    );
    let mut fixed = [0; FIXED];
    fixed[0] = rule.family.raw();
    fixed[1] = rule.to.map_or(0, |net| net.prefix_len());
    fixed[2] = rule.from.map_or(0, |net| net.prefix_len());
    let (action, table) = match rule.action {
        RuleAction::Table(table) => (abi::FR_ACT_TO_TBL, Some(table)),
        RuleAction::Blackhole => (abi::FR_ACT_BLACKHOLE, None),
        RuleAction::Unreachable => (abi::FR_ACT_UNREACHABLE, None),
        RuleAction::Prohibit => (abi::FR_ACT_PROHIBIT, None),
        RuleAction::Other(raw) => (raw, None),
    };
    fixed[4] = table.and_then(|t| u8::try_from(t).ok()).unwrap_or(0);
    fixed[7] = action;
    let mut request = Request::new(kind, flags, &fixed, operation);
    request.u32(abi::FRA_PRIORITY, rule.priority);
    request.u8(abi::FRA_PROTOCOL, rule.protocol);
    if let Some(table) = table {
        request.u32(abi::FRA_TABLE, table);
    }
    if let Some(to) = rule.to.filter(|net| net.prefix_len() > 0) {
        request.ip(abi::FRA_DST, to.network());
    }
    if let Some(from) = rule.from.filter(|net| net.prefix_len() > 0) {
        request.ip(abi::FRA_SRC, from.network());
    }
    if let Some(iif) = &rule.iif {
        request.string(abi::FRA_IIFNAME, iif);
    }
    if let Some(protocol) = rule.ip_protocol {
        request.u8(abi::FRA_IP_PROTO, protocol);
    }
    if let Some((first, last)) = rule.destination_ports {
        let mut range = [0; 4];
        range[0..2].copy_from_slice(&first.to_ne_bytes());
        range[2..4].copy_from_slice(&last.to_ne_bytes());
        request.attr(abi::FRA_DPORT_RANGE, &range);
    }
    if let Some((mark, mask)) = rule.mark {
        request.u32(abi::FRA_FWMARK, mark);
        request.u32(abi::FRA_FWMASK, mask);
    }
    request
}

fn parse(message: &Message<'_>) -> Option<Rule> {
    if message.kind != abi::RTM_NEWRULE || message.body.len() < FIXED {
        return None;
    }
    let body = message.body;
    let mut table = u32::from(body[4]);
    let mut rule = Rule::new(Family::from_raw(body[0])?, 0, RuleAction::Other(body[7]));
    rule.protocol = 0;
    let (mut mark, mut mask) = (None, u32::MAX);
    for (kind, value) in attributes(body, FIXED) {
        match kind {
            abi::FRA_PRIORITY => rule.priority = read_u32(value, 0)?,
            abi::FRA_TABLE => table = read_u32(value, 0)?,
            abi::FRA_DST => rule.to = Some(IpNet::new(read_ip(value)?, body[1]).ok()?),
            abi::FRA_SRC => rule.from = Some(IpNet::new(read_ip(value)?, body[2]).ok()?),
            abi::FRA_IIFNAME => rule.iif = Some(read_string(value)),
            abi::FRA_IP_PROTO => rule.ip_protocol = value.first().copied(),
            abi::FRA_PROTOCOL => rule.protocol = value.first().copied().unwrap_or(0),
            abi::FRA_DPORT_RANGE => {
                rule.destination_ports = Some((read_u16(value, 0)?, read_u16(value, 2)?));
            }
            abi::FRA_FWMARK => mark = read_u32(value, 0),
            abi::FRA_FWMASK => mask = read_u32(value, 0)?,
            _ => {}
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    rule.action = match body[7] {
        abi::FR_ACT_TO_TBL => RuleAction::Table(table),
        abi::FR_ACT_BLACKHOLE => RuleAction::Blackhole,
        abi::FR_ACT_UNREACHABLE => RuleAction::Unreachable,
        abi::FR_ACT_PROHIBIT => RuleAction::Prohibit,
        other => RuleAction::Other(other),
    };
    Some(rule)
}
