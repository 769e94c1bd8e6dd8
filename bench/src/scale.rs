//! Scaling curves: the same load with more and more of one thing, on a fresh cluster each time, and what a message costs then.
//!
//! Only SwarmMQ, at saturation, order `total`: what counts is the shape of a curve, and its last point against its first.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{During, Failure, Outcome},
    load,
    measure::Spread,
    peer::{
        Broker, Place,
        swarmmq::{Setup, Swarm},
    },
    plan::{Load, PRODUCERS, Plan, bytes, thousands},
    plot::{self, Group, Scale},
    process::{adopt_orphans, check_interrupted, end_all},
    report::{cell, measured_on, replace, table},
    results::{Figures, Machine, Traffic},
    run::{keep_logs, note, refuse_memory},
};

const SIZE: u32 = 1024;

/// What there is more and more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Curve {
    Producers,
    Size,
    Nodes,
    Connections,
    Addresses,
    Groups,
    Backlog,
}

impl Curve {
    fn title(self) -> &'static str {
        match self {
            Self::Producers => "producers, each with a connection of its own",
            Self::Size => "bytes of a message",
            Self::Nodes => "nodes (one copy on one node, three on more)",
            Self::Connections => "clients that are connected and idle, besides the five of the load",
            Self::Addresses => "addresses that exist, one of them in use",
            Self::Groups => "groups that each receive everything",
            Self::Backlog => {
                "messages of 128 B that another group has before it, besides what comes meanwhile (0: no such group)"
            }
        }
    }

    fn values(self) -> &'static [u64] {
        match self {
            Self::Producers => &[1, 4, 16, 64, 256],
            Self::Size => &[16, 128, 1024, 16_384, 131_072, 1_048_576],
            Self::Nodes => &[1, 3, 5, 7],
            Self::Connections => &[0, 100, 1000, 10_000],
            Self::Addresses => &[1, 100, 1000, 10_000],
            Self::Groups => &[1, 3, 10, 30, 100],
            Self::Backlog => &[0, 1000, 10_000, 100_000, 1_000_000, 10_000_000],
        }
    }

    fn setup(self, value: u64) -> Setup {
        let plain = Setup::PLAIN;
        match self {
            Self::Producers | Self::Size => plain,
            Self::Nodes => Setup { nodes: value as u16, ..plain },
            Self::Connections => Setup { connections: value as u32, ..plain },
            Self::Addresses => Setup { addresses: value as u32, ..plain },
            Self::Groups => Setup { groups: value as u16, ..plain },
            Self::Backlog => Setup { backlog: value, ..plain },
        }
    }

    fn name_of(self, value: u64) -> String {
        match self {
            Self::Size => bytes(value as u32),
            _ => thousands(value),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) curves: Vec<Curve>,
    /// No point before the first, and none beyond the second.
    pub(crate) least: u64,
    pub(crate) most: u64,
    pub(crate) repetitions: u32,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) directory: PathBuf,
    pub(crate) swarmmq: PathBuf,
    pub(crate) json: Option<PathBuf>,
}

/// All of one invocation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Curves {
    pub(crate) machine: Machine,
    points: Vec<Point>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Point {
    curve: Curve,
    value: u64,
    figures: Figures,
}

/// Measures every point of every curve, by turns. False: not all could be measured.
pub(crate) fn measure(wish: &Wish, machine: Machine) -> Outcome<(Curves, bool)> {
    refuse_memory(&wish.directory)?;
    adopt_orphans()?;
    let directory = tempfile::Builder::new().prefix("swarmmq-bench-").tempdir_in(&wish.directory)?;
    let mut curves = Curves { machine, points: Vec::new() };
    let mut whole = true;
    for _ in 0..wish.repetitions {
        for curve in &wish.curves {
            for value in
                curve.values().iter().copied().filter(|value| (wish.least..=wish.most).contains(value))
            {
                let place = Place {
                    directory: directory.path().join("point"),
                    swarmmq: wish.swarmmq.clone(),
                    nats: None,
                };
                fs::create_dir_all(&place.directory)?;
                let outcome = point(*curve, value, wish, &place, curves.points.len());
                end_all();
                match outcome {
                    Ok(figures) => {
                        say(*curve, value, &figures);
                        curves.points.push(Point { curve: *curve, value, figures });
                    }
                    Err(Failure::Interrupted) => return Err(Failure::Interrupted),
                    Err(failure) => {
                        whole = false;
                        note(format!("!!! {curve:?} {value} was NOT measured: {failure}"));
                        keep_logs("swarmmq", &place.directory);
                    }
                }
                fs::remove_dir_all(&place.directory).during(place.directory.display())?;
                if let Some(file) = &wish.json {
                    let text = serde_json::to_string_pretty(&curves).during("cannot write the results")?;
                    fs::write(file, text + "\n").during(file.display())?;
                }
            }
        }
    }
    Ok((curves, whole))
}

fn point(curve: Curve, value: u64, wish: &Wish, place: &Place, number: usize) -> Outcome<Figures> {
    check_interrupted()?;
    let mut swarm = Swarm::with(place, curve.setup(value))?;
    let plan = Plan {
        run: number as u16,
        load: Load::Saturation { size: if curve == Curve::Size { value as u32 } else { SIZE } },
        producers: if curve == Curve::Producers { value as u16 } else { PRODUCERS },
        warm_up: wish.warm_up,
        window: wish.window,
        in_order: swarm.describe().in_order,
    };
    load::run(&mut swarm, &plan, &format!("scale-{number}"))
}

fn say(curve: Curve, value: u64, figures: &Figures) {
    let Some(traffic) = &figures.traffic else { return };
    note(format!(
        "{curve:?} {value}: {:.0} msg/s, {:.1} us/msg, p99 {:.1} ms, {:?} MiB; lost {}, duplicated {}, out of order {}; others used {:.2} cores",
        traffic.per_s,
        traffic.server_us_per_message,
        traffic.delivery_ms.p99,
        figures.peak_mib,
        traffic.lost,
        traffic.duplicated,
        traffic.out_of_order.unwrap_or_default(),
        figures.other_cores
    ));
}

impl Curves {
    fn curves(&self) -> Vec<Curve> {
        let mut curves: Vec<Curve> = self.points.iter().map(|point| point.curve).collect();
        curves.sort_unstable();
        curves.dedup();
        curves
    }

    fn values(&self, curve: Curve) -> Vec<u64> {
        let mut values: Vec<u64> = self.of(curve).map(|point| point.value).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    fn of(&self, curve: Curve) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.curve == curve)
    }

    fn spread(&self, curve: Curve, value: u64, figure: impl Fn(&Figures) -> Option<f64>) -> Option<Spread> {
        Spread::of(
            self.of(curve).filter(|point| point.value == value).filter_map(|point| figure(&point.figures)),
        )
    }

    /// Microseconds of the nodes for one delivery: of many groups each has its own.
    fn cost(&self, curve: Curve, value: u64) -> Option<Spread> {
        let deliveries = if curve == Curve::Groups { value as f64 } else { 1.0 };
        self.traffic(curve, value, |traffic| traffic.server_us_per_message / deliveries)
    }

    fn traffic(&self, curve: Curve, value: u64, figure: impl Fn(&Traffic) -> f64) -> Option<Spread> {
        self.spread(curve, value, |figures| figures.traffic.as_ref().map(&figure))
    }
}

/// Everything, as it goes to standard output.
pub(crate) fn page(curves: &Curves) -> String {
    let mut text = measured_on(&curves.machine);
    for curve in curves.curves() {
        let values = curves.values(curve);
        let cost = |value: u64| curves.cost(curve, value);
        let first = values.first().and_then(|value| cost(*value)).map(|spread| spread.median);
        let lines = values.iter().map(|value| {
            let against =
                cost(*value).zip(first).map(|(spread, first)| format!("{:.2}", spread.median / first));
            vec![
                curve.name_of(*value),
                cell(curves.traffic(curve, *value, |traffic| traffic.per_s)),
                cell(cost(*value)),
                against.unwrap_or_else(|| "-".into()),
                cell(curves.traffic(curve, *value, |traffic| traffic.delivery_ms.p99)),
                cell(curves.spread(curve, *value, most)),
                cell(curves.traffic(curve, *value, |traffic| (traffic.lost + traffic.duplicated) as f64)),
            ]
        });
        text += &format!("### {}\n\n", capitalised(curve.title()));
        text += &table(
            &[
                "how many",
                "msg/s",
                "us of the nodes per delivery",
                "against the first",
                "p99 of delivery, ms",
                "memory of the largest node at most, MiB",
                "lost and doubled",
            ],
            lines,
        );
        text += "\n";
    }
    text
}

fn most(figures: &Figures) -> Option<f64> {
    figures.peak_mib.iter().copied().max_by(f64::total_cmp)
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Puts the tables between the markers of a page, and a plot of the costs beside it.
pub(crate) fn write_into(file: &Path, curves: &Curves) -> Outcome<()> {
    let groups: Vec<Group> = curves
        .curves()
        .into_iter()
        .filter(|curve| *curve != Curve::Size)
        .map(|curve| Group {
            name: capitalised(curve.title()),
            bars: (0..)
                .zip(curves.values(curve))
                .filter_map(|(place, value)| Some((curve.name_of(value), place, curves.cost(curve, value)?)))
                .collect(),
        })
        .collect();
    let title = "Microseconds of the nodes' processors per delivery";
    let svg = plot::draw(title, &groups, Scale::Linear);
    let folder = file.with_extension("");
    fs::create_dir_all(&folder).during(folder.display())?;
    let picture = folder.join("cost.svg");
    fs::write(&picture, svg).during(picture.display())?;
    let text = fs::read_to_string(file).during(file.display())?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = replace(&text, "plot", &format!("![{title}]({name}/cost.svg)"))?;
    fs::write(file, replace(&text, "curves", &page(curves))?).during(file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(curve: Curve, value: u64, us: f64) -> Point {
        let traffic = Traffic { server_us_per_message: us, per_s: 1e6 / us, ..Traffic::default() };
        let figures = Figures { traffic: Some(traffic), peak_mib: vec![3.0, 9.0], ..Figures::default() };
        Point { curve, value, figures }
    }

    #[test]
    fn a_curve_compares_every_point_with_its_first() {
        let points = vec![
            point(Curve::Nodes, 3, 20.0),
            point(Curve::Nodes, 1, 10.0),
            point(Curve::Nodes, 3, 30.0),
            point(Curve::Size, 16, 5.0),
        ];
        let text = page(&Curves { points, ..Curves::default() });
        assert!(text.contains("| 3 | 41,667 [33,333 to 50,000] | 25.0 [20.0 to 30.0] | 2.50 |"), "{text}");
        assert!(text.contains("| 1 | 100,000 | 10.0 | 1.00 |") && text.contains("| 16 B |"), "{text}");
        assert!(text.find("### Bytes") < text.find("### Nodes"), "{text}");
    }

    #[test]
    fn curves_rise_and_vary_one_thing() {
        for curve in Curve::value_variants() {
            assert!(curve.values().is_sorted_by(|a, b| a < b), "{curve:?}");
            let (first, last) =
                (curve.setup(curve.values()[0]), curve.setup(*curve.values().last().unwrap()));
            let same = format!("{first:?}") == format!("{last:?}");
            assert_eq!(same, matches!(curve, Curve::Producers | Curve::Size), "{curve:?}");
        }
    }

    #[test]
    fn a_page_gets_tables_and_a_plot() {
        let directory = tempfile::tempdir().unwrap();
        let page = directory.path().join("scaling.md");
        let markers = "a\n<!-- plot: computed -->\n<!-- plot: end -->\n<!-- curves: computed -->\n<!-- curves: end -->\n";
        fs::write(&page, markers).unwrap();
        let curves = Curves { points: vec![point(Curve::Nodes, 3, 20.0)], ..Curves::default() };
        write_into(&page, &curves).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.contains("](scaling/cost.svg)") && text.contains("### Nodes"), "{text}");
        assert!(fs::read_to_string(directory.path().join("scaling/cost.svg")).unwrap().starts_with("<svg"));
    }
}
