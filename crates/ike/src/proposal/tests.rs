use super::*;
use crate::error::{Fault, Refusal};

/// Without additional key exchanges.
fn suites() -> Suites {
    Suites {
        additional_ke: Vec::new(),
        ..Suites::default()
    }
}

#[test]
fn our_offers_are_accepted_by_ourselves() {
    let offer = ike_offer(&suites(), None);
    let (chosen, _) = choose_ike(&offer, &suites(), 31, true, false).unwrap();
    assert_eq!(chosen.suite.ke, KeMethod::X25519);
    let answer = ike_answer(&chosen, None);
    assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, true, false).is_ok());
    let offer = child_offer(&suites(), 0x1000, true, &[]);
    let (chosen, spi) = choose_child(&offer, &suites(), Some(19), false).unwrap();
    assert_eq!(
        (chosen.suite.ke, chosen.suite.esn, spi),
        (Some(KeMethod::P256), true, 0x1000)
    );
    let answer = child_answer(&chosen, 0x2000);
    assert!(read_child_answer(&answer, &suites(), Some(KeMethod::P256), &[]).is_ok());
    assert!(read_child_answer(&answer, &suites(), None, &[]).is_err());
}

// CVE-2016-5391 (lesson L03): a proposal without one of the mandatory transforms.
#[test]
fn each_missing_transform_is_no_proposal() {
    for kind in [TransformType::ENCR, TransformType::PRF, TransformType::KE] {
        let mut offer = ike_offer(&suites(), None);
        offer[0].transforms.retain(|t| t.kind != kind);
        assert_eq!(
            choose_ike(&offer, &suites(), 31, true, false).err(),
            Some(Fault::Incompatible(Refusal::NoProposalChosen))
        );
    }
    for kind in [TransformType::ENCR, TransformType::ESN] {
        let mut offer = child_offer(&suites(), 0x1000, false, &[]);
        offer[0].transforms.retain(|t| t.kind != kind);
        assert!(choose_child(&offer, &suites(), None, true).is_err());
    }
}

// CVE-2024-3652 (lesson L04): a bad proposal is skipped, the next good one chosen.
#[test]
fn a_bad_proposal_is_skipped() {
    let good = ike_offer(&suites(), None).remove(0);
    let bad = |t: Transform| {
        let mut p = good.clone();
        p.transforms.push(t);
        p
    };
    for bad in [
        bad(Transform::new(TransformType(99), 1)),
        bad(Transform::integrity(IntegrityId::HMAC_SHA2_256_128)),
        bad(Transform::esn(EsnId::ESN)),
        bad(Transform::new(TransformType::ADDKE1, 36)),
        Proposal {
            spi: vec![1; 8],
            ..good.clone()
        },
        Proposal {
            protocol: ProtocolId::ESP,
            ..good.clone()
        },
    ] {
        let second = Proposal {
            number: 2,
            ..good.clone()
        };
        let (chosen, _) = choose_ike(&[bad, second], &suites(), 31, true, false).unwrap();
        assert_eq!(chosen.number, 2);
    }
}

/// A peer's with everything, AES-CBC in front.
fn with_cbc() -> Suites {
    let mut all: Vec<_> = Cipher::all().collect();
    all.reverse();
    Suites {
        ike_ciphers: all.clone(),
        esp_ciphers: all,
        additional_ke: Vec::new(),
        ..Suites::default()
    }
}

// Lesson L04 for ciphers that need an integrity algorithm, and for those that must have none.
#[test]
fn odd_pairs_of_cipher_and_integrity_are_skipped() {
    let suites = with_cbc();
    let encr = |id: u16, bits| Transform::encryption(EncryptionId(id), bits);
    let mac = IntegrityId::HMAC_SHA2_256_128;
    let pairs: [(Transform, Option<IntegrityId>); 9] = [
        (encr(12, Some(128)), None),
        (encr(12, Some(128)), Some(IntegrityId::NONE)),
        (encr(12, Some(192)), Some(mac)),
        (encr(12, None), Some(mac)),
        (encr(12, Some(0)), Some(mac)),
        (encr(12, Some(256)), Some(IntegrityId::HMAC_SHA1_96)),
        // NULL, GMAC, and an AEAD with an integrity algorithm.
        (encr(11, None), Some(mac)),
        (encr(21, Some(256)), None),
        (encr(20, Some(256)), Some(mac)),
    ];
    for (cipher, mac) in pairs {
        let pair = [Some(cipher), mac.map(Transform::integrity)];
        let with = |mut proposal: Proposal| {
            let strange =
                |t: &Transform| !matches!(t.kind, TransformType::ENCR | TransformType::INTEG);
            proposal.transforms.retain(strange);
            proposal.transforms.extend(pair.iter().flatten());
            proposal
        };
        let good = ike_offer(&suites, None).remove(0);
        let offer = [with(good.clone()), Proposal { number: 2, ..good }];
        let (chosen, _) = choose_ike(&offer, &suites, 31, true, false).unwrap();
        assert_eq!(chosen.number, 2, "{pair:?}");
        assert!(choose_ike(&offer[..1], &suites, 31, true, false).is_err());
        let good = child_offer(&suites, 0x1000, false, &[]).remove(0);
        let offer = [with(good.clone()), Proposal { number: 2, ..good }];
        let (chosen, _) = choose_child(&offer, &suites, None, true).unwrap();
        assert_eq!(chosen.number, 2, "{pair:?}");
    }
}

#[test]
fn each_integrity_algorithm_is_offered_alone_and_no_aead_with_one() {
    let suites = with_cbc();
    for offer in [
        ike_offer(&suites, None),
        child_offer(&suites, 0x1000, true, &[]),
    ] {
        assert_eq!(offer.len(), 4);
        for (number, proposal) in (1..).zip(&offer) {
            assert_eq!(proposal.number, number);
            let macs = proposal.of_type(TransformType::INTEG).count();
            let aead = proposal.of_type(TransformType::ENCR).all(|t| t.id == 20);
            assert_eq!(macs, usize::from(!aead));
            assert_eq!(proposal.of_type(TransformType::ENCR).count(), 2);
        }
    }
    // An answer that leaves the integrity algorithm out, or changes it, is none.
    let offer = ike_offer(&suites, None);
    let (chosen, _) = choose_ike(&offer, &suites, 31, true, false).unwrap();
    let answer = ike_answer(&chosen, None);
    let read = |answer: &[Proposal]| {
        read_ike_answer(answer, &suites, KeMethod::X25519, true, false).is_ok()
    };
    assert!(read(&answer));
    for other in [IntegrityId::NONE, IntegrityId::HMAC_SHA1_96] {
        let mut wrong = answer.clone();
        for t in &mut wrong[0].transforms {
            if t.kind == TransformType::INTEG {
                t.id = other.0;
            }
        }
        assert!(!read(&wrong));
    }
    let mut without = answer;
    without[0]
        .transforms
        .retain(|t| t.kind != TransformType::INTEG);
    assert!(!read(&without));
}

// Forward secrecy that is configured is not left to the peer.
#[test]
fn a_child_without_a_key_exchange_is_refused_where_one_is_wanted() {
    let lax = Suites {
        pfs: false,
        ..suites()
    };
    let none = Transform::key_exchange(KeyExchangeId::NONE);
    let without = child_offer(&suites(), 0x1000, false, &[]);
    let with = child_offer(&suites(), 0x1000, true, &[]);
    let mut either = with.clone();
    either[0].transforms.push(none);
    let mut only_none = without.clone();
    only_none[0].transforms.push(none);
    let refused = Fault::Incompatible(Refusal::NoProposalChosen);
    let asks = Fault::Incompatible(Refusal::InvalidKe(31));
    let of = |offer: &[Proposal], suites: &Suites, sent, in_auth| {
        choose_child(offer, suites, sent, in_auth).map(|(chosen, _)| chosen.suite.ke)
    };
    for offer in [&without, &only_none] {
        assert_eq!(of(offer, &suites(), None, false), Err(refused.clone()));
        // A KE payload that no proposal speaks of is none.
        assert_eq!(of(offer, &suites(), Some(31), false), Err(refused.clone()));
        assert_eq!(of(offer, &lax, None, false), Ok(None));
        assert_eq!(of(offer, &suites(), None, true), Ok(None));
    }
    assert_eq!(of(&either, &suites(), None, false), Err(asks));
    assert_eq!(of(&either, &lax, None, false), Ok(None));
    // The next proposal has one.
    let second = Proposal {
        number: 2,
        ..with[0].clone()
    };
    let both = [without[0].clone(), second];
    let (chosen, _) = choose_child(&both, &suites(), Some(31), false).unwrap();
    assert_eq!(
        (chosen.number, chosen.suite.ke),
        (2, Some(KeMethod::X25519))
    );
}

fn hybrid(required: bool) -> Suites {
    Suites {
        additional_ke: vec![AdditionalKe {
            methods: vec![KeMethod::MlKem768],
            required,
        }],
        ..Suites::default()
    }
}

#[test]
fn an_old_peer_chooses_the_proposal_without_additional_exchanges() {
    let offer = ike_offer(&hybrid(false), None);
    assert_eq!(offer.len(), 2);
    let known = |p: &Proposal| p.of_type(TransformType::ADDKE1).next().is_none();
    assert!(!known(&offer[0]) && known(&offer[1]));
    // A required exchange leaves it nothing.
    assert_eq!(ike_offer(&hybrid(true), None).len(), 1);
    for (suites, intermediate) in [(suites(), true), (hybrid(false), false)] {
        let (chosen, _) = choose_ike(&offer, &suites, 31, intermediate, false).unwrap();
        assert!(chosen.suite.additional.is_empty());
        let answer = ike_answer(&chosen, None);
        let read = read_ike_answer(&answer, &hybrid(false), KeMethod::X25519, true, false);
        assert!(read.unwrap().0.additional.is_empty());
    }
    let required = choose_ike(&offer, &hybrid(true), 31, false, false);
    assert!(required.is_err());
}

#[test]
fn additional_exchanges_are_chosen_and_read() {
    for required in [false, true] {
        let suites = hybrid(required);
        let offer = ike_offer(&suites, Some(7));
        let (chosen, spi) = choose_ike(&offer, &suites, 31, true, true).unwrap();
        let answer = ike_answer(&chosen, Some(8));
        let read = read_ike_answer(&answer, &suites, KeMethod::X25519, true, true);
        let (suite, spi_r) = read.unwrap();
        assert_eq!((suite, spi, spi_r), (chosen.suite, 7, 8));
        assert_eq!(suite.additional.after(0), Some(KeMethod::MlKem768));
        assert_eq!(suite.additional.after(1), None);
        // The peer cannot have chosen it without IKE_INTERMEDIATE.
        let read = read_ike_answer(&answer, &suites, KeMethod::X25519, false, true);
        assert!(read.is_err());

        let additional = &suites.additional_ke;
        let offer = child_offer(&suites, 0x1000, true, additional);
        let (chosen, _) = choose_child(&offer, &suites, Some(31), false).unwrap();
        assert_eq!(chosen.suite.additional.after(0), Some(KeMethod::MlKem768));
        let answer = child_answer(&chosen, 0x2000);
        let sent = Some(KeMethod::X25519);
        assert!(read_child_answer(&answer, &suites, sent, additional).is_ok());
        // It was not offered.
        assert!(read_child_answer(&answer, &suites, sent, &[]).is_err());
        // A child of IKE_AUTH has no key exchange.
        let offer = child_offer(&suites, 0x1000, false, additional);
        let (chosen, _) = choose_child(&offer, &suites, None, true).unwrap();
        assert_eq!(chosen.suite.additional, Rounds::default());
    }
}

// Lesson L41: the main method again.
#[test]
fn the_main_method_is_not_an_additional_one() {
    let mut suites = hybrid(true);
    suites.ke_methods = vec![KeMethod::MlKem768, KeMethod::X25519];
    let offer = ike_offer(&suites, None);
    assert_eq!(
        choose_ike(&offer, &suites, 36, true, false).err(),
        Some(Fault::Incompatible(Refusal::InvalidKe(31)))
    );
    let answer = |main| {
        let mut answer = offer.clone();
        answer[0].transforms = vec![
            encryption(Cipher::AES_256_GCM),
            prf(Prf::HmacSha256),
            ke(main),
            Transform::new(TransformType::ADDKE1, 36),
        ];
        read_ike_answer(&answer, &suites, main, true, false)
    };
    assert!(answer(KeMethod::X25519).is_ok());
    assert!(answer(KeMethod::MlKem768).is_err());
}

#[test]
fn a_method_we_do_not_have_asks_for_one_that_we_have() {
    let offer = ike_offer(&suites(), None);
    assert_eq!(
        choose_ike(&offer, &suites(), 14, true, false).err(),
        Some(Fault::Incompatible(Refusal::InvalidKe(31)))
    );
}

#[test]
fn an_answer_that_we_did_not_offer_is_refused() {
    let mut answer = ike_offer(&suites(), None);
    assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, true, false).is_err());
    answer[0].transforms = vec![
        encryption(Cipher::AES_128_GCM),
        prf(Prf::HmacSha256),
        ke(KeMethod::X25519),
    ];
    assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, true, false).is_err());
}
