//! `aegis host`: the way a person admits a host and its key.

use std::io::{BufRead as _, IsTerminal as _};

use clap::Subcommand;
use cluster_core::{
    core::HostKeyView,
    deploy::ApprovedHost,
    types::error::{Error, ErrorCode, Result},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, output::table, segment};

const SSH_PORT: u16 = 22;

#[derive(Debug, Subcommand)]
pub enum Host {
    /// Show a host's key and, when you agree, admit the host
    Approve {
        host: String,
        /// Left out: what the ssh configuration says, else 22
        #[arg(long)]
        port: Option<u16>,
        /// The key you expect (SHA256:…): no question is asked, and another key is refused
        #[arg(long, value_name = "SHA256:…")]
        fingerprint: Option<String>,
    },
    /// List the admitted hosts
    List,
    /// Take the admission back; nodes that run there go on
    Forget {
        host: String,
        /// Left out: what the ssh configuration says, else 22
        #[arg(long)]
        port: Option<u16>,
    },
}

#[derive(Deserialize)]
struct Hosts {
    hosts: Vec<ApprovedHost>,
}

impl Host {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self {
            Host::Approve { host, port, fingerprint } => approve(context, host, port, fingerprint).await,
            Host::List => list(context).await,
            Host::Forget { host, port } => {
                let port = match port {
                    Some(port) => port,
                    None => admitted_port(context, &host).await?,
                };
                let path = format!("/v1/hosts/{}/{port}", segment(&host));
                let done: Value = context.client()?.delete(&path).await?;
                context.output.show(&done, || format!("{host} port {port} is no longer admitted."))
            }
        }
    }
}

async fn approve(
    context: &Context,
    host: String,
    port: Option<u16>,
    fingerprint: Option<String>,
) -> Result<()> {
    let client = context.client()?;
    let fingerprint = match fingerprint {
        Some(fingerprint) => fingerprint,
        None => {
            let key: HostKeyView =
                client.post("/v1/hosts/probe", &json!({ "host": host, "port": port })).await?;
            ask(context, &key)?;
            key.fingerprint
        }
    };
    let body = json!({ "host": host, "port": port, "fingerprint": fingerprint });
    let approved: ApprovedHost = client.post("/v1/hosts", &body).await?;
    context.output.show(&approved, || {
        format!("{} port {} is admitted with key {}.", approved.host, approved.port, approved.key.fingerprint)
    })
}

/// The port of the one admission that a host has; 22 when there are several.
async fn admitted_port(context: &Context, host: &str) -> Result<u16> {
    let Hosts { hosts } = context.client()?.get("/v1/hosts").await?;
    let mut ports =
        hosts.iter().filter(|one| one.host.as_str().eq_ignore_ascii_case(host)).map(|one| one.port);
    match (ports.next(), ports.next()) {
        (Some(only), None) => Ok(only),
        _ => Ok(SSH_PORT),
    }
}

/// A person compares; nothing else counts as a yes.
fn ask(context: &Context, key: &HostKeyView) -> Result<()> {
    let key_type = key.public_key.split(' ').next().unwrap_or_default();
    context.output.say(&format!(
        "{} port {} offers the {} key\n  {}\nCompare it with what the host itself shows: \
         ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub",
        key.host,
        key.port,
        key_type,
        key.fingerprint,
        key_type.trim_start_matches("ssh-")
    ));
    if key.known {
        context.output.say("It is the key that is pinned already.");
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorCode::FailedPrecondition, "there is no terminal to ask on")
            .remedy(format!("if the key is right, pass --fingerprint {}", key.fingerprint)));
    }
    context.output.error_bytes(b"Admit this host and deploy to it from now on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Error::internal("the answer could not be read").source(e))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Cancelled, "the host was not admitted"))
}

async fn list(context: &Context) -> Result<()> {
    let data: Value = context.client()?.get("/v1/hosts").await?;
    let hosts =
        Hosts::deserialize(&data).map_err(|e| Error::internal("the list is not understood").source(e))?.hosts;
    context.output.show(&data, || {
        let rows = hosts
            .into_iter()
            .map(|host| {
                vec![
                    host.host.to_string(),
                    host.port.to_string(),
                    host.key.fingerprint,
                    cluster_core::types::clock::rfc3339(host.approved_at_ms),
                ]
            })
            .collect();
        table(&["host", "port", "key", "approved at"], rows)
    })
}
