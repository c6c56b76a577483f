//! The results as one SVG: ratios of local and of borrowed devices, and the pauses of the cut-over.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::{Shift, types::RangedCoordf64},
    prelude::{
        BLACK, Cartesian2d, Circle, Color, DrawingArea, IntoDrawingArea, PathElement, RGBColor, SVGBackend,
        WHITE,
    },
    series::LineSeries,
};

use super::{
    report::{CaseReport, LOCAL_TARGET, PAUSE_TARGET_MS, REMOTE_TARGET, Report},
    stats::spread,
    targets::Target,
};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const WIDTH: u32 = 1000;
const PANEL: u32 = 340;
const GREY: RGBColor = RGBColor(150, 150, 150);

fn colour(t: Target) -> RGBColor {
    match t {
        Target::WeirLocal | Target::WeirRemote => RGBColor(200, 60, 30),
        Target::Lvm2 => RGBColor(40, 90, 170),
        Target::Loop => RGBColor(60, 140, 70),
        Target::Raw | Target::RawAgain | Target::NvmeTcp | Target::NvmeTcpAgain => GREY,
    }
}

/// Draws the parts that were measured.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(r: &Report, file: &Path) -> Result<()> {
    let mut panels: Vec<Panel> = Vec::new();
    if !r.cases.is_empty() {
        panels.push(Panel::Ratios("Local, as share of the bare disk", Target::Raw, LOCAL_TARGET));
        panels.push(Panel::Ratios(
            "Borrowed, as share of plain NVMe over TCP",
            Target::NvmeTcp,
            REMOTE_TARGET,
        ));
    }
    if !r.cutover_ms.is_empty() {
        panels.push(Panel::Pauses);
    }
    if panels.is_empty() {
        return Err(anyhow!("nothing was measured that can be drawn: the path and the cut-over can"));
    }
    let root = SVGBackend::new(file, (WIDTH, PANEL * panels.len() as u32)).into_drawing_area();
    let failed = |e: &dyn std::fmt::Display| anyhow!("draw {}: {e}", file.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
        match panel {
            Panel::Ratios(title, base, goal) => ratios(&area, &r.cases, title, *base, *goal),
            Panel::Pauses => pauses(&area, r),
        }?;
    }
    root.present().map_err(|e| failed(&e))
}

enum Panel {
    Ratios(&'static str, Target, f64),
    Pauses,
}

/// Plotters' errors borrow what was drawn; here they become text.
fn text(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{e}")
}

/// A point at the median with a whisker from the least to the greatest, for every case and target.
fn ratios(area: &Area<'_>, cases: &[CaseReport], title: &str, base: Target, goal: f64) -> Result<()> {
    let targets: Vec<Target> = Target::ALL.into_iter().filter(|t| t.base() == base && *t != base).collect();
    let all = cases.iter().flat_map(|c| targets.iter().flat_map(|t| c.ratios(*t)));
    let (low, high) = all.fold((goal, 1.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    let room = (high - low) * 0.1;
    let right = cases.len() as f64 - 0.5;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..right, low - room..high + room)
        .map_err(text)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(cases.len())
        .x_label_formatter(&|x| name_at(cases, *x))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .draw()
        .map_err(text)?;
    level(&mut chart, 1.0, right, &BLACK, base.as_str())?;
    level(&mut chart, goal, right, &RGBColor(200, 160, 0), &format!("goal {goal}"))?;
    for (n, target) in targets.iter().enumerate() {
        let shift = (n as f64 - (targets.len() as f64 - 1.0) / 2.0) * 0.15;
        let whiskers: Vec<_> = cases
            .iter()
            .zip(0u32..)
            .filter_map(|(c, i)| spread(&c.ratios(*target)).map(|s| (f64::from(i) + shift, s)))
            .collect();
        let style = colour(*target).stroke_width(2);
        let lines = whiskers.iter().map(|(x, s)| PathElement::new(vec![(*x, s.min), (*x, s.max)], style));
        chart.draw_series(lines).map_err(text)?;
        let points = whiskers.iter().map(|(x, s)| Circle::new((*x, s.median), 5, colour(*target).filled()));
        let drawn = chart.draw_series(points).map_err(text)?;
        let mark = colour(*target);
        drawn.label(target.as_str()).legend(move |(x, y)| Circle::new((x + 9, y), 5, mark.filled()));
    }
    legend(&mut chart)
}

fn name_at(cases: &[CaseReport], x: f64) -> String {
    let near = x.round();
    if (x - near).abs() > 0.01 || near < 0.0 {
        return String::new();
    }
    cases.get(near as usize).map_or(String::new(), |c| c.case.to_owned())
}

/// A horizontal line over the whole width.
fn level(chart: &mut Chart<'_>, y: f64, right: f64, colour: &RGBColor, label: &str) -> Result<()> {
    let colour = *colour;
    chart
        .draw_series(LineSeries::new([(-0.5, y), (right, y)], &colour))
        .map_err(text)?
        .label(label)
        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour));
    Ok(())
}

fn legend<'a>(chart: &mut Chart<'a>) -> Result<()> {
    chart.configure_series_labels().background_style(WHITE.mix(0.85)).border_style(GREY).draw().map_err(text)
}

/// Every pause as a point, migration by migration.
fn pauses(area: &Area<'_>, r: &Report) -> Result<()> {
    let all = r.cutover_ms.values().flatten();
    let high = all.fold(PAUSE_TARGET_MS, |high, v| high.max(*v)) * 1.1;
    let count = r.cutover_ms.values().map(Vec::len).max().unwrap_or(0) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption("Cut-over: a write held on the target, in ms", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..count + 0.5, 0.0..high)
        .map_err(text)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("migration")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .map_err(text)?;
    level(&mut chart, PAUSE_TARGET_MS, count + 0.5, &RGBColor(200, 160, 0), "goal")?;
    let colours = [RGBColor(200, 60, 30), RGBColor(40, 90, 170)];
    for ((name, sample), colour) in r.cutover_ms.iter().zip(colours.into_iter().cycle()) {
        let points =
            sample.iter().zip(1u32..).map(|(y, x)| Circle::new((f64::from(x), *y), 4, colour.filled()));
        let drawn = chart.draw_series(points).map_err(text)?;
        drawn.label(name.as_str()).legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
    }
    legend(&mut chart)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    #[test]
    fn a_drawing_names_what_it_shows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.svg");
        draw(&report(), &file).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        for word in ["weir_local", "weir_remote", "lvm2", "1GiB", "4k randread depth 1", "goal 0.98"] {
            assert!(svg.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn nothing_measured_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut r = report();
        r.cases.clear();
        r.cutover_ms.clear();
        assert!(draw(&r, &dir.path().join("x.svg")).is_err());
    }
}
