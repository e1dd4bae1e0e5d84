//! Line charts as inline SVG. Colours and fonts come from the page's style sheet, so that a chart
//! follows the reader's colour scheme.

use std::fmt::Write as _;

use super::figures;
use super::markup::Element;

/// The drawing's own size; it is shown as wide as there is room.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 270.0;
/// Around the plot, for ticks and labels in the letters of a phone, which are larger.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 52.0;

/// More points than this cannot be told apart on a screen.
const POINTS_MAX: usize = 480;

#[derive(Debug)]
pub(super) struct Chart {
    /// Unique on the page.
    pub(super) id: String,
    pub(super) title: String,
    /// What there is to see, for those who do not see it.
    pub(super) description: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

/// One line of a chart.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    /// Its look, in the style sheet.
    pub(super) class: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone)]
pub(super) struct Axis {
    label: String,
    from: f64,
    to: f64,
    scale: Scale,
    ticks: Vec<(f64, String)>,
}

#[derive(Debug, Clone, Copy)]
enum Scale {
    Linear,
    Log,
}

impl Axis {
    /// From 0 to at least `largest`, with ticks at round numbers. A `whole` axis ends at a tick.
    pub(super) fn linear(label: impl Into<String>, largest: f64, whole: bool) -> Self {
        let largest = if largest.is_finite() && largest > 0.0 { largest } else { 1.0 };
        // As many as fit side by side: long numbers take more room.
        let steps_max = if largest < 1e5 { 7.0 } else { 4.0 };
        let step = round_step(largest / steps_max);
        let to = if whole { (largest / step).ceil() * step } else { largest };
        let ticks = (0..=8)
            .map(|index| f64::from(index) * step)
            .take_while(|at| *at <= to + step * 1e-6)
            .map(|at| (at, tick_label(at, step)))
            .collect();
        Self { label: label.into(), from: 0.0, to, scale: Scale::Linear, ticks }
    }

    /// A log axis over whole decades of microseconds.
    pub(super) fn log_microseconds(label: impl Into<String>, smallest: f64, largest: f64) -> Self {
        let first = smallest.clamp(MICROSECONDS_MIN, MICROSECONDS_MAX).log10().floor();
        let last = largest.clamp(MICROSECONDS_MIN, MICROSECONDS_MAX).log10().ceil();
        let last = last.max(first + 1.0);
        let decades = (0..=DECADES_MAX)
            .map(|index| first + f64::from(index))
            .take_while(|decade| *decade <= last);
        Self {
            label: label.into(),
            from: 10_f64.powf(first),
            to: 10_f64.powf(last),
            scale: Scale::Log,
            ticks: decades
                .map(|decade| 10_f64.powf(decade))
                .map(|at| (at, microseconds_label(at)))
                .collect(),
        }
    }

    /// Percentiles, each further nine as wide as the one before: the tail is what matters. Positions
    /// are those of [`nines`].
    pub(super) fn percentiles(label: impl Into<String>, nines_max: f64) -> Self {
        let all = [
            (0.0, "0", true),
            (nines(50.0), "50", false),
            (1.0, "90", true),
            (2.0, "99", true),
            (3.0, "99.9", false),
            (4.0, "99.99", true),
            (5.0, "99.999", false),
            (6.0, "99.9999", true),
        ];
        let to = nines_max.clamp(1.0, NINES_MAX);
        // Where there are many, only the more important ones fit.
        let crowded = to > 4.5;
        let ticks = all
            .into_iter()
            .filter(|(at, _, important)| *at <= to && (*important || !crowded))
            .map(|(at, text, _)| (at, text.to_owned()))
            .collect();
        Self { label: label.into(), from: 0.0, to, scale: Scale::Linear, ticks }
    }

    /// Where a value lies, from 0 to 1; values beyond the ends are drawn at the ends.
    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => {
                let floor = self.from.log10();
                (value.max(self.from).log10() - floor) / (self.to.log10() - floor)
            }
        };
        share.clamp(0.0, 1.0)
    }
}

/// Shorter times are drawn at this one: nothing here is measured finer.
const MICROSECONDS_MIN: f64 = 0.01;
const MICROSECONDS_MAX: f64 = 1e12;
/// Between these two.
const DECADES_MAX: u32 = 14;
const NINES_MAX: f64 = 6.0;

/// How many nines a percentile has: 90 has one, 99 two. 100 has as many as are ever drawn.
pub(super) fn nines(percentile: f64) -> f64 {
    let left = (1.0 - percentile / 100.0).max(10_f64.powf(-NINES_MAX));
    -left.log10()
}

/// The nearest of 1, 2 and 5 times a power of ten that is not smaller.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * power >= step * (1.0 - 1e-9))
        .unwrap_or(10.0);
    factor * power
}

fn tick_label(at: f64, step: f64) -> String {
    if step >= 1.0 {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
        let whole = at.round() as i64;
        return figures::count(whole);
    }
    let mut places = 0_usize;
    let mut scaled = step;
    while scaled < 1.0 - 1e-9 && places < 9 {
        scaled *= 10.0;
        places += 1;
    }
    format!("{at:.places$}")
}

fn microseconds_label(at: f64) -> String {
    let (size, unit) = match at {
        small if small < 1e3 => (1.0, "\u{b5}s"),
        middle if middle < 1e6 => (1e3, "ms"),
        _ => (1e6, "s"),
    };
    // Whole powers of ten, so no place behind the point is needed above 1.
    let number = at / size;
    if number < 0.999 {
        format!("{} {unit}", (number * 1e3).round() / 1e3)
    } else {
        format!("{} {unit}", number.round())
    }
}

impl Chart {
    /// The chart with its legend; `None` where there is nothing to draw.
    pub(super) fn figure(&self) -> Option<Element> {
        let drawn: Vec<&Series> =
            self.series.iter().filter(|series| !series.points.is_empty()).collect();
        if drawn.is_empty() {
            return None;
        }
        let legend = Element::new("p").class("legend").set("aria-hidden", "true").with_all(
            drawn.iter().map(|series| {
                let swatch = Element::new("svg").class("swatch").set("viewBox", "0 0 28 10").with(
                    Element::new("path")
                        .set("class", format!("line {}", series.class))
                        .set("d", "M1 5H27"),
                );
                Element::new("span").with(swatch).text(series.name)
            }),
        );
        let caption =
            Element::new("figcaption").with(Element::of("h3", self.title.as_str())).with(legend);
        Some(Element::new("figure").class("card").with(caption).with(self.svg(&drawn)))
    }

    fn svg(&self, drawn: &[&Series]) -> Element {
        let title_id = format!("{}-title", self.id);
        let description_id = format!("{}-description", self.id);
        Element::new("svg")
            .class("chart")
            .set("viewBox", format!("0 0 {WIDTH} {HEIGHT}"))
            .set("role", "img")
            .set("aria-labelledby", format!("{title_id} {description_id}"))
            .with(Element::of("title", self.title.as_str()).set("id", title_id))
            .with(Element::of("desc", self.description.as_str()).set("id", description_id))
            .with_all(self.horizontal_axis())
            .with_all(self.vertical_axis())
            .with_all(drawn.iter().map(|series| self.line(series)))
    }

    fn horizontal_axis(&self) -> Vec<Element> {
        let floor = HEIGHT - BOTTOM;
        let mut parts = Vec::new();
        for (at, text) in &self.x.ticks {
            let x = self.across(*at);
            parts.push(rule("grid", (x, TOP), (x, floor)));
            parts.push(label(text, (x, floor + 18.0), "middle"));
        }
        parts.push(rule("axis", (LEFT, floor), (WIDTH - RIGHT, floor)));
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        parts.push(label(&self.x.label, (middle, HEIGHT - 10.0), "middle"));
        parts
    }

    fn vertical_axis(&self) -> Vec<Element> {
        let mut parts = Vec::new();
        for (at, text) in &self.y.ticks {
            let y = self.down(*at);
            parts.push(rule("grid", (LEFT, y), (WIDTH - RIGHT, y)));
            parts.push(label(text, (LEFT - 7.0, y + 4.5), "end"));
        }
        parts.push(label(&self.y.label, (0.0, 15.0), "start"));
        parts
    }

    fn line(&self, series: &Series) -> Element {
        let mut path = String::new();
        for (x, y) in thin(&series.points) {
            if x.is_finite() && y.is_finite() {
                let pen = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{pen}{:.1} {:.1}", self.across(x), self.down(y));
            }
        }
        Element::new("path").set("class", format!("line {}", series.class)).set("d", path)
    }

    fn across(&self, x: f64) -> f64 {
        LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
    }

    fn down(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM)
    }
}

fn rule(class: &'static str, from: (f64, f64), to: (f64, f64)) -> Element {
    let path = format!("M{:.1} {:.1}L{:.1} {:.1}", from.0, from.1, to.0, to.1);
    Element::new("path").class(class).set("d", path)
}

fn label(text: &str, at: (f64, f64), anchor: &'static str) -> Element {
    Element::of("text", text)
        .set("x", format!("{:.1}", at.0))
        .set("y", format!("{:.1}", at.1))
        .set("text-anchor", anchor)
}

/// Few enough points: neighbours are put together as their mean. The last point stays where it is.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let together = points.len().div_ceil(POINTS_MAX).max(1);
    let mut thinned: Vec<(f64, f64)> = points
        .chunks(together)
        .map(|chunk| {
            let count = figures::float(chunk.len() as u64);
            let sum =
                chunk.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
            (sum.0 / count, sum.1 / count)
        })
        .collect();
    if let (Some(last), Some(end)) = (thinned.last_mut(), points.last()) {
        last.0 = end.0;
    }
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn linear_axes() {
        let axis = Axis::linear("requests", 12_031.0, false);
        assert_eq!(labels(&axis), ["0", "2,000", "4,000", "6,000", "8,000", "10,000", "12,000"]);
        assert!((axis.place(12_031.0) - 1.0).abs() < 1e-9);
        let axis = Axis::linear("%", 38.0, true);
        assert_eq!(labels(&axis), ["0", "10", "20", "30", "40"]);
        let axis = Axis::linear("s", 0.9, true);
        assert_eq!(labels(&axis), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        for largest in [0.0, f64::NAN, f64::INFINITY, -1.0, 1e-7, 1e15] {
            let axis = Axis::linear("odd", largest, true);
            assert!((2..=8).contains(&axis.ticks.len()), "{largest}: {axis:?}");
        }
    }

    #[test]
    fn log_axes() {
        let axis = Axis::log_microseconds("latency", 3.0, 20_000.0);
        let expected = ["1 \u{b5}s", "10 \u{b5}s", "100 \u{b5}s", "1 ms", "10 ms", "100 ms"];
        assert_eq!(labels(&axis), expected);
        assert!((axis.place(100.0) - 0.4).abs() < 1e-9);
        assert!(axis.place(0.0).abs() < 1e-9);
        // One decade at least, whatever was measured.
        assert_eq!(labels(&Axis::log_microseconds("", 10.0, 10.0)).len(), 2);
        assert_eq!(labels(&Axis::log_microseconds("", 0.0, 0.0))[0], "0.01 \u{b5}s");
    }

    #[test]
    fn percentile_axes() {
        let axis = Axis::percentiles("percentile", 4.2);
        assert_eq!(labels(&axis), ["0", "50", "90", "99", "99.9", "99.99"]);
        assert!((nines(99.9) - 3.0).abs() < 1e-9);
        assert!((nines(100.0) - NINES_MAX).abs() < 1e-9);
        let crowded = Axis::percentiles("percentile", 9.0);
        assert_eq!(labels(&crowded), ["0", "90", "99", "99.99", "99.9999"]);
    }

    #[test]
    fn many_points_become_few() {
        let points: Vec<(f64, f64)> = (0..100_001).map(|at| (f64::from(at), 7.0)).collect();
        let thinned = thin(&points);
        assert!(thinned.len() <= POINTS_MAX);
        assert_eq!(thinned.last(), Some(&(100_000.0, 7.0)));
        assert!(thinned.iter().all(|(_, y)| (y - 7.0).abs() < 1e-9));
        assert_eq!(thin(&points[..3]), points[..3]);
        assert!(thin(&[]).is_empty());
    }
}
