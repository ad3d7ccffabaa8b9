//! What the kernel makes of a packet, given some policies: an abstract SPD for tests, after
//! `xfrm_lookup` and `__xfrm_policy_check`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use testudo_netlink::{PortMatch, XfrmAction, XfrmDirection, XfrmMode, XfrmPolicy, XfrmSelector};

use super::Change;

/// A packet at the place where policies are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) direction: XfrmDirection,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) destination_port: u16,
    /// Came out of an SA of this request ID and mode; not outbound.
    pub(super) opened: Option<(u32, XfrmMode)>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Leaves or comes in as it is, or was opened and is accepted.
    Passes,
    /// Leaves sealed by the SA of this request ID and SPI.
    Sealed(u32, u32),
    /// Dropped.
    Dropped,
}

/// All that may become of it: of policies of one priority the kernel takes the oldest, which is
/// not known here.
pub(super) fn fates<'a>(
    spd: impl IntoIterator<Item = &'a XfrmPolicy>,
    packet: &Packet,
) -> BTreeSet<Fate> {
    let (mut best, mut found) = (u32::MAX, BTreeSet::new());
    for policy in spd {
        if policy.direction != packet.direction
            || policy.priority > best
            || !matches(&policy.selector, packet)
        {
            continue;
        }
        if policy.priority < best {
            best = policy.priority;
            found.clear();
        }
        found.insert(fate(policy, packet));
    }
    if found.is_empty() {
        // A packet out of a tunnel that no policy wanted is refused.
        found.insert(match packet.opened {
            Some((_, XfrmMode::Tunnel)) => Fate::Dropped,
            _ => Fate::Passes,
        });
    }
    found
}

fn fate(policy: &XfrmPolicy, packet: &Packet) -> Fate {
    if policy.action == XfrmAction::Block {
        return Fate::Dropped;
    }
    let Some(template) = policy.templates.first() else {
        return match packet.opened {
            Some((_, XfrmMode::Tunnel)) => Fate::Dropped,
            _ => Fate::Passes,
        };
    };
    if packet.direction == XfrmDirection::Out {
        return Fate::Sealed(template.reqid, template.spi);
    }
    let good = match packet.opened {
        None => template.optional,
        Some((reqid, mode)) => {
            let fits = reqid == template.reqid && mode == template.mode;
            fits || template.optional && mode == XfrmMode::Transport
        }
    };
    match good {
        true => Fate::Passes,
        false => Fate::Dropped,
    }
}

fn matches(selector: &XfrmSelector, packet: &Packet) -> bool {
    let port = |wanted: PortMatch, port: u16| port & wanted.mask == wanted.value;
    selector.source.contains(&packet.source)
        && selector.destination.contains(&packet.destination)
        && (selector.protocol == 0 || selector.protocol == packet.protocol)
        && port(selector.destination_port, packet.destination_port)
        && selector.source_port == PortMatch::ANY
}

/// Does to the policies what a step does, as strictly as the kernel.
pub(super) fn apply(spd: &mut Vec<XfrmPolicy>, change: &Change) {
    let place = |key| {
        spd.iter()
            .position(|policy: &XfrmPolicy| policy.key() == key)
    };
    match change {
        Change::Add(policy) => {
            assert_eq!(
                place(policy.key()),
                None,
                "there is one already: {policy:?}"
            );
            spd.push(policy.clone());
        }
        Change::Replace(policy) => {
            let place = place(policy.key()).expect("nothing to replace");
            spd[place] = policy.clone();
        }
        Change::Remove(key) => {
            let place = place(*key).expect("nothing to remove");
            spd.remove(place);
        }
    }
}
