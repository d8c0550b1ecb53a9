//! What is wrong with a file, in words that help to put it right.

use std::fmt;
use std::path::PathBuf;

/// One mistake in a `cluster.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Where in the document, as `host[1].twin[0].listen`; empty for the document as a whole.
    pub path: String,
    /// The offending text as it stands in the file, shortened; empty when something is missing.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}", self.path)?;
            if !self.value.is_empty() {
                write!(f, " = {}", self.value)?;
            }
            write!(f, ": ")?;
        } else if !self.value.is_empty() {
            write!(f, "`{}`: ", self.value)?;
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {path}: {cause}; `twinbft init DIR` makes a new cluster", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not a valid configuration.
    #[error("{}", list(.path, .mistakes))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one, in the order of the file.
        mistakes: Vec<Mistake>,
    },
}

fn list(path: &std::path::Path, mistakes: &[Mistake]) -> String {
    use fmt::Write as _;
    let plural = if mistakes.len() == 1 { "" } else { "s" };
    let mut text = format!("{} has {} mistake{plural}:", path.display(), mistakes.len());
    for mistake in mistakes {
        write!(text, "\n  {mistake}").expect("writing to a string does not fail");
    }
    text
}

/// Line and column, both from 1, of a byte offset; an offset past the end or within a character counts as the
/// place before it.
pub(crate) fn place(text: &str, offset: usize) -> (usize, usize) {
    let offset = boundary(text, offset);
    let line = text[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let start = line_start(text, offset);
    (line, text[start..offset].chars().count() + 1)
}

/// The offset at which the line of `offset` begins.
pub(crate) fn line_start(text: &str, offset: usize) -> usize {
    text[..boundary(text, offset)]
        .rfind('\n')
        .map_or(0, |at| at + 1)
}

fn boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The first line of what stands at `span`, at most 60 characters.
pub(crate) fn excerpt(text: &str, span: std::ops::Range<usize>) -> String {
    const CHARACTERS_MAX: usize = 60;
    let line = text
        .get(span)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .trim();
    let mut short: String = line
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(CHARACTERS_MAX)
        .collect();
    if line.chars().count() > CHARACTERS_MAX {
        short.push('…');
    }
    short
}

/// The word of `known` that `word` was most likely meant to be.
pub(crate) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const WORD_BYTES_MAX: usize = 64;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let lower = word.to_lowercase().replace('-', "_");
    known
        .map(|candidate| (distance(&lower, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 2.max(candidate.len() / 3)
                || (lower.len() >= 3 && candidate.starts_with(&lower))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
