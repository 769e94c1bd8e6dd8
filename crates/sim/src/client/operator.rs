//! The operator: makes the addresses before anybody uses them, empties nodes and takes them out of the cluster.

use std::collections::VecDeque;

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::AdminRequest,
    error::{Code, Outcome},
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

    /// One more question. Returns whether it can be asked at once, if there is a connection.
    pub fn add(&mut self, question: AdminRequest) -> bool {
        self.questions.push_back(question);
        self.questions.len() == 1
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
            // A node that is not there was removed: the answer that said so was lost. Who is to be emptied joins yet.
            let removes = matches!(self.questions.front(), Some(AdminRequest::NodeRemove { .. }));
            if answer.outcome == Outcome::Ok || removes && answer.code == Code::NoSuchNode.number() {
                self.questions.pop_front();
            }
            self.ask(out);
        }
    }
}
