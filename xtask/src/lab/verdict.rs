//! What a fault did to those who publish and receive, against its bars; one line for people, one object for programs.

use super::{fault::Fault, nodes::Look};
use crate::bars::json::{Value, quote};

/// What was counted while one fault came and went.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub(super) published: f64,
    /// Acknowledged and never delivered.
    pub(super) lost: f64,
    pub(super) twice: f64,
    /// Delivered before one with the same key that was sent earlier.
    pub(super) disordered: f64,
    /// Publishes without an answer, or refused.
    pub(super) unanswered: f64,
    /// The longest time in which a producer's open publishes to a shard got no answer, in milliseconds.
    pub(super) publish_gap_ms: f64,
    /// The longest time in which a shard's open messages were not delivered, in milliseconds.
    pub(super) delivery_gap_ms: f64,
    /// Of the acknowledgement, from when a message was due.
    pub(super) ack_p99_ms: f64,
    /// Links on the path from A to B shortly before the fault ended.
    pub(super) hops: f64,
    pub(super) route_changes: f64,
    pub(super) relayed: f64,
    /// Reigns that began.
    pub(super) reigns: f64,
    /// From the end of the fault until A and B reached each other over one link again.
    pub(super) direct_s: f64,
    /// From the end of the load until every shard had all its copies in sync again.
    pub(super) settled_s: f64,
}

impl Figures {
    /// Adds what one of the loads reports.
    pub(super) fn take(&mut self, report: &Value) -> Result<(), String> {
        self.published += report.number("published")?;
        self.lost += report.number("lost")?;
        self.twice += report.number("duplicated")?;
        self.disordered += report.number("out_of_order")?;
        self.unanswered += report.number("unknown")? + report.number("failed")?;
        self.publish_gap_ms = self.publish_gap_ms.max(report.number("longest_publish_gap_ms")?);
        self.delivery_gap_ms = self.delivery_gap_ms.max(report.number("longest_delivery_gap_ms")?);
        self.ack_p99_ms = self.ack_p99_ms.max(report.number("ack_latency_us.p99")? / 1000.0);
        Ok(())
    }

    /// What happened between two looks.
    pub(super) fn between(&mut self, before: Look, after: Look) {
        self.route_changes = after.route_changes - before.route_changes;
        self.relayed = after.relayed - before.relayed;
        self.reigns = after.reigns - before.reigns;
    }

    /// Which bars were missed, in words.
    ///
    /// * `expected`: how many messages the loads had to publish.
    pub(super) fn missed(&self, fault: &Fault, expected: f64) -> Vec<String> {
        let mut missed = Vec::new();
        for (count, what) in [
            (self.lost, "acknowledged and lost"),
            (self.twice, "delivered twice"),
            (self.disordered, "out of order"),
            (self.unanswered, "publishes unanswered"),
        ] {
            if count > 0.0 {
                missed.push(format!("{count} {what}"));
            }
        }
        // A load that stood still would otherwise have lost nothing.
        if self.published < expected {
            missed.push(format!("{} published of {expected}", self.published));
        }
        for (gap, limit, what) in [
            (self.publish_gap_ms, fault.publish_gap_ms_max, "publish"),
            (self.delivery_gap_ms, fault.delivery_gap_ms_max, "delivery"),
        ] {
            if let Some(limit) = limit.filter(|limit| gap > *limit) {
                missed.push(format!("{what} gap {gap:.0} ms above {limit:.0} ms"));
            }
        }
        missed
    }

    /// A row of the table, under [`HEAD`].
    pub(super) fn row(&self, name: &str, verdict: &str) -> String {
        let gaps =
            format!("{:>11.0} {:>12.0} {:>10.1}", self.publish_gap_ms, self.delivery_gap_ms, self.ack_p99_ms);
        let paths =
            format!("{:>4} {:>7} {:>8} {:>6}", self.hops, self.route_changes, self.relayed, self.reigns);
        format!(
            "{name:<11} {:>9} {:>4} {:>5} {:>8} {:>8} {gaps} {paths} {:>6.1} {:>7.1}  {verdict}",
            self.published,
            self.lost,
            self.twice,
            self.disordered,
            self.unanswered,
            self.direct_s,
            self.settled_s
        )
    }

    /// For programs.
    pub(super) fn json(&self, name: &str, missed: &[String]) -> String {
        let missed_json: Vec<String> = missed.iter().map(|text| quote(text)).collect();
        let fields: String = [
            ("published", self.published),
            ("lost", self.lost),
            ("duplicated", self.twice),
            ("out_of_order", self.disordered),
            ("unanswered", self.unanswered),
            ("longest_publish_gap_ms", self.publish_gap_ms),
            ("longest_delivery_gap_ms", self.delivery_gap_ms),
            ("ack_p99_ms", self.ack_p99_ms),
            ("hops_a_b", self.hops),
            ("route_changes", self.route_changes),
            ("relayed", self.relayed),
            ("reigns", self.reigns),
            ("direct_seconds", self.direct_s),
            ("settled_seconds", self.settled_s),
        ]
        .iter()
        .map(|(field, value)| format!(",\"{field}\":{}", (value * 10.0).round() / 10.0))
        .collect();
        format!(
            "{{\"fault\":{},\"passed\":{}{fields},\"missed\":[{}]}}",
            quote(name),
            missed.is_empty(),
            missed_json.join(",")
        )
    }
}

/// What stands above the rows.
pub(super) const HEAD: &str = "FAULT       PUBLISHED LOST TWICE DISORDER UNANSWRD PUBL-GAP-MS DELIV-GAP-MS ACK-P99-MS HOPS CHANGES  RELAYED REIGNS DIRECT SETTLED  VERDICT";

#[cfg(test)]
mod tests {
    use super::{super::fault::FAULTS, *};
    use crate::bars::json;

    fn cut() -> &'static Fault {
        FAULTS.iter().find(|fault| fault.name == "cut").unwrap()
    }

    fn good() -> Figures {
        Figures { published: 1000.0, publish_gap_ms: 400.0, delivery_gap_ms: 2000.0, ..Figures::default() }
    }

    #[test]
    fn every_promise_can_be_missed() {
        assert_eq!(good().missed(cut(), 1000.0), [] as [&str; 0]);
        let bad = [
            Figures { lost: 1.0, ..good() },
            Figures { twice: 1.0, ..good() },
            Figures { disordered: 1.0, ..good() },
            Figures { unanswered: 1.0, ..good() },
            Figures { published: 999.0, ..good() },
            Figures { publish_gap_ms: 2001.0, ..good() },
            Figures { delivery_gap_ms: 2001.0, ..good() },
        ];
        for bad in bad {
            assert_eq!(bad.missed(cut(), 1000.0).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn two_loads_are_added_up_and_their_gaps_are_not() {
        let report = |gap: u32| {
            json::parse(&format!(
                "{{\"published\":10,\"lost\":1,\"duplicated\":2,\"out_of_order\":3,\"unknown\":4,\"failed\":1,\
                 \"longest_publish_gap_ms\":{gap},\"longest_delivery_gap_ms\":7,\"ack_latency_us\":{{\"p99\":1500}}}}"
            ))
            .unwrap()
        };
        let mut figures = Figures::default();
        figures.take(&report(30)).unwrap();
        figures.take(&report(20)).unwrap();
        let expected = Figures {
            published: 20.0,
            lost: 2.0,
            twice: 4.0,
            disordered: 6.0,
            unanswered: 10.0,
            publish_gap_ms: 30.0,
            delivery_gap_ms: 7.0,
            ack_p99_ms: 1.5,
            ..Figures::default()
        };
        assert_eq!(figures, expected);
        assert!(figures.take(&json::parse("{\"error\":{}}").unwrap()).is_err());
    }

    #[test]
    fn a_row_stands_under_its_head_and_an_object_can_be_read() {
        let row = good().row("cut", "passed");
        assert_eq!(row.find("passed"), HEAD.find("VERDICT"), "{HEAD}\n{row}");
        let value = json::parse(&good().json("cut", &["a \"b\"".into()])).unwrap();
        assert_eq!(value.number("longest_delivery_gap_ms"), Ok(2000.0));
        assert_eq!((value.at("passed"), value.text("missed.0")), (Some(&Value::Bool(false)), Ok("a \"b\"")));
    }
}
