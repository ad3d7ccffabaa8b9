//! What is done to either side, and what each event costs.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use testudo_lab::Lab;

use super::traffic::Traffic;
use super::wire::Wire;

/// How long the daemons stay stopped.
pub(super) const PAUSE_STOPPED: Duration = Duration::from_secs(10);
/// Traffic is back when nothing was lost for so long.
const QUIET: Duration = Duration::from_secs(5);
/// A datagram that has not arrived after so long is lost: the processor is emulated.
const GRACE: Duration = Duration::from_secs(6);
/// Who is not back by then is not back: Linux gives an acquire 165 s.
const LIMIT: Duration = Duration::from_secs(200);

/// One of the two that are measured. All acts on one node are on `n1`; they return when the command
/// that a person would type has.
pub(super) trait Side {
    /// Encryption on or off, for the cluster.
    fn switch(&mut self, on: bool) -> anyhow::Result<()>;
    /// A new certificate, used from now on.
    fn replace_certificate(&mut self) -> anyhow::Result<()>;
    /// The daemon that speaks IKE crashes; what watches it starts it again.
    fn kill_ike(&mut self) -> anyhow::Result<()>;
    /// A node's daemons end and are started, as for another version.
    fn restart(&mut self) -> anyhow::Result<()>;
    /// They are stopped, and started after [`PAUSE_STOPPED`].
    fn stop_and_start(&mut self) -> anyhow::Result<()>;
    /// All of them end at once.
    fn crash(&mut self) -> anyhow::Result<()>;
    /// They are started as after a boot.
    fn start_after_crash(&mut self) -> anyhow::Result<()>;
    /// `n3` takes part.
    fn add_third(&mut self) -> anyhow::Result<()>;
    /// Whether ESP goes into UDP from now on.
    fn encapsulate(&mut self, always: bool) -> anyhow::Result<()>;
    /// Everything possible, after traffic did not come back.
    fn heal(&mut self) -> anyhow::Result<()>;
}

/// What an event did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    /// Datagrams that never arrived, of both directions.
    pub(super) lost: u64,
    /// Clear packets that should not have been.
    pub(super) clear: u64,
    /// Until the command had returned, and the last datagram was lost, or seen in clear; none: it
    /// went on for [`LIMIT`].
    pub(super) seconds: Option<f64>,
    /// What else was seen of it: the steps of a reboot, how ESP travels.
    pub(super) detail: Option<String>,
}

/// The steps of a reboot.
struct Boot {
    /// The daemons are started.
    start: Instant,
    /// Their start has returned.
    started: Instant,
    /// The link comes up after it.
    up: Instant,
}

/// The events, in the order in which they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    On,
    Off,
    Certificate,
    IkeKilled,
    Restarted,
    Stopped,
    Rebooted,
    Third,
    Encapsulated,
}

impl Event {
    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::On => "switched on",
            Self::Off => "switched off",
            Self::Certificate => "certificate replaced",
            Self::IkeKilled => "IKE daemon killed",
            Self::Restarted => "daemons restarted",
            Self::Stopped => "daemons stopped, started after 10 s",
            Self::Rebooted => "a node's IPsec rebooted",
            Self::Third => "a third node joins",
            Self::Encapsulated => "ESP goes into UDP",
        }
    }

    /// The event of a word of `--events`: what its names for programs begin with.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        let once = [
            Self::Certificate,
            Self::IkeKilled,
            Self::Restarted,
            Self::Stopped,
            Self::Rebooted,
            Self::Third,
            Self::Encapsulated,
            Self::Off,
        ];
        let is = |event: &Self| event.names()[0].strip_suffix("_lost") == Some(word);
        once.into_iter().find(is)
    }

    /// For programs: lost, clear, seconds.
    pub(super) fn names(self) -> [&'static str; 3] {
        match self {
            Self::On => ["switch_on_lost", "switch_on_clear", "switch_on_seconds"],
            Self::Off => ["switch_off_lost", "switch_off_clear", "switch_off_seconds"],
            Self::Certificate => [
                "certificate_lost",
                "certificate_clear",
                "certificate_seconds",
            ],
            Self::IkeKilled => ["ike_killed_lost", "ike_killed_clear", "ike_killed_seconds"],
            Self::Restarted => ["restarted_lost", "restarted_clear", "restarted_seconds"],
            Self::Stopped => ["stopped_lost", "stopped_clear", "stopped_seconds"],
            Self::Rebooted => ["rebooted_lost", "rebooted_clear", "rebooted_seconds"],
            Self::Third => ["third_lost", "third_clear", "third_seconds"],
            Self::Encapsulated => [
                "encapsulated_lost",
                "encapsulated_clear",
                "encapsulated_seconds",
            ],
        }
    }
}

/// A lab with traffic on it.
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    pub(super) traffic: Traffic,
    pub(super) wire: Wire,
}

impl Stage<'_> {
    /// Does it, waits until traffic is as it should be, and says what it cost.
    pub(super) fn measure(&self, side: &mut dyn Side, event: Event) -> anyhow::Result<Cost> {
        let asked = Instant::now();
        let (mut begin, mut boot) = (asked, None);
        match event {
            Event::On => side.switch(true)?,
            Event::Off => side.switch(false)?,
            Event::Certificate => side.replace_certificate()?,
            Event::IkeKilled => side.kill_ike()?,
            Event::Restarted => side.restart()?,
            Event::Stopped => side.stop_and_start()?,
            Event::Rebooted => {
                let steps = self.reboot(side)?;
                begin = steps.up;
                boot = Some(steps);
            }
            Event::Third => {
                self.third(true)?;
                side.add_third()?;
            }
            Event::Encapsulated => side.encapsulate(true)?,
        }
        let returned = Instant::now();
        let back = self.settle(event, returned)?;
        let end = Instant::now() - GRACE;
        let lost = self.traffic.lost(begin, end);
        let detail = match (event, boot) {
            (_, Some(boot)) => Some(self.boot_text(&boot, end)),
            (Event::Encapsulated, _) => Some(self.udp_text(end)),
            _ => None,
        };
        let seen = match event {
            // Before it is said to be on, clear is what was asked for.
            Event::On => self.wire.between(returned, end),
            Event::Off => Default::default(),
            // Of a reboot too from the first: others could send in clear to the node that is gone.
            _ => self.wire.between(asked, end),
        };
        let last = [Some(returned), lost.last, seen.last_clear];
        let last = last.into_iter().flatten().max().unwrap_or(returned);
        Ok(Cost {
            lost: lost.packets,
            clear: seen.clear,
            seconds: back.then(|| last.saturating_duration_since(begin).as_secs_f64()),
            detail,
        })
    }

    /// Where the time of a reboot went.
    fn boot_text(&self, boot: &Boot, end: Instant) -> String {
        let since = |from: Instant, at: Option<Instant>| match at {
            Some(at) => format!("{:.2} s", at.saturating_duration_since(from).as_secs_f64()),
            None => "never".into(),
        };
        let mut text = format!(
            "the start returned after {}, and the link came up; from then the first ESP packet after {}",
            since(boot.start, Some(boot.started)),
            since(boot.up, self.wire.between(boot.up, end).first_esp),
        );
        let whose = ["what the node sends", "what it is sent"];
        for (whose, way) in whose.iter().zip(self.traffic.ways(boot.up, end)) {
            let first = since(boot.up, way.first);
            text += &format!(
                "; {whose}: {} lost, the first arrived after {first}",
                way.lost
            );
        }
        text
    }

    /// How ESP has travelled of late.
    fn udp_text(&self, end: Instant) -> String {
        let seen = self.wire.between(end - QUIET, end + GRACE);
        format!(
            "of the last {} ESP packets {} were in UDP",
            seen.esp, seen.in_udp
        )
    }

    /// Waits until traffic flows as it should. False: it did not in [`LIMIT`].
    fn settle(&self, event: Event, returned: Instant) -> anyhow::Result<bool> {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = Instant::now();
            let to = now - GRACE;
            let from = to - QUIET;
            if from >= returned {
                let seen = self.wire.between(from, now);
                let as_wanted = match event {
                    Event::Off => seen.esp == 0 && seen.clear > 0,
                    Event::Encapsulated => {
                        seen.esp > 0 && seen.in_udp == seen.esp && seen.clear == 0
                    }
                    _ => seen.esp > 0 && seen.clear == 0,
                };
                if as_wanted && self.traffic.lost(from, to).packets == 0 {
                    return Ok(true);
                }
            }
            if now.duration_since(returned) > LIMIT {
                return Ok(false);
            }
        }
    }

    /// As a node's boot: its link is down until the side says that it has started.
    fn reboot(&self, side: &mut dyn Side) -> anyhow::Result<Boot> {
        let ip = |words: &str| -> anyhow::Result<()> {
            let mut command = self.lab.command("n1", "ip")?;
            run(command.args(words.split_ascii_whitespace()))
        };
        ip("link set eth0 down")?;
        side.crash()?;
        ip("xfrm state flush")?;
        ip("xfrm policy flush")?;
        let mut nft = self.lab.command("n1", "nft")?;
        run(nft.args(["flush", "ruleset"]))?;
        let start = Instant::now();
        side.start_after_crash()?;
        let started = Instant::now();
        // Before the order: the link is up before the program that gives it has ended.
        let up = Instant::now();
        ip("link set eth0 up")?;
        Ok(Boot { start, started, up })
    }

    /// Whether `n3` is a chassis of OVN.
    pub(super) fn third(&self, takes_part: bool) -> anyhow::Result<()> {
        let mut vsctl = self.lab.database_command("vs", "n3", "ovs-vsctl")?;
        vsctl.arg("--no-wait");
        if takes_part {
            let remote = "external_ids:ovn-remote=\"tcp:172.18.0.254:6642\"";
            return run(vsctl.args(["set", "open_vswitch", ".", remote]));
        }
        run(vsctl.args(["remove", "open_vswitch", ".", "external_ids", "ovn-remote"]))?;
        std::thread::sleep(Duration::from_secs(3));
        let mut sbctl = self.lab.database_command("sb", "", "ovn-sbctl")?;
        run(sbctl.args(["--if-exists", "chassis-del", "n3"]))
    }
}

/// Runs it to its end; an error with what it said unless it succeeds.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} {:?}: {}: {}",
            command.get_program().display(),
            command.get_args().last().unwrap_or_default(),
            output.status,
            said.trim()
        );
    }
    Ok(())
}
