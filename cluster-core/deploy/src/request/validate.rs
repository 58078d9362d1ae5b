//! Requests and specifications of deployments. Only validation turns a request into a specification.

use aegis_ssh::{HostAddress, SshTarget, client_config::Asked};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{NodeId, UserName},
    link::LinkMode,
    principal::Origin,
    secret::{Secret, SecretName},
    text::shown,
};

use super::grammar;
use crate::{
    DeploymentRequest, DeploymentSpec, Validated,
    model::{
        spec::{SSH_USER_DEFAULT, Service},
        tunnel::{Argument, TunnelSource},
    },
    request::tunnel_token,
    settings::DeploySettings,
};

impl DeploymentRequest {
    /// Validates every argument without opening a socket or a file named by the caller. An explicit argument wins over
    /// the operator's ssh configuration, which wins over the default.
    pub fn validate(&self, origin: Origin, settings: &DeploySettings) -> Result<Validated> {
        if self.host.is_empty() {
            return Err(
                Error::invalid("host is empty").remedy("name the machine: its DNS name or IP address")
            );
        }
        let host = HostAddress::parse(&self.host, settings.allow_loopback)?;
        let node = match given(&self.identity) {
            Some(identity) => NodeId::parse(identity)?,
            None => NodeId::from_host(host.as_str())?,
        };
        let link = link(given(&self.link), settings)?;
        if let Some(key) = given(&self.idempotency_key) {
            grammar::idempotency_key(key)?;
        }
        let user = given(&self.ssh_user).map(UserName::parse).transpose()?;
        let (port, user) = login(&host, grammar::port(self.ssh_port)?, user.as_ref(), settings)?;
        let target = SshTarget {
            host,
            port,
            user,
            key_path: given(&self.ssh_key_path).map(|path| grammar::key_path(path, settings)).transpose()?,
        };
        let compose_file = settings.foreign_compose_file();
        let join = self.join.unwrap_or(true);
        let mut services = match &compose_file {
            None => grammar::embedded_services(given(&self.services), join)?,
            Some(_) => grammar::services(given(&self.services).unwrap_or_default())?,
        };
        let profiles = grammar::profiles(&self.profiles)?;
        if compose_file.is_none() && !profiles.is_empty() {
            return Err(Error::invalid("profiles: the embedded stack has none")
                .remedy("leave profiles out, or name a compose file in spec.deploy.compose_file"));
        }
        let argument =
            self.tunnel_token.as_ref().map(|token| secret_argument(token, origin)).transpose()?.flatten();
        let (tunnel, tunnel_token) = tunnel_token::resolve(argument, settings)?;
        if compose_file.is_none() {
            let cloudflared = Service::Cloudflared.service_name();
            match (&tunnel, services.contains(&cloudflared)) {
                (TunnelSource::None, false) => {}
                (TunnelSource::None, true) => {
                    return Err(Error::invalid("cloudflared needs a tunnel token and none was found")
                        .remedy("give tunnel_token, or set CLOUDFLARE_TUNNEL_TOKEN for the controller"));
                }
                _ => {
                    services.insert(cloudflared);
                }
            }
        }
        let models = grammar::models(&self.models)?;
        let ollama = services.iter().any(|service| service.as_str() == Service::Ollama.name());
        if compose_file.is_none() && !models.is_empty() && !ollama {
            return Err(Error::invalid("models: no Ollama runs in this deployment to hold them")
                .remedy("add ollama to services, or leave models out"));
        }
        let image = given(&self.image).or(settings.environment_image.as_deref());
        let spec = DeploymentSpec {
            target,
            node,
            tags: grammar::tags(&self.tags)?,
            services,
            profiles,
            join,
            health_timeout_seconds: match self.health_timeout_seconds {
                None => settings.health_timeout_seconds,
                Some(seconds) => grammar::health_timeout(seconds)?,
            },
            models,
            tunnel,
            remote_llm_url: given(&self.remote_llm_url).map(grammar::llm_url).transpose()?,
            image: image.map(grammar::image_reference).transpose()?,
            compose_file,
            base_dir: grammar::base_dir(&settings.base_dir)?,
            minimum_disk_gb: settings.minimum_disk_gb,
            link,
            origin,
            plan_digest: given(&self.plan_digest).map(grammar::plan_digest).transpose()?,
            lock_wait_seconds: grammar::lock_wait(self.lock_wait_seconds)?,
            take_over: match (self.take_over, origin) {
                (true, Origin::Assistant) => {
                    return Err(Error::new(
                        ErrorCode::Forbidden,
                        "take_over replaces another cluster's node: only a person may ask for it",
                    )
                    .remedy(format!("ask the person to run: aegis deploy {} --take-over", self.host)));
                }
                (take_over, _) => take_over,
            },
        };
        Ok(Validated { spec, tunnel_token })
    }
}

/// Returns the port and user to record. Other ssh settings are read at each connection, so that a host that moved
/// behind another host is found again.
fn login(
    host: &HostAddress,
    port: Option<u16>,
    user: Option<&UserName>,
    settings: &DeploySettings,
) -> Result<(u16, UserName)> {
    let asked = Asked { host, user, port, user_default: SSH_USER_DEFAULT };
    let mut route = settings.client_config()?.route(asked, settings.allow_loopback)?;
    let last = route.pop().ok_or_else(|| Error::internal("a route without a host"))?;
    Ok((last.endpoint.port, last.user))
}

/// Returns a given value. Clients send empty strings for omitted arguments.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|value| !value.is_empty())
}

fn link(asked: Option<&str>, settings: &DeploySettings) -> Result<LinkMode> {
    match asked {
        None | Some("ssh") => Ok(LinkMode::Ssh),
        Some("direct") => settings.direct.check().map(|_| LinkMode::Direct),
        Some(other) => {
            Err(Error::invalid(format!("there is no link \"{}\"", shown(other)))
                .remedy("link is ssh or direct"))
        }
    }
}

/// Parses a secret argument. From an assistant it is a literal value, the name of an operator's secret, or empty. Only
/// a person may refer to files and variables of this machine.
fn secret_argument(secret: &Secret, origin: Origin) -> Result<Option<Argument>> {
    let text = secret.reveal();
    let refuse = |why: &str| Err(Error::invalid(format!("tunnel_token {why}")));
    if text.is_empty() {
        return Ok(None);
    }
    if let Err(why) = tunnel_token::check(text) {
        return refuse(why);
    }
    if let Some(name) = text.strip_prefix("secret:") {
        return SecretName::parse(name).map(|name| Some(Argument::Named(name)));
    }
    let value = |text: &str| Ok(Some(Argument::Value(Secret::new(text))));
    let reference =
        text.strip_prefix("env:").map(Reference::Env).or(text.strip_prefix("file:").map(Reference::File));
    match (reference, origin) {
        (None, _) => value(text),
        (Some(_), Origin::Assistant) => Err(Error::new(
            ErrorCode::Forbidden,
            "tunnel_token: env: and file: are for the configuration and the command line only",
        )
        .remedy("leave it empty (it is found by itself where the operator set it), or give secret:NAME or the value")),
        (Some(Reference::Env(name)), Origin::Person) => match std::env::var(name) {
            Ok(text) if !text.is_empty() => value(&text),
            _ => refuse("names an environment variable that is not set"),
        },
        (Some(Reference::File(path)), Origin::Person) => match std::fs::read_to_string(path) {
            Ok(text) => value(text.trim()),
            Err(error) => Err(Error::invalid("tunnel_token names a file that cannot be read").source(error)),
        },
    }
}

enum Reference<'a> {
    Env(&'a str),
    File(&'a str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str) -> DeploymentRequest {
        DeploymentRequest { host: host.into(), ..Default::default() }
    }

    fn validate(request: &DeploymentRequest) -> Result<Validated> {
        request.validate(Origin::Assistant, &DeploySettings::default())
    }

    #[test]
    fn defaults_are_the_published_ones() {
        let spec = validate(&request("192.168.1.50")).unwrap().spec;
        assert_eq!((spec.target.port, spec.target.user.as_str()), (22, "root"));
        assert_eq!(spec.node.as_str(), "192-168-1-50");
        assert_eq!(spec.services.iter().map(ToString::to_string).collect::<Vec<_>>(), ["node", "ollama"]);
        assert!(spec.join && spec.health_timeout_seconds == 180);
        assert_eq!(spec.target.host.as_str(), "192.168.1.50", "a host is a direct target");
        assert_eq!(spec.tunnel, TunnelSource::None);
    }

    #[test]
    fn request_digest_ignores_confirmed_plan() {
        let digest = |request: &DeploymentRequest| validate(request).unwrap().spec.digest(None);
        let asked = request("192.168.1.50");
        let confirmed = DeploymentRequest { plan_digest: Some("a".repeat(64)), ..asked.clone() };
        assert_eq!(digest(&asked), digest(&confirmed));
        assert_ne!(digest(&asked), digest(&request("192.168.1.51")));
    }

    #[test]
    fn arguments_override_ssh_configuration_and_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let config = "Host atlas\n HostName 10.0.0.5\n User ops\n Port 2200\nHost evil\n ProxyCommand sh\n";
        std::fs::write(&file, config).unwrap();
        let ssh_config = aegis_ssh::client_config::ConfigFile::Named(file);
        let settings = DeploySettings { ssh_config, ..Default::default() };
        let validate = |request: DeploymentRequest| request.validate(Origin::Assistant, &settings);
        let spec = validate(request("Atlas")).unwrap().spec;
        assert_eq!(spec.target.to_string(), "ops@atlas:2200");
        assert_eq!(spec.node.as_str(), "atlas", "people see the alias");
        let given = DeploymentRequest { ssh_port: Some(22), ssh_user: Some("me".into()), ..request("atlas") };
        assert_eq!(validate(given).unwrap().spec.target.to_string(), "me@atlas:22");
        assert_eq!(validate(request("other")).unwrap().spec.target.to_string(), "root@other:22");
        assert!(validate(request("evil")).unwrap_err().to_string().contains("ProxyCommand"));
    }

    #[test]
    fn arguments_out_of_their_grammar_are_refused() {
        let cases: [(&str, DeploymentRequest); 18] = [
            ("host", request("")),
            ("host", request("-x")),
            ("this machine", request("localhost")),
            ("ssh_port", DeploymentRequest { ssh_port: Some(0), ..request("edge1") }),
            ("ssh_port", DeploymentRequest { ssh_port: Some(70_000), ..request("edge1") }),
            ("ssh user", DeploymentRequest { ssh_user: Some("root;id".into()), ..request("edge1") }),
            ("node id", DeploymentRequest { identity: Some("Bad Id".into()), ..request("edge1") }),
            ("tag", DeploymentRequest { tags: vec!["A B".into()], ..request("edge1") }),
            ("service", DeploymentRequest { services: Some("node,redis".into()), ..request("edge1") }),
            ("tunnel token", DeploymentRequest { services: Some("cloudflared".into()), ..request("edge1") }),
            ("profiles", DeploymentRequest { profiles: vec!["extra".into()], ..request("edge1") }),
            (
                "join",
                DeploymentRequest { join: Some(false), services: Some("node".into()), ..request("edge1") },
            ),
            (
                "health_timeout_seconds",
                DeploymentRequest { health_timeout_seconds: Some(9), ..request("edge1") },
            ),
            ("model", DeploymentRequest { models: vec!["a b".into()], ..request("edge1") }),
            ("models", DeploymentRequest { models: vec!["m".into(); 17], ..request("edge1") }),
            (
                "models",
                DeploymentRequest {
                    models: vec!["m".into()],
                    services: Some("node".into()),
                    ..request("edge1")
                },
            ),
            (
                "ssh_key_path",
                DeploymentRequest { ssh_key_path: Some("../../etc/shadow".into()), ..request("edge1") },
            ),
            ("image", DeploymentRequest { image: Some("a b".into()), ..request("edge1") }),
        ];
        for (what, request) in cases {
            let error = validate(&request).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{what}");
            assert!(error.to_string().contains(what), "{what}: {error}");
        }
        let direct = DeploymentRequest { link: Some("direct".into()), ..request("edge1") };
        let error = validate(&direct).unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition);
        assert!(error.to_string().contains("spec.cluster.advertise_address"), "{error}");
    }

    #[test]
    fn given_token_adds_cloudflared_and_is_not_stored_or_shown() {
        let request = DeploymentRequest { tunnel_token: Some(Secret::new("ey-hunter2")), ..request("edge1") };
        let validated = validate(&request).unwrap();
        assert!(validated.spec.runs(Service::Cloudflared));
        let stored = serde_json::to_string(&validated.spec).unwrap();
        assert!(!stored.contains("hunter2") && !format!("{request:?} {validated:?}").contains("hunter2"));
    }

    #[test]
    fn a_named_secret_is_recorded_by_its_name() {
        let named =
            |text: &str| DeploymentRequest { tunnel_token: Some(Secret::new(text)), ..request("edge1") };
        let validated = validate(&named("secret:tunnel")).unwrap();
        assert!(validated.spec.runs(Service::Cloudflared) && validated.tunnel_token.is_none());
        let stored = serde_json::to_string(&validated.spec).unwrap();
        let read: DeploymentSpec = serde_json::from_str(&stored).unwrap();
        assert!(matches!(&read.tunnel, TunnelSource::Secret(name) if name.as_str() == "tunnel"));
        assert_ne!(validated.spec.digest(None), validate(&named("secret:other")).unwrap().spec.digest(None));
        assert_eq!(validate(&named("secret:No Name")).unwrap_err().code(), ErrorCode::InvalidArgument);
    }

    #[test]
    fn an_assistant_may_not_point_at_files_and_variables() {
        for reference in ["env:HOME", "file:/etc/shadow"] {
            let request =
                DeploymentRequest { tunnel_token: Some(Secret::new(reference)), ..request("edge1") };
            assert_eq!(validate(&request).unwrap_err().code(), ErrorCode::Forbidden);
        }
        let request = DeploymentRequest { tunnel_token: Some(Secret::new("env:HOME")), ..request("edge1") };
        assert!(request.validate(Origin::Person, &DeploySettings::default()).is_ok());
    }

    #[test]
    fn the_digest_tells_requests_apart() {
        let spec = validate(&request("edge1")).unwrap().spec;
        let other = validate(&request("edge2")).unwrap().spec;
        assert_eq!(spec.digest(None), spec.digest(None));
        assert_ne!(spec.digest(None), other.digest(None));
        assert_ne!(spec.digest(None), spec.digest(Some(&Secret::new("x"))));
    }
}
