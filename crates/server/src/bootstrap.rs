//! From a file to settings: `node.toml`.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use swarmmq_engine::node::Addresses;
use swarmmq_protocol::{
    id::NodeId,
    join_token::{JoinToken, TEXT_BYTES_MAX},
    session::peer::PeerHello,
};
use zeroize::Zeroizing;

use crate::{StartError, tls::TlsFiles};

/// Everything `node.toml` may say: sections and their keys.
const KNOWN_KEYS: &[(&str, &[&str])] = &[
    ("node", &["id", "data", "roles", "keyring"]),
    ("listen", &["client", "peer", "gossip", "admin", "insecure_plaintext"]),
    ("tls", &["certificate", "key", "ca"]),
    ("cluster", &["seeds", "join_token_file"]),
];
/// Edits after which two words are still taken for the same.
const TYPO_EDITS_MAX: usize = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: NodeSection,
    #[serde(default)]
    listen: ListenSection,
    #[serde(default)]
    tls: Option<TlsSection>,
    #[serde(default)]
    cluster: ClusterSection,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    id: u32,
    data: PathBuf,
    #[serde(default)]
    roles: Option<Vec<String>>,
    keyring: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListenSection {
    client: String,
    peer: String,
    gossip: String,
    admin: String,
    insecure_plaintext: bool,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            client: "127.0.0.1:7420".into(),
            peer: "127.0.0.1:7421".into(),
            gossip: "127.0.0.1:7422".into(),
            admin: "127.0.0.1:7423".into(),
            insecure_plaintext: false,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClusterSection {
    seeds: Vec<String>,
    join_token_file: Option<PathBuf>,
}

/// `node.toml`, checked.
#[derive(Clone, Debug)]
pub(crate) struct NodeConfig {
    pub(crate) node: NodeId,
    pub(crate) data: PathBuf,
    pub(crate) keyring: PathBuf,
    /// [`PeerHello::INGRESS`], [`PeerHello::ROUTER`], [`PeerHello::STORE`], added up.
    pub(crate) roles: u8,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) gossip: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Where other nodes may listen: their peer ports. This node's own is left out.
    pub(crate) seeds: Vec<SocketAddr>,
    /// Where a join token lies.
    pub(crate) join_token_file: Option<PathBuf>,
    /// What lets it join, if it is no member yet.
    pub(crate) token: Option<JoinToken>,
    /// Without it, everything is on loopback and in plain text.
    pub(crate) tls: Option<TlsFiles>,
}

impl NodeConfig {
    /// Reads and checks the file. Paths in it are relative to it.
    pub(crate) fn load(path: &Path) -> Result<Self, StartError> {
        let text = fs::read_to_string(path).map_err(|error| {
            StartError::config(
                format!("cannot read {}: {error}", path.display()),
                "give the path of a node.toml with --config",
            )
        })?;
        let file: File = toml::from_str(&text).map_err(|error| {
            let message = error.message().lines().next().unwrap_or_default().to_owned();
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            StartError::config(format!("{}, line {line}: {message}", path.display()), suggestion(&message))
        })?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let id = u16::try_from(file.node.id).ok().filter(|id| *id > 0).ok_or_else(|| {
            StartError::config(format!("node.id is {}", file.node.id), "use a number from 1 to 65535")
        })?;
        let roles = roles(file.node.roles.as_deref())?;
        let reach = match (&file.tls, file.listen.insecure_plaintext) {
            (Some(_), false) => Reach::Anywhere,
            (None, true) => Reach::Loopback,
            (Some(_), true) => {
                return Err(StartError::config(
                    "there is [tls], and listen.insecure_plaintext asks for none",
                    "leave one of them out",
                ));
            }
            (None, false) => {
                return Err(StartError::config(
                    "there is no [tls]: nodes speak TLS",
                    "give this node a certificate (`swarmmq certs`, docs/operating/README.md); for tests on this machine alone, `[listen] insecure_plaintext = true`",
                ));
            }
        };
        let client = address("listen.client", &file.listen.client, reach)?;
        let peer = address("listen.peer", &file.listen.peer, reach)?;
        let admin = address("listen.admin", &file.listen.admin, Reach::ReadOnly)?;
        let gossip = address("listen.gossip", &file.listen.gossip, reach)?;
        // Gossip is UDP: it may share a number with the others.
        for ((one, a), (other, b)) in [
            (("client", client), ("peer", peer)),
            (("client", client), ("admin", admin)),
            (("peer", peer), ("admin", admin)),
        ] {
            if a == b {
                return Err(StartError::config(
                    format!("listen.{one} and listen.{other} are both {a}"),
                    "give each its own port",
                ));
            }
        }
        let mut seeds = Vec::new();
        for seed in &file.cluster.seeds {
            let seed = address("cluster.seeds", seed, reach)?;
            if seed != peer && !seeds.contains(&seed) {
                seeds.push(seed);
            }
        }
        Ok(Self {
            node: NodeId(id),
            data: folder.join(&file.node.data),
            keyring: folder.join(&file.node.keyring),
            roles,
            client,
            peer,
            gossip,
            admin,
            seeds,
            join_token_file: file.cluster.join_token_file.map(|path| folder.join(path)),
            token: None,
            tls: file.tls.map(|tls| TlsFiles {
                certificate: folder.join(tls.certificate),
                key: folder.join(tls.key),
                ca: folder.join(tls.ca),
            }),
        })
    }

    /// The join token that the file names. A member needs none: there the file may be gone.
    pub(crate) fn read_token(&self) -> Result<Option<JoinToken>, StartError> {
        let Some(path) = &self.join_token_file else { return Ok(None) };
        // Read into its final buffer, and no more than a token has.
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX + 1));
        let read = fs::File::open(path)
            .and_then(|file| file.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound && self.data.join("identity.toml").exists() => {
                return Ok(None);
            }
            Err(error) => {
                return Err(StartError::config(
                    format!("cannot read cluster.join_token_file {}: {error}", path.display()),
                    "write what `swarmmq node token` printed into it, or leave the line out",
                ));
            }
        }
        JoinToken::parse(&text).map(Some).map_err(|error| {
            StartError::config(
                format!("{}: {error}", path.display()),
                "copy the whole line that `swarmmq node token` printed",
            )
        })
    }

    /// Adds more places to ask for the cluster.
    pub(crate) fn add_seeds(&mut self, seeds: &[SocketAddr]) {
        for seed in seeds {
            if *seed != self.peer && !self.seeds.contains(seed) {
                self.seeds.push(*seed);
            }
        }
    }

    /// Where this node listens, for others to know.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses {
            client: if self.takes_clients() { self.client.to_string() } else { String::new() },
            peer: self.peer.to_string(),
            gossip: self.gossip.to_string(),
            admin: self.admin.to_string(),
        }
    }

    /// Whether clients may connect here.
    pub(crate) fn takes_clients(&self) -> bool {
        self.roles & PeerHello::INGRESS != 0
    }
}

/// The bits of these roles; of all of them if none is named.
fn roles(names: Option<&[String]>) -> Result<u8, StartError> {
    let hint = "roles are ingress, router, store; without node.roles a node has all three";
    let Some(names) = names else { return Ok(PeerHello::INGRESS | PeerHello::ROUTER | PeerHello::STORE) };
    if names.is_empty() {
        return Err(StartError::config("node.roles is empty", hint));
    }
    names.iter().try_fold(0, |roles, name| match name.as_str() {
        "ingress" => Ok(roles | PeerHello::INGRESS),
        "router" => Ok(roles | PeerHello::ROUTER),
        "store" => Ok(roles | PeerHello::STORE),
        _ => Err(StartError::config(format!("node.roles names {name:?}"), hint)),
    })
}

/// Where an address may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// What is spoken there is encrypted, or has a MAC of its own.
    Anywhere,
    /// Plain text was asked for.
    Loopback,
    /// Plain text always: the port for metrics.
    ReadOnly,
}

fn address(key: &str, value: &str, reach: Reach) -> Result<SocketAddr, StartError> {
    let parsed = value.to_socket_addrs().ok().and_then(|mut found| found.next()).ok_or_else(|| {
        StartError::config(format!("{key} = {value:?} is no address"), "write HOST:PORT, e.g. 127.0.0.1:7420")
    })?;
    if reach != Reach::Anywhere && !parsed.ip().is_loopback() {
        let hint = match reach {
            Reach::ReadOnly => {
                "metrics are plain HTTP for anyone: let a collector on this machine fetch them"
            }
            _ => {
                "plain text works on loopback only: leave insecure_plaintext out and give this node a certificate in [tls]"
            }
        };
        return Err(StartError::config(format!("{key} = {value:?} is not on loopback"), hint));
    }
    if parsed.ip().is_unspecified() {
        return Err(StartError::config(
            format!("{key} = {value:?} is no address at which others find this node"),
            "write the address of one interface: others are told it as it stands here",
        ));
    }
    if parsed.port() == 0 {
        return Err(StartError::config(
            format!("{key} = {value:?} has no port"),
            "write the port: clients and peers must find it",
        ));
    }
    Ok(parsed)
}

/// What was meant by the unknown key that `message` quotes. The parser's message names the keys of that section, too.
fn suggestion(message: &str) -> String {
    let everything = "see docs/operating/README.md for every key".to_owned();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(word)) = (message.starts_with("unknown field"), quoted.next()) else { return everything };
    let here: Vec<&str> = quoted.collect();
    if let Some((section, _)) = KNOWN_KEYS.iter().find(|(_, keys)| keys.contains(&word)) {
        return format!("`{word}` belongs into [{section}]");
    }
    let nearest = here.into_iter().min_by_key(|known| distance(word, known));
    match nearest {
        Some(known) if distance(word, known) <= TYPO_EDITS_MAX => format!("did you mean `{known}`?"),
        _ => everything,
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = if x == *y { corner } else { 1 + corner.min(row[j]).min(row[j + 1]) };
            corner = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}

pub(crate) fn unhex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let text = text.as_bytes();
    if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut bytes = Zeroizing::new([0; 32]);
    for (at, pair) in text.chunks_exact(2).enumerate() {
        bytes[at] = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[node]\nid = 1\ndata = \"data\"\nkeyring = \"node.keyring\"\n";
    const TLS: &str = "[tls]\ncertificate = \"node.pem\"\nkey = \"node.key\"\nca = \"../ca.pem\"\n";

    /// In plain text, unless it says something else.
    fn load(text: &str) -> Result<NodeConfig, StartError> {
        let asks = "[listen]\ninsecure_plaintext = true\n";
        if text.contains("[listen]") {
            load_as_it_is(&text.replacen("[listen]\n", asks, 1))
        } else if text.contains("[tls]") {
            load_as_it_is(text)
        } else {
            load_as_it_is(&format!("{text}\n{asks}"))
        }
    }

    fn load_as_it_is(text: &str) -> Result<NodeConfig, StartError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        fs::write(&path, text).unwrap();
        NodeConfig::load(&path)
    }

    #[test]
    fn the_shortest_configuration_has_the_documented_ports() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.client, "127.0.0.1:7420".parse().unwrap());
        assert_eq!(config.admin, "127.0.0.1:7423".parse().unwrap());
        assert!(config.data.ends_with("data"));
    }

    #[test]
    fn a_node_has_the_roles_that_it_is_given_and_all_without_a_word() {
        let roles = |text: &str| load(&format!("{GOOD}{text}\n")).unwrap().roles;
        assert_eq!(roles(""), 7);
        assert_eq!(roles("roles = [\"store\"]"), PeerHello::STORE);
        assert_eq!(roles("roles = [\"router\", \"ingress\", \"router\"]"), 3);
        assert!(!load(&format!("{GOOD}roles = [\"store\"]\n")).unwrap().takes_clients());
    }

    #[test]
    fn seeds_are_others_and_each_counts_once() {
        let seeds = |list: &str| load(&format!("{GOOD}[cluster]\nseeds = [{list}]\n")).unwrap().seeds;
        assert!(seeds("\"127.0.0.1:7421\"").is_empty(), "this node itself");
        let other: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(seeds("\"127.0.0.1:9\", \"127.0.0.1:7421\", \"127.0.0.1:9\""), [other]);
    }

    #[test]
    fn every_mistake_gets_one_sentence_and_exit_code_2() {
        for (text, says) in [
            ("[node]\nid = 0\ndata = \"d\"\nkeyring = \"k\"\n".to_owned(), "node.id is 0"),
            (format!("{GOOD}datta = 1\n"), "line 5: unknown field `datta`"),
            (format!("{GOOD}[listen]\nclient = \"0.0.0.0:1\"\n"), "not on loopback"),
            (format!("{GOOD}[tls]\ncertificate = \"c\"\n"), "missing field `key`"),
            (format!("{GOOD}[listen]\nclient = \"here\"\n"), "no address"),
            (format!("{GOOD}[listen]\npeer = \"[2001:db8::1]:1\"\n"), "not on loopback"),
            (format!("{GOOD}[listen]\nadmin = \"127.0.0.1:0\"\n"), "no port"),
            (format!("{GOOD}[listen]\nadmin = \"127.0.0.1:7420\"\n"), "listen.client and listen.admin"),
            (format!("{GOOD}[cluster]\nseeds = [\"192.0.2.1:1\"]\n"), "not on loopback"),
            ("[node]\nid = 65536\ndata = \"d\"\nkeyring = \"k\"\n".to_owned(), "node.id is 65536"),
            ("[node]\nid = 1\ndata = \"d\"\n".to_owned(), "missing field `keyring`"),
            (format!("{GOOD}roles = []\n"), "node.roles is empty"),
            (format!("{GOOD}roles = [\"boss\"]\n"), "boss"),
            ("[node\n".to_owned(), "line 1"),
        ] {
            let error = load(&text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.message().contains(says), "{error} does not say {says}");
        }
    }

    #[test]
    fn an_unknown_key_is_answered_with_what_was_meant() {
        for (text, hint) in [
            ("datta = 1", "did you mean `data`?"),
            ("keyrings = \"k\"", "did you mean `keyring`?"),
            ("client = \"127.0.0.1:1\"", "`client` belongs into [listen]"),
            ("[listen]\nseeds = []", "`seeds` belongs into [cluster]"),
            ("[listen]\nadmn = \"127.0.0.1:1\"", "did you mean `admin`?"),
            ("[cluster]\nseed = []", "did you mean `seeds`?"),
            ("[listeners]\nclient = \"127.0.0.1:1\"", "did you mean `listen`?"),
            ("[metrics]\nport = 1", "see docs/operating/README.md for every key"),
        ] {
            assert_eq!(load(&format!("{GOOD}{text}\n")).unwrap_err().hint(), hint, "{text}");
        }
    }

    #[test]
    fn plain_text_has_to_be_asked_for_and_stays_on_loopback() {
        let error = load_as_it_is(GOOD).unwrap_err();
        assert!(
            error.message().contains("no [tls]") && error.hint().contains("insecure_plaintext"),
            "{error}"
        );
        let both = format!("{GOOD}{TLS}[listen]\ninsecure_plaintext = true\n");
        assert!(load_as_it_is(&both).unwrap_err().message().contains("asks for none"));
        let wide =
            "[listen]\nclient = \"10.0.0.5:7420\"\npeer = \"10.0.0.5:7421\"\ngossip = \"10.0.0.5:7422\"\n";
        let config =
            load_as_it_is(&format!("{GOOD}{TLS}{wide}[cluster]\nseeds = [\"10.0.0.6:7421\"]\n")).unwrap();
        assert_eq!((config.client, config.seeds.len()), ("10.0.0.5:7420".parse().unwrap(), 1));
        assert!(config.tls.unwrap().ca.ends_with("../ca.pem"));
        for (line, says) in [
            ("admin = \"10.0.0.5:7423\"", "not on loopback"),
            ("client = \"0.0.0.0:7420\"", "no address at which others find"),
        ] {
            let error = load_as_it_is(&format!("{GOOD}{TLS}[listen]\n{line}\n")).unwrap_err();
            assert!(error.message().contains(says), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_a_configuration_error() {
        let error = NodeConfig::load(Path::new("/nonexistent/node.toml")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.message().contains("/nonexistent/node.toml"), "{error}");
    }
}
