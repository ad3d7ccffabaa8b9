//! The testudo command.

fn main() {}
