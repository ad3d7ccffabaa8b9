//! Requests to the kernel.

use std::os::fd::BorrowedFd;

use rustix::net::{Protocol, netlink};

use super::{XfrmListedSa, XfrmPolicy, XfrmPolicyKey, XfrmReplay, XfrmSa, XfrmSaId, abi};
use crate::message::{Message, Request};
use crate::transport::Transport;
use crate::{Result, run_in_netns};

/// The protocol of all sockets here.
pub(super) const PROTOCOL: Protocol = netlink::XFRM;

/// A connection to the kernel's XFRM in one network namespace. Errors name objects, never keys;
/// buffers that held keys are overwritten.
pub struct Xfrm {
    transport: Transport,
    requests: u64,
}

impl std::fmt::Debug for Xfrm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xfrm").finish_non_exhaustive()
    }
}

impl Xfrm {
    /// Opens a socket in the network namespace of the calling thread. A kernel without XFRM
    /// refuses it (EPROTONOSUPPORT).
    pub fn open() -> Result<Self> {
        Ok(Self {
            transport: Transport::open(Some(PROTOCOL))?,
            requests: 0,
        })
    }

    /// Opens a socket in another network namespace; the calling thread stays where it is.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        run_in_netns(netns, Self::open)?
    }

    /// This socket's number: notifications of what was asked through it carry it.
    pub fn port(&self) -> u32 {
        self.transport.port()
    }

    /// How many requests were made so far.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Installs an SA; one of the same name must not be there (EEXIST).
    pub fn add_sa(&mut self, sa: &XfrmSa) -> Result<()> {
        self.execute(sa.request(abi::NEWSA, format!("add {}", describe(&sa.id))))
    }

    /// Changes an SA's UDP ports, output mark and lifetimes; it must be there. All else, keys and
    /// sequence numbers too, stays.
    pub fn update_sa(&mut self, sa: &XfrmSa) -> Result<()> {
        self.execute(sa.request(abi::UPDSA, format!("update {}", describe(&sa.id))))
    }

    /// Removes an SA; ESRCH where it is not there.
    pub fn delete_sa(&mut self, id: &XfrmSaId) -> Result<()> {
        self.execute(id.request(abi::DELSA, format!("delete {}", describe(id))))
    }

    /// One SA, keys included; `None` where it is not there.
    pub fn sa(&mut self, id: &XfrmSaId) -> Result<Option<XfrmListedSa>> {
        let request = id.request(abi::GETSA, format!("get {}", describe(id)));
        let mut found = None;
        self.get(request, &mut |message| {
            if message.kind == abi::NEWSA {
                found = XfrmListedSa::parse(message.body);
            }
        })?;
        Ok(found)
    }

    /// Sets an SA's sequence numbers, and empties its window, which must be as long as it was. To
    /// set back those of a key that was used breaks it (RFC 4106 3.1): for tests.
    pub fn danger_set_replay(&mut self, id: &XfrmSaId, replay: &XfrmReplay) -> Result<()> {
        let operation = format!("set the sequence of {}", describe(id));
        self.execute(id.replay_request(replay, operation))
    }

    /// What `pick` makes of each ESP SA of the namespace, whoever made it.
    pub fn sas<T>(&mut self, mut pick: impl FnMut(XfrmListedSa) -> Option<T>) -> Result<Vec<T>> {
        self.requests += 1;
        let make = || Request::new(abi::GETSA, 0, &[], "list SAs".into());
        self.transport.dump(make, |message| {
            let is_sa = message.kind == abi::NEWSA;
            is_sa
                .then(|| XfrmListedSa::parse(message.body))
                .flatten()
                .and_then(&mut pick)
        })
    }

    /// Makes a policy; one of the same key must not be there (EEXIST), whoever made it.
    pub fn add_policy(&mut self, policy: &XfrmPolicy) -> Result<()> {
        let operation = format!("add {}", describe_policy(&policy.key()));
        self.execute(policy.request(abi::NEWPOLICY, operation))
    }

    /// Makes a policy or replaces the one of the same key, in one step: no packet sees neither.
    pub fn update_policy(&mut self, policy: &XfrmPolicy) -> Result<()> {
        let operation = format!("update {}", describe_policy(&policy.key()));
        self.execute(policy.request(abi::UPDPOLICY, operation))
    }

    /// Removes a policy; ENOENT where it is not there.
    pub fn delete_policy(&mut self, key: &XfrmPolicyKey) -> Result<()> {
        let operation = format!("delete {}", describe_policy(key));
        self.execute(key.request(abi::DELPOLICY, operation))
    }

    /// The policy of a key; `None` where it is not there.
    pub fn policy(&mut self, key: &XfrmPolicyKey) -> Result<Option<XfrmPolicy>> {
        let request = key.request(abi::GETPOLICY, format!("get {}", describe_policy(key)));
        let mut found = None;
        self.get(request, &mut |message| {
            if message.kind == abi::NEWPOLICY {
                found = XfrmPolicy::parse(message);
            }
        })?;
        Ok(found)
    }

    /// The main policies of the namespace, whoever made them. Left out are those that
    /// [`XfrmPolicy`] cannot say: of single sockets, and for one interface or user.
    pub fn policies(&mut self) -> Result<Vec<XfrmPolicy>> {
        self.requests += 1;
        let make = || Request::new(abi::GETPOLICY, 0, &[], "list policies".into());
        self.transport.dump(make, |message| {
            let is_policy = message.kind == abi::NEWPOLICY;
            is_policy.then(|| XfrmPolicy::parse(message)).flatten()
        })
    }

    fn execute(&mut self, request: Request) -> Result<()> {
        self.requests += 1;
        self.transport.execute(request)
    }

    /// A request whose object may not be there.
    fn get(&mut self, request: Request, each: &mut dyn FnMut(&Message<'_>)) -> Result<()> {
        self.requests += 1;
        match self.transport.get(request, each) {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }
}

fn describe(id: &XfrmSaId) -> String {
    let (value, mask) = id.mark;
    let mark = match mask {
        0 => String::new(),
        _ => format!(" mark {value:#x}/{mask:#x}"),
    };
    format!("SA {:#010x} to {}{mark}", id.spi, id.destination)
}

fn describe_policy(key: &XfrmPolicyKey) -> String {
    format!("policy {key}")
}
