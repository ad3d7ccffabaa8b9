//! The node agent: store, plan, IKE engine and datapath in one event loop.
