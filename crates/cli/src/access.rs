//! `access`: principals, what they may do, and their keyrings.
//!
//! A token never travels: it is made here, from root's keyring and the generation that the cluster answers.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use serde_json::{Value, json};
use swarmmq_client::SwarmMq;
use swarmmq_protocol::{
    access::{AccessRequest, PrincipalInfo, PrincipalName, Quota, QuotaChanges, ROOT, Rule, Rules},
    admin::{AdminAnswer, AdminRequest},
    id::NameError,
    limits::RULES_MAX,
};
use swarmmq_seal::{ClientCertificate, ClientKeyring, Trust};
use swarmmq_tls::{Identity, Name};

use crate::{
    address::unexpected,
    discover::{CONNECT_TIME_MAX, Target},
    keys,
    output::{Failure, Outcomes, print, say, table},
    parse,
};

/// What to do with principals.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AccessCommand {
    /// Make a principal and its keyring; what no --allow names it may not do
    Add {
        /// Its name
        name: String,
        /// VERB:PREFIX; verbs are publish, consume, settle, admin, and use for the first three; * is every address
        #[arg(long, value_name = "RULE")]
        allow: Vec<String>,
        /// NAME=NUMBER: connections, messages-per-second, bytes-per-second, in-flight-bytes, addresses, groups, producers
        #[arg(long, value_name = "QUOTA", value_parser = quota)]
        quota: Vec<(Quota, u64)>,
        /// It proves itself with this certificate instead of a token: the keyring names the file, as seen from where it lies
        #[arg(long, value_name = "FILE", requires = "certificate_key")]
        certificate: Option<PathBuf>,
        /// The key of that certificate
        #[arg(long, value_name = "FILE", requires = "certificate")]
        certificate_key: Option<PathBuf>,
        /// Its keyring goes here; never overwrites
        #[arg(long)]
        out: PathBuf,
    },
    /// Allow more
    Allow {
        /// Whom
        name: String,
        /// VERB:PREFIX
        #[arg(required = true)]
        rules: Vec<String>,
    },
    /// Take rules back
    Deny {
        /// From whom
        name: String,
        /// VERB:PREFIX, as it was allowed
        #[arg(required = true)]
        rules: Vec<String>,
    },
    /// Change quotas; 0 takes one back
    Quota {
        /// Whose
        name: String,
        /// NAME=NUMBER
        #[arg(required = true, value_parser = quota)]
        quotas: Vec<(Quota, u64)>,
    },
    /// Make its next token and keyring
    Rotate {
        /// Whose
        name: String,
        /// The token of before is accepted for so long
        #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "10m")]
        overlap: Duration,
        /// Its keyring goes here; never overwrites
        #[arg(long)]
        out: PathBuf,
    },
    /// Keep it out, and end its connections
    Disable {
        /// Whom
        name: String,
    },
    /// Let it in again
    Enable {
        /// Whom
        name: String,
    },
    /// Forget it, and end its connections; what it made stays
    Remove {
        /// Whom
        name: String,
    },
    /// All principals
    Ls,
    /// Everything about one
    Show {
        /// Which
        name: String,
    },
}

/// The command.
pub(crate) async fn run(command: &AccessCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    // Mistakes are told before anything is asked.
    let plan = Plan::of(command)?;
    let keyring = target.options(CONNECT_TIME_MAX)?.keyring;
    if let Plan::Make { name, certificate, out, .. } = &plan {
        if keyring.principal() != ROOT {
            return Err(Failure::usage(
                format!("this keyring is {}'s: only from root's can a token be made", keyring.principal()),
                "use the client.keyring that `swarmmq keys generate` or `dev up` wrote",
            ));
        }
        refuse_existing(out)?;
        certificate.iter().try_for_each(|certificate| check(&keyring, name, &certificate.beside(out)))?;
    }
    let client = target.connect(CONNECT_TIME_MAX).await?;
    let result = carry_out(&client, &keyring, plan, as_json).await;
    client.close().await;
    result
}

/// What a command comes to.
enum Plan {
    /// A token is made, and a keyring with it.
    Make {
        name: PrincipalName,
        request: AccessRequest,
        certificate: Option<ClientCertificate>,
        out: PathBuf,
    },
    /// Something changes.
    Change {
        name: PrincipalName,
        request: AccessRequest,
    },
    List,
    Show(PrincipalName),
}

impl Plan {
    fn of(command: &AccessCommand) -> Outcomes<Self> {
        Ok(match command {
            AccessCommand::Add { name, allow, quota, certificate, certificate_key, out } => {
                let name = principal(name)?;
                let paths = certificate.clone().zip(certificate_key.clone());
                let certificate = paths.map(|(certificate, key)| ClientCertificate { certificate, key });
                let (rules, quotas) = (rules(allow)?, quotas(quota)?);
                let request = AccessRequest::Add { name: name.clone(), rules, quotas };
                Self::Make { name, request, certificate, out: out.clone() }
            }
            AccessCommand::Rotate { name, overlap, out } => {
                let name = principal(name)?;
                let request = AccessRequest::Rotate { name: name.clone(), overlap: *overlap };
                Self::Make { name, request, certificate: None, out: out.clone() }
            }
            AccessCommand::Allow { name, rules: granted } => Self::change(name, |name| {
                Ok(AccessRequest::Change { name, granted: rules(granted)?, revoked: Rules::default() })
            })?,
            AccessCommand::Deny { name, rules: revoked } => Self::change(name, |name| {
                Ok(AccessRequest::Change { name, granted: Rules::default(), revoked: rules(revoked)? })
            })?,
            AccessCommand::Quota { name, quotas: changes } => {
                Self::change(name, |name| Ok(AccessRequest::Bound { name, quotas: quotas(changes)? }))?
            }
            AccessCommand::Disable { name } => {
                Self::change(name, |name| Ok(AccessRequest::Enable { name, enabled: false }))?
            }
            AccessCommand::Enable { name } => {
                Self::change(name, |name| Ok(AccessRequest::Enable { name, enabled: true }))?
            }
            AccessCommand::Remove { name } => Self::change(name, |name| Ok(AccessRequest::Remove { name }))?,
            AccessCommand::Ls => Self::List,
            AccessCommand::Show { name } => Self::Show(principal(name)?),
        })
    }

    fn change(name: &str, request: impl FnOnce(PrincipalName) -> Outcomes<AccessRequest>) -> Outcomes<Self> {
        let name = principal(name)?;
        Ok(Self::Change { request: request(name.clone())?, name })
    }
}

/// Whether a certificate will let `name` in: told before anything is asked.
fn check(keyring: &ClientKeyring, name: &PrincipalName, paths: &ClientCertificate) -> Outcomes<()> {
    let Trust::Authorities(authorities) = keyring.trust() else {
        return Err(Failure::usage(
            "this keyring names no authority, so nodes look at no certificates".to_owned(),
            "leave --certificate out, or let the cluster use TLS: `swarmmq certs init`",
        ));
    };
    let identity = Identity::load_for(&paths.certificate, &paths.key, authorities.as_bytes())
        .map_err(|error| Failure::usage(error.to_string(), error.hint()))?;
    if *identity.name() == Name::Client(name.to_string()) {
        return Ok(());
    }
    let (file, of) = (paths.certificate.display(), identity.name());
    Err(Failure::usage(
        format!("{file} is the certificate of {of}, the principal is {name}"),
        "`swarmmq certs issue --ca DIR --client NAME` makes one",
    ))
}

async fn carry_out(client: &SwarmMq, keyring: &ClientKeyring, plan: Plan, as_json: bool) -> Outcomes<u8> {
    match plan {
        Plan::Make { name, request, certificate, out } => {
            let answer = client.admin(AdminRequest::Access(request)).await?;
            let Some(AdminAnswer::Generation(generation)) = answer else { return Err(unexpected()) };
            let made = match certificate {
                None => keyring.for_principal(client.cluster(), &name, generation),
                Some(certificate) => keyring.for_certificate(&name, certificate),
            };
            let made = made.map_err(|error| Failure::local(error.to_string(), "use root's keyring"))?;
            keys::write(&out, made.to_text().as_bytes()).map_err(|failure| Failure {
                hint: format!("the principal has a new token: run `swarmmq access rotate {name} --out FILE`"),
                ..failure
            })?;
            if as_json {
                print(&json!({ "principal": name.as_str(), "generation": generation, "keyring": out }));
            } else {
                say(format!("{}: the keyring of {name}; whoever has it is {name}", out.display()));
            }
        }
        Plan::Change { name, request } => {
            client.admin(AdminRequest::Access(request)).await?;
            if as_json {
                print(&json!({ "principal": name.as_str(), "changed": true }));
            } else {
                say(format!("{name}: done; it holds at every node within moments"));
            }
        }
        Plan::List => {
            let all = list(client).await?;
            if as_json {
                print(&json!({ "principals": all.iter().map(described).collect::<Vec<_>>() }));
            } else {
                let rows: Vec<Vec<String>> = all
                    .iter()
                    .map(|one| {
                        let state = if one.enabled { "enabled" } else { "disabled" };
                        let rules: Vec<String> = one.rules.0.iter().map(Rule::to_string).collect();
                        vec![one.name.to_string(), state.to_owned(), rules.join(" ")]
                    })
                    .collect();
                table(&["PRINCIPAL", "STATE", "RULES"], &rows);
            }
        }
        Plan::Show(name) => {
            let all = list(client).await?;
            let Some(one) = all.iter().find(|one| one.name == name) else {
                return Err(Failure::new(
                    1,
                    "no_such_principal",
                    format!("there is no principal {name}"),
                    "see `swarmmq access ls`",
                ));
            };
            if as_json { print(&described(one)) } else { show(one) }
        }
    }
    Ok(0)
}

async fn list(client: &SwarmMq) -> Outcomes<Vec<PrincipalInfo>> {
    match client.admin(AdminRequest::Access(AccessRequest::List)).await? {
        Some(AdminAnswer::Principals(principals)) => Ok(principals),
        _ => Err(unexpected()),
    }
}

fn described(one: &PrincipalInfo) -> Value {
    let quotas: serde_json::Map<String, Value> =
        one.quotas.iter().map(|(quota, value)| (quota.text().to_owned(), value.into())).collect();
    let [addresses, groups, producers] = one.made;
    json!({
        "principal": one.name.as_str(),
        "enabled": one.enabled,
        "generation": one.generation,
        "previous_until": one.previous_until.map(parse::rfc3339),
        "rules": one.rules.0.iter().map(Rule::to_string).collect::<Vec<_>>(),
        "quotas": quotas,
        "made": { "addresses": addresses, "groups": groups, "producers": producers },
    })
}

fn show(one: &PrincipalInfo) {
    say(format!("{}: {}", one.name, if one.enabled { "enabled" } else { "disabled" }));
    let until = one.previous_until.map(parse::rfc3339);
    let until = until.map_or_else(String::new, |until| format!(", the one before is accepted until {until}"));
    say(format!("token {}{until}", one.generation));
    one.rules.0.iter().for_each(|rule| say(format!("may {rule}")));
    if one.rules.0.is_empty() {
        say("may do nothing");
    }
    one.quotas.iter().for_each(|(quota, value)| say(format!("quota {}={value}", quota.text())));
    let [addresses, groups, producers] = one.made;
    say(format!("made {addresses} addresses, {groups} groups, {producers} producer names"));
}

fn principal(name: &str) -> Outcomes<PrincipalName> {
    PrincipalName::parse(name).map_err(|error| match error {
        NameError::Reserved => Failure::usage(
            format!("{name:?} is reserved for the system"),
            "root may do everything and cannot be changed; choose another name",
        ),
        error => Failure::usage(
            format!("{name:?} is no name of a principal: {error}"),
            "use one segment of A-Z a-z 0-9 _ -",
        ),
    })
}

fn rules(texts: &[String]) -> Outcomes<Rules> {
    let mut rules = Rules::default();
    for text in texts {
        rules.add(text).map_err(|error| {
            let hint = "for example publish:shop.orders, use:shop, admin:*";
            Failure::usage(format!("{text:?}: {error}"), hint)
        })?;
    }
    if rules.0.len() > RULES_MAX {
        let message = format!("{} rules where at most {RULES_MAX} are allowed", rules.0.len());
        return Err(Failure::usage(message, "use shorter prefixes"));
    }
    Ok(rules)
}

fn quota(text: &str) -> Result<(Quota, u64), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=NUMBER"))?;
    let known = Quota::parse(&name.replace('-', "_")).ok_or_else(|| {
        let names: Vec<&str> = Quota::ALL.iter().map(|quota| quota.text()).collect();
        format!("{name:?} is no quota; there are {}", names.join(", "))
    })?;
    Ok((known, parse::bytes(value)?))
}

fn quotas(changes: &[(Quota, u64)]) -> Outcomes<QuotaChanges> {
    for (at, (quota, _)) in changes.iter().enumerate() {
        if changes[..at].iter().any(|(other, _)| other == quota) {
            let message = format!("the quota {} is given twice", quota.text());
            return Err(Failure::usage(message, "give it once"));
        }
    }
    Ok(QuotaChanges(changes.to_vec()))
}

fn refuse_existing(path: &Path) -> Outcomes<()> {
    if path.exists() {
        return Err(Failure::local(
            format!("{} exists", path.display()),
            "keyrings are never overwritten: choose another --out",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_before_anything_is_asked() {
        for name in ["root", "client", "a.b", "", "_x"] {
            assert_eq!(principal(name).unwrap_err().code, "usage", "{name}");
        }
        for rule in ["publish", "send:a", "publish:a.*", "admin:"] {
            assert_eq!(rules(&[rule.to_owned()]).unwrap_err().code, "usage", "{rule}");
        }
        let many: Vec<String> = (0..=RULES_MAX).map(|at| format!("publish:a{at}")).collect();
        assert!(rules(&many).unwrap_err().message.contains("33 rules"));
        assert_eq!(quota("in-flight-bytes=4MiB"), Ok((Quota::InFlight, 4 << 20)));
        for wrong in ["connections", "speed=3", "connections=many"] {
            assert!(quota(wrong).is_err(), "{wrong}");
        }
        assert!(quotas(&[(Quota::Groups, 1), (Quota::Groups, 2)]).is_err());
    }
}
