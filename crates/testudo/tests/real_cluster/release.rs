//! The release is upgraded, and removed.

use testudo_kube_env::chart::NAMESPACE;

use super::Datapath;
use super::world::{OURS, PATIENCE, World, text, until};

/// Every pod of it is replaced: the agents' one node at a time.
pub(super) fn upgraded(world: &mut World) {
    let agents = |world: &World| -> Vec<i32> {
        let nodes = world.cluster.nodes();
        let agent = |node: &u8| world.agent(*node).expect("an agent");
        nodes.iter().map(agent).collect()
    };
    let before = agents(world);
    let archive = text(&world.chart.archive);
    let change = "--set=agent.verbosity=1,controller.verbosity=1";
    let words = ["upgrade", "testudo", archive, "--reuse-values", change];
    world.helm(&[&words[..], &["--wait", PATIENCE]].concat());
    let set = "daemonset/testudo-agent";
    world.kubectl(&["rollout", "status", set, "-n", NAMESPACE, PATIENCE]);
    world.wait_strict();
    for (old, new) in before.iter().zip(agents(world)) {
        assert_ne!(*old, new, "an agent that was not replaced");
    }
}

/// Nothing of ours is left on a node; what is kept on purpose is there.
pub(super) fn removed(world: &mut World) {
    for node in world.cluster.nodes() {
        let there = of_ours(world, node);
        assert!(!there.is_empty(), "node{node}: nothing to remove");
    }
    // As where a tool of GitOps keeps the policy.
    let policy = "apiVersion: testudo.dev/v1alpha1\nkind: EncryptionPolicy\n\
                  metadata: { name: cluster }\nspec: { mode: Full }\n";
    let path = world.dir.path().join("kept.yaml");
    std::fs::write(&path, policy).expect("a file");
    let words = ["apply", "--server-side", "--force-conflicts"];
    let words = [&words[..], &["--field-manager=gitops", "-f", text(&path)]].concat();
    world.kubectl(&words);
    world.helm(&["uninstall", "testudo", "--wait", PATIENCE]);
    for node in world.cluster.nodes() {
        assert_eq!(of_ours(world, node), Vec::<String>::new(), "node{node}");
    }
    let kept = world.kubectl(&["get", "secret", "-n", NAMESPACE, "-o", "name"]);
    assert!(kept.contains("secret/testudo-ca"), "{kept}");
    let policy = world.kubectl(&["get", "encpol", "cluster", "-o", "jsonpath={.status.phase}"]);
    assert_eq!(policy, "Disabled");
    let kinds = "pods,deployments,daemonsets,jobs,serviceaccounts,roles,clusterroles,\
                 validatingadmissionpolicies";
    let words = ["get", kinds, "-n", NAMESPACE, "-l", OURS, "-o", "name"];
    until("the end of the pods", || match world.kubectl(&words) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

/// The kernel's objects on a node that only we make: no node has any other SA or policy.
fn of_ours(world: &World, node: u8) -> Vec<String> {
    let lines = |command: &[&str], needed: bool| -> Vec<String> {
        let (done, said) = world.in_node(node, command);
        assert!(done || !needed, "node{node}: {command:?}");
        said.lines().map(str::to_owned).collect()
    };
    let kernel = world.datapath == Datapath::Kernel;
    let mut found = lines(&["ip", "xfrm", "state"], kernel);
    found.extend(lines(&["ip", "xfrm", "policy"], kernel));
    let mut others = lines(&["nft", "list", "tables"], true);
    others.extend(lines(&["ip", "rule"], true));
    others.extend(lines(&["ip", "-brief", "link"], true));
    let traces = ["testudo", "50050"];
    others.retain(|line| traces.iter().any(|trace| line.contains(trace)));
    found.extend(others);
    found
}
