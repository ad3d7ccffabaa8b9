//! The files from which a node's programs take what they are to be.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde_json::json;

use super::{Node, POD_CIDR, base, text};
use crate::certificates::{Certificates, Subject, private_file};
use crate::image;
use crate::network::POD_MTU;
use crate::programs::BRIDGE;

impl Node<'_> {
    pub(super) fn write_certificates(&self, certificates: &Certificates) -> Result<()> {
        let (name, folder) = (self.name(), self.folder());
        let address = IpAddr::from(self.cluster.network().node(self.number)?);
        let user = format!("system:node:{name}");
        let serving = format!("{name}-serving");
        certificates.sign(&Subject {
            file: &serving,
            name: &user,
            group: Some("system:nodes"),
            hosts: &[&name],
            addresses: &[address],
        })?;
        certificates.sign(&Subject {
            file: &name,
            name: &user,
            group: Some("system:nodes"),
            hosts: &[],
            addresses: &[],
        })?;
        for (from, to) in [
            ("ca.crt".to_owned(), "ca.crt"),
            (format!("{name}.crt"), "client.crt"),
            (format!("{name}.key"), "client.key"),
            (format!("{serving}.crt"), "serving.crt"),
            (format!("{serving}.key"), "serving.key"),
        ] {
            let bytes = fs::read(certificates.path(&from))?;
            private_file(&folder.join(to), &bytes)?;
        }
        let config = crate::certificates::kubeconfig(
            &name,
            &self.cluster.server(),
            [
                "/run/node/ca.crt",
                "/run/node/client.crt",
                "/run/node/client.key",
            ],
        );
        private_file(&folder.join("kubeconfig"), config.to_string().as_bytes())
    }

    pub(super) fn write_settings(&self, taint: Option<&str>) -> Result<()> {
        let folder = self.folder();
        let taints: Vec<_> = taint.map(taint_of).transpose()?.into_iter().collect();
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": "/run/node/ca.crt" },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": "/run/node/serving.crt",
            "tlsPrivateKeyFile": "/run/node/serving.key",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.control_group(),
            // Without classes of service, and on machines of any age: what is tested is the
            // network, and the machine's own limits are not ours to divide.
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            // To change it needs a capability that not every root has.
            "oomScoreAdj": 0,
            "protectKernelDefaults": true,
            "makeIPTablesUtilChains": false,
            "resolvConf": "/run/node/resolv.conf",
            "nodeStatusUpdateFrequency": "5s",
            "shutdownGracePeriod": "0s",
            "registerWithTaints": taints,
        });
        private_file(&folder.join("kubelet.json"), kubelet.to_string().as_bytes())?;
        private_file(&folder.join("resolv.conf"), b"nameserver 10.96.0.10\n")?;
        let plugins = base(&BRIDGE)?;
        let plugins = format!("/run/programs/{}", text(&plugins)?);
        let containerd = format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.cri.v1.images"]
  # It works on every file system, and images here are small.
  snapshotter = "native"

  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox}"

[plugins."io.containerd.cri.v1.runtime"]
  # To lower it needs a capability that not every root has.
  restrict_oom_score_adj = true

  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "/run/node/cni"

  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
            sandbox = image::BUSYBOX,
        );
        private_file(&folder.join("containerd.toml"), containerd.as_bytes())
    }

    /// The plugin's settings, whose presence tells containerd that the node has a pod network.
    pub(super) fn write_network(&self, pods: Ipv4Net) -> Result<()> {
        let settings = json!({
            "cniVersion": "1.0.0",
            "name": "testudo",
            "plugins": [{
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "mtu": POD_MTU,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pods.to_string() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                    "dataDir": "/run/cni",
                },
            }],
        });
        private_file(&self.folder().join(POD_CIDR), pods.to_string().as_bytes())?;
        let path = self.folder().join("cni/10-testudo.conflist");
        private_file(&path, settings.to_string().as_bytes())
    }
}

/// A taint's words as the kubelet's settings have them.
fn taint_of(text: &str) -> Result<serde_json::Value> {
    let wrong = || format!("{text:?}: a taint is KEY=VALUE:EFFECT");
    let (rest, effect) = text.rsplit_once(':').with_context(wrong)?;
    let (key, value) = rest.split_once('=').with_context(wrong)?;
    Ok(json!({ "key": key, "value": value, "effect": effect }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taint_is_read() {
        let taint = taint_of("testudo.dev/agent-not-ready=:NoSchedule").unwrap();
        assert_eq!(taint["key"], "testudo.dev/agent-not-ready");
        assert_eq!(
            (&taint["value"], &taint["effect"]),
            (&json!(""), &json!("NoSchedule"))
        );
        for bad in ["", "a", "a=b", "a:b"] {
            assert!(taint_of(bad).is_err(), "{bad}");
        }
    }
}
