//! Key newtypes and the algorithms IKEv2 and ESP need, over aws-lc-rs.
#![forbid(unsafe_code)]
