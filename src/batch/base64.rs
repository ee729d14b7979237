//! Base64 as Debezium writes it: the standard alphabet, padded, without line breaks.

/// The bytes `text` stands for; `None` when it is not canonical base64.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    decode_to(text, |some| bytes.extend_from_slice(some))?;
    Some(bytes)
}

/// As many bytes as the widest decimal may have, and how many they are; `None` also when they are more.
pub(super) fn decode_short(text: &str) -> Option<([u8; 18], usize)> {
    let (mut bytes, mut length) = ([0; 18], 0);
    if text.len() > bytes.len() / 3 * 4 {
        return None;
    }
    // Byte by byte, since a copy of a length that is not known is a call.
    decode_to(text, |some| {
        for byte in some {
            bytes[length] = *byte;
            length += 1;
        }
    })?;
    Some((bytes, length))
}

fn decode_to(text: &str, mut take: impl FnMut(&[u8])) -> Option<()> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    for chunk in digits.chunks(4) {
        let mut group = 0u32;
        for byte in chunk {
            group = group << 6 | digit(*byte)?;
        }
        let [_, first, second, third] = (group << (6 * (4 - chunk.len()))).to_be_bytes();
        let (whole, left_over) = match chunk.len() {
            4 => (&[first, second, third][..], 0),
            3 => (&[first, second][..], third),
            2 => (&[first][..], second),
            _ => return None,
        };
        // Bits behind the last byte would be lost, and two texts would stand for the same bytes.
        if left_over != 0 {
            return None;
        }
        take(whole);
    }
    Some(())
}

fn digit(byte: u8) -> Option<u32> {
    let digit = DIGITS[usize::from(byte)];
    (digit < 64).then(|| u32::from(digit))
}

/// What each byte stands for. A comparison with the letters would be guessed wrong as often as not.
const DIGITS: [u8; 256] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut digits = [u8::MAX; 256];
    let mut at = 0;
    while at < alphabet.len() {
        digits[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_base64_is_read() {
        let check = |text: &str, expected: Option<&[u8]>| {
            assert_eq!(decode(text).as_deref(), expected, "{text}");
            assert_eq!(decode_short(text).as_ref().map(|(bytes, length)| &bytes[..*length]), expected, "{text}");
        };
        check("", Some(b""));
        check("Zg==", Some(b"f"));
        check("Zm8=", Some(b"fo"));
        check("Zm9v", Some(b"foo"));
        check("Zm9vYg==", Some(b"foob"));
        check("+/+/", Some(&[0xfb, 0xff, 0xbf]));
        for bad in ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "Zm9v\n", "Zm9-", "====", "Z===", "=m9v", "Zg==Zg==", "Zmä="] {
            check(bad, None);
        }
        assert_eq!(decode_short(&"AAAA".repeat(6)), Some(([0; 18], 18)));
        assert_eq!(decode_short(&"AAAA".repeat(7)), None);
    }
}
