//! Typed tables: wanted ones are rendered, the kernel's are parsed back, so that the two can be compared.
//! Parsing normalises what the kernel adds (selector arguments, trailing blanks). A target type that this room
//! has no type for is kept as text, so that an observed table is never mistaken for a wanted one.

use std::fmt::Write as _;

use pool::units::Sectors;

use super::control::RawTarget;
use crate::DevNo;

/// Where a delay target sends one kind of I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelayLeg {
    /// To which device.
    pub dev: DevNo,
    /// From which sector of it.
    pub offset: Sectors,
    /// After how many milliseconds; 0 passes at once.
    pub delay_ms: u32,
}

/// One stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// The device.
    pub dev: DevNo,
    /// First sector on it.
    pub offset: Sectors,
}

/// What serves one range of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A range of another device.
    Linear {
        /// The device.
        dev: DevNo,
        /// First sector on it.
        offset: Sectors,
    },
    /// Fails everything, without a retry by the initiator above it.
    Error,
    /// Reads zero, forgets writes.
    Zero,
    /// Round robin over several devices.
    Striped {
        /// Sectors of one chunk.
        chunk: Sectors,
        /// The devices in turn.
        stripes: Vec<Stripe>,
    },
    /// Delays by kind of I/O. Without `write`, everything takes `read`; without `flush`, flushes take `write`.
    Delay {
        /// Reads.
        read: DelayLeg,
        /// Writes, discards, write-zeroes.
        write: Option<DelayLeg>,
        /// Flushes without data.
        flush: Option<DelayLeg>,
    },
    /// dm-flakey that is always down and fails writes only: reads pass, limits (discard) are those of `dev`.
    FlakeyErrorWrites {
        /// The device whose reads pass.
        dev: DevNo,
        /// First sector on it.
        offset: Sectors,
    },
    /// Bio-based multipath over at most one path.
    MultipathBio {
        /// The path; `None` queues or fails everything.
        path: Option<DevNo>,
        /// Whether I/O waits for a path instead of failing.
        queue_if_no_path: bool,
    },
    /// Two or more copies, kept equal; a core log, so a copy starts from the first leg at each activation.
    Mirror {
        /// Sectors of one region.
        region: Sectors,
        /// The copies; the first is the source.
        legs: Vec<Stripe>,
    },
    /// Any other target, as text.
    Other {
        /// Its type.
        kind: String,
        /// Its parameters.
        params: String,
    },
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// First sector of the device.
    pub start: Sectors,
    /// Sectors.
    pub len: Sectors,
    /// What serves them.
    pub target: Target,
}

/// A whole table. Invariant: at least one line, none empty, the first at 0, each where the last one ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    lines: Vec<Line>,
}

/// Why lines are no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    /// No line at all.
    #[error("a table needs a line")]
    Empty,
    /// A line without sectors, or one that ends past 64 bits.
    #[error("line {0} has no length or ends past 64 bits")]
    Length(usize),
    /// A gap or an overlap.
    #[error("line {line} starts at sector {start}, expected {expected}")]
    Gap {
        /// Which line.
        line: usize,
        /// Where it starts.
        start: u64,
        /// Where the one before ended.
        expected: u64,
    },
    /// The kernel's parameters could not be understood.
    #[error("{kind} with parameters {params:?} is not understood")]
    Params {
        /// The target type.
        kind: String,
        /// What it had.
        params: String,
    },
}

/// Seconds of flakey's down interval. Its up interval is 0, so it is always down; the interval only has to be
/// a number that the kernel takes.
const FLAKEY_DOWN_S: u32 = 3_600_000;

impl Table {
    /// A table of these lines.
    pub fn new(lines: Vec<Line>) -> Result<Self, BadTable> {
        let mut expected = 0u64;
        for (i, l) in lines.iter().enumerate() {
            if l.start.get() != expected {
                return Err(BadTable::Gap { line: i, start: l.start.get(), expected });
            }
            if l.len.is_zero() {
                return Err(BadTable::Length(i));
            }
            expected = expected.checked_add(l.len.get()).ok_or(BadTable::Length(i))?;
        }
        if lines.is_empty() { Err(BadTable::Empty) } else { Ok(Self { lines }) }
    }

    /// A table of one line.
    pub fn single(len: Sectors, target: Target) -> Result<Self, BadTable> {
        Self::new(vec![Line { start: Sectors::ZERO, len, target }])
    }

    /// Everything fails: the fence.
    pub fn error(len: Sectors) -> Result<Self, BadTable> {
        Self::single(len, Target::Error)
    }

    /// Targets one after the other.
    pub fn concat(parts: impl IntoIterator<Item = (Sectors, Target)>) -> Result<Self, BadTable> {
        let mut lines = Vec::new();
        let mut start = Sectors::ZERO;
        for (i, (len, target)) in parts.into_iter().enumerate() {
            lines.push(Line { start, len, target });
            start = start.checked_add(len).ok_or(BadTable::Length(i))?;
        }
        Self::new(lines)
    }

    /// Its lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Its length.
    pub fn len(&self) -> Sectors {
        self.lines.iter().map(|l| l.len).sum()
    }

    /// Never: a table has at least one line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// From the kernel's lines.
    pub fn from_raw(raw: &[RawTarget]) -> Result<Self, BadTable> {
        let line = |r: &RawTarget| {
            Ok(Line {
                start: Sectors::new(r.start),
                len: Sectors::new(r.len),
                target: Target::parse(&r.kind, &r.params)?,
            })
        };
        Self::new(raw.iter().map(line).collect::<Result<_, BadTable>>()?)
    }
}

impl Target {
    /// The name of its type.
    pub fn kind(&self) -> &str {
        match self {
            Target::Linear { .. } => "linear",
            Target::Error => "error",
            Target::Zero => "zero",
            Target::Striped { .. } => "striped",
            Target::Delay { .. } => "delay",
            Target::FlakeyErrorWrites { .. } => "flakey",
            Target::MultipathBio { .. } => "multipath",
            Target::Mirror { .. } => "mirror",
            Target::Other { kind, .. } => kind,
        }
    }

    /// Its parameters as the kernel takes them.
    pub fn render(&self) -> String {
        match self {
            Target::Linear { dev, offset } => format!("{dev} {}", offset.get()),
            Target::Error | Target::Zero => String::new(),
            Target::Striped { chunk, stripes } => {
                let mut s = format!("{} {}", stripes.len(), chunk.get());
                push_stripes(&mut s, stripes);
                s
            }
            Target::Delay { read, write, flush } => {
                let leg = |l: &DelayLeg| format!("{} {} {}", l.dev, l.offset.get(), l.delay_ms);
                // The kernel takes three, six or nine arguments: a flush leg alone needs a write leg.
                let write = write.as_ref().or(flush.as_ref().map(|_| read));
                [Some(read), write, flush.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(leg)
                    .collect::<Vec<_>>()
                    .join(" ")
            }
            Target::FlakeyErrorWrites { dev, offset } => {
                format!("{dev} {} 0 {FLAKEY_DOWN_S} 1 error_writes", offset.get())
            }
            Target::MultipathBio { path, queue_if_no_path } => {
                let features =
                    if *queue_if_no_path { "3 queue_if_no_path queue_mode bio" } else { "2 queue_mode bio" };
                match path {
                    Some(dev) => format!("{features} 0 1 1 round-robin 0 1 0 {dev}"),
                    None => format!("{features} 0 0 0"),
                }
            }
            Target::Mirror { region, legs } => {
                let mut s = format!("core 1 {} {}", region.get(), legs.len());
                push_stripes(&mut s, legs);
                s.push_str(" 1 handle_errors");
                s
            }
            Target::Other { params, .. } => params.clone(),
        }
    }

    /// From what the kernel prints (or a person writes). Of a known type, only the forms that [`Target::render`]
    /// makes are given their own variant; others stay text.
    pub fn parse(kind: &str, params: &str) -> Result<Self, BadTable> {
        let words: Vec<&str> = params.split_whitespace().collect();
        let bad = || BadTable::Params { kind: kind.to_owned(), params: params.to_owned() };
        let parsed = match kind {
            "error" => Some(Target::Error),
            "zero" => Some(Target::Zero),
            "linear" => Some(parse_linear(&words).ok_or_else(bad)?),
            "striped" => Some(parse_striped(&words).ok_or_else(bad)?),
            "delay" => Some(parse_delay(&words).ok_or_else(bad)?),
            "flakey" => parse_flakey(&words),
            "multipath" => parse_multipath(&words),
            "mirror" => parse_mirror(&words),
            _ => None,
        };
        Ok(parsed.unwrap_or_else(|| Target::Other { kind: kind.to_owned(), params: words.join(" ") }))
    }
}

fn push_stripes(s: &mut String, stripes: &[Stripe]) {
    for x in stripes {
        write!(s, " {} {}", x.dev, x.offset.get()).expect("writing to a String");
    }
}

fn sectors(w: &str) -> Option<Sectors> {
    w.parse().ok().map(Sectors::new)
}

fn parse_linear(w: &[&str]) -> Option<Target> {
    let [dev, offset] = w else { return None };
    Some(Target::Linear { dev: dev.parse().ok()?, offset: sectors(offset)? })
}

fn parse_stripes(w: &[&str]) -> Option<Vec<Stripe>> {
    w.chunks(2)
        .map(|c| match c {
            [dev, offset] => Some(Stripe { dev: dev.parse().ok()?, offset: sectors(offset)? }),
            _ => None,
        })
        .collect()
}

fn parse_striped(w: &[&str]) -> Option<Target> {
    let [count, chunk, rest @ ..] = w else { return None };
    let count: usize = count.parse().ok()?;
    (rest.len() == count.checked_mul(2)?).then_some(())?;
    Some(Target::Striped { chunk: sectors(chunk)?, stripes: parse_stripes(rest)? })
}

fn parse_delay(w: &[&str]) -> Option<Target> {
    let leg = |i: usize| -> Option<Option<DelayLeg>> {
        let Some(c) = w.get(3 * i..3 * i + 3) else { return Some(None) };
        Some(Some(DelayLeg { dev: c[0].parse().ok()?, offset: sectors(c[1])?, delay_ms: c[2].parse().ok()? }))
    };
    matches!(w.len(), 3 | 6 | 9).then_some(())?;
    Some(Target::Delay { read: leg(0)??, write: leg(1)?, flush: leg(2)? })
}

fn parse_flakey(w: &[&str]) -> Option<Target> {
    let [dev, offset, "0", down, "1", "error_writes"] = w else { return None };
    (down.parse::<u32>().ok()? == FLAKEY_DOWN_S).then_some(())?;
    Some(Target::FlakeyErrorWrites { dev: dev.parse().ok()?, offset: sectors(offset)? })
}

fn parse_multipath(w: &[&str]) -> Option<Target> {
    let (features, rest) = counted(w)?;
    let mut queue_if_no_path = false;
    let mut bio = false;
    let mut f = features.iter();
    while let Some(word) = f.next() {
        match *word {
            "queue_if_no_path" => queue_if_no_path = true,
            // Set by the kernel itself; means nothing without a handler.
            "retain_attached_hw_handler" => {}
            "queue_mode" => bio = f.next() == Some(&"bio"),
            _ => return None,
        }
    }
    // A hardware handler is not ours.
    let (handler, rest) = counted(rest)?;
    (bio && handler.is_empty()).then_some(())?;
    let path = match rest {
        ["0", _] => None,
        // One group, the present group, its selector without arguments, one path, with or without the
        // selector's argument for it (round-robin prints its repeat count).
        ["1", _, "round-robin", "0", "1", args, dev, tail @ ..] => {
            (tail.len() == args.parse::<usize>().ok()?).then_some(())?;
            Some(dev.parse().ok()?)
        }
        _ => return None,
    };
    Some(Target::MultipathBio { path, queue_if_no_path })
}

/// A count and as many words, then the rest.
fn counted<'a, 'b>(w: &'a [&'b str]) -> Option<(&'a [&'b str], &'a [&'b str])> {
    let (count, rest) = w.split_first()?;
    rest.split_at_checked(count.parse().ok()?)
}

fn parse_mirror(w: &[&str]) -> Option<Target> {
    let ["core", "1", region, count, rest @ ..] = w else { return None };
    let (legs, features) = rest.split_at_checked(count.parse::<usize>().ok()?.checked_mul(2)?)?;
    (features == ["1", "handle_errors"]).then_some(())?;
    Some(Target::Mirror { region: sectors(region)?, legs: parse_stripes(legs)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DevNo = DevNo::new(254, 16);

    fn samples() -> Vec<Target> {
        let leg = |delay_ms| DelayLeg { dev: A, offset: Sectors::new(8), delay_ms };
        let stripe = |n| Stripe { dev: DevNo::new(8, n), offset: Sectors::new(2048) };
        vec![
            Target::Linear { dev: A, offset: Sectors::new(2048) },
            Target::Error,
            Target::Zero,
            Target::Striped { chunk: Sectors::new(128), stripes: vec![stripe(0), stripe(16)] },
            Target::Delay { read: leg(0), write: None, flush: None },
            Target::Delay { read: leg(0), write: Some(leg(3_600_000)), flush: Some(leg(0)) },
            Target::FlakeyErrorWrites { dev: A, offset: Sectors::ZERO },
            Target::MultipathBio { path: Some(A), queue_if_no_path: true },
            Target::MultipathBio { path: None, queue_if_no_path: true },
            Target::MultipathBio { path: Some(A), queue_if_no_path: false },
            Target::Mirror { region: Sectors::new(1024), legs: vec![stripe(0), stripe(16)] },
        ]
    }

    #[test]
    fn what_is_rendered_reads_back() {
        for t in samples() {
            assert_eq!(Target::parse(t.kind(), &t.render()), Ok(t));
        }
    }

    #[test]
    fn the_forms_that_were_proven_by_hand() {
        let s = samples();
        assert_eq!(s[5].render(), "254:16 8 0 254:16 8 3600000 254:16 8 0");
        assert_eq!(s[6].render(), "254:16 0 0 3600000 1 error_writes");
        assert_eq!(s[7].render(), "3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 1 0 254:16");
        assert_eq!(s[10].render(), "core 1 1024 2 8:0 2048 8:16 2048 1 handle_errors");
    }

    #[test]
    fn what_the_kernel_adds_is_normalised() {
        for (kind, params, want) in [
            ("flakey", "254:16 0 0 3600000 1 error_writes ", samples()[6].clone()),
            (
                "multipath",
                "3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 1 1 254:16 1 ",
                samples()[7].clone(),
            ),
            // Captured on 6.1.
            (
                "multipath",
                "4 queue_if_no_path retain_attached_hw_handler queue_mode bio 0 1 1 round-robin 0 1 1 254:16 1 ",
                samples()[7].clone(),
            ),
            ("multipath", "3 queue_if_no_path queue_mode bio 0 0 0 ", samples()[8].clone()),
            ("multipath", "2 queue_mode bio 0 1 1 round-robin 0 1 1 254:16 1 ", samples()[9].clone()),
        ] {
            assert_eq!(Target::parse(kind, params), Ok(want), "{params}");
        }
    }

    #[test]
    fn foreign_forms_stay_text_and_differ() {
        for (kind, params) in [
            ("thin-pool", "253:1 253:2 128 0 1 skip_block_zeroing"),
            ("flakey", "254:16 0 5 5 1 drop_writes"),
            ("multipath", "0 0 1 1 service-time 0 1 2 8:0 1 1"),
            ("multipath", "3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 2 1 8:0 1 8:16 1"),
            ("multipath", ""),
            ("multipath", "99"),
        ] {
            let t = Target::parse(kind, params).unwrap();
            assert!(matches!(&t, Target::Other { .. }), "{t:?}");
        }
        assert!(Target::parse("linear", "254:16").is_err());
        assert!(Target::parse("delay", "254:16 0").is_err());
        assert!(Target::parse("striped", "18446744073709551615 8 1:1 0").is_err());
    }

    #[test]
    fn tables_have_no_holes() {
        let line =
            |start, len| Line { start: Sectors::new(start), len: Sectors::new(len), target: Target::Error };
        assert!(Table::new(vec![line(0, 8), line(8, 8)]).is_ok());
        assert_eq!(Table::new(vec![]), Err(BadTable::Empty));
        assert!(Table::new(vec![line(8, 8)]).is_err());
        assert!(Table::new(vec![line(0, 0)]).is_err());
        assert!(Table::new(vec![line(0, 8), line(4, 8)]).is_err());
        assert!(Table::new(vec![line(0, u64::MAX), line(u64::MAX, 8)]).is_err());
        let t = Table::concat([(Sectors::new(8), Target::Zero), (Sectors::new(4), Target::Error)]).unwrap();
        assert_eq!(t.len(), Sectors::new(12));
    }
}
