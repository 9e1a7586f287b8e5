//! The SHA-256 fingerprint of a certificate.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::names::serde_as_text;

/// The SHA-256 of a certificate's DER form, 64 hexadecimal digits as text. It is what a certificate
/// is known and pinned by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// Why there is no [`Fingerprint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FingerprintError {
    /// The text has not 64 characters.
    #[error("a fingerprint has 64 hexadecimal digits, this text has {length} characters")]
    Length {
        /// Characters of the text.
        length: usize,
    },
    /// A character that is no hexadecimal digit.
    #[error("a fingerprint has 64 hexadecimal digits, this text contains {character:?}")]
    Character {
        /// The first character that is not allowed.
        character: char,
    },
    /// No certificate in a PEM text.
    #[error("there is no certificate in the PEM text: {reason}")]
    Pem {
        /// What the PEM parser says.
        reason: String,
    },
}

impl Fingerprint {
    /// The fingerprint of a certificate in DER form.
    #[must_use]
    pub fn of_der(certificate: &[u8]) -> Self {
        Fingerprint(Sha256::digest(certificate).into())
    }

    /// The fingerprint of the first certificate in a PEM text.
    ///
    /// # Errors
    /// [`FingerprintError::Pem`] when there is none.
    pub fn of_pem(certificate: &str) -> Result<Self, FingerprintError> {
        CertificateDer::from_pem_slice(certificate.as_bytes())
            .map(|der| Fingerprint::of_der(&der))
            .map_err(|e| FingerprintError::Pem { reason: e.to_string() })
    }

    /// The 32 bytes of the SHA-256.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        if let Some(character) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(FingerprintError::Character { character });
        }
        let wrong_length = FingerprintError::Length { length: text.len() };
        if text.len() != 64 {
            return Err(wrong_length);
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            // Both are hexadecimal digits: checked above.
            let digit = |c: u8| char::from(c).to_digit(16).unwrap_or_default();
            *byte = u8::try_from(digit(digits[0]) << 4 | digit(digits[1])).unwrap_or_default();
        }
        Ok(Fingerprint(bytes))
    }
}

serde_as_text!(Fingerprint);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The SHA-256 of "abc", from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn text_round_trips() {
        let fingerprint = Fingerprint::of_der(b"abc");
        assert_eq!(fingerprint.to_string(), ABC);
        assert_eq!(ABC.parse::<Fingerprint>().unwrap(), fingerprint);
        assert_eq!(ABC.to_uppercase().parse::<Fingerprint>().unwrap(), fingerprint);
    }

    #[test]
    fn refusals_name_the_mistake() {
        let refused = |text: &str| text.parse::<Fingerprint>().unwrap_err();
        assert_eq!(refused("abc"), FingerprintError::Length { length: 3 });
        assert_eq!(refused(&ABC.replace('b', "x")), FingerprintError::Character { character: 'x' });
        assert!(matches!(Fingerprint::of_pem("nope"), Err(FingerprintError::Pem { .. })));
    }
}
