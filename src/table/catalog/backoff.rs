//! How long to wait before asking a catalog again.

use std::time::Duration;

/// How often a question is asked before it counts as unanswered: about seven seconds in all.
pub(super) const ATTEMPTS: u32 = 6;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// Waits after the attempt with this number, counted from zero.
pub(super) async fn pause(attempt: u32) {
    tokio::time::sleep(delay(attempt, rand::random())).await;
}

/// Doubles from attempt to attempt. `share` (0 to 1) spreads those who were turned away together, so that they do not
/// come back together.
fn delay(attempt: u32, share: f64) -> Duration {
    let full = FIRST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
    full.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread() {
        let ms = |attempt, share| delay(attempt, share).as_millis();
        assert_eq!([ms(0, 1.0), ms(1, 1.0), ms(2, 1.0)], [200, 400, 800]);
        assert_eq!([ms(0, 0.0), ms(1, 0.0), ms(2, 0.0)], [100, 200, 400]);
        assert_eq!([ms(10, 1.0), ms(u32::MAX, 1.0)], [5000, 5000]);
    }
}
