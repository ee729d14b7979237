//! A short name for a text, the same in every run and release: FNV-1a, 64 bits.
//!
//! It tells a changed model from an unchanged one. It is no protection against anybody.

/// Sixteen hexadecimal digits for the parts, each ended so that moving text between them shows.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    format!("{:016x}", hash(parts.into_iter().map(str::as_bytes)))
}

/// The same as a number, for any bytes.
pub(crate) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.iter().chain(&[0]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_keeps_its_name() {
        assert_eq!(fingerprint(["SELECT 1"]), "72d14ae7c77fe736");
        assert_ne!(fingerprint(["a", "bc"]), fingerprint(["ab", "c"]));
    }
}
