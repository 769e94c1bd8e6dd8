//! Gossip through its stories, and what a liar can and cannot do.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use swarmmq_protocol::{
    datagram::{DatagramError, Entry, Gossiped, Header, Life, cluster_tag, seal},
    id::NodeId,
    mac::{DualKey, MacKey},
};

use super::{
    detector::Verdict,
    report::{Accusation, Accusations, LinkReport, Load, Report, SignedAccusations, SignedReport},
    testbed::{CLUSTER, Testbed, acquaintances, node, secret},
};
use crate::shard::member::NODES_MAX;

fn sealed(count: usize) -> Testbed {
    let mut bed = Testbed::new(count, 1);
    bed.seals = true;
    bed.run_for(Duration::from_secs(1));
    bed
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn nodes_that_begin_know_each_other_within_a_second() {
    let bed = sealed(5);
    for machine in &bed.machines {
        assert_eq!(machine.gossip.reports().count(), 5);
        assert!((0..5).all(|other| machine.gossip.heard_at(node(other)).is_some()));
        assert_eq!(machine.gossip.counters().refused, [0; 10]);
    }
    assert!(bed.all_alive());
}

#[test]
fn an_urgent_report_is_everywhere_at_once_and_others_are_gathered() {
    let mut bed = sealed(5);
    let load = |lag_us| Load { lag_us, ..Load::default() };
    let now = bed.now;
    bed.machines[0].gossip.say(now, 7, "0.1.0", load(1), Vec::new(), true);
    bed.settle(0);
    bed.run_for(ms(4));
    for machine in &bed.machines {
        assert_eq!(machine.gossip.report(node(0)).unwrap().load.lag_us, 1);
    }
    for lag in 2..200 {
        let now = bed.now;
        bed.machines[0].gossip.say(now, 7, "0.1.0", load(lag), Vec::new(), false);
        bed.run_for(ms(10));
    }
    bed.run_for(ms(700));
    let report = bed.machines[3].gossip.report(node(0)).unwrap();
    assert_eq!(report.load.lag_us, 199);
    assert!((5..=7).contains(&report.version), "{} versions in two seconds", report.version);
    let version = report.version;
    let now = bed.now;
    bed.machines[0].gossip.say(now, 7, "0.1.0", load(199), Vec::new(), true);
    assert_eq!(bed.machines[0].gossip.report(node(0)).unwrap().version, version, "nothing new");
}

#[test]
fn a_crash_is_known_to_all_and_a_return_too() {
    let mut bed = sealed(5);
    bed.crash(2);
    bed.run_for(ms(1500));
    assert!(bed.all_believe(2, Verdict::Dead));
    bed.run_for(ms(5000));
    bed.start(2);
    bed.run_for(ms(300));
    assert!(bed.all_alive());
}

#[test]
fn a_process_that_ended_is_dead_at_once() {
    let mut bed = sealed(5);
    bed.crash(2);
    bed.refuse(2);
    bed.run_for(ms(20));
    assert!(bed.all_believe(2, Verdict::Dead));
}

#[test]
fn a_pause_of_three_hundred_milliseconds_makes_nobody_suspect() {
    for seed in 1..=20 {
        let mut bed = Testbed::new(5, seed);
        bed.loss_permille = 50 * (seed % 3);
        bed.run_for(ms(5_000));
        for paused in 0..5 {
            let wait = bed.draw(500_000);
            bed.run_for(Duration::from_micros(1_000_000 + wait));
            bed.stall(paused, ms(300));
        }
        bed.run_for(ms(3_000));
        assert_eq!(bed.verdicts, [], "seed {seed}");
    }
}

#[test]
fn who_was_stalled_is_not_condemned_and_condemns_nobody() {
    for seed in 1..=10 {
        let mut bed = Testbed::new(5, seed);
        bed.loss_permille = 100;
        bed.run_for(ms(3_000));
        for stalled in 0..5 {
            bed.stall(stalled, ms(1_000));
            let wait = bed.draw(500);
            bed.run_for(ms(3_000 + wait));
            assert!(bed.all_alive(), "seed {seed}");
        }
        assert!(bed.verdicts.iter().all(|(_, _, _, verdict)| *verdict != Verdict::Dead), "seed {seed}");
    }
}

#[test]
fn a_host_that_stood_still_for_a_while_condemns_none_of_its_nodes() {
    let mut bed = sealed(5);
    (0..5).for_each(|index| bed.stall(index, ms(5_000)));
    bed.run_for(ms(8_000));
    assert_eq!(bed.verdicts, []);
    assert!(bed.machines.iter().all(|machine| machine.gossip.counters().stalls == 1));
}

#[test]
fn who_was_stopped_for_long_is_alive_as_soon_as_it_goes_on() {
    let mut bed = sealed(5);
    bed.stall(1, ms(10_000));
    bed.run_for(ms(9_990));
    assert!(bed.all_believe(1, Verdict::Dead));
    bed.run_for(ms(30));
    assert!(bed.all_alive());
}

#[test]
fn two_nodes_that_cannot_talk_hear_of_each_other_through_the_rest() {
    let mut bed = sealed(5);
    bed.cut(0, 1, true);
    bed.cut(1, 0, true);
    bed.run_for(Duration::from_secs(30));
    assert_eq!(bed.verdicts, []);
    // One way only: the two of them are still told by others.
    bed.cut(0, 1, false);
    bed.run_for(Duration::from_secs(10));
    assert_eq!(bed.verdicts, []);
    let now = bed.now;
    let load = Load { queued: 5, ..Load::default() };
    bed.machines[0].gossip.say(now, 7, "0.1.0", load, Vec::new(), true);
    bed.settle(0);
    bed.run_for(ms(120));
    assert_eq!(bed.machines[1].gossip.report(node(0)).unwrap().load, load);
}

#[test]
fn after_a_split_everybody_is_alive_again_within_half_a_second() {
    let mut bed = sealed(5);
    bed.split(&[0, 1], true);
    bed.run_for(Duration::from_secs(20));
    for (observer, whom) in [(2, 0), (2, 1), (3, 0), (4, 1)] {
        assert_eq!(bed.machines[observer].gossip.verdict(node(whom)), Verdict::Dead);
    }
    bed.split(&[0, 1], false);
    bed.run_for(ms(500));
    assert!(bed.all_alive());
}

/// Each side of a split remembers the process that the other one's node ran before it, and tells it to the new one here.
#[test]
fn two_that_started_anew_out_of_each_others_sight_find_each_other() {
    let mut bed = sealed(4);
    bed.split(&[0, 1], true);
    for restarted in [0, 2] {
        bed.crash(restarted);
        bed.start(restarted);
        bed.run_for(ms(500));
    }
    for witness in [1, 3] {
        bed.crash(witness);
    }
    bed.split(&[0, 1], false);
    bed.run_for(ms(500));
    for (one, other) in [(0, 2), (2, 0)] {
        let gossip = &bed.machines[one].gossip;
        assert_eq!(gossip.report(node(other)).map(|report| report.boot), Some(2));
        assert_eq!(gossip.verdict(node(other)), Verdict::Alive);
    }
}

#[test]
fn who_hears_nobody_distrusts_itself_and_condemns_nobody() {
    let mut bed = sealed(5);
    bed.split(&[3], true);
    bed.run_for(ms(1_500));
    let alone = &bed.machines[3].gossip;
    assert!(alone.distrusts_itself());
    assert!((0..5).all(|other| alone.verdict(node(other)) == Verdict::Alive));
    assert!([0, 1, 2, 4].iter().all(|by| bed.machines[*by].gossip.verdict(node(3)) == Verdict::Dead));
    bed.run_for(Duration::from_secs(60));
    let alone = &bed.machines[3].gossip;
    assert!((0..5).all(|other| alone.verdict(node(other)) != Verdict::Dead));
}

#[test]
fn where_most_crash_at_once_the_rest_doubts_itself_first() {
    let mut bed = sealed(5);
    (0..3).for_each(|index| bed.crash(index));
    bed.run_for(ms(3_000));
    assert!((0..3).all(|whom| !bed.all_believe(whom, Verdict::Dead)));
    bed.run_for(ms(3_500));
    assert!((0..3).all(|whom| bed.all_believe(whom, Verdict::Dead)));
}

#[test]
fn of_two_nodes_the_one_that_is_left_decides_alone_and_takes_longer() {
    let mut bed = sealed(2);
    bed.crash(1);
    bed.run_for(ms(1_500));
    assert_eq!(bed.machines[0].gossip.verdict(node(1)), Verdict::Suspect);
    bed.run_for(ms(1_500));
    assert_eq!(bed.machines[0].gossip.verdict(node(1)), Verdict::Dead);
    let mut bed = sealed(3);
    bed.crash(2);
    bed.run_for(ms(1_600));
    assert!(bed.all_believe(2, Verdict::Dead));
}

#[test]
fn losses_and_round_trips_are_measured_per_direction() {
    let mut bed = Testbed::new(3, 3);
    bed.loss_permille = 200;
    bed.run_for(Duration::from_secs(60));
    let gossip = &bed.machines[0].gossip;
    for other in [1, 2] {
        assert!(
            (80..350).contains(&gossip.loss_permille(node(other))),
            "{}",
            gossip.loss_permille(node(other))
        );
        assert!((50..400).contains(&gossip.loss_towards_permille(node(other))));
        let round_trip = gossip.round_trip(node(other)).unwrap();
        assert!((ms(1)..ms(6)).contains(&round_trip), "{round_trip:?}");
    }
    bed.split(&[0], true);
    bed.run_for(Duration::from_secs(22));
    assert_eq!(bed.machines[0].gossip.loss_permille(node(1)), 1000);
}

/// What a stopped node's full socket dropped was taken for loss: others went around its healthy links for ten seconds.
#[test]
fn what_a_stall_or_an_outage_took_is_no_loss() {
    let mut bed = Testbed::new(5, 7);
    bed.room = 100;
    bed.run_for(Duration::from_secs(20));
    bed.stall(2, ms(3_000));
    bed.run_for(ms(5_000));
    bed.split(&[0], true);
    bed.run_for(ms(1_500));
    bed.split(&[0], false);
    bed.run_for(ms(1_500));
    for index in 0..5 {
        for other in (0..5).filter(|other| *other != index) {
            let gossip = &bed.machines[index].gossip;
            assert_eq!(gossip.loss_permille(node(other)), 0, "{index} of {other}");
        }
    }
}

#[test]
fn with_a_small_fan_out_news_reaches_everybody_in_a_few_rounds() {
    let mut bed = Testbed::new(5, 1);
    bed.limit_fan_out(2);
    bed.run_for(ms(2_000));
    let now = bed.now;
    let load = Load { queued: 9, ..Load::default() };
    bed.machines[0].gossip.say(now, 7, "0.1.0", load, Vec::new(), false);
    bed.run_for(ms(500));
    assert!(bed.machines.iter().all(|machine| machine.gossip.report(node(0)).unwrap().load == load));
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let mut bed = Testbed::new(5, seed);
        (bed.loss_permille, bed.seals) = (300, true);
        bed.run_for(ms(3_000));
        bed.crash(1);
        bed.run_for(ms(3_000));
        (bed.sent, bed.verdicts, *bed.machines[0].gossip.counters())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

/// What machine 4 would send to machine 0 if it could say anything; proven, because its keys are its own.
fn lie(bed: &mut Testbed, change: impl FnOnce(&mut Gossiped)) -> Result<(), DatagramError> {
    let now = bed.now;
    let (mut header, mut body) = bed.machines[4].gossip.compose(now, node(0), false).unwrap();
    header.counter += 5;
    body.entries.clear();
    body.reports.clear();
    body.accusations.clear();
    change(&mut body);
    let taken = bed.machines[0].gossip.take(now, header, body);
    bed.settle(0);
    taken
}

fn life(boot: u64) -> Life {
    Life { incarnation: 1, boot }
}

fn entry(whom: usize, boot: u64, beat: u64) -> Entry {
    Entry { node: node(whom), life: life(boot), beat, report: 0, accusations: 0 }
}

fn accusations(of: usize, whom: usize, beat: u64, is_gone: bool) -> Accusations {
    let accused = vec![Accusation { node: node(whom), life: life(1), beat, is_gone }];
    Accusations { node: node(of), life: life(1), version: 1 << 40, accused }
}

#[test]
fn a_liar_cannot_speak_for_others() {
    let mut bed = sealed(5);
    let mut report = bed.machines[0].gossip.report(node(1)).unwrap().clone();
    (report.version, report.load.is_draining) = (99, true);
    let forged = [
        SignedReport::new(report.clone(), &secret(4)).bytes().clone(),
        SignedReport::new(Report { boot: 9, ..report }, &secret(4)).bytes().clone(),
    ];
    let said = SignedAccusations::new(accusations(1, 2, 1, true), &secret(4)).bytes().clone();
    let before = bed.machines[0].gossip.report(node(1)).unwrap().clone();
    lie(&mut bed, |body| {
        body.reports.extend(forged);
        body.accusations.push(said);
    })
    .unwrap();
    assert_eq!(bed.machines[0].gossip.counters().bad_documents, 3);
    assert_eq!(*bed.machines[0].gossip.report(node(1)).unwrap(), before);
    bed.run_for(ms(2_000));
    assert_eq!(bed.verdicts, []);
}

#[test]
fn one_accuser_condemns_nobody_however_often_it_says_so() {
    let mut bed = sealed(5);
    for turn in 0..100 {
        let beat = bed.machines[1].gossip.beat();
        for is_gone in [true, false] {
            let said = Accusations {
                version: 2 * turn + 1 + u64::from(is_gone),
                ..accusations(4, 1, beat + 40, is_gone)
            };
            let said = SignedAccusations::new(said, &secret(4)).bytes().clone();
            lie(&mut bed, |body| body.accusations.push(said)).unwrap();
        }
        bed.run_for(ms(50));
    }
    assert_eq!(bed.verdicts, []);
}

#[test]
fn a_liar_can_neither_silence_a_node_nor_begin_its_next_life() {
    let mut bed = sealed(5);
    for turn in 0..50 {
        let beat = bed.machines[1].gossip.beat();
        let step = if turn % 2 == 0 { 60 } else { 1 << 50 };
        lie(&mut bed, |body| {
            body.entries.extend([entry(1, 1, beat + step), entry(2, 77, 1), entry(0, 1, 1 << 60)])
        })
        .unwrap();
        bed.run_for(ms(100));
    }
    bed.run_for(ms(2_000));
    assert_eq!(bed.verdicts, []);
    assert!(bed.machines[0].gossip.heard_at(node(2)).unwrap() + ms(150) > bed.now);
    assert!(bed.machines[0].gossip.beat() < 1 << 40);
}

#[test]
fn recordings_change_nothing() {
    let mut bed = sealed(5);
    let mut recorded = Vec::new();
    let now = bed.now + ms(200);
    bed.machines[1].gossip.poll(now, &mut recorded);
    let bytes = recorded.iter().find(|(to, _)| *to == node(0)).unwrap().1.clone();
    let machine = &mut bed.machines[0].gossip;
    assert_eq!(machine.datagram(now, &bytes), Ok(()));
    assert_eq!(machine.datagram(now, &bytes), Err(DatagramError::Replayed));
    // In a later life of the receiver a recording is for somebody who is no more.
    bed.crash(0);
    bed.start(0);
    let now = bed.now;
    let machine = &mut bed.machines[0].gossip;
    assert_eq!(machine.datagram(now, &bytes), Ok(()), "it is answered");
    assert_eq!(machine.heard_at(node(1)), None, "and counts for nothing");
    // In a later life of the sender it is from somebody who is no more.
    bed.run_for(ms(500));
    bed.crash(1);
    bed.start(1);
    bed.run_for(ms(500));
    let now = bed.now;
    assert_eq!(bed.machines[0].gossip.datagram(now, &bytes), Err(DatagramError::OtherLife));
}

#[test]
fn an_introduction_that_was_recorded_says_nothing_of_today() {
    let mut bed = Testbed::new(2, 1);
    bed.seals = true;
    let mut recorded = Vec::new();
    let now = bed.now;
    bed.machines[1].gossip.poll(now, &mut recorded);
    let bytes = recorded[0].1.clone();
    let machine = &mut bed.machines[0].gossip;
    assert_eq!(machine.datagram(now, &bytes), Ok(()));
    assert_eq!((machine.heard_at(node(1)), machine.reports().count()), (None, 1));
    let mut answers = Vec::new();
    machine.poll(now, &mut answers);
    assert_eq!(answers.len(), 1, "it is told this life's number, and nobody else is told anything");
}

#[test]
fn strangers_and_the_unproven_are_neither_believed_nor_answered() {
    let mut bed = sealed(3);
    let now = bed.now;
    bed.machines[0].gossip.poll(now, &mut Vec::new());
    let stranger = MacKey::new([1; 32]);
    let header = Header {
        kind: 1,
        origin: node(1),
        destination: node(0),
        life: life(1),
        to: life(1),
        counter: 1 << 30,
    };
    let tag = cluster_tag(CLUSTER);
    let gossip = &mut bed.machines[0].gossip;
    for (bytes, error) in [
        (seal(tag, &header, &[], &stranger), DatagramError::Forged),
        (seal(tag, &Header { origin: node(7), ..header }, &[], &stranger), DatagramError::Stranger(node(7))),
        (seal(tag + 1, &header, &[], &stranger), DatagramError::OtherCluster),
        (Bytes::from_static(b"hello"), DatagramError::Size(5)),
    ] {
        assert_eq!(gossip.datagram(now, &bytes), Err(error.clone()));
        assert_eq!(gossip.counters().refused[error.index()], 1);
        let mut out = Vec::new();
        gossip.poll(now, &mut out);
        assert_eq!(out, []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_bytes_do_more_than_be_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(SignedReport::read(&bytes).is_err() || bytes.len() > 64);
        prop_assert!(SignedAccusations::read(&bytes).is_err() || bytes.len() > 64);
        let _ = Gossiped::decode(bytes.clone());
        let mut bed = Testbed::new(2, 1);
        let now = bed.now;
        prop_assert!(bed.machines[0].gossip.datagram(now, &bytes).is_err());
    }

    #[test]
    fn whatever_a_proven_node_says_nobody_else_is_changed_by_it(
        beats in proptest::collection::vec((0..4_usize, any::<u64>(), any::<u64>(), any::<u64>()), 0..20),
        wishes in proptest::collection::vec(1..9_u16, 0..20),
        echo in any::<u64>(),
    ) {
        let mut bed = sealed(5);
        lie(&mut bed, |body| {
            body.echo = echo;
            body.wishes = wishes.into_iter().map(NodeId).collect();
            body.entries = beats
                .into_iter()
                .map(|(whom, boot, beat, report)| Entry { report, accusations: report, ..entry(whom, boot % 3, beat) })
                .collect();
        })
        .unwrap();
        bed.run_for(ms(2_000));
        prop_assert_eq!(&bed.verdicts, &[]);
        prop_assert!(bed.all_alive());
    }
}

#[test]
fn who_is_not_known_any_more_is_forgotten_and_another_disk_is_somebody_else() {
    let mut bed = sealed(3);
    let now = bed.now;
    let gossip = &mut bed.machines[0].gossip;
    let mut known = acquaintances(3);
    gossip.take_changed();
    gossip.know(now, &known);
    assert!(!gossip.take_changed(), "nothing new");
    known.remove(&node(1));
    known.get_mut(&node(2)).unwrap().incarnation = 2;
    gossip.know(now, &known);
    assert!(gossip.take_changed());
    assert_eq!(gossip.reports().count(), 1);
    assert_eq!((gossip.heard_at(node(1)), gossip.heard_at(node(2))), (None, None));
    bed.run_for(ms(300));
    let gossip = &bed.machines[0].gossip;
    assert_eq!(gossip.reports().count(), 1);
    let refused = gossip.counters().refused;
    assert!(
        refused[DatagramError::Stranger(node(1)).index()] > 0
            && refused[DatagramError::OtherLife.index()] > 0
    );
}

#[test]
fn sixty_four_nodes_with_full_reports_know_all_of_each_other() {
    let mut bed = Testbed::new(NODES_MAX, 1);
    bed.run_for(ms(3_000));
    let now = bed.now;
    for index in 0..NODES_MAX {
        let links = (0..NODES_MAX).map(|to| LinkReport {
            to: node(to),
            session: 1,
            is_up: true,
            rtt_us: 1,
            loss_permille: 0,
        });
        let release = "x".repeat(64);
        bed.machines[index].gossip.say(now, 7, &release, Load::default(), links.collect(), false);
    }
    bed.run_for(Duration::from_secs(8));
    for machine in &bed.machines {
        assert!(machine.gossip.reports().all(|report| report.links.len() == NODES_MAX));
        assert_eq!(machine.gossip.reports().count(), NODES_MAX);
    }
    assert!(bed.all_alive());
    assert!(bed.verdicts.iter().all(|(_, _, _, verdict)| *verdict != Verdict::Dead));
}

/// Node by node, in three steps; nobody is missed, and nothing is taken for forged, as long as all are at most one step apart.
#[test]
fn the_secret_of_the_cluster_is_replaced_while_nodes_gossip() {
    let mut bed = sealed(5);
    bed.run_for(Duration::from_secs(2));
    let key = |byte| MacKey::new([byte; 32]);
    let dual = |current, also: Option<u8>| DualKey { current: key(current), also: also.map(key) };
    for step in [dual(9, Some(8)), dual(8, Some(9)), dual(8, None)] {
        for index in 0..5 {
            bed.machines[index].gossip.set_secret(step.clone());
            bed.run_for(ms(700));
        }
    }
    bed.run_for(Duration::from_secs(2));
    assert_eq!(bed.verdicts, []);
    let forged = DatagramError::Forged.index();
    assert!(bed.machines.iter().all(|machine| machine.gossip.counters().refused[forged] == 0));
    // Whoever missed it all is heard by nobody.
    bed.machines[2].gossip.set_secret(dual(9, None));
    bed.run_for(Duration::from_secs(3));
    assert!(bed.all_believe(2, Verdict::Dead));
    assert!(bed.machines[0].gossip.counters().refused[forged] > 0);
}
