//! When to ask for a new certificate: a pure function of times.

use testudo_crypto::sha256;

use crate::CertificateTimes;

/// When certificates are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalPolicy {
    /// Age in seconds at which a certificate is to be replaced.
    pub renew_after: u64,
    /// Seconds by which this node renews earlier than others, so that they do not all ask at
    /// once.
    pub earlier: u64,
}

impl RenewalPolicy {
    /// The policy of one node: it renews up to a twentieth of `renew_after` earlier, by a share
    /// that follows from its UID and is the same at every restart.
    pub fn for_node(renew_after: u64, uid: &str) -> Self {
        let digest = sha256(&[b"testudo renewal", uid.as_bytes()]);
        let share = u64::from(u16::from_be_bytes([digest[0], digest[1]]));
        let span = renew_after / 20;
        Self {
            renew_after,
            earlier: (u128::from(span) * u128::from(share) / 65_536) as u64,
        }
    }
}

/// What is to be done about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing before this time (seconds since 1970).
    NotBefore(u64),
    /// Ask for a new one; it has been due since this time.
    Due(u64),
    /// It ended at this time: ask for a new one, peers refuse this one.
    Expired(u64),
}

/// Decides whether a certificate is to be renewed at `now` (seconds since 1970).
///
/// A certificate that lives shorter than `renew_after` (an issuer near its own end cuts lifetimes
/// short) is renewed at nine tenths of its life.
pub fn renewal(times: &CertificateTimes, policy: &RenewalPolicy, now: u64) -> Renewal {
    if now > times.not_after {
        return Renewal::Expired(times.not_after);
    }
    let life = times.not_after.saturating_sub(times.not_before);
    let latest = life / 10 * 9;
    let age = policy
        .renew_after
        .saturating_sub(policy.earlier)
        .min(latest);
    let due = times.not_before.saturating_add(age);
    if now >= due {
        Renewal::Due(due)
    } else {
        Renewal::NotBefore(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: u64 = 365 * 24 * 3600;

    fn five_years() -> CertificateTimes {
        CertificateTimes {
            not_before: 1_000,
            not_after: 1_000 + 5 * YEAR,
        }
    }

    #[test]
    fn the_default_renews_after_four_and_a_half_years() {
        let policy = RenewalPolicy {
            renew_after: YEAR * 9 / 2,
            earlier: 0,
        };
        let due = 1_000 + YEAR * 9 / 2;
        let at = |now| renewal(&five_years(), &policy, now);
        assert_eq!(at(0), Renewal::NotBefore(due));
        assert_eq!(at(due - 1), Renewal::NotBefore(due));
        assert_eq!(at(due), Renewal::Due(due));
        assert_eq!(at(1_000 + 5 * YEAR), Renewal::Due(due));
        assert_eq!(at(1_001 + 5 * YEAR), Renewal::Expired(1_000 + 5 * YEAR));
    }

    #[test]
    fn a_short_certificate_is_renewed_in_its_own_life() {
        let times = CertificateTimes {
            not_before: 0,
            not_after: 3_600,
        };
        let policy = RenewalPolicy::for_node(YEAR, "u1");
        assert_eq!(renewal(&times, &policy, 0), Renewal::NotBefore(3_240));
        assert_eq!(renewal(&times, &policy, 3_240), Renewal::Due(3_240));
    }

    #[test]
    fn nodes_do_not_all_renew_at_once() {
        let mut shares: Vec<u64> = (0..100)
            .map(|i| RenewalPolicy::for_node(YEAR, &format!("uid-{i}")).earlier)
            .collect();
        assert!(shares.iter().all(|s| *s <= YEAR / 20));
        shares.sort_unstable();
        shares.dedup();
        assert!(shares.len() > 90);
    }

    #[test]
    fn nonsense_times_do_not_panic() {
        let times = CertificateTimes {
            not_before: u64::MAX,
            not_after: 0,
        };
        let policy = RenewalPolicy::for_node(u64::MAX, "u");
        renewal(&times, &policy, u64::MAX);
        renewal(&times, &policy, 0);
    }
}
