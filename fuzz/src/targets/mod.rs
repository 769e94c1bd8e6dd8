//! What is fuzzed: plain functions from bytes to a mark of what happened. A panic is a finding; so is allocating more than
//! an input of that size may cost.

#![expect(clippy::disallowed_types, reason = "marks are compared within one run of one build")]

mod disk;
mod envelope;
mod files;
mod meeting;
mod node;
mod wire;

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

/// One way to be attacked.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Whole inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Takes an input. The mark is equal for inputs that went the same way, as far as can be told from outside: an input with a
    /// new mark is kept and mutated further.
    pub run: fn(&[u8]) -> u64,
    /// Longest input.
    pub bytes_max: usize,
    /// Bytes that may be allocated in all, beside 64 KiB, for each byte of input; `None`: not looked at.
    pub allocated_per_byte: Option<usize>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frame",
        seeds: wire::frames,
        run: wire::frame,
        bytes_max: 4096,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "admin",
        seeds: wire::admin_frames,
        run: wire::frame,
        bytes_max: 2048,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "packet",
        seeds: wire::packets,
        run: wire::packet,
        bytes_max: 4096,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "consensus",
        seeds: wire::batches,
        run: wire::batch,
        bytes_max: 2048,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "datagram",
        seeds: wire::datagrams,
        run: wire::datagram,
        bytes_max: 1300,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "report",
        seeds: wire::reports,
        run: wire::report,
        bytes_max: 1200,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "handshake",
        seeds: meeting::clients,
        run: meeting::client,
        bytes_max: 1024,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "peer-handshake",
        seeds: meeting::peers,
        run: meeting::peer,
        bytes_max: 2048,
        allocated_per_byte: Some(64),
    },
    Target { name: "log", seeds: disk::logs, run: disk::log, bytes_max: 16 << 10, allocated_per_byte: None },
    Target {
        name: "entry",
        seeds: disk::entries,
        run: disk::entry,
        bytes_max: 4096,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "snapshot",
        seeds: disk::snapshots,
        run: disk::snapshot,
        bytes_max: 8192,
        allocated_per_byte: Some(256),
    },
    Target {
        name: "settings",
        seeds: files::settings,
        run: files::setting,
        bytes_max: 512,
        allocated_per_byte: Some(64),
    },
    Target {
        name: "keyring",
        seeds: files::keyrings,
        run: files::keyring,
        bytes_max: 2048,
        allocated_per_byte: None,
    },
    Target {
        name: "envelope",
        seeds: envelope::messages,
        run: envelope::open,
        bytes_max: 2048,
        allocated_per_byte: None,
    },
    Target {
        name: "node",
        seeds: node::histories,
        run: node::history,
        bytes_max: 512,
        allocated_per_byte: None,
    },
];

/// A mark made of whatever tells ways apart.
struct Mark(DefaultHasher);

impl Mark {
    fn new() -> Self {
        Self(DefaultHasher::new())
    }

    fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }

    /// Notes what an error says, without the numbers in it.
    fn error(&mut self, error: &impl std::fmt::Display) {
        let text: String = error.to_string().chars().filter(|letter| !letter.is_ascii_digit()).collect();
        self.note(text);
    }

    fn done(self) -> u64 {
        self.0.finish()
    }
}

/// The power of two that is not above `number`: sizes tell ways apart, exact ones tell too many.
fn magnitude(number: usize) -> u32 {
    usize::BITS - number.leading_zeros()
}

/// Bytes from hex digits; none from anything else.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// The last word of every line that is hex: recorded bytes of the product's own tests.
fn recorded(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| from_hex(line.rsplit(' ').next()?)).filter(|bytes| !bytes.is_empty()).collect()
}
