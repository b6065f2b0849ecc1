//! The port of a job, and clients that would keep it waiting or fill its memory.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_coordinator::metrics::Metrics;
use obsdiff_coordinator::{DoneJob, Outlook, Port, ServedJob, clock};
use obsdiff_proto::message::{Exponents, Hello, Status};
use obsdiff_proto::session::{Briefing, WorkerEvent};
use obsdiff_proto::view::JobRequest;
use obsdiff_proto::wire::v1;
use obsdiff_proto::wire::v1::session_client::SessionClient;
use obsdiff_proto::{Inventory, JobSpec, Plan, Shard, ShardId};
use obsdiff_security::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The header of a record that holds the first 512 bytes of a TLS handshake, and none of these.
const HANDSHAKE: &[u8] = b"\x16\x03\x01\x02\x00";

/// Serves a job of one shard whose driver has ended.
async fn served(tls: Option<Tls>) -> SocketAddr {
    let spec: JobSpec = serde_json::from_value(serde_json::json!({
        "model": { "path": "pipeline" },
        "sparsity": { "pattern": "2:4" },
        "calibration": { "prompts": "prompts.txt" },
        "output": { "path": "out" },
    }))
    .unwrap();
    let shards = vec![Shard { id: ShardId(0), prompts: 0..4 }];
    let plan = Plan { packages: Vec::new(), shards, budget: None };
    let (inventory, store) = (Inventory::default(), "memory".to_owned());
    let briefing = Briefing { spec, inventory, plan, inputs: Vec::new(), store };
    let (_, handle) = DoneJob::new(clock::monotonic());
    let job = ServedJob {
        handle: handle.clone(),
        request: JobRequest::default(),
        model: "pipeline".to_owned(),
        output: "out".to_owned(),
        clock: clock::monotonic(),
        outlook: watch::channel(Outlook::default()).1,
        workers_announce: false,
        events: broadcast::channel(1).0,
        metrics: Arc::new(Metrics::new().unwrap()),
    };
    let port = Port::new("127.0.0.1:0".parse().unwrap(), tls, None, false).unwrap();
    let listener = port.bind().unwrap();
    port.serve(listener, handle, Arc::default(), Arc::new(briefing), job).await.unwrap()
}

/// A certificate, its key and its authority.
fn certificates(folder: &Path) -> Tls {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let written = |name: &str, pem: String| {
        let path = folder.join(name);
        fs::write(&path, pem).unwrap();
        path
    };
    let files = TlsFiles {
        certificate: written("coordinator.pem", certificate.pem()),
        key: written("coordinator.key", key.serialize_pem()),
        authority: written("ca.pem", authority.pem()),
    };
    Tls::read(&files).unwrap()
}

/// Whether the port cuts off a client within an hour that says this and then nothing more. Time is paused: it goes on when nothing else
/// does. It goes in small steps, so that it does not pass the end of the hour before the port has heard of the client.
async fn cuts_off(port: SocketAddr, said: &[u8]) -> bool {
    let mut client = TcpStream::connect(port).await.unwrap();
    client.write_all(said).await.unwrap();
    let mut answer = Vec::new();
    let mut end = pin!(client.read_to_end(&mut answer));
    for _ in 0..3600 {
        if timeout(Duration::from_secs(1), end.as_mut()).await.is_ok() {
            return true;
        }
    }
    false
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_at_the_beginning_is_cut_off() {
    let port = served(None).await;
    for said in [&b""[..], b"P", b"GET /healthz HTTP/1.1\r\n", PREFACE] {
        assert!(cuts_off(port, said).await, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_end_its_tls_handshake_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let port = served(Some(certificates(folder.path()))).await;
    for said in [&b""[..], HANDSHAKE] {
        assert!(cuts_off(port, said).await, "{said:?}");
    }
}

#[tokio::test]
async fn a_hello_that_names_shards_of_another_plan_is_refused() {
    let endpoint = Endpoint::from_shared(format!("http://{}", served(None).await)).unwrap();
    let mut client = SessionClient::new(endpoint.connect().await.unwrap());
    let hello = |shards: u32| {
        let mut status = Status::default();
        status.sums.held = (0..shards).map(ShardId).collect();
        let hardware = "a processor".to_owned();
        let hello = Hello { instance: 1, speed: 1, hardware, exponents: Exponents::new(), status };
        tokio_stream::iter([v1::WorkerEvent::from(&WorkerEvent::Hello(Box::new(hello)))])
    };
    let refused = client.open(hello(1 << 20)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "hello.status.sums.held_runs: names shard 1048575, but the plan has 1 shard")
    );
    assert!(client.open(hello(1)).await.is_ok());
}
