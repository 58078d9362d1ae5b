//! Guard of HTTP: checks Host and Origin on every route, and a bearer token on all routes but health. The permissions
//! of the token are checked by the routes.
//!
//! Host and Origin keep a web page from talking to a daemon on loopback (DNS rebinding). The token keeps out other
//! users of the machine.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use cluster_core::{
    config::{
        schema::Auth,
        settings::{McpSettings, Settings},
    },
    controller::access::{TokenTable, Validity},
    types::error::{Error, ErrorCode, Result},
};
use http::{HeaderMap, HeaderValue, Uri, header, uri::Authority};

use super::{
    places::Mark,
    streams::{Requests, until_invalid},
};
use crate::{
    caller::Caller,
    rest::{error::Problem, health::is_open},
};

const LOOPBACK_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Rules, made once from the configuration.
#[derive(Clone)]
pub struct Guard {
    /// Tokens; `None` if no token is required (`auth: none`, loopback only).
    tokens: Option<TokenTable>,
    hosts: Arc<[String]>,
    origins: Arc<[Origin]>,
    requests: Requests,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("hosts", &self.hosts)
            .field("origins", &self.origins)
            .finish_non_exhaustive()
    }
}

/// Web origin; no port means any port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix(":*").unwrap_or(text);
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        Some(Self {
            scheme: uri.scheme_str()?.to_ascii_lowercase(),
            host: host_of(authority),
            port: authority.port_u16(),
        })
    }

    fn admits(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.host == other.host
            && (self.port.is_none() || self.port == other.port)
    }
}

/// Returns the host in lower case and without the brackets of IPv6.
fn host_of(authority: &Authority) -> String {
    authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
}

impl Guard {
    pub fn new(settings: &Settings, tokens: TokenTable) -> Result<Self> {
        let McpSettings { allowed_hosts, allowed_origins, auth, .. } = &settings.mcp;
        let mut hosts: Vec<String> = LOOPBACK_HOSTS.iter().map(|host| (*host).to_owned()).collect();
        hosts.push(settings.bind_address.to_string());
        hosts.extend(allowed_hosts.iter().map(|host| host.to_ascii_lowercase()));
        let mut origins: Vec<Origin> = LOOPBACK_HOSTS
            .iter()
            .map(|host| Origin { scheme: "http".to_owned(), host: (*host).to_owned(), port: None })
            .collect();
        for text in allowed_origins {
            let origin = Origin::parse(text).ok_or_else(|| {
                Error::new(
                    ErrorCode::ConfigInvalid,
                    format!(
                        "spec.mcp.allowed_origins: \"{}\" is not an origin",
                        cluster_core::types::text::shown(text)
                    ),
                )
                .remedy("write it like https://app.example.com")
            })?;
            origins.push(origin);
        }
        let tokens = match auth {
            Auth::Token => Some(tokens),
            Auth::None if settings.bind_address.is_loopback() => None,
            Auth::None => {
                return Err(Error::new(
                    ErrorCode::ConfigInvalid,
                    "spec.mcp.auth: none is allowed on loopback only",
                )
                .remedy("remove it, or bind to 127.0.0.1"));
            }
        };
        Ok(Self { tokens, hosts: hosts.into(), origins: origins.into(), requests: Requests::default() })
    }

    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<()> {
        let mut named = headers.get_all(header::HOST).iter();
        // HTTP/2 carries the host in the URI.
        let authority = match (named.next(), named.next()) {
            (Some(value), None) => value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()),
            (None, _) => uri.authority().cloned(),
            (Some(_), Some(_)) => None,
        };
        let known = authority.is_some_and(|authority| {
            let host = host_of(&authority);
            let full = authority.as_str().to_ascii_lowercase();
            self.hosts.iter().any(|allowed| *allowed == host || *allowed == full)
        });
        known.then_some(()).ok_or_else(|| {
            Error::new(ErrorCode::Forbidden, "this Host is not served here")
                .remedy("use 127.0.0.1, or add the name to spec.mcp.allowed_hosts")
        })
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<()> {
        for value in headers.get_all(header::ORIGIN) {
            let origin = value.to_str().ok().and_then(Origin::parse);
            if !origin.is_some_and(|origin| self.origins.iter().any(|allowed| allowed.admits(&origin))) {
                return Err(Error::new(ErrorCode::Forbidden, "this Origin is not admitted")
                    .remedy("add it to spec.mcp.allowed_origins"));
            }
        }
        Ok(())
    }

    /// Returns the caller and how long its token stays valid.
    fn known(&self, headers: &HeaderMap) -> Result<(Caller, Validity)> {
        let Some(tokens) = &self.tokens else { return Ok((Caller::anybody(), Validity::default())) };
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        // Two headers count as no token: a proxy may have checked the other one.
        let header = match (given.next(), given.next()) {
            (Some(header), None) => header.to_str().ok(),
            _ => None,
        };
        tokens.check_lasting(header).map(|(bearer, validity)| (Caller::bearing(bearer), validity))
    }
}

/// RFC 6750, section 3: a problem is reported only if a token was sent.
fn challenge(headers: &HeaderMap) -> HeaderValue {
    HeaderValue::from_static(match headers.contains_key(header::AUTHORIZATION) {
        true => "Bearer realm=\"aegis\", error=\"invalid_token\"",
        false => "Bearer realm=\"aegis\"",
    })
}

/// Middleware around every route.
pub async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let outside = guard.check_host(request.uri(), headers).and_then(|()| guard.check_origin(headers));
    if let Err(error) = outside {
        return Problem(error).into_response();
    }
    let known = guard.known(headers);
    if is_open(request.uri().path()) {
        // A known caller gets more details.
        if let Ok((caller, _)) = known {
            request.extensions_mut().insert(caller);
        }
        return next.run(request).await;
    }
    match known {
        Ok((caller, validity)) => {
            let ticket = match guard.requests.begin(caller.actor.identity.to_string()) {
                Ok(ticket) => ticket,
                Err(error) => return Problem(error).into_response(),
            };
            if let Some(mark) = request.extensions().get::<Mark>() {
                mark.prove();
            }
            request.extensions_mut().insert(caller);
            until_invalid(next.run(request).await, ticket, validity)
        }
        Err(error) => {
            let challenge = challenge(headers);
            let mut response = Problem(error).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, body::Body, routing::get};
    use http::StatusCode;
    use tower::ServiceExt as _;

    fn guarded(auth: &str) -> Router {
        let config = cluster_core::config::parse(&format!(
            "apiVersion: 100monkeys.ai/v1\nkind: NodeConfig\nmetadata: {{name: t}}\nspec:\n  node: {{type: hybrid}}\n  \
             mcp: {{auth: {auth}, allowed_hosts: [box.example], allowed_origins: ['https://app.example:8443']}}\n"
        ))
        .unwrap();
        let overrides = cluster_core::config::Overrides {
            data_dir: Some("/nonexistent".into()),
            ..cluster_core::config::Overrides::default()
        };
        let settings = Settings::of(&config, &overrides).unwrap();
        let guard = Guard::new(&settings, TokenTable::new(Some("t0ken"))).unwrap();
        Router::new()
            .route("/v1/thing", get(async || "thing"))
            .route("/health/live", get(async || "live"))
            .layer(axum::middleware::from_fn_with_state(guard, super::guard))
    }

    async fn status(path: &str, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = http::Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guarded("token").oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:8088");
    const TOKEN: (&str, &str) = ("authorization", "Bearer t0ken");

    #[tokio::test]
    async fn the_token_is_needed_but_for_health() {
        assert_eq!(status("/v1/thing", &[HOST]).await, StatusCode::UNAUTHORIZED);
        assert_eq!(
            status("/v1/thing", &[HOST, ("authorization", "Bearer t0kem")]).await,
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(
            status("/v1/thing", &[HOST, ("authorization", "Basic t0ken")]).await,
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(status("/v1/thing", &[HOST, TOKEN]).await, StatusCode::OK);
        assert_eq!(status("/health/live", &[HOST]).await, StatusCode::OK);
        assert_eq!(status("/.well-known/oauth-protected-resource", &[HOST]).await, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn challenge_names_scheme_and_error() {
        let bad = "Bearer realm=\"aegis\", error=\"invalid_token\"";
        for (given, challenge) in
            [(&[][..], "Bearer realm=\"aegis\""), (&["Bearer no"], bad), (&["", "x"], bad)]
        {
            let mut request = http::Request::get("/v1/thing").header("host", "localhost");
            for header in given {
                request = request.header("authorization", *header);
            }
            let response = guarded("token").oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert_eq!(response.headers()[header::WWW_AUTHENTICATE], challenge);
        }
        assert_eq!(status("/v1/thing", &[HOST, TOKEN, TOKEN]).await, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn host_is_checked_on_every_route() {
        for bad in ["evil.example", "127.0.0.1.evil.example:8088", "localhost.", ""] {
            assert_eq!(status("/health/live", &[("host", bad)]).await, StatusCode::FORBIDDEN, "{bad}");
            assert_eq!(status("/v1/thing", &[("host", bad), TOKEN]).await, StatusCode::FORBIDDEN, "{bad}");
        }
        assert_eq!(status("/health/live", &[]).await, StatusCode::FORBIDDEN);
        assert_eq!(status("/health/live", &[HOST, ("host", "evil.example")]).await, StatusCode::FORBIDDEN);
        for good in ["localhost", "LOCALHOST:1", "[::1]:8088", "box.example:9"] {
            assert_eq!(status("/health/live", &[("host", good)]).await, StatusCode::OK, "{good}");
        }
    }

    #[tokio::test]
    async fn origin_is_checked_where_a_browser_sends_one() {
        for bad in ["http://evil.example", "null", "https://app.example", "http://localhost.evil.example"] {
            assert_eq!(
                status("/v1/thing", &[HOST, TOKEN, ("origin", bad)]).await,
                StatusCode::FORBIDDEN,
                "{bad}"
            );
        }
        for good in ["http://localhost:3000", "https://app.example:8443"] {
            assert_eq!(status("/v1/thing", &[HOST, TOKEN, ("origin", good)]).await, StatusCode::OK, "{good}");
        }
    }

    #[tokio::test]
    async fn without_auth_no_token_is_needed_on_loopback() {
        let request =
            http::Request::get("/v1/thing").header("host", "localhost").body(Body::empty()).unwrap();
        assert_eq!(guarded("none").oneshot(request).await.unwrap().status(), StatusCode::OK);
    }
}
