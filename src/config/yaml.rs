//! YAML text as a tree that knows where each of its nodes was written.

use std::sync::Arc;

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};

use super::problem::{Place, Problem};

/// A node and its place. Scalars are kept as written: what they are is for the schema to say, so that a password of
/// digits does not lose its leading zeros.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// Nothing written, or `null`.
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// Something YAML has and a configuration has no use for.
    Foreign(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) place: Place,
    /// The same key stands further up in the same map.
    pub(super) repeated: bool,
}

impl Node {
    pub(super) fn empty(file: &Arc<str>) -> Self {
        Node { place: Place::File(file.clone()), data: Data::Map(Vec::new()) }
    }
}

/// The parser stops at the first repeated key. To find the others too, one character of it is exchanged for one that
/// nobody writes and the text is read again; this is where those characters start, and how many there may be.
const STAND_INS: std::ops::Range<u32> = 0xE000..0xE100;

/// Reads one document.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let original: Vec<char> = text.chars().collect();
    let mut current = original.clone();
    for stand_in in STAND_INS.filter_map(char::from_u32) {
        let read: String = current.iter().collect();
        let error = match MarkedYaml::load_from_str(&read) {
            Ok(documents) => return document(file, &original, &current, documents),
            Err(error) => error,
        };
        let start = error.marker().index();
        let at = if matches!(current.get(start), Some('"' | '\'')) { start + 1 } else { start };
        match current.get_mut(at) {
            Some(c) if error.info() == DUPLICATE && (c.is_alphanumeric() || *c == '_') => *c = stand_in,
            _ => return Err(syntax(file, &original, &error)),
        }
    }
    Err(Problem {
        place: Place::File(file.clone()),
        path: String::new(),
        message: "most keys are written twice".into(),
    })
}

const DUPLICATE: &str = "duplicated key in mapping";

fn document(
    file: &Arc<str>,
    original: &[char],
    current: &[char],
    documents: Vec<MarkedYaml<'_>>,
) -> Result<Node, Problem> {
    let reader = Reader { file, original, current };
    let mut documents = documents.iter().map(|document| reader.node(document));
    match (documents.next(), documents.next()) {
        (None, _) => Ok(Node::empty(file)),
        (Some(Node { data: Data::Null, .. }), None) => Ok(Node::empty(file)),
        (Some(only), None) => Ok(only),
        (_, Some(second)) => Err(Problem {
            place: second.place,
            path: String::new(),
            message: "a second YAML document starts here; one file holds one (remove the `---`)".to_string(),
        }),
    }
}

struct Reader<'a> {
    file: &'a Arc<str>,
    original: &'a [char],
    current: &'a [char],
}

impl Reader<'_> {
    fn node(&self, yaml: &MarkedYaml<'_>) -> Node {
        let (start, end) = (yaml.span.start, yaml.span.end);
        let data = match &yaml.data {
            YamlData::Value(Scalar::Null) => Data::Null,
            YamlData::Value(Scalar::String(text)) => Data::Text(text.to_string()),
            YamlData::Value(_) => {
                let written: String =
                    self.original.get(start.index()..end.index()).unwrap_or_default().iter().collect();
                Data::Text(written.trim().to_string())
            }
            YamlData::Sequence(nodes) => Data::List(nodes.iter().map(|node| self.node(node)).collect()),
            YamlData::Mapping(entries) => {
                Data::Map(entries.iter().map(|(key, value)| (self.key(key), self.node(value))).collect())
            }
            YamlData::Tagged(..) => Data::Foreign("a YAML tag"),
            YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => Data::Foreign("an empty value"),
        };
        Node { place: self.place(start), data }
    }

    fn key(&self, yaml: &MarkedYaml<'_>) -> Key {
        let start = yaml.span.start;
        let node = self.node(yaml);
        let mut text = match node.data {
            Data::Text(text) => text,
            _ => self.original.get(start.index()..yaml.span.end.index()).unwrap_or_default().iter().collect(),
        };
        // The exchanged character is the first of the key, or follows its quote.
        let changed = (start.index()..start.index() + 2)
            .find(|at| self.original.get(*at) != self.current.get(*at))
            .and_then(|at| self.original.get(at));
        if let Some(first) = changed {
            text = std::iter::once(*first).chain(text.chars().skip(1)).collect();
        }
        Key { text, place: node.place, repeated: changed.is_some() }
    }

    fn place(&self, marker: saphyr::Marker) -> Place {
        Place::At { file: self.file.clone(), line: marker.line(), column: marker.col() + 1 }
    }
}

/// The parser speaks of tokens and simple keys; this says what to change.
fn syntax(file: &Arc<str>, text: &[char], error: &saphyr::ScanError) -> Problem {
    let marker = error.marker();
    let lines: Vec<String> = text.iter().collect::<String>().lines().map(str::to_string).collect();
    let line_of = |number: usize| number.checked_sub(1).and_then(|index| lines.get(index)).map_or("", String::as_str);
    let is_tabbed = |line: &str| line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    let (mut line, mut column) = (marker.line(), marker.col() + 1);
    let tabbed = [line, line.saturating_sub(1)].into_iter().find(|number| is_tabbed(line_of(*number)));
    let here = line_of(line);
    let message = if let Some(number) = tabbed {
        line = number;
        column = line_of(number).chars().position(|c| c == '\t').unwrap_or(0) + 1;
        "a tab cannot indent YAML; use spaces".to_string()
    } else if here.contains("${") && here.contains('{') && here.trim_start().find("${") != here.trim_start().find('{') {
        format!("{}; inside `{{ … }}` a value with `${{…}}` needs double quotes", error.info())
    } else if error.info() == DUPLICATE {
        "this key is written twice".to_string()
    } else {
        format!("not valid YAML: {}", error.info())
    };
    Problem { place: Place::At { file: file.clone(), line, column }, path: String::new(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        fn show(node: &Node) -> String {
            match &node.data {
                Data::Null => "null".to_string(),
                Data::Text(text) => format!("{text:?}"),
                Data::List(nodes) => format!("[{}]", nodes.iter().map(show).collect::<Vec<_>>().join(", ")),
                Data::Map(entries) => {
                    let entries: Vec<String> = entries
                        .iter()
                        .map(|(key, value)| {
                            let Place::At { line, column, .. } = key.place else { panic!("a key has a place") };
                            let twice = if key.repeated { " again" } else { "" };
                            format!("{}@{line}:{column}{twice} {}", key.text, show(value))
                        })
                        .collect();
                    format!("{{{}}}", entries.join(", "))
                }
                Data::Foreign(what) => format!("<{what}>"),
            }
        }
        match parse(&"a.yaml".into(), text) {
            Ok(node) => show(&node),
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn scalars_stay_as_they_were_written() {
        insta::assert_snapshot!(
            read("a: 0123\nb: 1.50\nc: yes\nd: true\ne: 'x y'\nf: ${V:-1}\ng:\nh: ~\n"),
            @r#"{a@1:1 "0123", b@2:1 "1.50", c@3:1 "yes", d@4:1 "true", e@5:1 "x y", f@6:1 "${V:-1}", g@7:1 null, h@8:1 null}"#
        );
        insta::assert_snapshot!(
            read("l: [1, {x: 2}]\nm:\n  - é: 3\n    z: 4\n"),
            @r#"{l@1:1 ["1", {x@1:9 "2"}], m@2:1 [{é@3:5 "3", z@4:5 "4"}]}"#
        );
        insta::assert_snapshot!(read("# only a comment\n"), @"{}");
        insta::assert_snapshot!(read(""), @"{}");
        insta::assert_snapshot!(read("\u{feff}a: 1\r\nb: 2\r\n"), @r#"{a@1:1 "1", b@2:1 "2"}"#);
    }

    #[test]
    fn an_anchor_is_repeated_where_it_is_named() {
        insta::assert_snapshot!(read("a: &x {k: 1}\nb: *x\n"), @r#"{a@1:1 {k@1:8 "1"}, b@2:1 {k@1:8 "1"}}"#);
        insta::assert_snapshot!(read("b: *x\n"), @"a.yaml:1:4: not valid YAML: while parsing node, found unknown anchor");
    }

    #[test]
    fn every_repeated_key_is_found() {
        insta::assert_snapshot!(
            read("every: 1\nevery: 2\nb:\n  \"rows\": 1\n  'rows': 2\nevery: 3\n"),
            @r#"{every@1:1 "1", every@2:1 again "2", b@3:1 {rows@4:3 "1", rows@5:3 again "2"}, every@6:1 again "3"}"#
        );
    }

    #[test]
    fn what_is_not_yaml_says_what_to_change() {
        insta::assert_snapshot!(read("a:\n\tb: 1\n"), @"a.yaml:2:1: a tab cannot indent YAML; use spaces");
        insta::assert_snapshot!(read("a: {b: ${X}}\n"), @"a.yaml:1:9: while parsing a flow mapping, did not find expected ',' or '}'; inside `{ … }` a value with `${…}` needs double quotes");
        insta::assert_snapshot!(read("a: [1, 2\nb: 3\n"), @"a.yaml:2:2: not valid YAML: illegal placement of ':' indicator");
        insta::assert_snapshot!(read("a: b: c\n"), @"a.yaml:1:5: not valid YAML: mapping values are not allowed in this context");
        insta::assert_snapshot!(read("a: \"open\n"), @"a.yaml:1:4: not valid YAML: while scanning a quoted scalar, found unexpected end of stream");
        insta::assert_snapshot!(read("a: 1\n b: 2\n"), @"a.yaml:2:3: not valid YAML: mapping values are not allowed in this context");
        insta::assert_snapshot!(read("a: 1\n---\nb: 2\n"), @"a.yaml:3:1: a second YAML document starts here; one file holds one (remove the `---`)");
        insta::assert_snapshot!(read("a: !secret [1]\n"), @"{a@1:1 <a YAML tag>}");
        insta::assert_snapshot!(read("a: @b\n"), @"a.yaml:1:4: not valid YAML: unexpected character: `@'");
    }
}
