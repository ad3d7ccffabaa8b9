//! Errors, split by whose fault they are, and the one place that turns them into notifies.

use testudo_model::PeerId;
use testudo_wire::ike::{Notify, NotifyType, ProtocolId};
use testudo_wire::{ErrorClass, WireError};

use crate::verify::FailedCheck;

/// The caller asked for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// No such peer.
    #[error("no peer {0} is configured; set_peer it first")]
    UnknownPeer(PeerId),
    /// No such child.
    #[error("child {} is not there, or is being replaced already", .0.0)]
    UnknownChild(testudo_model::ChildId),
    /// No such IKE SA, or none whose peer is known.
    #[error("IKE SA {} is not there", .0.0)]
    UnknownIke(crate::event::IkeId),
    /// The peer has no established IKE SA.
    #[error("peer {0} has no established IKE SA; wait for IkeUp")]
    NotEstablished(PeerId),
    /// Too many commands wait for the peer.
    #[error("too many commands wait for peer {0}; try again after its answers")]
    Busy(PeerId),
    /// The peer's configuration makes no sense.
    #[error("peer {peer}: {text}")]
    BadConfig {
        /// The peer.
        peer: PeerId,
        /// What is wrong.
        text: String,
    },
}

/// What went wrong with a peer's message, or with ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The peer's bytes cannot be read.
    Malformed(WireError),
    /// They can, but break the protocol; the text is a drop counter's name.
    Misbehaved(&'static str),
    /// Nobody's fault: the two ends do not agree, or not now.
    Incompatible(Refusal),
    /// The peer did not prove that it is who it must be.
    Unproven(FailedCheck, String),
    /// Ours: an invariant does not hold, or a credential is missing.
    Bug(&'static str),
    /// None: a job must be done first, and then the handler runs again.
    Suspended,
}

/// Answers that refuse one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoProposalChosen,
    InvalidKe(u16),
    TsUnacceptable,
    NoAdditionalSas,
    TsMaxQueue,
    TemporaryFailure,
    ChildNotFound(u32),
    StateNotFound,
}

impl Fault {
    /// The notify that tells the peer.
    pub(crate) fn notify(&self) -> Notify {
        match self {
            Self::Malformed(error) => match error.class() {
                ErrorClass::InvalidSyntax => Notify::new(NotifyType::INVALID_SYNTAX, []),
                ErrorClass::UnsupportedCriticalPayload(kind) => {
                    Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, [kind])
                }
                ErrorClass::InvalidMajorVersion(_) => {
                    Notify::new(NotifyType::INVALID_MAJOR_VERSION, [])
                }
            },
            Self::Misbehaved(_) => Notify::new(NotifyType::INVALID_SYNTAX, []),
            Self::Incompatible(refusal) => refusal.notify(),
            Self::Unproven(..) => Notify::new(NotifyType::AUTHENTICATION_FAILED, []),
            // What is wrong here is no business of the peer's; it may try again.
            Self::Bug(_) | Self::Suspended => Notify::new(NotifyType::TEMPORARY_FAILURE, []),
        }
    }

    /// Whether the IKE SA ends with the answer (RFC 7296, 2.21.3).
    pub(crate) fn is_fatal(&self) -> bool {
        match self {
            Self::Malformed(error) => matches!(error.class(), ErrorClass::InvalidSyntax),
            Self::Misbehaved(_) => true,
            _ => false,
        }
    }

    /// The drop counter's name.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(error) => error.reason(),
            Self::Misbehaved(reason) => reason,
            Self::Incompatible(_) => "incompatible",
            Self::Unproven(check, _) => check.name(),
            Self::Bug(_) => "bug",
            Self::Suspended => "suspended",
        }
    }

    /// The check for an event.
    pub(crate) fn check(&self) -> FailedCheck {
        match self {
            Self::Malformed(_) | Self::Misbehaved(_) | Self::Bug(_) | Self::Suspended => {
                FailedCheck::Protocol
            }
            Self::Incompatible(Refusal::NoProposalChosen | Refusal::InvalidKe(_)) => {
                FailedCheck::Proposal
            }
            Self::Incompatible(Refusal::TsUnacceptable) => FailedCheck::TrafficSelectors,
            Self::Incompatible(Refusal::NoAdditionalSas | Refusal::TsMaxQueue) => {
                FailedCheck::Limit
            }
            Self::Incompatible(_) => FailedCheck::Protocol,
            Self::Unproven(check, _) => *check,
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Malformed(error) => error.to_string(),
            Self::Misbehaved(what) => format!("the peer broke the protocol: {what}"),
            Self::Incompatible(refusal) => format!("{}", refusal.notify().kind),
            Self::Unproven(_, text) => text.clone(),
            Self::Bug(what) => format!("internal error: {what}"),
            Self::Suspended => "a computation is under way".into(),
        }
    }
}

impl Refusal {
    fn notify(self) -> Notify {
        let plain = |kind| Notify::new(kind, []);
        match self {
            Self::NoProposalChosen => plain(NotifyType::NO_PROPOSAL_CHOSEN),
            Self::InvalidKe(method) => {
                Notify::new(NotifyType::INVALID_KE_PAYLOAD, method.to_be_bytes())
            }
            Self::TsUnacceptable => plain(NotifyType::TS_UNACCEPTABLE),
            Self::NoAdditionalSas => plain(NotifyType::NO_ADDITIONAL_SAS),
            Self::TsMaxQueue => plain(NotifyType::TS_MAX_QUEUE),
            Self::TemporaryFailure => plain(NotifyType::TEMPORARY_FAILURE),
            Self::StateNotFound => plain(NotifyType::STATE_NOT_FOUND),
            Self::ChildNotFound(spi) => Notify {
                protocol: ProtocolId::ESP,
                ..Notify::about_esp(NotifyType::CHILD_SA_NOT_FOUND, spi)
            },
        }
    }
}

/// The check that a peer's error notify stands for.
pub(crate) fn check_of(kind: NotifyType) -> FailedCheck {
    match kind {
        NotifyType::AUTHENTICATION_FAILED => FailedCheck::RefusedByPeer,
        NotifyType::NO_PROPOSAL_CHOSEN | NotifyType::INVALID_KE_PAYLOAD => FailedCheck::Proposal,
        NotifyType::TS_UNACCEPTABLE | NotifyType::SINGLE_PAIR_REQUIRED => {
            FailedCheck::TrafficSelectors
        }
        NotifyType::NO_ADDITIONAL_SAS | NotifyType::TS_MAX_QUEUE => FailedCheck::Limit,
        _ => FailedCheck::Protocol,
    }
}
