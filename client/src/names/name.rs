//! The name of a member, a token or a server.

use std::fmt;
use std::str::FromStr;

use crate::names::serde_as_text;

/// Most characters of a name.
const NAME_LENGTH_MAX: usize = 255;
/// Most characters of one label, as in DNS: a name is used in certificates.
const LABEL_LENGTH_MAX: usize = 63;

/// The name of a member, a token or a server: 1 to 255 characters, dot-separated labels of 1 to 63
/// letters, digits and inner hyphens.
///
/// ```
/// use microcluster_client::Name;
///
/// let name: Name = "node-1.rack-7".parse()?;
/// assert_eq!(name.as_str(), "node-1.rack-7");
/// assert!("node_1".parse::<Name>().is_err());
/// # Ok::<(), microcluster_client::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The text is empty.
    #[error("the name is empty; give 1 to 255 letters, digits, hyphens and dots")]
    Empty,
    /// The text has more than 255 characters.
    #[error("the name has {length} characters; at most 255 are allowed")]
    TooLong {
        /// Characters of the text.
        length: usize,
    },
    /// Two dots in a row, or one at an end.
    #[error("name {name:?} has a dot at an end or two in a row; between dots there are 1 to 63 characters")]
    EmptyLabel {
        /// The text.
        name: String,
    },
    /// A label of more than 63 characters.
    #[error("name {name:?} has a part of {length} characters; at most 63 are allowed between dots")]
    LabelTooLong {
        /// The text.
        name: String,
        /// Characters of the label.
        length: usize,
    },
    /// A label that begins or ends with a hyphen.
    #[error("name {name:?} has a hyphen at the end of a part; hyphens are allowed inside only")]
    OuterHyphen {
        /// The text.
        name: String,
    },
    /// A character that is no letter, digit, hyphen or dot.
    #[error("name {name:?} contains {character:?}; allowed are letters, digits, inner hyphens and dots")]
    Character {
        /// The text.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let length = text.chars().count();
        if length > NAME_LENGTH_MAX {
            return Err(NameError::TooLong { length });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if let Some(character) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character { name: text.into(), character });
        }
        for label in text.split('.') {
            if label.is_empty() {
                return Err(NameError::EmptyLabel { name: text.into() });
            }
            if label.len() > LABEL_LENGTH_MAX {
                return Err(NameError::LabelTooLong { name: text.into(), length: label.len() });
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(NameError::OuterHyphen { name: text.into() });
            }
        }
        Ok(Name(text.into()))
    }
}

serde_as_text!(Name);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_allowed() {
        let longest = vec!["a".repeat(63); 4].join(".");
        for text in ["a", "7", "c1", "UPPER", "node-1.rack-7", "a--b", &longest] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        assert_eq!(longest.len(), 255);
    }

    #[test]
    fn names_that_are_refused() {
        let refused = |text: &str| text.parse::<Name>().unwrap_err();
        assert_eq!(refused(""), NameError::Empty);
        assert_eq!(refused(&"a.".repeat(128)), NameError::TooLong { length: 256 });
        assert!(matches!(refused(&"a".repeat(64)), NameError::LabelTooLong { length: 64, .. }));
        for text in [".a", "a.", "a..b", "."] {
            assert!(matches!(refused(text), NameError::EmptyLabel { .. }), "{text}");
        }
        for text in ["-a", "a-", "a.-b", "-"] {
            assert!(matches!(refused(text), NameError::OuterHyphen { .. }), "{text}");
        }
        for (text, bad) in [("a_b", '_'), ("a b", ' '), ("a/b", '/'), ("näme", 'ä'), ("a\n", '\n')] {
            assert!(matches!(refused(text), NameError::Character { character, .. } if character == bad), "{text}");
        }
    }

    #[test]
    fn a_bad_name_in_json_says_why() {
        let error = serde_json::from_str::<Name>("\"a_b\"").unwrap_err().to_string();
        assert!(error.contains("contains '_'"), "{error}");
        assert!(error.contains("letters, digits"), "{error}");
    }
}
