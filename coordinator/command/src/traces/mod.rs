//! Traces of a job's packages by OpenTelemetry, sent where its usual variables (`OTEL_...`) say.
//!
//! A trace has one span for the job, one in it for each package, and in that one for each phase. What happens meanwhile is told as
//! events of the span that is open.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use obsdiff_coordinator::Observer;
use obsdiff_core::{Core, Event, Outcome, Phase};
use obsdiff_files::read_regular;
use obsdiff_proto::{PackageId, causes};
use opentelemetry::trace::{Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::{Error, Result};

/// How long the end of the process may wait for the last spans to be sent.
const LAST: Duration = Duration::from_secs(5);

/// A file with the certificates of authorities has some hundred kB at most.
const MOST_PEM_BYTES: u64 = 4 << 20;

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSettings {
    /// The variable that names the collector.
    variable: &'static str,
    /// Whether the user names the service.
    named: bool,
    /// Whom a collector has to be certified by; none where it is reached without TLS.
    trusted: Option<Trusted>,
}

/// The authorities whose certificates a collector may show.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trusted {
    /// Those that this machine trusts.
    System,
    /// Those of a PEM file, which a variable names.
    File(&'static str, PathBuf),
}

impl Trusted {
    /// How a connection by TLS checks the collector.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn tls(&self) -> Result<ClientTlsConfig> {
        let config = ClientTlsConfig::new();
        match self {
            Self::System => Ok(config.with_enabled_roots()),
            Self::File(variable, path) => {
                let pem = read_regular(path, MOST_PEM_BYTES)
                    .map_err(|e| Error::key(*variable, format!("names {}: {e}", path.display())))?;
                Ok(config.ca_certificate(Certificate::from_pem(pem)))
            }
        }
    }

    /// Why a collector that `variable` names cannot be checked so.
    fn refused(&self, variable: &'static str, error: &tonic::transport::Error) -> Error {
        let why = causes(error);
        match self {
            Self::System => Error::key(
                variable,
                format!(
                    "is https://, but this machine has no certificates of authorities to check it by ({why}): install \
                     ca-certificates, or name a PEM file in OTEL_EXPORTER_OTLP_CERTIFICATE"
                ),
            ),
            Self::File(variable, path) => {
                Error::key(*variable, format!("names {}, which cannot be used: {why}", path.display()))
            }
        }
    }
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
        let trusted = match (endpoint.as_ref(), scheme) {
            (Some(_), Some("http")) => None,
            (Some(endpoint), Some("https")) => {
                let named =
                    first(["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]);
                let trusted = named.map_or(Trusted::System, |(name, path)| Trusted::File(name, path.into()));
                // What the exporter would find out only when the job has begun.
                endpoint
                    .clone()
                    .tls_config(trusted.tls()?)
                    .map_err(|error| trusted.refused(variable, &error))?;
                Some(trusted)
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
        Ok(Some(Self { variable, named, trusted }))
    }

    /// Begins the trace of a job that prunes the pipeline `model`. The exporter reads its further variables itself.
    ///
    /// # Errors
    /// When one of these makes no sense.
    pub(crate) fn begin(&self, model: &str, runtime: &Handle) -> Result<Traces> {
        // Its connection is a task.
        let _entered = runtime.enter();
        let exporter = SpanExporter::builder().with_tonic();
        let exporter = match &self.trusted {
            Some(trusted) => exporter.with_tls_config(trusted.tls()?),
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
        Ok(Traces { provider, tracer, job, package: None, phase: None })
    }
}

/// The trace of a job.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    job: Context,
    package: Option<(PackageId, Context)>,
    phase: Option<(Phase, Context)>,
}

impl Traces {
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
}

impl Observer for Traces {
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
            // Workers that stand by may still be told for a while.
            self.job.span().end();
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.end_package();
        self.job.span().end();
        if let Err(error) = self.provider.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, String> {
        let environment: Vec<_> =
            variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        TraceSettings::of(&environment).map_err(|error| error.line())
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    #[test]
    fn traces_are_off_until_a_collector_is_named() {
        for off in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "True")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
        ] {
            assert_eq!(read(off), Ok(None), "{off:?}");
        }
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4317");
        let own = read(&[ENDPOINT, of_traces, ("OTEL_SERVICE_NAME", "pruning")]).unwrap().unwrap();
        assert_eq!(own, TraceSettings { variable: of_traces.0, named: true, trusted: None });
        let grpc = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap().unwrap();
        assert_eq!(grpc, TraceSettings { variable: ENDPOINT.0, named: false, trusted: None });
    }

    #[test]
    fn the_certificates_that_a_variable_names_are_read_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        std::fs::write(path("good.pem"), authority.pem()).unwrap();
        std::fs::write(path("bad.pem"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
            .unwrap();
        let secure = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317");
        let [of_all, of_traces] = ["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"];
        let [good, bad, missing] = ["good.pem", "bad.pem", "missing.pem"].map(path);
        let trusted = read(&[secure, (of_all, &missing), (of_traces, &good)]).unwrap().unwrap().trusted;
        assert_eq!(trusted, Some(Trusted::File(of_traces, good.clone().into())));
        // Without TLS they are not needed.
        assert_eq!(read(&[ENDPOINT, (of_all, &missing)]).unwrap().unwrap().trusted, None);
        let refused = read(&[secure, (of_all, &missing)]).unwrap_err();
        assert!(refused.starts_with(&format!("{of_all}: names {missing}: ")), "{refused}");
        let refused = read(&[secure, (of_all, &bad)]).unwrap_err();
        assert!(refused.starts_with(&format!("{of_all}: names {bad}, which cannot be used: ")), "{refused}");
    }

    #[test]
    fn what_cannot_be_sent_is_refused_by_its_variable() {
        let protocol =
            read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")]).unwrap_err();
        assert!(
            protocol.starts_with("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: is \"http/protobuf\", but"),
            "{protocol}"
        );
        for url in ["collector:4317", "ftp://collector:4317", "a b"] {
            let refused = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap_err();
            assert!(refused.contains(&format!("is \"{url}\": write http://HOST:PORT")), "{refused}");
        }
    }
}
