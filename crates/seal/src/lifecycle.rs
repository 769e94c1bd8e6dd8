//! The life of payload keys: which one seals at a time, how one is added, brought to other keyrings, and retired.
//!
//! Every change makes another keyring and leaves the old one as it is; whoever keeps keyrings in files replaces the file.
//! The rule that all clients share: **of the keys that have become active, the one that did so last seals; every key that
//! is there opens.** `current_key` has been active since the beginning, other keys from their `activates_at_ms` on, and a key
//! without that never seals.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

use serde::Deserialize;
use swarmmq_protocol::{id::KeyId, mac::MacKey, time::WallTime};
use zeroize::Zeroizing;

use crate::{
    NodeKey, NodeKeyring,
    derive::Secret,
    keyring::{
        ClientKeyring, KeyringError, LoadError, Opens, PAYLOAD_KEYS_MAX, PayloadKey, RawPayloadKey, VERSION,
        malformed, push_number, push_payload_key, read, text_with_room,
    },
};

/// Most numbers of retired keys that a keyring remembers; the lowest are forgotten first.
pub(crate) const RETIRED_KEYS_MAX: usize = 1024;
/// What the check of an export is made of, under the routing key: that one is the same in all keyrings of a cluster, for
/// ever, and in no other's.
const CHECK_LABEL: &[u8] = b"swarmmq/keyring/v1";
/// Bytes of that check.
const CHECK_BYTES: usize = 16;

/// What a payload key does at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It seals, and opens.
    Seals,
    /// It opens what it sealed before, or what others seal with it.
    Opens,
    /// It opens, and will seal from this time on.
    Waits(WallTime),
}

/// A payload key, without its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadKeyInfo {
    /// Its number.
    pub id: KeyId,
    /// When it was made.
    pub created_at: WallTime,
    /// From when on it seals. `None`: the keyring's first current key, or one that never seals.
    pub activates_at: Option<WallTime>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys that were not there.
    pub added: Vec<KeyId>,
    /// Keys that were there already, with the same bytes.
    pub known: Vec<KeyId>,
    /// Keys that had been retired here, and stay so.
    pub retired: Vec<KeyId>,
}

impl ClientKeyring {
    /// The payload key that seals at `now`: of the active ones the one that became active last; of two at the same time the
    /// one with the higher number.
    pub fn sealing_key(&self, now: WallTime) -> KeyId {
        let keys = self.keys();
        let active = keys.payload.iter().filter_map(|(id, key)| {
            let at = key.activates_at.or_else(|| (*id == keys.current).then_some(WallTime(0)))?;
            // The current key is active whatever its time says: there is always one that seals.
            (at <= now || *id == keys.current).then_some((at.min(now), *id))
        });
        active.max().map_or(keys.current, |(_, id)| id)
    }

    /// When the next key begins to seal; `None`: as the keyring stands, never.
    pub fn next_activation(&self, now: WallTime) -> Option<WallTime> {
        let keys = self.keys();
        let waiting = keys.payload.iter().filter(|(id, _)| **id != keys.current);
        waiting.filter_map(|(_, key)| key.activates_at).filter(|at| *at > now).min()
    }

    /// What key `id` does at `now`; `None`: it is not there.
    pub fn key_state(&self, id: KeyId, now: WallTime) -> Option<KeyState> {
        let key = self.keys().payload.get(&id)?;
        if self.sealing_key(now) == id {
            return Some(KeyState::Seals);
        }
        Some(match key.activates_at {
            Some(at) if at > now => KeyState::Waits(at),
            _ => KeyState::Opens,
        })
    }

    /// Since when key `id` seals no more, as far as the keys that are still here tell; `None`: it is not here, seals, or waits.
    ///
    /// Messages that it sealed may wait to be consumed long after.
    pub fn left_at(&self, id: KeyId, now: WallTime) -> Option<WallTime> {
        if self.key_state(id, now) != Some(KeyState::Opens) {
            return None;
        }
        let keys = self.keys();
        let active_at = |id: &KeyId, key: &PayloadKey| {
            key.activates_at.or_else(|| (*id == keys.current).then_some(WallTime(0)))
        };
        let key = &keys.payload[&id];
        // One that never sealed by the rule may have sealed before there was the rule.
        let own = active_at(&id, key).unwrap_or(key.created_at);
        let later = keys.payload.iter().filter(|(other, _)| **other != id);
        let later = later.filter_map(|(id, key)| active_at(id, key)).filter(|at| *at >= own && *at <= now);
        Some(later.min().unwrap_or(own))
    }

    /// The payload keys held, lowest first.
    pub fn payload_keys(&self) -> impl Iterator<Item = PayloadKeyInfo> + '_ {
        self.keys().payload.iter().map(|(id, key)| PayloadKeyInfo {
            id: *id,
            created_at: key.created_at,
            activates_at: key.activates_at,
        })
    }

    /// Numbers of the keys that were here once.
    pub fn retired_keys(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys().retired.iter().copied()
    }

    /// Whether `other` belongs to the same cluster, as far as sealing goes: same routing key. Only then may one stand in for the
    /// other while a client runs. The admission key may be another one, which is used from then on; what was sealed before is
    /// let in as long as nodes accept the old one too.
    pub fn is_of_same_cluster(&self, other: &Self) -> bool {
        self.keys().routing.bytes() == other.keys().routing.bytes()
    }

    /// With the admission key that nodes use now, and, if it is root's, the access token.
    pub fn following(&self, nodes: &NodeKeyring) -> Result<Self, KeyringError> {
        let mut keys = self.keys().clone();
        let current = |key| nodes.current(key).cloned().expect("a keyring without it does not parse");
        if keys.root_token().is_ok() {
            keys.opens = Opens::Token(current(NodeKey::AccessToken));
        }
        keys.admission = current(NodeKey::AdmissionKey);
        keys.checked()
    }

    /// Whether `other` says the same in every line.
    pub fn is_same(&self, other: &Self) -> bool {
        *self.to_text() == *other.to_text()
    }

    /// With one more payload key, which seals from `activates_at` on. Returns its number, above all that were ever here.
    ///
    /// * `random` as for [`ClientKeyring::generate`].
    /// * Fails if there are too many keys, or another one waits to become active at that time or later.
    pub fn rotated(
        &self,
        now: WallTime,
        activates_at: WallTime,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(Self, KeyId), ChangeError> {
        let mut keys = self.keys().clone();
        if let Some((id, _)) = keys
            .payload
            .iter()
            .find(|(_, key)| key.activates_at.is_some_and(|at| at > now && at >= activates_at))
        {
            return Err(ChangeError::AnotherWaits(*id));
        }
        let last = keys.payload.keys().chain(&keys.retired).max().copied().unwrap_or(KeyId(0));
        let id = KeyId(last.0.checked_add(1).ok_or(ChangeError::NoNumberLeft)?);
        if keys.payload.len() >= PAYLOAD_KEYS_MAX {
            return Err(ChangeError::Keyring(KeyringError::TooManyKeys(keys.payload.len() + 1)));
        }
        let secret = Secret::filled(|out| random(out));
        keys.payload.insert(id, PayloadKey { secret, created_at: now, activates_at: Some(activates_at) });
        Ok((keys.checked().map_err(ChangeError::Keyring)?, id))
    }

    /// Without payload key `id`: what was sealed with it is never opened again with this keyring.
    ///
    /// Fails if that key is not there, seals, or waits to seal.
    pub fn retired(&self, now: WallTime, id: KeyId) -> Result<Self, ChangeError> {
        match self.key_state(id, now) {
            None => return Err(ChangeError::NoSuchKey(id)),
            Some(KeyState::Seals) => return Err(ChangeError::Seals(id)),
            Some(KeyState::Waits(at)) => return Err(ChangeError::Waits(id, at)),
            Some(KeyState::Opens) => {}
        }
        let mut keys = self.keys().clone();
        if keys.current == id {
            // Whoever seals now becomes what files from before rotation had: the key that is active from the beginning.
            keys.current = self.sealing_key(now);
        }
        keys.payload.remove(&id);
        keys.retired.insert(id);
        while keys.retired.len() > RETIRED_KEYS_MAX {
            keys.retired.pop_first();
        }
        keys.checked().map_err(ChangeError::Keyring)
    }

    /// The text of a file that carries payload keys, and nothing else, to other keyrings of the cluster. Secret: write it
    /// with mode 0600.
    ///
    /// Fails if one of `ids` is not there.
    pub fn export(&self, ids: &[KeyId]) -> Result<Zeroizing<String>, ChangeError> {
        let mut text = text_with_room(512 + ids.len() * 256);
        text.push_str("# SwarmMQ payload keys, on their way to another keyring. Whoever reads them can read messages.\n");
        push_number(&mut text, "version", VERSION.unsigned_abs());
        let check = self.check();
        text.push_str("cluster_check = \"");
        check.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
        text.push_str("\"\n");
        for id in ids {
            let key = self.keys().payload.get(id).ok_or(ChangeError::NoSuchKey(*id))?;
            push_payload_key(&mut text, *id, key);
        }
        Ok(text)
    }

    /// With the payload keys of `text`, which [`ClientKeyring::export`] wrote for a keyring of the same cluster.
    ///
    /// Fails, and takes none of them, if one of them has the number of another key here.
    pub fn imported(&self, text: &str) -> Result<(Self, Imported), ChangeError> {
        let malformed =
            |error: toml::de::Error| malformed(text.as_bytes(), error.span().map_or(0, |span| span.start));
        let raw = toml::from_str::<RawExport>(text).map_err(malformed).map_err(ChangeError::Export)?;
        if raw.version != VERSION {
            return Err(ChangeError::Export(KeyringError::Version(raw.version)));
        }
        let check: String = self.check().iter().map(|byte| format!("{byte:02x}")).collect();
        if raw.cluster_check != check {
            return Err(ChangeError::AnotherCluster);
        }
        let mut keys = self.keys().clone();
        let mut imported = Imported::default();
        for (id, key) in RawPayloadKey::all(raw.payload_keys).map_err(ChangeError::Export)? {
            match keys.payload.get(&id) {
                Some(held) if held.secret.bytes() == key.secret.bytes() => imported.known.push(id),
                Some(_) => return Err(ChangeError::OtherBytes(id)),
                None if keys.retired.contains(&id) => imported.retired.push(id),
                None => {
                    keys.payload.insert(id, key);
                    imported.added.push(id);
                }
            }
        }
        Ok((keys.checked().map_err(ChangeError::Keyring)?, imported))
    }

    /// The same, from a file.
    pub fn imported_from(&self, path: &Path) -> Result<(Self, Imported), ChangeError> {
        let bytes = read(path).map_err(ChangeError::File)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| ChangeError::Export(malformed(&bytes, error.valid_up_to())))?;
        self.imported(text)
    }

    /// Says of which cluster a file is without giving a key away.
    fn check(&self) -> [u8; CHECK_BYTES] {
        let mac = MacKey::new(*self.keys().routing.bytes()).sign(&[CHECK_LABEL]);
        mac[..CHECK_BYTES].try_into().expect("a MAC is longer")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExport {
    version: i64,
    cluster_check: String,
    #[serde(default)]
    payload_keys: Vec<RawPayloadKey>,
}

/// The numbers of retired keys as a file may have them: any, but not of keys that are there, and not without end.
pub(crate) fn retired_from(
    numbers: Vec<u32>,
    payload: &BTreeMap<KeyId, PayloadKey>,
) -> Result<BTreeSet<KeyId>, KeyringError> {
    let mut numbers: Vec<KeyId> = numbers.into_iter().map(KeyId).collect();
    if let Some(id) = numbers.iter().find(|id| payload.contains_key(id)) {
        return Err(KeyringError::RetiredKey(*id));
    }
    numbers.sort_unstable_by_key(|id| Reverse(*id));
    numbers.truncate(RETIRED_KEYS_MAX);
    Ok(numbers.into_iter().collect())
}

/// Why a keyring cannot be changed so. Nothing changed. Blame: caller, or the files.
#[derive(Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// There is no such payload key.
    NoSuchKey(KeyId),
    /// The key seals: first another one must.
    Seals(KeyId),
    /// The key has yet to become active, at this time.
    Waits(KeyId, WallTime),
    /// A rotation that takes effect at the same time or later is under way.
    AnotherWaits(KeyId),
    /// Every number up to 2^32 - 1 was used.
    NoNumberLeft,
    /// The keys are those of another cluster.
    AnotherCluster,
    /// Another key has this number here: two keyrings were rotated apart from each other.
    OtherBytes(KeyId),
    /// What came of it is no keyring.
    Keyring(KeyringError),
    /// The file with keys to be imported is none.
    Export(KeyringError),
    /// That file cannot be read.
    File(LoadError),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchKey(id) => write!(f, "there is no payload key {}", id.0),
            Self::Seals(id) => write!(f, "payload key {} is the one that seals", id.0),
            Self::Waits(id, _) => write!(f, "payload key {} is about to become the one that seals", id.0),
            Self::AnotherWaits(id) => {
                write!(f, "payload key {} waits to become the one that seals, at that time or later", id.0)
            }
            Self::NoNumberLeft => write!(f, "no number is left for another key"),
            Self::AnotherCluster => write!(f, "these are keys of another cluster"),
            Self::OtherBytes(id) => {
                write!(
                    f,
                    "payload key {} is there already, and is another key: two keyrings were rotated apart",
                    id.0
                )
            }
            Self::Keyring(error) | Self::Export(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ChangeError {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keyring::FieldError;

    const BEGINNING: WallTime = WallTime(1_000_000);

    fn at(seconds: u64) -> WallTime {
        BEGINNING.plus(Duration::from_secs(seconds))
    }

    fn example() -> ClientKeyring {
        let mut next = 0xa0;
        ClientKeyring::generate(BEGINNING, &mut |out| {
            out.fill(next);
            next += 1;
        })
        .expect("the four secrets differ")
    }

    fn rotated(keyring: &ClientKeyring, now: u64, activates: u64, byte: u8) -> ClientKeyring {
        keyring.rotated(at(now), at(activates), &mut |out| out.fill(byte)).unwrap().0
    }

    fn ids(keyring: &ClientKeyring) -> Vec<u32> {
        keyring.payload_keys().map(|key| key.id.0).collect()
    }

    #[test]
    fn of_the_active_keys_the_one_that_became_so_last_seals() {
        let keyring = rotated(&rotated(&example(), 10, 100, 1), 20, 200, 2);
        for (now, seals, next) in [
            (0, 1, Some(at(100))),
            (99, 1, Some(at(100))),
            (100, 2, Some(at(200))),
            (199, 2, Some(at(200))),
            (200, 3, None),
            (9999, 3, None),
        ] {
            assert_eq!(keyring.sealing_key(at(now)), KeyId(seals), "at {now}");
            assert_eq!(keyring.next_activation(at(now)), next, "at {now}");
        }
        assert_eq!(keyring.key_state(KeyId(1), at(150)), Some(KeyState::Opens));
        assert_eq!(keyring.key_state(KeyId(2), at(150)), Some(KeyState::Seals));
        assert_eq!(keyring.key_state(KeyId(3), at(150)), Some(KeyState::Waits(at(200))));
        assert_eq!(keyring.key_state(KeyId(4), at(150)), None);
        assert_eq!(keyring.left_at(KeyId(1), at(250)), Some(at(100)));
        assert_eq!(keyring.left_at(KeyId(2), at(250)), Some(at(200)));
        for (id, now) in [(3, 250), (2, 150), (3, 150), (9, 250)] {
            assert_eq!(keyring.left_at(KeyId(id), at(now)), None, "{id} at {now}");
        }
    }

    #[test]
    fn a_file_without_activation_times_seals_with_its_current_key_for_ever() {
        let mut text = example().to_text().to_string();
        text.push_str(&format!(
            "\n[[payload_keys]]\nid = 2\ncreated_at_ms = 2\nkey = \"{}\"\n",
            "ee".repeat(32)
        ));
        let keyring = ClientKeyring::parse(&text).unwrap();
        assert_eq!(
            (keyring.sealing_key(at(0)), keyring.sealing_key(WallTime(u64::MAX))),
            (KeyId(1), KeyId(1))
        );
        assert_eq!(keyring.next_activation(at(0)), None);
        let second = ClientKeyring::parse(&text.replace("current_key = 1", "current_key = 2")).unwrap();
        assert_eq!(second.sealing_key(at(0)), KeyId(2));
    }

    #[test]
    fn there_is_always_a_key_that_seals_however_wrong_the_clock_is() {
        let keyring = rotated(&example(), 10, 100, 1);
        let retired = keyring.retired(at(100), KeyId(1)).unwrap();
        assert_eq!(retired.current_key(), KeyId(2));
        for now in [WallTime(0), at(0), at(100), WallTime(u64::MAX)] {
            assert_eq!(retired.sealing_key(now), KeyId(2), "{now:?}");
        }
        assert_eq!(retired.next_activation(WallTime(0)), None, "the current key does not wait");
    }

    #[test]
    fn a_changed_keyring_survives_writing_and_reading_and_the_old_one_is_as_it_was() {
        let before = example();
        let after = rotated(&rotated(&before, 10, 20, 1), 30, 40, 2).retired(at(50), KeyId(1)).unwrap();
        assert_eq!(ids(&before), [1]);
        assert_eq!(ids(&after), [2, 3]);
        let again = ClientKeyring::parse(&after.to_text()).unwrap();
        assert_eq!(again.to_text(), after.to_text());
        assert_eq!(again.payload_keys().collect::<Vec<_>>(), after.payload_keys().collect::<Vec<_>>());
        assert_eq!(again.retired_keys().collect::<Vec<_>>(), [KeyId(1)]);
        assert!(again.is_of_same_cluster(&before));
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let keyring = rotated(&rotated(&example(), 10, 20, 1), 30, 40, 2);
        let few = keyring.retired(at(50), KeyId(1)).unwrap().retired(at(50), KeyId(2)).unwrap();
        let (more, id) = few.rotated(at(60), at(60), &mut |out| out.fill(3)).unwrap();
        assert_eq!(id, KeyId(4));
        let twice = more.to_text().replace("retired_keys = [1, 2]", "retired_keys = [1, 4]");
        assert_eq!(ClientKeyring::parse(&twice).unwrap_err(), KeyringError::RetiredKey(KeyId(4)));
    }

    #[test]
    fn what_seals_or_is_about_to_is_not_retired() {
        let keyring = rotated(&example(), 10, 100, 1);
        assert_eq!(keyring.retired(at(50), KeyId(1)).unwrap_err(), ChangeError::Seals(KeyId(1)));
        assert_eq!(keyring.retired(at(50), KeyId(2)).unwrap_err(), ChangeError::Waits(KeyId(2), at(100)));
        assert_eq!(keyring.retired(at(50), KeyId(9)).unwrap_err(), ChangeError::NoSuchKey(KeyId(9)));
        assert_eq!(ids(&keyring.retired(at(100), KeyId(1)).unwrap()), [2]);
    }

    #[test]
    fn rotations_take_effect_in_the_order_in_which_they_are_made() {
        let keyring = rotated(&example(), 10, 100, 1);
        let refused = keyring.rotated(at(20), at(100), &mut |out| out.fill(2)).unwrap_err();
        assert_eq!(refused, ChangeError::AnotherWaits(KeyId(2)));
        assert!(keyring.rotated(at(20), at(101), &mut |out| out.fill(2)).is_ok());
        let lazy = keyring.rotated(at(20), at(200), &mut |out| out.fill(0xa1)).unwrap_err();
        let repeated = KeyringError::PayloadKey { id: KeyId(3), why: FieldError::Repeated };
        assert_eq!(lazy, ChangeError::Keyring(repeated));
    }

    #[test]
    fn keys_travel_to_keyrings_of_the_same_cluster_and_to_no_other() {
        let first = rotated(&rotated(&example(), 10, 20, 1), 30, 40, 2);
        let second = rotated(&example(), 10, 20, 1);
        let text = first.export(&[KeyId(2), KeyId(3)]).unwrap();
        for secret in ["a0", "a1", "a2", "a3"] {
            assert!(!text.contains(&secret.repeat(32)), "only the keys that were asked for");
        }
        let (after, imported) = second.imported(&text).unwrap();
        let expected = Imported { added: vec![KeyId(3)], known: vec![KeyId(2)], retired: vec![] };
        assert_eq!(imported, expected);
        assert_eq!(after.to_text(), first.to_text());

        let (_, imported) = after.retired(at(50), KeyId(2)).unwrap().imported(&text).unwrap();
        assert_eq!((imported.retired, imported.known), (vec![KeyId(2)], vec![KeyId(3)]));

        let apart = rotated(&example(), 10, 20, 9);
        assert_eq!(apart.imported(&text).unwrap_err(), ChangeError::OtherBytes(KeyId(2)));
        let mut next = 0xc0;
        let stranger = ClientKeyring::generate(BEGINNING, &mut |out| {
            out.fill(next);
            next += 1;
        });
        assert_eq!(stranger.unwrap().imported(&text).unwrap_err(), ChangeError::AnotherCluster);
        assert_eq!(first.export(&[KeyId(9)]).unwrap_err(), ChangeError::NoSuchKey(KeyId(9)));
    }

    #[test]
    fn no_error_of_an_import_quotes_a_key() {
        let first = rotated(&example(), 10, 20, 0xee);
        let text = first.export(&[KeyId(2)]).unwrap();
        for (from, to) in [
            ("id = 2", format!("id = \"{}\"", "ee".repeat(32))),
            ("version = 1", format!("version = 1\n{} = 5", "ee".repeat(32))),
            ("version = 1", "version = 7".into()),
            ("key = \"ee", "key = \"e".into()),
            ("key = \"ee", "kez = \"ee".into()),
        ] {
            assert!(text.contains(from), "{from}");
            let error = example().imported(&text.replacen(from, &to, 1)).unwrap_err();
            assert!(matches!(error, ChangeError::Export(_)), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("eeee"), "{error}");
        }
    }
}
