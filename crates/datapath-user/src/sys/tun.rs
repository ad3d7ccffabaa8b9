//! The TUN device, several queues of it, with virtio headers and offloads.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use testudo_datapath::DatapathError;

const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_VNET_HDR: u16 = 0x4000;
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;
const TUN_F_TSO_ECN: u64 = 0x08;
const TUN_F_USO4: u64 = 0x20;
const TUN_F_USO6: u64 = 0x40;

/// What the kernel leaves to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    /// Nothing: whole packets with their checksums.
    None,
    /// Checksums.
    Checksum,
    /// Checksums and TCP segmentation.
    Tcp,
    /// Checksums, TCP and UDP segmentation (Linux 6.2).
    TcpUdp,
}

/// One queue of the device. The device goes when the last queue is closed.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Reads one packet, virtio header first. `Ok(None)`: none waits.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.file, buffer) {
            Ok(len) => Ok(Some(len)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes one packet, given in pieces, virtio header first.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.file, parts)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens a device of that name with so many queues, in the namespace of the calling thread.
pub(crate) fn open_tun(
    name: &str,
    queues: usize,
    wanted: Offloads,
) -> Result<(Vec<Tun>, Offloads), DatapathError> {
    let mut opened = Vec::with_capacity(queues);
    for _ in 0..queues {
        opened.push(open_queue(name)?);
    }
    let order = [Offloads::TcpUdp, Offloads::Tcp, Offloads::Checksum];
    // Offloads belong to the device: one queue speaks for all.
    let granted = order
        .into_iter()
        .skip_while(|level| wanted != Offloads::None && *level != wanted)
        .find(|level| wanted != Offloads::None && set_offloads(&opened[0], *level).is_ok());
    if granted.is_none() {
        // The kernel takes none: it hands out whole packets, which always works.
        let _ = set_offloads(&opened[0], Offloads::None);
    }
    Ok((opened, granted.unwrap_or(Offloads::None)))
}

fn open_queue(name: &str) -> Result<Tun, DatapathError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|e| explain_open(&e))?;
    // struct ifreq: 16 bytes of name, then the flags; 40 bytes in all on 64-bit machines.
    let mut request = [0u8; 40];
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 15 {
        return Err(DatapathError::Refused {
            operation: format!("open the device {name:?}"),
            reason: "its name must have 1 to 15 bytes".into(),
        });
    }
    request[..bytes.len()].copy_from_slice(bytes);
    let flags = IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the descriptor is open, and the kernel reads and writes at most
    // sizeof(struct ifreq) = 40 bytes of a live local array.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    if code != 0 {
        return Err(explain_setup(name, &io::Error::last_os_error()));
    }
    let size: libc::c_int = crate::segment::VNET_LEN as libc::c_int;
    // SAFETY: the descriptor is open, and the kernel reads one int of a live local variable.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) };
    if code != 0 {
        return Err(explain_setup(name, &io::Error::last_os_error()));
    }
    Ok(Tun { file })
}

fn set_offloads(tun: &Tun, level: Offloads) -> io::Result<()> {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let flags = match level {
        Offloads::None => 0,
        Offloads::Checksum => TUN_F_CSUM,
        Offloads::Tcp => tcp,
        Offloads::TcpUdp => tcp | TUN_F_USO4 | TUN_F_USO6,
    };
    // SAFETY: the descriptor is open, and this ioctl takes its argument by value.
    let code = unsafe {
        libc::ioctl(
            tun.file.as_raw_fd(),
            TUNSETOFFLOAD as _,
            flags as libc::c_ulong,
        )
    };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn explain_open(error: &io::Error) -> DatapathError {
    let (what, remedy) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => (
            "/dev/net/tun is missing".to_owned(),
            "load the kernel module (modprobe tun), and in a container mount /dev/net/tun",
        ),
        Some(libc::EACCES | libc::EPERM) => (
            format!("/dev/net/tun cannot be opened ({error})"),
            "run as root, or make the device readable and writable (chmod 0666 /dev/net/tun)",
        ),
        _ => (
            format!("/dev/net/tun cannot be opened ({error})"),
            "check that the kernel has CONFIG_TUN",
        ),
    };
    DatapathError::Missing {
        what,
        remedy: remedy.into(),
    }
}

fn explain_setup(name: &str, error: &io::Error) -> DatapathError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => DatapathError::Missing {
            what: format!("the capability CAP_NET_ADMIN is missing to make the device {name}"),
            remedy: "run as root, or give the process CAP_NET_ADMIN".into(),
        },
        Some(libc::EBUSY | libc::EINVAL) => DatapathError::Refused {
            operation: format!("make the device {name}"),
            reason: format!(
                "{error}; another program may use the name: see `ip -d link show {name}`"
            ),
        },
        _ => DatapathError::Refused {
            operation: format!("make the device {name}"),
            reason: error.to_string(),
        },
    }
}
