//! A tree of elements that renders as HTML which is also XML.
//!
//! Text and attribute values are escaped where they are rendered, and tags are closed by
//! construction: no page built from this can be broken by what it shows.

use std::fmt::Write as _;

/// One element, HTML or SVG.
#[derive(Debug, Clone)]
pub(super) struct Element {
    tag: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Child>,
}

#[derive(Debug, Clone)]
enum Child {
    Element(Element),
    Text(String),
    /// Rendered as it is; only what is in the program's own text can be.
    Verbatim(&'static str),
}

impl Element {
    pub(super) fn new(tag: &'static str) -> Self {
        Self { tag, attributes: Vec::new(), children: Vec::new() }
    }

    /// An element with nothing but text in it.
    pub(super) fn of(tag: &'static str, text: impl Into<String>) -> Self {
        Self::new(tag).text(text)
    }

    pub(super) fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    pub(super) fn class(self, class: &'static str) -> Self {
        self.set("class", class)
    }

    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.children.push(Child::Text(text.into()));
        self
    }

    pub(super) fn verbatim(mut self, text: &'static str) -> Self {
        self.children.push(Child::Verbatim(text));
        self
    }

    pub(super) fn with(mut self, child: Self) -> Self {
        self.children.push(Child::Element(child));
        self
    }

    pub(super) fn with_all(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children.into_iter().map(Child::Element));
        self
    }

    pub(super) fn render(&self, out: &mut String) {
        out.push('<');
        out.push_str(self.tag);
        for (name, value) in &self.attributes {
            out.push(' ');
            out.push_str(name);
            out.push_str("=\"");
            escape(value, out);
            out.push('"');
        }
        // The one element of ours that HTML never closes.
        if self.tag == "meta" {
            out.push_str("/>\n");
            return;
        }
        out.push('>');
        for child in &self.children {
            match child {
                Child::Element(element) => element.render(out),
                Child::Text(text) => escape(text, out),
                Child::Verbatim(text) => out.push_str(text),
            }
        }
        let _ = writeln!(out, "</{}>", self.tag);
    }
}

/// Appends text so that it is read back as the same text, and as nothing else. Control characters,
/// which neither HTML nor XML can hold, become the replacement character.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(character),
            '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            _ if character.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            _ => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_text_and_attributes() {
        let mut out = String::new();
        Element::new("p").set("title", "a\"b'<c>").text("<script>&\u{1b}[0m\0").render(&mut out);
        let expected = "<p title=\"a&quot;b&#39;&lt;c&gt;\">\
                        &lt;script&gt;&amp;\u{fffd}[0m\u{fffd}</p>\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn nests() {
        let mut out = String::new();
        Element::new("div")
            .class("a")
            .with(Element::new("meta").set("charset", "utf-8"))
            .with_all(["x", "y"].map(|text| Element::of("b", text)))
            .render(&mut out);
        let expected = "<div class=\"a\"><meta charset=\"utf-8\"/>\n<b>x</b>\n<b>y</b>\n</div>\n";
        assert_eq!(out, expected);
    }
}
