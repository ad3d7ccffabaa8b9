//! The whole of it without root: a user's lab in a user namespace of its own.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{BINARY, begin, run, unique_name};

/// Nobody.
const UID: u32 = 65_534;

/// A cluster from nothing to Strict and away again, as a user whom a desktop's udev lets open
/// `/dev/net/tun`.
#[test]
fn a_user_has_a_lab_without_root() {
    let Some(_turn) = begin("a_user_has_a_lab_without_root") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(folder.path(), mode(0o755)).expect("a mode");
    // The checkout may be where only root may look.
    let binary = folder.path().join("testudo");
    fs::copy(BINARY, &binary).expect("a copy of the program");
    let runtime = folder.path().join("run");
    fs::create_dir(&runtime).expect("a folder");
    fs::set_permissions(&runtime, mode(0o700)).expect("a mode");
    std::os::unix::fs::chown(&runtime, Some(UID), Some(UID)).expect("root gives it away");
    let testudo = binary.display();
    let run_dir = runtime.display();
    let name = unique_name();
    // The user's part. The trap ends the lab whatever happens.
    let user = folder.path().join("user.sh");
    let script = format!(
        "set -e\n\
         export XDG_RUNTIME_DIR={run_dir} HOME={run_dir}\n\
         trap '{testudo} lab down --name {name}' EXIT\n\
         {testudo} lab up --name {name} --nodes 2 --pods 1\n\
         store=dir:$XDG_RUNTIME_DIR/testudo/labs/{name}/store\n\
         {testudo} --store $store init\n\
         {testudo} --store $store status\n\
         {testudo} lab verify --name {name} -o json\n\
         {testudo} lab exec --name {name} n1/p1 -- ping -c 1 -W 2 10.244.2.11\n\
         {testudo} --store $store stop\n"
    );
    fs::write(&user, script).expect("a script");
    // Root's part: what udev does for the device, seen by this script alone.
    let script = format!(
        "set -e; mount -t tmpfs none /dev/net; mknod /dev/net/tun c 10 200; \
         chmod 0666 /dev/net/tun; \
         exec setpriv --reuid {UID} --regid {UID} --clear-groups sh {}",
        user.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let answer = run(command).ok();
    assert!(answer.out.contains("\"ok\": true"), "{answer}");
    assert!(answer.out.contains("\"phase\": \"Strict\""), "{answer}");
    assert!(!runtime.join("testudo").exists(), "left: {answer}");
}
