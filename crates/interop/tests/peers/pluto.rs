//! libreswan's pluto in a world of its own. Its ESP is the kernel's. Where that has none pluto's
//! requests to install SAs are answered by `examples/pretend_xfrm.rs`, so negotiations finish but
//! no packet passes.

use std::process::Command;
use std::time::{Duration, Instant};

use testudo_crypto::KeMethod;
use testudo_interop::{Cable, Daemon, Peer, World, pretend_xfrm};
use testudo_model::SaMode;

use crate::alike::{Tell, Terms, Them};
use crate::certificates::Issued;
use crate::ours::Us;
use crate::wanted::{PATIENCE, PEER, SECRET, TheirEsp, US, Wanted, run_alone};

/// pluto in its world.
pub struct Pluto {
    pub daemon: Daemon,
    pub world: World,
    peer: Peer,
    line: String,
    through: TheirEsp,
}

/// What pluto is told apart from what `Wanted` says.
pub struct Told {
    pub peer: Peer,
    pub ike: String,
    pub esp: String,
    pub secret: &'static str,
    pub through: TheirEsp,
    /// More lines of the connection.
    pub more: String,
    /// Its certificate, and the CA that it trusts.
    pub certificates: Option<(Issued, String)>,
    /// How it proves itself with it, and how we must.
    pub authby: &'static str,
    /// More lines of its secrets, and of its set-up.
    pub secrets: String,
    pub setup: &'static str,
}

impl Told {
    /// The same for a pluto of Debian's next release.
    pub fn next(wanted: &Wanted) -> Self {
        Self {
            peer: Peer::NextLibreswan,
            ..Self::by(wanted)
        }
    }

    fn connection(&self, wanted: &Wanted) -> String {
        let ours = match wanted.cable {
            Cable::NatBeforeUs => "%any",
            _ => wanted.outer()[0],
        };
        let theirs = wanted.own(1);
        let [inner_ours, inner_theirs] = wanted.inner();
        let bits = if wanted.v6 { 128 } else { 32 };
        let auth = match self.certificates {
            Some(_) => format!(
                " authby={}\n leftcert=peer\n leftsendcert=always\n rightca=%any\n",
                self.authby
            ),
            None => " authby=secret\n".into(),
        };
        let kind = match wanted.mode {
            SaMode::Tunnel => format!(
                " type=tunnel\n leftsubnet={inner_theirs}/{bits}\n rightsubnet={inner_ours}/{bits}\n"
            ),
            SaMode::Transport => " type=transport\n".into(),
        };
        format!(
            "config setup\n{}conn t\n left={theirs}\n right={ours}\n leftid=@{PEER}\n \
             rightid=@{US}\n{auth}{kind} ikev2=insist\n ike={}\n esp={}\n leftupdown=/bin/true\n \
             retransmit-timeout=20s\n retransmit-interval=500ms\n keyingtries=1\n{} auto=add\n",
            self.setup, self.ike, self.esp, self.more
        )
    }
}

/// What puts the certificates into NSS's database.
fn import(place: &testudo_interop::Place, own: &Issued, trusted: &str) -> String {
    place.write("peer.pem", &own.leaf_pem()).unwrap();
    place.write("ca.pem", trusted.as_bytes()).unwrap();
    place.write("peer.key", &own.key_pem()).unwrap();
    let mut script = "openssl pkcs12 -export -in peer.pem -inkey peer.key -name peer \
                      -passout pass:x -out peer.p12\n\
                      certutil -A -d $nss -n ca -t CT,, -i ca.pem\n"
        .to_owned();
    for (n, pem) in own.intermediates_pem().iter().enumerate() {
        place.write(&format!("sub{n}.pem"), pem).unwrap();
        script += &format!("certutil -A -d $nss -n sub{n} -t ,, -i sub{n}.pem\n");
    }
    script + "pk12util -i peer.p12 -d $nss -W x\n"
}

impl Told {
    /// Under a kernel with ESP, that pluto uses.
    // Only the tests in a guest have that.
    #[allow(dead_code)]
    pub fn on_a_kernel(wanted: &Wanted) -> Self {
        Self {
            through: TheirEsp::Kernel,
            ..Self::by(wanted)
        }
    }
}

impl Tell for Told {
    type Them = Pluto;

    fn by(wanted: &Wanted) -> Self {
        let group = match wanted.ke {
            KeMethod::X25519 => "dh31",
            KeMethod::P256 => "dh19",
            KeMethod::P384 => "dh20",
            KeMethod::P521 => "dh21",
            KeMethod::Modp2048 => "modp2048",
            other => panic!("pluto has no {other:?}"),
        };
        Self {
            peer: Peer::Libreswan,
            ike: format!("aes_gcm256-sha2_256-{group}"),
            esp: "aes_gcm256".into(),
            secret: SECRET,
            through: TheirEsp::Pretended,
            more: String::new(),
            certificates: None,
            authby: "ecdsa",
            secrets: String::new(),
            setup: "",
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
        self.more += " dpddelay=1\n dpdtimeout=4\n dpdaction=clear\n";
    }
}

impl Pluto {
    /// Ends pluto at once, as a crash does, and starts it anew.
    pub fn crash_and_return(&mut self) {
        self.daemon.kill();
        while self.daemon.is_running() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.daemon = self.world.start(self.peer, &self.line).unwrap();
        self.loaded(2);
    }

    /// Waits until it has loaded its configuration so many times.
    pub fn loaded(&self, times: usize) {
        let end = Instant::now() + PATIENCE;
        let loaded = |log: &str| {
            let count = |word| log.matches(word).count();
            // Up to 4.x it says "connection", then how it is steered.
            let added = count("added IKEv2 connection") + count("\"t\": added ");
            added >= times && count("loading secrets") >= times
        };
        while !loaded(&self.log()) {
            assert!(Instant::now() < end, "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn whack(&self, line: &str) -> Command {
        let mut command = self.daemon.enter();
        command.args(["/usr/libexec/ipsec/whack", "--rundir", "/run/pluto"]);
        command.args(line.split(' '));
        command
    }
}

impl Them for Pluto {
    type Told = Told;

    fn start(wanted: &Wanted, told: Told) -> Self {
        let world = World::new(wanted.cable).unwrap();
        let place = &world.place;
        let connection = told.connection(wanted);
        place.write("ipsec.conf", connection.as_bytes()).unwrap();
        let secrets = format!("@{US} @{PEER} : PSK \"{}\"\n{}", told.secret, told.secrets);
        place.write("secrets", secrets.as_bytes()).unwrap();
        let certificates = told.certificates.as_ref();
        let import = certificates.map(|(own, ca)| import(place, own, ca));
        let preload = match told.through {
            TheirEsp::Kernel => String::new(),
            _ => format!(
                "export LD_PRELOAD={}\n",
                pretend_xfrm(place).unwrap().display()
            ),
        };
        let line = format!(
            "nss=sql:/var/lib/ipsec/nss\nmkdir -p /run/pluto /var/lib/ipsec/nss d\n\
             certutil -N -d $nss --empty-password\n{}\
             {preload}\
             exec /usr/libexec/ipsec/pluto --nofork --stderrlog --rundir /run/pluto --no-dnssec \
             --config $PWD/ipsec.conf --secretsfile $PWD/secrets --ipsecdir $PWD/d",
            import.unwrap_or_default(),
        );
        let daemon = world.start(told.peer, &line).unwrap();
        let pluto = Self {
            daemon,
            world,
            peer: told.peer,
            line,
            through: told.through,
        };
        pluto.loaded(1);
        pluto
    }

    fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    fn log(&self) -> String {
        self.world.text("output")
    }

    fn begin(&self, us: &mut Us, wanted: &Wanted) {
        if !wanted.initiate {
            us.beside(&mut self.whack("--name t --initiate --asynchronous"));
        }
    }

    fn rekey_child(&self, us: &mut Us) {
        let word = match self.peer {
            Peer::NextLibreswan => "--rekey-child",
            _ => "--rekey-ipsec",
        };
        us.beside(&mut self.whack(&format!("--name t {word} --asynchronous")));
    }

    fn rekey_ike(&self, us: &mut Us) {
        us.beside(&mut self.whack("--name t --rekey-ike --asynchronous"));
    }

    fn begin_in_vain(&self, us: &mut Us, wanted: &Wanted) {
        // It is not waited for.
        self.begin(us, wanted);
    }

    fn terminate(&self, us: &mut Us) {
        us.beside(&mut self.whack("--name t --terminate"));
    }

    fn is_up(&self) -> bool {
        let output = self.whack("--showstates").output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("ESTABLISHED_IKE_SA")
    }

    fn settles(&self, us: &mut Us, ike: usize, children: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let (_, text) = us.beside(&mut self.whack("--showstates"));
            let count = |word| text.matches(word).count();
            let held = (count("ESTABLISHED_IKE_SA"), count("ESTABLISHED_CHILD_SA"));
            if held == (ike, children) {
                return;
            }
            assert!(Instant::now() < end, "{text}{}", us.story());
            us.wait(Duration::from_millis(100));
        }
    }

    fn ping(&self, us: &mut Us) {
        if self.through == TheirEsp::Kernel {
            // It answers from when it has installed what it began.
            self.settles(us, 1, 1);
            us.ping();
        }
    }
}

/// Prints pluto's log when the test fails.
impl Drop for Pluto {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let at = log.find("listening for IKE").unwrap_or(0);
            println!("{}", &log[at..]);
        }
    }
}

pub fn on_pluto(body: impl FnOnce() + Send + 'static) {
    run_alone(Peer::Libreswan, body);
}
