//! The sockets below: raw ESP and UDP 4500, a set for each queue.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};
use testudo_datapath::DatapathError;
use testudo_netlink::set_socket_option;

const ESP: i32 = 50;
/// Room for bursts of thousands of packets while a thread is not scheduled.
const BUFFER: usize = 16 << 20;

const SOL_UDP: i32 = 17;
const UDP_GRO: i32 = 104;

/// What one queue sends from and receives on. A family that the kernel lacks has none.
#[derive(Debug)]
pub(crate) struct QueueSockets {
    pub(crate) raw4: Socket,
    pub(crate) raw6: Option<Socket>,
    pub(crate) udp4: Socket,
    pub(crate) udp6: Option<Socket>,
}

/// Opens the sockets of all queues in the namespace of the calling thread.
pub(crate) fn open_queues(count: usize, port: u16) -> Result<Vec<QueueSockets>, DatapathError> {
    (0..count)
        .map(|queue| {
            Ok(QueueSockets {
                raw4: raw(Domain::IPV4, queue, count)?,
                raw6: if_present(raw(Domain::IPV6, queue, count))?,
                udp4: udp(Domain::IPV4, port)?,
                udp6: if_present(udp(Domain::IPV6, port))?,
            })
        })
        .collect()
}

/// An IPv6 socket on a kernel without IPv6 is no error.
fn if_present(result: Result<Socket, DatapathError>) -> Result<Option<Socket>, DatapathError> {
    match result {
        Ok(socket) => Ok(Some(socket)),
        Err(_) if !std::path::Path::new("/proc/sys/net/ipv6").exists() => Ok(None),
        Err(e) => Err(e),
    }
}

fn raw(domain: Domain, queue: usize, count: usize) -> Result<Socket, DatapathError> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(ESP))).map_err(|e| match e
        .raw_os_error()
    {
        Some(libc::EPERM | libc::EACCES) => DatapathError::Missing {
            what: "the capability CAP_NET_RAW is missing to open an ESP socket".into(),
            remedy: "run as root, or give the process CAP_NET_RAW".into(),
        },
        _ => refused("open an ESP socket", &e),
    })?;
    common(&socket, domain).map_err(|e| refused("set up an ESP socket", &e))?;
    // Each raw socket would get a copy of each packet: a filter leaves every SA to one queue, so
    // that its packets also stay in order.
    if count > 1 {
        filter_by_spi(&socket, domain, queue, count)
            .map_err(|e| refused("filter an ESP socket", &e))?;
    }
    Ok(socket)
}

fn udp(domain: Domain, port: u16) -> Result<Socket, DatapathError> {
    let operation = format!("open UDP port {port}");
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
        .map_err(|e| refused(&operation, &e))?;
    let set_up = || -> io::Result<()> {
        socket.set_reuse_port(true)?;
        common(&socket, domain)?;
        // Without it each datagram comes alone, which is slower and nothing else.
        let _ = set_socket_option(&socket, SOL_UDP, UDP_GRO, 1);
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        Ok(())
    };
    set_up().map_err(|e| refused(&operation, &e))?;
    let address: SocketAddr = match domain {
        Domain::IPV4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        _ => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    socket
        .bind(&address.into())
        .map_err(|e| match e.raw_os_error() {
            Some(libc::EADDRINUSE) => DatapathError::Refused {
                operation: operation.clone(),
                reason:
                    "another program has it; stop the other IKE daemon (strongSwan, libreswan) \
                     on this node"
                        .into(),
            },
            _ => refused(&operation, &e),
        })?;
    Ok(socket)
}

fn common(socket: &Socket, domain: Domain) -> io::Result<()> {
    if force_buffer(socket, libc::SO_RCVBUFFORCE).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if force_buffer(socket, libc::SO_SNDBUFFORCE).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    // The kernel fragments what is larger than the path: sealed packets are never lost for size.
    match domain {
        Domain::IPV4 => {
            set_socket_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            set_socket_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            set_socket_option(
                socket,
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            )
        }
        _ => {
            set_socket_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set_socket_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            let dont = libc::IPV6_PMTUDISC_DONT;
            set_socket_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, dont)
        }
    }
}

fn force_buffer(socket: &Socket, option: i32) -> io::Result<()> {
    set_socket_option(socket, libc::SOL_SOCKET, option, BUFFER as libc::c_int)
}

/// Accepts the packets whose SPI modulo `count` is `queue`.
fn filter_by_spi(socket: &Socket, domain: Domain, queue: usize, count: usize) -> io::Result<()> {
    let op = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let (load_header, load_spi) = match domain {
        // X = 4 * (header length); A = word at X. IPv4 raw sockets see the IP header.
        Domain::IPV4 => (op(0xb1, 0, 0, 0), op(0x40, 0, 0, 0)),
        // IPv6 raw sockets see the payload only; the first instruction does nothing of use.
        _ => (op(0x01, 0, 0, 0), op(0x20, 0, 0, 0)),
    };
    let mut program = [
        load_header,
        load_spi,
        op(0x94, 0, 0, count as u32),
        op(0x15, 0, 1, queue as u32),
        op(0x06, 0, 0, u32::MAX),
        op(0x06, 0, 0, 0),
    ];
    let fprog = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `fprog` points to a live array of `len` instructions, which the kernel copies.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const fprog).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn refused(operation: &str, error: &io::Error) -> DatapathError {
    DatapathError::Refused {
        operation: operation.into(),
        reason: error.to_string(),
    }
}
