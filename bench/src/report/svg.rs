//! The few shapes of SVG that a plot is made of. Readable on a light and on a dark page: it brings its own ground, and
//! the reader's preference chooses the colours.

use std::fmt::Write;

/// How many colours there are for peers.
pub(super) const COLOURS: usize = 8;

/// The shapes' styles: each of the classes `p0` to `p7` is a peer's colour, the first ours.
const STYLE: &str = "\
text{font:11px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}.cell{font-size:13px;font-weight:600}\
.measure,.value{fill:#666}.ground{fill:#fff}.axis{stroke:#888}.grid{stroke:#ddd}.whisker{stroke:#222}path{fill:none;stroke-width:2}\
.p0{fill:#1f6feb;stroke:#1f6feb}.p1{fill:#d9730d;stroke:#d9730d}.p2{fill:#2f9e5c;stroke:#2f9e5c}.p3{fill:#9a9a9a;stroke:#9a9a9a}\
.p4{fill:#8957e5;stroke:#8957e5}.p5{fill:#c93c5c;stroke:#c93c5c}.p6{fill:#1b9aaa;stroke:#1b9aaa}.p7{fill:#a67c1a;stroke:#a67c1a}\
path.p0,path.p1,path.p2,path.p3,path.p4,path.p5,path.p6,path.p7{fill:none}\
@media(prefers-color-scheme:dark){text{fill:#ddd}.measure,.value{fill:#aaa}.ground{fill:#0d1117}.axis{stroke:#888}\
.grid{stroke:#333}.whisker{stroke:#eee}}";

/// Which part of a text is at its place.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture in the making.
pub(super) struct Svg(String);

impl Svg {
    /// An empty one of that many pixels.
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        Svg(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n",
            escaped(title)
        ))
    }

    pub(super) fn text(&mut self, x: f64, y: f64, class: &str, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" class=\"{class}\"/>"
        );
    }

    pub(super) fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64, class: &str) {
        let _ = writeln!(
            self.0,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"
        );
    }

    pub(super) fn dot(&mut self, x: f64, y: f64, class: &str) {
        let _ = writeln!(self.0, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" class=\"{class}\"/>");
    }

    /// A line through points; none through fewer than two.
    pub(super) fn path(&mut self, points: &[(f64, f64)], class: &str) {
        if points.len() < 2 {
            return;
        }
        let words: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = writeln!(self.0, "<path d=\"M{}\" class=\"{class}\"/>", words.join("L"));
    }

    /// The whole file.
    pub(super) fn end(self) -> String {
        self.0 + "</svg>\n"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
