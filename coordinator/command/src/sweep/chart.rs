//! A chart of errors against the share of zeros, or against prompts: lines of points on a grid, with a legend.

use obsdiff_engine::pipeline::Picture;

use super::font::{GLYPH, glyph};
use crate::picture::blank;

/// Pixels of the chart, and of its margins: left and bottom hold labels.
const SIZE: [u32; 2] = [900, 560];
const MARGINS: [f64; 4] = [90.0, 30.0, 20.0, 60.0];
/// Lines of the grid across errors, besides the axis.
const GRID: usize = 5;
/// Pixels of a pixel of the font.
const SCALE: i64 = 2;

/// Colours of series that differ for people who see fewer colours, too.
const COLOURS: [[u8; 3]; 6] =
    [[0, 90, 181], [220, 50, 32], [0, 130, 90], [180, 110, 0], [110, 60, 160], [80, 80, 80]];
const GREY: [u8; 3] = [205, 205, 205];
const BLACK: [u8; 3] = [30, 30, 30];

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// What the legend calls it.
    pub(super) name: String,
    /// Series of the same pattern have the same colour.
    pub(super) colour: usize,
    /// Whether the points are measured: these are filled, and joined by a whole line.
    pub(super) measured: bool,
    /// Where it is from left to right, as ticks are, and error; ascending by the first.
    pub(super) points: Vec<(f64, f64)>,
}

/// Where the lines of the grid are that go up, and what they are called; ascending.
pub(super) type Ticks = Vec<(f64, String)>;

/// Whole tenths around all points, which are shares, even where there is one alone.
pub(super) fn ticks_of_shares(series: &[Series]) -> Ticks {
    let points = || series.iter().flat_map(|one| one.points.iter().copied());
    let least = points().map(|(x, _)| x).fold(1.0, f64::min);
    let most = points().map(|(x, _)| x).fold(0.0, f64::max);
    let low = ((least * 10.0 - 0.5).floor() / 10.0).max(0.0);
    let high = ((most * 10.0 + 0.5).ceil() / 10.0).min(1.0).max(low + 0.1);
    let columns = ((high - low) * 10.0).round().max(1.0) as usize;
    let at = |i: usize| low + (high - low) * i as f64 / columns as f64;
    (0..=columns).map(|i| (at(i), format!("{:.0}%", 100.0 * at(i)))).collect()
}

/// Draws series between the first tick and the last. Errors go from 0 on.
pub(super) fn chart(series: &[Series], ticks: &Ticks, across: &str, up: &str) -> Picture {
    let points = || series.iter().flat_map(|one| one.points.iter().copied());
    let (low, high) = (ticks.first().map_or(0.0, |(x, _)| *x), ticks.last().map_or(1.0, |(x, _)| *x));
    let top = nice(points().map(|(_, y)| y).fold(0.0, f64::max));
    let mut canvas = Canvas(blank(SIZE[0], SIZE[1]));
    let [left, right, above, below] = MARGINS;
    let (width, height) = (f64::from(SIZE[0]) - left - right, f64::from(SIZE[1]) - above - below);
    let at = |x: f64, y: f64| {
        (left + (x - low) / (high - low) * width, above + (1.0 - (y / top).min(1.0)) * height)
    };
    for (x, label) in ticks {
        canvas.line(at(*x, 0.0), at(*x, top), GREY, false);
        canvas.text(at(*x, 0.0).0 as i64 - width_of(label) / 2, SIZE[1] as i64 - 48, label, BLACK);
    }
    for i in 0..=GRID {
        let y = top * i as f64 / GRID as f64;
        canvas.line(at(low, y), at(high, y), GREY, false);
        let label = format!("{y:.3}");
        canvas.text(left as i64 - 10 - width_of(&label), at(low, y).1 as i64 - 7, &label, BLACK);
    }
    canvas.line(at(low, 0.0), at(high, 0.0), BLACK, false);
    canvas.line(at(low, 0.0), at(low, top), BLACK, false);
    canvas.text((left + width / 2.0) as i64 - width_of(across) / 2, SIZE[1] as i64 - 22, across, BLACK);
    canvas.text(left as i64 + 14, above as i64 + 10, up, BLACK);
    for (i, one) in series.iter().enumerate() {
        let colour = COLOURS[one.colour % COLOURS.len()];
        for pair in one.points.windows(2) {
            canvas.line(at(pair[0].0, pair[0].1), at(pair[1].0, pair[1].1), colour, !one.measured);
        }
        for (x, y) in &one.points {
            canvas.marker(at(*x, *y), colour, one.measured);
        }
        let row = above + 44.0 + 22.0 * i as f64;
        canvas.line((left + 16.0, row), (left + 52.0, row), colour, !one.measured);
        canvas.marker((left + 34.0, row), colour, one.measured);
        canvas.text(left as i64 + 62, row as i64 - 7, &one.name, BLACK);
    }
    canvas.0
}

/// The least of 1, 2 and 5 times a power of ten that is not below a number.
fn nice(number: f64) -> f64 {
    if !(number > 0.0 && number.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(number.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= number).unwrap_or(number)
}

/// Pixels across a text.
fn width_of(text: &str) -> i64 {
    text.chars().count() as i64 * (GLYPH.0 as i64 + 1) * SCALE
}

struct Canvas(Picture);

impl Canvas {
    /// Sets a pixel, where there is one.
    fn set(&mut self, x: i64, y: i64, colour: [u8; 3]) {
        let (width, height) = (i64::from(self.0.width), i64::from(self.0.height));
        if (0..width).contains(&x) && (0..height).contains(&y) {
            let start = (y * width + x) as usize * 3;
            self.0.rgb[start..start + 3].copy_from_slice(&colour);
        }
    }

    /// A straight line; eight of sixteen pixels of it where it is dashed.
    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: [u8; 3], dashed: bool) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).ceil().max(1.0);
        for i in 0..=steps as i64 {
            let share = i as f64 / steps;
            let (x, y) = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
            if !dashed || i % 16 < 8 {
                self.set(x.round() as i64, y.round() as i64, colour);
                if colour != GREY {
                    self.set(x.round() as i64, y.round() as i64 + 1, colour);
                }
            }
        }
    }

    /// A filled circle, or a ring.
    fn marker(&mut self, (x, y): (f64, f64), colour: [u8; 3], filled: bool) {
        for down in -5i64..=5 {
            for across in -5i64..=5 {
                let distance = ((across * across + down * down) as f64).sqrt();
                let inner = distance < 3.5 && !filled;
                if distance <= 5.2 {
                    let colour = if inner { [255; 3] } else { colour };
                    self.set(x.round() as i64 + across, y.round() as i64 + down, colour);
                }
            }
        }
    }

    /// A text whose upper left corner is at a pixel.
    fn text(&mut self, x: i64, y: i64, text: &str, colour: [u8; 3]) {
        for (i, c) in text.chars().enumerate() {
            let left = x + i as i64 * (GLYPH.0 as i64 + 1) * SCALE;
            for (row, bits) in glyph(c).into_iter().enumerate() {
                for column in (0..GLYPH.0).filter(|column| bits >> (GLYPH.0 - 1 - column) & 1 == 1) {
                    for (down, across) in
                        (0..SCALE).flat_map(|down| (0..SCALE).map(move |across| (down, across)))
                    {
                        let (column, row) = (column as i64 * SCALE + across, row as i64 * SCALE + down);
                        self.set(left + column, y + row, colour);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(picture: &Picture, colour: [u8; 3]) -> usize {
        picture.rgb.as_chunks::<3>().0.iter().filter(|pixel| **pixel == colour).count()
    }

    #[test]
    fn every_series_is_drawn_in_its_colour() {
        let series = |colour, measured, points: &[(f64, f64)]| Series {
            name: "2:4 found".to_owned(),
            colour,
            measured,
            points: points.to_vec(),
        };
        let one = series(0, true, &[(0.4, 0.02), (0.8, 0.3)]);
        let two = series(1, false, &[(0.5, 0.1)]);
        let draw = |series: &[Series]| chart(series, &ticks_of_shares(series), "share of zeros", "error");
        let picture = draw(&[one.clone(), two]);
        assert_eq!([picture.width, picture.height], SIZE);
        assert!(count(&picture, COLOURS[0]) > 500 && count(&picture, COLOURS[1]) > 50);
        assert_eq!(count(&picture, COLOURS[2]), 0);
        // Points at the ends of the range, and none at all, are drawn too.
        draw(&[series(0, true, &[(0.0, 0.0), (1.0, f64::INFINITY)])]);
        assert_eq!(count(&draw(&[]), COLOURS[0]), 0);
        assert_ne!(draw(&[one]).rgb, picture.rgb);
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        assert_eq!([0.07, 0.13, 0.31, 1.0, 0.0].map(nice), [0.1, 0.2, 0.5, 1.0, 1.0]);
    }
}
