//! What tests of rekeys tell two nodes, and how all must be at the end.

use std::time::Duration;

use testudo_model::ChildId;

use super::net::*;

/// All is quiet, both ends agree on so many children, nothing is left over, nothing was lost.
pub(crate) fn settled(mut net: Net, children: usize) {
    net.run_ms(300);
    net.esp = false;
    // Longer than anything waits, an exchange that goes on and is given up too.
    net.run(Duration::from_secs(200));
    net.assert_connected(0, 1, children);
    net.assert_no_esp_lost();
    for n in 0..2 {
        net.assert_tidy(n, children);
        let engine = &net.nodes[n].engine;
        assert_eq!(engine.sas.len(), 1, "{}", net.story());
        assert_eq!(engine.half_open_total, 0);
        let sa = engine.sas.values().next().unwrap();
        assert!(sa.established().unwrap().followers.is_empty());
        assert!(net.nodes[n].failures.is_empty(), "{}", net.story());
    }
}

/// The first child of a node with the other.
pub(crate) fn child_of(net: &Net, n: usize) -> ChildId {
    net.ikes(n, 1 - n)[0].children[0].child
}

/// In a crossing it may be on its way out already.
pub(crate) fn do_rekey_child(net: &mut Net, n: usize) {
    let child = child_of(net, n);
    let _ = net.act(n, |e, now| e.rekey_child(child, now));
}

pub(crate) fn do_rekey_ike(net: &mut Net, n: usize) {
    let _ = net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now));
}

pub(crate) fn do_reauth(net: &mut Net, n: usize) {
    net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
        .unwrap();
}
