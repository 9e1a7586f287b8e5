//! Control of this daemon over its socket: bootstrap, join, shutdown.

use microcluster_client::{ControlRequest, Empty};

use super::envelope::{Answer, EMPTY};
use super::extract::Body;
use crate::error::Error;
use crate::state::{InitError, InitRequest, Lifecycle, State};
use crate::token::JoinToken;

/// POST `/core/control`: bootstrap or join.
pub(super) async fn daemon_initialise(
    state: State,
    Body(request): Body<ControlRequest>,
) -> Result<Answer<Empty>, Error> {
    if let Lifecycle::Member(node) = state.lifecycle() {
        let (name, address) = (node.name.clone(), node.address);
        return Err(InitError::AlreadyInitialised { name, address }.into());
    }
    state.initialise(parse(request)?).await?;
    Ok(EMPTY)
}

/// POST `/core/control/shutdown`: answers, then the daemon stops.
pub(super) async fn daemon_shutdown(state: State) -> Result<Answer<Empty>, Error> {
    state.shut_down().await?;
    Ok(EMPTY)
}

/// A request whose parts are all there and fit each other.
fn parse(request: ControlRequest) -> Result<InitRequest, Error> {
    let token = match (request.bootstrap, request.join_token.is_empty()) {
        (true, true) => None,
        (false, false) => Some(JoinToken::decode(request.join_token.expose()).map_err(InitError::from)?),
        (true, false) => {
            return Err(Error::bad_request(
                "bootstrap and join_token are both given; bootstrap a new cluster or join one, not both",
            ));
        }
        (false, true) => {
            return Err(Error::bad_request(
                "neither bootstrap nor join_token is given; bootstrap a new cluster or join one by its token",
            ));
        }
    };
    let missing = |what: &str| Error::bad_request(format!("the {what} of the new member is missing"));
    let name = request.name.ok_or_else(|| missing("name"))?;
    let address = request.address.ok_or_else(|| missing("address"))?;
    let address = address.cluster().map_err(InitError::from)?;
    Ok(InitRequest { name, address, config: request.config, token })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{almost, cases};

    #[test]
    fn a_request_must_be_whole() {
        let refused = |json: &str| parse(serde_json::from_str(json).unwrap()).unwrap_err();
        for (json, words) in [
            ("{}", "neither"),
            (r#"{"bootstrap":true,"address":"127.0.0.1:9001"}"#, "name"),
            (r#"{"bootstrap":true,"name":"c1"}"#, "address"),
            (r#"{"bootstrap":true,"name":"c1","address":"127.0.0.1:0"}"#, "port 0"),
            (r#"{"bootstrap":true,"join_token":"x"}"#, "both"),
            (r#"{"join_token":"x","name":"c1","address":"127.0.0.1:9001"}"#, "token"),
        ] {
            let error = refused(json);
            assert_eq!(error.status(), 400, "{json}");
            assert!(error.message().contains(words), "{json}: {error}");
        }
        let json = r#"{"bootstrap":true,"name":"c1","address":"127.0.0.1:9001"}"#;
        assert!(parse(serde_json::from_str(json).unwrap()).unwrap().token.is_none());
    }

    proptest! {
        #![proptest_config(cases(1000))]

        /// What comes through has a name, and an address that others can connect to; everything else is a 400.
        #[test]
        fn a_request_that_is_almost_right_is_whole_or_refused(
            json in almost(prop_oneof![
                Just(br#"{"bootstrap":true,"name":"c1","address":"127.0.0.1:9001"}"#.to_vec()),
                Just(br#"{"join_token":"eyJzZWNyZXQiOiIifQ==","name":"c1","address":"[::1]:9001","config":{"a":"b"}}"#.to_vec()),
            ]),
        ) {
            if let Ok(request) = serde_json::from_slice::<ControlRequest>(&json) {
                match parse(request.clone()) {
                    Ok(init) => {
                        prop_assert_eq!((Some(&init.name), Some(init.address)), (request.name.as_ref(), request.address));
                        prop_assert!(init.address.port() != 0 && init.token.is_none() == request.bootstrap);
                    }
                    Err(e) => prop_assert_eq!(e.status().as_u16(), 400),
                }
            }
        }
    }
}
