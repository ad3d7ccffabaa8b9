//! The AES-GCM cases of draft-mcgrew-gcm-test-01, "Test Cases for the use of
//! GCM and GMAC in IPsec ESP"; the one with a 192-bit key is left out, as that
//! length is not offered. Each gives the ESP plaintext with its trailer and the
//! AAD, from which SPI, sequence number and ESN follow.

use testudo_crypto::{Aead, AeadKey, Cipher};

use crate::packet::low;
use crate::{
    DropReason, HEAD_ROOM, InboundParameters, InboundSa, OutboundParameters, OutboundSa,
    SoftLimits, sealed_len,
};

struct Case {
    key: &'static str,
    /// Salt and IV.
    nonce: &'static str,
    /// SPI and sequence number, of 64 bits with ESN.
    aad: &'static str,
    /// Payload, padding, pad length, next header.
    plain: &'static str,
    cipher: &'static str,
    icv: &'static str,
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let byte = |pair: &[u32]| (pair[0] * 16 + pair[1]) as u8;
    digits.chunks(2).map(byte).collect()
}

#[test]
fn sealing_and_opening_match_the_draft() {
    for (index, case) in CASES.iter().enumerate() {
        check(index, case);
    }
}

fn check(index: usize, case: &Case) {
    let (nonce, aad, plain) = (unhex(case.nonce), unhex(case.aad), unhex(case.plain));
    let keymat = [unhex(case.key), nonce[..4].to_vec()].concat();
    let iv: [u8; 8] = nonce[4..].try_into().unwrap();
    let (cipher, aead) = match keymat.len() {
        20 => (Cipher::AES_128_GCM, Aead::Aes128Gcm16),
        _ => (Cipher::AES_256_GCM, Aead::Aes256Gcm16),
    };
    let key = AeadKey::new(aead, &keymat).unwrap();
    let spi = u32::from_be_bytes(aad[..4].try_into().unwrap());
    let sequence = aad[4..].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let esn = aad.len() == 12;

    let [rest @ .., pad_len, next_header] = &plain[..] else {
        panic!("case {index} has no trailer");
    };
    let payload = &rest[..rest.len() - usize::from(*pad_len)];
    let expected = [
        &spi.to_be_bytes()[..],
        &low(sequence).to_be_bytes(),
        &iv,
        &unhex(case.cipher),
        &unhex(case.icv),
    ]
    .concat();
    assert_eq!(sealed_len(payload.len()), expected.len(), "case {index}");

    let out = OutboundSa::new(&OutboundParameters {
        spi,
        cipher,
        keymat: &keymat,
        esn,
        limits: SoftLimits::NONE,
    })
    .unwrap();
    let mut packet = vec![0xee; expected.len()];
    packet[HEAD_ROOM..HEAD_ROOM + payload.len()].copy_from_slice(payload);
    out.write(
        &key,
        &mut packet,
        payload.len(),
        0,
        *next_header,
        sequence,
        iv,
    );
    assert_eq!(packet, expected, "case {index}");

    let parameters = InboundParameters {
        spi,
        cipher,
        keymat: &keymat,
        esn,
        replay_window: 0,
    };
    let inbound = InboundSa::starting_after(&parameters, sequence - 1).unwrap();
    let opened = inbound.open(&mut packet).unwrap();
    assert_eq!(opened.next_header, *next_header, "case {index}");
    assert_eq!(opened.sequence, sequence, "case {index}");
    assert_eq!(&packet[opened.payload], payload, "case {index}");
    assert_eq!(
        inbound.open(&mut expected.clone()),
        Err(DropReason::Replayed),
        "case {index}"
    );
}

const CASES: &[Case] = &[
    Case {
        key: "4c80cdefbb5d10da906ac73c3613a634",
        nonce: "2e443b684956ed7e3b244cfe",
        aad: "000043218765432100000000",
        plain: "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000
                045f736970045f756470037369700963796265726369747902646b000021000101020201",
        cipher: "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f
                14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732",
        icv: "459018148f6cbe722fd04796562dfdb4",
    },
    Case {
        key: "feffe9928665731c6d6a8f9467308308",
        nonce: "cafebabefacedbaddecaf888",
        aad: "0000a5f80000000a",
        plain: "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d0010000010000
                00000000037369700963796265726369747902646b00000100010001",
        cipher: "deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827
                c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1",
        icv: "83b70d3aa8bc6ee4c309e9d85a41ad4a",
    },
    Case {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        nonce: "112233440102030405060708",
        aad: "4a2cbfe300000002",
        plain: "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee00000000070024000
                20bf0000020405b40101040201020201",
        cipher: "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a6379
                85771d347f0545659f14e99def842d8e",
        icv: "b335f4eecfdbf831824b4c4915956c96",
    },
    Case {
        key: "00000000000000000000000000000000",
        nonce: "000000000000000000000000",
        aad: "0000000000000001",
        plain: "4500003c99c500008001cb7a40679318010101010800075c020044006162636465666768
                696a6b6c6d6e6f707172737475767761626364656667686901020201",
        cipher: "4688daf2f973a392732909c331d56d60f694abaa414b5e7ff5fdcdfff5e9a28445647649
                2719ffb64de7d9dca1e1d894bc3bd57873ed4d181d19d4d5c8c18af3",
        icv: "f821d496eeb096e98ad2b69e4799c71d",
    },
    Case {
        key: "3de09874b388e6491988d0c3607eae1f",
        nonce: "57690e434e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plain: "4500003c99c300008001cb7c40679318010101010800085c020043006162636465666768
                696a6b6c6d6e6f707172737475767761626364656667686901020201",
        cipher: "fba2caa4853cf9f0f22cb10d86dd83b0fec75691cf1a04b00d1138ec9c35791765acbd87
                01ad79845bf9fe3fba487bc91755e6662b4c8d0d1f5e22739530320a",
        icv: "e0d731cc978ecafaeae88f00e80d6e48",
    },
    Case {
        key: "3de09874b388e6491988d0c3607eae1f",
        nonce: "57690e434e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plain: "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
        cipher: "fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed",
        icv: "369f071f35e034be95f112e4e7d05d35",
    },
    Case {
        key: "abbccddef00112233445566778899aab",
        nonce: "decaf888cafedebaceface74",
        aad: "000001000000000000000001",
        plain: "4500004933ba00007f119106c3fb1d10c2b1d326c02831ce0035dd7b800302d500004e20
                001e8c18d75b81dc91baa0476b91b924b280389d92c963bac046ec959b6266c04722b149
                23010101",
        cipher: "18a6fd42f72cbf4ab2a2ea901f73d814e3e7f243d95412e1c349c1d2fbec168f9190feeb
                af2cb01984e65863965d7472b79da345e0e780191f0d2f0e0f496c226f2127b27db35724
                e7845d68",
        icv: "651f57e65f354f75ff17015769623436",
    },
    Case {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        nonce: "73616c74616e640169766563",
        aad: "17405e67156f3126dd0db99b",
        plain: "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f64
                6d540001",
        cipher: "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31c
                e673119e",
        icv: "451626c2415771e3b7eebca614c89b35",
    },
    Case {
        key: "3de09874b388e6491988d0c3607eae1f",
        nonce: "57690e434e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plain: "45000049333e00007f119182c3fb1d10c2b1d326c02831ce0035cb458003025b000001e0
                001e8c18d65759d52284a0352c71475c8880391c764d6e5ee0496b325ae270c038994939
                15010101",
        cipher: "fba2cad12fc1f9f00d3cebf305410db83d7784b607323d220f24b0a97d54182800cadb0f
                68d99ef0e0c0c89ae9bea8884e52d65bc1afd0740f742444747b5b39ab533163aad4550e
                e5160975",
        icv: "cdb608c5769189609763b8e18caa81e2",
    },
    Case {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        nonce: "73616c74616e640169766563",
        aad: "17405e67156f3126dd0db99b",
        plain: "636973636f0172756c657301746865016e6574776501646566696e650174686574656368
                6e6f6c6f67696573017468617477696c6c01646566696e65746f6d6f72726f7701020201",
        cipher: "d4b7ed86a1777f2ea13d6973d324c69e7b43f826fb56831226508bebd2dceb18d0a6df10
                e5487df074113e14c641024e3e6773d91a62ee429b043a10e3efe6b012a49363412364f8",
        icv: "c0cac587f249e56b11e24f30e44ccc76",
    },
    Case {
        key: "7d773d00c144c525ac619d18c84a3f47",
        nonce: "d966426743457e9182443bc6",
        aad: "335467aeffffffff",
        plain: "01020201",
        cipher: "437f866b",
        icv: "cb3f699fe9b0822bac961c4504bef270",
    },
    Case {
        key: "abbccddef00112233445566778899aab",
        nonce: "decaf888cafedebaceface74",
        aad: "000001000000000000000001",
        plain: "746f016265016f72016e6f7401746f0162650001",
        cipher: "29c9fc69a197d038ccdd14e2ddfcaa0543332164",
        icv: "412503524303ed3c6c5f283843af8c3e",
    },
    Case {
        key: "6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961",
        nonce: "7475726e333021696765746d",
        aad: "796b6963ffffffffffffffff",
        plain: "45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768
                696a6b6c6d6e6f707172737401020201",
        cipher: "f97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b64a274b39b49c3a864cd3d78c
                a4ae68a32b42458fb57dbe821dcc63b9",
        icv: "d0937ba2945f669368661a329fb4c053",
    },
];
