//! The kernel datapath's side of the host.

use std::sync::Arc;

use testudo_datapath::{Datapath, DatapathError};
use testudo_model::TrafficPolicy;
use tokio::sync::Notify;

use crate::Options;
use crate::choice::Side;

/// This network namespace, with the kernel's own ESP.
pub(crate) struct KernelSide;

impl KernelSide {
    pub(crate) fn new(_: &Options) -> KernelSide {
        KernelSide
    }
}

fn missing() -> DatapathError {
    DatapathError::Missing {
        what: "this build has no kernel datapath yet".to_owned(),
        remedy: "ask for the userspace datapath".to_owned(),
    }
}

impl Side for KernelSide {
    fn kind(&self) -> &'static str {
        "kernel"
    }

    fn interface(&self) -> &str {
        "xfrm"
    }

    fn probe(&mut self) -> Result<(), DatapathError> {
        Err(missing())
    }

    fn close(&mut self, _: &TrafficPolicy) -> Result<(), DatapathError> {
        Err(missing())
    }

    fn open(&mut self, _: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        Err(missing())
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn make_way(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }
}
