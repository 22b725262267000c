//! #VMEXIT: saving guest state (APM vol. 2, #VMEXIT).

use undervisor_core::{CpuState, Event, EventKind, regs};

use crate::controls::{event, interrupt};
use crate::fields::Field;
use crate::vmcb::Vmcb;

/// What an exit reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInformation {
    pub code: u64,
    pub info1: u64,
    pub info2: u64,
    /// nRIP; 0 unless an instruction was intercepted.
    pub next_rip: u64,
}

impl ExitInformation {
    pub const fn new(code: u64) -> ExitInformation {
        ExitInformation { code, info1: 0, info2: 0, next_rip: 0 }
    }
    pub const fn with(code: u64, info1: u64, info2: u64) -> ExitInformation {
        ExitInformation { code, info1, info2, next_rip: 0 }
    }
}

/// EXITINTINFO for an event in whose delivery the exit happened, with its error code.
pub fn interrupted(e: &Event) -> (u32, u32) {
    let kind = match e.kind {
        EventKind::External => event::INTR,
        EventKind::Nmi => event::NMI,
        EventKind::Software => event::SOFTWARE,
        _ => event::EXCEPTION,
    };
    let code = if e.error_code.is_some() { event::ERROR_CODE } else { 0 };
    (event::VALID | code | kind << 8 | e.vector as u32, e.error_code.unwrap_or(0))
}

/// Put the exit and guest state into the cached VMCB.
#[inline]
pub fn save_guest(v: &mut Vmcb, s: &CpuState, exit: &ExitInformation, delivering: Option<&Event>, rip: u64, cpl: u8) {
    record(v, exit, delivering);
    let info = v.get(Field::EVENTINJ) & !(event::VALID as u64);
    v.set(Field::EVENTINJ, info);
    v.set_segment(Field::ES_SELECTOR, &s.seg[0]);
    v.set_segment(Field::CS_SELECTOR, &s.seg[1]);
    v.set_segment(Field::SS_SELECTOR, &s.seg[2]);
    v.set_segment(Field::DS_SELECTOR, &s.seg[3]);
    v.set_table(Field::GDTR_LIMIT, &s.gdtr);
    v.set_table(Field::IDTR_LIMIT, &s.idtr);
    v.set(Field::CPL, cpl as u64);
    v.set(Field::EFER, s.efer.bits());
    v.set(Field::CR4, s.cr4.bits());
    v.set(Field::CR3, s.cr3);
    v.set(Field::CR0, s.cr0.bits());
    v.set(Field::CR2, s.cr2);
    v.set(Field::DR7, s.dr7);
    v.set(Field::DR6, s.dr6);
    v.set(Field::RFLAGS, s.rflags());
    v.set(Field::RIP, rip);
    v.set(Field::RSP, s.gpr(regs::RSP));
    v.set(Field::RAX, s.gpr(regs::RAX));
    let shadow = if s.shadow.sti || s.shadow.mov_ss { interrupt::SHADOW } else { 0 };
    v.set(Field::INTERRUPT_SHADOW, shadow);
}

/// Put only the exit itself there.
pub fn record(v: &mut Vmcb, exit: &ExitInformation, delivering: Option<&Event>) {
    v.set(Field::EXITCODE, exit.code);
    v.set(Field::EXITINFO1, exit.info1);
    v.set(Field::EXITINFO2, exit.info2);
    v.set(Field::NRIP, exit.next_rip);
    let (info, code) = delivering.map_or((0, 0), interrupted);
    v.set(Field::EXITINTINFO, info as u64);
    v.set(Field::EXITINTINFO_ERROR, code as u64);
}
