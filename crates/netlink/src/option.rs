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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_set_and_a_refusal_is_told() {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_TTL, 7).unwrap();
        assert_eq!(socket.ttl().unwrap(), 7);
        let refused = set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_TTL, 256);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
