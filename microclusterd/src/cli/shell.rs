//! `completions` and `man`, of `microctl` or of a product's own command line.

use clap::builder::StyledStr;
use clap::{Args, Command, CommandFactory, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use super::output::print;

/// What a command line says of itself, all its commands included. A product's own has it with one line.
///
/// ```no_run
/// use clap::{Parser, Subcommand};
/// use microclusterd::cli;
///
/// /// Use and control a fleet
/// #[derive(Parser)]
/// #[command(name = "fleetctl")]
/// struct Fleetctl {
///     #[command(flatten)]
///     context: cli::Context,
///     #[command(subcommand)]
///     command: FleetCommand,
/// }
///
/// #[derive(Subcommand)]
/// enum FleetCommand {
///     #[command(flatten)]
///     Cluster(cli::Command),
///     #[command(flatten)]
///     Shell(cli::ShellCommand),
/// }
///
/// fn main() -> std::process::ExitCode {
///     let Fleetctl { context, command } = Fleetctl::parse();
///     cli::block_on(async move {
///         match command {
///             FleetCommand::Cluster(command) => command.run(&context).await,
///             FleetCommand::Shell(command) => command.run::<Fleetctl>(),
///         }
///     })
/// }
/// ```
#[derive(Debug, Subcommand)]
pub enum ShellCommand {
    /// Print the completions for a shell
    Completions(Completions),
    /// Print the manual page
    Man,
}

/// For which shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl ShellCommand {
    /// Prints it, for the command line `C`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn run<C: CommandFactory>(self) -> anyhow::Result<()> {
        match self {
            ShellCommand::Completions(Completions { shell }) => completions(C::command(), shell),
            ShellCommand::Man => man(C::command()),
        }
    }
}

fn completions(mut command: Command, shell: Shell) -> anyhow::Result<()> {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Prints the manual: the page of the whole and a section for each command.
fn man(mut command: Command) -> anyhow::Result<()> {
    command.build();
    let page = Man::new(command.clone()).manual("microcluster");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let mut text = String::from_utf8(text)?;
    for subcommand in command.get_subcommands_mut() {
        describe(subcommand, &mut text);
    }
    print(&text)
}

/// Appends a section for a command, or for each of the commands under it.
fn describe(command: &mut Command, text: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    if command.has_subcommands() {
        command.get_subcommands_mut().for_each(|command| describe(command, text));
        return;
    }
    let name = command.get_bin_name().unwrap_or_default().to_owned();
    let help: StyledStr = command.render_long_help();
    text.push_str(&format!(".SH \"{}\"\n.nf\n", name.to_uppercase()));
    for line in help.to_string().lines() {
        text.push_str(&roff(line));
        text.push('\n');
    }
    text.push_str(".fi\n");
}

/// A line that roff takes as it is.
fn roff(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}
