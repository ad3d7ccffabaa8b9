//! The rules of an ExternalConnection: what `testudo_model::external` refuses, in CEL.

use serde_json::{Value, json};
use testudo_model::external::{DPD_SECONDS, MOST_SELECTED, MOST_SUBNETS, MOST_SUITES, SA_SECONDS};
use testudo_model::name::SUBDOMAIN;

use super::rules::{bound, rule, seconds};

const SPEC: &str = "/properties/spec";
const LABEL: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$";
/// A label's name, which is not empty.
const NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]";

pub(super) fn add(schema: &mut Value) {
    selector(schema);
    ends(schema);
    subnets(schema);
    transport(schema);
    ports(schema);
    credentials(schema);
    suites(schema);
    times(schema);
}

fn field(name: &str) -> String {
    format!("{SPEC}/properties/{name}")
}

/// A rule of the whole spec.
fn whole(schema: &mut Value, holds: &str, message: &str) {
    rule(schema, SPEC, holds, message);
}

/// Whether a list is there and holds something.
fn some(list: &str) -> String {
    format!("(has(self.{list}) && size(self.{list}) > 0)")
}

/// A pattern in a string of CEL.
fn pattern(pattern: &str) -> String {
    format!("'{}'", pattern.replace('\\', "\\\\"))
}

fn selector(schema: &mut Value) {
    let at = field("nodeSelector");
    let inside = |name: &str| format!("{at}/properties/{name}");
    let prefix = SUBDOMAIN.0.trim_matches(['^', '$']);
    let key = pattern(&format!("^({prefix}/)?{NAME}$"));
    let labels = inside("matchLabels");
    bound(schema, &labels, json!({ "maxProperties": MOST_SELECTED }));
    let value = json!({ "maxLength": 63, "pattern": LABEL });
    bound(
        schema,
        &format!("{labels}/additionalProperties"),
        value.clone(),
    );
    rule(
        schema,
        &labels,
        &format!("self.all(key, size(key) <= 317 && key.matches({key}))"),
        "nodeSelector.matchLabels: keys are those of labels, as in topology.kubernetes.io/zone",
    );
    let expressions = inside("matchExpressions");
    bound(schema, &expressions, json!({ "maxItems": MOST_SELECTED }));
    let one = format!("{expressions}/items");
    bound(
        schema,
        &format!("{one}/properties/key"),
        json!({ "minLength": 1, "maxLength": 317 }),
    );
    rule(
        schema,
        &format!("{one}/properties/key"),
        &format!("self.matches({key})"),
        "nodeSelector.matchExpressions: this is no key of a label",
    );
    let values = format!("{one}/properties/values");
    bound(schema, &values, json!({ "maxItems": MOST_SELECTED }));
    bound(schema, &format!("{values}/items"), value);
    rule(
        schema,
        &one,
        &format!("(self.operator in ['In', 'NotIn']) == {}", some("values")),
        "nodeSelector.matchExpressions: In and NotIn have values, Exists and DoesNotExist have none",
    );
    let names = inside("names");
    bound(schema, &names, json!({ "maxItems": MOST_SELECTED }));
    rule(
        schema,
        &names,
        "self.all(x, self.exists_one(y, y == x))",
        "nodeSelector.names: no name may stand there twice",
    );
    let labels = "(has(self.matchLabels) && size(self.matchLabels) > 0)";
    rule(
        schema,
        &at,
        &format!(
            "!{} || !({labels} || {})",
            some("names"),
            some("matchExpressions")
        ),
        "nodeSelector.names: names stand instead of labels: leave one of them out",
    );
}

fn ends(schema: &mut Value) {
    let name = pattern(SUBDOMAIN.0);
    let host = format!(
        "isIP(self) ? ip(self).isGlobalUnicast() : self.matches({name}) && !self.matches('^[0-9.]+$')"
    );
    rule(
        schema,
        &field("left"),
        &format!("self == '%defaultroute' || ({host})"),
        "left: an address or a name of a host is wanted, or %defaultroute",
    );
    rule(
        schema,
        &field("right"),
        &host,
        "right: the address or the name of the host outside is wanted",
    );
    for end in ["leftId", "rightId"] {
        let named = SUBDOMAIN.0.trim_matches(['^', '$']);
        let shapes = pattern(&format!(
            r"^(@?{named}|[^ @=%][^ @=]*@{named}|@\[.+\]|[A-Za-z0-9.]+=.+)$"
        ));
        rule(
            schema,
            &field(end),
            &format!(
                "self == '%fromcert' || isIP(self) || \
                 (self.matches({shapes}) && !self.matches('^[0-9.]+$'))"
            ),
            &format!(
                "{end}: %fromcert, an address, @name, user@name, a distinguished name as in CN=n1, \
                 or @[text] is wanted"
            ),
        );
    }
    whole(
        schema,
        "!has(self.left) || self.left != self.right",
        "right: left is the same: name the other end",
    );
    whole(
        schema,
        "!has(self.left) || !isIP(self.left) || !isIP(self.right) || \
         ip(self.left).family() == ip(self.right).family()",
        "left: left and right are addresses of one family",
    );
    whole(
        schema,
        "!has(self.hostAddrFamily) || [self.right, has(self.left) ? self.left : ''].all(end, \
         !isIP(end) || ip(end).family() == (self.hostAddrFamily == 'ipv4' ? 4 : 6))",
        "hostAddrFamily: left and right are of the other family",
    );
    bound(schema, &field("ipsecInterface"), json!({ "minimum": 1 }));
}

fn subnets(schema: &mut Value) {
    for list in ["leftSubnets", "rightSubnets"] {
        let at = field(list);
        bound(schema, &at, json!({ "maxItems": MOST_SUBNETS }));
        let items = format!("{at}/items");
        bound(schema, &items, json!({ "maxLength": 43 }));
        rule(
            schema,
            &items,
            "isCIDR(self) && cidr(self) == cidr(self).masked()",
            &format!("{list}: a prefix without bits beside it is wanted, as in 198.51.100.0/24"),
        );
        rule(
            schema,
            &at,
            "self.all(x, self.exists_one(y, y == x))",
            &format!("{list}: no prefix may stand there twice"),
        );
    }
    let client = "(has(self.leftModeCfgClient) && self.leftModeCfgClient)";
    whole(
        schema,
        &format!("!{client} || !{}", some("leftSubnets")),
        "leftSubnets: with leftModeCfgClient the host outside gives the address: leave one of them out",
    );
    // The families inside: of the subnets, or of the end itself where an address is written.
    let inside = |list: &str, end: &str| {
        format!(
            "({} ? self.{list}.map(net, isCIDR(net) ? cidr(net).ip().family() : 0) : \
             has(self.{end}) && isIP(self.{end}) ? [ip(self.{end}).family()] : [])",
            some(list)
        )
    };
    let all = format!(
        "(({client} ? [] : {}) + {})",
        inside("leftSubnets", "left"),
        inside("rightSubnets", "right")
    );
    whole(
        schema,
        &format!("{all}.all(f, f != 4) || {all}.all(f, f != 6)"),
        "leftSubnets, rightSubnets: packets of both families are meant: one connection is of one family, \
         write two ExternalConnections with the subnets of each",
    );
    whole(
        schema,
        &format!(
            "!has(self.clientAddrFamily) || \
             {all}.all(f, f == (self.clientAddrFamily == 'ipv4' ? 4 : 6))"
        ),
        "clientAddrFamily: the subnets or addresses are of the other family",
    );
}

fn transport(schema: &mut Value) {
    let transport = "(has(self.type) && self.type == 'transport')";
    whole(
        schema,
        &format!("!{transport} || !has(self.leftModeCfgClient) || !self.leftModeCfgClient"),
        "leftModeCfgClient: an address inside the tunnel is for type tunnel",
    );
    for (list, end) in [("leftSubnets", "left"), ("rightSubnets", "right")] {
        whole(
            schema,
            &format!(
                "!{transport} || !has(self.{list}) || (size(self.{list}) <= 1 && self.{list}.all(net, \
                 !isCIDR(net) || (cidr(net).prefixLength() == (cidr(net).ip().family() == 4 ? 32 : 128) \
                 && (!has(self.{end}) || !isIP(self.{end}) || cidr(net).ip() == ip(self.{end})))))"
            ),
            &format!(
                "{list}: type transport is between the two hosts alone: leave the subnets out, or \
                 write type: tunnel"
            ),
        );
    }
}

fn ports(schema: &mut Value) {
    for end in ["leftProtoPort", "rightProtoPort"] {
        let number = "int(self.contains('/') ? self.substring(0, self.indexOf('/')) : self)";
        let port = "int(self.substring(self.indexOf('/') + 1))";
        rule(
            schema,
            &field(end),
            &format!(
                "(!self.matches('^[0-9]+(/.*)?$') || {number} <= 255) && \
                 (!self.matches('/[0-9]+$') || {port} <= 65535)"
            ),
            &format!("{end}: protocols go to 255 and ports to 65535"),
        );
    }
    whole(
        schema,
        "has(self.leftProtoPort) == has(self.rightProtoPort)",
        "rightProtoPort: leftProtoPort and rightProtoPort are written together",
    );
    let name = |field: &str| {
        let word = format!(
            "(self.{field}.contains('/') ? self.{field}.substring(0, self.{field}.indexOf('/')) : \
             self.{field})"
        );
        let names = "{'6': 'tcp', '17': 'udp', '132': 'sctp', '33': 'dccp', '136': 'udplite', \
             '1': 'icmp', '58': 'icmpv6', '47': 'gre'}";
        format!("({word} in {names} ? {names}[{word}] : {word})")
    };
    whole(
        schema,
        &format!(
            "!has(self.leftProtoPort) || !has(self.rightProtoPort) || {} == {}",
            name("leftProtoPort"),
            name("rightProtoPort")
        ),
        "leftProtoPort: one protocol at both ends",
    );
}

fn credentials(schema: &mut Value) {
    for path in ["leftCert", "rightCert", "psk"] {
        let key = json!({ "minLength": 1, "maxLength": 253, "pattern": "^[-._A-Za-z0-9]+$" });
        let mut keys = vec!["key"];
        if path == "leftCert" {
            keys.push("passwordKey");
        }
        for name in keys {
            let at = format!("{}/properties/{name}", field(path));
            bound(schema, &at, key.clone());
            let message = format!("{path}.{name}: . and .. are no keys of a Secret");
            rule(schema, &at, "self != '.' && self != '..'", &message);
        }
    }
    whole(
        schema,
        "has(self.leftCert) || has(self.psk)",
        "leftCert: neither leftCert nor psk names a Secret: one of them must",
    );
    whole(
        schema,
        "!has(self.leftCert) || !has(self.psk)",
        "psk: leftCert is there too: leave one of them out",
    );
    let ca = field("rightCa");
    bound(schema, &ca, json!({ "minLength": 1, "maxLength": 255 }));
    rule(
        schema,
        &ca,
        r"self == '%same' || self.matches('^[A-Za-z0-9.]+=[^\\x00-\\x1f\\x7f]+$')",
        "rightCa: %same or a distinguished name is wanted, as in CN=ca, O=Example",
    );
    let by = field("authBy");
    bound(schema, &by, json!({ "maxItems": 4 }));
    rule(
        schema,
        &by,
        "self.all(x, self.exists_one(y, y == x))",
        "authBy: no word may stand there twice",
    );
    whole(
        schema,
        "!has(self.authBy) || self.authBy.all(by, (by == 'secret') == has(self.psk))",
        "authBy: secret is for psk, and nothing else is; the others are for leftCert",
    );
    for end in ["leftId", "rightId"] {
        whole(
            schema,
            &format!("!has(self.psk) || !has(self.{end}) || self.{end} != '%fromcert'"),
            &format!("{end}: %fromcert is for certificates, and psk is there"),
        );
    }
    for name in [
        "leftRsaSigKey",
        "leftSendCert",
        "rightCert",
        "rightCa",
        "rightRsaSigKey",
    ] {
        whole(
            schema,
            &format!("!has(self.psk) || !has(self.{name})"),
            &format!("{name}: it is for certificates, and psk is there: leave it out"),
        );
    }
    whole(
        schema,
        "!has(self.psk) || !has(self.requireIdOnCertificate) || self.requireIdOnCertificate",
        "requireIdOnCertificate: it is for certificates, and psk is there: leave it out",
    );
}

fn suites(schema: &mut Value) {
    for list in ["ike", "esp"] {
        let at = field(list);
        bound(schema, &at, json!({ "maxItems": MOST_SUITES }));
        rule(
            schema,
            &at,
            "self.all(x, self.exists_one(y, y == x))",
            &format!("{list}: no suite may stand there twice"),
        );
    }
}

fn times(schema: &mut Value) {
    let length = seconds("self");
    let [least, longest] = SA_SECONDS;
    for name in ["ikeLifetime", "saLifetime"] {
        rule(
            schema,
            &field(name),
            &format!("{length} >= {least}.0 && {length} <= {longest}.0"),
            &format!("{name}: at least 1m and at most 1d"),
        );
    }
    for (name, longest) in ["dpdDelay", "dpdTimeout"].into_iter().zip(DPD_SECONDS) {
        rule(
            schema,
            &field(name),
            &format!("{length} >= 1.0 && {length} <= {longest}.0"),
            &format!("{name}: at least 1s and at most {longest}s"),
        );
    }
    whole(
        schema,
        "(!has(self.dpdTimeout) && !has(self.dpdAction)) || has(self.dpdDelay)",
        "dpdDelay: without it nobody asks: dpdTimeout and dpdAction need it",
    );
    let (delay, timeout) = (seconds("self.dpdDelay"), seconds("self.dpdTimeout"));
    whole(
        schema,
        &format!("!has(self.dpdDelay) || !has(self.dpdTimeout) || {timeout} > {delay}"),
        "dpdTimeout: longer than dpdDelay is wanted",
    );
}
