//! The least that a guest's kernel must be able to do: Geneve inside ESP, as the kernel's own
//! tools set it up, between two namespaces.
//!
//! ```text
//!   a: g 10.1.0.1 over va 10.0.0.1 ---- vb 10.0.0.2 under g 10.1.0.2 :b
//! ```
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// AES-256 and its salt, of no worth.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223";

/// The kernel's name as `cargo xtask guest` gave it.
fn kernel() -> String {
    std::env::var("TESTUDO_GUEST")
        .expect("this needs a guest; docs/guest.md says how one test is run by hand")
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Both namespaces, new, with Geneve devices that no one protects yet.
fn wire() {
    sh(
        "for n in a b; do ip netns del $n 2>/dev/null || true; ip netns add $n; done
        ip link add va netns a type veth peer name vb netns b
        end() {
            ip -n $1 address add 10.0.0.$2/24 dev v$1
            ip -n $1 link set v$1 up
            ip -n $1 link add g type geneve id 7 remote 10.0.0.$3
            ip -n $1 address add 10.1.0.$2/24 dev g
            ip -n $1 link set g up
        }
        end a 1 2
        end b 2 1",
    );
}

/// An SA for each direction and the policies that charon has for one Geneve peer.
fn protect() {
    sh(&format!(
        "sa() {{
            ip -n $1 xfrm state add src 10.0.0.$2 dst 10.0.0.$3 proto esp spi 0x100$2 reqid 1 \
                mode transport flag esn replay-window 32 aead 'rfc4106(gcm(aes))' {KEY} 128
        }}
        policy() {{
            ip -n $1 xfrm policy add src 10.0.0.$2 dst 10.0.0.$3 proto udp dport 6081 dir $4 \
                tmpl src 10.0.0.$2 dst 10.0.0.$3 proto esp reqid 1 mode transport
        }}
        for n in a b; do sa $n 1 2; sa $n 2 1; done
        policy a 1 2 out; policy a 2 1 in; policy b 2 1 out; policy b 1 2 in"
    ));
}

/// Three pings through the tunnel, and the IPv4 packets that they were on the wire.
fn ping() -> Vec<String> {
    let mut capture = Command::new("ip")
        .args([
            "netns", "exec", "a", "tcpdump", "-l", "-n", "-i", "va", "ip",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // "listening on va" comes when it does.
    let mut errors = std::io::BufReader::new(capture.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        let read = std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
        assert!(read > 0, "tcpdump ended");
    }
    let said = sh("ip netns exec a ping -c 3 -i 0.2 -W 10 10.1.0.2");
    assert!(said.contains(" 3 received"), "{said}");
    std::thread::sleep(Duration::from_millis(500));
    sh(&format!("kill {}", capture.id()));
    let output = capture.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let packets = text.lines().filter(|line| !line.is_empty());
    packets.map(str::to_owned).collect()
}

#[test]
fn the_kernel_is_the_one_asked_for() {
    let release = sh("uname -r");
    match kernel().as_str() {
        "6.1" => assert!(release.starts_with("6.1."), "{release}"),
        _ => assert!(!release.starts_with("6.1."), "{release}"),
    }
}

#[test]
fn geneve_without_policies_is_clear_on_the_wire() {
    kernel();
    wire();
    let packets = ping();
    let clear = |line: &&String| line.contains(".6081:") && !line.contains("ESP(");
    assert!(packets.iter().filter(clear).count() >= 6, "{packets:#?}");
}

#[test]
fn geneve_with_policies_is_esp_and_nothing_else_on_the_wire() {
    kernel();
    wire();
    protect();
    let packets = ping();
    for (from, to, spi) in [(1, 2, "0x00001001"), (2, 1, "0x00001002")] {
        let wanted = format!("IP 10.0.0.{from} > 10.0.0.{to}: ESP(spi={spi}");
        let seen = packets.iter().filter(|line| line.contains(&wanted)).count();
        assert!(seen >= 3, "{wanted}: {packets:#?}");
    }
    let other: Vec<_> = packets
        .iter()
        .filter(|line| !line.contains("ESP("))
        .collect();
    assert!(other.is_empty(), "{other:#?}");
}

#[test]
fn the_guest_has_what_a_node_has() {
    kernel();
    let devices = [
        "veth peer name x1",
        "vxlan id 1 remote 10.0.0.9 dstport 4789",
        "bridge",
        "dummy",
    ];
    for kind in devices {
        sh(&format!("ip link add x0 type {kind}; ip link del x0"));
    }
    sh("ip tuntap add x0 mode tun; ip tuntap del x0 mode tun");
    sh("ip link add x0 type dummy; tc qdisc add dev x0 root netem loss 1%; ip link del x0");
    sh("modprobe openvswitch");
    sh("echo write > /etc/of-this-guest; grep -q write /etc/of-this-guest");
}

#[test]
fn real_time_goes_on() {
    kernel();
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    assert!(start.elapsed() < Duration::from_secs(20));
    let before: u64 = sh("date +%s%N").trim().parse().unwrap();
    sh("sleep 0.2");
    let after: u64 = sh("date +%s%N").trim().parse().unwrap();
    assert!(after - before >= 200_000_000);
}
