//! The keyring file: which keys a client holds, and the part of it that a node may hold.
//!
//! ```toml
//! version = 1
//! access_token = "64 hex digits"     # opens connections; nodes hold that of root, from which all others follow
//! principal = "till-7"               # whose token it is; without this line root's
//! certificate = "till-7.crt"         # instead of a token, with certificate_key: what proves who it is, beside this file
//! admission_key = "64 hex digits"    # lets messages in; nodes hold it
//! routing_key = "64 hex digits"      # hashes message keys; never rotates
//! current_key = 1                    # seals new messages, until another key becomes active
//! retired_keys = []                  # numbers of keys that were here once; may be missing
//! ca = """PEM"""                     # whom to believe: the authorities of the cluster's nodes
//! insecure_plaintext = true          # instead of `ca`: no TLS, on loopback only
//!
//! [[payload_keys]]                   # open messages; no node ever holds one
//! id = 1
//! created_at_ms = 1763964000000
//! activates_at_ms = 1763964000000    # seals from then on; may be missing
//! key = "64 hex digits"
//! ```
//!
//! Which key seals at a time, and how keys come and go, is in `lifecycle.rs`.
//!
//! A node's file has the first three lines and one that no client has: see `node_keyring`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, de};
use swarmmq_protocol::{
    access::{PrincipalName, ROOT},
    id::{ClusterId, KeyId},
    mac::{MacKey, certified_key, principal_token},
    time::WallTime,
};
use zeroize::Zeroizing;

use crate::{
    derive::Secret,
    lifecycle::{RETIRED_KEYS_MAX, retired_from},
};

/// Version of the file, in its first line.
pub(crate) const VERSION: i64 = 1;
/// What nodes prove to each other that they know. Never in a client's keyring.
const PEER_SECRET: &str = "peer_secret";
/// Largest keyring file, in bytes. Holds [`PAYLOAD_KEYS_MAX`] keys and more.
const FILE_BYTES_MAX: usize = 128 << 10;
/// Most payload keys in a keyring: one a week for nearly five years.
pub const PAYLOAD_KEYS_MAX: usize = 256;
/// Room for the text of one payload key, so that writing never moves secrets to a larger buffer.
const PAYLOAD_KEY_TEXT_BYTES: usize = 240;
/// Room for the number of one retired key.
const RETIRED_KEY_TEXT_BYTES: usize = 12;
/// Largest text of authorities, in bytes: some ten certificates.
pub const CA_BYTES_MAX: usize = 16 << 10;
/// Longest path of a certificate or its key, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Room for everything else.
const OTHER_TEXT_BYTES: usize = 1024 + CA_BYTES_MAX + 2 * PATH_BYTES_MAX;
const _: () = assert!(
    OTHER_TEXT_BYTES + PAYLOAD_KEYS_MAX * PAYLOAD_KEY_TEXT_BYTES + RETIRED_KEYS_MAX * RETIRED_KEY_TEXT_BYTES
        <= FILE_BYTES_MAX
);

/// All that a client needs besides addresses of nodes. Cheap to clone; the secrets exist once and are zeroed on drop.
#[derive(Clone)]
pub struct ClientKeyring {
    keys: Arc<Keys>,
    /// The file that it was read from.
    source: Option<Arc<Path>>,
}

#[derive(Clone)]
pub(crate) struct Keys {
    /// `None`: root.
    pub(crate) principal: Option<PrincipalName>,
    pub(crate) opens: Opens,
    pub(crate) admission: Secret,
    pub(crate) routing: Secret,
    pub(crate) current: KeyId,
    pub(crate) payload: BTreeMap<KeyId, PayloadKey>,
    /// Numbers that are not given again.
    pub(crate) retired: BTreeSet<KeyId>,
    /// How nodes are known.
    pub(crate) trust: Trust,
}

/// What proves whose keyring it is.
#[derive(Clone)]
pub(crate) enum Opens {
    Token(Secret),
    Certificate(ClientCertificate),
}

/// Where a client's certificate and its key are. Paths are as they stand in the keyring: relative ones begin where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Certificates in PEM, the client's first.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

impl ClientCertificate {
    /// The same with paths that lead there from anywhere, for a keyring at `keyring`.
    pub fn beside(&self, keyring: &Path) -> Self {
        let directory = keyring.parent().unwrap_or(Path::new(""));
        Self { certificate: directory.join(&self.certificate), key: directory.join(&self.key) }
    }

    fn texts(&self) -> Result<[&str; 2], KeyringError> {
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        let fits = |text: &&str| (1..=PATH_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain);
        let certificate = self.certificate.to_str().filter(fits).ok_or(KeyringError::Path)?;
        let key = self.key.to_str().filter(fits).ok_or(KeyringError::Path)?;
        Ok([certificate, key])
    }
}

/// How a client knows that it speaks with a node of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The file does not say: such a client connects to nobody.
    #[default]
    Unsaid,
    /// By TLS: the nodes' certificates are from one of these authorities. PEM, at most [`CA_BYTES_MAX`] bytes.
    Authorities(String),
    /// Not at all: plain text, on loopback only.
    InsecurePlaintext,
}

#[derive(Clone)]
pub(crate) struct PayloadKey {
    pub(crate) secret: Secret,
    pub(crate) created_at: WallTime,
    pub(crate) activates_at: Option<WallTime>,
}

impl ClientKeyring {
    /// A fresh keyring with payload key 1.
    ///
    /// * `random` fills its argument with bytes nobody can guess; it is called once per secret.
    /// * Fails if they are zero or repeat, so that a broken source of randomness does not go unseen.
    pub fn generate(created_at: WallTime, random: &mut dyn FnMut(&mut [u8])) -> Result<Self, KeyringError> {
        let mut secret = || Secret::filled(|out| random(out));
        let keys = Keys {
            trust: Trust::Unsaid,
            principal: None,
            opens: Opens::Token(secret()),
            admission: secret(),
            routing: secret(),
            current: KeyId(1),
            payload: BTreeMap::from([(
                KeyId(1),
                PayloadKey { secret: secret(), created_at, activates_at: None },
            )]),
            retired: BTreeSet::new(),
        };
        keys.checked()
    }

    /// Reads the keyring file at `path`, and remembers where it lies.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let bytes = read(path)?;
        std::str::from_utf8(&bytes)
            .map_err(|error| malformed(&bytes, error.valid_up_to()))
            .and_then(Self::parse)
            .map(|keyring| Self { source: Some(path.into()), ..keyring })
            .map_err(|error| LoadError::Keyring { path: path.into(), error })
    }

    /// Parses the text of a keyring file. Errors never quote the text.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let malformed = |error: toml::de::Error| {
            // The library's own message quotes values, which here are secrets.
            malformed(text.as_bytes(), error.span().map_or(0, |span| span.start))
        };
        let version = toml::from_str::<Version>(text).map_err(malformed)?.version;
        match version {
            None => return Err(KeyringError::Field { field: "version", why: FieldError::Missing }),
            Some(VERSION) => {}
            Some(version) => return Err(KeyringError::Version(version)),
        }
        let raw = toml::from_str::<Raw>(text).map_err(malformed)?;
        if raw.routing_key.is_none() && raw.payload_keys.is_empty() && raw.admission_key.is_some() {
            return Err(KeyringError::NodeKeyring);
        }
        if raw.peer_secret.is_some() {
            return Err(KeyringError::PeerSecret);
        }
        let trust = trust(raw.ca, raw.insecure_plaintext)?;
        let payload = RawPayloadKey::all(raw.payload_keys)?;
        let retired = retired_from(raw.retired_keys, &payload)?;
        let field = |field: &'static str, key: Option<HexKey>| {
            key.map_or(Err(FieldError::Missing), HexKey::secret)
                .map_err(|why| KeyringError::Field { field, why })
        };
        let current =
            raw.current_key.ok_or(KeyringError::Field { field: "current_key", why: FieldError::Missing })?;
        let principal = raw.principal.filter(|name| name != ROOT);
        let principal = principal.as_deref().map(PrincipalName::parse).transpose();
        let principal = principal.map_err(|_| KeyringError::Principal)?;
        let opens = match (raw.access_token, raw.certificate, raw.certificate_key) {
            (None, Some(certificate), Some(key)) if principal.is_some() => {
                let paths = ClientCertificate { certificate: certificate.into(), key: key.into() };
                paths.texts()?;
                Opens::Certificate(paths)
            }
            (token, None, None) => Opens::Token(field("access_token", token)?),
            _ => return Err(KeyringError::Certificate),
        };
        let keys = Keys {
            trust: Trust::Unsaid,
            principal,
            opens,
            admission: field("admission_key", raw.admission_key)?,
            routing: field("routing_key", raw.routing_key)?,
            current: KeyId(current),
            payload,
            retired,
        };
        keys.checked()?.with_trust(trust)
    }

    /// The text of the client's keyring file. Secret: write it with mode 0600.
    pub fn to_text(&self) -> Zeroizing<String> {
        let keys = self.keys();
        let mut text = text_with_room(
            OTHER_TEXT_BYTES
                + keys.payload.len() * PAYLOAD_KEY_TEXT_BYTES
                + keys.retired.len() * RETIRED_KEY_TEXT_BYTES,
        );
        text.push_str("# SwarmMQ keyring for clients. Whoever reads it can read and send messages.\n");
        push_version(&mut text);
        match &keys.opens {
            Opens::Token(token) => push_hex(&mut text, "access_token", token),
            Opens::Certificate(paths) => {
                let [certificate, key] = paths.texts().expect("checked when it came");
                writeln!(text, "certificate = \"{certificate}\"\ncertificate_key = \"{key}\"")
                    .expect("writing to a string cannot fail");
            }
        }
        push_hex(&mut text, "admission_key", &keys.admission);
        if let Some(principal) = &keys.principal {
            writeln!(text, "principal = \"{principal}\"").expect("writing to a string cannot fail");
        }
        push_hex(&mut text, "routing_key", &keys.routing);
        push_number(&mut text, "current_key", keys.current.0.into());
        if !keys.retired.is_empty() {
            let retired: Vec<u32> = keys.retired.iter().map(|id| id.0).collect();
            writeln!(text, "retired_keys = {retired:?}").expect("writing to a string cannot fail");
        }
        match &keys.trust {
            Trust::Unsaid => {}
            Trust::Authorities(pem) => {
                text.push_str("ca = \"\"\"\n");
                text.push_str(pem);
                text.push_str("\"\"\"\n");
            }
            Trust::InsecurePlaintext => text.push_str("insecure_plaintext = true\n"),
        }
        for (id, key) in &keys.payload {
            push_payload_key(&mut text, *id, key);
        }
        text
    }

    /// How nodes are known.
    pub fn trust(&self) -> &Trust {
        &self.keys.trust
    }

    /// The same keys with another word on how nodes are known. Fails on a text that a keyring cannot hold.
    pub fn with_trust(&self, trust: Trust) -> Result<Self, KeyringError> {
        if let Trust::Authorities(pem) = &trust {
            check_authorities(pem)?;
        }
        let keys = Keys { trust, ..self.keys().clone() };
        Ok(Self { keys: Arc::new(keys), source: self.source.clone() })
    }

    /// The same keys for another principal of `cluster`, with the token that it has in `generation`.
    ///
    /// * Only from root's keyring: whoever has no more than a token can make no other.
    pub fn for_principal(
        &self,
        cluster: ClusterId,
        name: &PrincipalName,
        generation: u64,
    ) -> Result<Self, KeyringError> {
        let keys = self.keys();
        keys.root_token()?;
        let token = principal_token(&self.access_token(), cluster, name.as_str(), generation);
        let opens = Opens::Token(Secret::filled(|out| out.copy_from_slice(&token[..])));
        Keys { principal: Some(name.clone()), opens, ..keys.clone() }.checked()
    }

    /// The same keys for another principal, that proves itself with a certificate.
    pub fn for_certificate(
        &self,
        name: &PrincipalName,
        certificate: ClientCertificate,
    ) -> Result<Self, KeyringError> {
        let keys = self.keys();
        keys.root_token()?;
        certificate.texts()?;
        let opens = Opens::Certificate(certificate);
        Keys { principal: Some(name.clone()), opens, ..keys.clone() }.checked()
    }

    /// Whose keyring it is, as nodes know it.
    pub fn principal(&self) -> &str {
        self.keys.principal.as_ref().map_or(ROOT, PrincipalName::as_str)
    }

    /// The token of [`ClientKeyring::principal`], which opens a connection; with a certificate, what stands in its place.
    pub fn access_token(&self) -> MacKey {
        match &self.keys.opens {
            Opens::Token(token) => MacKey::new(*token.bytes()),
            Opens::Certificate(_) => certified_key(self.principal()),
        }
    }

    /// The certificate that proves who it is, in place of a token; paths as seen from here.
    pub fn certificate(&self) -> Option<ClientCertificate> {
        match &self.keys.opens {
            Opens::Token(_) => None,
            Opens::Certificate(paths) => {
                Some(self.source().map_or_else(|| paths.clone(), |keyring| paths.beside(keyring)))
            }
        }
    }

    /// The key under which nodes let messages in.
    pub fn admission_key(&self) -> MacKey {
        MacKey::new(*self.keys.admission.bytes())
    }

    /// The key that hashes message keys. Never rotates, or keys would move to other shards.
    pub fn routing_key(&self) -> MacKey {
        MacKey::new(*self.keys.routing.bytes())
    }

    /// The payload key that seals as long as no other has become active: see [`ClientKeyring::sealing_key`].
    pub fn current_key(&self) -> KeyId {
        self.keys.current
    }

    /// The file that this was read from, if it was.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    pub(crate) fn payload_key(&self, id: KeyId) -> Option<&Secret> {
        self.keys.payload.get(&id).map(|key| &key.secret)
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }
}

impl fmt::Debug for ClientKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u32> = self.keys.payload.keys().map(|id| id.0).collect();
        f.debug_struct("ClientKeyring")
            .field("principal", &self.principal())
            .field("current_key", &self.keys.current.0)
            .field("payload_keys", &ids)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Of root: from no other token can others be made.
    pub(crate) fn root_token(&self) -> Result<&Secret, KeyringError> {
        match &self.opens {
            Opens::Token(token) if self.principal.is_none() => Ok(token),
            _ => Err(KeyringError::NotRoot),
        }
    }

    /// Whether these keys may be used together: none zero, no two equal, the current one there.
    pub(crate) fn checked(self) -> Result<ClientKeyring, KeyringError> {
        let mut seen = Vec::with_capacity(3 + self.payload.len());
        let token = match &self.opens {
            Opens::Token(token) => Some(("access_token", token)),
            Opens::Certificate(_) => None,
        };
        let others = [("admission_key", &self.admission), ("routing_key", &self.routing)];
        for (field, secret) in token.into_iter().chain(others) {
            check(secret, &mut seen).map_err(|why| KeyringError::Field { field, why })?;
        }
        for (id, key) in &self.payload {
            check(&key.secret, &mut seen).map_err(|why| KeyringError::PayloadKey { id: *id, why })?;
        }
        if !self.payload.contains_key(&self.current) {
            return Err(KeyringError::NoCurrentKey(self.current));
        }
        Ok(ClientKeyring { keys: Arc::new(self), source: None })
    }
}

fn trust(ca: Option<String>, insecure_plaintext: bool) -> Result<Trust, KeyringError> {
    match (ca, insecure_plaintext) {
        (None, false) => Ok(Trust::Unsaid),
        (None, true) => Ok(Trust::InsecurePlaintext),
        (Some(_), true) => Err(KeyringError::Contradiction),
        (Some(pem), false) => check_authorities(&pem).map(|()| Trust::Authorities(pem)),
    }
}

/// Only what is written back as it was read; whether the certificates are any good shows when they are used.
fn check_authorities(pem: &str) -> Result<(), KeyringError> {
    let is_plain = |byte: u8| matches!(byte, b'\n' | b' '..=b'~') && byte != b'"' && byte != b'\\';
    let fits = pem.len() <= CA_BYTES_MAX
        && pem.contains("-----BEGIN CERTIFICATE-----")
        && pem.ends_with('\n')
        && pem.bytes().all(is_plain);
    if fits { Ok(()) } else { Err(KeyringError::Authorities) }
}

/// A secret must not be zero nor one of those `seen`: a payload key equal to the admission key would be on every node.
pub(crate) fn check<'a>(secret: &'a Secret, seen: &mut Vec<&'a Secret>) -> Result<(), FieldError> {
    if secret.is_zero() {
        return Err(FieldError::Zero);
    }
    if seen.iter().any(|other| other.bytes() == secret.bytes()) {
        return Err(FieldError::Repeated);
    }
    seen.push(secret);
    Ok(())
}

/// Why a keyring file could not be loaded. Nothing changed. Blame: configuration.
#[derive(Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The file could not be read.
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        kind: io::ErrorKind,
    },
    /// The file was read and is no keyring.
    Keyring {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeyringError,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, kind: io::ErrorKind::NotFound } => {
                write!(
                    f,
                    "there is no keyring at {}; make one with: swarmmq keys generate --out DIR",
                    path.display()
                )
            }
            Self::File { path, kind: io::ErrorKind::PermissionDenied } => {
                write!(f, "this user may not read the keyring {}", path.display())
            }
            Self::File { path, kind } => write!(f, "cannot read the keyring {}: {kind}", path.display()),
            Self::Keyring { path, error } => write!(f, "keyring {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { .. } => None,
            Self::Keyring { error, .. } => Some(error),
        }
    }
}

/// Why a text is no client keyring. Nothing changed. Never holds a part of a key. Blame: configuration.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyringError {
    /// Not the expected form from this line on, counted from 1.
    Malformed {
        /// The line.
        line: usize,
    },
    /// Written by another version of SwarmMQ.
    Version(i64),
    /// A node's keyring: without payload keys a client can neither seal nor open.
    NodeKeyring,
    /// It holds the secret between nodes: whoever has it can pose as a node, which no client may.
    PeerSecret,
    /// A field that cannot be used.
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        why: FieldError,
    },
    /// A payload key that cannot be used.
    PayloadKey {
        /// Which key.
        id: KeyId,
        /// What is wrong with it.
        why: FieldError,
    },
    /// `principal` is no name of a principal.
    Principal,
    /// The keyring of a principal other than root: from its token no other can be made.
    NotRoot,
    /// Two payload keys share this id.
    DuplicateId(KeyId),
    /// A payload key that is there is listed as retired.
    RetiredKey(KeyId),
    /// `current_key` names a payload key that is not there.
    NoCurrentKey(KeyId),
    /// More payload keys than [`PAYLOAD_KEYS_MAX`].
    TooManyKeys(usize),
    /// Far larger than any keyring; the rest was not read.
    TooLarge,
    /// Neither an access token nor a certificate with its key for a principal that is named, or both.
    Certificate,
    /// A path of a certificate or key that a keyring cannot hold.
    Path,
    /// `ca` is no text of certificates in PEM, or longer than [`CA_BYTES_MAX`].
    Authorities,
    /// It has a `ca`, and says `insecure_plaintext` too: only one of them can hold.
    Contradiction,
}

impl fmt::Display for KeyringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { line } => {
                write!(f, "line {line} is malformed (not shown, it may hold a key)")
            }
            Self::Version(version) => {
                write!(f, "version {version}, but this program reads version {VERSION}")
            }
            Self::NodeKeyring => {
                write!(f, "this is a node's keyring; a client needs the file client.keyring")
            }
            Self::PeerSecret => {
                write!(f, "{PEER_SECRET} is for nodes only; a client's keyring must not hold it")
            }
            Self::Field { field, why } => write!(f, "{field} {why}"),
            Self::PayloadKey { id, why } => write!(f, "payload key {} {why}", id.0),
            Self::Principal => write!(f, "principal is no name of a principal"),
            Self::NotRoot => write!(f, "this keyring is not root's: no other token can be made from it"),
            Self::DuplicateId(id) => write!(f, "two payload keys have the id {}", id.0),
            Self::RetiredKey(id) => write!(f, "payload key {} is there and listed as retired", id.0),
            Self::NoCurrentKey(id) => {
                write!(f, "current_key is {}, but there is no payload key {}", id.0, id.0)
            }
            Self::TooManyKeys(count) => {
                write!(f, "{count} payload keys where at most {PAYLOAD_KEYS_MAX} are allowed")
            }
            Self::TooLarge => write!(f, "larger than {FILE_BYTES_MAX} bytes"),
            Self::Certificate => f.write_str(
                "it needs an access_token, or a principal with certificate and certificate_key: not both, not half",
            ),
            Self::Path => write!(
                f,
                "certificate and certificate_key are paths of at most {PATH_BYTES_MAX} printable characters"
            ),
            Self::Authorities => {
                write!(f, "ca holds no certificates in PEM, or more than {CA_BYTES_MAX} bytes of them")
            }
            Self::Contradiction => {
                write!(f, "it has a ca and says insecure_plaintext too: leave one of them out")
            }
        }
    }
}

impl std::error::Error for KeyringError {}

/// What is wrong with one field of a keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// Not there.
    Missing,
    /// Not 64 hex digits.
    NotHex,
    /// All bits zero: a placeholder, not a key.
    Zero,
    /// The same bytes as another key of this file: then whoever holds one holds both.
    Repeated,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::NotHex => "is not 64 hex digits",
            Self::Zero => "is all zero, which is a placeholder and no key",
            Self::Repeated => "has the same bytes as another key of this file",
        })
    }
}

#[derive(Deserialize)]
struct Version {
    version: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "version")]
    _version: i64,
    access_token: Option<HexKey>,
    certificate: Option<String>,
    certificate_key: Option<String>,
    principal: Option<String>,
    admission_key: Option<HexKey>,
    peer_secret: Option<de::IgnoredAny>,
    routing_key: Option<HexKey>,
    current_key: Option<u32>,
    ca: Option<String>,
    #[serde(default)]
    insecure_plaintext: bool,
    #[serde(default)]
    retired_keys: Vec<u32>,
    #[serde(default)]
    payload_keys: Vec<RawPayloadKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPayloadKey {
    id: u32,
    created_at_ms: u64,
    activates_at_ms: Option<u64>,
    key: HexKey,
}

impl RawPayloadKey {
    /// The payload keys of a file.
    pub(crate) fn all(raw: Vec<Self>) -> Result<BTreeMap<KeyId, PayloadKey>, KeyringError> {
        if raw.len() > PAYLOAD_KEYS_MAX {
            return Err(KeyringError::TooManyKeys(raw.len()));
        }
        let mut keys = BTreeMap::new();
        for entry in raw {
            let id = KeyId(entry.id);
            let secret = entry.key.secret().map_err(|why| KeyringError::PayloadKey { id, why })?;
            let created_at = WallTime(entry.created_at_ms);
            let activates_at = entry.activates_at_ms.map(WallTime);
            if keys.insert(id, PayloadKey { secret, created_at, activates_at }).is_some() {
                return Err(KeyringError::DuplicateId(id));
            }
        }
        Ok(keys)
    }
}

/// A string that should be 64 hex digits; `None` if it is not, so that the error can name the field.
pub(crate) struct HexKey(Option<Secret>);

impl HexKey {
    pub(crate) fn secret(self) -> Result<Secret, FieldError> {
        self.0.ok_or(FieldError::NotHex)
    }
}

impl<'de> Deserialize<'de> for HexKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = HexKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hex digits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HexKey, E> {
                Ok(HexKey(secret_from_hex(text)))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// The bytes of a file that may hold keys.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let unreadable = |error: io::Error| LoadError::File { path: path.into(), kind: error.kind() };
    // Read into its final buffer: a growing one would leave copies of the secrets behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(LoadError::Keyring { path: path.into(), error: KeyringError::TooLarge });
    }
    Ok(bytes)
}

fn secret_from_hex(text: &str) -> Option<Secret> {
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let digit = |c: u8| (c as char).to_digit(16).expect("all are hex digits, checked above") as u8;
    Some(Secret::filled(|out| {
        for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
    }))
}

pub(crate) fn malformed(text: &[u8], at: usize) -> KeyringError {
    let before = &text[..at.min(text.len())];
    KeyringError::Malformed { line: 1 + before.iter().filter(|byte| **byte == b'\n').count() }
}

pub(crate) fn text_with_room(bytes: usize) -> Zeroizing<String> {
    Zeroizing::new(String::with_capacity(bytes))
}

fn push_version(text: &mut String) {
    push_number(text, "version", VERSION.unsigned_abs());
}

pub(crate) fn push_number(text: &mut String, field: &str, number: u64) {
    // TOML knows no larger integer.
    let number = number.min(i64::MAX as u64);
    writeln!(text, "{field} = {number}").expect("writing to a string cannot fail");
}

/// Adds a payload key to a text with room for it.
pub(crate) fn push_payload_key(text: &mut String, id: KeyId, key: &PayloadKey) {
    text.push_str("\n[[payload_keys]]\n");
    push_number(text, "id", id.0.into());
    push_number(text, "created_at_ms", key.created_at.0);
    if let Some(at) = key.activates_at {
        push_number(text, "activates_at_ms", at.0);
    }
    push_hex(text, "key", &key.secret);
}

pub(crate) fn push_hex(text: &mut String, field: &str, secret: &Secret) {
    let room = text.capacity();
    text.push_str(field);
    text.push_str(" = \"");
    for byte in secret.bytes() {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text.push_str("\"\n");
    assert_eq!(text.capacity(), room, "the buffer grew and left secrets behind");
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
