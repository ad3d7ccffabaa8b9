//! What is the same with either daemon: bodies of tests, written once over [`Them`].

pub mod certificates;
pub mod life;
pub mod refusals;

use testudo_ike::EngineConfig;
use testudo_interop::Daemon;

use crate::certificates::Issued;
use crate::ours::Us;
use crate::wanted::Wanted;

/// What a daemon is told apart from what `Wanted` says.
pub trait Tell: Sized {
    type Them: Them<Told = Self>;

    fn by(wanted: &Wanted) -> Self;
    fn terms(&mut self) -> Terms<'_>;
    /// It is to ask each second whether we live.
    fn probe(&mut self);
}

/// The parts that either daemon is told in the same words.
pub struct Terms<'t> {
    pub ike: &'t mut String,
    pub esp: &'t mut String,
    pub secret: &'t mut &'static str,
    /// Its certificate, and the CAs that it trusts.
    pub certificates: &'t mut Option<(Issued, String)>,
}

/// A daemon in a world of its own.
pub trait Them: Sized {
    type Told: Tell<Them = Self>;

    fn start(wanted: &Wanted, told: Self::Told) -> Self;
    fn daemon(&mut self) -> &mut Daemon;
    fn log(&self) -> String;

    /// Lets it begin, if that is wanted.
    fn begin(&self, us: &mut Us, wanted: &Wanted);
    /// Lets it begin what must fail, if that is wanted.
    fn begin_in_vain(&self, us: &mut Us, wanted: &Wanted);
    fn rekey_child(&self, us: &mut Us);
    fn rekey_ike(&self, us: &mut Us);
    /// Ends its IKE SA.
    fn terminate(&self, us: &mut Us);

    /// Whether it has an established IKE SA.
    fn is_up(&self) -> bool;
    /// Waits until it has so many IKE SAs and children.
    fn settles(&self, us: &mut Us, ike: usize, children: usize);
    /// Passes packets both ways, where its ESP is more than pretended.
    fn ping(&self, us: &mut Us);
}

/// Establishes, passes packets both ways, and gives both ends.
pub fn established<T: Tell>(wanted: &Wanted, told: T) -> (T::Them, Us) {
    established_with(wanted, told, |_| {})
}

/// The same with changes to our engine's settings.
pub fn established_with<T: Tell>(
    wanted: &Wanted,
    told: T,
    change: impl FnOnce(&mut EngineConfig),
) -> (T::Them, Us) {
    let them = T::Them::start(wanted, told);
    let mut us = Us::with(wanted, change);
    us.go();
    them.begin(&mut us, wanted);
    us.established();
    them.ping(&mut us);
    (them, us)
}
