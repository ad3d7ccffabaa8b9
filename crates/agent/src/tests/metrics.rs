//! What an agent shows over HTTP while it works.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn get(cluster: &Cluster, node: u8, path: &str) -> String {
    let address = cluster.options(node).metrics.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[test]
fn a_node_shows_its_metrics_and_is_ready_when_its_tunnels_stand() {
    on_one_thread(async {
        let cluster = Cluster::new(37, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        wait("readiness", async || {
            get(&cluster, 1, "/readyz")
                .await
                .starts_with("HTTP/1.1 200")
        })
        .await;
        let page = get(&cluster, 1, "/metrics").await;
        for line in [
            "testudo_build_info{version=\"1\"} 1.0",
            "testudo_phase{phase=\"Strict\"} 1.0",
            "testudo_phase{phase=\"Disabled\"} 0.0",
            "testudo_datapath{datapath=\"user\"} 1.0",
            "testudo_tunnels_up 1.0",
            "testudo_tunnels_expected 1.0",
            "testudo_problems 0.0",
            "testudo_ike_authentications_total 1",
            "testudo_sas{kind=\"ike\"} 1.0",
            "testudo_sas{kind=\"child\"} 1.0",
            "testudo_effective_mtu_bytes 1416.0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
        for part in [
            "testudo_certificate_expiry_timestamp_seconds 1",
            "testudo_ca_expiry_timestamp_seconds{ca=\"Testudo CA",
            "testudo_esp_packets_total{direction=\"out\"} ",
            "testudo_ike_handshake_seconds_count{role=\"",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        // The second was asked for peers.
        let page = get(&cluster, 2, "/metrics").await;
        for part in [
            "testudo_tunnel_up{peer=\"n1\",family=\"IPv4\"} 1.0",
            "testudo_esp_bytes_total{peer=\"n1\",family=\"IPv4\",direction=\"in\"} ",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
    });
}
