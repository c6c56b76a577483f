//! Crash points: named places at which a controller can be told to die, so that tests can show that nothing is lost
//! there. An injected value, the same code in every build: without one a point is a single comparison.
//!
//! Invariants: every record write has a point before it and one after it (the write is durable by then and nobody
//! has been told). Must not know: what is written.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The environment variable that names a point for [`Fault::from_env`].
pub const ENV: &str = "WEIR_CRASH_AT";

/// What a record write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A volume is made.
    Create,
    /// A volume is given to a node.
    Attach,
    /// A dead holder loses a volume to another node, which gets it once the fences stand.
    Evict,
    /// The grant that waited for fences is made.
    Grant,
    /// A second node is admitted behind a guard.
    Guard,
    /// A cut-over begins.
    CutOver,
    /// The source of a cut-over turned out to have left or died.
    CutOverLeft,
    /// A cut-over is done.
    Commit,
    /// A migration is given up, by request or by conflict.
    Abort,
    /// A node gives a volume up.
    Detach,
    /// Nothing is left of a leaver.
    Left,
    /// A volume is marked for deletion.
    Delete,
    /// A deleted volume's extents are retired.
    Retire,
    /// A wipe is done.
    Wiped,
    /// A spent record is erased.
    Erase,
    /// A volume grows.
    Expand,
    /// Its limits change.
    Modify,
    /// A run of extents begins to move.
    MoveBegin,
    /// The new place becomes the truth.
    MoveSwitch,
    /// A move is called off.
    MoveAbort,
    /// A move is over: what it left behind is to be wiped.
    MoveEnd,
    /// A device becomes a disk.
    Claim,
    /// Something about a disk changed: labelled, lost, found, moved.
    Disk,
    /// A stretch of a fresh disk was wiped, or the next one is due.
    Fresh,
    /// A node reports with another address or topology.
    Node,
}

impl Cause {
    /// All of them.
    pub const ALL: &'static [Cause] = &[
        Cause::Create,
        Cause::Attach,
        Cause::Evict,
        Cause::Grant,
        Cause::Guard,
        Cause::CutOver,
        Cause::CutOverLeft,
        Cause::Commit,
        Cause::Abort,
        Cause::Detach,
        Cause::Left,
        Cause::Delete,
        Cause::Retire,
        Cause::Wiped,
        Cause::Erase,
        Cause::Expand,
        Cause::Modify,
        Cause::MoveBegin,
        Cause::MoveSwitch,
        Cause::MoveAbort,
        Cause::MoveEnd,
        Cause::Claim,
        Cause::Disk,
        Cause::Fresh,
        Cause::Node,
    ];

    /// Its name in crash points and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Create => "create",
            Cause::Attach => "attach",
            Cause::Evict => "evict",
            Cause::MoveBegin => "move-begin",
            Cause::MoveSwitch => "move-switch",
            Cause::MoveAbort => "move-abort",
            Cause::MoveEnd => "move-end",
            Cause::Grant => "grant",
            Cause::Guard => "guard",
            Cause::CutOver => "cutover",
            Cause::CutOverLeft => "cutover-left",
            Cause::Commit => "commit",
            Cause::Abort => "abort",
            Cause::Detach => "detach",
            Cause::Left => "left",
            Cause::Delete => "delete",
            Cause::Retire => "retire",
            Cause::Wiped => "wiped",
            Cause::Erase => "erase",
            Cause::Expand => "expand",
            Cause::Modify => "modify",
            Cause::Claim => "claim",
            Cause::Disk => "disk",
            Cause::Fresh => "fresh",
            Cause::Node => "node",
        }
    }
}

/// Which side of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nothing is durable.
    Before,
    /// It is durable, and nobody knows.
    After,
}

impl Side {
    const fn as_str(self) -> &'static str {
        match self {
            Side::Before => "before",
            Side::After => "after",
        }
    }
}

/// Every crash point there is: `create.before`, `create.after`, ...
pub fn points() -> impl Iterator<Item = String> {
    Cause::ALL
        .iter()
        .flat_map(|c| [Side::Before, Side::After].map(|s| format!("{}.{}", c.as_str(), s.as_str())))
}

/// Why a text is no crash point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("crash point {text:?} is not known; NAME or NAME:COUNT is expected, NAME one of: {}", points().collect::<Vec<_>>().join(", "))]
pub struct BadFault {
    text: String,
}

/// Where to die, if anywhere.
#[derive(Clone, Debug, Default)]
pub struct Fault(Option<Arc<Point>>);

#[derive(Debug)]
struct Point {
    name: String,
    left: AtomicU64,
}

impl Fault {
    /// Nowhere.
    pub const fn none() -> Self {
        Self(None)
    }

    /// At the named point, at its `COUNT`th passing (the first without one).
    pub fn parse(text: &str) -> Result<Self, BadFault> {
        let bad = || BadFault { text: text.chars().take(64).collect() };
        let (name, count) = match text.split_once(':') {
            Some((n, c)) => (n, c.parse::<u64>().ok().filter(|c| *c > 0).ok_or_else(bad)?),
            None => (text, 1),
        };
        if !points().any(|p| p == name) {
            return Err(bad());
        }
        Ok(Self(Some(Arc::new(Point { name: name.to_owned(), left: AtomicU64::new(count) }))))
    }

    /// What the environment asks for.
    pub fn from_env() -> Result<Self, BadFault> {
        match std::env::var(ENV) {
            Ok(text) if !text.is_empty() => Self::parse(&text),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(Self::none()),
            Err(std::env::VarError::NotUnicode(_)) => Err(BadFault { text: "(not UTF-8)".to_owned() }),
        }
    }

    /// Whether this passing of the point is the one to die at.
    fn hits(&self, cause: Cause, side: Side) -> bool {
        let Some(p) = &self.0 else { return false };
        let here =
            p.name.strip_prefix(cause.as_str()).and_then(|r| r.strip_prefix('.')) == Some(side.as_str());
        here && p.left.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Dies here if it was asked to: at once, without unwinding, as if the power had gone.
    pub fn point(&self, cause: Cause, side: Side) {
        if self.hits(cause, side) {
            tracing::error!(point = %format_args!("{}.{}", cause.as_str(), side.as_str()), "crash point reached");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_found_by_name_and_counted() {
        let f = Fault::parse("commit.after:2").expect("a point");
        assert!(!f.hits(Cause::Commit, Side::Before));
        assert!(!f.hits(Cause::Commit, Side::After), "the first passing");
        assert!(f.hits(Cause::Commit, Side::After), "the second");
        assert!(!f.hits(Cause::Commit, Side::After), "dead by then");
        assert!(!Fault::none().hits(Cause::Commit, Side::After));
        for bad in ["", "commit", "commit.later", "commit.after:0", "commit.after:x"] {
            assert!(Fault::parse(bad).is_err(), "{bad:?}");
        }
        let mut names: Vec<_> = points().collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Cause::ALL.len() * 2);
    }
}
