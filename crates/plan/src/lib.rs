//! Pure decisions: the phases of a roll-out and what a node has to do next.
#![forbid(unsafe_code)]
