//! A tower layer that times gRPC operations at the server.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use axum::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use crate::Operations;

/// Names of gRPC's codes by number (grpc.io, "Status codes and their use in gRPC"), as tonic prints them.
const CODES: [&str; 17] = [
    "Ok",
    "Cancelled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// What an operation is called that the server does not have: clients must not be able to make up labels.
const UNKNOWN: &str = "unknown";

impl<S> Layer<S> for Operations {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, operations: self.clone() }
    }
}

/// A service whose operations are timed.
#[derive(Clone, Debug)]
pub struct Timed<S> {
    inner: S,
    operations: Operations,
}

impl<S, A, B> Service<Request<A>> for Timed<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let path = request.uri().path();
        let operation = path.rsplit('/').next().unwrap_or(path).to_owned();
        let (begun, operations) = (Instant::now(), self.operations.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let code = code(answer.headers());
            let operation = if code == "Unimplemented" { UNKNOWN } else { &operation };
            operations.record(operation, code, begun.elapsed());
            Ok(answer)
        })
    }
}

/// A failed unary operation answers with trailers only, which arrive as headers; one that has a body has gone well so
/// far, and unary ones then do to the end.
fn code(headers: &HeaderMap) -> &'static str {
    let Some(value) = headers.get("grpc-status") else { return CODES[0] };
    let number = value.to_str().ok().and_then(|v| v.parse::<usize>().ok());
    number.and_then(|n| CODES.get(n).copied()).unwrap_or("Unknown")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use prometheus_client::{encoding::text::encode, registry::Registry};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn operations_are_counted_by_name_and_code() {
        let operations = Operations::default();
        let inner = tower::service_fn(|r: Request<Body>| async move {
            let status = match r.uri().path() {
                "/csi.v1.Node/NodeStageVolume" => None,
                "/csi.v1.Node/NodeGetVolumeStats" => Some("5"),
                _ => Some("12"),
            };
            let mut answer = Response::new(Body::empty());
            if let Some(s) = status {
                answer.headers_mut().insert("grpc-status", s.parse().unwrap());
            }
            Ok::<_, std::convert::Infallible>(answer)
        });
        let service = operations.layer(inner);
        for path in ["/csi.v1.Node/NodeStageVolume", "/csi.v1.Node/NodeGetVolumeStats", "/made/up", "/x/y"] {
            let request = Request::builder().uri(format!("http://a{path}")).body(Body::empty()).unwrap();
            service.clone().oneshot(request).await.unwrap();
        }
        let mut registry = Registry::default();
        operations.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for (operation, code, n) in [
            ("NodeStageVolume", "Ok", 1),
            ("NodeGetVolumeStats", "NotFound", 1),
            (UNKNOWN, "Unimplemented", 2),
        ] {
            let line = format!("_count{{operation=\"{operation}\",code=\"{code}\"}} {n}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
