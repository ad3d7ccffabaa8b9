use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::watch::Event;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{EncryptionPolicyKind, Mode};
use testudo_model::{EncryptionPolicy, EncryptionPolicySpec, Phase};

const GOOD: &str = "apiVersion: testudo.dev/v1alpha1\nkind: EncryptionPolicy\n\
    metadata:\n  name: cluster\nspec:\n  mode: Full\n  enforcement: Permissive\n";

fn quick() -> DirOptions {
    DirOptions {
        sync: false,
        ..DirOptions::default()
    }
}

fn store() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::with_options(dir.path().join("s"), quick()).unwrap();
    (dir, store)
}

fn file(store: &DirStore) -> PathBuf {
    store.inner.reader.file::<EncryptionPolicyKind>("cluster")
}

async fn get(store: &DirStore) -> Result<Option<EncryptionPolicy>, StoreError> {
    store.get::<EncryptionPolicyKind>("cluster").await
}

async fn told(watch: &mut Watch<EncryptionPolicyKind>) -> Event<EncryptionPolicyKind> {
    tokio::time::timeout(Duration::from_secs(5), watch.next())
        .await
        .expect("nothing was told")
        .unwrap()
}

#[tokio::test]
async fn it_conforms() {
    let (_dir, store) = store();
    assert_eq!(crate::conformance::run(store.clone()).await, Ok(()));
    assert_eq!(store.problems().unwrap(), []);
}

#[tokio::test]
async fn a_node_asks_and_is_answered() {
    let (_dir, store) = store();
    crate::tokens::ensure(&store, &testudo_model::NodeName::new("n1").unwrap()).unwrap();
    let node = DirStore::with_options(store.root(), quick()).unwrap();
    let case = crate::conformance::requests::Case {
        node: "n1",
        requests: ["one", "two"],
        certificate: "a certificate",
    };
    let done = crate::conformance::requests::run(&node, &store, &case).await;
    assert_eq!(done, Ok(()));
}

#[tokio::test]
async fn two_handles_on_one_directory_lose_nothing() {
    let (_dir, one) = store();
    let two = DirStore::with_options(one.root(), quick()).unwrap();
    let spec = EncryptionPolicySpec::default();
    one.create(EncryptionPolicy::new("cluster", spec))
        .await
        .unwrap();
    let count = |store: DirStore| async move {
        for _ in 0..100 {
            loop {
                let done =
                    crate::change_status::<_, EncryptionPolicyKind>(&store, "cluster", |_, s| {
                        s.rollout += 1;
                    })
                    .await;
                match done {
                    Err(e) if e.is_conflict() => {}
                    done => break done.map(|_| ()),
                }
            }
            .unwrap();
        }
    };
    let tasks = [one.clone(), two.clone()].map(|s| tokio::spawn(count(s)));
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(get(&two).await.unwrap().unwrap().status.rollout, 200);
}

#[tokio::test]
async fn the_last_good_version_goes_on_until_the_file_is_mended_or_deleted() {
    let (_dir, store) = store();
    std::fs::write(file(&store), GOOD).unwrap();
    let good = get(&store).await.unwrap().unwrap();
    let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
    assert_eq!(told(&mut watch).await, Event::Added(good.clone()));
    assert_eq!(told(&mut watch).await, Event::Synced);

    std::fs::write(file(&store), GOOD.replace("Permissive", "Perm")).unwrap();
    let Event::Problem(problem) = told(&mut watch).await else {
        panic!("a problem was expected");
    };
    assert_eq!((problem.line, problem.column), (7, 16), "{problem}");
    assert_eq!(problem.name.as_deref(), Some("cluster"));
    assert_eq!(get(&store).await.unwrap().unwrap(), good);
    let listing = store.list::<EncryptionPolicyKind>().await.unwrap();
    assert_eq!(listing.items, std::slice::from_ref(&good));
    assert_eq!(listing.problems, std::slice::from_ref(&problem));
    // A status would be written over what someone is at work on.
    let mut status = good.clone();
    status.status.rollout = 1;
    let error = store.update_status(&status).await.unwrap_err();
    assert!(error.to_string().contains("cluster.yaml:7:16"), "{error}");

    std::fs::write(file(&store), GOOD.replace("Permissive", "Strict")).unwrap();
    assert_eq!(told(&mut watch).await, Event::Solved(problem));
    let Event::Modified(mended) = told(&mut watch).await else {
        panic!("a change was expected");
    };
    std::fs::write(file(&store), "").unwrap();
    assert!(matches!(told(&mut watch).await, Event::Problem(_)));
    std::fs::remove_file(file(&store)).unwrap();
    assert!(matches!(told(&mut watch).await, Event::Solved(_)));
    assert_eq!(told(&mut watch).await, Event::Deleted(mended));
    assert_eq!(get(&store).await.unwrap(), None);
}

#[tokio::test]
async fn what_was_never_good_is_an_error_and_not_an_absence() {
    let (_dir, store) = store();
    std::fs::write(file(&store), "spec: [").unwrap();
    let error = get(&store).await.unwrap_err().to_string();
    assert!(error.contains("cluster.yaml:1"), "{error}");
    let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
    assert!(matches!(told(&mut watch).await, Event::Problem(_)));
    assert_eq!(told(&mut watch).await, Event::Synced);
    // Applying is how to mend it.
    let spec = EncryptionPolicySpec::default();
    let applied = store.apply(EncryptionPolicy::new("cluster", spec)).await;
    assert_eq!(applied.unwrap().change, Change::Configured);
    assert!(matches!(told(&mut watch).await, Event::Solved(_)));
    assert!(matches!(told(&mut watch).await, Event::Added(_)));
}

#[tokio::test]
async fn an_editor_that_moves_the_file_away_for_a_moment_deletes_nothing() {
    let (_dir, store) = store();
    std::fs::write(file(&store), GOOD).unwrap();
    let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
    assert!(matches!(told(&mut watch).await, Event::Added(_)));
    assert_eq!(told(&mut watch).await, Event::Synced);
    std::fs::rename(file(&store), file(&store).with_extension("yaml~")).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    std::fs::write(file(&store), &GOOD[..40]).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    std::fs::write(file(&store), GOOD.replace("Full", "Disabled")).unwrap();
    let Event::Modified(object) = told(&mut watch).await else {
        panic!("a change was expected, and nothing else");
    };
    assert_eq!(object.spec.mode, Mode::Disabled);
}

#[tokio::test]
async fn a_folder_that_vanishes_deletes_nothing_and_is_followed_when_it_returns() {
    let (dir, store) = store();
    std::fs::write(file(&store), GOOD).unwrap();
    let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
    assert!(matches!(told(&mut watch).await, Event::Added(_)));
    assert_eq!(told(&mut watch).await, Event::Synced);
    std::fs::rename(store.root(), dir.path().join("away")).unwrap();
    assert!(matches!(told(&mut watch).await, Event::Problem(p) if p.name.is_none()));
    std::fs::rename(dir.path().join("away"), store.root()).unwrap();
    assert!(matches!(told(&mut watch).await, Event::Solved(_)));
    std::fs::write(file(&store), GOOD.replace("Full", "External")).unwrap();
    assert!(matches!(told(&mut watch).await, Event::Modified(_)));
}

#[tokio::test]
async fn leftovers_are_ignored_and_strays_are_told() {
    let (_dir, store) = store();
    let folder = store.inner.reader.folder::<EncryptionPolicyKind>();
    for name in [
        ".cluster.yaml.swp",
        ".#cluster.yaml",
        "#cluster.yaml#",
        "cluster.yaml~",
        "cluster.yaml.bak",
        "4913",
        ".cluster.yaml.1.2.testudo-tmp",
    ] {
        std::fs::write(folder.join(name), "rubbish: [").unwrap();
    }
    let listing = store.list::<EncryptionPolicyKind>().await.unwrap();
    assert!(listing.items.is_empty() && listing.problems.is_empty());
    std::fs::write(folder.join("cluster.yml"), GOOD).unwrap();
    std::fs::write(folder.join("Bad_Name.yaml"), GOOD).unwrap();
    std::fs::create_dir(folder.join("dir.yaml")).unwrap();
    std::fs::write(folder.join("big.yaml"), vec![b'#'; MAX_BYTES + 1]).unwrap();
    std::fs::write(folder.join("binary.yaml"), [0xff, 0xfe]).unwrap();
    std::fs::create_dir(store.root().join("pods")).unwrap();
    std::fs::write(store.root().join("pods/p.yaml"), GOOD).unwrap();
    let problems = store.problems().unwrap();
    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
    for word in [
        "rename it",
        "no object's",
        "not a regular file",
        "larger than",
        "not UTF-8",
        "no kind of object",
    ] {
        assert!(all.iter().any(|p| p.contains(word)), "{word}: {all:#?}");
    }
    assert_eq!(all.len(), 6, "{all:#?}");
}

#[tokio::test]
async fn a_hand_written_object_gets_versions_by_its_content() {
    let (_dir, store) = store();
    std::fs::write(file(&store), GOOD).unwrap();
    let first = get(&store).await.unwrap().unwrap();
    assert_eq!(first.metadata.generation, 1);
    std::fs::write(file(&store), GOOD.replace("Full", "External")).unwrap();
    let mut stale = first;
    stale.status.phase = Phase::Strict;
    assert!(store.update_status(&stale).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn files_can_be_read_by_all_and_secrets_by_none() {
    let (_dir, store) = store();
    let spec = EncryptionPolicySpec::default();
    store
        .create(EncryptionPolicy::new("cluster", spec))
        .await
        .unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&file(&store)), 0o644);
    assert_eq!(mode(store.secrets()), 0o700);
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    for place in [plain.clone(), plain.join("below"), "/proc/testudo".into()] {
        let error = DirStore::open(&place).err().unwrap().to_string();
        assert!(
            error.contains("--store") && !error.contains('\n'),
            "{error}"
        );
        assert!(error.contains(&*place.to_string_lossy()), "{error}");
    }
    let error = DirStore::open_read_only(dir.path().join("none")).err();
    assert!(error.unwrap().to_string().contains("there is no store"));
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    // Root may write anywhere.
    if !rustix::process::geteuid().is_root() {
        let error = DirStore::open(&closed).err().unwrap().to_string();
        assert!(error.contains("cannot be written"), "{error}");
    }
}

#[tokio::test]
async fn a_dead_writers_lock_holds_nobody_up_and_a_living_ones_does() {
    let (_dir, store) = store();
    let lock = store.inner.lock::<NodeEncryptionKind>().unwrap();
    let path = store
        .inner
        .reader
        .folder::<NodeEncryptionKind>()
        .join(".lock");
    let other = File::open(path).unwrap();
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(lock);
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
}
