use super::*;

fn spec(mode: Mode, encapsulation: EncapsulationMode) -> EncryptionPolicySpec {
    EncryptionPolicySpec {
        mode,
        full: Full { encapsulation },
        ..EncryptionPolicySpec::default()
    }
}

fn config(config: Value) -> Value {
    json!({"spec": {"defaultNetwork": {"ovnKubernetesConfig": {"ipsecConfig": config}}}})
}

fn path(end: &str) -> String {
    format!("{CONFIG}{end}")
}

use EncapsulationMode::{Always, Auto};
use Mode::{Disabled, External};
const FULL: Mode = Mode::Full;

/// What stood, what is said, and what stands then or a word of the refusal.
type Case = (
    (Mode, EncapsulationMode),
    Value,
    Result<(Mode, EncapsulationMode), &'static str>,
);

fn check(cases: Vec<Case>) {
    for ((mode, encapsulation), said, wanted) in cases {
        let wish = Wish::read(said.clone()).expect("OpenShift's");
        let found = wish.and_then(|wish| wish.wanted(&spec(mode, encapsulation)));
        let about = format!("{mode:?} {encapsulation:?} and {said}: {found:?}");
        match (found, wanted) {
            (Ok(found), Ok(wanted)) => {
                assert_eq!((found.mode, found.full.encapsulation), wanted, "{about}");
            }
            (Err(found), Err(word)) => assert!(found.contains(word), "{about}"),
            _ => panic!("{about}"),
        }
    }
}

#[test]
fn merge_patches_have_openshifts_meaning() {
    let none = (Disabled, Auto);
    check(vec![
        (none, config(json!({"mode": "Full"})), Ok((FULL, Auto))),
        (
            none,
            config(json!({"mode": "External"})),
            Ok((External, Auto)),
        ),
        (none, config(json!({"mode": "Disabled"})), Ok(none)),
        (
            none,
            config(json!({"mode": "Full", "full": {"encapsulation": "Always"}})),
            Ok((FULL, Always)),
        ),
        (
            (FULL, Auto),
            config(json!({"full": {"encapsulation": "Always"}})),
            Ok((FULL, Always)),
        ),
        (
            (FULL, Always),
            config(json!({"mode": "Full"})),
            Ok((FULL, Always)),
        ),
        (
            (FULL, Always),
            config(json!({"full": null})),
            Ok((FULL, Auto)),
        ),
        ((FULL, Auto), config(json!({"mode": "Disabled"})), Ok(none)),
        (
            (FULL, Always),
            config(json!({"mode": "Disabled", "full": null})),
            Ok(none),
        ),
        // As in 4.14 and before.
        (none, config(json!({})), Ok((FULL, Auto))),
        ((External, Auto), config(json!({})), Ok((External, Auto))),
        ((FULL, Always), config(json!({})), Ok((FULL, Always))),
        ((FULL, Always), config(json!(null)), Ok(none)),
        // `full` is for mode Full.
        (
            (FULL, Always),
            config(json!({"mode": "Disabled"})),
            Err("ipsecConfig/full"),
        ),
        (
            (FULL, Always),
            config(json!({"mode": "External"})),
            Err("the mode is External"),
        ),
        (
            none,
            config(json!({"full": {"encapsulation": "Always"}})),
            Err("the mode is Disabled"),
        ),
        (
            none,
            config(json!({"mode": "External", "full": {"encapsulation": "Auto"}})),
            Err("the mode is External"),
        ),
        // What `testudo stop` leaves is no reason to refuse what does not change it.
        (
            (Disabled, Always),
            config(json!({"mode": "Disabled"})),
            Ok((Disabled, Always)),
        ),
        (
            (Disabled, Always),
            config(json!({"mode": "Full"})),
            Ok((FULL, Always)),
        ),
        ((Disabled, Always), config(json!({})), Ok((FULL, Always))),
        (
            (Disabled, Always),
            config(json!({"mode": "External"})),
            Err("External"),
        ),
        // Typing errors.
        (
            none,
            config(json!({"mode": "full"})),
            Err("unknown variant `full`"),
        ),
        (
            none,
            config(json!({"mode": "Full", "modus": 1})),
            Err("modus"),
        ),
        (
            none,
            config(json!({"mode": "Full", "full": {"encapsulation": "Never"}})),
            Err("Never"),
        ),
        (
            (FULL, Auto),
            config(json!({"mode": null})),
            Err("cannot be removed"),
        ),
        (none, config(json!("Full")), Err("ipsecConfig: ")),
        // Somebody else's fields.
        (
            none,
            json!({"spec": {"defaultNetwork": {"ovnKubernetesConfig": {
                "mtu": 1354, "ipsecConfig": {"mode": "Full"}}}}}),
            Err("spec.defaultNetwork.ovnKubernetesConfig.mtu is not Testudo's"),
        ),
        (
            none,
            json!({"spec": {"defaultNetwork": {"ovnKubernetesConfig": {
                "mtu": 1354, "ipsecConfig": {}}}}}),
            Err("mtu is not Testudo's"),
        ),
        (
            none,
            json!({"spec": {"defaultNetwork": null}}),
            Err("not Testudo's"),
        ),
    ]);
}

#[test]
fn json_patches_have_openshifts_meaning() {
    let none = (Disabled, Auto);
    let (mode, full) = (path("/mode"), path("/full"));
    let off = json!([
        {"op": "remove", "path": full},
        {"op": "replace", "path": mode, "value": "Disabled"},
    ]);
    check(vec![
        // The documentation's way to turn it off where `full` was given.
        ((FULL, Always), off.clone(), Ok(none)),
        ((FULL, Auto), off.clone(), Ok(none)),
        (none, off, Err("there is no /spec")),
        (
            (FULL, Always),
            json!([{"op": "remove", "path": full}]),
            Ok((FULL, Auto)),
        ),
        (
            (FULL, Always),
            json!([{"op": "replace", "path": mode, "value": "Disabled"}]),
            Err("the mode is Disabled"),
        ),
        (
            (FULL, Auto),
            json!([{"op": "replace", "path": mode, "value": "External"}]),
            Ok((External, Auto)),
        ),
        (
            none,
            json!([{"op": "replace", "path": mode, "value": "Full"},
                   {"op": "add", "path": full, "value": {"encapsulation": "Always"}}]),
            Ok((FULL, Always)),
        ),
        (
            none,
            json!([{"op": "add", "path": full, "value": {"encapsulation": "Auto"}}]),
            Err("the mode is Disabled"),
        ),
        (
            (FULL, Auto),
            json!([{"op": "test", "path": mode, "value": "Full"},
                   {"op": "replace", "path": path("/full/encapsulation"), "value": "Always"}]),
            Ok((FULL, Always)),
        ),
        (
            (FULL, Auto),
            json!([{"op": "test", "path": mode, "value": "External"}]),
            Err("it is \"Full\""),
        ),
        (
            none,
            json!([{"op": "add", "path": CONFIG, "value": {}}]),
            Ok((FULL, Auto)),
        ),
        (
            (FULL, Always),
            json!([{"op": "remove", "path": CONFIG}]),
            Ok(none),
        ),
        (
            (FULL, Auto),
            json!([{"op": "remove", "path": mode}]),
            Err("cannot be removed"),
        ),
        (
            none,
            json!([{"op": "add", "path": "/spec/defaultNetwork/ovnKubernetesConfig/mtu",
                    "value": 1354}]),
            Err("mtu is not Testudo's"),
        ),
        (
            none,
            json!([{"op": "add", "path": CONFIG}]),
            Err("no JSON patch"),
        ),
        (none, json!(["x"]), Err("no JSON patch")),
    ]);
}

#[test]
fn a_manifest_says_what_is_wanted_as_a_whole() {
    let manifest = |inner: Value| {
        json!({"apiVersion": "operator.openshift.io/v1", "kind": "Network",
            "metadata": {"name": "cluster"},
            "spec": {"clusterNetwork": [{"cidr": "10.128.0.0/14"}],
                "defaultNetwork": {"type": "OVNKubernetes", "ovnKubernetesConfig": inner}}})
    };
    let ipsec = |config: Value| manifest(json!({"mtu": 1354, "ipsecConfig": config}));
    check(vec![
        // As the installation's cluster-network-03-config.yml has it.
        ((Disabled, Auto), ipsec(json!({})), Ok((FULL, Auto))),
        ((FULL, Always), ipsec(json!({})), Ok((FULL, Auto))),
        (
            (FULL, Always),
            ipsec(json!({"mode": "Disabled"})),
            Ok((Disabled, Auto)),
        ),
        (
            (FULL, Always),
            ipsec(json!({"mode": "External"})),
            Ok((External, Auto)),
        ),
        (
            (Disabled, Auto),
            ipsec(json!({"mode": "Full", "full": {"encapsulation": "Always"}})),
            Ok((FULL, Always)),
        ),
        (
            (Disabled, Auto),
            ipsec(json!({"mode": "External", "full": {"encapsulation": "Always"}})),
            Err("the mode is External"),
        ),
        (
            (Disabled, Auto),
            ipsec(json!({"full": {"encapsulation": "Always"}})),
            Err("say mode: Full"),
        ),
        // Silence is no wish to turn it off.
        (
            (FULL, Auto),
            manifest(json!({})),
            Err("says nothing of IPsec"),
        ),
    ]);
    let wish = Wish::read(ipsec(json!({}))).unwrap().unwrap();
    assert_eq!(
        wish.passed_over(),
        [
            "spec.clusterNetwork",
            "spec.defaultNetwork.ovnKubernetesConfig.mtu"
        ]
    );
    let other = json!({"apiVersion": "operator.openshift.io/v1", "kind": "DNS"});
    assert!(Wish::read(other).unwrap().unwrap_err().contains("DNS"));
    let mut named = ipsec(json!({}));
    named["metadata"]["name"] = json!("x");
    assert!(Wish::read(named).unwrap().unwrap_err().contains("cluster"));
}

#[test]
fn what_is_not_openshifts_is_left_to_others() {
    for other in [
        json!({"apiVersion": "testudo.dev/v1alpha1", "kind": "EncryptionPolicy"}),
        json!({"spec": {"mode": "Full"}}),
        json!({}),
        json!("text"),
        json!(null),
    ] {
        assert_eq!(Wish::read(other.clone()), None, "{other}");
    }
}

#[test]
fn the_network_object_has_the_names_that_oc_takes() {
    for name in [
        "networks.operator.openshift.io",
        "network.operator.openshift.io",
        "network.operator",
        "Networks.operator.openshift",
        "networks.v1.operator.openshift.io",
        "network",
    ] {
        assert!(is_network(name), "{name}");
    }
    for name in [
        "networks.config.openshift.io",
        "net",
        "dns.operator",
        "network.op",
        "",
    ] {
        assert!(!is_network(name), "{name}");
    }
}
