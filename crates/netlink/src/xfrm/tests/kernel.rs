//! Against this machine's own kernel: all have policies, some have ESP.

use std::os::fd::AsFd;

use super::super::*;
use super::{keys, sample_policy, sample_sa};
use crate::run_in_netns;
use crate::tests::private_netns;

/// What waits at a monitor now.
fn heard(monitor: &mut XfrmMonitor) -> Vec<XfrmNotice> {
    let mut all = Vec::new();
    loop {
        match monitor.read().unwrap() {
            XfrmHeard::Notices(notices) => all.extend(notices),
            XfrmHeard::Nothing => return all,
            XfrmHeard::Overrun => panic!("overrun"),
        }
    }
}

#[test]
fn this_kernel_keeps_policies_as_they_were_written_and_tells_of_them() {
    let Some(netns) = private_netns() else { return };
    let mut one = Xfrm::open_in(netns.as_fd()).unwrap();
    let mut two = Xfrm::open_in(netns.as_fd()).unwrap();
    let mut monitor = run_in_netns(netns.as_fd(), XfrmMonitor::open)
        .unwrap()
        .unwrap();
    assert_ne!(one.port(), two.port());
    let mut all = Vec::new();
    for direction in [
        XfrmDirection::In,
        XfrmDirection::Out,
        XfrmDirection::Forward,
    ] {
        for v6 in [false, true] {
            all.push(sample_policy(direction, v6, 0xabcd));
        }
    }
    let block = XfrmPolicy {
        action: XfrmAction::Block,
        selector: XfrmSelector {
            source: "0.0.0.0/0".parse().unwrap(),
            destination: "0.0.0.0/0".parse().unwrap(),
            ..all[0].selector
        },
        priority: 58_750,
        mark: (5, 0xff),
        ..all[0].clone()
    };
    all.push(block);
    for policy in &all {
        one.add_policy(policy).unwrap();
        let told = XfrmNotice {
            port: one.port(),
            event: XfrmEvent::PolicySet(policy.clone()),
        };
        assert_eq!(heard(&mut monitor), [told]);
        assert_eq!(one.policy(&policy.key()).unwrap().as_ref(), Some(policy));
        let error = two.add_policy(policy).unwrap_err();
        assert!(error.is_exists(), "{error}");
    }
    let mut listed = two.policies().unwrap();
    listed.sort();
    all.sort();
    assert_eq!(listed, all);

    let mut changed = all[0].clone();
    changed.templates[0].spi = 0x1234;
    two.update_policy(&changed).unwrap();
    assert_eq!(one.policy(&changed.key()).unwrap(), Some(changed.clone()));
    two.delete_policy(&changed.key()).unwrap();
    let deleted = XfrmNotice {
        port: two.port(),
        event: XfrmEvent::PolicyDeleted(changed.key()),
    };
    assert_eq!(heard(&mut monitor).last(), Some(&deleted));
    let error = two.delete_policy(&changed.key()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(one.policy(&changed.key()).unwrap(), None);
    assert_eq!(one.policies().unwrap().len(), all.len() - 1);
}

#[test]
fn sas_of_a_kernel_are_found_removed_and_missing_in_words() {
    let Some(netns) = private_netns() else { return };
    let mut xfrm = Xfrm::open_in(netns.as_fd()).unwrap();
    let sa = sample_sa();
    assert!(xfrm.sa(&sa.id).unwrap().is_none());
    assert!(xfrm.delete_sa(&sa.id).unwrap_err().is_not_found());
    match xfrm.add_sa(&sa) {
        Ok(()) => {
            let read = xfrm.sa(&sa.id).unwrap().unwrap();
            assert_eq!(keys(&read.sa.algorithm), [&[7; 36][..]]);
            assert_eq!(xfrm.sas(|sa| Some(sa.sa.id)).unwrap(), [sa.id]);
            xfrm.delete_sa(&sa.id).unwrap();
        }
        // A kernel without ESP, or without GCM.
        Err(error) => {
            let missing = [libc::EPROTONOSUPPORT, libc::ENOSYS].map(Some);
            assert!(missing.contains(&error.errno()), "{error}");
            let text = error.to_string();
            assert!(
                text.starts_with("add SA 0xc0ffee01 to 192.0.2.2: "),
                "{text}"
            );
        }
    }
    assert_eq!(xfrm.sas(|sa| Some(sa.sa.id)).unwrap(), []);
}

/// L71: a full buffer is one value to act on, and what comes after it is heard again.
#[test]
fn an_overrun_is_told_once_and_hearing_goes_on() {
    let Some(netns) = private_netns() else { return };
    let mut xfrm = Xfrm::open_in(netns.as_fd()).unwrap();
    let small = || XfrmMonitor::with_buffer(4096);
    let mut monitor = run_in_netns(netns.as_fd(), small).unwrap().unwrap();
    let policy = sample_policy(XfrmDirection::Out, false, 1);
    for _ in 0..200 {
        xfrm.update_policy(&policy).unwrap();
    }
    let mut overruns = 0;
    loop {
        match monitor.read().unwrap() {
            XfrmHeard::Overrun => overruns += 1,
            XfrmHeard::Notices(_) => {}
            XfrmHeard::Nothing => break,
        }
    }
    assert_eq!(overruns, 1);
    xfrm.delete_policy(&policy.key()).unwrap();
    let deleted = XfrmEvent::PolicyDeleted(policy.key());
    assert_eq!(heard(&mut monitor).pop().map(|n| n.event), Some(deleted));
}
