//! Where a rotation stands, as the first lines of `ca.pem`. A file without them is one of a CA that was
//! never rotated.
//!
//! ```text
//! ca-rotation: 3
//! ca-rotation-answered: 2
//! ca-rotation-phase: Retiring
//! ca-rotation-other: Testudo CA 1f00ba11
//! ca-rotation-taken-back: yes
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use testudo_model::CaPhase;
use testudo_plan::authority::Standing;

const PREFIX: &str = "ca-rotation";
const PHASES: [CaPhase; 4] = [
    CaPhase::Settled,
    CaPhase::Trusting,
    CaPhase::Issuing,
    CaPhase::Retiring,
];

/// The lines.
pub(super) fn write(standing: &Standing) -> String {
    let mut text = format!(
        "{PREFIX}: {}\n{PREFIX}-answered: {}\n{PREFIX}-phase: {}\n",
        standing.rotation, standing.answered, standing.phase
    );
    if let Some(other) = &standing.other {
        // A name of somebody's making must not begin a line of its own.
        let other: String = other.chars().filter(|c| !c.is_control()).collect();
        text += &format!("{PREFIX}-other: {other}\n");
    }
    if standing.taken_back {
        text += &format!("{PREFIX}-taken-back: yes\n");
    }
    text
}

/// Reads them. `signer` and `other` are the names of the CAs in the file that have keys.
pub(super) fn read(text: &str, signer: &str, other: Option<String>) -> anyhow::Result<Standing> {
    let head = text.split("-----BEGIN").next().unwrap_or_default();
    let lines: BTreeMap<&str, &str> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(key, _)| key.starts_with(PREFIX))
        .collect();
    let mut standing = Standing::settled(signer);
    let number = |key: &str| match lines.get(key) {
        None => Ok(0),
        Some(text) => text
            .parse()
            .with_context(|| format!("{key}: {text:?} is no number")),
    };
    standing.rotation = number("ca-rotation")?;
    standing.answered = number("ca-rotation-answered")?;
    standing.taken_back = lines.get("ca-rotation-taken-back") == Some(&"yes");
    if let Some(text) = lines.get("ca-rotation-phase") {
        let phase = PHASES.into_iter().find(|phase| phase.to_string() == *text);
        standing.phase = phase.with_context(|| format!("ca-rotation-phase: {text:?} is none"))?;
    }
    let both = matches!(standing.phase, CaPhase::Trusting | CaPhase::Issuing);
    match (&other, both) {
        (Some(_), true) => standing.other = other,
        (None, true) => bail!(
            "a rotation is {}, and only one CA has its key: restore the file from a backup",
            standing.phase
        ),
        (Some(other), false) => bail!("no rotation goes on, and {other} has a key: remove the key"),
        (None, false) => {
            let named = lines
                .get("ca-rotation-other")
                .map(|name| (*name).to_owned());
            standing.other = named.filter(|_| standing.phase == CaPhase::Retiring);
            let lost = standing.phase == CaPhase::Retiring && standing.other.is_none();
            ensure!(!lost, "a rotation is Retiring, and does not say which CA");
        }
    }
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(phase: CaPhase, other: Option<&str>) -> Standing {
        Standing {
            phase,
            rotation: 3,
            answered: 2,
            other: other.map(str::to_owned),
            taken_back: phase == CaPhase::Retiring,
            ..Standing::settled("a")
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (phase, other) in [
            (CaPhase::Settled, None),
            (CaPhase::Trusting, Some("b")),
            (CaPhase::Issuing, Some("b")),
            (CaPhase::Retiring, Some("b: of\tsomebody")),
        ] {
            let standing = standing(phase, other);
            let keyed = other.filter(|_| phase != CaPhase::Retiring);
            let text = write(&standing) + "-----BEGIN CERTIFICATE-----\nca-rotation: 9\n";
            let read = read(&text, "a", keyed.map(str::to_owned)).unwrap();
            let expected = Standing {
                other: standing.other.clone().map(|name| name.replace('\t', "")),
                ..standing
            };
            assert_eq!(read, expected);
        }
        assert_eq!(read("", "a", None).unwrap(), Standing::settled("a"));
    }

    #[test]
    fn what_does_not_fit_together_stops_the_controller() {
        let with = |phase, other| write(&standing(phase, other));
        for (text, other, part) in [
            (with(CaPhase::Trusting, Some("b")), None, "backup"),
            (with(CaPhase::Issuing, Some("b")), None, "backup"),
            (with(CaPhase::Settled, None), Some("b"), "remove the key"),
            (String::new(), Some("b"), "remove the key"),
            (with(CaPhase::Retiring, None), None, "which CA"),
            ("ca-rotation: x\n".to_owned(), None, "no number"),
            ("ca-rotation-phase: x\n".to_owned(), None, "is none"),
        ] {
            let error = read(&text, "a", other.map(str::to_owned)).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
