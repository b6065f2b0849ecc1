use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use axum::routing::{get, post};
use obsdiff_security::Token;
use tower::ServiceExt;

use super::*;

const SECRET: &str = "0123456789&=+%cd";

/// One page behind the token, one open to everyone.
fn port(token: Option<&str>, address: &str, tls: bool) -> Router {
    let token = token.map(|text| Token::new(text, "OBSDIFF_TOKEN").unwrap());
    let pages = Router::new().route("/job", get(async || "the job"));
    let open = Router::new().route("/healthz", get(async || "well"));
    protected(pages, open, Access::new(token, address.parse().unwrap(), tls))
}

fn request(address: &str) -> axum::http::request::Builder {
    Request::builder().uri(address).header("host", "localhost:7070")
}

async fn asked(port: &Router, request: axum::http::request::Builder) -> Response {
    port.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn words(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().into()).unwrap()
}

#[tokio::test]
async fn pages_want_the_token_and_health_does_not() {
    let port = port(Some(SECRET), "127.0.0.1", false);
    assert_eq!(words(asked(&port, request("/healthz")).await).await, "well");
    let refused = asked(&port, request("/job")).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(
        words(refused).await.starts_with("this job has a token: send it as `Authorization: Bearer TOKEN`")
    );
    for wrong in ["Bearer 0123456789&=+%ce", "Basic 0123456789&=+%cd", SECRET] {
        let refused = asked(&port, request("/job").header(AUTHORIZATION, wrong)).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{wrong}");
        assert_eq!(words(refused).await, "this is not the job's token\n");
    }
    let right = asked(&port, request("/job").header(AUTHORIZATION, format!("Bearer {SECRET}"))).await;
    assert_eq!(right.headers()["cache-control"], "no-store");
    assert_eq!(words(right).await, "the job");
}

#[tokio::test]
async fn without_a_token_pages_are_open() {
    assert_eq!(words(asked(&port(None, "127.0.0.1", false), request("/job")).await).await, "the job");
}

#[tokio::test]
async fn a_browser_shows_the_token_once_and_keeps_none_of_it() {
    for tls in [false, true] {
        let port = port(Some(SECRET), "127.0.0.1", tls);
        let shown = asked(&port, request("/job?a=1&token=0123456789%26%3D%2B%25cd&b=x+y")).await;
        assert_eq!(shown.status(), StatusCode::SEE_OTHER);
        assert_eq!(shown.headers()[LOCATION], "/job?a=1&b=x+y");
        let cookie = shown.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        let (pair, rules) = cookie.split_once("; ").unwrap();
        assert_eq!(rules, ["Path=/; HttpOnly; SameSite=Strict", "; Secure"][..1 + usize::from(tls)].concat());
        assert!(!pair.contains("0123456789"), "{pair}");
        let known = asked(&port, request("/job").header(COOKIE, format!("other=1; {pair}"))).await;
        assert_eq!(words(known).await, "the job");
        let forged = asked(&port, request("/job").header(COOKIE, format!("{pair}0"))).await;
        assert_eq!(forged.status(), StatusCode::UNAUTHORIZED);
    }
    let port = port(Some(SECRET), "127.0.0.1", false);
    let wrong = asked(&port, request("/job?token=0123456789abcdef")).await;
    assert_eq!((wrong.status(), wrong.headers().get(SET_COOKIE)), (StatusCode::UNAUTHORIZED, None));
}

#[test]
fn nobody_is_sent_to_another_host() {
    for (asked, sent) in
        [("//evil.example/?token=x", "/evil.example/"), ("/job?token=x", "/job"), ("/?token=", "/")]
    {
        assert_eq!(access::without_token(&asked.parse().unwrap()), sent);
    }
}

#[tokio::test]
async fn a_loopback_port_answers_to_names_of_its_machine_alone() {
    let asked_as = async |port: &Router, host: &str| {
        let request = Request::builder().uri("/healthz").header("host", host);
        asked(port, request).await.status()
    };
    let loopback = port(None, "127.0.0.1", false);
    for host in ["localhost:7070", "127.0.0.1", "[::1]:7070", "a.localhost"] {
        assert_eq!(asked_as(&loopback, host).await, StatusCode::OK, "{host}");
    }
    for host in ["evil.example", "evil.example:7070", "192.0.2.1", "localhost.evil.example", ""] {
        assert_eq!(asked_as(&loopback, host).await, StatusCode::MISDIRECTED_REQUEST, "{host}");
    }
    assert_eq!(
        asked(&loopback, Request::builder().uri("/job")).await.status(),
        StatusCode::MISDIRECTED_REQUEST
    );
    for open in [port(None, "127.0.0.1", true), port(None, "0.0.0.0", false)] {
        assert_eq!(asked_as(&open, "coordinator.example").await, StatusCode::OK);
    }
}

/// A page of another site can make a browser post to this machine, but neither by HTTP/2 nor with the content type of gRPC.
#[tokio::test]
async fn services_are_reached_by_grpc_alone() {
    let services = Router::new().route("/obsdiff.v1.Jobs/Cancel", post(async || "cancelled"));
    let port = beside(services, port(None, "127.0.0.1", false));
    let call = |version, content: &str| {
        let request = request("/obsdiff.v1.Jobs/Cancel").method("POST");
        request.version(version).header(CONTENT_TYPE, content)
    };
    let call_grpc = asked(&port, call(Version::HTTP_2, "application/grpc+proto")).await;
    assert_eq!(words(call_grpc).await, "cancelled");
    for (version, content) in [(Version::HTTP_11, "application/grpc"), (Version::HTTP_2, "text/plain")] {
        assert_eq!(asked(&port, call(version, content)).await.status(), StatusCode::NOT_FOUND, "{content}");
    }
    assert_eq!(words(asked(&port, request("/job")).await).await, "the job");
    assert_eq!(asked(&port, request("/nothing")).await.status(), StatusCode::NOT_FOUND);
}
