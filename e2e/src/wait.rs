//! Waiting on a predicate with a deadline: the only way tests and the lab wait for anything.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long to rest between two looks at a predicate.
const PACE: Duration = Duration::from_millis(50);

/// Calls `look` until it answers `Some`, and returns that.
///
/// # Errors
/// What `look` returned, at once; or a message naming `what` once `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            bail!("waited {:.1} s for {what}", start.elapsed().as_secs_f64());
        }
        std::thread::sleep(PACE);
    }
}

/// Like [`until`], but an error of `look` is taken as "not yet"; the last one is the cause once time is up.
///
/// # Errors
/// A message naming `what`, with the last error of `look`.
pub fn until_ok<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if start.elapsed() >= limit => {
                return Err(last.context(format!("waited {:.1} s for {what}", start.elapsed().as_secs_f64())));
            }
            Err(_) => std::thread::sleep(PACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_what_was_found_and_says_what_was_not() {
        let mut left = 3;
        let found = until("three looks", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some(7))
        });
        assert_eq!(found.unwrap(), 7);
        let missed = until::<()>("the impossible", Duration::ZERO, || Ok(None)).unwrap_err();
        assert!(missed.to_string().contains("the impossible"));
        let cause = until_ok::<()>("a door", Duration::ZERO, || bail!("locked")).unwrap_err();
        assert!(format!("{cause:#}").contains("locked"));
    }
}
