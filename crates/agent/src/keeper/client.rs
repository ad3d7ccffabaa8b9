//! The agent's side: it takes sockets from a keeper, hands its own over, and sees to it that there is
//! a keeper while it holds any.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Socket, Type};
use testudo_datapath_kernel::UdpKeeper;

use super::frame::{Frame, Incoming, Kind, send};
use super::{KeeperOptions, is_ours};

/// How long a keeper may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long one that was started may take to be there; a machine may be busy.
const STARTS: Duration = Duration::from_secs(20);
/// Between two starts in a row, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// One that lived so long was sound.
const SOUND: Duration = Duration::from_secs(10);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// What is held without anybody having said for how long: as long as SAs stand by default.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// A connection to a keeper, which has said who it is.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    /// Nobody's child.
    standing: bool,
    version: String,
}

impl Link {
    /// `None`: there is none.
    pub(super) fn open(socket: &Path) -> io::Result<Option<Link>> {
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error) => {
                use io::ErrorKind::{ConnectionRefused, NotFound};
                let none = matches!(error.kind(), ConnectionRefused | NotFound);
                return if none { Ok(None) } else { Err(error) };
            }
        };
        if !is_ours(&stream) {
            return Err(io::Error::other("another user's process listens there"));
        }
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut link = Link {
            stream,
            standing: false,
            version: String::new(),
        };
        let (hello, _) = match link.read() {
            // It was just ending.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        link.standing = hello.standing;
        link.version = hello.version;
        Ok(Some(link))
    }

    /// Sends a frame and waits for the answer.
    pub(super) fn ask(
        &self,
        frame: &Frame,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<(Frame, Vec<OwnedFd>)> {
        send(&self.stream, frame, sockets)?;
        self.read()
    }

    fn read(&self) -> io::Result<(Frame, Vec<OwnedFd>)> {
        let mut incoming = Incoming::default();
        loop {
            if let Some(whole) = incoming.read(&self.stream)? {
                return Ok(whole);
            }
        }
    }

    fn pid(&self) -> Option<i32> {
        testudo_netlink::peer(&self.stream).ok()?.pid
    }

    /// Returns when the keeper is gone, or the connection was shut down.
    fn wait_for_its_end(&self) {
        let _ = self.stream.set_read_timeout(None);
        while self.read().is_ok() {}
    }
}

/// A UDP socket that a keeper has bound to an address, for an agent that may not. `None`: no keeper is there.
///
/// # Errors
/// As the keeper's call of bind(2); it opens no other port than it was told to.
pub(crate) fn bind(keeper: &Path, local: SocketAddr) -> io::Result<Option<Socket>> {
    let Some(link) = Link::open(keeper)? else {
        return Ok(None);
    };
    let (answer, mut sockets) = link.ask(&Frame::bind(local), &[])?;
    let Some(socket) = sockets.pop() else {
        return Err(io::Error::from_raw_os_error(answer.local.port().into()));
    };
    let socket = Socket::from(socket);
    // It is what was asked for, and no other.
    let at = socket.local_addr()?.as_socket();
    match (answer.kind, at, socket.r#type()?) {
        (Kind::Bound, Some(at), Type::DGRAM) if at == local => Ok(Some(socket)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// What the datapath asks of a keeper, whichever process that is at the time.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The keeper that sockets were taken from.
    link: Option<Link>,
    guard: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: KeeperOptions,
    version: String,
    guard: Mutex<Guard>,
}

/// What the guard, a thread, shares with its owner.
#[derive(Debug)]
struct Guard {
    stop: bool,
    patience: Duration,
    /// The connection it waits at.
    stream: Option<UnixStream>,
    /// The keeper that this agent has started.
    child: Option<Child>,
}

impl Client {
    /// `version` is this build's.
    pub(crate) fn new(options: KeeperOptions, version: &str) -> Client {
        Client {
            shared: Arc::new(Shared {
                options,
                version: version.to_owned(),
                guard: Mutex::new(Guard {
                    stop: false,
                    patience: PATIENCE,
                    stream: None,
                    child: None,
                }),
            }),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the guard; the keeper stays.
    fn stop(&self, state: &mut State) {
        let Some(thread) = state.guard.take() else {
            return;
        };
        let stream = {
            let mut guard = self.shared.guard();
            guard.stop = true;
            guard.stream.take()
        };
        if let Some(stream) = stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        thread.thread().unpark();
        let _ = thread.join();
        self.shared.guard().stop = false;
    }
}

impl UdpKeeper for Client {
    fn take(&self) -> Vec<OwnedFd> {
        let mut state = self.state();
        self.stop(&mut state);
        state.link = None;
        let taken = || -> io::Result<(Option<Link>, Vec<OwnedFd>)> {
            let Some(link) = Link::open(&self.shared.options.socket)? else {
                return Ok((None, Vec::new()));
            };
            let (_, sockets) = link.ask(&Frame::new(Kind::Take), &[])?;
            if link.standing || link.version == self.shared.version {
                return Ok((Some(link), sockets));
            }
            // It has given all that it has; the next one is started from this build.
            tracing::info!(version = link.version, "another build's keeper is replaced");
            link.ask(&Frame::new(Kind::Leave), &[])?;
            Ok((None, sockets))
        };
        let (link, sockets) = taken().unwrap_or_else(|error| {
            let socket = self.shared.options.socket.display();
            tracing::warn!("the keeper at {socket} does not answer: {error}");
            (None, Vec::new())
        });
        state.link = link;
        sockets
    }

    fn hold(&self, sockets: Vec<OwnedFd>) {
        let mut state = self.state();
        self.stop(&mut state);
        let link = state.link.take();
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || shared.run(link, &sockets));
        match started {
            Ok(thread) => state.guard = Some(thread),
            Err(error) => tracing::warn!("the UDP sockets end with this process: {error}"),
        }
    }

    fn set_patience(&self, patience: Duration) {
        let mut guard = self.shared.guard();
        if guard.patience == patience {
            return;
        }
        guard.patience = patience;
        if let Some(stream) = &guard.stream {
            let frame = Frame {
                patience,
                ..Frame::new(Kind::Patience)
            };
            // Should it be gone, the next one is told.
            let _ = send(stream, &frame, &[]);
        }
    }

    fn release(&self) {
        let mut state = self.state();
        self.stop(&mut state);
        state.link = None;
        let socket = &self.shared.options.socket;
        let released = Link::open(socket).and_then(|link| match link {
            Some(link) => link.ask(&Frame::new(Kind::Release), &[]).map(|_| true),
            None => Ok(false),
        });
        match released {
            Ok(true) => tracing::info!("the keeper has let go of the UDP sockets"),
            Ok(false) => {}
            Err(error) => {
                let socket = socket.display();
                tracing::warn!("the keeper at {socket} does not let go: {error}");
            }
        }
        self.shared.reap(ANSWER);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut state = self.state();
        self.stop(&mut state);
    }
}

impl Shared {
    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a keeper holds them, until it is told to stop.
    fn run(&self, mut link: Option<Link>, sockets: &[OwnedFd]) {
        let mut pause = Duration::ZERO;
        while !self.guard().stop {
            let begun = Instant::now();
            let held = match link.take() {
                Some(link) => Ok(Some(link)),
                None => self.reach(),
            };
            match held.and_then(|link| self.hand_over(link, sockets)) {
                Ok(Some(link)) => link.wait_for_its_end(),
                Ok(None) => {}
                Err(error) => tracing::warn!("no keeper holds the UDP sockets: {error}"),
            }
            if self.guard().stop {
                return;
            }
            tracing::warn!("the keeper is gone; another one is started");
            if begun.elapsed() >= SOUND {
                pause = Duration::ZERO;
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).clamp(AGAIN.0, AGAIN.1);
        }
    }

    /// The keeper that there is, or one that is started. `None`: it was told to stop.
    fn reach(&self) -> io::Result<Option<Link>> {
        if let Some(link) = Link::open(&self.options.socket)? {
            return Ok(Some(link));
        }
        self.start()?;
        let start = Instant::now();
        loop {
            if let Some(link) = Link::open(&self.options.socket)? {
                return Ok(Some(link));
            }
            let mut guard = self.guard();
            if guard.stop {
                return Ok(None);
            }
            let ended = guard.child.as_mut().map(Child::try_wait).transpose()?;
            if let Some(status) = ended.flatten() {
                guard.child = None;
                return Err(io::Error::other(format!("it ended at once: {status}")));
            }
            drop(guard);
            if start.elapsed() > STARTS {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn start(&self) -> io::Result<()> {
        // One of ours that cannot be reached is of no use, and in the way.
        if let Some(mut child) = self.guard().child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let Some((program, arguments)) = self.options.program.split_first() else {
            return Err(io::Error::other("no program is a keeper"));
        };
        let child = Command::new(program)
            .arg0("testudo")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A pipe that others wait at must not stay open because of it.
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        self.guard().child = Some(child);
        Ok(())
    }

    fn hand_over(&self, link: Option<Link>, sockets: &[OwnedFd]) -> io::Result<Option<Link>> {
        let Some(link) = link else { return Ok(None) };
        let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        // Under the lock: who changes the patience says it after this.
        let mut guard = self.guard();
        if guard.stop {
            return Ok(None);
        }
        let hold = Frame {
            patience: guard.patience,
            ..Frame::new(Kind::Hold)
        };
        link.ask(&hold, &borrowed)?;
        guard.stream = Some(link.stream.try_clone()?);
        tracing::info!(process = link.pid(), "a keeper holds the UDP sockets");
        Ok(Some(link))
    }

    /// Takes note of the end of the keeper that this agent has started, should it end in time.
    fn reap(&self, most: Duration) {
        let start = Instant::now();
        loop {
            let mut guard = self.guard();
            let Some(child) = &mut guard.child else {
                return;
            };
            if !matches!(child.try_wait(), Ok(None)) {
                guard.child = None;
                return;
            }
            drop(guard);
            if start.elapsed() > most {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}
