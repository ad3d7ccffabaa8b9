//! Policies of single sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::abi;
use crate::Family;

/// Lets all packets of a socket pass by the policies of the namespace, in both directions: a key
/// exchange must not wait for the SAs that it makes. Takes CAP_NET_ADMIN.
pub fn bypass_policies(socket: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_XFRM_POLICY),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_XFRM_POLICY),
    };
    for direction in [abi::POLICY_IN, abi::POLICY_OUT] {
        // An empty selector matches all of its family, no template asks for no SA.
        let mut policy = [0u8; abi::POLICY_LEN];
        policy[40..42].copy_from_slice(&u16::from(family.raw()).to_ne_bytes());
        policy[56..88].fill(0xff);
        policy[160] = direction;
        policy[161] = abi::POLICY_ALLOW;
        // SAFETY: the descriptor is open for the length of the call, and the kernel reads the
        // given number of bytes from a live local variable.
        let code = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                policy.as_ptr().cast(),
                policy.len() as libc::socklen_t,
            )
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
