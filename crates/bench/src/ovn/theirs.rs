//! OVN's own IPsec: on each chassis Open vSwitch's IPsec monitor, which writes strongSwan's
//! configuration, and strongSwan's starter and charon.
//!
//! Each chassis has a mount namespace with the packages laid over `/usr` and `/etc`, and a `/run` and
//! `/var/log` of its own; all of it goes with the process that holds it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testudo_lab::Lab;

use super::sides::{PAUSE_STOPPED, Side, run};

/// How long a chassis may take to have what it needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a chassis' namespace is made of. `$1` is where the packages are unpacked, `$2` where the
/// switch's sockets are, `$3` the certificates' folder.
const CHASSIS: &str = r#"set -e
mount -t tmpfs own /mnt
mkdir /mnt/up /mnt/work /mnt/keep
mount -t overlay -o "lowerdir=$1/usr:/usr" usr /usr
mount -t overlay -o "lowerdir=$1/etc:/etc,upperdir=/mnt/up,workdir=/mnt/work" etc /etc
mount --bind /run/testudo /mnt/keep
mount -t tmpfs run /run
mkdir /run/testudo /run/lock
mount --bind /mnt/keep /run/testudo
mount -t tmpfs log /var/log
mkdir -p /etc/ipsec.d/cacerts /etc/ipsec.d/certs /etc/ipsec.d/private /etc/strongswan.d
cp "$3"/ca.crt /etc/ipsec.d/cacerts/
cp "$3"/*.crt /etc/ipsec.d/certs/
cp "$3"/*.key /etc/ipsec.d/private/
: > /run/is-ready
exec sleep 100000
"#;

/// The monitor as `ovs-ctl start-ovs-ipsec` starts it. `$1` is the switch's folder.
const MONITOR: &str = "OVS_RUNDIR=$1 OVS_LOGDIR=/var/log exec \
    /usr/share/openvswitch/scripts/ovs-monitor-ipsec --pidfile=/run/ovs-monitor-ipsec.pid \
    --ike-daemon=strongswan --log-file=/var/log/ovs-monitor-ipsec.log --detach --monitor \
    unix:$1/db.sock > /var/log/started 2>&1";

/// Ends the monitor as `ovs-ctl stop-ovs-ipsec` does.
const STOP_MONITOR: &str = "kill $(cat /run/ovs-monitor-ipsec.pid); \
    while [ -e /run/ovs-monitor-ipsec.pid ]; do sleep 0.1; done";

/// Ends both processes of the monitor, as a crash would.
const KILL_MONITOR: &str = "for p in $(cat /run/ovs-monitor-ipsec.pid); do \
    kill -9 $(ps -o ppid= -p $p) $p; done; rm -f /run/ovs-monitor-ipsec.pid";

/// Ends starter and charon, as a crash would.
const KILL_STRONGSWAN: &str = "kill -9 $(cat /run/starter.charon.pid) $(cat /run/charon.pid); \
    rm -f /run/starter.charon.pid /run/charon.pid /run/charon.ctl";

/// Makes a CA, and for each of the words after the first a key and a certificate whose name it is; the
/// name ends before the first dot. The monitor finds a CN only where something follows it.
const CERTIFICATES: &str = r#"set -e
cd "$1"; shift
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.pem -out ca.crt -days 3650 -subj /CN=ca
for file; do
  name=${file%%.*}
  openssl req -newkey rsa:2048 -nodes -keyout $file.key -out $file.csr -subj /O=bench/CN=$name
  printf 'subjectAltName=DNS:%s\n' $name > $file.ext
  openssl x509 -req -in $file.csr -CA ca.crt -CAkey ca.pem -CAcreateserial -days 365 \
    -extfile $file.ext -out $file.crt
done
"#;

/// It in a lab.
pub(super) struct Theirs<'a> {
    lab: &'a Lab,
    /// Where its packages are unpacked.
    root: PathBuf,
    chassis: BTreeMap<&'static str, Child>,
}

impl<'a> Theirs<'a> {
    /// On the nodes `n1` and `n2`; off.
    pub(super) fn new(lab: &'a Lab, root: &Path) -> anyhow::Result<Self> {
        let mut theirs = Self {
            lab,
            root: root.to_owned(),
            chassis: BTreeMap::new(),
        };
        std::fs::create_dir_all(theirs.certificates())?;
        let names = ["n1", "n2", "n3", "n1.new"];
        run(Command::new("sh")
            .args(["-c", CERTIFICATES, "sh"])
            .arg(theirs.certificates())
            .args(names))?;
        for node in ["n1", "n2"] {
            theirs.add(node)?;
        }
        Ok(theirs)
    }

    fn certificates(&self) -> PathBuf {
        self.lab.directory().join("their-certificates")
    }

    fn sockets(&self, node: &str) -> PathBuf {
        self.lab.node_dir(node).join("ovs")
    }

    /// Starts it on a node.
    fn add(&mut self, node: &'static str) -> anyhow::Result<()> {
        let mut holder = self.lab.command(node, "unshare")?;
        holder
            .args(["--mount", "--propagation", "private", "sh", "-c", CHASSIS])
            .arg("sh")
            .arg(&self.root)
            .arg(self.sockets(node))
            .arg(self.certificates())
            .stdin(Stdio::null());
        let holder = holder.spawn().context("unshare")?;
        let ready = format!("/proc/{}/root/run/is-ready", holder.id());
        self.chassis.insert(node, holder);
        let begin = Instant::now();
        while !Path::new(&ready).exists() {
            ensure!(begin.elapsed() < PATIENCE, "{node}: no mount namespace");
            std::thread::sleep(Duration::from_millis(100));
        }
        self.use_certificate(node, node)?;
        self.start_monitor(node)
    }

    /// Runs a script in a node's namespaces.
    fn at(&self, node: &str, script: &str) -> anyhow::Result<()> {
        let holder = self.chassis.get(node).context("no such chassis")?;
        run(Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", holder.id()))
            .arg(format!("--net=/proc/{}/ns/net", holder.id()))
            .env(testudo_lab::MARK, self.lab.id())
            .args(["sh", "-c", script, "sh"])
            .arg(self.sockets(node)))
    }

    fn start_monitor(&self, node: &str) -> anyhow::Result<()> {
        self.at(node, MONITOR)
            .with_context(|| format!("{node}: the IPsec monitor"))
    }

    fn use_certificate(&self, node: &str, name: &str) -> anyhow::Result<()> {
        let mut command = self.lab.database_command("vs", node, "ovs-vsctl")?;
        run(command
            .args(["--no-wait", "set", "open_vswitch", "."])
            .args([
                format!("other_config:certificate=/etc/ipsec.d/certs/{name}.crt"),
                format!("other_config:private_key=/etc/ipsec.d/private/{name}.key"),
                "other_config:ca_cert=/etc/ipsec.d/cacerts/ca.crt".to_owned(),
            ]))
    }

    fn global(&self, setting: &str) -> anyhow::Result<()> {
        let mut command = self.lab.database_command("nb", "", "ovn-nbctl")?;
        run(command.args(["set", "nb_global", ".", setting]))
    }
}

impl Side for Theirs<'_> {
    fn switch(&mut self, on: bool) -> anyhow::Result<()> {
        self.global(&format!("ipsec={on}"))
    }

    /// New files under new names, and the paths set: under the same name they are not noticed.
    fn replace_certificate(&mut self) -> anyhow::Result<()> {
        self.use_certificate("n1", "n1.new")
    }

    fn kill_ike(&mut self) -> anyhow::Result<()> {
        self.at("n1", "kill -9 $(cat /run/charon.pid)")
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.at("n1", KILL_MONITOR)?;
        self.start_monitor("n1")
    }

    fn stop_and_start(&mut self) -> anyhow::Result<()> {
        self.at("n1", STOP_MONITOR)?;
        self.at("n1", "/usr/sbin/ipsec stop")?;
        std::thread::sleep(PAUSE_STOPPED);
        self.start_monitor("n1")
    }

    fn crash(&mut self) -> anyhow::Result<()> {
        self.at("n1", KILL_MONITOR)?;
        self.at("n1", KILL_STRONGSWAN)
    }

    fn start_after_crash(&mut self) -> anyhow::Result<()> {
        self.start_monitor("n1")
    }

    fn add_third(&mut self) -> anyhow::Result<()> {
        self.add("n3")
    }

    fn encapsulate(&mut self, always: bool) -> anyhow::Result<()> {
        self.global(&format!("options:ipsec_forceencaps={always}"))
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        self.switch(false)?;
        for node in self.chassis.keys() {
            let _ = self.at(node, KILL_MONITOR);
            let _ = self.at(node, "/usr/sbin/ipsec stop");
            self.at(node, "ip xfrm state flush; ip xfrm policy flush")?;
            self.start_monitor(node)?;
        }
        self.switch(true)
    }
}

impl Drop for Theirs<'_> {
    fn drop(&mut self) {
        for node in self.chassis.keys() {
            let _ = self.at(node, KILL_MONITOR);
            let _ = self.at(node, "/usr/sbin/ipsec stop");
        }
        for holder in self.chassis.values_mut() {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
