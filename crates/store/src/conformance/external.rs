//! Connections to hosts outside: fields that may be absent, lists, maps with the user's keys.

use testudo_model::external::{
    ACCEPTED, ConnectionType, ExternalConnectionKind, KeyReference, NodeSelector, judged,
};
use testudo_model::{
    ConditionStatus, ExternalConnection, ExternalConnectionSpec, Lifetime, UnixTime,
};

use super::said;
use crate::error::StoreError;
use crate::store::{Change, Store};

fn connection() -> Result<ExternalConnection, String> {
    let mut spec = ExternalConnectionSpec::to("gate.example.com".parse()?);
    let secret = "key".parse();
    spec.psk = Some(KeyReference::of(
        secret.map_err(|e: testudo_model::name::NameError| e.to_string())?,
    ));
    let zone = ("topology.kubernetes.io/zone".to_owned(), "a".to_owned());
    spec.node_selector = NodeSelector {
        match_labels: [zone].into(),
        ..NodeSelector::default()
    };
    spec.right_subnets = ["198.51.100.0/24", "203.0.113.0/28"]
        .iter()
        .filter_map(|net| net.parse().ok())
        .collect();
    spec.ike = vec!["aes_gcm256-sha2_512-dh19".parse()?];
    spec.dpd_delay = Some(Lifetime::seconds(30));
    Ok(ExternalConnection::new("office", spec))
}

pub(super) async fn connections_are_kept<S: Store>(store: &S) -> Result<(), String> {
    type K = ExternalConnectionKind;
    let wanted = connection()?;
    let made = store.apply(wanted.clone()).await.map_err(said)?;
    check!(made.change == Change::Created, "apply: {:?}", made.change);
    check!(made.object.spec == wanted.spec, "apply: {:?}", made.object);
    let same = store.apply(wanted.clone()).await.map_err(said)?;
    check!(same.change == Change::Unchanged, "again: {:?}", same.change);

    let mut told = made.object.clone();
    told.status = judged(&told, None, UnixTime(1_800_000_000));
    let told = store.update_status(&told).await.map_err(said)?;
    let read = store.get::<K>("office").await.map_err(said)?;
    check!(read.as_ref() == Some(&told), "a status: {read:?}");
    let accepted = told.status.conditions.iter().find(|c| c.kind == ACCEPTED);
    check!(
        accepted.is_some_and(|c| c.status == ConditionStatus::True && c.observed_generation == 1),
        "a condition: {accepted:?}"
    );

    // What is left out goes, and the status stays.
    let mut less = connection()?;
    less.spec.dpd_delay = None;
    less.spec.node_selector = NodeSelector::default();
    less.spec.right_subnets.truncate(1);
    let changed = store.apply(less.clone()).await.map_err(said)?;
    check!(
        changed.change == Change::Configured && changed.object.spec == less.spec,
        "a change: {changed:?}"
    );
    check!(
        changed.object.status == told.status && changed.object.metadata.generation == 2,
        "apply touched the status, or did not count: {:?}",
        changed.object
    );
    let mut wrong = less;
    wrong.spec.kind = ConnectionType::Transport;
    match store.apply(wrong).await {
        Err(StoreError::Invalid(problem)) if problem.reason.contains("rightSubnets") => {}
        other => return Err(format!("a spec against the rules: {other:?}")),
    }
    let gone = store.delete::<K>("office").await.map_err(said)?;
    check!(gone, "delete did not find it");
    Ok(())
}
