//! Counters of /sys/dev/block/M:m/stat and /proc/diskstats (Documentation/admin-guide/iostats.rst).

use crate::DevNo;

/// Counters of a device since it was made. Sectors have 512 bytes, times are milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStat {
    /// Reads completed.
    pub reads: u64,
    /// Reads merged into others before they were sent.
    pub reads_merged: u64,
    /// Sectors read.
    pub read_sectors: u64,
    /// Time spent on reads, summed over them.
    pub read_ms: u64,
    /// Writes completed.
    pub writes: u64,
    /// Writes merged into others before they were sent.
    pub writes_merged: u64,
    /// Sectors written.
    pub write_sectors: u64,
    /// Time spent on writes.
    pub write_ms: u64,
    /// I/O in flight now.
    pub in_flight: u64,
    /// Time during which something was in flight.
    pub busy_ms: u64,
    /// Time weighted by what was in flight.
    pub weighted_ms: u64,
    /// Discards completed (4.18 on).
    pub discards: u64,
    /// Sectors discarded.
    pub discard_sectors: u64,
    /// Time spent on discards.
    pub discard_ms: u64,
    /// Flushes completed (5.5 on; not counted for partitions).
    pub flushes: u64,
    /// Time spent on flushes.
    pub flush_ms: u64,
}

/// I/O in flight by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inflight {
    /// Reads.
    pub reads: u64,
    /// Writes, discards and flushes.
    pub writes: u64,
}

impl DiskStat {
    /// From the text of `stat`: 11, 15 or 17 numbers, by the kernel's age.
    pub fn parse(s: &str) -> Option<Self> {
        Self::from_words(s.split_whitespace())
    }

    fn from_words<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let n: Vec<u64> = words.map(|w| w.parse().ok()).collect::<Option<_>>()?;
        if n.len() < 11 {
            return None;
        }
        let at = |i: usize| n.get(i).copied().unwrap_or(0);
        Some(Self {
            reads: n[0],
            reads_merged: n[1],
            read_sectors: n[2],
            read_ms: n[3],
            writes: n[4],
            writes_merged: n[5],
            write_sectors: n[6],
            write_ms: n[7],
            in_flight: n[8],
            busy_ms: n[9],
            weighted_ms: n[10],
            discards: at(11),
            discard_sectors: at(13),
            discard_ms: at(14),
            flushes: at(15),
            flush_ms: at(16),
        })
    }

    /// Whether anything that changes data was completed between two samples.
    pub fn wrote_since(&self, before: &DiskStat) -> bool {
        (self.writes, self.discards) != (before.writes, before.discards)
    }
}

impl Inflight {
    /// From the text of `inflight`.
    pub fn parse(s: &str) -> Option<Self> {
        let mut w = s.split_whitespace().map(|w| w.parse().ok());
        let (reads, writes) = (w.next()??, w.next()??);
        w.next().is_none().then_some(Self { reads, writes })
    }
}

/// All devices of /proc/diskstats; lines that cannot be understood are left out.
pub fn parse_diskstats(text: &str) -> Vec<(DevNo, String, DiskStat)> {
    let line = |l: &str| {
        let mut w = l.split_whitespace();
        let dev = DevNo::new(w.next()?.parse().ok()?, w.next()?.parse().ok()?);
        let name = w.next()?.to_owned();
        Some((dev, name, DiskStat::from_words(w)?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_stat() {
        let s = DiskStat::parse(
            "    5246      119   419086     2113     1421      1207    62208     3027        1     2944     5201       10        0   20480       3      77       58",
        )
        .unwrap();
        assert_eq!((s.reads, s.writes, s.write_sectors, s.in_flight), (5246, 1421, 62208, 1));
        assert_eq!((s.reads_merged, s.writes_merged), (119, 1207));
        assert_eq!((s.discards, s.discard_sectors, s.flushes, s.flush_ms), (10, 20480, 77, 58));
        let old = DiskStat::parse("1 2 3 4 5 6 7 8 9 10 11").unwrap();
        assert_eq!((old.weighted_ms, old.discards), (11, 0));
        assert_eq!(DiskStat::parse("1 2 3"), None);
        assert_eq!(DiskStat::parse("1 2 3 4 5 6 7 8 9 10 x"), None);
        assert!(s.wrote_since(&old) && !s.wrote_since(&s));
    }

    #[test]
    fn the_text_of_diskstats() {
        let t = " 254       0 vda 103 0 4160 12 0 0 0 0 0 16 12 0 0 0 0 0 0\n 253       0 dm-0 1 0 8 0 0 0 0 0 0 0 0 0 0 0 0 0 0\nrubbish\n";
        let d = parse_diskstats(t);
        assert_eq!(d.len(), 2);
        assert_eq!((d[1].0, d[1].1.as_str(), d[1].2.reads), (DevNo::new(253, 0), "dm-0", 1));
    }

    #[test]
    fn the_text_of_inflight() {
        assert_eq!(Inflight::parse("       1        2\n"), Some(Inflight { reads: 1, writes: 2 }));
        assert_eq!(Inflight::parse("1"), None);
    }
}
