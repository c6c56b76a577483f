//! Whether the plugin is ready where a kubelet is to use it: a controller has to be there, and the kubelet has to have
//! taken the plugin.
//!
//! Invariants: a refusal stands until the kubelet takes the plugin, whatever is tried in between; a kubelet that is slow
//! is waited for, and counts against the plugin after a while and no longer than until it has registered it. Must not
//! know: how either comes about.

use std::time::Duration;

use observe::Verdict;
use tokio::{sync::watch, time::Instant};

use super::Standing;

/// How long a kubelet may take: it finds a new socket within a second, but a node that boots has more to do.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Follows what is said of the session and of the kubelet. The kubelet is waited for as long as `patience`, each time
/// that it has to register the plugin anew.
pub fn follow(
    session: watch::Receiver<Verdict>,
    kubelet: watch::Receiver<Standing>,
    patience: Duration,
) -> watch::Receiver<Verdict> {
    let (tell, verdict) = watch::channel(session.borrow().clone());
    tokio::spawn(keep(session, kubelet, patience, tell));
    verdict
}

async fn keep(
    mut session: watch::Receiver<Verdict>,
    mut kubelet: watch::Receiver<Standing>,
    patience: Duration,
    tell: watch::Sender<Verdict>,
) {
    let mut word = Word::default();
    loop {
        let now = Instant::now();
        word.hear(&kubelet.borrow_and_update(), now + patience);
        let verdict = both(session.borrow_and_update().clone(), word.verdict(now, patience));
        tell.send_if_modified(|said| {
            let news = *said != verdict;
            *said = verdict;
            news
        });
        let heard = tokio::select! {
            r = session.changed() => r,
            r = kubelet.changed() => r,
            () = until(word.late_at.filter(|at| *at > now)) => Ok(()),
        };
        if heard.is_err() {
            // The plugin ends.
            return;
        }
    }
}

/// What there is to know of the kubelet.
#[derive(Debug, Default)]
struct Word {
    /// Why it has not taken the plugin when it was last asked to.
    refused: Option<String>,
    /// From when on it is late.
    late_at: Option<Instant>,
}

impl Word {
    fn hear(&mut self, standing: &Standing, late_at: Instant) {
        match standing {
            Standing::Waiting => {
                self.late_at.get_or_insert(late_at);
            }
            Standing::Registered => *self = Self::default(),
            Standing::Refused(why) => self.refused = Some(why.clone()),
        }
    }

    fn verdict(&self, now: Instant, patience: Duration) -> Verdict {
        match (&self.refused, self.late_at) {
            (Some(why), _) => Err(format!("not registered with the kubelet: {why}")),
            (None, Some(at)) if at <= now => {
                Err(format!("not registered with the kubelet: it has not answered for {patience:?}"))
            }
            (None, _) => Ok(()),
        }
    }
}

fn both(session: Verdict, kubelet: Verdict) -> Verdict {
    match (session, kubelet) {
        (Err(a), Err(b)) => Err(format!("{a}; {b}")),
        (a, b) => a.and(b),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    /// How long the verdict may lag behind.
    const LIMIT: Duration = Duration::from_secs(30);

    async fn until_says(verdict: &mut watch::Receiver<Verdict>, words: &[&str]) {
        let fits = |v: &Verdict| match v {
            Ok(()) => words.is_empty(),
            Err(why) => !words.is_empty() && words.iter().all(|w| why.contains(w)),
        };
        let wait = tokio::time::timeout(LIMIT, verdict.wait_for(fits)).await;
        assert!(wait.is_ok_and(|r| r.is_ok()), "{words:?} expected, {:?} said", verdict.borrow());
    }

    #[tokio::test]
    async fn a_refusal_is_told_until_the_kubelet_has_taken_the_plugin() {
        let (controller, session) = watch::channel(Err("no controller".to_owned()));
        let (kubelet, standing) = watch::channel(Standing::Waiting);
        let mut verdict = follow(session, standing, LONG);
        until_says(&mut verdict, &["no controller"]).await;
        kubelet.send_replace(Standing::Refused("wrong version".into()));
        until_says(&mut verdict, &["no controller", "wrong version"]).await;
        drop(controller.send_replace(Ok(())));
        until_says(&mut verdict, &["kubelet: wrong version"]).await;
        // Another socket is there: nothing is better yet. The other way round shows that it was heard.
        kubelet.send_replace(Standing::Waiting);
        drop(controller.send_replace(Err("away".to_owned())));
        until_says(&mut verdict, &["away", "wrong version"]).await;
        drop(controller.send_replace(Ok(())));
        until_says(&mut verdict, &["wrong version"]).await;
        kubelet.send_replace(Standing::Registered);
        until_says(&mut verdict, &[]).await;
        kubelet.send_replace(Standing::Waiting);
        drop(controller.send_replace(Err("away".to_owned())));
        until_says(&mut verdict, &["away"]).await;
        assert!(!verdict.borrow().as_ref().unwrap_err().contains("kubelet"), "it is asked anew");
    }

    #[tokio::test]
    async fn a_slow_kubelet_is_waited_for_and_then_told_of_until_it_answers() {
        let (_controller, session) = watch::channel(Ok(()));
        let (kubelet, standing) = watch::channel(Standing::Waiting);
        let mut early = follow(session.clone(), standing.clone(), LONG);
        let mut verdict = follow(session, standing, Duration::from_millis(20));
        assert_eq!(*verdict.borrow(), Ok(()));
        until_says(&mut verdict, &["not registered with the kubelet", "20ms"]).await;
        assert_eq!(*early.borrow_and_update(), Ok(()));
        kubelet.send_replace(Standing::Registered);
        until_says(&mut verdict, &[]).await;
        // The socket was taken away: it is waited for again, and no longer than before.
        kubelet.send_replace(Standing::Waiting);
        until_says(&mut verdict, &["20ms"]).await;
        assert!(!early.has_changed().unwrap());
    }
}
