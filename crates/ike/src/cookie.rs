//! Stateless cookies under load (RFC 7296, 2.6).

use std::net::SocketAddr;
use std::time::Duration;

use testudo_crypto::{Random, constant_time_eq, hmac_sha256};
use testudo_model::Monotonic;

/// How long a secret makes new cookies; cookies of the secret before are taken too.
const ROTATION: Duration = Duration::from_secs(60);

/// Makes and checks cookies: version | HMAC (secret, Ni | address | SPIi).
pub(crate) struct Cookies {
    secrets: [[u8; 32]; 2],
    version: u8,
    rotated: Option<Monotonic>,
}

impl Cookies {
    /// No secret yet: the first use makes one.
    pub(crate) fn new() -> Self {
        Self {
            secrets: [[0; 32]; 2],
            version: 0,
            rotated: None,
        }
    }

    fn rotate(&mut self, now: Monotonic, random: &mut dyn Random) {
        let due = self.rotated.is_none_or(|at| now.since(at) >= ROTATION);
        if !due {
            return;
        }
        self.secrets[1] = self.secrets[0];
        if self.rotated.is_none() {
            // The secret "before" the first one must not be guessable either.
            random.fill(&mut self.secrets[1]);
        }
        random.fill(&mut self.secrets[0]);
        self.version = self.version.wrapping_add(1);
        self.rotated = Some(now);
    }

    /// The cookie for a request.
    pub(crate) fn make(
        &mut self,
        now: Monotonic,
        random: &mut dyn Random,
        remote: SocketAddr,
        spi_i: u64,
        nonce: &[u8],
    ) -> Vec<u8> {
        self.rotate(now, random);
        cookie(&self.secrets[0], self.version, remote, spi_i, nonce)
    }

    /// Whether we made that cookie for such a request, lately.
    pub(crate) fn check(&self, remote: SocketAddr, spi_i: u64, nonce: &[u8], given: &[u8]) -> bool {
        let Some(&version) = given.first() else {
            return false;
        };
        let secret = match self.version.wrapping_sub(version) {
            0 => &self.secrets[0],
            1 => &self.secrets[1],
            _ => return false,
        };
        self.rotated.is_some()
            && constant_time_eq(&cookie(secret, version, remote, spi_i, nonce), given)
    }
}

fn cookie(secret: &[u8; 32], version: u8, remote: SocketAddr, spi_i: u64, nonce: &[u8]) -> Vec<u8> {
    let ip = match remote.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mac = hmac_sha256(
        secret,
        &[
            &[version],
            nonce,
            &ip,
            &remote.port().to_be_bytes(),
            &spi_i.to_be_bytes(),
        ],
    );
    let mut out = vec![version];
    out.extend(mac);
    out
}

#[cfg(test)]
mod tests {
    use testudo_crypto::DangerousSeededRandom;

    use super::*;

    #[test]
    fn a_cookie_is_good_for_its_request_and_two_rotations() {
        let mut random = DangerousSeededRandom::new(1);
        let mut cookies = Cookies::new();
        let at = |s| Monotonic(Duration::from_secs(s));
        let remote: SocketAddr = "10.0.0.1:500".parse().unwrap();
        // The clock may stand at 0 (lesson L25).
        let c = cookies.make(at(0), &mut random, remote, 7, b"nonce");
        assert!(cookies.check(remote, 7, b"nonce", &c));
        assert!(!cookies.check(remote, 8, b"nonce", &c));
        assert!(!cookies.check(remote, 7, b"other", &c));
        assert!(!cookies.check("10.0.0.2:500".parse().unwrap(), 7, b"nonce", &c));
        assert!(!cookies.check(remote, 7, b"nonce", &[]));
        cookies.make(at(61), &mut random, remote, 9, b"x");
        assert!(cookies.check(remote, 7, b"nonce", &c));
        cookies.make(at(122), &mut random, remote, 9, b"x");
        assert!(!cookies.check(remote, 7, b"nonce", &c));
    }
}
