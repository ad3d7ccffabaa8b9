//! A whole cluster in network namespaces on one machine.
