//! What the coordinator's port answers over HTTP, beside gRPC: health, metrics and pages.

mod access;
mod health;
mod metrics;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, Version, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use crate::{ServedJob, page};

pub(crate) use access::Access;

/// All pages of a job. Everyone may read the health; the rest needs the job's token, if it has one.
pub(crate) fn routes(job: &ServedJob, access: Access) -> Router {
    protected(pages(job), health::routes(job.handle.clone()), access)
}

/// The pages that show the job.
fn pages(job: &ServedJob) -> Router {
    page::routes(job.clone()).merge(metrics::routes(job.clone()))
}

/// `pages` behind the token and `open` without it, both only by names that are this port's.
fn protected(pages: Router, open: Router, access: Access) -> Router {
    pages
        .layer(from_fn_with_state(access.clone(), access::with_token))
        .merge(open)
        .layer(from_fn_with_state(access, access::by_own_name))
}

/// Joins the gRPC services of a port and its pages.
pub(crate) fn beside(services: Router, pages: Router) -> Router {
    services.layer(from_fn(grpc_alone)).merge(pages)
}

/// Lets only gRPC through to the services: a web page of another site can make a browser send other requests, also one that cancels
/// the job.
async fn grpc_alone(request: Request, next: Next) -> Response {
    let content = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"));
    if is_grpc && request.version() == Version::HTTP_2 {
        return next.run(request).await;
    }
    (StatusCode::NOT_FOUND, "there is no such page; gRPC is answered over HTTP/2\n").into_response()
}

#[cfg(test)]
mod tests;
