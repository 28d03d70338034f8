// SPDX-License-Identifier: MIT OR Apache-2.0

//! Plots, in SVG. Each comes with a table of its numbers.

use askama::{Template, filters::HtmlSafe};

/// The width of a plot.
const WIDTH: u32 = 320;

/// The height of a bar with its label, and that of the bar alone.
const ROW: (u32, u32) = (36, 12);

/// The length of the longest bar, which leaves space for its number.
const LONGEST: u32 = WIDTH - 100;

/// The height of the highest column, and the space for text above and below columns.
const COLUMN: (u32, u32, u32) = (120, 18, 22);

/// The longest label in a plot, in characters.
const LABEL: usize = 42;

/// A plot of numbers.
#[derive(Template)]
#[template(path = "plot.html")]
pub(super) struct Plot {
    /// The id of the plot, unique on its page.
    pub id: &'static str,
    /// The title.
    pub title: &'static str,
    /// The heading of the column of labels.
    pub of: &'static str,
    /// The heading of the column of numbers.
    pub unit: &'static str,
    bars: Vec<Bar>,
    height: u32,
    is_columns: bool,
}

impl HtmlSafe for Plot {}

/// A bar or column.
struct Bar {
    label: String,
    /// The label, shortened if necessary.
    short: String,
    value: String,
    brief: String,
    is_failure: bool,
    shape: Shape,
    /// The positions of the label and of the value.
    label_at: (u32, u32),
    value_at: (u32, u32),
}

/// A rectangle.
struct Shape {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

/// A number to plot.
pub(super) struct Value {
    pub label: String,
    pub number: u64,
    /// The number, for people.
    pub text: String,
    /// The number in short form, for the plot.
    pub brief: String,
    /// Set if the number counts failures.
    pub is_failure: bool,
}

impl Value {
    /// Returns a count.
    pub fn count(label: impl Into<String>, number: u64) -> Self {
        Self {
            label: label.into(),
            number,
            text: number.to_string(),
            brief: brief(number),
            is_failure: false,
        }
    }

    /// Sets whether the number counts failures.
    pub fn failed(self, is_failure: bool) -> Self {
        Self { is_failure, ..self }
    }
}

impl Plot {
    /// Returns horizontal bars, for values without an order.
    pub fn bars(
        id: &'static str,
        title: &'static str,
        (of, unit): (&'static str, &'static str),
        values: Vec<Value>,
    ) -> Self {
        let highest = highest(&values);
        let height = ROW.0 * row(values.len());
        let bars = values.into_iter().enumerate().map(|(index, value)| {
            let top = ROW.0 * row(index);
            let width = part(value.number, highest, LONGEST);
            let y = top + ROW.0 - ROW.1 - 6;
            let shape = Shape {
                x: 0,
                y,
                width,
                height: ROW.1,
            };
            Bar::new(value, shape, (0, y - 5), (width + 6, y + ROW.1 - 2))
        });
        Self {
            id,
            title,
            of,
            unit,
            bars: bars.collect(),
            height,
            is_columns: false,
        }
    }

    /// Returns columns, for ordered values.
    pub fn columns(
        id: &'static str,
        title: &'static str,
        (of, unit): (&'static str, &'static str),
        values: Vec<Value>,
    ) -> Self {
        let highest = highest(&values);
        // If all numbers are zero, the page says so instead.
        let values = if highest == 0 { Vec::new() } else { values };
        let step = WIDTH / row(values.len()).max(1);
        let (most, above, below) = COLUMN;
        let bars = values.into_iter().enumerate().map(|(index, value)| {
            let height = part(value.number, highest, most);
            let (x, y) = (step * row(index), above + most - height);
            let (width, middle) = (step.saturating_sub(4).max(1), x + step / 2 - 2);
            let shape = Shape { x, y, width, height };
            Bar::new(value, shape, (middle, above + most + 14), (middle, y - 5))
        });
        Self {
            id,
            title,
            of,
            unit,
            bars: bars.collect(),
            height: above + most + below,
            is_columns: true,
        }
    }

    /// Returns the width of the plot, for the template.
    fn width(&self) -> u32 {
        WIDTH
    }

    /// Returns the description, for screen readers.
    fn description(&self) -> String {
        let bars = self.bars.iter().map(|bar| format!("{}: {}", bar.label, bar.value));
        bars.collect::<Vec<_>>().join("; ")
    }
}

impl Bar {
    fn new(value: Value, shape: Shape, label_at: (u32, u32), value_at: (u32, u32)) -> Self {
        Self {
            short: shortened(&value.label),
            label: value.label,
            value: value.text,
            brief: value.brief,
            is_failure: value.is_failure,
            shape,
            label_at,
            value_at,
        }
    }
}

fn highest(values: &[Value]) -> u64 {
    values.iter().map(|value| value.number).max().unwrap_or(0)
}

/// Returns the part of a length that stands for a number. Only zero gets no part.
fn part(number: u64, highest: u64, length: u32) -> u32 {
    if number == 0 {
        return 0;
    }
    let part = u128::from(number) * u128::from(length) / u128::from(highest.max(1));
    u32::try_from(part).unwrap_or(length).max(1)
}

/// Returns a number with at most four digits, and its unit.
fn brief(number: u64) -> String {
    let units = [
        (10_000_000_000, 1_000_000_000, "G"),
        (10_000_000, 1_000_000, "M"),
        (10_000, 1000, "k"),
    ];
    match units.into_iter().find(|(from, ..)| number >= *from) {
        Some((_, unit, name)) => format!("{}{name}", number / unit),
        None => number.to_string(),
    }
}

/// Returns an index in a list, which is short.
fn row(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX / ROW.0).min(u32::MAX / ROW.0)
}

/// Returns a label, shortened if necessary.
fn shortened(label: &str) -> String {
    match label.char_indices().nth(LABEL) {
        Some(_) => label.chars().take(LABEL - 1).chain(['…']).collect(),
        None => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_columns_are_in_proportion_and_in_the_plot() {
        let values = |numbers: &[u64]| {
            numbers
                .iter()
                .map(|number| Value::count("a", *number))
                .collect::<Vec<_>>()
        };
        for numbers in [&[0, 1, 50, 100][..], &[0, u64::MAX / 2, u64::MAX], &[0], &[1; 60]] {
            for plot in [
                Plot::bars("a", "a", ("a", "a"), values(numbers)),
                Plot::columns("a", "a", ("a", "a"), values(numbers)),
            ] {
                let length = |bar: &Bar| {
                    if plot.is_columns {
                        bar.shape.height
                    } else {
                        bar.shape.width
                    }
                };
                let longest = if plot.is_columns { COLUMN.0 } else { LONGEST };
                for (bar, number) in plot.bars.iter().zip(numbers) {
                    let highest = numbers.iter().max().unwrap();
                    let part = *number as f64 / (*highest).max(1) as f64 * f64::from(longest);
                    assert!((f64::from(length(bar)) - part).abs() <= 1.0, "{number} of {highest}");
                    assert_eq!(length(bar) == 0, *number == 0);
                    let Shape { x, y, width, height } = bar.shape;
                    assert!(x + width <= WIDTH && y + height <= plot.height);
                }
            }
        }
    }

    #[test]
    fn texts_fit_into_a_plot() {
        let texts = [
            (9999, "9999"),
            (10_000, "10k"),
            (9_999_999, "9999k"),
            (u64::MAX, "18446744073G"),
        ];
        for (number, text) in texts {
            assert_eq!(brief(number), text);
        }
        assert_eq!(shortened(&"ƒ".repeat(LABEL)), "ƒ".repeat(LABEL));
        assert_eq!(shortened(&"ƒ".repeat(LABEL + 1)), "ƒ".repeat(LABEL - 1) + "…");
    }
}
