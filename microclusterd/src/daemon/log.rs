//! The daemon's log: to standard error or a file, as text or as JSON.

mod file;

use std::env::VarError;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context as _;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

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
        let targets = self.targets()?;
        let levels = targets.iter().map(|(_, level)| level).chain(targets.default_level());
        let log = tracing_subscriber::fmt().with_max_level(levels.max().unwrap_or(LevelFilter::OFF));
        let Some(path) = &self.log_file else {
            let log = log.with_writer(io::stderr);
            match self.log_format {
                LogFormat::Json => log.json().finish().with(targets).init(),
                LogFormat::Text => {
                    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                    log.with_ansi(io::stderr().is_terminal() && !unwanted).finish().with(targets).init();
                }
            }
            return Ok(None);
        };
        let file = LogFile::open(path).with_context(|| format!("cannot open the log file {}", path.display()))?;
        let log = log.with_writer(file.clone()).with_ansi(false);
        match self.log_format {
            LogFormat::Json => log.json().finish().with(targets).init(),
            LogFormat::Text => log.finish().with(targets).init(),
        }
        Ok(Some(file))
    }

    fn targets(&self) -> anyhow::Result<Targets> {
        match std::env::var("MICROCLUSTERD_LOG") {
            Ok(levels) if !levels.is_empty() => parse(&levels),
            Err(error @ VarError::NotUnicode(_)) => Err(error).context("MICROCLUSTERD_LOG cannot be read"),
            _ => parse(self.levels()),
        }
    }

    /// Raft's own log is quieter than ours: what it calls news is detail here, and of a member that cannot be reached it writes forty lines
    /// a second.
    fn levels(&self) -> &'static str {
        match (self.debug, self.verbose) {
            (true, _) => "debug,openraft=info,hyper=info,h2=info,rustls=info",
            (false, true) => "info,openraft=error,openraft::replication=off",
            (false, false) => "warn,openraft=error,openraft::replication=off",
        }
    }
}

/// Levels, target by target.
fn parse(levels: &str) -> anyhow::Result<Targets> {
    let wanted = || {
        format!(
            "MICROCLUSTERD_LOG is {levels:?}: wanted are levels such as `info` or `microcluster=debug,openraft=off`"
        )
    };
    // It would be read as the name of a target that nothing has.
    anyhow::ensure!(!levels.contains(['[', '{']), "{}; spans are not looked at", wanted());
    levels.parse().with_context(wanted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_read_target_by_target() {
        let targets = parse("warn,microcluster=debug,openraft=off").unwrap();
        assert!(targets.would_enable("microcluster::db", &Level::DEBUG));
        assert!(!targets.would_enable("hyper", &Level::INFO));
        assert!(!targets.would_enable("openraft::core", &Level::ERROR));
        let refused = format!("{:#}", parse("microcluster=loud").unwrap_err());
        assert!(refused.contains("microcluster=loud"), "{refused}");
        let refused = format!("{:#}", parse("[member]=debug").unwrap_err());
        assert!(refused.contains("spans"), "{refused}");
    }
}
