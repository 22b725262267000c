//! What ends a command early, and the exit code that stands for it.

use std::path::PathBuf;

use thiserror::Error;
use undervisor_machine::{LoadError, MachineError, status};

/// The host failed.
pub const HOST_ERROR: u8 = 16;
/// Some test failed.
pub const TEST_FAILED: u8 = 18;

/// A command could not do its work.
#[derive(Debug, Error)]
pub enum Failure {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("--cpu: {0}")]
    Cpu(String),
    #[error("--disk {spec}: {why}")]
    Disk { spec: String, why: String },
    #[error("--{option} {value}: {why}")]
    Option { option: &'static str, value: String, why: String },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {why}", path.display())]
    Config { path: PathBuf, line: usize, why: String },
    #[error("terminal: {0}")]
    Terminal(std::io::Error),
}

impl Failure {
    /// The process exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Machine(MachineError::Memory(_)) | Failure::Write { .. } | Failure::Terminal(_) => HOST_ERROR,
            _ => status::BAD_CONFIGURATION,
        }
    }
}
