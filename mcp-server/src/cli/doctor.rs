//! `aegis doctor`: checks this machine and reports what to fix.
//!
//! Each check is one file in two halves: `look` gathers facts, and `judge` is a plain function from facts to findings.
//! The checks run concurrently, each within [`CHECK_TIME_MAX`]. Nothing is changed and no lock is taken, so a daemon
//! that starts in the meantime is not affected. No content of the checked files is shown. Not checked on purpose:
//! Compose and disk space for stacks, which are needed on hosts and checked there. The network is not checked either,
//! since the first deployment shows what is reachable.

mod certificates;
mod clients;
mod configuration;
mod daemon;
mod data_directory;
mod engine;
mod gpus;
mod machine;
mod ports;
mod ssh;

use std::{future::Future, path::PathBuf, time::Duration};

use clap::Args;
use cluster_core::{
    config::Settings,
    types::error::{ErrorCode, Result},
};
use serde::Serialize;

use super::{Context, output::table, own_path};

/// A file system or an engine that hangs is reported, and not waited for.
const CHECK_TIME_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub struct Doctor {
    /// Configuration file [default: the one of the last daemon, else what `serve` would take]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Subject of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Check {
    Configuration,
    DataDirectory,
    Daemon,
    Ports,
    Engine,
    Gpus,
    Ssh,
    Certificates,
    Clock,
    OpenFiles,
    Path,
    Clients,
}

impl Check {
    const fn name(self) -> &'static str {
        match self {
            Check::Configuration => "configuration",
            Check::DataDirectory => "data directory",
            Check::Daemon => "daemon",
            Check::Ports => "ports",
            Check::Engine => "engine",
            Check::Gpus => "gpus",
            Check::Ssh => "ssh",
            Check::Certificates => "certificates",
            Check::Clock => "clock",
            Check::OpenFiles => "open files",
            Check::Path => "path",
            Check::Clients => "clients",
        }
    }

    fn ok(self, detail: impl Into<String>) -> Finding {
        Finding { check: self, result: Verdict::Ok, detail: detail.into(), remedy: None }
    }

    /// Works, or works partially.
    fn warn(self, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check: self, result: Verdict::Warn, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    /// Does not work, or is not safe.
    fn fail(self, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check: self, result: Verdict::Fail, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Result of a check, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: Check,
    result: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// No check fails; there may be warnings.
    healthy: bool,
    findings: Vec<Finding>,
}

impl Doctor {
    /// Returns 0 if no check fails, and otherwise the status of a failed precondition.
    pub async fn run(self, context: &Context) -> Result<u8> {
        let findings = self.findings(context).await?;
        let healthy = findings.iter().all(|finding| finding.result != Verdict::Fail);
        let report = Report { healthy, findings };
        context.output.show(&report, || report.text())?;
        Ok(if healthy { 0 } else { crate::codes::of(ErrorCode::FailedPrecondition).exit })
    }

    async fn findings(self, context: &Context) -> Result<Vec<Finding>> {
        let data_dir = context.data_dir()?;
        let own = own_path()?;
        // The other checks depend on these facts.
        let (named, overrides, dir) = (self.config, context.overrides.clone(), data_dir.clone());
        let configuration = blocking(move || configuration::look(named, &dir, &overrides));
        let (configuration, daemon) = tokio::join!(configuration, daemon::look(&data_dir));
        let mut findings = match &configuration {
            Some(facts) => configuration::judge(facts),
            None => vec![untold(Check::Configuration)],
        };
        let settings = configuration.and_then(Result::ok).map(|read| read.settings);
        let of_settings = async {
            match &settings {
                Some(settings) => by_settings(settings, &data_dir, daemon.holder()).await,
                None => Vec::new(),
            }
        };
        let dir = data_dir.clone();
        let directory =
            in_time(Check::DataDirectory, move || data_directory::judge(&data_directory::look(&dir)));
        let dir = data_dir.clone();
        let program = own.clone();
        let clock =
            in_time(Check::Clock, move || machine::judge_clock(&machine::look_at_clock(&dir, &program)));
        let program = own.clone();
        let path = in_time(Check::Path, move || machine::judge_path(&machine::look_at_path(program)));
        let clients = in_time(Check::Clients, || clients::judge(&clients::look()));
        let (of_settings, directory, clock, path, clients) =
            tokio::join!(of_settings, directory, clock, path, clients);
        findings.extend(directory);
        findings.extend(daemon::judge(&daemon));
        findings.extend(of_settings);
        findings.extend(clock);
        findings.push(machine::judge_open_files(machine::open_files()));
        findings.extend(path);
        findings.extend(clients);
        Ok(findings)
    }
}

/// Runs the checks that depend on the configuration of this node.
async fn by_settings(
    settings: &Settings,
    data_dir: &std::path::Path,
    holder: daemon::Holder,
) -> Vec<Finding> {
    let ports = bounded(Check::Ports, async { ports::judge(&ports::look(settings, data_dir, holder).await) });
    let engine = bounded(Check::Engine, async {
        engine::look(settings).await.map_or_else(Vec::new, |facts| vec![engine::judge(&facts)])
    });
    let gpus = bounded(Check::Gpus, async {
        gpus::look(settings).await.and_then(|facts| gpus::judge(&facts)).into_iter().collect()
    });
    let deploy = settings.deploy.clone();
    let ssh = in_time(Check::Ssh, move || ssh::judge(&ssh::look(&deploy)));
    let pairs = certificates::pairs(settings);
    let certificates = in_time(Check::Certificates, move || certificates::judge(&certificates::look(pairs)));
    let (ports, engine, gpus, ssh, certificates) = tokio::join!(ports, engine, gpus, ssh, certificates);
    [ports, engine, gpus, ssh, certificates].concat()
}

fn untold(check: Check) -> Finding {
    check.fail(
        format!("it could not be told within {} s", CHECK_TIME_MAX.as_secs()),
        "look whether a file system, the engine or the daemon hangs",
    )
}

async fn bounded(check: Check, look: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    within(CHECK_TIME_MAX, check, look).await
}

async fn within(limit: Duration, check: Check, look: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    tokio::time::timeout(limit, look).await.unwrap_or_else(|_| vec![untold(check)])
}

/// Reads files on a thread, since reads may hang. A thread that hangs ends with the process.
async fn blocking<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(CHECK_TIME_MAX, tokio::task::spawn_blocking(look)).await.ok()?.ok()
}

async fn in_time(check: Check, look: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    blocking(look).await.unwrap_or_else(|| vec![untold(check)])
}

impl Report {
    fn text(&self) -> String {
        let count = |result| self.findings.iter().filter(|finding| finding.result == result).count();
        let rows = self.findings.iter().map(|finding| {
            let result = match finding.result {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            vec![finding.check.name().to_owned(), result.to_owned(), finding.detail.clone()]
        });
        let mut text = table(&["check", "result", "what is so"], rows.collect());
        let to_do =
            self.findings.iter().filter_map(|finding| Some((finding.check.name(), finding.remedy.as_ref()?)));
        for (index, (check, remedy)) in to_do.enumerate() {
            text.push_str(if index == 0 { "\n\nWhat to do:\n" } else { "\n" });
            text.push_str(&format!("  {check}: {remedy}"));
        }
        let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
        text.push_str(&match (failed, warned) {
            (0, 0) => "\n\nAll is well.".to_owned(),
            (0, warned) => format!("\n\nNothing fails; {warned} to look at."),
            (failed, warned) => format!("\n\n{failed} to fix, {warned} to look at."),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_to_do_once_for_each() {
        let findings = vec![
            Check::Engine.ok("docker 28.2"),
            Check::Clock.warn("it is late", "go to bed"),
            Check::Ports.fail("8088 is taken", "take another"),
        ];
        let report = Report { healthy: false, findings };
        let text = report.text();
        assert_eq!(text.matches("take another").count(), 1, "{text}");
        assert!(text.contains("FAIL") && text.ends_with("1 to fix, 1 to look at."), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["findings"][0],
            serde_json::json!({"check": "engine", "result": "ok", "detail": "docker 28.2"})
        );
    }

    #[tokio::test]
    async fn what_hangs_is_told() {
        let found = within(Duration::ZERO, Check::Engine, std::future::pending()).await;
        assert_eq!((found[0].check, found[0].result), (Check::Engine, Verdict::Fail));
    }
}
