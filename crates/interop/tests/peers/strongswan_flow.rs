//! strongSwan: rekeys under a flow of packets, each of which must be answered.

use std::time::Duration;

use crate::alike::{Tell, established, established_with};
use crate::charon::{Told, on_charon};
use crate::ours::Us;
use crate::wanted::Wanted;

/// Until so many rekeys of children and IKE SAs are over; none of the packets lost.
fn flows(us: &mut Us, children: usize, ikes: usize) {
    let (sent, lost) = us.flow("rekeys", |us| {
        us.made.len() > children && us.ups.len() > ikes
    });
    assert_eq!(lost, Vec::<u16>::new(), "of {sent}: {}", us.story());
    assert_eq!(us.failures, []);
}

/// charon's lifetimes are a few seconds.
#[test]
fn charon_rekeys_and_nothing_is_lost() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let mut told = Told::by(&wanted);
            // Not both at the same moment: charon forgets the child's rekey then.
            told.connection = "rekey_time = 7s\n rand_time = 0s\n over_time = 60s\n".into();
            told.child = "rekey_time = 2s\n rand_time = 0s\n life_time = 60s\n".into();
            let (_charon, mut us) = established(&wanted, told);
            flows(&mut us, 4, 1);
        }
    });
}

/// Our lifetimes are a few seconds.
#[test]
fn we_rekey_and_nothing_is_lost() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let (_charon, mut us) = established_with(&wanted, Told::by(&wanted), |config| {
                // They end hard a quarter later: time enough for an exchange on a busy machine.
                config.child_lifetime = Duration::from_secs(4);
                config.ike_lifetime = Duration::from_secs(7);
            });
            flows(&mut us, 3, 1);
        }
    });
}

/// Both have the same lifetimes: rekeys cross now and then.
#[test]
fn both_rekey_and_nothing_is_lost() {
    on_charon(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.connection = "rekey_time = 4s\n rand_time = 0s\n over_time = 60s\n".into();
        told.child = "rekey_time = 3s\n rand_time = 0s\n life_time = 60s\n".into();
        let (_charon, mut us) = established_with(&wanted, told, |config| {
            config.child_lifetime = Duration::from_secs(3);
            config.ike_lifetime = Duration::from_secs(6);
            config.jitter_percent = 0;
        });
        let (sent, lost) = us.flow("rekeys", |us| us.made.len() > 4 && us.ups.len() > 2);
        assert_eq!(lost, Vec::<u16>::new(), "of {sent}: {}", us.story());
    });
}
