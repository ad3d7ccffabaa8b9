//! Which message means what in which state: everything that is not here is dropped. What all
//! other events do in each state stands in `docs/ike-transitions.md`, which a test walks.

use testudo_wire::ike::ExchangeType;

use crate::engine::Dropped;
use crate::sa::{Phase, State};

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The answer to our IKE_SA_INIT.
    InitAnswer,
    /// The peer's IKE_INTERMEDIATE.
    IntermediateRequest,
    /// The answer to our IKE_INTERMEDIATE.
    IntermediateAnswer,
    /// The peer's IKE_AUTH.
    AuthRequest,
    /// The answer to our IKE_AUTH.
    AuthAnswer,
    /// The peer's DELETE of an IKE SA that we have not entered yet.
    EarlyDelete,
    /// The answer to our word that the peer's authentication failed.
    RefusingAnswer,
    /// A request on an established SA, or the repetition of an older one.
    Request,
    /// An answer on an established SA.
    Answer,
}

/// The table.
pub(crate) fn action(
    state: &State,
    exchange: ExchangeType,
    response: bool,
) -> Result<Action, Dropped> {
    const UNEXPECTED: Dropped = "unexpected_exchange";
    let later = matches!(
        exchange,
        ExchangeType::CREATE_CHILD_SA | ExchangeType::INFORMATIONAL | ExchangeType::IKE_FOLLOWUP_KE
    );
    match (state, response) {
        (State::InitSent(_), true) if exchange == ExchangeType::IKE_SA_INIT => {
            Ok(Action::InitAnswer)
        }
        (State::IntermediateSent(_), true) if exchange == ExchangeType::IKE_INTERMEDIATE => {
            Ok(Action::IntermediateAnswer)
        }
        (State::AuthSent(_), true) if exchange == ExchangeType::IKE_AUTH => Ok(Action::AuthAnswer),
        // The responder may give it up while its IKE_AUTH answer is lost, or on its way.
        (State::AuthSent(_), false) if exchange == ExchangeType::INFORMATIONAL => {
            Ok(Action::EarlyDelete)
        }
        (State::HalfOpen(_), false) if exchange == ExchangeType::IKE_INTERMEDIATE => {
            Ok(Action::IntermediateRequest)
        }
        (State::HalfOpen(_), false) if exchange == ExchangeType::IKE_AUTH => {
            Ok(Action::AuthRequest)
        }
        (State::Refusing(_), true) if exchange == ExchangeType::INFORMATIONAL => {
            Ok(Action::RefusingAnswer)
        }
        // A repeated IKE_AUTH is answered from memory.
        (State::Established(_), false) if later || exchange == ExchangeType::IKE_AUTH => {
            Ok(Action::Request)
        }
        (State::Established(est), true) if later && est.phase != Phase::Gone => Ok(Action::Answer),
        _ => Err(UNEXPECTED),
    }
}
