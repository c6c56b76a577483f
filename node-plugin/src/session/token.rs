//! The token that tells a controller which node this is, where there is no certificate: a projected service account
//! token, which the kubelet writes anew before it expires. It is therefore read for every request.
//!
//! Must not know: what is requested. Invariant: the token is never logged.

use std::path::Path;

use tonic::{Request, Status, metadata::MetadataValue};

/// A request that carries the token of this file, where one is configured.
///
/// # Errors
/// `FailedPrecondition`: the file cannot be read, or holds no token.
pub(super) fn authorized<T>(body: T, file: Option<&Path>) -> Result<Request<T>, Status> {
    let mut request = Request::new(body);
    if let Some(path) = file {
        let bad = |why: String| Status::failed_precondition(format!("token {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let value = MetadataValue::try_from(format!("Bearer {}", text.trim()));
        let mut value = value.map_err(|_| bad("it is no token".to_owned()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_read_anew_for_each_request() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let shown = || {
            authorized((), Some(&file))
                .map(|r| r.metadata().get("authorization").unwrap().to_str().unwrap().to_owned())
        };
        assert!(shown().unwrap_err().message().contains("token"));
        for token in ["one", "two"] {
            std::fs::write(&file, format!("{token}\n")).unwrap();
            assert_eq!(shown().unwrap(), format!("Bearer {token}"));
        }
        std::fs::write(&file, "a\u{7}b").unwrap();
        assert!(shown().is_err());
        assert!(authorized((), None).unwrap().metadata().is_empty());
    }
}
