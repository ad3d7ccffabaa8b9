//! What goes wrong at the edges: files, permissions, devices, arguments. One line that says what
//! is missing and what to do, and the right exit code.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use common::{Answer, BINARY, Lab, Load, Options, Watch, begin, run, seconds, testudo, wait_until};

const TWO_NODES: Options = Options {
    nodes: 2,
    ..Options::VXLAN
};

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_right() {
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage"),
        (&["encrypt"], "encrypt"),
        (&["status", "--no-such-flag"], "--no-such-flag"),
        (&["status", "-o", "xml"], "json"),
        (&["--timeout", "soon", "init"], "90s"),
        (&["--store", "/var/lib/testudo", "status"], "dir:"),
        (&["lab", "up", "--overlay", "gre"], "vxlan"),
        (&["lab", "up", "--nodes", "0"], "--nodes 0"),
        (&["lab", "up", "--name", "../x"], "a-z"),
        (&["lab", "up", "--keying", "psk"], "not built yet"),
        (&["--store", "dir:/x", "--context", "c", "status"], "both"),
        (&["--store", "kube", "certs", "token", "n1"], "join token"),
    ];
    for (arguments, hint) in cases {
        let answer = testudo(arguments).expect(2);
        assert!(answer.err.contains(hint), "no {hint:?} in: {answer}");
        assert!(answer.out.is_empty(), "{answer}");
    }
    for help in [&["--help"][..], &["--version"], &["lab", "up", "--help"]] {
        let answer = testudo(help).ok();
        assert!(!answer.out.is_empty(), "{answer}");
    }
}

#[test]
fn a_store_that_cannot_be_used_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("nothing/here");
    let answer = testudo(&["--store", &dir(&missing), "status"]).expect(1);
    one_line(&answer, &[&missing.display().to_string()]);

    let file = folder.path().join("file");
    fs::write(&file, "x").expect("a file");
    let answer = testudo(&["--store", &dir(&file.join("store")), "init"]).expect(1);
    one_line(&answer, &[&file.display().to_string()]);

    // Where writing is not allowed; for root everything is, so someone else asks.
    if !rustix::process::geteuid().is_root() {
        println!(
            "SKIPPED a_store_that_cannot_be_used (as another user): needs root to change user"
        );
        return;
    }
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).expect("a folder");
    let mode = fs::Permissions::from_mode;
    fs::set_permissions(folder.path(), mode(0o755)).expect("a mode");
    fs::set_permissions(&closed, mode(0o755)).expect("a mode");
    let store = closed.join("store");
    let binary = folder.path().join("testudo");
    fs::copy(BINARY, &binary).expect("a copy of the program");
    for verb in [&["init"][..], &["controller"]] {
        let mut command = Command::new(&binary);
        command
            .args(["--store", &dir(&store)])
            .args(verb)
            .current_dir("/")
            .uid(65_534)
            .gid(65_534);
        let answer = run(command).expect(1);
        one_line(&answer, &[&closed.display().to_string(), "--store"]);
    }
}

fn dir(path: &Path) -> String {
    format!("dir:{}", path.display())
}

/// The standard error is one line with all these words, and the standard output empty.
#[track_caller]
fn one_line(answer: &Answer, words: &[&str]) {
    let lines: Vec<&str> = answer.err.lines().collect();
    assert_eq!(lines.len(), 1, "not one line: {answer}");
    assert!(answer.out.is_empty(), "{answer}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in: {answer}");
    }
}

/// Without /dev/net/tun a lab cannot be, and an agent says so while its node stays closed.
#[test]
fn a_missing_tun_device_is_named_with_a_remedy() {
    let Some(_turn) = begin("a_missing_tun_device_is_named_with_a_remedy") else {
        return;
    };
    let name = common::unique_name();
    let answer = without_tun(&format!("exec {BINARY} lab up --name {name}")).expect(1);
    one_line(&answer, &["/dev/net/tun", "mod"]);
    assert!(!Path::new("/run/testudo/labs").join(&name).exists());

    // An agent on its own, in a cluster that is on its way.
    let lone = LoneAgent::new();
    let answer = without_tun(&lone.script(""));
    let named = answer
        .err
        .lines()
        .find(|line| line.contains("/dev/net/tun") && line.contains("modprobe tun"));
    assert!(named.is_some(), "{answer}");
    assert!(!answer.err.contains("panicked"), "{answer}");
}

/// The same without the right to administer the network.
#[test]
fn a_missing_capability_is_named() {
    let Some(_turn) = begin("a_missing_capability_is_named") else {
        return;
    };
    let lone = LoneAgent::new();
    let without = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &lone.script(without)]);
    let answer = run(command);
    let named = answer
        .err
        .lines()
        .any(|line| line.contains("CAP_NET_ADMIN"));
    assert!(named, "{answer}");
    assert!(!answer.err.contains("panicked"), "{answer}");
}

/// An agent with a store of its own, whose policy asks it for tunnels.
struct LoneAgent(tempfile::TempDir);

impl LoneAgent {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let policies = folder.path().join("store/encryptionpolicies");
        fs::create_dir_all(&policies).expect("a folder");
        let policy = "apiVersion: testudo.dev/v1alpha1\n\
             kind: EncryptionPolicy\n\
             metadata: {name: cluster, generation: 1}\n\
             spec: {mode: Full, overlay: {type: VXLAN}}\n\
             status: {phase: Prepared, target: Strict, rollout: 1, since: 1, observedGeneration: 1}\n";
        fs::write(policies.join("cluster.yaml"), policy).expect("a policy");
        Self(folder)
    }

    /// Runs it for three seconds in a new network, by way of another program or directly.
    fn script(&self, by: &str) -> String {
        let at = self.0.path().display();
        format!(
            "ip link set lo up; ip addr add 192.0.2.1/24 dev lo; \
             timeout 3 {by} {BINARY} agent --node n1 --address 192.0.2.1 --store dir:{at}/store \
             --state-dir {at}/state --socket {at}/agent.sock"
        )
    }
}

/// Runs a script where there is no TUN device, in a network of its own.
fn without_tun(script: &str) -> Answer {
    let script = format!("mount -t tmpfs none /dev/net && {script}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-c", &script]);
    run(command)
}

/// A half-written policy, and one with a field that is not there: refused with file, line and
/// reason, while the last good state goes on and every packet with it.
#[test]
fn a_half_written_policy_is_refused_and_the_last_good_state_goes_on() {
    let Some(_turn) = begin("a_half_written_policy_is_refused_and_the_last_good_state_goes_on")
    else {
        return;
    };
    let mut lab = Lab::strict(TWO_NODES);
    lab.expect_errors();
    let load = Load::ring(&lab, 1000);
    let clear = Watch::clear(&lab);
    let file = lab
        .inner()
        .store_dir()
        .join("encryptionpolicies/cluster.yaml");
    let good = fs::read_to_string(&file).expect("the policy");
    let (half, _) = good.split_once("rict\n").expect("it is Strict");
    let wrong = good.replacen("mode:", "mood:", 1);
    assert_ne!(wrong, good);
    for bad in [half, &wrong, "", "\u{0}\u{1}"] {
        let at: Vec<usize> = DAEMONS.iter().map(|name| lab.log(name).len()).collect();
        fs::write(&file, bad).expect("the store can be written");
        let shown = file
            .file_name()
            .map(|name| name.to_string_lossy())
            .expect("a name");
        for (name, from) in DAEMONS.iter().zip(at) {
            // The line of the file stands behind its name.
            lab.wait_log(name, from, &[&format!("{shown}:")], seconds(5));
        }
        load.run_for(std::time::Duration::from_millis(300));
        lab.wait_tunnels(seconds(1));
    }
    fs::write(&file, &good).expect("the store can be written");
    wait_until("the policy to be read again", seconds(5), || {
        let answer = lab.testudo(&["status", "-o", "json"]);
        match answer.code == Some(0) && answer.json()["phase"] == "Strict" {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    });
    // A whole policy, but without the status that the controller keeps in it: a copy from
    // elsewhere, say. The roll-out does not begin again with nodes in clear.
    let (spec, _) = good.split_once("status:\n").expect("a status");
    fs::write(&file, spec).expect("the store can be written");
    wait_until("the status to be set again", seconds(10), || {
        let answer = lab.testudo(&["status", "-o", "json"]);
        if answer.code != Some(0) {
            return Err(answer.to_string());
        }
        let status = answer.json();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let all = nodes.iter().all(|node| node["acknowledged"] == true);
        // The controller may have written its status a moment later than we: then it stands.
        let done = status["phase"] == "Strict" && status["rollout"] != 0 && all;
        done.then_some(()).ok_or(format!("{status:#}"))
    });
    load.run_for(std::time::Duration::from_millis(500));
    load.stop_without_loss();
    clear.stop_with_none();
    lab.verify().ok();
    // It is still a cluster that does what it is told.
    lab.testudo(&["stop"]).ok();
    lab.down();
}

const DAEMONS: [&str; 3] = ["controller", "n1", "n2"];

/// The exit codes of a lab's life, and what each command prints for programs.
#[test]
fn exit_codes_and_json_are_as_the_contract_says() {
    let Some(_turn) = begin("exit_codes_and_json_are_as_the_contract_says") else {
        return;
    };
    let mut lab = Lab::up(TWO_NODES);
    lab.expect_errors();
    let empty = tempfile::tempdir().expect("a folder");
    let answer = testudo(&["--store", &dir(empty.path()), "start"]).expect(1);
    one_line(&answer, &["testudo init"]);

    // Nobody takes the next step: time runs out, and it says on whom it waited.
    let controller = lab.inner().controller_process().expect("it runs");
    // It is ended, not stopped: one that is stopped may hold the store's lock.
    assert!(lab.supervisor().signal(Signal::STOP));
    assert!(controller.signal(Signal::KILL));
    let answer = lab.testudo(&["init", "--timeout", "1s"]).expect(3);
    assert!(answer.err.contains("controller"), "{answer}");
    assert!(lab.supervisor().signal(Signal::CONT));
    let answer = lab.testudo(&["init"]).ok();
    assert!(answer.err.contains("Strict"), "{answer}");
    let again = lab.testudo(&["init"]).ok();
    assert!(again.took < seconds(5), "{again}");
    let answer = lab.testudo(&["certs", "rotate", "n9"]).expect(1);
    assert!(answer.err.contains("n9"), "{answer}");
    let answer = lab.testudo(&["get", "nodes", "n9"]).expect(1);
    assert!(answer.err.contains("n9"), "{answer}");

    status(&lab);
    tunnels(&lab);
    certificates(&lab);

    let files = private_files(&lab.inner().store_dir().join("secrets"));
    assert!(files >= 3, "a CA and two tokens: {files}");
    for node in ["n1", "n2"] {
        private_files(&lab.inner().node_dir(node).join("state"));
    }

    // A check that fails is exit code 1, with the report all the same.
    assert!(lab.supervisor().signal(Signal::STOP));
    assert!(lab.agent("n2").signal(Signal::KILL));
    let answer = lab.verify().expect(1);
    let report = answer.json();
    assert_eq!(report["ok"], false, "{report:#}");
    let flows = report["flows"].as_array().expect("flows");
    let blocked = |flow: &&Value| flow["kind"] == "pod-pod-remote";
    for flow in flows.iter().filter(blocked) {
        assert_eq!(flow["observed"], "blocked", "{flow:#}");
        assert_eq!(flow["ok"], false, "{flow:#}");
    }
    assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    let answer = lab.testudo(&["status", "--tunnels"]).expect(1);
    assert!(answer.err.contains("n2"), "{answer}");
    assert!(lab.supervisor().signal(Signal::CONT));
    lab.wait_tunnels(seconds(15));

    let answer = lab.testudo(&["stop"]).ok();
    assert!(answer.err.contains("Disabled"), "{answer}");
    let answer = lab.testudo(&["start"]).ok();
    assert!(answer.err.contains("Strict"), "{answer}");
    lab.down();
}

/// `status -o json`.
#[track_caller]
fn status(lab: &Lab) {
    let status = lab.json(&["status"]);
    assert_eq!(status["mode"], "Full", "{status:#}");
    assert_eq!(status["enforcement"], "Strict", "{status:#}");
    assert_eq!(status["phase"], "Strict", "{status:#}");
    assert_eq!(status["target"], "Strict", "{status:#}");
    assert_eq!(status["tunnels"]["up"], 2, "{status:#}");
    assert_eq!(status["tunnels"]["expected"], 2, "{status:#}");
    let nodes = status["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 2);
    for (node, name) in nodes.iter().zip(["n1", "n2"]) {
        assert_eq!(node["name"], name, "{node:#}");
        assert_eq!(node["phase"], "Strict", "{node:#}");
        assert_eq!(node["acknowledged"], true, "{node:#}");
        assert_eq!(node["datapath"], "user", "{node:#}");
        assert!(node["certificateSerial"].is_string(), "{node:#}");
        let mtu = node["effectiveMtu"].as_u64();
        assert!(
            mtu.is_some_and(|mtu| (1380..1500).contains(&mtu)),
            "{node:#}"
        );
    }
    // For people: a line a node, and a summary.
    let text = lab.testudo(&["status"]).ok().out;
    for word in ["n1", "n2", "Strict", "2 of 2"] {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
}

/// `status --tunnels -o json`: the fields of Kube-OVN's status and our own; keys never.
#[track_caller]
fn tunnels(lab: &Lab) {
    let answer = lab.testudo(&["status", "--tunnels", "-o", "json"]).ok();
    let report = answer.json();
    let tunnels = report["tunnels"].as_array().expect("tunnels");
    assert_eq!(tunnels.len(), 2, "{report:#}");
    for tunnel in tunnels {
        for field in [
            "node",
            "peer",
            "interface",
            "tunnelType",
            "localIP",
            "remoteIP",
            "addressFamily",
            "mark",
            "localCertificate",
            "localCA",
            "remoteCertificate",
            "remoteCA",
            "PSK",
            "MTU",
            "kernelPoliciesInstalled",
            "securityAssociationsInstalled",
            "connectionsActive",
            "packetsIn",
            "packetsOut",
            "bytesIn",
            "bytesOut",
            "childRekeys",
            "ikeRekeys",
            "lastError",
        ] {
            assert!(tunnel.get(field).is_some(), "no {field}: {tunnel:#}");
        }
        assert_eq!(tunnel["up"], true, "{tunnel:#}");
        assert_eq!(tunnel["PSK"], false, "{tunnel:#}");
        assert_eq!(tunnel["addressFamily"], "IPv4", "{tunnel:#}");
        let remote = tunnel["remoteCertificate"].as_str().unwrap_or_default();
        let peer = tunnel["peer"].as_str().unwrap_or("?");
        assert!(remote.contains(peer), "{tunnel:#}");
        let child = &tunnel["children"][0];
        for field in ["spiIn", "spiOut", "age", "packetsIn", "bytesOut"] {
            assert!(child.get(field).is_some(), "no {field}: {child:#}");
        }
        assert_eq!(child["mode"], "transport", "{child:#}");
    }
    let long = answer
        .out
        .split(|c: char| !c.is_ascii_hexdigit())
        .find(|word| word.len() >= 56);
    assert_eq!(long, None, "so long a hexadecimal number may be a key");
    let text = lab
        .testudo(&["status", "--tunnels", "--node", "n1"])
        .ok()
        .out;
    assert!(text.contains("n1") && text.contains("n2"), "{text}");
}

/// `certs list -o json`.
#[track_caller]
fn certificates(lab: &Lab) {
    let report = lab.json(&["certs", "list"]);
    let lines = report["certificates"].as_array().expect("certificates");
    assert_eq!(lines.len(), 2, "{report:#}");
    for line in lines {
        for field in [
            "node",
            "serial",
            "subject",
            "issuer",
            "notBefore",
            "notAfter",
        ] {
            assert!(line[field].is_string(), "no {field}: {line:#}");
        }
        let year = |field: &str| -> i32 {
            let text = line[field].as_str().unwrap_or_default();
            text.get(..4)
                .and_then(|year| year.parse().ok())
                .unwrap_or(0)
        };
        // OpenShift's default: five years.
        let years = year("notAfter") - year("notBefore");
        assert!((4..=6).contains(&years), "{line:#}");
    }
}

/// How many files there are below a folder, none of which anyone else may read.
#[track_caller]
fn private_files(folder: &Path) -> usize {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries.flatten() {
            let meta = entry.metadata().expect("a file that is there");
            if meta.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let mode = meta.permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
            files += 1;
        }
    }
    files
}
