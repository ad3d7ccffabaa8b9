//! The device, the sockets and the threads between them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testudo_datapath::{DatapathError, Event};
use testudo_netlink::{LinkChange, Netlink};
use testudo_wire::udp::NON_ESP_MARKER;

use crate::Options;
use crate::event::EventSink;
use crate::host::{LOOSE, refused};
use crate::inbound::{Opener, UnknownSpis};
use crate::outbound::Sealer;
use crate::stats::Stats;
use crate::sys::{Offloads, Outgoing, QueueSockets, SendBatch, Stop, open_queues, open_tun};
use crate::tables::Shared;

/// Larger than any overlay's packet: the device never fragments what is inside.
const DEVICE_MTU: u32 = 9216;
/// Packets that wait while a thread is not scheduled.
const DEVICE_QUEUE: u32 = 8192;
/// The device's own address, of the prefix for such uses (RFC 7335), so that routing always finds
/// a source.
const DEVICE_ADDRESS: &str = "192.0.0.8/32";
/// The device of an agent that was killed goes within moments.
const DEVICE_PATIENCE: Duration = Duration::from_secs(3);

/// What runs while the datapath does. Dropping it stops the threads and closes the device.
pub(crate) struct Engine {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    sockets: Vec<Arc<QueueSockets>>,
    /// What the kernel leaves to us.
    pub(crate) offloads: Offloads,
}

impl Engine {
    /// Opens everything in the namespace of the calling thread and starts the threads.
    pub(crate) fn start(
        options: &Options,
        shared: &Arc<Shared>,
        stats: &Arc<Stats>,
        events: &EventSink,
    ) -> Result<Self, DatapathError> {
        let queues = options.queue_count();
        let sockets: Vec<Arc<QueueSockets>> = open_queues(queues, options.udp_port)?
            .into_iter()
            .map(Arc::new)
            .collect();
        wait_for_name(&options.device)?;
        let wanted = if options.offloads {
            Offloads::TcpUdp
        } else {
            Offloads::None
        };
        let (tuns, offloads) = open_tun(&options.device, queues, wanted)?;
        set_up_device(&options.device)?;
        let stop = Arc::new(Stop::new().map_err(|e| failed("make an eventfd", &e))?);
        let mut engine = Self {
            stop: Arc::clone(&stop),
            threads: Vec::new(),
            sockets,
            offloads,
        };
        let gso = Arc::new(AtomicBool::new(options.offloads));
        let unknown = Arc::new(UnknownSpis::new());
        for (queue, tun) in tuns.into_iter().enumerate() {
            let (tun, sockets) = (Arc::new(tun), Arc::clone(&engine.sockets[queue]));
            let mut opener = Opener::new(
                Arc::clone(&tun),
                Arc::clone(&sockets),
                Arc::clone(&stop),
                Arc::clone(shared),
                Arc::clone(stats),
                events.clone(),
                Arc::clone(&unknown),
                options.udp_port,
                options.offloads,
            );
            let (shared, stats) = (Arc::clone(shared), Arc::clone(stats));
            let (stop, sink, gso) = (Arc::clone(&stop), events.clone(), Arc::clone(&gso));
            engine.spawn(format!("esp-in-{queue}"), events, move || opener.run())?;
            engine.spawn(format!("esp-out-{queue}"), events, move || {
                Sealer::new(tun, sockets, stop, shared, stats, sink, gso).run()
            })?;
        }
        Ok(engine)
    }

    /// Starts a packet thread whose end, unless it was told to stop, is an event.
    fn spawn(
        &mut self,
        name: String,
        events: &EventSink,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), DatapathError> {
        let guarded = guard(name.clone(), events.clone(), run);
        let handle = std::thread::Builder::new()
            .name(name)
            .spawn(guarded)
            .map_err(|e| failed("start a packet thread", &e))?;
        self.threads.push(handle);
        Ok(())
    }

    /// Sends an IKE message with the non-ESP marker before it.
    pub(crate) fn send_ike(
        &self,
        local: IpAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> io::Result<()> {
        let mut datagram = Vec::with_capacity(4 + message.len());
        datagram.extend_from_slice(&NON_ESP_MARKER);
        datagram.extend_from_slice(message);
        self.send_udp(local, remote, &datagram)
    }

    /// Sends a datagram as it is from the socket of UDP encapsulation.
    pub(crate) fn send_udp(
        &self,
        local: IpAddr,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> io::Result<()> {
        let sockets = &self.sockets[0];
        let socket = match remote {
            SocketAddr::V4(_) => Some(sockets.udp4.as_fd()),
            SocketAddr::V6(_) => sockets.udp6.as_ref().map(|s| s.as_fd()),
        };
        let socket = socket.ok_or_else(|| io::Error::other("this host has no IPv6"))?;
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(io::Error::other("the two ends are of different families"));
        }
        let item = Outgoing {
            first_part: 0,
            parts: 1,
            remote,
            local,
            traffic_class: 0,
            segment: 0,
        };
        // Rare enough for buffers of its own.
        SendBatch::new()
            .send(socket, datagram, &[(0, datagram.len())], &[item])
            .map(|_| ())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            // Its panic, if any, was told as an event.
            let _ = thread.join();
        }
    }
}

/// A device that is there already would be shared with another process, each getting a part of
/// the packets.
fn wait_for_name(device: &str) -> Result<(), DatapathError> {
    let mut netlink = Netlink::open().map_err(refused)?;
    let started = Instant::now();
    while netlink.link(device).map_err(refused)?.is_some() {
        if started.elapsed() > DEVICE_PATIENCE {
            return Err(DatapathError::Refused {
                operation: format!("make the device {device}"),
                reason: "it exists: another agent runs on this node, or something else made it; \
                         stop that agent or delete the device"
                    .into(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn set_up_device(device: &str) -> Result<(), DatapathError> {
    let mut netlink = Netlink::open().map_err(refused)?;
    let link = netlink.link_index(device).map_err(refused)?;
    let filter = LinkChange {
        reverse_path_filter: Some(LOOSE),
        ..LinkChange::default()
    };
    netlink.change_link(link, &filter).map_err(refused)?;
    // No link-local address of its own: nothing then talks on it by itself.
    if Path::new("/proc/sys/net/ipv6/conf").join(device).exists() {
        let silent = LinkChange {
            no_ipv6_address: true,
            ..LinkChange::default()
        };
        netlink.change_link(link, &silent).map_err(refused)?;
    }
    let address = DEVICE_ADDRESS
        .parse()
        .map_err(|_| failed("set the device up", &io::Error::other("address")))?;
    netlink.ensure_address(link, address).map_err(refused)?;
    let change = LinkChange {
        mtu: Some(DEVICE_MTU),
        queue_length: Some(DEVICE_QUEUE),
        up: Some(true),
        ..LinkChange::default()
    };
    netlink.change_link(link, &change).map_err(refused)
}

/// Runs a packet thread's work and tells its end, unless it was told to stop.
fn guard(name: String, events: EventSink, run: impl FnOnce() -> io::Result<()>) -> impl FnOnce() {
    move || {
        let reason = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(panic) => describe_panic(panic.as_ref()),
        };
        tracing::error!("packet thread {name} ended: {reason}; its packets are dropped");
        events.push(Event::Failed {
            reason: format!("packet thread {name} ended: {reason}"),
        });
    }
}

fn describe_panic(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.as_deref().unwrap_or("without a message"))
}

fn failed(operation: &str, error: &io::Error) -> DatapathError {
    DatapathError::Refused {
        operation: operation.into(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_or_fails_is_told_and_one_that_stops_is_not() {
        let (sink, events) = EventSink::new(Arc::default());
        guard("esp-in-0".into(), sink.clone(), || Ok(()))();
        assert_eq!(events.next(), None);
        guard("esp-in-1".into(), sink.clone(), || {
            Err(io::Error::other("gone"))
        })();
        guard("esp-in-2".into(), sink, || panic!("number {}", 9))();
        for (name, why) in [("esp-in-1", "gone"), ("esp-in-2", "number 9")] {
            let Some(Event::Failed { reason }) = events.next() else {
                panic!("no event")
            };
            assert!(reason.contains(name) && reason.contains(why), "{reason}");
        }
    }
}
