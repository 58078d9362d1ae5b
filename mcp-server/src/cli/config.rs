//! `aegis config`: checks files, shows a node's configuration, and manages the layers that a controller pushes to its
//! nodes.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cluster_core::{
    config::{
        self, ConfigChoice, Settings, StartedBy,
        applied::EffectiveConfig,
        layers::{ConfigSnapshot, Scope},
        settings::REST_PORT,
    },
    controller::handle::NodeConfigView,
    types::error::{Error, ErrorCode, Result},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, node, output::table, segment, shown};
use crate::{daemon::files, tools::ToolRegistry};

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Read a file as `serve` would, and report its problems
    Check {
        /// [default: the file that `serve` would use]
        file: Option<PathBuf>,
    },
    /// Show the configuration of this node's daemon; secrets are left out
    Show {
        /// Show the file merged with the controller's layers, not only the file
        #[arg(long, conflicts_with = "node")]
        effective: bool,
        /// Show the controller's configuration for this node, and the configuration that the node reports
        #[arg(long, value_name = "ID")]
        node: Option<String>,
    },
    /// List the layers that this controller pushes
    Layers,
    /// Store a layer and push it to its nodes
    Push {
        #[command(flatten)]
        target: Target,
        /// YAML or JSON, with the keys of a configuration file
        file: PathBuf,
        /// Replace only this version of the layer
        #[arg(long, value_name = "VERSION")]
        if_version: Option<String>,
    },
    /// Remove a layer; the nodes continue without it
    Remove {
        #[command(flatten)]
        target: Target,
        /// Remove only this version of the layer
        #[arg(long, value_name = "VERSION")]
        if_version: Option<String>,
    },
    /// Assign the layer of a tenant to a node
    Assign {
        id: String,
        #[arg(long, value_name = "SLUG", required_unless_present = "no_tenant")]
        tenant: Option<String>,
        /// Remove the node's tenant
        #[arg(long, conflicts_with = "tenant")]
        no_tenant: bool,
    },
}

/// Scope of a layer.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// Every node
    #[arg(long)]
    global: bool,
    /// The nodes of a tenant
    #[arg(long, value_name = "SLUG")]
    tenant: Option<String>,
    /// One node
    #[arg(long, value_name = "ID")]
    node: Option<String>,
}

impl Target {
    fn path(&self) -> Result<String> {
        let scope = match (&self.tenant, &self.node) {
            (Some(slug), _) => format!("tenant/{slug}"),
            (_, Some(id)) => format!("node/{id}"),
            _ => "global".to_owned(),
        };
        // Parsed here, so that the path is valid.
        scope.parse::<Scope>().map(|scope| format!("/v1/config/layers/{scope}"))
    }
}

#[derive(Serialize, Deserialize)]
struct Layers {
    layers: Vec<ConfigSnapshot>,
}

impl Config {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self {
            Config::Check { file } => check(context, file),
            Config::Show { node: Some(id), .. } => {
                let path = format!("/v1/cluster/nodes/{}/config", segment(&id));
                let view: NodeConfigView = context.client()?.get(&path).await?;
                context.output.show(&view, || node_text(&view))
            }
            Config::Show { effective, node: None } => show(context, effective).await,
            Config::Layers => {
                let data: Layers = context.client()?.get("/v1/config/layers").await?;
                context.output.show(&data, || layers_table(&data.layers))
            }
            Config::Push { target, file, if_version } => {
                let body = json!({ "config": read(&file)?, "if_version": if_version });
                let layer: ConfigSnapshot = context.client()?.put(&target.path()?, &body).await?;
                context.output.show(&layer, || {
                    format!("{} is at version {} and on its way.", layer.scope, layer.version)
                })
            }
            Config::Remove { target, if_version } => {
                let mut path = target.path()?;
                if let Some(version) = if_version {
                    path.push_str(&format!("?if_version={}", segment(&version)));
                }
                let removed: Value = context.client()?.delete(&path).await?;
                context.output.show(&removed, || "The layer is removed.".to_owned())
            }
            Config::Assign { id, tenant, no_tenant: _ } => {
                let path = format!("/v1/cluster/nodes/{}/tenant", segment(&id));
                let view: NodeConfigView = context.client()?.put(&path, &json!({ "tenant": tenant })).await?;
                context.output.show(&view, || node_text(&view))
            }
        }
    }
}

fn read(file: &Path) -> Result<Value> {
    let unusable = |why: String| Error::new(ErrorCode::ConfigInvalid, format!("{} {why}", shown(file)));
    let text = std::fs::read_to_string(file).map_err(|e| unusable("cannot be read".into()).source(e))?;
    serde_saphyr::from_str(&text).map_err(|e| {
        let words = e.to_string();
        unusable(format!("is not sound YAML: {}", words.lines().next().unwrap_or_default()))
    })
}

async fn show(context: &Context, effective: bool) -> Result<()> {
    let view: EffectiveConfig = context.client()?.get("/v1/config").await?;
    let shown = if effective { &view.effective } else { &view.local };
    // The data of `--effective` is complete: it includes the version and the problems.
    let yaml = serde_saphyr::to_string(shown)
        .map_err(|e| Error::internal("the configuration cannot be written as YAML").source(e))?;
    match effective {
        true => context.output.show(&view, || yaml)?,
        false => context.output.show(shown, || yaml)?,
    }
    if effective && context.output.is_human() {
        if let Some(error) = &view.error {
            context.output.say(&format!("The newest push was refused: {error}"));
        }
        if !view.waits_for_restart.is_empty() {
            context.output.say(&format!("At the next start: {}.", view.waits_for_restart.join(", ")));
        }
    }
    Ok(())
}

fn node_text(view: &NodeConfigView) -> String {
    let mut text = format!("{} should run version {}", view.node_id, view.version);
    match &view.applied_version {
        Some(applied) if *applied == view.version => text.push_str(" and does."),
        Some(applied) => text.push_str(&format!(" and runs {applied}.")),
        None => text.push_str("; it has not said what it runs."),
    }
    if let Some(error) = &view.error {
        text.push_str(&format!("\nIt refused the newest: {error}"));
    }
    let layers: Vec<_> = view.layers.iter().map(ToString::to_string).collect();
    let layers = if layers.is_empty() { "none".to_owned() } else { layers.join(", ") };
    text.push_str(&format!("\nLayers: {layers}."));
    if let Some(tenant) = &view.tenant {
        text.push_str(&format!(" Tenant: {tenant}."));
    }
    text
}

fn layers_table(layers: &[ConfigSnapshot]) -> String {
    let rows = layers
        .iter()
        .map(|layer| {
            vec![
                layer.scope.to_string(),
                layer.version.clone(),
                format!("{} bytes", layer.json.to_string().len()),
            ]
        })
        .collect();
    table(&["layer", "version", "size"], rows)
}

fn check(context: &Context, file: Option<PathBuf>) -> Result<()> {
    let choice = file.map_or(ConfigChoice::Usual, ConfigChoice::Named);
    let recorded = files::config_path(&context.data_dir()?);
    let loaded = config::load(&choice, recorded.as_deref(), StartedBy::Person)?;
    let settings = Settings::of(&loaded.config, &context.overrides)?;
    ToolRegistry::of(&settings.mcp)?;
    let data = json!({
        "valid": true,
        "file": loaded.path.as_deref().map(shown),
        "role": settings.role,
        "node_id": settings.node_id,
        "data_dir": shown(&settings.data_dir),
        "listens_on": format!("{}:{}", settings.bind_address, settings.rest_port.unwrap_or(REST_PORT)),
        "not_used": settings.unused,
    });
    context.output.show(&data, || {
        let file = loaded.path.as_deref().map_or("no file; the defaults".to_owned(), shown);
        let mut text = format!("{file}: good for a {} node.", node::name(&settings.role));
        if !settings.unused.is_empty() {
            text.push_str(&format!("\nNot used by this node: {}.", settings.unused.join(", ")));
        }
        text
    })
}
