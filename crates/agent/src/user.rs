//! The userspace datapath's side of the host.

use std::sync::Arc;

use testudo_datapath::{Datapath, DatapathError};
use testudo_datapath_user::{HostRules, Options as PathOptions, UserDatapath};
use testudo_model::TrafficPolicy;
use tokio::sync::Notify;

use crate::Options;
use crate::choice::Side;

/// This network namespace, with a TUN.
pub(crate) struct UserSide {
    options: PathOptions,
    rules: HostRules,
}

impl UserSide {
    pub(crate) fn new(options: &Options) -> UserSide {
        let options = PathOptions {
            udp_port: options.ports.nat,
            ..PathOptions::new(&options.state_dir)
        };
        UserSide {
            rules: HostRules::new(options.host()),
            options,
        }
    }

    /// What costs the host a packet if it is done under traffic is done now, at the agent's start.
    pub(crate) fn prepare(&self) -> Result<(), DatapathError> {
        self.rules.split_tables()
    }
}

impl Side for UserSide {
    fn kind(&self) -> &'static str {
        "user"
    }

    fn interface(&self) -> &str {
        &self.options.device
    }

    fn probe(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        self.rules.apply(policy)
    }

    fn open(&mut self, bell: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        let mut datapath = UserDatapath::new(self.options.clone())?;
        datapath.set_waker(Arc::new(move || bell.notify_one()));
        Ok(Box::new(datapath))
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        self.rules.clear()
    }

    fn make_way(&mut self) -> Result<(), DatapathError> {
        self.rules.clear_steering()
    }
}
