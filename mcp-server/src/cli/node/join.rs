//! `aegis node init`, `join` and `leave`: this machine's membership in a cluster.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use cluster_core::{
    config::{self, ConfigChoice, Settings, StartedBy},
    identity::{EnrolmentToken, NodeKey},
    rpc::known_controller::KnownController,
    types::{
        error::{Error, ErrorCode, Result},
        ids::{NodeId, Tag},
    },
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::{Context, launch, shown};

const CONFIG_FILE: &str = "aegis-config.yaml";
const KEY_FILE: &str = "node-keypair.pem";
const TOKEN_FILE: &str = "enrolment.token";
/// Variable with a token, as an alternative to a file.
const TOKEN_VARIABLE: &str = "AEGIS_ENROLMENT_TOKEN";
/// Size limit of a token file; tokens have about a hundred bytes.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Time limit of the command. The worker itself retries without limit.
const JOIN_TIME_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeRole {
    Controller,
    Worker,
    Hybrid,
}

/// Content of a file for a new node.
#[derive(Debug, Args)]
pub struct Init {
    /// Role of the node in its cluster
    #[arg(long, value_enum, default_value = "hybrid")]
    role: NodeRole,
    #[command(flatten)]
    node: NodeArguments,
    /// Controller of a worker, like https://ctrl.example:50056
    #[arg(long, required_if_eq("role", "worker"))]
    controller: Option<String>,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct NodeArguments {
    /// The node's id [default: generated at the first start]
    #[arg(long)]
    id: Option<String>,
    /// Tag that executions can select; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Address of this node for other nodes, like https://node-1.example:50056
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// File to write [default: aegis-config.yaml in the data directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Join {
    /// Controller to join, like https://ctrl.example:50056
    controller: String,
    /// File with the enrolment token; - is standard input [default: $AEGIS_ENROLMENT_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArguments,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
    /// Accept another controller than the one that this machine joined before
    #[arg(long)]
    new_controller: bool,
}

impl Init {
    pub fn run(self, context: &Context) -> Result<()> {
        let data_dir = own_directory(context)?;
        let role = match self.role {
            NodeRole::Controller => "controller",
            NodeRole::Worker => "worker",
            NodeRole::Hybrid => "hybrid",
        };
        let mut cluster = json!({ "role": role });
        if let Some(endpoint) = &self.controller {
            cluster["controller"] = json!({ "endpoint": endpoint });
        }
        let path = self.node.write(context, &data_dir, cluster, self.force)?;
        let key = NodeKey::load_or_create(&data_dir.join(KEY_FILE))?.public().thumbprint();
        let data = json!({ "config": path, "key_sha256": key });
        context.output.show(&data, || {
            format!(
                "Wrote {}.\nThe node's key has the fingerprint {key}.\nStart it with: aegis serve --config {}",
                shown(&path),
                shown(&path)
            )
        })
    }
}

impl Join {
    pub async fn run(self, context: &Context) -> Result<()> {
        if context.client()?.health().await.is_ok() {
            return Err(Error::new(ErrorCode::Conflict, "a daemon runs in this data directory already")
                .remedy("stop it with `aegis stop`, or choose another directory with --data-dir"));
        }
        let token = self.token()?;
        EnrolmentToken::parse(&token)?;
        let data_dir = own_directory(context)?;
        if self.new_controller {
            KnownController::forget_in(&data_dir)?;
        }
        let token_path = data_dir.join(TOKEN_FILE);
        let cluster = json!({
            "role": "worker",
            "controller": { "endpoint": self.controller, "token": format!("file:{}", token_path.display()) },
        });
        let path = self.node.write(context, &data_dir, cluster, self.force)?;
        write_private(&token_path, token.trim().as_bytes(), true)?;
        let launched = launch::ensure(context, &ConfigChoice::Named(path.clone()), StartedBy::Person).await?;
        let deadline = Instant::now() + JOIN_TIME_MAX;
        let health = loop {
            let health = launched.client.health().await?;
            let joined = health.subsystems.iter().any(|part| part.name == "cluster" && part.ok);
            if joined || Instant::now() >= deadline {
                break health;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        let data = json!({ "node_id": health.node_id, "config": path, "health": health });
        match health.subsystems.iter().find(|part| part.name == "cluster") {
            Some(part) if !part.ok => {
                Err(Error::new(ErrorCode::Unavailable, format!("not joined yet: {}", part.detail)).remedy(
                    "the worker goes on trying; `aegis status` says how it stands, `aegis stop` ends it",
                ))
            }
            _ => context.output.show(&data, || {
                format!(
                    "{} has joined {}.\nIts configuration is {}; started again, it comes back by its key.",
                    health.node_id,
                    self.controller,
                    shown(&path)
                )
            }),
        }
    }

    fn token(&self) -> Result<String> {
        let missing = || {
            Error::invalid("no enrolment token was given").remedy(format!(
                "name its file with --token-file, or set {TOKEN_VARIABLE}; \
                 `aegis node token create` on the controller makes one"
            ))
        };
        let unreadable = |what: &str, e: std::io::Error| {
            Error::invalid(format!("the enrolment token cannot be read from {what}")).source(e)
        };
        let mut text = String::new();
        match &self.token_file {
            None => return std::env::var(TOKEN_VARIABLE).map_err(|_| missing()),
            Some(path) if path.as_os_str() == "-" => std::io::stdin()
                .take(TOKEN_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(|e| unreadable("standard input", e))?,
            Some(path) => std::fs::File::open(path)
                .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
                .map_err(|e| unreadable(&shown(path), e))?,
        };
        Ok(text)
    }
}

impl NodeArguments {
    /// Writes the file, after checking that a node could start with it.
    fn write(&self, context: &Context, data_dir: &Path, mut cluster: Value, force: bool) -> Result<PathBuf> {
        let path = self.config.clone().unwrap_or_else(|| data_dir.join(CONFIG_FILE));
        let node_type = if cluster["role"] == "worker" { "edge" } else { "hybrid" };
        let mut node = json!({ "type": node_type });
        if let Some(id) = &self.id {
            node["id"] = json!(NodeId::parse(id.as_str())?);
        }
        let tags = self.tags.iter().map(|tag| Tag::parse(tag.as_str())).collect::<Result<Vec<_>>>()?;
        if !tags.is_empty() {
            node["tags"] = json!(tags);
        }
        if let Some(address) = &self.advertise {
            cluster["advertise_address"] = json!(address);
        }
        let name = self.id.clone().unwrap_or_else(|| "node".to_owned());
        let document = json!({
            "apiVersion": config::schema::API_VERSION,
            "kind": config::schema::KIND,
            "metadata": { "name": name },
            "spec": { "node": node, "cluster": cluster },
        });
        let text = serde_saphyr::to_string(&document)
            .map_err(|e| Error::internal("the configuration cannot be written").source(e))?;
        Settings::of(&config::parse(&text)?, &context.overrides)?;
        write_private(&path, text.as_bytes(), force)?;
        std::path::absolute(&path).map_err(|e| Error::internal("the file has no path").source(e))
    }
}

/// Repeats the request until no work runs here and the controller has removed this node.
pub async fn leave(context: &Context) -> Result<()> {
    let client = context.client()?;
    let mut said = false;
    loop {
        let answer: Value = client.post("/v1/node/leave", &json!({})).await?;
        if answer["left"] == true {
            return context
                .output
                .show(&answer, || "This machine has left its cluster, and its daemon has ended.".to_owned());
        }
        if !said {
            said = true;
            context.output.say("Work still runs here; it may go on for 5 minutes.");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn own_directory(context: &Context) -> Result<PathBuf> {
    let path = context.data_dir()?;
    DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| unwritable(&path, e))?;
    Ok(path)
}

fn write_private(path: &Path, bytes: &[u8], overwrite: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    match overwrite {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let mut file = options.open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(ErrorCode::Conflict, format!("{} is there already", shown(path)))
                .remedy("choose another file with --config, or overwrite it with --force")
        }
        _ => unwritable(path, e),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| unwritable(path, e))
}

fn unwritable(path: &Path, e: std::io::Error) -> Error {
    Error::new(ErrorCode::Storage, format!("{} cannot be written", shown(path))).source(e)
}
