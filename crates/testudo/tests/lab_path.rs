//! A path that drops ESP and passes all else, with the userspace datapath: the nodes find out, and
//! go over to UDP.

mod common;

use common::filter::{Filter, goes_over_to_udp};
use common::{Options, begin, seconds};

#[test]
fn esp_that_never_passed() {
    run("esp_that_never_passed", Options::VXLAN, Filter::First);
}

#[test]
fn esp_that_passes_no_longer() {
    run("esp_that_passes_no_longer", Options::VXLAN, Filter::Later);
}

#[test]
fn esp_that_passes_one_way_only() {
    run("esp_that_leaves", Options::VXLAN, Filter::In);
    run("esp_that_comes_in", Options::VXLAN, Filter::Out);
}

#[test]
fn esp_between_pod_prefixes_over_ipv6() {
    let routed = Options {
        overlay: "routed",
        family: "v6",
        ..Options::VXLAN
    };
    run("esp_between_pod_prefixes_over_ipv6", routed, Filter::Later);
}

#[track_caller]
fn run(test: &str, options: Options, filter: Filter) {
    let Some(_turn) = begin(test) else { return };
    goes_over_to_udp(options, filter, 1000, seconds(30));
}
