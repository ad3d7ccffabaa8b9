//! Lifetimes as people write them: `10y`, `4.5y`, `30d`, `12h`, `90m`, `45s`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Seconds in a year of 365 days; OpenShift's and OVN's `10 years` count so too.
pub const YEAR: u64 = 365 * 86_400;

/// A length of time written with a unit. Two spellings of the same length are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lifetime(pub Duration);

impl Lifetime {
    /// `n` years of 365 days.
    pub const fn years(n: u64) -> Lifetime {
        Lifetime(Duration::from_secs(n * YEAR))
    }

    /// `n` hours.
    pub const fn hours(n: u64) -> Lifetime {
        Lifetime(Duration::from_secs(n * 3600))
    }

    /// `n` seconds.
    pub const fn seconds(n: u64) -> Lifetime {
        Lifetime(Duration::from_secs(n))
    }
}

const UNITS: [(&str, u64); 6] = [
    ("y", YEAR),
    ("w", 7 * 86_400),
    ("d", 86_400),
    ("h", 3600),
    ("m", 60),
    ("s", 1),
];

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Lifetime, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a length of time: write a number and a unit, as in 5y, 4.5y, 30d, 12h, 90m, 45s"
            )
        };
        let (unit, factor) = UNITS
            .iter()
            .find(|(unit, _)| text.ends_with(unit))
            .ok_or_else(wrong)?;
        let number = &text[..text.len() - unit.len()];
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(wrong());
        }
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let seconds = value * *factor as f64;
        if !seconds.is_finite() || seconds < 1.0 || seconds > 1000.0 * YEAR as f64 {
            return Err(format!(
                "\"{text}\" is out of range: at least 1s, at most 1000y"
            ));
        }
        Ok(Lifetime(Duration::from_secs(seconds.round() as u64)))
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        // 4.5y is the value people know from OpenShift; whole units otherwise.
        if seconds >= YEAR && (seconds * 2).is_multiple_of(YEAR) {
            let halves = seconds * 2 / YEAR;
            return match halves % 2 {
                0 => write!(f, "{}y", halves / 2),
                _ => write!(f, "{}.5y", halves / 2),
            };
        }
        for (unit, factor) in UNITS {
            if seconds >= factor && seconds.is_multiple_of(factor) {
                return write!(f, "{}{unit}", seconds / factor);
            }
        }
        write!(f, "{seconds}s")
    }
}

impl Serialize for Lifetime {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lifetime {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Lifetime, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Lifetime {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Lifetime".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 24,
            "pattern": r"^[0-9]+(\.[0-9]+)?[ywdhms]$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (text, seconds) in [
            ("10y", 10 * YEAR),
            ("4.5y", 9 * YEAR / 2),
            ("12h", 43_200),
            ("90m", 5400),
            ("45s", 45),
            ("2w", 14 * 86_400),
        ] {
            let parsed: Lifetime = text.parse().unwrap();
            assert_eq!(parsed.0.as_secs(), seconds, "{text}");
            assert_eq!(parsed.to_string().parse::<Lifetime>().unwrap(), parsed);
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in [
            "", "5", "y", "-5y", "5 y", "1e9y", "0s", "nan", "infy", "5x",
        ] {
            let error = text.parse::<Lifetime>().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
