//! Kernels with known holes that matter to ESP.
//!
//! Distributions mend their kernels without a new number. So a number that has the mend is proof,
//! and one that has not is a reason to look.

use super::{Facts, Finding, Release, Severity, finding};

struct Hole {
    check: &'static str,
    what: &'static str,
    /// The first release without it.
    mended: (u32, u32),
    /// Releases of older series that were mended: major, minor, patch.
    backports: &'static [(u32, u32, u32)],
}

const HOLES: [Hole; 4] = [
    Hole {
        check: "cve-2020-1749",
        what: "tunnels over IPv6 (VXLAN, Geneve) ask no IPsec policy",
        mended: (5, 5),
        backports: &[],
    },
    Hole {
        check: "cve-2020-25645",
        what: "Geneve asks for IPsec policies without its port: packets leave in clear",
        mended: (5, 9),
        backports: &[],
    },
    Hole {
        check: "cve-2022-27666",
        what: "an oversized packet overflows ESP's buffer",
        mended: (5, 17),
        backports: &[(5, 16, 15)],
    },
    Hole {
        check: "cve-2026-43284",
        what: "ESP in UDP decrypts pages that it shares with files: any local user may write them",
        mended: (7, 1),
        backports: &[
            (5, 10, 255),
            (5, 15, 205),
            (6, 1, 171),
            (6, 6, 138),
            (6, 12, 87),
            (6, 18, 28),
            (7, 0, 5),
        ],
    },
];

/// A finding for each hole that this kernel may have, or one that it has none.
pub(super) fn known(facts: &Facts) -> Vec<Finding> {
    let Some(release) = Release::read(&facts.release, &facts.version) else {
        return Vec::new();
    };
    let open: Vec<Finding> = HOLES
        .iter()
        .filter_map(|hole| hole.in_kernel(release))
        .collect();
    match open.is_empty() {
        true => vec![finding(
            "kernel-holes",
            Severity::Ok,
            "none of the holes in the kernel's ESP that are known here",
        )],
        false => open,
    }
}

impl Hole {
    fn in_kernel(&self, release: Release) -> Option<Finding> {
        let series = (release.major, release.minor);
        if series >= self.mended {
            return None;
        }
        let mut backports = self.backports.iter();
        let backport = backports.find(|(major, minor, _)| (*major, *minor) == series);
        let mended = match (backport, release.patch) {
            // Vendors mend without a new number.
            (_, None) => {
                let line = format!(
                    "its number does not tell whether it has this hole: {}",
                    self.what
                );
                let remedy = format!("see that the kernel's package has {} mended", self.name());
                return Some(finding(self.check, Severity::Note, line).remedy(remedy));
            }
            (Some((_, _, patch)), Some(has)) if has >= *patch => return None,
            (Some((major, minor, patch)), _) => format!("{major}.{minor}.{patch}"),
            (None, _) => format!("{}.{}", self.mended.0, self.mended.1),
        };
        let line = format!("kernels before {mended} have this hole: {}", self.what);
        Some(finding(self.check, Severity::Warning, line).remedy(format!(
            "use {mended} or newer, or a kernel whose vendor has mended {}",
            self.name()
        )))
    }

    fn name(&self) -> String {
        self.check.to_uppercase()
    }
}
