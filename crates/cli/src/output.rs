//! What commands print: results for people or programs, failures with cause, consequence and next step.

use std::{io::Write, process::ExitCode};

use serde::Serialize;
use swarmmq_server::StartError;

/// Why a command ends badly, and with which exit code (docs/operating/README.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    pub(crate) code: &'static str,
    pub(crate) unknown: bool,
    pub(crate) message: String,
    pub(crate) hint: String,
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    code: &'a str,
    outcome: &'a str,
    message: &'a str,
    hint: &'a str,
}

/// How a command ends.
pub(crate) type Outcomes<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(
        exit: u8,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { exit, code, unknown: false, message: message.into(), hint: hint.into() }
    }

    /// The command line or a configuration file says something that cannot be.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(2, "usage", message, hint)
    }

    /// Something on this machine is missing, locked or broken.
    pub(crate) fn local(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(7, "local_data", message, hint)
    }

    /// The person at the keyboard said stop.
    pub(crate) fn interrupted(unknown: bool, message: impl Into<String>) -> Self {
        Self { unknown, ..Self::new(130, "interrupted", message, "run it again to go on") }
    }

    /// With what the cluster says about itself, where that may be the reason.
    pub(crate) fn because(mut self, problem: Option<&str>) -> Self {
        if let Some(problem) = problem {
            self.message = format!("{}; {problem}", self.message);
        }
        self
    }

    /// Prints it and gives the exit code.
    pub(crate) fn report(&self, as_json: bool) -> ExitCode {
        if as_json {
            let outcome = if self.unknown { "unknown" } else { "failed" };
            let (code, message, hint) = (self.code, &self.message, &self.hint);
            print(&ErrorLine { error: ErrorObject { code, outcome, message, hint } });
        } else {
            note(format!("error: {}", self.message));
            if !self.hint.is_empty() {
                note(format!("  next: {}", self.hint));
            }
        }
        ExitCode::from(self.exit)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let code = if error.exit_code() == 2 { "configuration" } else { "local_data" };
        Self::new(error.exit_code(), code, error.message(), error.hint())
    }
}

/// One compact object on a line of its own. Whoever closed the pipe has seen enough: that is no failure here.
pub(crate) fn print(value: &impl Serialize) {
    let line = serde_json::to_string(value).expect("plain fields can be written");
    say(line);
}

/// One line for people.
pub(crate) fn say(line: impl AsRef<str>) {
    let _closed = writeln!(std::io::stdout().lock(), "{}", line.as_ref()).is_err();
}

/// One line about what is going on, on standard error.
pub(crate) fn note(line: impl AsRef<str>) {
    let _closed = writeln!(std::io::stderr().lock(), "{}", line.as_ref()).is_err();
}

/// Rows under a head, in columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        say(padded.join("  ").trim_end());
    };
    line(head.to_vec());
    rows.iter().for_each(|row| line(row.iter().map(String::as_str).collect()));
}

/// Bytes as text for JSON: base64 with padding (RFC 4648).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = group >> (18 - 6 * digit) & 63;
            text.push(if digit <= chunk.len() { DIGITS[value as usize] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_examples_of_its_standard() {
        let examples = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in examples {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
