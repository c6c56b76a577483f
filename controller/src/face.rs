//! What a controller shows of itself from its start to its end, whoever reigns: health, metrics, and what nodes are answered.
//!
//! Invariants: a standby is ready, for it does what it is there for; a controller is live while it starts and stands by, and
//! as long as its core answers once it reigns. Must not know: records, the store.

use std::sync::Arc;

use observe::{Operations, Told, Verdict, prometheus::registry::Registry};
use tokio::sync::watch;

use crate::{
    api::Api,
    config::Config,
    core::Handle,
    identity::Refusals,
    late::Late,
    metrics::{self, Crown},
    serve::{ServeError, bind},
    session::{Front, Identify, Role, Service},
    store::kubernetes::Other,
};

fn starting() -> Verdict {
    Err("starting: who reigns is not known yet".to_owned())
}

/// Clones show the same.
#[derive(Clone)]
pub(crate) struct Face {
    ready: watch::Sender<Verdict>,
    role: watch::Sender<Role>,
    reigns: watch::Sender<bool>,
    core: watch::Sender<Option<Handle>>,
    crown: Crown,
    metrics: watch::Sender<Arc<Registry>>,
}

impl Face {
    /// Shows a controller that has just started, with what is counted where it answers CSI.
    pub(crate) fn new(operations: &Operations) -> Self {
        let crown = Crown::default();
        Self {
            ready: watch::channel(starting()).0,
            role: watch::channel(Role::Starting).0,
            reigns: watch::channel(false).0,
            core: watch::channel(None).0,
            metrics: watch::channel(Arc::new(metrics::standby(&crown, operations))).0,
            crown,
        }
    }

    /// Serves health and metrics, where they are configured, until `stop` says so.
    pub(crate) async fn serve_http(
        &self,
        config: &Config,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), ServeError> {
        let Some(at) = config.listen.http else { return Ok(()) };
        let told =
            Told { live: self.live(), ready: self.ready.subscribe(), metrics: self.metrics.subscribe() };
        let listener = bind(&at.to_string()).await?;
        let until = async move { drop(stop.wait_for(|s| *s).await) };
        tokio::spawn(async move {
            if let Err(e) = observe::serve(listener, told, until).await {
                tracing::error!(%at, error = %e, "health and metrics are not served any more");
            }
        });
        Ok(())
    }

    /// The process lives when its core answers, once it has one.
    fn live(&self) -> observe::Check {
        let core = self.core.subscribe();
        Arc::new(move || {
            let handle = core.borrow().clone();
            Box::pin(async move {
                match handle {
                    Some(h) => h.tally().await.map(drop).map_err(|e| e.to_string()),
                    None => Ok(()),
                }
            })
        })
    }

    fn ready(&self, verdict: Verdict) {
        drop(self.ready.send_replace(verdict));
    }

    /// Shows what is measured of a reign that is about to begin.
    pub(crate) fn measure(&self, handle: &Handle, operations: &Operations, refused: &Refusals) {
        let all = metrics::registry(handle, &self.crown, operations, refused);
        self.metrics.send_replace(Arc::new(all));
    }

    /// It starts, and cannot yet: why.
    pub(crate) fn held_up(&self, why: &str) {
        self.ready(Err(why.to_owned()));
    }

    /// What held up the start does so no more.
    pub(crate) fn starts(&self) {
        self.ready(starting());
    }

    /// Whether this controller reigns.
    pub(crate) fn reigns(&self) -> watch::Receiver<bool> {
        self.reigns.subscribe()
    }

    /// What answers whoever speaks CSI.
    pub(crate) fn api(&self) -> Arc<dyn Api> {
        Arc::new(Late::new(self.core.subscribe()))
    }

    /// What answers nodes.
    pub(crate) fn sessions(&self) -> Front {
        Front::new(self.role.subscribe())
    }

    /// Shows who else reigns, as long as this controller does not. Never done.
    pub(crate) async fn stand_by(&self, mut other: watch::Receiver<Option<Other>>) {
        loop {
            let found = other.borrow_and_update().clone();
            match found {
                Some(o) => {
                    self.role.send_replace(Role::Standby(o.address));
                    self.ready(Ok(()));
                }
                // The Lease is ours: records are being loaded, or all is up.
                None if matches!(*self.role.borrow(), Role::Standby(_)) => {
                    self.role.send_replace(Role::Starting);
                    self.ready(Err("loading records".to_owned()));
                }
                None => {}
            }
            if other.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// This controller reigns and can serve.
    pub(crate) fn reign(&self, handle: Handle, identify: Arc<dyn Identify>) {
        self.crown.take(handle.term());
        self.core.send_replace(Some(handle.clone()));
        self.role.send_replace(Role::Reigning(Service::new(handle, identify)));
        self.reigns.send_replace(true);
        self.ready(Ok(()));
    }

    /// This controller decides nothing any more: it ends.
    pub(crate) fn abdicate(&self) {
        self.crown.lay_down();
        self.ready(Err("stopping".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use observe::prometheus::encoding::text::encode;

    use super::*;
    use crate::{
        core::{Core, CoreConfig},
        fault::Fault,
        session::Unproven,
        store::embedded::Embedded,
    };

    #[tokio::test]
    async fn a_standby_shows_that_it_does_not_reign_and_its_metrics_follow_its_reign() {
        let operations = Operations::new("csi.weir.storage");
        let face = Face::new(&operations);
        let shown = async || {
            let all = face.metrics.borrow().clone();
            let body = move || {
                let mut text = String::new();
                encode(&mut text, &all).map(|()| text)
            };
            tokio::task::spawn_blocking(body).await.unwrap().unwrap()
        };
        let has = |text: &str, reigns: u64, term: u64| {
            let lines =
                [format!("weir_controller_reigns {reigns}\n"), format!("weir_controller_term {term}\n")];
            assert!(lines.iter().all(|l| text.contains(l)), "{lines:?} in {text}");
        };
        let method = "/csi.v1.Identity/Probe";
        operations.record(method, "OK", std::time::Duration::ZERO);
        let text = shown().await;
        has(&text, 0, 0);
        assert!(text.contains(method) && !text.contains("weir_nodes"), "{text}");

        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&dir.path().join("records")).unwrap());
        let (core, handle) = Core::start(CoreConfig::default(), store, Fault::none()).await.unwrap();
        let (core, term) = (tokio::spawn(core.run()), handle.term().get());
        assert_ne!(term, 0);
        face.measure(&handle, &operations, &Refusals::default());
        has(&shown().await, 0, 0);
        face.reign(handle, Arc::new(Unproven));
        // It may take longer than is waited for, on a machine that has more to do.
        let numbers = async {
            loop {
                let text = shown().await;
                has(&text, 1, term);
                assert!(text.contains(method), "{text}");
                if text.contains("weir_nodes") {
                    break;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), numbers).await.unwrap();
        face.abdicate();
        has(&shown().await, 0, 0);
        core.abort();
    }
}
