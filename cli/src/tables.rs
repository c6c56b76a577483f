//! Tables that fit the terminal.

use std::io::{self, Write as _};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

/// Columns of an output that is no terminal: enough for all.
const WIDE: u16 = 4096;

/// A table with these headings; those that begin with `>` are of figures, aligned to the right.
pub(crate) struct Grid(Table);

impl Grid {
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(headings.iter().map(|h| h.trim_start_matches('>').to_uppercase()));
        table.set_width(width());
        for (i, h) in headings.iter().enumerate() {
            if let Some(c) = table.column_mut(i) {
                c.set_padding((0, 2));
                if h.starts_with('>') {
                    c.set_cell_alignment(CellAlignment::Right);
                    // Figures that are broken into two lines cannot be read.
                    c.set_constraint(ColumnConstraint::ContentWidth);
                }
            }
        }
        Self(table)
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.row_count() == 0
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in self.0.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Columns of the terminal.
pub(crate) fn width() -> u16 {
    if let Some(n) = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).filter(|n| *n >= 20) {
        return n;
    }
    rustix::termios::tcgetwinsize(io::stdout()).map_or(WIDE, |w| w.ws_col.max(20))
}

/// Prints a text; a reader that has gone is an error like any other.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Ids as far as people need them.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_figures_and_leaves_no_trailing_blanks() {
        let mut g = Grid::new(&["disk", ">size"]);
        assert!(g.is_empty());
        g.row(["d1".into(), "1Gi".into()]);
        g.row(["d22".into(), "100Gi".into()]);
        let text = g.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["DISK   SIZE", "d1      1Gi", "d22   100Gi"]);
    }
}
