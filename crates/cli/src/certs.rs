//! `certs`: the authority of a cluster and the certificates that it makes. Nothing is overwritten but what is renewed.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde_json::{Value, json};
use swarmmq_protocol::{id::NodeId, time::WallTime};
use swarmmq_tls::{
    Authority, Certificate, CertificateError, DAYS_AUTHORITY, DAYS_CERTIFICATE, DAYS_MAX, Host, Issued, Name,
    pem_certificates,
};
use zeroize::Zeroizing;

use crate::{
    output::{Failure, Outcomes, print, say},
    parse,
};

/// The authority's certificate, which every end trusts.
pub(crate) const CA: &str = "ca.pem";
/// Its key. Only `certs issue`, `certs renew` and `node add` of a local cluster need it.
const CA_KEY: &str = "ca.key";
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;
/// Far larger than any file of certificates or keys, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What to do with certificates.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make the authority of a cluster: ca.pem and ca.key; never overwrites
    Init {
        /// Into this directory
        #[arg(long)]
        out: PathBuf,
        /// Days that it is valid
        #[arg(long, default_value_t = DAYS_AUTHORITY, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX as i64))]
        days: u32,
    },
    /// Make the certificate of a node or a client, and its key; never overwrites
    Issue {
        /// The directory with ca.pem and ca.key
        #[arg(long)]
        ca: PathBuf,
        /// For this node
        #[arg(long, required_unless_present = "client", conflicts_with = "client", value_parser = clap::value_parser!(u16).range(1..))]
        node: Option<u16>,
        /// For a client with this name
        #[arg(long)]
        client: Option<String>,
        /// Addresses and DNS names under which the node is dialled
        #[arg(long, value_name = "HOST,...", value_delimiter = ',', conflicts_with = "client")]
        hosts: Vec<String>,
        /// Into this directory; by default that of the authority
        #[arg(long)]
        out: Option<PathBuf>,
        /// Days that it is valid, at most as long as the authority
        #[arg(long, default_value_t = DAYS_CERTIFICATE, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX as i64))]
        days: u32,
    },
    /// Replace certificates by new ones for the same holders, with new keys beside them
    Renew {
        /// The directory with ca.pem and ca.key
        #[arg(long)]
        ca: PathBuf,
        /// The certificates; the key of NAME.pem is NAME.key
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Days that they are valid, at most as long as the authority
        #[arg(long, default_value_t = DAYS_CERTIFICATE, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX as i64))]
        days: u32,
    },
    /// Say for whom certificates are, where, until when, and who vouches for them
    Show {
        /// A file of certificates
        file: PathBuf,
    },
}

/// Does it.
pub(crate) fn run(command: &CertsCommand, as_json: bool) -> Outcomes<u8> {
    match command {
        CertsCommand::Init { out, days } => {
            let authority = make_authority(out, *days)?;
            let (certificate, key) = (out.join(CA), out.join(CA_KEY));
            told(
                as_json,
                &certificate,
                &key,
                authority.facts(),
                "trust it everywhere; keep its key off the nodes",
            );
        }
        CertsCommand::Issue { ca, node, client, hosts, out, days } => {
            let authority = load_authority(ca)?;
            let out = out.as_ref().unwrap_or(ca);
            let (name, file) = match (node, client) {
                (Some(node), _) => (Name::Node(NodeId(*node)), format!("node-{node}")),
                (None, client) => {
                    let client = client.as_deref().unwrap_or_default();
                    let name = Name::client(client).map_err(|error| {
                        Failure::usage(format!("{client:?}: {error}"), "use another --client")
                    })?;
                    (name, format!("client-{client}"))
                }
            };
            let hosts = parse_hosts(hosts)?;
            let (certificate, key) = (out.join(format!("{file}.pem")), out.join(format!("{file}.key")));
            let facts = issue(&authority, &name, &hosts, *days, &certificate, &key)?;
            told(as_json, &certificate, &key, &facts, "copy both to where they are used; the key is secret");
        }
        CertsCommand::Renew { ca, files, days } => {
            let authority = load_authority(ca)?;
            for file in files {
                let facts = renew(&authority, file, *days)?;
                told(
                    as_json,
                    file,
                    &file.with_extension("key"),
                    &facts,
                    "a running node takes it within seconds",
                );
            }
        }
        CertsCommand::Show { file } => {
            let certificates = read_certificates(file)?;
            if as_json {
                print(&json!({"certificates": certificates.iter().map(described).collect::<Vec<_>>()}));
            }
            for facts in certificates.iter().filter(|_| !as_json) {
                say(in_words(facts));
            }
        }
    }
    Ok(0)
}

/// A new authority in `directory`.
pub(crate) fn make_authority(directory: &Path, days: u32) -> Outcomes<Authority> {
    make_directory(directory)?;
    refuse_existing(&[directory.join(CA), directory.join(CA_KEY)])?;
    let authority = Authority::make(days).map_err(failed)?;
    write_pair(
        (&directory.join(CA), authority.certificate_pem()),
        (&directory.join(CA_KEY), authority.key_pem()),
    )?;
    Ok(authority)
}

/// The authority in `directory`.
pub(crate) fn load_authority(directory: &Path) -> Outcomes<Authority> {
    let (certificate, key) = (read(&directory.join(CA))?, read(&directory.join(CA_KEY))?);
    let text = |bytes: &[u8]| {
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| CertificateError::Unreadable)
    };
    let key = Zeroizing::new(text(&key).map_err(|_| failed(CertificateError::NoKey))?);
    let authority = text(&certificate).and_then(|certificate| Authority::read(&certificate, &key));
    authority.map_err(|error| Failure::local(format!("{}: {error}", directory.display()), error.hint()))
}

/// A new certificate and key in these files, which must not be there yet.
pub(crate) fn issue(
    authority: &Authority,
    name: &Name,
    hosts: &[Host],
    days: u32,
    certificate: &Path,
    key: &Path,
) -> Outcomes<Certificate> {
    make_directory(certificate.parent().unwrap_or(Path::new(".")))?;
    refuse_existing(&[certificate.to_owned(), key.to_owned()])?;
    let issued = authority.issue(name, hosts, days).map_err(failed)?;
    write_pair((certificate, &issued.certificate_pem), (key, &issued.key_pem))?;
    facts_of(&issued)
}

/// Hosts as they are written on the command line.
pub(crate) fn parse_hosts(hosts: &[String]) -> Outcomes<Vec<Host>> {
    let parse = |host: &String| {
        Host::parse(host).ok_or_else(|| {
            Failure::usage(
                format!("{host:?} is neither an address nor a DNS name"),
                "write hosts without ports, e.g. --hosts 10.0.0.5,queue.example.com",
            )
        })
    };
    hosts.iter().map(parse).collect()
}

/// The text of a file of authorities, checked: for a client's keyring.
pub(crate) fn read_authorities(path: &Path) -> Outcomes<String> {
    let certificates = read_certificates(path)?;
    if let Some(facts) = certificates.iter().find(|facts| facts.name.is_some()) {
        return Err(Failure::usage(
            format!("{} holds {}, not an authority", path.display(), facts.subject),
            "give the ca.pem that `swarmmq certs init` wrote",
        ));
    }
    let bytes = read(path)?;
    let mut text = String::from_utf8_lossy(&bytes).replace('\r', "");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn renew(authority: &Authority, file: &Path, days: u32) -> Outcomes<Certificate> {
    let key = file.with_extension("key");
    if key == file || !key.exists() {
        return Err(Failure::usage(
            format!("there is no key {} to replace", key.display()),
            "give the certificate: the key of NAME.pem is NAME.key",
        ));
    }
    let old = read_certificates(file)?;
    let old = old.first().ok_or_else(|| failed(CertificateError::Empty))?;
    let issued = authority
        .renew(old, days)
        .map_err(|error| Failure::local(format!("{}: {error}", file.display()), error.hint()))?;
    let beside = |path: &Path| path.with_extension(format!("new-{}", std::process::id()));
    let (new_certificate, new_key) = (beside(file), beside(&file.with_extension("key.pem")));
    write_pair((&new_certificate, &issued.certificate_pem), (&new_key, &issued.key_pem))?;
    fs::rename(&new_key, &key).and_then(|()| fs::rename(&new_certificate, file)).map_err(|error| {
        Failure::local(
            format!("cannot replace {}: {error}", file.display()),
            "check the directory and its disk",
        )
    })?;
    facts_of(&issued)
}

fn facts_of(issued: &Issued) -> Outcomes<Certificate> {
    let der = pem_certificates(issued.certificate_pem.as_bytes()).map_err(failed)?;
    Certificate::read(&der[0]).map_err(failed)
}

fn failed(error: CertificateError) -> Failure {
    Failure::usage(error.to_string(), error.hint())
}

fn read_certificates(path: &Path) -> Outcomes<Vec<Certificate>> {
    let bytes = read(path)?;
    let read =
        pem_certificates(&bytes).and_then(|all| all.iter().map(|der| Certificate::read(der)).collect());
    read.map_err(|error| Failure::local(format!("{}: {error}", path.display()), error.hint()))
}

fn read(path: &Path) -> Outcomes<Zeroizing<Vec<u8>>> {
    let unreadable = |error: std::io::Error| {
        Failure::usage(
            format!("cannot read {}: {error}", path.display()),
            "check the path and its permissions; `swarmmq certs init` makes an authority",
        )
    };
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(Failure::local(
            format!("{} is far too large", path.display()),
            CertificateError::TooLarge.hint(),
        ));
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

fn make_directory(directory: &Path) -> Outcomes<()> {
    fs::create_dir_all(directory).map_err(|error| {
        Failure::local(
            format!("cannot make {}: {error}", directory.display()),
            "check the path and its permissions",
        )
    })
}

fn refuse_existing(paths: &[PathBuf]) -> Outcomes<()> {
    match paths.iter().find(|path| path.exists()) {
        None => Ok(()),
        Some(path) => Err(Failure::local(
            format!("{} exists", path.display()),
            "certificates are never overwritten: choose another --out, or `swarmmq certs renew`",
        )),
    }
}

/// Writes a key and its certificate, or nothing.
fn write_pair((certificate, text): (&Path, &str), (key, secret): (&Path, &str)) -> Outcomes<()> {
    write_new(key, secret, SECRET)?;
    write_new(certificate, text, PUBLIC).inspect_err(|_| {
        // Half a pair would be in the way of the next attempt.
        let _left = fs::remove_file(key).is_err();
    })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Outcomes<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| {
        Failure::local(
            format!("cannot write {}: {error}", path.display()),
            "check the directory and its disk",
        )
    })
}

fn told(as_json: bool, certificate: &Path, key: &Path, facts: &Certificate, advice: &str) {
    if as_json {
        let mut object = described(facts);
        object["certificate"] = json!(certificate);
        object["key"] = json!(key);
        print(&object);
    } else {
        say(format!("{}: {}", certificate.display(), in_words(facts)));
        say(format!("{}: {advice}", key.display()));
    }
}

fn described(facts: &Certificate) -> Value {
    let (node, client) = match &facts.name {
        Some(Name::Node(node)) => (Some(node.0), None),
        Some(Name::Client(name)) => (None, Some(name)),
        None => (None, None),
    };
    json!({
        "subject": facts.subject,
        "issuer": facts.issuer,
        "node": node,
        "client": client,
        "hosts": facts.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "not_before": date(facts.not_before),
        "not_after": date(facts.not_after),
        "seconds_left": facts.not_after as i64 - (parse::now().0 / 1000) as i64,
    })
}

fn in_words(facts: &Certificate) -> String {
    let hosts: Vec<String> = facts.hosts.iter().map(ToString::to_string).collect();
    let hosts = if hosts.is_empty() { String::new() } else { format!(" at {}", hosts.join(", ")) };
    let until = match facts.check_time(parse::now().0 / 1000) {
        Ok(()) => format!("valid until {}", date(facts.not_after)),
        Err(error) => error.to_string(),
    };
    format!("{}{hosts}, from {}, {until}", facts.subject, facts.issuer)
}

fn date(seconds: u64) -> String {
    parse::rfc3339(WallTime(seconds.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_authority_vouches_for_what_it_issues_and_nothing_is_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let authority = make_authority(place.path(), 100).unwrap();
        assert_eq!((mode(&place.path().join(CA)), mode(&place.path().join(CA_KEY))), (PUBLIC, SECRET));
        assert!(make_authority(place.path(), 100).unwrap_err().message.contains("exists"));
        assert_eq!(load_authority(place.path()).unwrap().facts(), authority.facts());
        let (certificate, key) = (place.path().join("node-3.pem"), place.path().join("node-3.key"));
        let hosts = parse_hosts(&["127.0.0.1".into(), "localhost".into()]).unwrap();
        let name = Name::Node(NodeId(3));
        let facts = issue(&authority, &name, &hosts, 10, &certificate, &key).unwrap();
        assert_eq!(mode(&key), SECRET);
        assert_eq!(issue(&authority, &name, &hosts, 10, &certificate, &key).unwrap_err().exit, 7);
        let before = fs::read(&key).unwrap();
        let renewed = renew(&authority, &certificate, 50).unwrap();
        assert_eq!((&renewed.name, &renewed.hosts), (&facts.name, &facts.hosts));
        assert!(renewed.not_after > facts.not_after && fs::read(&key).unwrap() != before);
        assert_eq!(mode(&key), SECRET);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 4, "nothing is left behind");
        assert_eq!(renew(&authority, &key, 1).unwrap_err().exit, 2, "that is the key");
    }

    #[test]
    fn a_keyring_trusts_authorities_only() {
        let place = tempfile::tempdir().unwrap();
        let authority = make_authority(place.path(), 100).unwrap();
        assert_eq!(read_authorities(&place.path().join(CA)).unwrap(), authority.certificate_pem());
        let (certificate, key) = (place.path().join("c.pem"), place.path().join("c.key"));
        issue(&authority, &Name::client("a").unwrap(), &[], 1, &certificate, &key).unwrap();
        assert!(read_authorities(&certificate).unwrap_err().message.contains("not an authority"));
        assert!(read_authorities(&key).unwrap_err().message.contains("no certificate"));
        assert!(parse_hosts(&["host:1".into()]).is_err());
    }
}
