//! What a Node says of its pods, with the token of its agent.

use ipnet::IpNet;
use testudo_model::NodeName;
use testudo_store_kube::NodePods;
use tokio::sync::mpsc::Receiver;

use crate::world::{PATIENCE, World};

async fn next(pods: &mut Receiver<NodePods>) -> NodePods {
    let event = tokio::time::timeout(PATIENCE, pods.recv()).await;
    event.expect("nothing was told").expect("the watch ended")
}

/// Forbidden, then allowed; assigned by the controller manager; said otherwise by a person.
pub(crate) async fn prefixes_of_a_node(world: &World) {
    let store = world.agents_store("pods1");
    let name = NodeName::new("pods1").unwrap();
    let mut pods = store.watch_pods(&name).await.unwrap();
    match next(&mut pods).await {
        NodePods::Away(problem) => {
            let said = problem.to_string();
            assert!(
                said.contains("forbids") && problem.is_of_the_store(),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    let role = "--verb=get,list,watch";
    world.kubectl(&["create", "clusterrole", "seeing", role, "--resource=nodes"]);
    let account = "--serviceaccount=testudo-system:testudo-agent";
    let binding = ["create", "clusterrolebinding", "seeing"];
    world.kubectl(&[&binding[..], &["--clusterrole=seeing", account]].concat());
    let back = next(&mut pods).await;
    assert!(matches!(back, NodePods::Back(_)), "{back:?}");

    let assigned = loop {
        match next(&mut pods).await {
            NodePods::Are(Ok(prefixes)) => break prefixes,
            NodePods::Are(Err(why)) => assert!(why.contains("no spec.podCIDRs"), "{why}"),
            other => panic!("{other:?}"),
        }
    };
    let cluster: IpNet = "10.244.0.0/16".parse().unwrap();
    assert!(
        assigned.len() == 1 && cluster.contains(&assigned[0]),
        "{assigned:?}"
    );

    let annotate = |word: &str| world.kubectl(&["annotate", "--overwrite", "node", "pods1", word]);
    annotate("testudo.dev/pod-cidrs=10.9.0.0/24,fd00:9::/64");
    let said = ["10.9.0.0/24", "fd00:9::/64"].map(|net| net.parse().unwrap());
    assert_eq!(next(&mut pods).await, NodePods::Are(Ok(said.to_vec())));
    // What is no change of these is not told.
    annotate("example.org/other=1");
    annotate("testudo.dev/pod-cidrs=all");
    match next(&mut pods).await {
        NodePods::Are(Err(why)) => assert!(why.contains("\"all\" is no prefix"), "{why}"),
        other => panic!("{other:?}"),
    }
    annotate("testudo.dev/pod-cidrs-");
    assert_eq!(next(&mut pods).await, NodePods::Are(Ok(assigned)));

    let mut nobody = store
        .watch_pods(&NodeName::new("nobody").unwrap())
        .await
        .unwrap();
    match next(&mut nobody).await {
        NodePods::Are(Err(why)) => assert!(why.contains("no Node \"nobody\""), "{why}"),
        other => panic!("{other:?}"),
    }
}
