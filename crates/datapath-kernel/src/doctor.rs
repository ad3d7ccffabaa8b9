//! What is wrong with a host for the kernel datapath, found out before or while it is used.
//!
//! Each check is one function of [`Facts`] and says one thing. That nothing is wrong is said too.

mod facts;
mod holes;

#[cfg(test)]
mod tests;

use testudo_netlink::{XfrmAction, XfrmPolicy};

pub use facts::{Daemon, Facts, Lack, Release, gather};

use crate::plan::is_ours;
use crate::tag::PRIORITY_ALLOW;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong.
    Ok,
    /// It is good to know.
    Note,
    /// It works, but something about it can hurt.
    Warning,
    /// The kernel datapath does not work here, or does not protect.
    Failure,
}

/// What one check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, kebab-case; never changes its meaning.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub line: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

/// The oldest kernel that is tested.
const OLDEST: (u32, u32) = (6, 1);
/// What an acquire may last by default, seconds (`net.core.xfrm_acq_expires`).
const ACQUIRE_SECONDS: u32 = 30;

/// All checks, in the order in which to read them.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![release(facts)];
    findings.extend(holes::known(facts));
    findings.extend([
        usable(facts),
        keys(facts),
        firewall(facts),
        statistics(facts),
        policies(facts),
        daemons(facts),
        switched_off(facts),
        flowtables(facts),
        acquires(facts),
    ]);
    findings
}

fn finding(check: &'static str, severity: Severity, line: impl Into<String>) -> Finding {
    Finding {
        check,
        severity,
        line: line.into(),
        remedy: String::new(),
    }
}

impl Finding {
    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

fn release(facts: &Facts) -> Finding {
    const CHECK: &str = "kernel-release";
    let shown = format!("Linux {}", facts.release);
    let (major, minor) = OLDEST;
    match Release::read(&facts.release, &facts.version) {
        Some(release) if (release.major, release.minor) < OLDEST => {
            let line = format!("{shown} is older than {major}.{minor}, the oldest that is tested");
            finding(CHECK, Severity::Warning, line).remedy("use a newer kernel")
        }
        Some(_) => finding(CHECK, Severity::Ok, shown),
        None => finding(
            CHECK,
            Severity::Note,
            format!("{shown}: no version can be read in it"),
        ),
    }
}

/// XFRM, ESP, AES-GCM and the capability, tried with an SA.
fn usable(facts: &Facts) -> Finding {
    const CHECK: &str = "kernel-ipsec";
    match &facts.usable {
        Ok(()) => finding(CHECK, Severity::Ok, "an ESP SA was made and removed"),
        Err(lack) => finding(CHECK, Severity::Failure, lack.what.clone()).remedy(&*lack.remedy),
    }
}

/// A kernel in lockdown (confidentiality) hides the keys of SAs.
fn keys(facts: &Facts) -> Finding {
    const CHECK: &str = "readable-keys";
    match facts.keys_readable {
        Some(true) => finding(CHECK, Severity::Ok, "the kernel gives keys of SAs back"),
        Some(false) => {
            let line = "the kernel hides keys of SAs (lockdown=confidentiality): a peer that gets \
                        another address is sent nothing until its SA has a successor";
            finding(CHECK, Severity::Note, line)
        }
        None => finding(CHECK, Severity::Note, "no SA can be made to read its key"),
    }
}

fn firewall(facts: &Facts) -> Finding {
    const CHECK: &str = "nftables";
    match &facts.firewall {
        Ok(()) => finding(CHECK, Severity::Ok, "tables of the family inet can be made"),
        Err(lack) => {
            let line = format!(
                "{}: clear packets are dropped by IPsec policies alone, and those that come in \
                 are not counted",
                lack.what
            );
            finding(CHECK, Severity::Warning, line).remedy(&*lack.remedy)
        }
    }
}

fn statistics(facts: &Facts) -> Finding {
    const CHECK: &str = "xfrm-statistics";
    match facts.statistics {
        true => finding(CHECK, Severity::Ok, "the kernel counts what IPsec drops"),
        false => {
            let line = "the kernel does not count what IPsec drops (no /proc/net/xfrm_stat)";
            finding(CHECK, Severity::Note, line)
                .remedy("use a kernel with CONFIG_XFRM_STATISTICS to see reasons of drops")
        }
    }
}

/// Other programs' policies. One that is asked before ours decides in our place.
fn policies(facts: &Facts) -> Finding {
    const CHECK: &str = "other-policies";
    let foreign: Vec<&XfrmPolicy> = facts.policies.iter().filter(|p| !is_ours(p)).collect();
    let mut before = foreign.iter().filter(|p| p.priority < PRIORITY_ALLOW);
    let Some(first) = before.next() else {
        return match foreign.len() {
            0 => finding(
                CHECK,
                Severity::Ok,
                "no other program has IPsec policies here",
            ),
            n => {
                let line = format!("{n} IPsec policies of other programs, asked after ours");
                finding(CHECK, Severity::Note, line)
            }
        };
    };
    let action = match first.action {
        XfrmAction::Allow if first.templates.is_empty() => "lets packets pass in clear",
        XfrmAction::Allow => "wants an SA",
        XfrmAction::Block => "drops packets",
    };
    let line = format!(
        "{} IPsec policies of other programs are asked before ours; the first {action}: {} \
         priority {}",
        1 + before.count(),
        first.key(),
        first.priority
    );
    finding(CHECK, Severity::Warning, line).remedy(format!(
        "give them a priority above {}, or keep them off the protected flows",
        crate::tag::PRIORITY_BLOCK
    ))
}

fn daemons(facts: &Facts) -> Finding {
    const CHECK: &str = "other-daemons";
    if facts.daemons.is_empty() {
        return finding(CHECK, Severity::Ok, "no other IPsec daemon runs");
    }
    let names: Vec<String> = facts
        .daemons
        .iter()
        .map(|daemon| format!("{} (process {})", daemon.name, daemon.process))
        .collect();
    let line = format!(
        "{} may hold UDP 500 and 4500, and flush SAs that are not its own",
        names.join(", ")
    );
    finding(CHECK, Severity::Warning, line).remedy("stop it on nodes that Testudo protects")
}

/// `disable_xfrm` and `disable_policy` of links.
fn switched_off(facts: &Facts) -> Finding {
    const CHECK: &str = "switched-off";
    match facts.switched_off.as_slice() {
        [] => finding(CHECK, Severity::Ok, "IPsec is switched off on no link"),
        some => {
            let line = format!("IPsec is switched off: {}", some.join(", "));
            finding(CHECK, Severity::Failure, line).remedy("set them to 0")
        }
    }
}

/// Lesson L107: what a flowtable forwards is not looked up again.
fn flowtables(facts: &Facts) -> Finding {
    const CHECK: &str = "flowtables";
    match facts.flowtables.as_slice() {
        [] => finding(CHECK, Severity::Ok, "no nftables flowtable"),
        some => {
            let line = format!(
                "connections in nftables flowtables ({}) may go past IPsec policies that came \
                 after they began",
                some.join(", ")
            );
            finding(CHECK, Severity::Warning, line)
                .remedy("keep connections of pods and of the overlay out of flowtables")
        }
    }
}

/// Lesson L117: while an SA is asked for, its packets are swallowed. Ours never ask; those of
/// other programs do, and so does a policy of ours whose SA somebody flushed.
fn acquires(facts: &Facts) -> Finding {
    const CHECK: &str = "acquire-time";
    match facts.acquire_seconds {
        Some(seconds) if seconds > ACQUIRE_SECONDS => {
            let line = format!(
                "net.core.xfrm_acq_expires is {seconds}: so long a flow may stand still, in \
                 seconds, when a program asks in vain for an SA"
            );
            finding(CHECK, Severity::Note, line).remedy(format!("set it to {ACQUIRE_SECONDS}"))
        }
        Some(seconds) => {
            let line = format!("net.core.xfrm_acq_expires is {seconds}");
            finding(CHECK, Severity::Ok, line)
        }
        None => finding(
            CHECK,
            Severity::Note,
            "net.core.xfrm_acq_expires cannot be read",
        ),
    }
}
