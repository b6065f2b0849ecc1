//! A server that takes the progress of jobs as Kubeflow Trainer's does, with an authority of its own.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// No POST is waited for so long.
const LONG: Duration = Duration::from_secs(180);

/// A POST as it came.
pub(crate) struct Post {
    /// When.
    pub(crate) at: Instant,
    /// Its first line and headers, in lower case but for values.
    pub(crate) head: String,
    /// Its `trainerStatus`.
    pub(crate) status: Value,
}

impl Post {
    pub(crate) fn percent(&self) -> u64 {
        self.status["progressPercentage"].as_u64().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named =
            |line: &str| line.split_once(": ").is_some_and(|(found, _)| found.eq_ignore_ascii_case(name));
        Some(self.head.lines().find(|line| named(line))?.split_once(": ")?.1)
    }
}

/// How the server answers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Answer {
    Status(u16),
    /// It takes the POST and says nothing, for as long as it lives.
    Nothing,
}

/// The server, and the files that its users are given.
pub(crate) struct TrainerServer {
    folder: tempfile::TempDir,
    port: u16,
    answer: Arc<Mutex<Answer>>,
    posts: Receiver<Post>,
}

impl TrainerServer {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        fs::write(folder.path().join("token"), "the-first-token\n").unwrap();
        let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = config.with_single_cert(vec![CertificateDer::clone(certificate.der())], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(Mutex::new(Answer::Status(200)));
        let (sender, posts) = mpsc::channel();
        let (config, answers) = (Arc::new(config), answer.clone());
        // It ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, answers, sender) = (config.clone(), answers.clone(), sender.clone());
                thread::spawn(move || serve(stream, config, &answers, &sender));
            }
        });
        Self { folder, port, answer, posts }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/apis/namespaces/n/trainjobs/j/status", self.port)
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// The variables that name it.
    pub(crate) fn environment(&self) -> [(&'static str, String); 3] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [
            ("KUBEFLOW_TRAINER_SERVER_URL", self.url()),
            ("KUBEFLOW_TRAINER_SERVER_CA_CERT", text(&self.authority())),
            ("KUBEFLOW_TRAINER_SERVER_TOKEN", text(&self.token())),
        ]
    }

    /// Gives these variables to a command.
    pub(crate) fn named_to<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.envs(self.environment())
    }

    pub(crate) fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The next POST.
    pub(crate) fn post(&self) -> Post {
        self.posts.recv_timeout(LONG).expect("nothing is posted")
    }

    /// POSTs that came and were not looked at.
    pub(crate) fn rest(&self) -> Vec<Post> {
        self.posts.try_iter().collect()
    }
}

/// Takes one POST. A client that trusts another authority, or leaves, sends none.
fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    answer: &Mutex<Answer>,
    posts: &Sender<Post>,
) -> Option<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut read = Vec::new();
    let (head, all) = loop {
        let head = read.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(end) = head {
            let head = String::from_utf8(read[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
            });
            break (head, end + 4 + length.unwrap());
        }
        more(&mut stream, &mut read)?;
    };
    while read.len() < all {
        more(&mut stream, &mut read)?;
    }
    let mut body: Value = serde_json::from_slice(&read[head.len() + 4..all]).unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    let answer = *answer.lock().unwrap();
    posts.send(Post { at: Instant::now(), head, status: body["trainerStatus"].take() }).ok()?;
    match answer {
        Answer::Status(status) => {
            write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
                .ok()?;
            stream.conn.send_close_notify();
            stream.flush().ok()
        }
        // Until the client gives up.
        Answer::Nothing => more(&mut stream, &mut read),
    }
}

/// Reads some more; nothing at the end.
fn more(stream: &mut impl Read, read: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let count = loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read.ok()?,
        }
    };
    read.extend_from_slice(&buffer[..count]);
    (count > 0).then_some(())
}
