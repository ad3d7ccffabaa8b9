//! The kernel datapath's side of the host.

use std::sync::Arc;

use testudo_datapath::{Datapath, DatapathError};
use testudo_datapath_kernel::{self as path, KernelDatapath, Options as PathOptions};
use testudo_model::TrafficPolicy;
use tokio::sync::Notify;

use crate::Options;
use crate::choice::Side;

/// This network namespace, with the kernel's own ESP.
pub(crate) struct KernelSide {
    options: PathOptions,
}

impl KernelSide {
    pub(crate) fn new(options: &Options) -> KernelSide {
        KernelSide {
            options: PathOptions {
                udp_port: options.ports.nat,
                ..PathOptions::default()
            },
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
        path::close(&self.options, policy)
    }

    fn open(&mut self, bell: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        let mut datapath = KernelDatapath::open(self.options.clone())?;
        self.options.kept = None;
        datapath.set_waker(Arc::new(move || bell.notify_one()));
        Ok(Box::new(datapath))
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        path::clear(&self.options)
    }

    fn make_way(&mut self) -> Result<(), DatapathError> {
        path::make_way(&self.options)
    }
}
