//! The daemon's log: to standard error or a file, as text or as JSON.

mod file;

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context as _;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

pub(super) use file::LogFile;

/// What is logged and how.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// Log as text or as JSON, an object a line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", env = "MICROCLUSTERD_LOG_FORMAT")]
    log_format: LogFormat,
    /// Log into this file, not to standard error. HUP has it opened again, for whoever rotates logs
    #[arg(long, value_name = "FILE", env = "MICROCLUSTERD_LOG_FILE")]
    log_file: Option<PathBuf>,
    /// Log changes of state too
    #[arg(short, long, env = "MICROCLUSTERD_VERBOSE", value_parser = FalseyValueParser::new())]
    verbose: bool,
    /// Log everything
    #[arg(short, long, env = "MICROCLUSTERD_DEBUG", value_parser = FalseyValueParser::new())]
    debug: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Log {
    /// Sets up the log of the process, and returns the file that it goes to. `MICROCLUSTERD_LOG` overrides the level, target by
    /// target.
    pub(super) fn init(&self) -> anyhow::Result<Option<LogFile>> {
        let filter = EnvFilter::try_from_env("MICROCLUSTERD_LOG").unwrap_or_else(|_| EnvFilter::new(self.filter()));
        let log = tracing_subscriber::fmt().with_env_filter(filter);
        let Some(path) = &self.log_file else {
            let log = log.with_writer(io::stderr);
            match self.log_format {
                LogFormat::Json => log.json().init(),
                LogFormat::Text => {
                    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                    log.with_ansi(io::stderr().is_terminal() && !unwanted).init();
                }
            }
            return Ok(None);
        };
        let file = LogFile::open(path).with_context(|| format!("cannot open the log file {}", path.display()))?;
        let log = log.with_writer(file.clone()).with_ansi(false);
        match self.log_format {
            LogFormat::Json => log.json().init(),
            LogFormat::Text => log.init(),
        }
        Ok(Some(file))
    }

    /// Raft's own log is a level quieter than ours: what it calls news is detail here.
    fn filter(&self) -> &'static str {
        match (self.debug, self.verbose) {
            (true, _) => "debug,openraft=info,hyper=info,h2=info,rustls=info",
            (false, true) => "info,openraft=warn",
            (false, false) => "warn",
        }
    }
}
