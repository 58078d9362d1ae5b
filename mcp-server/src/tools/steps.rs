//! The steps of a deployment as a tool shows them, with so much of their evidence as fits.

use cluster_core::deploy::{StepName, StepState, StepView};
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::ResponseFormat;
use crate::text::{
    self,
    time::{Length, Moment},
};

/// Evidence of all steps together: with the rest of a result below its 20 KB.
const EVIDENCE_BYTES_MAX: usize = 10 * 1024;
/// Of each step.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Of each step.
const EVIDENCE_LINES_CONCISE: usize = 2;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Step {
    name: StepName,
    state: StepState,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took: Option<Length>,
    /// What shows that it was done. It may repeat what the host said.
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<String>,
    /// What it is doing, or why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// All of them; the evidence is cut to some lines a step, and to what fits into a result.
pub fn steps(views: Vec<StepView>, format: ResponseFormat) -> Vec<Step> {
    let lines_max = match format {
        ResponseFormat::Concise => EVIDENCE_LINES_CONCISE,
        ResponseFormat::Detailed => usize::MAX,
    };
    let mut left = EVIDENCE_BYTES_MAX;
    let step = |view: StepView| Step {
        name: view.name,
        state: view.state,
        started_at: view.started_at_ms.map(Moment::of_ms),
        took: view.duration_ms.map(Length::of_ms),
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
