//! Why a machine stopped, and the exit status that stands for it.

use std::fmt;

/// Why [`crate::Machine::run`] returned.
///
/// Statuses of ours are even, so that none collides with one from `isa-debug-exit`, which are always odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest switched the power off. Status 0.
    PowerOff,
    /// The guest wrote this value to `isa-debug-exit`. Status `value << 1 | 1`.
    DebugExit(u32),
    /// A processor shut down. Status 4.
    TripleFault { cpu: usize, cs: u16, rip: u64 },
    /// The limit on instructions was reached. Status 6.
    InstructionLimit(u64),
    /// The host program asked (`Host::poll` or `Host::idle` said so). Status 8 if that was a time limit; the caller knows.
    Host,
    /// Every processor waits and nothing can wake any of them. Status 10.
    Halted,
    /// The guest asked for a reset, and [`crate::MachineConfig::reboot`] is off. Status 12.
    Reset,
    /// What the debugger waits for has happened on a processor; running goes on from there. Not an end: status 8.
    Debugger { cpu: usize },
}

/// Exit statuses for what is not a [`StopReason`].
pub mod status {
    /// A bad image, option or device: nothing ran.
    pub const BAD_CONFIGURATION: u8 = 14;
    /// The host's time limit was reached.
    pub const TIME_LIMIT: u8 = 8;
}

impl StopReason {
    /// The process exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            StopReason::PowerOff => 0,
            StopReason::DebugExit(value) => (value << 1 | 1) as u8,
            StopReason::TripleFault { .. } => 4,
            StopReason::InstructionLimit(_) => 6,
            StopReason::Host => status::TIME_LIMIT,
            StopReason::Halted => 10,
            StopReason::Reset => 12,
            StopReason::Debugger { .. } => status::TIME_LIMIT,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::PowerOff => write!(f, "the guest powered off"),
            StopReason::DebugExit(v) => write!(f, "the guest wrote {v:#x} to isa-debug-exit"),
            StopReason::TripleFault { cpu, cs, rip } => {
                write!(f, "triple fault on processor {cpu} at {cs:#x}:{rip:#x}")
            }
            StopReason::InstructionLimit(n) => write!(f, "limit of {n} instructions reached"),
            StopReason::Host => write!(f, "stopped from outside"),
            StopReason::Halted => write!(f, "all processors are halted and nothing can wake them"),
            StopReason::Reset => write!(f, "the guest asked for a reset"),
            StopReason::Debugger { cpu } => write!(f, "processor {cpu} stopped for the debugger"),
        }
    }
}
