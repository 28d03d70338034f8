// SPDX-License-Identifier: MIT OR Apache-2.0

//! Forms that browsers post from pages.

use axum::http::HeaderMap;

use crate::{
    failed::Failed,
    form::Form,
    introspect::read_form,
    service::Service,
    session::{self, Current},
    settings::Settings,
};

/// Reads a form, and returns it with the session of the browser, or `None` without a session. Parameters in
/// `repeatable` may be repeated.
///
/// # Errors
/// [`Failed`] if the form is malformed, or does not come from a page that the service made for this session.
pub async fn posted<'a>(
    service: &Service,
    settings: &Settings,
    headers: &HeaderMap,
    body: &'a [u8],
    repeatable: &[&str],
) -> Result<(Form<'a>, Option<Current>), Failed> {
    let form = read_form(headers, body, repeatable).map_err(|_| Failed::Malformed("The form is malformed"))?;
    let current = session::current(service.state()?, headers).await?;
    match &current {
        Some(Current { session, .. }) if !session.made(&form, headers, &settings.issuer) => Err(Failed::Stale),
        _ => Ok((form, current)),
    }
}
