use super::tls::PemFile;
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
    assert_eq!(own, TraceSettings { variable: of_traces.0, named: true, tls: None });
    let grpc = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap().unwrap();
    assert_eq!(grpc, TraceSettings { variable: ENDPOINT.0, named: false, tls: None });
}

#[test]
fn the_certificates_that_a_variable_names_are_read_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    std::fs::write(path("good.pem"), authority.pem()).unwrap();
    std::fs::write(path("bad.pem"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    let secure = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317");
    let [of_all, of_traces] = ["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"];
    let [good, bad, missing] = ["good.pem", "bad.pem", "missing.pem"].map(path);
    let tls = read(&[secure, (of_all, &missing), (of_traces, &good)]).unwrap().unwrap().tls;
    let authorities = Some(PemFile { variable: of_traces, path: good.clone().into() });
    assert_eq!(tls, Some(CollectorTls { authorities, identity: None }));
    // Without TLS they are not needed.
    assert_eq!(read(&[ENDPOINT, (of_all, &missing)]).unwrap().unwrap().tls, None);
    let refused = read(&[secure, (of_all, &missing)]).unwrap_err();
    assert!(refused.starts_with(&format!("{of_all}: names {missing}: ")), "{refused}");
    let refused = read(&[secure, (of_all, &bad)]).unwrap_err();
    assert!(refused.starts_with(&format!("{of_all}: names {bad}, which cannot be used: ")), "{refused}");

    let own = ["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"];
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let with = |certificate: &str, key: &str| {
        let files = [certificate, key].map(path);
        read(&[secure, (of_all, &good), (own[0], &files[0]), (own[1], &files[1])])
    };
    let [certificate, shown] = with("good.pem", "key.pem").unwrap().unwrap().tls.unwrap().identity.unwrap();
    assert_eq!((certificate.path, shown.variable), (good.clone().into(), own[1]));
    let refused = with("good.pem", "good.pem").unwrap_err();
    let says =
        format!("{}: names {good}, which cannot be used with the key {good} that {} names: ", own[0], own[1]);
    assert!(refused.starts_with(&says), "{refused}");
    for (set, other) in [(own[0], own[1]), (own[1], own[0])] {
        let refused = read(&[secure, (of_all, &good), (set, &good)]).unwrap_err();
        assert!(refused.starts_with(&format!("{set}: is set without {other}: ")), "{refused}");
    }
}

#[test]
fn what_cannot_be_sent_is_refused_by_its_variable() {
    let protocol = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")]).unwrap_err();
    assert!(
        protocol.starts_with("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: is \"http/protobuf\", but"),
        "{protocol}"
    );
    for url in ["collector:4317", "ftp://collector:4317", "a b"] {
        let refused = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap_err();
        assert!(refused.contains(&format!("is \"{url}\": write http://HOST:PORT")), "{refused}");
    }
}
