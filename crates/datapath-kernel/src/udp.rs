//! The UDP socket (port 4500) that makes the kernel open ESP inside UDP (RFC 3948), and that IKE
//! comes and goes through.

mod adopted;

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use testudo_datapath::DatapathError;
use testudo_netlink::{Family, bypass_policies, set_socket_option};

use crate::keeper::UdpKeeper;

const SOL_UDP: i32 = 17;
const UDP_ENCAP: i32 = 100;
const UDP_ENCAP_ESPINUDP: i32 = 2;
/// What IKE messages begin with on this port (RFC 3948 2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// Room for bursts of IKE.
const BUFFER: usize = 1 << 20;
/// The longest datagram, bytes.
pub(crate) const LONGEST: usize = 65_535;

/// One socket a family.
pub(crate) struct UdpSockets {
    v4: OwnedFd,
    v6: Option<OwnedFd>,
    port: u16,
}

/// An IKE message, its marker taken off.
pub(crate) struct Datagram {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) message: Vec<u8>,
}

impl UdpSockets {
    /// Opens them in the network namespace of the calling thread. Where a keeper holds those of a
    /// process before this one, they are taken instead, with what has come in meanwhile; what it holds
    /// that does not fit it lets go. True: it holds them, all.
    pub(crate) fn open(
        port: u16,
        ipv6: bool,
        keeper: Option<&dyn UdpKeeper>,
    ) -> Result<(Self, bool), DatapathError> {
        let taken = keeper.map(UdpKeeper::take).unwrap_or_default();
        let wanted = |family: &Family| ipv6 || *family == Family::V4;
        let (fit, others) = adopted::fitting(taken, port);
        let (mut fit, left): (Vec<_>, Vec<_>) =
            fit.into_iter().partition(|(family, _)| wanted(family));
        let misfits = others || !left.is_empty();
        drop(left);
        if let Some(keeper) = keeper.filter(|_| misfits) {
            tracing::info!("the sockets of a process before do not fit and are closed");
            keeper.release();
        }
        let adopting = !fit.is_empty();
        let mut open = |family: Family| {
            let adopted = fit.iter().position(|(of, _)| *of == family);
            let opened = match adopted.map(|at| fit.swap_remove(at).1) {
                // Another build may have set other options.
                Some(socket) => set_up(socket.as_fd(), family).map(|()| socket),
                None => socket(family, port),
            };
            opened.map_err(|e| DatapathError::Refused {
                operation: format!("open UDP port {port}"),
                reason: match e.raw_os_error() {
                    Some(libc::EADDRINUSE) => {
                        "another program has it; stop the other IKE daemon (strongSwan, \
                         libreswan) on this node"
                            .into()
                    }
                    _ => e.to_string(),
                },
            })
        };
        let sockets = Self {
            v4: open(Family::V4)?,
            v6: match ipv6 {
                true => Some(open(Family::V6)?),
                false => None,
            },
            port,
        };
        if let Some(keeper) = keeper.filter(|_| adopting) {
            tracing::info!("the UDP sockets of the process before this one go on");
            keeper.hold(sockets.duplicates());
        }
        Ok((sockets, adopting))
    }

    /// Further descriptors of them, for who is to hold them too. One that cannot be had is left out.
    pub(crate) fn duplicates(&self) -> Vec<OwnedFd> {
        let all = self.all().map(|(socket, _)| socket.try_clone_to_owned());
        let had = all.filter_map(|copy| {
            copy.inspect_err(|error| tracing::warn!("a UDP socket cannot be held: {error}"))
                .ok()
        });
        had.collect()
    }

    /// All of them, each with its port.
    pub(crate) fn all(&self) -> impl Iterator<Item = (BorrowedFd<'_>, u16)> {
        let v6 = self.v6.as_ref();
        std::iter::once(&self.v4)
            .chain(v6)
            .map(|socket| (socket.as_fd(), self.port))
    }

    /// Sends from one of our addresses.
    pub(crate) fn send(&self, local: IpAddr, remote: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let socket = match (remote.is_ipv4(), &self.v6) {
            (true, _) => self.v4.as_fd(),
            (false, Some(v6)) => v6.as_fd(),
            (false, None) => return Err(io::Error::other("this host has no IPv6")),
        };
        send(socket, local, remote, bytes)
    }

    /// Sends an IKE message behind its marker.
    pub(crate) fn send_ike(
        &self,
        local: IpAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> io::Result<()> {
        let marked = [&NON_ESP_MARKER, message].concat();
        self.send(local, remote, &marked)
    }

    /// The next datagram that waits, if any: `Some(None)` is no IKE message. ESP goes to the
    /// kernel, keepalives to nobody. `buffer` is of [`LONGEST`].
    pub(crate) fn receive(
        &self,
        socket: BorrowedFd<'_>,
        port: u16,
        buffer: &mut [u8],
    ) -> Option<Option<Datagram>> {
        let (len, local, remote) = receive(socket, buffer).ok()?;
        let read = || {
            Some(Datagram {
                local: SocketAddr::new(local?, port),
                remote: remote?,
                message: buffer[..len].strip_prefix(&NON_ESP_MARKER)?.to_vec(),
            })
        };
        Some(read())
    }
}

fn socket(family: Family, port: u16) -> io::Result<OwnedFd> {
    let (domain, address): (_, SocketAddr) = match family {
        Family::V4 => (AddressFamily::INET, (Ipv4Addr::UNSPECIFIED, port).into()),
        Family::V6 => (AddressFamily::INET6, (Ipv6Addr::UNSPECIFIED, port).into()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(domain, SocketType::DGRAM, flags, None)?;
    if family == Family::V6 {
        rustix::net::sockopt::set_ipv6_v6only(socket.as_fd(), true)?;
    }
    set_up(socket.as_fd(), family)?;
    rustix::net::bind(socket.as_fd(), &address)?;
    Ok(socket)
}

/// Sets the options that it may be given at any time.
fn set_up(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    rustix::io::ioctl_fionbio(fd, true)?;
    match family {
        Family::V4 => {
            set_socket_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            // IKE messages that are longer than the path are sent in fragments, never lost.
            let dont = libc::IP_PMTUDISC_DONT;
            set_socket_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, dont)?;
        }
        Family::V6 => {
            set_socket_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            let dont = libc::IPV6_PMTUDISC_DONT;
            set_socket_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, dont)?;
        }
    }
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(fd, BUFFER);
    bypass_policies(fd, family)?;
    set_socket_option(fd, SOL_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
}

/// Control messages, aligned as their headers want.
#[repr(align(8))]
struct Control([u8; 128]);

fn send(socket: BorrowedFd<'_>, local: IpAddr, remote: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let (mut name, name_len) = raw_address(remote);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 128]);
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: the control buffer is live, aligned and longer than one header with its largest
    // body; each write stays in the body that CMSG_LEN names.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        match local {
            IpAddr::V4(local) => {
                let mut info: libc::in_pktinfo = MaybeUninit::zeroed().assume_init();
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(local.octets());
                let len = size_of::<libc::in_pktinfo>() as u32;
                (*header).cmsg_level = libc::IPPROTO_IP;
                (*header).cmsg_type = libc::IP_PKTINFO;
                (*header).cmsg_len = libc::CMSG_LEN(len) as _;
                libc::CMSG_DATA(header)
                    .cast::<libc::in_pktinfo>()
                    .write_unaligned(info);
                message.msg_controllen = libc::CMSG_SPACE(len) as _;
            }
            IpAddr::V6(local) => {
                let mut info: libc::in6_pktinfo = MaybeUninit::zeroed().assume_init();
                info.ipi6_addr.s6_addr = local.octets();
                let len = size_of::<libc::in6_pktinfo>() as u32;
                (*header).cmsg_level = libc::IPPROTO_IPV6;
                (*header).cmsg_type = libc::IPV6_PKTINFO;
                (*header).cmsg_len = libc::CMSG_LEN(len) as _;
                libc::CMSG_DATA(header)
                    .cast::<libc::in6_pktinfo>()
                    .write_unaligned(info);
                message.msg_controllen = libc::CMSG_SPACE(len) as _;
            }
        }
    }
    // SAFETY: all that `message` points to lives until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

type Received = (usize, Option<IpAddr>, Option<SocketAddr>);

/// One datagram: its length, the address it was sent to, and who sent it.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: all-zero is a valid sockaddr_storage and a valid msghdr.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe {
        (
            MaybeUninit::zeroed().assume_init(),
            MaybeUninit::zeroed().assume_init(),
        )
    };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = Control([0; 128]);
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: all that `message` points to lives until the call returns.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(len) = usize::try_from(len) else {
        return Err(io::Error::last_os_error());
    };
    let mut local = None;
    // SAFETY: the kernel filled the control buffer up to msg_controllen; the macros stay in it,
    // and each body is read without assuming its alignment.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    local = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((len, local, address(&name)))
}

fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_storage is as large and as aligned as any address.
            let raw = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which of the addresses it is.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some((ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some((ip, u16::from_be(raw.sin6_port)).into())
        }
        _ => None,
    }
}
