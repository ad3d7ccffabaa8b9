//! What cannot be, each with the field and what to do.

use ipnet::IpNet;

use crate::duration::Lifetime;
use crate::external::selector::{is_key, is_value};
use crate::external::{
    AddressFamily, AuthBy, ConnectionType, DPD_SECONDS, Endpoint, ExternalConnectionSpec, Identity,
    MOST_SELECTED, MOST_SUBNETS, MOST_SUITES, NodeSelector, Operator, SA_SECONDS,
};

/// All of it, the selector first.
pub(super) fn check(spec: &ExternalConnectionSpec) -> Result<(), String> {
    selector(&spec.node_selector)?;
    ends(spec)?;
    subnets(spec)?;
    transport(spec)?;
    ports(spec)?;
    credentials(spec)?;
    suites(spec)?;
    times(spec)
}

fn refuse<T>(field: &str, text: impl AsRef<str>) -> Result<T, String> {
    Err(format!("spec.{field}: {}", text.as_ref()))
}

fn most(field: &str, length: usize, most: usize) -> Result<(), String> {
    match length > most {
        true => refuse(field, format!("{length} entries are more than {most}")),
        false => Ok(()),
    }
}

fn once<T: PartialEq>(field: &str, list: &[T]) -> Result<(), String> {
    match (1..list.len()).any(|n| list[..n].contains(&list[n])) {
        true => refuse(field, "something is in it twice"),
        false => Ok(()),
    }
}

fn selector(selector: &NodeSelector) -> Result<(), String> {
    let labels = &selector.match_labels;
    let expressions = &selector.match_expressions;
    most("nodeSelector.matchLabels", labels.len(), MOST_SELECTED)?;
    most(
        "nodeSelector.matchExpressions",
        expressions.len(),
        MOST_SELECTED,
    )?;
    most("nodeSelector.names", selector.names.len(), MOST_SELECTED)?;
    let by_labels = !labels.is_empty() || !expressions.is_empty();
    if by_labels && !selector.names.is_empty() {
        return refuse(
            "nodeSelector.names",
            "names stand instead of labels: leave one of them out",
        );
    }
    once("nodeSelector.names", &selector.names)?;
    for (key, value) in labels {
        if !is_key(key) {
            let text = format!("\"{key}\" is no key of a label, as in topology.kubernetes.io/zone");
            return refuse("nodeSelector.matchLabels", text);
        }
        if !is_value(value) {
            let text = format!("\"{value}\" is no value of a label ({key})");
            return refuse("nodeSelector.matchLabels", text);
        }
    }
    for one in expressions {
        let field = "nodeSelector.matchExpressions";
        if !is_key(&one.key) {
            let key = &one.key;
            return refuse(field, format!("\"{key}\" is no key of a label"));
        }
        most(field, one.values.len(), MOST_SELECTED)?;
        let compares = matches!(one.operator, Operator::In | Operator::NotIn);
        if compares == one.values.is_empty() {
            let text = match compares {
                true => format!("{:?} of {} needs values", one.operator, one.key),
                false => format!("{:?} of {} has no values", one.operator, one.key),
            };
            return refuse(field, text);
        }
        if let Some(value) = one.values.iter().find(|value| !is_value(value)) {
            let text = format!("\"{value}\" is no value of a label ({})", one.key);
            return refuse(field, text);
        }
    }
    Ok(())
}

fn ends(spec: &ExternalConnectionSpec) -> Result<(), String> {
    if spec.right == Endpoint::DefaultRoute {
        return refuse(
            "right",
            "%defaultroute is this side's: name the host outside by address or name",
        );
    }
    if spec.left == spec.right {
        return refuse(
            "right",
            format!("{} is left too: name the other end", spec.right),
        );
    }
    let (left, right) = (spec.left.family(), spec.right.family());
    if let (Some(left), Some(right)) = (left, right)
        && left != right
    {
        let text = format!("{} is {left}, and right is {right}: one family", spec.left);
        return refuse("left", text);
    }
    if let (Some(wanted), Some(family)) = (spec.host_addr_family, left.or(right))
        && wanted != family
    {
        let text = format!("{wanted} is wanted, and the addresses of left and right are {family}");
        return refuse("hostAddrFamily", text);
    }
    if spec.ipsec_interface == Some(0) {
        return refuse(
            "ipsecInterface",
            "0 is no interface: leave it out for none, or number it from 1",
        );
    }
    Ok(())
}

fn subnets(spec: &ExternalConnectionSpec) -> Result<(), String> {
    for (field, subnets) in [
        ("leftSubnets", &spec.left_subnets),
        ("rightSubnets", &spec.right_subnets),
    ] {
        most(field, subnets.len(), MOST_SUBNETS)?;
        if let Some(subnet) = subnets.iter().find(|subnet| subnet.trunc() != **subnet) {
            let text = format!(
                "{subnet} has bits beside its prefix: write {}",
                subnet.trunc()
            );
            return refuse(field, text);
        }
        once(field, subnets)?;
    }
    if spec.left_mode_cfg_client && !spec.left_subnets.is_empty() {
        return refuse(
            "leftSubnets",
            "with leftModeCfgClient the host outside gives the address: leave one of them out",
        );
    }
    let inside = |subnets: &[IpNet], end: &Endpoint| {
        let listed = subnets.iter().map(|net| AddressFamily::of(net.addr()));
        let listed: Vec<_> = listed.collect();
        match listed.is_empty() {
            true => end.family().into_iter().collect(),
            false => listed,
        }
    };
    let right = inside(&spec.right_subnets, &spec.right);
    let left = match spec.left_mode_cfg_client {
        true => Vec::new(),
        false => inside(&spec.left_subnets, &spec.left),
    };
    let (wanted, field) = match (spec.client_addr_family, right.first()) {
        (Some(wanted), _) => (wanted, "clientAddrFamily"),
        (None, Some(first)) => (*first, "rightSubnets"),
        (None, None) => match left.first() {
            Some(first) => (*first, "leftSubnets"),
            None => return Ok(()),
        },
    };
    if left.iter().chain(&right).any(|family| *family != wanted) {
        let text = "packets of both families are meant: one connection is of one family, write two \
             ExternalConnections with the subnets of each";
        return refuse(field, text);
    }
    Ok(())
}

fn transport(spec: &ExternalConnectionSpec) -> Result<(), String> {
    if spec.kind != ConnectionType::Transport {
        return Ok(());
    }
    if spec.left_mode_cfg_client {
        return refuse(
            "leftModeCfgClient",
            "an address inside the tunnel is for type tunnel: leave it out, or write type: tunnel",
        );
    }
    for (field, subnets, end) in [
        ("leftSubnets", &spec.left_subnets, &spec.left),
        ("rightSubnets", &spec.right_subnets, &spec.right),
    ] {
        let host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let other = |net: &IpNet| end.address().is_some_and(|address| address != net.addr());
        if subnets.len() > 1 || subnets.iter().any(|net| !host(net) || other(net)) {
            return refuse(
                field,
                "type transport is between the two hosts alone: leave the subnets out, or write \
                 type: tunnel",
            );
        }
    }
    Ok(())
}

fn ports(spec: &ExternalConnectionSpec) -> Result<(), String> {
    let field = "leftProtoPort";
    match (spec.left_proto_port, spec.right_proto_port) {
        (Some(left), Some(right)) if left.protocol != right.protocol => refuse(
            field,
            format!("{left}, and rightProtoPort is {right}: one protocol at both ends"),
        ),
        (Some(_), Some(_)) | (None, None) => Ok(()),
        (Some(_), None) => refuse("rightProtoPort", "it is missing beside leftProtoPort"),
        (None, Some(_)) => refuse(field, "it is missing beside rightProtoPort"),
    }
}

fn credentials(spec: &ExternalConnectionSpec) -> Result<(), String> {
    match (&spec.left_cert, &spec.psk) {
        (None, None) => {
            return refuse(
                "leftCert",
                "neither leftCert nor psk names a Secret: one of them must",
            );
        }
        (Some(_), Some(_)) => {
            return refuse("psk", "leftCert is there too: leave one of them out");
        }
        (Some(cert), None) => {
            data_key("leftCert.key", &cert.key)?;
            if let Some(key) = &cert.password_key {
                data_key("leftCert.passwordKey", key)?;
            }
        }
        (None, Some(psk)) => data_key("psk.key", &psk.key)?,
    }
    if let Some(cert) = &spec.right_cert {
        data_key("rightCert.key", &cert.key)?;
    }
    if let Some(ca) = &spec.right_ca {
        let name = matches!(ca.parse(), Ok(Identity::DistinguishedName(_)));
        if ca != "%same" && !name {
            return refuse(
                "rightCa",
                "neither %same nor a distinguished name, as in CN=ca, O=Example",
            );
        }
    }
    once("authBy", &spec.auth_by)?;
    let secret = |by: &AuthBy| *by == AuthBy::Secret;
    if spec.psk.is_none() {
        return match spec.auth_by.iter().any(secret) {
            true => refuse("authBy", "secret needs psk, and leftCert is there"),
            false => Ok(()),
        };
    }
    if let Some(other) = spec.auth_by.iter().find(|by| !secret(by)) {
        let text = format!("{} needs leftCert, and psk is there", other.as_str());
        return refuse("authBy", text);
    }
    let certificate = |id: &Option<Identity>| *id == Some(Identity::FromCertificate);
    for (field, there) in [
        ("leftId", certificate(&spec.left_id)),
        ("rightId", certificate(&spec.right_id)),
        ("leftRsaSigKey", spec.left_rsa_sig_key.is_some()),
        ("leftSendCert", spec.left_send_cert.is_some()),
        ("rightCert", spec.right_cert.is_some()),
        ("rightCa", spec.right_ca.is_some()),
        ("rightRsaSigKey", spec.right_rsa_sig_key.is_some()),
        ("requireIdOnCertificate", !spec.require_id_on_certificate),
    ] {
        if there {
            return refuse(
                field,
                "it is for certificates, and psk is there: leave it out",
            );
        }
    }
    Ok(())
}

/// A key in a Secret's data.
fn data_key(field: &str, key: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let fits = (1..=253).contains(&key.len()) && key.bytes().all(inner);
    match fits && key != "." && key != ".." {
        true => Ok(()),
        false => refuse(
            field,
            "letters, digits, '-', '_' and '.' make a key of a Secret",
        ),
    }
}

fn suites(spec: &ExternalConnectionSpec) -> Result<(), String> {
    most("ike", spec.ike.len(), MOST_SUITES)?;
    most("esp", spec.esp.len(), MOST_SUITES)?;
    once("ike", &spec.ike)?;
    once("esp", &spec.esp)
}

fn times(spec: &ExternalConnectionSpec) -> Result<(), String> {
    let [least, longest] = SA_SECONDS;
    for (field, lifetime) in [
        ("ikeLifetime", spec.ike_lifetime),
        ("saLifetime", spec.sa_lifetime),
    ] {
        if !(least..=longest).contains(&lifetime.0.as_secs()) {
            let (least, longest) = (Lifetime::seconds(least), Lifetime::seconds(longest));
            let text = format!("{lifetime} is not between {least} and {longest}");
            return refuse(field, text);
        }
    }
    let [delay, timeout] = DPD_SECONDS.map(Lifetime::seconds);
    for (field, time, longest) in [
        ("dpdDelay", spec.dpd_delay, delay),
        ("dpdTimeout", spec.dpd_timeout, timeout),
    ] {
        if time.is_some_and(|time| time > longest) {
            return refuse(field, format!("at most {longest}"));
        }
    }
    match (spec.dpd_delay, spec.dpd_timeout) {
        (None, Some(_)) => refuse("dpdTimeout", "nobody asks without dpdDelay: write that too"),
        (Some(delay), Some(timeout)) if timeout <= delay => refuse(
            "dpdTimeout",
            format!("{timeout} is not longer than dpdDelay {delay}"),
        ),
        (None, None) if spec.dpd_action.is_some() => {
            refuse("dpdAction", "nobody asks without dpdDelay: write that too")
        }
        _ => Ok(()),
    }
}
