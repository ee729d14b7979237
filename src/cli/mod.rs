//! The command line: from words to verbs, and from results to text and exit codes.
//!
//! - In: arguments, the environment, the project folder.
//! - Out: data on stdout; progress, logs, notes and errors on stderr; an exit code that tells a scheduler what to do.
//! - It does not know: how a verb's work is done. A verb's file parses its arguments, calls the library, shows the result.
//!
//! One file per verb. **Nothing but `output` writes to stdout**, so that a reader who closes the pipe ends the program
//! quietly, and a table, a file and a pipe are written by the same code.

pub mod backfill;
pub mod check;
pub mod configuration;
pub mod demo;
mod diff;
pub mod discover;
pub mod drop;
pub mod init;
mod lake;
pub mod maintain;
pub mod offsets;
pub mod output;
pub mod plan;
pub mod progress;
pub mod query;
pub mod rejected;
pub mod report;
pub mod run;
pub mod signals;
pub mod sql;
pub mod status;
pub mod tables;
pub mod verify;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::clock::Clock;
use crate::config::{Config, Environment};
use crate::error::{Error, Result};
use crate::memory;
use crate::telemetry::{self, LogFormat, PastBars};
use output::Stdout;
use progress::Progress;
use signals::Signals;

const AFTER_HELP: &str = "\
Exit codes:
  0  done, also when there was nothing to do
  1  failed
  2  usage or configuration: mend it and try again
  3  something was unavailable; a retry may help
  4  a quality rule or an audit failed
  130, 143  ended by Ctrl-C or SIGTERM

Data goes to stdout, everything else to stderr.";

/// Change events from Kafka to Iceberg bronze, silver and gold tables, exactly once.
#[derive(Debug, Parser)]
#[command(name = "icestream", version, after_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The project folder, the one with `icestream.yaml` [env: ICESTREAM_PROJECT] [default: the current folder]
    #[arg(long, global = true, value_name = "DIR")]
    pub project: Option<PathBuf>,

    /// Override one setting, such as `commit.every=5s`; can be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as `info,icestream::table=debug`
    /// [env: ICESTREAM_LOG] [default: warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<String>,

    /// How log lines look [env: ICESTREAM_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// No progress bars and no notes; only results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Colors in messages and logs
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Demo(demo::DemoArgs),
    Init(init::InitArgs),
    Discover(discover::DiscoverArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Run(run::RunArgs),
    Ingest(run::IngestArgs),
    Build(run::BuildArgs),
    Backfill(backfill::BackfillArgs),
    Status(status::StatusArgs),
    Verify(verify::VerifyArgs),
    Rejected(rejected::RejectedArgs),
    Offsets(offsets::OffsetsArgs),
    Query(query::QueryArgs),
    Sql(sql::SqlArgs),
    Tables(tables::TablesArgs),
    Drop(drop::DropArgs),
    Maintain(maintain::MaintainArgs),
    Config(configuration::ConfigArgs),
}

impl Verb {
    /// What is logged when nobody asked for anything: a verb somebody waits for shows its result, not its way there; one
    /// that runs unattended says what it commits.
    fn level(&self) -> &'static str {
        match self {
            Verb::Ingest(_) | Verb::Build(_) | Verb::Run(_) | Verb::Maintain(_) | Verb::Backfill(_) => "info",
            // The shop breaks rules on purpose, and the demo ends with what became of that.
            Verb::Demo(_) => "error,icestream=warn,icestream::quality=error",
            _ => "warn",
        }
    }
}

/// How a verb that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It ran to its end, and what it was to show does not hold.
    Failed,
    /// Somebody ended it, with this signal.
    Interrupted(u8),
}

impl Outcome {
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            // What a shell says of a program that a signal ended.
            Outcome::Interrupted(signal) => 128 + signal,
        }
    }
}

/// What every verb is given besides its own arguments.
#[derive(Debug, Clone)]
pub struct Context {
    /// The folder of `--project`, or the current one.
    pub project: PathBuf,
    /// The texts of `--set`.
    pub assignments: Vec<String>,
    pub environment: Environment,
    pub clock: Clock,
    pub stdout: Stdout,
    pub progress: Progress,
    pub quiet: bool,
    pub signals: Signals,
}

impl Context {
    pub fn new(global: &Global, environment: Environment, signals: Signals) -> Self {
        let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        Context {
            project: global
                .project
                .clone()
                .or_else(|| variable("ICESTREAM_PROJECT").map(PathBuf::from))
                .unwrap_or_else(|| PathBuf::from(".")),
            assignments: global.set.clone(),
            clock: Clock::system(),
            stdout: Stdout::of_process(&environment),
            progress: Progress::new(!global.quiet && std::io::stderr().is_terminal()),
            quiet: global.quiet,
            environment,
            signals,
        }
    }

    /// The project's configuration.
    pub fn config(&self) -> Result<Config> {
        Ok(Config::load(&self.project, &self.environment, &self.assignments)?)
    }

    /// Tells the person something that is not data.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.progress.line(text);
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    report::catch_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout, a usage error to stderr; either may be closed already.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let environment: Environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let color = match cli.global.color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            std::io::stderr().is_terminal() && environment.get("NO_COLOR").is_none_or(String::is_empty)
        }
    };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| start(cli, environment, color)));
    match ended {
        Ok(Ok(outcome)) => {
            if let Outcome::Interrupted(_) = outcome {
                report::print_interrupted(color);
            }
            ExitCode::from(outcome.exit_code())
        }
        Ok(Err(error)) => {
            report::print(&error, color);
            ExitCode::from(error.kind().exit_code())
        }
        // The hook has told the person already.
        Err(_) => ExitCode::from(crate::error::Kind::Bug.exit_code()),
    }
}

fn start(cli: Cli, environment: Environment, color: bool) -> Result<Outcome> {
    let runtime = memory::runtime(None).map_err(|source| Error::from(report::StartError { source }))?;
    let ended = runtime.block_on(async {
        let context = Context::new(&cli.global, environment, Signals::listen());
        // Charts and compose files pass on variables that nobody set as empty ones.
        let variable = |name: &str| context.environment.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let filter = cli.global.log.as_deref().or_else(|| variable("ICESTREAM_LOG"));
        let format = match (cli.global.log_format, variable("ICESTREAM_LOG_FORMAT")) {
            (Some(format), _) => format,
            (None, Some(text)) => text.parse()?,
            (None, None) => LogFormat::default(),
        };
        telemetry::init(filter, cli.verb.level(), format, color, PastBars(context.progress.bars()))?;
        tokio::select! {
            // A verb that is dropped takes its half-written files with it, and leaves of a commit what `kill -9` would.
            biased;
            signal = context.signals.unheeded() => Ok(Outcome::Interrupted(signal)),
            ended = perform(cli.verb, &context) => ended,
        }
    });
    // A reader that hangs in a system call must not keep the program from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}

/// Runs one verb.
pub async fn perform(verb: Verb, context: &Context) -> Result<Outcome> {
    match verb {
        Verb::Demo(args) => demo::run(args, context).await,
        Verb::Init(args) => init::run(args, context).await,
        Verb::Discover(args) => discover::run(args, context).await,
        Verb::Check(args) => check::run(args, context, lake::reach).await,
        Verb::Plan(args) => plan::run(args, context).await,
        Verb::Sql(args) => sql::run(args, context).await,
        Verb::Query(args) => query::run(args, context).await,
        Verb::Status(args) => status::run(args, context).await,
        Verb::Verify(args) => verify::run(args, context).await,
        Verb::Rejected(args) => rejected::run(args, context).await,
        Verb::Offsets(args) => offsets::run(args, context).await,
        Verb::Tables(args) => tables::run(args, context).await,
        Verb::Drop(args) => drop::run(args, context).await,
        Verb::Maintain(args) => maintain::run(args, context).await,
        Verb::Ingest(args) => run::ingest(args, context).await,
        Verb::Build(args) => run::build(args, context).await,
        Verb::Backfill(args) => backfill::run(args, context).await,
        Verb::Run(args) => run::run(args, context).await,
        Verb::Config(args) => configuration::run(args, context).await,
    }
}

#[cfg(test)]
mod tests;
