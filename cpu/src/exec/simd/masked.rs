//! Masked moves and gathers: which bytes of memory they touch depends on a register.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use undervisor_core::regs;

use super::{Row, is_memory};
use crate::cpu::{Cpu, Exec};
use crate::hot::simd::forms::{mm, set_vex, vector};
use crate::hot::simd::plan::{Need, number};
use crate::operand::address_mask;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    use Mnemonic as M;
    let row = Row::new(match insn.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => masked::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq => masked::<8>,
        M::Maskmovdqu | M::Vmaskmovdqu => bytes,
        M::Maskmovq => bytes_mmx,
        M::Vpgatherdd | M::Vgatherdps => gather::<4, 4>,
        M::Vpgatherdq | M::Vgatherdpd => gather::<4, 8>,
        M::Vpgatherqd | M::Vgatherqps => gather::<8, 4>,
        M::Vpgatherqq | M::Vgatherqpd => gather::<8, 8>,
        _ => return None,
    });
    matches!(insn.code().op_code().encoding(), EncodingKind::Legacy | EncodingKind::VEX).then_some(row)
}

/// Lane `i` of SIZE bytes.
fn lane<const SIZE: usize>(v: &[u64; 4], i: usize) -> u64 {
    if SIZE == 8 { v[i & 3] } else { v[i / 2 & 3] >> (32 * (i & 1)) & 0xffff_ffff }
}

fn set_lane<const SIZE: usize>(v: &mut [u64; 4], i: usize, value: u64) {
    if SIZE == 8 {
        v[i & 3] = value;
    } else {
        let shift = 32 * (i & 1);
        let w = &mut v[i / 2 & 3];
        *w = *w & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
    }
}

fn negative<const SIZE: usize>(v: &[u64; 4], i: usize) -> bool {
    lane::<SIZE>(v, i) >> (8 * SIZE - 1) & 1 != 0
}

/// VMASKMOVPS and kin, both directions. Lanes that are masked off are not accessed at all.
fn masked<const SIZE: usize>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vector_available(Need::Avx)?;
    let bytes = insn.memory_size().size();
    let count = bytes / SIZE;
    let mask = vector::<4>(cpu, number(insn.op1_register()));
    let (segment, offset) = (cpu.effective_segment(insn), cpu.effective_offset(insn));
    let width = address_mask(insn);
    let at = |i: usize| offset.wrapping_add((i * SIZE) as u64) & width;
    if is_memory(insn, 0) {
        let from = vector::<4>(cpu, number(insn.op2_register()));
        let mut places = [None; 8];
        for (i, place) in places.iter_mut().enumerate().take(count) {
            if negative::<SIZE>(&mask, i) {
                let linear = cpu.linear(segment, at(i), SIZE, true)?;
                cpu.probe_write(linear, SIZE)?;
                *place = Some(linear);
            }
        }
        for (i, place) in places.into_iter().enumerate() {
            if let Some(linear) = place {
                cpu.write_sized(linear, SIZE, lane::<SIZE>(&from, i))?;
            }
        }
        return Ok(());
    }
    let mut r = [0; 4];
    for i in 0..count {
        if negative::<SIZE>(&mask, i) {
            let linear = cpu.linear(segment, at(i), SIZE, false)?;
            let v = cpu.read_sized(linear, SIZE)?;
            set_lane::<SIZE>(&mut r, i, v);
        }
    }
    set_vex(cpu, number(insn.op0_register()), r);
    Ok(())
}

/// MASKMOVDQU, VMASKMOVDQU.
fn bytes(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let vex = insn.mnemonic() == Mnemonic::Vmaskmovdqu;
    cpu.vector_available(if vex { Need::Avx } else { Need::Sse })?;
    let data = vector::<2>(cpu, number(insn.op1_register()));
    let mask = vector::<2>(cpu, number(insn.op2_register()));
    store_bytes(cpu, insn, &data, &mask)
}

/// MASKMOVQ.
fn bytes_mmx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vector_available(Need::Mmx)?;
    let data = [mm(cpu, number(insn.op1_register()))];
    let mask = [mm(cpu, number(insn.op2_register()))];
    store_bytes(cpu, insn, &data, &mask)?;
    cpu.mmx_touch();
    Ok(())
}

/// Store the bytes of `data` whose mask byte is negative to (R/E)DI.
fn store_bytes<const N: usize>(cpu: &mut Cpu, insn: &Instruction, data: &[u64; N], mask: &[u64; N]) -> Exec {
    let width = match insn.op0_kind() {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let segment = cpu.effective_segment(insn);
    let base = cpu.state.regs[regs::RDI as usize];
    let chosen = |i: usize| mask[i / 8] >> (8 * (i & 7) + 7) & 1 != 0;
    let mut places = [None; 16];
    for (i, place) in places.iter_mut().enumerate().take(8 * N) {
        if chosen(i) {
            let linear = cpu.linear(segment, base.wrapping_add(i as u64) & width, 1, true)?;
            cpu.probe_write(linear, 1)?;
            *place = Some(linear);
        }
    }
    for (i, place) in places.into_iter().enumerate() {
        if let Some(linear) = place {
            cpu.write_linear(linear, (data[i / 8] >> (8 * (i & 7))) as u8)?;
        }
    }
    Ok(())
}

/// VPGATHERDD and kin: INDEX and SIZE are bytes of an index and of an element. Elements are taken from the lowest up; what has
/// arrived when one faults stays, with its mask cleared, so that the instruction resumes there (SDM vol. 2, VGATHERDPS).
fn gather<const INDEX: usize, const SIZE: usize>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vector_available(Need::Avx)?;
    let index = insn.memory_index();
    let (a, m, x) = (number(insn.op0_register()), number(insn.op2_register()), index.number() as u8);
    if a == m || a == x || m == x || !(index.is_xmm() || index.is_ymm()) {
        return Err(cpu.ud());
    }
    let wide = index.is_ymm() || insn.op0_register().is_ymm();
    let count = if wide { 32 } else { 16 } / INDEX.max(SIZE);
    let indices = vector::<4>(cpu, x);
    let mut mask = [0; 4];
    let old = vector::<4>(cpu, m);
    for i in 0..count {
        set_lane::<SIZE>(&mut mask, i, if negative::<SIZE>(&old, i) { u64::MAX } else { 0 });
    }
    let (segment, offset) = (cpu.effective_segment(insn), cpu.effective_offset(insn));
    let scale = insn.memory_index_scale() as u64;
    let width = if insn.memory_base() == Register::None && cpu.mode.is64() && insn.memory_displ_size() != 4 {
        u64::MAX
    } else {
        address_mask(insn)
    };
    let mut r = vector::<4>(cpu, a);
    for i in 0..count {
        if !negative::<SIZE>(&mask, i) {
            continue;
        }
        let n = lane::<INDEX>(&indices, i);
        let n = if INDEX == 4 { n as i32 as i64 as u64 } else { n };
        let at = offset.wrapping_add(n.wrapping_mul(scale)) & width;
        let element = match cpu.linear(segment, at, SIZE, false) {
            Ok(linear) => cpu.read_sized(linear, SIZE),
            Err(stop) => Err(stop),
        };
        match element {
            Ok(v) => set_lane::<SIZE>(&mut r, i, v),
            Err(stop) => {
                if stop == crate::cpu::Stop::Exception {
                    set_vex(cpu, a, r);
                    set_vex(cpu, m, mask);
                }
                return Err(stop);
            }
        }
        set_lane::<SIZE>(&mut mask, i, 0);
    }
    // What lies above the elements is cleared.
    for (i, w) in r.iter_mut().enumerate() {
        if 8 * i >= count * SIZE {
            *w = 0;
        }
    }
    set_vex(cpu, a, r);
    set_vex(cpu, m, [0; 4]);
    Ok(())
}
