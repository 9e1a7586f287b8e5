//! The reference daemon and the command line, as a library: a product's own programs take from it
//! what they need.
//!
//! [`cli::Command`] holds the commands that every microcluster daemon answers to. A product flattens
//! it into its own clap command line and runs it with a [`cli::Context`]:
//!
//! ```no_run
//! use clap::{Parser, Subcommand};
//! use microclusterd::cli;
//!
//! #[derive(Parser)]
//! struct ProductCtl {
//!     #[command(flatten)]
//!     context: cli::Context,
//!     #[command(subcommand)]
//!     command: ProductCommand,
//! }
//!
//! #[derive(Subcommand)]
//! enum ProductCommand {
//!     #[command(flatten)]
//!     Cluster(cli::Command),
//!     /// What the product adds.
//!     Hello,
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let product = ProductCtl::parse();
//!     cli::block_on(async move {
//!         match product.command {
//!             ProductCommand::Cluster(command) => command.run(&product.context).await,
//!             ProductCommand::Hello => Ok(println!("hello")),
//!         }
//!     })
//! }
//! ```

pub mod cli;
pub mod daemon;
