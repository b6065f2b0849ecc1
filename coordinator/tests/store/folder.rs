//! A prefix that somebody has made as a folder, as consoles do: by an empty object of its name and a slash.

use std::io;
use std::net::SocketAddr;

use obsdiff_store::{GramStore, JobStore, OutputState, OutputStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::job::record;

/// What S3 lists below such a folder that holds nothing else.
const LISTING: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Contents><Key>out/</Key>\
                       <LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag><Size>0</Size></Contents></ListBucketResult>";
const NO_SUCH_KEY: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>NoSuchKey</Code></Error>";

/// Answers one request as S3 does where there is this folder alone.
async fn answer(mut socket: TcpStream) -> io::Result<()> {
    let mut asked: Vec<u8> = Vec::new();
    let start = loop {
        if let Some(end) = asked.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut asked).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&asked[..start]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    while asked.len() < start + length.unwrap_or(0) {
        if socket.read_buf(&mut asked).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = if head.starts_with("put ") {
        ("200 OK", "")
    } else if head.contains("list-type=2") {
        ("200 OK", LISTING)
    } else {
        ("404 Not Found", NO_SUCH_KEY)
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nETag: \"0\"\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(answer.as_bytes()).await
}

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer(socket));
        }
    });
    address
}

#[tokio::test]
async fn the_marker_of_a_folder_is_nothing_that_lies_in_it() {
    let options = [
        ("AWS_ACCESS_KEY_ID", "a-key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "its-secret".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT", format!("http://{}", serve().await)),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value));
    let url = "s3://bucket/out";
    let state = JobStore::open(url, &options).unwrap();
    state.discard_results().await.unwrap();
    let output = OutputStore::open(url, &options).unwrap();
    assert_eq!(output.state(&record().spec).await.unwrap(), OutputState::Empty);
    let grams = GramStore::open(url, &options).unwrap();
    grams.put_index(&"an index", &[]).await.unwrap();
}
