//! Two network namespaces with a cable between them, and a daemon in the far one.
//!
//! ```text
//!   ours: ti0 192.0.2.1, 2001:db8::1 ---- peer: ti1 192.0.2.2, 2001:db8::2
//!         (10.1.0.1, fd00:1::1)                 lo  10.2.0.1, fd00:2::1
//! ```
//!
//! The namespaces have no names: they go with the processes and threads that live in them, and
//! each process ends by itself after a while, whatever happens to the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::packages::{self, Peer};

/// Addresses of the two ends: ours and the peer's, outer and inner, of both families.
pub const LINK: [[&str; 2]; 4] = [
    ["192.0.2.1", "192.0.2.2"],
    ["2001:db8::1", "2001:db8::2"],
    ["10.1.0.1", "10.2.0.1"],
    ["fd00:1::1", "fd00:2::1"],
];

/// The longest that anything started here lives.
const LIFETIME: &str = "120";

/// Says why and gives false where the test cannot run.
pub fn can_run(test: &str, peer: Peer) -> bool {
    let root = std::thread::spawn(|| {
        // SAFETY: unshare takes an integer and touches this thread only, which ends right after.
        unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) == 0 }
    });
    if !root.join().unwrap_or(false) || !Path::new("/dev/net/tun").exists() {
        println!("SKIPPED {test}: it needs root (namespaces) and /dev/net/tun");
        return false;
    }
    if packages::folder().is_ok_and(|folder| peer.is_there(&folder)) {
        return true;
    }
    println!("SKIPPED {test}: {peer:?} is not unpacked; run: sudo cargo xtask packages");
    false
}

/// A folder that goes with its holder.
pub struct Place(PathBuf);

impl Place {
    fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ti-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it, with the folders above.
    pub fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.file(name);
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        std::fs::write(&path, content).with_context(|| path.display().to_string())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The two namespaces. The calling thread is in ours from then on.
pub struct World {
    holder: Child,
    /// For configuration, logs and sockets.
    pub place: Place,
}

impl World {
    /// Makes it. The calling thread must have nothing open in its namespace.
    pub fn new() -> anyhow::Result<Self> {
        let place = Place::new()?;
        // SAFETY: unshare takes an integer and touches this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error()).context("a network namespace");
        }
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c"])
            .arg(format!("echo ready; exec sleep {LIFETIME}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let mut word = [0; 6];
        let mut output = holder.stdout.take().context("unshare has no output")?;
        std::io::Read::read_exact(&mut output, &mut word).context("unshare said nothing")?;
        let world = Self { holder, place };
        world.cable()?;
        Ok(world)
    }

    fn cable(&self) -> anyhow::Result<()> {
        let pid = self.holder.id();
        for which in ["all", "default"] {
            for name in ["ipv6/conf/W/accept_dad", "ipv4/conf/W/rp_filter"] {
                let path = format!("/proc/sys/net/{}", name.replace('W', which));
                let line = format!("echo 0 > {path}");
                check(Command::new("sh").args(["-c", &line]))?;
                check(self.enter().args(["sh", "-c", &line]))?;
            }
        }
        let line = format!("ip link add ti0 type veth peer name ti1 netns {pid}");
        check(Command::new("sh").args(["-c", &line]))?;
        let [v4, v6, inner4, inner6] = LINK;
        let ours = format!(
            "ip link set lo up; ip address add {}/24 dev ti0; ip address add {}/64 dev ti0 nodad; \
             ip link set ti0 up",
            v4[0], v6[0]
        );
        // The default route is for the inner addresses: what has no tunnel goes to us in clear,
        // where a test would see that it came without ESP.
        let theirs = format!(
            "ip link set lo up; ip address add {}/24 dev ti1; ip address add {}/64 dev ti1 nodad; \
             ip link set ti1 up; ip address add {}/32 dev lo; ip address add {}/128 dev lo nodad; \
             ip route add default via {}; ip -6 route add default via {}",
            v4[1], v6[1], inner4[1], inner6[1], v4[0], v6[0]
        );
        check(Command::new("sh").args(["-ec", &ours]))?;
        check(self.enter().args(["sh", "-ec", &theirs]))
    }

    /// A command that runs in the peer's network namespace.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command
    }

    /// Starts a daemon in the peer's namespaces. `line` is a shell line; it must `exec` it.
    pub fn start(&self, peer: Peer, line: &str) -> anyhow::Result<Daemon> {
        let root = peer.root(&packages::folder()?);
        let pid_file = self.place.file("pid");
        let _ = std::fs::remove_file(&pid_file);
        let script = format!(
            "set -e; mount --make-rprivate /\n\
             mount -t overlay -o lowerdir={root}/usr:/usr overlay /usr\n\
             mount -t tmpfs tmpfs /run\n\
             mount -t tmpfs tmpfs /var/lib\n\
             if [ -e {root}/etc/ipsec.conf ]; then\n\
             mount -t overlay -o lowerdir={root}/etc:/etc overlay /etc; fi\n\
             cd {place}\n\
             echo $$ > pid.new; mv pid.new pid\n\
             {line}\n",
            root = root.display(),
            place = self.place.path().display(),
        );
        self.place.write("start.sh", script.as_bytes())?;
        let log = std::fs::File::create(self.place.file("output"))?;
        let child = Command::new("timeout")
            .args(["-k", "2", LIFETIME, "nsenter"])
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .args(["unshare", "--mount", "sh"])
            .arg(self.place.file("start.sh"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("timeout")?;
        let mut daemon = Daemon { child, pid: 0 };
        let end = Instant::now() + Duration::from_secs(5);
        while daemon.pid == 0 {
            if let Ok(text) = std::fs::read_to_string(&pid_file) {
                daemon.pid = text.trim().parse().context("the daemon's pid")?;
            } else if Instant::now() > end || daemon.child.try_wait()?.is_some() {
                bail!("no daemon: {}", self.text("output"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// A file of the place as text, empty if it is not there.
    pub fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.place.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A running daemon; ended with its holder.
pub struct Daemon {
    child: Child,
    pid: u32,
}

impl Daemon {
    /// A command that runs where the daemon does, ended after 15 seconds.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "15", "nsenter", "--mount", "--net", "--target"]);
        command.arg(self.pid.to_string());
        command
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Ok(pid) = i32::try_from(self.pid) {
            // SAFETY: kill takes integers; the process is a descendant that is not yet reaped,
            // because `child`, above it, is not.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
        // `timeout` ends with what it started.
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; an error if it fails.
pub(crate) fn check(command: &mut Command) -> anyhow::Result<()> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!(
            "{command:?}: {status}: {}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    }
    Ok(())
}
