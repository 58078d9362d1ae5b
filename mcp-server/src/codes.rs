//! Maps each [`ErrorCode`] to an exit status and an HTTP status. The only place that does so.

use cluster_core::types::error::ErrorCode;
use http::StatusCode;

/// Exit status and HTTP status of an error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Exit status of the command line. 2 is also used for wrong options; 1 is an internal error.
    pub exit: u8,
    pub http: StatusCode,
}

const fn shown(exit: u8, http: StatusCode) -> Shown {
    Shown { exit, http }
}

/// Returns the statuses of a code. Exit codes have classes, so that a script can decide without reading the text. They
/// are: 1-19 the call itself, 20-29 a host, 30-39 an execution, 40 a node's identity.
pub const fn of(code: ErrorCode) -> Shown {
    use ErrorCode as E;
    use StatusCode as H;
    match code {
        E::Internal => shown(1, H::INTERNAL_SERVER_ERROR),
        E::InvalidArgument => shown(2, H::BAD_REQUEST),
        E::ConfigInvalid => shown(3, H::UNPROCESSABLE_ENTITY),
        E::NotFound => shown(4, H::NOT_FOUND),
        E::Conflict => shown(5, H::CONFLICT),
        E::FailedPrecondition => shown(6, H::CONFLICT),
        E::Unauthenticated => shown(7, H::UNAUTHORIZED),
        E::Forbidden => shown(7, H::FORBIDDEN),
        E::ResourceExhausted => shown(8, H::TOO_MANY_REQUESTS),
        E::Unavailable => shown(9, H::SERVICE_UNAVAILABLE),
        E::Timeout => shown(10, H::GATEWAY_TIMEOUT),
        E::Cancelled => shown(11, H::CONFLICT),
        E::NotOffered => shown(12, H::NOT_IMPLEMENTED),
        E::Storage => shown(13, H::INTERNAL_SERVER_ERROR),

        E::HostNotApproved | E::HostKeyUnknown => shown(20, H::FORBIDDEN),
        E::HostKeyChanged => shown(21, H::CONFLICT),
        E::HostUnreachable => shown(22, H::BAD_GATEWAY),
        E::HostAuthentication => shown(23, H::BAD_GATEWAY),
        E::HostCheckFailed => shown(24, H::UNPROCESSABLE_ENTITY),
        E::HostBusy => shown(25, H::CONFLICT),
        E::DeploymentFailed => shown(26, H::BAD_GATEWAY),

        E::NoNodeFits => shown(30, H::CONFLICT),
        E::ImageNotFound => shown(31, H::UNPROCESSABLE_ENTITY),
        E::Engine => shown(32, H::BAD_GATEWAY),
        E::Lost => shown(33, H::BAD_GATEWAY),
        E::ContainerFailed => shown(34, H::UNPROCESSABLE_ENTITY),
        E::ContentMissing => shown(36, H::CONFLICT),
        E::Unconfirmed => shown(37, H::FORBIDDEN),
        E::OutOfMemory => shown(35, H::UNPROCESSABLE_ENTITY),

        E::TokenExpired
        | E::NonceReplay
        | E::InvalidSignature
        | E::UntrustedCa
        | E::KeyMismatch
        | E::ControllerMismatch
        | E::EnrolmentInvalid
        | E::EnrolmentExpired
        | E::ChallengeExpired
        | E::ClockSkew
        | E::NodeRemoved
        | E::SessionUnknown
        | E::NotYours
        | E::UnsealedContext
        | E::Fenced => shown(40, H::FORBIDDEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_fails_on_every_surface() {
        for code in ErrorCode::ALL {
            let shown = of(*code);
            assert!((1..=63).contains(&shown.exit), "{code}");
            assert!(shown.http.is_client_error() || shown.http.is_server_error(), "{code}");
        }
    }

    #[test]
    fn classes_keep_their_exit_codes() {
        assert_eq!(of(ErrorCode::InvalidArgument).exit, 2);
        assert_eq!(of(ErrorCode::NotFound).exit, 4);
        assert_eq!(of(ErrorCode::HostNotApproved).exit, 20);
        assert_eq!(of(ErrorCode::NoNodeFits).exit, 30);
    }
}
