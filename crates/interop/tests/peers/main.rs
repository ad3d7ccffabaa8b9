//! The engine against other IKE daemons. One program, so that all its tests share the machine:
//! they mostly wait.
#![allow(unreachable_pub, clippy::unwrap_used)]

mod alike;
mod carrier;
mod certificates;
mod charon;
mod libreswan;
mod libreswan_certificates;
mod libreswan_features;
mod libreswan_life;
mod libreswan_meetings;
mod libreswan_nat;
mod libreswan_next;
mod libreswan_refusals;
mod libreswan_weather;
mod ours;
mod packet;
mod pluto;
mod strongswan;
mod strongswan_certificates;
mod strongswan_features;
mod strongswan_flow;
mod strongswan_hybrid;
mod strongswan_kernel;
mod strongswan_life;
mod strongswan_meetings;
mod strongswan_nat;
mod strongswan_next;
mod strongswan_refusals;
mod strongswan_weather;
mod wanted;

/// Those of the next release are not always the same.
#[test]
fn these_versions_are_tested() {
    let folder = testudo_interop::folder().unwrap();
    for peer in testudo_interop::Peer::ALL {
        println!("{peer:?}: {}", peer.version(&folder));
    }
}
