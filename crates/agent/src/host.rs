//! What the agent needs of its host: rules that close it, and a datapath once it can be opened.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use testudo_datapath::{Datapath, DatapathError};
use testudo_model::policy::DatapathChoice;
use testudo_model::{Now, TrafficPolicy};
use tokio::sync::Notify;

/// The host. A test puts an in-memory one in its place.
pub(crate) trait Host {
    /// Takes in which datapath is wanted; `standing` is the one that is open. Cheap when asked
    /// again.
    fn choose(&mut self, choice: DatapathChoice, standing: Option<&str>, now: Now);

    /// The datapath that was chosen: `user` or `kernel`. What had the host last before a choice.
    fn kind(&self) -> &'static str;

    /// Why `Auto` did not take the better one.
    fn note(&self) -> Option<&str>;

    /// Why the kernel's cannot be had: it was asked for by name, or `Auto` met a refusal that says
    /// nothing about what the kernel can do.
    fn problem(&self) -> Option<&str>;

    /// The open datapath has the policy in force: what another one left in the host goes.
    fn settled(&mut self) -> Result<(), DatapathError>;

    /// Makes the host's rules say what `policy` says, without TUN and sockets: what is to be
    /// sealed is dropped. Used while there is no datapath.
    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError>;

    /// Removes all that is ours, without TUN and sockets.
    fn clear(&mut self) -> Result<(), DatapathError>;

    /// Opens the datapath. It calls `wake` when `poll_event` has something.
    fn open(&mut self, wake: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError>;

    /// The device that carries the packets, for people.
    fn interface(&self) -> &str;

    /// The addresses that the host has for its peers now, best first.
    fn addresses(&self) -> Vec<IpAddr>;

    /// The MTU of the path to `remote`, as the kernel knows it.
    fn path_mtu(&self, local: IpAddr, remote: IpAddr) -> Option<u32>;
}

/// The addresses that packets to far hosts would leave with. Nothing is sent: connecting a UDP
/// socket only asks the routing table. The targets are documentation prefixes (RFC 5737, 3849).
pub fn default_addresses() -> Vec<IpAddr> {
    let source = |bind: &str, far: &str| {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(far).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    };
    let v4 = source("0.0.0.0:0", "192.0.2.1:9");
    let v6 = source("[::]:0", "[2001:db8::1]:9");
    v4.into_iter().chain(v6).collect()
}

/// Asks the kernel for the MTU of a path: that of the route, less what was learned from ICMP.
pub(crate) fn kernel_path_mtu(local: IpAddr, remote: IpAddr) -> Option<u32> {
    let socket = UdpSocket::bind((local, 0)).ok()?;
    // Nothing is sent: connecting a datagram socket only looks up the route.
    socket.connect((remote, 9)).ok()?;
    let mtu = match remote {
        IpAddr::V4(_) => rustix::net::sockopt::ip_mtu(&socket),
        IpAddr::V6(_) => rustix::net::sockopt::ipv6_mtu(&socket),
    };
    mtu.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_an_mtu() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(kernel_path_mtu(here, here).is_some_and(|mtu| mtu >= 1280));
    }
}
