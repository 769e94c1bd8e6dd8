//! One replica stepped by hand: what it stores before it promises, and the traps of the crate.

use swarmmq_protocol::consensus::EntryKind;

use super::*;

fn founded() -> Restored {
    Restored { snapshot_index: 1, snapshot_term: 1, conf: Conf::alone(1), ..Restored::default() }
}

fn entry(index: u64, term: u64, data: &'static str) -> LogEntry {
    LogEntry { index, term, kind: EntryKind::Normal, data: data.into() }
}

fn run(consensus: &mut Consensus, persist: bool) -> (Vec<LogEntry>, Vec<LogEntry>) {
    let (mut stored, mut committed) = (Vec::new(), Vec::new());
    while let Some(round) = consensus.round() {
        stored.extend(round.entries);
        if let Some(last) = round.committed.last() {
            let index = last.index;
            committed.extend(round.committed);
            consensus.applied(index);
        }
        if persist {
            consensus.persisted(round.number);
        }
    }
    (stored, committed)
}

#[test]
fn a_single_voter_leads_after_its_vote_is_stored() {
    let mut consensus = Consensus::new(1, founded(), 0, Bugs::NONE);
    consensus.tick();
    let (stored, committed) = run(&mut consensus, true);
    assert!(consensus.is_leader());
    assert_eq!(stored.len(), 1, "the entry that opens the reign");
    assert_eq!(committed, stored);
}

#[test]
fn nothing_is_committed_before_it_is_stored() {
    let mut consensus = Consensus::new(1, founded(), 0, Bugs::NONE);
    consensus.tick();
    run(&mut consensus, true);
    let index = consensus.propose(b"x".to_vec()).unwrap();
    let round = consensus.round().unwrap();
    assert_eq!(round.entries[0].index, index);
    assert!(round.must_sync);
    assert_eq!(round.committed, []);
    assert!(consensus.round().is_none());
    consensus.persisted(round.number);
    assert_eq!(consensus.round().unwrap().committed[0].data, "x");
}

#[test]
fn a_leader_that_a_change_leaves_out_leads_no_more_and_may_still_hear_from_its_disk() {
    let mut consensus = Consensus::new(1, founded(), 0, Bugs::NONE);
    consensus.tick();
    run(&mut consensus, true);
    consensus.propose(b"x".to_vec()).unwrap();
    let round = consensus.round().unwrap();
    for change in [Change::Follow(2), Change::Vote(2), Change::Leave(1)] {
        consensus.apply_change(change);
    }
    assert_eq!(consensus.conf().voters, [2]);
    consensus.persisted(round.number);
    assert!(!consensus.is_leader());
}

#[test]
fn whoever_takes_over_a_state_does_not_campaign_before_it_is_stored() {
    let restored = Restored { conf: Conf { voters: vec![1, 2], learners: vec![3] }, ..founded() };
    let mut consensus = Consensus::new(1, restored, 0, Bugs::NONE);
    let mark = SnapshotMark { index: 50, term: 2, voters: vec![1, 2], learners: vec![3] };
    let from_leader = |kind| Message { kind, from: 2, to: 1, term: 2, ..Message::default() };
    consensus.step(Message { snapshot: Some(mark), ..from_leader(MessageKind::Snapshot) });
    let round = consensus.round().unwrap();
    assert_eq!(round.snapshot.unwrap().index, 50);
    consensus.step(from_leader(MessageKind::TimeoutNow));
    consensus.campaign();
    (0..30).for_each(|_| consensus.tick());
    assert_eq!(consensus.term(), Term(2));
    consensus.persisted(round.number);
    consensus.step(from_leader(MessageKind::TimeoutNow));
    assert_eq!(consensus.term(), Term(3));
}

/// The crate took it for one entry more than there was, and panicked at a commit beyond its log.
#[test]
fn an_append_whose_entries_begin_elsewhere_counts_as_lost() {
    let entries = vec![entry(6, 2, "a"), entry(7, 2, "b")];
    let hard = Hard { term: 2, vote: 2, commit: 6 };
    let conf = Conf { voters: vec![1, 2], learners: Vec::new() };
    let restored = Restored { hard, snapshot_index: 5, snapshot_term: 1, conf, entries };
    let mut consensus = Consensus::new(1, restored, 0, Bugs::NONE);
    let append = |index, entries| Message {
        kind: MessageKind::Append,
        from: 2,
        to: 1,
        term: 2,
        log_term: 2,
        index,
        commit: 8,
        entries,
        ..Message::default()
    };
    consensus.step(append(7, vec![entry(7, 2, "b")]));
    assert_eq!((consensus.last_index(), consensus.committed()), (7, 6));
    consensus.step(append(7, vec![entry(8, 2, "c")]));
    assert_eq!((consensus.last_index(), consensus.committed()), (8, 8));
}

#[test]
fn a_restarted_voter_commits_what_it_had_stored_in_a_higher_term() {
    let entries = vec![entry(6, 2, "a"), entry(7, 2, "b")];
    let hard = Hard { term: 2, vote: 1, commit: 5 };
    let restored = Restored { hard, snapshot_index: 5, snapshot_term: 1, conf: Conf::alone(1), entries };
    let mut consensus = Consensus::new(1, restored, 0, Bugs::NONE);
    consensus.tick();
    let (stored, committed) = run(&mut consensus, true);
    assert_eq!(stored.iter().map(|entry| (entry.index, entry.term)).collect::<Vec<_>>(), [(8, 3)]);
    assert_eq!(committed.iter().map(|entry| entry.index).collect::<Vec<_>>(), [6, 7, 8]);
}

/// Replica 1 of three, which leads by the vote of 2.
fn leading() -> Consensus {
    let conf = Conf { voters: vec![1, 2, 3], learners: Vec::new() };
    let mut consensus = Consensus::new(1, Restored { conf, ..founded() }, 0, Bugs::NONE);
    consensus.campaign();
    while !consensus.is_leader() {
        run(&mut consensus, true);
        let mut said = Vec::new();
        consensus.take_messages(&mut said);
        let asked = said.into_iter().filter(|message| message.to == 2);
        for Message { kind, term, .. } in asked.collect::<Vec<_>>() {
            let kind = match kind {
                MessageKind::RequestPreVote => MessageKind::RequestPreVoteResponse,
                MessageKind::RequestVote => MessageKind::RequestVoteResponse,
                other => panic!("{other:?}"),
            };
            consensus.step(Message { kind, from: 2, to: 1, term, ..Message::default() });
        }
    }
    run(&mut consensus, true);
    consensus
}

/// What 1 says to 2 now, of entries.
fn appends(consensus: &mut Consensus) -> Vec<Message> {
    run(consensus, true);
    let mut said = Vec::new();
    consensus.take_messages(&mut said);
    said.retain(|message| message.to == 2 && message.kind == MessageKind::Append);
    said
}

fn accepts(consensus: &mut Consensus, append: &Message) {
    let index = append.index + append.entries.len() as u64;
    let kind = MessageKind::AppendResponse;
    let commit = append.commit;
    consensus.step(Message { kind, from: 2, to: 1, term: append.term, index, commit, ..Message::default() });
}

/// The same after 2 has accepted its first append: from now on it is sent others without an answer.
fn replicating() -> Consensus {
    let mut consensus = leading();
    let first = appends(&mut consensus).remove(0);
    accepts(&mut consensus, &first);
    appends(&mut consensus);
    consensus
}

/// The crate put all that a follower lacked into one append: longer than a packet can be, it was dropped, and the follower
/// refused what came behind it. So the leader sent all of it again, in one append.
#[test]
fn who_lags_is_sent_appends_that_fit_into_packets() {
    let mut consensus = leading();
    let first = appends(&mut consensus).remove(0);
    let megabyte = vec![7; 1 << 20];
    let last = (0..20).map(|_| consensus.propose(megabyte.clone()).unwrap()).last().unwrap();
    assert_eq!(appends(&mut consensus), [], "it has not answered yet");
    accepts(&mut consensus, &first);
    let mut next = first.index + first.entries.len() as u64 + 1;
    for append in appends(&mut consensus) {
        assert!(append.encoded_bytes() <= 2 << 20, "{} bytes", append.encoded_bytes());
        assert_eq!(append.index + 1, next);
        assert!(append.entries.iter().map(|entry| entry.index).eq(next..next + append.entries.len() as u64));
        next += append.entries.len() as u64;
    }
    assert_eq!(next, last + 1, "all of it is under way");
}

#[test]
fn what_is_proposed_at_once_goes_out_in_one_append() {
    let mut consensus = replicating();
    let indices: Vec<u64> = (0..16).map(|_| consensus.propose(b"x".to_vec()).unwrap()).collect();
    let said = appends(&mut consensus);
    let [append] = &said[..] else { panic!("{} appends", said.len()) };
    assert!(append.entries.iter().map(|entry| entry.index).eq(indices));
    assert_eq!(append.index, append.entries[0].index - 1);
}

/// Without an answer, what is under way to one follower is bounded, whatever it amounts to.
#[test]
fn who_does_not_answer_is_not_sent_everything() {
    let mut consensus = replicating();
    let megabyte = vec![7; 1 << 20];
    (0..100).for_each(|_| assert!(consensus.propose(megabyte.clone()).is_some()));
    let bytes: usize = appends(&mut consensus).iter().map(Message::encoded_bytes).sum();
    assert!(bytes <= (APPENDS_IN_FLIGHT_MAX + 1) << 20, "{bytes} bytes");
}

/// The kinds of what is said to others now, and how long the log is said to be.
fn says(consensus: &mut Consensus) -> Vec<(MessageKind, u64)> {
    run(consensus, true);
    let mut said = Vec::new();
    consensus.take_messages(&mut said);
    said.into_iter().map(|message| (message.kind, message.index)).collect()
}

#[test]
fn a_heartbeat_says_how_long_the_log_is() {
    let mut consensus = replicating();
    let length = consensus.propose(b"x".to_vec()).unwrap();
    says(&mut consensus);
    consensus.tick();
    let said = says(&mut consensus);
    let heartbeats: Vec<_> = said.iter().filter(|(kind, _)| *kind == MessageKind::Heartbeat).collect();
    assert_eq!(heartbeats, [&(MessageKind::Heartbeat, length); 2], "{said:?}");
}

#[test]
fn the_answer_to_a_heartbeat_waits_for_a_tick_where_nothing_hangs_on_it() {
    let conf = Conf { voters: vec![1, 2], learners: Vec::new() };
    let hard = Hard { term: 2, vote: 2, commit: 7 };
    let entries = vec![entry(6, 2, "a"), entry(7, 2, "b")];
    let restored = Restored { hard, snapshot_index: 5, snapshot_term: 1, conf, entries };
    let mut consensus = Consensus::new(1, restored, 0, Bugs::NONE);
    let heartbeat = |index, commit| Message {
        kind: MessageKind::Heartbeat,
        from: 2,
        to: 1,
        term: 2,
        index,
        commit,
        ..Message::default()
    };
    let answer = (MessageKind::HeartbeatResponse, 0);
    says(&mut consensus);
    for (index, commit) in [(8, 7), (7, 6), (0, 7)] {
        consensus.step(heartbeat(index, commit));
        assert_eq!(
            says(&mut consensus),
            [answer],
            "it lacks something, or its leader does not say: {index}, {commit}"
        );
    }
    for _ in 0..2 {
        consensus.step(heartbeat(7, 7));
        assert_eq!(says(&mut consensus), []);
    }
    consensus.tick();
    assert_eq!(says(&mut consensus), [answer], "one for both");
    consensus.step(heartbeat(7, 7));
    consensus.step(heartbeat(8, 7));
    assert_eq!(
        says(&mut consensus),
        [answer, answer],
        "who is in a hurry later does not wait for what waits"
    );
}

/// A follower that answered with its next tick was out of sync for as long, whenever its leader had looked for a majority:
/// an idle cluster was degraded in a third of the time.
#[test]
fn a_follower_that_answers_a_tick_later_is_active_all_the_time_and_a_silent_one_is_not() {
    let mut consensus = replicating();
    let answer = Message {
        kind: MessageKind::HeartbeatResponse,
        from: 2,
        to: 1,
        term: consensus.term().0,
        ..Message::default()
    };
    for tick in 0..60 {
        consensus.tick();
        says(&mut consensus);
        assert!(consensus.progress(2).unwrap().is_active, "before the answer of tick {tick}");
        consensus.step(answer.clone());
    }
    assert!(consensus.is_leader());
    assert!(!consensus.progress(3).unwrap().is_active, "it never said anything");
    let is_known = (0..ELECTION_TICKS + ANSWER_TICKS as usize).any(|_| {
        consensus.tick();
        says(&mut consensus);
        !consensus.progress(2).unwrap().is_active
    });
    assert!(is_known, "2 is silent");
}

#[test]
fn a_node_has_a_tick_every_100_ms_and_nodes_have_different_ones() {
    const TICK: u64 = TICK_MILLIS * 1_000_000;
    let firsts: Vec<_> = (1..=5).map(|node| tick_after(NodeId(node), Instant(0)).0).collect();
    for (node, first) in (1..).zip(&firsts) {
        assert!((1..=TICK).contains(first));
        for (now, next) in [(first - 1, *first), (*first, first + TICK), (first + TICK - 1, first + TICK)] {
            assert_eq!(tick_after(NodeId(node), Instant(now)), Instant(next));
        }
        let apart = firsts.iter().filter(|other| other.abs_diff(*first) > TICK / 100);
        assert_eq!(apart.count(), 4, "{firsts:?}");
    }
}
