//! VM entry: loading guest state (SDM vol. 3, Loading Guest State).

use undervisor_core::{Activity, CpuState, Cr0, Cr4, Efer, Segment, Shadow, TableReg, regs, segment::SegReg};

use crate::capabilities::Capabilities;
use crate::checks::{self, Context, Failure, Outcome};
use crate::controls::{entry, interruptibility, interruption};
use crate::exit::HostSegments;
use crate::fields::{Field, Groups};
use crate::memory::Memory;
use crate::reason::{ENTRY_FAILURE, ExitInformation, basic};
use crate::vmcs::Vmcs;

/// CR0 bits that VM entry and VM exit leave alone: ET, reserved bits 15:6, 17 and 28:19, NW, CD.
pub const CR0_KEPT: u64 = 0x7ffa_ffd0;

/// How a failed check ends the entry.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    /// VMfailValid with this error.
    Fail(u32, Failure),
    /// A VM exit that loads host state.
    Exit(ExitInformation, Failure),
}

/// Run every check that is due, and mark them passed.
pub fn check(
    vmcs: &mut Vmcs,
    capabilities: &Capabilities,
    state: &CpuState,
    memory: &dyn Memory,
    current: u64,
) -> Result<(), Refusal> {
    let context = Context { vmcs, capabilities, state, memory, current };
    let result = checks::controls_and_host(&context).and_then(|()| checks::guest_state(&context));
    match result {
        Ok(()) => {
            if vmcs.dirty & HostSegments::GROUPS != 0 {
                vmcs.host = HostSegments::of(vmcs);
            }
            vmcs.dirty = 0;
            vmcs.passed_in_long_mode = state.long_mode();
            Ok(())
        }
        Err(f) => {
            vmcs.dirty = Groups::ALL;
            Err(match f.table.outcome {
                Outcome::InvalidControl => Refusal::Fail(crate::reason::error::ENTRY_CONTROLS, f),
                Outcome::InvalidHostState => Refusal::Fail(crate::reason::error::ENTRY_HOST_STATE, f),
                Outcome::InvalidGuestState => Refusal::Exit(
                    ExitInformation::qualified(basic::INVALID_GUEST_STATE | ENTRY_FAILURE, f.check.qualification),
                    f,
                ),
            })
        }
    }
}

/// The PDPTEs that the entry would load: fields with EPT, memory at CR3 without.
pub fn pdptes(vmcs: &Vmcs, memory: &dyn Memory) -> [u64; 4] {
    if vmcs.ept() {
        std::array::from_fn(|i| vmcs.get(Field::GUEST_PDPTE_0.plus(i as u8)))
    } else {
        read_pdptes(memory, vmcs.get(Field::GUEST_CR3))
    }
}

/// PDPTEs in memory.
pub fn read_pdptes(memory: &dyn Memory, cr3: u64) -> [u64; 4] {
    std::array::from_fn(|i| memory.read_u64((cr3 & 0xffff_ffe0) + 8 * i as u64))
}

/// A segment register from its four fields.
#[inline]
fn segment(v: &Vmcs, n: u8) -> Segment {
    Segment {
        selector: v.get(Field::GUEST_ES_SELECTOR.plus(n)) as u16,
        access: v.get(Field::GUEST_ES_ACCESS.plus(n)) as u32,
        limit: v.get(Field::GUEST_ES_LIMIT.plus(n)) as u32,
        base: v.get(Field::GUEST_ES_BASE.plus(n)),
    }
}

/// Load guest state. The caller then loads the MSR area, brings its derived state up to date and injects the event.
/// Blocking by NMI in the state then stands for whatever the guest calls so: virtual-NMI blocking if virtual NMIs are on.
pub fn load_guest(v: &Vmcs, s: &mut CpuState, memory: &dyn Memory) {
    let cr0 = v.get(Field::GUEST_CR0) & !CR0_KEPT | s.cr0.bits() & CR0_KEPT;
    s.cr0 = Cr0::from_bits_retain(cr0);
    s.cr3 = v.get(Field::GUEST_CR3);
    s.cr4 = Cr4::from_bits_retain(v.get(Field::GUEST_CR4));
    if v.entry_control(entry::LOAD_DEBUG_CONTROLS) {
        s.dr7 = v.get(Field::GUEST_DR7) & !0xd000 | 0x400;
        s.msrs.debugctl = v.get(Field::GUEST_DEBUGCTL);
    }
    s.msrs.sysenter_cs = v.get(Field::GUEST_SYSENTER_CS);
    s.msrs.sysenter_esp = v.get(Field::GUEST_SYSENTER_ESP);
    s.msrs.sysenter_eip = v.get(Field::GUEST_SYSENTER_EIP);
    if v.entry_control(entry::LOAD_EFER) {
        s.efer = Efer::from_bits_retain(v.get(Field::GUEST_EFER));
    } else {
        let ia32e = v.ia32e_guest();
        s.efer.set(Efer::LMA, ia32e);
        if s.cr0.contains(Cr0::PG) {
            s.efer.set(Efer::LME, ia32e);
        }
    }
    if v.entry_control(entry::LOAD_PERF_GLOBAL_CTRL) {
        s.msrs.performance.global_control = v.get(Field::GUEST_PERF_GLOBAL_CTRL);
    }
    if v.entry_control(entry::LOAD_PAT) {
        s.msrs.pat = v.get(Field::GUEST_PAT);
    }
    if v.entry_control(entry::LOAD_BNDCFGS) {
        s.msrs.bndcfgs = v.get(Field::GUEST_BNDCFGS);
    }
    for n in 0..6 {
        s.seg[n as usize] = segment(v, n);
    }
    s.mirror_bases();
    s.ldtr = segment(v, 6);
    s.tr = segment(v, 7);
    s.gdtr = TableReg { base: v.get(Field::GUEST_GDTR_BASE), limit: v.get(Field::GUEST_GDTR_LIMIT) as u16 };
    s.idtr = TableReg { base: v.get(Field::GUEST_IDTR_BASE), limit: v.get(Field::GUEST_IDTR_LIMIT) as u16 };
    s.set_gpr(regs::RSP, v.get(Field::GUEST_RSP));
    s.set_rip(v.get(Field::GUEST_RIP));
    s.set_rflags(v.get(Field::GUEST_RFLAGS));
    s.cpl = s.segment(SegReg::Ss).dpl();
    if s.cr0.contains(Cr0::PG) && s.cr4.contains(Cr4::PAE) && !s.efer.contains(Efer::LMA) {
        s.pdpte = pdptes(v, memory);
    }
    let blocking = v.get(Field::GUEST_INTERRUPTIBILITY);
    let information = v.get32(Field::ENTRY_INTERRUPTION_INFORMATION);
    // A pending MTF VM exit (type 7) is not delivered through the IDT.
    let vectoring = (information & interruption::VALID != 0)
        .then(|| interruption::kind(information))
        .filter(|&kind| kind != interruption::OTHER);
    let mov_ss = blocking & interruptibility::MOV_SS != 0;
    s.shadow = Shadow {
        // A vectored event ends blocking by STI and MOV SS.
        sti: blocking & interruptibility::STI != 0 && vectoring.is_none(),
        mov_ss: mov_ss && vectoring.is_none(),
        nmi: blocking & interruptibility::NMI != 0,
        smm: s.shadow.smm,
    };
    s.activity = match v.get(Field::GUEST_ACTIVITY) {
        // A vectored event wakes the processor.
        _ if vectoring.is_some() => Activity::Active,
        1 => Activity::Hlt,
        2 => Activity::Shutdown,
        3 => Activity::WaitForSipi,
        _ => Activity::Active,
    };
    // Bit 12 (enabled breakpoint) says only that B3:B0 matter; without it, BS and BLD nothing is pending. Nor is it where the vectored event or
    // the activity state rules it out (SDM vol. 3, Delivery of Pending Debug Exceptions after VM Entry).
    let pending = v.get(Field::GUEST_PENDING_DEBUG);
    let lost = match vectoring {
        Some(interruption::SOFTWARE | interruption::SOFTWARE_EXCEPTION) => !mov_ss,
        Some(_) => true,
        None => matches!(s.activity, Activity::Shutdown | Activity::WaitForSipi),
    };
    s.pending_debug = if pending & (1 << 11 | 1 << 12 | 1 << 14) != 0 && !lost { pending & 0x480f } else { 0 };
}
