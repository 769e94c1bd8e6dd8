//! From files to the two ends of a connection: what a node shows and whom it lets in, and whom a client believes.
//!
//! TLS 1.3 only, no resumption, no early data: every connection proves itself anew. A node shows one certificate at both
//! of its ports and when it dials. At its peer port, and when it dials another node, only nodes are let in; at its
//! client port a certificate may be shown, and then it counts. Clients check the host that they dialled; nodes do not,
//! because their certificates name them (docs/decisions/0013-tls.md).

use std::{fmt, fs::File, io::Read, net::IpAddr, path::Path, sync::Arc};

use rustls::{
    CertificateError as Refused, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, UnbufferedClientConnection, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{
        NoServerSessionStorage, ParsedCertificate, UnbufferedServerConnection, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use zeroize::Zeroizing;

use crate::{
    Certificate, CertificateError, Host, Name, Stream, TlsError,
    certificate::{now, pem_certificates},
};

/// Largest file of certificates or keys, in bytes.
const FILE_BYTES_MAX: usize = 64 << 10;
/// What is spoken inside (RFC 7301): a client that reached a peer port, or the other way round, is told so.
const ALPN_CLIENTS: &[u8] = b"swarmmq";
const ALPN_NODES: &[u8] = b"swarmmq-peer";

/// A certificate with its key, and the authorities that are trusted beside it.
#[derive(Clone)]
pub struct Identity {
    name: Name,
    facts: Certificate,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the three files and checks that they belong together, and that the certificate is valid now.
    ///
    /// * `authorities`: may hold several, while one replaces another.
    pub fn load(certificate: &Path, key: &Path, authorities: &Path) -> Result<Self, CertificateError> {
        let roots = read(authorities)?;
        Self::load_for(certificate, key, &roots).map_err(|error| match error {
            CertificateError::NoAuthority => error.of(authorities),
            error => error,
        })
    }

    /// The same where the authorities are at hand, in PEM.
    pub fn load_for(certificate: &Path, key: &Path, authorities: &[u8]) -> Result<Self, CertificateError> {
        let (chain, secret) = (read(certificate)?, read(key)?);
        Self::from_pem(&chain, &secret, authorities).map_err(|error| match error {
            CertificateError::NoKey | CertificateError::WrongKey => error.of(key),
            CertificateError::NoAuthority => error,
            error => error.of(certificate),
        })
    }

    /// The same from their contents.
    pub fn from_pem(certificate: &[u8], key: &[u8], authorities: &[u8]) -> Result<Self, CertificateError> {
        let chain = pem_certificates(certificate)?;
        let facts = Certificate::read(&chain[0])?;
        let name = verified_name(&chain[0]).ok_or(CertificateError::NoName)?;
        let authorities = pem_certificates(authorities).map_err(|_| CertificateError::NoAuthority)?;
        let roots = Arc::new(roots(&authorities)?);
        let secret = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::NoKey)?;
        let key = provider().key_provider.load_private_key(secret).map_err(|_| CertificateError::NoKey)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| CertificateError::WrongKey)?;
        facts.check_time(now())?;
        verify(&key.cert[0], &authorities, now())?;
        Ok(Self { name, facts, key: Arc::new(key), roots })
    }

    /// Whose it is.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What its certificate says.
    pub fn facts(&self) -> &Certificate {
        &self.facts
    }

    /// Whether clients that dial `ip` will believe it.
    pub fn is_at(&self, ip: IpAddr) -> bool {
        self.facts.hosts.contains(&Host::Ip(ip))
    }

    /// For the client port.
    pub fn clients(&self) -> Result<Acceptor, CertificateError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider());
        let verifier = verifier.allow_unauthenticated().build().map_err(library)?;
        self.acceptor(verifier, ALPN_CLIENTS)
    }

    /// For the peer port: whoever connects shows the certificate of a node, or is turned away.
    pub fn peers(&self) -> Result<Acceptor, CertificateError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider());
        self.acceptor(verifier.build().map_err(library)?, ALPN_NODES)
    }

    /// For connections to other nodes.
    pub fn dialler(&self) -> Result<Dialler, CertificateError> {
        let verifier = NodesOnly { roots: Arc::clone(&self.roots), provider: provider() };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(library)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config =
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.enable_sni = false;
        Ok(Dialler(Arc::new(plain(config, ALPN_NODES))))
    }

    fn acceptor(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
        alpn: &[u8],
    ) -> Result<Acceptor, CertificateError> {
        acceptor(provider(), Arc::clone(&self.key), verifier, alpn)
    }
}

fn acceptor(
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    verifier: Arc<dyn ClientCertVerifier>,
    alpn: &[u8],
) -> Result<Acceptor, CertificateError> {
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(library)?
        .with_client_cert_verifier(verifier);
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Acceptor(Arc::new(config)))
}

/// Begins sessions on connections that were accepted.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<ServerConfig>);

impl Acceptor {
    /// Around a socket that was accepted and has not been read from.
    pub fn accept<S>(&self, socket: S) -> Result<Stream<S>, TlsError> {
        Ok(Stream::server(socket, UnbufferedServerConnection::new(Arc::clone(&self.0))?))
    }
}

/// Begins sessions with other nodes.
#[derive(Clone, Debug)]
pub struct Dialler(Arc<ClientConfig>);

impl Dialler {
    /// Around a socket that is connected to `ip`, or about to be.
    pub fn dial<S>(&self, socket: S, ip: IpAddr) -> Result<Stream<S>, TlsError> {
        let session = UnbufferedClientConnection::new(Arc::clone(&self.0), ServerName::IpAddress(ip.into()))?;
        Ok(Stream::client(socket, session))
    }
}

/// Begins sessions of clients: whom they believe.
#[derive(Clone, Debug)]
pub struct Connector(Arc<ClientConfig>);

impl Connector {
    /// Trusts these authorities, in PEM.
    ///
    /// * `identity`: shown to nodes that ask; without it the client stays without a name.
    pub fn new(authorities: &[u8], identity: Option<&Identity>) -> Result<Self, CertificateError> {
        let roots = Arc::new(roots(&pem_certificates(authorities)?)?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(library)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(library)?
            .with_webpki_verifier(verifier);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = SingleCertAndKey::from(Arc::clone(&identity.key));
                builder.with_client_cert_resolver(Arc::new(key))
            }
        };
        Ok(Self(Arc::new(plain(config, ALPN_CLIENTS))))
    }

    /// Around a socket that is connected to `host`, an address or a DNS name without a port.
    pub fn connect<S>(&self, socket: S, host: &str) -> Result<Stream<S>, TlsError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::BadHost(host.to_owned()))?;
        Ok(Stream::client(socket, UnbufferedClientConnection::new(Arc::clone(&self.0), name)?))
    }
}

fn plain(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// What this build speaks. AES first: it has instructions of its own everywhere that matters.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

fn roots(authorities: &[CertificateDer<'_>]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone().into_owned()).map_err(|_| CertificateError::NoAuthority)?;
    }
    Ok(roots)
}

/// Whether one of these authorities vouches for a certificate, and whether it is valid at `at`, in seconds since 1970.
pub(crate) fn verify(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'_>],
    at: u64,
) -> Result<(), CertificateError> {
    let anchors: Result<Vec<_>, _> = authorities.iter().map(webpki::anchor_from_trusted_cert).collect();
    let anchors = anchors.map_err(|_| CertificateError::NoAuthority)?;
    let end = webpki::EndEntityCert::try_from(certificate).map_err(|_| CertificateError::Unreadable)?;
    let algorithms = provider().signature_verification_algorithms;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
    let usage = webpki::KeyUsage::client_auth();
    match end.verify_for_usage(algorithms.all, &anchors, &[], time, usage, None, None) {
        Ok(_) => Ok(()),
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            Err(CertificateError::Expired { not_after: not_after.as_secs() })
        }
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => {
            Err(CertificateError::NotValidYet { not_before: not_before.as_secs() })
        }
        Err(_) => Err(CertificateError::WrongAuthority),
    }
}

/// For whom a certificate is, read by the library that also verifies it. Two names are none.
pub(crate) fn verified_name(certificate: &CertificateDer<'_>) -> Option<Name> {
    let end = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = end.valid_uri_names().filter_map(Name::from_uri);
    let name = names.next()?;
    names.next().is_none().then_some(name)
}

/// Believes every node of the cluster, at whatever address: which one it is says its certificate, and whoever dialled
/// compares that with what the node says of itself.
#[derive(Debug)]
struct NodesOnly {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NodesOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        match verified_name(end_entity) {
            Some(Name::Node(_)) => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(Refused::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Only TLS 1.3 is configured: nobody comes here.
        Err(Error::InvalidCertificate(Refused::ApplicationVerificationFailure))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn library(error: impl fmt::Display) -> CertificateError {
    CertificateError::Library(error.to_string())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
    let unreadable = |error: std::io::Error| CertificateError::File { path: path.into(), kind: error.kind() };
    // Read into its final buffer: a growing one would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX { Err(CertificateError::TooLarge.of(path)) } else { Ok(bytes) }
}

/// A server that no identity would be made for: nobody checked its certificate.
#[cfg(test)]
pub(crate) fn serving(authority: &crate::Authority, issued: &crate::Issued) -> Acceptor {
    acceptor(provider(), unchecked(issued), clients_of(authority), ALPN_CLIENTS).unwrap()
}

#[cfg(test)]
fn unchecked(issued: &crate::Issued) -> Arc<CertifiedKey> {
    let secret = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let chain = pem_certificates(issued.certificate_pem.as_bytes()).unwrap();
    Arc::new(CertifiedKey::new(chain, provider().key_provider.load_private_key(secret).unwrap()))
}

#[cfg(test)]
fn clients_of(authority: &crate::Authority) -> Arc<dyn ClientCertVerifier> {
    let roots = roots(&pem_certificates(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    verifier.allow_unauthenticated().build().unwrap()
}

/// Speaks as nodes do and shows nothing.
#[cfg(test)]
pub(crate) fn nameless(authority: &crate::Authority) -> Dialler {
    let roots = roots(&pem_certificates(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Dialler(Arc::new(plain(config, ALPN_NODES)))
}

/// A client and a server whose keys are used up after so many records.
#[cfg(test)]
pub(crate) fn with_short_lived_keys(authority: &crate::Authority, records: u64) -> (Connector, Acceptor) {
    use rustls::{SupportedCipherSuite, Tls13CipherSuite, crypto::CipherSuiteCommon};

    let SupportedCipherSuite::Tls13(suite) = aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
    let common = CipherSuiteCommon { confidentiality_limit: records, ..suite.common };
    let short = Tls13CipherSuite { common, ..*suite };
    let mut provider = CryptoProvider::clone(&provider());
    // Lives as long as the process of the test.
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(short)))];
    let provider = Arc::new(provider);
    let hosts = [Host::Ip([127, 0, 0, 1].into())];
    let name = Name::Node(swarmmq_protocol::id::NodeId(1));
    let key = unchecked(&authority.issue(&name, &hosts, 10).unwrap());
    let acceptor = acceptor(Arc::clone(&provider), key, clients_of(authority), ALPN_CLIENTS).unwrap();
    let roots = roots(&pem_certificates(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    (Connector(Arc::new(plain(config, ALPN_CLIENTS))), acceptor)
}
