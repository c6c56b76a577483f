//! Points at which a test can make the plugin die. Compiled always: a fault is a value that comes from outside
//! (`WEIR_CRASH_AT`), not another program.

use std::{fmt, str::FromStr};

/// A point in an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Stage: the volume is attached, nothing else is done.
    StageAttached,
    /// Stage: the file system has been made.
    StageFormatted,
    /// Stage: it is mounted.
    StageMounted,
    /// Unstage: it is unmounted, and still attached.
    UnstageUnmounted,
    /// Publish: the target exists, nothing is bound there.
    PublishTarget,
}

/// All points with their names.
pub(super) const POINTS: [(Point, &str); 5] = [
    (Point::StageAttached, "stage.attached"),
    (Point::StageFormatted, "stage.formatted"),
    (Point::StageMounted, "stage.mounted"),
    (Point::UnstageUnmounted, "unstage.unmounted"),
    (Point::PublishTarget, "publish.target"),
];

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = POINTS.iter().find(|(p, _)| p == self).map_or("?", |(_, n)| n);
        f.write_str(name)
    }
}

/// Why a name is no point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no point to crash at; there are {all}", all = POINTS.map(|(_, n)| n).join(", "))]
pub struct NoSuchPoint(String);

impl FromStr for Point {
    type Err = NoSuchPoint;
    fn from_str(s: &str) -> Result<Self, NoSuchPoint> {
        POINTS.iter().find(|(_, n)| *n == s).map(|(p, _)| *p).ok_or_else(|| NoSuchPoint(s.to_owned()))
    }
}

/// An operation was cut off where a test wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cut off at {0}, as asked for")]
pub struct Injected(Point);

/// What happens at which point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faults {
    /// Nothing.
    #[default]
    None,
    /// The process dies, without any clean-up.
    Die(Point),
    /// The operation ends there, for tests within one process.
    Cut(Point),
}

impl Faults {
    /// From the value of `WEIR_CRASH_AT`.
    pub fn from_env(value: Option<&str>) -> Result<Self, NoSuchPoint> {
        value.filter(|v| !v.is_empty()).map_or(Ok(Faults::None), |v| v.parse().map(Faults::Die))
    }

    /// The operation has come to `point`.
    pub(super) fn at(self, point: Point) -> Result<(), Injected> {
        match self {
            Faults::Die(p) if p == point => {
                tracing::error!(%point, "WEIR_CRASH_AT: the process ends here");
                std::process::abort()
            }
            Faults::Cut(p) if p == point => Err(Injected(point)),
            Faults::None | Faults::Die(_) | Faults::Cut(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_read_back_and_others_are_named() {
        for (p, n) in POINTS {
            assert_eq!(n.parse(), Ok(p));
            assert_eq!(p.to_string(), n);
        }
        let e = Faults::from_env(Some("stage.nowhere")).unwrap_err();
        assert!(e.to_string().contains("stage.mounted"), "{e}");
        assert_eq!(Faults::from_env(None), Ok(Faults::None));
        assert!(Faults::Cut(Point::StageMounted).at(Point::StageMounted).is_err());
        assert!(Faults::Cut(Point::StageMounted).at(Point::StageAttached).is_ok());
    }
}
