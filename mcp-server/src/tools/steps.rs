//! Steps of a deployment as shown by a tool, with as much evidence as fits.

use cluster_core::deploy::{StepName, StepState, StepView};
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::ResponseFormat;
use crate::text::{
    self,
    time::{DurationText, TimestampText},
};

/// Size limit of the evidence of all steps: with the rest of a result below its 20 KB.
const EVIDENCE_BYTES_MAX: usize = 10 * 1024;
/// Size limit of each step's message.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Maximum number of evidence lines of each step.
const EVIDENCE_LINES_CONCISE: usize = 2;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Step {
    name: StepName,
    state: StepState,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<TimestampText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took: Option<DurationText>,
    /// Evidence that the step was done. It may quote the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<String>,
    /// Current activity, or the reason of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Returns all steps. Evidence is cut to some lines per step, and to the size of a result.
pub fn steps(views: Vec<StepView>, format: ResponseFormat) -> Vec<Step> {
    let lines_max = match format {
        ResponseFormat::Concise => EVIDENCE_LINES_CONCISE,
        ResponseFormat::Detailed => usize::MAX,
    };
    let mut left = EVIDENCE_BYTES_MAX;
    let step = |view: StepView| Step {
        name: view.name,
        state: view.state,
        started_at: view.started_at_ms.map(TimestampText::of_ms),
        took: view.duration_ms.map(DurationText::of_ms),
        evidence: view.evidence.and_then(|evidence| bounded(&evidence, lines_max, &mut left)),
        message: view.message.map(|message| text::head(&message, MESSAGE_BYTES_MAX).0),
    };
    views.into_iter().map(step).collect()
}

fn bounded(evidence: &str, lines_max: usize, left: &mut usize) -> Option<String> {
    let evidence = text::clean(evidence);
    let lines = evidence.lines().take(lines_max).take_while(|line| {
        let fits = line.len() <= *left;
        *left = if fits { *left - line.len() } else { 0 };
        fits
    });
    let kept = lines.collect::<Vec<_>>().join("\n");
    (!kept.is_empty()).then_some(kept)
}
