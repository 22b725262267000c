//! The whole architectural state of one logical processor, local APIC and virtualization state apart.

use crate::{
    bits::{Cr0, Cr4, Efer, Rflags},
    flags::{FlagKind, LazyFlags},
    performance::Performance,
    regs,
    segment::{SegReg, Segment, TableReg},
};

/// Whose rules apply where Intel and AMD differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vendor {
    #[default]
    Intel,
    Amd,
}

/// A vector register, little-endian: XMM is words 0–1, YMM 0–3, and room for ZMM.
pub type Vec512 = [u64; 8];

/// An 80-bit floating-point value as x87 keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct F80 {
    pub mantissa: u64,
    /// Bit 15 sign, 14:0 biased exponent.
    pub sign_exponent: u16,
}

/// x87 state. `st[i]` is *physical* register i; MMi is `st[i].mantissa`.
#[derive(Clone, Copy, Debug)]
pub struct X87 {
    pub st: [F80; 8],
    pub control: u16,
    /// Status word; TOP is bits 13:11.
    pub status: u16,
    /// Abridged tag word: bit i set = physical register i is not empty.
    pub tags: u8,
    pub opcode: u16,
    pub instruction_pointer: u64,
    pub instruction_selector: u16,
    pub data_pointer: u64,
    pub data_selector: u16,
}

impl Default for X87 {
    /// State after FNINIT.
    fn default() -> X87 {
        X87 {
            st: [F80::default(); 8],
            control: 0x37f,
            status: 0,
            tags: 0,
            opcode: 0,
            instruction_pointer: 0,
            instruction_selector: 0,
            data_pointer: 0,
            data_selector: 0,
        }
    }
}

/// What the processor is doing between instructions (SDM vol. 3, Guest Non-Register State: activity state).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    #[default]
    Active = 0,
    Hlt = 1,
    Shutdown = 2,
    WaitForSipi = 3,
    /// In MWAIT (not a VMX activity state).
    Mwait = 4,
}

/// What blocks events at this instruction boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shadow {
    /// Blocking by STI.
    pub sti: bool,
    /// Blocking by MOV SS or POP SS.
    pub mov_ss: bool,
    /// Blocking by NMI (until IRET).
    pub nmi: bool,
    /// In SMM.
    pub smm: bool,
}

/// Model-specific registers that are plain state. MSRs with a home elsewhere (EFER, FS/GS base, APIC) are not here.
#[derive(Clone, Debug, Default)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub debugctl: u64,
    pub feature_control: u64,
    pub spec_ctrl: u64,
    pub xss: u64,
    pub tsc_adjust: u64,
    pub umwait_control: u64,
    pub memory_ctrl: u64,
    pub bndcfgs: u64,
    pub performance: Performance,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    /// PHYSBASEn, PHYSMASKn pairs.
    pub mtrr_variable: [[u64; 2]; 16],
    /// AMD.
    pub hwcr: u64,
    pub syscfg: u64,
    pub vm_cr: u64,
    pub vm_hsave_pa: u64,
    pub tsc_ratio: u64,
    /// #VE-independent last-branch state: DEBUGCTL.LBR's from/to and last exception from/to.
    pub last_branch: [u64; 4],
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    /// Machine-check banks: control, status, address, miscellaneous.
    pub mc_banks: [[u64; 4]; 8],
    /// Registers without effect that were written: number and value.
    pub other: std::collections::BTreeMap<u32, u64>,
}

/// One logical processor's registers.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct CpuState {
    /// General registers, RIP, and address-arithmetic slots; see [`crate::regs`].
    pub regs: [u64; 256],
    pub lazy: LazyFlags,
    /// RFLAGS. The six status bits are valid only while `lazy.kind` is EXPLICIT; use [`CpuState::rflags`].
    rflags: u64,
    /// Current privilege level; equals SS.DPL except while a world switch is under way.
    pub cpl: u8,
    pub cr0: Cr0,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: Cr4,
    pub efer: Efer,
    pub xcr0: u64,
    pub pkru: u32,
    pub mxcsr: u32,
    /// PAE page-directory-pointer-table entries, loaded by MOV CR3 and VM entry.
    pub pdpte: [u64; 4],
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableReg,
    pub idtr: TableReg,
    /// DR0–DR3.
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub vec: [Vec512; 32],
    pub x87: X87,
    pub msrs: Msrs,
    pub activity: Activity,
    pub shadow: Shadow,
    /// Debug exceptions that wait for the next boundary: DR6-format bits (B0–B3, BS), 0 if none.
    pub pending_debug: u64,
    /// Added to the host-independent time base to give the TSC (wrapping); includes IA32_TSC writes.
    pub tsc_offset: u64,
}

impl Default for CpuState {
    fn default() -> CpuState {
        CpuState::new()
    }
}

impl CpuState {
    /// State after RESET (SDM vol. 3, Processor State After Reset; APM vol. 2, Initial Processor State).
    pub fn new() -> CpuState {
        let data = |selector| Segment::real(selector, 0x93, 0xffff);
        let mut s = CpuState {
            regs: [0; 256],
            lazy: LazyFlags { kind: FlagKind::EXPLICIT, ..Default::default() },
            rflags: 2,
            cpl: 0,
            cr0: Cr0::from_bits_retain(0x6000_0010),
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            xcr0: 1,
            pkru: 0,
            mxcsr: 0x1f80,
            pdpte: [0; 4],
            seg: [
                data(0),
                Segment { selector: 0xf000, access: 0x9b, limit: 0xffff, base: 0xffff_0000 },
                data(0),
                data(0),
                data(0),
                data(0),
            ],
            ldtr: Segment { selector: 0, access: 0x82, limit: 0xffff, base: 0 },
            tr: Segment { selector: 0, access: 0x8b, limit: 0xffff, base: 0 },
            gdtr: TableReg { base: 0, limit: 0xffff },
            idtr: TableReg { base: 0, limit: 0xffff },
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            vec: [[0; 8]; 32],
            x87: X87 { control: 0x40, tags: 0xff, ..X87::default() },
            msrs: Msrs { pat: 0x0007_0406_0007_0406, tsc_ratio: 1 << 32, mcg_ctl: u64::MAX, ..Msrs::default() },
            activity: Activity::Active,
            shadow: Shadow::default(),
            pending_debug: 0,
            tsc_offset: 0,
        };
        s.regs[regs::RIP as usize] = 0xfff0;
        s.mirror_bases();
        s
    }

    /// RFLAGS with the status flags worked out.
    #[inline]
    pub fn rflags(&self) -> u64 {
        match self.lazy.compute() {
            None => self.rflags,
            Some(status) => (self.rflags & !Rflags::STATUS.bits()) | status,
        }
    }

    /// The stored RFLAGS, whose status bits mean something only while `lazy.kind` is EXPLICIT.
    #[inline(always)]
    pub fn explicit_flags(&self) -> u64 {
        self.rflags
    }

    /// Replace all of RFLAGS (bit 1 is forced to one, bits that do not exist to zero).
    #[inline]
    pub fn set_rflags(&mut self, value: u64) {
        self.rflags = (value & 0x3f_7fd5) | 2;
        self.lazy.kind = FlagKind::EXPLICIT;
    }

    /// Whether a non-status flag is set (IF, DF, TF, NT, AC, VM, …); cheap, does not touch the lazy flags.
    #[inline(always)]
    pub fn flag(&self, flag: Rflags) -> bool {
        debug_assert!(!Rflags::STATUS.intersects(flag));
        self.rflags & flag.bits() != 0
    }

    /// Set or clear non-status flags only; does not touch the lazy flags.
    #[inline(always)]
    pub fn set_flag(&mut self, flag: Rflags, on: bool) {
        debug_assert!(!Rflags::STATUS.intersects(flag));
        if on {
            self.rflags |= flag.bits();
        } else {
            self.rflags &= !flag.bits();
        }
    }

    /// Set all six status flags.
    #[inline(always)]
    pub fn set_all_status(&mut self, value: u64) {
        self.rflags = (self.rflags & !Rflags::STATUS.bits()) | value;
        self.lazy.kind = FlagKind::EXPLICIT;
    }

    /// Set CF, keeping the other status flags: the lazy flags stay lazy where they can.
    #[inline(always)]
    pub fn set_carry(&mut self, carry: u64) {
        let lazy = &mut self.lazy;
        match lazy.kind & !3 {
            FlagKind::EXPLICIT => self.rflags = (self.rflags & !1) | carry,
            FlagKind::LOGIC => {
                // The same flags as an increment by nothing leaves.
                lazy.a = lazy.res;
                lazy.kind = FlagKind::INC | lazy.kind & 3;
                lazy.carry = carry as u8;
            }
            FlagKind::SUB | FlagKind::DEC => {
                lazy.kind = FlagKind::DEC | lazy.kind & 3;
                lazy.carry = carry as u8;
            }
            FlagKind::ADD | FlagKind::INC => {
                lazy.kind = FlagKind::INC | lazy.kind & 3;
                lazy.carry = carry as u8;
            }
            FlagKind::SHIFT => lazy.carry = carry as u8,
            _ => self.set_status(1, carry),
        }
    }

    /// Set the status flags in `mask` to those of `value`, keeping the others.
    #[inline(never)]
    pub fn set_status(&mut self, mask: u64, value: u64) {
        let old = self.rflags();
        self.rflags = (old & !mask) | (value & mask);
        self.lazy.kind = FlagKind::EXPLICIT;
    }

    /// Clear all status flags.
    #[inline(always)]
    pub fn clear_status(&mut self) {
        self.rflags &= !Rflags::STATUS.bits();
        self.lazy.kind = FlagKind::EXPLICIT;
    }

    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }

    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.regs[regs::RIP as usize]
    }
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.regs[regs::RIP as usize] = rip;
    }
    #[inline(always)]
    pub fn gpr(&self, index: u8) -> u64 {
        self.regs[index as usize]
    }
    #[inline(always)]
    pub fn set_gpr(&mut self, index: u8, value: u64) {
        self.regs[index as usize] = value;
    }

    /// A segment register, hidden part included.
    #[inline(always)]
    pub fn segment(&self, s: SegReg) -> &Segment {
        &self.seg[s as usize]
    }
    /// Replace a segment register and its base mirror.
    pub fn set_segment(&mut self, s: SegReg, value: Segment) {
        self.seg[s as usize] = value;
        self.regs[regs::SEG_BASE as usize + s as usize] = value.base;
    }
    /// Copy all six segment bases into the register file; call after writing `seg` directly.
    #[inline]
    pub fn mirror_bases(&mut self) {
        for (i, s) in self.seg.iter().enumerate() {
            self.regs[regs::SEG_BASE as usize + i] = s.base;
        }
    }

    #[inline]
    pub fn protected(&self) -> bool {
        self.cr0.contains(Cr0::PE)
    }
    #[inline]
    pub fn virtual_8086(&self) -> bool {
        self.protected() && self.flag(Rflags::VM)
    }
    /// IA-32e mode is active (compatibility or 64-bit).
    #[inline]
    pub fn long_mode(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }
    /// 64-bit mode: IA-32e mode with CS.L set.
    #[inline]
    pub fn mode64(&self) -> bool {
        self.long_mode() && self.seg[SegReg::Cs as usize].long()
    }
    pub fn paging(&self) -> bool {
        self.cr0.contains(Cr0::PG)
    }
}
