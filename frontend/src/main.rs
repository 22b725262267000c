//! The command `undervisor`.
#![forbid(unsafe_code)]

mod console;
mod cpu_info;
mod demo;
mod disks;
mod error;
mod gdb;
mod observe;
mod options;
mod run;
mod session;
mod stats;
mod test;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use options::{Command, CpuCommand, DemoOptions, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    start_log(options.verbose);
    let result = match &options.command {
        None => demo::run(&DemoOptions::default()),
        Some(Command::Demo(o)) => demo::run(o),
        Some(Command::Run(o)) => run::run(o),
        Some(Command::Explain(o)) => observe::codes::run(o),
        Some(Command::Report(o)) => observe::report::run(o),
        Some(Command::Cpu { command: CpuCommand::List }) => cpu_info::list(),
        Some(Command::Cpu { command: CpuCommand::Show { name } }) => cpu_info::show(name),
        Some(Command::Test(o)) => test::run(o),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("undervisor: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let environment = env_logger::Env::new().filter("UNDERVISOR_LOG");
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(level).format_timestamp(None);
    if verbose == 0 {
        builder.parse_env(environment);
    }
    builder.init();
}
