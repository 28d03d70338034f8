// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens that a user has allowed a program to get, with a device code, an authorization code or a refresh token. The
//! token is minted before the code is consumed: if the agent does not reply, the program can try again.

use axum::response::Response;
use protocol::SecretText;
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    codes,
    devices::{self, Given},
    error::OAuthError,
    families::{self, Held},
    form::Form,
    grantee::Grantee,
    mint::{Minted, answer, mint, respond},
    service::Service,
    settings::{Client, Settings},
    wanted::Wanted,
};

/// A request to redeem a code or a refresh token.
pub struct Redemption<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its settings.
    pub settings: &'a Settings,
    /// The parameters.
    pub form: &'a Form<'a>,
}

impl Redemption<'_> {
    /// Redeems a device code (RFC 8628 section 3.4).
    ///
    /// # Errors
    /// [`OAuthError`].
    pub async fn device(&self, client: Option<&Client>) -> Result<Response, OAuthError> {
        let state = self.service.state()?;
        let code = self.parameter("device_code", "the parameter device_code is missing")?;
        let (grantee, wanted) = match devices::redeem(state, client, &code.0).await? {
            Given::Token(grantee, wanted) => (grantee, wanted),
            Given::JobLogin => return Ok(answer(&json!({"access_token": "", "token_type": "N_A"}))),
        };
        let client = client.ok_or(OAuthError::InvalidClient)?;
        let minted = self.mint(client, &grantee, wanted.clone()).await?;
        if !devices::take(state, &code.0).await? {
            return Err(OAuthError::ExpiredToken);
        }
        let (_, token) = families::begin(state, client, wanted, grantee).await?;
        Ok(respond(&minted, None, Some(token)))
    }

    /// Redeems an authorization code (RFC 6749 section 4.1.3).
    ///
    /// # Errors
    /// [`OAuthError`].
    pub async fn code(&self, client: &Client) -> Result<Response, OAuthError> {
        let state = self.service.state()?;
        let code = self.parameter("code", "the parameter code is missing")?;
        let verifier = self.parameter("code_verifier", "the parameter code_verifier is missing")?;
        let redirect_uri = self.form.get("redirect_uri");
        let redeemed = codes::redeem(state, client, &code.0, &verifier.0, redirect_uri).await?;
        let (grantee, wanted) = (redeemed.code.grantee.clone(), redeemed.code.wanted.clone());
        let minted = self.mint(client, &grantee, wanted.clone()).await?;
        let (family, token) = families::begin(state, client, wanted, grantee).await?;
        if !codes::used(state, redeemed, &family).await? {
            families::end(state, &family).await?;
            return Err(OAuthError::InvalidGrant("the code was used before".to_owned()));
        }
        Ok(respond(&minted, None, Some(token)))
    }

    /// Redeems a refresh token (RFC 6749 section 6).
    ///
    /// # Errors
    /// [`OAuthError`].
    pub async fn refresh(&self, client: &Client, later: Wanted) -> Result<Response, OAuthError> {
        let state = self.service.state()?;
        let token = self.parameter("refresh_token", "the parameter refresh_token is missing")?;
        let held: Held = families::redeem(state, client, &token.0).await?;
        let wanted = held.family.wanted.clone().narrowed(later)?;
        let minted = self.mint(client, &held.family.grantee, wanted).await?;
        let next = families::rotate(state, client, held).await?;
        Ok(respond(&minted, None, Some(next)))
    }

    async fn mint(&self, client: &Client, grantee: &Grantee, wanted: Wanted) -> Result<Minted, OAuthError> {
        let request = wanted.request(grantee.evidence(), Some(client.id.clone()));
        mint(self.service, self.settings, "issue", request).await
    }

    fn parameter(&self, name: &str, missing: &'static str) -> Result<SecretText, OAuthError> {
        let value = self.form.get(name).ok_or(OAuthError::InvalidRequest(missing))?;
        Ok(SecretText(Zeroizing::new(value.to_owned())))
    }
}
