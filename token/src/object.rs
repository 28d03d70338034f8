// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::str::FromStr;

use crate::{Claims, Name, NameError, Scope, Session, SessionError};

/// The key of an object: `workspace/session/object`. The object's own part may have further `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The workspace that it is in.
    pub workspace: Name,
    /// The session that made it.
    pub session: Session,
    object: Box<str>,
}

impl ObjectKey {
    /// The longest key, in bytes, as object stores have it.
    pub const MAX_LEN: usize = 1024;

    /// Its name within the session.
    ///
    /// ```
    /// let key: token::ObjectKey = "hydro/f4dVSvb/results/out.h5".parse()?;
    /// assert_eq!(key.object(), "results/out.h5");
    /// # Ok::<(), token::ObjectKeyError>(())
    /// ```
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Reads `workspace/session/object`.
    ///
    /// ```
    /// use token::{ObjectKey, ObjectKeyError};
    ///
    /// let key = ObjectKey::parse("hydro/f4dVSvb/out.h5")?;
    /// assert_eq!((key.workspace.as_str(), key.session.as_str()), ("hydro", "f4dVSvb"));
    /// assert_eq!(ObjectKey::parse("hydro/f4dVSvb/../out.h5"), Err(ObjectKeyError::Object));
    /// # Ok::<(), ObjectKeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`ObjectKeyError`] tells which part is not as it must be.
    pub fn parse(key: &str) -> Result<Self, ObjectKeyError> {
        if key.len() > Self::MAX_LEN {
            return Err(ObjectKeyError::TooLong);
        }
        let mut parts = key.splitn(3, '/');
        let (Some(workspace), Some(session), Some(object)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ObjectKeyError::Parts);
        };
        // A store that is a file system would take these for other directories.
        let plain =
            |part: &str| !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control() || c == '\\');
        if !object.split('/').all(plain) {
            return Err(ObjectKeyError::Object);
        }
        Ok(Self {
            workspace: workspace.parse()?,
            session: session.parse()?,
            object: object.into(),
        })
    }
}

impl FromStr for ObjectKey {
    type Err = ObjectKeyError;

    fn from_str(key: &str) -> Result<Self, ObjectKeyError> {
        Self::parse(key)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.workspace, self.session, self.object)
    }
}

/// The reason why a text is not an [`ObjectKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectKeyError {
    /// Longer than [`ObjectKey::MAX_LEN`].
    #[error("the key has more than {} bytes", ObjectKey::MAX_LEN)]
    TooLong,
    /// Fewer than three parts.
    #[error("the key is not workspace/session/object")]
    Parts,
    /// The workspace.
    #[error("the first part of the key is {0}")]
    Workspace(#[from] NameError),
    /// The session.
    #[error("the second part of the key is {0}")]
    Session(#[from] SessionError),
    /// The object.
    #[error("the object's name has a part that is empty, `.` or `..`, or a control character or backslash")]
    Object,
}

/// The tokens that an operation accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Any that reaches the object.
    Any,
    /// Workflow tokens only, since what is done is done by a job.
    SessionOnly,
}

/// Decides whether the bearer of a token may use an object.
///
/// | scope | may use |
/// |---|---|
/// | `cluster` | everything |
/// | `workspace`, `system` | what is in the workspaces that the token lists |
/// | `session` | what is of its own session, in its own workspace |
///
/// Where `tokens` is [`Tokens::SessionOnly`], user tokens are refused, whatever their scope.
///
/// A session is named by its job's id. Jobs of different Flux instances can have the same: where several instances have
/// the same issuer, see [`Verifier::instance`](crate::Verifier::instance).
///
/// ```
#[doc = include_str!("doc_example.txt")]
/// let claims = verifier.verify(token, now)?;
/// let own = ObjectKey::parse("hydro/f4dVSvb/out.h5").expect("a key");
/// assert_eq!(authorize(&claims, &own, Tokens::SessionOnly), Ok(()));
/// let other = ObjectKey::parse("ocean/f4dVSvb/out.h5").expect("a key");
/// assert!(matches!(authorize(&claims, &other, Tokens::Any), Err(Denied::OtherWorkspace(_))));
/// # Ok::<(), token::VerifyError>(())
/// ```
///
/// # Errors
/// [`Denied`] tells why not.
pub fn authorize(claims: &Claims, key: &ObjectKey, tokens: Tokens) -> Result<(), Denied> {
    let scope = claims.scope().ok_or(Denied::NoScope)?;
    if tokens == Tokens::SessionOnly && scope != Scope::Session {
        return Err(Denied::UserToken(scope));
    }
    let in_workspace = || claims.workspaces().any(|workspace| workspace == key.workspace.as_str());
    match scope {
        Scope::Cluster => Ok(()),
        _ if !in_workspace() => Err(Denied::OtherWorkspace(key.workspace.clone())),
        Scope::Workspace | Scope::System => Ok(()),
        Scope::Session => match claims.job() {
            Some(job) if job.id == key.session.as_str() => Ok(()),
            _ => Err(Denied::OtherSession(key.session.clone())),
        },
    }
}

/// The reason why the bearer of a token may not use an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The token has no [`Scope`].
    #[error("the token's `scope` is none of cluster, workspace, system and session: it gives access to no object")]
    NoScope,
    /// A user token where a workflow token is needed.
    #[error("a user token (scope {0}) where only the token of a job is accepted: use the one that the job was given")]
    UserToken(Scope),
    /// The object is in a workspace that the token does not list.
    #[error("the token is not for the workspace {0}: use one of a member of it")]
    OtherWorkspace(Name),
    /// The object is of another session than the token.
    #[error("the token is of another job than {0}: use that job's own")]
    OtherSession(Session),
}
