//! Who may use an action of a product.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::api::{AccessCheck, Caller, CoreAccess};
use crate::error::Error;
use crate::state::State;

/// Who may use an action. Who can use the control socket may use everything that is served there, unless a check says no.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Access {
    /// Members of the cluster, by their certificates. This is what holds where nothing is said.
    #[default]
    Member,
    /// Anybody who can connect.
    Open,
    /// Whoever the product's own check lets through; made with [`Access::check`].
    Check(Check),
}

/// A product's own check.
#[derive(Clone)]
pub struct Check(AccessCheck);

impl Access {
    /// Has the product decide, caller in hand. An error is the answer to the request: [`Error::forbidden`] is the usual one.
    ///
    /// ```
    /// use microcluster::{Access, Caller, Error};
    ///
    /// let access = Access::check(|_state, caller| async move {
    ///     match caller {
    ///         Caller::Socket | Caller::Member(_) => Ok(()),
    ///         _ => Err(Error::forbidden("this is for members and for this machine")),
    ///     }
    /// });
    /// # let _ = access;
    /// ```
    pub fn check<F, R>(check: F) -> Access
    where
        F: Fn(State, Caller) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Error>> + Send + 'static,
    {
        Access::Check(Check(Arc::new(move |state, caller| Box::pin(check(state, caller)))))
    }

    pub(super) fn into_parts(self) -> (CoreAccess, Option<AccessCheck>) {
        match self {
            Access::Member => (CoreAccess::Member, None),
            Access::Open => (CoreAccess::Open, None),
            Access::Check(Check(check)) => (CoreAccess::Open, Some(check)),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Member => "Member",
            Access::Open => "Open",
            Access::Check(_) => "Check",
        })
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}
