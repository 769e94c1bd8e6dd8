//! The audit log: one JSON object a line in `data/audit.log`. At its bound it becomes `audit.log.1`, which replaces the one
//! before. The engine sees to it that a flood has few lines. Lines are not synced: a power cut may take the last ones.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use swarmmq_engine::node::AuditRecord;
use swarmmq_protocol::id::NodeId;

/// Bytes of one file; two are kept.
const BYTES_MAX: u64 = 8 << 20;

/// Where lines go.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    node: NodeId,
    file: Option<(File, u64)>,
    bytes_max: u64,
    /// It was said that lines cannot be written.
    told: bool,
}

impl AuditLog {
    /// In this data directory. Nothing is made before there is a line.
    pub(crate) fn new(data: &Path, node: NodeId) -> Self {
        Self { path: data.join("audit.log"), node, file: None, bytes_max: BYTES_MAX, told: false }
    }

    /// Appends lines. A failure is told once, and changes nothing about what the node does.
    pub(crate) fn write(&mut self, records: &[AuditRecord]) {
        if records.is_empty() {
            return;
        }
        let mut text = String::new();
        records.iter().for_each(|record| put(&mut text, self.node, record));
        match self.append(text.as_bytes()) {
            Ok(()) => self.told = false,
            Err(error) => {
                self.file = None;
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!(path = %self.path.display(), %error, "the audit log cannot be written");
                }
            }
        }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let (mut file, mut bytes) = match self.file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        if bytes > 0 && bytes + text.len() as u64 > self.bytes_max {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            (file, bytes) = self.open()?;
        }
        file.write_all(text)?;
        self.file = Some((file, bytes + text.len() as u64));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    }
}

fn put(text: &mut String, node: NodeId, record: &AuditRecord) {
    let seen = &record.seen;
    write!(text, "{{\"time_ms\":{},\"node\":{}", record.at.0, node.0).expect("a string takes everything");
    if let Some(source) = seen.source {
        write!(text, ",\"source\":\"{source}\"").expect("a string takes everything");
    }
    let code = seen.code.map_or("ok", |code| code.text());
    for (name, value) in [
        ("principal", seen.principal.as_str()),
        ("verb", seen.verb),
        ("address", seen.address.as_str()),
        ("code", code),
    ] {
        write!(text, ",\"{name}\":\"").expect("a string takes everything");
        escape(text, value);
        text.push('"');
    }
    writeln!(text, ",\"count\":{}}}", record.count).expect("a string takes everything");
}

/// As JSON wants it; what strangers write must not begin a line of its own.
fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => {
                write!(text, "\\u{:04x}", u32::from(c)).expect("a string takes everything")
            }
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_engine::node::Seen;
    use swarmmq_protocol::{error::Code, session::guard::Source, time::WallTime};

    use super::*;

    fn record(principal: &str, code: Option<Code>) -> AuditRecord {
        let source = Some(Source::v4([127, 0, 0, 1]));
        let seen = Seen { source, principal: principal.into(), verb: "publish", address: "a".into(), code };
        AuditRecord { at: WallTime(7), seen, count: 3 }
    }

    #[test]
    fn a_line_is_one_object_whatever_a_stranger_calls_itself() {
        let place = tempfile::tempdir().unwrap();
        let mut log = AuditLog::new(place.path(), NodeId(2));
        log.write(&[record("a\"b\\c\nd\u{85}", Some(Code::NotAllowed)), record("till", None)]);
        let text = fs::read_to_string(place.path().join("audit.log")).unwrap();
        let expected = concat!(
            "{\"time_ms\":7,\"node\":2,\"source\":\"127.0.0.1\",\"principal\":\"a\\\"b\\\\c\\u000ad\\u0085\",",
            "\"verb\":\"publish\",\"address\":\"a\",\"code\":\"not_allowed\",\"count\":3}\n",
            "{\"time_ms\":7,\"node\":2,\"source\":\"127.0.0.1\",\"principal\":\"till\",",
            "\"verb\":\"publish\",\"address\":\"a\",\"code\":\"ok\",\"count\":3}\n",
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn it_is_bounded_and_goes_on_after_a_restart() {
        let place = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let mut log = AuditLog { bytes_max: 1000, ..AuditLog::new(place.path(), NodeId(1)) };
            log.write(&[record("till", None)]);
        }
        let length = |name: &str| fs::metadata(place.path().join(name)).unwrap().len();
        assert!(length("audit.log") <= 1000 && (500..=1000).contains(&length("audit.log.1")));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_nothing() {
        let mut log = AuditLog::new(Path::new("/nonexistent/place"), NodeId(1));
        log.write(&[record("till", None)]);
        log.write(&[record("till", None)]);
        assert!(log.told);
    }
}
