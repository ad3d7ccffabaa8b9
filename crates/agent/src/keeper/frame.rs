//! What agent and keeper say to each other: frames of one length, descriptors beside them.
//!
//! The first words of a frame never change, nor what [`Kind::Take`] and [`Kind::Leave`] mean: so an agent
//! takes over from a keeper of any build.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Bytes of a frame.
pub(super) const LEN: usize = 64;
/// Descriptors that may come with one.
pub(super) const MOST: usize = 4;

const MAGIC: [u8; 4] = *b"tkp1";
/// Where the build's version stands, in ASCII.
const VERSION: std::ops::Range<usize> = 16..48;
/// Where an address stands, that of IPv4 mapped into IPv6 (RFC 4291 2.5.5.2).
const ADDRESS: std::ops::Range<usize> = 48..64;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The keeper's first word: its version, and whether it is a standing one.
    Hello,
    /// Asks for the sockets; the answer is [`Kind::Here`] with them.
    Take,
    /// The sockets, and the keeper's patience.
    Here,
    /// Gives sockets instead of those that are held, and patience; the answer is [`Kind::Done`].
    Hold,
    /// Says the patience alone; no answer.
    Patience,
    /// Lets go of the sockets; one that an agent has started ends. The answer is [`Kind::Done`].
    Release,
    /// The same, and any keeper ends: another one takes its place.
    Leave,
    /// It is done.
    Done,
    /// Asks for a new socket that is bound to an address; the answer is [`Kind::Bound`] with it.
    Bind,
    /// The socket; without one, the port is the number of the error.
    Bound,
}

const KINDS: [(u8, Kind); 10] = [
    (1, Kind::Hello),
    (2, Kind::Take),
    (3, Kind::Here),
    (4, Kind::Hold),
    (5, Kind::Patience),
    (6, Kind::Release),
    (7, Kind::Leave),
    (8, Kind::Done),
    (9, Kind::Bind),
    (10, Kind::Bound),
];

/// A frame without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// Of the keeper: nobody's child.
    pub(super) standing: bool,
    /// How long sockets are held without an agent; whole seconds.
    pub(super) patience: Duration,
    /// The build of who says it: printable ASCII, cut to what fits.
    pub(super) version: String,
    /// What to bind; of others 0.
    pub(super) local: SocketAddr,
}

impl Frame {
    pub(super) fn new(kind: Kind) -> Frame {
        Frame {
            kind,
            standing: false,
            patience: Duration::ZERO,
            version: String::new(),
            local: (Ipv6Addr::UNSPECIFIED, 0).into(),
        }
    }

    /// Asks for a socket at this address.
    pub(super) fn bind(local: SocketAddr) -> Frame {
        Frame {
            local,
            ..Frame::new(Kind::Bind)
        }
    }

    /// The answer to [`Kind::Bind`] where that failed.
    pub(super) fn unbound(error: &io::Error) -> Frame {
        let number = error.raw_os_error().unwrap_or_default();
        let port = u16::try_from(number).unwrap_or_default();
        Frame {
            local: (Ipv6Addr::UNSPECIFIED, port).into(),
            ..Frame::new(Kind::Bound)
        }
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        let number = KINDS.iter().find(|(_, kind)| *kind == self.kind);
        bytes[4] = number.expect("every kind has a number").0;
        bytes[5] = u8::from(self.standing);
        bytes[6..8].copy_from_slice(&self.local.port().to_le_bytes());
        let address = match self.local.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        bytes[ADDRESS].copy_from_slice(&address.octets());
        bytes[8..16].copy_from_slice(&self.patience.as_secs().to_le_bytes());
        let version = self.version.as_bytes().iter().take(VERSION.len());
        for (place, byte) in bytes[VERSION].iter_mut().zip(version) {
            *place = *byte;
        }
        bytes
    }

    /// `None`: it is no frame, or of a kind that this build does not know.
    fn parse(bytes: &[u8; LEN]) -> Option<Frame> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let number = *rest.first()?;
        let kind = KINDS.iter().find(|(of, _)| *of == number)?.1;
        let (patience, _) = bytes[8..].split_first_chunk::<8>()?;
        let version = &bytes[VERSION];
        let end = version.iter().position(|byte| *byte == 0);
        let version = std::str::from_utf8(&version[..end.unwrap_or(version.len())]).ok()?;
        let port = u16::from_le_bytes([bytes[6], bytes[7]]);
        let address = <[u8; 16]>::try_from(&bytes[ADDRESS]).ok()?;
        let address = Ipv6Addr::from(address).to_canonical();
        let printable = version.bytes().all(|byte| byte.is_ascii_graphic());
        (*magic == MAGIC && printable).then(|| Frame {
            kind,
            standing: bytes[5] & 1 != 0,
            patience: Duration::from_secs(u64::from_le_bytes(*patience)),
            version: version.to_owned(),
            local: (address, port).into(),
        })
    }
}

/// Sends a frame and descriptors, at most [`MOST`]. A frame is short: the kernel takes it whole.
pub(super) fn send(
    stream: impl AsFd,
    frame: &Frame,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for a frame"));
    }
    let bytes = frame.bytes();
    let parts = [IoSlice::new(&bytes)];
    match rustix::net::sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL)? {
        LEN => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// A frame that comes in, perhaps in parts.
#[derive(Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Incoming {
    /// Reads once. `None`: more is to come.
    ///
    /// # Errors
    /// As the socket's; `UnexpectedEof` at its end, `InvalidData` for what is no frame. Then the stream is
    /// of no use any more.
    pub(super) fn read(&mut self, stream: impl AsFd) -> io::Result<Option<(Frame, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; LEN];
        let left = LEN - self.bytes.len();
        let mut parts = [IoSliceMut::new(&mut buffer[..left])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(stream, &mut parts, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend_from_slice(&buffer[..got.bytes]);
        if self.descriptors.len() > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Ok(whole) = <[u8; LEN]>::try_from(self.bytes.as_slice()) else {
            return Ok(None);
        };
        self.bytes.clear();
        let descriptors = std::mem::take(&mut self.descriptors);
        let frame = Frame::parse(&whole).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((frame, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn frames_come_back_as_they_were_with_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        for ((_, kind), local) in KINDS
            .into_iter()
            .zip(["[::]:0", "1.2.3.4:500", "[fd00::1]:1"].into_iter().cycle())
        {
            let frame = Frame {
                standing: true,
                patience: Duration::from_secs(1234),
                version: "1.2.3".into(),
                local: local.parse().unwrap(),
                ..Frame::new(kind)
            };
            let (mut reader, writer) = std::io::pipe().unwrap();
            send(&a, &frame, &[writer.as_fd()]).unwrap();
            drop(writer);
            let (got, mut descriptors) = Incoming::default().read(&b).unwrap().unwrap();
            assert_eq!(got, frame);
            let mut writer = std::fs::File::from(descriptors.pop().unwrap());
            writer.write_all(b"the same pipe").unwrap();
            drop(writer);
            let mut read = String::new();
            reader.read_to_string(&mut read).unwrap();
            assert_eq!(read, "the same pipe");
        }
        drop(a);
        let error = Incoming::default().read(&b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn parts_are_put_together_and_what_is_no_frame_ends_it() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let bytes = Frame::new(Kind::Take).bytes();
        let mut incoming = Incoming::default();
        a.write_all(&bytes[..10]).unwrap();
        assert!(incoming.read(&b).unwrap().is_none());
        a.write_all(&bytes[10..]).unwrap();
        let (frame, _) = incoming.read(&b).unwrap().unwrap();
        assert_eq!(frame.kind, Kind::Take);
        for (at, byte) in [(0, b'x'), (4, 0), (4, 200), (20, 7), (20, 0xff)] {
            let mut broken = bytes;
            broken[at] = byte;
            broken[16] |= b'1';
            a.write_all(&broken).unwrap();
            let error = incoming.read(&b);
            // A byte behind the end of the version is of no meaning.
            let counts = at != 20;
            assert_eq!(error.is_err(), counts, "{at}");
        }
    }

    #[test]
    fn a_long_version_is_cut() {
        let frame = Frame {
            version: "1".repeat(100),
            ..Frame::new(Kind::Hello)
        };
        let parsed = Frame::parse(&frame.bytes()).unwrap();
        assert_eq!(parsed.version, "1".repeat(VERSION.len()));
    }
}
