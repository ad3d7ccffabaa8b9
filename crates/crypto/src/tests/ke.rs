//! Key exchange beyond the RFC's own vectors: MODP-2048, ML-KEM, roles.

use super::unhex;
use crate::{DangerousSeededRandom, KeError, KeMethod, KePrivate};

/// Exponents from SHA-512, powers by an independent implementation of
/// arbitrary-precision integers, over the prime from RFC 3526's formula.
const A: &str = "1f40fc92da241694750979ee6cf582f2d5d7d28e18335de05abc54d0560e0f5302860c652bf08d56";
const A_PUBLIC: &str = "01a0c93506687e280981f59621be54f89c5616dbb81237650b0e67f89c639ffdb271cd4c669d528f\
     e36bb13a7c63a77f6a0c217dbe6e60a1b5fadb207b8f730f1ebccecb7b518134ec59d5c58d77b577\
     3fbc4c7cfff713e3abec02219d799db458be03dfa4ce909f2a153e434937b76ef917f6b6603701e2\
     41ea12abf263c6c0b7cea7f0c607786cefd15680f3cef3e0109cddad6959845a223ad5562272d20c\
     0b4d2d71dc7bbe27a17171e939e389b0d29c192807138d2f24b3565e9f687f235c13f235cead9f66\
     206fa9ab85f60109f5d236b1abc7793d671472b833b5695c0b9e42dbae4274ece6e723f61462978b\
     3e43aaada017d3691e41de22b055bbf9";
const B: &str = "5267768822ee624d48fce15ec5ca79cbd602cb7f4c2157a516556991f22ef8c7b5ef7b18d1ff41c5";
const B_PUBLIC: &str = "ccf39d5243eb9f9a8e037c35c40385bb14736283b10b6ee288cf8b738bbd9525a4af2934a8e4a15f\
     c37f0f7ab05d001decf2bc43ae29352c171c2a5cbf14ca83b1ade6a3df386b093cc5eae7fa7f74a4\
     bcef66911ecec78991ae64f1dba70a089e021f9b994972f5825e8eae74d4fe6ec97824b1eda1d88b\
     48cc047057d025e12071f2f4fe880161b2dab4cea6d258288ed39bdf576f2a38f06a24dbb546c362\
     153738062b7b1f053585674f1859e4020638b77f8bbc6f78f36b00b592f8251ae20af6c360083324\
     2d0a8edccb865a0b8c4450af0690cb89282fdb012f94f98023c3c0627fb761f19daf6f16c7459df0\
     7d666609b1e7867a4ac027c77cc2d806";
const SHARED: &str = "99d678e02b9a86b95aca73432b779f887655a3addefa4e40d8ed7e60481d29dae4eb14620463ce02\
     00e77204edebfbb72f72648e168c9823affee66c2025fec25008306935e8e17475fff1c27f747d52\
     d3275546faedc227274e12d9fcfa2117760ded32d7298bff2951a16af65e2b36d7f4fda8cc67a206\
     27076909e5d7d1aaefbf5b7cc0687da3a6000c0147d49a4b5da58c884cdfda57fac376ffb6bfa0f4\
     0047b3bd4899615514e1ffbc886db9ba48c15ae745a9c554e569d160a999630a251a3f82c9066fe9\
     2bf7352ee2ea85d2a37823b643c646f7e4f3feaf9943c1489c57666dcef05c29055cccd008273023\
     32873f21cc62e8d5e9217a64e2b7209e";
/// A peer with which `A`'s secret begins with a zero byte.
const C_PUBLIC: &str = "c6898400f63d114d65b16912d65c534a3701b97ec441d844cb5781c6d6840d19996498e4befa3b7c\
     36af2f5c151db9804c33f1a2579abc32ca0e90e269dd4a44090dd1c030d6f878484ac7d6798b4c2f\
     847255e3e2e7e446983f11cca511340d9ee7073ed8a49cb2defd618b395f52789993db40e87ed319\
     8e7959aa7e864a64383b5fc151770c2007e90ae479b4f62e092ebffdaf15541c008504481736db2e\
     f1036bfd25d9a13a182dd2be8ec6c40e1ed35901a78d12c5620b4a545ce31aa8b857f574010f2908\
     6b44707124ebfc900278614e60fd3e6f0dd0db5197f98205ff0125cf7890ec590e57f7b5621de860\
     8b2d5103974bf32a96965b0d0b461c19";
const C_SHARED: &str = "003ac48b588f2ff0c4507c1a44272ebbf2321639431885da8ede197ee0b9feec4fe6c75c565328e2\
     d749d705b6700eed436306e07221ef0601442288e9a558f60b57b5ca0e3aab8cb780c9ba813a4a11\
     54f698d22088551feca61b7b24df054d5bb9d5c922e1013d9c617c7d9a6127627691451d32d4dbb0\
     5f43f8b6a6a65f89603732b0cd71a0bd57b69ffffcff1da151ae50d195bf0a971286752cabb6db13\
     e905b0d834e43e894f5e03f2ab685afd9a668c744c68652a0109cf2e2ef9329a65485b0b41a17fd1\
     ce1a8d7a3e269819da7314b621cc2b22c1094ebf70ef133ee4eac12e364a1cd4de1eb85356cc1854\
     02c93ee67fad04aa10784151610ab876";

fn modp(exponent: &str) -> KePrivate {
    KePrivate::from_scalar(KeMethod::Modp2048, &unhex(exponent)).expect("a good exponent")
}

fn modp_refuses(peer: &[u8]) {
    let unusable = KeError::Unusable(KeMethod::Modp2048);
    assert_eq!(modp(A).agree(peer).err(), Some(unusable));
}

#[test]
fn modp_2048_known_answers() {
    assert_eq!(modp(A).public(), unhex(A_PUBLIC));
    assert_eq!(modp(B).public(), unhex(B_PUBLIC));
    let shared = |x, y| modp(x).agree(&unhex(y)).ok().unwrap();
    assert_eq!(shared(A, B_PUBLIC).as_bytes(), unhex(SHARED));
    assert_eq!(shared(B, A_PUBLIC).as_bytes(), unhex(SHARED));
    // RFC 7296 section 2.14: the leading zero stays.
    let padded = shared(A, C_PUBLIC);
    assert_eq!(padded.as_bytes(), unhex(C_SHARED));
    assert_eq!((padded.len(), padded.as_bytes()[0]), (256, 0));
}

#[test]
fn modp_2048_refuses_degenerate_public_values() {
    let mut prime = unhex(
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74\
         020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437\
         4fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed\
         ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf05\
         98da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb\
         9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b\
         e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf695581718\
         3995497cea956ae515d2261898fa051015728e5a8aacaa68ffffffffffffffff",
    );
    modp_refuses(&[0; 256]);
    let mut one = [0; 256];
    one[255] = 1;
    modp_refuses(&one);
    modp_refuses(&prime);
    modp_refuses(&[0xff; 256]);
    prime[255] = 0xfe;
    modp_refuses(&prime);
    // p - 2 and 2 are the nearest good ones.
    prime[255] = 0xfd;
    assert!(modp(A).agree(&prime).is_ok());
    one[255] = 2;
    let two = modp(A).agree(&one).ok().unwrap();
    assert_eq!(two.as_bytes(), modp(A).public());
    // Exponents: zero and wrong lengths.
    for bad in [&[0; 40][..], &[1; 39], &[1; 41], &[]] {
        assert!(KePrivate::from_scalar(KeMethod::Modp2048, bad).is_none());
    }
}

#[test]
fn both_roles_end_with_one_secret() {
    for method in KeMethod::ALL {
        let mut random = DangerousSeededRandom::new(7);
        let private = KePrivate::generate(method, &mut random);
        assert_eq!(private.public().len(), method.public_len());
        let answer = method.respond(private.public(), &mut random).ok().unwrap();
        assert_eq!(answer.public.len(), method.response_len());
        assert_eq!(answer.secret.len(), method.secret_len());
        let secret = private.agree(&answer.public).ok().unwrap();
        assert!(secret == answer.secret, "{method:?}");
    }
}

#[test]
fn respond_refuses_wrong_lengths() {
    for method in KeMethod::ALL {
        let want = method.public_len();
        for got in [0, 1, want - 1, want + 1, 4000] {
            let error = method
                .respond(&vec![1; got], &mut DangerousSeededRandom::new(1))
                .err();
            assert_eq!(error, Some(KeError::Length { method, want, got }));
        }
    }
}

#[test]
fn ml_kem_refuses_unreduced_keys_and_hides_bad_ciphertexts() {
    for method in [KeMethod::MlKem768, KeMethod::MlKem1024] {
        let mut random = DangerousSeededRandom::new(1);
        // Every coefficient is 4095, and the modulus is 3329.
        let unreduced = vec![0xff; method.public_len()];
        let error = method.respond(&unreduced, &mut random).err();
        assert_eq!(error, Some(KeError::Unusable(method)));
        let private = KePrivate::generate(method, &mut random);
        let mut answer = method.respond(private.public(), &mut random).ok().unwrap();
        answer.public[0] ^= 1;
        let other = private.agree(&answer.public).ok().unwrap();
        assert!(other != answer.secret);
    }
}
