//! Measures us beside other implementations, on this machine and in the same run.
//!
//! `testudo-bench ike` is what `cargo xtask bench ike` runs, `testudo-bench kernel` and
//! `testudo-bench ovn` what `cargo xtask bench kernel` and `ovn` run in a guest. `testudo-bench end ROLE ...` is one
//! end of a measurement, in a process of its own so that its memory and CPU time are its own.

mod daemons;
mod ends;
mod ike;
mod kernel;
mod kube;
mod ovn;
mod report;
mod usage;

use std::process::ExitCode;

use report::Gaps;

/// The exit code when something could not be measured that was asked for and is there. (2 is wrong usage,
/// 3 a guest whose time was over.)
const INCOMPLETE: u8 = 4;

const HELP: &str = "\
testudo-bench ike [-o json] [--rounds N] [--without-baseline]
    CPU, memory and rate of key exchanges, charon and libreswan beside them where they are unpacked
testudo-bench kernel [-o json] [--rounds N] [--peers N]
    SAs and policies of many peers in this machine's kernel, `ip -batch` beside them
testudo-bench kube --testudo FILE [-o json] [--nodes N] [--minutes N] [--without-watches]
    what 1,000 nodes cost an API server and the controller: at rest, in a roll-out, in a rotation
testudo-bench ovn --testudo FILE --ovs FOLDER --ipsec FOLDER [-o json] [--rounds N]
              [--only testudo|ovn] [--events rebooted,third,...]
    what pods' traffic over real OVN suffers from changes of IPsec, OVN's own beside ours
Exit codes: 0 done, 1 an error, 2 usage, 4 a part could not be measured though all for it is there.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["ike", rest @ ..] => match ike::Options::read(rest) {
            Some(options) => ike::run(&options),
            None => return usage_error(),
        },
        ["kernel", rest @ ..] => match kernel::Options::read(rest) {
            Some(options) => kernel::run(&options).map(|()| Gaps::new()),
            None => return usage_error(),
        },
        ["kube", rest @ ..] => match kube::Options::read(rest) {
            Some(options) => kube::run(&options).map(|()| Gaps::new()),
            None => return usage_error(),
        },
        ["ovn", rest @ ..] => match ovn::Options::read(rest) {
            Some(options) => ovn::run(&options),
            None => return usage_error(),
        },
        ["end", rest @ ..] => match ends::Task::read(rest) {
            Some(task) => ends::run(&task).map(|()| Gaps::new()),
            None => return usage_error(),
        },
        _ => return usage_error(),
    };
    match done {
        Ok(gaps) if gaps.is_empty() => ExitCode::SUCCESS,
        Ok(gaps) => {
            for gap in gaps {
                eprintln!("could not be measured: {gap}");
            }
            ExitCode::from(INCOMPLETE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn usage_error() -> ExitCode {
    eprint!("{HELP}");
    ExitCode::from(2)
}
