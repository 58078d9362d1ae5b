//! One call to OpenBao: bounded in time and size, without redirects or proxy, and without secrets in errors.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};
use http::{Method, StatusCode};
use reqwest::header::HeaderValue;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{TransitSettings, waiting};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Size limit of a response. A key with hundreds of versions is smaller.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Failure of a call, as far as the caller can act on it.
#[derive(Debug)]
pub enum BaoError {
    /// The client token is no longer valid, or its policy does not allow the call.
    Forbidden,
    /// The request itself was rejected: status and the server's message.
    Refused(StatusCode, String),
    /// No response, a sealed or overloaded server, or a response that is not understood.
    Broken(Error),
}

impl BaoError {
    pub fn into_waiting(self) -> Error {
        match self {
            Self::Forbidden => {
                waiting("OpenBao forbids the call: its policy must allow the key's sign and read")
            }
            Self::Refused(status, words) => {
                waiting(format!("OpenBao refuses the call ({status})")).source(words)
            }
            Self::Broken(error) => error,
        }
    }
}

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    address: url::Url,
    namespace: Option<HeaderValue>,
}

impl Client {
    pub fn new(settings: &TransitSettings) -> Result<Self> {
        let invalid =
            |what: &str| Error::new(ErrorCode::ConfigInvalid, format!("spec.secrets.backend.{what}"));
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(path) = &settings.ca_cert {
            let pem = std::fs::read(path).map_err(|e| invalid("tls.ca_cert cannot be read").source(e))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|e| invalid("tls.ca_cert is not PEM").source(e))?;
            if certificates.is_empty() {
                return Err(invalid("tls.ca_cert holds no certificate"));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let http = builder.build().map_err(|e| invalid("tls cannot be used").source(e))?;
        let namespace = settings
            .namespace
            .as_deref()
            .map(HeaderValue::from_str)
            .transpose()
            .map_err(|e| invalid("namespace is not valid").source(e))?;
        Ok(Self { http, address: settings.address.clone(), namespace })
    }

    /// Calls `/v1/<path>`. Each part of the path is escaped separately.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        token: Option<&Zeroizing<String>>,
        body: Option<&impl Serialize>,
    ) -> Result<T, BaoError> {
        let unreachable = |e: reqwest::Error| {
            let address = &self.address;
            BaoError::Broken(waiting(format!("OpenBao does not answer at {address}")).source(e.without_url()))
        };
        let mut url = self.address.clone();
        url.path_segments_mut()
            .map_err(|()| BaoError::Broken(waiting("OpenBao's address takes no path")))?
            .pop_if_empty()
            .push("v1")
            .extend(path);
        let mut request = self.http.request(method, url).header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token)
                .map_err(|_| BaoError::Broken(waiting("the client token is no header value")))?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(BaoError::Broken(waiting("OpenBao's answer is too large")));
            }
            bytes.extend_from_slice(&chunk);
        }
        match status {
            StatusCode::OK => serde_json::from_slice(&bytes).map_err(|e| {
                // The parser's message could repeat a token.
                let place = format!("line {}, column {}", e.line(), e.column());
                BaoError::Broken(waiting("OpenBao's answer is not understood").source(place))
            }),
            StatusCode::FORBIDDEN => Err(BaoError::Forbidden),
            StatusCode::SERVICE_UNAVAILABLE => {
                Err(BaoError::Broken(waiting("OpenBao is sealed or in maintenance (503)")))
            }
            status if status.is_client_error() => Err(BaoError::Refused(status, words(&bytes, token))),
            status => {
                let words = words(&bytes, token);
                Err(BaoError::Broken(waiting(format!("OpenBao fails ({status})")).source(words)))
            }
        }
    }
}

/// Returns the server's error messages for the log, bounded and without echoed secrets. A login sends only secrets, so
/// its messages are omitted.
fn words(body: &[u8], token: Option<&Zeroizing<String>>) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let said = serde_json::from_slice::<Errors>(body).map(|Errors { errors }| errors.join("; "));
    match (said, token) {
        (Ok(said), Some(token)) if !said.contains(token.as_str()) => aegis_types::text::shown(&said),
        (Ok(_), _) => "its words are withheld".to_owned(),
        (Err(_), _) => "it gives no reason".to_owned(),
    }
}
