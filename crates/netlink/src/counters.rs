//! Named counters of nftables, read from the kernel itself (linux/netfilter/nf_tables.h): whoever
//! asks for counters often need not start a program for it.

use rustix::net::netlink;

use crate::Result;
use crate::message::{Attributes, Message, Request, attributes, read_string};
use crate::transport::Transport;

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ.
const GET_OBJECTS: u16 = 10 << 8 | 19;
/// struct nfgenmsg: the family `inet`, version 0, no resource.
const FAMILY_INET: [u8; 4] = [1, 0, 0, 0];

const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
/// NFT_OBJECT_COUNTER.
const COUNTER: u32 = 1;
const COUNTER_PACKETS: u16 = 2;

/// Packets counted so far by these named counters of a table of the family `inet`, in the network
/// namespace of the calling thread; what is not there is left out.
///
/// # Errors
/// The kernel has no nftables, or refuses to tell (CAP_NET_ADMIN).
pub fn counted_packets(table: &str, counters: &[&'static str]) -> Result<Vec<(&'static str, u64)>> {
    let mut transport = Transport::open(Some(netlink::NETFILTER))?;
    let request = || {
        let operation = format!("list the counters of table {table}");
        let mut request = Request::new(GET_OBJECTS, 0, &FAMILY_INET, operation);
        request.string(OBJECT_TABLE, table);
        request.attr(OBJECT_TYPE, &COUNTER.to_be_bytes());
        request
    };
    let found = transport.dump(request, |message| counter(message, table))?;
    let packets = |name: &&'static str| {
        let (_, packets) = found.iter().find(|(known, _)| known == name)?;
        Some((*name, *packets))
    };
    Ok(counters.iter().filter_map(packets).collect())
}

/// A counter's name and packets; none: it is another table's, or no counter.
fn counter(message: &Message<'_>, table: &str) -> Option<(String, u64)> {
    let all = || attributes(message.body, FAMILY_INET.len());
    let value = |of: u16| all().find(|(kind, _)| *kind == of).map(|(_, value)| value);
    if read_string(value(OBJECT_TABLE)?) != table || value(OBJECT_TYPE)? != COUNTER.to_be_bytes() {
        return None;
    }
    let mut data = Attributes(value(OBJECT_DATA)?);
    let (_, packets) = data.find(|(kind, _)| *kind == COUNTER_PACKETS)?;
    let packets = u64::from_be_bytes(packets.try_into().ok()?);
    Some((read_string(value(OBJECT_NAME)?), packets))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;
    use crate::tests::private_netns;
    use crate::{Netlink, Nft, run_in_netns};

    #[test]
    fn named_counters_of_one_table_are_read_and_what_is_not_there_is_left_out() {
        let Some(netns) = private_netns() else {
            return;
        };
        let counted = run_in_netns(netns.as_fd(), || {
            let mut netlink = Netlink::open().unwrap();
            let lo = netlink.link_index("lo").unwrap();
            netlink.set_up(lo).unwrap();
            let script = "\
                add table inet t
                add counter inet t sent
                add counter inet t never
                add quota inet t q { 1 mbytes }
                add chain inet t out { type filter hook output priority 0; }
                add rule inet t out udp dport 7 counter name sent
                add table inet other
                add counter inet other sent { packets 900 bytes 1000 }\n";
            Nft::new("nft").apply(script).unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                let _ = socket.send_to(b"x", "127.0.0.1:7");
            }
            let names = ["never", "sent", "q", "not there"];
            (
                counted_packets("t", &names).unwrap(),
                counted_packets("no such table", &names).unwrap(),
            )
        })
        .unwrap();
        assert_eq!(counted.0, [("never", 0), ("sent", 3)]);
        assert_eq!(counted.1, []);
    }

    #[test]
    fn what_is_no_counter_of_the_table_is_passed_over() {
        let mut request = Request::new(0, 0, &FAMILY_INET, String::new());
        request.string(OBJECT_TABLE, "t");
        request.string(OBJECT_NAME, "c");
        request.attr(OBJECT_TYPE, &COUNTER.to_be_bytes());
        request.nested(OBJECT_DATA, |data| {
            data.attr(COUNTER_PACKETS, &7u64.to_be_bytes());
        });
        let (bytes, _) = request.finish(1, 1);
        let body = &bytes[16..];
        let message = |body| Message {
            kind: 0,
            flags: 0,
            sequence: 1,
            port: 1,
            body,
        };
        assert_eq!(counter(&message(body), "t"), Some(("c".to_owned(), 7)));
        assert_eq!(counter(&message(body), "u"), None);
        for length in 0..body.len() {
            assert_eq!(counter(&message(&body[..length]), "t"), None);
        }
    }
}
