//! The fields of a VMCS that enters: where conformance tests, fuzzing and benches start from.

use undervisor_core::{CpuState, SegReg};

use crate::controls::{entry, exit, pin, primary};
use crate::fields::Field as F;

/// RIP and RSP of a side of the VMCS.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub rip: u64,
    pub rsp: u64,
}

/// Fields with which a processor that is in 64-bit mode enters a 64-bit guest: host and guest have the control registers, segments
/// and page tables of `s`; no control is set but those that must be. All other fields stay zero.
pub fn fields(s: &CpuState, host: Start, guest: Start) -> Vec<(F, u64)> {
    let mut out = vec![
        (F::PIN_BASED_CONTROLS, pin::DEFAULT1 as u64),
        (F::PRIMARY_CONTROLS, primary::TRUE_DEFAULT1 as u64),
        (F::EXIT_CONTROLS, (exit::TRUE_DEFAULT1 | exit::HOST_ADDRESS_SPACE_SIZE) as u64),
        (F::ENTRY_CONTROLS, (entry::TRUE_DEFAULT1 | entry::IA32E_MODE_GUEST) as u64),
        (F::VMCS_LINK_POINTER, u64::MAX),
        (F::HOST_CR0, s.cr0.bits()),
        (F::HOST_CR3, s.cr3),
        (F::HOST_CR4, s.cr4.bits()),
        (F::HOST_CS_SELECTOR, s.segment(SegReg::Cs).selector as u64),
        (F::HOST_SS_SELECTOR, s.segment(SegReg::Ss).selector as u64),
        (F::HOST_TR_SELECTOR, s.tr.selector as u64),
        (F::HOST_TR_BASE, s.tr.base),
        (F::HOST_RSP, host.rsp),
        (F::HOST_RIP, host.rip),
        (F::GUEST_CR0, s.cr0.bits()),
        (F::GUEST_CR3, s.cr3),
        (F::GUEST_CR4, s.cr4.bits()),
        (F::GUEST_RFLAGS, 2),
        (F::GUEST_RIP, guest.rip),
        (F::GUEST_RSP, guest.rsp),
        (F::GUEST_DR7, 0x400),
        // Unusable.
        (F::GUEST_LDTR_ACCESS, 0x10000),
        (F::GUEST_TR_ACCESS, s.tr.access as u64),
        (F::GUEST_TR_LIMIT, s.tr.limit as u64),
    ];
    for (n, segment) in s.seg.iter().enumerate() {
        let n = n as u8;
        out.push((F::GUEST_ES_SELECTOR.plus(n), segment.selector as u64));
        out.push((F::GUEST_ES_ACCESS.plus(n), segment.access as u64));
        out.push((F::GUEST_ES_LIMIT.plus(n), segment.limit as u64));
    }
    out
}
