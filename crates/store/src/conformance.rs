//! What every store must do, as a test that any store can be put to.
//!
//! [`run`] wants an empty store that nobody else uses, and leaves it empty.

use std::time::Duration;

use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{EncryptionPolicyKind, Mode};
use testudo_model::{
    Acknowledgement, BootId, EncryptionPolicy, EncryptionPolicySpec, NodeEncryption,
    NodeEncryptionSpec, NodeUid, Object, Phase,
};

use crate::error::StoreError;
use crate::store::{Change, Store, change_status};
use crate::watch::{Event, Watch};

/// How long a change may take to reach a watch.
const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! check {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

mod external;
pub mod requests;

/// Puts a store to the test; the error says what it did wrong.
pub async fn run<S: Store>(store: S) -> Result<(), String> {
    create_get_list_delete(&store).await?;
    apply_changes_the_spec_alone(&store).await?;
    status_changes_alone(&store).await?;
    stale_writes_are_refused(&store).await?;
    nonsense_is_refused(&store).await?;
    external::connections_are_kept(&store).await?;
    writers_at_once_lose_nothing(&store).await?;
    a_watch_tells_everything(&store).await
}

fn node(name: &str) -> Result<NodeEncryption, String> {
    let text = |e: testudo_model::name::NameError| e.to_string();
    let spec = NodeEncryptionSpec {
        uid: NodeUid::new(format!("uid-{}", name.replace('.', "-"))).map_err(text)?,
        boot_id: BootId::new("boot").map_err(text)?,
        addresses: vec!["10.0.0.1".parse().map_err(|_| "an address".to_owned())?],
        pod_cidrs: Vec::new(),
        datapath: "user".to_owned(),
        agent_socket: None,
    };
    Ok(Object::new(name, spec))
}

fn said(error: StoreError) -> String {
    format!("unexpected error: {error}")
}

async fn create_get_list_delete<S: Store>(store: &S) -> Result<(), String> {
    // Names that YAML would take for something else.
    let names = [
        "0x10",
        "123",
        "1e3",
        "false",
        "n",
        "n1",
        "null",
        "true",
        "worker-1.example.org",
    ];
    for name in names.iter().rev() {
        let made = store.create(node(name)?).await.map_err(said)?;
        check!(made.metadata.uid.is_some(), "create gave no UID");
        check!(made.metadata.generation == 1, "create: generation is not 1");
        check!(
            made.metadata.resource_version.is_some(),
            "create gave no resourceVersion"
        );
        let read = store.get::<NodeEncryptionKind>(name).await.map_err(said)?;
        check!(
            read.as_ref() == Some(&made),
            "get differs from create: {read:?}"
        );
        match store.create(node(name)?).await {
            Err(StoreError::AlreadyExists { .. }) => {}
            other => return Err(format!("a second create: {other:?}")),
        }
    }
    let listing = store.list::<NodeEncryptionKind>().await.map_err(said)?;
    let listed: Vec<&str> = listing.items.iter().map(|o| o.name()).collect();
    check!(listed == names, "list, in order: {listed:?}");
    check!(listing.problems.is_empty(), "list: {:?}", listing.problems);
    for name in names {
        let gone = store
            .delete::<NodeEncryptionKind>(name)
            .await
            .map_err(said)?;
        check!(gone, "delete did not find {name}");
        let again = store
            .delete::<NodeEncryptionKind>(name)
            .await
            .map_err(said)?;
        check!(!again, "delete found {name} twice");
        let read = store.get::<NodeEncryptionKind>(name).await.map_err(said)?;
        check!(read.is_none(), "get after delete: {read:?}");
    }
    Ok(())
}

fn policy(mode: Mode) -> EncryptionPolicy {
    let spec = EncryptionPolicySpec {
        mode,
        ..EncryptionPolicySpec::default()
    };
    Object::new("cluster", spec)
}

async fn apply_changes_the_spec_alone<S: Store>(store: &S) -> Result<(), String> {
    let first = store.apply(policy(Mode::Disabled)).await.map_err(said)?;
    check!(first.change == Change::Created, "apply: {:?}", first.change);
    let mut with_status = first.object.clone();
    with_status.status.rollout = 7;
    store.update_status(&with_status).await.map_err(said)?;
    let same = store.apply(policy(Mode::Disabled)).await.map_err(said)?;
    check!(same.change == Change::Unchanged, "again: {:?}", same.change);
    let mut wanted = policy(Mode::Full);
    wanted.status.rollout = 99;
    wanted
        .metadata
        .labels
        .insert("a".to_owned(), "b".to_owned());
    let other = store.apply(wanted).await.map_err(said)?;
    check!(
        other.change == Change::Configured,
        "other: {:?}",
        other.change
    );
    let object = other.object;
    check!(object.spec.mode == Mode::Full, "the spec was not applied");
    check!(object.status.rollout == 7, "apply touched the status");
    check!(
        object.metadata.generation == 2,
        "generation did not rise by 1"
    );
    check!(
        object.metadata.uid == first.object.metadata.uid,
        "apply changed the UID"
    );
    check!(
        object.metadata.labels.contains_key("a"),
        "apply left out a label"
    );
    check!(
        object.metadata.resource_version != first.object.metadata.resource_version,
        "resourceVersion stayed"
    );
    let without = store.apply(policy(Mode::Full)).await.map_err(said)?;
    check!(
        without.change == Change::Configured && without.object.metadata.labels.is_empty(),
        "a label that was left out stays: {:?}",
        without.object.metadata.labels
    );
    check!(
        without.object.metadata.generation == 2,
        "a label raised the generation"
    );
    Ok(())
}

async fn status_changes_alone<S: Store>(store: &S) -> Result<(), String> {
    let read = store.get::<EncryptionPolicyKind>("cluster").await;
    let mut object = read.map_err(said)?.ok_or("the policy is gone")?;
    object.spec.mode = Mode::External;
    object.status.phase = Phase::Prepared;
    let written = store.update_status(&object).await.map_err(said)?;
    check!(
        written.spec.mode == Mode::Full,
        "update_status touched the spec"
    );
    check!(
        written.status.phase == Phase::Prepared,
        "the status was not written"
    );
    check!(
        written.metadata.generation == object.metadata.generation,
        "update_status raised the generation"
    );
    let missing = store.update_status(&node("nobody")?).await;
    match missing {
        Err(StoreError::NotFound { .. }) => Ok(()),
        other => Err(format!("the status of nothing: {other:?}")),
    }
}

async fn stale_writes_are_refused<S: Store>(store: &S) -> Result<(), String> {
    let read = store.get::<EncryptionPolicyKind>("cluster").await;
    let old = read.map_err(said)?.ok_or("the policy is gone")?;
    store.apply(policy(Mode::Disabled)).await.map_err(said)?;
    let mut stale = old.clone();
    stale.status.rollout = 1000;
    match store.update_status(&stale).await {
        Err(StoreError::Conflict { .. }) => {}
        other => return Err(format!("a stale status: {other:?}")),
    }
    match store.apply(old).await {
        Err(StoreError::Conflict { .. }) => {}
        other => return Err(format!("a stale spec: {other:?}")),
    }
    match store.delete_seen(&stale).await {
        Err(StoreError::Conflict { .. }) => {}
        other => return Err(format!("a stale deletion: {other:?}")),
    }
    let present = store.get::<EncryptionPolicyKind>("cluster").await;
    let present = present
        .map_err(said)?
        .ok_or("a stale deletion has removed it")?;
    let mut another = present.clone();
    another.metadata.uid = Some("11111111-2222-4333-8444-555555555555".to_owned());
    match store.delete_seen(&another).await {
        Err(StoreError::Conflict { .. }) => {}
        other => return Err(format!("a deletion of another life: {other:?}")),
    }
    let gone = store.delete_seen(&present).await;
    check!(gone.map_err(said)?, "the policy was not there");
    let again = store.delete_seen(&present).await;
    check!(!again.map_err(said)?, "what is gone was deleted");
    match store.apply(stale).await {
        Err(StoreError::Conflict { .. }) => Ok(()),
        other => Err(format!("a spec for what is gone: {other:?}")),
    }
}

async fn nonsense_is_refused<S: Store>(store: &S) -> Result<(), String> {
    for name in ["", "..", "../x", "a/b", "A", ".hidden", "a\0b"] {
        let mut object = node("x")?;
        object.metadata.name = name.to_owned();
        check!(
            store.create(object.clone()).await.is_err(),
            "create {name:?}"
        );
        check!(store.apply(object.clone()).await.is_err(), "apply {name:?}");
        check!(
            store.update_status(&object).await.is_err(),
            "status {name:?}"
        );
        let read = store.get::<NodeEncryptionKind>(name).await;
        check!(!matches!(read, Ok(Some(_))), "get {name:?}");
        let gone = store.delete::<NodeEncryptionKind>(name).await;
        check!(!matches!(gone, Ok(true)), "delete {name:?}");
    }
    let mut version = node("x")?;
    version.api_version = "testudo.dev/v2".to_owned();
    check!(store.create(version).await.is_err(), "another apiVersion");
    let mut empty = node("x")?;
    empty.spec.addresses.clear();
    check!(
        store.create(empty).await.is_err(),
        "a spec against the rules"
    );
    Ok(())
}

async fn writers_at_once_lose_nothing<S: Store>(store: &S) -> Result<(), String> {
    const ROUNDS: u64 = 25;
    store.apply(policy(Mode::Disabled)).await.map_err(said)?;
    let count = |store: S| async move {
        let mut done = 0;
        while done < ROUNDS {
            let counted =
                change_status::<S, EncryptionPolicyKind>(&store, "cluster", |_, status| {
                    status.rollout += 1;
                });
            match counted.await {
                Ok(_) => done += 1,
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(said(error)),
            }
        }
        Ok(())
    };
    let specs = |store: S| async move {
        for round in 0..ROUNDS {
            let mode = match round % 2 {
                0 => Mode::Full,
                _ => Mode::External,
            };
            store.apply(policy(mode)).await.map_err(said)?;
        }
        Ok(())
    };
    let first = tokio::spawn(count(store.clone()));
    let second = tokio::spawn(count(store.clone()));
    let third = tokio::spawn(specs(store.clone()));
    for task in [first, second, third] {
        task.await.map_err(|e| e.to_string())??;
    }
    let read = store.get::<EncryptionPolicyKind>("cluster").await;
    let object = read.map_err(said)?.ok_or("the policy is gone")?;
    check!(
        object.status.rollout == 2 * ROUNDS,
        "of {} status writes {} are left",
        2 * ROUNDS,
        object.status.rollout
    );
    check!(
        object.metadata.generation == 1 + ROUNDS,
        "of {ROUNDS} spec writes {} are counted",
        object.metadata.generation - 1
    );
    store
        .delete::<EncryptionPolicyKind>("cluster")
        .await
        .map_err(said)?;
    Ok(())
}

async fn event(watch: &mut Watch<NodeEncryptionKind>) -> Result<Event<NodeEncryptionKind>, String> {
    match tokio::time::timeout(PATIENCE, watch.next()).await {
        Ok(Some(event)) => Ok(event),
        Ok(None) => Err("the watch ended".to_owned()),
        Err(_) => Err("a watch told nothing of a change".to_owned()),
    }
}

async fn a_watch_tells_everything<S: Store>(store: &S) -> Result<(), String> {
    let first = store.create(node("n1")?).await.map_err(said)?;
    let mut watch = store.watch::<NodeEncryptionKind>().await.map_err(said)?;
    let told = event(&mut watch).await?;
    check!(told == Event::Added(first), "first: {told:?}");
    let told = event(&mut watch).await?;
    check!(told == Event::Synced, "then: {told:?}");
    let second = store.create(node("n2")?).await.map_err(said)?;
    let told = event(&mut watch).await?;
    check!(told == Event::Added(second.clone()), "a new one: {told:?}");
    let mut changed = second;
    changed.status.acknowledged = Some(Acknowledgement {
        phase: Phase::Strict,
        rollout: 3,
    });
    let changed = store.update_status(&changed).await.map_err(said)?;
    let told = event(&mut watch).await?;
    check!(
        told == Event::Modified(changed.clone()),
        "a status: {told:?}"
    );
    store
        .delete::<NodeEncryptionKind>("n2")
        .await
        .map_err(said)?;
    let told = event(&mut watch).await?;
    check!(told == Event::Deleted(changed), "a deletion: {told:?}");
    store
        .delete::<NodeEncryptionKind>("n1")
        .await
        .map_err(said)?;
    Ok(())
}
