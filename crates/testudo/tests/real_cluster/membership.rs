//! A node comes, is emptied, and goes.

use testudo_kube_env::NewNode;
use testudo_kube_env::chart::NAMESPACE;

use super::Datapath;
use super::install::TAINT;
use super::world::{PATIENCE, World, say, until};

/// Its kubelet registers it under the startup taint: the pod that waits for it starts when its agent is
/// ready, and that is when it is Strict.
pub(super) fn node_added(world: &mut World) {
    world.make_pod("pod3", 3);
    let image = world.image.clone();
    let new = NewNode {
        taint: Some(TAINT),
        images: &[&image],
    };
    let number = world.cluster.add_node(new, &say);
    let number = number.unwrap_or_else(|e| panic!("{e:#}\n{}", world.state()));
    assert_eq!(number, 3);
    world.wait_pods(&["pod3"]);
    let status = world.status_of(3).expect("an agent");
    assert_eq!(status.phase.to_string(), "Strict", "{status:?}");
    world.wait_strict();
}

/// As before maintenance: pods go from it, its agent stays, and of the controllers one is always there.
pub(super) fn node_drained(world: &mut World) {
    let agent = world.agent(3).expect("an agent");
    // The pod is nobody's, so no other one is made for it.
    let words = ["drain", "node3", "--ignore-daemonsets", "--force", PATIENCE];
    let said = world.kubectl(&words);
    assert!(said.contains("pod/pod3 evicted"), "{said}");
    world.places.remove("pod3");
    let deployment = "deployment/testudo-controller";
    world.kubectl(&["rollout", "status", deployment, "-n", NAMESPACE, PATIENCE]);
    assert_eq!(world.agent(3), Ok(agent), "the same agent");
    world.wait_strict();
}

/// Its Node is deleted while it runs: it is revoked, and nobody speaks with it. Then it is switched off.
pub(super) fn node_deleted(world: &mut World) {
    let address = world.place("node3").address.to_string();
    let of_kernel = |world: &World| -> usize {
        let kinds = ["state", "policy"].map(|kind| world.in_node(1, &["ip", "xfrm", kind]).1);
        kinds.concat().matches(&address).count()
    };
    if world.datapath == Datapath::Kernel {
        assert!(of_kernel(world) > 0, "SAs and policies for node3");
    }
    world.kubectl(&["delete", "node", "node3"]);
    until("the end of node3's NodeEncryption", || {
        let there = world.kubectl(&["get", "nodeenc", "-o", "name"]);
        match there.contains("node3") {
            true => Err(there),
            false => Ok(()),
        }
    });
    let field = "jsonpath={.spec.revocationLists}";
    let lists = world.kubectl(&["get", "trustbundle", "cluster", "-o", field]);
    assert_eq!(lists.matches("BEGIN X509 CRL").count(), 1, "{lists}");
    until("the end of the tunnels to node3", || {
        for node in [1, 2] {
            let tunnels = world.tunnels(node)?;
            if let Some(one) = tunnels.iter().find(|one| one.peer.to_string() == "node3") {
                return Err(format!("node{node}: {one:?}"));
            }
        }
        Ok(())
    });
    until(
        "the end of the kernel's objects for node3",
        || match of_kernel(world) {
            0 => Ok(()),
            left => Err(format!("{left} on node1")),
        },
    );
    world.cluster.remove_node(3).expect("a node that goes");
    world.places.remove("node3");
    world.wait_strict();
}
