//! What a command gets from its process: the environment, the clock, standard output. No other code reads these.

use std::ffi::OsString;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use console::Term;
use obsdiff_files::Disk;
use obsdiff_proto::{ByteSize, lock};
use obsdiff_store::{ModelStore, StoreError};
use obsdiff_worker::stored_model::{Extent, StoredModel, StoredModelError};
use serde::Serialize;

use crate::cli::{JobArgs, OutputStyle};
use crate::clock::Clock;
use crate::downloads::Downloads;
use crate::fold::folded;
use crate::job::{JobFile, StoreSettings, job_variables, near_keys};
use crate::progress::Progress;
use crate::run::Summary;
use crate::runtime::runtime;
use crate::signals::Signals;
use crate::spans::Spans;
use crate::text::shell_word;
use crate::{Error, Result};

/// What one command gets from its process.
pub struct CommandContext<'a> {
    /// Environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line that started the process.
    pub command: String,
    /// Its arguments, without the program.
    pub arguments: Vec<OsString>,
    /// Signals that ask the process to stop.
    pub signals: Signals,
    /// The machine's clock.
    pub clock: Clock,
    /// The memory that a worker on this machine may take, where it is known.
    pub memory: Option<ByteSize>,
    /// The account of where the time goes.
    pub spans: Spans,
    /// Models of object stores that commands read here. They are in use until the process ends.
    pub models: Mutex<Vec<StoredModel>>,
    /// What files of jobs are written and removed by.
    pub disk: Disk,
    /// How progress is shown.
    pub style: OutputStyle,
    /// Where results go.
    pub out: &'a mut dyn Write,
}

impl CommandContext<'_> {
    /// Loads the job that a command was given, and lists its model where that is in an object store.
    ///
    /// # Errors
    /// As [`JobFile::load`] and [`JobFile::open_model`].
    pub fn job(&self, args: &JobArgs) -> Result<JobFile> {
        self.tell_near_keys();
        let loaded = JobFile::load(&args.job, self.environment.iter().cloned(), &args.sets);
        let loaded = loaded.map_err(|error| match error {
            Error::File { path, source } if path == args.job && source.kind() == ErrorKind::NotFound => {
                let next = "give a job file; `obsdiff init PIPELINE` writes one";
                Error::content(path, format!("{source}: {next}"))
            }
            other => other,
        });
        self.with_model(loaded?)
    }

    /// The job that goes by kept Grams, with its model listed where that is in an object store.
    ///
    /// # Errors
    /// As [`JobFile::of_grams`] and [`JobFile::open_model`].
    pub fn job_of_grams(&self, url: &str, sets: &[String]) -> Result<JobFile> {
        self.with_model(JobFile::of_grams(url, self.environment.iter().cloned(), sets)?)
    }

    /// The job with its model listed, where that is in an object store, and with the defaults of its model.
    ///
    /// # Errors
    /// As [`JobFile::open_model`].
    pub fn with_model(&self, mut job: JobFile) -> Result<JobFile> {
        job.open_model(&self.progress())?;
        job.fill_model_defaults()?;
        Ok(job)
    }

    /// A job that can only be planned, on the transformer of a configuration file.
    ///
    /// # Errors
    /// As [`JobFile::of_config`].
    pub fn job_of_config(&self, args: &JobArgs) -> Result<JobFile> {
        self.tell_near_keys();
        JobFile::of_config(&args.job, self.environment.iter().cloned(), &args.sets)
    }

    /// The command line that started the process, with the variables that its job goes by: what a shell has to be given to go on with
    /// the job. No key of a job is a secret.
    pub(crate) fn same_command(&self) -> String {
        let set = |(name, value): (&str, &str)| format!("{name}={} ", shell_word(value));
        let variables: String = job_variables(&self.environment).into_iter().map(set).collect();
        variables + &self.command
    }

    /// Tells of variables that are ignored and look like keys of a job.
    fn tell_near_keys(&self) {
        for note in near_keys(&self.environment) {
            self.progress().note(&note);
        }
    }

    /// The folder of a pipeline that an argument names: of one in an object store so much as `extent` says is downloaded.
    ///
    /// # Errors
    /// When it cannot be downloaded.
    pub(crate) fn pipeline(&self, path: &Path, extent: Extent) -> Result<PathBuf> {
        let Some(url) = path.to_str().filter(|path| ModelStore::is_url(path)) else {
            return Ok(path.to_owned());
        };
        let (runtime, stores) = (runtime()?, StoreSettings::of(&self.environment));
        let downloads = Downloads::new(self.progress());
        let fetched =
            StoredModel::open(url, stores.pairs(), stores.cache(), runtime.handle()).and_then(|model| {
                let folder = model.fetch(extent, runtime.handle(), &|event| downloads.show(event))?;
                lock(&self.models).push(model);
                Ok(folder)
            });
        fetched.map_err(|error| match error {
            StoredModelError::Store(StoreError::Url { url, problem })
            | StoredModelError::Refused { url, problem } => {
                Error::key("the pipeline", format!("is {url}, which {problem}"))
            }
            other => other.into(),
        })
    }

    /// Bounds the threads that computations run on; all cores where `threads` is absent. Only the first call of a process counts.
    ///
    /// # Errors
    /// When the machine cannot start as many.
    pub fn use_threads(&self, threads: Option<u32>) -> Result<()> {
        // Otherwise the pool would be made at its first use, and would panic if it cannot start. 0 stands for all cores.
        let threads = threads.unwrap_or(0) as usize;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::thread(&e))
    }

    /// Prints a command's result, as text or as one JSON object.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print<T: fmt::Display + Serialize>(&mut self, result: &T, json: bool) -> Result<()> {
        if json { self.print_json(result) } else { Ok(writeln!(self.out, "{result}")?) }
    }

    /// As [`Self::print`], where text has lines of words, which are folded to the width of a terminal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print_prose<T: fmt::Display + Serialize>(&mut self, result: &T, json: bool) -> Result<()> {
        match terminal_columns().filter(|_| !json) {
            Some(columns) => Ok(writeln!(self.out, "{}", folded(&result.to_string(), columns))?),
            None => self.print(result, json),
        }
    }

    /// As [`Self::print`], of what a run did, whose bars are as long as fit a terminal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn print_summary(&mut self, summary: &Summary, json: bool) -> Result<()> {
        match terminal_columns().filter(|_| !json) {
            Some(columns) => Ok(writeln!(self.out, "{}", summary.fitted(columns))?),
            None => self.print(summary, json),
        }
    }

    /// Prints a command's result as one JSON object.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print_json(&mut self, result: &impl Serialize) -> Result<()> {
        serde_json::to_writer_pretty(&mut *self.out, result).map_err(std::io::Error::from)?;
        Ok(writeln!(self.out)?)
    }

    /// Has the calling thread do its share of its computations, on a pool of its own with as many threads as [`Self::use_threads`] set; to
    /// be called where no other thread computes at the same time. Without this, every computation would be handed to another thread and
    /// waited for: two changes of context each, thousands of times a second for a small model.
    ///
    /// # Errors
    /// When the machine cannot start as many.
    pub fn compute_here(&self) -> Result<()> {
        if rayon::current_thread_index().is_some() {
            return Ok(());
        }
        let threads = rayon::current_num_threads();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
        // Its threads end when it is dropped, but this thread stays its member as long as it lives.
        pool.map(std::mem::forget).map_err(|e| Error::thread(&e))
    }

    /// Progress on standard error.
    pub fn progress(&self) -> Progress {
        Progress::on_stderr(self.style, self.clock.clone())
    }
}

/// The columns of the terminal that standard output is; none where it is no terminal.
fn terminal_columns() -> Option<usize> {
    let terminal = Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1))
}
