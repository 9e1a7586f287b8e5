//! `microctl completions` and `microctl man`.

use clap::builder::StyledStr;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Microctl;
use super::output::print;

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Microctl::command(), "microctl", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}

/// Prints the manual: the page of `microctl` and a section for each command.
pub fn man() -> anyhow::Result<()> {
    let mut command = Microctl::command();
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
