//! Why something could not be measured, and what to do about it.

use std::{fmt, io};

/// The end of an attempt.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A broker is not installed. The others can be measured without it.
    Absent { what: String, install: String },
    /// Anything else: the broker, its client or the machine did not do what was asked.
    Broken(String),
    /// Somebody wants it to stop.
    Interrupted,
}

impl Failure {
    pub(crate) fn broken(what: impl Into<String>) -> Self {
        Self::Broken(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { what, install } => write!(f, "{what} is not there; to get it: {install}"),
            Self::Broken(what) => f.write_str(what),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Says what was attempted when it failed.
pub(crate) trait During<T> {
    fn during(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::Broken(format!("{what}: {error}")))
    }
}
