//! Decimals as unscaled integers, from text and from bytes, exactly or not at all.

/// Why a number does not fit a decimal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Inexact {
    #[error("it is not a decimal number")]
    NotANumber,
    #[error("it has more digits than the type holds")]
    Digits,
    #[error("it has more digits behind the point than the type holds")]
    Scale,
}

/// A number written in digits, `-12.50` or `1.25E+3`.
pub(super) fn from_text(text: &str, precision: u8, scale: i8) -> Result<i128, Inexact> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, whole_exponent(exponent)?),
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || mantissa.ends_with('.') {
        return Err(Inexact::NotANumber);
    }
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return Ok(0);
    }
    let without_zeros = significant.trim_end_matches('0');
    let dropped_zeros = (significant.len() - without_zeros.len()) as i64;
    let shift = exponent - fraction.len() as i64 + dropped_zeros + i64::from(scale);
    if shift < 0 {
        return Err(Inexact::Scale);
    }
    // More than 38 digits in all fit no decimal, so the arithmetic below cannot overflow.
    if without_zeros.len() as i64 + shift > 38 {
        return Err(Inexact::Digits);
    }
    let magnitude: i128 = without_zeros.parse().map_err(|_| Inexact::NotANumber)?;
    let unscaled = magnitude * 10i128.pow(shift as u32);
    within(if negative { -unscaled } else { unscaled }, precision)
}

/// Big-endian two's complement of the unscaled number, whose scale is `sent_scale`.
pub(super) fn from_bytes(bytes: &[u8], sent_scale: i64, precision: u8, scale: i8) -> Result<i128, Inexact> {
    let first = *bytes.first().ok_or(Inexact::NotANumber)?;
    let sign: u8 = if first & 0x80 == 0 { 0x00 } else { 0xff };
    let (extension, low) = bytes.split_at(bytes.len().saturating_sub(16));
    let fits = extension.iter().all(|byte| *byte == sign) && (low[0] ^ sign) & 0x80 == 0;
    if !fits {
        return Err(Inexact::Digits);
    }
    let mut wide = [sign; 16];
    wide[16 - low.len()..].copy_from_slice(low);
    rescale(i128::from_be_bytes(wide), sent_scale, precision, scale)
}

/// Plain digits of an unscaled number of any length, with `scale` of them behind the point.
///
/// PostgreSQL counts a negative scale down from 2048, and sends a number that long. No source has a scale above 1000, so
/// that zeros at such a number's end say nothing.
pub(super) fn text_of_bytes(bytes: &[u8], scale: i64) -> Result<String, Inexact> {
    /// More than PostgreSQL's numeric, the longest there is, has on both sides of its point.
    const MOST_DIGITS: usize = 150_000;
    let first = *bytes.first().ok_or(Inexact::NotANumber)?;
    let is_negative = first & 0x80 != 0;
    if bytes.len() > MOST_DIGITS / 2 || scale.unsigned_abs() > MOST_DIGITS as u64 {
        return Err(Inexact::Digits);
    }
    let mut text = digits(magnitude(bytes, is_negative));
    if scale < 0 && text != "0" {
        text.extend(std::iter::repeat_n('0', scale.unsigned_abs() as usize));
    }
    if let Ok(behind @ 1..) = usize::try_from(scale) {
        if text.len() <= behind {
            text.insert_str(0, &"0".repeat(behind + 1 - text.len()));
        }
        text.insert(text.len() - behind, '.');
        if behind > 1000 {
            text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        }
    }
    if is_negative {
        text.insert(0, '-');
    }
    Ok(text)
}

/// The magnitude of a number in two's complement, in groups of 32 bits, the most significant first.
fn magnitude(bytes: &[u8], is_negative: bool) -> Vec<u32> {
    let mut groups: Vec<u32> = bytes
        .rchunks(4)
        .map(|group| {
            let extended = if is_negative { u32::MAX } else { 0 };
            group.iter().fold(extended, |value, byte| value << 8 | u32::from(*byte))
        })
        .collect();
    if is_negative {
        let mut carry = true;
        for group in &mut groups {
            (*group, carry) = (!*group).overflowing_add(u32::from(carry));
        }
    }
    groups.reverse();
    groups
}

/// The decimal digits of a number, nine at a time from its end.
fn digits(mut groups: Vec<u32>) -> String {
    const NINE: u64 = 1_000_000_000;
    let mut from_end: Vec<u32> = Vec::with_capacity(groups.len() * 32 / 29 + 1);
    let mut start = 0;
    while start < groups.len() {
        let mut rest = 0u64;
        for group in &mut groups[start..] {
            let value = rest << 32 | u64::from(*group);
            (*group, rest) = ((value / NINE) as u32, value % NINE);
        }
        from_end.push(rest as u32);
        while groups.get(start) == Some(&0) {
            start += 1;
        }
    }
    let mut text = String::with_capacity(from_end.len() * 9);
    for nine in from_end.iter().rev() {
        text.push_str(&format!("{nine:09}"));
    }
    let leading = text.bytes().take_while(|digit| *digit == b'0').count().min(text.len().saturating_sub(1));
    text.split_off(leading)
}

fn rescale(unscaled: i128, sent_scale: i64, precision: u8, scale: i8) -> Result<i128, Inexact> {
    let shift = i64::from(scale).saturating_sub(sent_scale);
    if unscaled == 0 || shift == 0 {
        return within(unscaled, precision);
    }
    let power = u32::try_from(shift.unsigned_abs()).ok().and_then(|digits| 10i128.checked_pow(digits));
    match power {
        Some(power) if shift > 0 => within(unscaled.checked_mul(power).ok_or(Inexact::Digits)?, precision),
        Some(power) if unscaled % power == 0 => within(unscaled / power, precision),
        None if shift > 0 => Err(Inexact::Digits),
        _ => Err(Inexact::Scale),
    }
}

fn within(unscaled: i128, precision: u8) -> Result<i128, Inexact> {
    match POWERS.get(usize::from(precision)) {
        Some(limit) if unscaled.unsigned_abs() >= *limit => Err(Inexact::Digits),
        _ => Ok(unscaled),
    }
}

/// The powers of ten that 128 bits hold.
const POWERS: [u128; 39] = {
    let mut powers = [1; 39];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// An exponent, cut off where it is so large that no decimal holds the number.
fn whole_exponent(text: &str) -> Result<i64, Inexact> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Inexact::NotANumber);
    }
    let magnitude = digits.parse::<i64>().unwrap_or(i64::MAX).min(1 << 40);
    Ok(if text.starts_with('-') { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_taken_exactly_or_refused() {
        let check = |text: &str, precision, scale, expected| {
            assert_eq!(from_text(text, precision, scale), expected, "{text} as decimal({precision},{scale})");
        };
        check("12.5", 10, 2, Ok(1250));
        check("-12.50", 10, 2, Ok(-1250));
        check("12.5000000", 10, 2, Ok(1250));
        check("0", 1, 0, Ok(0));
        check("-0.000", 3, 2, Ok(0));
        check("0e999999999999999999999", 3, 2, Ok(0));
        check("1.25E+3", 10, 2, Ok(125_000));
        check("125e-2", 10, 2, Ok(125));
        check("99999999.99", 10, 2, Ok(9_999_999_999));
        check("100000000.00", 10, 2, Err(Inexact::Digits));
        check("12.345", 10, 2, Err(Inexact::Scale));
        check("1e-3", 10, 2, Err(Inexact::Scale));
        check("1e38", 38, 0, Err(Inexact::Digits));
        check("1e999999999999999999999", 38, 0, Err(Inexact::Digits));
        check("1e-999999999999999999999", 38, 0, Err(Inexact::Scale));
        check(&"9".repeat(38), 38, 0, Ok(10i128.pow(38) - 1));
        check(&format!("-{}", "9".repeat(38)), 38, 0, Ok(1 - 10i128.pow(38)));
        check(&format!("0.{}", "9".repeat(38)), 38, 38, Ok(10i128.pow(38) - 1));
        check(&"9".repeat(39), 38, 0, Err(Inexact::Digits));
        for bad in ["", "-", ".", "1.", ".5", "+1", "1,5", "0x10", "NaN", "Infinity", "1e", "1e1.5", "--1", "١"] {
            check(bad, 38, 9, Err(Inexact::NotANumber));
        }
    }

    #[test]
    fn bytes_are_twos_complement_of_any_length() {
        let check = |bytes: &[u8], sent_scale, precision, scale, expected| {
            assert_eq!(from_bytes(bytes, sent_scale, precision, scale), expected, "{bytes:?}");
        };
        check(&[0x04, 0xe2], 2, 10, 2, Ok(1250));
        check(&[0xfb, 0x1e], 2, 10, 2, Ok(-1250));
        check(&[0xff], 0, 1, 0, Ok(-1));
        check(&[0x00], 0, 1, 0, Ok(0));
        check(&[0x00, 0xff], 0, 3, 0, Ok(255));
        check(&[0x80], 0, 3, 0, Ok(-128));
        let most = (10i128.pow(38) - 1).to_be_bytes();
        let least = (1 - 10i128.pow(38)).to_be_bytes();
        check(&most, 0, 38, 0, Ok(10i128.pow(38) - 1));
        check(&least, 0, 38, 0, Ok(1 - 10i128.pow(38)));
        check(&i128::MAX.to_be_bytes(), 0, 38, 0, Err(Inexact::Digits));
        check(&i128::MIN.to_be_bytes(), 0, 38, 0, Err(Inexact::Digits));
        check(&[&[0x00, 0x00][..], &most].concat(), 0, 38, 0, Ok(10i128.pow(38) - 1));
        check(&[&[0xff][..], &least].concat(), 0, 38, 0, Ok(1 - 10i128.pow(38)));
        check(&[&[0x01][..], &most].concat(), 0, 38, 0, Err(Inexact::Digits));
        check(&[&[0x00][..], &[0xff; 16]].concat(), 0, 38, 0, Err(Inexact::Digits));
        check(&[0x03, 0xe8], 0, 3, 0, Err(Inexact::Digits));
        check(&[], 0, 3, 0, Err(Inexact::NotANumber));
    }

    #[test]
    fn a_number_of_any_length_is_written_out() {
        let check = |bytes: &[u8], scale, expected: Result<&str, Inexact>| {
            assert_eq!(text_of_bytes(bytes, scale), expected.map(str::to_string), "{bytes:?} {scale}");
        };
        check(&[0x04, 0xe2], 2, Ok("12.50"));
        check(&[0xfb, 0x1e], 2, Ok("-12.50"));
        check(&[0x05], 3, Ok("0.005"));
        check(&[0xfb], 1, Ok("-0.5"));
        check(&[0x00], 0, Ok("0"));
        check(&[0x00], 2, Ok("0.00"));
        check(&[0x00], -3, Ok("0"));
        check(&[0x0c], -3, Ok("12000"));
        check(&[0x80], 0, Ok("-128"));
        check(&[0x80, 0, 0, 0], 0, Ok("-2147483648"));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff], 0, Ok("-1"));
        check(&[0xff, 0, 0, 0, 0], 0, Ok("-4294967296"));
        check(&[0x3b, 0x9a, 0xca, 0x00], 0, Ok("1000000000"));
        check(&i128::MIN.to_be_bytes(), 0, Ok(&i128::MIN.to_string()));
        check(
            &[&[0x01][..], &[0; 32]].concat(),
            0,
            Ok("115792089237316195423570985008687907853269984665640564039457584007913129639936"),
        );
        check(&[0x01, 0x90], 2046, Ok(&format!("0.{}4", "0".repeat(2043))));
        check(&[0x0a], 1001, Ok(&format!("0.{}1", "0".repeat(999))));
        check(&[], 0, Err(Inexact::NotANumber));
        check(&[1], i64::MIN, Err(Inexact::Digits));
        check(&[1], i64::MAX, Err(Inexact::Digits));
        check(&[0x7f; 80_000], 0, Err(Inexact::Digits));
    }

    #[test]
    fn a_scale_of_its_own_is_carried_over_exactly() {
        let check = |unscaled: i64, sent_scale, expected| {
            assert_eq!(from_bytes(&unscaled.to_be_bytes(), sent_scale, 10, 2), expected, "{unscaled} {sent_scale}");
        };
        check(5, 0, Ok(500));
        check(-5, -2, Ok(-50_000));
        check(12_500, 4, Ok(125));
        check(12_501, 4, Err(Inexact::Scale));
        check(0, 1000, Ok(0));
        check(1, 1000, Err(Inexact::Scale));
        check(1, -1000, Err(Inexact::Digits));
        check(1, i64::MIN, Err(Inexact::Digits));
        check(1, i64::MAX, Err(Inexact::Scale));
    }

    proptest::proptest! {
        #[test]
        fn the_digits_are_those_of_the_number(number: i128, scale in 0i64..60) {
            let text = text_of_bytes(&number.to_be_bytes(), scale).unwrap();
            proptest::prop_assert_eq!(text.replace('.', "").parse::<i128>().unwrap(), number);
        }
    }
}
