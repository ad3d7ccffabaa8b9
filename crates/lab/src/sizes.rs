//! Large packets between pods: what fits must arrive whole, what does not must arrive in fragments,
//! and what the paths carry must not be less than what pods send.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::verify::{Endpoint, datagrams};

/// Large packets may wait for an answer of ICMP first.
const TRIES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(900),
];

/// What became of large packets between pods of different nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// The MTU of the pods' links, bytes.
    pub pod_mtu: u32,
    /// What the agents say that the paths carry at least; none while nothing is sealed.
    pub effective_mtu: Option<u32>,
    /// Packets of the pods' MTU that must not be fragmented arrive.
    pub full_size: bool,
    /// Datagrams of twice that size arrive in fragments.
    pub fragmented: bool,
    /// What is to be set, where something is; a sentence.
    pub advice: Option<String>,
}

impl Sizes {
    /// Whether nothing is to be set.
    pub fn ok(&self) -> bool {
        self.full_size && self.fragmented && self.advice.is_none()
    }
}

/// Sends them from each node's first pod to the next node's, over each family.
pub(crate) fn sizes(ends: &[Endpoint], cluster: &Cluster, pod_mtu: u32) -> Result<Sizes> {
    let mut firsts: Vec<&Endpoint> = Vec::new();
    for end in ends.iter().filter(|end| end.is_pod) {
        if firsts.iter().all(|first| first.node != end.node) {
            firsts.push(end);
        }
    }
    let (mut full_size, mut fragmented) = (true, true);
    if firsts.len() > 1 {
        for (index, from) in firsts.iter().enumerate() {
            let to = firsts[(index + 1) % firsts.len()];
            for address in &to.addresses {
                full_size &= whole(from, to, *address, pod_mtu)?;
                let twice = vec![b't'; 2 * pod_mtu as usize];
                fragmented &= datagrams(from, to, *address, &TRIES, &twice, b"had it")?;
            }
        }
    }
    let known = cluster.nodes.values().filter_map(|node| node.effective_mtu);
    let effective_mtu = known.min();
    Ok(Sizes {
        pod_mtu,
        effective_mtu,
        full_size,
        fragmented,
        advice: advice(pod_mtu, effective_mtu, full_size, fragmented),
    })
}

/// A packet as large as the pods' links take, which nobody may fragment.
fn whole(from: &Endpoint, to: &Endpoint, address: IpAddr, pod_mtu: u32) -> Result<bool> {
    let headers = if address.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let payload = vec![b'w'; pod_mtu.saturating_sub(headers) as usize];
    dont_fragment(from, address, true)?;
    let arrived = datagrams(from, to, address, &TRIES, &payload, b"had it");
    dont_fragment(from, address, false)?;
    arrived
}

fn dont_fragment(end: &Endpoint, family: IpAddr, on: bool) -> Result<()> {
    let (level, option, values) = match family {
        IpAddr::V4(_) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_DONT),
        ),
        IpAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            (libc::IPV6_PMTUDISC_DO, libc::IPV6_PMTUDISC_DONT),
        ),
    };
    let value: libc::c_int = if on { values.0 } else { values.1 };
    let length = libc::socklen_t::try_from(size_of_val(&value)).context("the size of a number")?;
    let socket = end.socket(family).as_raw_fd();
    // SAFETY: the socket is open, and the kernel reads `length` bytes of a live number.
    let code =
        unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), length) };
    if code != 0 {
        return Err(std::io::Error::last_os_error()).context("set don't-fragment");
    }
    Ok(())
}

fn advice(
    pod_mtu: u32,
    effective: Option<u32>,
    full_size: bool,
    fragmented: bool,
) -> Option<String> {
    match effective {
        Some(most) if most < pod_mtu => Some(format!(
            "set the pods' MTU to {most} at most: it is {pod_mtu}, and a path carries no more"
        )),
        _ if !full_size => Some(format!(
            "packets of the pods' MTU {pod_mtu} do not arrive unfragmented: set a lower one, or raise \
             that of the nodes' links"
        )),
        _ if !fragmented => {
            Some("fragments do not arrive: let them pass between nodes and pods".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_what_to_set() {
        assert_eq!(advice(1400, Some(1416), true, true), None);
        assert_eq!(advice(1400, None, true, true), None);
        let smaller = advice(1450, Some(1416), false, true).unwrap();
        assert!(smaller.contains("1416 at most"), "{smaller}");
        assert!(advice(1400, None, false, true).unwrap().contains("1400"));
        assert!(
            advice(1400, Some(1416), true, false)
                .unwrap()
                .contains("fragments")
        );
    }
}
