//! What a test wants of both ends.

use std::net::IpAddr;
use std::time::Duration;

use testudo_crypto::KeMethod;
use testudo_ike::{PpkConfig, Suites};
use testudo_interop::{Cable, LINK, Peer, can_run};
use testudo_model::SaMode;

pub const US: &str = "us.node.testudo";
pub const PEER: &str = "peer.node.testudo";
pub const SECRET: &str = "correct horse battery staple";

/// How long a test waits for what must come. On an idle machine it comes in milliseconds, but where a
/// peer says a DELETE once and that is lost: an IKE SA that was replaced is let go after 60 seconds.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs a test in a thread of its own: the namespace that the thread enters is its alone.
pub fn run_alone<F: FnOnce() + Send + 'static>(peer: Peer, body: F) {
    let path = std::any::type_name::<F>();
    let name = path.trim_end_matches("::{{closure}}");
    if !can_run(name, peer) {
        return;
    }
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whose ESP the daemon's packets pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TheirEsp {
    /// charon's kernel-libipsec: real packets, in UDP and tunnel mode only, on any kernel that has
    /// TUN.
    Libipsec,
    /// The kernel's, which may have none: the daemon is made to believe that the kernel does what
    /// it asks for. No packet passes.
    Pretended,
    /// The kernel's: under a kernel that has it.
    // Only the tests in a guest have that.
    #[allow(dead_code)]
    Kernel,
}

/// What one test wants. Both ends are configured from it.
#[derive(Clone)]
pub struct Wanted {
    pub cable: Cable,
    pub v6: bool,
    pub mode: SaMode,
    /// The child is for this protocol alone; 0: for all.
    pub protocol: u8,
    pub ke: KeMethod,
    pub initiate: bool,
    pub forced: bool,
    pub secret: Option<&'static str>,
    pub liveness: Duration,
    /// What may be negotiated with this peer alone.
    pub suites: Option<Suites>,
    pub ppk: Option<PpkConfig>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            cable: Cable::Direct,
            v6: false,
            mode: SaMode::Tunnel,
            protocol: 0,
            ke: KeMethod::X25519,
            initiate: true,
            forced: false,
            secret: Some(SECRET),
            liveness: Duration::ZERO,
            suites: None,
            ppk: None,
        }
    }
}

impl Wanted {
    /// Either end beginning, all else as by default.
    pub fn begun_by_us(initiate: bool) -> Self {
        Self {
            initiate,
            ..Self::default()
        }
    }

    /// The same with certificates.
    pub fn certified(initiate: bool) -> Self {
        Self {
            initiate,
            secret: None,
            ..Self::default()
        }
    }

    /// Outer addresses as each end sees the other: ours and the peer's.
    pub fn outer(&self) -> [&'static str; 2] {
        LINK[usize::from(self.v6)]
    }

    /// The outer address that an end has itself (0: ours, 1: the peer's).
    pub fn own(&self, end: usize) -> &'static str {
        match self.v6 {
            true => self.outer()[end],
            false => self.cable.own(end),
        }
    }

    /// What the child is for: ours and the peer's.
    pub fn inner(&self) -> [&'static str; 2] {
        match self.mode {
            SaMode::Tunnel => LINK[2 + usize::from(self.v6)],
            SaMode::Transport => [self.own(0), self.outer()[1]],
        }
    }
}
