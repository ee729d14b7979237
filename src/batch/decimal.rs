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
    match 10u128.checked_pow(u32::from(precision)) {
        Some(limit) if unscaled.unsigned_abs() >= limit => Err(Inexact::Digits),
        _ => Ok(unscaled),
    }
}

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
}
