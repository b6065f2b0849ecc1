//! The progress of a job in the status of its Kubeflow TrainJob. The server here has an authority and a token of its own, as Trainer's has.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::fs;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use obsdiff::kubeflow::{ProgressSource, TrainerServer};
use obsdiff_proto::PrunedSoFar;
use obsdiff_proto::session::JobProgress;
use tokio::runtime::Runtime;

mod jobs;
#[path = "../process/mod.rs"]
mod process;
mod server;

use server::{Answer, TrainerServer as Server};

/// The pace of these tests.
const PACE: Duration = Duration::from_millis(200);

/// What is read of the environment.
fn read(server: &Server) -> TrainerServer {
    let environment = server.environment().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    TrainerServer::read(&environment).unwrap().unwrap()
}

fn at(percent: u8) -> JobProgress {
    JobProgress { percent, left: Some(Duration::from_secs(3)), committed: 1, packages: 2 }
}

/// A job that is one percent further each time that it is asked.
fn advancing() -> impl ProgressSource {
    let percent = AtomicU8::new(0);
    move || Some((at(percent.fetch_add(1, Ordering::SeqCst).min(99)), PrunedSoFar::default()))
}

#[test]
fn each_post_has_the_progress_and_the_token_as_it_is_then() {
    let (server, runtime) = (Server::start(), Runtime::new().unwrap());
    let poster = read(&server).post_at_pace(runtime.handle(), advancing(), PACE);
    let first = server.post();
    assert!(
        first.head.starts_with("POST /apis/namespaces/n/trainjobs/j/status HTTP/1.1\r\n"),
        "{}",
        first.head
    );
    assert_eq!(first.header("authorization"), Some("Bearer the-first-token"));
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.header("host").map(|host| host.starts_with("localhost:")), Some(true));
    assert_eq!((first.percent(), &first.status["estimatedRemainingSeconds"]), (0, &3.into()));
    assert!(first.status["lastUpdatedTime"].as_str().unwrap().ends_with('Z'), "{}", first.status);
    let metric = serde_json::json!({ "name": "packages_committed", "value": "1" });
    assert_eq!(first.status["metrics"][1], metric);
    // Kubernetes puts another token there long before the old one ends.
    fs::write(server.token(), "the-second-token").unwrap();
    let later = (0..100)
        .map(|_| server.post())
        .find(|post| post.header("authorization") == Some("Bearer the-second-token"));
    let later = later.expect("the new token is not read");
    assert!(later.percent() > 0);
    poster.end(true);
    let last = server.rest().pop().unwrap();
    assert_eq!((last.percent(), &last.status["estimatedRemainingSeconds"]), (100, &0.into()));
    assert_eq!(last.header("authorization"), Some("Bearer the-second-token"));
}

#[test]
fn posts_keep_their_pace_to_the_end() {
    let (server, runtime) = (Server::start(), Runtime::new().unwrap());
    let poster = read(&server).post_at_pace(runtime.handle(), advancing(), PACE);
    let mut posts: Vec<_> = (0..4).map(|_| server.post()).collect();
    poster.end(true);
    posts.extend(server.rest());
    assert_eq!(posts.last().unwrap().percent(), 100);
    // What one takes longer than the next on its way is a part of what lies between them.
    for pair in posts.windows(2) {
        let between = pair[1].at - pair[0].at;
        assert!(between >= PACE / 2, "{between:?} from one to the next");
    }
    assert!(posts[4].at - posts[0].at >= 3 * PACE, "five POSTs within three times the pace");
}

#[test]
fn nothing_is_posted_of_what_is_not_known_or_not_done() {
    let (server, runtime) = (Server::start(), Runtime::new().unwrap());
    let (asked, asks) = mpsc::channel();
    let silent = move || {
        asked.send(()).unwrap();
        None::<(JobProgress, PrunedSoFar)>
    };
    let poster = read(&server).post_at_pace(runtime.handle(), silent, PACE);
    (0..3).for_each(|_| asks.recv().unwrap());
    poster.end(true);
    assert!(server.rest().is_empty());
    let poster = read(&server).post_at_pace(runtime.handle(), advancing(), PACE);
    assert_eq!(server.post().percent(), 0);
    let begun = Instant::now();
    poster.end(false);
    assert!(begun.elapsed() < Duration::from_secs(4), "a job that is not done waits for nobody");
    assert!(server.rest().iter().all(|post| post.percent() < 100));
}

#[test]
fn a_server_that_fails_or_hangs_is_tried_again_and_holds_nobody_up() {
    let (server, runtime) = (Server::start(), Runtime::new().unwrap());
    server.answer(Answer::Status(500));
    let poster = read(&server).post_at_pace(runtime.handle(), advancing(), PACE);
    assert!(server.post().percent() < server.post().percent());
    server.answer(Answer::Nothing);
    // It is given up after five seconds, and the next POST is as far as the job is then.
    let mut last = server.post();
    let hung = (0..100).map(|_| server.post()).any(|next| {
        let hung = next.at - last.at > Duration::from_secs(4);
        assert!(next.percent() > last.percent());
        last = next;
        hung
    });
    assert!(hung, "no POST is waited for");
    let begun = Instant::now();
    poster.end(true);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn who_is_not_of_the_authority_or_no_more_there_hears_no_token() {
    let (server, other, runtime) = (Server::start(), Server::start(), Runtime::new().unwrap());
    fs::copy(other.authority(), server.authority()).unwrap();
    let asked = Arc::new(AtomicU8::new(0));
    let (count, (sender, asks)) = (asked.clone(), mpsc::channel());
    let counting = move || {
        count.fetch_add(1, Ordering::SeqCst);
        sender.send(()).unwrap();
        Some((at(1), PrunedSoFar::default()))
    };
    let poster = read(&server).post_at_pace(runtime.handle(), counting, PACE);
    // When it is asked again the POST before has failed.
    (0..3).for_each(|_| asks.recv().unwrap());
    poster.end(false);
    assert!(server.rest().is_empty() && other.rest().is_empty());
    assert!(asked.load(Ordering::SeqCst) >= 3);
}
