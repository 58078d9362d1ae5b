//! Reference of the error codes: meaning, exit status, HTTP status, gRPC status, and what to do.

use cluster_core::{
    rpc::status::to_status,
    types::error::{Error, ErrorCode},
};

use super::markdown::{code, head, section, table};
use crate::codes;

/// Meaning of a code, and what its reader does.
struct Text {
    meaning: &'static str,
    remedy: &'static str,
}

const fn text(meaning: &'static str, remedy: &'static str) -> Text {
    Text { meaning, remedy }
}

/// Range of exit statuses, with a title.
struct Class {
    title: &'static str,
    exits: std::ops::RangeInclusive<u8>,
}

const CLASSES: [Class; 4] = [
    Class { title: "The call itself (exit 1 to 19)", exits: 1..=19 },
    Class { title: "A host (exit 20 to 29)", exits: 20..=29 },
    Class { title: "An execution or a confirmation (exit 30 to 39)", exits: 30..=39 },
    Class { title: "A node's identity (exit 40)", exits: 40..=49 },
];

pub fn page() -> String {
    let mut page = head(
        "Error codes",
        "the closed set of error codes",
        "An error has a code, a message and a remedy. The message says what failed. The remedy says what to do. \
         The name of the code is the same in JSON, in tool results, and in the reason of a gRPC status \
         (`google.rpc.ErrorInfo`, domain `aegis.cluster`).\n\n\
         The command line exits with 0 on success. A wrong option exits with 2. `aegis run` exits with the exit \
         code of the container where it has one. `aegis doctor` exits with 6 when a check fails.",
    );
    for class in CLASSES {
        section(&mut page, class.title, "");
        page.push('\n');
        let codes = ErrorCode::ALL.iter().filter(|code| class.exits.contains(&codes::of(**code).exit));
        let rows: Vec<_> = codes.map(|code| row(*code)).collect();
        table(&mut page, ["code", "exit", "HTTP", "gRPC", "meaning", "what to do"], &rows);
    }
    page
}

fn row(error: ErrorCode) -> [String; 6] {
    let shown = codes::of(error);
    let grpc = to_status(&Error::new(error, "")).code();
    let Text { meaning, remedy } = explain(error);
    [
        code(error.name()),
        shown.exit.to_string(),
        shown.http.as_u16().to_string(),
        format!("{grpc:?}"),
        meaning.to_owned(),
        remedy.to_owned(),
    ]
}

const fn explain(code: ErrorCode) -> Text {
    use ErrorCode as E;
    match code {
        E::InvalidArgument => text(
            "An argument has a wrong form or is out of range.",
            "Correct the argument that the message names.",
        ),
        E::ConfigInvalid => text(
            "The configuration cannot be used.",
            "Run `aegis config check FILE` and correct the named keys.",
        ),
        E::NotFound => text(
            "The deployment, node, execution or host does not exist.",
            "Check the id with the matching list command.",
        ),
        E::Conflict => text(
            "The object exists with another content, such as another request under one idempotency key.",
            "Use a new key, or read the existing object.",
        ),
        E::FailedPrecondition => text(
            "The state of the object does not allow the request.",
            "Read the state, then follow the remedy.",
        ),
        E::Unauthenticated => {
            text("The bearer token is missing or wrong.", "Send the token of `http.token`.")
        }
        E::Forbidden => text(
            "The caller or the policy of the node does not allow the request.",
            "Use a token with the named scope, or ask the operator to change the named key.",
        ),
        E::ResourceExhausted => text(
            "A limit is reached: a queue, a size, a rate.",
            "Wait, or send less. The message names the limit.",
        ),
        E::Unavailable => text(
            "The daemon, a service or a node does not answer.",
            "Try again. Run `aegis status` where it continues.",
        ),
        E::Timeout => {
            text("The allowed time is over.", "Read the state of the object, then wait or try again.")
        }
        E::Cancelled => text("A caller cancelled the work.", "Start the work again if it is still needed."),
        E::NotOffered => {
            text("This version does not offer the named feature.", "See the [limits](limits.md).")
        }
        E::Storage => text(
            "The database refused or failed a write. Nothing was acknowledged.",
            "Free disk space, and read the log of the daemon.",
        ),
        E::Internal => text("A defect of Aegis.", "Read the log of the daemon and report the defect."),

        E::HostNotApproved => {
            text("No operator has approved the host.", "Run `aegis host approve HOST` as the operator.")
        }
        E::HostKeyUnknown => {
            text("The host's key is not known.", "Run `aegis host approve HOST` as the operator.")
        }
        E::HostKeyChanged => text(
            "The host offers another key than the pinned one. Nothing was sent.",
            "Find out why. Then run `aegis host forget HOST` and `aegis host approve HOST`.",
        ),
        E::HostUnreachable => text(
            "The host has no name, no route, or does not answer.",
            "Check the spelling, the port and the network.",
        ),
        E::HostAuthentication => {
            text("The host refused every key.", "Check the user and the keys: `ssh HOST` must work.")
        }
        E::HostCheckFailed => text(
            "The host lacks something that a deployment needs.",
            "Apply the fix of each finding, then deploy again.",
        ),
        E::HostBusy => {
            text("Another deployment holds the lock of the host.", "Wait for it, or pass `--lock-wait 60s`.")
        }
        E::DeploymentFailed => text(
            "A step on the host failed.",
            "Read the cause and the log lines with `aegis deployments ID`.",
        ),

        E::NoNodeFits => text(
            "No node fits the execution.",
            "Read the reason of each node. Change the tags or the resources, or add a node.",
        ),
        E::ImageNotFound => {
            text("The image is not on the node and cannot be pulled.", "Check the name and the login.")
        }
        E::Engine => text("The container engine failed or does not answer.", "Check Docker on the node."),
        E::ContainerFailed => text("The container exited with a code other than 0.", "Read the output."),
        E::OutOfMemory => text("The container reached its memory limit.", "Ask for more memory."),
        E::ContentMissing => text(
            "A node lacks content that an assignment needs.",
            "Nothing: the controller sends the content and assigns again.",
        ),
        E::Unconfirmed => text(
            "A disruptive call waits for a confirmation. Nothing was changed.",
            "Confirm the plan, or pass its `confirm_token`.",
        ),
        E::Lost => text(
            "The outcome of an execution is not known.",
            "Wait for the node to return. Submit the work again if it may run twice.",
        ),

        E::TokenExpired => text("The token of the node has expired.", "Nothing: the node attests again."),
        E::NonceReplay => {
            text("A nonce or sequence number was used before.", "Nothing: the node attests again.")
        }
        E::InvalidSignature => {
            text("A signature does not match the pinned key.", "Check the key file of the node.")
        }
        E::UntrustedCa => text(
            "The certificate is not from a trusted CA.",
            "Join with a new enrolment token, which names the current CA.",
        ),
        E::KeyMismatch => text(
            "The node shows another key than the pinned one.",
            "Create a token with `aegis node token create --node-id ID` and join again.",
        ),
        E::ControllerMismatch => text(
            "The controller is not the one that the node joined.",
            "Run `aegis node join URL --new-controller` on the node where the change is intended.",
        ),
        E::EnrolmentInvalid => {
            text("The enrolment token is wrong or was used.", "Run `aegis node token create` and join again.")
        }
        E::EnrolmentExpired => {
            text("The enrolment token has expired.", "Run `aegis node token create` and join again.")
        }
        E::ChallengeExpired => {
            text("The challenge was answered too late.", "Nothing: the node attests again.")
        }
        E::ClockSkew => text(
            "A message was issued too far from the receiver's time.",
            "Compare the clocks of both machines.",
        ),
        E::NodeRemoved => text("The node was removed.", "Deploy or enrol the node again."),
        E::SessionUnknown => text(
            "The session is unknown or was replaced by a newer one.",
            "Nothing: the node attests again. If it repeats, two machines use one key.",
        ),
        E::NotYours => {
            text("A node named an object of another node.", "Report it: the node may be compromised.")
        }
        E::UnsealedContext => text(
            "The message has no sealed context.",
            "Update the node, or see `spec.cluster.allow_unsealed_context`.",
        ),
        E::Fenced => text(
            "The message is from an older controller epoch or an older attempt.",
            "Stop the older controller if two of them run.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_one_class() {
        for code in ErrorCode::ALL {
            let exit = codes::of(*code).exit;
            let classes = CLASSES.iter().filter(|class| class.exits.contains(&exit)).count();
            assert_eq!(classes, 1, "{code}");
        }
    }
}
