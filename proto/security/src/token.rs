//! The job's token: a secret that coordinator and workers of one job share.

use std::fmt;
use std::path::Path;

use obsdiff_files::read_regular;
use obsdiff_proto::Digest;
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::{Result, SecurityError};

const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// Shorter ones are guessed.
const SHORTEST: usize = 16;
const LONGEST: usize = 4096;
/// The longest token, and white space around it.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A job's token. `Debug` does not show it.
#[derive(Clone)]
pub struct Token {
    header: MetadataValue<Ascii>,
    digest: Digest,
}

impl Token {
    /// A token from a file's content, without the white space around it.
    ///
    /// # Errors
    /// When the file cannot be read, or as [`Self::new`].
    pub fn read(path: &Path) -> Result<Self> {
        let content = read_regular(path, MAX_FILE_BYTES)
            .map_err(|source| SecurityError::File { path: path.to_owned(), source })?;
        let text = String::from_utf8(content)
            .map_err(|_| SecurityError::content(path, "is not UTF-8 text, so it holds no token"))?;
        Self::new(&text, &path.display().to_string())
    }

    /// A token as a user gave it at `origin`: a file, or an environment variable.
    ///
    /// # Errors
    /// When it has fewer than 16 characters, or any that a header cannot carry.
    pub fn new(text: &str, origin: &str) -> Result<Self> {
        let text = text.trim();
        let refused = |problem: &str| {
            Err(SecurityError::Token { origin: origin.to_owned(), problem: problem.to_owned() })
        };
        if !(SHORTEST..=LONGEST).contains(&text.len()) {
            return refused("the token must have 16 to 4096 characters: make one by `openssl rand -hex 32`");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refused("the token must consist of visible ASCII characters without spaces");
        }
        match MetadataValue::try_from(format!("{SCHEME}{text}")) {
            Ok(mut header) => {
                header.set_sensitive(true);
                Ok(Self { header, digest: Digest::of(text.as_bytes()) })
            }
            Err(_) => refused("the token cannot be sent"),
        }
    }

    /// What a browser keeps in place of the token: it opens the pages of this job, and nothing else.
    pub fn browser_key(&self) -> Digest {
        Digest::of(format!("pages of {}", self.digest).as_bytes())
    }

    /// Whether `text` is the key that a browser keeps. Takes as long as [`Self::is`].
    pub fn is_browser_key(&self, text: &[u8]) -> bool {
        let key = self.browser_key().to_string();
        Digest::of(key.as_bytes()).0.ct_eq(&Digest::of(text).0).into()
    }

    /// Whether this value of an `authorization` header has the token.
    pub fn is_in(&self, header: &[u8]) -> bool {
        header.strip_prefix(SCHEME.as_bytes()).is_some_and(|said| self.is(said))
    }

    /// Whether `text` is the token. Takes as long for a near miss as for a far one: digests are compared, all of them.
    pub fn is(&self, text: &[u8]) -> bool {
        self.digest.0.ct_eq(&Digest::of(text).0).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Adds the token, if there is one, to every call.
#[derive(Clone, Debug)]
pub struct TokenSender(pub Option<Token>);

/// Refuses every call without the token, if there is one.
#[derive(Clone, Debug)]
pub struct TokenCheck(pub Option<Token>);

impl Interceptor for TokenSender {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(HEADER, token.header.clone());
        }
        Ok(request)
    }
}

impl Interceptor for TokenCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let Some(header) = request.metadata().get(HEADER) else {
            return Err(Status::unauthenticated("this job has a token: give it with --token-file"));
        };
        if token.is_in(header.as_bytes()) {
            Ok(request)
        } else {
            Err(Status::unauthenticated("this is not the job's token"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0123456789abcdef";

    fn token(text: &str) -> Token {
        Token::new(text, "OBSDIFF_TOKEN").unwrap()
    }

    fn asked(of: Option<&str>, with: Option<&str>) -> Result<(), String> {
        let request = TokenSender(with.map(token)).call(Request::new(())).unwrap();
        let answer = TokenCheck(of.map(token)).call(request);
        answer.map(|_| ()).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn the_right_token_passes_and_no_other() {
        assert_eq!(asked(Some(TEXT), Some(TEXT)), Ok(()));
        assert_eq!(asked(Some(TEXT), Some(&format!(" {TEXT}\n"))), Ok(()));
        for wrong in ["0123456789abcdeg", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert_eq!(asked(Some(TEXT), Some(wrong)), Err("this is not the job's token".to_owned()));
        }
        let missing = "this job has a token: give it with --token-file";
        assert_eq!(asked(Some(TEXT), None), Err(missing.to_owned()));
        assert_eq!(asked(None, None), Ok(()));
        assert_eq!(asked(None, Some(TEXT)), Ok(()));
    }

    #[test]
    fn another_scheme_is_no_token() {
        for header in [TEXT.to_owned(), format!("Basic {TEXT}"), "Bearer ".to_owned(), String::new()] {
            let mut request = Request::new(());
            request.metadata_mut().insert(HEADER, header.parse().unwrap());
            assert!(TokenCheck(Some(token(TEXT))).call(request).is_err(), "{header}");
        }
    }

    #[test]
    fn a_token_that_protects_nothing_is_refused_by_its_origin() {
        for text in ["", "short", "with a space inside", "mit Ümläuten, lang genug", &"x".repeat(4097)] {
            let error = Token::new(text, "OBSDIFF_TOKEN").unwrap_err().to_string();
            assert!(error.starts_with("OBSDIFF_TOKEN: the token must "), "{error}");
        }
    }

    #[test]
    fn a_token_is_shown_to_nobody() {
        let token = token(TEXT);
        assert!(token.header.is_sensitive());
        assert!(
            !format!("{token:?} {:?} {:?}", TokenCheck(Some(token.clone())), token.header).contains(TEXT)
        );
    }
}
