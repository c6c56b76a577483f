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
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

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

/// What the handlers share.
#[derive(Clone)]
struct Shown {
    told: Told,
    /// One collection at a time: one that does not come back keeps one thread, however often somebody asks.
    turn: Arc<Semaphore>,
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
        .with_state(Shown { told, turn: Arc::new(Semaphore::new(1)) });
    axum::serve(listener, app).with_graceful_shutdown(stop).await
}

async fn live(State(shown): State<Shown>) -> Response {
    let verdict = tokio::time::timeout(PATIENCE, (shown.told.live)()).await;
    verdict_response(verdict.unwrap_or_else(|_| Err(no_answer())))
}

async fn ready(State(shown): State<Shown>) -> Response {
    verdict_response(shown.told.ready.borrow().clone())
}

fn verdict_response(verdict: Verdict) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn no_answer() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let Shown { told, turn } = shown;
    let text = async {
        let turn = turn.acquire_owned().await;
        let registry = told.metrics.borrow().clone();
        // Collectors may take locks and walk tables: not on the threads that serve everything else.
        tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            let encoded = encode(&mut text, &registry).map(|()| text);
            drop(turn);
            encoded
        })
        .await
    };
    match tokio::time::timeout(PATIENCE, text).await {
        Ok(Ok(Ok(text))) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(Ok(Err(e))) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
        Err(_) => verdict_response(Err(no_answer())),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::Instant,
    };

    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

    use super::*;

    async fn ask(at: std::net::SocketAddr, path: &str) -> (u16, String) {
        let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
        let answer = client.get(format!("http://{at}{path}").parse().unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn start(live: Check) -> (std::net::SocketAddr, watch::Sender<Verdict>) {
        let mut registry = Registry::default();
        let ops = Operations::new("csi.weir.storage");
        ops.register(&mut registry);
        ops.record("/csi.v1.Node/NodeStageVolume", "OK", Duration::from_millis(30));
        start_with(live, registry).await
    }

    async fn start_with(live: Check, registry: Registry) -> (std::net::SocketAddr, watch::Sender<Verdict>) {
        let (set, ready) = watch::channel(Err("no goals from a controller yet".to_owned()));
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
        let labels = "driver_name=\"csi.weir.storage\",method_name=\"/csi.v1.Node/NodeStageVolume\"";
        let count = format!("csi_plugin_operations_seconds_count{{{labels},grpc_status_code=\"OK\"}} 1\n");
        assert!(text.contains(&count), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    /// Comes back when there is nobody any more who could let it.
    #[derive(Debug)]
    struct Stuck {
        asked: Arc<AtomicUsize>,
        go: Mutex<mpsc::Receiver<()>>,
    }

    impl Collector for Stuck {
        fn encode(&self, _: DescriptorEncoder<'_>) -> fmt::Result {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.go.lock().unwrap().recv().unwrap_or_default();
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_stuck_collector_keeps_nobody_waiting_and_one_thread_at_most() {
        let (go, wait) = mpsc::channel();
        let (asked, mut registry) = (Arc::<AtomicUsize>::default(), Registry::default());
        registry.register_collector(Box::new(Stuck { asked: asked.clone(), go: Mutex::new(wait) }));
        let (at, _set) = start_with(Arc::new(|| Box::pin(async { Ok(()) })), registry).await;
        let both = async { tokio::join!(ask(at, "/metrics"), ask(at, "/metrics")) };
        let answers = tokio::time::timeout(PATIENCE * 4, both).await.expect("answers in time");
        for (code, why) in [answers.0, answers.1] {
            assert_eq!((code, why.contains("no answer")), (503, true), "{why}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        drop(go);
        assert_eq!(ask(at, "/metrics").await.0, 200);
    }
}
