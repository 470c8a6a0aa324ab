//! The roofline of a device as a picture: how fast a kernel could be with its operations per byte, and how
//! fast every kernel was.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use wgrnn::interop::atomic::write_atomically;
use wgrnn::{Error, Result};

use super::profile::KernelTime;
use crate::floor::Peaks;

const SIZE: (u32, u32) = (1000, 700);
const FONT: &str = "sans-serif";
/// The width and height of a letter of a label, about.
const LETTER: (i32, i32) = (7, 14);

/// Colours that can be told apart on white.
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 140, 44),
    RGBColor(148, 103, 189),
    RGBColor(200, 100, 0),
    RGBColor(140, 86, 75),
    RGBColor(200, 60, 160),
    RGBColor(0, 140, 150),
];

/// The kernels of one shape.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) kernels: Vec<KernelTime>,
}

/// Draws it.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn draw(path: &Path, device: &str, peaks: &Peaks, series: &[Series]) -> Result<()> {
    let mut svg = String::new();
    let drawn = picture(&mut svg, device, peaks, series);
    drawn.map_err(|e| Error::Io {
        path: path.to_owned(),
        source: std::io::Error::other(e.to_string()),
    })?;
    write_atomically(path, |w| w.write_all(svg.as_bytes()))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// A kernel as a point: operations per byte and GFLOP/s. One without operations has no place here.
struct Point {
    at: (f64, f64),
    label: String,
    colour: RGBColor,
}

fn points(series: &[Series]) -> Vec<Point> {
    let mut points = Vec::new();
    for (i, series) in series.iter().enumerate() {
        let colour = colour(i);
        for kernel in &series.kernels {
            let at = (kernel.intensity(), kernel.gflops());
            if at.0 > 0.0 && at.1 > 0.0 && at.0.is_finite() && at.1.is_finite() {
                points.push(Point {
                    at,
                    label: kernel.kernel.to_owned(),
                    colour,
                });
            }
        }
    }
    points
}

fn colour(series: usize) -> RGBColor {
    COLOURS[series % COLOURS.len()]
}

fn picture(svg: &mut String, device: &str, peaks: &Peaks, series: &[Series]) -> Drawn {
    let points = points(series);
    let top = peaks.flops / 1e9;
    let rate = |b: f64| b / 1e9;
    let memory = rate(peaks.memory());
    let nearest = rate(peaks.bandwidth(0.0));
    let least = |of: fn(&Point) -> f64, start| points.iter().map(of).fold(start, f64::min);
    let most = |of: fn(&Point) -> f64, start| points.iter().map(of).fold(start, f64::max);
    let x = least(|p| p.at.0, 0.1) / 2.0..most(|p| p.at.0, 8.0 * top / memory) * 4.0;
    let y = least(|p| p.at.1, memory * x.start) / 2.0..most(|p| p.at.1, top) * 3.0;

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Kernels on {device}"), (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())?;
    chart
        .configure_mesh()
        .x_desc("FLOP per byte that must be moved at least once")
        .y_desc("GFLOP/s")
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .light_line_style(RGBColor(244, 244, 244))
        .bold_line_style(RGBColor(222, 222, 222))
        .draw()?;

    let roofs = [
        (memory, BLACK, format!("memory: {memory:.1} GB/s")),
        (
            nearest,
            RGBColor(120, 120, 120),
            format!("caches: {nearest:.1} GB/s"),
        ),
    ];
    for (rate, colour, _) in &roofs {
        // A roof may begin below what is shown.
        let start = (y.start / rate).max(x.start);
        let line = [(start, rate * start), (top / rate, top), (x.end, top)];
        chart.draw_series(std::iter::once(PathElement::new(
            line.to_vec(),
            colour.stroke_width(2),
        )))?;
    }
    for point in &points {
        let dot = Circle::new(point.at, 5, point.colour.filled());
        chart.draw_series(std::iter::once(dot))?;
    }
    let mut labels = Labels::default();
    for point in &points {
        labels.taken.push(around(chart.backend_coord(&point.at)));
    }
    for point in &points {
        let at = chart.backend_coord(&point.at);
        labels.draw(&root, at, &point.label, point.colour)?;
    }
    let mut legend = vec![(format!("best product: {top:.1} GFLOP/s"), BLACK)];
    legend.extend(roofs.map(|(_, colour, name)| (name, colour)));
    let names = series.iter().enumerate();
    legend.extend(names.map(|(i, s)| (s.name.clone(), colour(i))));
    for (i, (name, colour)) in legend.iter().enumerate() {
        let at = (110, 60 + (LETTER.1 + 2) * i as i32);
        let style = (FONT, 13).into_text_style(&root).color(colour);
        root.draw_text(name, &style, at)?;
    }
    root.present()?;
    Ok(())
}

/// A rectangle of pixels: left, top, right, bottom.
type Area = [i32; 4];

fn around((x, y): (i32, i32)) -> Area {
    [x - 6, y - 6, x + 6, y + 6]
}

/// Places labels beside their points so that none lies on another.
#[derive(Default)]
struct Labels {
    taken: Vec<Area>,
}

impl Labels {
    fn draw(
        &mut self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        point: (i32, i32),
        text: &str,
        colour: RGBColor,
    ) -> Drawn {
        let [left, top, ..] = self.place(point, text);
        let style = (FONT, 13).into_text_style(root).color(&colour);
        root.draw_text(text, &style, (left, top))?;
        Ok(())
    }

    /// The nearest free place to the right or left of a point, or its own where there is none.
    fn place(&mut self, (x, y): (i32, i32), text: &str) -> Area {
        let (width, height) = (LETTER.0 * text.chars().count() as i32, LETTER.1);
        let [right, left] = [x + 9, x - 9 - width];
        let level = y - height / 2;
        // Level with the point, then further and further below and above.
        let candidates = (0..12).flat_map(|i| {
            let off = (i + 1) / 2 * height * if i % 2 == 0 { -1 } else { 1 };
            [right, left].map(|side| (side, level + off))
        });
        let area = |(left, top): (i32, i32)| [left, top, left + width, top + height];
        let inside = |a: &Area| {
            a[0] >= 80 && a[2] <= SIZE.0 as i32 - 16 && a[1] >= 40 && a[3] <= SIZE.1 as i32 - 60
        };
        let free = |a: &Area| self.taken.iter().all(|t| apart(a, t));
        let mut places = candidates.map(area);
        let place = places.find(|a| inside(a) && free(a));
        let place = place.unwrap_or_else(|| area((right, level)));
        self.taken.push(place);
        place
    }
}

fn apart(a: &Area, b: &Area) -> bool {
    a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1]
}
