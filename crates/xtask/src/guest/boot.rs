//! A guest's life: started, watched, ended.
//!
//! Two folders lead from a guest to its machine. The root is the machine's own, which the guest
//! cannot write; what it writes stays in its memory. The control folder holds what the guest is to
//! do, and takes what comes of it: both outputs, which are copied while they grow, and the exit
//! code. The console is the kernel's alone, so no message of its comes between the command's lines.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Request;
use super::folder::{Folder, private_file};
use super::initramfs;
use super::kernel::{Kernel, Unpacked};
use super::mappings;
use super::process::{bound, output};
use super::processor;

/// How long a kernel may take until it starts the command, on a machine that is busy.
const PATIENCE_UML: Duration = Duration::from_secs(60);
const PATIENCE_QEMU: Duration = Duration::from_secs(240);

/// How long a guest may take to power off when the command has ended.
const FAREWELL: Duration = Duration::from_secs(20);

/// The RAM disk, in the control folder.
const INITRAMFS: &str = "initramfs";

/// How often to look.
const PAUSE: Duration = Duration::from_millis(20);

/// How a guest ended.
pub(super) enum End {
    /// The command ended with this code.
    Exited(u8),
    /// The command was never started.
    NeverStarted(String),
    /// The kernel died while the command ran.
    Died(String),
    /// It took too long and was stopped.
    TimedOut,
}

/// Runs the command to its end.
pub(super) fn run(request: &Request, kernel: &Kernel, unpacked: &Unpacked) -> anyhow::Result<End> {
    let control = Control::new()?;
    control.write(request, kernel)?;
    initramfs::write(
        &control.path.join(INITRAMFS),
        &unpacked.busybox,
        &unpacked.early,
    )?;
    let start = Instant::now();
    let mut machine = match kernel {
        Kernel::Uml => user_mode_linux(request, unpacked, &control)?,
        Kernel::Of { .. } => qemu(request, unpacked, &control)?,
    };
    let patience = match kernel {
        Kernel::Uml => PATIENCE_UML,
        Kernel::Of { .. } => PATIENCE_QEMU,
    };
    let timeout = start + request.timeout;
    let (mut started, mut ended) = (false, None);
    let (mut looks, mut panics) = (0u32, 0);
    loop {
        // After a panic user-mode-linux goes on for ever, doing nothing. Between two looks it has
        // time for its last words.
        looks += 1;
        if looks % 25 == 0 && control.has_panicked() {
            panics += 1;
        }
        // Asked before the files are read: what a machine wrote before its end is not missed.
        let gone = panics > 1
            || machine
                .0
                .try_wait()
                .context("waiting for the guest")?
                .is_some();
        if !started && let Some(release) = control.text("kernel") {
            started = true;
            let seconds = start.elapsed().as_secs_f32();
            eprintln!(
                "==> guest: Linux {} ({}), up in {seconds:.1} s",
                release.trim(),
                kernel.name()
            );
        }
        control.copy_outputs()?;
        if ended.is_none()
            && let Some(code) = control.text("exit")
        {
            let code = code.trim().parse().context("the guest's exit code")?;
            ended = Some((code, Instant::now()));
        }
        match ended {
            Some((code, since)) if gone || since.elapsed() > FAREWELL => {
                control.copy_outputs()?;
                return Ok(End::Exited(code));
            }
            Some(_) => {}
            None if gone && started => return Ok(End::Died(control.last_words())),
            None if gone => return Ok(End::NeverStarted(control.last_words())),
            None if Instant::now() > timeout => {
                if !started {
                    eprintln!(
                        "    guest: its console ends with:\n{}",
                        control.last_words()
                    );
                }
                return Ok(End::TimedOut);
            }
            None if !started && start.elapsed() > patience => {
                return Ok(End::NeverStarted(format!(
                    "nothing after {} s; {}",
                    patience.as_secs(),
                    control.last_words()
                )));
            }
            None => {}
        }
        std::thread::sleep(PAUSE);
    }
}

/// An ordinary process, and the processes that it makes: one for each of the guest's. They have a
/// PID namespace of their own and end with its first process.
fn user_mode_linux(
    request: &Request,
    unpacked: &Unpacked,
    control: &Control,
) -> anyhow::Result<Machine> {
    mappings::ensure(request.memory)?;
    let mut command = bound("unshare");
    if !crate::packages::am_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--pid", "--fork", "--kill-child=KILL", "--", "sh", "-c"])
        // It keeps a file of the machine open for each that the guest has looked at.
        .arg("ulimit -n $(ulimit -H -n) && exec \"$@\"")
        .arg("sh");
    if let Some(processor) = processor::choose() {
        command.args(["taskset", "--cpu-list", &processor.to_string()]);
    }
    command
        .arg(&unpacked.image)
        .arg(format!("mem={}M", request.memory))
        .arg(format!("initrd={}", control.path.join(INITRAMFS).display()))
        .arg(format!("uml_dir={}/", control.path.display()))
        .args(["umid=uml", "con=null", "con0=null,fd:1", "seccomp=auto"])
        .arg("guest_root=hostfs")
        .arg(format!("guest_control={}", control.path.display()))
        .arg(format!("guest_modules={}", unpacked.modules.display()));
    if let Some(folder) = &request.shared {
        command.arg(format!("guest_shared={}", folder.display()));
    }
    // The guest's memory is a file there. A container's /dev/shm may be far too small for it.
    let shm = Path::new("/dev/shm");
    if free_mib(shm).is_some_and(|free| free > u64::from(request.memory)) {
        command.env("TMPDIR", shm);
    } else {
        command.env("TMPDIR", &control.path);
    }
    Machine::start(&mut command, control)
}

fn qemu(request: &Request, unpacked: &Unpacked, control: &Control) -> anyhow::Result<Machine> {
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 nokaslr mitigations=off nowatchdog audit=0 cryptomgr.notests \
         rcupdate.rcu_cpu_stall_suppress=1 guest_root=9p guest_control=control guest_modules={}",
        unpacked.modules.display()
    );
    let mut command = bound("qemu-system-x86_64");
    command
        .args([
            "-machine",
            "q35,hpet=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ])
        .args(["-smp", &request.cpus.unwrap_or(2).to_string()])
        .args(["-m", &request.memory.to_string()])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-device", "virtio-rng-pci"])
        .arg("-kernel")
        .arg(&unpacked.image)
        .arg("-initrd")
        .arg(control.path.join(INITRAMFS));
    let mut folders = vec![
        ("root", Path::new("/"), ",readonly=on"),
        ("control", &control.path, ""),
    ];
    if let Some(folder) = &request.shared {
        folders.push(("shared", folder, ""));
        line += " guest_shared=shared";
    }
    for (tag, path, options) in folders {
        command
            .arg("-fsdev")
            .arg(format!(
                "local,id={tag},path={},security_model=none,multidevs=remap{options}",
                path.display()
            ))
            .arg("-device")
            .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    command.args(["-append", &line]);
    Machine::start(&mut command, control)
}

/// What is free there, in MiB.
fn free_mib(folder: &Path) -> Option<u64> {
    let text = output(
        Command::new("df")
            .args(["-BM", "--output=avail"])
            .arg(folder),
    )
    .ok()?;
    text.lines()
        .nth(1)?
        .trim()
        .trim_end_matches('M')
        .parse()
        .ok()
}

/// A machine that goes with its holder.
struct Machine(Child);

impl Machine {
    fn start(command: &mut Command, control: &Control) -> anyhow::Result<Self> {
        let console = File::create(control.path.join("console"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .with_context(|| command.get_program().display().to_string())?;
        Ok(Self(child))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The control folder. It goes with its holder.
struct Control {
    path: PathBuf,
    _folder: Folder,
    outputs: [std::cell::RefCell<File>; 2],
}

impl Control {
    fn new() -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let path = folder.path().to_owned();
        // The kernel's command line knows no quotes.
        if path.as_os_str().as_bytes().contains(&b' ') {
            bail!("{}: a guest needs a TMPDIR without spaces", path.display());
        }
        let file = |name: &str| -> anyhow::Result<_> {
            std::fs::write(path.join(name), [])?;
            Ok(std::cell::RefCell::new(File::open(path.join(name))?))
        };
        let outputs = [file("output")?, file("errors")?];
        Ok(Self {
            path,
            _folder: folder,
            outputs,
        })
    }

    /// Says what to do.
    fn write(&self, request: &Request, kernel: &Kernel) -> anyhow::Result<()> {
        let start = include_bytes!("start.sh");
        std::fs::write(self.path.join("start.sh"), start)?;
        let mut script = b"cd ".to_vec();
        quote(std::env::current_dir()?.as_os_str().as_bytes(), &mut script);
        script.extend_from_slice(b" || exit 1\n");
        let own = ("TESTUDO_GUEST".into(), kernel.name().into());
        let shared = request.shared.is_some().then(|| {
            (
                "TESTUDO_GUEST_SHARED".into(),
                "/run/testudo-guest/shared".into(),
            )
        });
        for (name, value) in std::env::vars_os().chain([own]).chain(shared) {
            if !is_identifier(name.as_bytes()) {
                continue;
            }
            script.extend_from_slice(b"export ");
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            quote(value.as_bytes(), &mut script);
            script.push(b'\n');
        }
        script.extend_from_slice(b"exec");
        for word in &request.command {
            script.push(b' ');
            quote(word.as_bytes(), &mut script);
        }
        script.push(b'\n');
        // The caller's environment is in it.
        let mut file = private_file(&self.path.join("command.sh"))?;
        file.write_all(&script).context("the guest's command")
    }

    /// A file that the guest has finished writing.
    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join(name)).ok()
    }

    /// Passes on what the command has printed since the last time.
    fn copy_outputs(&self) -> anyhow::Result<()> {
        let [output, errors] = &self.outputs;
        let mut bytes = Vec::new();
        output.borrow_mut().read_to_end(&mut bytes)?;
        std::io::stdout().write_all(&bytes)?;
        std::io::stdout().flush()?;
        bytes.clear();
        errors.borrow_mut().read_to_end(&mut bytes)?;
        std::io::stderr().write_all(&bytes)?;
        Ok(())
    }

    fn has_panicked(&self) -> bool {
        let console = std::fs::read(self.path.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).contains("Kernel panic - not syncing")
    }

    /// How the console ends, as the end of a message.
    fn last_words(&self) -> String {
        let bytes = std::fs::read(self.path.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        // A panic's first line tells more than its registers.
        let from = lines
            .iter()
            .position(|line| line.contains("Kernel panic") || line.contains("Oops"))
            .unwrap_or(lines.len().saturating_sub(15));
        let lines = lines[from..].iter().take(40);
        let lines: String = lines.map(|line| format!("\n  {line}")).collect();
        format!("its console says:{lines}")
    }
}

/// A word that the shell takes as it is.
pub(super) fn quote(word: &[u8], script: &mut Vec<u8>) {
    script.push(b'\'');
    for byte in word {
        match byte {
            b'\'' => script.extend_from_slice(b"'\\''"),
            other => script.push(*other),
        }
    }
    script.push(b'\'');
}

fn is_identifier(name: &[u8]) -> bool {
    name.first()
        .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let odd = "a 'b' $c `d` \\ \"e\"\n*";
        let mut script = b"printf %s ".to_vec();
        quote(odd.as_bytes(), &mut script);
        let script = String::from_utf8(script).unwrap();
        let said = output(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(said, odd);
    }

    #[test]
    fn only_what_a_shell_can_name_is_exported() {
        assert!(is_identifier(b"A_1") && is_identifier(b"_"));
        assert!(!is_identifier(b"1A") && !is_identifier(b"BASH_FUNC_x%%") && !is_identifier(b""));
    }
}
