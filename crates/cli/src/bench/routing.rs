//! `bench routing`: several policies side by side, at the same time, under the same load.
//!
//! The policies differ in how unkeyed messages are spread over shards; whether nodes route around what is slow is a
//! setting of the whole cluster.

use std::{sync::Arc, time::Duration};

use clap::Args;
use serde::Serialize;
use swarmmq_protocol::{admin::Order, policy::Policy};

use super::{Plan, Report, Run, carry_out, fresh_address, plan, publish::OfPolicy, random, rate};
use crate::{
    discover::Target,
    output::{Failure, Outcomes, print, say},
    parse,
};

/// What to compare.
#[derive(Args, Clone, Debug)]
pub(crate) struct RoutingArgs {
    /// Policies: static-hash, round-robin, least-cost, p2c-ewma
    #[arg(long, value_delimiter = ',', default_value = "static-hash,least-cost", value_parser = policy)]
    policies: Vec<Policy>,
    /// Producers of each policy
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    producers: u16,
    /// Messages per second of all policies together
    #[arg(long, default_value_t = 1000.0, value_parser = rate)]
    rate: f64,
    /// Bytes of a message, at least 16
    #[arg(long, default_value = "1KiB", value_parser = parse::bytes)]
    size: u64,
    /// How long to publish
    #[arg(long, default_value = "30", value_parser = parse::duration)]
    duration: Duration,
    /// Time in which a message must be acknowledged
    #[arg(long, default_value = "1", value_parser = parse::duration)]
    within: Duration,
}

fn policy(text: &str) -> Result<Policy, String> {
    Policy::parse(text).ok_or_else(|| {
        let names: Vec<&str> = Policy::ALL.iter().map(|policy| policy.name()).collect();
        format!("{text:?} is no policy; there are {}", names.join(", "))
    })
}

/// The result.
#[derive(Debug, Serialize)]
struct Comparison {
    policies: Vec<OfPolicy>,
    #[serde(flatten)]
    all: Report,
}

/// The command.
pub(crate) fn run(args: &RoutingArgs, target: &Target, as_json: bool) -> Outcomes<u8> {
    let plan = Arc::new(plan_of(args)?);
    let Run { report, published, interrupted, .. } = carry_out(&plan, target)?;
    let code = match report.exit_code(interrupted) {
        // Being late is what is measured, not a failure.
        1 if report.lost + report.duplicated == 0 => 0,
        5 => 0,
        code => code,
    };
    let policies = args.policies.iter().map(|policy| published.of_policy(&plan, *policy)).collect();
    let comparison = Comparison { policies, all: report };
    if as_json {
        print(&comparison);
    } else {
        comparison.show(args.within);
    }
    Ok(code)
}

impl Comparison {
    fn show(&self, within: Duration) {
        say(format!(
            "{:<12} {:>10} {:>16} {:>9} {:>9} {:>9} {:>9}",
            "policy",
            "published",
            format!("within {} ms", within.as_millis()),
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us"
        ));
        for of in &self.policies {
            let share = of.acknowledged as f64 * 100.0 / of.published.max(1) as f64;
            let latency = &of.latency_us;
            say(format!(
                "{:<12} {:>10} {:>14.3} % {:>9} {:>9} {:>9} {:>9}",
                of.policy, of.published, share, latency.p50, latency.p99, latency.p99_9, latency.max
            ));
        }
        say(format!(
            "{} acknowledged, {} delivered, lost {}, duplicated {}",
            self.all.acknowledged, self.all.delivered, self.all.lost, self.all.duplicated
        ));
    }
}

fn plan_of(args: &RoutingArgs) -> Outcomes<Plan> {
    let sizes = plan::HEADER_BYTES as u64..=64 << 10;
    if !sizes.contains(&args.size) {
        return Err(Failure::usage(
            format!("--size {}: between {} and {} bytes", args.size, sizes.start(), sizes.end()),
            "the first bytes say which message it is",
        ));
    }
    if args.rate <= 0.0 {
        return Err(Failure::usage("--rate 0", "policies are compared at a given rate"));
    }
    let repeated = |at: usize| args.policies[..at].contains(&args.policies[at]);
    if (0..args.policies.len()).any(repeated) {
        return Err(Failure::usage("--policies names one twice", "each is one cohort"));
    }
    let producers = args.producers * args.policies.len() as u16;
    let each = args.rate * args.within.as_secs_f64() * 4.0 / f64::from(producers);
    Ok(Plan {
        run: u16::from_be_bytes(random()),
        address: fresh_address()?,
        fresh: true,
        order: Order::None,
        producers,
        consumers: 1,
        rate: args.rate,
        size: args.size as usize,
        duration: args.duration,
        in_flight: (each as usize).clamp(256, 65_536),
        deadline: Some(args.within),
        policies: args.policies.clone(),
        samples: false,
        started: std::sync::OnceLock::new(),
    })
}
