//! `cargo xtask`: set-up, the demo and the tests, each with one command.

mod deny;
mod fuzz;
mod guest;
mod house;
mod image;
mod kube;
mod lessons;
mod packages;
mod run;
mod test;

use std::process::ExitCode;

use anyhow::Context;

const HELP: &str = "\
cargo xtask COMMAND

  demo [--keep]     build in release mode and show the main job on this machine:
                    three nodes, clear text turning into ESP, rotations without a loss
  test [--fast | --guests [KERNEL]]
                    everything that CI runs: format, lints, layout, licences, all tests;
                    --fast leaves out labs and guests, --guests runs those in guests alone,
                    of one kernel or all; `--guests clusters` runs whole clusters of Kubernetes alone
  sim [--seeds N] [--seed S] [--orders M]
                    IKE engines on virtual time: 10,000 seeds of loss, delay, restarts,
                    then every order in which crossing exchanges can arrive; --seed tells
                    one again, --scene one order (as a failure prints it)
  fuzz [TARGET] [--seconds N] [--merge]
                    libFuzzer on one target or all: message, inner, engine, certificate,
                    esp; --merge takes what it found into fuzz/corpus
  bench ike [-o json]
                    what a key exchange costs in CPU time and memory, and how many stand in a
                    second, with charon beside it where it is unpacked
  bench kernel [-o json] [--peers N]
                    what SAs and policies of 1,000 peers cost in a guest's kernel, with
                    ip -batch beside it
  bench ovn [-o json] [--rounds N] [--only testudo|ovn] [--events rebooted,third,...]
            [--logs FOLDER]
                    packets lost and in clear while IPsec of pods on real OVN is switched,
                    renewed, killed and restarted, OVN's own IPsec beside ours; in a guest
  bench kube [-o json] [--nodes N] [--without-watches]
                    what 1,000 nodes cost a real API server and the controller: requests, bytes,
                    CPU and memory, at rest and in a rotation; the agents are simulated
  guest [--kernel uml|6.1|newest] [--cpus N] [--memory MIB] [--timeout SECONDS]
        [--shared FOLDER] [--fetch] -- COMMAND ARGS...
                    a command under a real Linux kernel with ESP, on this machine's files
                    (docs/guest.md)
  image [--output FILE] [--name NAME:TAG] [--binary FILE]
                    the container image as a tar file: the program, nft, modprobe and their
                    libraries; made without a daemon. --binary takes a program that is built
  chart             the Helm chart and plain manifests, in target/chart
  kube up [--nodes N] [--routed] | node | env | status | exec | load | down | build [--name NAME]
                    a real Kubernetes on this machine (docs/kubernetes-lab.md)
  packages          say which Debian packages are missing, and install them as root;
                    the daemons of the interop tests are unpacked beside the build
  house             the layout rules alone
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["demo", rest @ ..] => demo(rest),
        ["test"] => test::run(test::Scope::All),
        ["test", "--fast"] => test::run(test::Scope::WithoutLabs),
        ["test", "--guests"] => test::run(test::Scope::Guests(None)),
        ["test", "--guests", kernel] => test::run(test::Scope::Guests(Some(*kernel))),
        ["packages"] => packages::ensure_all().map(|()| 0),
        ["sim", rest @ ..] => sim(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["bench", rest @ ..] => bench(rest),
        ["guest", rest @ ..] => guest::run(rest),
        ["image", rest @ ..] => image::run(rest),
        ["chart"] => kube::chart(),
        ["kube", rest @ ..] => kube::run(rest),
        ["house"] => house::check().map(|()| 0),
        ["help" | "-h" | "--help"] | [] => {
            print!("{HELP}");
            Ok(0)
        }
        _ => {
            eprint!("unknown: cargo xtask {}\n\n{HELP}", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Builds what a user would install and lets it tell its story.
fn demo(arguments: &[&str]) -> anyhow::Result<u8> {
    packages::ensure()?;
    let program = build("testudo", &[])?;
    let status = std::process::Command::new(&program)
        .args(["lab", "demo"])
        .args(arguments)
        .status()
        .map_err(|e| anyhow::anyhow!("{}: {e}", program.display()))?;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Builds the simulation in release mode and passes it its arguments.
fn sim(arguments: &[&str]) -> anyhow::Result<u8> {
    release("testudo-sim", &[], arguments)
}

/// Builds the benches in release mode and passes them their arguments. What measures a kernel's
/// IPsec runs in a guest, which has one.
fn bench(arguments: &[&str]) -> anyhow::Result<u8> {
    const PROGRAM: &str = "testudo-bench";
    if arguments.first() == Some(&"kernel") {
        let program = build(PROGRAM, &[])?;
        let program = program
            .to_str()
            .context("the target directory is not text")?;
        return guest::run(&[&["--", program], arguments].concat());
    }
    if let Some((&"ovn", rest)) = arguments.split_first() {
        return bench_ovn(&build(PROGRAM, &["--bin", "testudo"])?, rest);
    }
    if let Some((&"kube", rest)) = arguments.split_first() {
        kube::ensure()?;
        let program = build(PROGRAM, &["--bin", "testudo"])?;
        let testudo = program.with_file_name("testudo").display().to_string();
        let words = [&["kube", "--testudo", &testudo], rest].concat();
        let status = std::process::Command::new(&program)
            .args(words)
            .status()
            .with_context(|| program.display().to_string())?;
        return Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1));
    }
    // Beside it the library that answers for the kernel where another daemon is measured.
    let also = ["--example", "pretend_xfrm"];
    release(PROGRAM, &also, arguments)
}

/// How long a guest has for the bench of OVN, in seconds: who is not back is waited for.
const BENCH_OVN: &str = "10800";

/// In the oldest kernel, which is Debian's that both are made for. The programs are stripped, for a
/// guest reads them slowly.
fn bench_ovn(program: &std::path::Path, arguments: &[&str]) -> anyhow::Result<u8> {
    let [ovs, ipsec] = packages::ensure_ovn()?;
    let folder = program.parent().context("a program is in a folder")?;
    let mut stripped = Vec::new();
    for name in ["testudo-bench", "testudo"] {
        let to = folder.join(format!("{name}.stripped"));
        let from = folder.join(name);
        let (from, out) = (from.display().to_string(), to.display().to_string());
        run::step("strip", &["strip", "-o", &out, &from])?;
        stripped.push(out);
    }
    let [bench, testudo] = &stripped[..] else {
        anyhow::bail!("two programs");
    };
    let (ovs, ipsec) = (ovs.display().to_string(), ipsec.display().to_string());
    let mut words = vec![
        "--kernel",
        "6.1",
        "--memory",
        "2048",
        "--timeout",
        BENCH_OVN,
    ];
    let mut arguments = arguments.to_vec();
    if let Some(at) = arguments.iter().position(|word| *word == "--logs") {
        let folder = arguments.get(at + 1).context("--logs wants a folder")?;
        words.extend(["--shared", folder]);
        arguments.drain(at..at + 2);
    }
    words.extend(["--", bench, "ovn", "--testudo", testudo]);
    words.extend(["--ovs", &ovs, "--ipsec", &ipsec]);
    guest::run(&[words, arguments].concat())
}

fn release(program: &str, also: &[&str], arguments: &[&str]) -> anyhow::Result<u8> {
    let program = build(program, also)?;
    let status = std::process::Command::new(&program)
        .args(arguments)
        .status()
        .map_err(|e| anyhow::anyhow!("{}: {e}", program.display()))?;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Builds a program in release mode; where it is. Of the whole workspace, so that what it depends on
/// is the variant that all other builds use: a package alone picks other features, and builds the
/// cryptographic library once more.
pub(crate) fn build(program: &str, also: &[&str]) -> anyhow::Result<std::path::PathBuf> {
    let build = [
        "cargo",
        "build",
        "--release",
        "--workspace",
        "--bin",
        program,
    ];
    run::step("build", &[&build, also].concat())?;
    Ok(run::target_directory()?.join("release").join(program))
}
