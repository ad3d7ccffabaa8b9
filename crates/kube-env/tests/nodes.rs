//! Real nodes: ready, with a DaemonSet as Testudo's agent is one, and pods that talk across nodes over
//! VXLAN.

use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testudo_kube_env::image::BUSYBOX;
use testudo_kube_env::{Cluster, NewNode, Options};
use testudo_netlink::Netlink;

/// How long a DaemonSet or a pod may take: many times what it takes on an idle machine.
const PATIENCE: &str = "--timeout=180s";

#[test]
fn pods_of_two_nodes_talk_over_vxlan_and_nothing_is_left() -> Result<()> {
    let name = format!("test-{}", std::process::id());
    let options = Options {
        nodes: 2,
        ..Options::named(&name)
    };
    let start = Instant::now();
    let cluster = Cluster::up(&options, &|line| eprintln!("{line}"))?;
    eprintln!("2 nodes ready in {:.1} s", start.elapsed().as_secs_f32());
    for process in cluster.processes() {
        let memory = process
            .memory
            .with_context(|| format!("{} has ended", process.name))?;
        eprintln!("{}: {} MiB", process.name, memory / 1024);
    }
    assert_eq!(cluster.nodes(), [1, 2]);
    an_agent_needs_no_more_than_net_admin(&cluster)?;
    pods_talk_over_vxlan(&cluster)?;
    a_pod_reaches_the_api_server(&cluster)?;
    a_node_comes_and_goes(&cluster)?;

    let directory = cluster.directory();
    let start = Instant::now();
    cluster.down()?;
    eprintln!("down in {:.1} s", start.elapsed().as_secs_f32());
    assert!(!directory.exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    assert!(!mounts.contains(&name), "{mounts}");
    for entry in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let group = entry.path().join("testudo-kube").join(&name);
        assert!(!group.exists(), "{}", group.display());
    }
    Ok(())
}

/// A DaemonSet with the node's network and no capability but NET_ADMIN runs on each node, its root
/// read-only, and makes a link there.
fn an_agent_needs_no_more_than_net_admin(cluster: &Cluster) -> Result<()> {
    let command = "ip link add probe0 type bridge && touch /run/probe/made && exec sleep 100000";
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "agent" },
        "spec": {
            "selector": { "matchLabels": { "app": "agent" } },
            "template": {
                "metadata": { "labels": { "app": "agent" } },
                "spec": {
                    "hostNetwork": true,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "agent",
                        "image": BUSYBOX,
                        "command": ["sh", "-c", command],
                        "securityContext": {
                            "readOnlyRootFilesystem": true,
                            "allowPrivilegeEscalation": false,
                            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
                        },
                        "readinessProbe": {
                            "exec": { "command": ["test", "-e", "/run/probe/made"] },
                            "periodSeconds": 1,
                        },
                        "volumeMounts": [{ "name": "probe", "mountPath": "/run/probe" }],
                    }],
                    "volumes": [{
                        "name": "probe",
                        "hostPath": { "path": "/run/probe", "type": "DirectoryOrCreate" },
                    }],
                },
            },
        },
    });
    apply(cluster, &set)?;
    cluster.kubectl(&["rollout", "status", "daemonset/agent", PATIENCE])?;
    let logs = cluster.kubectl(&["logs", "daemonset/agent"])?;
    assert_eq!(logs, "", "what the API server asks of the kubelet");
    for number in 1..=2 {
        // The node's own link and the node's own path, each of its own.
        inside(cluster, number, &["ip", "link", "show", "probe0"])?;
        inside(cluster, number, &["test", "-e", "/run/probe/made"])?;
    }
    assert!(
        !std::path::Path::new("/run/probe").exists(),
        "the machine's"
    );
    Ok(())
}

/// Two pods, one a node: they ping and speak TCP, and what crosses the underlay is UDP 4789.
fn pods_talk_over_vxlan(cluster: &Cluster) -> Result<()> {
    for number in 1..=2 {
        let command =
            "echo hello from $(cat /etc/hostname) >/tmp/index.html; exec httpd -f -p 80 -h /tmp";
        make_pod(cluster, number, command)?;
    }
    for pod in ["pod/pod1", "pod/pod2"] {
        cluster.kubectl(&["wait", "--for=condition=Ready", pod, PATIENCE])?;
    }
    let field = "jsonpath={.status.podIP}";
    let address = cluster.kubectl(&["get", "pod", "pod2", "-o", field])?;

    // The count of frames that node 1's overlay device has sent goes up by at least what was sent.
    let before = sent(cluster)?;
    let ping = ["exec", "pod1", "--", "ping", "-c", "5", "-W", "5", &address];
    let said = cluster.kubectl(&ping)?;
    assert!(said.contains(" 0% packet loss"), "{said}");
    let url = format!("http://{address}/");
    let said = cluster.kubectl(&["exec", "pod1", "--", "wget", "-q", "-O", "-", &url])?;
    assert_eq!(said.trim(), "hello from pod2");
    let after = sent(cluster)?;
    assert!(after >= before + 8, "{before} and {after} packets by VXLAN");
    seen_on_the_wire(cluster, &address)
}

fn make_pod(cluster: &Cluster, number: u8, command: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": format!("pod{number}") },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": format!("node{number}") },
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "pod",
                "image": BUSYBOX,
                "command": ["sh", "-c", command],
            }],
        },
    });
    apply(cluster, &pod)
}

/// What node 1's port of the underlay carries while a pod pings another is VXLAN, and no packet of
/// a pod's stands there bare.
fn seen_on_the_wire(cluster: &Cluster, address: &str) -> Result<()> {
    let namespace = format!("--net=/run/netns/testudo-kube-{}", cluster.name());
    let watch = |filter: &str, count: &str| {
        std::process::Command::new("timeout")
            .args([
                "30", "nsenter", &namespace, "tcpdump", "-n", "-l", "-i", "node1", "-c", count,
            ])
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("tcpdump")
    };
    let vxlan = watch("udp dst port 4789", "6")?;
    let bare = watch(&format!("host {address}"), "1")?;
    // They have opened what they listen on when the first packet of many is seen.
    let ping = ["exec", "pod1", "--", "ping", "-c", "20", "-W", "5", address];
    cluster.kubectl(&ping)?;
    let seen = vxlan.wait_with_output()?;
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    let said = String::from_utf8_lossy(&seen.stderr);
    assert!(
        seen.status.success() && text.contains("VXLAN"),
        "{text}{said}"
    );
    // It says nothing but the end of a line when it is ended.
    let seen = bare.wait_with_output()?;
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(text.trim().is_empty(), "{text}");
    Ok(())
}

/// By the variables that every pod has, and with the token that it is given.
fn a_pod_reaches_the_api_server(cluster: &Cluster) -> Result<()> {
    let command = "nc -w 10 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && \
                   test -s /var/run/secrets/kubernetes.io/serviceaccount/token";
    cluster.kubectl(&["exec", "pod1", "--", "sh", "-c", command])?;
    Ok(())
}

/// A third node under a taint: the DaemonSet's pod on it, a pod that talks with the others; and nothing of it
/// anywhere when it is gone, but its object.
fn a_node_comes_and_goes(cluster: &Cluster) -> Result<()> {
    let new = NewNode {
        taint: Some("example.org/new=:PreferNoSchedule"),
        ..NewNode::default()
    };
    let heard = address_of_the_bridge(cluster)?;
    let start = Instant::now();
    assert_eq!(cluster.add_node(new, &|line| eprintln!("{line}"))?, 3);
    eprintln!(
        "node 3 is ready after {:.1} s",
        start.elapsed().as_secs_f32()
    );
    let taints = cluster.kubectl(&["get", "node", "node3", "-o", "jsonpath={.spec.taints}"])?;
    assert!(taints.contains("example.org/new"), "{taints}");
    assert_eq!(cluster.nodes(), [1, 2, 3]);
    make_pod(cluster, 3, "sleep 100000")?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/pod3", PATIENCE])?;
    let set = ["rollout", "status", "daemonset/agent", PATIENCE];
    cluster.kubectl(&set)?;
    inside(cluster, 3, &["test", "-e", "/run/probe/made"])?;
    let field = "jsonpath={.status.podIP}";
    let address = cluster.kubectl(&["get", "pod", "pod3", "-o", field])?;
    for pod in ["pod1", "pod2"] {
        let ping = ["exec", pod, "--", "ping", "-c", "3", "-W", "5", &address];
        let said = cluster.kubectl(&ping)?;
        assert!(said.contains(" 0% packet loss"), "{said}");
    }

    cluster.remove_node(3)?;
    assert_eq!(cluster.nodes(), [1, 2]);
    assert_eq!(
        address_of_the_bridge(cluster)?,
        heard,
        "the API server is where it was"
    );
    assert!(cluster.remove_node(3).is_err(), "it is gone");
    assert!(
        !cluster
            .processes()
            .iter()
            .any(|process| process.name == "node3")
    );
    let namespace = format!("testudo-kube-{}.node3", cluster.name());
    assert!(!std::path::Path::new("/run/netns").join(namespace).exists());
    let network = address.rsplit_once('.').context("an address")?.0;
    for command in [["ip", "route"], ["ip", "neighbour"], ["bridge", "fdb"]] {
        let said = inside(cluster, 1, &command)?;
        let traces = [network, "198.18.0.13", ":03 dst"];
        let left: Vec<&str> = said
            .lines()
            .filter(|line| traces.iter().any(|trace| line.contains(trace)))
            // The kernel's own of the underlay, which ends by itself.
            .filter(|line| !line.contains("dev eth0"))
            .collect();
        assert!(left.is_empty(), "{command:?}: {left:?}");
    }
    cluster.kubectl(&["get", "node", "node3"])?;
    cluster.kubectl(&["delete", "node", "node3"])?;
    Ok(())
}

/// The link-layer address of the API server, as all others have it in their caches.
fn address_of_the_bridge(cluster: &Cluster) -> Result<String> {
    let netns = std::fs::File::open(format!("/run/netns/testudo-kube-{}", cluster.name()))?;
    let mut netlink = Netlink::open_in(netns.as_fd())?;
    let links = netlink.links()?;
    let bridge = links.iter().find(|link| link.name == "underlay");
    let address = bridge.and_then(|link| link.address);
    Ok(format!(
        "{:?}",
        address.context("a bridge with an address")?
    ))
}

fn sent(cluster: &Cluster) -> Result<u64> {
    let text = inside(cluster, 1, &["ip", "-j", "-s", "link", "show", "vxlan0"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    links[0]["stats64"]["tx"]["packets"].as_u64().context(text)
}

fn inside(cluster: &Cluster, number: u8, command: &[&str]) -> Result<String> {
    let output = cluster.node_command(number)?.args(command).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Objects go in by a file: a test's folder is the cluster's.
fn apply(cluster: &Cluster, object: &serde_json::Value) -> Result<()> {
    let path = cluster.directory().join("object.json");
    std::fs::write(&path, object.to_string())?;
    let path = path.to_str().context("a path that is text")?;
    // The controllers may not have made the namespace's ServiceAccount yet, which pods need.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match cluster.kubectl(&["apply", "-f", path]) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
