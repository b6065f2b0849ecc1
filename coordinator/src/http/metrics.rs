//! The metrics of a job as Prometheus asks for them.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::{ServedJob, metrics};

/// `/metrics`.
pub(super) fn routes(job: ServedJob) -> Router {
    Router::new().route("/metrics", get(text)).with_state(job)
}

async fn text(State(job): State<ServedJob>) -> Response {
    match job.metrics().await {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
