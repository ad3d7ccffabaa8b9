//! NIST's vectors for the key derivation of IKEv2 (SP 800-135, CAVS), as far as
//! they have a PRF known here.

use super::unhex;
use crate::Prf;

struct Vector {
    prf: Prf,
    nonce_i: &'static str,
    nonce_r: &'static str,
    spi_i: &'static str,
    spi_r: &'static str,
    secret: &'static str,
    secret_new: &'static str,
    skeyseed: &'static str,
    dkm: &'static str,
    skeyseed_rekey: &'static str,
}

const VECTORS: [Vector; 2] = [
    Vector {
        prf: Prf::HmacSha256,
        nonce_i: "3f302be1abcb28e1",
        nonce_r: "8c332ee006064c9b",
        spi_i: "40dac39e1e1a8640",
        spi_r: "8619a1cf9a6e4c07",
        secret: "0f4d257d7a58fc4545c7d7a88119eee5d5c9690c5b4c989171d3abbfd99d1d29",
        secret_new: "25f3b12d6f282739256e39bf54eda53b60ffcf379bb7bcc90c27b4c4c578616c",
        skeyseed: "5f00d1bd2c58ec224b1e6b71fa0f19a1faa7a193952c444411b47c1a9d8ba6fe",
        dkm: "0b137d669b0947d7d026d593f0305ad401ff0c471357d695778a9c7f4b4869ec\
e98aca531188d16041b3bb936d2dbb3b4993a6e768a809160de45d0283f273a6\
cdf6854379e31be72b8d3d1fa990cf9c5b015ca9f918a7df6253c958114a09d4\
e1c19bdcd4db14b29d98db1a74ad405c588662c14a04d0d36aa4ab55e90f8986\
d12d4aad",
        skeyseed_rekey: "2d63f6debc92048b4fef3889c4c99ca67d6496e0fac14a2bca9a2d6566ff2398",
    },
    Vector {
        prf: Prf::HmacSha384,
        nonce_i: "fd1b572a8e735591",
        nonce_r: "6013b0ef88dacd3d",
        spi_i: "2116ad07ce61f749",
        spi_r: "24880e55f11a65b7",
        secret: "d3288cd87565101e88fe3bad918f31939d8dd26ff1071f8b2d7f447524e58d7c",
        secret_new: "3358f620539473aee8d07e779764c4c6a9aabddc79a28e136b3bac021dbde44a",
        skeyseed: "69fe7a1ac94adaeb711295f5fe004b1a8d6a0b65d05692758ce8ad2f7a45f59d\
7d0b596f51f7dfcf3330061888f6a94f",
        dkm: "4f904c2025c90c817ea5ff9b662a6fdb445a73b57cdf09eacd379b95e1f03cac\
b04cd6deeda4f952191dd9bc1f7a9502471a648d74dc06d38112de48a42501f6\
b1a3ad55c2099cd9a648e5f17e5bf3e34bf9b5953decb768a34f875fe2b78dca\
0c2fcca81ec1a412006dfaed38fa06882e61f4c148105fb8e231fdb33c4d484c\
001721d4",
        skeyseed_rekey: "e0548c1682e13bce454026b3b1bdf42985b24e4e7408095a7c529de38c3d1fcb\
04c9fe6868042a34c9614c6c99e3fcea",
    },
];

#[test]
fn sp_800_135_ikev2() {
    for vector in VECTORS {
        let prf = vector.prf;
        let (ni, nr) = (unhex(vector.nonce_i), unhex(vector.nonce_r));
        let key = [ni.as_slice(), &nr].concat();
        let skeyseed = prf.compute(&key, &[&unhex(vector.secret)]);
        assert_eq!(skeyseed.as_bytes(), unhex(vector.skeyseed), "{prf:?}");
        let seed = [&ni[..], &nr, &unhex(vector.spi_i), &unhex(vector.spi_r)];
        let dkm = unhex(vector.dkm);
        for len in [dkm.len(), prf.output_len(), 15] {
            let ours = prf.plus(skeyseed.as_bytes(), &seed, len);
            assert_eq!(ours.as_bytes(), &dkm[..len], "{prf:?}");
        }
        // SK_d is the front of the keying material.
        let sk_d = &dkm[..prf.key_len()];
        let rekeyed = prf.compute(sk_d, &[&unhex(vector.secret_new), &ni, &nr]);
        assert_eq!(rekeyed.as_bytes(), unhex(vector.skeyseed_rekey), "{prf:?}");
    }
}
