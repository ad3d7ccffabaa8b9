use super::text::HEAD;
use super::*;
use crate::safe::Unusable;

const NOW: u64 = 1_800_000_000;

fn holder(name: &str, uid: &str) -> Holder {
    Holder {
        name: name.to_owned(),
        uid: uid.to_owned(),
    }
}

fn given(ca: &str, serial: u64, not_after: u64) -> Given {
    Given {
        ca: ca.to_owned(),
        serial: format!("{serial:032x}"),
        not_after,
        revoked: None,
    }
}

#[test]
fn a_node_that_was_seen_and_is_gone_is_found_whatever_its_name_is_now() {
    let mut register = Register::default();
    let (old, new) = (holder("n1", "u1"), holder("n1", "u2"));
    register.give(old.clone(), given("a", 1, NOW + 10)).unwrap();
    assert_eq!(register.missing(&BTreeSet::new()), [(old.clone(), false)]);
    let present = BTreeSet::from([old.clone()]);
    register.see(&present);
    assert!(register.missing(&present).is_empty());
    // Made anew under its name.
    let present = BTreeSet::from([new.clone()]);
    register.give(new.clone(), given("a", 2, NOW + 10)).unwrap();
    register.see(&present);
    assert_eq!(register.missing(&present), [(old.clone(), true)]);
    assert_eq!(register.revoke(&old, NOW), 1);
    assert!(register.missing(&present).is_empty());
    assert!(register.is_out(&old) && !register.is_out(&new));
    // It may come back, by a certificate of its own.
    register.give(old.clone(), given("b", 3, NOW + 10)).unwrap();
    assert!(!register.is_out(&old));
    assert_eq!(register.revoked_by("a", None).len(), 1);
    assert!(register.revoked_by("b", None).is_empty());
}

#[test]
fn what_has_ended_and_what_is_of_a_ca_that_is_gone_is_forgotten() {
    let mut register = Register::default();
    let n1 = holder("n1", "u1");
    for (ca, serial, not_after) in [("a", 1, NOW), ("a", 2, NOW + 10), ("b", 3, NOW + 10)] {
        let given = given(ca, serial, not_after);
        register.give(n1.clone(), given).unwrap();
    }
    register.revoke(&n1, NOW);
    let list = |ca: &str, named: &[u64]| {
        let serials = named.iter().map(|serial| format!("{serial:032x}"));
        (ca.to_owned(), serials.collect::<BTreeSet<String>>())
    };
    let ended = Some(NOW + MARGIN + 1);
    let both = BTreeMap::from([list("a", &[1, 2]), list("b", &[])]);
    // A clock that is not believed ends nothing.
    register.forget(None, &both);
    assert_eq!(register.revoked_by("a", None).len(), 2);
    // First the list ceases to name it, and then it is forgotten.
    assert_eq!(register.revoked_by("a", ended).len(), 1);
    register.forget(ended, &both);
    assert_eq!(register.serials_of("a").len(), 2);
    let both = BTreeMap::from([list("a", &[2]), list("b", &[])]);
    register.forget(ended, &both);
    assert_eq!(register.serials_of("a").len(), 1);
    register.forget(None, &BTreeMap::from([list("b", &[])]));
    assert_eq!(register.serials_of("a").len(), 0);
    register.forget(Some(NOW + MARGIN + 11), &both);
    assert_eq!(register, Register::default());
}

#[tokio::test]
async fn one_that_is_lost_is_not_replaced_by_an_empty_one_once_a_ca_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let safe = crate::DirSafe::open(&testudo_store::DirStore::open(dir.path()).unwrap());
    // The first start of all: it is made, and the next start finds it.
    let first = Kept::begin(&safe, false).await.unwrap();
    assert!(first.version().is_some());
    let mut kept = Kept::begin(&safe, true).await.unwrap();
    assert_eq!(kept.version(), first.version());
    let mut next = kept.register.clone();
    next.give(holder("n1", "u1"), given("a", 1, NOW)).unwrap();
    assert!(kept.put(&safe, next.clone()).await.unwrap());

    let file = dir.path().join("secrets/certificates");
    std::fs::remove_file(&file).unwrap();
    for error in [
        Kept::begin(&safe, true).await.err().unwrap(),
        kept.take_up(&safe).await.unwrap_err(),
    ] {
        let unusable = error.downcast::<Unusable>().unwrap();
        assert_eq!(unusable.reason, "RegisterMissing");
    }
    assert!(!file.exists());
    // Nothing that was known is forgotten.
    assert_eq!(kept.register, next);

    // On purpose, by hand.
    testudo_store::files::write_private(&file, HEAD.as_bytes()).unwrap();
    let empty = Kept::begin(&safe, true).await.unwrap();
    assert_eq!(empty.register, Register::default());
}

#[test]
fn it_is_bounded() {
    let mut register = Register::default();
    let one = holder("n1", "u1");
    for serial in 0..MOST_OF_ONE as u64 {
        register.give(one.clone(), given("a", serial, NOW)).unwrap();
    }
    let more = register.give(one.clone(), given("a", 99, NOW));
    assert_eq!(more, Err(Full::OfOne));
    // What the error names as the remedy works: the next CA signs for it.
    register.give(one, given("b", 100, NOW)).unwrap();
    let mut all = 0;
    let full = loop {
        let holder = holder(&format!("node-{:020}.example", all / 2), &"u".repeat(36));
        match register.give(holder.clone(), given(&"f".repeat(CA_DIGITS), all, NOW)) {
            Ok(()) => all += 1,
            Err(full) => break full,
        }
        register.revoke(&holder, NOW);
    };
    println!("{all} certificates of {} nodes", all / 2);
    assert_eq!(full, Full::InAll);
    // Each of 1,500 nodes gets one of the next CA all the same, and no second one; a new node gets none.
    let next = |node: u64| holder(&format!("node-{node:020}.example"), &"u".repeat(36));
    let of_next = |serial| given(&"e".repeat(CA_DIGITS), serial, NOW);
    for node in 0..1500 {
        register.give(next(node), of_next(node)).unwrap();
    }
    assert_eq!(register.give(next(0), of_next(9999)), Err(Full::InAll));
    let new = holder("new", "u");
    assert_eq!(register.give(new, of_next(9999)), Err(Full::InAll));
    let most = (0..all / 2).find_map(|node| register.give(next(1500 + node), of_next(node)).err());
    assert_eq!(most, Some(Full::InAll));
    let bytes = register.to_text().len() as u64;
    assert!(bytes < testudo_store::files::MAX_PRIVATE_BYTES, "{bytes}");
}

#[test]
fn a_node_that_loses_its_state_at_each_boot_gets_certificates_on_and_on() {
    let mut register = Register::default();
    let one = holder("n1", "u1");
    let other = holder("n2", "u2");
    register.give(other.clone(), given("a", 999, NOW)).unwrap();
    for boot in 0..MOST_EVER as u64 {
        register.give(one.clone(), given("a", boot, NOW)).unwrap();
        let shown = given("a", boot, NOW).serial;
        register.supersede(&one, "a", &shown, NOW);
        // What it shows and the last few stay good.
        for last in boot.saturating_sub(LAST as u64)..=boot {
            assert!(
                register.has(&one, &given("a", last, NOW)),
                "{last} at {boot}"
            );
        }
    }
    assert!(!register.is_out(&one));
    assert!(register.has(&other, &given("a", 999, NOW)));
    // What others show, or nobody has given, takes nothing back.
    let before = register.clone();
    assert_eq!(register.supersede(&one, "a", "77", NOW), 0);
    assert_eq!(
        register.supersede(&other, "a", &given("a", 5, NOW).serial, NOW),
        0
    );
    assert_eq!(register, before);
    let more = register.give(one.clone(), given("a", 7777, NOW));
    assert_eq!(more, Err(Full::Ever));
    let said = Full::Ever.to_string();
    assert!(said.contains("512") && !said.contains("64"), "{said}");
    register.give(one, given("b", 7777, NOW)).unwrap();
}

/// One whose agent asks and does not take what it gets has what it shows, and the last that it was given.
#[test]
fn a_node_that_takes_none_of_what_it_is_given_loses_no_more_than_that() {
    let mut register = Register::default();
    let one = holder("n1", "u1");
    let shown = given("a", 3, NOW);
    for serial in 0..MOST_EVER as u64 {
        let last = given("a", serial, NOW);
        register.give(one.clone(), last.clone()).unwrap();
        register.supersede(&one, "a", &shown.serial, NOW);
        assert!(serial < 3 || register.has(&one, &shown));
        assert!(register.has(&one, &last));
    }
    let good = register.entries[&one].given.iter();
    let good = good.filter(|given| given.revoked.is_none()).count();
    assert!(good < SUPERSEDED, "{good}");
}

#[test]
fn what_is_written_is_read_again_and_nothing_else() {
    let mut register = Register::default();
    register
        .give(holder("n1", "u1"), given("a", 1, NOW))
        .unwrap();
    register
        .give(holder("n2", "u2"), given("a", 2, NOW))
        .unwrap();
    register.revoke(&holder("n2", "u2"), NOW);
    register.see(&BTreeSet::from([holder("n1", "u1")]));
    let text = register.to_text();
    assert_eq!(Register::from_text(&text).unwrap(), register);
    for (broken, part) in [
        (text.replace("testudo-register 1", "x"), "does not begin"),
        (text.replace('!', "?"), "line 5"),
        (text.replace(&format!("{NOW:x}"), "x"), "line 3"),
        (format!("{HEAD}\nca a 01-1\n"), "of no node"),
        (text.replace(" seen", " heard"), "line 2"),
        (format!("{text}more\n"), "line 6"),
    ] {
        let error = Register::from_text(&broken).unwrap_err();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}
