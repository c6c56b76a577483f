//! Status lines of the targets whose state Weir acts on.

use super::{
    control::{Control, RawTarget},
    error::DmError,
};
use crate::DevNo;

/// How much a delay target holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayStatus {
    /// Reads held.
    pub reads: u64,
    /// Writes held: a guard whose count is not zero has seen the switchover.
    pub writes: u64,
    /// Flushes held.
    pub flushes: u64,
}

/// What multipath thinks of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// In use.
    Active,
    /// Failed; only a reinstate message or a new table brings it back.
    Failed,
}

/// State of a multipath target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultipathStatus {
    /// The paths with their state and how often each has failed.
    pub paths: Vec<(DevNo, PathState, u32)>,
}

/// State of a mirror target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorStatus {
    /// The legs with their letter: `A` alive, `D` write error, `S` sync error, `R` read error, `F` flush error.
    pub legs: Vec<(DevNo, char)>,
    /// Regions in sync.
    pub in_sync: u64,
    /// All regions.
    pub total: u64,
}

impl MirrorStatus {
    /// Whether every region is copied and every leg alive: only then may the old place be let go.
    pub fn is_complete(&self) -> bool {
        self.in_sync == self.total && self.legs.iter().all(|(_, c)| *c == 'A')
    }
}

impl MultipathStatus {
    /// Whether any path works.
    pub fn has_path(&self) -> bool {
        self.paths.iter().any(|(_, s, _)| *s == PathState::Active)
    }
}

impl Control {
    /// What a delay device holds, summed over its lines.
    pub fn status_delay(&self, uuid: &str) -> Result<DelayStatus, DmError> {
        let mut sum = DelayStatus::default();
        self.each_status(uuid, "delay", |w| {
            let s = parse_delay(w)?;
            sum.reads += s.reads;
            sum.writes += s.writes;
            sum.flushes += s.flushes;
            Some(())
        })?;
        Ok(sum)
    }

    /// The paths of a multipath device.
    pub fn status_multipath(&self, uuid: &str) -> Result<MultipathStatus, DmError> {
        let mut paths = Vec::new();
        self.each_status(uuid, "multipath", |w| {
            paths.extend(parse_multipath(w)?.paths);
            Some(())
        })?;
        Ok(MultipathStatus { paths })
    }

    /// The progress of a mirror device of one line.
    pub fn status_mirror(&self, uuid: &str) -> Result<MirrorStatus, DmError> {
        let mut found = None;
        self.each_status(uuid, "mirror", |w| {
            found = Some(parse_mirror(w)?);
            Some(())
        })?;
        found.ok_or_else(|| unreadable(uuid, "no mirror line"))
    }

    /// Lets a failed path of a multipath device be tried again.
    pub fn reinstate_path(&self, uuid: &str, path: DevNo) -> Result<(), DmError> {
        self.message(uuid, 0, &format!("reinstate_path {path}")).map(drop)
    }

    /// Whether a multipath device without a path queues or fails.
    pub fn set_queueing(&self, uuid: &str, queue: bool) -> Result<(), DmError> {
        self.message(uuid, 0, if queue { "queue_if_no_path" } else { "fail_if_no_path" }).map(drop)
    }

    /// Calls `f` with the words of each line, all of which must be of `kind`.
    fn each_status(
        &self,
        uuid: &str,
        kind: &str,
        mut f: impl FnMut(&[&str]) -> Option<()>,
    ) -> Result<(), DmError> {
        let lines = self.status(uuid)?;
        if lines.is_empty() {
            return Err(unreadable(uuid, "no active table"));
        }
        for RawTarget { kind: k, params, .. } in lines {
            let words: Vec<&str> = params.split_whitespace().collect();
            let understood = if k == kind { f(&words) } else { None };
            understood.ok_or_else(|| unreadable(uuid, &format!("expected {kind}, found {k} {params}")))?;
        }
        Ok(())
    }
}

fn unreadable(uuid: &str, why: &str) -> DmError {
    DmError::Malformed { op: "status", device: uuid.to_owned(), why: why.to_owned() }
}

fn parse_delay(w: &[&str]) -> Option<DelayStatus> {
    let [reads, writes, flushes] = w else { return None };
    Some(DelayStatus {
        reads: reads.parse().ok()?,
        writes: writes.parse().ok()?,
        flushes: flushes.parse().ok()?,
    })
}

/// `<n features...> <n handler...> <groups> <next group> { <state> <n selector...> <paths> <args> { dev A|F
/// fails <args...> }... }...`
fn parse_multipath(w: &[&str]) -> Option<MultipathStatus> {
    let mut it = w.iter();
    let num = |it: &mut std::slice::Iter<'_, &str>| -> Option<usize> { it.next()?.parse().ok() };
    for _ in 0..2 {
        for _ in 0..num(&mut it)? {
            it.next()?;
        }
    }
    let groups = num(&mut it)?;
    it.next()?;
    let mut paths = Vec::new();
    for _ in 0..groups {
        it.next()?;
        for _ in 0..num(&mut it)? {
            it.next()?;
        }
        let (count, args) = (num(&mut it)?, num(&mut it)?);
        for _ in 0..count {
            let dev = it.next()?.parse().ok()?;
            let state = match *it.next()? {
                "A" => PathState::Active,
                "F" => PathState::Failed,
                _ => return None,
            };
            let fails = it.next()?.parse().ok()?;
            for _ in 0..args {
                it.next()?;
            }
            paths.push((dev, state, fails));
        }
    }
    it.next().is_none().then_some(MultipathStatus { paths })
}

/// `<legs> dev... <in sync>/<total> 1 <letters> <n log...>`
fn parse_mirror(w: &[&str]) -> Option<MirrorStatus> {
    let (count, rest) = w.split_first()?;
    let (devs, rest) = rest.split_at_checked(count.parse().ok()?)?;
    let [progress, "1", letters, ..] = rest else { return None };
    let (in_sync, total) = progress.split_once('/')?;
    (letters.len() == devs.len()).then_some(())?;
    let legs = devs
        .iter()
        .zip(letters.chars())
        .map(|(d, c)| Some((d.parse().ok()?, c)))
        .collect::<Option<Vec<_>>>()?;
    Some(MirrorStatus { legs, in_sync: in_sync.parse().ok()?, total: total.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(s: &str) -> Vec<&str> {
        s.split_whitespace().collect()
    }

    #[test]
    fn delay_counts() {
        assert_eq!(parse_delay(&words("0 1 0")), Some(DelayStatus { reads: 0, writes: 1, flushes: 0 }));
        assert_eq!(parse_delay(&words("0 1")), None);
    }

    #[test]
    fn multipath_paths() {
        let up = parse_multipath(&words("2 0 0 0 1 1 A 0 1 0 259:1 A 0 ")).unwrap();
        assert!(up.has_path());
        let down = parse_multipath(&words("2 0 0 0 1 1 E 0 1 0 259:1 F 1 ")).unwrap();
        assert_eq!(down.paths, vec![(DevNo::new(259, 1), PathState::Failed, 1)]);
        assert!(!down.has_path());
        assert_eq!(parse_multipath(&words("2 0 0 0 0 0")).map(|s| s.paths.len()), Some(0));
        for cut in ["", "2 0 0 0 1 1 A 0 1 0 259:1 A", "2 0 0 0 1 1 A 0 1 0 259:1 X 0", "9 0"] {
            assert_eq!(parse_multipath(&words(cut)), None, "{cut:?}");
        }
    }

    #[test]
    fn mirror_progress() {
        let s = parse_mirror(&words("2 253:0 253:1 63/64 1 AA 1 core")).unwrap();
        assert!(!s.is_complete());
        assert!(parse_mirror(&words("2 253:0 253:1 64/64 1 AA 1 core")).unwrap().is_complete());
        assert!(!parse_mirror(&words("2 253:0 253:1 64/64 1 AD 1 core")).unwrap().is_complete());
        assert_eq!(parse_mirror(&words("9 253:0")), None);
    }
}
