// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logins of users: verifies a login at the provider and maps it to a user of the cluster.

use std::{sync::Arc, time::Duration};

use config::{EvidenceKind, Login};
use protocol::{
    BeginLogin, DenialCode, FinishLogin, JobLogin, MintRequest, ProviderSession, SecretText, job_login_payload,
};
use seal::Secret;
use source::{
    LoginStore,
    login::{Authorization, Code, Identified, LoginError, Provider},
};

use crate::{Engine, Granted, Owner, Refusal, denied, subject::Proved};

/// A user who has logged in.
pub struct UserLogin {
    /// The user.
    pub owner: Arc<Owner>,
    /// The user name.
    pub name: String,
    /// The URL of the provider.
    pub provider: String,
    /// The session at the provider.
    pub session: ProviderSession,
    /// The projects.
    pub projects: Vec<String>,
    /// The longest time for which the login is valid.
    pub max_session: Duration,
    /// The address to log out at.
    pub end_session: Option<String>,
    /// The identity token.
    pub id_token: Secret,
    /// The refresh token, if the provider issued one.
    pub refresh_token: Option<Secret>,
}

impl From<LoginError> for Refusal {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Refused(why) => denied(DenialCode::InvalidGrant, why).into(),
            LoginError::Unavailable(why) => Self::Unknown(why),
        }
    }
}

impl Engine {
    fn login(&self) -> Result<(&Login, &Provider), Refusal> {
        let service = self.config().agent.service.as_ref();
        let login = service.and_then(|service| service.login.as_ref());
        login.zip(self.provider.as_ref()).ok_or_else(|| {
            denied(
                DenialCode::UnauthorizedClient,
                "users cannot log in here: the site has no provider",
            )
            .into()
        })
    }

    /// Returns the store of logins for jobs, if the configuration has one.
    #[must_use]
    pub fn login_store(&self) -> Option<LoginStore> {
        let login = self.config().agent.service.as_ref()?.login.as_ref()?;
        Some(LoginStore::new(login.store.as_ref()?, self.munge.clone()))
    }

    /// Returns the URL at which a user logs in.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn login_address(&self, begin: &BeginLogin) -> Result<String, Refusal> {
        let (_, provider) = self.login()?;
        let authorization = Authorization {
            redirect_uri: &begin.redirect_uri,
            state: &begin.state,
            nonce: &begin.nonce,
            challenge: &begin.challenge,
            is_offline: begin.is_for_jobs,
        };
        Ok(provider.authorization_url(&authorization).await?)
    }

    /// Returns the user of a login that the provider confirmed.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn log_in(&self, finish: &FinishLogin) -> Result<UserLogin, Refusal> {
        let (login, provider) = self.login()?;
        let issuer = &self.config().trusts[login.trust].issuer;
        if finish.iss.as_ref().is_some_and(|iss| iss != issuer) {
            // RFC 9207 section 2.4.
            return Err(denied(DenialCode::InvalidGrant, "the response is of another provider").into());
        }
        let code = Code {
            code: Secret::from(finish.code.0.as_str()),
            verifier: Secret::from(finish.verifier.0.as_str()),
            redirect_uri: finish.redirect_uri.clone(),
            nonce: finish.nonce.clone(),
        };
        let Identified {
            claims,
            id_token,
            refresh_token,
        } = provider.identify(code).await?;
        let text = |name: &str| Some(claims.get(name)?.as_str()?.to_owned());
        let claim = text(&login.user_claim).unwrap_or_default();
        let user = login.user_template.user(&claim);
        let stranger = || {
            denied(
                DenialCode::InvalidGrant,
                "your account belongs to no user of this cluster",
            )
        };
        let uid = match self.uid_of(user.ok_or_else(stranger)?).await {
            Err(Refusal::Denied(_)) => return Err(stranger().into()),
            uid => uid?,
        };
        let Proved { owner, name, .. } = self.proved(uid, None).await?;
        Ok(UserLogin {
            projects: self.projects_of(&owner),
            owner,
            name,
            provider: issuer.clone(),
            session: ProviderSession {
                sub: text("sub"),
                sid: text("sid"),
            },
            max_session: login.max_session,
            end_session: provider.end_session().await,
            id_token,
            refresh_token,
        })
    }

    /// Returns the session that a logout token of the provider ends.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn logged_out(&self, token: &SecretText) -> Result<ProviderSession, Refusal> {
        let (_, provider) = self.login()?;
        let (sub, sid) = provider.logout(Secret::from(token.0.as_str())).await?;
        Ok(ProviderSession { sub, sid })
    }

    /// Decides on a request of a user who has logged in at a provider. The caller has verified the login, which is
    /// valid for another `left`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn grant_to_login(
        &self,
        request: &MintRequest,
        provider: &str,
        uid: u32,
        left: Duration,
    ) -> Result<Granted, Refusal> {
        let (login, _) = self.login()?;
        if self.config().trusts[login.trust].issuer != provider {
            let why = "the site has another provider now: log in again";
            return Err(denied(DenialCode::InvalidGrant, why).into());
        }
        let kind = EvidenceKind::Trust(login.trust);
        let proved = self.proved(uid, Some(left)).await?;
        self.granted(request, kind, Some(proved))
    }

    /// Returns the user who encoded a MUNGE credential for a request about the login for jobs, and the user name.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn bound(
        &self,
        issuer: &str,
        request: JobLogin,
        credential: &SecretText,
    ) -> Result<(Arc<Owner>, String), Refusal> {
        self.login()?;
        let proved = self.munge_user(&job_login_payload(issuer, request), credential).await?;
        Ok((proved.owner, proved.name))
    }
}
