//! Guest bytes to blocks of ops.

use std::cell::Cell;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use undervisor_core::{Cr0, Cr4, Rflags, SegReg, Vendor, regs};

use crate::cache::{Block, MAX_BLOCK, Slow};
use crate::cpu::{Cpu, Exec};
use crate::exec::{self, Row};
use crate::hot::fuse::Lead;
use crate::hot::{self, translate::Context};
use crate::lock::{self, is_locked};
use crate::model::ModelExt;
use crate::op::Op;
use crate::operand::drop_ignored_override;
use crate::performance::branches;
use crate::virt::svm::bus_lock;

/// What decoding depends on besides the bytes. Part of the op cache's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mode(pub u16);

impl Mode {
    /// Bits 1:0: code size 16, 32, 64 as 0, 1, 2.
    const SIZE: u16 = 3;
    /// Stack size is 32 (legacy modes).
    pub const STACK32: u16 = 1 << 2;
    /// Legacy modes: CS, SS, DS and ES are flat, so that no segment check is needed. Set in 64-bit mode.
    pub const FLAT: u16 = 1 << 3;
    /// CS limit is 4 GiB − 1 and base 0 (or 64-bit mode): blocks may link and use the jump cache.
    pub const FLAT_CS: u16 = 1 << 4;
    /// x87 and MMX neither #NM nor #UD (CR0.EM = TS = 0).
    pub const X87: u16 = 1 << 5;
    /// SSE neither #NM nor #UD.
    pub const SSE: u16 = 1 << 6;
    /// AVX neither #NM nor #UD.
    pub const AVX: u16 = 1 << 7;
    /// Not 64-bit, but protected and not virtual-8086.
    pub const PROTECTED: u16 = 1 << 8;
    /// Branches are counted; see `performance::branches`.
    pub const COUNTED: u16 = 1 << 9;
    /// Locked instructions are looked at, or only whether they split a line; see `lock`.
    pub const LOCKS: u16 = 1 << 10;
    pub const SPLITS: u16 = 1 << 11;
    /// Bus locks are counted; see `virt::svm::bus_lock`.
    pub const BUS_LOCKS: u16 = 1 << 12;
    /// In the op cache's keys only: a block of a single instruction, for single steps.
    pub const ONE: u16 = 1 << 15;

    /// The mode that `cpu`'s state asks for.
    pub fn of(cpu: &Cpu) -> Mode {
        let s = &cpu.state;
        let mut m = 0;
        if s.mode64() {
            m |= 2 | Self::FLAT | Self::FLAT_CS;
        } else {
            let cs = s.segment(SegReg::Cs);
            m |= u16::from(cs.big());
            if s.segment(SegReg::Ss).big() {
                m |= Self::STACK32;
            }
            if cs.base == 0 && cs.limit == u32::MAX {
                m |= Self::FLAT_CS;
            }
            if m & Self::FLAT_CS != 0
                && [SegReg::Ss, SegReg::Ds, SegReg::Es].iter().all(|&r| s.segment(r).flat())
                && cs.readable()
            {
                m |= Self::FLAT;
            }
            if s.protected() && !s.virtual_8086() {
                m |= Self::PROTECTED;
            }
        }
        if !s.cr0.intersects(Cr0::EM | Cr0::TS) {
            m |= Self::X87;
            if s.cr4.contains(Cr4::OSFXSR) {
                m |= Self::SSE;
            }
        }
        if !s.cr0.contains(Cr0::TS) && s.cr4.contains(Cr4::OSXSAVE) && s.xcr0 & 6 == 6 && m & (Self::PROTECTED | 2) != 0 {
            m |= Self::AVX;
        }
        if cpu.performance.counts_branches {
            m |= Self::COUNTED;
        }
        m |= cpu.lock_mode();
        if cpu.virt.svm.bus_locks {
            m |= Self::BUS_LOCKS;
        }
        Mode(m)
    }

    /// 16, 32 or 64.
    #[inline]
    pub fn bits(self) -> u32 {
        16 << (self.0 & Self::SIZE)
    }
    #[inline]
    pub fn is64(self) -> bool {
        self.0 & Self::SIZE == 2
    }
    #[inline]
    pub fn has(self, bit: u16) -> bool {
        self.0 & bit != 0
    }
}

impl Op {
    /// An op with no operands.
    pub fn new(handler: crate::op::Handler) -> Op {
        Op {
            handler: Cell::new(handler),
            a: regs::ZERO,
            b: regs::ZERO,
            c: regs::ZERO,
            d: regs::ZERO,
            scale: 0,
            seg: regs::ZERO,
            index: 0,
            length: 0,
            offset: 0,
            extra: 0,
            disp: 0,
            imm: Cell::new(0),
        }
    }
}

/// Ops and slow rows of a block being built.
pub struct Builder {
    pub mode: Mode,
    pub ops: Vec<Op>,
    pub slow: Vec<Slow>,
    /// What the next op may join.
    pub lead: Option<Lead>,
    /// (op, slow) pairs to be connected when the slow rows have their final address.
    fixups: Vec<(usize, usize)>,
}

impl Builder {
    /// Append `op` for an instruction, giving it its place and length.
    pub fn push(&mut self, mut op: Op, insn: &Instruction, index: usize) {
        op.index = index as u8;
        op.length = insn.len() as u8;
        op.offset = insn.ip() as u16;
        self.ops.push(op);
    }

    /// Append the general form of an instruction.
    pub fn push_slow(&mut self, row: Row, insn: &Instruction, index: usize) {
        self.fixups.push((self.ops.len(), self.slow.len()));
        self.slow.push(Slow { function: row.function, instruction: *insn });
        self.push(Op::new(if row.ends { hot::slow_end } else { hot::slow }), insn, index);
    }
}

impl Cpu {
    fn decoder_options(&self) -> u32 {
        match self.model().vendor {
            Vendor::Amd => DecoderOptions::AMD,
            Vendor::Intel => DecoderOptions::NONE,
        }
    }

    /// Decode a block at the current RIP from guest-physical `physical`, of at most `most` instructions.
    /// Faults (in fetching an instruction that crosses a page) belong to the block's first instruction.
    pub fn decode(&mut self, physical: u64, most: usize) -> Exec<Block> {
        let general = std::mem::take(&mut self.general_once);
        let mode = self.mode;
        let mut page = [0u8; 4096 + 15];
        let offset = (physical & 0xfff) as usize;
        // As far as the page and `most` instructions reach.
        let mut room = (4096 - offset).min(15 * most.min(MAX_BLOCK));
        self.fetch_bytes(physical, &mut page[..room]);
        let cs_room = self.code_room(self.state.rip());
        let limited = cs_room < room as u64 + 15;
        room = room.min(usize::try_from(cs_room).unwrap_or(usize::MAX));
        let mut second_page = None;
        let mut b = Builder { mode, ops: Vec::with_capacity(24), slow: Vec::new(), lead: None, fixups: Vec::new() };
        let mut at = 0;
        let mut insns: Vec<Instruction> = Vec::with_capacity(24);
        while insns.len() < most.min(MAX_BLOCK) {
            let mut decoder = Decoder::with_ip(mode.bits(), &page[at..room], at as u64, self.decoder_options());
            let mut insn = decoder.decode();
            if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes && room - at < 15 {
                if !insns.is_empty() {
                    break;
                }
                if limited && room as u64 == cs_room {
                    // The instruction runs past the code segment's limit.
                    return Err(self.gp(0));
                }
                let next = self.state.rip().wrapping_add(room as u64);
                let second = self.translate_fetch(self.linear_ip(next))?;
                second_page = Some(second & !0xfff);
                let more = 15.min((cs_room - room as u64) as usize);
                self.fetch_bytes(second, &mut page[room..room + more]);
                decoder = Decoder::with_ip(mode.bits(), &page[..room + more], 0, self.decoder_options());
                insn = decoder.decode();
                if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes && more < 15 {
                    return Err(self.gp(0));
                }
            }
            if matches!(insn.code(), Code::Jmp_m1632 | Code::Call_m1632) && mode.is64() {
                insn = wide_far_branch(&page[at..at + insn.len()], at as u64);
            }
            if mode.is64() {
                drop_ignored_override(&mut insn);
            }
            if insns.last().is_some_and(|last| last.mnemonic() == Mnemonic::Sti) && !hot::system::quiet(&insn) {
                // STI's shadow wants a boundary.
                break;
            }
            at += insn.len();
            insns.push(insn);
            if second_page.is_some() || at >= room || self.ends_block(&insn) {
                break;
            }
        }
        let count = insns.len();
        // A debugger may stop before these and look at everything.
        let planted = |insn: &Instruction| self.debugger.planted_at(offset + insn.ip() as usize & 0xfff);
        let live = live_flags(&insns, planted);
        let breaks: Vec<bool> = if self.debugger.code { insns.iter().map(planted).collect() } else { Vec::new() };
        let breaks_at = |index: usize| breaks.get(index).is_some_and(|b| *b);
        let mut ended = false;
        let counted = |index: usize| insns.get(index).is_some_and(|insn| branches::is_branch(mode, insn));
        for (index, insn) in insns.iter().enumerate() {
            let lands = index == 0 || counted(index - 1);
            if breaks_at(index) {
                let mut op = Op::new(hot::break_here);
                op.extra = (count - index) as u16;
                b.push(op, insn, index);
            }
            branches::plan(&mut b, insn, index, lands);
            let joins = |at: usize, next: &Instruction| !breaks_at(at) && !counted(at) && self.model().allows(next);
            let next = insns.get(index + 1).filter(|next| joins(index + 1, next));
            let cx = Context { live: live[index], next, amd: self.is_amd() };
            ended = self.plan(&mut b, insn, index, general, &cx);
        }
        if second_page.is_some() && at <= room {
            // The second page was looked at in vain (an invalid encoding): forget it.
            second_page = None;
        }
        if !ended {
            let mut op = Op::new(if mode.is64() { hot::fall_through::<true> } else { hot::fall_through::<false> });
            op.index = count as u8;
            op.offset = at as u16;
            op.disp = at as i32;
            b.ops.push(op);
        }
        self.counters.blocks_decoded += 1;
        let slow = b.slow.into_boxed_slice();
        let ops = b.ops.into_boxed_slice();
        for (op, row) in b.fixups {
            ops[op].imm.set(std::ptr::from_ref(&slow[row]) as usize as u64);
        }
        Ok(Block { ops, slow, physical, bytes: at as u32, second_page, count: count as u32 })
    }

    /// Whether nothing may follow `insn` in its block.
    fn ends_block(&self, insn: &Instruction) -> bool {
        !hot::system::goes_on(insn, self.mode) && self.general_form_ends_block(insn)
    }

    fn general_form_ends_block(&self, insn: &Instruction) -> bool {
        insn.is_invalid()
            || self.mode.has(Mode::LOCKS) && is_locked(insn)
            || match insn.flow_control() {
                FlowControl::Next => exec::lookup(insn).is_none_or(|row| row.ends),
                FlowControl::ConditionalBranch => !insn.is_jcc_short_or_near(),
                _ => true,
            }
    }

    /// Append `insn`; returns whether it ends the block. `general`: no hot forms.
    fn plan(&mut self, b: &mut Builder, insn: &Instruction, index: usize, general: bool, cx: &Context) -> bool {
        if insn.is_invalid() {
            // 15 bytes and still not whole: #GP, else #UD.
            let row = if insn.len() >= 15 { Row::ends(exec::too_long) } else { Row::ends(exec::undefined) };
            b.push_slow(row, insn, index);
            return true;
        }
        if !self.model().allows(insn) {
            let row = exec::misc::without_feature(insn).unwrap_or(Row::ends(exec::undefined));
            b.push_slow(row, insn, index);
            return row.ends;
        }
        if b.mode.has(Mode::BUS_LOCKS) && is_locked(insn) {
            let ends = exec::lookup(insn).is_none_or(|row| row.ends);
            b.push_slow(Row { function: bus_lock::counted, ends }, insn, index);
            return ends;
        }
        let locked = b.mode.has(Mode::LOCKS) && is_locked(insn);
        let splits = b.mode.has(Mode::SPLITS) && !general && !locked && is_locked(insn);
        let general = general || locked || splits && !lock::plan(b, insn, index);
        if !general && let Some(ended) = hot::translate(b, insn, index, cx) {
            return ended;
        }
        let row = if locked { Some(Row::ends(lock::execute)) } else { exec::lookup(insn) };
        let row = row.unwrap_or(Row::ends(exec::undefined));
        let ends = row.ends || insn.flow_control() != FlowControl::Next;
        b.push_slow(Row { ends, ..row }, insn, index);
        if !general && let Some((handler, x, y)) = crate::virt::hot_form(insn) {
            // In front of the general form, in the same op.
            if let Some(op) = b.ops.last_mut() {
                op.handler.set(handler);
                (op.a, op.b) = (x, y);
            }
        }
        if !general
            && let Some(handler) = hot::system::form(insn, b.mode, cx.next)
            && let Some(op) = b.ops.last_mut()
        {
            op.handler.set(handler);
            return false;
        }
        if !general
            && let Some(handler) = hot::string::repeated(insn, b.mode)
            && let Some(op) = b.ops.last_mut()
        {
            op.handler.set(handler);
        }
        ends
    }
}

/// A far branch through memory in 64-bit mode. AMD's manual has no 64-bit offsets there, whatever REX.W says (APM vol. 3, JMP (Far)), but
/// hypervisors' emulators take them on either vendor's processor, test suites expect them, and nothing else encodes REX.W.
fn wide_far_branch(bytes: &[u8], ip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode()
}

/// For each instruction, the status flags that someone may look at after it: a later instruction, or a handler of a fault, exit
/// or interrupt at a later point where one can happen, or a debugger before an instruction that `looked_at` names. At the block's
/// end: all.
fn live_flags(insns: &[Instruction], looked_at: impl Fn(&Instruction) -> bool) -> Vec<u64> {
    const ALL: u64 = Rflags::STATUS.bits();
    let mut live = ALL;
    let mut out = vec![ALL; insns.len()];
    for (i, insn) in insns.iter().enumerate().rev() {
        out[i] = live;
        let silent = is_silent(insn);
        live = if silent { (live & !status(insn.rflags_modified())) | status(insn.rflags_read()) } else { ALL };
        // A shift by CL may leave the flags as they were.
        if silent && matches!(insn.op1_kind(), OpKind::Register) && insn.op1_register() == Register::CL {
            live |= status(insn.rflags_modified()) & out[i];
        }
        if looked_at(insn) {
            live = ALL;
        }
    }
    out
}

/// Register-only instructions that can neither fault nor exit. (Loads of segment registers can, but end their blocks.)
pub fn is_silent(insn: &Instruction) -> bool {
    let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    (!memory || matches!(insn.mnemonic(), Mnemonic::Lea | Mnemonic::Nop))
        && insn.flow_control() == FlowControl::Next
        && insn.stack_pointer_increment() == 0
        && !insn.is_privileged()
        && has_silent_form(insn.mnemonic())
}

fn has_silent_form(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Mov
            | Movzx
            | Movsx
            | Movsxd
            | Lea
            | Shl
            | Shr
            | Sar
            | Sal
            | Rol
            | Ror
            | Shld
            | Shrd
            | Imul
            | Mul
            | Bswap
            | Bt
            | Bts
            | Btr
            | Btc
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Nop
            | Cmove
            | Cmovne
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmovl
            | Cmovle
            | Cmovg
            | Cmovge
            | Cmovs
            | Cmovns
            | Sete
            | Setne
            | Seta
            | Setae
            | Setb
            | Setbe
            | Setl
            | Setle
            | Setg
            | Setge
            | Sets
            | Setns
    )
}

/// iced's flag names to RFLAGS bits.
fn status(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [
        (B::CF, Rflags::CF),
        (B::PF, Rflags::PF),
        (B::AF, Rflags::AF),
        (B::ZF, Rflags::ZF),
        (B::SF, Rflags::SF),
        (B::OF, Rflags::OF),
    ]
    .iter()
    .filter(|(b, _)| bits & b != 0)
    .fold(0, |acc, (_, f)| acc | f.bits())
}
