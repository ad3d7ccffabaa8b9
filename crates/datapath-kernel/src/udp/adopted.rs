//! A socket that a process before this one has opened: whether it is one that we would open ourselves.

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};
use testudo_netlink::Family;

/// `SO_NETNS_COOKIE` (Linux 5.14), which says in which network namespace a socket is.
const SO_NETNS_COOKIE: i32 = 71;

/// Those of `sockets` that are UDP, bound to this port on every address, in this network namespace: one
/// a family. And whether there were others.
pub(super) fn fitting(sockets: Vec<OwnedFd>, port: u16) -> (Vec<(Family, OwnedFd)>, bool) {
    let mut fit: Vec<(Family, OwnedFd)> = Vec::new();
    let mut others = false;
    for socket in sockets {
        match family(socket.as_fd(), port) {
            Some(family) if fit.iter().all(|(other, _)| *other != family) => {
                fit.push((family, socket));
            }
            _ => others = true,
        }
    }
    (fit, others)
}

fn family(socket: BorrowedFd<'_>, port: u16) -> Option<Family> {
    let domain = sockopt::socket_domain(socket).ok()?;
    let family = match domain {
        AddressFamily::INET => Family::V4,
        AddressFamily::INET6 => Family::V6,
        _ => return None,
    };
    let udp = Some(rustix::net::ipproto::UDP);
    let kind = (
        sockopt::socket_type(socket).ok()?,
        sockopt::socket_protocol(socket).ok()?,
    );
    let bound = SocketAddr::try_from(rustix::net::getsockname(socket).ok()?).ok()?;
    let any = match bound.ip() {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    let fits = kind == (SocketType::DGRAM, udp) && any && bound.port() == port;
    (fits && here(socket, domain)).then_some(family)
}

/// Whether it is in the network namespace of the calling thread.
fn here(socket: BorrowedFd<'_>, domain: AddressFamily) -> bool {
    let own = rustix::net::socket(domain, SocketType::DGRAM, None);
    own.is_ok_and(|own| cookie(own.as_fd()) == cookie(socket))
}

fn cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = MaybeUninit::<u64>::uninit();
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to a live variable of that size.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            cookie.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let whole = code == 0 && usize::try_from(len) == Ok(size_of::<u64>());
    // SAFETY: the kernel has written all of it.
    whole.then(|| unsafe { cookie.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn bound(address: &str) -> OwnedFd {
        UdpSocket::bind(address).unwrap().into()
    }

    #[test]
    fn only_what_we_would_open_ourselves_fits() {
        let any = bound("0.0.0.0:0");
        let port = UdpSocket::from(any.try_clone().unwrap())
            .local_addr()
            .unwrap()
            .port();
        let (fit, others) = fitting(vec![any.try_clone().unwrap()], port);
        assert_eq!((fit.len(), fit[0].0, others), (1, Family::V4, false));
        // Another port, one address alone, a second of the family, a pipe, TCP.
        assert!(fitting(vec![any.try_clone().unwrap()], port ^ 1).1);
        let one = bound("127.0.0.1:0");
        let port_of_one = UdpSocket::from(one.try_clone().unwrap())
            .local_addr()
            .unwrap()
            .port();
        assert!(fitting(vec![one], port_of_one).1);
        let twice = vec![any.try_clone().unwrap(), any];
        let (fit, others) = fitting(twice, port);
        assert_eq!((fit.len(), others), (1, true));
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert!(fitting(vec![tcp.into()], port).1);
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(fitting(vec![reader.into()], port).1);
    }
}
