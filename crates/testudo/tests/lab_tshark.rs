//! What we send is what tshark reads: IKE decoded and decrypted without a malformed field, ESP
//! decrypted down to the pods' packets.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testudo_agent::api::Actions;

use common::{Lab, Load, Options, Recording, begin, seconds, wait_until};

/// IKE exchange types, RFC 7296 section 3.1.
const IKE_SA_INIT: &str = "34";
const IKE_AUTH: &str = "35";
const CREATE_CHILD_SA: &str = "36";
const INFORMATIONAL: &str = "37";

#[test]
fn tshark_decodes_and_decrypts_what_we_send_over_ipv4() {
    decoded("v4");
}

#[test]
fn tshark_decodes_and_decrypts_what_we_send_over_ipv6() {
    decoded("v6");
}

#[track_caller]
fn decoded(family: &'static str) {
    let Some(_turn) = begin(&format!("tshark {family}")) else {
        return;
    };
    let lab = Lab::up(Options {
        family,
        nodes: 2,
        export_keys: true,
        ..Options::VXLAN
    });
    let folder = tempfile::tempdir().expect("a folder");
    let recording = Recording::start(&lab, "n1", &folder.path().join("n1.pcap"));
    classical(&lab, folder.path());
    lab.testudo(&["init"]).ok();
    let load = Load::ring(&lab, 200);
    lab.act("n1", Actions::RekeyChild);
    wait_rekey(&lab, |n| n.0 >= 1);
    lab.act("n2", Actions::RekeyIke);
    wait_rekey(&lab, |n| n.1 >= 1);
    load.run_for(seconds(1));
    load.stop_without_loss();
    let capture = recording.stop();
    let keys = lab.inner().keys_dir();
    private(&keys);
    let tshark = Tshark::new(folder.path(), &keys, &capture);

    no_malformed(&tshark);
    ike(&tshark);
    esp(&tshark, family);
    lab.down();
}

/// A policy without ML-KEM: IKE_INTERMEDIATE goes under keys that are replaced by it, and tshark
/// knows one pair of keys for an IKE SA.
#[track_caller]
fn classical(lab: &Lab, folder: &Path) {
    let file = folder.join("policy.yaml");
    let policy = "apiVersion: testudo.dev/v1alpha1\n\
                  kind: EncryptionPolicy\n\
                  metadata: {name: cluster}\n\
                  spec:\n  overlay: {type: VXLAN}\n  ike: {postQuantum: Disabled}\n";
    std::fs::write(&file, policy).expect("a file");
    let file = file.to_str().expect("a path of text");
    lab.testudo(&["apply", "-f", file]).ok();
}

#[track_caller]
fn wait_rekey(lab: &Lab, enough: impl Fn((u64, u64)) -> bool) {
    wait_until("a rekey", seconds(10), || {
        let tunnels = lab.tunnels("n1")?;
        let sum = tunnels.iter().fold((0, 0), |sum, tunnel| {
            (sum.0 + tunnel.child_rekeys, sum.1 + tunnel.ike_rekeys)
        });
        enough(sum).then_some(()).ok_or(format!("{sum:?}"))
    });
}

/// Files with keys are for their owner alone.
#[track_caller]
fn private(keys: &Path) {
    use std::os::unix::fs::MetadataExt;
    for file in ["ikev2_decryption_table", "esp_sa"] {
        let path = keys.join(file);
        let meta = std::fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(meta.mode() & 0o077, 0, "{}", path.display());
        assert!(meta.len() > 0, "{}: empty", path.display());
    }
}

/// tshark with a home of its own, so that nobody's settings matter.
struct Tshark {
    home: PathBuf,
    capture: PathBuf,
}

impl Tshark {
    fn new(folder: &Path, keys: &Path, capture: &Path) -> Self {
        let home = folder.join("home");
        let profile = home.join(".config/wireshark");
        std::fs::create_dir_all(&profile).expect("a folder");
        for file in ["ikev2_decryption_table", "esp_sa"] {
            std::fs::copy(keys.join(file), profile.join(file)).expect("keys are copied");
        }
        Self {
            home,
            capture: capture.to_owned(),
        }
    }

    /// What it prints with these arguments, each packet decrypted.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tshark")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.home)
            .args(["-n", "-r"])
            .arg(&self.capture)
            .args(["-o", "esp.enable_encryption_decode:TRUE"])
            .args(["-o", "esp.enable_authentication_check:FALSE"])
            .args(["-o", "esp.enable_null_encryption_decode_heuristic:FALSE"])
            .args(arguments)
            .output()
            .expect("tshark runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tshark {arguments:?}: {err}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// One field of the packets that match, a line a packet.
    #[track_caller]
    fn field(&self, filter: &str, name: &str) -> Vec<String> {
        let out = self.run(&["-Y", filter, "-T", "fields", "-e", name]);
        out.lines().map(str::to_owned).collect()
    }

    /// How many packets match.
    #[track_caller]
    fn count(&self, filter: &str) -> usize {
        self.run(&["-Y", filter]).lines().count()
    }
}

/// Nothing that tshark calls malformed, and no complaint of an expert at ERROR.
#[track_caller]
fn no_malformed(tshark: &Tshark) {
    for filter in [
        "_ws.malformed",
        "isakmp && _ws.expert.severity == error",
        "udp.port == 4500 && !udpencap && !isakmp && !esp",
    ] {
        let bad = tshark.run(&["-Y", filter, "-V"]);
        assert!(bad.is_empty(), "{filter}:\n{}", &bad[..bad.len().min(4000)]);
    }
}

/// Every exchange is there, and inside the encrypted ones tshark reads the payloads.
#[track_caller]
fn ike(tshark: &Tshark) {
    let exchanges: BTreeSet<String> = tshark
        .field("isakmp", "isakmp.exchangetype")
        .into_iter()
        .collect();
    for wanted in [IKE_SA_INIT, IKE_AUTH, CREATE_CHILD_SA, INFORMATIONAL] {
        assert!(
            exchanges.contains(wanted),
            "no exchange {wanted}: {exchanges:?}"
        );
    }
    let out = tshark.run(&["-Y", "isakmp", "-T", "json"]);
    let packets: Value = serde_json::from_str(&out).expect("tshark writes JSON");
    let packets = packets.as_array().expect("a list");
    assert!(packets.len() >= 8, "{} IKE messages", packets.len());
    for packet in packets {
        let ike = &packet["_source"]["layers"]["isakmp"];
        let exchange = ike["isakmp.exchangetype"].as_str().unwrap_or_default();
        let opened = ike.to_string().contains("isakmp.enc.decrypted");
        assert!(
            exchange == IKE_SA_INIT || opened,
            "exchange {exchange} was not decrypted: {ike:#}"
        );
    }
    // Payload types of RFC 7296 section 3.2 that only a decrypted message shows.
    for (exchange, payload, name) in [
        (IKE_AUTH, "35", "IDi"),
        (IKE_AUTH, "36", "IDr"),
        (IKE_AUTH, "37", "CERT"),
        (IKE_AUTH, "39", "AUTH"),
        (IKE_AUTH, "44", "TSi"),
        (IKE_AUTH, "45", "TSr"),
        (CREATE_CHILD_SA, "33", "SA"),
        (CREATE_CHILD_SA, "40", "Ni or Nr"),
        (INFORMATIONAL, "42", "Delete"),
    ] {
        let filter = format!("isakmp.exchangetype == {exchange}");
        let types = tshark.field(&filter, "isakmp.typepayload");
        assert!(
            types
                .iter()
                .any(|line| line.split(',').any(|t| t == payload)),
            "no {name} in exchange {exchange}: {types:?}"
        );
    }
}

/// ESP opens with the exported keys, down to the pods' datagrams.
#[track_caller]
fn esp(tshark: &Tshark, family: &str) {
    let all = tshark.count("esp");
    let inside = tshark.count("esp && vxlan && udp.dstport == 9700");
    assert!(all > 0, "no ESP");
    assert!(
        inside > 0,
        "{family}: of {all} ESP packets none shows a pod's datagram"
    );
    let secret = "esp && frame contains \"TESTUDO-CLEAR-TEXT-CHECK\"";
    assert_eq!(tshark.count(secret), 0, "the secret is on the wire");
    let spis: BTreeSet<String> = tshark
        .field("esp && vxlan", "esp.spi")
        .into_iter()
        .collect();
    // Two directions, before and after the rekey.
    assert!(spis.len() >= 4, "SPIs that could be opened: {spis:?}");
}
