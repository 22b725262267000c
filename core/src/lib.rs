//! The architecture's vocabulary: registers, control bits, segments, MSR numbers, events, and the whole
//! architectural state of one logical processor. Names and layouts only; behaviour lives in the other crates.
#![forbid(unsafe_code)]

pub mod apic;
pub mod bits;
pub mod describe;
pub mod event;
pub mod flags;
pub mod intercept;
pub mod model;
pub mod msr;
pub mod performance;
pub mod regs;
pub mod segment;
pub mod state;
pub mod svm_features;
pub mod vmx_features;
pub mod xsave;

pub use bits::{Cr0, Cr4, DEBUGCTL_BUS_LOCK_DETECT, Dr6, Dr7, Efer, Rflags};
pub use event::{Event, EventKind, Exception, Vector};
pub use flags::{FlagKind, LazyFlags};
pub use intercept::Intercept;
pub use model::{Feature, Model};
pub use performance::Performance;
pub use segment::{SegReg, Segment, TableReg};
pub use state::{Activity, CpuState, F80, Msrs, Shadow, Vec512, Vendor, X87};
pub use svm_features::SvmFeatures;
pub use vmx_features::VmxFeatures;
