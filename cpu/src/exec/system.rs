//! System instructions that are not about segments or control registers: fast system calls, interrupts by instruction, interrupt
//! flag, HLT, caches, time, extended-state control (SDM vol. 2; APM vol. 3).

use iced_x86::{Code, Instruction, Mnemonic as M, Register};
use undervisor_core::{
    Activity, Cr4, Dr6, Efer, Event, EventKind, Intercept, Rflags, SegReg, Segment, Vector, model::Feature, msr, regs,
};

use crate::cpu::{Cpu, Exec, attention};
use crate::events::{self, Origin};
use crate::exec::Row;
use crate::observe::want;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::ends(match insn.mnemonic() {
        M::Syscall => syscall,
        M::Sysret | M::Sysretq => sysret,
        M::Sysenter => sysenter,
        M::Sysexit | M::Sysexitq => sysexit,
        M::Swapgs => swapgs,
        M::Rdfsbase | M::Rdgsbase => read_base,
        M::Wrfsbase | M::Wrgsbase => write_base,
        M::Int => int,
        M::Int3 => int3,
        M::Into => into,
        M::Int1 => int1,
        M::Cli => cli,
        M::Sti => sti,
        M::Clac | M::Stac => access_flag,
        M::Hlt => hlt,
        M::Invd | M::Wbinvd | M::Wbnoinvd => invalidate_caches,
        M::Cpuid => cpuid,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpmc => rdpmc,
        M::Rdpru => rdpru,
        M::Mcommit => mcommit,
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        M::Rdpkru => rdpkru,
        M::Wrpkru => wrpkru,
        M::Rsm => rsm,
        M::Getsec => getsec,
        _ => return None,
    }))
}

fn cpl0(cpu: &mut Cpu) -> Exec {
    if cpu.state.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

const CODE64: u32 = 0xa09b;
const CODE32: u32 = 0xc09b;
const DATA: u32 = 0xc093;
const USER: u32 = 0x60;

/// CS or SS of the fast system calls: flat, whatever the tables say.
fn flat(selector: u16, access: u32) -> Segment {
    Segment { selector, access, limit: u32::MAX, base: 0 }
}

/// Whether the operand size of SYSRET or SYSEXIT is 64.
fn wide(insn: &Instruction) -> bool {
    matches!(insn.code(), Code::Sysretq | Code::Sysexitq)
}

fn syscall(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let amd = cpu.is_amd();
    if !cpu.state.efer.contains(Efer::SCE) || !cpu.state.protected() || (!amd && !cpu.mode.is64()) {
        return Err(cpu.ud());
    }
    let s = &mut cpu.state;
    let selector = (s.msrs.star >> 32) as u16 & 0xfffc;
    let next = s.rip();
    let flags = s.rflags();
    if s.long_mode() {
        s.set_gpr(regs::RCX, next);
        s.set_gpr(regs::R11, flags);
        s.set_rip(if s.mode64() { s.msrs.lstar } else { s.msrs.cstar });
        let mask = s.msrs.fmask | Rflags::RF.bits();
        s.set_rflags(flags & !mask);
        s.set_segment(SegReg::Cs, flat(selector, CODE64));
    } else {
        s.set_gpr(regs::RCX, next & 0xffff_ffff);
        s.set_rip(s.msrs.star & 0xffff_ffff);
        s.set_rflags(flags & !(Rflags::VM | Rflags::IF | Rflags::RF).bits());
        s.set_segment(SegReg::Cs, flat(selector, CODE32));
    }
    s.set_segment(SegReg::Ss, flat(selector.wrapping_add(8), DATA));
    s.cpl = 0;
    cpu.notes.late_trap = true;
    cpu.privilege_changed();
    Ok(())
}

fn sysret(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let amd = cpu.is_amd();
    if !cpu.state.efer.contains(Efer::SCE) || !cpu.state.protected() || (!amd && !cpu.mode.is64()) {
        return Err(cpu.ud());
    }
    cpl0(cpu)?;
    let wide = wide(insn);
    let target = cpu.state.gpr(regs::RCX);
    if wide && !amd && !cpu.canonical(target) {
        return Err(cpu.gp(0));
    }
    let s = &mut cpu.state;
    let selector = (s.msrs.star >> 48) as u16 | 3;
    if s.mode64() {
        let flags = s.gpr(regs::R11) & 0x3c_7fd7;
        s.set_rflags(flags);
    } else {
        // AMD legacy mode: only IF.
        s.set_flag(Rflags::IF, true);
    }
    if wide {
        s.set_segment(SegReg::Cs, flat(selector.wrapping_add(16), CODE64 | USER));
        s.set_rip(target);
    } else {
        s.set_segment(SegReg::Cs, flat(selector, CODE32 | USER));
        s.set_rip(target & 0xffff_ffff);
    }
    let stack = selector.wrapping_add(8);
    if amd {
        // Only the selector is loaded (APM vol. 3, SYSRET).
        s.seg[SegReg::Ss as usize].selector = stack;
    } else {
        s.set_segment(SegReg::Ss, flat(stack, DATA | USER));
    }
    s.cpl = 3;
    cpu.notes.late_trap = true;
    cpu.notes.rf_loaded = true;
    cpu.privilege_changed();
    cpu.flags_loaded();
    // SYSRET traps by the TF that it loads, without one before it too (see `late_trap`).
    if cpu.state.flag(Rflags::TF) {
        cpu.pend_debug(Dr6::BS.bits());
    }
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.is_amd() && cpu.state.long_mode() {
        return Err(cpu.ud());
    }
    let selector = cpu.state.msrs.sysenter_cs as u16 & 0xfffc;
    if !cpu.state.protected() || selector == 0 {
        return Err(cpu.gp(0));
    }
    let s = &mut cpu.state;
    for flag in [Rflags::VM, Rflags::IF, Rflags::RF] {
        s.set_flag(flag, false);
    }
    let long = s.long_mode();
    let (ip, sp) = (s.msrs.sysenter_eip, s.msrs.sysenter_esp);
    s.set_rip(if long { ip } else { ip & 0xffff_ffff });
    s.set_gpr(regs::RSP, if long { sp } else { sp & 0xffff_ffff });
    s.set_segment(SegReg::Cs, flat(selector, if long { CODE64 } else { CODE32 }));
    s.set_segment(SegReg::Ss, flat(selector.wrapping_add(8), DATA));
    s.cpl = 0;
    cpu.mode_changed();
    Ok(())
}

fn sysexit(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.is_amd() && cpu.state.long_mode() {
        return Err(cpu.ud());
    }
    let base = cpu.state.msrs.sysenter_cs as u16 & 0xfffc;
    if !cpu.state.protected() || base == 0 {
        return Err(cpu.gp(0));
    }
    cpl0(cpu)?;
    let wide = wide(insn);
    let (ip, sp) = (cpu.state.gpr(regs::RDX), cpu.state.gpr(regs::RCX));
    if wide && !(cpu.canonical(ip) && cpu.canonical(sp)) {
        return Err(cpu.gp(0));
    }
    let s = &mut cpu.state;
    let selector = base.wrapping_add(if wide { 32 } else { 16 }) | 3;
    s.set_segment(SegReg::Cs, flat(selector, USER | if wide { CODE64 } else { CODE32 }));
    s.set_segment(SegReg::Ss, flat(selector.wrapping_add(8), DATA | USER));
    s.set_rip(if wide { ip } else { ip & 0xffff_ffff });
    s.set_gpr(regs::RSP, if wide { sp } else { sp & 0xffff_ffff });
    s.cpl = 3;
    cpu.privilege_changed();
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.mode.is64() {
        return Err(cpu.ud());
    }
    cpl0(cpu)?;
    let s = &mut cpu.state;
    let mut gs = *s.segment(SegReg::Gs);
    std::mem::swap(&mut gs.base, &mut s.msrs.kernel_gs_base);
    s.set_segment(SegReg::Gs, gs);
    Ok(())
}

fn base_register(insn: &Instruction) -> SegReg {
    if matches!(insn.mnemonic(), M::Rdfsbase | M::Wrfsbase) { SegReg::Fs } else { SegReg::Gs }
}

fn base_allowed(cpu: &mut Cpu) -> Exec {
    if !cpu.mode.is64() || !cpu.state.cr4.contains(Cr4::FSGSBASE) { Err(cpu.ud()) } else { Ok(()) }
}

fn read_base(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    base_allowed(cpu)?;
    let base = cpu.state.segment(base_register(insn)).base;
    cpu.set_gpr(insn.op0_register(), base);
    Ok(())
}

fn write_base(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    base_allowed(cpu)?;
    let base = cpu.gpr(insn.op0_register());
    if !cpu.canonical_base(base) {
        return Err(cpu.gp(0));
    }
    let register = base_register(insn);
    let segment = Segment { base, ..*cpu.state.segment(register) };
    cpu.state.set_segment(register, segment);
    Ok(())
}

/// Deliver what an INT instruction asks for. The return address is the next instruction's, but a fault on the way is reported
/// at this one.
fn software(cpu: &mut Cpu, insn: &Instruction, kind: EventKind, vector: u8) -> Exec {
    let rip = cpu.instruction_rip;
    cpu.state.set_rip(rip);
    let event = Event { kind, vector, error_code: None, payload: 0, instruction_length: insn.len() as u8 };
    events::deliver(cpu, event, Origin::Native)
}

fn int(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let vector = insn.immediate8();
    cpu.intercept(Intercept::SoftwareInterrupt(vector))?;
    if cpu.state.virtual_8086() {
        if cpu.state.cr4.contains(Cr4::VME) && cpu.redirected(vector)? {
            return redirect(cpu, insn, vector);
        }
        if cpu.state.iopl() < 3 {
            return Err(cpu.gp(0));
        }
    }
    software(cpu, insn, EventKind::Software, vector)
}

/// INT n in virtual-8086 mode through the interrupt table at linear 0.
fn redirect(cpu: &mut Cpu, insn: &Instruction, vector: u8) -> Exec {
    let event = Event { kind: EventKind::Software, vector, error_code: None, payload: 0, instruction_length: insn.len() as u8 };
    let rip = cpu.state.rip();
    cpu.notes.delivered = true;
    events::real(cpu, &event, rip, 0, None)
}

impl Cpu {
    /// Whether the software-interrupt redirection bitmap sends `vector` to the virtual-8086 program itself: a clear bit
    /// (SDM vol. 3, Virtual-8086 Mode Extensions: Class 3—Software Interrupt Handling in Virtual-8086 Mode).
    fn redirected(&mut self, vector: u8) -> Exec<bool> {
        let tr = self.state.tr;
        if tr.kind() & 8 == 0 || tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let io_map = self.read_system::<u16>(tr.base.wrapping_add(0x66))? as u64;
        let at = io_map.wrapping_sub(32).wrapping_add(vector as u64 / 8);
        if io_map < 32 || at > tr.limit as u64 {
            return Err(self.gp(0));
        }
        let byte = self.read_system::<u8>(tr.base.wrapping_add(at))?;
        Ok(byte >> (vector & 7) & 1 == 0)
    }
}

fn int3(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    software(cpu, insn, EventKind::SoftwareException, Vector::BP)
}

fn into(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.state.rflags() & Rflags::OF.bits() == 0 {
        return Ok(());
    }
    software(cpu, insn, EventKind::SoftwareException, Vector::OF)
}

fn int1(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.intercept(Intercept::Icebp)?;
    // Data breakpoints that MOV SS held back come with this #DB, not as one of their own.
    let held = cpu.state.pending_debug & 0xf;
    cpu.state.pending_debug &= !0xf;
    cpu.state.dr6 |= held;
    software(cpu, insn, EventKind::PrivilegedSoftwareException, Vector::DB)
}

/// How CLI and STI act here.
enum InterruptFlag {
    If,
    Vif,
}

fn interrupt_flag(cpu: &mut Cpu) -> Exec<InterruptFlag> {
    let s = &cpu.state;
    if !s.protected() || s.cpl <= s.iopl() {
        return Ok(InterruptFlag::If);
    }
    let extension = if s.virtual_8086() { Cr4::VME } else { Cr4::PVI };
    if s.cpl == 3 && s.cr4.contains(extension) {
        return Ok(InterruptFlag::Vif);
    }
    Err(cpu.gp(0))
}

fn cli(cpu: &mut Cpu, _: &Instruction) -> Exec {
    match interrupt_flag(cpu)? {
        InterruptFlag::If => cpu.state.set_flag(Rflags::IF, false),
        InterruptFlag::Vif => cpu.state.set_flag(Rflags::VIF, false),
    }
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Instruction) -> Exec {
    match interrupt_flag(cpu)? {
        InterruptFlag::If => {
            if !cpu.state.flag(Rflags::IF) {
                cpu.state.set_flag(Rflags::IF, true);
                cpu.shadow_after_sti();
            }
        }
        InterruptFlag::Vif => {
            if cpu.state.flag(Rflags::VIP) {
                return Err(cpu.gp(0));
            }
            cpu.state.set_flag(Rflags::VIF, true);
        }
    }
    Ok(())
}

/// CLAC, STAC.
fn access_flag(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.state.set_flag(Rflags::AC, insn.mnemonic() == M::Stac);
    cpu.privilege_changed();
    Ok(())
}

fn hlt(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpl0(cpu)?;
    cpu.intercept(Intercept::Hlt)?;
    cpu.state.activity = Activity::Hlt;
    cpu.attend(attention::INACTIVE | attention::INTERRUPT);
    Ok(())
}

/// INVD, WBINVD, WBNOINVD: nothing is cached. WBNOINVD on a model without it is WBINVD.
pub(super) fn invalidate_caches(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpl0(cpu)?;
    let intercept = match insn.mnemonic() {
        M::Invd => Intercept::Invd,
        M::Wbnoinvd if cpu.model.has(Feature::WBNOINVD) => Intercept::Wbnoinvd,
        _ => Intercept::Wbinvd,
    };
    let keeps = intercept == Intercept::Wbnoinvd;
    cpu.intercept(intercept)?;
    if !keeps {
        cpu.drop_caches();
    }
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.intercept(Intercept::Cpuid)?;
    let values = cpu.cpuid(cpu.gpr(Register::EAX) as u32, cpu.gpr(Register::ECX) as u32);
    for (register, value) in [Register::EAX, Register::EBX, Register::ECX, Register::EDX].into_iter().zip(values) {
        cpu.set_gpr(register, value as u64);
    }
    Ok(())
}

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.set_gpr(Register::EAX, value & 0xffff_ffff);
    cpu.set_gpr(Register::EDX, value >> 32);
}

pub(super) fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.gpr(Register::EAX) | cpu.gpr(Register::EDX) << 32
}

pub(super) fn time_allowed(cpu: &mut Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::TSD) && cpu.state.cpl > 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    time_allowed(cpu)?;
    cpu.intercept(Intercept::Rdtsc)?;
    let tsc = cpu.virt_tsc(cpu.tsc());
    set_edx_eax(cpu, tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _: &Instruction) -> Exec {
    time_allowed(cpu)?;
    cpu.intercept(Intercept::Rdtscp)?;
    let tsc = cpu.virt_tsc(cpu.tsc());
    set_edx_eax(cpu, tsc);
    let aux = cpu.state.msrs.tsc_aux & 0xffff_ffff;
    cpu.set_gpr(Register::ECX, aux);
    Ok(())
}

fn rdpmc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.state.protected() && cpu.state.cpl > 0 && !cpu.state.cr4.contains(Cr4::PCE) {
        return Err(cpu.gp(0));
    }
    let ecx = cpu.gpr(Register::ECX) as u32;
    if cpu.checks_before_intercepts() && cpu.performance_counter(ecx).is_none() {
        return Err(cpu.gp(0));
    }
    cpu.intercept(Intercept::Rdpmc)?;
    let Some(value) = cpu.performance_counter(ecx) else {
        return Err(cpu.gp(0));
    };
    set_edx_eax(cpu, value);
    Ok(())
}

/// RDPRU (APM vol. 3): MPERF and APERF at any privilege level; other registers read as zero.
fn rdpru(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.state.cpl != 0 && cpu.state.cr4.contains(Cr4::TSD) {
        return Err(cpu.ud());
    }
    cpu.intercept(Intercept::Rdpru)?;
    let value = match cpu.gpr(Register::ECX) {
        0 => cpu.performance_clock(msr::IA32_MPERF),
        1 => cpu.performance_clock(msr::IA32_APERF),
        _ => 0,
    };
    set_edx_eax(cpu, value);
    Ok(())
}

/// MCOMMIT (APM vol. 3): stores are in memory at once, without errors.
fn mcommit(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.state.efer.contains(Efer::MCOMMIT) {
        return Err(cpu.ud());
    }
    cpu.intercept(Intercept::Mcommit)?;
    cpu.state.set_flag(Rflags::CF, false);
    Ok(())
}

fn rdmsr(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpl0(cpu)?;
    let msr = cpu.gpr(Register::ECX) as u32;
    cpu.intercept(Intercept::Rdmsr(msr))?;
    let value = cpu.read_msr(msr)?;
    if cpu.observing & want::MSR != 0 {
        cpu.observe_msr(msr, value, false);
    }
    set_edx_eax(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpl0(cpu)?;
    let msr = cpu.gpr(Register::ECX) as u32;
    let value = edx_eax(cpu);
    cpu.intercept(Intercept::Wrmsr { msr, value })?;
    if cpu.observing & want::MSR != 0 {
        cpu.observe_msr(msr, value, true);
    }
    cpu.write_msr(msr, value)
}

fn extended_states(cpu: &mut Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::OSXSAVE) { Ok(()) } else { Err(cpu.ud()) }
}

fn xgetbv(cpu: &mut Cpu, _: &Instruction) -> Exec {
    extended_states(cpu)?;
    let value = match cpu.gpr(Register::ECX) {
        0 => cpu.state.xcr0,
        1 if cpu.model.has(Feature::XGETBV1) => cpu.state.xcr0 & cpu.xinuse(),
        _ => return Err(cpu.gp(0)),
    };
    set_edx_eax(cpu, value);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Instruction) -> Exec {
    extended_states(cpu)?;
    let amd = cpu.is_amd();
    if amd {
        cpl0(cpu)?;
    }
    cpu.intercept(Intercept::Xsetbv)?;
    cpl0(cpu)?;
    let value = edx_eax(cpu);
    let avx_without_sse = value & 4 != 0 && value & 2 == 0;
    if cpu.gpr(Register::ECX) != 0 || value & 1 == 0 || avx_without_sse || value & !cpu.model.xcr0_bits() != 0 {
        return Err(cpu.gp(0));
    }
    cpu.state.xcr0 = value;
    cpu.mode_changed();
    Ok(())
}

fn rdpkru(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.state.cr4.contains(Cr4::PKE) {
        return Err(cpu.ud());
    }
    if cpu.gpr(Register::ECX) != 0 {
        return Err(cpu.gp(0));
    }
    let value = cpu.state.pkru as u64;
    set_edx_eax(cpu, value);
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.state.cr4.contains(Cr4::PKE) {
        return Err(cpu.ud());
    }
    if cpu.gpr(Register::ECX) != 0 || cpu.gpr(Register::EDX) != 0 {
        return Err(cpu.gp(0));
    }
    cpu.state.pkru = cpu.gpr(Register::EAX) as u32;
    cpu.pkru_changed();
    Ok(())
}

/// There is no system-management mode to return from.
fn rsm(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.intercept(Intercept::Rsm)?;
    Err(cpu.ud())
}

/// Without CR4.SMXE, which no model has, GETSEC is undefined.
fn getsec(cpu: &mut Cpu, _: &Instruction) -> Exec {
    Err(cpu.ud())
}
