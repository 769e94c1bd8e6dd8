//! Certificates, and TLS 1.3 around a socket: the one place that knows either.
//!
//! `authority` makes and renews certificates, `certificate` reads what one says, `identity` turns files into what the
//! ports of a node and a client need, `stream` is a session over a socket that never blocks. Who may do what, and when to
//! connect, is decided elsewhere (docs/decisions/0013-tls.md).

mod authority;
mod certificate;
mod error;
mod identity;
mod stream;
#[cfg(test)]
mod stream_tests;

pub use self::{
    authority::{Authority, DAYS_AUTHORITY, DAYS_CERTIFICATE, DAYS_MAX, Issued},
    certificate::{Certificate, HOSTS_MAX, Host, Name, NameError, pem_certificates},
    error::{CertificateError, TlsError},
    identity::{Acceptor, Connector, Dialler, Identity},
    stream::Stream,
};
