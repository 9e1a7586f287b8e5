//! Join tokens: encode, decode. Pure.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use microcluster_client::{Address, Fingerprint, Secret};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Longest token that is looked at: hundreds of addresses fit.
const TOKEN_LENGTH_MAX: usize = 64 * 1024;
/// Hexadecimal digits of a secret: 256 bits.
const SECRET_LENGTH: usize = 64;

/// What a token carries to the machine that joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinToken {
    /// Proves to the cluster that the joiner was invited.
    pub secret: Secret,
    /// The cluster certificate: proves to the joiner that it talks to the cluster that invited it.
    pub fingerprint: Fingerprint,
    /// Where members were reached when the token was made.
    pub join_addresses: Vec<Address>,
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the join token is empty; make one with `microctl tokens add NAME` on a member")]
    Empty,
    #[error("the join token is damaged: it is not base64; copy it again, whole and without line breaks")]
    Base64,
    #[error("the join token is damaged: {0}; copy it again, or make one with `microctl tokens add NAME` on a member")]
    Content(String),
}

impl JoinToken {
    pub fn encode(&self) -> Secret {
        let addresses: Vec<String> = self.join_addresses.iter().map(ToString::to_string).collect();
        let json = serde_json::json!({
            "secret": self.secret.expose(),
            "fingerprint": self.fingerprint.to_string(),
            "join_addresses": addresses,
        });
        Secret::new(STANDARD.encode(json.to_string()))
    }

    pub fn decode(text: &str) -> Result<JoinToken, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > TOKEN_LENGTH_MAX {
            return Err(TokenError::Content(format!("it has {} characters", text.len())));
        }
        let json = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
            .iter()
            .find_map(|engine| engine.decode(text).ok())
            .ok_or(TokenError::Base64)?;
        let token = parse(&json).map_err(TokenError::Content)?;
        if !is_secret(token.secret.expose()) {
            return Err(TokenError::Content(format!("its secret has not {SECRET_LENGTH} hexadecimal digits")));
        }
        if token.join_addresses.is_empty() {
            return Err(TokenError::Content("it names no member to join through".into()));
        }
        Ok(token)
    }
}

/// What is wrong is told by its place alone: the words of an error quote the text, and in a damaged token the secret may be anywhere.
fn parse(json: &[u8]) -> Result<JoinToken, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let place = error.path().to_string();
        match error.into_inner() {
            inner if !inner.is_data() => "its content is not JSON".to_owned(),
            _ if place == "." => "it needs a secret, a fingerprint and join_addresses".to_owned(),
            _ => format!("its {place} cannot be read"),
        }
    });
    let token = parsed?;
    deserializer.end().map(|()| token).map_err(|_| "its content is not JSON".to_owned())
}

/// Makes the secret of a new token.
pub(crate) fn new_secret() -> Secret {
    let bytes: [u8; SECRET_LENGTH / 2] = rand::rng().random();
    Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Whether a text has the form of a secret.
pub(crate) fn is_secret(text: &str) -> bool {
    text.len() == SECRET_LENGTH && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::almost;

    fn token() -> JoinToken {
        JoinToken {
            secret: new_secret(),
            fingerprint: Fingerprint::of_der(b"certificate"),
            join_addresses: vec!["127.0.0.1:9001".parse().unwrap(), "[::1]:9002".parse().unwrap()],
        }
    }

    fn encode(json: &str) -> String {
        STANDARD.encode(json)
    }

    #[test]
    fn tokens_round_trip() {
        let token = token();
        let text = token.encode();
        assert_eq!(JoinToken::decode(text.expose()).unwrap(), token);
        assert_eq!(JoinToken::decode(&format!(" {}\n", text.expose())).unwrap(), token);
        assert_eq!(JoinToken::decode(text.expose().trim_end_matches('=')).unwrap(), token);
    }

    #[test]
    fn secrets_differ_and_have_256_bits() {
        let (one, two) = (new_secret(), new_secret());
        assert!(is_secret(one.expose()));
        assert_ne!(one.expose(), two.expose());
    }

    #[test]
    fn refusals_name_the_mistake() {
        let refused = |text: &str| JoinToken::decode(text).unwrap_err();
        assert_eq!(refused(" "), TokenError::Empty);
        assert_eq!(refused("not a token!"), TokenError::Base64);
        let whole = token().encode().into_string();
        assert!(matches!(refused(&whole[..40]), TokenError::Content(_)), "cut");
        assert!(matches!(refused(&encode("null")), TokenError::Content(_)));
        let fingerprint = Fingerprint::of_der(b"x");
        let secret = new_secret();
        let secret = secret.expose();
        for (json, words) in [
            (format!(r#"{{"secret":"short","fingerprint":"{fingerprint}","join_addresses":["1.1.1.1:1"]}}"#), "secret"),
            (format!(r#"{{"secret":"{secret}","fingerprint":"zz","join_addresses":["1.1.1.1:1"]}}"#), "fingerprint"),
            (format!(r#"{{"secret":"{secret}","fingerprint":"{fingerprint}","join_addresses":[]}}"#), "no member"),
            (format!(r#"{{"secret":"{secret}","fingerprint":"{fingerprint}","join_addresses":["x"]}}"#), "address"),
            (format!(r#"{{"fingerprint":"{fingerprint}","join_addresses":["1.1.1.1:1"]}}"#), "secret"),
            (
                format!(r#"{{"secret":"{secret}","fingerprint":"{fingerprint}","join_addresses":["[::1{secret}"]}}"#),
                "join_addresses[0]",
            ),
            (
                format!(r#"{{"secret":["{secret}"],"fingerprint":"{fingerprint}","join_addresses":["1.1.1.1:1"]}}"#),
                "its secret",
            ),
            (
                format!(r#"{{"secret":"short","fingerprint":"{secret}x","join_addresses":["1.1.1.1:1"]}}"#),
                "its fingerprint",
            ),
            (format!(r#"{{"{secret}":1,"secret":"x"}}"#), "fingerprint"),
            (
                format!(
                    r#"{{"secret":"{secret}","fingerprint":"{fingerprint}","join_addresses":["1.1.1.1:1"]}}{secret}"#
                ),
                "JSON",
            ),
        ] {
            let message = refused(&encode(&json)).to_string();
            assert!(message.contains(words), "{message}");
            assert!(!message.contains(secret), "{message}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let token = token();
        assert!(!format!("{token:?}").contains(token.secret.expose()));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,300}") {
            let _ = JoinToken::decode(&text);
        }

        #[test]
        fn any_content_is_a_token_or_an_error(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = JoinToken::decode(&STANDARD.encode(content));
        }

        #[test]
        fn a_token_that_is_almost_right_is_a_token_or_refused_without_its_secret(
            content in almost(Just(STANDARD.decode(token().encode().expose()).unwrap())),
            text in almost(Just(token().encode().into_string().into_bytes())),
        ) {
            if let Err(e) = JoinToken::decode(&STANDARD.encode(&content)) {
                // A run of digits that long is of the secret or of the fingerprint.
                let message = e.to_string();
                let longest = message.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max();
                prop_assert!(longest < Some(16), "{}", message);
            }
            let _ = JoinToken::decode(&String::from_utf8_lossy(&text));
        }

        #[test]
        fn any_token_round_trips(
            secret in "[0-9a-f]{64}", certificate in any::<[u8; 8]>(),
            addresses in proptest::collection::vec(any::<(std::net::IpAddr, u16)>(), 1..8),
        ) {
            let join_addresses = addresses.into_iter().map(|address| std::net::SocketAddr::from(address).into()).collect();
            let token = JoinToken { secret: secret.into(), fingerprint: Fingerprint::of_der(&certificate), join_addresses };
            prop_assert_eq!(JoinToken::decode(token.encode().expose()).unwrap(), token);
        }
    }
}
