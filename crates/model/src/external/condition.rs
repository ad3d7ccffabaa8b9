//! What is said of a connection in its status.

use crate::condition::{Condition, ConditionStatus, set};
use crate::external::{ExternalConnection, ExternalConnectionStatus};
use crate::time::UnixTime;

/// The condition that says whether the connection can be served as it is written.
pub const ACCEPTED: &str = "Accepted";

/// The condition that says whether nodes have set it up.
pub const PROGRAMMED: &str = "Programmed";

/// That connections are not served, for people.
pub const NOT_SET_UP: &str =
    "agents of this version do not set up connections to hosts outside the cluster";

/// What people are told of every connection.
pub const NOT_SERVED: &str = "agents of this version do not set up connections to hosts outside the \
    cluster: no packet is treated differently because of this object";

/// The status of a connection of which `trouble` is known: a reason in CamelCase, and a sentence.
pub fn judged(
    connection: &ExternalConnection,
    trouble: Option<(&str, String)>,
    now: UnixTime,
) -> ExternalConnectionStatus {
    let mut status = connection.status.clone();
    let generation = connection.metadata.generation;
    let (accepted, reason, message) = match trouble {
        None => (ConditionStatus::True, "Accepted", String::new()),
        Some((reason, message)) => (ConditionStatus::False, reason, message),
    };
    let programmed = (ConditionStatus::False, "NotServed", NOT_SERVED.to_owned());
    for (kind, (status_of_it, reason, message)) in [
        (ACCEPTED, (accepted, reason, message)),
        (PROGRAMMED, programmed),
    ] {
        let condition = Condition {
            kind: kind.to_owned(),
            status: status_of_it,
            reason: reason.to_owned(),
            message,
            last_transition_time: now,
            observed_generation: generation,
        };
        set(&mut status.conditions, condition);
    }
    status.observed_generation = generation;
    status
}
