// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of the operator.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use protocol::{Answer, Question};

use crate::{
    clock::now,
    pages::{Frame, Operator, Page},
    service::Service,
};

/// Returns the page. Its style sheet is at the root of its listener.
pub async fn operator(State(service): State<Arc<Service>>) -> Response {
    let figures = match service.agent.ask(|| Question::Figures).await {
        Ok(Answer::Figures(figures)) => Ok(figures),
        Ok(_) => Err("the agent sent an unexpected reply: install the same release of both".to_owned()),
        Err(why) => Err(why),
    };
    let operator = Operator {
        frame: Frame::default(),
        now: now(),
        figures,
    };
    operator.response()
}
