//! TLS to the server, with the meaning that libpq gives to `sslmode`.
//!
//! The certificates are read when a handshake asks for them and forgotten right
//! after: a kept list of the system's authorities would be the largest thing in
//! our memory, and a certificate that was renewed on disk is used without a restart.
//!
//! What must never happen here: a mode that checks less than its name says, and a
//! key or certificate in a message.

use crate::config::{Postgres, SslMode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How much of the server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Nothing.
    Nothing,
    /// An authority we trust signed it.
    Chain,
    /// The same, and it names the host.
    ChainAndName,
}

/// `require` checks the chain as soon as there is something to check it with: what libpq does.
fn check_of(mode: SslMode, has_root: bool) -> Check {
    match mode {
        SslMode::Disable | SslMode::Prefer => Check::Nothing,
        SslMode::Require if has_root => Check::Chain,
        SslMode::Require => Check::Nothing,
        SslMode::VerifyCa => Check::Chain,
        SslMode::VerifyFull => Check::ChainAndName,
    }
}

/// What a connection with TLS is made with.
///
/// # Errors
/// Our own certificate or key cannot be read; the message names the file.
pub(super) fn connector(pg: &Postgres) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(ring::default_provider());
    let signer = provider.key_provider;
    let check = check_of(pg.sslmode, pg.sslrootcert.is_some());
    if let (Check::Chain | Check::ChainAndName, Some(root)) = (check, &pg.sslrootcert) {
        // An unreadable file is told better here than in the middle of a handshake.
        certificates(root)?;
    }
    let verifier = Verifier { check, root: pg.sslrootcert.clone(), provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("cannot set up TLS: {e}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&pg.sslcert, &pg.sslkey) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let secret =
                PrivateKeyDer::from_pem_file(key).map_err(|e| format!("cannot read sslkey {}: {e}", key.display()))?;
            let secret =
                signer.load_private_key(secret).map_err(|e| format!("cannot use sslkey {}: {e}", key.display()))?;
            // Not checked against each other here: the library's check refuses certificates of
            // X.509 version 1, which `openssl x509 -req` makes and servers accept.
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, secret))))
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err("sslcert needs sslkey beside it".into()),
        (None, Some(_)) => return Err("sslkey needs sslcert beside it".into()),
    };
    // One connection for days: a cache of sessions would only cost memory.
    config.resumption = Resumption::disabled();
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(list) if list.is_empty() => Err(format!("cannot use {}: no certificate in it", path.display())),
        Ok(list) => Ok(list),
        Err(e) => Err(format!("cannot read certificates from {}: {e}", path.display())),
    }
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    root: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        match &self.root {
            Some(path) => certificates(path).map_err(plain),
            None => {
                let found = rustls_native_certs::load_native_certs();
                match (found.certs.is_empty(), found.errors.first()) {
                    (false, _) => Ok(found.certs),
                    (true, Some(e)) => Err(plain(format!("cannot read the system's authorities: {e}"))),
                    (true, None) => Err(plain("cannot find the system's authorities; set sslrootcert".into())),
                }
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let cert = ParsedCertificate::try_from(end_entity)?;
        let authorities = self.authorities()?;
        // A self-signed certificate that is given as the authority itself is common with
        // PostgreSQL; the chain builder refuses an authority as a server, so compare it whole.
        let pinned = self.root.is_some() && authorities.iter().any(|a| a.as_ref() == end_entity.as_ref());
        if !pinned {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(authorities);
            verify_server_cert_signed_by_trust_anchor(
                &cert,
                &roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&cert, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
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

/// A message of ours, carried through the library.
fn plain(text: String) -> Error {
    Error::Other(OtherError(Arc::new(Plain(text))))
}

#[derive(Debug)]
struct Plain(String);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Plain {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_checks_what_libpq_checks() {
        assert_eq!(check_of(SslMode::Prefer, true), Check::Nothing);
        assert_eq!(check_of(SslMode::Require, false), Check::Nothing);
        assert_eq!(check_of(SslMode::Require, true), Check::Chain);
        assert_eq!(check_of(SslMode::VerifyCa, false), Check::Chain);
        assert_eq!(check_of(SslMode::VerifyFull, false), Check::ChainAndName);
    }
}
