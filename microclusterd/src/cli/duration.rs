//! Durations as people write them: `3h`, `30m`, `90s`, `1h30m`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationError {
    /// A number without a unit, a unit that does not exist, or no number.
    #[error("give a number and a unit, for example 90s, 30m, 3h, 1h30m or 2d")]
    Form,
    /// More than about 292 years, the most that the API can say.
    #[error("that is longer than the 292 years that are possible")]
    TooLong,
}

/// Parses `3h`, `30m`, `90s`, `250ms`, `2d` and sums of them such as `1h30m`; `0` needs no unit.
///
/// # Errors
/// When the text is none of these.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(DurationError::Form)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        if number.is_empty() {
            return Err(DurationError::Form);
        }
        let number = number.parse::<u64>().map_err(|_| DurationError::TooLong)?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(DurationError::Form),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or(DurationError::TooLong)?;
        rest = after;
    }
    // The API counts nanoseconds in 64 bits.
    let possible = i64::try_from(total.as_nanos()).is_ok();
    possible.then_some(total).ok_or(DurationError::TooLong)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_that_are_understood() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("90s", 90_000),
            ("30m", 1_800_000),
            ("3h", 10_800_000),
            ("1h30m", 5_400_000),
            ("1h0m5s", 3_605_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
    }

    #[test]
    fn durations_that_are_refused() {
        for text in ["", "h", "3", "10", "3 h", "-3h", "1.5h", "3x", "3hh", "1h30", "ä"] {
            assert_eq!(parse_duration(text), Err(DurationError::Form), "{text}");
        }
        for text in ["99999999999999999999s", "999999999999d", "300000000000h", "9223372037s"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text}");
        }
    }
}
