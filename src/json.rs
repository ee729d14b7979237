//! JSON objects read one level deep, as slices of their text, and the digits in them.
//!
//! Change events are taken apart without a tree of values in between: an object is a walk over its fields, and a field's
//! value stays the text it was, until somebody knows its type.

use std::borrow::Cow;

use serde::de::{Error as _, IgnoredAny};
use wide::u8x16;

/// Why a walk over an object ended early.
#[derive(Debug)]
pub(crate) enum Stopped<E> {
    /// The text is not one JSON object.
    Syntax(serde_json::Error),
    /// The visitor did not want to go on.
    Field(E),
}

/// Calls `visit` with the name and the JSON text of each field of the object that `text` is, in order.
///
/// The whole text is checked, nested values too.
pub(crate) fn each_field<'a, E>(
    text: &'a str,
    mut visit: impl FnMut(Cow<'a, str>, &'a str) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    walk(text, Reader::value, |name, value, ()| visit(name, value))
}

/// Like [`each_field`]; of a value that is an object itself, `visit` gets the fields as well. One walk over the text
/// does for both levels.
pub(crate) fn each_field_of_two_levels<'a, E>(
    text: &'a str,
    visit: impl FnMut(Cow<'a, str>, &'a str, Option<Vec<Field<'a>>>) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    let value = |reader: &mut Reader<'a>| match reader.peek()? {
        b'{' => reader.fields().map(Some),
        _ => reader.value().map(|()| None),
    };
    walk(text, value, visit)
}

/// A field's name and the JSON text of its value.
pub(crate) type Field<'a> = (Cow<'a, str>, &'a str);

fn walk<'a, T, E>(
    text: &'a str,
    mut value: impl FnMut(&mut Reader<'a>) -> Option<T>,
    mut visit: impl FnMut(Cow<'a, str>, &'a str, T) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    let mut reader = Reader { text, at: 0 };
    reader.space();
    let mut refused = None;
    let walked = reader.object(|reader| {
        let name = reader.name()?;
        let start = reader.at;
        let found = value(reader)?;
        visit(name, text.get(start..reader.at)?, found).map_err(|error| refused = Some(error)).ok()
    });
    reader.space();
    match (walked, refused) {
        (_, Some(error)) => Err(Stopped::Field(error)),
        (Some(()), None) if reader.at == text.len() => Ok(()),
        _ => Err(Stopped::Syntax(complaint(text))),
    }
}

/// What backslashes there are in the text of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escapes {
    None,
    /// Those of a string, each with one character behind it that is not `u`.
    Short,
    /// Whatever there may be.
    Any,
}

/// How long the JSON value is that bytes begin with, and what escapes it has; `None` when there is none.
#[inline(always)]
pub(crate) fn value_in(bytes: &[u8]) -> Option<(usize, Escapes)> {
    match bytes.first()? {
        b'"' => string_in(bytes),
        b'0'..=b'9' | b'-' => Some((number_in(bytes)?, Escapes::None)),
        b'{' | b'[' => Some((nested_in(bytes)?, Escapes::Any)),
        _ => Some((word_in(bytes)?, Escapes::None)),
    }
}

/// Whether `text` is one JSON value.
pub(crate) fn is_value(text: &str) -> bool {
    let mut reader = Reader { text, at: 0 };
    reader.space();
    reader.value().is_some() && {
        reader.space();
        reader.at == text.len()
    }
}

/// Whether `text` is one object of values that are no objects or lists, without white space between them or escapes in its names.
pub(crate) fn is_plain_object(text: &str) -> bool {
    fn walk(bytes: &[u8]) -> Option<()> {
        let mut rest = bytes.strip_prefix(b"{")?;
        loop {
            let (length, Escapes::None) = string_in(rest)? else { return None };
            rest = rest.get(length..)?.strip_prefix(b":")?;
            if matches!(rest.first()?, b'{' | b'[') {
                return None;
            }
            let (length, Escapes::None | Escapes::Short) = value_in(rest)? else { return None };
            rest = rest.get(length..)?;
            match rest {
                b"}" => return Some(()),
                _ => rest = rest.strip_prefix(b",")?,
            }
        }
    }
    walk(text.as_bytes()).is_some()
}

/// What is wrong with a text that is not JSON, in the words of a parser that keeps track of lines.
fn complaint(text: &str) -> serde_json::Error {
    match serde_json::from_str::<IgnoredAny>(text) {
        Err(error) => error,
        Ok(_) => serde_json::Error::custom("it is not one object"),
    }
}

/// The text a JSON string holds; `None` when `json` is not a string, or not one of Unicode characters.
pub(crate) fn string(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if !has_escape(inside.as_bytes()) {
        return Some(Cow::Borrowed(inside));
    }
    match without_short_escapes(inside) {
        Some(text) => Some(Cow::Owned(text)),
        None => serde_json::from_str::<String>(json).ok().map(Cow::Owned),
    }
}

/// The text of a JSON string that is written without escapes.
pub(crate) fn plain_string(json: &str) -> Option<&str> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    (!has_escape(inside.as_bytes())).then_some(inside)
}

fn has_escape(bytes: &[u8]) -> bool {
    // Blocks that are looked at whole become vector instructions.
    let (blocks, rest) = bytes.as_chunks::<32>();
    let (eights, rest) = rest.as_chunks::<8>();
    blocks.iter().any(|block| block.iter().fold(false, |found, byte| found | (*byte == b'\\')))
        || eights.iter().any(|eight| is_zero(u64::from_le_bytes(*eight) ^ (EACH * u64::from(b'\\'))) != 0)
        || rest.contains(&b'\\')
}

/// The text inside of quotes, where all its escapes are of one character.
fn without_short_escapes(inside: &str) -> Option<String> {
    let mut text = String::with_capacity(inside.len());
    each_piece(inside, |piece| text.push_str(piece))?;
    Some(text)
}

/// Calls `visit` with the text inside of quotes, piece by piece; `None` at the first escape of more than one character.
pub(crate) fn each_piece<'a>(inside: &'a str, mut visit: impl FnMut(&'a str)) -> Option<()> {
    let mut rest = inside;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        let (plain, escaped) = rest.split_at(at);
        visit(plain);
        visit(match escaped.as_bytes().get(1)? {
            b'"' => "\"",
            b'\\' => "\\",
            b'/' => "/",
            b'b' => "\u{8}",
            b'f' => "\u{c}",
            b'n' => "\n",
            b'r' => "\r",
            b't' => "\t",
            _ => return None,
        });
        rest = escaped.get(2..)?;
    }
    visit(rest);
    Some(())
}

/// The same JSON without the white space around its tokens.
pub(crate) fn compact(json: &str) -> String {
    // Without an early end, so that it becomes vector instructions.
    if !json.bytes().fold(false, |found, byte| found | matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        return json.to_string();
    }
    let mut text = String::with_capacity(json.len());
    let (mut in_string, mut escaped, mut copied) = (false, false, 0);
    for (index, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\t' | b'\n' | b'\r' if !in_string => {
                text.push_str(&json[copied..index]);
                copied = index + 1;
            }
            _ => {}
        }
    }
    text.push_str(&json[copied..]);
    text
}

/// Appends `name: value` to an object that is being written, with the comma before it where one is due.
pub(crate) fn push_field(object: &mut String, name: &str, value: &str) {
    if !object.ends_with('{') {
        object.push(',');
    }
    push_string(object, name);
    object.push(':');
    object.push_str(value);
}

/// Appends `text` as a JSON string.
pub(crate) fn push_string(json: &mut String, text: &str) {
    json.push('"');
    if !text.bytes().any(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        json.push_str(text);
        json.push('"');
        return;
    }
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            control if (control as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", control as u32)),
            other => json.push(other),
        }
    }
    json.push('"');
}

/// Walks over JSON text and keeps nothing of it. Each step gives nothing where the text is not JSON.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    /// A field's name, up to where its value starts.
    fn name(&mut self) -> Option<Cow<'a, str>> {
        let (length, escapes) = string_in(self.text.as_bytes().get(self.at..)?)?;
        let quoted = self.text.get(self.at..self.at + length)?;
        self.at += length;
        let name = match escapes {
            Escapes::None => Cow::Borrowed(quoted.get(1..quoted.len() - 1)?),
            _ => Cow::Owned(serde_json::from_str(quoted).ok()?),
        };
        self.space();
        self.expect(b':')?;
        self.space();
        Some(name)
    }

    /// An object whose fields, name and value, `field` reads.
    fn object(&mut self, mut field: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.expect(b'{')?;
        self.space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            field(self)?;
            self.space();
            match self.next()? {
                b',' => self.space(),
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn fields(&mut self) -> Option<Vec<Field<'a>>> {
        let mut fields = Vec::with_capacity(16);
        self.object(|reader| {
            let name = reader.name()?;
            let start = reader.at;
            reader.value()?;
            fields.push((name, reader.text.get(start..reader.at)?));
            Some(())
        })?;
        Some(fields)
    }

    fn value(&mut self) -> Option<()> {
        self.at += value_in(self.text.as_bytes().get(self.at..)?)?.0;
        Some(())
    }
}

/// How long the object or array is that bytes begin with. Its depth costs memory and no stack.
fn nested_in(bytes: &[u8]) -> Option<usize> {
    let past_space = |at: usize| {
        let rest = bytes.get(at..).unwrap_or_default();
        at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\t' | b'\r')).count()
    };
    let past_name = |at: usize| {
        let (length, escapes) = string_in(bytes.get(at..)?)?;
        // A name has to be Unicode text, on every level: half of a surrogate pair is none.
        if escapes == Escapes::Any {
            serde_json::from_slice::<String>(bytes.get(at..at + length)?).ok()?;
        }
        let colon = past_space(at + length);
        (*bytes.get(colon)? == b':').then(|| past_space(colon + 1))
    };
    let mut objects = Nesting::default();
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            open @ (b'{' | b'[') => {
                let is_object = *open == b'{';
                at = past_space(at + 1);
                if *bytes.get(at)? == if is_object { b'}' } else { b']' } {
                    at += 1;
                } else {
                    objects.push(is_object);
                    if is_object {
                        at = past_name(at)?;
                    }
                    continue;
                }
            }
            _ => at += value_in(bytes.get(at..)?)?.0,
        }
        loop {
            let Some(is_object) = objects.last() else { return Some(at) };
            at = past_space(at);
            let end = *bytes.get(at)?;
            at += 1;
            match (end, is_object) {
                (b',', true) => {
                    at = past_name(past_space(at))?;
                    break;
                }
                (b',', false) => {
                    at = past_space(at);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    objects.pop();
                }
                _ => return None,
            }
        }
    }
}

/// How long the string is that bytes begin with, its quotes included, and what escapes it has.
#[inline]
fn string_in(bytes: &[u8]) -> Option<(usize, Escapes)> {
    if *bytes.first()? != b'"' {
        return None;
    }
    let (mut at, mut escapes) = (1, Escapes::None);
    loop {
        // Thirty-two bytes at a time, until one of them has a meaning.
        while let Some(block) = bytes.get(at..)?.first_chunk() {
            let special = special_bits(block);
            if special != 0 {
                at += special.trailing_zeros() as usize;
                break;
            }
            at += block.len();
        }
        // Eight where there are no more.
        while let Some(eight) = bytes.get(at..)?.first_chunk() {
            let special = first_special(u64::from_le_bytes(*eight));
            if special != 0 {
                at += special.trailing_zeros() as usize / 8;
                break;
            }
            at += eight.len();
        }
        match *bytes.get(at)? {
            b'"' => return Some((at + 1, escapes)),
            b'\\' => {
                at += match bytes.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                        if escapes == Escapes::None {
                            escapes = Escapes::Short;
                        }
                        2
                    }
                    b'u' => {
                        escapes = Escapes::Any;
                        bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit).then_some(6)?
                    }
                    _ => return None,
                };
            }
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

/// How long the number is that bytes begin with.
#[inline]
fn number_in(bytes: &[u8]) -> Option<usize> {
    let whole = digits_in(bytes);
    match (bytes.first(), bytes.get(whole)) {
        // As nearly all are.
        (Some(b'1'..=b'9'), Some(b',' | b'}')) => Some(whole),
        _ => any_number_in(bytes),
    }
}

fn any_number_in(bytes: &[u8]) -> Option<usize> {
    let digits_at = |at: usize| bytes.get(at..).map_or(0, digits_in);
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    at += match (bytes.get(at)?, digits_at(at)) {
        (_, 0) => return None,
        (b'0', _) => 1,
        (_, digits) => digits,
    };
    if bytes.get(at) == Some(&b'.') {
        let digits = digits_at(at + 1);
        at += (digits > 0).then_some(1 + digits)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        let digits = digits_at(at);
        at += (digits > 0).then_some(digits)?;
    }
    Some(at)
}

fn word_in(bytes: &[u8]) -> Option<usize> {
    ["true", "false", "null"].iter().find(|word| bytes.starts_with(word.as_bytes())).map(|word| word.len())
}

/// What one is inside of: whether each is an object, or else an array. Most texts nest less deep than a word has bits.
#[derive(Default)]
struct Nesting {
    depth: u32,
    bits: u64,
    /// The words that are full.
    full: Vec<u64>,
}

impl Nesting {
    fn push(&mut self, is_object: bool) {
        if self.depth == u64::BITS {
            self.full.push(self.bits);
            self.depth = 0;
        }
        self.bits = self.bits << 1 | u64::from(is_object);
        self.depth += 1;
    }

    fn last(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }

    fn pop(&mut self) {
        self.bits >>= 1;
        self.depth = self.depth.saturating_sub(1);
        if self.depth == 0
            && let Some(bits) = self.full.pop()
        {
            (self.bits, self.depth) = (bits, u64::BITS);
        }
    }
}

/// One in each of eight bytes.
const EACH: u64 = 0x0101_0101_0101_0101;

/// The high bit of the first byte of eight that is zero, and maybe of some behind it.
fn is_zero(word: u64) -> u64 {
    word.wrapping_sub(EACH) & !word & (EACH << 7)
}

/// The high bit of the first of eight bytes that has a meaning in a string, and maybe of some behind it.
fn first_special(word: u64) -> u64 {
    let is_below_space = word.wrapping_sub(EACH * u64::from(b' ')) & !word & (EACH << 7);
    is_zero(word ^ (EACH * u64::from(b'"'))) | is_zero(word ^ (EACH * u64::from(b'\\'))) | is_below_space
}

/// How many digits bytes begin with.
#[inline]
pub(crate) fn digits_in(bytes: &[u8]) -> usize {
    // Many bytes at a time: a loop whose end depends on each byte costs more than what it does.
    let mut rest = bytes;
    while let Some((sixteen, behind)) = rest.split_first_chunk() {
        let others = other_than_digits(sixteen);
        if others != 0 {
            return bytes.len() - rest.len() + others.trailing_zeros() as usize;
        }
        rest = behind;
    }
    if let Some((eight, behind)) = rest.split_first_chunk() {
        let others = not_digits(u64::from_le_bytes(*eight));
        if others != 0 {
            return bytes.len() - rest.len() + others.trailing_zeros() as usize / 8;
        }
        rest = behind;
    }
    bytes.len() - rest.len() + rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// A bit for each of sixteen bytes that is no digit.
fn other_than_digits(sixteen: &[u8; 16]) -> u32 {
    let digits = u8x16::new(*sixteen) - u8x16::splat(b'0');
    !digits.min(u8x16::splat(9)).simd_eq(digits).to_bitmask() & 0xffff
}

/// The high bits of those of eight bytes that are no digits.
fn not_digits(word: u64) -> u64 {
    let digits = word ^ (EACH * u64::from(b'0'));
    (((digits & (EACH * 0x7f)) + EACH * (0x80 - 10)) | digits) & (EACH << 7)
}

/// A whole number of so few digits that it cannot be out of range, as nearly all are.
pub(crate) fn short_whole(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let (eights, rest) = digits.as_chunks::<8>();
    let mut number = 0;
    for eight in eights {
        number = number * 100_000_000 + eight_digits(*eight)?;
    }
    for byte in rest {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + i64::from(digit);
    }
    Some(if is_negative { -number } else { number })
}

/// The number that eight digits are, all at once: pairs of them, then fours, then all.
fn eight_digits(eight: [u8; 8]) -> Option<i64> {
    let word = u64::from_le_bytes(eight);
    if not_digits(word) != 0 {
        return None;
    }
    let ones = word ^ (EACH * u64::from(b'0'));
    let pairs = (ones * 10 + (ones >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) as i64 & 0xffff_ffff)
}

/// A bit for each byte that has a meaning in a string: its end, an escape, or a control character, which has no place in it.
fn special_bits(block: &[u8; 32]) -> u32 {
    let (sixteens, _) = block.as_chunks::<16>();
    let bits = |block: &[u8; 16]| {
        let bytes = u8x16::new(*block);
        let is_control = bytes.min(u8x16::splat(b' ' - 1)).simd_eq(bytes);
        (bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\')) | is_control).to_bitmask()
    };
    bits(&sixteens[0]) | bits(&sixteens[1]) << 16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn fields(text: &str) -> Result<Vec<(String, String)>, String> {
        let mut found = Vec::new();
        each_field(text, |name, value| {
            found.push((name.into_owned(), value.to_string()));
            if found.len() > 9 { Err("too many") } else { Ok(()) }
        })
        .map_err(|stopped| match stopped {
            Stopped::Syntax(error) => error.to_string(),
            Stopped::Field(problem) => problem.to_string(),
        })?;
        Ok(found)
    }

    #[test]
    fn a_walk_gives_names_unescaped_and_values_as_they_were_written() {
        let found = fields(r#" { "a" : 1.50 , "b\u00e4" :[1, {"c":"}"}], "d":null} "#).unwrap();
        let expected = [("a", "1.50"), ("bä", r#"[1, {"c":"}"}]"#), ("d", "null")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_string(), value.to_string())));
        assert_eq!(fields("{}").unwrap(), []);
    }

    #[test]
    fn a_walk_takes_one_whole_object_only() {
        for text in ["", "{", "[]", "1", "\"a\"", "{} {}", r#"{"a":1,}"#, r#"{"a" 1}"#, r#"{"a":01}"#, r#"{a:1}"#] {
            assert!(fields(text).is_err(), "{text}");
        }
        // Half of a surrogate pair is a value for a column to refuse, and no name.
        assert!(is_value(r#"[{"\u00e4":"\ud800"}]"#) && !is_value(r#"[{"\ud800":1}]"#));
        let many: Vec<String> = (0..10).map(|index| format!("\"f{index}\":0")).collect();
        assert_eq!(fields(&format!("{{{}}}", many.join(","))), Err("too many".to_string()));
    }

    #[test]
    fn a_deeply_nested_value_is_only_a_slice() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
        assert_eq!(fields(&deep).unwrap()[0].1.len(), 100_000);
        for depth in [63, 64, 65, 128, 129, 200] {
            let mixed = format!("{{\"a\":{}1{}}}", "[{\"b\":".repeat(depth), "}]".repeat(depth));
            assert_eq!(fields(&mixed).unwrap().len(), 1, "{depth}");
            let crossed = mixed.replacen("}]", "]}", 1);
            assert!(fields(&crossed).is_err(), "{depth}");
            assert!(fields(&format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth - 1))).is_err(), "{depth}");
            let odd = format!("{{\"a\":{{\"c\":{}1{}}}}}", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(fields(&odd).unwrap().len(), 1, "{depth}");
        }
    }

    #[test]
    fn strings_and_compact_text() {
        assert_eq!(string(r#""a\n\u00e4\ud83d\ude00/""#).unwrap(), "a\nä😀/");
        assert_eq!(string(r#""\ud800""#), None);
        assert_eq!(string("12"), None);
        assert_eq!(compact("{ \"a b\" : [ 1 ,\n\t\"c \\\" d\" ] }"), r#"{"a b":[1,"c \" d"]}"#);
        let mut object = "{".to_string();
        push_field(&mut object, "a\"\\\u{1}ä", "1");
        push_field(&mut object, "b", "[]");
        assert_eq!(object, r#"{"a\"\\\u0001ä":1,"b":[]"#);
    }

    #[test]
    fn digits_are_counted_and_read_whatever_is_behind_them() {
        for count in 0..40 {
            for behind in ["", ",", "/", ":", "ä", "}        ", "\u{80}00000000"] {
                let text = format!("{}{behind}", "1234567890".repeat(4).get(..count).unwrap());
                assert_eq!(digits_in(text.as_bytes()), count, "{text}");
            }
        }
        assert_eq!(short_whole(b"-12345678901234567"), Some(-12_345_678_901_234_567));
        for bad in ["", "-", "1234567890123456789", "12345678x", "1234567:", "/1234567", "1.5", "--1", "+1"] {
            assert_eq!(short_whole(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_string_says_what_escapes_it_has() {
        for length in 0..80 {
            let plain = "x".repeat(length);
            for (inside, escapes) in [("", Escapes::None), ("\\n", Escapes::Short), ("\\u00e4", Escapes::Any)] {
                for text in [format!("\"{plain}{inside}\""), format!("\"{inside}{plain}\"")] {
                    let expected = Some((text.len(), escapes));
                    assert_eq!(value_in(text.as_bytes()), expected, "{text}");
                    assert_eq!(value_in(format!("{text},\"{plain}").as_bytes()), expected, "{text}");
                    assert_eq!(value_in(&text.as_bytes()[..text.len() - 1]), None, "{text}");
                }
            }
            assert_eq!(value_in(format!("\"{plain}\u{1f}{plain}\"").as_bytes()), None);
            assert_eq!(value_in(format!("\"{plain}\\n\\u00e4\\n\"").as_bytes()).unwrap().1, Escapes::Any);
        }
    }

    proptest! {
        #[test]
        fn short_whole_numbers_are_what_a_parser_says(number in any::<i64>(), shift in 0..64) {
            let number: i64 = number >> shift;
            let text = number.to_string();
            let expected = (text.trim_start_matches('-').len() <= 18).then_some(number);
            prop_assert_eq!(short_whole(text.as_bytes()), expected);
        }

        /// Whatever the text, the walk takes it for an object exactly when a full parser does, and gives its fields.
        #[test]
        fn a_walk_agrees_with_a_parser(text in any_text()) {
            let mut found = Vec::new();
            let walked = each_field::<()>(&text, |name, value| {
                found.push((name.into_owned(), value.to_string()));
                Ok(())
            });
            let parsed = serde_json::from_str::<Ordered>(&text);
            prop_assert_eq!(walked.is_ok(), parsed.is_ok(), "{}", text);
            let (walked_is_ok, parsed_is_ok, found_before) = (walked.is_ok(), parsed.is_ok(), found.clone());
            if let Ok(Ordered(expected)) = parsed {
                prop_assert_eq!(found, expected);
            }
            let mut levels = Vec::new();
            let walked = each_field_of_two_levels::<()>(&text, |name, value, fields| {
                levels.push((name.into_owned(), value.to_string()));
                let inner = fields.map(|fields| {
                    fields.into_iter().map(|(name, value)| (name.into_owned(), value.to_string())).collect::<Vec<_>>()
                });
                let expected = serde_json::from_str::<Ordered>(value).ok().map(|Ordered(fields)| fields);
                if inner == expected { Ok(()) } else { Err(()) }
            });
            prop_assert_eq!(walked.is_ok(), parsed_is_ok);
            prop_assert!(!walked_is_ok || levels == found_before);
            prop_assert_eq!(is_value(&text), serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
        }
    }

    /// Objects, and objects with a character changed, left out or put in.
    fn any_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_string()),
            Just("true".to_string()),
            "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
            "\"([a-zA-Zä☕ ,:\\[\\]{}]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-7][0-9a-f]){0,20}\"",
            "\"[ !#-~]{0,40}(\\\\[\"\\\\/bfnrt])?[ !#-~]{0,40}\"",
        ];
        let value = leaf.prop_recursive(3, 20, 4, |inner| {
            let field = ("\"[a-z]{0,9}\" ?", inner.clone()).prop_map(|(name, value)| format!("{name}:{value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(|values| format!("[{}]", values.join(", "))),
                prop::collection::vec(field, 0..4).prop_map(|fields| format!("{{{}}}", fields.join(","))),
            ]
        });
        let noise =
            prop_oneof![Just(None), (any::<prop::sample::Index>(), "[\\x00-\\x7f]?", any::<bool>()).prop_map(Some)];
        (prop::collection::vec(value, 0..4), noise).prop_map(|(values, noise)| {
            let fields: Vec<String> =
                values.iter().enumerate().map(|(i, value)| format!("\"f{i}\" : {value}")).collect();
            let mut text = format!("{{{}}}", fields.join(" ,"));
            if let Some((index, put, take)) = noise {
                let at = index.index(text.chars().count());
                let mut characters: Vec<char> = text.chars().collect();
                if take {
                    characters.remove(at);
                }
                characters.splice(at..at, put.chars());
                text = characters.into_iter().collect();
            }
            text
        })
    }

    /// The fields of an object, as serde_json reads them.
    struct Ordered(Vec<(String, String)>);

    impl<'de> serde::Deserialize<'de> for Ordered {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Fields;
            impl<'de> serde::de::Visitor<'de> for Fields {
                type Value = Ordered;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                    let mut fields = Vec::new();
                    while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                        fields.push((name, value.get().to_string()));
                    }
                    Ok(Ordered(fields))
                }
            }
            deserializer.deserialize_map(Fields)
        }
    }
}
