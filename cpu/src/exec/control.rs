//! Control and debug registers, and TLB instructions (SDM vol. 3, Control Registers; vol. 2, MOV—Move to/from Control
//! Registers; MOV—Move to/from Debug Registers).

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
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
            if value >> 4 != 0 {
                return Err(cpu.gp(0));
            }
            if !cpu.virt_write_cr8(value)? {
                cpu.write_task_priority(value as u8);
            }
            Ok(())
        }
    }
}

impl Cpu {
    /// MOV to CR0, checks included.
    pub fn write_cr0(&mut self, value: u64) -> Exec {
        if value >> 32 != 0 {
            return Err(self.gp(0));
        }
        let new = Cr0::from_bits_retain(value & CR0_DEFINED | Cr0::ET.bits());
        let old = self.state.cr0;
        let wrong = (new.contains(Cr0::PG) && !new.contains(Cr0::PE)) || (new.contains(Cr0::NW) && !new.contains(Cr0::CD));
        if wrong || !self.virt_cr_allowed(0, new.bits()) {
            return Err(self.gp(0));
        }
        let (paged, pages) = (old.contains(Cr0::PG), new.contains(Cr0::PG));
        let mut efer = self.state.efer;
        if pages && !paged && efer.contains(Efer::LME) {
            let tr16 = matches!(self.state.tr.kind(), system::TSS16 | system::TSS16_BUSY);
            if !self.state.cr4.contains(Cr4::PAE) || self.state.segment(SegReg::Cs).long() || tr16 {
                return Err(self.gp(0));
            }
            efer |= Efer::LMA;
        }
        if !pages && paged {
            if self.mode.is64() || self.state.cr4.contains(Cr4::PCIDE) {
                return Err(self.gp(0));
            }
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

    /// MOV to CR4, checks included.
    pub fn write_cr4(&mut self, value: u64) -> Exec {
        let old = self.state.cr4;
        let new = Cr4::from_bits_retain(value);
        let changed = old ^ new;
        let long = self.state.long_mode();
        let wrong = value & !self.cr4_allowed() != 0
            || (long && changed.intersects(Cr4::LA57))
            || (long && !new.contains(Cr4::PAE))
            || (changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE) && (!long || self.state.cr3 & 0xfff != 0));
        if wrong || !self.virt_cr_allowed(4, value) {
            return Err(self.gp(0));
        }
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

    /// MOV to CR3, checks included.
    pub fn write_cr3(&mut self, value: u64) -> Exec {
        let pcide = self.state.cr4.contains(Cr4::PCIDE);
        let keep = pcide && value >> 63 != 0;
        let value = if pcide { value & !(1 << 63) } else { value };
        let reserved = !0 << self.physical_bits();
        if self.mode.is64() && value & reserved != 0 {
            return Err(self.gp(0));
        }
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
    let register = number(insn.op1_register());
    let dr = debug_access(cpu, insn.op0_register(), |dr| Intercept::WriteDr { dr, register, value })?;
    if dr >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
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
