//! Nodes with bad certificates and datagrams of all kinds: refused, counted, named; the others'
//! traffic flows on.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use rustix::process::Signal;
use serde_json::json;
use testudo_crypto::{KeyType, Random, SigningKey, SystemRandom};
use testudo_pki::{Ca, CaOptions, NodeIdentity, certificate_request, chain_to_pem, hex};

use common::{
    BINARY, Flow, Lab, Load, Options, Recording, Watch, begin, pcap, seconds, wait_until,
};

/// Datagrams a second, in all.
const RATE: u32 = 1000;

/// L35 and the bad input of the design: each kind of bad certificate is refused with
/// AUTHENTICATION_FAILED, and the peer's log, status and counters name the check.
#[test]
fn bad_certificates_are_refused_and_named() {
    let Some(_turn) = begin("bad_certificates_are_refused_and_named") else {
        return;
    };
    let mut lab = Lab::strict(Options::VXLAN);
    lab.expect_errors();
    let clear = Watch::clear(&lab);
    let address = |node: usize| lab.inner().layout().nodes[node].pods[0].addresses[0];
    let between_others = vec![
        Flow {
            from: "n1/p1".to_owned(),
            to: "n3/p1".to_owned(),
            address: address(2),
        },
        Flow {
            from: "n3/p1".to_owned(),
            to: "n1/p1".to_owned(),
            address: address(0),
        },
    ];
    let load = Load::start(&lab, between_others, RATE);
    let line = command_line(lab.agent("n2").pid);
    // Nobody is to start the true n2 again.
    assert!(lab.supervisor().signal(Signal::STOP));
    assert!(lab.agent("n2").signal(Signal::KILL));
    let folder = tempfile::tempdir().expect("a folder");
    let forger = Forger::new(&lab);
    for case in Case::ALL {
        let rogue = Rogue::start(&lab, &line, &folder.path().join(case.name()), &forger, case);
        let refused = case.check();
        let from = lab.log("n1").len();
        wait_until(
            &format!("{}: n1 counts {refused}", case.name()),
            seconds(15),
            || {
                let drops = lab.drops("n1")?;
                let found = drops.iter().any(|(name, count)| {
                    name.starts_with("failures.") && name.contains(refused) && *count > 0
                });
                found
                    .then_some(())
                    .ok_or(format!("{drops:?}\n{}", rogue.log()))
            },
        );
        lab.wait_log(
            "n1",
            from.saturating_sub(4000),
            &["n2", case.words()],
            seconds(5),
        );
        wait_until(
            &format!("{}: status names it", case.name()),
            seconds(5),
            || {
                let status = lab.json(&["status", "--tunnels", "--node", "n1"]);
                let tunnels = status["tunnels"].as_array().cloned().unwrap_or_default();
                let found = tunnels.iter().any(|tunnel| {
                    let error = tunnel["lastError"].as_str().unwrap_or_default();
                    tunnel["peer"] == "n2" && error.contains(case.words())
                });
                found.then_some(()).ok_or(format!("{status:#}"))
            },
        );
        wait_until(
            &format!("{}: the rogue is told AUTHENTICATION_FAILED", case.name()),
            seconds(5),
            || {
                let log = rogue.log();
                let told = log.to_lowercase().replace('_', " ");
                match told.contains("authentication failed") {
                    true => Ok(()),
                    false => Err(log),
                }
            },
        );
        rogue.end();
    }
    load.stop_without_loss();
    clear.stop_with_none();
    // The true n2 comes back.
    assert!(lab.supervisor().signal(Signal::CONT));
    lab.wait_tunnels(seconds(15));
    lab.verify().ok();
    lab.down();
}

/// What is wrong with a certificate.
#[derive(Clone, Copy)]
enum Case {
    Expired,
    AnotherNode,
    AnotherCa,
    BrokenSignature,
    AnotherKey,
}

impl Case {
    const ALL: [Self; 5] = [
        Self::Expired,
        Self::AnotherNode,
        Self::AnotherCa,
        Self::BrokenSignature,
        Self::AnotherKey,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::AnotherNode => "another-node",
            Self::AnotherCa => "another-ca",
            Self::BrokenSignature => "broken-signature",
            Self::AnotherKey => "another-key",
        }
    }

    /// The counter's name.
    fn check(self) -> &'static str {
        match self {
            Self::Expired => "certificate_expired",
            Self::AnotherNode => "certificate_wrong_identity",
            Self::AnotherCa => "certificate_unknown_ca",
            Self::BrokenSignature => "certificate_bad_signature",
            Self::AnotherKey => "auth_signature",
        }
    }

    /// What a person reads.
    fn words(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::AnotherNode => "wrong node",
            Self::AnotherCa => "unknown CA",
            Self::BrokenSignature => "bad signature",
            Self::AnotherKey => "AUTH signature",
        }
    }
}

/// Makes the bad certificates, with the lab's own CA where it needs one.
struct Forger {
    ca: Ca,
    uid: String,
    now: u64,
}

impl Forger {
    fn new(lab: &Lab) -> Self {
        let file = lab.inner().store_dir().join("secrets/ca.pem");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let ca = Ca::load(&text, text.as_bytes()).expect("the lab's CA");
        let uid = fs::read_to_string(state(lab, "n2").join("uid")).expect("n2 has a UID");
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        Self {
            ca,
            uid: uid.trim().to_owned(),
            now,
        }
    }

    /// UID, key (PKCS#8) and certificate (DER).
    fn make(&self, case: Case) -> (String, Vec<u8>, Vec<u8>) {
        let random = &mut SystemRandom::new();
        let (uid, now, lifetime) = match case {
            Case::Expired => (self.uid.clone(), self.now - 60, 0),
            Case::AnotherNode => {
                let other = "0b5e7c1e-2f8f-4a6e-9d5e-6a1f0c2d3e4f".to_owned();
                (other, self.now, 3600)
            }
            Case::AnotherCa | Case::BrokenSignature | Case::AnotherKey => {
                (self.uid.clone(), self.now, 3600)
            }
        };
        let foreign;
        let ca = match case {
            Case::AnotherCa => {
                foreign = Ca::generate(&CaOptions::default(), self.now, random).expect("a CA");
                &foreign
            }
            _ => &self.ca,
        };
        let key = SigningKey::generate(KeyType::EcdsaP256).expect("a key");
        let node = NodeIdentity::new("n2", &uid).expect("an identity");
        let request = certificate_request(&key, &node).expect("a request");
        let issued = ca
            .sign_request(&request, &node, lifetime, now, random)
            .expect("a certificate");
        let mut der = issued.der;
        if let Case::BrokenSignature = case {
            // The signature is the last field.
            *der.last_mut().expect("not empty") ^= 1;
        }
        let key = match case {
            Case::AnotherKey => SigningKey::generate(KeyType::EcdsaP256).expect("a key"),
            _ => key,
        };
        let key = key.to_pkcs8().expect("PKCS#8").as_bytes().to_vec();
        (uid, key, der)
    }
}

/// An agent that stands in n2's place, with a store of its own that nobody signs for.
struct Rogue {
    child: Child,
    log: PathBuf,
}

impl Rogue {
    fn start(lab: &Lab, line: &[String], folder: &Path, forger: &Forger, case: Case) -> Self {
        let (uid, key, der) = forger.make(case);
        let store = folder.join("store");
        copy(&lab.inner().store_dir(), &store);
        let state = folder.join("state");
        fs::create_dir_all(&state).expect("a folder");
        // What its true agent knew of the cluster, so that it starts as strict as that.
        copy(&self::state(lab, "n2"), &state);
        for stale in ["request.json", "certificate.json"] {
            let _ = fs::remove_file(state.join(stale));
        }
        fs::write(state.join("uid"), format!("{uid}\n")).expect("a UID");
        let current = json!({
            "key": hex(&key),
            "chain": chain_to_pem(&[der]),
            "rotation": 0,
        });
        fs::write(state.join("certificate.json"), current.to_string()).expect("a certificate");
        private(&state);
        let log = folder.join("log");
        let file = fs::File::create(&log).expect("a log");
        let mut command = lab
            .inner()
            .command("n2", BINARY)
            .expect("n2 has a namespace");
        let mut previous = "";
        for word in &line[1..] {
            let new = match previous {
                "--store" => format!("dir:{}", store.display()),
                "--state-dir" => state.display().to_string(),
                "--socket" => folder.join("agent.sock").display().to_string(),
                _ => word.clone(),
            };
            command.arg(new);
            previous = word;
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log twice"))
            .stderr(file)
            .spawn()
            .expect("an agent starts");
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

fn state(lab: &Lab, node: &str) -> PathBuf {
    lab.inner().node_dir(node).join("state")
}

fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    let _ = fs::create_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "cp -a");
}

/// Files that an agent takes for its own are its owner's alone.
fn private(folder: &Path) {
    let status = Command::new("chmod")
        .args(["-R", "go-rwx"])
        .arg(folder)
        .status();
    assert!(status.is_ok_and(|status| status.success()), "chmod");
}

/// The words of a process's command line.
fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).expect("the process lives");
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// L09, L28, L99: nothing that a stranger can put on the wire ends an SA, loses a packet or goes
/// uncounted.
#[test]
fn hostile_datagrams_are_counted_and_disturb_nothing() {
    let Some(_turn) = begin("hostile_datagrams_are_counted_and_disturb_nothing") else {
        return;
    };
    let lab = Lab::up(Options {
        nodes: 2,
        ..Options::VXLAN
    });
    let folder = tempfile::tempdir().expect("a folder");
    let recording = Recording::start(&lab, "n1", &folder.path().join("n1.pcap"));
    lab.testudo(&["init"]).ok();
    let load = Load::ring(&lab, RATE);
    load.run_for(Duration::from_millis(300));
    let packets = pcap::read(&recording.stop());
    let target = lab.inner().layout().nodes[0].primary();
    let attack = Attack::new(&lab, "n2", target, packets);
    let spis = spis(&lab);
    let agents = [lab.agent("n1"), lab.agent("n2")];
    let before = lab.drops("n1").expect("n1 answers");

    attack.ike();
    let after_ike = lab.drops("n1").expect("n1 answers");
    let rose = rise(&before, &after_ike);
    println!("IKE: {rose:?}");
    let counted: u64 = rose.values().sum();
    // A replayed first message is one that may be answered again.
    let sent = attack.sent();
    assert!(
        counted >= sent * 9 / 10,
        "{counted} of {sent} counted: {rose:?}"
    );

    let replayed = attack.esp_replays();
    let rose = rise(&after_ike, &lab.drops("n1").expect("n1 answers"));
    let replays = by_word(&rose, "replay");
    assert!(
        replays >= replayed && replayed > 0,
        "of {replayed} replayed packets {replays} were counted: {rose:?}"
    );
    attack.esp_garbage();
    let rose = rise(&after_ike, &lab.drops("n1").expect("n1 answers"));
    println!("ESP: {rose:?}");
    assert!(by_word(&rose, "spi") > 0, "unknown SPIs: {rose:?}");
    assert!(
        by_word(&rose, "auth") + by_word(&rose, "integrity") > 0,
        "forged packets: {rose:?}"
    );

    assert_eq!(self::spis(&lab), spis, "an SA was lost or replaced");
    assert_eq!([lab.agent("n1"), lab.agent("n2")], agents, "an agent died");
    load.stop_without_loss();
    lab.verify().ok();
    lab.down();
}

fn by_word(counters: &BTreeMap<String, u64>, word: &str) -> u64 {
    let matching = counters.iter().filter(|(name, _)| name.contains(word));
    matching.map(|(_, count)| count).sum()
}

fn rise(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    after
        .iter()
        .map(|(name, now)| (name.clone(), now - before.get(name).copied().unwrap_or(0)))
        .filter(|(_, rise)| *rise > 0)
        .collect()
}

/// All SPIs of IKE SAs and children.
fn spis(lab: &Lab) -> Vec<String> {
    let mut spis = Vec::new();
    for node in ["n1", "n2"] {
        for tunnel in lab.tunnels(node).expect("an agent answers") {
            assert!(tunnel.up, "{tunnel:#?}");
            let ike = tunnel.ike.expect("an IKE SA");
            spis.push(format!("{}/{}", ike.initiator_spi, ike.responder_spi));
            for child in &tunnel.children {
                spis.push(format!("{}/{}", child.spi_in, child.spi_out));
            }
        }
    }
    spis
}

/// Sends to one node what no peer would, from a peer's own address.
struct Attack {
    udp: UdpSocket,
    esp: UdpSocket,
    target: IpAddr,
    /// IKE messages as they were on the wire, without a marker.
    ike: Vec<Vec<u8>>,
    /// ESP packets to the target, as they were on the wire.
    esp_seen: Vec<Vec<u8>>,
    random: std::cell::RefCell<SystemRandom>,
    sent: std::cell::Cell<u64>,
}

impl Attack {
    fn new(lab: &Lab, from: &str, target: IpAddr, packets: Vec<pcap::Packet>) -> Self {
        let (udp, esp) = lab
            .inner()
            .inside(from, || {
                let udp = UdpSocket::bind("0.0.0.0:0")?;
                let protocol = Some(ipproto::ESP);
                let esp = socket(AddressFamily::INET, SocketType::RAW, protocol)?;
                Ok((udp, UdpSocket::from(esp)))
            })
            .expect("sockets in a node");
        let mut ike = Vec::new();
        let mut esp_seen = Vec::new();
        for packet in packets {
            if packet.protocol == 50 && packet.to == target {
                esp_seen.push(packet.payload);
            } else if let Some((_, port, data)) = packet.udp() {
                match (port, data) {
                    (500, data) => ike.push(data.to_vec()),
                    (4500, [0, 0, 0, 0, data @ ..]) => ike.push(data.to_vec()),
                    _ => {}
                }
            }
        }
        assert!(ike.len() >= 4, "{} IKE messages were seen", ike.len());
        assert!(
            esp_seen.len() >= 50,
            "{} ESP packets were seen",
            esp_seen.len()
        );
        Self {
            udp,
            esp,
            target,
            ike,
            esp_seen,
            random: SystemRandom::new().into(),
            sent: 0.into(),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.get()
    }

    fn random(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.random.borrow_mut().fill(&mut bytes);
        bytes
    }

    /// At a pace that leaves the machine's two cores time for the traffic.
    fn pace(&self) {
        let sent = self.sent.get() + 1;
        self.sent.set(sent);
        if sent.is_multiple_of(8) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn to_udp(&self, port: u16, data: &[u8]) {
        let _ = self.udp.send_to(data, SocketAddr::new(self.target, port));
        self.pace();
    }

    /// To both ports, on 4500 with and without the marker.
    fn to_both(&self, data: &[u8]) {
        self.to_udp(500, data);
        self.to_udp(4500, data);
        self.to_udp(4500, &[&[0; 4], data].concat());
    }

    fn to_esp(&self, data: &[u8]) {
        let _ = self.esp.send_to(data, SocketAddr::new(self.target, 0));
        self.pace();
    }

    fn ike(&self) {
        for length in 0..=40 {
            self.to_both(&vec![0; length]);
            self.to_both(&vec![0xff; length]);
            self.to_both(&self.random(length));
        }
        for length in [100, 500, 1400, 9000, 40_000, 65_000] {
            self.to_both(&self.random(length));
        }
        for message in self.ike.iter().take(12) {
            // Replayed as it was.
            self.to_both(message);
            // Truncated, its length field as it was.
            for length in (0..message.len()).step_by(message.len() / 24 + 1) {
                self.to_both(&message[..length]);
            }
            // Longer than it says.
            self.to_both(&[message.as_slice(), &[0; 100]].concat());
            // Another length in the header, another version, another first payload, flipped bits.
            for (at, value) in [(17, 0xff), (16, 0x2e), (16, 0xff), (18, 0xff), (19, 0xff)] {
                self.changed(message, at, value);
            }
            for at in (24..28.min(message.len())).chain([message.len() - 1]) {
                self.changed(message, at, 0xff);
            }
        }
    }

    fn changed(&self, message: &[u8], at: usize, flip: u8) {
        let mut message = message.to_vec();
        message[at] ^= flip;
        self.to_both(&message);
    }

    /// Sends again what was seen; how many.
    fn esp_replays(&self) -> u64 {
        let seen = &self.esp_seen[..self.esp_seen.len().min(200)];
        for packet in seen {
            self.to_esp(packet);
        }
        std::thread::sleep(Duration::from_millis(300));
        seen.len() as u64
    }

    fn esp_garbage(&self) {
        for length in 0..=64 {
            self.to_esp(&vec![0; length]);
            self.to_esp(&self.random(length));
        }
        for length in [100, 1400, 9000, 40_000, 65_000] {
            self.to_esp(&self.random(length));
        }
        for packet in self.esp_seen.iter().take(20) {
            // A number that has not come yet, so that the window does not hide the forgery.
            let mut forged = packet.clone();
            forged[4..8].copy_from_slice(&0x00f0_0000_u32.to_be_bytes());
            self.to_esp(&forged);
            self.to_esp(&packet[..packet.len() / 2]);
            self.to_esp(&[packet.as_slice(), &self.random(50)].concat());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
