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

/// Names of gRPC's codes by number (grpc.io, "Status codes and their use in gRPC"), as Go prints them
/// (google.golang.org/grpc/codes): dashboards look for these.
const CODES: [&str; 17] = [
    "OK",
    CANCELED,
    UNKNOWN,
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    UNIMPLEMENTED,
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
pub(crate) const UNIMPLEMENTED: &str = "Unimplemented";
const CANCELED: &str = "Canceled";
const UNKNOWN: &str = "Unknown";

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
        let (path, operations) = (request.uri().path().to_owned(), self.operations.clone());
        let running = Running { operations, path, begun: Instant::now(), code: CANCELED };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // All of it belongs to the future: a use of one field alone would take only that.
            let mut running = running;
            let answer = answer.await;
            running.code = answer.as_ref().map_or(UNKNOWN, |a| code(a.headers()));
            answer
        })
    }
}

/// An operation that is counted when it ends, by an answer or because nobody waits any more: the server drops it when
/// the caller has gone or its deadline has passed.
struct Running {
    operations: Operations,
    path: String,
    begun: Instant,
    code: &'static str,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.operations.record(&self.path, self.code, self.begun.elapsed());
    }
}

/// A failed unary operation answers with trailers only, which arrive as headers; one that has a body has gone well so
/// far, and unary ones then do to the end.
fn code(headers: &HeaderMap) -> &'static str {
    let Some(value) = headers.get("grpc-status") else { return CODES[0] };
    let number = value.to_str().ok().and_then(|v| v.parse::<usize>().ok());
    number.and_then(|n| CODES.get(n).copied()).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use prometheus_client::{encoding::text::encode, registry::Registry};
    use tower::ServiceExt as _;

    use super::*;

    fn text_of(operations: &Operations) -> String {
        let mut registry = Registry::default();
        operations.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(format!("http://a{path}")).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn csi_is_counted_as_dashboards_have_it_and_the_rest_by_names_of_ours() {
        let operations = Operations::new("csi.weir.storage");
        let inner = tower::service_fn(|r: Request<Body>| async move {
            let status = match r.uri().path() {
                "/csi.v1.Node/NodeStageVolume" | "/weir.admin.v1.Admin/Survey" => None,
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
        for path in [
            "/csi.v1.Node/NodeStageVolume",
            "/csi.v1.Node/NodeGetVolumeStats",
            "/csi.v1.Made/Up",
            "/csi.v1.Made/UpToo",
            "/weir.admin.v1.Admin/Survey",
            "/x/y",
        ] {
            service.clone().oneshot(request(path)).await.unwrap();
        }
        let text = text_of(&operations);
        let driver = "driver_name=\"csi.weir.storage\"";
        for (method, code, n) in [
            ("/csi.v1.Node/NodeStageVolume", "OK", 1),
            ("/csi.v1.Node/NodeGetVolumeStats", "NotFound", 1),
            ("unknown", "Unimplemented", 2),
        ] {
            let labels = format!("{driver},method_name=\"{method}\",grpc_status_code=\"{code}\"");
            let line = format!("csi_plugin_operations_seconds_count{{{labels}}} {n}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        for (operation, code) in [("Survey", "OK"), ("unknown", "Unimplemented")] {
            let labels = format!("operation=\"{operation}\",code=\"{code}\"");
            let line = format!("weir_operation_seconds_count{{{labels}}} 1\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_counted_as_well() {
        let operations = Operations::new("d");
        let inner = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let call = operations.layer(inner).oneshot(request("/csi.v1.Controller/CreateVolume"));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), call).await.is_err());
        let text = text_of(&operations);
        let line = "method_name=\"/csi.v1.Controller/CreateVolume\",grpc_status_code=\"Canceled\"} 1\n";
        assert!(text.contains(line), "{text}");
    }
}
