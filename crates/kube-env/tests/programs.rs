//! Where programs come from on a machine that has no Go.

use std::path::Path;
use std::process::{Command, Output};

use testudo_kube_env::programs::{ASSETS, CONTROL_PLANE, NODES};

/// `testudo-kube build`, with nothing but these folders to find programs in.
fn build(assets: Option<&Path>, cache: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testudo-kube"));
    command
        .arg("build")
        .env("PATH", "/nowhere")
        .env("XDG_CACHE_HOME", cache)
        .env_remove(ASSETS);
    if let Some(folder) = assets {
        command.env(ASSETS, folder);
    }
    command.output().expect("it starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_go_one_line_says_what_to_install() {
    let cache = tempfile::tempdir().expect("a folder");
    let output = build(None, cache.path());
    let said = errors(&output);
    assert!(!output.status.success(), "{said}");
    let told: Vec<&str> = said.lines().filter(|line| line.contains("Go")).collect();
    assert_eq!(told.len(), 1, "{said}");
    assert!(told[0].contains("install Go 1.26 or later"), "{said}");
}

#[test]
fn what_a_folder_of_assets_has_is_taken_and_the_rest_built() {
    let cache = tempfile::tempdir().expect("a folder");
    let assets = tempfile::tempdir().expect("a folder");
    let wanted = CONTROL_PLANE.iter().chain(&NODES);
    for program in wanted {
        std::fs::write(assets.path().join(program.name), "").expect("a file");
    }
    let output = build(Some(assets.path()), cache.path());
    assert!(output.status.success(), "{}", errors(&output));

    std::fs::remove_file(assets.path().join("kubelet")).expect("it was there");
    let output = build(Some(assets.path()), cache.path());
    let said = errors(&output);
    assert!(
        !output.status.success() && said.contains("building kubelet"),
        "{said}"
    );
}
