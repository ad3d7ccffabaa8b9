//! The kernel datapath's side of the host.

use std::sync::Arc;

use testudo_datapath::{Datapath, DatapathError};
use testudo_datapath_kernel::{
    self as path, Closing, KernelDatapath, Options as PathOptions, UdpKeeper,
};
use testudo_model::TrafficPolicy;
use tokio::sync::Notify;

use crate::Options;
use crate::choice::Side;
use crate::keeper::Client;

/// This network namespace, with the kernel's own ESP.
pub(crate) struct KernelSide {
    options: PathOptions,
    /// The firewall that is being set since the host was closed.
    closing: Closing,
}

impl KernelSide {
    pub(crate) fn new(options: &Options) -> KernelSide {
        let keeper = options.keeper.clone();
        let keeper = keeper.map(|keeper| Client::new(keeper, &options.version));
        KernelSide {
            options: PathOptions {
                udp_port: options.ports.nat,
                keeper: keeper.map(|keeper| Arc::new(keeper) as Arc<dyn UdpKeeper>),
                ..PathOptions::default()
            },
            closing: Closing::default(),
        }
    }
}

impl Side for KernelSide {
    fn kind(&self) -> &'static str {
        "kernel"
    }

    /// There is none: policies catch packets wherever they leave.
    fn interface(&self) -> &str {
        "xfrm"
    }

    fn probe(&mut self) -> Result<(), DatapathError> {
        path::probe().map(|_| ())
    }

    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        // The first is the one that the process before left: it says whose its SAs are.
        self.options.kept.get_or_insert_with(|| policy.clone());
        // What was begun before is over first. Where no datapath took over what came of it, this is
        // the only place that can tell.
        let before = std::mem::take(&mut self.closing).outcome();
        let (closing, closed) = path::close_soon(&self.options, policy);
        if let Ok(()) | Err(DatapathError::Partly { .. }) = closed {
            self.closing = closing;
        }
        closed.and(before)
    }

    fn open(&mut self, bell: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        let mut datapath = KernelDatapath::open(self.options.clone())?;
        self.options.kept = None;
        datapath.take_over(std::mem::take(&mut self.closing));
        datapath.set_waker(Arc::new(move || bell.notify_one()));
        Ok(Box::new(datapath))
    }

    fn finish(&mut self) {
        drop(std::mem::take(&mut self.closing));
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        drop(std::mem::take(&mut self.closing));
        path::clear(&self.options)?;
        self.let_go();
        Ok(())
    }

    fn make_way(&mut self) -> Result<(), DatapathError> {
        drop(std::mem::take(&mut self.closing));
        path::make_way(&self.options)
    }

    fn let_go(&mut self) {
        if let Some(keeper) = &self.options.keeper {
            keeper.release();
        }
    }
}
