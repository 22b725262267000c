//! What can go wrong on the host's side.

use std::path::PathBuf;

use thiserror::Error;
use undervisor_mmu::MemoryError;

/// A machine could not be built. Messages say what was tried, why it failed, and what helps.
#[derive(Debug, Error)]
pub enum MachineError {
    #[error("memory of {0} bytes: must be at least 1 MiB and a multiple of 4 KiB; try --memory 512M")]
    BadMemory(u64),
    #[error("memory of {asked} bytes is more than this host has ({host} bytes); try a smaller --memory")]
    MoreThanHost { asked: u64, host: u64 },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("{0} processors: must be 1 to 64")]
    BadCpuCount(usize),
    #[error("{count} PCI devices: the bus has room for {most}")]
    TooManyDevices { count: usize, most: usize },
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// An image could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{name}: the file is empty")]
    Empty { name: String },
    #[error(
        "{name}: not a kernel that can be booted ({found}); give a Linux bzImage, a multiboot or PVH ELF, an ELF executable for x86, \
         or a flat binary"
    )]
    UnknownFormat { name: String, found: &'static str },
    #[error("{name}: truncated: {what} needs {needed} bytes, the file has {have}")]
    Truncated { name: String, what: &'static str, needed: u64, have: u64 },
    #[error("{name}: bad {format} header: {why}")]
    BadHeader { name: String, format: &'static str, why: String },
    #[error(
        "{what} ({size} bytes at {address:#x}) does not fit into memory (RAM there ends at {end:#x}); try a larger --memory"
    )]
    DoesNotFit { what: String, address: u64, size: u64, end: u64 },
    #[error("{what} of {size} bytes does not fit between the kernel (ends at {from:#x}) and {limit:#x}; try a larger --memory")]
    NoRoom { what: String, size: u64, from: u64, limit: u64 },
    #[error("command line of {length} bytes: this kernel takes at most {most}")]
    CommandLineTooLong { length: usize, most: usize },
    #[error("firmware of {0} bytes: must be 64 KiB to 16 MiB and a multiple of 4 KiB")]
    BadFirmwareSize(usize),
    #[error("{0} takes no {1}; {2}")]
    NotSupported(&'static str, &'static str, &'static str),
}
