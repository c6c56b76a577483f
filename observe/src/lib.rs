//! What Weir's binaries tell about themselves over HTTP: `/livez`, `/readyz` with the reason when not, and `/metrics` in
//! OpenMetrics text.
//!
//! Invariant: an answer never waits for longer than [`PATIENCE`]; a check that does not answer has failed. Must not
//! know: what is measured.

mod ask;
mod layer;
mod operations;

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::BoxFuture;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, sync::watch};

pub use ask::ask_ready;
pub use operations::Operations;
pub use prometheus_client as prometheus;

/// How long a check may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An error with its causes, for people: what a cause says is left out where it stands in the text already.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut at = e.source();
    while let Some(cause) = at {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        at = cause.source();
    }
    text
}

/// Whether something is as it should be; if not, why, for people.
pub type Verdict = Result<(), String>;

/// A check that is made when somebody asks.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Verdict> + Send + Sync>;

/// What is told.
#[derive(Clone)]
pub struct Told {
    /// Whether the process works; if not, it should be started anew.
    pub live: Check,
    /// Whether it can serve now.
    pub ready: watch::Receiver<Verdict>,
    /// What is measured now.
    pub metrics: watch::Receiver<Arc<Registry>>,
}

/// Serves until `stop` is done.
///
/// # Errors
/// The listener has failed.
pub async fn serve(
    listener: TcpListener,
    told: Told,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(told);
    axum::serve(listener, app).with_graceful_shutdown(stop).await
}

async fn live(State(told): State<Told>) -> Response {
    let verdict = tokio::time::timeout(PATIENCE, (told.live)()).await;
    verdict_response(verdict.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
}

async fn ready(State(told): State<Told>) -> Response {
    verdict_response(told.ready.borrow().clone())
}

fn verdict_response(verdict: Verdict) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(told): State<Told>) -> Response {
    // Collectors may take locks and walk tables: not on the threads that serve everything else.
    let registry = told.metrics.borrow().clone();
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};

    use super::*;

    async fn ask(at: std::net::SocketAddr, path: &str) -> (u16, String) {
        let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
        let answer = client.get(format!("http://{at}{path}").parse().unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn start(live: Check) -> (std::net::SocketAddr, watch::Sender<Verdict>) {
        let (set, ready) = watch::channel(Err("no goals from a controller yet".to_owned()));
        let mut registry = Registry::default();
        let ops = Operations::default();
        ops.register(&mut registry);
        ops.record("NodeStageVolume", "Ok", Duration::from_millis(30));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let told = Told { live, ready, metrics: watch::channel(Arc::new(registry)).1 };
        tokio::spawn(serve(listener, told, std::future::pending()));
        (at, set)
    }

    #[tokio::test]
    async fn readiness_says_why_not_and_follows() {
        let (at, set) = start(Arc::new(|| Box::pin(async { Ok(()) }))).await;
        assert_eq!(ask(at, "/readyz").await, (503, "no goals from a controller yet\n".into()));
        drop(set.send_replace(Ok(())));
        assert_eq!(ask(at, "/readyz").await, (200, "ok\n".into()));
        assert_eq!(ask(at, "/livez").await.0, 200);
        assert_eq!(ask(at, "/nothing").await.0, 404);
    }

    #[test]
    fn an_error_says_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Why {
            text: &'static str,
            source: Option<Box<Why>>,
        }
        let why = |text, source: Option<Why>| Why { text, source: source.map(Box::new) };
        let e = why("it failed: no disk", Some(why("no disk", Some(why("it is gone", None)))));
        assert_eq!(chain(&e), "it failed: no disk: it is gone");
    }

    #[tokio::test]
    async fn a_program_asks_as_well() {
        let (at, set) = start(Arc::new(|| Box::pin(async { Ok(()) }))).await;
        let asked = || tokio::task::spawn_blocking(move || ask_ready(&at.to_string()));
        let why = asked().await.unwrap().unwrap_err();
        assert!(why.contains("503") && why.contains("no goals from a controller yet"), "{why}");
        drop(set.send_replace(Ok(())));
        assert_eq!(asked().await.unwrap(), Ok(()));
        let nobody = ask_ready("127.0.0.1:1").unwrap_err();
        assert!(nobody.contains("does not answer"), "{nobody}");
    }

    #[tokio::test]
    async fn what_does_not_answer_is_not_live() {
        let (at, _set) = start(Arc::new(|| Box::pin(std::future::pending()))).await;
        let begun = Instant::now();
        let (code, why) = ask(at, "/livez").await;
        assert_eq!((code, why.contains("no answer")), (503, true), "{why}");
        assert!(begun.elapsed() >= PATIENCE);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_text() {
        let (at, _set) = start(Arc::new(|| Box::pin(async { Ok(()) }))).await;
        let (code, text) = ask(at, "/metrics").await;
        assert_eq!(code, 200);
        let count = "weir_csi_operation_seconds_count{operation=\"NodeStageVolume\",code=\"Ok\"} 1";
        assert!(text.contains(count), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
