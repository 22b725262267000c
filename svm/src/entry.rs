//! VMRUN: saving host state and loading guest state (APM vol. 2, VMRUN Instruction).

use undervisor_core::flags::LazyFlags;
use undervisor_core::{CpuState, Cr0, Cr4, Efer, Rflags, SegReg, Segment, TableReg, regs};
use undervisor_mmu::GuestMemory;

use crate::capabilities::Limits;
use crate::controls::interrupt;
use crate::fields::Field;
use crate::vmcb::{Vmcb, segment_from, segment_word};

/// Host state between VMRUN and #VMEXIT (APM vol. 2, Host State Save). Its form in memory is the processor's own: here it stays in
/// the processor, and the host save area is not touched.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// ES, CS, SS, DS.
    pub segments: [Segment; 4],
    pub gdtr: TableReg,
    pub idtr: TableReg,
    pub efer: Efer,
    pub cr0: Cr0,
    pub cr3: u64,
    pub cr4: Cr4,
    /// RFLAGS; the status flags as the processor had them, worked out or not.
    pub rflags: u64,
    lazy: LazyFlags,
    pub rip: u64,
    pub rsp: u64,
    pub rax: u64,
    /// DEBUGCTL and last branches, while LBR virtualization replaces them.
    pub lbr: [u64; 5],
    pub spec_ctrl: u64,
    pub pat: u64,
    /// Blocking by NMI, while virtual NMIs have their own.
    pub nmi_blocked: bool,
}

impl Host {
    /// What VMRUN saves; RIP is that of the instruction after VMRUN.
    #[inline]
    pub fn save(&mut self, s: &CpuState) {
        self.segments.copy_from_slice(&s.seg[..4]);
        self.gdtr = s.gdtr;
        self.idtr = s.idtr;
        self.efer = s.efer;
        self.cr0 = s.cr0;
        self.cr3 = s.cr3;
        self.cr4 = s.cr4;
        self.rflags = s.explicit_flags();
        self.lazy = s.lazy;
        self.rip = s.rip();
        self.rsp = s.gpr(regs::RSP);
        self.rax = s.gpr(regs::RAX);
        self.nmi_blocked = s.shadow.nmi;
    }

    /// What #VMEXIT loads (APM vol. 2, #VMEXIT). DR7 is cleared, CPL is 0.
    #[inline]
    pub fn load(&self, s: &mut CpuState) {
        s.seg[..4].copy_from_slice(&self.segments);
        s.mirror_bases();
        s.gdtr = self.gdtr;
        s.idtr = self.idtr;
        s.efer = self.efer;
        s.cr0 = self.cr0 | Cr0::PE;
        s.cr3 = self.cr3;
        s.cr4 = self.cr4;
        s.set_rflags(self.rflags & !(Rflags::VM | Rflags::RF).bits());
        s.lazy = self.lazy;
        s.set_rip(self.rip);
        s.set_gpr(regs::RSP, self.rsp);
        s.set_gpr(regs::RAX, self.rax);
        s.dr7 = 0x400;
        s.cpl = 0;
        s.shadow.sti = false;
        s.shadow.mov_ss = false;
        s.pending_debug = 0;
        s.activity = Default::default();
    }
}

const SEGMENTS: [Field; 4] = [Field::ES_SELECTOR, Field::CS_SELECTOR, Field::SS_SELECTOR, Field::DS_SELECTOR];

/// Load guest state. The caller then brings what is derived from it up to date.
#[inline]
pub fn load_guest(v: &Vmcb, s: &mut CpuState, limits: &Limits) {
    for (i, f) in SEGMENTS.into_iter().enumerate() {
        let mut segment = v.segment(f);
        segment.base = limits.canonical(segment.base);
        // "CS: the processor reads only the L, D and R bits": a code segment is always there.
        if i == SegReg::Cs as usize {
            segment.access = segment.access & !Segment::UNUSABLE | 0x98;
        }
        s.seg[i] = segment;
    }
    s.mirror_bases();
    s.gdtr = v.table(Field::GDTR_LIMIT);
    s.idtr = v.table(Field::IDTR_LIMIT);
    s.gdtr.base = limits.canonical(s.gdtr.base);
    s.idtr.base = limits.canonical(s.idtr.base);
    s.cr0 = Cr0::from_bits_retain(v.get(Field::CR0) & undervisor_core::bits::CR0_DEFINED) | Cr0::ET;
    s.cr2 = v.get(Field::CR2);
    s.cr3 = v.get(Field::CR3);
    s.cr4 = Cr4::from_bits_retain(v.get(Field::CR4));
    let mut efer = Efer::from_bits_retain(v.get(Field::EFER));
    efer.set(Efer::LMA, efer.contains(Efer::LME) && s.cr0.contains(Cr0::PG));
    s.efer = efer;
    s.dr6 = v.get(Field::DR6) & 0xf00f | 0xffff_0ff0;
    s.dr7 = v.get(Field::DR7) & 0xffff_23ff | 0x400;
    s.set_rflags(v.get(Field::RFLAGS));
    s.set_rip(v.get(Field::RIP));
    s.set_gpr(regs::RSP, v.get(Field::RSP));
    s.set_gpr(regs::RAX, v.get(Field::RAX));
    // "In real mode CPL is forced to 0, in virtual-8086 mode to 3."
    s.cpl = if !s.cr0.contains(Cr0::PE) {
        0
    } else if s.flag(Rflags::VM) && !efer.contains(Efer::LMA) {
        3
    } else {
        v.get(Field::CPL) as u8 & 3
    };
    if efer.contains(Efer::LMA) {
        s.set_flag(Rflags::VM, false);
    }
    s.shadow.sti = v.get(Field::INTERRUPT_SHADOW) & interrupt::SHADOW != 0;
    s.shadow.mov_ss = false;
    s.pending_debug = 0;
    s.activity = Default::default();
}

/// Registers that VMLOAD and VMSAVE move, MSRs: field and place (APM vol. 2, VMSAVE and VMLOAD Instructions).
fn msrs(s: &mut CpuState) -> [(Field, &mut u64); 8] {
    let m = &mut s.msrs;
    [
        (Field::STAR, &mut m.star),
        (Field::LSTAR, &mut m.lstar),
        (Field::CSTAR, &mut m.cstar),
        (Field::SFMASK, &mut m.fmask),
        (Field::KERNEL_GS_BASE, &mut m.kernel_gs_base),
        (Field::SYSENTER_CS, &mut m.sysenter_cs),
        (Field::SYSENTER_ESP, &mut m.sysenter_esp),
        (Field::SYSENTER_EIP, &mut m.sysenter_eip),
    ]
}

/// VMLOAD from the VMCB at a (level-0) physical address.
pub fn vmload(memory: &GuestMemory, address: u64, s: &mut CpuState, limits: &Limits) {
    let page = memory.words(address).map(|(page, _)| page);
    let word = |at: usize| page.map_or(u64::MAX, |page| page[at % page.len()].get());
    let read = |f: Field| word(f.offset as usize / 8);
    let segment = |f: Field| segment_from(read(f), limits.canonical(word(f.offset as usize / 8 + 1)));
    s.seg[SegReg::Fs as usize] = segment(Field::FS_SELECTOR);
    s.seg[SegReg::Gs as usize] = segment(Field::GS_SELECTOR);
    s.tr = segment(Field::TR_SELECTOR);
    s.ldtr = segment(Field::LDTR_SELECTOR);
    s.mirror_bases();
    for (f, place) in msrs(s) {
        *place = read(f);
    }
    s.msrs.kernel_gs_base = limits.canonical(s.msrs.kernel_gs_base);
    s.msrs.sysenter_cs &= 0xffff_ffff;
}

/// VMSAVE to the VMCB at a (level-0) physical address.
pub fn vmsave(memory: &GuestMemory, address: u64, s: &mut CpuState) {
    let Some((page, true)) = memory.words(address) else {
        return;
    };
    let write = |at: usize, value: u64| page[at % page.len()].set(value);
    let segments = [
        (Field::FS_SELECTOR, s.seg[SegReg::Fs as usize]),
        (Field::GS_SELECTOR, s.seg[SegReg::Gs as usize]),
        (Field::TR_SELECTOR, s.tr),
        (Field::LDTR_SELECTOR, s.ldtr),
    ];
    for (f, segment) in segments {
        write(f.offset as usize / 8, segment_word(&segment));
        write(f.offset as usize / 8 + 1, segment.base);
    }
    for (f, place) in msrs(s) {
        write(f.offset as usize / 8, *place);
    }
}
