//! The planned policies in the kernels of the guest: the oldest that is supported too.

#[path = "policies.rs"]
mod policies;
