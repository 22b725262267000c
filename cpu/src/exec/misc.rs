//! What is left of the general instructions: NOPs and hints, fences, cache control, random numbers, BOUND, the undefined ones.

use iced_x86::{Instruction, Mnemonic as M, Register};
use undervisor_core::{Exception, Intercept, Vector};

use crate::cpu::{Cpu, Exec, attention};
use crate::exec::Row;
use crate::exec::int_math::{CF, STATUS, sign_extend};
use crate::operand::Gpr;
use crate::paging::Access;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(match insn.mnemonic() {
        M::Nop
        | M::Reservednop
        | M::Endbr32
        | M::Endbr64
        | M::Rdsspd
        | M::Rdsspq
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Cldemote
        | M::Lfence
        | M::Mfence
        | M::Sfence => Row::new(nop),
        M::Serialize => Row::ends(nop),
        M::Pause => Row::ends(pause),
        M::Clflush | M::Clflushopt | M::Clwb => Row::new(flush_line),
        M::Clzero => Row::new(clzero),
        M::Rdrand => Row::new(rdrand),
        M::Rdseed => Row::new(rdseed),
        M::Rdpid => Row::new(rdpid),
        M::Bound => Row::new(bound),
        M::Salc => Row::new(salc),
        M::Ud0 | M::Ud1 | M::Ud2 => Row::ends(super::undefined),
        _ => return None,
    })
}

/// What an encoding does on a processor without the feature behind it, if not #UD: hints live in encodings that were NOPs
/// before, and a mandatory prefix that means nothing is ignored.
pub fn without_feature(insn: &Instruction) -> Option<Row> {
    Some(match insn.mnemonic() {
        M::Endbr32
        | M::Endbr64
        | M::Rdsspd
        | M::Rdsspq
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Cldemote
        | M::Reservednop
        | M::Nop
        | M::Pause => Row::new(nop),
        M::Bndcl | M::Bndcn | M::Bndcu | M::Bndldx | M::Bndmk | M::Bndmov | M::Bndstx => Row::new(nop),
        M::Wbnoinvd => Row::ends(super::system::invalidate_caches),
        M::Tzcnt => Row::new(super::bits::bsf),
        M::Lzcnt => Row::new(super::bits::bsr),
        _ => return None,
    })
}

fn nop(_: &mut Cpu, _: &Instruction) -> Exec {
    Ok(())
}

/// Virtual time that a PAUSE takes besides its own instruction: processors wait 40 to 140 cycles. It makes loops that spin until
/// a moment cost the host a fraction.
const PAUSE_TIME: u64 = 40;

/// PAUSEs after which a processor that shares its thread lets another have a turn.
const SPINS: u32 = 16;

fn pause(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.intercept(Intercept::Pause)?;
    cpu.linger(PAUSE_TIME);
    if cpu.crowded {
        cpu.spins += 1;
        if cpu.spins >= SPINS {
            cpu.spins = 0;
            cpu.attend(attention::STOP);
        }
    }
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: checked as a load of a byte. There are no caches but those that counters are told of, where CLWB leaves the
/// line.
fn flush_line(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let linear = cpu.effective_linear(insn, 1, false)?;
    let physical = cpu.translate(linear, Access::READ)?;
    if insn.mnemonic() != M::Clwb {
        cpu.drop_cached_line(physical);
    }
    Ok(())
}

/// AMD: clear the 64-byte line at rAX.
fn clzero(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let offset = cpu.gpr(insn.memory_base()) & !63;
    let linear = cpu.linear(cpu.effective_segment(insn), offset, 64, true)?;
    cpu.write_bytes(linear, &[0; 64])
}

impl Cpu {
    /// The next number of the processor's generator: seeded by its number, so that runs repeat.
    /// (SplitMix64: S. Vigna's public-domain constants.)
    pub fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Always delivers: CF = 1, the other status flags 0.
fn random(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let value = cpu.next_random();
    cpu.set_gpr(insn.op0_register(), value);
    cpu.state.set_status(STATUS, CF);
    Ok(())
}

fn rdrand(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if let Some(g) = Gpr::of(insn.op0_register()) {
        cpu.intercept(Intercept::Rdrand { register: g.number, size: g.size })?;
    }
    random(cpu, insn)
}

fn rdseed(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if let Some(g) = Gpr::of(insn.op0_register()) {
        cpu.intercept(Intercept::Rdseed { register: g.number, size: g.size })?;
    }
    random(cpu, insn)
}

fn rdpid(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    // The VMX control "enable RDTSCP" governs RDPID too.
    if !cpu.virt_enables_rdtscp() {
        return Err(cpu.ud());
    }
    let value = cpu.state.msrs.tsc_aux & 0xffff_ffff;
    cpu.set_gpr(insn.op0_register(), value);
    Ok(())
}

fn bound(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = insn.op0_register().size();
    let bits = 8 * size as u32;
    let linear = cpu.effective_linear(insn, 2 * size, false)?;
    let lower = cpu.read_sized(linear, size)?;
    let upper = cpu.read_sized(linear.wrapping_add(size as u64) & 0xffff_ffff, size)?;
    let signed = |v| sign_extend(v, bits) as i64;
    let index = signed(cpu.gpr(insn.op0_register()));
    if index < signed(lower) || index > signed(upper) {
        return Err(cpu.raise(Exception::new(Vector::BR)));
    }
    Ok(())
}

/// D6: AL = CF ? FFh : 0; undocumented for long, and in every processor.
fn salc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let value = if cpu.carry() != 0 { 0xff } else { 0 };
    cpu.set_gpr(Register::AL, value);
    Ok(())
}
