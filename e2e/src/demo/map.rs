//! The pool's map from a survey: what lies where, who lends what to whom. Pure: JSON in, figures and text out.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use owo_colors::AnsiColors;
use serde_json::Value;

use super::screen::Screen;
use crate::cluster::find_volume;

/// Columns of a disk's bar.
const WIDTH: u64 = 56;
const MIB: u64 = 1 << 20;

/// First byte on the disk, first byte of the volume, bytes.
type Run = (u64, u64, u64);

/// A disk with what the volume has on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) node: String,
    pub(super) id: String,
    pub(super) size: u64,
    pub(super) free: u64,
    /// In the volume's order.
    pub(super) runs: Vec<Run>,
}

impl Disk {
    pub(super) fn held(&self) -> u64 {
        self.runs.iter().map(|run| run.2).sum()
    }
}

/// The pool, from the view of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) volume_bytes: u64,
    pub(super) holders: Vec<String>,
    pub(super) disks: Vec<Disk>,
}

impl Map {
    /// Reads the row of volume `id` and of all disks.
    ///
    /// # Errors
    /// The volume is not there, or the survey is not what it should be.
    pub(super) fn new(survey: &Value, id: &str, extent: u64) -> Result<Map> {
        let row = find_volume(survey, id).with_context(|| format!("no volume {id} in the survey"))?;
        let text = |v: &Value, what: &str| {
            v.as_str().map(str::to_owned).with_context(|| format!("no {what} in {v}"))
        };
        let number = |v: &Value, what: &str| v.as_u64().with_context(|| format!("no {what} in {v}"));
        let mut disks = vec![];
        for d in survey["disks"].as_array().context("no disks in the survey")? {
            disks.push(Disk {
                node: text(&d["node"], "node")?,
                id: text(&d["disk"], "disk")?,
                size: number(&d["size"], "size")?,
                free: number(&d["free"], "free")?,
                runs: vec![],
            });
        }
        disks.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
        for s in row["segments"].as_array().context("no segments in the survey")? {
            let id = text(&s[2], "disk")?;
            let disk = disks.iter_mut().find(|d| d.id == id);
            let run = (
                number(&s[3], "extent")? * extent,
                number(&s[0], "start")? * extent,
                number(&s[1], "extents")? * extent,
            );
            disk.with_context(|| format!("a segment on an unknown disk {id}"))?.runs.push(run);
        }
        let holders = row["holders"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let map = Map {
            volume_bytes: number(&row["size"], "size")?,
            holders: holders.map(str::to_owned).collect(),
            disks,
        };
        let mapped: u64 = map.disks.iter().map(Disk::held).sum();
        ensure!(mapped == map.volume_bytes, "{mapped} bytes of {} are mapped", map.volume_bytes);
        Ok(map)
    }

    /// Bytes that `node` borrows from each lender.
    pub(super) fn loans(&self, node: &str) -> BTreeMap<String, u64> {
        let mut loans = BTreeMap::new();
        for d in self.disks.iter().filter(|d| d.node != node && d.held() > 0) {
            *loans.entry(d.node.clone()).or_default() += d.held();
        }
        loans
    }

    /// The most that any one node's disks hold.
    pub(super) fn largest_node(&self) -> u64 {
        let mut nodes = BTreeMap::<&str, u64>::new();
        for d in &self.disks {
            *nodes.entry(&d.node).or_default() += d.size;
        }
        nodes.into_values().max().unwrap_or(0)
    }

    /// Which run of the volume lies where: what must not change in a migration.
    pub(super) fn places(&self) -> Vec<(&str, &[Run])> {
        self.disks.iter().map(|d| (d.id.as_str(), d.runs.as_slice())).collect()
    }

    /// As people see it, for the volume in use on `node`.
    pub(super) fn render(&self, node: &str, screen: &Screen) -> String {
        let mut lines = vec![];
        for d in &self.disks {
            let local = d.node == node;
            let what = match (d.held(), local) {
                (0, _) => "nothing of this volume".to_owned(),
                (held, true) => format!("{} MiB of it, local", held / MIB),
                (held, false) => format!("lends {} MiB to {node}", held / MIB),
            };
            let vm = if local { "VM" } else { "  " };
            lines.push(format!("  {} {vm} {} {what}", d.node, bar(d, local, screen)));
            lines.extend(d.runs.iter().map(|(at, start, len)| {
                let (start, end, at) = (start / MIB, (start + len) / MIB, at / MIB);
                format!("        volume {start:>5} - {end:>5} MiB  at {at:>5} MiB of disk {}", d.id)
            }));
        }
        let kinds =
            [(Cell::Local, "local"), (Cell::Lent, "lent"), (Cell::Other, "other use"), (Cell::Free, "free")];
        let legend = kinds.map(|(kind, text)| format!("{} {text}", cell(kind, screen)));
        lines.push(format!("        {}", legend.join("   ")));
        lines.join("\n")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Local,
    Lent,
    Other,
    Free,
}

fn cell(kind: Cell, screen: &Screen) -> String {
    if screen.has_colour() {
        return match kind {
            Cell::Local => screen.paint("█", AnsiColors::Green),
            Cell::Lent => screen.paint("█", AnsiColors::Yellow),
            Cell::Other => screen.paint("█", AnsiColors::BrightBlack),
            Cell::Free => screen.paint("░", AnsiColors::BrightBlack),
        };
    }
    let glyph = match kind {
        Cell::Local => "#",
        Cell::Lent => "+",
        Cell::Other => "o",
        Cell::Free => ".",
    };
    glyph.to_owned()
}

/// One column is a part of the disk; it shows what fills most of it.
fn cells(disk: &Disk, local: bool) -> Vec<Cell> {
    let other = disk.size.saturating_sub(disk.free + disk.held());
    let mine = if local { Cell::Local } else { Cell::Lent };
    let mut left_of_other = other;
    let columns = (0..WIDTH).map(|i| (disk.size * i / WIDTH, disk.size * (i + 1) / WIDTH));
    let mut cells = vec![];
    for (from, to) in columns {
        let overlap = |(at, _, len): &Run| (at + len).min(to).saturating_sub(*at.max(&from));
        let held: u64 = disk.runs.iter().map(overlap).sum();
        cells.push(if held * 2 > to - from { mine } else { Cell::Free });
    }
    // The survey says how much others have, not where: it is shown at the end.
    for cell in cells.iter_mut().rev().filter(|c| **c == Cell::Free) {
        if left_of_other * 2 <= disk.size / WIDTH {
            break;
        }
        left_of_other = left_of_other.saturating_sub(disk.size / WIDTH);
        *cell = Cell::Other;
    }
    cells
}

fn bar(disk: &Disk, local: bool, screen: &Screen) -> String {
    cells(disk, local).into_iter().map(|kind| cell(kind, screen)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn survey() -> Value {
        let disk = |node: &str, id: &str, free: u64| json!({"node": node, "disk": id, "size": 100 * MIB, "free": free * MIB});
        json!({
            "disks": [disk("n2", "b", 90), disk("n1", "a", 0), disk("n3", "c", 50)],
            "volumes": [{"volume": "v", "size": 150 * MIB, "holders": ["n1"],
                "segments": [[0, 100, "a", 0], [100, 10, "b", 20], [110, 40, "c", 0]]}]
        })
    }

    #[test]
    fn loans_are_what_lies_on_other_nodes() {
        let map = Map::new(&survey(), "v", MIB).unwrap();
        assert_eq!(map.loans("n1"), BTreeMap::from([("n2".into(), 10 * MIB), ("n3".into(), 40 * MIB)]));
        assert_eq!(map.loans("n2"), BTreeMap::from([("n1".into(), 100 * MIB), ("n3".into(), 40 * MIB)]));
        assert_eq!((map.largest_node(), map.holders.as_slice()), (100 * MIB, &["n1".to_owned()][..]));
        assert!(Map::new(&survey(), "w", MIB).is_err());
        assert!(Map::new(&survey(), "v", 2 * MIB).is_err(), "segments that do not make up the volume");
    }

    #[test]
    fn a_bar_shows_what_lies_where() {
        let map = Map::new(&survey(), "v", MIB).unwrap();
        let count = |i: usize, local| {
            let cells = cells(&map.disks[i], local);
            [Cell::Local, Cell::Lent, Cell::Other, Cell::Free]
                .map(|k| cells.iter().filter(|c| **c == k).count())
        };
        assert_eq!(count(0, true), [56, 0, 0, 0]);
        // 10 of 100 MiB lent from 20 on, nothing else.
        assert_eq!(count(1, false)[2..], [0, 50]);
        // 40 lent, 10 in other hands.
        assert_eq!(count(2, false), [0, 22, 6, 28]);
    }
}
