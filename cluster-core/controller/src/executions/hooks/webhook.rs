//! The request of a webhook, signed as the Standard Webhooks specification (version 1.0.0) has it.

use std::time::Duration;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    secret::Secret,
};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{StatusCode, Url, header::CONTENT_TYPE};

/// A receiver notes the message and answers; it does its work afterwards.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Marks a secret that is written in base 64.
const ENCODED_SECRET: &str = "whsec_";

/// One message. Its id is the same in every try, so that a receiver can drop repetitions.
#[derive(Debug)]
pub(super) struct Message {
    pub id: String,
    pub now_ms: i64,
    pub body: Vec<u8>,
}

pub(super) fn client() -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("aegis/", env!("CARGO_PKG_VERSION")));
    builder.build().map_err(|e| Error::internal("the client of webhooks cannot be made").source(e))
}

/// Sends a message. Any answer of the 2xx class means that it was taken.
///
/// # Errors
///
/// The receiver cannot be reached or answers otherwise. Errors do not name the address, which may hold a token.
pub(super) async fn send(
    client: &Result<reqwest::Client>,
    url: &Url,
    secret: Option<&Secret>,
    message: Message,
) -> Result<()> {
    let client = client.as_ref().map_err(|error| Error::internal(error.message().to_owned()))?;
    let seconds = (message.now_ms / 1000).to_string();
    let mut request = client
        .post(url.clone())
        .header(CONTENT_TYPE, "application/json")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", &seconds);
    if let Some(secret) = secret {
        request =
            request.header("webhook-signature", signature(secret, &message.id, &seconds, &message.body)?);
    }
    let answer = request.body(message.body).send().await.map_err(|e| {
        Error::new(ErrorCode::Unavailable, "the webhook cannot be reached").source(e.without_url())
    })?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        StatusCode::GONE => Err(Error::new(ErrorCode::NotFound, "the webhook answers 410 Gone")
            .remedy("remove the hook from spec.runtime.hooks")),
        status => Err(Error::new(ErrorCode::Unavailable, format!("the webhook answers {}", status.as_u16()))),
    }
}

/// Signs `ID.SECONDS.BODY` with HMAC-SHA256. A secret that begins with `whsec_` is decoded first.
fn signature(secret: &Secret, id: &str, seconds: &str, body: &[u8]) -> Result<String> {
    let text = secret.reveal();
    let key = match text.strip_prefix(ENCODED_SECRET) {
        None => text.as_bytes().to_vec(),
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| {
            Error::new(ErrorCode::ConfigInvalid, "the secret of the webhook is not base 64 behind whsec_")
                .remedy("store it again with `aegis secret set`")
        })?,
    };
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    for part in [id.as_bytes(), b".", seconds.as_bytes(), b".", body] {
        context.update(part);
    }
    Ok(format!("v1,{}", STANDARD.encode(context.sign())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own test vectors.
    #[test]
    fn signature_is_that_of_the_specification() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = br#"{"test": 2432232314}"#;
        let made = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body).unwrap();
        assert_eq!(made, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(signature(&Secret::new("whsec_?"), "a", "1", b"").is_err());
    }
}
