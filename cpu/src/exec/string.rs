//! String instructions and their repetition (SDM vol. 1, String Operations; vol. 2, REP/REPE/REPZ/REPNE/REPNZ).
//!
//! Each iteration counts as one instruction of virtual time. A repetition ends early, with RIP on the instruction and the
//! registers showing what is done, when the processor's time limit is reached or something asks for attention; it is then
//! simply entered again. How many iterations are done at a time depends on addresses, counts and time only, never on what
//! the TLB happens to hold. A repetition ends its block, so that the run loop's bookkeeping stays exact.

use iced_x86::{Code, Instruction, OpKind, Register};
use undervisor_core::{FlagKind, Rflags, SegReg, regs};

use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::exec::Row;
use crate::exec::int_math::{ZF, ones};
use crate::operand::segment_of;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    use Code::*;
    let function = match insn.code() {
        Movsb_m8_m8 | Movsw_m16_m16 | Movsd_m32_m32 | Movsq_m64_m64 => movs,
        Cmpsb_m8_m8 | Cmpsw_m16_m16 | Cmpsd_m32_m32 | Cmpsq_m64_m64 => cmps,
        Stosb_m8_AL | Stosw_m16_AX | Stosd_m32_EAX | Stosq_m64_RAX => stos,
        Lodsb_AL_m8 | Lodsw_AX_m16 | Lodsd_EAX_m32 | Lodsq_RAX_m64 => lods,
        Scasb_AL_m8 | Scasw_AX_m16 | Scasd_EAX_m32 | Scasq_RAX_m64 => scas,
        _ => return None,
    };
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    Some(Row { function, ends: repeats })
}

/// What one string instruction works on.
pub struct Shape {
    /// Bytes of an element.
    pub size: usize,
    /// All ones below the address size.
    pub mask: u64,
    /// Segment of the source operand.
    pub segment: SegReg,
    pub down: bool,
}

impl Shape {
    pub fn of(cpu: &Cpu, insn: &Instruction) -> Shape {
        let wide = |kind| match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(0xffff),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(0xffff_ffff),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(u64::MAX),
            _ => None,
        };
        let mask = wide(insn.op0_kind()).or_else(|| wide(insn.op1_kind())).unwrap_or(u64::MAX);
        Shape {
            size: insn.memory_size().size(),
            mask,
            segment: segment_of(insn.memory_segment()).unwrap_or(SegReg::Ds),
            down: cpu.state.flag(Rflags::DF),
        }
    }

    /// Bytes of the address size.
    pub fn address_size(&self) -> u8 {
        (self.mask.count_ones() / 8) as u8
    }

    pub fn get(&self, cpu: &Cpu, register: u8) -> u64 {
        cpu.state.gpr(register) & self.mask
    }

    /// Set an index or count register, in the address size.
    pub fn set(&self, cpu: &mut Cpu, register: u8, value: u64) {
        let old = cpu.state.gpr(register);
        let value = if self.mask == 0xffff { old & !0xffff | value & 0xffff } else { value & self.mask };
        cpu.state.set_gpr(register, value);
    }

    /// Move an index register over `count` elements.
    pub fn advance(&self, cpu: &mut Cpu, register: u8, count: u64) {
        let bytes = count.wrapping_mul(self.size as u64);
        let at = cpu.state.gpr(register);
        self.set(cpu, register, if self.down { at.wrapping_sub(bytes) } else { at.wrapping_add(bytes) });
    }

    /// Whole elements from `offset` on before the offset wraps.
    fn before_wrap(&self, offset: u64) -> u64 {
        ((self.mask - offset) / self.size as u64).saturating_add(1)
    }
}

/// Whole elements of `size` bytes from `linear` to the end of its page.
fn in_page(linear: u64, size: usize) -> u64 {
    (4096 - (linear & 0xfff)) / size as u64
}

/// What an iteration (or several) came to.
pub struct Done {
    /// Iterations, at least one; SI and DI have been moved, CX has not.
    pub count: u64,
    /// The repetition is over whatever CX says.
    pub stop: bool,
}

const ONE: Done = Done { count: 1, stop: false };

/// Run `step` once, or as the REP prefix says. `step` is given the most iterations it may do.
pub fn repeat(cpu: &mut Cpu, insn: &Instruction, mut step: impl FnMut(&mut Cpu, &Shape, u64) -> Exec<Done>) -> Exec {
    let shape = Shape::of(cpu, insn);
    if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
        step(cpu, &shape, 1)?;
        return Ok(());
    }
    let mut left = shape.get(cpu, regs::RCX);
    while left != 0 {
        let time = cpu.limit.saturating_sub(cpu.now()).max(1);
        let stepping = cpu.attention & attention::DEBUG != 0 || cpu.tlb_bypassed();
        let most = if stepping || shape.down { 1 } else { left.min(time) };
        let done = step(cpu, &shape, most)?;
        left -= done.count;
        shape.set(cpu, regs::RCX, left);
        cpu.budget -= done.count as i64;
        cpu.counters.repeated += done.count;
        if left == 0 || done.stop {
            // The run loop counts the instruction itself.
            cpu.budget += 1;
            cpu.counters.repeated -= 1;
            return Ok(());
        }
        if cpu.attention != 0 || cpu.now() >= cpu.limit {
            return Err(Stop::Again);
        }
    }
    Ok(())
}

fn movs(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, most| {
        let (si, di) = (shape.get(cpu, regs::RSI), shape.get(cpu, regs::RDI));
        let size = shape.size;
        let from = cpu.linear(shape.segment, si, size, false)?;
        if most > 1 {
            let most = most.min(shape.before_wrap(si)).min(shape.before_wrap(di)).min(in_page(from, size));
            let to = cpu.linear(SegReg::Es, di, size, true)?;
            let n = most.min(in_page(to, size));
            let bytes = n as usize * size;
            if n > 1
                && cpu.linear(shape.segment, si, bytes, false).is_ok()
                && cpu.linear(SegReg::Es, di, bytes, true).is_ok()
                && cpu.bulk_copy(from, to, size, n as usize)?
            {
                shape.advance(cpu, regs::RSI, n);
                shape.advance(cpu, regs::RDI, n);
                return Ok(Done { count: n, stop: false });
            }
        }
        let value = cpu.read_sized(from, size)?;
        let to = cpu.linear(SegReg::Es, di, size, true)?;
        cpu.write_sized(to, size, value)?;
        shape.advance(cpu, regs::RSI, 1);
        shape.advance(cpu, regs::RDI, 1);
        Ok(ONE)
    })
}

fn stos(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, most| {
        let di = shape.get(cpu, regs::RDI);
        let size = shape.size;
        let value = cpu.state.gpr(regs::RAX);
        let to = cpu.linear(SegReg::Es, di, size, true)?;
        let n = most.min(shape.before_wrap(di)).min(in_page(to, size));
        if n > 1 && cpu.linear(SegReg::Es, di, n as usize * size, true).is_ok() && cpu.bulk_fill(to, size, n as usize, value)? {
            shape.advance(cpu, regs::RDI, n);
            return Ok(Done { count: n, stop: false });
        }
        cpu.write_sized(to, size, value)?;
        shape.advance(cpu, regs::RDI, 1);
        Ok(ONE)
    })
}

/// The accumulator for an element size.
fn accumulator(size: usize) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

fn lods(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, _| {
        let si = shape.get(cpu, regs::RSI);
        let from = cpu.linear(shape.segment, si, shape.size, false)?;
        let value = cpu.read_sized(from, shape.size)?;
        cpu.set_gpr(accumulator(shape.size), value);
        shape.advance(cpu, regs::RSI, 1);
        Ok(ONE)
    })
}

/// Set the flags of a comparison; whether REPE or REPNE ends with it.
fn compare(cpu: &mut Cpu, insn: &Instruction, size: usize, a: u64, b: u64) -> bool {
    cpu.set_lazy(FlagKind::SUB, size, a, a.wrapping_sub(b) & ones(8 * size as u32), 0);
    let equal = a == b;
    debug_assert_eq!(equal, cpu.state.rflags() & ZF != 0);
    if insn.has_repne_prefix() { equal } else { !equal }
}

fn cmps(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, _| {
        let (si, di) = (shape.get(cpu, regs::RSI), shape.get(cpu, regs::RDI));
        let from = cpu.linear(shape.segment, si, shape.size, false)?;
        let a = cpu.read_sized(from, shape.size)?;
        let to = cpu.linear(SegReg::Es, di, shape.size, false)?;
        let b = cpu.read_sized(to, shape.size)?;
        shape.advance(cpu, regs::RSI, 1);
        shape.advance(cpu, regs::RDI, 1);
        Ok(Done { count: 1, stop: compare(cpu, insn, shape.size, a, b) })
    })
}

fn scas(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, _| {
        let di = shape.get(cpu, regs::RDI);
        let a = cpu.gpr(accumulator(shape.size));
        let at = cpu.linear(SegReg::Es, di, shape.size, false)?;
        let b = cpu.read_sized(at, shape.size)?;
        shape.advance(cpu, regs::RDI, 1);
        Ok(Done { count: 1, stop: compare(cpu, insn, shape.size, a, b) })
    })
}
