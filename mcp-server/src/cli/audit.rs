//! `aegis audit`: who did what.

use std::time::Duration;

use clap::Args;
use cluster_core::{
    controller::audit::AuditView,
    types::error::{Error, Result},
};
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::{Context, node::duration, output::table};

#[derive(Debug, Args)]
pub struct Audit {
    /// Only what was begun in the last so long, like 1h or 7d
    #[arg(long, value_parser = duration, value_name = "TIME")]
    since: Option<Duration>,
    /// Only this tool, like `drain_node`, or this call, like "POST /v1/executions"
    #[arg(long)]
    tool: Option<String>,
    /// The newest so many: 1 to 1000
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<AuditView>,
}

impl Audit {
    pub async fn run(self, context: &Context) -> Result<()> {
        let data: Value = context.client()?.get(&self.path()).await?;
        let entries = Entries::deserialize(&data)
            .map_err(|e| Error::internal("the list is not understood").source(e))?
            .entries;
        context.output.show(&data, || entries_table(entries))
    }

    fn path(&self) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("limit", &self.limit.to_string());
        if let Some(since) = self.since {
            query.append_pair("since_seconds", &since.as_secs().to_string());
        }
        if let Some(tool) = &self.tool {
            query.append_pair("tool", tool);
        }
        format!("/v1/audit?{}", query.finish())
    }
}

fn entries_table(entries: Vec<AuditView>) -> String {
    let rows = entries.into_iter().map(|entry| {
        vec![
            entry.at,
            format!("{} ({})", entry.who, super::node::name(&entry.door)),
            entry.client.unwrap_or_default(),
            match entry.last_at {
                Some(last) => format!("{} ({} times until {last})", entry.action, entry.calls),
                None => entry.action,
            },
            entry.result,
            format!("{} ms", entry.duration_ms),
            entry.arguments.unwrap_or_default(),
        ]
    });
    table(&["at", "who", "client", "call", "result", "took", "arguments"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_survives_a_url() {
        let audit = Audit {
            since: Some(Duration::from_secs(60)),
            tool: Some("POST /v1/executions&limit=9".into()),
            limit: 5,
        };
        let path = "/v1/audit?limit=5&since_seconds=60&tool=POST+%2Fv1%2Fexecutions%26limit%3D9";
        assert_eq!(audit.path(), path);
    }
}
