//! What a cluster has beside its objects: the documents that only the controller reads, who leads, and how
//! one who asks for a certificate proves who it is.

pub(crate) mod directory;
pub(crate) mod kube;

use std::collections::BTreeMap;
use std::future::Future;

use testudo_crypto::SecretBytes;
use testudo_model::{CertificateRequest, NodeName};
use testudo_store::Requester;

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

    /// Ready when the lead is lost, with the reason.
    fn lost(&mut self) -> impl Future<Output = String> + Send;

    /// Leaves the lead to others at once.
    fn resign(self) -> impl Future<Output = ()> + Send;
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Document {
    /// The CAs with their keys, and where a rotation stands.
    Authority,
    /// The certificates that were given out.
    Register,
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
