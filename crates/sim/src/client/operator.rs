//! The operator: makes the addresses before anybody uses them.

use std::collections::VecDeque;

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::AdminRequest,
    error::Outcome,
    frame::{self, Admin, Frame},
};

/// Asks one question after the other.
#[derive(Debug)]
pub struct Operator {
    questions: VecDeque<AdminRequest>,
}

impl Operator {
    /// With these questions.
    pub fn new(questions: Vec<AdminRequest>) -> Self {
        Self { questions: questions.into() }
    }

    /// Whether everything was answered.
    pub fn is_done(&self) -> bool {
        self.questions.is_empty()
    }

    /// Asks the first question, again or for the first time.
    pub fn ask(&mut self, out: &mut BytesMut) {
        if let Some(question) = self.questions.front() {
            frame::encode(&Admin(question.clone()), 1, out);
        }
    }

    /// Takes an answer; after a refusal the same question is asked again.
    pub fn frame(&mut self, frame: &Frame, out: &mut BytesMut) {
        if let Frame::Answer(answer) = frame {
            if answer.outcome == Outcome::Ok {
                self.questions.pop_front();
            }
            self.ask(out);
        }
    }
}
