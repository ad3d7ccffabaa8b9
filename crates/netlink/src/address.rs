//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::abi;
use crate::message::{Message, Request, attributes, read_ip, read_u32};
use crate::{Family, Netlink, Result};

const FIXED: usize = 8;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The index of the link.
    pub link: u32,
    /// The address and the length of its prefix.
    pub address: IpNet,
}

impl Netlink {
    /// Adds an address to a link. IPv6 addresses skip duplicate address detection, so that they
    /// can be used at once.
    pub fn add_address(&mut self, link: u32, address: IpNet) -> Result<()> {
        let flags = abi::NLM_F_CREATE | abi::NLM_F_EXCL;
        let operation = format!("add address {address} to link {link}");
        self.execute(request(abi::RTM_NEWADDR, flags, link, address, operation))
    }

    /// As [`Netlink::add_address`], content if the address is there already.
    pub fn ensure_address(&mut self, link: u32, address: IpNet) -> Result<()> {
        match self.add_address(link, address) {
            Err(e) if e.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Removes an address from a link.
    pub fn delete_address(&mut self, link: u32, address: IpNet) -> Result<()> {
        let operation = format!("delete address {address} from link {link}");
        self.execute(request(abi::RTM_DELADDR, 0, link, address, operation))
    }

    /// All addresses of the namespace.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        self.dump(
            || Request::new(abi::RTM_GETADDR, 0, &[0; FIXED], "list addresses".into()),
            parse,
        )
    }
}

fn request(kind: u16, flags: u16, link: u32, address: IpNet, operation: String) -> Request {
    let family = Family::of(&address.addr());
    let mut fixed = [0; FIXED];
    fixed[0] = family.raw();
    fixed[1] = address.prefix_len();
    fixed[4..8].copy_from_slice(&link.to_ne_bytes());
    let mut request = Request::new(kind, flags, &fixed, operation);
    request.ip(abi::IFA_LOCAL, address.addr());
    request.ip(abi::IFA_ADDRESS, address.addr());
    if family == Family::V6 && kind == abi::RTM_NEWADDR {
        request.u32(abi::IFA_FLAGS, abi::IFA_F_NODAD);
    }
    request
}

fn parse(message: &Message<'_>) -> Option<Address> {
    if message.kind != abi::RTM_NEWADDR {
        return None;
    }
    let prefix = *message.body.get(1)?;
    let link = read_u32(message.body, 4)?;
    let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for (kind, value) in attributes(message.body, FIXED) {
        match kind {
            abi::IFA_LOCAL => local = read_ip(value),
            abi::IFA_ADDRESS => address = read_ip(value),
            _ => {}
        }
    }
    let address = IpNet::new(local.or(address)?, prefix).ok()?;
    Some(Address { link, address })
}
