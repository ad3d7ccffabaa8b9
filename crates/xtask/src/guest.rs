//! `cargo xtask guest`: a command under a real Linux kernel, on this machine's files.
//!
//! The kernel of the machine that builds and tests often has no ESP, and is one kernel only. A
//! guest's kernel is one of Debian's ([`kernel`]), either as an ordinary process (user-mode-linux)
//! or emulated (QEMU). It sees the whole of this machine's file system and changes nothing of it
//! ([`boot`]). docs/guest.md says what each kernel has and lacks.

pub(crate) mod batch;
mod boot;
mod folder;
mod initramfs;
mod kernel;
mod mappings;
mod process;
mod processor;
pub(crate) mod targets;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

pub(crate) use kernel::Kernel;

const USAGE: &str = "cargo xtask guest [--kernel uml|6.1|newest|RELEASE] [--cpus N] \
                     [--memory MIB] [--timeout SECONDS] [--shared FOLDER] [--fetch] -- COMMAND ARGS...";

/// The exit code of a guest that was stopped because its time was over.
const TIMED_OUT: u8 = 3;

/// What to run, and where.
struct Request {
    /// The kernel; without one, the quickest that works here.
    kernel: Option<Kernel>,
    /// Processors; user-mode-linux has one.
    cpus: Option<u32>,
    /// Memory in MiB.
    memory: u32,
    /// From the start of the machine to its end.
    timeout: Duration,
    /// A folder of this machine that the command may write to.
    shared: Option<PathBuf>,
    /// Fetch the kernel again, for a newer one.
    fetch: bool,
    /// The command and its arguments.
    command: Vec<String>,
}

/// `cargo xtask guest`: the command's exit code, or 3 when its time was over.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<u8> {
    let request = parse(arguments)?;
    match &request.kernel {
        Some(kernel) => attempt(&request, kernel)?.code(),
        None => anywhere(&request),
    }
}

/// user-mode-linux, or QEMU where that cannot be had or does not start.
fn anywhere(request: &Request) -> anyhow::Result<u8> {
    let why = match attempt(request, &Kernel::Uml) {
        Ok(boot::End::NeverStarted(why)) => why,
        Ok(end) => return end.code(),
        Err(error) => format!("{error:#}"),
    };
    eprintln!("==> guest: no user-mode-linux here, so QEMU: {why}");
    attempt(request, &Kernel::newest())?.code()
}

fn attempt(request: &Request, kernel: &Kernel) -> anyhow::Result<boot::End> {
    let unpacked = kernel::ensure(kernel, request.fetch)?;
    let end = boot::run(request, kernel, &unpacked)?;
    if matches!(end, boot::End::TimedOut) {
        eprintln!(
            "error: the guest was stopped, its {} s were over (--timeout)",
            request.timeout.as_secs()
        );
    }
    Ok(end)
}

impl boot::End {
    fn code(self) -> anyhow::Result<u8> {
        match self {
            boot::End::Exited(code) => Ok(code),
            boot::End::TimedOut => Ok(TIMED_OUT),
            boot::End::NeverStarted(why) => bail!("the guest did not start: {why}"),
            boot::End::Died(why) => bail!("the guest died under the command: {why}"),
        }
    }
}

fn parse(arguments: &[&str]) -> anyhow::Result<Request> {
    let mut request = Request {
        kernel: None,
        cpus: None,
        memory: 1024,
        timeout: Duration::from_secs(600),
        shared: None,
        fetch: false,
        command: Vec::new(),
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if *word == "--" {
            request.command = words.by_ref().map(|word| (*word).to_owned()).collect();
            break;
        }
        if *word == "--fetch" {
            request.fetch = true;
            continue;
        }
        if !["--kernel", "--cpus", "--memory", "--timeout", "--shared"].contains(word) {
            bail!("unknown: {word}; {USAGE}");
        }
        let value = words
            .next()
            .with_context(|| format!("{word} wants a value"))?;
        let number = || -> anyhow::Result<u32> {
            match value.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => bail!("{word} wants a number above 0, not {value}"),
            }
        };
        match *word {
            "--kernel" => request.kernel = Some(Kernel::named(value)?),
            "--cpus" => request.cpus = Some(number()?),
            "--memory" => request.memory = number()?,
            "--timeout" => request.timeout = Duration::from_secs(number()?.into()),
            _ => request.shared = Some(shared_folder(value)?),
        }
    }
    if request.command.is_empty() {
        bail!("no command; {USAGE}");
    }
    let uml = matches!(request.kernel, None | Some(Kernel::Uml));
    if uml && request.cpus.is_some_and(|n| n > 1) {
        match request.kernel {
            Some(_) => bail!("user-mode-linux has one processor; take --kernel newest or 6.1"),
            // Who asks for processors and names no kernel wants one that has them.
            None => request.kernel = Some(Kernel::newest()),
        }
    }
    Ok(request)
}

fn shared_folder(path: &str) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| path.to_owned())?;
    PathBuf::from(path)
        .canonicalize()
        .with_context(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_dashes_is_the_command() {
        let request = parse(&["--kernel", "6.1", "--cpus", "2", "--", "ip", "--", "-V"]).unwrap();
        assert_eq!(request.command, ["ip", "--", "-V"]);
        assert_eq!(request.kernel, Some(Kernel::named("6.1").unwrap()));
        assert_eq!(request.cpus, Some(2));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            &["--cpus", "0", "--", "true"][..],
            &["--kernel"],
            &["--kernel", "../x", "--", "true"],
            &["--kernel", "uml", "--cpus", "2", "--", "true"],
            &["true"],
            &["--"],
            &[],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn processors_mean_a_kernel_that_has_them() {
        let request = parse(&["--cpus", "2", "--", "true"]).unwrap();
        assert_eq!(request.kernel, Some(Kernel::newest()));
        assert_eq!(parse(&["--", "true"]).unwrap().kernel, None);
    }
}
