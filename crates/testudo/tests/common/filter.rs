//! A firewall on the path that drops ESP and lets everything else pass, and what the two ends of a
//! pair of nodes make of it.

use std::process::Command;
use std::time::Duration;

use testudo_agent::api::TunnelView;

use super::{Lab, Load, Options, Watch, seconds, wait_until};

/// From when on, and in which direction, ESP is dropped on n1's port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    /// Before encryption is on, both ways.
    First,
    /// Under traffic, both ways.
    Later,
    /// Under traffic, what n1 sends.
    Out,
    /// Under traffic, what n1 receives.
    In,
}

/// What is filtered goes over to UDP by itself, at both ends and in nobody's way: noticed, shown,
/// back, and never in clear. Then the filter goes, and the agents that found it are killed: their
/// next ones try ESP without UDP, and it is there again.
///
/// How soon it is noticed on a machine that keeps up is bounded in simulated time
/// (`agent::path`, `a_filter_is_noticed_within_four_seconds`); here the time is only printed.
#[track_caller]
pub(crate) fn goes_over_to_udp(options: Options, filter: Filter, rate: u32, patience: Duration) {
    let lab = Lab::up(Options {
        nodes: 2,
        ..options
    });
    if matches!(filter, Filter::First) {
        drop_esp(&lab, filter);
    }
    lab.testudo(&["init", "--timeout", "180s"]).ok();
    let clear = Watch::clear(&lab);
    let load = match filter {
        // Nothing arrives until it is noticed.
        Filter::First => Load::ring_unseen(&lab, rate),
        _ => {
            let load = Load::ring(&lab, rate);
            load.run_for(seconds(2));
            all_tunnels(&lab, |t| is(t, "ESP", false)).expect("plain ESP");
            drop_esp(&lab, filter);
            load
        }
    };
    let from = load.now();
    wait_until("UDP, and why", patience, || {
        all_tunnels(&lab, |t| is(t, "UDP", true))
    });
    println!("{filter:?}: UDP is shown after {:?}", load.now() - from);
    load.wait_all_arrive(patience);
    load.run_for(seconds(1));
    let shown = lab.testudo(&["status", "--tunnels"]).ok().out;
    let line = "UDP (ESP is filtered on the path)";
    assert_eq!(shown.matches(line).count(), 2, "{shown}");
    let found: Vec<&str> = ["n1", "n2"]
        .into_iter()
        .filter(|node| lab.log(node).contains("is filtered on its way to"))
        .collect();
    assert!(!found.is_empty(), "nobody says what to do");
    // The filter goes. Whoever found it tries ESP again when it starts anew.
    pass_esp(&lab);
    for node in found {
        let old = lab.agent(node);
        assert!(old.signal(rustix::process::Signal::KILL));
        wait_until("another agent", patience, || {
            let new = lab.inner().agent_process(node).filter(|new| *new != old);
            new.map(|_| ()).ok_or_else(|| "none".to_owned())
        });
    }
    wait_until("plain ESP again", patience, || {
        all_tunnels(&lab, |t| is(t, "ESP", false))
    });
    load.wait_all_arrive(patience);
    let to = load.now();
    clear.stop_with_none();
    for outcome in load.stop() {
        let gap = outcome.longest_gap(from, to);
        let (lost, sent) = (outcome.lost(), outcome.sent);
        println!(
            "{}: {lost} of {sent} lost, longest gap {gap:?}",
            outcome.flow
        );
    }
    lab.down();
}

fn is(tunnel: &TunnelView, encapsulation: &str, filtered: bool) -> bool {
    let how = tunnel.encapsulation.as_deref() == Some(encapsulation);
    tunnel.up && how && tunnel.esp_filtered == filtered
}

fn all_tunnels(lab: &Lab, holds: impl Fn(&TunnelView) -> bool) -> Result<(), String> {
    for node in ["n1", "n2"] {
        for tunnel in lab.tunnels(node)? {
            if !holds(&tunnel) {
                let (how, why) = (tunnel.encapsulation, tunnel.esp_filtered);
                return Err(format!("{node}: up {}, {how:?}, {why}", tunnel.up));
            }
        }
    }
    Ok(())
}

/// Drops ESP on the underlay's bridge, where neither end's IPsec or firewall sees anything of it.
#[track_caller]
fn drop_esp(lab: &Lab, filter: Filter) {
    let ports = match filter {
        Filter::First | Filter::Later => &["iifname", "oifname"][..],
        Filter::Out => &["iifname"],
        Filter::In => &["oifname"],
    };
    let rules: String = ports
        .iter()
        .flat_map(|port| ["ip protocol", "ip6 nexthdr"].map(|field| (port, field)))
        .map(|(port, field)| format!("{port} \"n1\" {field} 50 drop\n"))
        .collect();
    nft(
        lab,
        &format!(
            "table bridge path {{ chain forward {{\n\
             type filter hook forward priority 0; policy accept;\n{rules}}}\n}}"
        ),
    );
}

#[track_caller]
fn pass_esp(lab: &Lab) {
    nft(lab, "delete table bridge path");
}

#[track_caller]
fn nft(lab: &Lab, rules: &str) {
    let underlay = &lab.inner().layout().underlay_netns;
    let done = Command::new("ip")
        .args(["netns", "exec", underlay, "nft", rules])
        .output()
        .expect("ip netns exec runs nft");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{rules}: {said}");
}
