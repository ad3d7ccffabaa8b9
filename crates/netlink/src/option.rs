//! Options of sockets that have no safe function of their own.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets an option whose value is a C int.
///
/// # Errors
/// The kernel's: it does not know the option, or refuses the value.
pub fn set_socket_option(
    socket: impl AsFd,
    level: i32,
    option: i32,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and the kernel reads exactly
    // `size_of::<c_int>()` bytes from a live local variable.
    let code = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Who is at the other end of a UNIX socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; none where our PID namespace does not have it, as between containers.
    pub pid: Option<i32>,
    /// Its user, as our user namespace counts.
    pub uid: u32,
}

/// Asks the kernel who was at the other end of a UNIX socket when the connection was made (`SO_PEERCRED`).
///
/// # Errors
/// The kernel's.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let size = size_of::<libc::ucred>() as libc::socklen_t;
    let mut len = size;
    // SAFETY: the descriptor is open for the length of the call, and the kernel writes at most `len` bytes
    // to a live local variable of that size, for which every bit pattern is good.
    let code = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    match code {
        0 if len == size => Ok(Peer {
            pid: Some(found.pid).filter(|pid| *pid > 0),
            uid: found.uid,
        }),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_other_end_is_known() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let found = peer(&one).unwrap();
        assert_eq!(found.pid, i32::try_from(std::process::id()).ok());
        assert_eq!(found.uid, std::fs::metadata("/proc/self").unwrap().uid());
    }

    #[test]
    fn an_option_is_set_and_a_refusal_is_told() {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_TTL, 7).unwrap();
        assert_eq!(socket.ttl().unwrap(), 7);
        let refused = set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_TTL, 256);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
