//! Control and debug registers, and TLB instructions (SDM vol. 3, Control Registers; vol. 2, MOV—Move to/from Control
//! Registers; MOV—Move to/from Debug Registers).

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use undervisor_core::model::{ASIDS, INVLPGB_COUNT_MAX};
use undervisor_core::{Cr0, Cr4, Dr6, Dr7, Efer, Exception, Feature, Intercept, SegReg, Vector, bits::CR0_DEFINED};

use crate::cpu::{Cpu, Exec};
use crate::exec::Row;
use crate::exec::segment::{exit_operand, umip};
use crate::operand::Gpr;
use crate::segments::system;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    let kind = |n| if insn.op_kind(n) == OpKind::Register { insn.op_register(n) } else { Register::None };
    Some(Row::ends(match insn.mnemonic() {
        M::Mov if kind(1).is_cr() => mov_from_cr,
        M::Mov if kind(0).is_cr() => mov_to_cr,
        M::Mov if kind(1).is_dr() => mov_from_dr,
        M::Mov if kind(0).is_dr() => mov_to_dr,
        M::Lmsw => lmsw,
        M::Smsw => smsw,
        M::Clts => clts,
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Invlpgb => invlpgb,
        M::Tlbsync => tlbsync,
        _ => return None,
    }))
}

fn cpl0(cpu: &mut Cpu) -> Exec {
    if cpu.state.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn number(r: Register) -> u8 {
    Gpr::of(r).map_or(0, |g| g.number)
}

fn mov_from_cr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let cr = insn.op1_register().number() as u8;
    if !matches!(cr, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    cpl0(cpu)?;
    cpu.intercept(Intercept::ReadCr { cr, register: number(insn.op0_register()) })?;
    let value = match cr {
        0 => cpu.virt_read_cr(0, cpu.state.cr0.bits()),
        2 => cpu.state.cr2,
        3 => cpu.virt_read_cr(3, cpu.state.cr3),
        4 => cpu.virt_read_cr(4, cpu.state.cr4.bits()),
        _ => match cpu.virt_read_cr8()? {
            Some(value) => value,
            None => cpu.apic.cr8() as u64,
        },
    };
    cpu.set_gpr(insn.op0_register(), value);
    Ok(())
}

fn mov_to_cr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let cr = insn.op0_register().number() as u8;
    if !matches!(cr, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    cpl0(cpu)?;
    let value = cpu.gpr(insn.op1_register());
    if cpu.checks_before_intercepts() {
        cpu.check_cr(cr, value)?;
    }
    cpu.intercept(Intercept::WriteCr { cr, register: number(insn.op1_register()), value })?;
    match cr {
        0 => {
            let value = cpu.virt_write_cr(0, value);
            cpu.write_cr0(value)
        }
        2 => {
            cpu.state.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(value),
        4 => {
            let value = cpu.virt_write_cr(4, value);
            cpu.write_cr4(value)
        }
        _ => {
            cpu.check_cr(8, value)?;
            if !cpu.virt_write_cr8(value)? {
                cpu.write_task_priority(value as u8);
            }
            Ok(())
        }
    }
}

impl Cpu {
    /// In an SVM guest most instructions are checked for exceptions before their intercepts, some by what they would write (APM vol. 2,
    /// Instruction Intercepts); a VM exit comes before those (SDM vol. 3, Relative Priority of Faults and VM Exits).
    pub(crate) fn checks_before_intercepts(&self) -> bool {
        self.virt.guest && self.is_amd()
    }

    /// #GP(0) if MOV to a control register may not write `value`, memory aside.
    fn check_cr(&mut self, cr: u8, value: u64) -> Exec {
        let wrong = match cr {
            0 => self.cr0_wrong(value),
            3 => self.cr3_wrong(value),
            4 => self.cr4_wrong(value),
            8 => value >> 4 != 0,
            _ => false,
        };
        if wrong { Err(self.gp(0)) } else { Ok(()) }
    }

    fn cr0_wrong(&self, value: u64) -> bool {
        let new = Cr0::from_bits_retain(value & CR0_DEFINED | Cr0::ET.bits());
        let (paged, pages) = (self.state.cr0.contains(Cr0::PG), new.contains(Cr0::PG));
        let (efer, cr4) = (self.state.efer, self.state.cr4);
        let tr16 = matches!(self.state.tr.kind(), system::TSS16 | system::TSS16_BUSY);
        let cannot_enter = !cr4.contains(Cr4::PAE) || self.state.segment(SegReg::Cs).long() || tr16;
        value >> 32 != 0
            || (pages && !new.contains(Cr0::PE))
            || (new.contains(Cr0::NW) && !new.contains(Cr0::CD))
            || !self.virt_cr_allowed(0, new.bits())
            || (pages && !paged && efer.contains(Efer::LME) && cannot_enter)
            || (!pages && paged && (self.mode.is64() || cr4.contains(Cr4::PCIDE)))
    }

    /// MOV to CR0, checks included.
    pub fn write_cr0(&mut self, value: u64) -> Exec {
        self.check_cr(0, value)?;
        let new = Cr0::from_bits_retain(value & CR0_DEFINED | Cr0::ET.bits());
        let old = self.state.cr0;
        let (paged, pages) = (old.contains(Cr0::PG), new.contains(Cr0::PG));
        let mut efer = self.state.efer;
        if pages && !paged && efer.contains(Efer::LME) {
            efer |= Efer::LMA;
        }
        if !pages && paged {
            efer &= !Efer::LMA;
        }
        let changed = old ^ new;
        let pdptes = Cr0::PG | Cr0::CD | Cr0::NW;
        if pages && changed.intersects(pdptes) && !efer.contains(Efer::LMA) {
            self.load_pdptes(self.state.cr3, new, self.state.cr4)?;
        }
        self.state.cr0 = new;
        self.state.efer = efer;
        if changed.intersects(Cr0::PG | Cr0::PE) {
            self.flush_all(true);
        }
        self.mode_changed();
        Ok(())
    }

    /// The CR4 bits that the model has.
    pub fn cr4_allowed(&self) -> u64 {
        self.model.cr4_bits()
    }

    fn cr4_wrong(&self, value: u64) -> bool {
        let new = Cr4::from_bits_retain(value);
        let changed = self.state.cr4 ^ new;
        let long = self.state.long_mode();
        value & !self.cr4_allowed() != 0
            || (long && changed.intersects(Cr4::LA57))
            || (long && !new.contains(Cr4::PAE))
            || (changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE) && (!long || self.state.cr3 & 0xfff != 0))
            || !self.virt_cr_allowed(4, value)
    }

    /// MOV to CR4, checks included.
    pub fn write_cr4(&mut self, value: u64) -> Exec {
        self.check_cr(4, value)?;
        let old = self.state.cr4;
        let new = Cr4::from_bits_retain(value);
        let changed = old ^ new;
        let long = self.state.long_mode();
        let reload = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
        if self.state.paging() && !long && changed.intersects(reload) {
            self.load_pdptes(self.state.cr3, self.state.cr0, new)?;
        }
        self.state.cr4 = new;
        let flush = Cr4::PGE | Cr4::PAE | Cr4::PSE | Cr4::LA57 | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        if changed.intersects(flush) {
            self.flush_all(true);
        }
        self.mode_changed();
        Ok(())
    }

    /// With CR4.PCIDE bit 63 is no part of CR3.
    fn cr3_wrong(&self, value: u64) -> bool {
        let value = if self.state.cr4.contains(Cr4::PCIDE) { value & !(1 << 63) } else { value };
        self.mode.is64() && value >> self.physical_bits() != 0
    }

    /// MOV to CR3, checks included.
    pub fn write_cr3(&mut self, value: u64) -> Exec {
        self.check_cr(3, value)?;
        let pcide = self.state.cr4.contains(Cr4::PCIDE);
        let keep = pcide && value >> 63 != 0;
        let value = if pcide { value & !(1 << 63) } else { value };
        self.load_pdptes(value, self.state.cr0, self.state.cr4)?;
        self.state.cr3 = value;
        self.cr3_written(keep);
        Ok(())
    }

    /// CR3 as a task switch loads it.
    pub fn load_cr3(&mut self, value: u64) -> Exec {
        self.write_cr3(value)
    }
}

/// LMSW: the low four bits of CR0; PE can be set but not cleared.
fn lmsw(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpl0(cpu)?;
    if cpu.checks_before_intercepts() {
        // SVM's intercept reports nothing of the operand, and comes before its memory exceptions.
        cpu.intercept(Intercept::Lmsw { source: 0, address: None, register: 0 })?;
    }
    let (source, address, register) = if insn.op0_kind() == OpKind::Register {
        (cpu.gpr(insn.op0_register()) as u16, None, number(insn.op0_register()))
    } else {
        let linear = cpu.effective_linear(insn, 2, false)?;
        (cpu.read_linear::<u16>(linear)?, Some(linear), 0)
    };
    cpu.intercept(Intercept::Lmsw { source, address, register })?;
    let visible = cpu.virt_read_cr(0, cpu.state.cr0.bits());
    let value = visible & !0xe | source as u64 & 0xf;
    let value = cpu.virt_write_cr(0, value);
    cpu.write_cr0(value)
}

fn smsw(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    umip(cpu)?;
    cpu.intercept(Intercept::Smsw)?;
    let value = cpu.virt_read_cr(0, cpu.state.cr0.bits());
    if insn.op0_kind() == OpKind::Register {
        cpu.set_gpr(insn.op0_register(), value);
        return Ok(());
    }
    let linear = cpu.effective_linear(insn, 2, true)?;
    cpu.write_linear(linear, value as u16)
}

fn clts(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpl0(cpu)?;
    cpu.intercept(Intercept::Clts)?;
    let visible = cpu.virt_read_cr(0, cpu.state.cr0.bits());
    let value = cpu.virt_write_cr(0, visible & !Cr0::TS.bits());
    // Only TS can change: whatever else is in `value` is already so.
    cpu.state.cr0.set(Cr0::TS, value & Cr0::TS.bits() != 0);
    cpu.mode_changed();
    Ok(())
}

/// The debug register behind a number: 4 and 5 are 6 and 7 unless CR4.DE is set.
fn debug_register(cpu: &mut Cpu, r: Register) -> Exec<u8> {
    let n = r.number() as u8;
    match n {
        4 | 5 if cpu.state.cr4.contains(Cr4::DE) => Err(cpu.ud()),
        4 | 5 => Ok(n + 2),
        0..=7 => Ok(n),
        _ => Err(cpu.ud()),
    }
}

/// What stands before an access to a debug register, and the register's number. Intel's exit comes before everything: CR4.DE, the
/// privilege level, and #DB while DR7.GD protects the registers (SDM vol. 3, Instructions That Cause VM Exits Conditionally: MOV DR; Relative
/// Priority of Faults and VM Exits); on AMD an intercept comes after the exceptions that need no memory and no operand's value (APM vol. 2,
/// Intercept Operation).
fn debug_access(cpu: &mut Cpu, register: Register, what: impl FnOnce(u8) -> Intercept) -> Exec<u8> {
    let what = what(register.number() as u8);
    let amd = cpu.is_amd();
    if !amd && register.number() < 8 {
        cpu.intercept(what)?;
    }
    let dr = debug_register(cpu, register)?;
    cpl0(cpu)?;
    if cpu.state.dr7 & Dr7::GD.bits() != 0 {
        return Err(cpu.raise(Exception { payload: Dr6::BD.bits(), ..Exception::new(Vector::DB) }));
    }
    if amd {
        cpu.intercept(what)?;
    }
    Ok(dr)
}

/// #GP(0) for bits of DR6 and DR7 that must be zero.
fn check_dr(cpu: &mut Cpu, dr: u8, value: u64) -> Exec {
    if dr >= 6 && value >> 32 != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn mov_from_dr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let register = number(insn.op0_register());
    let dr = debug_access(cpu, insn.op1_register(), |dr| Intercept::ReadDr { dr, register })?;
    let value = match dr {
        6 => cpu.state.dr6,
        7 => cpu.state.dr7,
        n => cpu.state.dr[n as usize & 3],
    };
    cpu.set_gpr(insn.op0_register(), value);
    Ok(())
}

fn mov_to_dr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let value = cpu.gpr(insn.op1_register());
    if cpu.checks_before_intercepts() && cpu.state.cpl == 0 && cpu.state.dr7 & Dr7::GD.bits() == 0 {
        let dr = debug_register(cpu, insn.op0_register())?;
        check_dr(cpu, dr, value)?;
    }
    let register = number(insn.op1_register());
    let dr = debug_access(cpu, insn.op0_register(), |dr| Intercept::WriteDr { dr, register, value })?;
    check_dr(cpu, dr, value)?;
    match dr {
        6 => {
            let bus_lock = if cpu.model.has(Feature::BUS_LOCK_DETECT) { Dr6::BLD } else { Dr6::empty() };
            let writable = 0xe00f | bus_lock.bits();
            cpu.state.dr6 = value & writable | Dr6::FIXED.bits() & !writable;
        }
        7 => cpu.write_dr7(value),
        n => {
            cpu.state.dr[n as usize & 3] = value;
            cpu.debug_changed();
        }
    }
    Ok(())
}

fn invlpg(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpl0(cpu)?;
    // Segment limits do not matter, and a non-canonical address is no fault but a NOP.
    let linear = exit_operand(cpu, insn, 0).linear;
    cpu.intercept(Intercept::Invlpg(linear))?;
    if cpu.canonical(linear) {
        cpu.flush_page(linear);
    }
    Ok(())
}

fn invpcid(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpl0(cpu)?;
    if cpu.state.virtual_8086() {
        return Err(cpu.gp(0));
    }
    let operand = exit_operand(cpu, insn, 1);
    cpu.intercept(Intercept::Invpcid { descriptor: operand.linear, register: number(insn.op0_register()) })?;
    let kind = cpu.gpr(insn.op0_register());
    let linear = cpu.effective_linear(insn, 16, false)?;
    let pcid = cpu.read_linear::<u64>(linear)?;
    let address = cpu.read_linear::<u64>(linear.wrapping_add(8))?;
    let tagged = kind < 2 && pcid != 0 && !cpu.state.cr4.contains(Cr4::PCIDE);
    if kind > 3 || pcid >> 12 != 0 || tagged || (kind == 0 && !cpu.canonical_base(address)) {
        return Err(cpu.gp(0));
    }
    cpu.invpcid(kind, pcid as u16, address);
    Ok(())
}

/// INVLPGB (APM vol. 3): rAX says what to compare, with the address; EDX is the ASID and the PCID, ECX how many pages more.
///
/// | rAX | | EDX | | ECX | |
/// |---|---|---|---|---|---|
/// | 0 | compare the address | 15:0 | ASID | 15:0 | pages more |
/// | 1 | compare the PCID | 27:16 | PCID | 31 | of 2 MiB |
/// | 2 | compare the ASID | | | | |
/// | 3 | global translations, too | | | | |
/// | 4 | final translations only | | | | |
/// | 5 | nested translations, too | | | | |
fn invlpgb(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    const ADDRESS: u64 = 1 << 0;
    const PCID: u64 = 1 << 1;
    const ASID: u64 = 1 << 2;
    const GLOBAL: u64 = 1 << 3;
    cpl0(cpu)?;
    cpu.intercept(Intercept::Invlpgb)?;
    let rax = match insn.op0_register() {
        Register::None => cpu.gpr(if cpu.mode.is64() { Register::RAX } else { Register::EAX }),
        r => cpu.gpr(r),
    };
    let (ecx, edx) = (cpu.gpr(Register::ECX), cpu.gpr(Register::EDX));
    let (asid, pcid) = (edx as u32 & 0xffff, (edx >> 16 & 0xfff) as u16);
    let guest = cpu.svm_guest_asid();
    let reserved = rax & 0xfc0 != 0 || ecx & 0x7fff_0000 != 0 || edx >> 28 != 0;
    let far = ecx & 0xffff > INVLPGB_COUNT_MAX as u64;
    // A guest's ASID is put in the place of what it says.
    let foreign = guest.is_none() && rax & ASID != 0 && (asid >= ASIDS || asid != 0 && !cpu.state.efer.contains(Efer::SVME));
    let untagged = rax & PCID != 0 && !cpu.state.cr4.contains(Cr4::PCIDE);
    let absent = !cpu.state.protected() || !cpu.svm_invlpgb_enabled();
    if absent || reserved || far || foreign || untagged {
        cpu.intercept(Intercept::IllegalInvlpgb)?;
        return Err(if absent { cpu.ud() } else { cpu.gp(0) });
    }
    let asid = guest.or((rax & ASID != 0).then_some(asid));
    let pcid = (rax & PCID != 0).then_some(pcid);
    if rax & ADDRESS != 0 && asid == Some(cpu.translations.tag) && pcid.is_none() && rax & GLOBAL != 0 {
        let size = if ecx >> 31 != 0 { 1u64 << 21 } else { 1 << 12 };
        for page in 0..=ecx & 0xffff {
            cpu.flush_page((rax & !0xfff).wrapping_add(page * size));
        }
    } else {
        // More may go than was asked for.
        cpu.flush_spaces(|k| asid.is_none_or(|a| k.tag == a) && pcid.is_none_or(|p| k.pcid == p));
    }
    cpu.broadcast_flush();
    Ok(())
}

/// TLBSYNC (APM vol. 3): other processors have acted on INVLPGB before they go on, so there is nothing to wait for.
fn tlbsync(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpl0(cpu)?;
    if !cpu.state.protected() || !cpu.svm_invlpgb_enabled() {
        return Err(cpu.ud());
    }
    cpu.intercept(Intercept::Tlbsync)
}
