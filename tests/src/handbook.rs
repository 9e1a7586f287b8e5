//! The programs in the handbook, as tests. Here, as the handbook is not in the packages of the crates that they are for.

#[doc = include_str!("../../doc/product.md")]
struct Product;
#[doc = include_str!("../../doc/hooks.md")]
struct Hooks;
#[doc = include_str!("../../doc/servers.md")]
struct Servers;
#[doc = include_str!("../../doc/database.md")]
struct Database;
#[doc = include_str!("../../doc/client.md")]
struct Client;
#[doc = include_str!("../../doc/command-line.md")]
struct CommandLine;
