//! A port that says where a job stands, and those who ask it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use obsdiff_proto::view::{JobDetails, JobReport, JobRequest, Phase, View};
use obsdiff_proto::wire::v1;
use obsdiff_proto::wire::v1::jobs_client::JobsClient;
use obsdiff_proto::wire::v1::jobs_server::{Jobs, JobsServer};
use obsdiff_security::{Tls, Token, TokenCheck, TokenSender};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{ClientTlsConfig, Endpoint, Server};
use tonic::{Request, Response, Status};

/// A job that stands still, and counts who asks.
struct StandingJob(Arc<AtomicU32>);

fn report() -> JobReport {
    let view = View {
        phase: Phase::Calibrate,
        packages: 4,
        surveys: 0,
        committed: 1,
        package: None,
        shards: 9,
        held: 2,
        parts: 3,
        solved: 0,
        epoch: None,
        workers: Vec::new(),
        ending: None,
    };
    let text = |text: &str| text.to_owned();
    JobReport {
        release: text("0"),
        model: text("shapes"),
        output: text("out"),
        elapsed: Duration::ZERO,
        left: None,
        request: JobRequest::default(),
        view,
        details: JobDetails::default(),
    }
}

#[tonic::async_trait]
impl Jobs for StandingJob {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::Job>, Status> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new((&report()).into()))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn cancel(&self, _: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        Ok(Response::new(v1::CancelResponse {}))
    }
}

/// A port of this machine.
pub(crate) struct ServedPort {
    address: SocketAddr,
    served: Arc<AtomicU32>,
    serving: JoinHandle<()>,
}

impl ServedPort {
    pub(crate) async fn open(tls: Option<&Tls>, token: Option<Token>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls.server()).unwrap();
        }
        let served = Arc::new(AtomicU32::new(0));
        let service = JobsServer::with_interceptor(StandingJob(served.clone()), TokenCheck(token));
        let serving = server.add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        Self { address, served, serving }
    }

    /// Calls that came through.
    pub(crate) fn served(&self) -> u32 {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for ServedPort {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Asks the port where its job stands.
pub(crate) async fn ask(
    port: &ServedPort,
    tls: Option<&Tls>,
    token: TokenSender,
) -> Result<JobReport, Status> {
    let port = port.address.port();
    let endpoint = match tls {
        Some(tls) => Endpoint::try_from(format!("https://localhost:{port}"))
            .unwrap()
            .tls_config(tls.client(None))
            .unwrap(),
        None => Endpoint::try_from(format!("http://localhost:{port}")).unwrap(),
    };
    get(endpoint, token).await
}

/// The same, by any configuration.
pub(crate) async fn ask_with(port: &ServedPort, tls: ClientTlsConfig) -> Result<JobReport, Status> {
    let url = format!("https://localhost:{}", port.address.port());
    get(Endpoint::try_from(url).unwrap().tls_config(tls).unwrap(), TokenSender(None)).await
}

async fn get(endpoint: Endpoint, token: TokenSender) -> Result<JobReport, Status> {
    let mut client = JobsClient::with_interceptor(endpoint.connect_lazy(), token);
    let job = client.get(v1::GetRequest {}).await?.into_inner();
    Ok(JobReport::try_from(job).unwrap())
}
