//! Numbers as people read and write them.

use std::time::Duration;

/// Bytes with a binary unit: three figures at least.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if n < 1024 {
        return n.to_string();
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if value < 100.0 && value.fract() > 0.05 {
        format!("{value:.1}{}", UNITS[unit])
    } else {
        format!("{value:.0}{}", UNITS[unit])
    }
}

/// Bytes a second.
pub(crate) fn bytes_s(n: f64) -> String {
    // `as` saturates, and a rate is at least 0.
    if n < 1.0 { "0".to_owned() } else { format!("{}/s", bytes(n as u64)) }
}

/// I/Os a second.
pub(crate) fn rate(n: f64) -> String {
    match n {
        n if n < 0.05 => "0".to_owned(),
        n if n < 10.0 => format!("{n:.1}"),
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 1e7 => format!("{:.0}k", n / 1e3),
        n => format!("{:.0}M", n / 1e6),
    }
}

/// A short time in seconds.
pub(crate) fn latency(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// How long, from now to a moment.
pub(crate) fn until(at_s: u64, now_s: u64) -> String {
    match at_s.saturating_sub(now_s) {
        0 => "now".to_owned(),
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// How long something takes.
pub(crate) fn lasting(s: u64) -> String {
    match s {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s.div_ceil(60)),
        s => format!("{} h", s.div_ceil(3600)),
    }
}

/// A time: 90s, 10m, 2h, or plain seconds.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time: 90s, 10m or 2h, say");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(bad()),
    };
    let count: u64 = digits.parse().map_err(|_| bad())?;
    count.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}

/// A share of a whole.
pub(crate) fn percent(part: u64, of: u64) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.0} %", part as f64 * 100.0 / of as f64) }
}

/// Values as a row of blocks, the greatest the tallest; a dot where nothing was seen (below 0).
pub(crate) fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(0.0, f64::max);
    let one = |v: &f64| match *v {
        v if v < 0.0 || v.is_nan() => '·',
        _ if most <= 0.0 => BLOCKS[0],
        v => BLOCKS[((v / most * 8.0).ceil() as usize).clamp(1, 8) - 1],
    };
    values.iter().map(one).collect()
}

/// Bytes with an optional binary unit: 512M, 10G, 10Gi, 10GiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let bad = || format!("{text:?} is no size: 512M, 10G or 1T, say");
    let unit = text[digits.len()..].trim_end_matches("iB").trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(bad()),
    };
    let count: u64 = digits.parse().map_err(|_| bad())?;
    count.checked_mul(1 << shift).ok_or_else(bad)
}

pub(crate) fn plural(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, n) in [("10G", 10 << 30), ("512Mi", 512 << 20), ("1TiB", 1 << 40), ("77", 77)] {
            assert_eq!(parse_size(text), Ok(n), "{text}");
        }
        for bad in ["", "G", "10X", "-1G", "999999999P", "1.5G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        let written =
            [0, 1023, 1024, 1536, 10 << 30, (10 << 30) + (300 << 20), (1 << 40) - 1, u64::MAX].map(bytes);
        assert_eq!(written, ["0", "1023", "1Ki", "1.5Ki", "10Gi", "10.3Gi", "1.0Ti", "16Ei"]);
    }

    #[test]
    fn rates_times_and_shares() {
        assert_eq!([0.0, 3.21, 512.0, 25_000.0, 3e7].map(rate), ["0", "3.2", "512", "25k", "30M"]);
        assert_eq!([1e-4, 2.5e-3, 3.0].map(latency), ["100 us", "2.5 ms", "3.0 s"]);
        assert_eq!(
            [until(5, 9), until(60, 0), until(600, 0), until(9999, 0)],
            ["now", "60 s", "10 min", "2 h"]
        );
        assert_eq!((percent(1, 3), percent(1, 0)), ("33 %".into(), "-".into()));
        assert_eq!(bytes_s(2048.0), "2Ki/s");
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, s) in [("90s", 90), ("10m", 600), ("2h", 7200), ("7", 7), ("0s", 0)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(s)), "{text}");
        }
        for bad in ["", "s", "1d", "-1s", "1.5h", "9999999999999999999h"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!([0, 119, 121, 7201].map(lasting), ["0 s", "119 s", "3 min", "3 h"]);
    }

    #[test]
    fn a_sparkline_shows_gaps_and_the_peak() {
        assert_eq!(sparkline(&[0.0, 1.0, -1.0, 4.0, 8.0]), "▁▁·▄█");
        assert_eq!(sparkline(&[0.0, 0.0]), "▁▁");
        assert_eq!(sparkline(&[]), "");
    }
}
