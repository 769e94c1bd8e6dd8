//! What a certificate says: for whom it is, at which hosts, from when until when, and who vouches for it.
//!
//! Reads only what [`crate::Authority`] writes. It judges nothing: whether a certificate is to be believed is decided by
//! `rustls-webpki`, which reads it on its own.

use std::{fmt, net::IpAddr};

use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use swarmmq_protocol::id::NodeId;

use crate::CertificateError;

/// Most hosts in one certificate: all of them must fit what a stranger may send at the peer port.
pub const HOSTS_MAX: usize = 16;
/// Longest name of a client, in bytes: one segment of the address grammar.
const CLIENT_NAME_BYTES_MAX: usize = 64;
/// Most certificates in one file: an authority and those that it replaces or that replace it.
const FILE_CERTIFICATES_MAX: usize = 16;
const NODE_PREFIX: &str = "swarmmq:node:";
const CLIENT_PREFIX: &str = "swarmmq:client:";

/// For whom a certificate is. Written into it as a URI: `swarmmq:node:3`, `swarmmq:client:billing`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A node of the cluster.
    Node(NodeId),
    /// A client with this name.
    Client(String),
}

/// A text is no name. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameError;

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name is one to 64 of A-Z a-z 0-9 _ -")
    }
}

impl std::error::Error for NameError {}

impl Name {
    /// The name of a client: 1 to 64 of `A-Z a-z 0-9 _ -`.
    pub fn client(name: &str) -> Result<Self, NameError> {
        let fits = (1..=CLIENT_NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if fits { Ok(Self::Client(name.to_owned())) } else { Err(NameError) }
    }

    /// As it stands in a certificate.
    pub(crate) fn to_uri(&self) -> String {
        match self {
            Self::Node(node) => format!("{NODE_PREFIX}{}", node.0),
            Self::Client(name) => format!("{CLIENT_PREFIX}{name}"),
        }
    }

    /// The other way round; `None` for any other URI. One name has one spelling.
    pub(crate) fn from_uri(uri: &str) -> Option<Self> {
        let name = if let Some(number) = uri.strip_prefix(NODE_PREFIX) {
            Self::Node(NodeId(number.parse().ok().filter(|number| *number > 0)?))
        } else {
            Self::client(uri.strip_prefix(CLIENT_PREFIX)?).ok()?
        };
        (name.to_uri() == uri).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {}", node.0),
            Self::Client(name) => write!(f, "client {name}"),
        }
    }
}

/// Where a node can be reached, as whoever connects writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A DNS name, in lower case.
    Dns(String),
}

impl Host {
    /// Reads `10.0.0.5`, `::1` or `queue.example.com`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse() {
            return Some(Self::Ip(ip));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // All digits at the end would be a mistyped address.
        let ends_in_digits = text.rsplit('.').next()?.bytes().all(|byte| byte.is_ascii_digit());
        let fits = text.len() <= 253 && !ends_in_digits && text.split('.').all(is_label);
        fits.then(|| Self::Dns(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Dns(name) => f.write_str(name),
        }
    }
}

/// What one certificate says. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// For whom it is; `None` for one of an authority, or of somebody else's making.
    pub name: Option<Name>,
    /// At which hosts.
    pub hosts: Vec<Host>,
    /// Its subject's common name.
    pub subject: String,
    /// Who vouches for it: the common name of the authority.
    pub issuer: String,
    /// Valid from then on.
    pub not_before: u64,
    /// Valid until then.
    pub not_after: u64,
}

impl Certificate {
    /// Reads one in DER.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        read(der).ok_or(CertificateError::Unreadable)
    }

    /// Whether it is valid at `now`, in seconds since 1970.
    pub fn check_time(&self, now: u64) -> Result<(), CertificateError> {
        if now > self.not_after {
            return Err(CertificateError::Expired { not_after: self.not_after });
        }
        if now < self.not_before {
            return Err(CertificateError::NotValidYet { not_before: self.not_before });
        }
        Ok(())
    }
}

/// Now, in seconds since 1970, as certificates count.
pub(crate) fn now() -> u64 {
    UnixTime::now().as_secs()
}

/// All certificates of a PEM text, in its order; at least one, at most 16.
pub fn pem_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if certificates.len() == FILE_CERTIFICATES_MAX {
            return Err(CertificateError::TooMany(FILE_CERTIFICATES_MAX));
        }
        certificates.push(certificate.map_err(|_| CertificateError::Unreadable)?);
    }
    if certificates.is_empty() { Err(CertificateError::Empty) } else { Ok(certificates) }
}

/// A day and a time, UTC. Source for the calendar: "chrono-compatible low-level date algorithms", H. Hinnant, 2013.
pub(crate) fn date(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

/// Bytes in DER (X.690), taken piece by piece from the front. Only definite lengths below 64 KiB.
struct Der<'a>(&'a [u8]);

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const IP_ADDRESS: u8 = 0x87;

impl<'a> Der<'a> {
    /// The next value: its tag, and what is in it.
    fn next(&mut self) -> Option<(u8, Self)> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => (usize::from(*rest.first()?), &rest[1..]),
            0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Self(value)))
    }

    /// The next value, which must have this tag.
    fn expect(&mut self, tag: u8) -> Option<Self> {
        let (found, value) = self.next()?;
        (found == tag).then_some(value)
    }

    /// The next value if it has this tag; otherwise nothing is taken.
    fn optional(&mut self, tag: u8) -> Option<Self> {
        if self.0.first() == Some(&tag) { self.expect(tag) } else { None }
    }
}

fn read(der: &[u8]) -> Option<Certificate> {
    let mut body = Der(der).expect(SEQUENCE)?.expect(SEQUENCE)?;
    body.optional(VERSION);
    body.expect(INTEGER)?;
    body.expect(SEQUENCE)?;
    let issuer = common_name(body.expect(SEQUENCE)?)?;
    let mut validity = body.expect(SEQUENCE)?;
    let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
    let subject = common_name(body.expect(SEQUENCE)?)?;
    body.expect(SEQUENCE)?;
    let mut certificate =
        Certificate { name: None, hosts: Vec::new(), subject, issuer, not_before, not_after };
    if let Some(mut extensions) = body.optional(EXTENSIONS) {
        let mut extensions = extensions.expect(SEQUENCE)?;
        while let Some((SEQUENCE, mut extension)) = extensions.next() {
            let id = extension.expect(OID)?;
            extension.optional(BOOLEAN);
            if id.0 == ALTERNATIVE_NAMES {
                alternative_names(extension.expect(OCTETS)?.expect(SEQUENCE)?, &mut certificate)?;
            }
        }
    }
    Some(certificate)
}

fn alternative_names(mut names: Der<'_>, certificate: &mut Certificate) -> Option<()> {
    while let Some((tag, value)) = names.next() {
        match tag {
            DNS_NAME => certificate.hosts.push(Host::Dns(std::str::from_utf8(value.0).ok()?.to_owned())),
            IP_ADDRESS => certificate.hosts.push(Host::Ip(ip(value.0)?)),
            URI => {
                let name = std::str::from_utf8(value.0).ok().and_then(Name::from_uri);
                // Two names would be two holders.
                if certificate.name.is_some() && name.is_some() {
                    return None;
                }
                certificate.name = certificate.name.take().or(name);
            }
            _ => {}
        }
    }
    Some(())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The common name in a distinguished name; empty without one.
fn common_name(mut name: Der<'_>) -> Option<String> {
    while let Some((SET, mut set)) = name.next() {
        let mut attribute = set.expect(SEQUENCE)?;
        if attribute.expect(OID)?.0 == COMMON_NAME {
            return std::str::from_utf8(attribute.next()?.1.0).ok().map(str::to_owned);
        }
    }
    Some(String::new())
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5), in seconds since 1970; nothing before 1970.
fn time(from: &mut Der<'_>) -> Option<u64> {
    let (tag, value) = from.next()?;
    let digits = value.0.strip_suffix(b"Z")?;
    let number = |at: usize| {
        let pair = digits.get(at..at + 2)?;
        pair.iter()
            .all(u8::is_ascii_digit)
            .then(|| i64::from(pair[0] - b'0') * 10 + i64::from(pair[1] - b'0'))
    };
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => (if number(0)? < 50 { 2000 } else { 1900 } + number(0)?, 2),
        (GENERALIZED_TIME, 14) => (number(0)? * 100 + number(2)?, 4),
        _ => return None,
    };
    let (month, day) = (number(rest)?, number(rest + 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // The inverse of `date`.
    let shifted_year = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days * 86_400 + number(rest + 4)? * 3600 + number(rest + 6)? * 60 + number(rest + 8)?;
    u64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for (uri, name) in [
            ("swarmmq:node:3", Some(Name::Node(NodeId(3)))),
            ("swarmmq:node:65535", Some(Name::Node(NodeId(65_535)))),
            ("swarmmq:client:billing-2", Some(Name::Client("billing-2".into()))),
            ("swarmmq:node:0", None),
            ("swarmmq:node:03", None),
            ("swarmmq:node:+3", None),
            ("swarmmq:node:65536", None),
            ("swarmmq:client:", None),
            ("swarmmq:client:a b", None),
            ("swarmmq:other:3", None),
            ("https://example.com", None),
        ] {
            assert_eq!(Name::from_uri(uri), name, "{uri}");
            assert!(name.is_none_or(|name| name.to_uri() == uri));
        }
        assert_eq!(Name::client(&"x".repeat(65)), Err(NameError));
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        assert_eq!(Host::parse("127.0.0.1"), Some(Host::Ip([127, 0, 0, 1].into())));
        assert!(matches!(Host::parse("::1"), Some(Host::Ip(_))));
        assert_eq!(Host::parse("Queue.Example.com"), Some(Host::Dns("queue.example.com".into())));
        for wrong in ["", "a..b", "-a", "a b", "10.0.0.256", "host:7420", "*", "a_b"] {
            assert_eq!(Host::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400 + 3_661), "2000-02-29 01:01 UTC");
        assert_eq!(date(4_102_444_799), "2099-12-31 23:59 UTC");
        let read = |tag, text: &[u8]| {
            let bytes = [&[tag, text.len() as u8], text].concat();
            time(&mut Der(&bytes))
        };
        assert_eq!(read(UTC_TIME, b"000229010100Z"), Some(951_786_060));
        assert_eq!(read(GENERALIZED_TIME, b"20991231235959Z"), Some(4_102_444_799));
        assert_eq!(read(UTC_TIME, b"700101000000Z"), Some(0));
        for (tag, wrong) in [
            (UTC_TIME, &b"691231235959Z"[..]),
            (UTC_TIME, b"001301000000Z"),
            (UTC_TIME, b"0001010000Z"),
            (GENERALIZED_TIME, b"20000101000000+"),
            (INTEGER, b"000101000000Z"),
        ] {
            assert_eq!(read(tag, wrong), None);
        }
    }

    #[test]
    fn what_is_cut_or_flipped_is_refused_and_never_panics() {
        let authority = crate::Authority::make(10).unwrap();
        let hosts = ["127.0.0.1", "localhost", "::1"].map(|host| Host::parse(host).unwrap());
        let issued = authority.issue(&Name::Node(NodeId(7)), &hosts, 5).unwrap();
        let der = pem_certificates(issued.certificate_pem.as_bytes()).unwrap().remove(0);
        let whole = Certificate::read(&der).unwrap();
        assert_eq!((whole.name, whole.hosts), (Some(Name::Node(NodeId(7))), hosts.to_vec()));
        for length in 0..der.len() {
            assert!(Certificate::read(&der[..length]).is_err(), "cut at {length}");
        }
        let mut bytes = der.to_vec();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let _read_or_refused = Certificate::read(&bytes).is_ok();
                bytes[at] ^= 1 << bit;
            }
        }
    }
}
