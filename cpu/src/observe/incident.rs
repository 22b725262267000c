//! What is remembered of something that failed: enough to explain it without the machine.

use undervisor_core::describe::Layout;
use undervisor_core::{CpuState, Event, Exception};

use super::provenance::Written;
use super::want;
use crate::cpu::Cpu;

/// Why something failed.
#[derive(Clone, Debug)]
pub enum What {
    /// A VM-entry check or a VMRUN consistency check.
    Check {
        name: &'static str,
        /// Title of the manual's section.
        section: &'static str,
        rule: &'static str,
        /// VM-instruction error (7, 8), exit reason, or exit code.
        number: u64,
        qualification: u64,
    },
    /// Loading an MSR from the VM-entry MSR-load area.
    MsrLoad { entry: u64, msr: u32, value: u64, address: u64 },
    /// VMfailInvalid (no number) or VMfailValid.
    VmFail { instruction: &'static str, number: Option<u32>, operand: Option<u64> },
    /// A fault while delivering a double fault. `chain`: the faults before, in order.
    TripleFault { chain: Vec<Link>, exits: bool },
    /// A VMX or SVM instruction of level 1 raised #UD or #GP: the processor is not set up for it. `why`: every reason found.
    Refused { instruction: &'static str, vector: u8, why: Vec<&'static str> },
    /// VMX abort: the processor shuts down. AMD: #VMEXIT found the host's PDPTEs invalid (indicator 2).
    Abort { indicator: u32 },
}

/// A fault in the delivery of an event.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub event: Event,
    /// What went wrong while it was being delivered.
    pub fault: Exception,
    pub rip: u64,
    /// The gate of the event in the IDT, as far as it is mapped.
    pub gate: [u8; 16],
    pub gate_bytes: usize,
}

/// A field of a VMCS or VMCB at the time.
#[derive(Clone, Copy, Debug)]
pub struct FieldPicture {
    pub name: &'static str,
    pub value: u64,
    pub layout: Layout,
    pub meaning: Option<&'static str>,
    pub written: Written,
    /// VMCB: memory holds this, but a clean bit made the processor use the cached value.
    pub memory: Option<u64>,
    /// Bits that must be one, bits that may be, and who says so.
    pub allowed: Option<(u64, u64, &'static str)>,
}

/// One bit whose change would have made the check pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    pub field: &'static str,
    pub bit: u8,
    pub bit_name: Option<&'static str>,
    pub set: bool,
}

/// Something that failed, with the picture of the level at fault.
#[derive(Clone, Debug)]
pub struct Incident {
    pub what: What,
    pub cpu: usize,
    /// The level whose software is at fault.
    pub level: u8,
    /// Virtual time.
    pub now: u64,
    /// RIP of the instruction that failed.
    pub rip: u64,
    pub amd: bool,
    /// Address of the VMCS or VMCB.
    pub structure: Option<u64>,
    /// The field that the check names, then others that have a say.
    pub fields: Vec<FieldPicture>,
    pub remedies: Vec<Remedy>,
    pub state: Box<CpuState>,
    /// Width of code: 16, 32 or 64.
    pub bits: u32,
    /// Bytes at RIP.
    pub code: Vec<u8>,
    /// Words from the top of the stack on: address, value. Words of `bits`.
    pub stack: Vec<(u64, u64)>,
}

/// What makes two failures the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cause {
    pub name: &'static str,
    pub number: u64,
    pub rip: u64,
}

impl What {
    fn cause(&self, rip: u64) -> Cause {
        let (name, number) = match self {
            What::Check { name, number, .. } => (*name, *number),
            What::MsrLoad { msr, .. } => ("MSR loading", *msr as u64),
            What::VmFail { instruction, number, .. } => (*instruction, number.unwrap_or(0) as u64),
            What::TripleFault { .. } => ("triple fault", 0),
            What::Refused { instruction, vector, .. } => (*instruction, 1000 + *vector as u64),
            What::Abort { indicator } => ("VMX abort", *indicator as u64),
        };
        Cause { name, number, rip }
    }
}

/// Words of the stack that a picture holds.
const STACK_WORDS: usize = 12;

impl Cpu {
    /// Whether a failure for this reason at `rip` has not been told yet; counts it.
    fn is_new_cause(&self, what: &What, rip: u64) -> bool {
        let Some(o) = &self.observer else { return false };
        let count = &mut *o.borrow_mut();
        let count = count.causes.entry(what.cause(rip)).or_default();
        *count += 1;
        *count == 1
    }

    /// Tell that something failed, at `rip` of the level that runs. `fields` is asked only the first time.
    pub(super) fn report(
        &mut self,
        what: What,
        rip: u64,
        structure: Option<u64>,
        fields: impl FnOnce(&mut Cpu) -> (Vec<FieldPicture>, Vec<Remedy>),
    ) {
        if self.observing & want::EXPLAIN == 0 || !self.is_new_cause(&what, rip) {
            return;
        }
        let (fields, remedies) = fields(self);
        let view = self.view();
        let shared = self.shared.clone();
        let mut code = vec![0; 16];
        let n = view.bytes(&shared.memory, self.linear_ip(rip), &mut code);
        code.truncate(n);
        let bits = self.mode.bits();
        let word = bits as usize / 8;
        let top = self.stack_pointer();
        let base = if bits == 64 { 0 } else { self.state.segment(undervisor_core::SegReg::Ss).base };
        let mut stack = Vec::new();
        for i in 0..STACK_WORDS as u64 {
            let at = base.wrapping_add(top).wrapping_add(i * word as u64);
            let mut bytes = [0; 8];
            if view.bytes(&shared.memory, at, &mut bytes[..word]) < word {
                break;
            }
            stack.push((at, u64::from_le_bytes(bytes)));
        }
        let incident = Incident {
            what,
            cpu: self.id,
            level: self.level_number(),
            now: self.now(),
            rip,
            amd: self.is_amd(),
            structure,
            fields,
            remedies,
            state: Box::new(self.state.clone()),
            bits,
            code,
            stack,
        };
        if let Some(o) = &self.observer {
            let o = &mut *o.borrow_mut();
            o.flush();
            o.sink.incident(&incident);
        }
    }
}
