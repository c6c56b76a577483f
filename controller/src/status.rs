//! One function from [`ApiError`] to a gRPC status. `details` stays empty, as the specification demands.

use tonic::{Code, Status};

use crate::api::ApiError;

/// The status for an error, as the CSI specification assigns codes.
pub(crate) fn status(e: &ApiError) -> Status {
    let code = match e {
        ApiError::Invalid(_) => Code::InvalidArgument,
        ApiError::NoVolume(_)
        | ApiError::NoNode(_)
        | ApiError::NoDisk(_)
        | ApiError::NoSuchDisk(_)
        | ApiError::NoTarget { .. } => Code::NotFound,
        ApiError::Exists { .. } | ApiError::Incompatible(_) => Code::AlreadyExists,
        ApiError::NoRoom(_) => Code::ResourceExhausted,
        ApiError::OutOfRange(_) => Code::OutOfRange,
        ApiError::Precondition(_) => Code::FailedPrecondition,
        ApiError::Busy(_) | ApiError::BadToken(_) => Code::Aborted,
        ApiError::Unavailable(_) => Code::Unavailable,
        ApiError::Unfinished(_) => Code::DeadlineExceeded,
        ApiError::Internal(_) => Code::Internal,
    };
    Status::new(code, e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_specification() {
        for (e, code) in [
            (ApiError::NoVolume("x".into()), Code::NotFound),
            (ApiError::BadToken("x".into()), Code::Aborted),
            (ApiError::NoRoom("x".into()), Code::ResourceExhausted),
            (ApiError::Precondition("x".into()), Code::FailedPrecondition),
        ] {
            let s = status(&e);
            assert_eq!(s.code(), code);
            assert!(s.details().is_empty());
        }
    }
}
