//! Network namespaces with cables between them, and a daemon in the far one.
//!
//! ```text
//!   ours: ti0 192.0.2.1, 2001:db8::1 ---- peer: ti1 192.0.2.2, 2001:db8::2
//!         (10.1.0.1, fd00:1::1)                 lo  10.2.0.1, fd00:2::1
//! ```
//!
//! With a NAT, the end behind it has 10.9.0.1 instead, and a third namespace stands between the
//! two with the address that the end behind it has without one:
//!
//! ```text
//!   ti 10.9.0.1 ---- tn0 10.9.0.254, nat, tn1 192.0.2.1 or .2 ---- the other end
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

/// The address of the end behind a NAT, and the NAT's own address there.
pub const BEHIND: [&str; 2] = ["10.9.0.1", "10.9.0.254"];

/// The longest that anything started here lives, in seconds.
const LIFETIME: &str = "300";

/// How long to wait for what takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One end of the cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The namespace of the thread that made the world.
    Ours,
    /// The other one.
    Theirs,
}

/// What lies between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cable {
    /// Nothing.
    #[default]
    Direct,
    /// A NAT that hides us, for IPv4.
    NatBeforeUs,
    /// A NAT that hides the peer, for IPv4.
    NatBeforePeer,
}

impl Cable {
    /// The IPv4 address that an end (0: ours, 1: the peer's) has itself.
    pub fn own(self, end: usize) -> &'static str {
        match (self, end) {
            (Cable::NatBeforeUs, 0) | (Cable::NatBeforePeer, 1) => BEHIND[0],
            _ => LINK[0][end],
        }
    }
}

/// Says why and gives false where the test cannot run.
pub fn can_run(test: &str, peer: Peer) -> bool {
    match why_not(peer) {
        None => true,
        Some(why) => {
            println!("SKIPPED {test}: {why}");
            false
        }
    }
}

/// Why that peer cannot be run here, if it cannot.
pub fn why_not(peer: Peer) -> Option<String> {
    let root = std::thread::spawn(|| {
        // SAFETY: unshare takes an integer and touches this thread only, which ends right after.
        unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) == 0 }
    });
    if !root.join().unwrap_or(false) || !Path::new("/dev/net/tun").exists() {
        return Some("it needs root (namespaces) and /dev/net/tun".into());
    }
    if packages::folder().is_ok_and(|folder| peer.is_there(&folder)) {
        return None;
    }
    Some(format!(
        "{peer:?} is not unpacked; run: sudo cargo xtask packages"
    ))
}

/// A folder that goes with its holder.
pub struct Place(PathBuf);

impl Place {
    /// Makes it, with a name that no other has.
    pub fn new() -> anyhow::Result<Self> {
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
        write(&self.file(name), content)
    }
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above)?;
    }
    std::fs::write(path, content).with_context(|| path.display().to_string())
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A copy, in the place, of the library that lets a daemon believe that the kernel has installed
/// its SAs: for LD_PRELOAD. What has a root of its own sees of the machine only what lies in the
/// place. cargo builds it from an example, beside the running program or the folder above.
pub fn pretend_xfrm(place: &Place) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("the running program's path")?;
    let library = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("examples/libpretend_xfrm.so"))
        .find(|library| library.is_file())
        .context(
            "libpretend_xfrm.so is not built: cargo build --package testudo-interop --examples",
        )?;
    let copy = place.file("pretend_xfrm.so");
    std::fs::copy(&library, &copy).with_context(|| library.display().to_string())?;
    Ok(copy)
}

/// A network namespace, held by a process that sleeps in it.
struct Space(Child);

impl Space {
    fn new() -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-c"])
            .arg(format!("echo ready; exec sleep {LIFETIME}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut holder = ends_with_us(&mut command).spawn().context("unshare")?;
        let mut word = [0; 6];
        let mut output = holder.stdout.take().context("unshare has no output")?;
        let space = Self(holder);
        std::io::Read::read_exact(&mut output, &mut word).context("unshare said nothing")?;
        Ok(space)
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id()));
        command
    }

    fn run(&self, script: &str) -> anyhow::Result<()> {
        check(self.enter().args(["sh", "-ec", script]))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the command when the thread that starts it ends, however that ends.
fn ends_with_us(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only one system call is made, with integers.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        })
    }
}

/// The namespaces. The calling thread is in ours from then on.
pub struct World {
    peer: Space,
    nat: Option<Space>,
    cable: Cable,
    /// The thread whose namespace is ours.
    thread: libc::pid_t,
    /// For configuration, logs and sockets.
    pub place: Place,
}

impl World {
    /// Makes it. The calling thread must have nothing open in its namespace, and must outlive it.
    pub fn new(cable: Cable) -> anyhow::Result<Self> {
        let place = Place::new()?;
        // SAFETY: unshare takes an integer and touches this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error()).context("a network namespace");
        }
        let nat = match cable {
            Cable::Direct => None,
            Cable::NatBeforeUs | Cable::NatBeforePeer => Some(Space::new()?),
        };
        let world = Self {
            peer: Space::new()?,
            nat,
            cable,
            // SAFETY: gettid takes nothing and cannot fail.
            thread: unsafe { libc::gettid() },
            place,
        };
        world.wire()?;
        Ok(world)
    }

    fn wire(&self) -> anyhow::Result<()> {
        // A way of their own for both ends, also where a host would doubt it.
        let trusting = "for w in all default; do echo 0 > /proc/sys/net/ipv6/conf/$w/accept_dad; \
             echo 0 > /proc/sys/net/ipv4/conf/$w/rp_filter; done; ip link set lo up";
        check(Command::new("sh").args(["-ec", trusting]))?;
        self.peer.run(trusting)?;
        let peer = self.peer.0.id();
        let cables = match &self.nat {
            None => format!("ip link add ti0 type veth peer name ti1 netns {peer}"),
            Some(nat) => {
                nat.run(trusting)?;
                let (nat, [to_us, to_peer]) = (nat.0.id(), self.nat_devices());
                format!(
                    "ip link add ti0 type veth peer name {to_us} netns {nat}; \
                     ip link add name ti1 netns {peer} type veth peer name {to_peer} netns {nat}"
                )
            }
        };
        check(Command::new("sh").args(["-ec", &cables]))?;
        let [v4, v6, inner4, inner6] = LINK;
        let [own, theirs] = [0, 1].map(|end| self.cable.own(end));
        let ours = format!(
            "ip address add {own}/24 dev ti0; ip address add {}/64 dev ti0 nodad; \
             ip link set ti0 up",
            v6[0]
        );
        // The default route is for the inner addresses: what has no tunnel goes to us in clear,
        // where a test would see that it came without ESP.
        let theirs = format!(
            "ip address add {theirs}/24 dev ti1; ip address add {}/64 dev ti1 nodad; \
             ip link set ti1 up; ip address add {}/32 dev lo; ip address add {}/128 dev lo nodad; \
             ip route add default via {}; ip -6 route add default via {}",
            v6[1],
            inner4[1],
            inner6[1],
            match self.cable {
                Cable::NatBeforePeer => BEHIND[1],
                _ => v4[0],
            },
            v6[0]
        );
        check(Command::new("sh").args(["-ec", &ours]))?;
        self.peer.run(&theirs)?;
        match self.cable {
            Cable::Direct => Ok(()),
            Cable::NatBeforeUs => {
                let route = format!("ip route add default via {}", BEHIND[1]);
                check(Command::new("sh").args(["-ec", &route]))?;
                self.make_nat()
            }
            Cable::NatBeforePeer => self.make_nat(),
        }
    }

    /// The NAT's devices towards us and towards the peer: `tn0` is the side that it hides.
    fn nat_devices(&self) -> [&'static str; 2] {
        match self.cable {
            Cable::NatBeforePeer => ["tn1", "tn0"],
            _ => ["tn0", "tn1"],
        }
    }

    /// The address by which the other end knows the hidden one.
    fn outside(&self) -> &'static str {
        LINK[0][usize::from(self.cable == Cable::NatBeforePeer)]
    }

    /// Only UDP passes, always with another port: ESP as such would stay behind it.
    fn make_nat(&self) -> anyhow::Result<()> {
        let rules = "table ip n {\n\
             chain forward {\n\
             type filter hook forward priority 0; policy drop;\n\
             ip protocol { udp, icmp } accept\n}\n\
             chain out {\n\
             type nat hook postrouting priority 100; policy accept;\n\
             oifname \"tn1\" ip protocol udp masquerade to :20000-29999 random\n}\n}\n";
        self.place.write("nat.nft", rules.as_bytes())?;
        let script = format!(
            "ip address add {}/24 dev tn0; ip address add {}/24 dev tn1; \
             ip link set tn0 up; ip link set tn1 up; \
             echo 1 > /proc/sys/net/ipv4/ip_forward; PATH=$PATH:/usr/sbin:/sbin nft -f {}",
            BEHIND[1],
            self.outside(),
            self.place.file("nat.nft").display()
        );
        self.nat.as_ref().context("no NAT here")?.run(&script)
    }

    /// The NAT forgets its mappings, as one that is restarted does: the hidden end gets other
    /// ports with its next packets, and with `address` another address too.
    pub fn forget_mappings(&self, address: Option<&str>) -> anyhow::Result<()> {
        // A masquerading NAT drops the mappings of an address that goes.
        let script = format!(
            "ip address flush dev tn1; ip address add {}/24 dev tn1",
            address.unwrap_or(self.outside())
        );
        self.nat.as_ref().context("no NAT here")?.run(&script)
    }

    /// From now on so many of a hundred IKE messages are lost, in each direction. ESP passes:
    /// what is not ESP has a marker of four zero bytes on port 4500 (RFC 3948, 2.2).
    pub fn lose(&self, percent: u32) -> anyhow::Result<()> {
        let chance = format!("numgen random mod 100 < {percent} drop");
        let rules = format!(
            "table inet l {{\nchain in {{\n\
             type filter hook input priority 0; policy accept;\n\
             udp dport 500 {chance}\n\
             udp dport 4500 @th,64,32 0 {chance}\n}}\n}}\n"
        );
        self.place.write("lose.nft", rules.as_bytes())?;
        let script = format!(
            "PATH=$PATH:/usr/sbin:/sbin nft -f {}",
            self.place.file("lose.nft").display()
        );
        check(Command::new("sh").args(["-ec", &script]))?;
        self.peer.run(&script)
    }

    /// A command that runs in the peer's network namespace.
    pub fn enter(&self) -> Command {
        self.peer.enter()
    }

    /// Starts a daemon in the peer's namespaces. `line` is a shell line; it must `exec` it.
    pub fn start(&self, peer: Peer, line: &str) -> anyhow::Result<Daemon> {
        let net = format!("/proc/{}/ns/net", self.peer.0.id());
        self.start_in(&net, self.place.path(), peer, line)
    }

    /// Starts a daemon at either end, for measuring daemons against each other. It has a folder
    /// of its own in the place.
    pub fn start_at(
        &self,
        end: End,
        folder: &str,
        peer: Peer,
        line: &str,
    ) -> anyhow::Result<Daemon> {
        let net = match end {
            End::Ours => {
                let task = self.thread;
                format!("/proc/{}/task/{task}/ns/net", std::process::id())
            }
            End::Theirs => format!("/proc/{}/ns/net", self.peer.0.id()),
        };
        self.start_in(&net, &self.place.file(folder), peer, line)
    }

    fn start_in(&self, net: &str, place: &Path, peer: Peer, line: &str) -> anyhow::Result<Daemon> {
        let pid_file = place.join("pid");
        let _ = std::fs::remove_file(&pid_file);
        let shown = place.display();
        let run = format!("set -e\ncd {shown}\necho $$ > pid.new; mv pid.new pid\n{line}\n");
        write(&place.join("run.sh"), run.as_bytes())?;
        let root = peer.root(&packages::folder()?);
        let script = match peer.has_own_root() {
            true => own_root(&root, place),
            false => laid_over(&root, place),
        };
        write(&place.join("start.sh"), script.as_bytes())?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place.join("output"))?;
        let mut command = Command::new("timeout");
        command
            .args(["-k", "2", LIFETIME, "nsenter"])
            .arg(format!("--net={net}"))
            .args(["unshare", "--mount", "sh"])
            .arg(place.join("start.sh"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = ends_with_us(&mut command).spawn().context("timeout")?;
        let mut daemon = Daemon { child, pid: 0 };
        let end = Instant::now() + PATIENCE;
        while daemon.pid == 0 {
            if let Ok(text) = std::fs::read_to_string(&pid_file) {
                daemon.pid = text.trim().parse().context("the daemon's pid")?;
            } else if Instant::now() > end || daemon.child.try_wait()?.is_some() {
                let output = std::fs::read_to_string(place.join("output"));
                bail!("no daemon: {}", output.unwrap_or_default());
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

/// A script that lays a daemon's files over the machine's and runs `run.sh`.
fn laid_over(root: &Path, place: &Path) -> String {
    format!(
        "set -e; mount --make-rprivate /\n\
         mount -t overlay -o lowerdir={root}/usr:/usr overlay /usr\n\
         mount -t tmpfs tmpfs /run\n\
         mount -t tmpfs tmpfs /var/lib\n\
         if [ -e {root}/etc/ipsec.conf ]; then\n\
         mount -t overlay -o lowerdir={root}/etc:/etc overlay /etc; fi\n\
         exec sh {place}/run.sh\n",
        root = root.display(),
        place = place.display(),
    )
}

/// The same for a daemon that has all its files with it, in a root made of them.
fn own_root(root: &Path, place: &Path) -> String {
    format!(
        "set -e; mount --make-rprivate /\n\
         mkdir -p {place}/fs; mount -t tmpfs tmpfs {place}/fs; cd {place}/fs\n\
         mkdir upper work root\n\
         mount -t overlay -o lowerdir={root},upperdir=upper,workdir=work overlay root\n\
         cd root\n\
         for d in bin sbin lib lib64; do [ -e $d ] || ln -s usr/$d $d; done\n\
         mkdir -p dev proc run tmp var/lib var/log ./{place}\n\
         mount --rbind /dev dev; mount --rbind /proc proc; mount --bind {place} ./{place}\n\
         exec chroot . /usr/bin/sh {place}/run.sh\n",
        root = root.display(),
        place = place.display(),
    )
}

/// A running daemon; ended with its holder.
pub struct Daemon {
    child: Child,
    pid: u32,
}

impl Daemon {
    /// A command that runs where the daemon does, ended after a minute.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args([
            "-k", "1", "60", "nsenter", "--mount", "--net", "--root", "--target",
        ]);
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
