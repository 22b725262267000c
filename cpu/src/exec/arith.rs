//! Integer arithmetic and logic (SDM vol. 2; vol. 1, Binary Arithmetic Instructions).

use iced_x86::{Code, Instruction, Mnemonic as M, Register};
use undervisor_core::{Exception, FlagKind, Vector};

use crate::cpu::{Cpu, Exec};
use crate::exec::int_math::{self as math, CF, OF, STATUS, ZF, ones};
use crate::exec::{Row, operand_size};
use crate::operand::Place;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::new(match insn.mnemonic() {
        M::Add => add,
        M::Adc => adc,
        M::Sub => sub,
        M::Sbb => sbb,
        M::Cmp => cmp,
        M::And => and,
        M::Or => or,
        M::Xor => xor,
        M::Test => test,
        M::Inc => inc,
        M::Dec => dec,
        M::Neg => neg,
        M::Not => not,
        M::Mul => mul,
        M::Imul => imul,
        M::Div => div,
        M::Idiv => idiv,
        M::Xadd => xadd,
        M::Cmpxchg => cmpxchg,
        M::Cmpxchg8b => cmpxchg8b,
        M::Cmpxchg16b => cmpxchg16b,
        M::Adcx => adcx,
        M::Adox => adox,
        M::Mulx => mulx,
        M::Crc32 => crc32,
        _ => return None,
    }))
}

impl Cpu {
    /// CF as 0 or 1.
    pub fn carry(&self) -> u64 {
        self.state.rflags() & 1
    }

    /// Leave status flags to be worked out on demand. `res` and `a` must be zero-extended from `size` bytes.
    #[inline]
    pub fn set_lazy(&mut self, kind: u8, size: usize, a: u64, res: u64, carry: u64) {
        let l = &mut self.state.lazy;
        l.kind = kind | size.trailing_zeros() as u8;
        l.a = a;
        l.res = res;
        l.carry = carry as u8;
        l.carry_out = (l.compute().unwrap_or(0) & 1) as u8;
    }
}

/// Two-operand arithmetic. `f(a, b, carry)` gives the result, before truncation.
fn binary(cpu: &mut Cpu, insn: &Instruction, kind: u8, store: bool, f: fn(u64, u64, u64) -> u64) -> Exec {
    let size = operand_size(insn, 0);
    let mask = ones(8 * size as u32);
    let b = cpu.operand(insn, 1)? & mask;
    let carry = if matches!(kind, FlagKind::ADC | FlagKind::SBB) { cpu.carry() } else { 0 };
    if !store {
        let a = cpu.operand(insn, 0)?;
        cpu.set_lazy(kind, size, a, f(a, b, carry) & mask, carry);
        return Ok(());
    }
    let (place, a) = cpu.modify(insn, 0)?;
    let result = f(a, b, carry) & mask;
    cpu.put(place, result)?;
    cpu.set_lazy(kind, size, a, result, carry);
    Ok(())
}

fn add(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::ADD, true, |a, b, _| a.wrapping_add(b))
}
fn adc(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::ADC, true, |a, b, c| a.wrapping_add(b).wrapping_add(c))
}
fn sub(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::SUB, true, |a, b, _| a.wrapping_sub(b))
}
fn sbb(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::SBB, true, |a, b, c| a.wrapping_sub(b).wrapping_sub(c))
}
fn cmp(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::SUB, false, |a, b, _| a.wrapping_sub(b))
}
fn and(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::LOGIC, true, |a, b, _| a & b)
}
fn or(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::LOGIC, true, |a, b, _| a | b)
}
fn xor(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::LOGIC, true, |a, b, _| a ^ b)
}
fn test(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, FlagKind::LOGIC, false, |a, b, _| a & b)
}

/// One-operand arithmetic; `flags(a)`: the kind, first operand and carry to leave.
fn unary(cpu: &mut Cpu, insn: &Instruction, kind: u8, f: fn(u64) -> u64) -> Exec {
    let size = operand_size(insn, 0);
    let (place, a) = cpu.modify(insn, 0)?;
    let result = f(a) & ones(8 * size as u32);
    cpu.put(place, result)?;
    let carry = cpu.carry();
    // NEG is a subtraction from zero.
    let first = if kind == FlagKind::SUB { 0 } else { a };
    cpu.set_lazy(kind, size, first, result, carry);
    Ok(())
}

fn inc(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    unary(cpu, insn, FlagKind::INC, |a| a.wrapping_add(1))
}
fn dec(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    unary(cpu, insn, FlagKind::DEC, |a| a.wrapping_sub(1))
}
fn neg(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    unary(cpu, insn, FlagKind::SUB, u64::wrapping_neg)
}
fn not(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let (place, a) = cpu.modify(insn, 0)?;
    cpu.put(place, !a)
}

/// Low and high accumulator registers for an operand size.
fn accumulators(size: usize) -> (Register, Register) {
    match size {
        1 => (Register::AL, Register::AH),
        2 => (Register::AX, Register::DX),
        4 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    }
}

/// Flags of a multiplication: CF = OF = `overflow`; the rest is undefined and differs by vendor: AMD leaves it alone,
/// Intel works out SF and PF from the low half and clears ZF and AF.
fn multiply_flags(cpu: &mut Cpu, low: u64, bits: u32, overflow: bool) {
    let carry = if overflow { CF | OF } else { 0 };
    match cpu.model.vendor {
        undervisor_core::Vendor::Amd => cpu.state.set_status(CF | OF, carry),
        undervisor_core::Vendor::Intel => cpu.state.set_status(STATUS, carry | math::szp(low, bits) & !ZF),
    }
}

fn mul(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = operand_size(insn, 0);
    let bits = 8 * size as u32;
    let (low, high) = accumulators(size);
    let b = cpu.operand(insn, 0)?;
    let (l, h) = math::mul(cpu.gpr(low), b, bits);
    cpu.set_gpr(low, l);
    cpu.set_gpr(high, h);
    multiply_flags(cpu, l, bits, h != 0);
    Ok(())
}

fn imul(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = operand_size(insn, 0);
    let bits = 8 * size as u32;
    if insn.op_count() == 1 {
        let (low, high) = accumulators(size);
        let b = cpu.operand(insn, 0)?;
        let (l, h, overflow) = math::imul(cpu.gpr(low), b, bits);
        cpu.set_gpr(low, l);
        cpu.set_gpr(high, h);
        multiply_flags(cpu, l, bits, overflow);
        return Ok(());
    }
    let (a, b) = if insn.op_count() == 2 {
        (cpu.operand(insn, 0)?, cpu.operand(insn, 1)?)
    } else {
        (cpu.operand(insn, 1)?, cpu.operand(insn, 2)?)
    };
    let (l, _, overflow) = math::imul(a, b & ones(bits), bits);
    cpu.set_gpr(insn.op0_register(), l);
    multiply_flags(cpu, l, bits, overflow);
    Ok(())
}

/// (high, low, divisor, bits) to (quotient, remainder).
type Division = fn(u64, u64, u64, u32) -> Option<(u64, u64)>;

fn divide(cpu: &mut Cpu, insn: &Instruction, f: Division) -> Exec {
    let size = operand_size(insn, 0);
    let (low, high) = accumulators(size);
    let divisor = cpu.operand(insn, 0)?;
    let Some((quotient, remainder)) = f(cpu.gpr(high), cpu.gpr(low), divisor, 8 * size as u32) else {
        return Err(cpu.raise(Exception::new(Vector::DE)));
    };
    // The flags are undefined; processors leave them.
    cpu.set_gpr(low, quotient);
    cpu.set_gpr(high, remainder);
    Ok(())
}

fn div(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    divide(cpu, insn, math::div)
}
fn idiv(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    divide(cpu, insn, math::idiv)
}

fn xadd(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = operand_size(insn, 0);
    let (place, a) = cpu.modify(insn, 0)?;
    let b = cpu.gpr(insn.op1_register());
    let result = a.wrapping_add(b) & ones(8 * size as u32);
    if insn.op0_register() == Register::None {
        cpu.put(place, result)?;
        cpu.set_gpr(insn.op1_register(), a);
    } else {
        // XADD r, r with both the same leaves the sum.
        cpu.set_gpr(insn.op1_register(), a);
        cpu.put(place, result)?;
    }
    cpu.set_lazy(FlagKind::ADD, size, a, result, 0);
    Ok(())
}

fn cmpxchg(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = operand_size(insn, 0);
    let accumulator = accumulators(size).0;
    let (place, destination) = cpu.modify(insn, 0)?;
    let expected = cpu.gpr(accumulator);
    let result = expected.wrapping_sub(destination) & ones(8 * size as u32);
    if result == 0 {
        let source = cpu.gpr(insn.op1_register());
        cpu.put(place, source)?;
    } else {
        // The write cycle takes place in any case (SDM vol. 2, CMPXCHG); a register keeps even its upper half.
        if matches!(place, Place::Memory { .. }) {
            cpu.put(place, destination)?;
        }
        cpu.set_gpr(accumulator, destination);
    }
    cpu.set_lazy(FlagKind::SUB, size, expected, result, 0);
    Ok(())
}

fn cmpxchg8b(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let linear = cpu.effective_linear(insn, 8, true)?;
    let old = cpu.read_locked(insn, linear, 8)?;
    let expected = cpu.gpr(Register::EDX) << 32 | cpu.gpr(Register::EAX);
    let equal = old == expected;
    let new = if equal { cpu.gpr(Register::ECX) << 32 | cpu.gpr(Register::EBX) } else { old };
    cpu.write_linear(linear, new)?;
    if !equal {
        cpu.set_gpr(Register::EAX, old);
        cpu.set_gpr(Register::EDX, old >> 32);
    }
    cpu.state.set_status(ZF, if equal { ZF } else { 0 });
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let linear = cpu.effective_linear(insn, 16, true)?;
    if linear & 15 != 0 {
        return Err(cpu.gp(0));
    }
    // Aligned, it lies in one line.
    let low = cpu.read_locked(insn, linear, 8)?;
    let high = cpu.read_linear_to_modify::<u64>(linear + 8)?;
    let equal = (low, high) == (cpu.gpr(Register::RAX), cpu.gpr(Register::RDX));
    let new = if equal { (cpu.gpr(Register::RBX), cpu.gpr(Register::RCX)) } else { (low, high) };
    cpu.write_linear(linear, new.0)?;
    cpu.write_linear(linear + 8, new.1)?;
    if !equal {
        cpu.set_gpr(Register::RAX, low);
        cpu.set_gpr(Register::RDX, high);
    }
    cpu.state.set_status(ZF, if equal { ZF } else { 0 });
    Ok(())
}

/// ADCX and ADOX: an addition whose carry lives in `flag` alone.
fn add_with(cpu: &mut Cpu, insn: &Instruction, flag: u64) -> Exec {
    let bits = 8 * operand_size(insn, 0) as u32;
    let b = cpu.operand(insn, 1)?;
    let a = cpu.gpr(insn.op0_register());
    let carry = u128::from(cpu.state.rflags() & flag != 0);
    let sum = a as u128 + b as u128 + carry;
    cpu.set_gpr(insn.op0_register(), sum as u64);
    cpu.state.set_status(flag, if sum >> bits != 0 { flag } else { 0 });
    Ok(())
}

fn adcx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    add_with(cpu, insn, CF)
}
fn adox(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    add_with(cpu, insn, OF)
}

fn mulx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = operand_size(insn, 0);
    let b = cpu.operand(insn, 2)?;
    let a = cpu.gpr(if size == 8 { Register::RDX } else { Register::EDX });
    let (low, high) = math::mul(a, b, 8 * size as u32);
    // If both destinations are the same register, the high half stays.
    cpu.set_gpr(insn.op1_register(), low);
    cpu.set_gpr(insn.op0_register(), high);
    Ok(())
}

fn crc32(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = operand_size(insn, 1);
    let data = cpu.operand(insn, 1)?;
    let crc = math::crc32c(cpu.gpr(insn.op0_register()) as u32, data, size);
    debug_assert!(matches!(insn.code(), Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8) || size > 1);
    cpu.set_gpr(insn.op0_register(), crc as u64);
    Ok(())
}
