//! The keeper's own side.

use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{CapabilitySet, CapabilitySets};
use socket2::Socket;
use testudo_store::no_core_dumps;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::client::Link;
use super::frame::{self, Frame, Incoming, Kind};
use super::is_ours;
use crate::sockets::bound_socket;

/// Agents that may be connected at a time; there is one, and the next one.
const CLIENTS: usize = 8;
/// How long it waits for the first agent.
const FIRST: Duration = Duration::from_secs(60);
/// Between two looks at whether agents still find it.
const LOOK: Duration = Duration::from_secs(5);
/// How long the lock of one that has just ended may still be held.
const ENDS: Duration = Duration::from_secs(1);
/// How long another keeper may take to end when it is told to.
const LEAVES: Duration = Duration::from_secs(10);

/// Whose a keeper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// An agent has started it: it ends when nothing needs it any more.
    Started,
    /// It is run beside the agent, and stays for the next one.
    Standing,
}

/// Gives up what a keeper has no use for, for good: all capabilities, but for that of binding ports below
/// 1024 where it `opens` one, and core files. Before any thread is started.
///
/// # Errors
/// As the kernel's calls: it is not run with more than it needs.
pub fn confine(opens: bool) -> Result<()> {
    let kept = match opens {
        true => CapabilitySet::NET_BIND_SERVICE,
        false => CapabilitySet::empty(),
    };
    no_core_dumps().context("turning core dumps off")?;
    rustix::thread::set_no_new_privs(true).context("giving up new privileges")?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).context("giving up capabilities")?;
    // For people who list processes.
    let _ = rustix::thread::set_name(c"testudo-keeper");
    Ok(())
}

/// Holds what agents hand over at `socket`, until `shutdown` is ready or nobody needs it any more. It
/// reads from none of the sockets. For an agent that may not bind the UDP port `opens`, it does.
///
/// # Errors
/// The socket cannot be made, or another keeper has it; a standing one takes over from that one.
pub async fn keep(
    socket: &Path,
    manner: Manner,
    opens: Option<u16>,
    version: &str,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    if manner == Manner::Started {
        // A session of its own: no terminal's end is its end. It has one already where that fails.
        let _ = rustix::process::setsid();
    }
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("{}: making the directory", parent.display()))?;
    }
    let (_lock, sockets, patience) = lock(socket, manner)?;
    let shared = Arc::new(Shared {
        manner,
        opens,
        hello: Frame {
            standing: manner == Manner::Standing,
            version: version.to_owned(),
            ..Frame::new(Kind::Hello)
        },
        held: Mutex::new(Held {
            sockets,
            patience,
            clients: 0,
            alone: Instant::now(),
            over: false,
        }),
        changed: Notify::new(),
    });
    let mut place = Place::bind(socket)?;
    let mut look = tokio::time::interval(LOOK);
    let mut shutdown = pin!(shutdown);
    while !shared.held().over {
        let alone = shared.held().deadline(manner);
        tokio::select! {
            () = &mut shutdown => break,
            () = shared.changed.notified() => {}
            () = until(alone) => shared.give_up(),
            _ = look.tick() => place.look(),
            accepted = place.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(client) = Client::come(&shared, stream) {
                        tokio::spawn(client.serve());
                    }
                }
                // Out of descriptors, as a rule: it passes.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    Ok(())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

/// The one keeper of a path has its lock, while it lives. With it comes what another one held.
fn lock(socket: &Path, manner: Manner) -> Result<(File, Vec<OwnedFd>, Duration)> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = open.with_context(|| format!("{}: opening it", path.display()))?;
    if file.try_lock().is_ok() {
        return Ok((file, Vec::new(), FIRST));
    }
    let start = Instant::now();
    if manner == Manner::Started {
        while start.elapsed() < ENDS {
            std::thread::sleep(Duration::from_millis(20));
            if file.try_lock().is_ok() {
                return Ok((file, Vec::new(), FIRST));
            }
        }
        bail!("{}: another keeper has it", socket.display());
    }
    let mut taken = (Vec::new(), FIRST);
    loop {
        // It may be just beginning, or just ending: that is no error yet.
        let why = match take_over(socket) {
            Ok(other) => {
                if !other.0.is_empty() {
                    taken = other;
                }
                String::new()
            }
            Err(error) => format!(": {error}"),
        };
        if file.try_lock().is_ok() {
            return Ok((file, taken.0, taken.1));
        }
        if start.elapsed() > LEAVES {
            bail!(
                "{}: another keeper has it and does not end{why}",
                path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What another keeper holds, which ends.
fn take_over(socket: &Path) -> io::Result<(Vec<OwnedFd>, Duration)> {
    let Some(link) = Link::open(socket)? else {
        return Ok((Vec::new(), FIRST));
    };
    let (here, sockets) = link.ask(&Frame::new(Kind::Take), &[])?;
    link.ask(&Frame::new(Kind::Leave), &[])?;
    Ok((sockets, here.patience))
}

/// The bound UNIX socket; its file is gone when this is dropped.
struct Place {
    path: PathBuf,
    listener: UnixListener,
    inode: Option<u64>,
}

impl Place {
    fn bind(path: &Path) -> Result<Place> {
        let listener = Self::listen(path)?;
        Ok(Place {
            path: path.to_owned(),
            inode: inode(path),
            listener,
        })
    }

    /// A file that somebody has removed, or put there, would keep the next agent from what is held.
    fn look(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            return;
        }
        if let Ok(listener) = Self::listen(&self.path) {
            self.listener = listener;
            self.inode = inode(&self.path);
        }
    }

    fn listen(path: &Path) -> Result<UnixListener> {
        // What a keeper that was killed left behind: a living one has the lock.
        crate::files::remove(path)?;
        let listener = UnixListener::bind(path)
            .with_context(|| format!("{}: binding the keeper's socket", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("{}: closing it to others", path.display()))?;
        Ok(listener)
    }
}

fn inode(path: &Path) -> Option<u64> {
    Some(std::fs::symlink_metadata(path).ok()?.ino())
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Shared {
    manner: Manner,
    /// The one UDP port that it binds for agents.
    opens: Option<u16>,
    hello: Frame,
    held: Mutex<Held>,
    changed: Notify,
}

struct Held {
    sockets: Vec<OwnedFd>,
    /// How long they are held with nobody connected.
    patience: Duration,
    clients: usize,
    /// Since when nobody is connected, if so.
    alone: Instant,
    over: bool,
}

impl Held {
    /// When patience is over.
    fn deadline(&self, manner: Manner) -> Option<Instant> {
        let waits = manner == Manner::Started || !self.sockets.is_empty();
        (self.clients == 0 && waits)
            .then(|| self.alone.checked_add(self.patience))
            .flatten()
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket for an agent, which is asked for by its own user alone.
    fn bind(&self, local: SocketAddr) -> io::Result<Socket> {
        match self.opens == Some(local.port()) {
            true => bound_socket(local),
            false => Err(rustix::io::Errno::PERM.into()),
        }
    }

    /// Nobody has come for what is held.
    fn give_up(&self) {
        let mut held = self.held();
        if held
            .deadline(self.manner)
            .is_some_and(|at| at <= Instant::now())
        {
            held.sockets.clear();
            held.over = self.manner == Manner::Started;
        }
    }

    /// Does what a frame says. What is to be answered, with the sockets or without.
    fn take_in(&self, frame: &Frame, sockets: Vec<OwnedFd>) -> Option<Frame> {
        let mut held = self.held();
        match frame.kind {
            Kind::Take => {
                return Some(Frame {
                    patience: held.patience,
                    ..Frame::new(Kind::Here)
                });
            }
            Kind::Hold => {
                held.sockets = sockets;
                held.patience = frame.patience;
            }
            Kind::Patience => {
                held.patience = frame.patience;
                return None;
            }
            Kind::Release => {
                held.sockets.clear();
                held.over = self.manner == Manner::Started;
            }
            Kind::Leave => {
                held.sockets.clear();
                held.over = true;
            }
            // What is bound for an agent is not held.
            Kind::Bind | Kind::Hello | Kind::Here | Kind::Done | Kind::Bound => return None,
        }
        Some(Frame::new(Kind::Done))
    }
}

/// An agent that is connected.
struct Client {
    shared: Arc<Shared>,
    stream: UnixStream,
}

impl Client {
    /// `None`: it is somebody else's, or one too many.
    fn come(shared: &Arc<Shared>, stream: UnixStream) -> Option<Client> {
        let mut held = shared.held();
        if held.clients >= CLIENTS || !is_ours(&stream) {
            return None;
        }
        held.clients += 1;
        Some(Client {
            shared: Arc::clone(shared),
            stream,
        })
    }

    /// Until it goes, or says what is no frame.
    async fn serve(self) {
        let mut incoming = Incoming::default();
        if frame::send(&self.stream, &self.shared.hello, &[]).is_err() {
            return;
        }
        while self.stream.readable().await.is_ok() {
            let read = || incoming.read(&self.stream);
            match self.stream.try_io(Interest::READABLE, read) {
                Ok(None) => {}
                Ok(Some((frame, sockets))) => {
                    if self.answer(&frame, sockets).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn answer(&self, frame: &Frame, sockets: Vec<OwnedFd>) -> io::Result<()> {
        if frame.kind == Kind::Bind {
            return match self.shared.bind(frame.local) {
                Ok(socket) => {
                    frame::send(&self.stream, &Frame::new(Kind::Bound), &[socket.as_fd()])
                }
                Err(error) => frame::send(&self.stream, &Frame::unbound(&error), &[]),
            };
        }
        let answered = match self.shared.take_in(frame, sockets) {
            None => Ok(()),
            Some(answer) => {
                let held = self.shared.held();
                let sockets: Vec<BorrowedFd<'_>> = match answer.kind {
                    Kind::Here => held.sockets.iter().map(AsFd::as_fd).collect(),
                    _ => Vec::new(),
                };
                frame::send(&self.stream, &answer, &sockets)
            }
        };
        self.shared.changed.notify_one();
        answered
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut held = self.shared.held();
        held.clients -= 1;
        held.alone = Instant::now();
        self.shared.changed.notify_one();
    }
}
