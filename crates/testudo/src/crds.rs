//! `testudo crds`: the CustomResourceDefinitions, made from this build's own types.

use clap::Args;
use testudo_store_kube::crd;

use crate::exit::Outcome;
use crate::global::Global;
use crate::output::{self, Format};

/// Print the CustomResourceDefinitions for a Kubernetes cluster.
#[derive(Args)]
#[command(after_help = "Example:\n  testudo crds | kubectl apply --server-side -f -")]
pub(crate) struct CrdsCommand {}

/// Prints them: as a manifest, or as a list for programs.
pub(crate) fn run(_command: &CrdsCommand, global: &Global) -> Outcome {
    match global.format() {
        Format::Json => output::data(Format::Json, &crd::all()),
        _ => output::line(crd::manifest().trim_end()),
    }
}
