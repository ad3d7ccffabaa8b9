//! Labs of namespaces alone: what `up` makes works, and `down` leaves nothing, whatever happened
//! in between. The daemons' part is tested with the `testudo` binary.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testudo_lab::{Family, Lab, LabSpec, Overlay, Place, Process, down, marked, up, verify};

/// The name of the lab whose supervisor this process shall be.
const SUPERVISE: &str = "TESTUDO_TEST_SUPERVISE";
/// The file with the program that supervises, in a process that plays an unprivileged user.
const USER: &str = "TESTUDO_TEST_USER";
/// A user without rights (`nobody`).
const NOBODY: u32 = 65_534;

fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED {test}: needs root for named network namespaces");
    }
    root
}

/// A directory of this test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("testudo-lab-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// A program that understands `lab supervise --name N`: this test binary, told by a variable
    /// that it is a supervisor.
    fn supervisor(&self) -> PathBuf {
        let script = self.0.join("testudo");
        if script.exists() {
            return script;
        }
        let binary = self.0.join("tests");
        fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
        let text = format!(
            "#!/bin/sh\nexport {SUPERVISE}=\"$4\"\nexec {} --exact supervisor_entry --nocapture\n",
            binary.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A lab that is ended also when its test fails.
struct Guard(String);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = down(&self.0, &mut |_| {});
    }
}

fn spec(test: &str, scratch: &Scratch) -> LabSpec {
    // The process's number keeps leftovers of a killed run apart from this one.
    let name = format!("{test}-{}", std::process::id());
    LabSpec {
        daemons: false,
        ..LabSpec::new(&name, scratch.supervisor())
    }
}

fn bring_up(spec: &LabSpec) -> (Lab, Guard) {
    let guard = Guard(spec.name.clone());
    let lab = up(spec.clone(), &mut |_| {}).unwrap();
    (lab, guard)
}

fn kill_supervisor(lab: &Lab) {
    let supervisor = lab.supervisor_process().unwrap();
    assert!(supervisor.signal(Signal::KILL));
    let deadline = Instant::now() + Duration::from_secs(5);
    while supervisor.is_alive() {
        assert!(Instant::now() < deadline, "the supervisor does not die");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_nothing_left(lab: &Lab) {
    assert_eq!(marked(lab.id()), [], "processes");
    assert!(!lab.directory().exists(), "{}", lab.directory().display());
    for netns in lab.layout().namespaces() {
        assert!(!Path::new("/run/netns").join(netns).exists(), "{netns}");
    }
    let links = fs::read_to_string("/proc/net/dev").unwrap();
    for name in ["vxlan0:", "cni0:", "br0:"] {
        assert!(
            !links.contains(name),
            "{name} in the machine's own namespace"
        );
    }
}

#[test]
fn supervisor_entry() {
    if let Ok(name) = std::env::var(SUPERVISE) {
        testudo_lab::supervise(&name).unwrap();
    }
}

#[test]
fn every_kind_of_lab_carries_every_flow_and_leaves_nothing() {
    if !root("every_kind_of_lab_carries_every_flow_and_leaves_nothing") {
        return;
    }
    let scratch = Scratch::new("kinds");
    for overlay in [Overlay::Vxlan, Overlay::Routed] {
        for family in [Family::V4, Family::V6, Family::Dual] {
            let spec = LabSpec {
                overlay,
                family,
                ..spec("kinds", &scratch)
            };
            let (lab, _guard) = bring_up(&spec);
            let report = verify::verify(&lab, &mut |_| {}).unwrap();
            let wrong: Vec<_> = report.flows.iter().filter(|flow| !flow.ok).collect();
            assert!(report.ok, "{overlay} {family}: {wrong:#?}");
            assert_eq!(report.flows.len(), 9 * 8);
            assert_eq!(report.wire.esp_packets, 0);
            assert!(report.wire.clear_protected_packets > 0);
            assert!(down(&spec.name, &mut |_| {}).unwrap());
            assert_nothing_left(&lab);
            assert!(
                !down(&spec.name, &mut |_| {}).unwrap(),
                "down again has nothing to do"
            );
        }
    }
}

/// Where this kernel has no Geneve, the other half of the test is that of the guests
/// (`geneve_is_strict_and_off_again` of the command line's `guest_lab`).
#[test]
fn a_geneve_lab_carries_every_flow_or_says_what_the_kernel_lacks() {
    if !root("a_geneve_lab_carries_every_flow_or_says_what_the_kernel_lacks") {
        return;
    }
    let scratch = Scratch::new("geneve");
    for family in [Family::V4, Family::V6, Family::Dual] {
        let spec = LabSpec {
            overlay: Overlay::Geneve,
            family,
            ..spec("geneve", &scratch)
        };
        let _guard = Guard(spec.name.clone());
        let lab = match up(spec.clone(), &mut |_| {}) {
            Ok(lab) => lab,
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("modprobe geneve"), "{text}");
                assert!(!down(&spec.name, &mut |_| {}).unwrap(), "nothing is left");
                continue;
            }
        };
        let report = verify::verify(&lab, &mut |_| {}).unwrap();
        let wrong: Vec<_> = report.flows.iter().filter(|flow| !flow.ok).collect();
        assert!(report.ok, "{family}: {wrong:#?}");
        assert!(report.wire.clear_protected_packets > 0);
        assert!(down(&spec.name, &mut |_| {}).unwrap());
        assert_nothing_left(&lab);
    }
}

#[test]
fn down_leaves_nothing_after_the_supervisor_was_killed() {
    if !root("down_leaves_nothing_after_the_supervisor_was_killed") {
        return;
    }
    let scratch = Scratch::new("killed");
    let (lab, guard) = bring_up(&spec("killed", &scratch));
    kill_supervisor(&lab);
    assert!(down(&guard.0, &mut |_| {}).unwrap());
    assert_nothing_left(&lab);
}

#[test]
fn up_refuses_a_running_lab_and_clears_a_dead_one() {
    if !root("up_refuses_a_running_lab_and_clears_a_dead_one") {
        return;
    }
    let scratch = Scratch::new("again");
    let spec = spec("again", &scratch);
    let (lab, _guard) = bring_up(&spec);
    let refused = up(spec.clone(), &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("runs already"), "{refused}");
    assert!(
        lab.supervisor_process().is_some(),
        "the refused one ended the running one"
    );
    kill_supervisor(&lab);
    let mut told = String::new();
    let second = up(spec, &mut |line| told += line).unwrap();
    assert!(told.contains("had left"), "{told}");
    assert_ne!(second.id(), lab.id());
}

/// After a crash of the machine the state names processes that are someone else's by now.
#[test]
fn a_stranger_with_a_reused_number_is_left_alone() {
    if !root("a_stranger_with_a_reused_number_is_left_alone") {
        return;
    }
    let scratch = Scratch::new("reused");
    let (lab, guard) = bring_up(&spec("reused", &scratch));
    kill_supervisor(&lab);
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let mut state = lab.state().unwrap().unwrap();
    state.supervisor = Process::find(stranger.id().try_into().unwrap()).unwrap();
    let bytes = serde_json::to_vec(&state).unwrap();
    fs::write(lab.directory().join("state.json"), bytes).unwrap();
    let done = down(&guard.0, &mut |_| {});
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(done.unwrap());
    assert!(alive, "down ended a process that was never the lab's");
    assert_nothing_left(&lab);
}

#[test]
fn a_broken_manifest_does_not_keep_a_lab_alive() {
    if !root("a_broken_manifest_does_not_keep_a_lab_alive") {
        return;
    }
    let scratch = Scratch::new("broken");
    let (lab, guard) = bring_up(&spec("broken", &scratch));
    kill_supervisor(&lab);
    fs::write(lab.directory().join("lab.json"), "{\"version\":").unwrap();
    assert!(down(&guard.0, &mut |_| {}).unwrap());
    assert_nothing_left(&lab);
}

#[test]
fn two_labs_at_once_do_not_meet() {
    if !root("two_labs_at_once_do_not_meet") {
        return;
    }
    let scratch = Scratch::new("two");
    let (first, first_guard) = bring_up(&spec("two-a", &scratch));
    let (second, _second_guard) = bring_up(&spec("two-b", &scratch));
    for lab in [&first, &second] {
        assert!(verify::verify(lab, &mut |_| {}).unwrap().ok);
    }
    assert!(down(&first_guard.0, &mut |_| {}).unwrap());
    assert_nothing_left(&first);
    assert!(verify::verify(&second, &mut |_| {}).unwrap().ok);
}

/// Building fails half-way: what stood is gone, and the reason is told.
#[test]
fn a_lab_that_cannot_be_built_leaves_nothing() {
    if !root("a_lab_that_cannot_be_built_leaves_nothing") {
        return;
    }
    let scratch = Scratch::new("half");
    let mut spec = spec("half", &scratch);
    let _guard = Guard(spec.name.clone());
    spec.binary = PathBuf::from("/bin/false");
    let error = format!("{:#}", up(spec.clone(), &mut |_| {}).unwrap_err());
    assert!(error.contains("the supervisor ended"), "{error}");
    assert!(Lab::open(Some(&spec.name)).is_err());
    assert!(!down(&spec.name, &mut |_| {}).unwrap());
}

/// The same as root's, in a user namespace: this test plays a user, and then goes inside.
#[test]
fn a_user_makes_a_lab_without_root() {
    let name = "a_user_makes_a_lab_without_root";
    if let Ok(program) = std::env::var(USER) {
        return play_user(Path::new(&program));
    }
    if !root(name) {
        return;
    }
    let scratch = Scratch::new("user");
    let program = scratch.supervisor();
    let output = Command::new(scratch.0.join("tests"))
        .args(["--exact", name, "--nocapture"])
        .env(USER, &program)
        .env_remove("XDG_RUNTIME_DIR")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("verified inside"), "{told}");
    assert!(
        !std::env::temp_dir()
            .join(format!("testudo-{NOBODY}/labs"))
            .exists()
    );
}

fn play_user(program: &Path) {
    // The parent's number: the same outside and inside, and unique to this run.
    let parent = program.parent().unwrap().to_string_lossy();
    let name = format!("user-{}", parent.rsplit('-').next().unwrap());
    if matches!(Place::current().unwrap(), Place::Inside { .. }) {
        let lab = Lab::open(Some(&name)).unwrap();
        let report = verify::verify(&lab, &mut |_| {}).unwrap();
        assert!(report.ok, "{report:#?}");
        println!("verified inside");
        return;
    }
    let _guard = Guard(name.clone());
    let spec = LabSpec {
        daemons: false,
        ..LabSpec::new(&name, program.to_owned())
    };
    let lab = up(spec, &mut |_| {}).unwrap();
    assert!(lab.run_inside().unwrap().unwrap().success());
    kill_supervisor(&lab);
    assert!(down(&name, &mut |_| {}).unwrap());
    assert_eq!(marked(lab.id()), []);
    assert!(!lab.directory().exists());
}
