//! A collector receives the trace of a job.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
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

#[test]
fn a_collector_receives_a_job_its_packages_and_their_phases() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let collector = Collector::default();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(collector.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let folder = setting(2);
    let mut coordinator = Process::spawn(
        Command::new(env!("CARGO_BIN_EXE_obsdiff"))
            .args(["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .current_dir(folder.path()),
    );
    let line = coordinator.line(|line| line.contains("listening on ")).unwrap();
    let url = format!("http://{}", line.strip_prefix("listening on ").unwrap());
    let mut worker = worker(folder.path(), &url);
    assert!(worker.end().success());
    assert!(coordinator.end().success());

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
