//! Who else holds the UDP sockets: the kernel opens ESP inside UDP only while there is a socket that
//! asks it to, and this process may be killed.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testudo_netlink::XfrmSaId;

use crate::core::Core;
use crate::tag::is_our_sa;
use crate::udp::UdpSockets;
use crate::worker::lock;

/// A process beside this one that holds the sockets when this one is gone. None of its calls fails:
/// packets go their way without it, and what it cannot do it does later or says in its log.
pub trait UdpKeeper: Debug + Send + Sync {
    /// The sockets that it holds, of a process before this one. It goes on holding them.
    fn take(&self) -> Vec<OwnedFd>;

    /// Gives it these to hold instead of what it has. Does not wait for it.
    fn hold(&self, sockets: Vec<OwnedFd>);

    /// It lets go of them so long after this process has ended, should no other have come.
    fn set_patience(&self, patience: Duration);

    /// It lets go of what it holds; when this returns the port is free, as far as it is concerned.
    fn release(&self);
}

/// What a datapath has to do with its keeper. Dropped, it ends what nobody needs: sockets for which
/// no SA stands.
pub(crate) struct Keeping {
    keeper: Option<Arc<dyn UdpKeeper>>,
    core: Arc<Mutex<Core>>,
    held: bool,
}

impl Keeping {
    /// `held`: it holds these sockets already.
    pub(crate) fn new(
        keeper: Option<Arc<dyn UdpKeeper>>,
        core: Arc<Mutex<Core>>,
        held: bool,
    ) -> Self {
        Self { keeper, core, held }
    }

    /// An SA inside UDP is about to be installed: from now on the sockets must not go with this
    /// process. Cheap when said again.
    pub(crate) fn hold(&mut self, udp: &UdpSockets) {
        if let Some(keeper) = self.keeper.as_ref().filter(|_| !self.held) {
            keeper.hold(udp.duplicates());
            self.held = true;
        }
    }

    /// The longest that SAs stand without us.
    pub(crate) fn set_patience(&self, patience: Duration) {
        if let Some(keeper) = &self.keeper {
            keeper.set_patience(patience);
        }
    }

    /// None of ours is left in the kernel.
    pub(crate) fn release(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.release();
        }
        self.held = false;
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let needing = lock(&self.core).xfrm.sas(|listed| {
            let sa = &listed.sa;
            (is_our_sa(sa.reqid) && sa.encapsulation.is_some()).then_some(sa.id)
        });
        // Where nobody can say, they are held.
        if needing.is_ok_and(|sas: Vec<XfrmSaId>| sas.is_empty()) {
            self.release();
        }
    }
}
