//! The one place that maps errors to HTTP: status and public message.

use http::StatusCode;
use microcluster_client as client;

use crate::cluster::join::Refusal;
use crate::cluster::rebuild::ReadmitError;
use crate::cluster::tokens::{AddError, RevokeError};
use crate::cluster::{AdmitError, ConfigError, ConfirmError, HeartbeatError, HookError, InstallError, RemoveError};
use crate::db;
use crate::error::Error;
use crate::state::{InitError, SetServerError};
use crate::tasks::TaskLost;
use crate::tls::PairError;

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Error {
        // A closure's own, if it is that.
        let error = match error.downcast::<Error>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        let message = error.to_string();
        match error {
            db::Error::NoQuorum { .. } | db::Error::NotLeader { .. } | db::Error::Busy { .. } => {
                Error::unavailable(message).retry_after(1)
            }
            db::Error::ShuttingDown => Error::unavailable(message),
            db::Error::Conflict { .. } | db::Error::Constraint { unique: true, .. } => Error::conflict(message),
            db::Error::Constraint { unique: false, .. }
            | db::Error::Sql { .. }
            | db::Error::Refused { .. }
            | db::Error::TooLong { .. }
            | db::Error::TooManySteps { .. } => Error::bad_request(message),
            db::Error::TooLarge { .. } => Error::too_large(message),
            db::Error::OutcomeUnknown { .. } => Error::timeout(message),
            db::Error::ResultLost => Error::internal(message),
            error => Error::internal("the database failed; the daemon's log says why").caused_by(error),
        }
    }
}

impl From<AdmitError> for Error {
    fn from(error: AdmitError) -> Error {
        let message = error.to_string();
        match error {
            AdmitError::Address(_) | AdmitError::Certificate(_) | AdmitError::CertificateName { .. } => {
                Error::bad_request(message)
            }
            AdmitError::Refused(Refusal::TokenUnknown { .. }) => Error::not_found(message),
            AdmitError::Refused(Refusal::TokenExpired { .. } | Refusal::TokenForOther { .. }) => {
                Error::forbidden(message)
            }
            AdmitError::InProgress { .. } | AdmitError::Refused(Refusal::Upgrading) => {
                Error::unavailable(message).retry_after(10)
            }
            AdmitError::Refused(_) | AdmitError::AlreadyVotes { .. } => Error::conflict(message),
            AdmitError::Database { source, .. } => source.into(),
        }
    }
}

impl From<ConfirmError> for Error {
    fn from(error: ConfirmError) -> Error {
        let message = error.to_string();
        match error {
            ConfirmError::Gone { .. } => Error::not_found(message),
            ConfirmError::Leaving { .. } | ConfirmError::InProgress { .. } => {
                Error::unavailable(message).retry_after(1)
            }
            ConfirmError::IsMember { .. } => Error::conflict(message),
            ConfirmError::Hook { hook, .. } => hook.into(),
            ConfirmError::Database { source, .. } => source.into(),
        }
    }
}

impl From<ReadmitError> for Error {
    fn from(error: ReadmitError) -> Error {
        let message = error.to_string();
        match error {
            ReadmitError::Gone { .. } => Error::not_found(message),
            ReadmitError::OtherId { .. } => Error::conflict(message),
            ReadmitError::Leaving { .. } | ReadmitError::InProgress { .. } | ReadmitError::Leads { .. } => {
                Error::unavailable(message).retry_after(1)
            }
            ReadmitError::Database { source, .. } => source.into(),
        }
    }
}

impl From<RemoveError> for Error {
    fn from(error: RemoveError) -> Error {
        let message = error.to_string();
        match error {
            RemoveError::NotFound { .. } | RemoveError::OtherAddress { .. } => Error::not_found(message),
            RemoveError::Last { .. } | RemoveError::NoMajority { .. } => Error::conflict(message),
            RemoveError::Unreachable { .. } => Error::unavailable(message),
            RemoveError::Leads { .. } => Error::unavailable(message).retry_after(1),
            RemoveError::PreRemove { hook, .. } | RemoveError::PostRemove { hook, .. } => {
                Error::new(hook_status(&hook), message).caused_by(hook)
            }
            RemoveError::Database { source, .. } => source.into(),
        }
    }
}

impl From<AddError> for Error {
    fn from(error: AddError) -> Error {
        let message = error.to_string();
        match error {
            AddError::NameTaken { .. } | AddError::MemberExists { .. } => Error::conflict(message),
            AddError::ExpiresTooLate => Error::bad_request(message),
            AddError::Database(source) => source.into(),
        }
    }
}

impl From<RevokeError> for Error {
    fn from(error: RevokeError) -> Error {
        match error {
            RevokeError::NotFound { .. } => Error::not_found(error.to_string()),
            RevokeError::Database(source) => source.into(),
        }
    }
}

impl From<PairError> for Error {
    fn from(error: PairError) -> Error {
        Error::bad_request(error.to_string())
    }
}

impl From<InstallError> for Error {
    fn from(error: InstallError) -> Error {
        match error {
            InstallError::Database(source) => source.into(),
            other => Error::internal(other.to_string()).caused_by(other),
        }
    }
}

impl From<SetServerError> for Error {
    fn from(error: SetServerError) -> Error {
        match error {
            SetServerError::Member { .. } => Error::conflict(error.to_string()),
            SetServerError::NotNow(reason) => reason.into(),
            SetServerError::Lost(lost) => lost.into(),
            SetServerError::File(_) => Error::internal(error.to_string()).caused_by(error),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Error {
        let message = error.to_string();
        match error {
            ConfigError::Fixed { .. }
            | ConfigError::AddressTwice { .. }
            | ConfigError::AddressTaken { .. }
            | ConfigError::Listen(_)
            | ConfigError::NotOpened { .. } => Error::conflict(message),
            ConfigError::Over => Error::unavailable(message),
            ConfigError::UnknownServer { .. } => Error::not_found(message),
            ConfigError::PortZero { .. } => Error::bad_request(message),
            ConfigError::Lost(lost) => lost.into(),
            ConfigError::Hook(hook) => Error::new(hook_status(&hook), message).caused_by(hook),
            ConfigError::File(_) => Error::internal(message).caused_by(error),
        }
    }
}

impl From<InitError> for Error {
    fn from(error: InitError) -> Error {
        let message = error.to_string();
        match error {
            InitError::AlreadyInitialised { .. } | InitError::AddressTaken { .. } | InitError::Gone => {
                Error::conflict(message)
            }
            InitError::NotNow(reason) => reason.into(),
            InitError::Server { is_taken: true, .. } => Error::conflict(message),
            InitError::Server { is_taken: false, .. } => Error::internal(message),
            InitError::Listen { ref source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Error::conflict(message)
            }
            InitError::Token(_)
            | InitError::Address(_)
            | InitError::Listen { .. }
            | InitError::CertificateName { .. }
            | InitError::CertificateDates { .. } => Error::bad_request(message),
            InitError::OtherCluster { .. } => Error::forbidden(message),
            InitError::Unreachable { .. } => Error::unavailable(message),
            InitError::Refused { code, retry_after, .. } => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let error = Error::new(status, message);
                match retry_after {
                    Some(after) => error.retry_after(u32::try_from(after.as_secs()).unwrap_or(u32::MAX)),
                    None => error,
                }
            }
            InitError::StillJoining => Error::timeout(message),
            InitError::Database(source) => source.into(),
            InitError::Hook(hook) => hook.into(),
            InitError::NotTakenIn { code, .. } => {
                Error::new(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), message)
            }
            InitError::Open(_)
            | InitError::Config(_)
            | InitError::KeyPair(_)
            | InitError::File(_)
            | InitError::Tls(_)
            | InitError::BadAnswer { .. }
            | InitError::Lost(_) => Error::internal(message).caused_by(error),
        }
    }
}

/// A product's configuration is what somebody has given to `init`.
impl From<client::InitConfigError> for Error {
    fn from(error: client::InitConfigError) -> Error {
        Error::bad_request(error.to_string())
    }
}

impl From<HookError> for Error {
    fn from(error: HookError) -> Error {
        Error::new(hook_status(&error), error.to_string()).caused_by(error)
    }
}

impl From<HeartbeatError> for Error {
    fn from(error: HeartbeatError) -> Error {
        match error {
            HeartbeatError::NotLeader => Error::unavailable(error.to_string()).retry_after(1),
            HeartbeatError::Database(source) => source.into(),
            HeartbeatError::Hook(hook) => hook.into(),
        }
    }
}

/// The product says what a failure of its hook is; one that did not end is a fault of the daemon.
fn hook_status(error: &HookError) -> StatusCode {
    match error {
        HookError::Failed { error, .. } => error.status(),
        HookError::Panicked { .. } | HookError::TooLong { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        HookError::NoTurn { .. } | HookError::Stopped { .. } => StatusCode::SERVICE_UNAVAILABLE,
        HookError::Unknown { .. } => StatusCode::NOT_FOUND,
        HookError::Elsewhere { code, .. } => {
            code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

/// What another member's answer, or the lack of one, means to the caller of this one.
impl From<client::Error> for Error {
    fn from(error: client::Error) -> Error {
        let message = error.to_string();
        if let client::Error::Status { code, retry_after, .. } = &error {
            let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let answer = Error::new(status, message);
            return match retry_after {
                Some(after) => answer.retry_after(u32::try_from(after.as_secs()).unwrap_or(u32::MAX)),
                None => answer,
            };
        }
        if error.outcome_unknown() {
            Error::timeout(message).caused_by(error)
        } else {
            Error::unavailable(message).retry_after(1).caused_by(error)
        }
    }
}

impl From<TaskLost> for Error {
    fn from(lost: TaskLost) -> Error {
        match lost {
            TaskLost::Panicked { .. } => {
                Error::internal("the request failed inside the daemon; its log says why").caused_by(lost)
            }
            TaskLost::CutOff { .. } => {
                Error::timeout("the daemon stopped before the request was done; whether it was is unknown")
                    .caused_by(lost)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What a caller can do about each failure of the database is in its code.
    #[test]
    fn each_failure_of_the_database_has_its_code() {
        use db::Error as E;
        let text = || "what".to_owned();
        let limit = Duration::from_secs(1);
        for (error, code) in [
            (E::NoQuorum { detail: text() }, 503),
            (E::NotLeader { leader: None }, 503),
            (E::Busy { detail: "what" }, 503),
            (E::ShuttingDown, 503),
            (E::Conflict { attempts: 64 }, 409),
            (E::Constraint { unique: true, message: text() }, 409),
            (E::Constraint { unique: false, message: text() }, 400),
            (E::Sql { message: text() }, 400),
            (E::Refused { message: text() }, 400),
            (E::TooLong { what: "what", limit }, 400),
            (E::TooManySteps { limit: 1 }, 400),
            (E::TooLarge { what: "what", size: 2, limit: 1 }, 413),
            (E::OutcomeUnknown { waited: limit }, 504),
            (E::ResultLost, 500),
            (E::Fatal(text()), 500),
            (E::Damaged { message: text() }, 500),
        ] {
            let what = format!("{error:?}");
            assert_eq!(Error::from(error).status().as_u16(), code, "{what}");
        }
    }
}
