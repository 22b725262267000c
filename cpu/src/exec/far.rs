//! Far transfers: JMP, CALL, RET and IRET with a change of CS (SDM vol. 2; vol. 3, Privilege Level Checking When Transferring
//! Program Control Between Code Segments).

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};
use undervisor_core::{Cr4, Exception, Intercept, Rflags, SegReg, Vector, regs};

use crate::cpu::{Cpu, Exec};
use crate::events::{Stack, with_privilege};
use crate::exec::Row;
use crate::segments::{Blame, Descriptor, is_null, system};
use crate::task::NewTask;
use crate::virt::TaskSource;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::ends(match insn.mnemonic() {
        M::Jmp if insn.is_jmp_far() || insn.is_jmp_far_indirect() => jmp_far,
        M::Call if insn.is_call_far() || insn.is_call_far_indirect() => call_far,
        M::Retf => ret_far,
        M::Iret | M::Iretd | M::Iretq => iret,
        _ => return None,
    }))
}

/// Selector, offset and operand size of a far pointer operand.
fn far_pointer(cpu: &mut Cpu, insn: &Instruction) -> Exec<(u16, u64, usize)> {
    match insn.op0_kind() {
        OpKind::FarBranch16 => Ok((insn.far_branch_selector(), insn.far_branch16() as u64, 2)),
        OpKind::FarBranch32 => Ok((insn.far_branch_selector(), insn.far_branch32() as u64, 4)),
        _ => {
            let size = insn.memory_size().size() - 2;
            let linear = cpu.effective_linear(insn, size + 2, false)?;
            let offset = cpu.read_sized(linear, size)?;
            let at = linear.wrapping_add(size as u64);
            let selector = cpu.read_linear::<u16>(if cpu.mode.is64() { at } else { at & 0xffff_ffff })?;
            Ok((selector, offset, size))
        }
    }
}

fn jmp_far(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let (selector, offset, size) = far_pointer(cpu, insn)?;
    cpu.far_transfer(selector, offset, size, false)
}

fn call_far(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let (selector, offset, size) = far_pointer(cpu, insn)?;
    cpu.far_transfer(selector, offset, size, true)
}

/// Whether segment rules are real mode's.
fn real(cpu: &Cpu) -> bool {
    !cpu.state.protected() || cpu.state.virtual_8086()
}

impl Cpu {
    fn far_transfer(&mut self, selector: u16, offset: u64, size: usize, call: bool) -> Exec {
        let back = self.state.rip();
        let cs = self.state.segment(SegReg::Cs).selector;
        if real(self) {
            if offset > self.state.segment(SegReg::Cs).limit as u64 {
                return Err(self.gp(0));
            }
            if call {
                let mut stack = Stack::current(self, 0);
                stack.push(self, size, cs as u64)?;
                stack.push(self, size, back)?;
                self.set_stack_pointer(stack.sp);
            }
            self.enter_real(selector, offset);
            return Ok(());
        }
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let d = self.read_descriptor(selector, Blame::GP)?;
        if !d.is_code_or_data() {
            return self.far_through_system(selector, d, call);
        }
        let cpl = self.state.cpl;
        self.check_target(selector, &d, (selector & 3) as u8, true)?;
        self.check_far_offset(&d, offset)?;
        let mut d = d;
        self.mark_accessed(selector, &mut d)?;
        let mut stack = Stack::current(self, 0);
        if call {
            stack.push(self, size, cs as u64)?;
            stack.push(self, size, back)?;
            self.set_stack_pointer(stack.sp);
        }
        self.enter_code(selector, &d, cpl, offset);
        Ok(())
    }

    /// CS in real or virtual-8086 mode.
    fn enter_real(&mut self, selector: u16, offset: u64) {
        let cs = self.real_segment(SegReg::Cs, selector);
        self.state.set_segment(SegReg::Cs, cs);
        self.state.set_rip(offset);
        self.privilege_changed();
    }

    fn enter_code(&mut self, selector: u16, d: &Descriptor, cpl: u8, offset: u64) {
        self.set_code_segment(selector, d, cpl);
        self.state.set_rip(offset);
        self.privilege_changed();
    }

    /// The code segment of a JMP or CALL at the same privilege.
    fn check_target(&mut self, selector: u16, d: &Descriptor, rpl: u8, direct: bool) -> Exec {
        let cpl = self.state.cpl;
        let allowed = if d.conforming() { d.dpl() <= cpl } else { d.dpl() == cpl && (!direct || rpl <= cpl) };
        if !d.is_code() || !allowed || (self.state.long_mode() && d.long() && d.big()) {
            return self.blame(Blame::GP, selector);
        }
        if !d.present() {
            return self.blame(Blame::GP.as_vector(Vector::NP), selector);
        }
        Ok(())
    }

    /// #GP(0) for an offset outside the new code segment.
    fn check_far_offset(&mut self, d: &Descriptor, offset: u64) -> Exec {
        let ok = if self.state.long_mode() && d.long() { self.canonical(offset) } else { offset <= d.limit() as u64 };
        if ok { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Call gates, task gates and TSSs.
    fn far_through_system(&mut self, selector: u16, mut d: Descriptor, call: bool) -> Exec {
        let long = self.state.long_mode();
        let cpl = self.state.cpl;
        let privileged = d.dpl() < cpl.max((selector & 3) as u8);
        let source = if call { TaskSource::Call } else { TaskSource::Jmp };
        match d.kind() {
            system::CALL_GATE16 if !long => {}
            system::CALL_GATE => {}
            system::TASK_GATE if !long => {
                if privileged {
                    return self.blame(Blame::GP, selector);
                }
                if !d.present() {
                    return self.blame(Blame::GP.as_vector(Vector::NP), selector);
                }
                let selector = d.gate_selector();
                let descriptor = self.check_task(selector, Blame::GP, true)?;
                let rip = self.state.rip();
                return self.switch_task(NewTask { selector, descriptor, source, error_code: None, rip, ext: 0 });
            }
            system::TSS16 | system::TSS if !long => {
                let descriptor = self.check_task(selector, Blame::GP, false)?;
                let rip = self.state.rip();
                return self.switch_task(NewTask { selector, descriptor, source, error_code: None, rip, ext: 0 });
            }
            _ => return self.blame(Blame::GP, selector),
        }
        if privileged {
            return self.blame(Blame::GP, selector);
        }
        if long {
            self.read_upper(&mut d, selector, Blame::GP)?;
        }
        if !d.present() {
            return self.blame(Blame::GP.as_vector(Vector::NP), selector);
        }
        self.call_gate(d, call)
    }

    fn call_gate(&mut self, gate: Descriptor, call: bool) -> Exec {
        let long = self.state.long_mode();
        let cpl = self.state.cpl;
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let mut code = self.read_descriptor(selector, Blame::GP)?;
        if !code.is_code() || code.dpl() > cpl || (long && (!code.long() || code.big())) {
            return self.blame(Blame::GP, selector);
        }
        if !call && !code.conforming() && code.dpl() != cpl {
            return self.blame(Blame::GP, selector);
        }
        if !code.present() {
            return self.blame(Blame::GP.as_vector(Vector::NP), selector);
        }
        let offset = gate.gate_offset();
        let inner = call && !code.conforming() && code.dpl() < cpl;
        let new_cpl = if inner { code.dpl() } else { cpl };
        if !call {
            self.check_far_offset(&code, offset)?;
            self.mark_accessed(selector, &mut code)?;
            self.enter_code(selector, &code, cpl, offset);
            return Ok(());
        }
        let size = if long {
            8
        } else if gate.kind() == system::CALL_GATE {
            4
        } else {
            2
        };
        let back = self.state.rip();
        let cs = self.state.segment(SegReg::Cs).selector as u64;
        let old_ss = self.state.segment(SegReg::Ss).selector as u64;
        let old_sp = self.state.gpr(regs::RSP);
        let mut parameters = [0u64; 31];
        let count = if inner && !long { (gate.raw >> 32) as usize & 31 } else { 0 };
        let mut stack = if !inner {
            let mut stack = Stack::current(self, 0);
            if long {
                stack.long = true;
                stack.mask = u64::MAX;
                stack.sp = old_sp;
            }
            stack
        } else if long {
            let sp = self.read_tss_stack(4 + 8 * new_cpl as u64, 0)?;
            if !self.canonical(sp) {
                return Err(self.raise(Exception::SS0));
            }
            Stack { segment: Cpu::null_stack(new_cpl), sp, mask: u64::MAX, long: true, code: 0 }
        } else {
            let (ss, sp) = self.inner_stack(new_cpl, 0)?;
            // Parameters are read from the old stack at the old privilege.
            let mut from = Stack::current(self, 0);
            for p in parameters.iter_mut().take(count) {
                *p = from.pop(self, size)?;
            }
            Stack::of(ss, sp, (ss.selector & 0xfffc) as u32)
        };
        self.check_far_offset(&code, offset)?;
        self.mark_accessed(selector, &mut code)?;
        with_privilege(self, new_cpl, |cpu| {
            if inner {
                stack.push(cpu, size, old_ss)?;
                stack.push(cpu, size, old_sp)?;
                for &p in parameters[..count].iter().rev() {
                    stack.push(cpu, size, p)?;
                }
            }
            stack.push(cpu, size, cs)?;
            stack.push(cpu, size, back)
        })?;
        if inner {
            self.state.set_segment(SegReg::Ss, stack.segment);
        }
        self.enter_code(selector, &code, new_cpl, offset);
        if long {
            self.state.set_gpr(regs::RSP, stack.sp);
        } else {
            self.set_stack_pointer(stack.sp);
        }
        Ok(())
    }

    /// Check the code segment of a far return or IRET.
    fn check_return_target(&mut self, selector: u16) -> Exec<Descriptor> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let d = self.read_descriptor(selector, Blame::GP)?;
        let rpl = (selector & 3) as u8;
        let bad = !d.is_code()
            || rpl < self.state.cpl
            || if d.conforming() { d.dpl() > rpl } else { d.dpl() != rpl }
            || (self.state.long_mode() && d.long() && d.big());
        if bad {
            return self.blame(Blame::GP, selector);
        }
        if !d.present() {
            return self.blame(Blame::GP.as_vector(Vector::NP), selector);
        }
        Ok(d)
    }

    /// Check the stack segment of a return to `cpl`, with code segment `code`.
    fn check_return_stack(&mut self, selector: u16, cpl: u8, code: &Descriptor) -> Exec<undervisor_core::Segment> {
        if is_null(selector) {
            if self.state.long_mode() && code.long() && cpl != 3 && (selector & 3) as u8 == cpl {
                return Ok(Cpu::null_stack(cpl));
            }
            return Err(self.gp(0));
        }
        self.stack_segment_for(selector, cpl, Blame::GP, Vector::SS)
    }
}

/// Operand size of RETF and IRET.
fn return_size(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
        _ => 8,
    }
}

fn ret_far(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = return_size(insn);
    let extra = if insn.op_count() == 1 { insn.immediate16() as u64 } else { 0 };
    let mut stack = Stack::current(cpu, 0);
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    if real(cpu) {
        if offset > cpu.state.segment(SegReg::Cs).limit as u64 {
            return Err(cpu.gp(0));
        }
        cpu.set_stack_pointer(stack.sp.wrapping_add(extra));
        cpu.enter_real(selector, offset);
        return Ok(());
    }
    let mut code = cpu.check_return_target(selector)?;
    let rpl = (selector & 3) as u8;
    if rpl == cpu.state.cpl {
        cpu.check_far_offset(&code, offset)?;
        cpu.mark_accessed(selector, &mut code)?;
        cpu.set_stack_pointer(stack.sp.wrapping_add(extra));
        cpu.enter_code(selector, &code, rpl, offset);
        return Ok(());
    }
    stack.sp = stack.sp.wrapping_add(extra) & stack.mask;
    let sp = stack.pop(cpu, size)?;
    let ss = stack.pop(cpu, size)? as u16;
    let segment = cpu.check_return_stack(ss, rpl, &code)?;
    cpu.check_far_offset(&code, offset)?;
    cpu.mark_accessed(selector, &mut code)?;
    cpu.state.set_segment(SegReg::Ss, segment);
    cpu.enter_code(selector, &code, rpl, offset);
    load_outer_sp(cpu, sp.wrapping_add(extra), size);
    cpu.drop_inner_segments();
    cpu.privilege_changed();
    Ok(())
}

/// rSP after a return to an outer level: as wide as the new stack.
fn load_outer_sp(cpu: &mut Cpu, sp: u64, size: usize) {
    if cpu.mode.is64() {
        cpu.state.set_gpr(regs::RSP, sp);
    } else if cpu.stack_size() == 4 {
        cpu.state.set_gpr(regs::RSP, if size == 2 { sp & 0xffff } else { sp & 0xffff_ffff });
    } else {
        cpu.set_stack_pointer(sp);
    }
}

fn bits(flags: Rflags) -> u64 {
    flags.bits()
}

/// RFLAGS bits that IRET takes from the stack (SDM vol. 2, IRET: Operation).
fn iret_mask(cpu: &Cpu, size: usize) -> u64 {
    let mut mask = bits(Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT);
    if size != 2 {
        mask |= bits(Rflags::RF | Rflags::AC | Rflags::ID);
    }
    if cpu.state.cpl <= cpu.state.iopl() {
        mask |= bits(Rflags::IF);
    }
    if cpu.state.cpl == 0 {
        mask |= bits(Rflags::IOPL);
        if size != 2 {
            mask |= bits(Rflags::VIF | Rflags::VIP);
        }
    }
    mask
}

fn load_flags(cpu: &mut Cpu, image: u64, mask: u64) {
    let old = cpu.state.rflags();
    cpu.state.set_rflags(old & !mask & !bits(Rflags::RF) | image & mask);
    cpu.notes.rf_loaded = true;
    cpu.flags_loaded();
}

fn iret(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = return_size(insn);
    cpu.intercept(Intercept::Iret)?;
    if cpu.state.virtual_8086() {
        return iret_virtual_8086(cpu, size);
    }
    cpu.unblock_nmi();
    let result = if !cpu.state.protected() {
        iret_real(cpu, size)
    } else if cpu.state.flag(Rflags::NT) {
        if cpu.state.long_mode() {
            return Err(cpu.gp(0));
        }
        let rip = cpu.state.rip();
        cpu.return_to_task(rip)
    } else {
        iret_protected(cpu, size)
    };
    if result.is_ok() {
        cpu.virt.nmi_unblocked_by_iret = false;
    }
    result
}

fn iret_real(cpu: &mut Cpu, size: usize) -> Exec {
    let mut stack = Stack::current(cpu, 0);
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    let image = stack.pop(cpu, size)?;
    if offset > cpu.state.segment(SegReg::Cs).limit as u64 {
        return Err(cpu.gp(0));
    }
    cpu.set_stack_pointer(stack.sp);
    let mask = iret_mask(cpu, size) & !bits(Rflags::VIF | Rflags::VIP | Rflags::VM);
    cpu.enter_real(selector, offset);
    load_flags(cpu, image, mask);
    cpu.privilege_changed();
    Ok(())
}

/// IRET in virtual-8086 mode: with IOPL 3, or by CR4.VME with a 16-bit operand (then IF is VIF).
fn iret_virtual_8086(cpu: &mut Cpu, size: usize) -> Exec {
    let extended = cpu.state.iopl() < 3;
    if extended && (size != 2 || !cpu.state.cr4.contains(Cr4::VME)) {
        return Err(cpu.gp(0));
    }
    cpu.unblock_nmi();
    let mut stack = Stack::current(cpu, 0);
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    let mut image = stack.pop(cpu, size)?;
    if offset > cpu.state.segment(SegReg::Cs).limit as u64 {
        return Err(cpu.gp(0));
    }
    let mut mask = bits(Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT);
    if size != 2 {
        mask |= bits(Rflags::RF | Rflags::AC | Rflags::ID);
    }
    if extended {
        let wants = image & bits(Rflags::IF) != 0;
        let pending = cpu.state.flag(Rflags::VIP);
        if image & bits(Rflags::TF) != 0 || (wants && pending) {
            return Err(cpu.gp(0));
        }
        mask |= bits(Rflags::VIF);
        image = if wants { image | bits(Rflags::VIF) } else { image & !bits(Rflags::VIF) };
    } else {
        mask |= bits(Rflags::IF);
    }
    cpu.set_stack_pointer(stack.sp);
    cpu.enter_real(selector, offset);
    load_flags(cpu, image, mask);
    cpu.privilege_changed();
    cpu.virt.nmi_unblocked_by_iret = false;
    Ok(())
}

fn iret_protected(cpu: &mut Cpu, size: usize) -> Exec {
    let long = cpu.state.long_mode();
    let mut stack = Stack::current(cpu, 0);
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    let image = stack.pop(cpu, size)?;
    let cpl = cpu.state.cpl;
    if !long && cpl == 0 && size == 4 && image & bits(Rflags::VM) != 0 {
        return iret_to_virtual_8086(cpu, stack, offset, selector, image);
    }
    let mut code = cpu.check_return_target(selector)?;
    let rpl = (selector & 3) as u8;
    let mask = iret_mask(cpu, size);
    if rpl == cpl && !cpu.mode.is64() {
        cpu.check_far_offset(&code, offset)?;
        cpu.mark_accessed(selector, &mut code)?;
        cpu.set_stack_pointer(stack.sp);
        load_flags(cpu, image, mask);
        cpu.enter_code(selector, &code, rpl, offset);
        return Ok(());
    }
    let sp = stack.pop(cpu, size)?;
    let ss = stack.pop(cpu, size)? as u16;
    let segment = cpu.check_return_stack(ss, rpl, &code)?;
    cpu.check_far_offset(&code, offset)?;
    cpu.mark_accessed(selector, &mut code)?;
    cpu.state.set_segment(SegReg::Ss, segment);
    load_flags(cpu, image, mask);
    cpu.enter_code(selector, &code, rpl, offset);
    load_outer_sp(cpu, sp, size);
    if rpl > cpl {
        cpu.drop_inner_segments();
        cpu.privilege_changed();
    }
    Ok(())
}

fn iret_to_virtual_8086(cpu: &mut Cpu, mut stack: Stack, offset: u64, cs: u16, image: u64) -> Exec {
    let sp = stack.pop(cpu, 4)?;
    let mut selectors = [0u16; 6];
    for r in [SegReg::Ss, SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        selectors[r as usize] = stack.pop(cpu, 4)? as u16;
    }
    selectors[SegReg::Cs as usize] = cs;
    if offset > 0xffff {
        return Err(cpu.gp(0));
    }
    cpu.state.set_rflags(image);
    cpu.notes.rf_loaded = true;
    cpu.flags_loaded();
    cpu.virtual_8086_segments(selectors);
    cpu.state.set_rip(offset);
    cpu.state.set_gpr(regs::RSP, sp);
    cpu.mode_changed();
    Ok(())
}
