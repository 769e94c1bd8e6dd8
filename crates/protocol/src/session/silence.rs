//! When a client stops waiting for a node that says nothing: a process that stands still keeps its connections and answers none.
//!
//! A connection on which nothing is heard is asked whether it lives (`Ping`), soon after something was said or heard and
//! then more and more seldom. Only a question without an answer counts against it, and only time in which the client
//! itself was running: who was not run for a while has not listened.

use std::time::Duration;

use crate::time::Instant;

/// Quiet before the first question after something was said or heard; doubles with every answer that says no more.
const ASK_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between two questions while an answer to something else is awaited.
const ASK_OWED_MAX: Duration = Duration::from_secs(1);
/// After that what was said may be of a kind that nobody answers.
const OWED_MAX: Duration = Duration::from_secs(30);
/// Time for an answer, unless that has lately proved too short.
const ANSWER_FIRST: Duration = Duration::from_millis(400);
/// So much of the time between two looks counts: more means that the client itself was not run.
const LOOK: Duration = Duration::from_millis(100);
/// Without a connection given up for so long, what was learned about patience is forgotten.
const CALM: Duration = Duration::from_secs(10);

/// How long the other end may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longest pause before a question, and time for its answer after which the connection is dead.
    pub dead: Duration,
    /// Time for an answer after which another way is looked for; `None`: there is no other.
    pub elsewhere: Option<Duration>,
}

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// Ask whether it lives: send a `Ping` now.
    Ask,
    /// Look for another way, and take it when it is there. It may still answer.
    Silent,
    /// Give it up.
    Dead,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Time without an answer in which the client was running.
    waited: Duration,
    looked_at: Instant,
}

/// One connection's silence.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    quiet_since: Instant,
    pause: Duration,
    /// Since when something was said that nothing but answers to questions followed.
    owed_since: Option<Instant>,
    asked: Option<Asked>,
}

impl Silence {
    /// The connection was proven just now.
    pub fn new(now: Instant) -> Self {
        Self { quiet_since: now, pause: ASK_FIRST, owed_since: None, asked: None }
    }

    /// Something other than a question or its answer is being sent.
    pub fn said(&mut self, now: Instant) {
        if self.owed_since.is_some_and(|since| now.since(since) < OWED_MAX) {
            return;
        }
        self.owed_since = Some(now);
        self.quiet_since = now;
        self.pause = ASK_FIRST;
    }

    /// Something came, whatever it is.
    pub fn heard(&mut self, now: Instant) {
        self.quiet_since = now;
        self.asked = None;
    }

    /// What came was something to work with.
    pub fn news(&mut self) {
        self.owed_since = None;
        self.pause = ASK_FIRST;
    }

    /// What came was only the answer to a question.
    pub fn lives(&mut self) {
        self.pause = self.pause.saturating_mul(2);
    }

    /// To be called whenever there was an opportunity to read, and at [`Silence::next_look`].
    pub fn look(&mut self, now: Instant, bounds: Bounds) -> Verdict {
        let due = self.quiet_since + self.ask_after(now, bounds);
        let Some(asked) = &mut self.asked else {
            if now < due {
                return Verdict::Fine;
            }
            self.asked = Some(Asked { waited: Duration::ZERO, looked_at: now });
            return Verdict::Ask;
        };
        asked.waited += now.since(asked.looked_at).min(LOOK);
        asked.looked_at = now;
        match asked.waited {
            waited if waited >= bounds.dead => Verdict::Dead,
            waited if bounds.elsewhere.is_some_and(|time| waited >= time) => Verdict::Silent,
            _ => Verdict::Fine,
        }
    }

    /// Whether it was asked and has not answered.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// When [`Silence::look`] may have something new to say.
    pub fn next_look(&self, now: Instant, bounds: Bounds) -> Instant {
        let Some(asked) = &self.asked else { return self.quiet_since + self.ask_after(now, bounds) };
        let ends = [Some(bounds.dead), bounds.elsewhere].into_iter().flatten();
        let left = ends.filter(|end| *end > asked.waited).map(|end| end - asked.waited).min();
        asked.looked_at + left.map_or(LOOK, |left| left.min(LOOK))
    }

    fn ask_after(&self, now: Instant, bounds: Bounds) -> Duration {
        if bounds.elsewhere.is_none() {
            return bounds.dead;
        }
        let is_owed = self.owed_since.is_some_and(|since| now.since(since) < OWED_MAX);
        self.pause.min(if is_owed { ASK_OWED_MAX } else { bounds.dead }).min(bounds.dead)
    }
}

/// How long a client waits for answers before it looks elsewhere: longer after each time that it did, because the network, or
/// the client's own machine, may just be slow.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    time: Duration,
    last: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { time: ANSWER_FIRST, last: None }
    }
}

impl Patience {
    /// Time for an answer now.
    pub fn time(&self, now: Instant) -> Duration {
        let is_calm = self.last.is_none_or(|last| now.since(last) >= CALM);
        if is_calm { ANSWER_FIRST } else { self.time }
    }

    /// A connection was given up for its silence, or would have been, had it not spoken after all.
    pub fn was_tried(&mut self, now: Instant) {
        self.time = self.time(now).saturating_mul(2).min(CALM);
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { dead: Duration::from_secs(5), elsewhere: Some(Duration::from_millis(400)) };

    fn at(millis: u64) -> Instant {
        Instant::from_millis(1_000_000 + millis)
    }

    /// What is to be done and when, while nothing is heard until `until`, looked at exactly when it asks for that.
    fn alone(silence: &mut Silence, from: u64, until: u64, bounds: Bounds) -> Vec<(u64, Verdict)> {
        let (mut now, mut done) = (at(from), Vec::new());
        while now <= at(until) {
            let verdict = silence.look(now, bounds);
            if verdict != Verdict::Fine && done.last().is_none_or(|(_, last)| *last != verdict) {
                done.push((now.since(at(0)).as_millis() as u64, verdict));
            }
            now = now.max(silence.next_look(now, bounds)).max(now + Duration::from_millis(1));
        }
        done
    }

    #[test]
    fn who_was_told_something_and_says_nothing_is_silent_after_600_ms_and_dead_later() {
        let mut silence = Silence::new(at(0));
        silence.heard(at(90));
        silence.said(at(100));
        let done = alone(&mut silence, 100, 6000, BOUNDS);
        assert_eq!(done, [(300, Verdict::Ask), (700, Verdict::Silent), (5300, Verdict::Dead)]);
    }

    #[test]
    fn to_go_on_talking_puts_nothing_off() {
        let mut silence = Silence::new(at(0));
        let verdicts = (0..700).map(|millis| {
            silence.said(at(millis));
            silence.look(at(millis), BOUNDS)
        });
        let silent = verdicts.enumerate().find(|(_, verdict)| *verdict == Verdict::Silent);
        assert_eq!(silent, Some((600, Verdict::Silent)));
    }

    #[test]
    fn who_answers_questions_is_never_silent_and_is_asked_more_and_more_seldom() {
        let mut silence = Silence::new(at(0));
        let mut asked = Vec::new();
        for millis in 0..30_000 {
            match silence.look(at(millis), BOUNDS) {
                Verdict::Fine => {}
                Verdict::Ask => {
                    asked.push(millis);
                    silence.heard(at(millis));
                    silence.lives();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(asked, [200, 600, 1400, 3000, 6200, 11_200, 16_200, 21_200, 26_200]);
        silence.said(at(30_000));
        assert_eq!(
            alone(&mut silence, 30_000, 30_600, BOUNDS),
            [(30_200, Verdict::Ask), (30_600, Verdict::Silent)]
        );
    }

    #[test]
    fn while_an_answer_is_owed_the_pauses_are_at_most_a_second() {
        let mut silence = Silence::new(at(0));
        silence.said(at(0));
        let mut asked = Vec::new();
        for millis in 0..36_000 {
            if silence.look(at(millis), BOUNDS) == Verdict::Ask {
                asked.push(millis);
                silence.heard(at(millis));
                silence.lives();
            }
        }
        assert_eq!(asked[..5], [200, 600, 1400, 2400, 3400]);
        let longest = asked.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!(longest, Some(5000), "what nobody answers is not asked after for ever: {asked:?}");
    }

    #[test]
    fn a_client_that_was_not_run_blames_nobody() {
        let mut silence = Silence::new(at(0));
        silence.said(at(0));
        assert_eq!(silence.look(at(250), BOUNDS), Verdict::Ask);
        assert_eq!(silence.look(at(60_000), BOUNDS), Verdict::Fine, "a minute that counts as 100 ms");
        assert_eq!(silence.look(at(120_000), BOUNDS), Verdict::Fine);
        silence.heard(at(120_000));
        assert_eq!(silence.look(at(120_000), BOUNDS), Verdict::Fine);
        assert!(!silence.is_asked());
    }

    #[test]
    fn whatever_comes_in_time_ends_the_suspicion() {
        let mut silence = Silence::new(at(0));
        silence.said(at(0));
        assert_eq!(alone(&mut silence, 0, 650, BOUNDS), [(200, Verdict::Ask), (600, Verdict::Silent)]);
        silence.heard(at(660));
        silence.news();
        assert_eq!(alone(&mut silence, 660, 850, BOUNDS), []);
    }

    #[test]
    fn where_there_is_nowhere_else_to_go_only_long_silences_count() {
        let nowhere = Bounds { elsewhere: None, ..BOUNDS };
        let mut silence = Silence::new(at(0));
        silence.said(at(0));
        let done = alone(&mut silence, 0, 11_000, nowhere);
        assert_eq!(done, [(5000, Verdict::Ask), (10_000, Verdict::Dead)]);
    }

    #[test]
    fn patience_grows_each_time_and_is_forgotten_after_a_calm() {
        let mut patience = Patience::default();
        let mut times = Vec::new();
        for tried in 0..7 {
            times.push(patience.time(at(tried * 1000)).as_millis());
            patience.was_tried(at(tried * 1000));
        }
        assert_eq!(times, [400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(patience.time(at(15_900)).as_millis(), 10_000);
        assert_eq!(patience.time(at(16_000)).as_millis(), 400);
    }
}
