//! Every exchange in every state, from both directions: what is not in the table is dropped
//! (lessons L13, L14).

use testudo_wire::ike::ExchangeType;

use super::net::*;
use crate::sa::{Phase, State};
use crate::table::{Action, action};
use crate::*;

/// A node's newest IKE SA in each state that can be reached.
fn states() -> Vec<(&'static str, Net, usize)> {
    let stop_with = |config: EngineConfig, count: usize| {
        let mut net = Net::with(1, 2, config);
        net.cut_after(count);
        net.connect(0, 1, false);
        net.run_ms(100);
        net
    };
    let stop_after = |count| stop_with(config(), count);
    let additional = hybrid(&[&[testudo_crypto::KeMethod::MlKem768]], true);
    let bad = || {
        let mut net = Net::new(2, 2);
        let kind = testudo_crypto::KeyType::Ed25519;
        net.nodes[1]
            .engine
            .set_identity(local_identity(1, "evil", EPOCH + 1_000_000, kind));
        net.cut_after(4);
        net.connect(0, 1, false);
        net.run_ms(100);
        net
    };
    let phase = |phase: Phase| {
        let mut net = stop_after(4);
        let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
        sa.established_mut().unwrap().phase = phase;
        net
    };
    vec![
        ("init_sent", stop_after(0), 0),
        ("half_open", stop_after(1), 1),
        ("intermediate_sent", stop_with(additional, 2), 0),
        ("auth_sent", stop_after(2), 0),
        ("refusing", bad(), 0),
        ("established", stop_after(4), 0),
        ("rekeyed", phase(Phase::Rekeyed), 0),
        ("waiting", phase(Phase::Waiting), 0),
        ("leaving", phase(Phase::Leaving(DownReason::Replaced)), 0),
        ("shut", phase(Phase::Shut), 0),
        ("gone", phase(Phase::Gone), 0),
    ]
}

fn expected(state: &str, exchange: u8, response: bool) -> Option<Action> {
    match (state, exchange, response) {
        ("init_sent", 34, true) => Some(Action::InitAnswer),
        ("half_open", 43, false) => Some(Action::IntermediateRequest),
        ("intermediate_sent", 43, true) => Some(Action::IntermediateAnswer),
        ("half_open", 35, false) => Some(Action::AuthRequest),
        ("auth_sent", 35, true) => Some(Action::AuthAnswer),
        ("auth_sent", 37, false) => Some(Action::EarlyDelete),
        ("refusing", 37, true) => Some(Action::RefusingAnswer),
        ("init_sent" | "intermediate_sent" | "half_open" | "auth_sent" | "refusing", _, _) => None,
        (_, 35..=37 | 44, false) => Some(Action::Request),
        ("gone", _, true) => None,
        (_, 36 | 37 | 44, true) => Some(Action::Answer),
        _ => None,
    }
}

#[test]
fn every_exchange_in_every_state() {
    for (name, net, n) in states() {
        let sa = net.nodes[n].engine.sas.values().next().unwrap();
        assert_eq!(sa.state.name(), name, "{}", net.story());
        for exchange in 0..=255 {
            for response in [false, true] {
                let found = action(&sa.state, ExchangeType(exchange), response).ok();
                let wanted = expected(name, exchange, response);
                assert_eq!(found, wanted, "{name} {exchange} {response}");
            }
        }
    }
}

#[test]
fn nothing_is_taken_between_two_states() {
    for exchange in 0..=255 {
        for response in [false, true] {
            assert!(action(&State::gap(), ExchangeType(exchange), response).is_err());
        }
    }
}
