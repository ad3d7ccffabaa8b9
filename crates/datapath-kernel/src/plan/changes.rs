//! From the policies that stand to those that are wanted.
//!
//! The order is what makes it safe. What is new is added first, the first to be asked before the
//! last; then what has changed is replaced, each in one step; then what is not wanted any more
//! goes, the last to be asked first. So the first policy that matches a packet is at every moment
//! either the one it was at the beginning or the one it will be in the end: nothing is open in
//! between that is closed before and after, and nothing is cut that passes before and after.

use std::collections::BTreeMap;
use std::fmt;

use testudo_netlink::{XfrmAction, XfrmPolicy, XfrmPolicyKey};

use crate::tag::{PRIORITY_ALLOW, is_our_priority, is_our_reqid};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add it; the kernel must refuse if one of the same key stands.
    Add(XfrmPolicy),
    /// Put it in the place of ours that has the same key.
    Replace(XfrmPolicy),
    /// Remove ours.
    Remove(XfrmPolicyKey),
}

/// A policy of somebody else stands where one of ours should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Somebody else's.
    pub foreign: XfrmPolicy,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let foreign = &self.foreign;
        let action = match foreign.action {
            XfrmAction::Allow => "allow",
            XfrmAction::Block => "block",
        };
        write!(
            f,
            "another program's policy is in the way: {}",
            foreign.key()
        )?;
        write!(f, " priority {} action {action}", foreign.priority)?;
        if let Some(template) = foreign.templates.first() {
            write!(f, " reqid {}", template.reqid)?;
        }
        Ok(())
    }
}

/// What to do, and what stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order. Where there is a conflict, what opens is left out: everything stays at
    /// least as closed as it was.
    pub changes: Vec<Change>,
    /// What could not be planned.
    pub conflicts: Vec<Conflict>,
}

/// Whether a policy is one of ours: by its priority and the request ID in its template, or by the
/// priority that only policies that let local packets pass have.
pub fn is_ours(policy: &XfrmPolicy) -> bool {
    if policy.mark != (0, 0) || policy.if_id != 0 || !is_our_priority(policy.priority) {
        return false;
    }
    match policy.templates.as_slice() {
        [] => policy.action == XfrmAction::Allow && policy.priority == PRIORITY_ALLOW,
        [template] => is_our_reqid(template.reqid),
        _ => false,
    }
}

/// How to come from what stands, `have` (ours and others'), to `want`.
pub fn changes(have: &[XfrmPolicy], want: &[XfrmPolicy]) -> Plan {
    let standing: BTreeMap<XfrmPolicyKey, &XfrmPolicy> =
        have.iter().map(|policy| (policy.key(), policy)).collect();
    let wanted: BTreeMap<XfrmPolicyKey, &XfrmPolicy> =
        want.iter().map(|policy| (policy.key(), policy)).collect();
    let (mut added, mut replaced, mut conflicts) = (Vec::new(), Vec::new(), Vec::new());
    for (key, &policy) in &wanted {
        match standing.get(key) {
            None => added.push(policy),
            Some(old) if !is_ours(old) => conflicts.push(Conflict {
                foreign: (*old).clone(),
            }),
            Some(old) if *old != policy => replaced.push(policy),
            Some(_) => {}
        }
    }
    let unwanted = standing
        .values()
        .filter(|old| is_ours(old) && !wanted.contains_key(&old.key()));
    let mut removed: Vec<&XfrmPolicy> = unwanted.copied().collect();
    if !conflicts.is_empty() {
        added.retain(|policy| closes(policy));
        replaced.retain(|policy| closes(policy));
        removed.clear();
    }
    added.sort_by_key(|policy| policy.priority);
    replaced.sort_by_key(|policy| policy.priority);
    removed.sort_by_key(|policy| std::cmp::Reverse(policy.priority));
    let mut changes = Vec::with_capacity(added.len() + replaced.len() + removed.len());
    changes.extend(added.into_iter().cloned().map(Change::Add));
    changes.extend(replaced.into_iter().cloned().map(Change::Replace));
    changes.extend(removed.iter().map(|policy| Change::Remove(policy.key())));
    Plan { changes, conflicts }
}

/// Whether it lets no clear packet pass that leaves the node or comes from outside.
fn closes(policy: &XfrmPolicy) -> bool {
    policy.action == XfrmAction::Block
        || policy.priority == PRIORITY_ALLOW
        || policy.templates.iter().any(|t| !t.optional)
}
