//! How ways and shards are chosen where there is a choice: by name, for the whole cluster, and for a share of the flows.

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::{
    codec::{DecodeError, Reader},
    id::ProducerId,
};

/// How a choice is made between ways, or shards, that would all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Whatever a hash of the message's number says, over direct links only; leaders stay where they are. The baseline:
    /// nothing that was measured changes anything.
    StaticHash,
    /// In turn, over direct links only; leaders stay where they are.
    RoundRobin,
    /// In turn among those that seem about as good as the best one.
    #[default]
    LeastCost,
    /// The better of two drawn by chance, by time and by what waits there.
    ///
    /// Source: "The power of two choices in randomized load balancing", Mitzenmacher, 2001.
    P2cEwma,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::StaticHash, Self::RoundRobin, Self::LeastCost, Self::P2cEwma];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StaticHash => "static-hash",
            Self::RoundRobin => "round-robin",
            Self::LeastCost => "least-cost",
            Self::P2cEwma => "p2c-ewma",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// As it travels.
    pub fn number(self) -> u8 {
        match self {
            Self::StaticHash => 1,
            Self::RoundRobin => 2,
            Self::LeastCost => 3,
            Self::P2cEwma => 4,
        }
    }

    /// As it travels. `None`: of a later version.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.number() == number)
    }

    /// Whether what was measured counts.
    pub fn is_adaptive(self) -> bool {
        matches!(self, Self::LeastCost | Self::P2cEwma)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some of the flows, with a policy of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cohort {
    /// Theirs.
    pub policy: Policy,
    /// How many they are, of 1,000; at most 1,000.
    pub permille: u16,
}

/// How the cluster chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// For everything but the cohort.
    pub policy: Policy,
    /// To be compared with it.
    pub cohort: Option<Cohort>,
}

impl Routing {
    /// The policy of what one producer session sends; the same for as long as the cohort is the same.
    pub fn of_flow(&self, producer: ProducerId) -> Policy {
        match self.cohort {
            Some(cohort)
                if mix((producer.0 >> 64) as u64 ^ producer.0 as u64) % 1000 < u64::from(cohort.permille) =>
            {
                cohort.policy
            }
            _ => self.policy,
        }
    }

    /// With one setting changed.
    pub fn with(mut self, setting: Setting) -> Self {
        match setting {
            Setting::Policy(policy) => self.policy = policy,
            Setting::Cohort(cohort) => self.cohort = cohort,
            // Not about routing.
            Setting::OpenJoin(_) => {}
        }
        self
    }

    /// All settings of routing, as they are.
    pub fn settings(&self) -> [Setting; 2] {
        [Setting::Policy(self.policy), Setting::Cohort(self.cohort)]
    }

    /// Appends it as it travels.
    pub fn put(&self, out: &mut BytesMut) {
        self.settings().into_iter().for_each(|setting| setting.put(out));
    }

    /// Reads what [`Routing::put`] wrote.
    pub fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let first = Setting::read(reader)?;
        let second = Setting::read(reader)?;
        Ok(Self::default().with(first).with(second))
    }
}

/// A number that looks like chance and is always the same: shares and draws need no more.
///
/// Source: the output function of SplitMix64, Steele and others, "Fast splittable pseudorandom number generators", 2014.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// One thing that an operator may change for the whole cluster while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `routing.policy`: a policy's name.
    Policy(Policy),
    /// `routing.cohort`: `none`, or POLICY:PERMILLE.
    Cohort(Option<Cohort>),
    /// `cluster.open_join`: whether nodes that know the peer secret become members without a join token.
    OpenJoin(bool),
}

/// Why a setting was not understood; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingError {
    /// There is none of this name.
    Name(String),
    /// The value does not fit; what would.
    Value(&'static str),
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "no setting `{name}`; there are {}", Setting::NAMES.join(", ")),
            Self::Value(fits) => write!(f, "the value must be {fits}"),
        }
    }
}

impl std::error::Error for SettingError {}

const POLICIES: &str = "static-hash, round-robin, least-cost or p2c-ewma";
const COHORTS: &str = "none, or POLICY:PERMILLE such as p2c-ewma:100, at most 1000";

impl Setting {
    /// Of all of them.
    pub const NAMES: [&'static str; 3] = ["routing.policy", "routing.cohort", "cluster.open_join"];

    /// As people write it.
    pub fn parse(name: &str, value: &str) -> Result<Self, SettingError> {
        match name {
            "routing.policy" => Policy::parse(value).map(Self::Policy).ok_or(SettingError::Value(POLICIES)),
            "routing.cohort" if value == "none" => Ok(Self::Cohort(None)),
            "routing.cohort" => {
                let cohort = value.split_once(':').and_then(|(policy, permille)| {
                    let permille = permille.parse().ok().filter(|permille| *permille <= 1000)?;
                    Some(Cohort { policy: Policy::parse(policy)?, permille })
                });
                cohort.map(|cohort| Self::Cohort(Some(cohort))).ok_or(SettingError::Value(COHORTS))
            }
            "cluster.open_join" => match value {
                "true" => Ok(Self::OpenJoin(true)),
                "false" => Ok(Self::OpenJoin(false)),
                _ => Err(SettingError::Value("true or false")),
            },
            other => Err(SettingError::Name(other.to_owned())),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Policy(_) => Self::NAMES[0],
            Self::Cohort(_) => Self::NAMES[1],
            Self::OpenJoin(_) => Self::NAMES[2],
        }
    }

    /// Its value, as people write it.
    pub fn value(&self) -> String {
        match self {
            Self::Policy(policy) => policy.to_string(),
            Self::Cohort(None) => "none".into(),
            Self::Cohort(Some(cohort)) => format!("{}:{}", cohort.policy, cohort.permille),
            Self::OpenJoin(open) => open.to_string(),
        }
    }

    /// Appends it as it travels.
    pub fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Policy(policy) => {
                out.put_u8(1);
                out.put_u8(policy.number());
            }
            Self::Cohort(cohort) => {
                out.put_u8(2);
                out.put_u8(cohort.map_or(0, |cohort| cohort.policy.number()));
                out.put_u16(cohort.map_or(0, |cohort| cohort.permille));
            }
            Self::OpenJoin(open) => {
                out.put_u8(3);
                out.put_u8((*open).into());
            }
        }
    }

    /// Reads what [`Setting::put`] wrote.
    pub fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let policy = |number| Policy::from_number(number).ok_or(DecodeError::Invalid("policy"));
        match reader.u8()? {
            1 => Ok(Self::Policy(policy(reader.u8()?)?)),
            2 => {
                let (number, permille) = (reader.u8()?, reader.u16()?);
                if permille > 1000 {
                    return Err(DecodeError::Invalid("permille"));
                }
                let cohort = (number > 0).then(|| policy(number)).transpose()?;
                Ok(Self::Cohort(cohort.map(|policy| Cohort { policy, permille })))
            }
            3 => Ok(Self::OpenJoin(reader.flag("open join")?)),
            _ => Err(DecodeError::Invalid("setting")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_people_write_them_and_refused_with_what_would_fit() {
        for (name, value) in [
            ("routing.policy", "static-hash"),
            ("routing.policy", "p2c-ewma"),
            ("routing.cohort", "none"),
            ("routing.cohort", "round-robin:1000"),
            ("cluster.open_join", "true"),
            ("cluster.open_join", "false"),
        ] {
            let setting = Setting::parse(name, value).unwrap();
            assert_eq!((setting.name(), setting.value().as_str()), (name, value));
            let mut bytes = BytesMut::new();
            setting.put(&mut bytes);
            let mut reader = Reader::new(bytes.freeze());
            assert_eq!(Setting::read(&mut reader), Ok(setting));
        }
        assert_eq!(Setting::parse("routing.policy", "best"), Err(SettingError::Value(POLICIES)));
        for bad in ["p2c-ewma:1001", "p2c-ewma", "p2c-ewma:-1", ":5", "best:5", ""] {
            assert_eq!(Setting::parse("routing.cohort", bad), Err(SettingError::Value(COHORTS)), "{bad}");
        }
        let unknown = Setting::parse("routing.colour", "red").unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "no setting `routing.colour`; there are routing.policy, routing.cohort, cluster.open_join"
        );
    }

    #[test]
    fn a_cohort_is_about_as_large_as_wished_and_a_flow_stays_in_it() {
        let cohort = Some(Cohort { policy: Policy::StaticHash, permille: 100 });
        let routing = Routing { policy: Policy::LeastCost, cohort };
        let policies: Vec<Policy> =
            (1..=10_000).map(|n| routing.of_flow(ProducerId(u128::MAX / 10_007 * n))).collect();
        let of_cohort = policies.iter().filter(|policy| **policy == Policy::StaticHash).count();
        assert!((900..1100).contains(&of_cohort), "{of_cohort}");
        assert_eq!(routing.of_flow(ProducerId(77)), routing.of_flow(ProducerId(77)));
        let all = routing.with(Setting::Cohort(Some(Cohort { policy: Policy::RoundRobin, permille: 1000 })));
        assert_eq!(all.of_flow(ProducerId(5)), Policy::RoundRobin);
        assert_eq!(routing.with(Setting::Cohort(None)).of_flow(ProducerId(5)), Policy::LeastCost);
    }

    #[test]
    fn what_a_later_version_sends_is_refused() {
        for bytes in [&[1u8, 9][..], &[2, 9, 0, 5], &[2, 1, 255, 255], &[3, 2], &[4, 1], &[1]] {
            assert!(Setting::read(&mut Reader::new(bytes.to_vec().into())).is_err(), "{bytes:?}");
        }
    }
}
