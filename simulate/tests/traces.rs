//! Reading traces: plain and packed, joined, with gaps, and what is refused.

use std::io::Write;
use std::path::PathBuf;

use simulate::nodes;
use simulate::trace::{Trace, TraceError};
use tempfile::TempDir;

fn file(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("write a trace");
    path
}

/// `hours` of two devices, `b` without the steps for which `gap` holds.
fn text(start: u64, hours: u64, gap: impl Fn(u64) -> bool) -> String {
    let mut rows = String::from("timestamp_s,device,read_kb_s,write_kb_s\n");
    for (name, read) in [("b", 20.5), ("a", 1.0)] {
        for step in 0..hours * 12 {
            if name == "a" || !gap(step) {
                rows += &format!("{},{name},{read},{}\n", start + 300 * step, step);
            }
        }
    }
    rows
}

#[test]
fn plain_and_packed_are_the_same() {
    let dir = TempDir::new().expect("a directory");
    let rows = text(3600 * 400_000, 3, |step| step == 5);
    let plain = Trace::read(&[file(&dir, "plain", rows.as_bytes())]).expect("plain");
    let mut packer = zstd::Encoder::new(Vec::new(), 3).expect("a packer");
    packer.write_all(rows.as_bytes()).expect("pack");
    let packed = Trace::read(&[file(&dir, "packed", &packer.finish().expect("pack"))]).expect("packed");
    assert_eq!((plain.start_s, plain.step_s, plain.steps), (3600 * 400_000, 300, 36));
    assert_eq!(plain.devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(plain.devices[0].kb_s[7], 8.0);
    assert!(plain.devices[1].kb_s[5].is_nan());
    for (one, other) in plain.devices.iter().zip(&packed.devices) {
        assert_eq!(one.lifetime(), other.lifetime());
        assert!(one.kb_s.iter().zip(&other.kb_s).all(|(x, y)| x.to_bits() == y.to_bits()));
    }
}

#[test]
fn files_join_in_any_order() {
    let dir = TempDir::new().expect("a directory");
    let start = 3600 * 400_000;
    let (early, late) = (text(start, 1, |_| false), text(start + 3600, 1, |_| false));
    let paths = [file(&dir, "late", late.as_bytes()), file(&dir, "early", early.as_bytes())];
    let trace = Trace::read(&paths).expect("two files");
    assert_eq!((trace.steps, trace.devices[0].kb_s[11], trace.devices[0].kb_s[12]), (24, 12.0, 1.0));
}

#[test]
fn an_outage_is_unknown_and_not_idle() {
    let dir = TempDir::new().expect("a directory");
    let rows = text(3600 * 400_000, 5, |step| (24..30).contains(&step) || step >= 48);
    let trace = Trace::read(&[file(&dir, "gap", rows.as_bytes())]).expect("a trace");
    let hours = nodes::hours(&trace, &[1]);
    // The device's hour 2 misses half its samples; hour 4 comes after its end: it is known to carry nothing.
    assert_eq!(hours.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false, true, true]);
    let second = hours[1].expect("seen");
    assert_eq!((second.number, second.mean, second.peak), (400_001, 20.5 + 17.5, 20.5 + 23.0));
    assert_eq!(second.late, 20.5 + 22.0);
    assert_eq!(hours[4].expect("known").mean, 0.0);
    // Together with the other device three quarters are there.
    assert!(nodes::hours(&trace, &[0, 1]).iter().all(Option::is_some));
}

#[test]
fn bad_rows_are_refused_with_their_line() {
    let dir = TempDir::new().expect("a directory");
    let bad = ["1,a,1", "x,a,1,1", "1,,1,1", "1,a,-1,0", "1,a,NaN,0", "1,a,inf,0", "1,a,1,1,1", "-1,a,1,1"];
    for row in bad {
        let error =
            Trace::read(&[file(&dir, "bad", format!("0,a,1,1\n\n{row}\n").as_bytes())]).expect_err(row);
        assert!(matches!(error, TraceError::Row { line: 3, .. }), "{row}: {error}");
    }
    let only = file(&dir, "one", b"300,a,1,1\n");
    assert!(matches!(Trace::read(&[only]), Err(TraceError::Empty { .. })));
    assert!(matches!(Trace::read(&[dir.path().join("none")]), Err(TraceError::Read { .. })));
    let far = file(&dir, "far", b"0,a,1,1\n1,a,1,1\n9000000000000,a,1,1\n");
    assert!(matches!(Trace::read(&[far]), Err(TraceError::TooLong { .. })));
}
