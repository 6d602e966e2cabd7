//! Plots in SVG: bars, with a line from the first quartile to the third.

use std::fmt::{self, Write};

const WIDTH: f64 = 820.0;
/// Where the bars begin.
const LEFT: f64 = 310.0;
/// Room for the figure behind a bar.
const RIGHT: f64 = 110.0;
const TOP: f64 = 42.0;
const ROW: f64 = 24.0;

/// A plot. Its text is the file.
pub struct Bars {
    title: String,
    bars: Vec<Bar>,
    mark: Option<f64>,
}

pub struct Bar {
    label: String,
    /// The first quartile, the median and the third quartile. They are one where the figure is exact.
    quartiles: [f64; 3],
    /// Written behind the bar.
    figure: String,
    /// In another colour: what the bars are compared with.
    is_reference: bool,
}

impl Bars {
    pub fn new(title: &str, bars: impl IntoIterator<Item = Bar>) -> Self {
        Self {
            title: title.to_owned(),
            bars: bars.into_iter().collect(),
            mark: None,
        }
    }

    /// Draws a line at this value, over all bars.
    pub fn mark(&mut self, value: f64) {
        self.mark = Some(value);
    }
}

impl Bar {
    /// A bar of what is measured or counted, not of a reference.
    pub fn new(label: impl Into<String>, quartiles: [f64; 3], figure: String) -> Self {
        Self {
            label: label.into(),
            quartiles,
            figure,
            is_reference: false,
        }
    }

    pub fn exact(label: impl Into<String>, value: f64, figure: String) -> Self {
        Self::new(label, [value; 3], figure)
    }

    pub fn reference(self, is_reference: bool) -> Self {
        Self {
            is_reference,
            ..self
        }
    }
}

impl fmt::Display for Bars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let height = TOP + ROW * self.bars.len() as f64 + 12.0;
        let values = self.bars.iter().map(|bar| bar.quartiles[2]);
        let most = values.chain(self.mark).fold(f64::MIN_POSITIVE, f64::max);
        let scale = |value: f64| LEFT + value.max(0.0) / most * (WIDTH - LEFT - RIGHT);
        writeln!(
            f,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="{}" y="24" text-anchor="middle" font-size="15">{}</text>"#,
            WIDTH / 2.0,
            Escaped(&self.title),
        )?;
        for (row, bar) in self.bars.iter().enumerate() {
            let middle = TOP + ROW * (row as f64 + 0.5);
            let [low, value, high] = bar.quartiles.map(scale);
            let fill = if bar.is_reference {
                "#b8b8b8"
            } else {
                "#3b7dd8"
            };
            writeln!(
                f,
                r##"<text x="{}" y="{}" text-anchor="end">{}</text>
<rect x="{LEFT}" y="{}" width="{:.1}" height="{}" fill="{fill}"/>
<path d="M{low:.1} {middle}H{high:.1}" stroke="#202020" stroke-width="1.5"/>
<text x="{:.1}" y="{}">{}</text>"##,
                LEFT - 8.0,
                middle + 4.5,
                Escaped(&bar.label),
                middle - ROW * 0.34,
                value - LEFT,
                ROW * 0.68,
                high.max(value) + 6.0,
                middle + 4.5,
                Escaped(&bar.figure),
            )?;
        }
        if let Some(mark) = self.mark.map(scale) {
            let bottom = height - 8.0;
            writeln!(
                f,
                r##"<path d="M{mark:.1} {TOP}V{bottom}" stroke="#c02020" stroke-dasharray="4 3"/>"##,
            )?;
        }
        f.write_str("</svg>\n")
    }
}

/// Text between tags.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                // Code in tables, text here.
                '`' => {}
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}
