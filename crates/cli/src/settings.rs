//! `settings`: what an operator may change for the whole cluster while it runs.

use clap::Subcommand;
use serde_json::json;
use swarmmq_client::{
    AdminAnswer, AdminRequest,
    policy::{Setting, SettingError},
};

use crate::{
    address::unexpected,
    discover::{CONNECT_TIME_MAX, Target},
    output::{Failure, Outcomes, print, say},
};

/// What to do with settings.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// All settings and their values
    Ls,
    /// Change one: routing.policy=least-cost, routing.cohort=p2c-ewma:100 (of 1,000 producer sessions), routing.cohort=none, cluster.open_join=false
    Set {
        /// NAME=VALUE
        setting: String,
    },
}

/// The command.
pub(crate) async fn run(command: &SettingsCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    match command {
        SettingsCommand::Ls => {
            let client = target.connect(CONNECT_TIME_MAX).await?;
            let answer = client.admin(AdminRequest::SettingList).await?;
            let Some(AdminAnswer::Settings(settings)) = answer else { return Err(unexpected()) };
            if as_json {
                let map: serde_json::Map<String, serde_json::Value> =
                    settings.into_iter().map(|(name, value)| (name, value.into())).collect();
                print(&map);
            } else {
                settings.iter().for_each(|(name, value)| say(format!("{name}={value}")));
            }
        }
        SettingsCommand::Set { setting } => {
            let (name, value) = parsed(setting)?;
            let client = target.connect(CONNECT_TIME_MAX).await?;
            let request = AdminRequest::SettingSet { name: name.clone(), value: value.clone() };
            client.admin(request).await?;
            if as_json {
                print(&json!({ "name": name, "value": value }));
            } else {
                say(format!("{name}={value}"));
            }
        }
    }
    Ok(0)
}

/// Checked here too: a mistake is told before anything is asked.
fn parsed(text: &str) -> Outcomes<(String, String)> {
    let hint = format!("there are {}", Setting::NAMES.join(", "));
    let Some((name, value)) = text.split_once('=') else {
        return Err(Failure::usage(format!("{text:?} is not NAME=VALUE"), hint));
    };
    match Setting::parse(name, value) {
        Ok(_) => Ok((name.to_owned(), value.to_owned())),
        Err(error @ SettingError::Name(_)) => Err(Failure::usage(error.to_string(), hint)),
        Err(error) => Err(Failure::usage(format!("{name}: {error}"), "see `swarmmq settings ls`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_before_anything_is_asked() {
        assert_eq!(
            parsed("routing.policy=p2c-ewma").unwrap(),
            ("routing.policy".to_owned(), "p2c-ewma".to_owned())
        );
        for wrong in
            ["routing.policy", "routing.policy=fast", "colour=red", "=", "routing.cohort=least-cost:2000"]
        {
            assert_eq!(parsed(wrong).unwrap_err().code, "usage", "{wrong}");
        }
    }
}
