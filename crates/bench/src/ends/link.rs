//! What the two ends say to each other.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// The longest message.
const LONGEST: usize = 64 * 1024;

/// How long threads may go on computing when the other end is gone.
const LAST_WORK: Duration = Duration::from_secs(10);

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An IKE datagram of the connection with this number.
    Datagram(u32),
    /// The CA's certificate (DER).
    Ca,
    /// The hub's certificate (DER).
    Certificate,
    /// The hub's private key (PKCS#8).
    Key,
    /// The sender can begin.
    Ready,
}

/// A socket pair that keeps the borders of messages and their order.
pub(crate) fn pair() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).context("a socket pair")
}

/// One end of the pair.
pub(crate) struct Link {
    socket: OwnedFd,
    /// What did not fit into the socket.
    waiting: VecDeque<Vec<u8>>,
    /// Since when the other end is known to have come to its end.
    gone: Option<Instant>,
    buffer: Vec<u8>,
}

impl Link {
    /// The one that the process was started with.
    pub(crate) fn stdin() -> anyhow::Result<Self> {
        let socket = rustix::stdio::stdin()
            .try_clone_to_owned()
            .context("standard input")?;
        Ok(Self::over(socket))
    }

    /// One end of [`pair`].
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            waiting: VecDeque::new(),
            gone: None,
            buffer: vec![0; LONGEST],
        }
    }

    /// Sends a message, now or when there is room.
    pub(crate) fn send(&mut self, kind: Kind, bytes: &[u8]) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(5 + bytes.len());
        let (code, number) = match kind {
            Kind::Datagram(number) => (0, number),
            Kind::Ca => (1, 0),
            Kind::Certificate => (2, 0),
            Kind::Key => (3, 0),
            Kind::Ready => (4, 0),
        };
        message.push(code);
        message.extend(u32::to_be_bytes(number));
        message.extend(bytes);
        self.waiting.push_back(message);
        self.flush()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        while let Some(message) = self.waiting.front() {
            match send(&self.socket, message, SendFlags::NOSIGNAL) {
                Ok(_) => self.waiting.pop_front(),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.gone.get_or_insert_with(Instant::now);
                    self.waiting.clear();
                    return Ok(());
                }
                Err(error) => return Err(io::Error::from(error)).context("the other end"),
            };
        }
        Ok(())
    }

    /// Whether all that was sent is on its way.
    pub(crate) fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next message, if one is there.
    pub(crate) fn receive(&mut self) -> anyhow::Result<Option<(Kind, &[u8])>> {
        self.flush()?;
        let (_, got) = match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
            Ok(done) => done,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => (0, 0),
            Err(error) => return Err(io::Error::from(error)).context("the other end"),
        };
        let Some(([code, number @ ..], bytes)) = self.buffer[..got].split_first_chunk::<5>() else {
            self.gone.get_or_insert_with(Instant::now);
            return Ok(None);
        };
        let kind = match code {
            0 => Kind::Datagram(u32::from_be_bytes(*number)),
            1 => Kind::Ca,
            2 => Kind::Certificate,
            3 => Kind::Key,
            4 => Kind::Ready,
            other => bail!("a message of kind {other}"),
        };
        Ok(Some((kind, bytes)))
    }

    /// Waits until a message is there, or room where some is wanted, or something to be read from
    /// `bell`, or the time is over.
    ///
    /// The other end may have come to its end, with all that it had to say, while threads still compute what
    /// completes this one: theirs is waited for. Where there are none, or they take too long, it is an error.
    pub(crate) fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> anyhow::Result<()> {
        if let Some(since) = self.gone
            && (bell.is_none() || since.elapsed() > LAST_WORK)
        {
            bail!(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the other end is gone"
            ));
        }
        let mut flags = PollFlags::IN;
        if !self.is_flushed() {
            flags |= PollFlags::OUT;
        }
        let time = Timespec::try_from(most).context("a wait")?;
        let mut awaited = Vec::with_capacity(2);
        if self.gone.is_none() {
            awaited.push(PollFd::from_borrowed_fd(self.socket.as_fd(), flags));
        }
        awaited.extend(bell.map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN)));
        match poll(&mut awaited, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error)).context("poll"),
        }
    }

    /// The next message, waited for, which must be of that kind.
    pub(crate) fn expect(&mut self, wanted: Kind) -> anyhow::Result<Vec<u8>> {
        for _ in 0..1200 {
            if let Some((kind, bytes)) = self.receive()? {
                anyhow::ensure!(kind == wanted, "{kind:?} instead of {wanted:?}");
                return Ok(bytes.to_vec());
            }
            self.wait(Duration::from_millis(100), None)?;
        }
        bail!("the other end says nothing");
    }
}
