//! What the tests share that need a kernel with ESP: `cargo xtask guest`.

use std::time::Duration;

use testudo_agent::api::{Actions, TunnelView};

use super::{Lab, Options, Turn, begin, seconds, wait_until};

/// Two nodes whose packets the kernel's own ESP carries.
pub(crate) const KERNEL: Options = Options {
    nodes: 2,
    datapath: "kernel",
    ..Options::VXLAN
};

/// Waits for this test's turn in a guest.
#[track_caller]
pub(crate) fn turn(test: &str) -> Turn {
    turn_by("cargo xtask guest", test)
}

/// The same where only the guest of this command will do.
#[track_caller]
pub(crate) fn turn_by(command: &str, test: &str) -> Turn {
    assert!(
        std::env::var_os("TESTUDO_GUEST").is_some(),
        "this test needs a kernel with ESP: {command} -- THIS-PROGRAM {test}"
    );
    begin(test).expect("guests run as root")
}

/// A number of all tunnels of all nodes. With the load on the guest's one processor an agent may be slow to
/// answer.
#[track_caller]
pub(crate) fn sum(lab: &Lab, of: impl Fn(&TunnelView) -> u64) -> u64 {
    let nodes = lab.inner().layout().nodes.iter();
    let tunnels = nodes
        .flat_map(|node| wait_until("an agent's answer", seconds(60), || lab.tunnels(&node.name)));
    tunnels.map(|tunnel| of(&tunnel)).sum()
}

/// Has a node replace its children, and waits until both ends of one have the successor.
#[track_caller]
pub(crate) fn rekey_child(lab: &Lab, node: &str, patience: Duration) {
    rekey(lab, node, Actions::RekeyChild, patience, |tunnel| {
        tunnel.child_rekeys
    });
}

/// The same of its IKE SAs.
#[track_caller]
pub(crate) fn rekey_ike(lab: &Lab, node: &str, patience: Duration) {
    rekey(lab, node, Actions::RekeyIke, patience, |tunnel| {
        tunnel.ike_rekeys
    });
}

#[track_caller]
fn rekey(
    lab: &Lab,
    node: &str,
    action: Actions,
    patience: Duration,
    counted: impl Fn(&TunnelView) -> u64,
) {
    let before = sum(lab, &counted);
    lab.act(node, action);
    wait_until("a rekey at both ends", patience, || {
        let now = sum(lab, &counted);
        (now >= before + 2).then_some(()).ok_or(format!("{now}"))
    });
}
