//! Processes whose other side is not what it should be, or leaves.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::pin::Pin;
use std::process::{Command, Stdio};

use obsdiff_proto::session::{CoordinatorEvent, Dismissed, Reason};
use obsdiff_proto::wire::v1;
use obsdiff_proto::wire::v1::session_server::{Session, SessionServer};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, once};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::process::{ASSETS, Coordinator, Process, setting};

/// A coordinator of another release.
struct Other;

#[tonic::async_trait]
impl Session for Other {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorEvent, Status>> + Send>>;

    async fn open(
        &self,
        _: Request<Streaming<v1::WorkerEvent>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let words = "this coordinator speaks another protocol: use the same release on both".to_owned();
        let event = CoordinatorEvent::Dismissed(Dismissed { reason: Reason::Protocol, words });
        Ok(Response::new(Box::pin(once(Ok((&event).into())))))
    }
}

#[test]
fn a_worker_of_another_protocol_is_told_so_and_exits_with_2() {
    let runtime = obsdiff::runtime::runtime().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(SessionServer::new(Other));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let folder = setting(2);
    let (code, said) = Process::start(folder.path(), &["worker", "--coordinator", &url, "--quiet"]).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("error: ") && said.contains("use the same release on both"), "{said}");
}

#[test]
fn a_token_that_is_missing_or_wrong_has_to_be_corrected_first() {
    let folder = setting(2);
    fs::write(folder.path().join("token"), "0123456789-this-jobs-token").unwrap();
    fs::write(folder.path().join("other"), "0123456789-another-token").unwrap();
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0", "--token-file", "token"];
    let mut coordinator = Process::start(folder.path(), &args);
    let line = coordinator.line(|line| line.contains("listening on ")).expect("it does not listen");
    let url = format!("http://{}", line.strip_prefix("listening on ").unwrap());
    let cases: [(&[&str], &str); 3] = [
        (&[], "the coordinator refuses: this job has a token: give it with --token-file"),
        (&["--token-file", "other"], "the coordinator refuses: this is not the job's token"),
        (&["--token-file", "absent"], "absent: No such file"),
    ];
    let commands: [&[&str]; 4] = [
        &["status", &url],
        &["status", &url, "--watch"],
        &["status", &url, "--cancel"],
        &["worker", "--coordinator", &url, "--quiet"],
    ];
    for (token, says) in cases {
        for command in commands {
            let args = [command, token].concat();
            let (code, said) = Process::start(folder.path(), &args).verdict();
            assert_eq!(code, Some(2), "{args:?}: {said}");
            assert!(said.starts_with("error: ") && said.contains(says), "{args:?}: {said}");
        }
    }
    assert!(coordinator.ended().is_none(), "it ends for those who are refused");
}

/// Connections to it are opened, and that is all that ever happens.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn nobody_waits_for_ever_for_a_port_that_never_answers() {
    let (_listener, url) = silent();
    let folder = setting(2);
    let commands: [&[&str]; 3] = [
        &["status", &url],
        &["status", &url, "--watch"],
        &["worker", "--coordinator", &url, "--patience", "5s", "--quiet"],
    ];
    for args in commands {
        let (code, said) = Process::start(folder.path(), args).verdict();
        assert_eq!(code, Some(3), "{args:?}: {said}");
        assert!(said.lines().last().unwrap_or_default().starts_with("error: "), "{args:?}: {said}");
    }
}

/// Something else than a coordinator, such as a server of web pages, answers at the address.
#[test]
fn a_status_from_something_else_says_that_it_is_no_coordinator() {
    let (listener, url) = silent();
    // It ends with the tests.
    std::thread::spawn(move || {
        let answer = |mut connection: std::net::TcpStream| {
            connection.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").map(|()| connection)
        };
        listener.incoming().flatten().map(answer).collect::<Vec<_>>()
    });
    let (code, said) = Process::start(setting(2).path(), &["status", &url]).verdict();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("see that the address is that of a coordinator"), "{said}");
}

/// Two on one store, each with a life of its own: here the other one is a file alone.
#[test]
fn a_coordinator_whose_job_another_one_took_over_stops_with_3() {
    let folder = setting(16);
    let mut coordinator = Coordinator::start(folder.path());
    std::fs::write(folder.path().join("out.state/lives/00000001"), "").unwrap();
    let (code, said) = coordinator.process.verdict();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("another coordinator has taken over the job and its store, as the one of life 1"),
        "{said}"
    );
}

/// As `obsdiff inspect DIR | head -1` does.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let model = format!("{ASSETS}/shapes-sd3");
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    inspect.args(["inspect", &model]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = inspect.spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}
