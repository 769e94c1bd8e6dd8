//! How making certificates and speaking TLS can go wrong, each with who is to blame and what to do.

use std::{fmt, io, path::PathBuf};

use rustls::{AlertDescription, CertificateError as Certificate, Error, InvalidMessage, PeerIncompatible};

use crate::certificate::date;

/// Why a certificate cannot be made, read or used. Nothing changed. Blame: whoever keeps the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// The file cannot be read.
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        kind: io::ErrorKind,
    },
    /// This file is wrong.
    In {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<CertificateError>,
    },
    /// Not a certificate, or not one of ours.
    Unreadable,
    /// There is no certificate in it.
    Empty,
    /// More certificates than a file may hold.
    TooMany(usize),
    /// Larger than any such file; the rest was not read.
    TooLarge,
    /// Not a private key in PEM.
    NoKey,
    /// The private key belongs to another certificate.
    WrongKey,
    /// The certificate is not from any authority of the `ca` file.
    WrongAuthority,
    /// It was valid until then, in seconds since 1970.
    Expired {
        /// Until when.
        not_after: u64,
    },
    /// It is valid from then on, in seconds since 1970.
    NotValidYet {
        /// From when.
        not_before: u64,
    },
    /// It says for no node and no client that it is theirs.
    NoName,
    /// It is no authority's.
    NoAuthority,
    /// No host was named for a node, or too many.
    Hosts(usize),
    /// The library refuses, which no input of ours should bring about.
    Library(String),
}

impl CertificateError {
    /// The same, of this file.
    pub(crate) fn of(self, path: impl Into<PathBuf>) -> Self {
        Self::In { path: path.into(), error: Box::new(self) }
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::In { error, .. } => error.hint(),
            Self::File { .. } => {
                "check the path and its permissions; `swarmmq certs issue` makes these files"
            }
            Self::Unreadable
            | Self::Empty
            | Self::NoKey
            | Self::TooLarge
            | Self::NoName
            | Self::NoAuthority => "use the files that `swarmmq certs` wrote: ca.pem, node-N.pem, node-N.key",
            Self::TooMany(_) => "leave only the authorities that are in use",
            Self::WrongKey => {
                "the certificate and its key are made together: use both of one `swarmmq certs issue`"
            }
            Self::WrongAuthority => "issue it with the key of this authority, or name the authority's ca.pem",
            Self::Expired { .. } => "renew it: `swarmmq certs renew --ca DIR FILE`",
            Self::NotValidYet { .. } => "set the clock of this machine right, or wait",
            Self::Hosts(_) => {
                "name every host at which the node is reached, at most 16: --hosts 10.0.0.5,queue.example.com"
            }
            Self::Library(_) => "try again; if it fails again, report it",
        }
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, kind } => write!(f, "cannot read {}: {kind}", path.display()),
            Self::In { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Unreadable => f.write_str("this is no certificate that swarmmq made"),
            Self::Empty => f.write_str("there is no certificate in it"),
            Self::TooMany(most) => write!(f, "more than {most} certificates"),
            Self::TooLarge => f.write_str("far larger than any such file"),
            Self::NoKey => f.write_str("there is no private key in it"),
            Self::WrongKey => f.write_str("the private key does not belong to the certificate"),
            Self::WrongAuthority => f.write_str("the certificate is not from this authority"),
            Self::Expired { not_after } => write!(f, "the certificate expired at {}", date(*not_after)),
            Self::NotValidYet { not_before } => {
                write!(f, "the certificate is valid from {} on, which has not come", date(*not_before))
            }
            Self::NoName => f.write_str("the certificate is for no node and no client"),
            Self::NoAuthority => f.write_str("the certificate is not one of an authority"),
            Self::Hosts(0) => {
                f.write_str("the certificate of a node must name the hosts at which it is reached")
            }
            Self::Hosts(count) => write!(f, "{count} hosts are too many for one certificate"),
            Self::Library(error) => write!(f, "the certificate cannot be made: {error}"),
        }
    }
}

impl std::error::Error for CertificateError {}

/// Why two ends do not speak TLS with each other. Nothing was exchanged but the attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsError {
    /// The other end's certificate was valid until then, in seconds since 1970.
    Expired {
        /// Until when, if it says so.
        not_after: Option<u64>,
    },
    /// The other end's certificate is valid from then on, in seconds since 1970.
    NotValidYet {
        /// From when, if it says so.
        not_before: Option<u64>,
    },
    /// The other end's certificate is for other hosts than the one that was dialled.
    WrongHost {
        /// What was dialled.
        host: String,
        /// For what it is, as the library writes it.
        presented: Vec<String>,
    },
    /// No authority known here vouches for the other end's certificate.
    UnknownAuthority,
    /// The other end's certificate is not for what it is used for: a client's cannot serve, an authority's neither.
    WrongUse,
    /// The other end showed no certificate, and must.
    NoCertificate,
    /// The other end does not take this end's certificate, or has none of its own for this end.
    Refused(Refusal),
    /// The other end does not speak TLS.
    PlainText,
    /// The other end speaks TLS, and this one was told to speak plain text.
    SpeaksTls,
    /// The other end does not speak TLS 1.3.
    OldVersion,
    /// Something else listens there: another port, or another product.
    OtherProtocol,
    /// More bytes than a stranger may send.
    TooMuch,
    /// The name of the server is neither an address nor a DNS name.
    BadHost(String),
    /// The bytes that came are no TLS, or were changed on their way.
    Broken(String),
}

/// What the other end has against this end's certificate, as far as its alert tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No authority known there vouches for it.
    UnknownAuthority,
    /// It has expired.
    Expired,
    /// There was none.
    Missing,
    /// Something else.
    Other,
}

impl TlsError {
    /// A short name, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired",
            Self::NotValidYet { .. } => "not_valid_yet",
            Self::WrongHost { .. } => "wrong_host",
            Self::UnknownAuthority => "unknown_authority",
            Self::WrongUse => "wrong_use",
            Self::NoCertificate => "no_certificate",
            Self::Refused(_) => "refused",
            Self::PlainText => "plain_text",
            Self::SpeaksTls => "speaks_tls",
            Self::OldVersion => "old_version",
            Self::OtherProtocol => "other_protocol",
            Self::TooMuch => "too_much",
            Self::BadHost(_) => "bad_host",
            Self::Broken(_) => "broken",
        }
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Expired { .. } => {
                "renew the other end's certificate: `swarmmq certs renew --ca DIR FILE`; it is taken while the node runs"
            }
            Self::NotValidYet { .. } => "set the clocks of both machines right",
            Self::WrongHost { .. } => {
                "connect to a host that is in the certificate (`swarmmq certs show FILE`), or issue one with this host in --hosts"
            }
            Self::UnknownAuthority => {
                "use the authority of this cluster: `swarmmq keys trust --keyring FILE --ca ca.pem` for clients, `[tls] ca` for nodes"
            }
            Self::WrongUse => "give the node a certificate made with `swarmmq certs issue --node N`",
            Self::NoCertificate => {
                "nodes need a certificate: `[tls]` in node.toml; clients connect to the client port"
            }
            Self::Refused(_) => {
                "give this end a certificate of the cluster's authority that is still valid: `swarmmq certs issue`"
            }
            Self::PlainText => {
                "give both ends certificates, or let both say insecure_plaintext, which works on loopback only"
            }
            Self::SpeaksTls => {
                "`swarmmq keys trust --keyring FILE --ca ca.pem` makes this keyring one for TLS"
            }
            Self::OldVersion => "use a version of swarmmq, or of another client, that speaks TLS 1.3",
            Self::OtherProtocol => "check the port: clients use a node's client port, nodes its peer port",
            Self::TooMuch => "whoever connects there sends too much before it has proven who it is",
            Self::BadHost(_) => "write HOST:PORT, with an address or a DNS name",
            Self::Broken(_) => "look for a proxy between both ends; if it comes back, report it",
        }
    }

    /// The failure behind an error of a [`crate::Stream`], if it is one of TLS.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { not_after: Some(at) } => {
                write!(f, "the certificate of the other end expired at {}", date(*at))
            }
            Self::Expired { not_after: None } => f.write_str("the certificate of the other end has expired"),
            Self::NotValidYet { not_before: Some(at) } => {
                write!(
                    f,
                    "the certificate of the other end is valid from {} on, which has not come here",
                    date(*at)
                )
            }
            Self::NotValidYet { not_before: None } => {
                f.write_str("the certificate of the other end is not valid yet")
            }
            Self::WrongHost { host, presented } => {
                write!(
                    f,
                    "the certificate of the other end is not for {host} but for {}",
                    presented.join(", ")
                )
            }
            Self::UnknownAuthority => {
                f.write_str("the certificate of the other end is from an authority that is not trusted here")
            }
            Self::WrongUse => f.write_str("the certificate of the other end is not a node's"),
            Self::NoCertificate => f.write_str("the other end showed no certificate"),
            Self::Refused(refusal) => {
                let why = match refusal {
                    Refusal::UnknownAuthority => "it does not trust its authority",
                    Refusal::Expired => "it has expired",
                    Refusal::Missing => "there was none",
                    Refusal::Other => "it does not say why",
                };
                write!(f, "the other end refused the certificate of this one: {why}")
            }
            Self::PlainText => f.write_str("the other end speaks plain text and not TLS"),
            Self::SpeaksTls => {
                f.write_str("the other end speaks TLS, and the keyring says insecure_plaintext")
            }
            Self::OldVersion => f.write_str("the other end does not speak TLS 1.3"),
            Self::OtherProtocol => f.write_str("the other end speaks TLS, but not this protocol"),
            Self::TooMuch => f.write_str("the other end sent too much before it had proven who it is"),
            Self::BadHost(host) => write!(f, "{host:?} is neither an address nor a DNS name"),
            Self::Broken(what) => write!(f, "the TLS session broke: {what}"),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(certificate) => of_certificate(&certificate),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::NoApplicationProtocol => Self::OtherProtocol,
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::PlainText,
            Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Self::Refused(Refusal::Other)
            }
            Error::PeerIncompatible(_) => Self::OldVersion,
            Error::AlertReceived(alert) => match alert {
                AlertDescription::UnknownCA => Self::Refused(Refusal::UnknownAuthority),
                AlertDescription::CertificateExpired => Self::Refused(Refusal::Expired),
                AlertDescription::CertificateRequired => Self::Refused(Refusal::Missing),
                AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied => Self::Refused(Refusal::Other),
                AlertDescription::NoApplicationProtocol => Self::OtherProtocol,
                AlertDescription::ProtocolVersion => Self::OldVersion,
                other => Self::Broken(format!("the other end said {other:?}")),
            },
            other => Self::Broken(other.to_string()),
        }
    }
}

fn of_certificate(error: &Certificate) -> TlsError {
    match error {
        Certificate::Expired => TlsError::Expired { not_after: None },
        Certificate::ExpiredContext { not_after, .. } => {
            TlsError::Expired { not_after: Some(not_after.as_secs()) }
        }
        Certificate::NotValidYet => TlsError::NotValidYet { not_before: None },
        Certificate::NotValidYetContext { not_before, .. } => {
            TlsError::NotValidYet { not_before: Some(not_before.as_secs()) }
        }
        Certificate::NotValidForName => {
            TlsError::WrongHost { host: "this host".into(), presented: Vec::new() }
        }
        Certificate::NotValidForNameContext { expected, presented } => {
            TlsError::WrongHost { host: expected.to_str().into_owned(), presented: presented.clone() }
        }
        // A certificate whose alleged authority has another key is from another authority of the same name.
        Certificate::UnknownIssuer | Certificate::BadSignature => TlsError::UnknownAuthority,
        Certificate::InvalidPurpose
        | Certificate::InvalidPurposeContext { .. }
        | Certificate::ApplicationVerificationFailure => TlsError::WrongUse,
        other => TlsError::Broken(other.to_string()),
    }
}
