//! The host with the userspace datapath.

use std::net::IpAddr;
use std::sync::Arc;

use testudo_datapath::{Datapath, DatapathError};
use testudo_datapath_user::{HostRules, Options as PathOptions, UserDatapath};
use testudo_model::TrafficPolicy;
use tokio::sync::Notify;

use crate::Options;
use crate::host::{Host, default_addresses, kernel_path_mtu};

/// This network namespace.
pub(crate) struct UserHost {
    options: PathOptions,
    rules: HostRules,
}

impl UserHost {
    pub(crate) fn new(options: &Options) -> UserHost {
        let options = PathOptions {
            udp_port: options.ports.nat,
            ..PathOptions::new(&options.state_dir)
        };
        UserHost {
            rules: HostRules::new(options.host()),
            options,
        }
    }
}

impl Host for UserHost {
    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        self.rules.apply(policy)
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        self.rules.clear()
    }

    fn open(&mut self, bell: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        let mut datapath = UserDatapath::new(self.options.clone())?;
        datapath.set_waker(Arc::new(move || bell.notify_one()));
        Ok(Box::new(datapath))
    }

    fn interface(&self) -> &str {
        &self.options.device
    }

    fn addresses(&self) -> Vec<IpAddr> {
        default_addresses()
    }

    fn path_mtu(&self, local: IpAddr, remote: IpAddr) -> Option<u32> {
        kernel_path_mtu(local, remote)
    }
}
