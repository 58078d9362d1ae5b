//! Parts shared by stand-ins of the cluster service.

/// Calls of a service that a stand-in does not answer.
macro_rules! unserved {
    ($($call:ident: $request:ty => $response:ty;)+) => {
        $(fn $call<'a, 'async_trait>(
            &'a self,
            _: tonic::Request<$request>,
        ) -> futures::future::BoxFuture<'async_trait, Result<tonic::Response<$response>, tonic::Status>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(tonic::Status::unimplemented("not served")) })
        })+
    };
}
pub(crate) use unserved;
