//! Moves, conversions and exchanges of general-purpose data (SDM vol. 1, Data Transfer Instructions).

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use crate::cpu::{Cpu, Exec};
use crate::exec::branch::holds;
use crate::exec::int_math::{ones, sign_extend};
use crate::exec::{Row, operand_size};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::new(match insn.mnemonic() {
        M::Mov if general(insn, 0) && general(insn, 1) => mov,
        M::Movnti | M::Movzx => mov,
        M::Movsx | M::Movsxd => movsx,
        M::Movbe => movbe,
        M::Bswap => bswap,
        M::Lea => lea,
        M::Xchg => xchg,
        M::Xlatb => xlat,
        M::Cbw => cbw,
        M::Cwde => cwde,
        M::Cdqe => cdqe,
        M::Cwd => cwd,
        M::Cdq => cdq,
        M::Cqo => cqo,
        M::Cmova
        | M::Cmovae
        | M::Cmovb
        | M::Cmovbe
        | M::Cmove
        | M::Cmovg
        | M::Cmovge
        | M::Cmovl
        | M::Cmovle
        | M::Cmovne
        | M::Cmovno
        | M::Cmovnp
        | M::Cmovns
        | M::Cmovo
        | M::Cmovp
        | M::Cmovs => cmov,
        M::Seta
        | M::Setae
        | M::Setb
        | M::Setbe
        | M::Sete
        | M::Setg
        | M::Setge
        | M::Setl
        | M::Setle
        | M::Setne
        | M::Setno
        | M::Setnp
        | M::Setns
        | M::Seto
        | M::Setp
        | M::Sets => set,
        _ => return None,
    }))
}

/// Not a segment, control, debug or test register.
fn general(insn: &Instruction, n: u32) -> bool {
    insn.op_kind(n) != OpKind::Register || insn.op_register(n).is_gpr()
}

fn mov(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let value = cpu.operand(insn, 1)?;
    cpu.set_operand(insn, 0, value)
}

fn movsx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let bits = 8 * operand_size(insn, 1) as u32;
    let value = cpu.operand(insn, 1)?;
    cpu.set_operand(insn, 0, sign_extend(value, bits))
}

fn movbe(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let bits = 8 * operand_size(insn, 0) as u32;
    let value = cpu.operand(insn, 1)?;
    cpu.set_operand(insn, 0, value.swap_bytes() >> (64 - bits))
}

/// BSWAP of a 16-bit register is undefined; processors leave zero in it.
fn bswap(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let register = insn.op0_register();
    let value = cpu.gpr(register);
    let swapped = match register.size() {
        2 => 0,
        4 => (value as u32).swap_bytes() as u64,
        _ => value.swap_bytes(),
    };
    cpu.set_gpr(register, swapped);
    Ok(())
}

fn lea(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let offset = cpu.effective_offset(insn);
    cpu.set_gpr(insn.op0_register(), offset);
    Ok(())
}

fn xchg(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    // iced puts the memory operand first when there is one; for registers the order does not matter.
    let (memory, register) = if insn.op_kind(1) == OpKind::Memory { (1, 0) } else { (0, 1) };
    let (place, old) = cpu.modify(insn, memory)?;
    let new = cpu.gpr(insn.op_register(register));
    cpu.put(place, new)?;
    cpu.set_gpr(insn.op_register(register), old);
    Ok(())
}

fn xlat(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let base = insn.memory_base();
    let offset = cpu.gpr(base).wrapping_add(cpu.gpr(Register::AL)) & ones(8 * base.size() as u32);
    let value = cpu.read::<u8>(cpu.effective_segment(insn), offset)?;
    cpu.set_gpr(Register::AL, value as u64);
    Ok(())
}

/// `to` = `from` sign-extended.
fn extend(cpu: &mut Cpu, from: Register, to: Register) -> Exec {
    let value = sign_extend(cpu.gpr(from), 8 * from.size() as u32);
    cpu.set_gpr(to, value);
    Ok(())
}

/// `to` = the sign of `from`, spread.
fn spread(cpu: &mut Cpu, from: Register, to: Register) -> Exec {
    let value = sign_extend(cpu.gpr(from), 8 * from.size() as u32) as i64 >> 63;
    cpu.set_gpr(to, value as u64);
    Ok(())
}

fn cbw(cpu: &mut Cpu, _: &Instruction) -> Exec {
    extend(cpu, Register::AL, Register::AX)
}
fn cwde(cpu: &mut Cpu, _: &Instruction) -> Exec {
    extend(cpu, Register::AX, Register::EAX)
}
fn cdqe(cpu: &mut Cpu, _: &Instruction) -> Exec {
    extend(cpu, Register::EAX, Register::RAX)
}
fn cwd(cpu: &mut Cpu, _: &Instruction) -> Exec {
    spread(cpu, Register::AX, Register::DX)
}
fn cdq(cpu: &mut Cpu, _: &Instruction) -> Exec {
    spread(cpu, Register::EAX, Register::EDX)
}
fn cqo(cpu: &mut Cpu, _: &Instruction) -> Exec {
    spread(cpu, Register::RAX, Register::RDX)
}

/// The source is read, and a 32-bit destination zero-extended, whether or not the condition holds.
fn cmov(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let source = cpu.operand(insn, 1)?;
    let register = insn.op0_register();
    let value = if holds(cpu, insn.condition_code()) { source } else { cpu.gpr(register) };
    cpu.set_gpr(register, value);
    Ok(())
}

fn set(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let value = u64::from(holds(cpu, insn.condition_code()));
    cpu.set_operand(insn, 0, value)
}
