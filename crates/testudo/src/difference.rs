//! What differs between two texts, line by line, in the unified format.

/// Lines without a change that are shown around each change.
const AROUND: usize = 3;

/// Pairs of lines that are compared at most; texts that differ in more are shown as one that goes and
/// one that comes.
const MOST: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Old(&'a str),
    New(&'a str),
}

/// The lines that differ with a few around them; empty where none does.
pub(crate) fn unified(old: &str, new: &str) -> String {
    let lines = compare(
        &old.lines().collect::<Vec<_>>(),
        &new.lines().collect::<Vec<_>>(),
    );
    let changed: Vec<usize> = (0..lines.len())
        .filter(|at| !matches!(lines[*at], Line::Same(_)))
        .collect();
    let mut text = String::new();
    let (mut old_at, mut new_at) = (1, 1);
    let mut shown_to = 0;
    for (at, line) in lines.iter().enumerate() {
        let near = |changed: &usize| changed.abs_diff(at) <= AROUND;
        if changed.iter().any(near) {
            if shown_to != at || at == 0 {
                text += &format!("@@ -{old_at} +{new_at} @@\n");
            }
            shown_to = at + 1;
            let (sign, line) = match line {
                Line::Same(line) => (' ', line),
                Line::Old(line) => ('-', line),
                Line::New(line) => ('+', line),
            };
            text += &format!("{sign}{line}\n");
        }
        old_at += usize::from(!matches!(line, Line::New(_)));
        new_at += usize::from(!matches!(line, Line::Old(_)));
    }
    text
}

/// All lines in order, by the longest common subsequence of what lies between equal ends.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let pairs = || old.iter().zip(new);
    let head = pairs().take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let from_behind = old_rest.iter().rev().zip(new_rest.iter().rev());
    let tail = from_behind.take_while(|(a, b)| a == b).count();
    let old_middle = &old_rest[..old_rest.len() - tail];
    let new_middle = &new_rest[..new_rest.len() - tail];
    let mut lines: Vec<Line<'a>> = old[..head].iter().map(|line| Line::Same(line)).collect();
    lines.extend(middle(old_middle, new_middle));
    lines.extend(old[old.len() - tail..].iter().map(|line| Line::Same(line)));
    lines
}

fn middle<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    if old.len().saturating_mul(new.len()) > MOST {
        let old = old.iter().map(|line| Line::Old(line));
        return old.chain(new.iter().map(|line| Line::New(line))).collect();
    }
    // common[i][j]: how many lines the rests from i and j have in common, in order.
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = match old[i] == new[j] {
                true => common[(i + 1) * width + j + 1] + 1,
                false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        let both = i < old.len() && j < new.len();
        if both && old[i] == new[j] {
            lines.push(Line::Same(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || both && common[(i + 1) * width + j] >= common[i * width + j + 1]
        {
            lines.push(Line::Old(old[i]));
            i += 1;
        } else {
            lines.push(Line::New(new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown_with_a_few_lines_around() {
        let old = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl";
        let new = "a\nb\nc\nd\nE\nf\ng\nh\ni\nj\nk\nl\nm";
        let wanted = "@@ -2 +2 @@\n b\n c\n d\n-e\n+E\n f\n g\n h\n\
                      @@ -10 +10 @@\n j\n k\n l\n+m\n";
        assert_eq!(unified(old, new), wanted);
        assert_eq!(unified(old, old), "");
        assert_eq!(unified("", "x\ny"), "@@ -1 +1 @@\n+x\n+y\n");
        assert_eq!(unified("x", ""), "@@ -1 +1 @@\n-x\n");
    }

    #[test]
    fn every_difference_leads_from_one_to_the_other() {
        let texts = [
            "",
            "a",
            "a\nb",
            "b\na",
            "a\na\nb",
            "c\nb\na",
            "b\nb",
            "a\nc\nb\na",
        ];
        for old in texts {
            for new in texts {
                let (old_lines, new_lines): (Vec<_>, Vec<_>) =
                    (old.lines().collect(), new.lines().collect());
                let lines = compare(&old_lines, &new_lines);
                let olds: Vec<&str> = lines
                    .iter()
                    .filter_map(|line| match line {
                        Line::Same(line) | Line::Old(line) => Some(*line),
                        Line::New(_) => None,
                    })
                    .collect();
                let news: Vec<&str> = lines
                    .iter()
                    .filter_map(|line| match line {
                        Line::Same(line) | Line::New(line) => Some(*line),
                        Line::Old(_) => None,
                    })
                    .collect();
                assert_eq!((olds, news), (old_lines, new_lines));
            }
        }
    }
}
