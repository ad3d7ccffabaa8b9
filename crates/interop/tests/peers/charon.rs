//! strongSwan's charon in a world of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use testudo_crypto::KeMethod;
use testudo_interop::{Cable, Daemon, Peer, World, pretend_xfrm};
use testudo_model::SaMode;

use crate::alike::{Tell, Terms, Them};
use crate::certificates::Issued;
use crate::ours::Us;
use crate::wanted::{PATIENCE, PEER, SECRET, TheirEsp, US, Wanted, run_alone};

/// charon in its world.
pub struct Charon {
    pub daemon: Daemon,
    pub world: World,
    peer: Peer,
    preload: String,
    through: TheirEsp,
}

/// What charon is told apart from what `Wanted` says.
pub struct Told {
    pub peer: Peer,
    pub ike: String,
    pub esp: String,
    pub secret: &'static str,
    pub dpd: &'static str,
    pub through: TheirEsp,
    /// Its certificate, and the CAs that it trusts.
    pub certificates: Option<(Issued, String)>,
    /// More lines of the connection, of what we must be, and of the child.
    pub connection: String,
    pub remote: String,
    pub child: String,
    /// More of its settings, and of its secrets.
    pub settings: String,
    pub secrets: String,
    /// More files for swanctl: name and content.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Told {
    /// The same for a charon of Debian's next release.
    pub fn next(wanted: &Wanted) -> Self {
        Self {
            peer: Peer::NextStrongSwan,
            ..Self::by(wanted)
        }
    }

    fn swanctl_conf(&self, wanted: &Wanted) -> String {
        // Its own ESP is in UDP always, as behind a NAT.
        let encap = match wanted.cable {
            Cable::Direct if self.through == TheirEsp::Libipsec => "yes",
            _ => "no",
        };
        let mode = match wanted.mode {
            SaMode::Tunnel => "tunnel",
            SaMode::Transport => "transport",
        };
        let ours = match wanted.cable {
            Cable::NatBeforeUs => "%any",
            _ => wanted.outer()[0],
        };
        let theirs = wanted.own(1);
        let [inner_ours, inner_theirs] = wanted.inner();
        let (auth, certs) = match self.certificates {
            Some(_) => ("pubkey", "certs = peer.pem"),
            None => ("psk", ""),
        };
        let Self {
            ike,
            esp,
            dpd,
            secret,
            connection,
            remote,
            child,
            secrets,
            ..
        } = self;
        format!(
            "connections {{ t {{\n version = 2\n local_addrs = {theirs}\n remote_addrs = {ours}\n \
             proposals = {ike}\n dpd_delay = {dpd}\n encap = {encap}\n mobike = no\n {connection}\n \
             local {{\n auth = {auth}\n {certs}\n id = {PEER}\n }}\n \
             remote {{\n auth = {auth}\n id = {US}\n {remote}\n }}\n \
             children {{ net {{\n local_ts = {inner_theirs}\n remote_ts = {inner_ours}\n \
             mode = {mode}\n esp_proposals = {esp}\n {child}\n }} }} }} }}\n\
             secrets {{ ike-t {{\n id-1 = {US}\n id-2 = {PEER}\n secret = \"{secret}\"\n }}\n {secrets} }}\n"
        )
    }

    fn strongswan_conf(&self, place: &str) -> String {
        // Where nobody dies, we are waited for on a busy machine.
        let tries = if self.dpd == "0s" { 20 } else { 5 };
        let settings = &self.settings;
        let esp = match self.through {
            TheirEsp::Libipsec => "kernel-libipsec",
            TheirEsp::Pretended | TheirEsp::Kernel => "",
        };
        format!(
            "charon-systemd {{
  load = random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem curve25519 aes \
             gcm hmac kdf drbg sha1 sha2 {esp} kernel-netlink socket-default vici
  retransmit_tries = {tries}
  retransmit_timeout = 0.7
  retransmit_base = 1.0
  plugins {{ vici {{ socket = unix:///run/vici }} }}
  filelog {{ log {{
    path = {place}/log
    default = 1
    ike = 2
    cfg = 2
    flush_line = yes
  }} }}
  {settings}
}}
"
        )
    }
}

impl Told {
    /// Under a kernel with ESP, that charon uses.
    // Only the tests in a guest have that.
    #[allow(dead_code)]
    pub fn on_a_kernel(wanted: &Wanted) -> Self {
        let mut told = Self::by(wanted);
        told.through = TheirEsp::Kernel;
        told.esp = told.esp.replace("-noesn", "-esn");
        told
    }
}

impl Tell for Told {
    type Them = Charon;

    fn by(wanted: &Wanted) -> Self {
        let group = match wanted.ke {
            KeMethod::X25519 => "x25519",
            KeMethod::P256 => "ecp256",
            KeMethod::P384 => "ecp384",
            KeMethod::P521 => "ecp521",
            KeMethod::Modp2048 => "modp2048",
            other => panic!("charon has no {other:?}"),
        };
        Self {
            peer: Peer::StrongSwan,
            ike: format!("aes256gcm16-prfsha256-{group}"),
            esp: format!("aes256gcm16-{group}-noesn"),
            secret: SECRET,
            dpd: "0s",
            through: TheirEsp::Libipsec,
            certificates: None,
            connection: String::new(),
            remote: String::new(),
            child: String::new(),
            settings: String::new(),
            secrets: String::new(),
            files: Vec::new(),
        }
    }

    fn terms(&mut self) -> Terms<'_> {
        Terms {
            ike: &mut self.ike,
            esp: &mut self.esp,
            secret: &mut self.secret,
            certificates: &mut self.certificates,
        }
    }

    fn probe(&mut self) {
        self.dpd = "1s";
    }
}

impl Charon {
    fn exec(world: &World, peer: Peer, preload: &str) -> Daemon {
        let line = format!(
            "{preload}\nexport STRONGSWAN_CONF={0}/strongswan.conf SWANCTL_DIR={0}\nexec charon-systemd",
            world.place.path().display()
        );
        world.start(peer, &line).unwrap()
    }

    fn load(&self) {
        let end = Instant::now() + PATIENCE;
        while !self.swanctl("--stats").output().unwrap().status.success() {
            assert!(Instant::now() < end, "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let loaded = self.swanctl("--load-all --noprompt").output().unwrap();
        let text = String::from_utf8_lossy(&loaded.stdout).into_owned()
            + &String::from_utf8_lossy(&loaded.stderr);
        assert!(loaded.status.success(), "{text}{}", self.log());
    }

    /// Ends charon at once, as a crash does, and starts it anew.
    pub fn crash_and_return(&mut self) {
        self.daemon.kill();
        while self.daemon.is_running() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.daemon = Self::exec(&self.world, self.peer, &self.preload);
        self.load();
    }

    pub fn swanctl(&self, line: &str) -> Command {
        let mut command = self.daemon.enter();
        let place = self.world.place.path();
        command.env("SWANCTL_DIR", place);
        command.env("STRONGSWAN_CONF", place.join("strongswan.conf"));
        command.arg("swanctl").args(line.split(' '));
        command.args(["--uri", "unix:///run/vici"]);
        command
    }

    /// Runs swanctl beside our engine; it must succeed.
    pub fn order(&self, us: &mut Us, line: &str) {
        let (ok, text) = us.beside(&mut self.swanctl(line));
        assert!(ok, "swanctl {line}: {text}{}", us.story());
    }

    /// Runs swanctl beside our engine; it must fail. What it said.
    pub fn order_in_vain(&self, us: &mut Us, line: &str) -> String {
        let (ok, text) = us.beside(&mut self.swanctl(line));
        assert!(!ok, "swanctl {line}: {text}{}", us.story());
        text
    }

    /// Its SAs as swanctl lists them.
    pub fn sas(&self, us: &mut Us) -> String {
        let (ok, text) = us.beside(&mut self.swanctl("--list-sas"));
        assert!(ok, "{text}");
        text
    }
}

impl Them for Charon {
    type Told = Told;

    fn start(wanted: &Wanted, told: Told) -> Self {
        let world = World::new(wanted.cable).unwrap();
        let place = &world.place;
        let settings = told.strongswan_conf(&place.path().display().to_string());
        place.write("strongswan.conf", settings.as_bytes()).unwrap();
        let connections = told.swanctl_conf(wanted);
        place.write("swanctl.conf", connections.as_bytes()).unwrap();
        if let Some((own, trusted)) = &told.certificates {
            place.write("x509/peer.pem", &own.leaf_pem()).unwrap();
            place.write("x509ca/ca.pem", trusted.as_bytes()).unwrap();
            for (n, pem) in own.intermediates_pem().iter().enumerate() {
                place.write(&format!("x509ca/sub{n}.pem"), pem).unwrap();
            }
            place.write("private/peer.pem", &own.key_pem()).unwrap();
        }
        for (name, content) in &told.files {
            place.write(name, content).unwrap();
        }
        let preload = match told.through {
            TheirEsp::Pretended => format!(
                "export LD_PRELOAD={}",
                pretend_xfrm(place).unwrap().display()
            ),
            TheirEsp::Libipsec | TheirEsp::Kernel => String::new(),
        };
        let daemon = Self::exec(&world, told.peer, &preload);
        let charon = Self {
            daemon,
            world,
            peer: told.peer,
            preload,
            through: told.through,
        };
        charon.load();
        charon
    }

    fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    fn log(&self) -> String {
        self.world.text("output") + &self.world.text("log")
    }

    fn begin(&self, us: &mut Us, wanted: &Wanted) {
        if !wanted.initiate {
            self.order(us, "--initiate --child net --timeout 45");
        }
    }

    fn begin_in_vain(&self, us: &mut Us, wanted: &Wanted) {
        if !wanted.initiate {
            self.order_in_vain(us, "--initiate --child net --timeout 45");
        }
    }

    fn rekey_child(&self, us: &mut Us) {
        self.order(us, "--rekey --child net");
    }

    fn rekey_ike(&self, us: &mut Us) {
        self.order(us, "--rekey --ike t");
    }

    fn terminate(&self, us: &mut Us) {
        self.order(us, "--terminate --ike t");
    }

    fn is_up(&self) -> bool {
        let output = self.swanctl("--list-sas").output().unwrap();
        assert!(output.status.success(), "{}", self.log());
        String::from_utf8_lossy(&output.stdout).contains("ESTABLISHED")
    }

    fn settles(&self, us: &mut Us, ike: usize, children: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.sas(us);
            let count = |word| text.matches(word).count();
            if (count("ESTABLISHED"), count("INSTALLED")) == (ike, children) {
                return;
            }
            assert!(Instant::now() < end, "{text}{}", us.story());
            us.wait(Duration::from_millis(100));
        }
    }

    fn ping(&self, us: &mut Us) {
        if self.through != TheirEsp::Pretended {
            us.ping();
        }
    }
}

/// Prints charon's log when the test fails.
impl Drop for Charon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// Runs a test against the machine's own strongSwan.
pub fn on_charon(body: impl FnOnce() + Send + 'static) {
    run_alone(Peer::StrongSwan, body);
}
