//! Trust of a node: CA certificates, and the fingerprint of one for the first contact.

use std::sync::Arc;

use aegis_identity::{CertificateFacts, Fingerprint};
use aegis_types::error::{Error, ErrorCode, Result};
use rustls::{
    CertificateError, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{CHAIN_MAX, provider};

/// Maximum number of CAs in one bundle. A rotation has two.
const AUTHORITIES_MAX: usize = 32;

#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    /// Certificates in `roots`, in order, to detect changes.
    authorities: Vec<CertificateDer<'static>>,
    pinned: Option<Fingerprint>,
}

impl Trust {
    /// Trusts only a peer that shows a CA with this fingerprint; no peer if `pinned` is `None`.
    pub fn pinned(pinned: Option<Fingerprint>) -> Self {
        Self { roots: Arc::new(RootCertStore::empty()), authorities: Vec::new(), pinned }
    }

    /// Trusts the CAs of a PEM bundle, all of which must be readable.
    pub fn of_pem(bundle: &[u8], pinned: Option<Fingerprint>) -> Result<Self> {
        let refused = |why: String| {
            Error::new(ErrorCode::ConfigInvalid, format!("the CA bundle {why}"))
                .remedy("it holds one or more CA certificates in PEM")
        };
        let authorities = CertificateDer::pem_slice_iter(bundle)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| refused("cannot be read".into()).source(e))?;
        if authorities.is_empty() || authorities.len() > AUTHORITIES_MAX {
            return Err(refused(format!("holds {} certificates", authorities.len())));
        }
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            if !CertificateFacts::of(authority)?.is_ca {
                return Err(refused("holds a certificate that is not a CA's".into()));
            }
            roots
                .add(authority.clone())
                .map_err(|e| refused("holds a certificate that cannot be used".into()).source(e))?;
        }
        Ok(Self { roots: Arc::new(roots), authorities, pinned })
    }

    pub fn same_as(&self, other: &Self) -> bool {
        self.authorities == other.authorities && self.pinned == other.pinned
    }

    /// Returns the verifier of client certificates. `None` while no CA is known, so that no client is accepted.
    pub(super) fn client_verifier(&self, optional: bool) -> Option<Arc<dyn ClientCertVerifier>> {
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider());
        // No CA names are sent: they would tell unknown callers whom this node trusts.
        let builder = builder.clear_root_hint_subjects();
        let builder = if optional { builder.allow_unauthenticated() } else { builder };
        builder.build().ok()
    }

    /// Verifies that a server's chain ends in a trusted CA. Does not check names.
    pub(super) fn verify_server(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        if intermediates.len() >= CHAIN_MAX {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let judge = |roots: &RootCertStore| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
        };
        let known = judge(&self.roots);
        let Some(pinned) = self.pinned.filter(|_| known.is_err()) else { return known };
        let shown = intermediates.iter().find(|shown| Fingerprint::of(shown) == pinned);
        match shown {
            Some(shown) if CertificateFacts::of(shown).is_ok_and(|facts| facts.is_ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(shown.clone().into_owned())?;
                judge(&roots)
            }
            _ => known,
        }
    }

    /// Verifies that a client's chain ends in a trusted CA.
    pub(super) fn verify_client(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        let verifier = self.client_verifier(false).ok_or(CertificateError::UnknownIssuer)?;
        verifier.verify_client_cert(end_entity, intermediates, now).map(|_| ())
    }
}
