//! Errors on the wire: a gRPC status that any client understands. The error code is its machine-readable reason
//! (`google.rpc.ErrorInfo`).

use std::collections::HashMap;

use aegis_types::error::{Error, ErrorCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const DOMAIN: &str = "aegis.cluster";
const REMEDY: &str = "remedy";

const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::ConfigInvalid => Code::InvalidArgument,
        ErrorCode::NotFound | ErrorCode::ImageNotFound => Code::NotFound,
        ErrorCode::Conflict => Code::AlreadyExists,
        ErrorCode::FailedPrecondition
        | ErrorCode::HostCheckFailed
        | ErrorCode::HostNotApproved
        | ErrorCode::HostKeyUnknown
        | ErrorCode::HostKeyChanged
        | ErrorCode::ContentMissing
        | ErrorCode::Unconfirmed
        | ErrorCode::Lost
        | ErrorCode::Fenced => Code::FailedPrecondition,
        ErrorCode::Unauthenticated
        | ErrorCode::TokenExpired
        | ErrorCode::NonceReplay
        | ErrorCode::InvalidSignature
        | ErrorCode::UntrustedCa
        | ErrorCode::EnrolmentInvalid
        | ErrorCode::EnrolmentExpired
        | ErrorCode::ChallengeExpired
        | ErrorCode::ClockSkew
        | ErrorCode::SessionUnknown
        | ErrorCode::UnsealedContext => Code::Unauthenticated,
        ErrorCode::Forbidden
        | ErrorCode::KeyMismatch
        | ErrorCode::ControllerMismatch
        | ErrorCode::NodeRemoved
        | ErrorCode::NotYours => Code::PermissionDenied,
        ErrorCode::ResourceExhausted | ErrorCode::NoNodeFits => Code::ResourceExhausted,
        ErrorCode::Unavailable
        | ErrorCode::Engine
        | ErrorCode::HostUnreachable
        | ErrorCode::HostAuthentication
        | ErrorCode::HostBusy => Code::Unavailable,
        ErrorCode::Timeout => Code::DeadlineExceeded,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::NotOffered => Code::Unimplemented,
        ErrorCode::DeploymentFailed | ErrorCode::ContainerFailed | ErrorCode::OutOfMemory => Code::Aborted,
        ErrorCode::Storage | ErrorCode::Internal => Code::Internal,
    }
}

/// Marks the error of a call for which no connection could be opened: the node never received it.
#[derive(Debug, thiserror::Error)]
#[error("no connection could be opened")]
pub struct NotSent;

/// Returns whether the call that failed with this error may have reached the other side.
pub fn may_have_arrived(error: &Error) -> bool {
    !std::error::Error::source(error).is_some_and(|source| source.is::<NotSent>())
}

/// Returns whether a status was made on this side because no connection could be opened.
fn is_not_sent(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |cause| cause.source())
        .any(|cause| cause.is::<tonic::ConnectError>() || cause.is::<NotSent>())
}

/// Converts an error to a status. The error's source is logged here and never sent.
pub fn to_status(error: &Error) -> Status {
    let mut metadata = HashMap::new();
    if let Some(remedy) = error.remedy_text() {
        metadata.insert(REMEDY.to_owned(), remedy.to_owned());
    }
    let details = ErrorDetails::with_error_info(error.code().name(), DOMAIN, metadata);
    Status::with_error_details(grpc_code(error.code()), error.message(), details)
}

pub fn from_status(status: &Status) -> Error {
    let info = status.get_error_details().error_info().cloned();
    let named = info
        .as_ref()
        .filter(|info| info.domain == DOMAIN)
        .and_then(|info| ErrorCode::from_name(&info.reason));
    let code = named.unwrap_or(match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        Code::NotFound => ErrorCode::NotFound,
        Code::AlreadyExists => ErrorCode::Conflict,
        Code::PermissionDenied => ErrorCode::Forbidden,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::ResourceExhausted => ErrorCode::ResourceExhausted,
        Code::FailedPrecondition | Code::Aborted => ErrorCode::FailedPrecondition,
        Code::DeadlineExceeded => ErrorCode::Timeout,
        Code::Unimplemented => ErrorCode::NotOffered,
        // A broken connection also shows as Unknown, Cancelled or Internal.
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Unavailable | Code::Internal | Code::DataLoss => {
            ErrorCode::Unavailable
        }
    });
    let mut error = Error::new(code, status.message());
    if is_not_sent(status) {
        error = error.source(NotSent);
    }
    match info.and_then(|mut info| info.metadata.remove(REMEDY)) {
        Some(remedy) => error.remedy(remedy),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refused_connection_is_told_from_a_broken_one() {
        use aegis_proto::aegis::agent::v1::{
            ReleaseExecutionsRequest, worker_service_client::WorkerServiceClient,
        };
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        let called = async || {
            let endpoint = tonic::transport::Endpoint::try_from(format!("http://{address}")).unwrap();
            let mut client = WorkerServiceClient::new(endpoint.connect_lazy());
            from_status(&client.release_executions(ReleaseExecutionsRequest::default()).await.unwrap_err())
        };
        let (broken, ()) = tokio::join!(called(), async { drop(closed.accept().await) });
        assert!(may_have_arrived(&broken), "{broken}");
        drop(closed);
        assert!(!may_have_arrived(&called().await));
    }

    #[test]
    fn every_code_keeps_its_remedy_and_loses_its_source() {
        for code in ErrorCode::ALL {
            let error = Error::new(*code, "what").remedy("do").source(std::io::Error::other("inner"));
            let status = to_status(&error);
            assert!(!format!("{status:?}").contains("inner"));
            let back = from_status(&status);
            assert_eq!((back.code(), back.message(), back.remedy_text()), (*code, "what", Some("do")));
        }
    }
}
