//! The way to the API server: who we are there, and how long we wait.

use std::future::Future;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use testudo_model::{API_VERSION, Kind, NodeName};
use testudo_store::{Kubernetes, StoreError};

use crate::request;
use crate::verdict;

/// How long a call may take.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// Who writes. Each has a field manager of its own, so that the API server knows whose a field is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The agent of this node. Of certificate requests it sees those of its node alone.
    Agent(NodeName),
    /// The controller.
    Controller,
    /// A person at the command line: fields that somebody else keeps are left to them.
    Cli,
    /// The same, who takes such fields.
    CliTakingOver,
}

impl Writer {
    /// The field manager.
    pub fn manager(&self) -> &'static str {
        match self {
            Writer::Agent(_) => "testudo-agent",
            Writer::Controller => "testudo-controller",
            Writer::Cli | Writer::CliTakingOver => "testudo-cli",
        }
    }

    /// Whether a field is taken from whoever keeps it. Daemons write objects that are theirs alone.
    pub(crate) fn takes(&self) -> bool {
        *self != Writer::Cli
    }

    /// Whether it is no person.
    pub(crate) fn is_daemon(&self) -> bool {
        !matches!(self, Writer::Cli | Writer::CliTakingOver)
    }

    /// What a write says of itself. A person's unknown field is a typing error and refused; a
    /// daemon's is that of a newer build, before its CRDs, and left out.
    pub(crate) fn patch(&self, force: bool) -> PatchParams {
        let params = PatchParams::apply(self.manager());
        let params = match self.is_daemon() {
            true => params.validation_ignore(),
            false => params.validation_strict(),
        };
        PatchParams { force, ..params }
    }
}

/// Settings of a [`crate::KubeStore`].
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// Which API server.
    pub at: Kubernetes,
    /// Who writes.
    pub writer: Writer,
}

/// A client and the name of its API server.
pub(crate) struct Link {
    pub(crate) client: Client,
    /// `https://10.0.0.1:6443`.
    pub(crate) server: String,
}

impl Link {
    /// Reads the configuration; no API server is asked anything yet. Must run inside the runtime that
    /// the calls are made from.
    pub(crate) async fn open(at: &Kubernetes) -> Result<Link, StoreError> {
        let mut config = config(at).await?;
        config.connect_timeout = Some(CONNECT);
        config.write_timeout = Some(PATIENCE);
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| StoreError::Unavailable {
            what: format!("no way to {server}: {}", verdict::chain(&error)),
            remedy: "mend the kubeconfig, or name another with --kubeconfig".to_owned(),
        })?;
        Ok(Link { client, server })
    }

    /// The objects of a kind.
    pub(crate) fn api<K: Kind>(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource::<K>())
    }

    /// Does one call, and no longer than [`PATIENCE`].
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, kube::Error> {
        crate::call::call(PATIENCE, call).await
    }
}

pub(crate) async fn config(at: &Kubernetes) -> Result<Config, StoreError> {
    let named = at.kubeconfig.is_some() || at.context.is_some();
    if !named && in_cluster() {
        return Config::incluster().map_err(|error| StoreError::Unavailable {
            what: format!("the pod's service account cannot be used: {error}"),
            remedy: "see that automountServiceAccountToken is not false".to_owned(),
        });
    }
    let options = KubeConfigOptions {
        context: at.context.clone(),
        ..KubeConfigOptions::default()
    };
    let read = match &at.kubeconfig {
        None => Config::from_kubeconfig(&options).await,
        Some(file) => match Kubeconfig::read_from(file) {
            Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(error) => Err(error),
        },
    };
    read.map_err(|error| {
        let file = at.kubeconfig.as_ref().map_or_else(
            || "the kubeconfig".to_owned(),
            |file| format!("the kubeconfig {}", file.display()),
        );
        StoreError::Unavailable {
            what: format!("{file} cannot be used: {}", verdict::chain(&error)),
            remedy: "name one with --kubeconfig, or a context of it with --context".to_owned(),
        }
    })
}

/// Whether this process runs in a pod with a service account.
pub fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && std::path::Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}

/// Where a kind lives in the API.
pub(crate) fn resource<K: Kind>() -> ApiResource {
    if request::is_request::<K>() {
        return request::resource();
    }
    let (group, version) = API_VERSION.split_once('/').unwrap_or(("", API_VERSION));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        plural: K::PLURAL.to_owned(),
    }
}
