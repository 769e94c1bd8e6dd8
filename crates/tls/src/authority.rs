//! The authority of a cluster: a key and the certificate that all ends trust. Makes and renews the certificates of nodes
//! and clients.
//!
//! Only `swarmmq certs` and `dev up` use it; no running node holds the authority's key.

use std::{fmt, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use zeroize::Zeroizing;

use crate::{
    Certificate, CertificateError, HOSTS_MAX, Host, Name,
    certificate::{now, pem_certificates},
    identity::verify,
};

/// Days that an authority is valid unless told otherwise: ten years.
pub const DAYS_AUTHORITY: u32 = 3_650;
/// Days that any other certificate is valid unless told otherwise.
pub const DAYS_CERTIFICATE: u32 = 365;
/// Most days that can be asked for.
pub const DAYS_MAX: u32 = 36_500;
/// Certificates are valid from a while ago: clocks of two machines differ.
const CLOCK_SKEW_SECONDS: u64 = 3_600;
const DAY_SECONDS: u64 = 86_400;
const SERIAL_BYTES: usize = 16;

/// A certificate that was made, and its key.
pub struct Issued {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM (PKCS #8). Secret.
    pub key_pem: Zeroizing<String>,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// Key and certificate that vouch for the others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    key_pem: Zeroizing<String>,
    facts: Certificate,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("subject", &self.facts.subject).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, valid for `days`.
    pub fn make(days: u32) -> Result<Self, CertificateError> {
        Self::make_at(now(), days)
    }

    pub(crate) fn make_at(now: u64, days: u32) -> Result<Self, CertificateError> {
        // Two authorities of one cluster, while one replaces the other, must not be taken for each other.
        let subject = format!("swarmmq authority {}", hex(&random::<4>()));
        let mut params = named(&subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now.saturating_sub(CLOCK_SKEW_SECONDS), now + u64::from(days) * DAY_SECONDS);
        let key = KeyPair::generate().map_err(library)?;
        let certificate_pem = params.self_signed(&key).map_err(library)?.pem();
        Self::read(&certificate_pem, &Zeroizing::new(key.serialize_pem()))
    }

    /// From its two files. Only the first certificate of `certificate_pem` counts.
    pub fn read(certificate_pem: &str, key_pem: &str) -> Result<Self, CertificateError> {
        let der = pem_certificates(certificate_pem.as_bytes())?.remove(0);
        let facts = Certificate::read(&der)?;
        let key = KeyPair::from_pem(key_pem).map_err(|_| CertificateError::NoKey)?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        let issuer = Issuer::new(named(&facts.subject), key);
        let authority = Self { issuer, certificate_pem: certificate_pem.to_owned(), key_pem, facts };
        // Whatever it signs must be believed by whoever trusts its certificate: also shows that the key belongs to it.
        let trial = authority.sign(named("trial"), &KeyPair::generate().map_err(library)?, (0, u64::MAX))?;
        match verify(&pem_certificates(trial.as_bytes())?[0], &[der], authority.facts.not_before) {
            Ok(()) => Ok(authority),
            Err(CertificateError::WrongAuthority) => Err(CertificateError::WrongKey),
            Err(error) => Err(error),
        }
    }

    /// The certificate that all ends trust, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key, PEM (PKCS #8). Secret: whoever has it can be any node.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What its certificate says.
    pub fn facts(&self) -> &Certificate {
        &self.facts
    }

    /// A new certificate and key, valid for `days`, never longer than the authority's own.
    ///
    /// * `hosts`: where a node is reached, 1 to 16; clients have none. A node's serves and dials, a client's only dials.
    pub fn issue(&self, name: &Name, hosts: &[Host], days: u32) -> Result<Issued, CertificateError> {
        let now = now();
        self.issue_between(
            name,
            hosts,
            now.saturating_sub(CLOCK_SKEW_SECONDS),
            now + u64::from(days) * DAY_SECONDS,
        )
    }

    /// One like `old`, with a new key: for the same holder, at the same hosts.
    pub fn renew(&self, old: &Certificate, days: u32) -> Result<Issued, CertificateError> {
        let name = old.name.as_ref().ok_or(CertificateError::NoName)?;
        self.issue(name, &old.hosts, days)
    }

    /// * `from`, `until`: seconds since 1970.
    pub(crate) fn issue_between(
        &self,
        name: &Name,
        hosts: &[Host],
        from: u64,
        until: u64,
    ) -> Result<Issued, CertificateError> {
        self.facts.check_time(now())?;
        let is_node = matches!(name, Name::Node(_));
        if hosts.len() > HOSTS_MAX || hosts.is_empty() == is_node {
            return Err(CertificateError::Hosts(hosts.len()));
        }
        let mut params = named(&format!("swarmmq {name}"));
        let uri = name.to_uri().try_into().map_err(library)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        for host in hosts {
            params.subject_alt_names.push(match host {
                Host::Ip(ip) => SanType::IpAddress(*ip),
                Host::Dns(name) => SanType::DnsName(name.clone().try_into().map_err(library)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if is_node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate().map_err(library)?;
        let certificate_pem = self.sign(params, &key, (from, until))?;
        Ok(Issued { certificate_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &KeyPair,
        (from, until): (u64, u64),
    ) -> Result<String, CertificateError> {
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, from, until.min(self.facts.not_after));
        Ok(params.signed_by(key, &self.issuer).map_err(library)?.pem())
    }
}

fn named(subject: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    // At most 20 octets and positive (RFC 5280, 4.1.2.2); random, so that no two are equal.
    let mut serial: [u8; SERIAL_BYTES] = random();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

fn library(error: rcgen::Error) -> CertificateError {
    CertificateError::Library(error.to_string())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmmq_protocol::id::NodeId;

    const NODE: Name = Name::Node(NodeId(3));

    fn hosts() -> Vec<Host> {
        ["127.0.0.1", "localhost"].iter().filter_map(|host| Host::parse(host)).collect()
    }

    fn facts(pem: &str) -> Certificate {
        Certificate::read(&pem_certificates(pem.as_bytes()).unwrap()[0]).unwrap()
    }

    #[test]
    fn a_certificate_says_for_whom_where_and_until_when() {
        let authority = Authority::make(30).unwrap();
        let issued = authority.issue(&NODE, &hosts(), 10).unwrap();
        let facts = facts(&issued.certificate_pem);
        assert_eq!((facts.name, facts.hosts), (Some(NODE), hosts()));
        assert_eq!((facts.subject.as_str(), &facts.issuer), ("swarmmq node 3", &authority.facts().subject));
        let days = (facts.not_after - facts.not_before) as f64 / DAY_SECONDS as f64;
        assert!((10.0..10.1).contains(&days), "{days}");
    }

    #[test]
    fn nothing_is_valid_longer_than_its_authority() {
        let authority = Authority::make(5).unwrap();
        let issued = authority.issue(&NODE, &hosts(), 365).unwrap();
        assert_eq!(facts(&issued.certificate_pem).not_after, authority.facts().not_after);
    }

    #[test]
    fn an_authority_is_its_two_files() {
        let authority = Authority::make(5).unwrap();
        let again = Authority::read(authority.certificate_pem(), authority.key_pem()).unwrap();
        assert_eq!(again.facts(), authority.facts());
        let other = Authority::make(5).unwrap();
        let read = |certificate: &str, key: &str| Authority::read(certificate, key).unwrap_err();
        assert_eq!(read(authority.certificate_pem(), other.key_pem()), CertificateError::WrongKey);
        assert_eq!(read(authority.certificate_pem(), "nothing"), CertificateError::NoKey);
        assert_eq!(read("nothing", authority.key_pem()), CertificateError::Empty);
        assert!(!format!("{authority:?}{:?}", authority.issue(&NODE, &hosts(), 1)).contains("KEY"));
    }

    #[test]
    fn one_that_expired_vouches_for_nobody() {
        let old = Authority::make_at(now() - 10 * DAY_SECONDS, 5).unwrap();
        let error = old.issue(&NODE, &hosts(), 1).unwrap_err();
        assert!(matches!(error, CertificateError::Expired { .. }), "{error}");
    }

    #[test]
    fn what_is_renewed_is_for_the_same_holder_with_another_key() {
        let authority = Authority::make(30).unwrap();
        for (name, hosts) in [(NODE, hosts()), (Name::client("billing").unwrap(), Vec::new())] {
            let first = authority.issue(&name, &hosts, 1).unwrap();
            let old = facts(&first.certificate_pem);
            let renewed = authority.renew(&old, 20).unwrap();
            let new = facts(&renewed.certificate_pem);
            assert_eq!((&new.name, &new.hosts, &new.subject), (&old.name, &old.hosts, &old.subject));
            assert!(new.not_after > old.not_after && *renewed.key_pem != *first.key_pem);
        }
        let error = authority.renew(authority.facts(), 1).unwrap_err();
        assert_eq!(error, CertificateError::NoName);
    }

    #[test]
    fn a_node_has_hosts_and_a_client_none() {
        let authority = Authority::make(30).unwrap();
        let many = vec![Host::Dns("a".into()); HOSTS_MAX + 1];
        for (name, hosts) in [(NODE, Vec::new()), (NODE, many), (Name::Client("a".into()), hosts())] {
            assert_eq!(authority.issue(&name, &hosts, 1).unwrap_err(), CertificateError::Hosts(hosts.len()));
        }
    }
}
