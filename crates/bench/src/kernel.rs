//! The bench `kernel`: SAs and policies of many peers in the kernel, beside `ip -batch` doing the
//! same.
//!
//! Each measurement has a network namespace of its own. It needs root and a kernel with ESP;
//! `cargo xtask bench kernel` runs it in a guest.

mod batch;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use ipnet::IpNet;
use testudo_crypto::{Cipher, SecretBytes};
use testudo_datapath::Datapath;
use testudo_datapath_kernel::{KernelDatapath, Options as KernelOptions};
use testudo_model::{
    ChildId, ClearTraffic, Encapsulation, InboundSaSpec, Outbound, OutboundSaSpec, PeerId,
    PeerTraffic, PortRange, ProtectedFlows, SaLimits, SaMode, Spi, TrafficPolicy, TrafficSelector,
};

use crate::report::{Baseline, Measured, Report, Row};
use crate::usage;

/// The overlay's port.
pub(super) const PORT: u16 = 6081;
/// The first and the last peers that are looked at alone, to see whether cost grows.
const SHARE: u32 = 10;
const UDP: u8 = 17;

/// What is asked for.
pub(crate) struct Options {
    json: bool,
    rounds: usize,
    peers: u32,
}

impl Options {
    /// `[-o json|table] [--rounds N] [--peers N]`
    pub(crate) fn read(mut words: &[&str]) -> Option<Self> {
        let mut out = Self {
            json: false,
            rounds: 3,
            peers: 1000,
        };
        while let [word, value, rest @ ..] = words {
            words = rest;
            match (*word, *value) {
                ("-o", "json") => out.json = true,
                ("-o", "table") => out.json = false,
                ("--rounds", n) => out.rounds = n.parse().ok().filter(|n| *n > 0)?,
                ("--peers", n) => {
                    let fits = |n: &u32| (2 * SHARE..=50_000).contains(n);
                    out.peers = n.parse().ok().filter(fits)?;
                }
                _ => return None,
            }
        }
        words.is_empty().then_some(out)
    }
}

/// Times of one measurement.
#[derive(Default)]
struct Times {
    install: Duration,
    list: Duration,
    remove: Duration,
    /// Of the first and the last tenth of the peers.
    install_shares: (Duration, Duration),
    remove_shares: (Duration, Duration),
    /// Requests to the kernel, likewise.
    request_shares: (u64, u64),
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (mut ours, mut theirs, mut prefixes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        // In turns, so that what else the machine does meets both.
        eprintln!("==> round {round} of {}", options.rounds);
        ours.push(in_namespace(|| testudo(options.peers))?);
        theirs.push(in_namespace(|| batch::measure(options.peers))?);
        prefixes.push(in_namespace(|| routed(options.peers))?);
    }
    let report = report(options.peers, &ours, &theirs, &prefixes);
    match options.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.table()),
    }
    Ok(())
}

/// Runs it in a thread with a network namespace of its own.
fn in_namespace<T: Send>(job: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: unshare takes an integer and touches this thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                let error = std::io::Error::last_os_error();
                bail!("a network namespace cannot be made, which needs root: {error}");
            }
            job()
        });
        thread
            .join()
            .unwrap_or_else(|_| bail!("a measurement panicked"))
    })
}

/// Installs all, one peer after the other as an agent does, lists and removes them.
fn testudo(peers: u32) -> anyhow::Result<Times> {
    let mut datapath = KernelDatapath::open(KernelOptions::default())?;
    let mut times = Times::default();
    let begin = Instant::now();
    datapath.set_traffic(&policy(peers, &overlay()))?;
    let (time, requests) = each(peers, &mut datapath, &mut times.install_shares, |d, n| {
        d.install_inbound(inbound(n))?;
        d.install_outbound(outbound(n))?;
        Ok(d.use_outbound(ChildId(n.into()))?)
    })?;
    times.request_shares = requests;
    times.install = begin.elapsed();
    eprintln!(
        "testudo: {peers} peers in {:.3} s after the policy",
        time.as_secs_f64()
    );

    let begin = Instant::now();
    let listed = datapath.counters().sas.len();
    times.list = begin.elapsed();
    ensure!(listed == 2 * peers as usize, "{listed} SAs are listed");

    let begin = Instant::now();
    each(peers, &mut datapath, &mut times.remove_shares, |d, n| {
        Ok(d.remove(ChildId(n.into()))?)
    })?;
    datapath.clear()?;
    times.remove = begin.elapsed();
    let left = datapath.counters().sas.len();
    ensure!(left == 0, "{left} SAs are left");
    Ok(times)
}

/// Does it for each peer; times and requests of the first and the last share.
fn each(
    peers: u32,
    datapath: &mut KernelDatapath,
    shares: &mut (Duration, Duration),
    mut job: impl FnMut(&mut KernelDatapath, u32) -> anyhow::Result<()>,
) -> anyhow::Result<(Duration, (u64, u64))> {
    let share = peers / SHARE;
    let (begin, before) = (Instant::now(), datapath.requests());
    let mut requests = (0, 0);
    let mut last = (begin, before);
    for n in 0..peers {
        if n == peers - share {
            last = (Instant::now(), datapath.requests());
        }
        job(datapath, n)?;
        if n + 1 == share {
            shares.0 = begin.elapsed();
            requests.0 = datapath.requests() - before;
        }
    }
    shares.1 = last.0.elapsed();
    requests.1 = datapath.requests() - last.1;
    Ok((begin.elapsed(), requests))
}

/// Policies of prefixes, which the kernel does not hash: the time of a tenth of the peers, and
/// what the last tenth of all of them adds.
fn routed(peers: u32) -> anyhow::Result<(Duration, Duration)> {
    let share = peers / SHARE;
    let mut datapath = KernelDatapath::open(KernelOptions::default())?;
    let mut added = |peers: u32| {
        let begin = Instant::now();
        datapath.set_traffic(&policy(peers, &pods()))?;
        anyhow::Ok(begin.elapsed())
    };
    let first = added(share)?;
    added(peers - share)?;
    let last = added(peers)?;
    datapath.clear()?;
    Ok((first, last))
}

pub(super) fn own() -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 1).into()
}

/// The n-th peer's address.
pub(super) fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a01_0000 + n).into()
}

pub(super) fn inbound_spi(n: u32) -> u32 {
    0x1000_0000 + n
}

pub(super) fn outbound_spi(n: u32) -> u32 {
    0x2000_0000 + n
}

fn overlay() -> ProtectedFlows {
    ProtectedFlows::Overlay { port: PORT }
}

fn pods() -> ProtectedFlows {
    ProtectedFlows::Routed {
        local: vec![prefix(u32::MAX)],
        cluster: Vec::new(),
    }
}

/// The n-th peer's pods, and for `u32::MAX` our own.
fn prefix(n: u32) -> IpNet {
    let first = Ipv4Addr::from(0x6400_0000_u32.wrapping_add(n.wrapping_add(1) << 8));
    ipnet::Ipv4Net::new_assert(first, 24).into()
}

fn policy(peers: u32, flows: &ProtectedFlows) -> TrafficPolicy {
    let peer = |n| PeerTraffic {
        peer: name(n),
        addresses: vec![address(n)],
        pod_cidrs: vec![prefix(n)],
        outbound: Outbound::Encrypt,
    };
    TrafficPolicy {
        addresses: vec![own()],
        flows: flows.clone(),
        clear_inbound: ClearTraffic::Drop,
        clear_outbound: ClearTraffic::Drop,
        peers: (0..peers).map(peer).collect(),
    }
}

fn name(n: u32) -> PeerId {
    PeerId::new(format!("n{n:05}")).expect("letters and digits are a name")
}

fn udp(address: IpAddr) -> Vec<TrafficSelector> {
    vec![TrafficSelector::host(address).with(UDP, PortRange::ANY)]
}

fn path(n: u32) -> Encapsulation {
    Encapsulation::None {
        local: own(),
        remote: address(n),
    }
}

/// Nothing is ever sealed with it.
fn keymat(n: u32) -> SecretBytes {
    let byte = n.to_le_bytes()[0];
    SecretBytes::new(vec![byte; Cipher::AES_256_GCM.keymat_len()])
}

fn inbound(n: u32) -> InboundSaSpec {
    InboundSaSpec {
        child: ChildId(n.into()),
        peer: name(n),
        spi: Spi(inbound_spi(n)),
        cipher: Cipher::AES_256_GCM,
        keymat: keymat(n),
        esn: true,
        replay_window: batch::WINDOW,
        mode: SaMode::Transport,
        encapsulation: path(n),
        local: udp(own()),
        remote: udp(address(n)),
    }
}

fn outbound(n: u32) -> OutboundSaSpec {
    OutboundSaSpec {
        child: ChildId(n.into()),
        peer: name(n),
        spi: Spi(outbound_spi(n)),
        cipher: Cipher::AES_256_GCM,
        keymat: keymat(n),
        esn: true,
        mode: SaMode::Transport,
        encapsulation: path(n),
        local: udp(own()),
        remote: udp(address(n)),
        limits: SaLimits {
            soft_bytes: u64::MAX,
            soft_packets: u64::MAX,
        },
    }
}

fn report(
    peers: u32,
    ours: &[Times],
    theirs: &[batch::Times],
    prefixes: &[(Duration, Duration)],
) -> Report {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let of = |values: Vec<f64>| Measured::of(values).ok_or_else(|| "nothing measured".to_owned());
    let mut rows = Vec::new();
    type Pick<T> = fn(&T) -> Duration;
    let steps: [(&str, &str, Pick<Times>, Pick<batch::Times>); 3] = [
        (
            "install_ms",
            "install_to_ip_batch",
            |t| t.install,
            |t| t.install,
        ),
        ("list_ms", "list_to_ip_batch", |t| t.list, |t| t.list),
        (
            "remove_ms",
            "remove_to_ip_batch",
            |t| t.remove,
            |t| t.remove,
        ),
    ];
    for (name, ratio, ours_of, theirs_of) in steps {
        let mine: Vec<f64> = ours.iter().map(|t| milliseconds(ours_of(t))).collect();
        let batch: Vec<f64> = theirs.iter().map(|t| milliseconds(theirs_of(t))).collect();
        let pairs = mine.iter().zip(&batch);
        let ratios = pairs.map(|(mine, batch)| mine / batch).collect();
        rows.push(Row {
            name: name.into(),
            unit: "ms",
            ours: of(mine),
            baseline: vec![(
                "ip_batch",
                match Measured::of(batch) {
                    Some(measured) => Baseline::Measured(measured, peers),
                    None => Baseline::Missing("nothing measured".into()),
                },
            )],
            target: "",
        });
        rows.push(Row {
            name: ratio.into(),
            unit: "ratio",
            ours: of(ratios),
            baseline: Vec::new(),
            target: "",
        });
    }
    let grows = |first: Duration, last: Duration| last.as_secs_f64() / first.as_secs_f64();
    let mut row = |name: &'static str, unit, values: Vec<f64>, target| {
        rows.push(Row {
            name: name.into(),
            unit,
            ours: of(values),
            baseline: Vec::new(),
            target,
        });
    };
    let shares = |pick: fn(&Times) -> (Duration, Duration)| {
        let shares = ours.iter().map(pick);
        shares.map(|(first, last)| grows(first, last)).collect()
    };
    row(
        "install_last_tenth_to_first",
        "ratio",
        shares(|t| t.install_shares),
        "1",
    );
    row(
        "remove_last_tenth_to_first",
        "ratio",
        shares(|t| t.remove_shares),
        "1",
    );
    let share = f64::from(peers / SHARE);
    let first = ours.iter().map(|t| t.request_shares.0 as f64 / share);
    row("requests_per_peer_first_tenth", "", first.collect(), "");
    let last = ours.iter().map(|t| t.request_shares.1 as f64 / share);
    row("requests_per_peer_last_tenth", "", last.collect(), "");
    let prefixes = prefixes.iter().map(|(first, last)| grows(*first, *last));
    row(
        "prefixes_last_tenth_to_first",
        "ratio",
        prefixes.collect(),
        "",
    );
    Report {
        bench: "kernel",
        machine: usage::machine(),
        rows,
        notes: vec![
            format!(
                "{peers} peers: two SAs and two policies each; ours also blocks each peer before \
                 its SA is used, and replaces that policy"
            ),
            "ip -batch is told everything in one file; ours one peer after the other".into(),
            "prefixes: the last tenth pays for reading back the policies of all others".into(),
        ],
    }
}
