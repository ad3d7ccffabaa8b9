//! Which datapath carries the packets, the kernel's or ours, and how one follows the other.
//!
//! The host is closed by the rules of the datapath that had it last. When another one is wanted,
//! its rules stand before those of the last one go: at no moment is the host open.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use testudo_datapath::{Datapath, DatapathError};
use testudo_model::policy::DatapathChoice;
use testudo_model::{Monotonic, Now, TrafficPolicy};
use tokio::sync::Notify;

use crate::files;
use crate::host::{Host, default_addresses, kernel_path_mtu};

/// Which datapath had the host last: its rules are the ones that stand.
const FILE: &str = "datapath";

/// A datapath that is asked for and cannot be had is looked for again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// One datapath as this host may have it.
pub(crate) trait Side {
    /// `user` or `kernel`.
    fn kind(&self) -> &'static str;

    /// The device that carries the packets, for people.
    fn interface(&self) -> &str;

    /// Whether it can be had here. Leaves nothing behind.
    fn probe(&mut self) -> Result<(), DatapathError>;

    /// As [`Host::close`].
    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError>;

    /// As [`Host::open`].
    fn open(&mut self, wake: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError>;

    /// Waits for what it has begun and not finished: the other side is about to begin.
    fn finish(&mut self) {}

    /// Removes all that it put into the host, ever. Nothing there is no error.
    fn clear(&mut self) -> Result<(), DatapathError>;

    /// The same, less what the other side's rules replaced and now use: those stand already.
    fn make_way(&mut self) -> Result<(), DatapathError>;

    /// Sockets that outlive its process are closed: the other side is about to open the same.
    fn let_go(&mut self) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    User,
    Kernel,
}

/// The host with both datapaths, of which one is chosen.
pub(crate) struct ChoosingHost {
    user: Box<dyn Side>,
    kernel: Box<dyn Side>,
    record: PathBuf,
    chosen: Which,
    asked: Option<DatapathChoice>,
    /// Why the kernel's is not the one, where it might have been.
    note: Option<String>,
    /// The same where it was asked for by name, or where it was refused and not found missing.
    problem: Option<String>,
    probed: Monotonic,
    /// The other side has made way.
    settled: bool,
}

impl ChoosingHost {
    /// Chooses what had the host last; changes nothing on it.
    pub(crate) fn new(
        user: Box<dyn Side>,
        kernel: Box<dyn Side>,
        state_dir: &Path,
    ) -> ChoosingHost {
        let record = state_dir.join(FILE);
        // The only one there was before there was a record.
        let chosen = recorded(&record).unwrap_or(Which::User);
        ChoosingHost {
            user,
            kernel,
            record,
            chosen,
            asked: None,
            note: None,
            problem: None,
            probed: Monotonic::default(),
            settled: false,
        }
    }

    fn side(&mut self, which: Which) -> &mut dyn Side {
        match which {
            Which::User => self.user.as_mut(),
            Which::Kernel => self.kernel.as_mut(),
        }
    }

    fn take(&mut self, which: Which) {
        if self.chosen != which {
            let before = self.chosen;
            self.side(before).finish();
            self.chosen = which;
            self.settled = false;
        }
    }

    fn fall_back(&mut self, error: &DatapathError) {
        tracing::info!("the userspace datapath is taken, not the kernel's: {error}");
        self.note = Some(format!("kernel: {error}"));
        self.problem = None;
        self.take(Which::User);
    }
}

/// Which datapath had the host last, as the record says.
fn recorded(record: &Path) -> Option<Which> {
    let recorded = files::read_optional(record).unwrap_or_else(|error| {
        tracing::error!("{error:#}; the userspace datapath's rules are taken to stand");
        None
    });
    match recorded.as_deref().map(<[u8]>::trim_ascii) {
        Some(b"kernel") => Some(Which::Kernel),
        Some(_) => Some(Which::User),
        None => None,
    }
}

/// Whether the userspace datapath may carry the packets, as far as is known at the start, whatever the
/// kernel can do: it is asked for, or had the host last.
pub(crate) fn expects_user(option: Option<DatapathChoice>, state_dir: &Path) -> bool {
    match option {
        Some(DatapathChoice::Userspace) => true,
        Some(DatapathChoice::Kernel) => false,
        Some(DatapathChoice::Auto) | None => recorded(&state_dir.join(FILE)) == Some(Which::User),
    }
}

impl Host for ChoosingHost {
    fn choose(&mut self, choice: DatapathChoice, standing: Option<&str>, now: Now) {
        let again = self.problem.is_some() && now.monotonic.since(self.probed) >= AGAIN;
        if self.asked == Some(choice) && !again {
            return;
        }
        self.asked = Some(choice);
        self.note = None;
        self.problem = None;
        self.probed = now.monotonic;
        if choice == DatapathChoice::Userspace {
            return self.take(Which::User);
        }
        let probed = match standing {
            Some("kernel") => Ok(()),
            _ => self.kernel.probe(),
        };
        match probed {
            Ok(()) => self.take(Which::Kernel),
            // Anything else may be over in a moment; to fall back for it would cut all SAs.
            Err(error @ DatapathError::Missing { .. }) if choice == DatapathChoice::Auto => {
                self.fall_back(&error);
            }
            Err(error) => {
                let mut text = format!("the kernel datapath cannot be had: {error}");
                match standing {
                    Some(kind) => text += &format!("; the {kind} datapath goes on"),
                    None => self.take(Which::Kernel),
                }
                self.problem = Some(text);
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self.chosen {
            Which::User => self.user.kind(),
            Which::Kernel => self.kernel.kind(),
        }
    }

    fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        if self.chosen == Which::User {
            return self.user.close(policy);
        }
        match self.kernel.close(policy) {
            // One flow that is not as it should be is no reason to steer all into a blackhole.
            closed @ (Ok(()) | Err(DatapathError::Partly { .. })) => {
                let settled = self.settled();
                closed.and(settled)
            }
            // Rules that need nothing of the kernel's IPsec close the host as well, until its
            // policies stand.
            Err(error) => {
                tracing::warn!("the kernel's policies do not close the host: {error}");
                self.settled = false;
                self.user.close(policy)
            }
        }
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        let kernel = self.kernel.clear();
        self.user.clear().and(kernel)
    }

    fn open(&mut self, wake: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        let chosen = self.chosen;
        let auto = self.asked == Some(DatapathChoice::Auto);
        if chosen == Which::User {
            self.kernel.let_go();
        }
        match self.side(chosen).open(Arc::clone(&wake)) {
            Err(error @ DatapathError::Missing { .. }) if auto && chosen == Which::Kernel => {
                self.fall_back(&error);
                self.kernel.let_go();
                self.user.open(wake)
            }
            opened => opened,
        }
    }

    fn settled(&mut self) -> Result<(), DatapathError> {
        if self.settled {
            return Ok(());
        }
        let kind = self.kind();
        // Written before the other's rules go: whoever starts next must know whose stand.
        files::write_private(&self.record, format!("{kind}\n").as_bytes()).map_err(|error| {
            DatapathError::Refused {
                operation: "note which datapath has the host".into(),
                reason: format!("{error:#}"),
            }
        })?;
        match self.chosen {
            Which::User => self.kernel.make_way()?,
            Which::Kernel => self.user.make_way()?,
        }
        self.settled = true;
        Ok(())
    }

    fn interface(&self) -> &str {
        match self.chosen {
            Which::User => self.user.interface(),
            Which::Kernel => self.kernel.interface(),
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        default_addresses()
    }

    fn path_mtu(&self, local: IpAddr, remote: IpAddr) -> Option<u32> {
        kernel_path_mtu(local, remote)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use testudo_datapath::Twin;
    use testudo_model::{ClearTraffic, ProtectedFlows, UnixTime};

    use super::*;

    /// What was done to both sides, in order, and what cannot be had.
    #[derive(Clone, Default)]
    struct World(Rc<RefCell<State>>);

    #[derive(Default)]
    struct State {
        done: Vec<String>,
        no_probe: bool,
        no_open: bool,
        no_close: bool,
        /// The kernel has all and refuses all the same.
        refuses: bool,
        /// All but one flow is closed.
        conflict: bool,
    }

    struct Fake(&'static str, World);

    impl Fake {
        fn act(&self, what: &str, broken: bool) -> Result<(), DatapathError> {
            let mut world = self.1.0.borrow_mut();
            world.done.push(format!("{} {what}", self.0));
            match broken && self.0 == "kernel" {
                true if world.refuses => Err(DatapathError::Refused {
                    operation: "try the kernel's IPsec".into(),
                    reason: "no buffer space".into(),
                }),
                true => Err(DatapathError::Missing {
                    what: "no ESP in this kernel".into(),
                    remedy: "load the module esp4".into(),
                }),
                false => Ok(()),
            }
        }
    }

    impl Side for Fake {
        fn kind(&self) -> &'static str {
            self.0
        }
        fn interface(&self) -> &str {
            self.0
        }
        fn probe(&mut self) -> Result<(), DatapathError> {
            let broken = self.1.0.borrow().no_probe;
            self.act("probe", broken)
        }
        fn close(&mut self, _: &TrafficPolicy) -> Result<(), DatapathError> {
            let broken = self.1.0.borrow().no_close;
            self.act("close", broken)?;
            match self.1.0.borrow().conflict && self.0 == "kernel" {
                true => Err(DatapathError::Partly {
                    operation: "set policies".into(),
                    reason: "another program's policy is in the way".into(),
                }),
                false => Ok(()),
            }
        }
        fn open(&mut self, _: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
            let broken = self.1.0.borrow().no_open;
            self.act("open", broken)?;
            Ok(Box::new(Twin::new()))
        }
        fn clear(&mut self) -> Result<(), DatapathError> {
            self.act("clear", false)
        }
        fn make_way(&mut self) -> Result<(), DatapathError> {
            self.act("make way", false)
        }
        fn let_go(&mut self) {
            let _ = self.act("let go", false);
        }
    }

    impl World {
        fn host(&self, dir: &Path) -> ChoosingHost {
            let user = Box::new(Fake("user", self.clone()));
            let kernel = Box::new(Fake("kernel", self.clone()));
            ChoosingHost::new(user, kernel, dir)
        }

        fn done(&self) -> Vec<String> {
            std::mem::take(&mut self.0.borrow_mut().done)
        }
    }

    fn at(seconds: u64) -> Now {
        Now {
            monotonic: Monotonic(Duration::from_secs(seconds)),
            wall: UnixTime(0),
        }
    }

    fn policy() -> TrafficPolicy {
        TrafficPolicy {
            addresses: Vec::new(),
            flows: ProtectedFlows::Overlay { port: 4789 },
            clear_inbound: ClearTraffic::Drop,
            clear_outbound: ClearTraffic::Drop,
            peers: Vec::new(),
        }
    }

    fn open(host: &mut ChoosingHost) {
        host.open(Arc::new(Notify::new())).unwrap();
        host.settled().unwrap();
    }

    #[test]
    fn auto_takes_the_kernels_where_it_works_and_the_other_makes_way_once() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Auto, None, at(1));
        host.choose(DatapathChoice::Auto, None, at(100));
        assert_eq!((host.kind(), host.note()), ("kernel", None));
        open(&mut host);
        host.settled().unwrap();
        assert_eq!(
            world.done(),
            ["kernel probe", "kernel open", "user make way"]
        );

        // The next start is closed by the kernel's rules, and goes back when told so.
        let mut next = world.host(dir.path());
        next.close(&policy()).unwrap();
        next.choose(DatapathChoice::Userspace, None, at(1));
        open(&mut next);
        assert_eq!(
            world.done(),
            [
                "kernel close",
                "user make way",
                "kernel let go",
                "user open",
                "kernel make way"
            ]
        );
        let mut last = world.host(dir.path());
        last.close(&policy()).unwrap();
        assert_eq!(world.done(), ["user close"]);
    }

    #[test]
    fn a_host_is_prepared_for_what_was_asked_for_or_had_it_last() {
        let dir = tempfile::tempdir().unwrap();
        let expects = |option| expects_user(option, dir.path());
        let (auto, user) = (DatapathChoice::Auto, DatapathChoice::Userspace);
        assert!(
            !expects(None) && !expects(Some(auto)),
            "nothing is known yet"
        );
        assert!(expects(Some(user)));
        let world = World::default();
        for (choice, had) in [(user, true), (DatapathChoice::Kernel, false)] {
            let mut host = world.host(dir.path());
            host.choose(choice, None, at(1));
            open(&mut host);
            assert_eq!((expects(None), expects(Some(auto))), (had, had));
            assert!(expects(Some(user)) && !expects(Some(DatapathChoice::Kernel)));
        }
    }

    #[test]
    fn auto_says_why_it_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        for (no_probe, no_open) in [(true, false), (false, true)] {
            let world = World::default();
            world.0.borrow_mut().no_probe = no_probe;
            world.0.borrow_mut().no_open = no_open;
            let mut host = world.host(dir.path());
            host.choose(DatapathChoice::Auto, None, at(1));
            open(&mut host);
            assert_eq!((host.kind(), host.problem()), ("user", None));
            assert!(host.note().unwrap().contains("kernel: no ESP"));
            let done = world.done();
            let end = ["kernel let go", "user open", "kernel make way"];
            assert!(done.ends_with(&end.map(String::from)), "{done:?}");
        }
    }

    #[test]
    fn auto_does_not_fall_back_for_what_may_be_over_in_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Auto, None, at(1));
        open(&mut host);
        // The agent starts again, and the kernel has no room for a moment.
        {
            let mut state = world.0.borrow_mut();
            (state.no_probe, state.no_open, state.refuses) = (true, true, true);
        }
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Auto, None, at(1));
        assert_eq!((host.kind(), host.note()), ("kernel", None));
        assert!(host.problem().unwrap().contains("no buffer space"));
        assert!(host.open(Arc::new(Notify::new())).is_err());
        assert_eq!(host.kind(), "kernel");
        world.0.borrow_mut().no_probe = false;
        world.0.borrow_mut().no_open = false;
        host.choose(DatapathChoice::Auto, None, at(11));
        assert_eq!((host.kind(), host.problem()), ("kernel", None));
        world.done();
        open(&mut host);
        assert_eq!(world.done(), ["kernel open", "user make way"]);

        // A host that the userspace datapath carries goes on, and is asked again.
        let dir = tempfile::tempdir().unwrap();
        world.0.borrow_mut().no_probe = true;
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Userspace, None, at(1));
        open(&mut host);
        host.choose(DatapathChoice::Auto, Some("user"), at(2));
        assert_eq!(host.kind(), "user");
        assert!(host.problem().is_some());
        world.0.borrow_mut().no_probe = false;
        host.choose(DatapathChoice::Auto, Some("user"), at(12));
        assert_eq!((host.kind(), host.problem()), ("kernel", None));
    }

    #[test]
    fn the_kernels_by_name_or_none_but_what_stands_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        world.0.borrow_mut().no_probe = true;
        world.0.borrow_mut().no_open = true;
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Kernel, None, at(1));
        assert_eq!(host.kind(), "kernel");
        assert!(host.problem().unwrap().contains("no ESP"));
        assert!(host.open(Arc::new(Notify::new())).is_err());

        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Userspace, None, at(1));
        open(&mut host);
        host.choose(DatapathChoice::Kernel, Some("user"), at(2));
        assert_eq!(host.kind(), "user");
        assert!(
            host.problem()
                .unwrap()
                .contains("the user datapath goes on")
        );
        // Somebody loads the module.
        world.0.borrow_mut().no_probe = false;
        host.choose(DatapathChoice::Kernel, Some("user"), at(3));
        assert_eq!(host.kind(), "user", "not asked again so soon");
        host.choose(DatapathChoice::Kernel, Some("user"), at(13));
        assert_eq!((host.kind(), host.problem()), ("kernel", None));
    }

    #[test]
    fn one_flow_in_conflict_does_not_bring_the_other_rules() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Auto, None, at(1));
        open(&mut host);
        let mut host = world.host(dir.path());
        world.0.borrow_mut().no_close = true;
        world.0.borrow_mut().conflict = true;
        host.close(&policy()).unwrap();
        world.done();
        // The policies go in, all but one: it is said, and the other rules go all the same.
        world.0.borrow_mut().no_close = false;
        let error = host.close(&policy()).unwrap_err();
        assert!(error.to_string().contains("in the way"));
        assert_eq!(world.done(), ["kernel close", "user make way"]);
    }

    #[test]
    fn a_host_whose_kernel_has_lost_its_ipsec_is_closed_by_the_other_rules() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let mut host = world.host(dir.path());
        host.choose(DatapathChoice::Auto, None, at(1));
        open(&mut host);
        world.done();
        world.0.borrow_mut().no_close = true;
        let mut host = world.host(dir.path());
        host.close(&policy()).unwrap();
        assert_eq!(world.done(), ["kernel close", "user close"]);
        // They go as soon as the kernel's stand, before anything is opened.
        world.0.borrow_mut().no_close = false;
        host.close(&policy()).unwrap();
        host.close(&policy()).unwrap();
        assert_eq!(
            world.done(),
            ["kernel close", "user make way", "kernel close"]
        );
        host.clear().unwrap();
        assert_eq!(world.done(), ["kernel clear", "user clear"]);
    }
}
