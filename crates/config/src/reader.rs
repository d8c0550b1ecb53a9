//! Walks a parsed document and collects what is wrong with it.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::{Mistake, closest, excerpt, place};
use crate::numbers::Number;

/// Collects mistakes of one document.
pub(crate) struct Reader<'t> {
    text: &'t str,
    found: Vec<(usize, Mistake)>,
}

/// A table of the document and the name by which mistakes call it.
#[derive(Clone)]
pub(crate) struct Section<'a, 'i> {
    pub(crate) table: &'a DeTable<'i>,
    pub(crate) span: Range<usize>,
    pub(crate) path: String,
}

/// A value that was read, with its place.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
    pub(crate) path: String,
}

impl Section<'_, '_> {
    /// `path.key`.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }
}

impl<'t> Reader<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// Notes a mistake about the text at `span`.
    pub(crate) fn mistake(
        &mut self,
        span: &Range<usize>,
        path: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let value = excerpt(self.text, span.clone());
        self.push(
            span.start,
            path.into(),
            value,
            problem.into(),
            remedy.into(),
        );
    }

    /// Notes that something is not there; `span` is the place where it should be.
    pub(crate) fn missing(
        &mut self,
        span: &Range<usize>,
        path: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(
            span.start,
            path.into(),
            String::new(),
            problem.into(),
            remedy.into(),
        );
    }

    /// Notes a mistake that belongs to no key.
    pub(crate) fn text_mistake(&mut self, at: usize, line: &str, problem: String, remedy: &str) {
        let value = excerpt(line, 0..line.len());
        self.push(at, String::new(), value, problem, remedy.to_owned());
    }

    fn push(&mut self, at: usize, path: String, value: String, problem: String, remedy: String) {
        let (line, column) = place(self.text, at);
        self.found.push((
            at,
            Mistake {
                line,
                column,
                path,
                value,
                problem,
                remedy,
            },
        ));
    }

    /// Whether nothing is wrong so far.
    pub(crate) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// All mistakes, in the order of the file.
    pub(crate) fn into_mistakes(mut self) -> Vec<Mistake> {
        self.found.sort_by_key(|(at, _)| *at);
        self.found.into_iter().map(|(_, mistake)| mistake).collect()
    }

    /// Keys of `section` that mean nothing there.
    pub(crate) fn only<'k>(
        &mut self,
        section: &Section<'_, '_>,
        known: &(impl Iterator<Item = &'k str> + Clone),
    ) {
        for (key, value) in section.table {
            let word: &str = key.get_ref();
            if known.clone().any(|name| name == word) {
                continue;
            }
            let remedy = match closest(word, known.clone()) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => format!(
                    "remove it; known here: {}",
                    known.clone().collect::<Vec<_>>().join(", ")
                ),
            };
            let value = excerpt(self.text, value.span());
            let problem = "unknown key".to_owned();
            self.push(key.span().start, section.key(word), value, problem, remedy);
        }
    }

    /// The table `key` of `section`; absent or not a table gives `None`, the latter with a mistake.
    pub(crate) fn table<'a, 'i>(
        &mut self,
        section: &Section<'a, 'i>,
        key: &str,
    ) -> Option<Section<'a, 'i>> {
        let value = section.table.get(key)?;
        let path = section.key(key);
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Section {
                table,
                span: value.span(),
                path,
            });
        }
        let remedy = format!("write it as a table: [{path}]");
        self.wrong_type(value, &path, "a table", remedy);
        None
    }

    /// The tables `[[key]]` of `section`, in the order of the file.
    pub(crate) fn tables<'a, 'i>(
        &mut self,
        section: &Section<'a, 'i>,
        key: &str,
    ) -> Vec<Section<'a, 'i>> {
        let Some(value) = section.table.get(key) else {
            return Vec::new();
        };
        let path = section.key(key);
        let remedy = format!(
            "write each as a table of its own: [[{}]]",
            path.split(['[', ']'])
                .filter(|part| part.parse::<usize>().is_err())
                .collect::<String>()
        );
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(value, &path, "a list of tables", remedy);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let DeValue::Table(table) = item.get_ref() {
                sections.push(Section {
                    table,
                    span: item.span(),
                    path,
                });
            } else {
                self.wrong_type(item, &path, "a table", remedy.clone());
            }
        }
        sections
    }

    /// The string `key`, if it is there.
    pub(crate) fn string(&mut self, section: &Section<'_, '_>, key: &str) -> Option<At<String>> {
        let value = section.table.get(key)?;
        let path = section.key(key);
        if let DeValue::String(text) = value.get_ref() {
            return Some(At {
                value: text.clone().into_owned(),
                span: value.span(),
                path,
            });
        }
        self.wrong_type(value, &path, "a string", "put it in double quotes");
        None
    }

    /// The string `key`, which must be there.
    pub(crate) fn required_string(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        remedy: &str,
    ) -> Option<At<String>> {
        if !section.has(key) {
            self.missing(&section.span, section.key(key), "is missing", remedy);
        }
        self.string(section, key)
    }

    /// The whole number `key` between both bounds, if it is there.
    pub(crate) fn number(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        min: u64,
        max: u64,
    ) -> Option<At<u64>> {
        let value = section.table.get(key)?;
        self.bounded(value, section.key(key), min, max)
    }

    /// The number `key`, which must be there.
    pub(crate) fn required_number(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        max: u64,
        remedy: &str,
    ) -> Option<At<u64>> {
        if !section.has(key) {
            self.missing(&section.span, section.key(key), "is missing", remedy);
        }
        self.number(section, key, 0, max)
    }

    /// A list of whole numbers, if it is there.
    pub(crate) fn number_list(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        max: u64,
    ) -> Vec<At<u64>> {
        let Some(value) = section.table.get(key) else {
            return Vec::new();
        };
        let path = section.key(key);
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(value, &path, "a list of numbers", "write it like [0, 1]");
            return Vec::new();
        };
        let items = items.iter().enumerate();
        items
            .filter_map(|(index, item)| self.bounded(item, format!("{path}[{index}]"), 0, max))
            .collect()
    }

    /// Fills the numbers of a table.
    pub(crate) fn numbers<T>(
        &mut self,
        section: &Section<'_, '_>,
        numbers: &[Number<T>],
        into: &mut T,
    ) {
        for number in numbers {
            if let Some(at) = self.number(section, number.name, number.min, number.max) {
                (number.write)(into, at.value);
            }
        }
    }

    fn bounded(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        path: String,
        min: u64,
        max: u64,
    ) -> Option<At<u64>> {
        let DeValue::Integer(integer) = value.get_ref() else {
            let remedy = if matches!(value.get_ref(), DeValue::String(_)) {
                "remove the quotes"
            } else {
                "write digits only, without a unit"
            };
            self.wrong_type(value, &path, "a whole number", remedy);
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if (min..=max).contains(&number) => Some(At {
                value: number,
                span: value.span(),
                path,
            }),
            Ok(_) | Err(_) => {
                let remedy = format!("it must be {min} to {max}");
                self.mistake(&value.span(), path, "out of bounds", remedy);
                None
            }
        }
    }

    fn wrong_type(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        wanted: &str,
        remedy: impl Into<Cow<'static, str>>,
    ) {
        let problem = format!(
            "{} where {wanted} belongs",
            match value.get_ref() {
                DeValue::String(_) => "a string",
                DeValue::Integer(_) => "a whole number",
                DeValue::Float(_) => "a fraction",
                DeValue::Boolean(_) => "true or false",
                DeValue::Datetime(_) => "a date",
                DeValue::Array(_) => "a list",
                DeValue::Table(_) => "a table",
            }
        );
        self.mistake(&value.span(), path, problem, remedy.into());
    }
}
