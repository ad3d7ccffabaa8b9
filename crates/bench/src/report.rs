//! The table for people and the JSON for programs.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

/// A measured value: the middle of several, and how far they lie apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) middle: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Measured {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (first, last) = (*values.first()?, *values.last()?);
        Some(Self {
            middle: values[values.len() / 2],
            least: first,
            most: last,
        })
    }
}

/// What a baseline came to.
#[derive(Debug, Clone)]
pub(crate) enum Baseline {
    /// With how many connections.
    Measured(Measured, u32),
    /// Not there, or not able to; the reason.
    Missing(String),
}

/// What was asked for, is there, and could not be measured all the same: a line each, with the reason.
pub(crate) type Gaps = Vec<String>;

/// A row of the report.
pub(crate) struct Row {
    pub(crate) name: Cow<'static, str>,
    pub(crate) unit: &'static str,
    pub(crate) ours: Result<Measured, String>,
    pub(crate) baseline: Vec<(&'static str, Baseline)>,
    /// What is aimed at, for people.
    pub(crate) target: &'static str,
}

/// All that one bench has to say.
pub(crate) struct Report {
    pub(crate) bench: &'static str,
    pub(crate) machine: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// `{"bench":…,"machine":…,"rows":[{"name":…,"unit":…,"ours":…,"baseline":{…}}]}`; what is
    /// missing is `null`, and `missing` says why. `baseline_connections` says with how many
    /// connections a baseline was measured.
    pub(crate) fn json(&self) -> Value {
        let mut missing = Vec::new();
        let mut rows = Vec::new();
        for row in &self.rows {
            let (mut baseline, mut of) = (Map::new(), Map::new());
            for (name, what) in &row.baseline {
                let value = match what {
                    Baseline::Measured(m, number) => {
                        of.insert((*name).to_owned(), json!(number));
                        json!(rounded(m.middle))
                    }
                    Baseline::Missing(why) => {
                        missing.push(format!("{}: {name}: {why}", row.name));
                        Value::Null
                    }
                };
                baseline.insert((*name).to_owned(), value);
            }
            let (ours, spread) = match &row.ours {
                Ok(m) => (
                    json!(rounded(m.middle)),
                    json!([rounded(m.least), rounded(m.most)]),
                ),
                Err(why) => {
                    missing.push(format!("{}: ours: {why}", row.name));
                    (Value::Null, Value::Null)
                }
            };
            rows.push(json!({
                "name": row.name,
                "unit": row.unit,
                "ours": ours,
                "spread": spread,
                "baseline": baseline,
                "baseline_connections": of,
            }));
        }
        json!({
            "bench": self.bench,
            "machine": self.machine,
            "rows": rows,
            "missing": missing,
            "notes": self.notes,
        })
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut out = format!("{} on {}\n", self.bench, self.machine);
        out += &format!(
            "{:<40} {:>6} {:>24} {:>10}  baseline\n",
            "", "unit", "ours (least - most)", "aimed at"
        );
        for row in &self.rows {
            let ours = match &row.ours {
                Ok(m) => spread(m),
                Err(why) => format!("missing: {why}"),
            };
            let baseline: Vec<String> = row
                .baseline
                .iter()
                .map(|(name, what)| match what {
                    Baseline::Measured(m, number) => format!("{name} {} of {number}", spread(m)),
                    Baseline::Missing(why) => format!("{name} missing: {why}"),
                })
                .collect();
            out += &format!(
                "{:<40} {:>6} {:>24} {:>10}  {}\n",
                row.name,
                row.unit,
                ours,
                row.target,
                baseline.join(", ")
            );
        }
        for note in &self.notes {
            out += &format!("note: {note}\n");
        }
        out
    }
}

fn spread(m: &Measured) -> String {
    let show = |x: f64| match x.abs() {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.3}"),
    };
    format!("{} ({} - {})", show(m.middle), show(m.least), show(m.most))
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_shape_that_programs_read() {
        let measured = Measured::of(vec![0.4, 0.2, 0.3]).unwrap();
        let report = Report {
            bench: "ike",
            machine: "a machine".into(),
            rows: vec![Row {
                name: "cpu_ms_per_handshake_and_side_n100".into(),
                unit: "ms",
                ours: Ok(measured),
                baseline: vec![
                    (
                        "charon",
                        Baseline::Measured(Measured::of(vec![4.8]).unwrap(), 100),
                    ),
                    ("libreswan", Baseline::Missing("not unpacked".into())),
                ],
                target: "",
            }],
            notes: Vec::new(),
        };
        let json = report.json();
        assert_eq!(json["bench"], "ike");
        let row = &json["rows"][0];
        assert_eq!(row["name"], "cpu_ms_per_handshake_and_side_n100");
        assert_eq!((&row["unit"], &row["ours"]), (&json!("ms"), &json!(0.3)));
        assert_eq!(row["baseline"]["charon"], 4.8);
        assert_eq!(row["baseline_connections"], json!({"charon": 100}));
        // Said to be missing, not left out.
        assert_eq!(row["baseline"]["libreswan"], Value::Null);
        assert!(
            json["missing"][0]
                .as_str()
                .unwrap()
                .contains("not unpacked")
        );
    }
}
