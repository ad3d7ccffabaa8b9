//! Certificates: the CA, node requests, validation of chains, the renewal decision.
#![forbid(unsafe_code)]
