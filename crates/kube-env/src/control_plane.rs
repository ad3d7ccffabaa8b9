//! etcd, the API server and the controller manager: their certificates and their arguments.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};

use crate::certificates::{Certificates, Subject};
use crate::network::{API_SERVICE, Network, PODS, SERVICES};
use crate::programs::{API_SERVER, CONTROLLER_MANAGER, ETCD_SERVER, Program, SCHEDULER};

/// Where etcd listens, in a namespace that is the control plane's alone.
const ETCD: &str = "http://127.0.0.1:2379";
/// The issuer of service accounts' tokens.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A process of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The database.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controllers.
    ControllerManager,
    /// What gives pods to nodes; it runs where there are nodes.
    Scheduler,
}

impl Component {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 4] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
    ];

    pub(crate) fn program(self) -> &'static Program {
        match self {
            Self::Etcd => &ETCD_SERVER,
            Self::ApiServer => &API_SERVER,
            Self::ControllerManager => &CONTROLLER_MANAGER,
            Self::Scheduler => &SCHEDULER,
        }
    }

    /// Its name: that of its program, of its log, and in the record of processes.
    pub fn name(self) -> &'static str {
        self.program().name
    }

    /// The program and its arguments, for a cluster in `folder`.
    pub(crate) fn words(self, folder: &Path, network: Network) -> Result<Vec<String>> {
        let text = folder.to_str().context("the run directory is not text")?;
        let program = self.program().path()?;
        let program = program.to_str().context("the cache's path is not text")?;
        let pki = format!("{text}/pki");
        let arguments = match self {
            Self::Etcd => etcd(text),
            Self::ApiServer => api_server(&pki, text, network),
            Self::ControllerManager => controller_manager(&pki, text),
            Self::Scheduler => scheduler(text),
        };
        let mut words = vec![program.to_owned()];
        words.extend(arguments);
        Ok(words)
    }
}

/// The address under which all reach the API server. The port is that of its service, so that
/// pods and nodes find it under both addresses without a proxy.
pub(crate) fn server(network: Network) -> String {
    format!("https://{}:443", network.server())
}

/// Makes the certificates and kubeconfigs of a control plane.
pub(crate) fn prepare(folder: &Path, network: Network) -> Result<Certificates> {
    let certificates = Certificates::create(&folder.join("pki"))?;
    let addresses = [network.server(), API_SERVICE, Ipv4Addr::LOCALHOST].map(IpAddr::from);
    certificates.sign(&Subject {
        file: "apiserver",
        name: "kube-apiserver",
        group: None,
        hosts: &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ],
        addresses: &addresses,
    })?;
    let client = |file, name, group| Subject {
        file,
        name,
        group,
        hosts: &[],
        addresses: &[],
    };
    let to_kubelets = client(
        "kubelet-client",
        "kube-apiserver-kubelet-client",
        Some("system:masters"),
    );
    certificates.sign(&to_kubelets)?;
    let server = server(network);
    for (subject, file) in [
        (
            client("admin", "kubernetes-admin", Some("system:masters")),
            "kubeconfig",
        ),
        (
            client("controller-manager", "system:kube-controller-manager", None),
            "controller-manager.kubeconfig",
        ),
        (
            client("scheduler", "system:kube-scheduler", None),
            "scheduler.kubeconfig",
        ),
    ] {
        certificates.kubeconfig(&subject, &server, &folder.join(file))?;
    }
    Ok(certificates)
}

fn etcd(folder: &str) -> Vec<String> {
    [
        "--name=testudo",
        &format!("--data-dir={folder}/etcd"),
        &format!("--listen-client-urls={ETCD}"),
        &format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=testudo=http://127.0.0.1:2380",
        // It outlives no crash of the machine, and is spared the waits for its disk.
        "--unsafe-no-fsync",
        // Alone, it has nobody to hear from: these are only its wake-ups.
        "--heartbeat-interval=1000",
        "--election-timeout=10000",
        "--log-level=warn",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn api_server(pki: &str, folder: &str, network: Network) -> Vec<String> {
    [
        &format!("--etcd-servers={ETCD}"),
        // Said aloud, because there is no default route to find it by.
        &format!("--advertise-address={}", network.server()),
        "--secure-port=443",
        // Of itself it would write its own address as the service's, at a port that is not ours.
        "--endpoint-reconciler-type=none",
        &format!("--service-cluster-ip-range={SERVICES}"),
        &format!("--tls-cert-file={pki}/apiserver.crt"),
        &format!("--tls-private-key-file={pki}/apiserver.key"),
        &format!("--client-ca-file={pki}/ca.crt"),
        &format!("--kubelet-certificate-authority={pki}/ca.crt"),
        &format!("--kubelet-client-certificate={pki}/kubelet-client.crt"),
        &format!("--kubelet-client-key={pki}/kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP",
        &format!("--service-account-issuer={ISSUER}"),
        &format!("--service-account-key-file={pki}/service-account.pub"),
        &format!("--service-account-signing-key-file={pki}/service-account.key"),
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        &format!("--cert-dir={folder}/apiserver"),
        "--profiling=false",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Controllers of what no cluster here has: volumes, devices, scaling, quotas. Each would watch its kinds for
/// nothing, which a guest with one processor feels.
const WITHOUT: [&str; 16] = [
    "cronjob-controller",
    "device-taint-eviction-controller",
    "ephemeral-volume-controller",
    "horizontal-pod-autoscaler-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-expander-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "podcertificaterequest-cleaner-controller",
    "podgroup-protection-controller",
    "replicationcontroller-controller",
    "resourceclaim-controller",
    "resourcequota-controller",
    "storage-version-migrator-controller",
    "volumeattributesclass-protection-controller",
];

fn controller_manager(pki: &str, folder: &str) -> Vec<String> {
    let kubeconfig = format!("{folder}/controller-manager.kubeconfig");
    let without = WITHOUT.map(|name| format!(",-{name}")).concat();
    let controllers = format!("--controllers=*{without}");
    [
        &format!("--kubeconfig={kubeconfig}"),
        &format!("--authentication-kubeconfig={kubeconfig}"),
        &format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        &controllers,
        "--use-service-account-credentials=true",
        &format!("--service-account-private-key-file={pki}/service-account.key"),
        &format!("--root-ca-file={pki}/ca.crt"),
        &format!("--cluster-signing-cert-file={pki}/ca.crt"),
        &format!("--cluster-signing-key-file={pki}/ca.key"),
        "--allocate-node-cidrs=true",
        &format!("--cluster-cidr={PODS}"),
        &format!("--service-cluster-ip-range={SERVICES}"),
        "--profiling=false",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn scheduler(folder: &str) -> Vec<String> {
    let kubeconfig = format!("{folder}/scheduler.kubeconfig");
    [
        &format!("--kubeconfig={kubeconfig}"),
        &format!("--authentication-kubeconfig={kubeconfig}"),
        &format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]
    .map(str::to_owned)
    .to_vec()
}
