//! The IKEv2 engine (RFC 7296), without sockets, clocks or a runtime.
#![forbid(unsafe_code)]
