//! Traces of a job's packages by OpenTelemetry, sent where its usual variables (`OTEL_...`) say.
//!
//! A trace has one span for the job, one in it for each package, and in that one for each phase. What happens meanwhile is recorded as
//! events of the span that is open.

mod tls;

use std::ffi::OsString;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use obsdiff_coordinator::Observer;
use obsdiff_core::{Core, Event, Outcome, Phase};
use obsdiff_proto::{PackageId, lock};
use opentelemetry::trace::{Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tonic::transport::Endpoint;

use crate::signals::Signal;
use crate::{Error, Result};
use tls::CollectorTls;

/// How long the end of the process may wait for the last spans to be sent.
const LAST: Duration = Duration::from_secs(5);

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSettings {
    /// The variable that names the collector.
    variable: &'static str,
    /// Whether the user names the service.
    named: bool,
    /// None where the collector is reached without TLS.
    tls: Option<CollectorTls>,
}

impl TraceSettings {
    /// What the environment says; none where it names no collector, or turns traces off.
    ///
    /// # Errors
    /// When it asks for a protocol that this build has not, or the collector's address is no URL.
    pub fn of(environment: &[(OsString, OsString)]) -> Result<Option<Self>> {
        let get = |wanted: &str| {
            let (_, value) = environment.iter().find(|(name, _)| name == wanted)?;
            Some(value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
        };
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, get(name)?)));
        let off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let collector = first(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
        let Some((variable, url)) = collector.filter(|_| !off) else { return Ok(None) };
        if let Some((variable, protocol)) =
            first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"])
            && protocol != "grpc"
        {
            let problem = format!(
                "is \"{protocol}\", but traces are sent by gRPC alone: set it to grpc, and the endpoint to the collector's port \
                 for gRPC, usually 4317"
            );
            return Err(Error::key(variable, problem));
        }
        let endpoint = Endpoint::from_shared(url.clone()).ok();
        let scheme = endpoint.as_ref().and_then(|endpoint| endpoint.uri().scheme_str());
        let tls = match (endpoint.as_ref(), scheme) {
            (Some(_), Some("http")) => None,
            (Some(endpoint), Some("https")) => {
                let tls = CollectorTls::of(first)?;
                tls.check(variable, endpoint)?;
                Some(tls)
            }
            _ => {
                let problem = format!(
                    "is \"{url}\": write http://HOST:PORT or https://HOST:PORT of a collector that takes OTLP by gRPC"
                );
                return Err(Error::key(variable, problem));
            }
        };
        let attributes = get("OTEL_RESOURCE_ATTRIBUTES");
        let named = get("OTEL_SERVICE_NAME").is_some()
            || attributes.is_some_and(|attributes| attributes.contains("service.name="));
        Ok(Some(Self { variable, named, tls }))
    }

    /// Begins the trace of a job that prunes the pipeline `model`. The exporter reads its further variables itself.
    ///
    /// # Errors
    /// When one of these makes no sense.
    pub(crate) fn begin(&self, model: &str, runtime: &Handle) -> Result<Traces> {
        // Its connection is a task.
        let _entered = runtime.enter();
        let exporter = SpanExporter::builder().with_tonic();
        let exporter = match &self.tls {
            Some(tls) => exporter.with_tls_config(tls.config()?),
            None => exporter,
        };
        let exporter = exporter.build();
        let exporter = exporter.map_err(|e| Error::key(self.variable, format!("cannot be used: {e}")))?;
        let resource = Resource::builder();
        let resource = if self.named { resource } else { resource.with_service_name("obsdiff") };
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("obsdiff");
        let job =
            tracer.span_builder("job").with_attributes([KeyValue::new("obsdiff.model", model.to_owned())]);
        let job = Context::new().with_span(job.start_with_context(&tracer, &Context::new()));
        let open = OpenSpans { provider, tracer, job, package: None, phase: None };
        Ok(Traces(Arc::new(Mutex::new(open))))
    }
}

/// The trace of a job.
pub(crate) struct Traces(Arc<Mutex<OpenSpans>>);

/// The trace of the job that this process runs now, if it has begun and is not sent yet: a signal ends that before the process.
#[derive(Clone, Default)]
pub struct RunningTrace(Arc<Mutex<Weak<Mutex<OpenSpans>>>>);

impl RunningTrace {
    /// From now on this is the job's trace.
    pub(crate) fn begin(&self, traces: &Traces) {
        *lock(&self.0) = Arc::downgrade(&traces.0);
    }

    /// Ends the spans that are open as stopped, and sends them.
    pub(crate) fn stop(&self, signal: Signal) {
        let open = lock(&self.0).upgrade();
        if let Some(open) = open {
            lock(&open).stop(signal);
        }
    }
}

/// The spans of a job that are open.
struct OpenSpans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    job: Context,
    package: Option<(PackageId, Context)>,
    phase: Option<(Phase, Context)>,
}

impl OpenSpans {
    /// The innermost span that is open.
    fn open(&self) -> &Context {
        let package = || self.package.as_ref().map_or(&self.job, |(_, package)| package);
        self.phase.as_ref().map_or_else(package, |(_, phase)| phase)
    }

    /// Begins a span within the innermost one that is open.
    fn begin(&self, name: String, attributes: Vec<KeyValue>) -> Context {
        let parent = self.open();
        let span = self.tracer.span_builder(name).with_attributes(attributes);
        parent.with_span(span.start_with_context(&self.tracer, parent))
    }

    fn end_phase(&mut self) {
        if let Some((_, phase)) = self.phase.take() {
            phase.span().end();
        }
    }

    fn end_package(&mut self) {
        self.end_phase();
        if let Some((_, package)) = self.package.take() {
            package.span().end();
        }
    }

    /// Ends all of them as stopped by a signal, and sends them.
    fn stop(&mut self, signal: Signal) {
        let open =
            [self.phase.as_ref().map(|(_, phase)| phase), self.package.as_ref().map(|(_, package)| package)];
        for span in open.into_iter().flatten().chain([&self.job]) {
            span.span().set_status(Status::error(format!("stopped by {signal}")));
        }
        self.send();
    }

    /// Ends all of them, and sends them.
    fn send(&mut self) {
        self.end_package();
        self.job.span().end();
        match self.provider.shutdown_with_timeout(LAST) {
            // They are sent already.
            Ok(()) | Err(OTelSdkError::AlreadyShutdown) => {}
            Err(error) => tracing::warn!(%error, "the last spans were not sent"),
        }
    }

    fn event(&mut self, event: &Event) {
        self.open().span().add_event(event.to_string(), Vec::new());
    }

    fn step(&mut self, core: &Core) {
        let open = core.package();
        if self.package.as_ref().map(|(package, _)| *package) != open {
            self.end_package();
            if let Some(package) = open {
                // People count from 1.
                let number = KeyValue::new("obsdiff.package", i64::from(package.0) + 1);
                self.package = Some((package, self.begin("package".to_owned(), vec![number])));
            }
        }
        let phase = core.phase();
        if self.phase.as_ref().is_none_or(|(open, _)| *open != phase) {
            self.end_phase();
            if phase != Phase::Over {
                self.phase = Some((phase, self.begin(phase.to_string(), Vec::new())));
            }
        }
        if let Some(outcome) = core.outcome() {
            let done = *outcome == Outcome::Done;
            let status = if done { Status::Ok } else { Status::error(outcome.to_string()) };
            self.job.span().set_status(status);
            // Workers that stand by may still be dismissed for a while.
            self.job.span().end();
        }
    }
}

impl Observer for Traces {
    fn event(&mut self, event: &Event) {
        lock(&self.0).event(event);
    }

    fn step(&mut self, core: &Core) {
        lock(&self.0).step(core);
    }
}

impl Drop for OpenSpans {
    fn drop(&mut self) {
        self.send();
    }
}

#[cfg(test)]
mod tests;
