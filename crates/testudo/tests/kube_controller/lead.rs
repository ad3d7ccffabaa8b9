//! Who leads.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testudo_kube_env::Component;

use crate::daemon::Daemon;
use crate::world::{World, wait};

fn leads(world: &World, daemon: &Daemon) -> bool {
    daemon.lives();
    world.holder().starts_with(&format!("{}_", daemon.name()))
        && daemon.metric("testudo_controller_leader") == Some(1.0)
}

pub(crate) fn begins(world: &World, first: &Daemon) {
    wait("the first leads", || leads(world, first).then_some(()));
    wait("the bundle is published", || {
        world.get("trustbundle cluster")
    });
    let secret = world.get("secret testudo-ca").unwrap();
    assert!(secret["data"]["document"].is_string());
    assert_eq!(world.bundle().len(), 1);
    let (status, _) = first.page("/readyz").unwrap();
    assert_eq!(status, 200);
    let lease = world.get("lease testudo-controller").unwrap();
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
}

pub(crate) fn stands_by(second: &Daemon) {
    wait("the second waits", || {
        second.lives();
        second
            .log()
            .contains("waiting for the lead: first_")
            .then_some(())
    });
    assert_eq!(second.metric("testudo_controller_leader"), Some(0.0));
    assert_eq!(second.metric("testudo_controller_nodes_expected"), None);
    let (status, _) = second.page("/readyz").unwrap();
    assert_eq!(status, 200);
}

pub(crate) fn takes_over(world: &World, second: &Daemon) {
    let began = Instant::now();
    let before = world.bundle().to_pem();
    wait("the second leads", || leads(world, second).then_some(()));
    eprintln!("   took over after {:.1} s", began.elapsed().as_secs_f32());
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    world.certificate("n1", uid.as_str().unwrap());
    assert_eq!(world.bundle().to_pem(), before, "the CA is the same");
}

/// The leader is stopped for so long that another leads. That one is stopped too, so that nobody answers a
/// request; then the first goes on, and does not either.
pub(crate) fn fenced(world: &World, old: &Daemon, new: &Daemon) {
    old.signal(Signal::STOP);
    wait("another leads", || {
        let holder = world.holder();
        holder
            .starts_with(&format!("{}_", new.name()))
            .then_some(())
    });
    new.signal(Signal::STOP);
    let held = world.holder();
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    let asked = world.ask(&world.own("n1", uid.as_str().unwrap()));
    old.signal(Signal::CONT);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let answered = world.answered(&asked);
        // Only while the Lease is somebody else's: it may take it anew when that has stood still.
        if world.holder() != held {
            break;
        }
        assert_eq!(answered, None, "it wrote without the lead");
        std::thread::sleep(Duration::from_millis(200));
    }
    wait("it says that it lost the lead", || {
        old.log().contains("the lead is lost").then_some(())
    });
    new.signal(Signal::CONT);
    world.answer(&asked).unwrap();
}

pub(crate) fn outage(world: &World, daemons: &[&Daemon]) {
    let stopped = world.cluster.stop_component(Component::ApiServer);
    stopped.unwrap();
    std::thread::sleep(Duration::from_secs(20));
    for daemon in daemons {
        daemon.lives();
        assert_eq!(daemon.page("/healthz").unwrap().0, 200);
        assert_eq!(daemon.metric("testudo_controller_leader"), Some(0.0));
    }
    world.cluster.start_component(Component::ApiServer).unwrap();
    world.cluster.ready().unwrap();
    let leads = |daemon: &&&Daemon| leads(world, daemon);
    wait("one leads again", || {
        (daemons.iter().filter(leads).count() == 1).then_some(())
    });
    let time = |world: &World| {
        let lease = world.get("lease testudo-controller").unwrap();
        lease["spec"]["renewTime"].clone()
    };
    let before = time(world);
    wait("the Lease is renewed", || {
        (time(world) != before).then_some(())
    });
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    world.certificate("n1", uid.as_str().unwrap());
    let gone = world.node("n9");
    world.certificate("n9", &gone);
    world.kubectl(&["delete", "node", "n9"]);
    // The watches go on: a Node that is deleted is seen.
    wait("n9 is revoked", || {
        let bundle = world.get("trustbundle cluster").unwrap();
        let events = world.events("NodeRevoked");
        let told = events
            .iter()
            .any(|event| event["regarding"]["name"] == "n9");
        (told && bundle["spec"]["revocationLists"].is_string()).then_some(())
    });
    for daemon in daemons {
        daemon.lives();
    }
}

/// The API server takes connections and answers nothing, for longer than a lead lasts.
pub(crate) fn hang(world: &World, daemons: &[&Daemon]) {
    // One that was started again has left its earlier process in the record.
    let processes = world.cluster.processes();
    let mut servers = processes.iter().filter(|p| p.name == "kube-apiserver");
    let server = servers.find(|server| server.memory.is_some()).unwrap().pid;
    let signal = |signal| kill_process(Pid::from_raw(server).unwrap(), signal).unwrap();
    let leads = |daemon: &&&Daemon| leads(world, daemon);
    let leader = daemons.iter().find(leads).unwrap();
    let said = leader.log().len();
    let new = |daemon: &Daemon| daemon.log()[said..].to_owned();
    let policy = || {
        let policy = world.get("encryptionpolicy cluster").unwrap();
        let status = &policy["status"];
        (status["phase"].clone(), status["rollout"].clone())
    };
    let (bundle, stood) = (world.bundle().to_pem(), policy());
    signal(Signal::STOP);
    let began = Instant::now();
    // It ceases to lead before others could, and says why.
    wait("the leader gives up", || {
        leader.lives();
        let waits = leader.metric("testudo_controller_leader") == Some(0.0);
        (waits && new(leader).contains("the lead is lost")).then_some(())
    });
    eprintln!("   gave up after {:.1} s", began.elapsed().as_secs_f32());
    std::thread::sleep(Duration::from_secs(20).saturating_sub(began.elapsed()));
    for daemon in daemons {
        daemon.lives();
        assert_eq!(daemon.page("/healthz").unwrap().0, 200);
        assert_eq!(daemon.metric("testudo_controller_leader"), Some(0.0));
    }
    let (status, why) = leader.page("/readyz").unwrap();
    assert_eq!(status, 503, "{why}");
    signal(Signal::CONT);
    world.cluster.ready().unwrap();
    wait("one leads again", || {
        (daemons.iter().filter(leads).count() == 1).then_some(())
    });
    assert_eq!((world.bundle().to_pem(), policy()), (bundle, stood));
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    world.certificate("n1", uid.as_str().unwrap());
    let gone = world.node("n10");
    world.certificate("n10", &gone);
    world.kubectl(&["delete", "node", "n10"]);
    wait("n10 is revoked", || {
        let events = world.events("NodeRevoked");
        let told = events
            .iter()
            .any(|event| event["regarding"]["name"] == "n10");
        told.then_some(())
    });
    for daemon in daemons {
        daemon.lives();
    }
}
