//! `cargo xtask guest` seen from outside: what it passes on, how a guest ends, what stays.
//!
//! With the kernel that is the default here; nothing in this depends on which.
#![allow(clippy::unwrap_used)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn guest(options: &[&str], script: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("guest")
        .args(options)
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn outputs_and_the_exit_code_are_passed_on() {
    let output = guest(&[], "echo out; echo err >&2; exit 42");
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    assert_eq!(text(&output.stdout), "out\n");
    let errors = text(&output.stderr);
    assert!(
        errors.contains("==> guest: Linux ") && errors.ends_with("err\n"),
        "{errors}"
    );
}

#[test]
fn much_output_arrives_whole() {
    let output = guest(&[], "seq 100000");
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(
        text(&output.stdout) == expected,
        "{} bytes",
        output.stdout.len()
    );
}

#[test]
fn nothing_of_the_machine_changes_but_what_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    std::fs::write(&kept, "before").unwrap();
    let shared = folder.path().join("shared");
    let script = format!(
        "cd {} && cat kept && echo after > kept && echo new > new && cat kept new && \
         echo result > $TESTUDO_GUEST_SHARED/result",
        folder.path().display()
    );
    let output = guest(&["--shared", shared.to_str().unwrap()], &script);
    assert_eq!(text(&output.stdout), "beforeafter\nnew\n", "{output:?}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "before");
    assert!(!folder.path().join("new").exists());
    assert_eq!(
        std::fs::read_to_string(shared.join("result")).unwrap(),
        "result\n"
    );
}

#[test]
fn a_command_that_hangs_is_stopped_and_nothing_of_it_stays() {
    let before = std::time::Instant::now();
    let output = guest(&["--timeout", "40"], "echo here; sleep 1000 & sleep 1000");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(text(&output.stdout), "here\n");
    assert!(
        text(&output.stderr).contains("40 s were over"),
        "{output:?}"
    );
    assert!(before.elapsed() < std::time::Duration::from_secs(100));
}

#[test]
fn a_kernel_that_panics_is_an_error_with_its_words() {
    let output = guest(
        &[],
        "echo here; sleep 1; echo c > /proc/sysrq-trigger; sleep 100",
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(text(&output.stdout), "here\n");
    let errors = text(&output.stderr);
    assert!(
        errors.contains("the guest died") && errors.contains("Kernel panic"),
        "{errors}"
    );
}

#[test]
fn a_guest_ends_with_the_one_who_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let sign = folder.path().join("sign");
    // Where it keeps what it shares with the guest.
    let parent = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args([
            "guest",
            "--shared",
            folder.path().to_str().unwrap(),
            "--",
            "sh",
            "-c",
        ])
        .arg("while :; do date +%s%N > $TESTUDO_GUEST_SHARED/sign; sleep 0.1; done")
        .env("TMPDIR", parent.path())
        .spawn()
        .unwrap();
    wait_for("a sign of life", || sign.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the end", || {
        let once = std::fs::read(&sign).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(3));
        once == std::fs::read(&sign).unwrap()
    });
    // Killed, it could not clean up; the next guest does.
    let left = || std::fs::read_dir(parent.path()).unwrap().count();
    assert_eq!(left(), 1);
    let next = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["guest", "--", "true"])
        .env("TMPDIR", parent.path())
        .status()
        .unwrap();
    assert_eq!(next.code(), Some(0));
    assert_eq!(left(), 0);
}

#[test]
fn a_machine_without_a_kernel_to_be_had_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["guest", "--kernel", "nosuchrelease", "--", "true"])
        .env("XDG_CACHE_HOME", folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("error: no kernel nosuchrelease"),
        "{errors}"
    );
    assert!(!Path::new(&folder.path().join("testudo/guest/nosuchrelease")).exists());
}

/// Both kernels of this machine's are no kernels, so it stays at the attempt.
#[test]
fn where_user_mode_linux_does_not_start_it_is_qemu() {
    let cache = tempfile::tempdir().unwrap();
    for (name, image) in [
        ("uml", "#!/bin/sh\necho no such luck; exit 1\n"),
        ("newest", "none"),
    ] {
        let folder = cache.path().join("testudo/guest").join(name);
        let modules = folder.join("lib/modules/1.0.0");
        std::fs::create_dir_all(&modules).unwrap();
        let builtin = ["overlay", "virtio_pci", "virtio_rng", "9pnet_virtio", "9p"];
        let builtin: String = builtin.map(|name| format!("kernel/{name}.ko\n")).concat();
        std::fs::write(modules.join("modules.builtin"), builtin).unwrap();
        std::fs::write(modules.join("modules.order"), "").unwrap();
        let mut depmod = Command::new("depmod");
        let depmod = depmod.arg("-b").arg(&folder).arg("1.0.0").output();
        assert!(depmod.unwrap().status.success());
        std::fs::write(folder.join("busybox"), "").unwrap();
        let program = folder.join("linux");
        std::fs::write(&program, image).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["guest", "--", "true"])
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    let (first, second) = errors.split_once("so QEMU: ").unwrap();
    assert!(first.contains("no user-mode-linux here"), "{errors}");
    let (first, second) = second.split_once("error: ").unwrap();
    assert!(first.contains("no such luck"), "{errors}");
    assert!(second.contains("the guest did not start"), "{errors}");
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(300);
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what} never came");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
