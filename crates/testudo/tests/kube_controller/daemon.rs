//! A controller as a process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::BINARY;

pub(crate) struct Daemon {
    name: String,
    child: std::cell::RefCell<Child>,
    log: PathBuf,
    metrics: SocketAddr,
}

impl Daemon {
    pub(crate) fn start(dir: &Path, name: &str, kubeconfig: &Path, arguments: &[&str]) -> Daemon {
        // Free for a moment at least: nobody else here asks for ports by chance.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let metrics = free.local_addr().unwrap();
        drop(free);
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let mut command = Command::new(BINARY);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["controller", "--metrics", &metrics.to_string()])
            .args(arguments)
            .env("HOSTNAME", name)
            .env_remove("POD_NAMESPACE")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Daemon {
            name: name.to_owned(),
            child: std::cell::RefCell::new(command.spawn().unwrap()),
            log,
            metrics,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.borrow().id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    pub(crate) fn kill(&self) {
        let mut child = self.child.borrow_mut();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Fails when the process has ended.
    #[track_caller]
    pub(crate) fn lives(&self) {
        let ended = self.child.borrow_mut().try_wait().unwrap();
        assert_eq!(ended, None, "{}: {}", self.name, self.log());
    }

    /// Status and text of a page; `None` where nobody answers.
    pub(crate) fn page(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.metrics).ok()?;
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    }

    /// The value of a metric with these labels as they are written; `None` where it is not shown.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.page("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut child = self.child.borrow_mut();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}
