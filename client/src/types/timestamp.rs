//! A point in time as the API writes it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{OffsetDateTime, UtcOffset};

use crate::names::serde_as_text;

/// A point in time: RFC 3339, UTC. "Never" is the first second of the year 1, as the API of the Go
/// implementation has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

/// A text is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no RFC 3339 time such as 2026-01-31T12:00:00Z")]
pub struct TimestampError {
    text: String,
}

impl Timestamp {
    /// "Never", `0001-01-01T00:00:00Z`.
    pub const ZERO: Timestamp = Timestamp(datetime!(0001-01-01 0:00 UTC));

    /// The time on this machine's clock.
    #[must_use]
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Whether it is "never".
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Timestamp::ZERO
    }

    /// This time and a while later, or `None` past the year 9999.
    #[must_use]
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let later = self.0.checked_add(duration.try_into().ok()?)?;
        // RFC 3339 has four digits for the year.
        (later.year() <= 9999).then_some(Timestamp(later))
    }

    /// How long after `earlier` this is, or `None` if it is before.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Option<Duration> {
        (self.0 - earlier.0).try_into().ok()
    }

    /// Seconds since 1970, negative before.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// The time that many seconds after 1970, or `None` outside the years 0 to 9999.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Option<Self> {
        let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
        (0..=9999).contains(&time.year()).then_some(Timestamp(time))
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Timestamp::ZERO
    }
}

/// A clock set before the year 0 gives "never": there is no text for that time.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let time = OffsetDateTime::from(time);
        if (0..=9999).contains(&time.year()) { Timestamp(time) } else { Timestamp::ZERO }
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|time| time.checked_to_offset(UtcOffset::UTC))
            .filter(|time| (0..=9999).contains(&time.year()))
            .map(Timestamp)
            .ok_or_else(|| TimestampError { text: text.into() })
    }
}

serde_as_text!(Timestamp);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Fails outside the years 0 to 9999 only, which no constructor lets in.
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["0001-01-01T00:00:00Z", "2026-11-20T12:32:56.172653266Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
        assert_eq!(Timestamp::default().to_string(), "0001-01-01T00:00:00Z");
        assert!("0001-01-01T00:00:00Z".parse::<Timestamp>().unwrap().is_zero());
    }

    #[test]
    fn other_offsets_become_utc() {
        let time: Timestamp = "2026-01-01T01:00:00+02:00".parse().unwrap();
        assert_eq!(time.to_string(), "2025-12-31T23:00:00Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "now", "2026-13-01T00:00:00Z", "0000-01-01T00:00:00+23:59", "9999-12-31T23:59:59-01:00"] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic_is_bounded() {
        let time: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later = time.checked_add(Duration::from_secs(90)).unwrap();
        assert_eq!(later.to_string(), "2026-01-01T00:01:30Z");
        assert_eq!(later.since(time), Some(Duration::from_secs(90)));
        assert_eq!(time.since(later), None);
        assert_eq!(time.checked_add(Duration::MAX), None);
        assert_eq!(Timestamp::from_unix_seconds(time.unix_seconds()), Some(time));
        assert_eq!(Timestamp::from_unix_seconds(i64::MAX), None);
    }
}
