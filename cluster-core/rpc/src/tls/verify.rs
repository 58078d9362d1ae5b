//! Verifies the server that a node dials.

use std::sync::Arc;

use aegis_identity::CertificateFacts;
use aegis_types::ids::NodeId;
use rustls::{
    CertificateError, DigitallySignedStruct, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{Trust, provider};

/// Expected identity of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The owner of the name or address that was dialled.
    Host,
    /// This node at any address: its exact id is among the DNS names.
    Node(NodeId),
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub trust: Arc<Trust>,
    pub expect: Expect,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.verify_server(end_entity, intermediates, now)?;
        match &self.expect {
            Expect::Host => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?,
            // Not by the rules of host names, which allow wildcards and reject ids that consist of digits.
            Expect::Node(node_id) => {
                let facts = CertificateFacts::of(end_entity).map_err(|_| CertificateError::BadEncoding)?;
                if !facts.dns_names.iter().any(|name| name == node_id.as_str()) {
                    return Err(CertificateError::NotValidForName.into());
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
