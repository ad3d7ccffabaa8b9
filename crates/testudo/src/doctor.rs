//! `testudo doctor`: what is wrong with this host for the kernel's IPsec.

use clap::Args;
use serde::Serialize;
use testudo_datapath_kernel::doctor::{self, Finding, Severity};

use crate::exit::{CheckFailed, Outcome};
use crate::global::Global;
use crate::output::{self, Columns};

const EXAMPLES: &str = "\
Examples:
  testudo doctor
  testudo doctor -o json
  ip netns exec n1 testudo doctor      in another network namespace";

/// Check this host: the kernel's IPsec, its known holes, and who else uses it.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorCommand {}

/// What programs read.
#[derive(Serialize)]
struct Report<'a> {
    /// No check failed.
    ok: bool,
    findings: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    check: &'a str,
    severity: &'static str,
    line: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'a str,
}

/// Runs the verb.
pub(crate) fn run(_: &DoctorCommand, global: &Global) -> Outcome {
    let findings = doctor::examine(&doctor::gather());
    let ok = findings.iter().all(|f| f.severity < Severity::Failure);
    let report = Report {
        ok,
        findings: findings.iter().map(row).collect(),
    };
    match global.format().is_data() {
        true => output::data(global.format(), &report)?,
        false => table(&report)?,
    }
    match ok {
        true => Ok(()),
        false => Err(CheckFailed.into()),
    }
}

fn row(finding: &Finding) -> Row<'_> {
    Row {
        check: finding.check,
        severity: match finding.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Failure => "failure",
        },
        line: &finding.line,
        remedy: &finding.remedy,
    }
}

fn table(report: &Report<'_>) -> Outcome {
    let mut columns = Columns::new(["CHECK", "RESULT", "FINDING"]);
    for row in &report.findings {
        let line = match row.remedy {
            "" => row.line.to_owned(),
            remedy => format!("{}; {remedy}", row.line),
        };
        columns.row([row.check, row.severity, &line]);
    }
    columns.print()
}
