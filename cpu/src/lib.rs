//! A logical processor: decode → op cache → execution; memory access, events, system instructions, and the seam
//! to VMX and SVM.
//!
//! The way of an instruction: guest bytes → [`decode`] → [`op::Op`]s in a block of the [`cache::CodeCache`] → handler after
//! handler (see [`dispatch`]) → block end → the next block, or back to [`run`].
#![deny(unsafe_op_in_unsafe_fn)]

pub mod dispatch;

pub mod a20;
pub mod access;
pub mod apic;
mod boundary;
mod bulk;
pub mod cache;
pub mod cpu;
pub mod cpuid;
pub mod debug;
pub mod debugger;
pub mod decode;
pub mod events;
pub mod exec;
pub mod float;
pub mod hot;
mod hypercall;
pub mod inspect;
mod lock;
mod memory_type;
pub mod model;
pub mod monitor;
pub mod msr;
pub mod observe;
pub mod op;
pub mod operand;
pub mod paging;
pub mod performance;
pub mod reset;
pub mod run;
pub mod segments;
pub mod signal;
pub mod simd;
#[cfg(test)]
mod system_tests;
pub mod task;
#[cfg(test)]
mod testing;
pub mod time;
pub mod virt;

pub use boundary::Notes;
pub use cpu::{Cpu, Exec, Shared, Stop};
