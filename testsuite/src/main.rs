//! The command `undervisor-testsuite`.

use clap::{Parser, Subcommand};
use undervisor_testsuite::virtualization::second_opinion;
use undervisor_testsuite::{bench, oracle};

/// Conformance tests and benchmarks of undervisor.
#[derive(Parser)]
#[command(version, about)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Random user-mode instructions on the host's processor and in undervisor: both must agree (x86-64 Linux only)
    Oracle(oracle::Options),
    /// Speed, against other emulators
    Bench(bench::Options),
    /// VM exits and entry checks as the manuals have them, here and in Bochs and QEMU: who differs where
    SecondOpinion(second_opinion::Options),
}

fn main() -> std::process::ExitCode {
    match Options::parse().command {
        Command::Oracle(options) => oracle::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::SecondOpinion(options) => second_opinion::run(&options),
    }
}
