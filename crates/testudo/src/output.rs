//! Results on standard output: tables for people, JSON and YAML for programs.

use std::borrow::Cow;
use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

use crate::exit::Outcome;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl Format {
    /// Whether programs are to read it.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }
}

/// Prints a value as JSON or YAML; nothing for the table formats, which verbs print themselves.
pub(crate) fn data<T: Serialize>(format: Format, value: &T) -> Outcome {
    match format {
        Format::Json => raw(&serde_json::to_string_pretty(value)?),
        Format::Yaml => raw(serde_saphyr::to_string(value)?.trim_end()),
        Format::Table | Format::Wide => Ok(()),
    }
}

/// Prints one line (or block of lines) for people. A reader that went away is no error.
pub(crate) fn line(text: &str) -> Outcome {
    raw(&harmless(text))
}

/// A text without what moves a terminal's cursor or turns its writing round. Much of what is shown was written by agents,
/// and one that was taken over must not write on an administrator's screen what it likes.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let harms = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (c.is_control() && !matches!(c, '\n' | '\t')) || turns
    };
    if !text.contains(harms) {
        return Cow::Borrowed(text);
    }
    let replaced = |c| {
        if harms(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    Cow::Owned(text.chars().map(replaced).collect())
}

fn raw(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A table in the manner of kubectl: no borders, two spaces between columns.
pub(crate) struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// A table with these headers.
    pub(crate) fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Self {
        Self {
            rows: vec![headers.into_iter().map(Into::into).collect()],
        }
    }

    /// Adds a line.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells = cells.into_iter().map(Into::<String>::into);
        // An empty cell would be read as a missing one by who splits at spaces, and a line's end in one as
        // another row.
        let shown = cells.map(|c| match c.is_empty() {
            true => "-".to_owned(),
            false => c.replace(['\n', '\t'], " "),
        });
        self.rows.push(shown.collect());
    }

    /// Prints it.
    pub(crate) fn print(&self) -> Outcome {
        line(&self.lines().join("\n"))
    }

    fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let show = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let text: String = cells.map(|(c, w)| format!("{c:w$}  ")).collect();
            text.trim_end().to_owned()
        };
        self.rows.iter().map(show).collect()
    }
}

/// An age as kubectl writes it: `45s`, `12m`, `3h5m`, `2d4h`, `1y80d`.
pub(crate) fn age(seconds: u64) -> String {
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    const DAY: u64 = 86_400;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..DAY => two(seconds / 3_600, "h", seconds / 60 % 60, "m"),
        DAY..31_536_000 => two(seconds / DAY, "d", seconds / 3_600 % 24, "h"),
        _ => two(seconds / 31_536_000, "y", seconds % 31_536_000 / DAY, "d"),
    }
}

/// A number of bytes with a binary unit.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(age(45), "45s");
        assert_eq!(age(3_600), "60m");
        assert_eq!(age(3 * 3_600 + 300), "3h5m");
        assert_eq!(age(2 * 86_400), "2d");
        assert_eq!(age(5 * 31_536_000), "5y");
        assert_eq!(bytes(1_000), "1000 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn no_text_of_an_agent_moves_the_cursor_or_makes_a_row() {
        assert_eq!(harmless("plain, ö\n\tas it is"), "plain, ö\n\tas it is");
        assert_eq!(
            harmless("a\x1b[2Jb\rc\u{9b}d"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d"
        );
        assert_eq!(harmless("a\u{202e}b"), "a\u{fffd}b");
        let mut columns = Columns::new(["A"]);
        columns.row(["x\nn2 Ready"]);
        assert_eq!(columns.lines(), ["A", "x n2 Ready"]);
    }

    #[test]
    fn an_empty_cell_shows() {
        let mut columns = Columns::new(["A", "B"]);
        columns.row(["x", ""]);
        columns.row(["long", "y"]);
        assert_eq!(columns.lines(), ["A     B", "x     -", "long  y"]);
    }
}
