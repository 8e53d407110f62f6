//! The command line: one file a subcommand. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no agent reachable.

mod ca;
mod certs;
mod check;
mod completions;
mod config;
mod connections;
mod endpoints;
mod explain;
mod failure;
mod log_level;
mod output;
mod policies;
mod reach;
mod release;
mod routes;
mod run;
mod services;
mod status;
mod support_bundle;
mod table;
mod tap;
#[cfg(test)]
mod tests;
mod units;
mod version;
mod watch;
mod workloads;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};

use failure::Failure;
use output::{Format, Screen};

/// Covet Mesh: the node agent and its inspector.
#[derive(Debug, Parser)]
#[command(
    name = "mesh-agent",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no agent reachable.",
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Name of the node whose agent is meant [default: run: the host's name; others: the only one that runs here]
    #[arg(long, global = true, value_name = "NAME", value_parser = reach::node_name)]
    node: Option<String>,
    /// Admin socket [default: /run/mesh-agent/NODE.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    output: Format,
    /// Only this namespace
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says whether this machine can run the agent, and what is missing
    Check(check::Check),
    /// Runs the agent in the foreground
    Run(Box<run::Run>),
    /// Shows how the agent is
    Status,
    /// Lists workloads: enrolled, or why not
    Workloads,
    /// Lists services and (-o wide) their endpoints
    Services,
    /// Lists the endpoints of a service: load, latency, breaker, health, last error
    Endpoints(endpoints::Endpoints),
    /// Lists routes: what is bound in the order of precedence, what was rejected and why
    Routes(routes::Routes),
    /// Lists the identities of this node with their certificates, and whom it trusts
    Certs,
    /// Lists authorization policies: what applies to whom, in effect or dry run
    Policies(policies::Policies),
    /// Says what would happen to a connection, and why
    Explain(explain::Explain),
    /// Lists connections, open or closed
    Connections(connections::Connections),
    /// Shows requests live, as they end
    Tap(tap::Tap),
    /// Checks a configuration directory, or shows the configuration in effect
    #[command(subcommand)]
    Config(config::Config),
    /// Shows or changes what the agent logs
    LogLevel(log_level::LogLevel),
    /// Gathers what a bug report needs, redacted, into a tar file
    SupportBundle(support_bundle::SupportBundle),
    /// Removes everything the agent made in the kernel, and says what that was
    Release(release::Release),
    /// A certificate authority for a mesh without Kubernetes
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Prints a completion script
    Completions(completions::Completions),
    /// Prints the version
    Version,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // Nowhere to report that the terminal is gone.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let screen = Screen::detect();
    let global = cli.global;
    match cli.command {
        Command::Run(run) => run.execute(&global),
        Command::Check(check) => check.execute(&global, &screen),
        Command::Ca(ca) => ca.execute(&global, &screen),
        Command::Config(config::Config::Validate(validate)) => validate.execute(&global, &screen),
        Command::Completions(completions) => completions.execute(&screen, &mut Cli::command()),
        Command::Version => version::execute(&global, &screen),
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(ask(command, &global, &screen)),
    }
}

/// The commands that talk to an agent.
async fn ask(command: Command, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    match command {
        Command::Status => status::execute(global, screen).await,
        Command::Workloads => workloads::execute(global, screen).await,
        Command::Services => services::execute(global, screen).await,
        Command::Endpoints(endpoints) => endpoints.execute(global, screen).await,
        Command::Routes(routes) => routes.execute(global, screen).await,
        Command::Certs => certs::execute(global, screen).await,
        Command::Policies(policies) => policies.execute(global, screen).await,
        Command::Explain(explain) => explain.execute(global, screen).await,
        Command::Connections(connections) => connections.execute(global, screen).await,
        Command::Tap(tap) => tap.execute(global, screen).await,
        Command::Config(_) => config::dump(global, screen).await,
        Command::LogLevel(level) => level.execute(global, screen).await,
        Command::SupportBundle(bundle) => bundle.execute(global, screen).await,
        Command::Release(release) => release.execute(global, screen).await,
        Command::Run(_)
        | Command::Ca(_)
        | Command::Check(_)
        | Command::Completions(_)
        | Command::Version => Err(Failure::new("this command needs no agent")),
    }
}
