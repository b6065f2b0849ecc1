//! `obsdiff status URL`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use obsdiff_proto::view::{Ending, JobReport, WatchMessage};
use obsdiff_proto::wire::v1;
use obsdiff_proto::wire::v1::jobs_client::JobsClient;
use obsdiff_security::TokenSender;
use tokio::time::interval;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cli::StatusArgs;
use crate::clock::Clock;
use crate::context::CommandContext;
use crate::status::{after, fitted, render, render_message};
use crate::text::printable_line;
use crate::{Error, Result};

/// Shows where a job stands, or stops it.
///
/// # Errors
/// When the coordinator cannot be reached, or refuses; when a job that is watched ends without a result, or its coordinator goes before.
pub(super) fn status(args: &StatusArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let endpoint = args.security.endpoint(&args.coordinator)?;
    let token = TokenSender(args.security.token()?);
    let runtime = crate::runtime::runtime()?;
    runtime.block_on(async {
        let unreachable = |e: tonic::transport::Error| {
            Error::Session(format!(
                "{} cannot be reached: {}; see that its coordinator runs and listens there (`obsdiff coordinator JOB --listen ADDRESS`)",
                args.coordinator,
                obsdiff_proto::causes(&e)
            ))
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
        let mut ending = None;
        let mut screen = LiveScreen::of_terminal(context.clock.clone());
        let mut messages = jobs.watch(v1::WatchRequest {}).await.map_err(refused)?.into_inner();
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            let response = tokio::select! {
                biased;
                response = messages.message() => response.unwrap_or_else(|error| {
                    tracing::debug!(%error, "the coordinator's answer broke off");
                    None
                }),
                // The time that is left goes down between messages, too.
                _ = seconds.tick(), if screen.is_some() => {
                    screen.iter().for_each(LiveScreen::show_time);
                    continue;
                }
            };
            let Some(response) = response else { break };
            let message = WatchMessage::try_from(response).map_err(|e| Error::Session(e.to_string()))?;
            if let WatchMessage::Report(report) = &message {
                ending.clone_from(&report.view.ending);
            }
            match &mut screen {
                Some(screen) => screen.show(message),
                None => {
                    write!(context.out, "{}", render_message(&message))?;
                    context.out.flush()?;
                }
            }
        }
        // What was shown last stays on the screen.
        if let Some(last) = screen.and_then(LiveScreen::end) {
            write!(context.out, "{last}")?;
        }
        context.out.flush()?;
        over(ending, args)
    })
}

/// What a watcher ends with after a job with this ending; where there is none, its coordinator has gone.
fn over(ending: Option<Ending>, args: &StatusArgs) -> Result<()> {
    match ending {
        Some(Ending::Done) => Ok(()),
        Some(Ending::Cancelled) if args.cancel => Ok(()),
        Some(ending) => Err(Error::Session(format!("the job is over without a result: {ending}"))),
        None => Err(Error::Session(format!(
            "{} has gone, but the job is not over: start its coordinator again by the same command, and the job goes on from the last \
             finished package; then watch it again",
            args.coordinator
        ))),
    }
}

/// A job's report that stays in its place on a terminal; what happens scrolls by above it.
struct LiveScreen {
    area: ProgressBar,
    clock: Clock,
    /// The last report, and when it came.
    last: Option<(Box<JobReport>, Duration)>,
}

impl LiveScreen {
    /// One on standard output, where that is a terminal.
    fn of_terminal(clock: Clock) -> Option<Self> {
        io::stdout().is_terminal().then(|| {
            let area = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            // The template is a constant; were it wrong, a spinner would stand before the report.
            let style = ProgressStyle::with_template("{msg}");
            let area = area.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            Self { area, clock, last: None }
        })
    }

    fn show(&mut self, message: WatchMessage) {
        match message {
            WatchMessage::Report(report) => self.last = Some((report, (self.clock)())),
            WatchMessage::Event(words) => self.area.println(printable_line(&words)),
        }
        self.show_time();
    }

    /// Shows the last report with the time as it is now.
    fn show_time(&self) {
        if let Some(text) = self.text() {
            // Asked each time: a window changes its size.
            let (rows, columns) = Term::stdout().size();
            self.area.set_message(fitted(&text, rows.into(), columns.into()));
            self.area.tick();
        }
    }

    fn text(&self) -> Option<String> {
        let (report, came) = self.last.as_ref()?;
        Some(render(&after((**report).clone(), (self.clock)().saturating_sub(*came))))
    }

    /// Takes the screen away, and gives what it showed.
    fn end(self) -> Option<String> {
        self.area.finish_and_clear();
        self.text()
    }
}

fn report(job: v1::Job) -> Result<JobReport> {
    JobReport::try_from(job).map_err(|e| Error::Session(e.to_string()))
}

fn refused(status: Status) -> Error {
    let said = status.message();
    match status.code() {
        Code::Internal | Code::Unknown => Error::Session(format!(
            "what listens there does not answer as a coordinator does: {said}; see that the address is that of a coordinator, and of \
             the same release"
        )),
        // Nobody here cancels a call: its connection was closed before the call was sent.
        Code::Cancelled => Error::Session(
            "what listens there closed the connection without an answer: see that the address is that of a coordinator, and ask again"
                .to_owned(),
        ),
        Code::Unavailable => {
            Error::Session(format!("the coordinator is gone, or about to stop: {said}; ask again"))
        }
        // What a worker does not try again, either: the user has to change something first, such as the token.
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument => {
            Error::Refused(format!("the coordinator refuses: {said}"))
        }
        _ => Error::Session(format!("the coordinator refuses: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_coordinator_is_told_of_however_its_connection_ends() {
        let ends = [
            Status::cancelled("operation was canceled"),
            Status::internal("h2 protocol error: http2 error"),
            Status::unknown("transport error"),
        ];
        for end in ends {
            let said = refused(end).to_string();
            assert!(said.contains("see that the address is that of a coordinator"), "{said}");
        }
        assert_eq!(refused(Status::permission_denied("no")).to_string(), "the coordinator refuses: no");
    }

    #[test]
    fn a_token_that_is_refused_has_to_be_corrected_first() {
        let exit_codes =
            [Status::unauthenticated("no"), Status::permission_denied("no"), Status::aborted("no")]
                .map(|status| refused(status).exit_code());
        assert_eq!(exit_codes, [2, 2, 3]);
    }
}
