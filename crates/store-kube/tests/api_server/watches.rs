//! Watches that lose their connection, and the API server's memory.

use std::time::Instant;

use serde_json::json;
use testudo_kube_env::Component;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::{Kind, NodeEncryption};
use testudo_store::{Event, Store, StoreError, Watch};
use testudo_store_kube::{KubeStore, Writer};

use crate::world::{Cable, PATIENCE, World, node, until};

pub(crate) async fn next<K: Kind>(watch: &mut Watch<K>) -> Event<K> {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await;
    event.expect("nothing was told").expect("the watch ended")
}

/// A store whose way to the API server can be cut.
async fn cabled(world: &World) -> (Cable, KubeStore) {
    let cable = Cable::lay(&world.cluster.server()).await;
    let kubeconfig = world.kubeconfig_with("cabled", |config| {
        let server = format!("https://127.0.0.1:{}", cable.port);
        config["clusters"][0]["cluster"]["server"] = json!(server);
    });
    let store = world.store_at(&kubeconfig, Writer::Controller);
    (cable, store)
}

/// What a watch tells until it is told of `name`.
async fn until_told(
    watch: &mut Watch<NodeEncryptionKind>,
    name: &str,
) -> Vec<Event<NodeEncryptionKind>> {
    let mut told = Vec::new();
    loop {
        let event = next(watch).await;
        let last = matches!(&event, Event::Added(o) if o.name() == name);
        told.push(event);
        if last {
            return told;
        }
    }
}

fn is_deleted(event: &Event<NodeEncryptionKind>, object: &NodeEncryption) -> bool {
    matches!(event, Event::Deleted(o) if o == object)
}

fn is_added(event: &Event<NodeEncryptionKind>, object: &NodeEncryption) -> bool {
    matches!(event, Event::Added(o) if o == object)
}

pub(crate) async fn lost_connection(world: &World) {
    let direct = world.store(Writer::Controller);
    let (cable, store) = cabled(world).await;
    let first = direct.create(node("n1")).await.unwrap();
    let mut watch = store.watch::<NodeEncryptionKind>().await.unwrap();
    assert_eq!(next(&mut watch).await, Event::Added(first.clone()));
    assert_eq!(next(&mut watch).await, Event::Synced);

    cable.cut();
    direct.delete::<NodeEncryptionKind>("n1").await.unwrap();
    let again = direct.create(node("n1")).await.unwrap();
    let second = direct.create(node("n2")).await.unwrap();
    let server = format!("127.0.0.1:{}", cable.port);
    match next(&mut watch).await {
        Event::Problem(problem) => {
            assert!(problem.to_string().contains(&server), "{problem}");
            assert_eq!(problem.name, None);
        }
        other => panic!("{other:?}"),
    }
    let asked = Instant::now();
    let refused = store.get::<NodeEncryptionKind>("n1").await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }));
    assert!(refused.to_string().contains(&server), "{refused}");
    assert!(asked.elapsed() < PATIENCE);

    cable.mend().await;
    let told = until_told(&mut watch, "n2").await;
    assert!(matches!(told[0], Event::Solved(_)), "{told:?}");
    let rest: Vec<_> = told[1..].iter().collect();
    assert_eq!(rest.len(), 3, "{rest:?}");
    assert!(is_deleted(rest[0], &first), "{rest:?}");
    assert!(is_added(rest[1], &again), "{rest:?}");
    assert!(is_added(rest[2], &second), "{rest:?}");
    for name in ["n1", "n2"] {
        direct.delete::<NodeEncryptionKind>(name).await.unwrap();
    }
}

/// The API server begins anew and knows no version from before: a list tells the difference.
pub(crate) async fn forgotten_version(world: &World) {
    let direct = world.store(Writer::Controller);
    let (cable, store) = cabled(world).await;
    let gone = direct.create(node("n1")).await.unwrap();
    let stays = direct.create(node("n2")).await.unwrap();
    let mut watch = store.watch::<NodeEncryptionKind>().await.unwrap();
    assert_eq!(next(&mut watch).await, Event::Added(gone.clone()));
    assert_eq!(next(&mut watch).await, Event::Added(stays.clone()));
    assert_eq!(next(&mut watch).await, Event::Synced);
    let version = stays.metadata.resource_version.clone().unwrap();

    cable.cut();
    direct.delete::<NodeEncryptionKind>("n1").await.unwrap();
    let again = direct.create(node("n1")).await.unwrap();
    world.cluster.stop_component(Component::ApiServer).unwrap();
    world.cluster.start_component(Component::ApiServer).unwrap();
    until("the API server is back", async || {
        direct.list::<NodeEncryptionKind>().await.is_ok()
    })
    .await;
    let new = direct.create(node("n3")).await.unwrap();
    let api = world.raw_of::<NodeEncryptionKind>().await;
    let params = kube::api::WatchParams::default().timeout(2);
    let refused = first_event(&api, &params, &version).await;
    assert_eq!(refused, Some(410), "the old version is known still");

    cable.mend().await;
    let told = until_told(&mut watch, "n3").await;
    let told: Vec<_> = told
        .iter()
        .filter(|event| !matches!(event, Event::Problem(_) | Event::Solved(_)))
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(is_deleted(told[0], &gone), "{told:?}");
    assert!(is_added(told[1], &again), "{told:?}");
    assert!(is_added(told[2], &new), "{told:?}");
    // And it goes on as a watch.
    let mut changed = stays;
    changed.status.tunnels_up = 1;
    let changed = direct.update_status(&changed).await.unwrap();
    assert_eq!(next(&mut watch).await, Event::Modified(changed));
    for name in ["n1", "n2", "n3"] {
        direct.delete::<NodeEncryptionKind>(name).await.unwrap();
    }
}

/// The code of the refusal with which a watch from `version` begins, if it does.
async fn first_event(
    api: &kube::Api<kube::core::DynamicObject>,
    params: &kube::api::WatchParams,
    version: &str,
) -> Option<u16> {
    use futures_util::TryStreamExt;
    let stream = match api.watch(params, version).await {
        Ok(stream) => stream,
        Err(kube::Error::Api(status)) => return Some(status.code),
        Err(error) => panic!("{error}"),
    };
    let mut stream = std::pin::pin!(stream);
    match stream.try_next().await {
        Ok(Some(kube::api::WatchEvent::Error(status))) => Some(status.code),
        Err(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}
