//! The controller: the CA, the signing of node certificates, the phases.
