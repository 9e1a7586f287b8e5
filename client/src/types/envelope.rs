//! What every answer of the API is wrapped in.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

/// The JSON object around every answer.
///
/// ```
/// use microcluster_client::{Empty, Envelope};
///
/// let json = serde_json::to_string(&Envelope::success(Empty {}))?;
/// assert_eq!(
///     json,
///     r#"{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":{}}"#
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Envelope", description = "The JSON object around every answer."))]
pub struct Envelope<T> {
    /// `sync` for a result, `error` for a failure.
    #[serde(rename = "type")]
    pub kind: EnvelopeType,
    /// `Success`, or empty on an error.
    pub status: Cow<'static, str>,
    /// 200, or 0 on an error.
    pub status_code: u16,
    /// Always empty: there are no background operations.
    pub operation: Cow<'static, str>,
    /// The HTTP status of an error, else 0.
    pub error_code: u16,
    /// What was wrong and what to do, else empty.
    pub error: Cow<'static, str>,
    /// The result, `null` on an error.
    pub metadata: Option<T>,
}

/// The kind of an [`Envelope`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(description = "The kind of an answer."))]
#[serde(rename_all = "lowercase")]
pub enum EnvelopeType {
    /// A result.
    Sync,
    /// A failure.
    Error,
}

impl<T> Envelope<T> {
    /// A result.
    pub fn success(metadata: T) -> Self {
        Envelope {
            kind: EnvelopeType::Sync,
            status: "Success".into(),
            status_code: 200,
            operation: "".into(),
            error_code: 0,
            error: "".into(),
            metadata: Some(metadata),
        }
    }
}

impl Envelope<Empty> {
    /// A failure with its HTTP status and a text for people.
    pub fn error(code: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Envelope {
            kind: EnvelopeType::Error,
            status: "".into(),
            status_code: 0,
            operation: "".into(),
            error_code: code,
            error: message.into(),
            metadata: None,
        }
    }
}

/// An answer without content: `{}`; anything is accepted when it is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Empty {}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Empty {})
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_recorded_shape() {
        assert_eq!(
            serde_json::to_string(&Envelope::error(404, "no such member")).unwrap(),
            r#"{"type":"error","status":"","status_code":0,"operation":"","error_code":404,"error":"no such member","metadata":null}"#
        );
    }
}
