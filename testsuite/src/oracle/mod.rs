//! The host's processor as an oracle: random user-mode instructions run natively and in undervisor, and registers, flags,
//! memory, vector and x87 state, and faults must agree bit for bit.
//!
//! - [`generate`]: from instruction table to instructions; [`values`]: operands worth trying.
//! - [`native`]: runs a test on the host's processor. The one module here with `unsafe`.
//! - [`guest`]: runs it in undervisor.
//! - [`compare`]: what must agree, what the architecture leaves undefined.

pub mod compare;
pub mod generate;
pub mod guest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod native;
pub mod state;
pub mod values;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod campaign;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use campaign::{Campaign, run};

/// Options of the command.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long to run
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Seed of the first test; the others follow from it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only instructions whose mnemonic contains this (several: separated by commas)
    #[arg(long, default_value = "")]
    pub filter: String,
    /// Only single instructions, no sequences
    #[arg(long)]
    pub single: bool,
    /// Mismatches to print in full per mnemonic
    #[arg(long, default_value_t = 1)]
    pub show: usize,
    /// Print counts for every mnemonic
    #[arg(long)]
    pub coverage: bool,
}

/// There is no oracle on this host.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn run(_: &Options) -> std::process::ExitCode {
    eprintln!("the oracle needs an x86-64 Linux host");
    std::process::ExitCode::FAILURE
}
