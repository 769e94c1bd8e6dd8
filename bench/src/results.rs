//! What was measured, as it is written to a file and read again. Tables, plots and verdicts are computed from this alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    measure::{LatencyReport, Spread},
    peer::Description,
    plan::Load,
};

/// All of one invocation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    /// By row.
    pub(crate) peers: BTreeMap<String, Description>,
    /// Rows that could not be measured, and why.
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) limits: Vec<Limits>,
    pub(crate) runs: Vec<Run>,
}

/// Where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processors: u32,
    pub(crate) model: String,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) date: String,
    pub(crate) repetitions: u32,
    pub(crate) warm_up_s: f64,
    pub(crate) window_s: f64,
}

/// What the machine can do at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Written in sequence, `fdatasync` after every 16 MiB.
    pub(crate) disk_mb_per_s: f64,
    /// 1 KiB over loopback and back, one thread each.
    pub(crate) round_trip_us: f64,
    pub(crate) round_trip_p99_us: f64,
    /// One way over loopback, in writes of 64 KiB.
    pub(crate) loopback_mb_per_s: f64,
}

/// One load on one broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) peer: String,
    pub(crate) repetition: u32,
    pub(crate) load: Load,
    pub(crate) figures: Figures,
}

/// What was used meanwhile, and what became of the messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) seconds: f64,
    pub(crate) nodes: u32,
    /// Processors that all nodes kept busy, user and system.
    pub(crate) server_cores: f64,
    pub(crate) client_cores: f64,
    /// Kept busy by the kernel's own threads and by whoever else was there.
    pub(crate) other_cores: f64,
    /// Of all processors.
    pub(crate) busy_share: f64,
    pub(crate) disk_bytes: u64,
    /// By node.
    pub(crate) resident_mib: Vec<f64>,
    pub(crate) peak_mib: Vec<f64>,
    /// `None`: there was none.
    pub(crate) traffic: Option<Traffic>,
}

/// What became of the messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) published: u64,
    pub(crate) confirmed: u64,
    /// Each once.
    pub(crate) delivered: u64,
    /// Confirmed and not delivered.
    pub(crate) lost: u64,
    /// Published and not delivered.
    pub(crate) undelivered: u64,
    pub(crate) unconfirmed: u64,
    pub(crate) duplicated: u64,
    /// `None`: no order was promised.
    pub(crate) out_of_order: Option<u64>,
    /// Sent again by this program because there was no confirmation.
    pub(crate) retried: u64,
    /// Delivered within the window.
    pub(crate) per_s: f64,
    pub(crate) confirmed_per_s: f64,
    /// From when a message was due to when it was there, before its acknowledgement.
    pub(crate) delivery_ms: LatencyReport,
    pub(crate) confirmation_ms: LatencyReport,
    pub(crate) server_us_per_message: f64,
    pub(crate) client_us_per_message: f64,
    pub(crate) disk_bytes_per_message: f64,
    pub(crate) publish_gap_ms: f64,
    pub(crate) delivery_gap_ms: f64,
}

impl Results {
    /// The runs of one load on one broker.
    pub(crate) fn runs_of(&self, peer: &str, load: Load) -> impl Iterator<Item = &Figures> {
        self.runs.iter().filter(move |run| run.peer == peer && run.load == load).map(|run| &run.figures)
    }

    /// The median of a figure; `None` if it was not measured.
    pub(crate) fn spread(
        &self,
        peer: &str,
        load: Load,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.runs_of(peer, load).filter_map(figure))
    }

    /// The median of a figure of the messages.
    pub(crate) fn traffic(&self, peer: &str, load: Load, figure: impl Fn(&Traffic) -> f64) -> Option<Spread> {
        self.spread(peer, load, |figures| figures.traffic.as_ref().map(&figure))
    }

    /// The loads that were run, in the order of tables.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let mut loads: Vec<Load> = self.runs.iter().map(|run| run.load).collect();
        loads.sort_unstable();
        loads.dedup();
        loads
    }

    /// The rows that were measured, in the order in which they were.
    pub(crate) fn rows(&self) -> Vec<&str> {
        let mut rows: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !rows.contains(&run.peer.as_str()) {
                rows.push(&run.peer);
            }
        }
        rows
    }
}
