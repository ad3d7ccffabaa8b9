//! What a cluster has beside its objects: the documents that only the controller reads, who leads, how
//! one who asks for a certificate proves who it is, and where news are told.

pub(crate) mod directory;
pub(crate) mod kube;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use testudo_crypto::SecretBytes;
use testudo_model::{CertificateRequest, NodeName};
use testudo_pki::Ca;
use testudo_store::Requester;

use crate::news::News;
use crate::signer::Denial;

/// A place for secrets with room for one controller at a time.
///
/// Documents are replaced as a whole: whoever reads one sees it before or after a change, whenever the
/// controller is killed.
pub trait Safe: Send + Sync + 'static {
    /// While it lasts there is no other controller.
    type Term: Term;

    /// Takes the lead; waits for it where another controller may leave it to this one, and is an error
    /// where there is nothing to wait for.
    fn lead(&self) -> impl Future<Output = anyhow::Result<Self::Term>> + Send;

    /// The document as it stands; `None` when there is none.
    fn read(
        &self,
        document: Document,
    ) -> impl Future<Output = anyhow::Result<Option<Sealed>>> + Send;

    /// Puts a text in the place of the version `over`; in that of nothing where there is none.
    fn replace(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> impl Future<Output = Result<Version, SafeError>> + Send;

    /// Where a document stands, for people.
    fn place(&self, document: Document) -> String;

    /// Who is in the cluster, where something else than the nodes' own objects says so.
    fn members(&self) -> impl Future<Output = anyhow::Result<Members>> + Send;

    /// Whether a node that was not among [`Safe::members`] is gone, asked once more before anything is
    /// taken from it.
    fn is_gone(&self, name: &str, uid: &str) -> impl Future<Output = anyhow::Result<bool>> + Send;

    /// Nodes that were removed on purpose and are to lose their certificates now.
    fn removed(&self) -> impl Future<Output = anyhow::Result<Vec<NodeName>>> + Send;

    /// A node has lost its certificates, and is to get no other before it is let in again.
    fn expelled(&self, node: &str) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Ready when the members, a document or the CA that is given may have changed. Where nothing tells of
    /// that it never is.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Which text of a document stands there, as far as changes are told without asking.
    fn seen(&self, _document: Document) -> Seen {
        Seen::Untold
    }

    /// The CA that somebody gives to be used; `None`: the controller makes its own. An error where one is
    /// to be used and cannot be had.
    fn given(&self) -> impl Future<Output = anyhow::Result<Option<Ca>>> + Send {
        std::future::ready(Ok(None))
    }

    /// Nodes on which nothing is to start before their agents are ready.
    fn gated(&self) -> Vec<Gated> {
        Vec::new()
    }

    /// The agent of this node is ready.
    fn open_gate(&self, _node: &Gated) -> impl Future<Output = anyhow::Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Tells people, beside the log. Never waits.
    fn tell(&self, _news: News) {}

    /// How many news were not told, because there were too many.
    fn untold(&self) -> u64 {
        0
    }

    /// Whether it is the node named in the request that asks, by what the store knows of the requester.
    fn authenticate(
        &self,
        request: &CertificateRequest,
        requester: &Requester,
    ) -> impl Future<Output = Result<(), Denial>> + Send;
}

/// The time in which a controller leads.
pub trait Term: Send + 'static {
    /// Whether it may write now.
    fn is_held(&self) -> bool;

    /// The same question for those who outlive the term.
    fn fence(&self) -> Fence;

    /// Ready when the lead is lost, with the reason.
    fn lost(&mut self) -> impl Future<Output = String> + Send;

    /// Leaves the lead to others at once.
    fn resign(self) -> impl Future<Output = ()> + Send;
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Document {
    /// The CAs with their keys, and where a rotation stands.
    Authority,
    /// The certificates that were given out.
    Register,
    /// The CA that somebody gives, which is theirs: [`Safe::given`] reads it, and nothing writes it.
    Given,
}

/// Who is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Those whose NodeEncryption is there. Agents write that themselves, and again when it is gone: it
    /// must stay away for a while before that means anything.
    ThosePublished,
    /// These, UIDs by name: a node that is not among them is gone.
    These(BTreeMap<String, String>),
}

/// Tells one text of a document from the next; only the safe that gave it knows how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub(crate) String);

/// A document that was read.
pub struct Sealed {
    /// What stands in it.
    pub text: SecretBytes,
    /// Which text this is.
    pub version: Version,
}

/// Why a document was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum SafeError {
    /// It is not the one that was read: read it again.
    #[error("{0} was changed by somebody else")]
    Changed(String),
    /// It cannot be written.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Whether the controller leads, for whoever is about to write.
#[derive(Clone)]
pub struct Fence(pub(crate) Arc<dyn Fn() -> bool + Send + Sync>);

impl Fence {
    /// Whether it may write now.
    pub fn is_open(&self) -> bool {
        (self.0)()
    }
}

/// What is known of a document without asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Untold,
    /// There is none.
    Gone,
    /// This text stands there.
    Version(Version),
}

/// A node that waits for its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The boot that it says it is in; empty where it does not.
    pub boot: String,
}

/// A document is gone, or cannot be gone by: somebody has to see to it, and until then what was read last
/// goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Unusable {
    /// A word in CamelCase for programs.
    pub reason: &'static str,
    /// What is wrong and what to do, for people.
    pub text: String,
}
