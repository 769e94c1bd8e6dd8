//! A producer with several connections, and with a choice of shards: which way its lanes take, when they take another, and
//! where messages go that may go anywhere.

use super::*;

const ONE: Way = Way::Direct(NodeId(1));
const TWO: Way = Way::Direct(NodeId(2));

impl Rig {
    /// What is sent over direct connections now.
    pub(super) fn pump_direct(&mut self) -> Vec<(Way, Out)> {
        let direct = self.session.ways.all().into_iter().filter(|way| *way != Way::Home);
        let mut outs = Vec::new();
        for way in direct {
            let mut bytes = BytesMut::new();
            self.session.pump(self.now, way, &mut bytes);
            outs.extend(self.read(&bytes).into_iter().map(|out| (way, out)));
        }
        outs
    }

    /// What goes where after nothing but time.
    fn goes(&mut self) -> Vec<(Way, u64, u64)> {
        let home = self.step(Input::Wait(Duration::ZERO)).into_iter().map(|out| (Way::Home, out));
        let all: Vec<_> = home.collect::<Vec<_>>().into_iter().chain(self.pump_direct()).collect();
        let publish = |(way, out)| match out {
            Out::Publish { first, last, .. } => Some((way, first, last)),
            Out::Told(..) => None,
            other => panic!("{other:?}"),
        };
        all.into_iter().filter_map(publish).collect()
    }

    fn sends(&mut self, ticket: u64) -> Vec<(Way, u64, u64)> {
        self.submit(ticket, A, BYTES, DEADLINE);
        self.goes()
    }

    /// Shard A is led by this node.
    fn led_by(&mut self, node: u16) {
        self.session.learned(&[None, Some(NodeId(node))]);
    }

    fn connect(&mut self, way: Way) {
        self.session.connected(way, 1000, 64 << 20);
    }

    /// The frame that went out last is answered with ok.
    fn stored(&mut self) {
        let request = self.session.next_request - 1;
        let run = PublishedRun { count: 1, outcome: Taken, code: 0, duplicate: false, first_offset: None };
        self.session.published(self.now, request, &Published { runs: vec![run] });
    }
}

#[test]
fn a_lane_takes_a_better_way_only_when_nothing_is_unanswered_on_the_old_one() {
    let mut rig = Rig::open();
    assert_eq!(rig.sends(1), [(Way::Home, 2, 2)]);
    rig.led_by(1);
    rig.connect(ONE);
    assert_eq!(rig.sends(2), [], "it would overtake the one before");
    rig.stored();
    assert_eq!(rig.goes(), [(ONE, 3, 3)]);
    rig.led_by(2);
    assert_eq!(rig.sends(3), [], "home is better than a node that leads no more, but not yet");
    rig.stored();
    assert_eq!(rig.goes(), [(Way::Home, 4, 4)]);
    rig.stored();
    rig.connect(TWO);
    assert_eq!(rig.sends(4), [(TWO, 5, 5)]);
}

#[test]
fn what_was_unanswered_on_a_lost_way_goes_home_at_once_and_is_not_called_failed() {
    let mut rig = Rig::open();
    rig.led_by(1);
    rig.connect(ONE);
    assert_eq!(rig.sends(1), [(ONE, 2, 2)]);
    rig.session.disconnected(ONE);
    assert_eq!(rig.goes(), [(Way::Home, 2, 2)]);
    let refused = rig.session.next_request - 1;
    rig.step(Input::Fates(refused, &[(1, Failed, Some(Code::NotLeader))]));
    let out = rig.step(Input::Wait(DEADLINE));
    assert!(out.contains(&told_unknown(1, Code::Deadline)), "the other copy may have arrived: {out:?}");
}

#[test]
fn the_loss_of_one_way_touches_no_lane_of_another() {
    let mut rig = Rig::open();
    rig.led_by(1);
    rig.connect(ONE);
    assert_eq!(rig.sends(1), [(ONE, 2, 2)]);
    rig.session.disconnected(Way::Home);
    assert_eq!(rig.goes(), []);
    rig.stored();
    assert_eq!(rig.session.open_messages(), 0, "its answer came over the other way");
    assert_eq!(rig.sends(2), [(ONE, 3, 3)]);
    rig.session.disconnected(ONE);
    assert_eq!(rig.goes(), []);
    rig.connect(TWO);
    assert_eq!(rig.goes(), [(TWO, 3, 3)], "any node takes it");
}

#[test]
fn each_way_has_a_window_of_its_own() {
    let mut rig = Rig::open();
    rig.session.disconnected(Way::Home);
    rig.session.connected(Way::Home, 1, 64 << 20);
    rig.session.connected(ONE, 1, 64 << 20);
    rig.session.learned(&[None, None, Some(NodeId(1))]);
    let opened = |out: &[(Way, Out)]| matches!(out[..], [(ONE, Out::Open { shard: B, .. })]);
    rig.submit(1, B, BYTES, DEADLINE);
    rig.step(Input::Wait(Duration::ZERO));
    assert!(opened(&rig.pump_direct()));
    let request = rig.session.next_request - 1;
    rig.step(Input::Answer(request, Taken, None));
    assert!(matches!(rig.pump_direct()[..], [(ONE, Out::Publish { shard: B, .. })]));
    assert_eq!(rig.sends(2), [(Way::Home, 2, 2)]);
    assert_eq!(rig.sends(3), [], "home allows no more");
}

#[test]
fn nothing_new_goes_to_who_is_leaving_and_answers_are_waited_for() {
    let mut rig = Rig::open();
    rig.led_by(1);
    rig.connect(ONE);
    assert_eq!(rig.sends(1), [(ONE, 2, 2)]);
    rig.session.leaving(ONE);
    assert!(!rig.session.is_drained(ONE));
    assert_eq!(rig.sends(2), []);
    rig.stored();
    assert!(rig.session.is_drained(ONE));
    assert_eq!(rig.goes(), [(Way::Home, 3, 3)]);
}

#[test]
fn leaders_of_what_is_sent_are_wished_for() {
    let mut rig = Rig::open();
    rig.session.learned(&[Some(NodeId(7)), Some(NodeId(1))]);
    rig.sends(1);
    let mut wishes = BTreeSet::new();
    rig.session.take_wishes(&mut wishes);
    assert_eq!(wishes, BTreeSet::from([NodeId(1)]));
}

#[test]
fn a_message_that_cannot_be_sealed_uses_no_sequence() {
    let mut rig = Rig::open();
    let refused = rig.session.submit(1, A, (rig.now, rig.now + DEADLINE), Err::<Bytes, _>);
    assert_eq!(refused, Err(Sequence(2)));
    assert_eq!(rig.session.open_messages(), 0);
    assert_eq!(published(&rig.step(Input::Send(&[2]))), [(2, 2)]);
}

#[test]
fn what_may_go_anywhere_leaves_a_shard_whose_answers_are_late_and_tries_its_next_leader() {
    let mut rig = Rig::open();
    rig.session.set_shards(2);
    let other = ShardId(1 - A.0);
    // The rig has sent one message to A and got its answer at once.
    rig.submit(1, A, BYTES, DEADLINE);
    rig.step(Input::Wait(Duration::from_millis(50)));
    assert_eq!(rig.session.choose(rig.now), other, "nothing is known of it: it gets one");
    rig.submit(2, other, BYTES, DEADLINE);
    rig.step(Input::Wait(Duration::from_millis(1)));
    let chosen: Vec<ShardId> = (0..40).map(|_| rig.session.choose(rig.now)).collect();
    assert!(chosen.iter().all(|shard| *shard == other), "A has let a message wait for 51 ms: {chosen:?}");
    rig.session.set_routing(&Routing { policy: Policy::RoundRobin, cohort: None });
    let chosen: Vec<ShardId> = (0..64).map(|_| rig.session.choose(rig.now)).collect();
    assert_eq!(chosen.iter().filter(|shard| **shard == A).count(), 32, "in turn, whatever they are like");
}
