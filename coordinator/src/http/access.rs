//! Whose HTTP requests are answered.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, COOKIE, HOST, LOCATION, SET_COOKIE, WWW_AUTHENTICATE,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use obsdiff_security::{Token, is_this_machine};
use url::form_urlencoded;

/// The part of an address that carries the token of a person who opens a page.
const TOKEN: &str = "token";

const MISSING: &str = "this job has a token: send it as `Authorization: Bearer TOKEN`, \
                       or open the page with ?token=TOKEN at the end of its address\n";
const WRONG: &str = "this is not the job's token\n";
const OTHER_HOST: &str = "this port serves its own machine alone: \
                          open it as localhost or by its loopback address, such as 127.0.0.1\n";

/// The protection of a port, as far as HTTP requests need it.
#[derive(Clone)]
pub(crate) struct Access {
    token: Option<Token>,
    /// Only this machine reaches the port.
    loopback: bool,
    tls: bool,
}

impl Access {
    /// Of a port at this address, with the job's token where it has one, and with certificates or without.
    pub(crate) fn new(token: Option<Token>, address: IpAddr, tls: bool) -> Self {
        Self { token, loopback: address.to_canonical().is_loopback(), tls }
    }

    /// The cookie by which a browser that has shown the token is let in. Its name differs from job to job, because a browser sends the
    /// cookies of one port to all ports of a machine.
    fn cookie_name(token: &Token) -> String {
        let key = token.browser_key().to_string();
        format!("obsdiff-{}", key.get(..8).unwrap_or_default())
    }

    /// Whether a browser that has shown the token before asks.
    fn is_known(token: &Token, headers: &HeaderMap) -> bool {
        let name = Self::cookie_name(token);
        let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|c| c.trim().split_once('='));
        pairs.any(|(found, key)| found == name && token.is_browser_key(key.as_bytes()))
    }

    /// Lets a browser in and sends it to the same address without the token, which so stays out of its history.
    fn let_in(&self, token: &Token, uri: &Uri) -> Response {
        let secure = if self.tls { "; Secure" } else { "" };
        let (name, key) = (Self::cookie_name(token), token.browser_key());
        let cookie = format!("{name}={key}; Path=/; HttpOnly; SameSite=Strict{secure}");
        let location = without_token(uri);
        let headers = [(SET_COOKIE, cookie), (LOCATION, location), (CACHE_CONTROL, "no-store".to_owned())];
        (StatusCode::SEE_OTHER, headers).into_response()
    }
}

/// The token in an address.
fn token_of(uri: &Uri) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == TOKEN).map(|(_, token)| token.into_owned())
}

/// An address of this port without the token.
pub(super) fn without_token(uri: &Uri) -> String {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let rest = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs.filter(|(name, _)| name != TOKEN))
        .finish();
    // What begins with two slashes would be an address of another host.
    let path = uri.path().trim_start_matches(['/', '\\']);
    if rest.is_empty() { format!("/{path}") } else { format!("/{path}?{rest}") }
}

/// Answers those who have the job's token, if it has one.
pub(super) async fn with_token(State(access): State<Access>, request: Request, next: Next) -> Response {
    let Some(token) = &access.token else { return next.run(request).await };
    if let Some(said) = token_of(request.uri()) {
        return if token.is(said.as_bytes()) { access.let_in(token, request.uri()) } else { refused(WRONG) };
    }
    let header = request.headers().get(AUTHORIZATION);
    if Access::is_known(token, request.headers()) || header.is_some_and(|h| token.is_in(h.as_bytes())) {
        let mut response = next.run(request).await;
        // What has been seen with the token is not seen again without it.
        response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        return response;
    }
    refused(if header.is_some() { WRONG } else { MISSING })
}

fn refused(why: &'static str) -> Response {
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], why).into_response()
}

/// Answers requests to a loopback port only where they name this machine. Otherwise a web page could have its own name resolve to
/// the loopback address, and read the job in its visitor's browser. With certificates no such page gets a connection.
pub(super) async fn by_own_name(State(access): State<Access>, request: Request, next: Next) -> Response {
    if access.loopback && !access.tls && !names_this_machine(&request) {
        return (StatusCode::MISDIRECTED_REQUEST, OTHER_HOST).into_response();
    }
    next.run(request).await
}

/// Whether the host that a request names is this machine.
fn names_this_machine(request: &Request) -> bool {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let authority = header.as_ref().or_else(|| request.uri().authority());
    authority.is_some_and(|authority| is_this_machine(authority.host()))
}
