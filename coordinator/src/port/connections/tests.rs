use std::pin::pin;

use axum::Router;
use axum::routing::get;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::transport::Server;

use super::*;

/// A client's end of a connection, and the port's.
fn pair() -> (DuplexStream, Connection<DuplexStream>) {
    let (client, stream) = duplex(1024);
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    (client, Connection::new(stream, place))
}

/// Clients of a listener, all of them connected, and the listener.
async fn clients(count: usize) -> (Vec<TcpStream>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    (clients, listener)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_begin_loses_its_connection() {
    for said in [&b""[..], b"P", &PREFACE[..PREFACE.len() - 1]] {
        let (mut client, mut connection) = pair();
        client.write_all(said).await.unwrap();
        let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_began_may_say_nothing_for_as_long_as_it_likes() {
    let handshake = b"\x16\x03\x01\x02\x00";
    for said in [PREFACE, b"GET /events HTTP/1.1\r\n", b"PUT", handshake] {
        let (mut client, mut connection) = pair();
        // However its words are cut into packets.
        for part in said.chunks(2) {
            client.write_all(part).await.unwrap();
            connection.read_exact(&mut vec![0_u8; part.len()]).await.unwrap();
        }
        let quiet = timeout(1000 * OPENING, connection.read_u8()).await;
        assert!(quiet.is_err(), "{said:?}: {quiet:?}");
        client.write_all(b"!").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'!');
    }
}

#[tokio::test]
async fn further_clients_wait_until_a_connection_ends() {
    let (_clients, listener) = clients(3).await;
    let mut connections = pin!(accepted(listener, 2));
    let (Ok(first), Ok(_second)) = (connections.next().await.unwrap(), connections.next().await.unwrap());
    assert!(connections.next().now_or_never().is_none(), "there are only two places");
    drop(first);
    assert!(connections.next().await.is_some());
}

/// Two clients that say nothing take both places. The third gets its answer all the same. Time is paused: it goes on when nothing else
/// does.
#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_keep_no_other_from_its_answer() {
    let (mut clients, listener) = clients(3).await;
    let pages = Router::new().route("/healthz", get(async || "well"));
    let server = Server::builder().accept_http1(true).add_routes(Routes::from(pages));
    tokio::spawn(server.serve_with_incoming(accepted(listener, 2)));
    let last = clients.last_mut().unwrap();
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("well"), "{answer}");
}

/// It would keep a processor busy if it tried again at once.
#[tokio::test(start_paused = true)]
async fn a_system_without_files_is_asked_ten_times_a_second() {
    let mut tries = 0;
    let accept = || {
        tries += 1;
        assert!(tries < 100, "it does not wait");
        async { Err::<(), _>(io::Error::from(ErrorKind::OutOfMemory)) }
    };
    let connection = timeout(10 * PAUSE - PAUSE / 2, until_accepted(accept)).await;
    assert!(connection.is_err());
    assert_eq!(tries, 10);
}

#[tokio::test(start_paused = true)]
async fn errors_end_with_the_next_connection() {
    // No more files (EMFILE, ENFILE), and a client that is gone.
    let files = |code| Err(io::Error::from_raw_os_error(code));
    let mut answers = [files(24), files(23), Err(ErrorKind::ConnectionAborted.into()), Ok(7)].into_iter();
    assert_eq!(until_accepted(|| std::future::ready(answers.next().unwrap())).await, 7);
}

#[test]
fn half_of_the_files_is_for_connections() {
    assert_eq!(bound(Some(200)), 100);
    assert_eq!(bound(Some(3)), LEAST);
    assert_eq!([bound(Some(1 << 40)), bound(None)], [MOST; 2]);
}

#[test]
fn the_limit_on_files_is_raised_once_and_never_lowered() {
    let before = getrlimit(Resource::Nofile).current;
    let raised = raised_file_limit();
    assert_eq!([getrlimit(Resource::Nofile).current, raised_file_limit()], [raised; 2]);
    assert!(raised.is_none() || raised >= before);
}
