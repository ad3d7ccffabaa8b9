//! News for people who do not read the log: on Kubernetes they become Events.

/// What has happened, to what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct News {
    /// What it is about.
    pub about: About,
    /// Somebody has to see to it.
    pub warning: bool,
    /// Why it is told: a word in CamelCase for programs.
    pub reason: &'static str,
    /// What the controller did or did not do: a word in CamelCase.
    pub action: &'static str,
    /// A sentence.
    pub text: String,
}

/// What news are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    /// The EncryptionPolicy.
    Policy,
    /// The TrustBundle.
    Bundle,
    /// An ExternalConnection, by name.
    Connection(String),
    /// A node, by name.
    Node(String),
    /// A certificate request, by its name in the API.
    Request(String),
    /// A document of the safe, by its name there.
    Secret(String),
}

impl News {
    /// As it should be.
    pub(crate) fn good(
        about: About,
        reason: &'static str,
        action: &'static str,
        text: impl Into<String>,
    ) -> Self {
        Self {
            about,
            warning: false,
            reason,
            action,
            text: text.into(),
        }
    }

    /// As it should not be.
    pub(crate) fn bad(
        about: About,
        reason: &'static str,
        action: &'static str,
        text: impl Into<String>,
    ) -> Self {
        Self {
            warning: true,
            ..Self::good(about, reason, action, text)
        }
    }
}
