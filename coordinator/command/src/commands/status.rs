//! `obsdiff status URL`.

use obsdiff_proto::view::{JobReport, WatchMessage};
use obsdiff_proto::wire::v1;
use obsdiff_proto::wire::v1::jobs_client::JobsClient;
use obsdiff_security::TokenSender;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::cli::StatusArgs;
use crate::context::CommandContext;
use crate::status::{render, render_message};
use crate::{Error, Result};

/// Shows where a job stands, or stops it.
///
/// # Errors
/// When the coordinator cannot be reached, or refuses.
pub(super) fn status(args: &StatusArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let endpoint = args.security.endpoint(&args.coordinator)?;
    let token = TokenSender(args.security.token()?);
    let runtime = crate::runtime::runtime()?;
    runtime.block_on(async {
        let unreachable = |e: tonic::transport::Error| {
            Error::Session(format!("{} cannot be reached: {}", args.coordinator, obsdiff_proto::causes(&e)))
        };
        let channel = endpoint.connect().await.map_err(unreachable)?;
        let mut jobs: JobsClient<InterceptedService<Channel, TokenSender>> =
            JobsClient::new(InterceptedService::new(channel, token));
        if args.cancel {
            jobs.cancel(v1::CancelRequest {}).await.map_err(refused)?;
        }
        if !args.watch {
            let job = jobs.get(v1::GetRequest {}).await.map_err(refused)?.into_inner();
            let report = report(job)?;
            return if args.json {
                context.print_json(&report)
            } else {
                Ok(write!(context.out, "{}", render(&report))?)
            };
        }
        let mut messages = jobs.watch(v1::WatchRequest {}).await.map_err(refused)?.into_inner();
        while let Some(response) = messages.message().await.map_err(refused)? {
            let message = WatchMessage::try_from(response).map_err(|e| Error::Session(e.to_string()))?;
            write!(context.out, "{}", render_message(&message))?;
            context.out.flush()?;
        }
        Ok(())
    })
}

fn report(job: v1::Job) -> Result<JobReport> {
    JobReport::try_from(job).map_err(|e| Error::Session(e.to_string()))
}

fn refused(status: Status) -> Error {
    Error::Session(format!("the coordinator refuses: {}", status.message()))
}
