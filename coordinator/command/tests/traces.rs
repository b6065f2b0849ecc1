//! A collector receives the trace of a job, whose processes are several or one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

mod process;

use process::*;

/// Keeps what it receives.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[async_trait::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector at a port of its own, and that port. It ends with its runtime.
fn collect(runtime: &Runtime, tls: Option<ServerTlsConfig>) -> (Collector, u16) {
    let collector = Collector::default();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::builder();
    let mut server = match tls {
        Some(tls) => server.tls_config(tls).unwrap(),
        None => server,
    };
    let server = server.add_service(TraceServiceServer::new(collector.clone()));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (collector, port)
}

#[test]
#[cfg(feature = "gloo")]
fn a_collector_receives_a_job_its_packages_and_their_phases() {
    let runtime = Runtime::new().unwrap();
    let (collector, port) = collect(&runtime, None);
    let folder = setting(2);
    let mut coordinator = Process::spawn(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
            .current_dir(folder.path()),
    );
    let line = coordinator.line(|line| line.contains("listening on ")).unwrap();
    let url = format!("http://{}", line.strip_prefix("listening on ").unwrap());
    let mut worker = worker(folder.path(), &url);
    assert!(worker.end().success());
    assert!(coordinator.end().success());
    assert_told(&collector);
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for this name by an authority, and its key.
fn certified(name: &str, authority: &CertifiedIssuer<'_, KeyPair>) -> [String; 2] {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
    [certificate.signed_by(&key, authority).unwrap().pem(), key.serialize_pem()]
}

#[test]
fn a_collector_that_asks_for_a_certificate_is_shown_the_one_that_variables_name() {
    let authority = authority();
    let [certificate, key] = certified("localhost", &authority);
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    let tls = tls.client_ca_root(Certificate::from_pem(authority.pem()));
    let runtime = Runtime::new().unwrap();
    let (collector, port) = collect(&runtime, Some(tls));
    let folder = setting(2);
    let [certificate, key] = certified("client", &authority);
    for (name, text) in [("authority", authority.pem()), ("certificate", certificate), ("key", key)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let run = |own: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        command
            .args(["run", "job.toml", "--quiet", "--workers", "1"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://localhost:{port}"))
            .env("OTEL_EXPORTER_OTLP_CERTIFICATE", "authority")
            .envs(own.iter().copied())
            .current_dir(folder.path());
        let (code, said) = Process::spawn(&mut command).verdict();
        assert_eq!(code, Some(0), "{said}");
        fs::remove_dir_all(folder.path().join("out")).unwrap();
    };
    run(&[]);
    assert!(collector.0.lock().unwrap().is_empty());
    let own = ["CERTIFICATE", "KEY"].map(|name| format!("OTEL_EXPORTER_OTLP_CLIENT_{name}"));
    run(&[(&own[0], "certificate"), (&own[1], "key")]);
    assert_told(&collector);
}

#[test]
fn a_run_that_a_signal_stops_sends_what_is_open_as_stopped() {
    let runtime = Runtime::new().unwrap();
    let (collector, port) = collect(&runtime, None);
    // Longer than anybody waits.
    let folder = setting(100_000);
    let mut process = Process::spawn(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(["run", "job.toml", "--quiet", "--workers", "1"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
            // What ends by itself is not sent before.
            .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
            .current_dir(folder.path()),
    );
    let end = Instant::now() + LONG;
    while !folder.path().join("out.state/hardware/00000000.json").exists() {
        assert!(Instant::now() < end && process.ended().is_none(), "the job does not begin");
        thread::park_timeout(Duration::from_millis(10));
    }
    process.terminate();
    let (code, said) = process.verdict();
    assert!(code == Some(143) && said.contains("stopped by SIGTERM: "), "{code:?}: {said}");
    let received = collector.0.lock().unwrap();
    let spans = received.iter().flat_map(|request| &request.resource_spans);
    let spans = spans.flat_map(|spans| &spans.scope_spans).flat_map(|scope| &scope.spans);
    let stopped = spans.filter(|span| {
        span.status.as_ref().is_some_and(|status| status.message == "stopped by SIGTERM")
            && span.start_time_unix_nano <= span.end_time_unix_nano
    });
    let stopped: Vec<&str> = stopped.map(|span| &*span.name).collect();
    assert!(stopped.contains(&"job") && stopped.len() > 1, "{stopped:?} of {received:?}");
}

#[test]
fn a_collector_with_tls_receives_the_same_of_a_run_on_one_machine() {
    let [authority, other] = [authority(), authority()];
    let [certificate, key] = certified("localhost", &authority);
    let identity = Identity::from_pem(certificate, key);
    let runtime = Runtime::new().unwrap();
    let (collector, port) = collect(&runtime, Some(ServerTlsConfig::new().identity(identity)));

    let folder = setting(2);
    fs::write(folder.path().join("authority.pem"), authority.pem()).unwrap();
    fs::write(folder.path().join("other.pem"), other.pem()).unwrap();
    let run = |trusted: &str, file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        command
            .args(["run", "job.toml", "--quiet", "--workers", "1"])
            .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("https://localhost:{port}"))
            .env(trusted, folder.path().join(file))
            .current_dir(folder.path());
        let (code, said) = Process::spawn(&mut command).verdict();
        assert_eq!(code, Some(0), "{said}");
        fs::remove_dir_all(folder.path().join("out")).unwrap();
    };
    // Where the system's authorities are read from.
    run("SSL_CERT_FILE", "authority.pem");
    assert_told(&collector);
    collector.0.lock().unwrap().clear();
    run("OTEL_EXPORTER_OTLP_CERTIFICATE", "authority.pem");
    assert_told(&collector);
    collector.0.lock().unwrap().clear();
    // One that shows no certificate of a trusted authority gets nothing, and the job is done all the same.
    run("SSL_CERT_FILE", "other.pem");
    assert!(collector.0.lock().unwrap().is_empty());
}

/// The collector has heard of a job of two packages, and nothing else.
fn assert_told(collector: &Collector) {
    let received = collector.0.lock().unwrap();
    let resources = received.iter().flat_map(|request| &request.resource_spans);
    let service =
        resources.clone().flat_map(|spans| &spans.resource).flat_map(|resource| &resource.attributes);
    assert!(service.clone().any(|a| a.key == "service.name" && format!("{a:?}").contains("\"obsdiff\"")));
    let spans: Vec<&Span> =
        resources.flat_map(|spans| &spans.scope_spans).flat_map(|scope| &scope.spans).collect();
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (&*span.span_id, *span)).collect();
    let parent = |span: &Span| by_id.get(&*span.parent_span_id).map(|parent| &*parent.name);
    let named = |name: &str| spans.iter().filter(|span| span.name == name).count();
    assert_eq!((named("job"), named("package")), (1, 2), "{spans:?}");
    for span in &spans {
        let expected: &[Option<&str>] = match &*span.name {
            "job" => &[None],
            "package" | "pilot" | "export" => &[Some("job")],
            "calibrate" | "reduce" | "solve" | "commit" | "apply" => &[Some("package")],
            other => panic!("a span {other}"),
        };
        assert!(expected.contains(&parent(span)), "{} in {:?}", span.name, parent(span));
        assert_eq!(span.trace_id, spans[0].trace_id, "{}", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
    }
    assert!(named("calibrate") >= 2 && named("commit") == 2 && named("export") == 1, "{spans:?}");
    let events = spans.iter().flat_map(|span| &span.events);
    assert_eq!(events.filter(|event| event.name.ends_with(" is committed")).count(), 2);
}
