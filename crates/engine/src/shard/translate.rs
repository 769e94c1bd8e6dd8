//! The consensus crate's entries, messages and snapshots, and ours.

use bytes::Bytes;
use raft::eraftpb::{
    self, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, MessageType, Snapshot,
};
use swarmmq_protocol::consensus::{EntryKind, Message, MessageKind, SnapshotMark};

use super::consensus::{Change, LogEntry};

/// One step of the group.
pub(super) fn change_to_raft(change: Change) -> ConfChangeV2 {
    let (kind, replica) = match change {
        Change::Follow(replica) => (ConfChangeType::AddLearnerNode, replica),
        Change::Vote(replica) => (ConfChangeType::AddNode, replica),
        Change::Leave(replica) => (ConfChangeType::RemoveNode, replica),
    };
    let single = ConfChangeSingle { change_type: kind, node_id: replica, ..ConfChangeSingle::default() };
    ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() }
}

/// A membership entry carries our bytes beside the crate's own, which nobody but the proposer ever reads.
pub(super) fn to_raft(entry: LogEntry) -> Entry {
    let LogEntry { index, term, kind, data } = entry;
    match kind {
        EntryKind::Normal => {
            Entry { entry_type: EntryType::EntryNormal, index, term, data, ..Entry::default() }
        }
        EntryKind::Membership => {
            Entry { entry_type: EntryType::EntryConfChangeV2, index, term, context: data, ..Entry::default() }
        }
    }
}

pub(super) fn from_raft(entry: Entry) -> LogEntry {
    let Entry { entry_type, index, term, data, context, .. } = entry;
    match entry_type {
        EntryType::EntryNormal => LogEntry { index, term, kind: EntryKind::Normal, data },
        _ => LogEntry { index, term, kind: EntryKind::Membership, data: context },
    }
}

/// Into a list of its own: collected in place, the longer entries of the crate would be shrunk to ours, at a higher price.
pub(super) fn all_from_raft(entries: Vec<Entry>) -> Vec<LogEntry> {
    let mut ours = Vec::with_capacity(entries.len());
    ours.extend(entries.into_iter().map(from_raft));
    ours
}

pub(super) fn snapshot_to_raft(mark: SnapshotMark) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = mark.index;
    metadata.term = mark.term;
    metadata.set_conf_state(ConfState::from((mark.voters, mark.learners)));
    snapshot
}

pub(super) fn mark_of(snapshot: &Snapshot) -> SnapshotMark {
    let metadata = snapshot.get_metadata();
    let conf = metadata.get_conf_state();
    SnapshotMark {
        index: metadata.index,
        term: metadata.term,
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
    }
}

const KINDS: [(MessageKind, MessageType); 11] = [
    (MessageKind::Append, MessageType::MsgAppend),
    (MessageKind::AppendResponse, MessageType::MsgAppendResponse),
    (MessageKind::RequestVote, MessageType::MsgRequestVote),
    (MessageKind::RequestVoteResponse, MessageType::MsgRequestVoteResponse),
    (MessageKind::RequestPreVote, MessageType::MsgRequestPreVote),
    (MessageKind::RequestPreVoteResponse, MessageType::MsgRequestPreVoteResponse),
    (MessageKind::Heartbeat, MessageType::MsgHeartbeat),
    (MessageKind::HeartbeatResponse, MessageType::MsgHeartbeatResponse),
    (MessageKind::Snapshot, MessageType::MsgSnapshot),
    (MessageKind::TimeoutNow, MessageType::MsgTimeoutNow),
    (MessageKind::TransferLeader, MessageType::MsgTransferLeader),
];

/// A message that arrived. Entries are copied: they are kept for long, and as slices of what a socket brought they would keep
/// everything that came along with them, which is mostly deliveries of others.
pub(super) fn message_to_raft(message: Message) -> eraftpb::Message {
    let kind = KINDS.iter().find(|(ours, _)| *ours == message.kind).expect("only these kinds travel").1;
    let mut raft = eraftpb::Message {
        msg_type: kind,
        from: message.from,
        to: message.to,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        request_snapshot: message.request_snapshot,
        context: message.context,
        entries: message.entries.into_iter().map(|entry| to_raft(apart(entry))).collect::<Vec<_>>().into(),
        ..eraftpb::Message::default()
    };
    if let Some(mark) = message.snapshot {
        raft.set_snapshot(snapshot_to_raft(mark));
    }
    raft
}

fn apart(entry: LogEntry) -> LogEntry {
    LogEntry { data: Bytes::copy_from_slice(&entry.data), ..entry }
}

pub(super) fn message_from_raft(mut raft: eraftpb::Message) -> Option<Message> {
    let kind = KINDS.iter().find(|(_, theirs)| *theirs == raft.msg_type)?.0;
    let snapshot = (kind == MessageKind::Snapshot).then(|| mark_of(raft.get_snapshot()));
    Some(Message {
        kind,
        from: raft.from,
        to: raft.to,
        term: raft.term,
        log_term: raft.log_term,
        index: raft.index,
        commit: raft.commit,
        commit_term: raft.commit_term,
        reject: raft.reject,
        reject_hint: raft.reject_hint,
        request_snapshot: raft.request_snapshot,
        context: std::mem::take(&mut raft.context),
        entries: all_from_raft(raft.take_entries().into()),
        snapshot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_arrived_keep_nothing_else_in_memory() {
        let mut read = Bytes::from(vec![7; 1 << 20]);
        let entry = LogEntry { index: 1, term: 1, kind: EntryKind::Normal, data: read.split_to(100) };
        let message = Message { kind: MessageKind::Append, entries: vec![entry], ..Message::default() };
        let raft = message_to_raft(message);
        assert_eq!(raft.get_entries()[0].data, [7; 100][..]);
        assert!(read.is_unique(), "what was read can be given back");
    }
}
