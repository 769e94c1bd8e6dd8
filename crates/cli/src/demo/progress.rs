//! What a person sees while the demo runs.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use super::{PROGRESS_PAUSE, judge::Judge};
use crate::output::note;

/// One line that changes on a terminal; one line a second, and one at every turn, elsewhere.
pub(super) struct Progress {
    terminal: bool,
    last: Instant,
    stage: String,
}

impl Progress {
    pub(super) fn new(stage: String) -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: Instant::now(), stage }
    }

    /// Something happened to a node.
    pub(super) fn turn(&mut self, stage: String, judge: &Judge, began: Instant) {
        self.stage = stage;
        self.write(judge, began);
    }

    pub(super) fn show(&mut self, judge: &Judge, began: Instant) {
        let pause = if self.terminal { PROGRESS_PAUSE } else { Duration::from_secs(1) };
        if self.last.elapsed() >= pause {
            self.write(judge, began);
        }
    }

    fn write(&mut self, judge: &Judge, began: Instant) {
        self.last = Instant::now();
        let line = format!(
            "{:5.1} s: {} stored, {} received, {} twice; {}",
            began.elapsed().as_secs_f64(),
            judge.acknowledged(),
            judge.delivered(),
            judge.duplicated,
            self.stage
        );
        if self.terminal {
            let _closed = write!(std::io::stderr().lock(), "\r\x1b[K{line}").is_err();
        } else {
            note(line);
        }
    }

    pub(super) fn end(&self) {
        if self.terminal {
            note("");
        }
    }
}
