//! Nodes, policies, security associations: the nouns every other crate speaks in.
#![forbid(unsafe_code)]
