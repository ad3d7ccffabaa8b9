//! Who stands behind a certificate request, as far as a store can vouch for it.

use crate::tokens::JoinToken;

/// Who asks. What it says of itself stands in the request; this is what is known of it.
pub enum Requester {
    /// Nobody has authenticated the writer: it is the node that it names if the request's proof was
    /// made with that node's join token, this one. `None`: the node has none.
    HolderOf(Option<JoinToken>),
    /// An API server has.
    Authenticated(Authenticated),
}

/// What an API server knows of who wrote a `CertificateSigningRequest`, and what the request asks for
/// beside the names in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    /// `system:serviceaccount:NAMESPACE:NAME` of an agent.
    pub username: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// The nodes to which its token is bound (`authentication.kubernetes.io/node-name`): one, or none
    /// where the token is not bound.
    pub nodes: Vec<String>,
    /// The UIDs of those (`authentication.kubernetes.io/node-uid`), as they were when the token was made:
    /// a pod's token outlives its Node for a while, and a Node made anew under the name is another.
    pub node_uids: Vec<String>,
    /// The key usages asked for.
    pub usages: Vec<String>,
}
