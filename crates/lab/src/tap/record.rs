//! What one link of the present network namespace carries, as a pcap stream.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use testudo_netlink::Netlink;

use super::ring::Ring;
use super::{GATHER, PcapWriter, TURN};

/// After this long every frame that a link has carried can be read.
const SETTLED: Duration = Duration::from_millis(50);

/// pcap's numbers for what a frame begins with: an Ethernet header, an IP header.
const ETHERNET: u32 = 1;
const RAW_IP: u32 = 101;

/// Listens on a link, from the moment on at which it is made. Needs CAP_NET_RAW.
#[derive(Debug)]
pub struct Recorder {
    ring: Ring,
    link_type: u32,
}

impl Recorder {
    /// Listens on the link of this name.
    pub fn open(link: &str) -> Result<Self> {
        let index = Netlink::open()?.link_index(link)?;
        let ring = Ring::open(index, false).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                anyhow::anyhow!(
                    "to watch {link} takes CAP_NET_RAW (the chart's agent.capture): {error}"
                )
            }
            _ => anyhow::Error::new(error).context(format!("listen on {link}")),
        })?;
        // Linux's ARPHRD_ETHER and ARPHRD_LOOPBACK; all else that carries IP begins with it.
        let kind = std::fs::read_to_string(format!("/sys/class/net/{link}/type"));
        let link_type = match kind.as_deref().map(str::trim) {
            Ok("1" | "772") | Err(_) => ETHERNET,
            Ok(_) => RAW_IP,
        };
        Ok(Self { ring, link_type })
    }

    /// Writes the frames that are `wanted` (by pcap's link type and the frame), of each `cut` bytes at
    /// most, until `stop` is set or nobody reads any more. How many frames the kernel could not hand over.
    pub fn run(
        mut self,
        cut: usize,
        mut wanted: impl FnMut(u32, &[u8]) -> bool,
        out: impl Write,
        stop: &AtomicBool,
    ) -> Result<u64> {
        let mut writer = PcapWriter::new(out, self.link_type)?;
        let done = self.copy(&mut writer, cut, &mut wanted, stop);
        self.ring.put();
        let gone = |error: &anyhow::Error| {
            let io = error.root_cause().downcast_ref::<io::Error>();
            io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        };
        match done.and_then(|()| writer.finish()) {
            Err(error) if !gone(&error) => Err(error),
            _ => Ok(self.ring.missed()),
        }
    }

    fn copy<W: Write>(
        &mut self,
        writer: &mut PcapWriter<W>,
        cut: usize,
        wanted: &mut impl FnMut(u32, &[u8]) -> bool,
        stop: &AtomicBool,
    ) -> Result<()> {
        // Who reads learns at once that there is a stream.
        writer.flush()?;
        loop {
            let last = stop.load(Ordering::Relaxed);
            if last {
                std::thread::sleep(SETTLED);
            }
            let (link_type, mut taken) = (self.link_type, 0);
            while (last || taken < TURN)
                && taken < 1024
                && self
                    .ring
                    .block(|frame| match wanted(link_type, frame.bytes) {
                        true => writer.frame(&frame, cut),
                        false => Ok(()),
                    })?
            {
                taken += 1;
            }
            if taken > 0 {
                writer.flush().context("write the capture")?;
            }
            if last {
                return Ok(());
            }
            if taken < TURN {
                std::thread::sleep(GATHER);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::sync::Arc;

    #[test]
    fn a_link_is_recorded_without_another_program() {
        // SAFETY: unshare takes an integer; a test has a thread of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("SKIPPED a_link_is_recorded_without_another_program: needs root");
            return;
        }
        Netlink::open().unwrap().set_up(1).unwrap();
        let recorder = Recorder::open("lo").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for payload in [&b"wanted"[..], b"other", &[b'w'; 400]] {
            socket.send_to(payload, "127.0.0.1:9").unwrap();
        }
        let stop = Arc::new(AtomicBool::new(true));
        let mut out = Vec::new();
        let wanted = |kind: u32, frame: &[u8]| {
            kind == ETHERNET && frame.get(23) == Some(&17) && frame.get(42) == Some(&b'w')
        };
        assert_eq!(recorder.run(100, wanted, &mut out, &stop).unwrap(), 0);
        // Loopback shows each frame as it leaves and as it comes.
        let frames = [48, 48, 100, 100];
        let length: usize = frames.iter().map(|length| 16 + length).sum();
        assert_eq!(out.len(), 24 + length);
        let word = |at: usize| u32::from_ne_bytes(out[at..at + 4].try_into().unwrap());
        let third = 24 + 2 * (16 + 48);
        assert_eq!((word(third + 8), word(third + 12)), (100, 442));
    }
}
