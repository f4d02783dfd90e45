//! The one binary: reads the command line, hands over to a role or a tool, and turns what comes back into an
//! exit code (0 done, 1 failed, 2 asked for something that can't be).

mod agent;
mod cli;
mod commands;
mod config;
mod mirror;
mod ops;
mod roles;
mod telemetry;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(cli::Exit::Usage(error)) => error.exit(),
        Err(cli::Exit::Sentence(sentence)) => return refuse(&sentence),
    };
    let outcome = match command {
        cli::Command::Serve(options) => roles::serve(*options),
        cli::Command::Coordinator(options) => roles::coordinate(*options),
        cli::Command::Mirror(options) => mirror::run(&options).map_err(roles::Refusal::new),
        cli::Command::Agent(options) => agent::run(&options).map_err(roles::Refusal::new),
        cli::Command::DumpConfig(text) => {
            print(&text);
            Ok(ExitCode::SUCCESS)
        }
        cli::Command::Tool(tool) => run_tool(tool),
    };
    outcome.unwrap_or_else(|refusal| refuse(&refusal.to_string()))
}

/// Tools are short-lived: one worker thread beside the caller's is plenty for all of them but `perf`.
fn run_tool(tool: tools::Tool) -> Result<ExitCode, roles::Refusal> {
    telemetry::start_for_tool();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| roles::Refusal::new(format!("can't start the runtime: {error}")))?;
    let code = runtime.block_on(tools::run(tool));
    // A tool that reads stdin leaves a blocked thread behind: don't wait for the user's next line.
    runtime.shutdown_background();
    Ok(code)
}

fn refuse(sentence: &str) -> ExitCode {
    telemetry::complain(sentence);
    ExitCode::from(2)
}

#[expect(clippy::print_stdout, reason = "the one place where the binary prints its configuration")]
fn print(text: &str) {
    print!("{text}");
}
