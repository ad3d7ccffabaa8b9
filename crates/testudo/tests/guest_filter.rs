//! A path that drops ESP and passes all else, where the kernel's own ESP carries the packets: the
//! nodes find out, and go over to UDP. Needs a kernel with ESP: `cargo xtask guest`.

mod common;

use common::filter::{Filter, goes_over_to_udp};
use common::guest::turn;
use common::{Options, seconds};

const KERNEL: Options = Options {
    datapath: "kernel",
    ..Options::VXLAN
};

#[test]
fn esp_that_never_passed() {
    run("esp_that_never_passed", KERNEL, Filter::First);
}

#[test]
fn esp_that_passes_no_longer() {
    run("esp_that_passes_no_longer", KERNEL, Filter::Later);
}

#[test]
fn esp_that_passes_one_way_only() {
    run("esp_that_leaves", KERNEL, Filter::In);
    run("esp_that_comes_in", KERNEL, Filter::Out);
}

#[test]
fn esp_between_pod_prefixes_over_ipv6() {
    let routed = Options {
        overlay: "routed",
        family: "v6",
        ..KERNEL
    };
    run("esp_between_pod_prefixes_over_ipv6", routed, Filter::Later);
}

#[track_caller]
fn run(test: &str, options: Options, filter: Filter) {
    let _turn = turn(test);
    goes_over_to_udp(options, filter, 500, seconds(120));
}
