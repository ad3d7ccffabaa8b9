//! The agent's UNIX socket: one JSON object a line, one answer a line.
//!
//! Requests: `{"get":"tunnels"}`, `{"get":"status"}`, `{"get":"drops"}`,
//! `{"do":"rekey-child","peer":"n2"}` (`rekey-ike`, `reauthenticate`; without `peer`: all).
//! Answers: `{"ok":true,…}` or `{"ok":false,"error":"…"}`.

mod client;
pub(crate) mod server;
mod types;

pub use client::ask;
pub use types::{
    ActionResult, Actions, ChildView, Drops, Gettable, IkeView, Request, Response, StatusView,
    TunnelView,
};

/// The longest request line, bytes.
pub const MAX_REQUEST: usize = 4096;

/// The longest answer line, bytes: a thousand tunnels fit.
pub const MAX_RESPONSE: usize = 16 << 20;

/// Clients served at once; more wait in the socket's queue.
pub const MAX_CLIENTS: usize = 16;
