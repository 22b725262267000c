//! Segment registers, descriptor-table registers and the instructions that inspect descriptors (SDM vol. 2; vol. 3, Protection).

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use undervisor_core::intercept::MemoryOperand;
use undervisor_core::{Cr4, Intercept, SegReg, TableReg, Vector, regs};

use crate::cpu::{Cpu, Exec};
use crate::exec::Row;
use crate::exec::int_math::ZF;
use crate::operand::{Gpr, address_mask, segment_of};
use crate::segments::{Blame, is_null, null_segment, system};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    let segment = |n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_segment_register();
    Some(match insn.mnemonic() {
        M::Mov if segment(0) => Row::ends(mov_to_segment),
        M::Mov if segment(1) => Row::new(mov_from_segment),
        M::Pop if segment(0) => Row::ends(pop_segment),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => Row::ends(load_far_pointer),
        M::Lgdt | M::Lidt => Row::ends(load_table),
        M::Sgdt | M::Sidt => Row::ends(store_table),
        M::Lldt => Row::ends(lldt),
        M::Ltr => Row::ends(ltr),
        M::Sldt | M::Str => Row::ends(store_selector),
        M::Lar => Row::new(lar),
        M::Lsl => Row::new(lsl),
        M::Verr | M::Verw => Row::new(verify),
        M::Arpl => Row::new(arpl),
        _ => return None,
    })
}

/// Register or memory operand `n` as exits report it, and the linear address if it is memory (not yet checked).
pub fn exit_operand(cpu: &Cpu, insn: &Instruction, n: u32) -> MemoryOperand {
    let gpr = |r: Register| Gpr::of(r).map(|g| g.number);
    if insn.op_kind(n) == OpKind::Register {
        let r = insn.op_register(n);
        return MemoryOperand { register: gpr(r), operand_size: r.size() as u8, ..MemoryOperand::default() };
    }
    let base = insn.memory_base();
    let index = insn.memory_index();
    let segment = cpu.effective_segment(insn);
    let offset = cpu.effective_offset(insn);
    let linear = if cpu.mode.is64() {
        let base = if matches!(segment, SegReg::Fs | SegReg::Gs) { cpu.state.segment(segment).base } else { 0 };
        base.wrapping_add(offset)
    } else {
        cpu.state.segment(segment).base.wrapping_add(offset) & 0xffff_ffff
    };
    let address_size = match address_mask(insn) {
        0xffff => 0,
        0xffff_ffff => 1,
        _ => 2,
    };
    // A RIP-relative displacement counts from the next instruction; the decoder has folded that into the displacement.
    let displacement = match base {
        Register::RIP | Register::EIP => insn.memory_displacement64().wrapping_sub(insn.next_ip()) as i64,
        _ => insn.memory_displacement64() as i64,
    };
    MemoryOperand {
        register: None,
        scale: insn.memory_index_scale().trailing_zeros() as u8,
        address_size,
        segment: segment as u8,
        index: gpr(index),
        base: gpr(base),
        displacement,
        operand_size: insn.memory_size().size() as u8,
        register2: 0,
        linear,
    }
}

/// #UD in real and virtual-8086 mode.
fn protected_only(cpu: &mut Cpu) -> Exec {
    if !cpu.state.protected() || cpu.state.virtual_8086() { Err(cpu.ud()) } else { Ok(()) }
}

fn cpl0(cpu: &mut Cpu) -> Exec {
    if cpu.state.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// #GP(0) by user-mode instruction prevention.
pub fn umip(cpu: &mut Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::UMIP) && cpu.state.cpl > 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn mov_to_segment(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let Some(register) = segment_of(insn.op0_register()).filter(|&r| r != SegReg::Cs) else {
        return Err(cpu.ud());
    };
    let selector = selector_operand(cpu, insn, 1)?;
    cpu.load_segment(register, selector)?;
    if register == SegReg::Ss {
        cpu.shadow_after_mov_ss();
    }
    Ok(())
}

/// A 16-bit operand, whatever the register's size.
fn selector_operand(cpu: &mut Cpu, insn: &Instruction, n: u32) -> Exec<u16> {
    if insn.op_kind(n) == OpKind::Register {
        return Ok(cpu.gpr(insn.op_register(n)) as u16);
    }
    let linear = cpu.effective_linear(insn, 2, false)?;
    cpu.read_linear::<u16>(linear)
}

/// Store a selector: 16 bits in memory, zero-extended in a register.
fn store_word(cpu: &mut Cpu, insn: &Instruction, value: u64) -> Exec {
    if insn.op0_kind() == OpKind::Register {
        cpu.set_gpr(insn.op0_register(), value);
        return Ok(());
    }
    let linear = cpu.effective_linear(insn, 2, true)?;
    cpu.write_linear(linear, value as u16)
}

fn mov_from_segment(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let Some(register) = segment_of(insn.op1_register()) else {
        return Err(cpu.ud());
    };
    store_word(cpu, insn, cpu.state.segment(register).selector as u64)
}

fn pop_segment(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let Some(register) = segment_of(insn.op0_register()) else {
        return Err(cpu.ud());
    };
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    // The load may fault or exit, and rSP must then be as before; but the old SS says how wide rSP is.
    let before = cpu.state.gpr(regs::RSP);
    let selector = cpu.pop(size)? as u16;
    let after = cpu.state.gpr(regs::RSP);
    cpu.state.set_gpr(regs::RSP, before);
    cpu.load_segment(register, selector)?;
    cpu.state.set_gpr(regs::RSP, after);
    if register == SegReg::Ss {
        cpu.shadow_after_mov_ss();
    }
    Ok(())
}

fn load_far_pointer(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let register = match insn.mnemonic() {
        M::Lds => SegReg::Ds,
        M::Les => SegReg::Es,
        M::Lfs => SegReg::Fs,
        M::Lgs => SegReg::Gs,
        _ => SegReg::Ss,
    };
    let size = insn.op0_register().size();
    let linear = cpu.effective_linear(insn, size + 2, false)?;
    let offset = cpu.read_sized(linear, size)?;
    let at = linear.wrapping_add(size as u64);
    let selector = cpu.read_linear::<u16>(if cpu.mode.is64() { at } else { at & 0xffff_ffff })?;
    cpu.load_segment(register, selector)?;
    cpu.set_gpr(insn.op0_register(), offset);
    Ok(())
}

fn load_table(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpl0(cpu)?;
    let idt = insn.mnemonic() == M::Lidt;
    cpu.intercept(Intercept::Gdtr { load: true, idt, operand: exit_operand(cpu, insn, 0) })?;
    let long = cpu.mode.is64();
    let linear = cpu.effective_linear(insn, if long { 10 } else { 6 }, false)?;
    let limit = cpu.read_linear::<u16>(linear)?;
    let at = linear.wrapping_add(2);
    let base = if long {
        cpu.read_linear::<u64>(at)?
    } else {
        let base = cpu.read_linear::<u32>(at & 0xffff_ffff)? as u64;
        // A 16-bit operand size takes 24 bits.
        if matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) { base & 0xff_ffff } else { base }
    };
    if long && !cpu.canonical_base(base) {
        return Err(cpu.gp(0));
    }
    let table = TableReg { base, limit };
    if idt {
        cpu.state.idtr = table;
    } else {
        cpu.state.gdtr = table;
    }
    Ok(())
}

fn store_table(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    umip(cpu)?;
    let idt = insn.mnemonic() == M::Sidt;
    cpu.intercept(Intercept::Gdtr { load: false, idt, operand: exit_operand(cpu, insn, 0) })?;
    let table = if idt { cpu.state.idtr } else { cpu.state.gdtr };
    let long = cpu.mode.is64();
    let size = if long { 10 } else { 6 };
    let linear = cpu.effective_linear(insn, size, true)?;
    let mut image = [0u8; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(linear, &image[..size])
}

fn lldt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    cpl0(cpu)?;
    cpu.intercept(Intercept::Ldtr { load: true, task: false, operand: exit_operand(cpu, insn, 0) })?;
    let selector = selector_operand(cpu, insn, 0)?;
    if is_null(selector) {
        cpu.state.ldtr = null_segment(selector);
        return Ok(());
    }
    if selector & 4 != 0 {
        return cpu.blame(Blame::GP, selector);
    }
    let d = cpu.read_system_descriptor(selector, Blame::GP)?;
    if d.is_code_or_data() || d.kind() != system::LDT {
        return cpu.blame(Blame::GP, selector);
    }
    if !d.present() {
        return cpu.blame(Blame::GP.as_vector(Vector::NP), selector);
    }
    if !cpu.canonical_base(d.base()) {
        return cpu.blame(Blame::GP, selector);
    }
    cpu.state.ldtr = d.segment(selector);
    Ok(())
}

fn ltr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    cpl0(cpu)?;
    cpu.intercept(Intercept::Ldtr { load: true, task: true, operand: exit_operand(cpu, insn, 0) })?;
    let selector = selector_operand(cpu, insn, 0)?;
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    if selector & 4 != 0 {
        return cpu.blame(Blame::GP, selector);
    }
    let mut d = cpu.read_system_descriptor(selector, Blame::GP)?;
    let known = d.kind() == system::TSS || (d.kind() == system::TSS16 && !cpu.state.long_mode());
    if d.is_code_or_data() || !known {
        return cpu.blame(Blame::GP, selector);
    }
    if !d.present() {
        return cpu.blame(Blame::GP.as_vector(Vector::NP), selector);
    }
    if !cpu.canonical_base(d.base()) {
        return cpu.blame(Blame::GP, selector);
    }
    d.raw |= 1 << 41;
    cpu.write_access_byte(selector, &d)?;
    cpu.state.tr = d.segment(selector);
    Ok(())
}

fn store_selector(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    umip(cpu)?;
    let task = insn.mnemonic() == M::Str;
    cpu.intercept(Intercept::Ldtr { load: false, task, operand: exit_operand(cpu, insn, 0) })?;
    let selector = if task { cpu.state.tr.selector } else { cpu.state.ldtr.selector };
    store_word(cpu, insn, selector as u64)
}

/// LAR (SDM vol. 2, LAR: Segment and Gate Types).
fn lar(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    let selector = selector_operand(cpu, insn, 1)?;
    let long = cpu.state.long_mode();
    let found = cpu.visible_descriptor(selector)?.filter(|d| {
        d.is_code_or_data()
            || match d.kind() {
                system::LDT | system::TSS | system::TSS_BUSY | system::CALL_GATE => true,
                system::TSS16 | system::TSS16_BUSY | system::CALL_GATE16 | system::TASK_GATE => !long,
                _ => false,
            }
    });
    if let Some(d) = found {
        let rights = (d.raw >> 32) & 0x00ff_ff00;
        cpu.set_gpr(insn.op0_register(), rights);
    }
    cpu.state.set_status(ZF, if found.is_some() { ZF } else { 0 });
    Ok(())
}

fn lsl(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    let selector = selector_operand(cpu, insn, 1)?;
    let long = cpu.state.long_mode();
    let found = cpu.visible_descriptor(selector)?.filter(|d| {
        d.is_code_or_data()
            || match d.kind() {
                system::LDT | system::TSS | system::TSS_BUSY => true,
                system::TSS16 | system::TSS16_BUSY => !long,
                _ => false,
            }
    });
    if let Some(d) = found {
        cpu.set_gpr(insn.op0_register(), d.limit() as u64);
    }
    cpu.state.set_status(ZF, if found.is_some() { ZF } else { 0 });
    Ok(())
}

/// VERR, VERW.
fn verify(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    let selector = selector_operand(cpu, insn, 0)?;
    let write = insn.mnemonic() == M::Verw;
    let found = cpu.visible_descriptor(selector)?;
    let ok = found.is_some_and(|d| d.is_code_or_data() && if write { d.writable_data() } else { d.readable() });
    cpu.state.set_status(ZF, if ok { ZF } else { 0 });
    Ok(())
}

fn arpl(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    protected_only(cpu)?;
    let source = cpu.gpr(insn.op1_register()) & 3;
    let (place, old) = cpu.modify(insn, 0)?;
    let raise = old & 3 < source;
    if raise {
        cpu.put(place, old & !3 | source)?;
    }
    cpu.state.set_status(ZF, if raise { ZF } else { 0 });
    Ok(())
}
