//! The key schedule (RFC 7296, 2.13, 2.14, 2.17, 2.18) and what is sealed with it.

use testudo_crypto::{Cipher, CipherKey, KeMethod, Prf, SecretBytes};
use testudo_wire::ike::EncryptedLayout;

use crate::addke::Rounds;
use crate::error::Fault;
use crate::event::DangerIkeKeys;

/// The algorithms of an IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) cipher: Cipher,
    pub(crate) prf: Prf,
    pub(crate) ke: KeMethod,
    /// The key exchanges after it (RFC 9370).
    pub(crate) additional: Rounds,
}

impl Suite {
    /// For people and status.
    pub(crate) fn name(&self) -> String {
        let cipher = self.cipher.name();
        let prf = match self.prf {
            Prf::HmacSha256 => "PRF_HMAC_SHA2_256",
            Prf::HmacSha384 => "PRF_HMAC_SHA2_384",
            Prf::HmacSha512 => "PRF_HMAC_SHA2_512",
        };
        let mut name = format!("{cipher}/{prf}");
        for ke in std::iter::once(self.ke).chain(self.additional.methods()) {
            name.push('/');
            name.push_str(ke_name(ke));
        }
        name
    }
}

/// A key exchange method, for people.
fn ke_name(method: KeMethod) -> &'static str {
    match method {
        KeMethod::Modp2048 => "MODP_2048",
        KeMethod::P256 => "ECP_256",
        KeMethod::P384 => "ECP_384",
        KeMethod::P521 => "ECP_521",
        KeMethod::X25519 => "CURVE_25519",
        KeMethod::MlKem768 => "ML_KEM_768",
        KeMethod::MlKem1024 => "ML_KEM_1024",
    }
}

/// Nonces and SPIs of an exchange that made an IKE SA.
pub(crate) struct Seeds<'a> {
    pub(crate) nonce_i: &'a [u8],
    pub(crate) nonce_r: &'a [u8],
    pub(crate) spi_i: u64,
    pub(crate) spi_r: u64,
}

/// SKEYSEED of a first IKE SA (RFC 7296, 2.14).
pub(crate) fn skeyseed(prf: Prf, seeds: &Seeds<'_>, shared: &SecretBytes) -> SecretBytes {
    let key = [seeds.nonce_i, seeds.nonce_r].concat();
    prf.compute(&key, &[shared.as_bytes()])
}

/// SKEYSEED of a rekeyed IKE SA, by the old SA's PRF and SK_d (RFC 7296, 2.18): prf (SK_d,
/// SK(0) | Ni | Nr | SK(1) | ... | SK(n)) of the `secrets` of all its key exchanges (RFC 9370,
/// 2.2.4).
pub(crate) fn skeyseed_rekey(
    old: &IkeKeys,
    seeds: &Seeds<'_>,
    secrets: &[SecretBytes],
) -> SecretBytes {
    let parts = mixed(secrets, seeds.nonce_i, seeds.nonce_r);
    old.suite.prf.compute(old.sk_d.as_bytes(), &parts)
}

/// SK(0) | Ni | Nr | SK(1) | ... | SK(n).
fn mixed<'a>(secrets: &'a [SecretBytes], nonce_i: &'a [u8], nonce_r: &'a [u8]) -> Vec<&'a [u8]> {
    let mut secrets = secrets.iter().map(SecretBytes::as_bytes);
    let first = secrets.next().unwrap_or_default();
    [first, nonce_i, nonce_r]
        .into_iter()
        .chain(secrets)
        .collect()
}

/// The keys of an IKE SA that a PPK changes.
pub(crate) struct Roots {
    sk_d: SecretBytes,
    /// SK_p of our side and of the peer's.
    pub(crate) sk_p: (SecretBytes, SecretBytes),
}

/// The keys of an IKE SA, seen from one end.
pub(crate) struct IkeKeys {
    pub(crate) suite: Suite,
    sk_d: SecretBytes,
    /// SK_e and SK_a of our side and of the peer's. What a cipher makes of its key is ten times as
    /// large, and an IKE SA has little to say: it is made anew for each message.
    seal: SecretBytes,
    open: SecretBytes,
    /// SK_p of our side and of the peer's.
    pub(crate) sk_p: (SecretBytes, SecretBytes),
    /// Kept only with `danger_export_keys`.
    export: Option<Box<DangerIkeKeys>>,
    /// The number of the next message, which its IV is made of: none is ever used twice with a
    /// key (RFC 5282, 3.1).
    next_iv: u64,
    /// The largest message in one datagram, in bytes; larger ones are cut (RFC 7383). `None` if
    /// the peer takes no fragments. A rekeyed IKE SA inherits it.
    pub(crate) largest: Option<usize>,
    /// A PPK is in them.
    pub(crate) ppk: bool,
}

impl IkeKeys {
    /// {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+ (SKEYSEED, Ni | Nr | SPIi |
    /// SPIr) (RFC 7296, 2.14). With an AEAD there is no SK_a, and SK_e has the salt at its end
    /// (RFC 5282, 7).
    pub(crate) fn derive(
        suite: Suite,
        skeyseed: &SecretBytes,
        seeds: &Seeds<'_>,
        initiator: bool,
        export: bool,
    ) -> Result<Self, Fault> {
        let prf_len = suite.prf.key_len();
        let (key_len, mac_len) = (suite.cipher.encryption_len(), suite.cipher.integrity_len());
        let stream = suite.prf.plus(
            skeyseed.as_bytes(),
            &[
                seeds.nonce_i,
                seeds.nonce_r,
                &seeds.spi_i.to_be_bytes(),
                &seeds.spi_r.to_be_bytes(),
            ],
            3 * prf_len + 2 * (key_len + mac_len),
        );
        let (sk_d, rest) = stream.as_bytes().split_at(prf_len);
        let (sk_ai, rest) = rest.split_at(mac_len);
        let (sk_ar, rest) = rest.split_at(mac_len);
        let (sk_ei, rest) = rest.split_at(key_len);
        let (sk_er, rest) = rest.split_at(key_len);
        let (sk_pi, sk_pr) = rest.split_at(prf_len);
        let key = |sk_e: &[u8], sk_a: &[u8]| SecretBytes::new([sk_e, sk_a].concat());
        let (ei, er) = (key(sk_ei, sk_ai), key(sk_er, sk_ar));
        let (pi, pr) = (SecretBytes::from(sk_pi), SecretBytes::from(sk_pr));
        let (seal, open) = if initiator { (ei, er) } else { (er, ei) };
        let sk_p = if initiator { (pi, pr) } else { (pr, pi) };
        Ok(Self {
            suite,
            sk_d: SecretBytes::from(sk_d),
            seal,
            open,
            sk_p,
            export: export.then(|| {
                Box::new(DangerIkeKeys {
                    cipher: suite.cipher,
                    sk_ei: sk_ei.into(),
                    sk_er: sk_er.into(),
                    sk_ai: sk_ai.into(),
                    sk_ar: sk_ar.into(),
                })
            }),
            next_iv: 0,
            largest: None,
            ppk: false,
        })
    }

    /// The keys after an additional key exchange: all of them anew from SKEYSEED(n) =
    /// prf (SK_d(n-1), SK(n) | Ni | Nr) (RFC 9370, 2.2.2). The IVs go on from where they are, so
    /// that none comes twice on an IKE SA.
    pub(crate) fn mix(
        &self,
        shared: SecretBytes,
        seeds: &Seeds<'_>,
        initiator: bool,
    ) -> Result<Self, Fault> {
        let seed = skeyseed_rekey(self, seeds, &[shared]);
        let export = self.export.is_some();
        let mut keys = Self::derive(self.suite, &seed, seeds, initiator, export)?;
        keys.largest = self.largest;
        keys.next_iv = self.next_iv;
        Ok(keys)
    }

    /// SK_d, SK_pi and SK_pr with a PPK: prf+ (PPK, SK_x') each (RFC 8784, 3). A rekeyed IKE SA
    /// inherits it by SK_d alone.
    pub(crate) fn with_ppk(&self, ppk: &SecretBytes) -> Roots {
        let mix = |old: &SecretBytes| {
            let len = old.as_bytes().len();
            self.suite.prf.plus(ppk.as_bytes(), &[old.as_bytes()], len)
        };
        Roots {
            sk_d: mix(&self.sk_d),
            sk_p: (mix(&self.sk_p.0), mix(&self.sk_p.1)),
        }
    }

    /// Goes on with those.
    pub(crate) fn set_roots(&mut self, roots: Roots) {
        self.sk_d = roots.sk_d;
        self.sk_p = roots.sk_p;
        self.ppk = true;
    }

    /// KEYMAT of a child: the key from initiator to responder, then the other (RFC 7296, 2.17),
    /// of the `secrets` of all its key exchanges, of which there may be none (RFC 9370, 2.2.4).
    pub(crate) fn child_keymat(
        &self,
        cipher: Cipher,
        secrets: &[SecretBytes],
        nonce_i: &[u8],
        nonce_r: &[u8],
    ) -> (SecretBytes, SecretBytes) {
        let len = cipher.keymat_len();
        let stream = self.suite.prf.plus(
            self.sk_d.as_bytes(),
            &mixed(secrets, nonce_i, nonce_r),
            2 * len,
        );
        let (to_responder, to_initiator) = stream.as_bytes().split_at(len);
        (to_responder.into(), to_initiator.into())
    }

    /// How the parts of an Encrypted payload lie, by the cipher.
    pub(crate) fn layout(&self) -> EncryptedLayout {
        EncryptedLayout {
            iv_len: self.suite.cipher.iv_len(),
            icv_len: self.suite.cipher.icv_len(),
            block_len: self.suite.cipher.block_len(),
        }
    }

    /// Encrypts `text` in place, and writes IV and ICV; the three are as long as
    /// [`Self::layout`] says. `before` is the message up to the IV.
    pub(crate) fn seal(
        &mut self,
        before: &[u8],
        iv: &mut [u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), Fault> {
        let number = self.next_iv;
        self.next_iv = number.checked_add(1).ok_or(Fault::Bug("no IV is left"))?;
        CipherKey::new(self.suite.cipher, self.seal.as_bytes())
            .map_err(|_| Fault::Bug("SK_e or SK_a has the wrong length"))?
            .seal_in_place(number, before, iv, text, icv)
            .map_err(|_| Fault::Bug("sealing failed"))
    }

    /// Checks, then decrypts in place; false if the message is not the peer's.
    pub(crate) fn open(&self, before: &[u8], iv: &[u8], text: &mut [u8], icv: &[u8]) -> bool {
        CipherKey::new(self.suite.cipher, self.open.as_bytes())
            .is_ok_and(|key| key.open_in_place(before, iv, text, icv).is_ok())
    }

    /// Forgets SK_pi and SK_pr: both ends have proven themselves.
    pub(crate) fn forget_proofs(&mut self) {
        self.sk_p = (SecretBytes::new(Vec::new()), SecretBytes::new(Vec::new()));
    }

    /// A copy for an event, where that was asked for.
    pub(crate) fn danger_export(&self) -> Option<DangerIkeKeys> {
        self.export.as_deref().cloned()
    }

    /// prf with the SA's PRF.
    pub(crate) fn prf(&self, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        self.suite.prf.compute(key, parts)
    }
}

#[cfg(test)]
mod tests {
    use testudo_crypto::Prf;

    use super::*;

    fn seeds() -> Seeds<'static> {
        Seeds {
            nonce_i: &[1; 32],
            nonce_r: &[2; 32],
            spi_i: 3,
            spi_r: 4,
        }
    }

    fn suite() -> Suite {
        Suite {
            cipher: Cipher::AES_256_GCM,
            prf: Prf::HmacSha256,
            ke: KeMethod::X25519,
            additional: Rounds::default(),
        }
    }

    /// prf+ written out as RFC 7296, 2.13 has it, to check the order of what is cut from it.
    fn stream(key: &[u8], seed: &[u8], len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last = Vec::new();
        for n in 1.. {
            let t = testudo_crypto::hmac_sha256(key, &[&last, seed, &[n]]);
            last = t.to_vec();
            out.extend(t);
            if out.len() >= len {
                break;
            }
        }
        out.truncate(len);
        out
    }

    #[test]
    fn the_schedule_is_that_of_the_rfc() {
        let shared = SecretBytes::new(vec![5; 32]);
        let seed = skeyseed(Prf::HmacSha256, &seeds(), &shared);
        let nonces = [[1u8; 32], [2; 32]].concat();
        let by_hand = testudo_crypto::hmac_sha256(&nonces, &[&[5; 32]]);
        assert_eq!(seed.as_bytes(), by_hand);
        let keys = IkeKeys::derive(suite(), &seed, &seeds(), true, true)
            .ok()
            .unwrap();
        let spis = [3u64.to_be_bytes(), 4u64.to_be_bytes()].concat();
        let all = stream(&by_hand, &[nonces, spis].concat(), 3 * 32 + 2 * 36);
        assert_eq!(keys.sk_d.as_bytes(), &all[..32]);
        let export = keys.danger_export().unwrap();
        assert_eq!(export.sk_ei.as_bytes(), &all[32..68]);
        assert_eq!(export.sk_er.as_bytes(), &all[68..104]);
        assert_eq!(keys.sk_p.0.as_bytes(), &all[104..136]);
        assert_eq!(keys.sk_p.1.as_bytes(), &all[136..168]);
        let secrets = [shared];
        let (out, back) = keys.child_keymat(Cipher::AES_256_GCM, &secrets, &[1; 32], &[2; 32]);
        let child = [vec![5u8; 32], vec![1; 32], vec![2; 32]].concat();
        let all = stream(keys.sk_d.as_bytes(), &child, 72);
        assert_eq!([out.as_bytes(), back.as_bytes()].concat(), all);
    }

    // RFC 9370, 2.2.2 and 2.2.4, written out.
    #[test]
    fn additional_exchanges_are_mixed_in_as_the_rfc_says() {
        let secret = |byte| SecretBytes::new(vec![byte; 32]);
        let seed = skeyseed(Prf::HmacSha256, &seeds(), &secret(5));
        let first = IkeKeys::derive(suite(), &seed, &seeds(), true, true)
            .ok()
            .unwrap();
        let second = first.mix(secret(6), &seeds(), true).ok().unwrap();
        let nonces = [[1u8; 32], [2; 32]].concat();
        let spis = [3u64.to_be_bytes(), 4u64.to_be_bytes()].concat();
        let by_hand = testudo_crypto::hmac_sha256(first.sk_d.as_bytes(), &[&[6; 32], &nonces]);
        let all = stream(&by_hand, &[&nonces[..], &spis].concat(), 3 * 32 + 2 * 36);
        assert_eq!(second.sk_d.as_bytes(), &all[..32]);
        let export = second.danger_export().unwrap();
        assert_eq!(export.sk_ei.as_bytes(), &all[32..68]);
        assert_eq!(export.sk_er.as_bytes(), &all[68..104]);
        assert_eq!(second.sk_p.0.as_bytes(), &all[104..136]);
        assert_eq!(second.sk_p.1.as_bytes(), &all[136..168]);

        let secrets = [secret(7), secret(8), secret(9)];
        let text = [&[7; 32][..], &nonces, &[8; 32], &[9; 32]].concat();
        let rekeyed = skeyseed_rekey(&second, &seeds(), &secrets);
        let by_hand = testudo_crypto::hmac_sha256(second.sk_d.as_bytes(), &[&text]);
        assert_eq!(rekeyed.as_bytes(), by_hand);
        let (out, back) = second.child_keymat(Cipher::AES_256_GCM, &secrets, &[1; 32], &[2; 32]);
        let all = stream(second.sk_d.as_bytes(), &text, 72);
        assert_eq!([out.as_bytes(), back.as_bytes()].concat(), all);
    }

    /// RFC 8784, 3, written out: each of three keys through prf+ once more, the others as they
    /// were.
    #[test]
    fn a_ppk_changes_what_it_must_and_no_more() {
        let shared = SecretBytes::new(vec![5; 32]);
        let seed = skeyseed(Prf::HmacSha256, &seeds(), &shared);
        for initiator in [true, false] {
            let derive = || {
                IkeKeys::derive(suite(), &seed, &seeds(), initiator, true)
                    .ok()
                    .unwrap()
            };
            let (old, mut new) = (derive(), derive());
            let ppk = SecretBytes::new(vec![9; 40]);
            new.set_roots(old.with_ppk(&ppk));
            let mixed = |key: &SecretBytes| stream(&[9; 40], key.as_bytes(), 32);
            assert_eq!(new.sk_d.as_bytes(), mixed(&old.sk_d));
            assert_eq!(new.sk_p.0.as_bytes(), mixed(&old.sk_p.0));
            assert_eq!(new.sk_p.1.as_bytes(), mixed(&old.sk_p.1));
            let (a, b) = (old.danger_export().unwrap(), new.danger_export().unwrap());
            assert_eq!(a.sk_ei.as_bytes(), b.sk_ei.as_bytes());
            assert_eq!(a.sk_er.as_bytes(), b.sk_er.as_bytes());
        }
    }

    /// With AES-CBC and an HMAC there are SK_ai and SK_ar, before SK_ei and SK_er (RFC 7296, 2.14),
    /// and a child's keying material has the cipher's key before the HMAC's (2.17).
    #[test]
    fn the_schedule_with_integrity_keys_is_that_of_the_rfc() {
        let cipher = Cipher::all().last().unwrap();
        assert_eq!(cipher.name(), "AES_CBC_128/HMAC_SHA2_512_256");
        let suite = Suite { cipher, ..suite() };
        let seed = SecretBytes::new(vec![9; 32]);
        let keys = IkeKeys::derive(suite, &seed, &seeds(), true, true)
            .ok()
            .unwrap();
        let input = [
            vec![1; 32],
            vec![2; 32],
            3u64.to_be_bytes().to_vec(),
            4u64.to_be_bytes().to_vec(),
        ]
        .concat();
        let all = stream(&[9; 32], &input, 3 * 32 + 2 * 64 + 2 * 16);
        let export = keys.danger_export().unwrap();
        let parts = [
            keys.sk_d.as_bytes(),
            export.sk_ai.as_bytes(),
            export.sk_ar.as_bytes(),
            export.sk_ei.as_bytes(),
            export.sk_er.as_bytes(),
            keys.sk_p.0.as_bytes(),
            keys.sk_p.1.as_bytes(),
        ];
        assert_eq!(parts.map(<[u8]>::len), [32, 64, 64, 16, 16, 32, 32]);
        assert_eq!(parts.concat(), all);
        let (out, back) = keys.child_keymat(cipher, &[], &[1; 32], &[2; 32]);
        assert_eq!((out.len(), back.len()), (80, 80));
        let layout = keys.layout();
        assert_eq!(
            (layout.iv_len, layout.icv_len, layout.block_len),
            (16, 32, 16)
        );
    }

    /// NIST's vector for the key derivation of IKEv2 with SHA-256 (SP 800-135, CAVS).
    #[test]
    fn the_schedule_is_that_of_nist() {
        let hex = |text: &str| -> Vec<u8> {
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            (0..text.len()).step_by(2).map(byte).collect()
        };
        let seeds = Seeds {
            nonce_i: &hex("3f302be1abcb28e1"),
            nonce_r: &hex("8c332ee006064c9b"),
            spi_i: 0x40da_c39e_1e1a_8640,
            spi_r: 0x8619_a1cf_9a6e_4c07,
        };
        let shared = "0f4d257d7a58fc4545c7d7a88119eee5d5c9690c5b4c989171d3abbfd99d1d29";
        let seed = skeyseed(Prf::HmacSha256, &seeds, &hex(shared).into());
        let want = "5f00d1bd2c58ec224b1e6b71fa0f19a1faa7a193952c444411b47c1a9d8ba6fe";
        assert_eq!(seed.as_bytes(), hex(want));
        let keys = IkeKeys::derive(suite(), &seed, &seeds, true, true)
            .ok()
            .unwrap();
        // The front of the keying material: SK_d, SK_ei (key and salt).
        let dkm = hex(
            "0b137d669b0947d7d026d593f0305ad401ff0c471357d695778a9c7f4b4869ec\
                       e98aca531188d16041b3bb936d2dbb3b4993a6e768a809160de45d0283f273a6\
                       cdf68543",
        );
        assert_eq!(keys.sk_d.as_bytes(), &dkm[..32]);
        assert_eq!(keys.danger_export().unwrap().sk_ei.as_bytes(), &dkm[32..]);
        let shared = "25f3b12d6f282739256e39bf54eda53b60ffcf379bb7bcc90c27b4c4c578616c";
        let seed = skeyseed_rekey(&keys, &seeds, &[hex(shared).into()]);
        let want = "2d63f6debc92048b4fef3889c4c99ca67d6496e0fac14a2bca9a2d6566ff2398";
        assert_eq!(seed.as_bytes(), hex(want));
    }

    // Lesson L23: no IV twice with a key.
    #[test]
    fn each_message_has_an_iv_of_its_own_and_the_other_end_reads_it() {
        let shared = SecretBytes::new(vec![5; 32]);
        let seed = skeyseed(Prf::HmacSha256, &seeds(), &shared);
        let end = |initiator| {
            IkeKeys::derive(suite(), &seed, &seeds(), initiator, false)
                .ok()
                .unwrap()
        };
        let (mut i, r) = (end(true), end(false));
        let mut ivs = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let (mut iv, mut text, mut icv) = ([0; 8], *b"text", [0; 16]);
            i.seal(b"aad", &mut iv, &mut text, &mut icv).ok().unwrap();
            assert!(ivs.insert(iv));
            let mut back = text;
            assert!(!i.open(b"aad", &iv, &mut back, &icv), "reflected");
            assert!(r.open(b"aad", &iv, &mut text, &icv));
            assert_eq!(&text, b"text");
        }
    }
}
