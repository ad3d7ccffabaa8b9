//! Agents and keepers of this very process, on real sockets.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testudo_datapath_kernel::UdpKeeper;
use tokio::sync::oneshot;

use super::client::{Client, bind};
use super::{KeeperOptions, Manner, keep};

/// The port that keepers here open for agents.
const OPENS: u16 = 61_500;
const LONG: Duration = Duration::from_secs(60);

/// A keeper in a thread.
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(socket: &Path, manner: Manner, version: &'static str) -> Running {
        let (stop, stopped) = oneshot::channel();
        let socket = socket.to_owned();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(keep(&socket, manner, Some(OPENS), version, async {
                let _ = stopped.await;
            }))
        });
        Running { stop, thread }
    }

    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap().unwrap();
    }

    /// It ends by itself.
    fn ends(self) -> anyhow::Result<()> {
        wait("its end", || self.thread.is_finished());
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder with the place of a keeper's socket in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("n1.keeper");
    (folder, socket)
}

/// An agent's end. What it starts as a keeper is none: the tests start them.
fn agent(socket: &Path, version: &str) -> Client {
    let program = ["sleep", "3"].map(Into::into).to_vec();
    let socket = socket.to_owned();
    Client::new(KeeperOptions { socket, program }, version)
}

/// A socket and its port.
fn socket() -> (OwnedFd, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket.into(), port)
}

fn is_bound(port: u16) -> bool {
    UdpSocket::bind(("127.0.0.1", port)).is_err()
}

/// The ports of what an agent is given.
fn ports(sockets: Vec<OwnedFd>) -> Vec<u16> {
    let all = sockets.into_iter().map(UdpSocket::from);
    all.map(|socket| socket.local_addr().unwrap().port())
        .collect()
}

/// Another agent is given what was handed over, as soon as that has happened.
fn wait_taken(socket: &Path, version: &str, port: u16) -> Client {
    let next = agent(socket, version);
    wait("the handover", || ports(next.take()) == [port]);
    next
}

#[test]
fn the_port_that_it_was_told_to_open_is_opened_and_no_other() {
    let (_folder, path) = place();
    let at = |port| ([127, 0, 0, 1], port).into();
    assert!(bind(&path, at(OPENS)).unwrap().is_none(), "nobody is there");
    let keeper = Running::start(&path, Manner::Standing, "1");
    wait("the keeper", || path.exists());
    let socket = bind(&path, at(OPENS)).unwrap().expect("a socket");
    assert_eq!(socket.local_addr().unwrap().as_socket(), Some(at(OPENS)));
    let taken = bind(&path, at(OPENS)).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let other = bind(&path, at(OPENS + 1)).unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::PermissionDenied);
    // It is the agent's alone.
    drop(socket);
    assert!(!is_bound(OPENS));
    keeper.stop();
}

#[test]
fn what_comes_in_while_no_agent_is_there_waits_for_the_next() {
    let (_folder, path) = place();
    let keeper = Running::start(&path, Manner::Standing, "1");
    wait("the keeper", || path.exists());
    let (ours, port) = socket();
    let first = agent(&path, "1");
    first.hold(vec![ours]);
    drop(wait_taken(&path, "1", port));
    // The agent ends: nothing of its own holds the socket any more.
    drop(first);
    assert!(is_bound(port));
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.send_to(b"meanwhile", ("127.0.0.1", port)).unwrap();
    let next = agent(&path, "1");
    let taken = UdpSocket::from(next.take().pop().unwrap());
    let mut buffer = [0; 16];
    let (len, _) = taken.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"meanwhile");
    drop(taken);
    // What is not needed any more is free for others, when the call returns.
    next.release();
    assert!(!is_bound(port));
    assert!(next.take().is_empty());
    keeper.stop();
    assert!(!path.exists());
    assert!(next.take().is_empty());
    next.release();
}

#[test]
fn sockets_of_another_port_take_the_place_of_the_old_ones() {
    let (_folder, path) = place();
    let keeper = Running::start(&path, Manner::Standing, "1");
    let client = agent(&path, "1");
    let ((one, first), (two, second)) = (socket(), socket());
    client.hold(vec![one]);
    drop(wait_taken(&path, "1", first));
    client.hold(vec![two]);
    drop(wait_taken(&path, "1", second));
    assert!(!is_bound(first));
    keeper.stop();
}

#[test]
fn a_keeper_that_ends_is_followed_by_another() {
    let (_folder, path) = place();
    // What a keeper that was killed has left.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let client = agent(&path, "1");
    let (ours, port) = socket();
    client.hold(vec![ours]);
    for _ in 0..3 {
        let keeper = Running::start(&path, Manner::Started, "1");
        drop(wait_taken(&path, "1", port));
        keeper.stop();
    }
    drop(client);
    assert!(!is_bound(port));
}

#[test]
fn a_keeper_whose_file_was_removed_is_found_again() {
    let (_folder, path) = place();
    let keeper = Running::start(&path, Manner::Standing, "1");
    let client = agent(&path, "1");
    let (ours, port) = socket();
    client.hold(vec![ours]);
    drop(wait_taken(&path, "1", port));
    std::fs::remove_file(&path).unwrap();
    drop(wait_taken(&path, "1", port));
    keeper.stop();
}

#[test]
fn a_keeper_of_another_build_is_replaced_by_the_agent_that_started_none() {
    let (_folder, path) = place();
    let old = Running::start(&path, Manner::Started, "1");
    let (ours, port) = socket();
    let first = agent(&path, "1");
    first.hold(vec![ours]);
    drop(wait_taken(&path, "1", port));
    drop(first);
    let next = agent(&path, "2");
    let taken = next.take();
    old.ends().unwrap();
    assert!(is_bound(port));
    next.hold(taken);
    let new = Running::start(&path, Manner::Started, "2");
    drop(wait_taken(&path, "2", port));
    drop(next);
    // A standing one is somebody else's to replace.
    let standing = Running::start(&path, Manner::Standing, "1");
    new.ends().unwrap();
    let last = wait_taken(&path, "2", port);
    assert_eq!(ports(last.take()), [port]);
    standing.stop();
}

#[test]
fn a_standing_keeper_takes_over_with_what_is_held_and_a_started_one_does_not() {
    let (_folder, path) = place();
    let first = Running::start(&path, Manner::Started, "1");
    let client = agent(&path, "1");
    let (ours, port) = socket();
    client.hold(vec![ours]);
    drop(wait_taken(&path, "1", port));
    let error = Running::start(&path, Manner::Started, "1")
        .ends()
        .unwrap_err();
    assert!(error.to_string().contains("another keeper"), "{error:#}");
    // The agent is gone, so that nobody hands over anew.
    drop(client);
    let standing = Running::start(&path, Manner::Standing, "1");
    first.ends().unwrap();
    // It is there, not about to be: of two that wait for the lock either may get it.
    drop(wait_taken(&path, "1", port));
    let second = Running::start(&path, Manner::Standing, "2");
    standing.ends().unwrap();
    drop(wait_taken(&path, "1", port));
    second.stop();
    assert!(!is_bound(port));
}

#[test]
fn nothing_is_held_for_longer_than_sas_live_without_an_agent() {
    for manner in [Manner::Started, Manner::Standing] {
        let (_folder, path) = place();
        let keeper = Running::start(&path, manner, "1");
        let client = agent(&path, "1");
        let (ours, port) = socket();
        client.hold(vec![ours]);
        drop(wait_taken(&path, "1", port));
        // Said after the handover. While the agent is there nothing ends.
        client.set_patience(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(1500));
        drop(wait_taken(&path, "1", port));
        drop(client);
        assert!(is_bound(port));
        wait("the end of patience", || !is_bound(port));
        match manner {
            Manner::Started => keeper.ends().unwrap(),
            Manner::Standing => keeper.stop(),
        }
    }
}

#[test]
fn what_says_no_frame_is_not_heard() {
    use std::io::{Read, Write};
    let (_folder, path) = place();
    let keeper = Running::start(&path, Manner::Standing, "1");
    wait("the keeper", || path.exists());
    let mut stranger = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stranger.write_all(&[0xa5; 4096]).unwrap();
    stranger.set_read_timeout(Some(LONG)).unwrap();
    // The hello, and then the end: reset, for what was written is unread.
    let mut heard = [0; 128];
    let first = stranger.read(&mut heard).unwrap();
    assert_eq!(first, super::frame::LEN);
    assert!(matches!(stranger.read(&mut heard), Ok(0) | Err(_)));
    // One too many is let go; when others go there is room again.
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(std::os::unix::net::UnixStream::connect(&path).unwrap());
    }
    drop(clients);
    let client = agent(&path, "1");
    let (ours, port) = socket();
    client.hold(vec![ours]);
    drop(wait_taken(&path, "1", port));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    keeper.stop();
}
