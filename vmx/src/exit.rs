//! VM exit: recording, saving guest state, loading host state (SDM vol. 3, VM Exits).

use undervisor_core::{Activity, CpuState, Cr0, Cr4, Efer, Segment, Shadow, TableReg, regs};

use crate::checks::pdpte_valid;
use crate::controls::{entry, exit, interruptibility, interruption};
use crate::entry::{CR0_KEPT, read_pdptes};
use crate::fields::{Field, Groups};
use crate::memory::Memory;
use crate::reason::{ExitInformation, abort};
use crate::vmcs::Vmcs;

/// What of the guest's state lives outside [`CpuState`] at the time of the exit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leaving {
    /// Guest interruptibility state: bits 0, 1, 3.
    pub interruptibility: u64,
    /// Pending debug exceptions in VMCS format.
    pub pending_debug: u64,
    /// What is left of the preemption timer, if it is to be saved.
    pub preemption_timer: Option<u32>,
    /// RFLAGS to save, with RF as the exit's rules say.
    pub rflags: u64,
    pub rip: u64,
    pub activity: u64,
}

/// Record why (SDM vol. 3, Recording VM-Exit Information and Updating VM-Entry Control Fields).
pub fn record(v: &mut Vmcs, i: &ExitInformation) {
    v.put(Field::EXIT_REASON, i.reason as u64);
    v.put(Field::EXIT_QUALIFICATION, i.qualification);
    v.put(Field::GUEST_LINEAR_ADDRESS, i.guest_linear_address);
    v.put(Field::GUEST_PHYSICAL_ADDRESS, i.guest_physical_address);
    v.put(Field::EXIT_INSTRUCTION_LENGTH, i.instruction_length as u64);
    v.put(Field::EXIT_INSTRUCTION_INFORMATION, i.instruction_information as u64);
    v.put(Field::EXIT_INTERRUPTION_INFORMATION, i.interruption_information as u64);
    v.put(Field::EXIT_INTERRUPTION_ERROR_CODE, i.interruption_error_code as u64);
    v.put(Field::IDT_VECTORING_INFORMATION, i.idt_vectoring_information as u64);
    v.put(Field::IDT_VECTORING_ERROR_CODE, i.idt_vectoring_error_code as u64);
    let info = v.get(Field::ENTRY_INTERRUPTION_INFORMATION);
    v.put(Field::ENTRY_INTERRUPTION_INFORMATION, info & !(interruption::VALID as u64));
}

/// Record an entry failure: only the reason and the qualification change.
pub fn record_failure(v: &mut Vmcs, i: &ExitInformation) {
    v.put(Field::EXIT_REASON, i.reason as u64);
    v.put(Field::EXIT_QUALIFICATION, i.qualification);
}

#[inline]
fn put_segment(v: &mut Vmcs, n: u8, s: &Segment) {
    v.put(Field::GUEST_ES_SELECTOR.plus(n), s.selector as u64);
    v.put(Field::GUEST_ES_ACCESS.plus(n), s.access as u64);
    v.put(Field::GUEST_ES_LIMIT.plus(n), s.limit as u64);
    v.put(Field::GUEST_ES_BASE.plus(n), s.base);
}

/// Save guest state (SDM vol. 3, Saving Guest State). What is saved is as valid as what was loaded, except for what
/// [`crate::checks`] looks at on every entry; so nothing becomes dirty.
pub fn save_guest(v: &mut Vmcs, s: &CpuState, l: &Leaving) {
    v.put(Field::GUEST_CR0, s.cr0.bits());
    v.put(Field::GUEST_CR3, s.cr3);
    v.put(Field::GUEST_CR4, s.cr4.bits());
    v.put(Field::GUEST_SYSENTER_CS, s.msrs.sysenter_cs & 0xffff_ffff);
    v.put(Field::GUEST_SYSENTER_ESP, s.msrs.sysenter_esp);
    v.put(Field::GUEST_SYSENTER_EIP, s.msrs.sysenter_eip);
    if v.exit_control(exit::SAVE_DEBUG_CONTROLS) {
        v.put(Field::GUEST_DR7, s.dr7);
        v.put(Field::GUEST_DEBUGCTL, s.msrs.debugctl);
    }
    if v.exit_control(exit::SAVE_PAT) {
        v.put(Field::GUEST_PAT, s.msrs.pat);
    }
    if v.exit_control(exit::SAVE_PERF_GLOBAL_CTRL) {
        v.put(Field::GUEST_PERF_GLOBAL_CTRL, s.msrs.performance.global_control);
    }
    if v.exit_control(exit::SAVE_EFER) {
        v.put(Field::GUEST_EFER, s.efer.bits());
    }
    v.put(Field::GUEST_BNDCFGS, s.msrs.bndcfgs);
    for n in 0..6 {
        put_segment(v, n, &s.seg[n as usize]);
    }
    put_segment(v, 6, &s.ldtr);
    put_segment(v, 7, &s.tr);
    v.put(Field::GUEST_GDTR_BASE, s.gdtr.base);
    v.put(Field::GUEST_GDTR_LIMIT, s.gdtr.limit as u64);
    v.put(Field::GUEST_IDTR_BASE, s.idtr.base);
    v.put(Field::GUEST_IDTR_LIMIT, s.idtr.limit as u64);
    v.put(Field::GUEST_RSP, s.gpr(regs::RSP));
    v.put(Field::GUEST_RIP, l.rip);
    v.put(Field::GUEST_RFLAGS, l.rflags);
    v.put(Field::GUEST_ACTIVITY, l.activity);
    v.put(Field::GUEST_INTERRUPTIBILITY, l.interruptibility);
    v.put(Field::GUEST_PENDING_DEBUG, l.pending_debug);
    if let Some(timer) = l.preemption_timer {
        v.put(Field::PREEMPTION_TIMER_VALUE, timer as u64);
    }
    if v.ept() && s.cr0.contains(Cr0::PG) && s.cr4.contains(Cr4::PAE) && !s.efer.contains(Efer::LMA) {
        for (i, entry) in s.pdpte.iter().enumerate() {
            v.put(Field::GUEST_PDPTE_0.plus(i as u8), *entry);
        }
    }
    // IA32_VMX_MISC[5]: the IA-32e-mode-guest control becomes EFER.LMA.
    let lma = s.efer.contains(Efer::LMA);
    let controls = v.get32(Field::ENTRY_CONTROLS);
    if (controls & entry::IA32E_MODE_GUEST != 0) != lma {
        v.put(Field::ENTRY_CONTROLS, (controls ^ entry::IA32E_MODE_GUEST) as u64);
        v.dirty |= Groups::CONTROLS;
    }
}

/// Guest interruptibility state from the processor's blocking.
pub fn interruptibility_of(s: &Shadow) -> u64 {
    let mut bits = 0;
    if s.sti {
        bits |= interruptibility::STI;
    }
    if s.mov_ss {
        bits |= interruptibility::MOV_SS;
    }
    if s.nmi {
        bits |= interruptibility::NMI;
    }
    bits
}

/// VMCS activity state.
pub fn activity_of(a: Activity) -> u64 {
    match a {
        Activity::Active | Activity::Mwait => 0,
        Activity::Hlt => 1,
        Activity::Shutdown => 2,
        Activity::WaitForSipi => 3,
    }
}

/// Access rights that VM exit gives a host segment.
const HOST_CODE_64: u32 = 0xa09b;
const HOST_CODE_32: u32 = 0xc09b;
const HOST_DATA: u32 = 0xc093;
const HOST_TR: u32 = 0x008b;

/// Segment and descriptor-table registers as VM exit loads them (SDM vol. 3, Loading Host Segment and Descriptor-Table Registers): as the
/// processor holds them, so that an exit only copies. They follow from the fields of [`HostSegments::GROUPS`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSegments {
    segments: [Segment; 6],
    tr: Segment,
    gdtr: TableReg,
    idtr: TableReg,
}

impl HostSegments {
    /// Dirty groups that make them stale.
    pub const GROUPS: u8 = Groups::CONTROLS | Groups::HOST;

    pub fn of(v: &Vmcs) -> HostSegments {
        let data = |selector: Field, base: u64| match v.get(selector) as u16 {
            0 => Segment { selector: 0, access: Segment::UNUSABLE, limit: 0, base },
            selector => Segment { selector, access: HOST_DATA, limit: u32::MAX, base },
        };
        let code = if v.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) { HOST_CODE_64 } else { HOST_CODE_32 };
        HostSegments {
            segments: [
                data(Field::HOST_ES_SELECTOR, 0),
                Segment { selector: v.get(Field::HOST_CS_SELECTOR) as u16, access: code, limit: u32::MAX, base: 0 },
                data(Field::HOST_SS_SELECTOR, 0),
                data(Field::HOST_DS_SELECTOR, 0),
                data(Field::HOST_FS_SELECTOR, v.get(Field::HOST_FS_BASE)),
                data(Field::HOST_GS_SELECTOR, v.get(Field::HOST_GS_BASE)),
            ],
            tr: Segment {
                selector: v.get(Field::HOST_TR_SELECTOR) as u16,
                access: HOST_TR,
                limit: 0x67,
                base: v.get(Field::HOST_TR_BASE),
            },
            gdtr: TableReg { base: v.get(Field::HOST_GDTR_BASE), limit: 0xffff },
            idtr: TableReg { base: v.get(Field::HOST_IDTR_BASE), limit: 0xffff },
        }
    }
}

/// Load host state (SDM vol. 3, Loading Host State). `Err`: the VMX-abort indicator.
pub fn load_host(v: &Vmcs, s: &mut CpuState, memory: &dyn Memory, physical_address_bits: u32) -> Result<(), u32> {
    let size64 = v.exit_control(exit::HOST_ADDRESS_SPACE_SIZE);
    s.cr0 = Cr0::from_bits_retain(v.get(Field::HOST_CR0) & !CR0_KEPT | s.cr0.bits() & CR0_KEPT);
    s.cr3 = v.get(Field::HOST_CR3);
    let mut cr4 = Cr4::from_bits_retain(v.get(Field::HOST_CR4));
    if size64 {
        cr4 |= Cr4::PAE;
    } else {
        cr4 -= Cr4::PCIDE;
    }
    s.cr4 = cr4;
    s.dr7 = 0x400;
    s.msrs.debugctl = 0;
    s.msrs.sysenter_cs = v.get(Field::HOST_SYSENTER_CS);
    s.msrs.sysenter_esp = v.get(Field::HOST_SYSENTER_ESP);
    s.msrs.sysenter_eip = v.get(Field::HOST_SYSENTER_EIP);
    s.efer.set(Efer::LMA, size64);
    s.efer.set(Efer::LME, size64);
    if v.exit_control(exit::LOAD_EFER) {
        s.efer = Efer::from_bits_retain(v.get(Field::HOST_EFER));
    }
    if v.exit_control(exit::LOAD_PERF_GLOBAL_CTRL) {
        s.msrs.performance.global_control = v.get(Field::HOST_PERF_GLOBAL_CTRL);
    }
    if v.exit_control(exit::LOAD_PAT) {
        s.msrs.pat = v.get(Field::HOST_PAT);
    }
    if v.exit_control(exit::CLEAR_BNDCFGS) {
        s.msrs.bndcfgs = 0;
    }
    let changed;
    let host = if v.dirty & HostSegments::GROUPS == 0 {
        &v.host
    } else {
        changed = HostSegments::of(v);
        &changed
    };
    s.seg = host.segments;
    s.mirror_bases();
    s.ldtr = Segment { selector: 0, access: Segment::UNUSABLE, limit: 0, base: 0 };
    s.tr = host.tr;
    s.gdtr = host.gdtr;
    s.idtr = host.idtr;
    s.set_gpr(regs::RSP, v.get(Field::HOST_RSP));
    s.set_rip(v.get(Field::HOST_RIP));
    s.set_rflags(2);
    s.cpl = 0;
    s.activity = Activity::Active;
    s.shadow.sti = false;
    s.shadow.mov_ss = false;
    s.pending_debug = 0;
    if s.cr0.contains(Cr0::PG) && s.cr4.contains(Cr4::PAE) && !size64 {
        let entries = read_pdptes(memory, s.cr3);
        if !entries.iter().all(|&e| pdpte_valid(e, physical_address_bits)) {
            return Err(abort::HOST_PDPTES);
        }
        s.pdpte = entries;
    }
    Ok(())
}
