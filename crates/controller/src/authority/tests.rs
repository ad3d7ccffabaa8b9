use super::*;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use testudo_crypto::SystemRandom;
use testudo_pki::revocation_list_to_pem;
use testudo_store::{DirStore, files};

use crate::DirSafe;

const NOW: u64 = 1_800_000_000;

/// The futures of a directory's safe are ready at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.build().unwrap().block_on(future)
}

fn safe(dir: &Path) -> DirSafe {
    DirSafe::open(&DirStore::open(dir).unwrap())
}

/// As a controller does that has just started.
fn open(dir: &Path) -> anyhow::Result<Authority> {
    let safe = safe(dir);
    let options = CaOptions::default();
    let random = &mut SystemRandom::new();
    now(async {
        let _term = safe.lead().await?;
        Authority::open(&safe, &Register::default(), &options, None, NOW, random).await
    })
}

fn file(dir: &Path) -> PathBuf {
    dir.join("secrets/ca.pem")
}

#[test]
fn the_ca_is_made_once_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let mode = std::fs::metadata(file(dir.path())).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let second = open(dir.path()).unwrap();
    assert_eq!(first.ca.certificate(), second.ca.certificate());
    assert_eq!(second.bundle.len(), 1);
}

#[test]
fn a_damaged_or_open_ca_stops_the_controller_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    let path = file(dir.path());
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(format!("{error:#}").contains("ca.pem"), "{error:#}");
    assert_eq!(std::fs::read(&path).unwrap().len(), good.len() / 2);

    std::fs::write(&path, &good).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(format!("{error:#}").contains("chmod 0600"), "{error:#}");
}

#[test]
fn revocation_lists_are_read_and_a_strange_one_stops_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let path = file(dir.path());
    let good = std::fs::read(&path).unwrap();
    let with = |ca: &Ca| {
        let list = ca.revocation_list(&[], 1, NOW, NOW + 1000).unwrap();
        let block = testudo_pki::revocation_list_to_pem(&list);
        std::fs::write(&path, [good.as_slice(), block.as_bytes()].concat()).unwrap();
    };
    with(&first.ca);
    let read = open(dir.path()).unwrap();
    assert!(read.bundle.revocation_lists_to_pem().contains("X509 CRL"));

    with(&Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap());
    let error = open(dir.path()).err().unwrap();
    assert!(
        format!("{error:#}").contains("no CA of the bundle"),
        "{error:#}"
    );
}

#[test]
fn further_certificates_are_trusted_and_do_not_sign() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let other = Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap();
    let path = file(dir.path());
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(other.certificate_pem().as_bytes());
    std::fs::write(&path, &text).unwrap();
    let read = open(dir.path()).unwrap();
    assert_eq!(read.bundle.len(), 2);
    assert_eq!(read.ca.certificate(), first.ca.certificate());
}

fn try_step(dir: &Path, authority: &mut Authority, step: Step) -> anyhow::Result<bool> {
    let random = &mut SystemRandom::new();
    let options = CaOptions::default();
    now(authority.step(&safe(dir), step, &options, NOW, random))
}

fn step(dir: &Path, authority: &mut Authority, step: Step) {
    assert!(try_step(dir, authority, step).unwrap());
}

fn names(authority: &Authority) -> Vec<String> {
    authority.bundle.facts().map(|ca| ca.subject).collect()
}

fn keys(dir: &Path) -> usize {
    let text = std::fs::read(file(dir)).unwrap();
    testudo_pki::keys_from_pem(&text).unwrap().len()
}

/// After each step the file alone says where the rotation stands, and it is as private as before.
#[test]
fn each_step_is_one_write_from_which_a_killed_controller_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = open(dir.path()).unwrap();
    let old = authority.standing.signer.clone();
    let mut new = String::new();
    for (taken, phase, with_keys) in [
        (Step::Begin(1), CaPhase::Trusting, 2),
        (Step::Issue, CaPhase::Issuing, 2),
        (Step::Retire, CaPhase::Retiring, 1),
        (Step::Settle, CaPhase::Settled, 1),
    ] {
        step(dir.path(), &mut authority, taken);
        if taken == Step::Begin(1) {
            new = authority.standing.other.clone().unwrap();
            assert_ne!(new, old);
        }
        let again = open(dir.path()).unwrap();
        assert_eq!(again.standing, authority.standing);
        assert_eq!(again.standing.phase, phase);
        assert_eq!(again.ca.certificate(), authority.ca.certificate());
        assert_eq!(again.ca.facts().subject, again.standing.signer);
        let expected: Vec<&str> = again.standing.trusted().collect();
        assert_eq!(names(&again), expected, "{phase}");
        assert_eq!(keys(dir.path()), with_keys, "{phase}");
        let mode = std::fs::metadata(file(dir.path())).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        authority = again;
    }
    assert_eq!(names(&authority), [new]);
}

#[test]
fn a_rotation_is_taken_back_from_both_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = open(dir.path()).unwrap();
    let old = authority.ca.certificate().to_vec();
    step(dir.path(), &mut authority, Step::Begin(1));
    step(dir.path(), &mut authority, Step::Drop);
    assert_eq!((authority.bundle.len(), keys(dir.path())), (1, 1));
    step(dir.path(), &mut authority, Step::Settle);
    step(dir.path(), &mut authority, Step::Begin(2));
    step(dir.path(), &mut authority, Step::Issue);
    assert_ne!(authority.ca.certificate(), old);
    step(dir.path(), &mut authority, Step::TurnBack);
    assert_eq!(authority.ca.certificate(), old);
    assert_eq!((authority.bundle.len(), keys(dir.path())), (2, 2));
    step(dir.path(), &mut authority, Step::Retire);
    assert_eq!((authority.bundle.len(), keys(dir.path())), (1, 1));
    assert_eq!(authority.standing.rotation, 2);
}

/// What both CAs have revoked stays revoked while both are trusted; what somebody put into the file is
/// not lost, also when it was put there while the controller ran.
#[test]
fn revocation_lists_and_further_cas_outlive_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = open(dir.path()).unwrap();
    let append = |block: String| {
        let mut text = std::fs::read(file(dir.path())).unwrap();
        text.extend_from_slice(block.as_bytes());
        std::fs::write(file(dir.path()), text).unwrap();
    };
    let lists = |authority: &Authority| {
        let text = authority.bundle.revocation_lists_to_pem();
        text.matches("BEGIN X509 CRL").count()
    };
    let list = |ca: &Ca| revocation_list_to_pem(&ca.revocation_list(&[], 1, NOW, NOW + 9).unwrap());
    let random = &mut SystemRandom::new();
    let further = Ca::generate(&CaOptions::default(), NOW, random).unwrap();
    append(further.certificate_pem() + &list(&further));
    append(list(&authority.ca));
    step(dir.path(), &mut authority, Step::Begin(1));
    assert_eq!((authority.bundle.len(), lists(&authority)), (3, 2));
    append(list(authority.other.as_ref().unwrap()));
    step(dir.path(), &mut authority, Step::Issue);
    assert_eq!((authority.bundle.len(), lists(&authority)), (3, 3));
    step(dir.path(), &mut authority, Step::Retire);
    // A list goes with its CA.
    assert_eq!((authority.bundle.len(), lists(&authority)), (2, 2));
    step(dir.path(), &mut authority, Step::Settle);
    assert_eq!(names(&authority)[1], further.facts().subject);
}

#[test]
fn a_file_of_another_rotation_is_taken_up_and_nothing_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = open(dir.path()).unwrap();
    let backup = std::fs::read(file(dir.path())).unwrap();
    step(dir.path(), &mut authority, Step::Begin(1));
    std::fs::write(file(dir.path()), &backup).unwrap();
    let taken = try_step(dir.path(), &mut authority, Step::Issue).unwrap();
    assert!(!taken);
    assert_eq!(authority.standing.phase, CaPhase::Settled);
    assert_eq!(std::fs::read(file(dir.path())).unwrap(), backup);

    std::fs::remove_file(file(dir.path())).unwrap();
    let error = try_step(dir.path(), &mut authority, Step::Begin(1)).unwrap_err();
    assert!(format!("{error:#}").contains("restore"), "{error:#}");
}

/// The key of a CA that is gone is not on the disk any more, nor what a killed write left of it; a copy
/// that somebody keeps is his own.
#[test]
fn what_stood_in_the_file_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = open(dir.path()).unwrap();
    let mut before = File::open(file(dir.path())).unwrap();
    step(dir.path(), &mut authority, Step::Begin(1));
    let mut left = Vec::new();
    std::io::Read::read_to_end(&mut before, &mut left).unwrap();
    assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0));

    let copy = dir.path().join("backup");
    std::fs::hard_link(file(dir.path()), &copy).unwrap();
    step(dir.path(), &mut authority, Step::Drop);
    let copied = std::fs::read(&copy).unwrap();
    assert_eq!(testudo_pki::keys_from_pem(&copied).unwrap().len(), 2);

    let part = dir
        .path()
        .join("secrets")
        .join(format!(".ca.pem.1.0{}", files::TEMPORARY));
    std::fs::write(&part, "PRIVATE KEY").unwrap();
    open(dir.path()).unwrap();
    assert!(!part.exists() && copy.exists());
}

#[test]
fn keys_that_belong_to_nothing_stop_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    let good = std::fs::read(file(dir.path())).unwrap();
    let random = &mut SystemRandom::new();
    let mut made = || Ca::generate(&CaOptions::default(), NOW, random).unwrap();
    let (one, two) = (made(), made());
    let text = |ca: &Ca| ca.key_pem().unwrap().as_bytes().to_vec();
    for (more, part) in [
        (text(&one), "without a certificate"),
        (
            [one.certificate_pem().into_bytes(), text(&one)].concat(),
            "remove the key",
        ),
        (
            [
                one.certificate_pem().into_bytes(),
                text(&one),
                two.certificate_pem().into_bytes(),
                text(&two),
            ]
            .concat(),
            "more than two",
        ),
    ] {
        std::fs::write(file(dir.path()), [good.clone(), more].concat()).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}
