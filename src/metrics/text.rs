//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;

/// Numbers that go by one name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) name: &'static str,
    kind: &'static str,
    help: &'static str,
}

/// What only grows while the process lives.
pub(super) const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "counter", help }
}

pub(super) const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "gauge", help }
}

pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

/// An answer in the making.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a family. Its numbers have to follow, and come together.
    pub(super) fn family(&mut self, family: &Family) {
        let Family { name, kind, help } = family;
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub(super) fn number(&mut self, family: &Family, labels: Labels<'_>, number: f64) {
        self.0.push_str(family.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{name}=\"", if index == 0 { '{' } else { ',' });
            for letter in value.chars() {
                match letter {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let _ = writeln!(self.0, "{} {number}", if labels.is_empty() { "" } else { "}" });
    }

    pub(super) fn alone(&mut self, family: &Family, number: f64) {
        self.family(family);
        self.number(family, &[], number);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_under_their_family_and_labels_are_escaped() {
        let mut text = Text::default();
        text.alone(&counter("a_total", "A."), 5e15);
        let family = gauge("b_seconds", "B.");
        text.family(&family);
        text.number(&family, &[("table", "s.t"), ("rule", "is \"x\\y\"\nno")], 0.25);
        insta::assert_snapshot!(text.finish(), @r#"
        # HELP a_total A.
        # TYPE a_total counter
        a_total 5000000000000000
        # HELP b_seconds B.
        # TYPE b_seconds gauge
        b_seconds{table="s.t",rule="is \"x\\y\"\nno"} 0.25
        "#);
    }
}
