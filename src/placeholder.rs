//! What a connector sends in place of a large value that did not change and that its source did not log.
//!
//! Debezium's `unavailable.value.placeholder` is a text or, behind `hex:`, bytes. Each type of column has a form of its
//! own of it, which are told apart here from the JSON as it was sent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;

use crate::json;

/// What Debezium sends when it is told nothing else.
pub const DEFAULT: &str = "__debezium_unavailable_value";

/// How much longer than it has to be a list or map may be, by white space.
const MOST_WHITE_SPACE: usize = 128;

/// So much of a list of numbers is looked for in a whole row: what is behind it may be written with white space.
const MOST_CODES: usize = 29;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAPlaceholder {
    #[error("an empty text stands for nothing")]
    Empty,
    #[error("`{text}` is no placeholder: behind `hex:` come two hexadecimal digits for each byte")]
    NotHex { text: String },
}

/// A placeholder in all its forms, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    /// What stands between the quotes.
    text: String,
    /// The text itself, where there is more than one way to write it as JSON.
    unescaped: Option<String>,
    base64: String,
    /// PostgreSQL's hstore: as a map, and as JSON in a string.
    map: String,
    map_text: String,
    /// PostgreSQL's arrays: of text, of UUIDs (the name UUID of the bytes) and of numbers or dates (the bytes).
    lists: [String; 3],
    /// Something of each form: a row without any of them has no placeholder.
    marks: Vec<String>,
    /// How long its forms in quotes are, the quotes included.
    lengths: [usize; 3],
}

impl Default for Placeholder {
    fn default() -> Self {
        Placeholder::of_bytes(DEFAULT.as_bytes())
    }
}

impl Placeholder {
    /// As the connector's property has it.
    pub fn parse(setting: &str) -> Result<Self, NotAPlaceholder> {
        let bytes = match setting.strip_prefix("hex:") {
            None => Cow::Borrowed(setting.as_bytes()),
            Some(digits) => {
                let not_hex = || NotAPlaceholder::NotHex { text: setting.to_string() };
                let pair = |pair: &[u8]| {
                    let pair =
                        std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2 && !pair.starts_with('+'))?;
                    u8::from_str_radix(pair, 16).ok()
                };
                digits.as_bytes().chunks(2).map(pair).collect::<Option<Vec<u8>>>().ok_or_else(not_hex)?.into()
            }
        };
        if bytes.is_empty() {
            return Err(NotAPlaceholder::Empty);
        }
        Ok(Placeholder::of_bytes(&bytes))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let unescaped = String::from_utf8_lossy(bytes).into_owned();
        let text = inside(&unescaped);
        let has_one_form = unescaped.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\');
        let map = format!(r#"{{"{text}":"{text}"}}"#);
        let codes: Vec<String> = bytes.iter().map(|byte| byte.cast_signed().to_string()).collect();
        let codes = codes.join(",");
        let (base64, uuid) = (STANDARD.encode(bytes), name_uuid(bytes));
        Placeholder {
            marks: vec![text.clone(), base64.clone(), uuid.clone(), codes.chars().take(MOST_CODES).collect()],
            lengths: [text.len() + 2, base64.len() + 2, inside(&map).len() + 2],
            lists: [format!(r#"["{text}"]"#), format!(r#"["{uuid}"]"#), format!("[{codes}]")],
            map_text: inside(&map),
            unescaped: (!has_one_form).then_some(unescaped),
            text,
            base64,
            map,
        }
    }

    pub(crate) fn is_text(&self, json: &str) -> bool {
        is_inside(json, &self.text) || self.unescaped.as_deref().is_some_and(|text| is_written_otherwise(json, text))
    }

    pub(crate) fn is_base64(&self, json: &str) -> bool {
        is_inside(json, &self.base64)
    }

    pub(crate) fn is_map_in_text(&self, json: &str) -> bool {
        is_inside(json, &self.map_text) || self.unescaped.is_some() && is_written_otherwise(json, &self.map)
    }

    /// Whether it is one of the lists, or the map.
    pub(crate) fn is_structure(&self, json: &str) -> bool {
        if !json.starts_with(['[', '{']) {
            return false;
        }
        let forms = || self.lists.iter().chain([&self.map]);
        if json.len() > forms().map(String::len).max().unwrap_or(0) + MOST_WHITE_SPACE {
            return false;
        }
        let json = compact(json);
        forms().any(|form| *form == json)
    }

    /// Whether a string can be any of its forms, which is cheap to say of most strings.
    pub(crate) fn may_be(&self, json: &str) -> bool {
        self.lengths.contains(&json.len()) || self.unescaped.is_some() && json.contains('\\')
    }

    /// Whether a value of unknown type is any of its forms.
    pub(crate) fn is_any(&self, json: &str) -> bool {
        self.is_text(json) || self.is_base64(json) || self.is_map_in_text(json) || self.is_structure(json)
    }

    /// Whether a row can hold it at all, which is cheap to say of most rows.
    pub(crate) fn may_be_in(&self, json: &str) -> bool {
        self.marks.iter().any(|mark| json.contains(mark)) || self.unescaped.is_some() && json.contains('\\')
    }
}

pub(crate) fn compact(json: &str) -> Cow<'_, str> {
    if json.bytes().any(|byte| byte.is_ascii_whitespace()) {
        Cow::Owned(json::compact(json))
    } else {
        Cow::Borrowed(json)
    }
}

fn is_inside(json: &str, text: &str) -> bool {
    json.len() == text.len() + 2 && json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(text)
}

/// Whether a string is this text, with other escapes than ours.
fn is_written_otherwise(json: &str, text: &str) -> bool {
    // `\u0000` is the longest way to write a byte.
    json.starts_with('"')
        && json.len() <= 2 + 6 * text.len()
        && json.contains('\\')
        && json::string(json).is_some_and(|found| found == text)
}

/// A text as JSON, without the quotes.
fn inside(text: &str) -> String {
    let mut quoted = String::new();
    json::push_string(&mut quoted, text);
    quoted[1..quoted.len() - 1].to_string()
}

/// What Java's `UUID.nameUUIDFromBytes` makes: version 3 of no namespace.
fn name_uuid(bytes: &[u8]) -> String {
    let mut digest = md5(bytes);
    digest[6] = digest[6] & 0x0f | 0x30;
    digest[8] = digest[8] & 0x3f | 0x80;
    uuid::Uuid::from_bytes(digest).to_string()
}

/// RFC 1321.
fn md5(bytes: &[u8]) -> [u8; 16] {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let mut message = bytes.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend((bytes.len() as u64 * 8).to_le_bytes());
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in message.chunks_exact(64) {
        let word = |index: usize| {
            let at = index * 4;
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        let [mut a, mut b, mut c, mut d] = state;
        for step in 0..64 {
            let (mixed, from) = match step / 16 {
                0 => (b & c | !b & d, step),
                1 => (d & b | !d & c, (5 * step + 1) % 16),
                2 => (b ^ c ^ d, (3 * step + 5) % 16),
                _ => (c ^ (b | !d), 7 * step % 16),
            };
            let constant = (((step + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a.wrapping_add(mixed).wrapping_add(constant).wrapping_add(word(from));
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[step / 16][step % 4]));
        }
        for (part, added) in state.iter_mut().zip([a, b, c, d]) {
            *part = part.wrapping_add(added);
        }
    }
    let mut digest = [0; 16];
    for (target, part) in digest.chunks_exact_mut(4).zip(state) {
        target.copy_from_slice(&part.to_le_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_rfc() {
        let long = "1234567890".repeat(8);
        let check = |text: &str, expected: &str| {
            let hex: String = md5(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected, "{text}");
        };
        check("", "d41d8cd98f00b204e9800998ecf8427e");
        check("a", "0cc175b9c0f1b6a831c399e269772661");
        check("message digest", "f96b697d7cb7938d525a2f31aaf161d0");
        check(&long, "57edf4a22be3c955ac49da2e2107b67a");
        check(&long[..55], "c9ccf168914a1bcfc3229f1948e67da0");
        check(&long[..56], "49f193adce178490e34d1b3a4ec0064c");
        check(&long[..63], "c3eb67ece68488bb394241d4f6a54244");
        check(&long[..64], "eb6c4179c0a7c82cc2828c1e6338e165");
    }

    #[test]
    fn each_type_has_a_form_of_its_own() {
        let check = |setting: &str, expected: [&str; 5]| {
            let placeholder = Placeholder::parse(setting).unwrap();
            let Placeholder { text, base64, map_text, lists, .. } = &placeholder;
            assert_eq!([text, base64, map_text, &lists[1], &lists[2]].map(String::as_str), expected, "{setting}");
            let quoted = |inside: &str| format!("\"{inside}\"");
            assert!(placeholder.is_text(&quoted(text)) && !placeholder.is_text(text));
            assert!(placeholder.is_base64(&quoted(base64)) && placeholder.is_map_in_text(&quoted(map_text)));
            assert_eq!(json::string(&quoted(map_text)).unwrap(), placeholder.map);
            for structure in placeholder.lists.iter().chain([&placeholder.map]) {
                assert!(
                    placeholder.is_structure(structure) && placeholder.is_structure(&structure.replace(',', " , "))
                );
                assert!(placeholder.may_be_in(structure) && placeholder.is_any(structure), "{structure}");
            }
            for other in ["\"\"", "\"x\"", "null", "[]", "{}", "0", &quoted(&format!("{text}x"))] {
                assert!(!placeholder.is_any(other), "{other}");
            }
        };
        check(
            DEFAULT,
            [
                "__debezium_unavailable_value",
                "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
                r#"{\"__debezium_unavailable_value\":\"__debezium_unavailable_value\"}"#,
                r#"["b68a35a7-17ad-35b3-af2a-ae46edb4545a"]"#,
                "[95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,95,118,97,108,117,101]",
            ],
        );
        // As recorded.
        check(
            "hex:FF00",
            [
                r"�\u0000",
                "/wA=",
                r#"{\"�\\u0000\":\"�\\u0000\"}"#,
                r#"["e0e8bfaf-bb06-3956-bb2f-ba789c97b3cc"]"#,
                "[-1,0]",
            ],
        );
        assert_eq!(Placeholder::parse(DEFAULT).unwrap(), Placeholder::default());
    }

    #[test]
    fn a_text_may_be_escaped_in_many_ways() {
        let placeholder = Placeholder::parse("n\u{e9}/\"\n").unwrap();
        for json in [r#""né/\"\n""#, r#""n\u00e9\/\u0022\u000A""#] {
            assert!(placeholder.is_text(json) && placeholder.may_be_in(&format!("{{\"a\":{json}}}")), "{json}");
        }
        assert!(!placeholder.is_text(r#""n\u00e8\/\u0022\u000A""#));
    }

    #[test]
    fn what_is_no_placeholder_says_why() {
        for setting in ["hex:f", "hex:zz", "hex:+1", "hex:é"] {
            assert!(matches!(Placeholder::parse(setting), Err(NotAPlaceholder::NotHex { .. })), "{setting}");
        }
        for setting in ["", "hex:"] {
            assert_eq!(Placeholder::parse(setting), Err(NotAPlaceholder::Empty), "{setting}");
        }
        insta::assert_snapshot!(Placeholder::parse("hex:f").unwrap_err(), @"`hex:f` is no placeholder: behind `hex:` come two hexadecimal digits for each byte");
    }
}
