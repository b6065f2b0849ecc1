//! Health as Kubernetes and other supervisors ask for it.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::time::timeout;

use crate::Handle;

/// A step of the coordinator takes milliseconds: one that does not answer for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// `/healthz` and `/readyz`.
pub(super) fn routes(handle: Handle) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(handle)
}

/// Whether the coordinator's loop answers, whatever has become of the job.
async fn healthz(State(handle): State<Handle>) -> Response {
    match asked(&handle).await {
        Ok(_) => plain_text(StatusCode::OK, "the coordinator answers"),
        Err(why) => plain_text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// Whether workers can join the job.
async fn readyz(State(handle): State<Handle>) -> Response {
    match asked(&handle).await {
        Ok(Ok(())) => plain_text(StatusCode::OK, "workers can join"),
        Ok(Err(why)) => plain_text(StatusCode::SERVICE_UNAVAILABLE, &why),
        Err(why) => plain_text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// The readiness that the coordinator's loop reports: workers can join, or why not.
async fn asked(handle: &Handle) -> Result<Result<(), String>, &'static str> {
    match timeout(PATIENCE, handle.readiness()).await {
        Ok(Some(readiness)) => Ok(readiness),
        Ok(None) => Err("the coordinator has stopped"),
        Err(_) => Err("the coordinator has not answered for 5 s"),
    }
}

fn plain_text(status: StatusCode, words: &str) -> Response {
    (status, [(CACHE_CONTROL, "no-store")], format!("{words}\n")).into_response()
}
