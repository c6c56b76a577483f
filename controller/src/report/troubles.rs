//! What cannot be told to the cluster at the moment: a warning when that begins, a word when it is over, and no more in
//! between. Must not know: what is told.

use std::{collections::BTreeMap, fmt::Display};

/// Things that are named in the log while they fail; of more it is said that there are more.
const NAMED: usize = 16;

/// What a request that failed says about others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This one will not be taken later either: its namespace is going, a quota is used up, it makes no sense.
    Refused,
    /// This one was not taken now; others may be.
    NotNow,
    /// Nobody answers: others need not be tried now.
    Away,
}

/// Says what a failed request means.
pub(super) fn judge(e: &kube::Error) -> Verdict {
    match e {
        kube::Error::Api(s) if s.is_forbidden() || s.is_invalid() || s.is_not_found() => Verdict::Refused,
        kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::Auth(_) => Verdict::Away,
        _ => Verdict::NotNow,
    }
}

/// How much of a trouble is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It has failed once, which happens.
    Nothing,
    Named,
    /// Too many others are named.
    Unnamed,
}

/// What fails now.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<String, Said>);

impl Troubles {
    /// `what` could not be told.
    pub(super) fn failed(&mut self, what: &impl Display, error: &impl Display) {
        let what = what.to_string();
        let named = self.0.values().filter(|s| **s == Said::Named).count();
        let said = match self.0.get(&what) {
            Some(Said::Nothing) if named < NAMED => {
                tracing::warn!(%error, "{what} cannot be told; will retry");
                Said::Named
            }
            Some(Said::Nothing) => {
                if !self.0.values().any(|s| *s == Said::Unnamed) {
                    tracing::warn!("more cannot be told than is named here");
                }
                Said::Unnamed
            }
            said => {
                tracing::debug!(%error, "{what} cannot be told now");
                said.copied().unwrap_or(Said::Nothing)
            }
        };
        self.0.insert(what, said);
    }

    /// `what` was told, or there is nothing to tell of it any more.
    pub(super) fn over(&mut self, what: &impl Display) {
        if self.0.is_empty() {
            return;
        }
        let what = what.to_string();
        if self.0.remove(&what) == Some(Said::Named) {
            tracing::info!("{what} is told again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_trouble_that_repeats_is_named_once_and_its_end_once() {
        let log = Log::default();
        let to = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || to.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut t = Troubles::default();
            for _ in 0..3 {
                t.failed(&"this", &"why");
            }
            t.over(&"this");
            t.over(&"this");
            t.failed(&"once", &"why");
            t.over(&"once");
            for n in (0..100).chain(0..100).chain(0..100) {
                t.failed(&n, &"why");
            }
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("this cannot be told").count(), 1, "{text}");
        assert_eq!(text.matches("this is told again").count(), 1, "{text}");
        assert_eq!(text.lines().count(), 2 + NAMED + 1, "{text}");
    }
}
