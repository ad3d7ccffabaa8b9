//! The flows of a node's switch. Nothing is learnt and nothing is flooded into a tunnel: what
//! comes from a pod or from the node goes by its destination into one tunnel or to one port, what
//! comes out of a tunnel goes to a pod of this node or to the node itself.

use std::fmt::Write;
use std::net::IpAddr;

use testudo_netlink::MacAddress;

use crate::layout::{Layout, NodeLayout};

/// Port number of a node's pod, counted from 1.
pub(super) fn pod_port(number: u16) -> u16 {
    10 + number
}

/// Port number of the tunnel to another node.
pub(super) fn tunnel_port(other: &NodeLayout) -> u16 {
    1000 + other.index
}

/// The flows in the form that `ovs-ofctl add-flows` reads. Table 0 tells tunnels from the rest,
/// table 1 has what comes out of a tunnel, table 2 the rest.
pub(super) fn of(layout: &Layout, node: &NodeLayout) -> String {
    let own = MacAddress(node.vtep_mac);
    let mut flows = String::from("table=0,priority=0,actions=resubmit(,2)\n");
    let mut add = |flow: String| {
        // Writing into a string cannot fail.
        let _ = writeln!(flows, "{flow}");
    };
    for other in layout.nodes.iter().filter(|other| other.name != node.name) {
        let (port, mac) = (tunnel_port(other), MacAddress(other.vtep_mac));
        add(format!(
            "table=0,priority=9,in_port={port},actions=resubmit(,1)"
        ));
        for cidr in &other.pod_cidrs {
            let to = destination(cidr.addr(), &cidr.to_string());
            add(format!(
                "table=2,priority=9,{to},actions=dec_ttl,mod_dl_src:{own},mod_dl_dst:{mac},output:{port}"
            ));
        }
    }
    add("table=1,priority=0,actions=output:LOCAL".to_owned());
    let mut all = String::from("LOCAL");
    for (number, pod) in (1..).zip(&node.pods) {
        let (port, mac) = (pod_port(number), MacAddress(node.pod_mac(number)));
        for address in &pod.addresses {
            let to = destination(*address, &address.to_string());
            add(format!(
                "table=1,priority=9,{to},actions=mod_dl_dst:{mac},output:{port}"
            ));
        }
        add(format!(
            "table=2,priority=5,dl_dst={mac},actions=output:{port}"
        ));
        all += &format!(",output:{port}");
    }
    add(format!(
        "table=2,priority=5,dl_dst={own},actions=output:LOCAL"
    ));
    // Questions for an address. A packet never goes back to the port that it came from.
    let group = "01:00:00:00:00:00/01:00:00:00:00:00";
    add(format!(
        "table=2,priority=5,dl_dst={group},actions=output:{all}"
    ));
    flows
}

fn destination(family: IpAddr, text: &str) -> String {
    match family {
        IpAddr::V4(_) => format!("ip,nw_dst={text}"),
        IpAddr::V6(_) => format!("ipv6,ipv6_dst={text}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::spec::{LabSpec, Overlay};

    use super::*;

    #[test]
    fn only_other_nodes_pods_go_into_a_tunnel_and_none_comes_out_into_another() {
        let mut spec = LabSpec::new("a", PathBuf::new());
        spec.overlay = Overlay::Geneve;
        let layout = Layout::new(&spec);
        let text = of(&layout, &layout.nodes[0]);
        let into_tunnel =
            |flow: &&str| flow.contains("output:1002") || flow.contains("output:1003");
        let into: Vec<&str> = text.lines().filter(into_tunnel).collect();
        assert_eq!(into.len(), 4, "two nodes, two families: {text}");
        for flow in into {
            assert!(
                flow.starts_with("table=2,") && flow.contains("_dst="),
                "{flow}"
            );
            assert!(
                !flow.contains("10.244.1.") && !flow.contains("244:1:"),
                "{flow}"
            );
        }
        assert!(text.contains("ipv6_dst=fd00:10:244:3::/64"), "{text}");
        assert!(
            text.contains("table=1,priority=9,ip,nw_dst=10.244.1.12,actions=mod_dl_dst:02:54:53:54:02:01,output:12"),
            "{text}"
        );
    }
}
