//! Delivery of interrupts and exceptions through the IDT (SDM vol. 3, Interrupt and Exception Handling; vol. 2, INT n:
//! Operation; APM vol. 2, Exceptions and Interrupts).
//!
//! Delivery either completes or changes nothing but CR2, DR6 and memory below the new stack pointer: everything that can fault
//! comes before the first register changes, except that CS and CPL are set for the pushes and put back if those fault.

use undervisor_core::{Activity, Dr6, Dr7, Event, EventKind, Exception, Rflags, SegReg, Segment, Vector};

use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::observe::want;
use crate::segments::{Blame, Descriptor, is_null, null_segment, system};
use crate::task::NewTask;
use crate::virt::TaskSource;

/// Who delivers an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The processor itself: exceptions may be intercepted.
    Native,
    /// VM entry or VMRUN: the event itself is not intercepted, what its delivery raises is.
    Injected,
}

/// How exceptions combine (SDM vol. 3, Interrupt 8—Double Fault Exception).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: &Event) -> Class {
    if event.kind != EventKind::HardwareException {
        return Class::Benign;
    }
    match event.vector {
        Vector::DE | Vector::TS | Vector::NP | Vector::SS | Vector::GP | Vector::CP => Class::Contributory,
        Vector::PF | Vector::VE => Class::PageFault,
        Vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What a fault in the delivery of `first` turns into; `None`: triple fault.
fn combine(first: &Event, second: Exception) -> Option<Event> {
    let second = Event::from(second);
    let serious = class(&second) != Class::Benign;
    match class(first) {
        Class::DoubleFault if serious => None,
        Class::Contributory if class(&second) == Class::Contributory => Some(double_fault()),
        Class::PageFault if serious => Some(double_fault()),
        _ => Some(second),
    }
}

fn double_fault() -> Event {
    Event::from(Exception::with_code(Vector::DF, 0))
}

/// Whether the RF bit of the pushed image is set: fault-class exceptions, an instruction breakpoint excepted
/// (SDM vol. 3, Instruction-Breakpoint Exception Condition).
pub fn is_fault(event: &Event) -> bool {
    if event.vector == Vector::DB {
        // General detect is a fault, with no instruction breakpoint about it.
        return event.kind == EventKind::HardwareException && event.payload & Dr6::BD.bits() != 0;
    }
    event.kind == EventKind::HardwareException && !matches!(event.vector, Vector::BP | Vector::OF | Vector::MC | Vector::DF)
}

/// INT n, INT3 and INTO: the gate's DPL is checked, EXT is clear. (INT1 is neither.)
fn is_software(event: &Event) -> bool {
    matches!(event.kind, EventKind::Software | EventKind::SoftwareException)
}

/// EXT of an error code that names what stood in the way of `event`. Intel sets it unless a software interrupt is delivered (SDM vol. 3,
/// Error Code); AMD only where the source is external to the processor, and exceptions are internal (APM vol. 2, Selector-Error Code).
fn ext(cpu: &Cpu, event: &Event) -> u32 {
    u32::from(if cpu.is_amd() { matches!(event.kind, EventKind::External | EventKind::Nmi) } else { !is_software(event) })
}

/// Deliver `event`; faults on the way are delivered too (contributory rules, double and triple fault). `Err(Stop::Exit)`: a VM exit
/// took place.
pub fn deliver(cpu: &mut Cpu, event: Event, origin: Origin) -> Exec {
    let mut event = event;
    let mut origin = origin;
    let rip = cpu.state.rip();
    let mut first = true;
    cpu.notes.delivered = true;
    if cpu.observing & want::EXPLAIN != 0 && !cpu.virt.guest && matches!(event.vector, Vector::UD | Vector::GP) {
        cpu.observe_refused_instruction(event.vector);
    }
    // A chain of faults is short if each link is more serious than the last. One of benign exceptions (#AC on the stack of the #AC
    // handler) need not end: it goes on at the next boundary, where nothing else is looked at before it.
    for _ in 0..8 {
        let intercepted = !matches!(event.kind, EventKind::External | EventKind::Nmi | EventKind::Software);
        if intercepted && origin == Origin::Native {
            cpu.intercept_exception(&event)?;
        }
        side_effects(cpu, &event, origin);
        if event.kind == EventKind::HardwareException {
            cpu.counters.exceptions += 1;
        } else {
            cpu.counters.interrupts += 1;
        }
        cpu.virt.delivering = Some(event);
        match deliver_once(cpu, &event) {
            Ok(()) => {
                cpu.virt.delivering = None;
                cpu.count_delivery();
                cpu.virt.nmi_unblocked_by_iret = false;
                cpu.state.activity = Activity::Active;
                cpu.notes.repeating = false;
                let shadow = &mut cpu.state.shadow;
                if shadow.sti || shadow.mov_ss {
                    shadow.sti = false;
                    shadow.mov_ss = false;
                    cpu.attend(attention::INTERRUPT);
                }
                if cpu.observing & want::INTERRUPTS != 0 {
                    cpu.observe_delivered(&event, rip);
                }
                return Ok(());
            }
            // The fault itself can be intercepted, before it makes a double or triple fault of `event` (SDM vol. 3, Information for
            // VM Exits During Event Delivery; APM vol. 2, Exception Intercepts).
            Err(Stop::Exception) => cpu.intercept_exception(&Event::from(cpu.exception))?,
            Err(stop) => return Err(stop),
        }
        if cpu.observing & want::EXPLAIN != 0 {
            let fault = cpu.exception;
            cpu.observe_fault(&event, fault, first);
            first = false;
        }
        origin = Origin::Native;
        match combine(&event, cpu.exception) {
            Some(next) => {
                if next.vector == Vector::DF && cpu.exception.vector == Vector::PF {
                    cpu.state.cr2 = cpu.exception.payload;
                }
                event = next;
            }
            None => return shut_down(cpu),
        }
    }
    cpu.virt.delivering = None;
    cpu.notes.deferred = Some(Exception { vector: event.vector, error_code: event.error_code, payload: event.payload });
    cpu.attend(attention::FAULT);
    Ok(())
}

/// Triple fault.
fn shut_down(cpu: &mut Cpu) -> Exec {
    if cpu.observing & want::EXPLAIN != 0 {
        cpu.observe_triple_fault();
    }
    cpu.intercept_triple_fault()?;
    cpu.virt.delivering = None;
    cpu.state.activity = Activity::Shutdown;
    cpu.attend(attention::INACTIVE);
    Ok(())
}

/// DR6 once a debug exception with this payload has been delivered. BLD is the one bit that is cleared to say so.
pub fn dr6_after(dr6: u64, payload: u64) -> u64 {
    let bld = Dr6::BLD.bits();
    (dr6 & !0xf | payload & !bld) & !(payload & bld)
}

/// CR2, DR6, DR7, NMI blocking: what an event changes besides the stack.
fn side_effects(cpu: &mut Cpu, event: &Event, origin: Origin) {
    match (event.kind, event.vector) {
        (EventKind::HardwareException, Vector::PF) if origin == Origin::Native => cpu.state.cr2 = event.payload,
        (EventKind::HardwareException | EventKind::PrivilegedSoftwareException, Vector::DB) if origin == Origin::Native => {
            let s = &mut cpu.state;
            if event.kind == EventKind::HardwareException {
                s.dr6 = dr6_after(s.dr6, event.payload);
            }
            s.dr7 &= !Dr7::GD.bits();
            // LBR and BTF end with a debug exception (SDM vol. 3, LBR, BTF).
            s.msrs.debugctl &= !3;
        }
        (EventKind::Nmi, _) if origin == Origin::Native => cpu.state.shadow.nmi = true,
        _ => {}
    }
}

fn deliver_once(cpu: &mut Cpu, event: &Event) -> Exec {
    let rip = match event.kind {
        EventKind::Software | EventKind::SoftwareException | EventKind::PrivilegedSoftwareException => {
            crate::hot::along(cpu.mode, cpu.state.rip().wrapping_add(event.instruction_length as u64))
        }
        _ => cpu.state.rip(),
    };
    if !cpu.state.protected() {
        real(cpu, event, rip, cpu.state.idtr.base, Some(cpu.state.idtr.limit))
    } else if cpu.state.long_mode() {
        long(cpu, event, rip)
    } else {
        protected(cpu, event, rip)
    }
}

/// The RFLAGS image that an event pushes.
fn pushed_flags(cpu: &Cpu, event: &Event) -> u64 {
    let flags = cpu.state.rflags();
    if is_fault(event) || cpu.notes.repeating { flags | Rflags::RF.bits() } else { flags }
}

/// Real-address mode, and virtual-8086 mode with the redirection bitmap's consent (then `limit` is `None`).
pub fn real(cpu: &mut Cpu, event: &Event, rip: u64, base: u64, limit: Option<u16>) -> Exec {
    let entry = event.vector as u64 * 4;
    if limit.is_some_and(|limit| entry + 3 > limit as u64) {
        return Err(cpu.gp(entry as u32 + 2 + ext(cpu, event)));
    }
    let target = if limit.is_some() { cpu.read_system::<u32>(base + entry)? } else { cpu.read_linear::<u32>(base + entry)? };
    let v8086 = cpu.state.virtual_8086();
    let mut image = cpu.state.rflags();
    if v8086 && cpu.state.iopl() < 3 {
        // VIF stands in for IF, and IOPL reads as 3 (SDM vol. 3, Virtual-8086 Mode Extensions).
        let vif = image & Rflags::VIF.bits() != 0;
        image |= Rflags::IOPL.bits();
        image = if vif { image | Rflags::IF.bits() } else { image & !Rflags::IF.bits() };
    }
    let mut stack = Stack::current(cpu, 0);
    stack.push(cpu, 2, image)?;
    stack.push(cpu, 2, cpu.state.segment(SegReg::Cs).selector as u64)?;
    stack.push(cpu, 2, rip)?;
    cpu.set_stack_pointer(stack.sp);
    let selector = (target >> 16) as u16;
    let mut flags = cpu.state.rflags() & !(Rflags::TF | Rflags::RF | Rflags::AC).bits();
    if v8086 {
        flags = cpu.state.rflags() & !(Rflags::TF | Rflags::RF | Rflags::NT).bits();
    }
    flags &= !if v8086 && cpu.state.iopl() < 3 { Rflags::VIF.bits() } else { Rflags::IF.bits() };
    let cs = cpu.real_segment(SegReg::Cs, selector);
    cpu.state.set_segment(SegReg::Cs, cs);
    cpu.state.set_rip((target & 0xffff) as u64);
    cpu.state.set_rflags(flags);
    cpu.privilege_changed();
    Ok(())
}

/// Protected and virtual-8086 mode.
fn protected(cpu: &mut Cpu, event: &Event, rip: u64) -> Exec {
    let ext = ext(cpu, event);
    let idt_code = event.vector as u32 * 8 + 2 + ext;
    let entry = event.vector as u64 * 8;
    if entry + 7 > cpu.state.idtr.limit as u64 {
        return Err(cpu.gp(idt_code));
    }
    let gate = Descriptor { raw: cpu.read_system::<u64>(cpu.state.idtr.base.wrapping_add(entry) & 0xffff_ffff)?, upper: 0 };
    let known = matches!(
        gate.kind(),
        system::TASK_GATE | system::INTERRUPT_GATE16 | system::TRAP_GATE16 | system::INTERRUPT_GATE | system::TRAP_GATE
    );
    if gate.is_code_or_data() || !known || (is_software(event) && gate.dpl() < cpu.state.cpl) {
        return Err(cpu.gp(idt_code));
    }
    if !gate.present() {
        return Err(cpu.raise(Exception::with_code(Vector::NP, idt_code)));
    }
    let blame = Blame { vector: Vector::GP, ext };
    if gate.kind() == system::TASK_GATE {
        let selector = gate.gate_selector();
        let task = cpu.check_task(selector, blame, true)?;
        return cpu.switch_task(NewTask {
            selector,
            descriptor: task,
            source: TaskSource::Gate,
            error_code: event.error_code,
            rip,
            ext,
        });
    }
    let (selector, mut code, dpl) = check_handler(cpu, &gate, blame, false)?;
    let old_cpl = cpu.state.cpl;
    let v8086 = cpu.state.virtual_8086();
    let inner = !code.conforming() && code.dpl() < old_cpl;
    if v8086 && !(inner && code.dpl() == 0) {
        return cpu.blame(blame, selector);
    }
    let size = if gate.kind() & 8 != 0 { 4 } else { 2 };
    let offset = gate.gate_offset();
    let flags = pushed_flags(cpu, event);
    let old_cs = *cpu.state.segment(SegReg::Cs);
    let old_ss = *cpu.state.segment(SegReg::Ss);
    let old_sp = cpu.state.gpr(undervisor_core::regs::RSP);
    let new_cpl = if inner { dpl } else { old_cpl };
    let mut stack = if inner {
        let (ss, sp) = cpu.inner_stack(dpl, ext)?;
        Stack::of(ss, sp, ext)
    } else {
        Stack::current(cpu, ext)
    };
    if offset > code.limit() as u64 {
        return Err(cpu.gp(ext));
    }
    cpu.mark_accessed(selector, &mut code)?;
    let pushed = with_privilege(cpu, new_cpl, |cpu| {
        if v8086 {
            for r in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                stack.push(cpu, size, cpu.state.segment(r).selector as u64)?;
            }
        }
        if inner {
            stack.push(cpu, size, old_ss.selector as u64)?;
            stack.push(cpu, size, old_sp)?;
        }
        stack.push(cpu, size, flags)?;
        stack.push(cpu, size, old_cs.selector as u64)?;
        stack.push(cpu, size, rip)?;
        if let Some(code) = event.error_code {
            stack.push(cpu, size, code as u64)?;
        }
        Ok(())
    });
    pushed?;
    if v8086 {
        for r in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
            cpu.state.set_segment(r, null_segment(0));
        }
    }
    enter_handler(cpu, &gate);
    cpu.set_code_segment(selector, &code, new_cpl);
    if inner {
        cpu.state.set_segment(SegReg::Ss, stack.segment);
    }
    cpu.state.set_rip(offset);
    cpu.privilege_changed();
    cpu.set_stack_pointer(stack.sp);
    Ok(())
}

/// IA-32e mode.
fn long(cpu: &mut Cpu, event: &Event, rip: u64) -> Exec {
    let ext = ext(cpu, event);
    let idt_code = event.vector as u32 * 8 + 2 + ext;
    let entry = event.vector as u64 * 16;
    if entry + 15 > cpu.state.idtr.limit as u64 {
        return Err(cpu.gp(idt_code));
    }
    let address = cpu.state.idtr.base.wrapping_add(entry);
    let gate = Descriptor { raw: cpu.read_system::<u64>(address)?, upper: cpu.read_system::<u64>(address.wrapping_add(8))? };
    let known = matches!(gate.kind(), system::INTERRUPT_GATE | system::TRAP_GATE);
    let upper_type = gate.upper >> 40 & 0x1f != 0;
    if gate.is_code_or_data() || !known || upper_type || (is_software(event) && gate.dpl() < cpu.state.cpl) {
        return Err(cpu.gp(idt_code));
    }
    if !gate.present() {
        return Err(cpu.raise(Exception::with_code(Vector::NP, idt_code)));
    }
    let blame = Blame { vector: Vector::GP, ext };
    let (selector, mut code, dpl) = check_handler(cpu, &gate, blame, true)?;
    let old_cpl = cpu.state.cpl;
    let inner = !code.conforming() && code.dpl() < old_cpl;
    let new_cpl = if inner { dpl } else { old_cpl };
    let ist = gate.raw >> 32 & 7;
    let old_sp = cpu.state.gpr(undervisor_core::regs::RSP);
    let sp = if ist != 0 {
        cpu.read_tss_stack(28 + 8 * ist, ext)?
    } else if inner {
        cpu.read_tss_stack(4 + 8 * dpl as u64, ext)?
    } else {
        old_sp
    };
    if (ist != 0 || inner) && !cpu.canonical(sp) {
        return Err(cpu.raise(Exception::with_code(Vector::SS, ext)));
    }
    let offset = gate.gate_offset();
    if !cpu.canonical(offset) {
        return Err(cpu.gp(ext));
    }
    let flags = pushed_flags(cpu, event);
    let old_cs = cpu.state.segment(SegReg::Cs).selector;
    let old_ss = cpu.state.segment(SegReg::Ss).selector;
    cpu.mark_accessed(selector, &mut code)?;
    let mut stack = Stack { segment: null_segment(0), sp: sp & !15, mask: u64::MAX, long: true, code: ext };
    with_privilege(cpu, new_cpl, |cpu| {
        stack.push(cpu, 8, old_ss as u64)?;
        stack.push(cpu, 8, old_sp)?;
        stack.push(cpu, 8, flags)?;
        stack.push(cpu, 8, old_cs as u64)?;
        stack.push(cpu, 8, rip)?;
        if let Some(code) = event.error_code {
            stack.push(cpu, 8, code as u64)?;
        }
        Ok(())
    })?;
    enter_handler(cpu, &gate);
    cpu.set_code_segment(selector, &code, new_cpl);
    if inner {
        cpu.state.set_segment(SegReg::Ss, Cpu::null_stack(new_cpl));
    }
    cpu.state.set_rip(offset);
    cpu.state.set_gpr(undervisor_core::regs::RSP, stack.sp);
    cpu.privilege_changed();
    Ok(())
}

/// The checks on a gate's code segment (SDM vol. 2, INT n: Operation).
fn check_handler(cpu: &mut Cpu, gate: &Descriptor, blame: Blame, long: bool) -> Exec<(u16, Descriptor, u8)> {
    let selector = gate.gate_selector();
    if is_null(selector) {
        return cpu.blame(blame, 0);
    }
    let code = cpu.read_descriptor(selector, blame)?;
    if !code.is_code() || code.dpl() > cpu.state.cpl {
        return cpu.blame(blame, selector);
    }
    if long && (!code.long() || code.big()) {
        return cpu.blame(blame, selector);
    }
    if !code.present() {
        return cpu.blame(blame.as_vector(Vector::NP), selector);
    }
    Ok((selector, code, code.dpl()))
}

/// RFLAGS of a handler: IF is cleared by an interrupt gate; TF, NT, RF and VM by both kinds.
fn enter_handler(cpu: &mut Cpu, gate: &Descriptor) {
    let mut clear = (Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM).bits();
    if gate.kind() & 1 == 0 {
        clear |= Rflags::IF.bits();
    }
    for flag in [Rflags::TF, Rflags::NT, Rflags::RF, Rflags::VM, Rflags::IF] {
        if clear & flag.bits() != 0 {
            cpu.state.set_flag(flag, false);
        }
    }
}

/// Run `f` with accesses made at privilege `cpl`.
pub fn with_privilege<R>(cpu: &mut Cpu, cpl: u8, f: impl FnOnce(&mut Cpu) -> Exec<R>) -> Exec<R> {
    let old = cpu.state.cpl;
    if old == cpl {
        return f(cpu);
    }
    cpu.state.cpl = cpl;
    cpu.privilege_changed();
    cpu.virt.interrupted_cpl = Some(old);
    let result = f(cpu);
    if !matches!(result, Err(Stop::Exit)) {
        cpu.state.cpl = old;
        cpu.virt.interrupted_cpl = None;
        cpu.privilege_changed();
    }
    result
}

/// A stack being pushed to before it becomes the stack.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    pub segment: Segment,
    pub sp: u64,
    pub mask: u64,
    /// 64-bit: the segment does not matter.
    pub long: bool,
    /// Error code of the #SS for a push that does not fit.
    pub code: u32,
}

impl Stack {
    /// A legacy stack.
    pub fn of(segment: Segment, sp: u64, code: u32) -> Stack {
        Stack { segment, sp, mask: if segment.big() { 0xffff_ffff } else { 0xffff }, long: false, code }
    }

    /// The stack in use.
    pub fn current(cpu: &Cpu, code: u32) -> Stack {
        let segment = *cpu.state.segment(SegReg::Ss);
        let mask = u64::MAX >> (64 - 8 * cpu.stack_size() as u32);
        Stack { segment, sp: cpu.stack_pointer(), mask, long: cpu.mode.is64(), code }
    }

    pub fn push(&mut self, cpu: &mut Cpu, size: usize, value: u64) -> Exec {
        let sp = self.sp.wrapping_sub(size as u64) & self.mask;
        let linear = self.linear(cpu, sp, size, true)?;
        cpu.write_sized(linear, size, value)?;
        self.sp = sp;
        Ok(())
    }

    pub fn pop(&mut self, cpu: &mut Cpu, size: usize) -> Exec<u64> {
        let linear = self.linear(cpu, self.sp & self.mask, size, false)?;
        let value = cpu.read_sized(linear, size)?;
        self.sp = self.sp.wrapping_add(size as u64) & self.mask;
        Ok(value)
    }

    fn linear(&self, cpu: &mut Cpu, sp: u64, size: usize, write: bool) -> Exec<u64> {
        if self.long {
            if cpu.canonical(sp) && cpu.canonical(sp.wrapping_add(size as u64 - 1)) {
                return Ok(sp);
            }
        } else {
            let protected = cpu.state.protected() && !cpu.state.virtual_8086();
            if crate::access::segment_allows(&self.segment, sp, size, write, protected) {
                return Ok(self.segment.base.wrapping_add(sp) & 0xffff_ffff);
            }
        }
        Err(cpu.raise(Exception::with_code(Vector::SS, self.code)))
    }
}

impl Cpu {
    /// A stack pointer from a 64-bit TSS at `offset` (RSPn or ISTn).
    pub fn read_tss_stack(&mut self, offset: u64, ext: u32) -> Exec<u64> {
        let tr = self.state.tr;
        if offset + 7 > tr.limit as u64 {
            return self.blame(Blame { vector: Vector::TS, ext }, tr.selector);
        }
        self.read_system::<u64>(tr.base.wrapping_add(offset))
    }

    /// SS and SP for privilege level `dpl` from a 16- or 32-bit TSS, checked (SDM vol. 2, CALL and INT n: Operation).
    pub fn inner_stack(&mut self, dpl: u8, ext: u32) -> Exec<(Segment, u64)> {
        let blame = Blame { vector: Vector::TS, ext };
        let tr = self.state.tr;
        let wide = tr.kind() & 8 != 0;
        let (offset, size) = if wide { (4 + 8 * dpl as u64, 4) } else { (2 + 4 * dpl as u64, 2) };
        if offset + size + 1 > tr.limit as u64 {
            return self.blame(blame, tr.selector);
        }
        let at = tr.base.wrapping_add(offset);
        let (sp, selector) = if wide {
            (self.read_system::<u32>(at)? as u64, self.read_system::<u16>(at.wrapping_add(4))?)
        } else {
            (self.read_system::<u16>(at)? as u64, self.read_system::<u16>(at.wrapping_add(2))?)
        };
        if is_null(selector) {
            return self.blame(blame, 0);
        }
        let ss = self.stack_segment_for(selector, dpl, blame, Vector::SS)?;
        Ok((ss, sp))
    }
}
