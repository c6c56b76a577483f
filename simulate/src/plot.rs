//! The results as one SVG: error by horizon, and what each policy pays in locality for fewer overloads.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Circle, Color, DrawingArea, EmptyElement, IntoDrawingArea, IntoFont,
        PathElement, RGBColor, SVGBackend, Text, WHITE,
    },
    series::LineSeries,
};

use crate::compare::Compared;
use crate::evaluate::Evaluation;

/// A label, a colour, and what is drawn of each horizon.
type Line = (&'static str, RGBColor, fn(&Evaluation) -> f64);
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 900;
const PANEL: u32 = 360;
const OURS: RGBColor = RGBColor(200, 60, 30);
const OTHERS: [RGBColor; 2] = [RGBColor(40, 90, 170), RGBColor(60, 140, 70)];

/// Draws what there is.
///
/// # Errors
/// If there is nothing to draw or the file cannot be written.
pub fn draw(forecast: &[Evaluation], policies: &[Compared], file: &Path) -> Result<()> {
    let panels = 1 + u32::from(!policies.is_empty());
    let root = SVGBackend::new(file, (WIDTH, PANEL * panels)).into_drawing_area();
    let failed = |e: &dyn std::fmt::Display| anyhow!("cannot draw {}: {e}", file.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let areas = root.split_evenly((panels as usize, 1));
    if let Some(area) = areas.first() {
        errors(area, forecast).map_err(|e| failed(&e))?;
    }
    if let Some(area) = areas.get(1) {
        trade(area, policies).map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))
}

/// Plotters' errors borrow what was drawn; here they become text.
fn text(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{e}")
}

fn errors(area: &Area<'_>, forecast: &[Evaluation]) -> Result<()> {
    let lines: [Line; 3] = [
        ("as in the last hour", OTHERS[0], |e| e.last_hour),
        ("as yesterday", OTHERS[1], |e| e.yesterday),
        ("forecast", OURS, |e| e.error.wape),
    ];
    let most = forecast.iter().flat_map(|e| lines.iter().map(|l| (l.2)(e))).fold(0.1, f64::max);
    let longest = forecast.iter().map(|e| f64::from(e.error.horizon_h)).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Error of the mean load (WAPE) by horizon", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..longest + 1.0, 0.0..1.1 * most)
        .map_err(text)?;
    chart.configure_mesh().x_desc("hours ahead").draw().map_err(text)?;
    for (label, colour, of) in lines {
        let points = || forecast.iter().map(|e| (f64::from(e.error.horizon_h), of(e)));
        chart.draw_series(points().map(|at| Circle::new(at, 4, colour.filled()))).map_err(text)?;
        chart
            .draw_series(LineSeries::new(points(), colour.stroke_width(2)))
            .map_err(text)?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw().map_err(text)
}

/// A point a policy: to the right is local, down is calm.
fn trade(area: &Area<'_>, policies: &[Compared]) -> Result<()> {
    let most = policies.iter().map(|p| 100.0 * p.result.overloaded).fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Policies: overloaded samples against local traffic", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..115.0, 0.0..1.15 * most)
        .map_err(text)?;
    chart.configure_mesh().x_desc("local traffic, %").y_desc("overloaded samples, %").draw().map_err(text)?;
    let points = policies.iter().enumerate().map(|(n, p)| {
        let colour = if p.result.policy == "weir" { OURS } else { OTHERS[0] };
        // Labels of neighbours stand above and below their points in turn.
        let at = (9, if n % 2 == 0 { -14 } else { 4 });
        EmptyElement::at((100.0 * p.result.local, 100.0 * p.result.overloaded))
            + Circle::new((0, 0), 5, colour.filled())
            + Text::new(p.result.policy, at, ("sans-serif", 14).into_font().color(&colour))
    });
    chart.draw_series(points).map_err(text)?;
    Ok(())
}
