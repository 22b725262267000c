//! Waiting for a store to a line of memory, or for a time: MONITOR and MWAIT, UMONITOR, UMWAIT and TPAUSE (SDM vol. 2).

use iced_x86::{Instruction, Mnemonic as M, Register};
use undervisor_core::{Activity, Intercept, Rflags};

use crate::cpu::{Cpu, Exec, attention};
use crate::exec::Row;
use crate::exec::int_math::STATUS;
use crate::exec::system::{edx_eax, time_allowed};
use crate::monitor::Wait;
use crate::operand::Gpr;
use crate::paging::Access;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::ends(match insn.mnemonic() {
        M::Monitor => monitor,
        M::Mwait => mwait,
        M::Umonitor => umonitor,
        M::Umwait => umwait,
        M::Tpause => tpause,
        _ => return None,
    }))
}

/// The line at the address in `base`, which is read as a byte would be.
fn line(cpu: &mut Cpu, insn: &Instruction, base: Register) -> Exec<u64> {
    let mask = u64::MAX >> (64 - 8 * base.size() as u32);
    let mask = if cpu.mode.is64() { mask } else { mask & 0xffff_ffff };
    let offset = cpu.state.gpr(base.full_register().number() as u8) & mask;
    let linear = cpu.linear(cpu.effective_segment(insn), offset, 1, false)?;
    Ok(cpu.translate(linear, Access::READ)? & !63)
}

fn monitor(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    let first = cpu.checks_before_intercepts();
    if !first {
        cpu.intercept(Intercept::Monitor)?;
    }
    if cpu.gpr(Register::ECX) != 0 {
        return Err(cpu.gp(0));
    }
    let base = insn.op0_register();
    let physical = line(cpu, insn, if base.is_gpr() { base } else { Register::RAX })?;
    if first {
        cpu.intercept(Intercept::Monitor)?;
    }
    cpu.arm_monitor(physical, false);
    Ok(())
}

fn mwait(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    let armed = cpu.monitor.armed && !cpu.monitor.user && !cpu.monitor_fired();
    let extensions = cpu.gpr(Register::ECX);
    if cpu.checks_before_intercepts() && extensions & !1 != 0 {
        return Err(cpu.gp(0));
    }
    cpu.intercept(Intercept::Mwait { armed })?;
    if extensions & !1 != 0 {
        return Err(cpu.gp(0));
    }
    let masked = extensions & 1 != 0;
    // What a masked interrupt is to end may be over for a guest before it begins.
    let over = masked && !cpu.state.flag(Rflags::IF) && cpu.virt_masked_wait_is_over();
    cpu.monitor.armed = armed;
    if armed && !over {
        cpu.wait(Wait { line: true, masked_interrupts: masked, ..Wait::default() });
    }
    Ok(())
}

fn umonitor(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.intercept(Intercept::Umonitor)?;
    let physical = line(cpu, insn, insn.op0_register())?;
    cpu.arm_monitor(physical, true);
    Ok(())
}

fn umwait(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    time_allowed(cpu)?;
    cpu.intercept(Intercept::Umwait { register: number(insn) })?;
    user_wait(cpu, insn, true)
}

fn tpause(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    time_allowed(cpu)?;
    cpu.intercept(Intercept::Tpause { register: number(insn) })?;
    user_wait(cpu, insn, false)
}

fn number(insn: &Instruction) -> u8 {
    Gpr::of(insn.op0_register()).map_or(0, |g| g.number)
}

/// UMWAIT, where the line ends the wait too, and TPAUSE. Bit 0 of the operand asks for one of two sleeps, which are the same here.
fn user_wait(cpu: &mut Cpu, insn: &Instruction, on_line: bool) -> Exec {
    if cpu.gpr(insn.op0_register()) & !1 != 0 {
        return Err(cpu.gp(0));
    }
    cpu.state.set_status(STATUS, 0);
    if on_line {
        // UMWAIT does not take what MONITOR armed, nor a line that has changed.
        let armed = std::mem::take(&mut cpu.monitor.armed) && cpu.monitor.user;
        if !armed || cpu.monitor_fired() {
            return Ok(());
        }
    }
    let tsc = cpu.tsc();
    let delay = edx_eax(cpu).saturating_sub(cpu.virt_tsc(tsc));
    if delay == 0 {
        return Ok(());
    }
    // IA32_UMWAIT_CONTROL 31:2, in units of four ticks: the longest wait that the OS allows; 0: any.
    let most = cpu.state.msrs.umwait_control & 0xffff_fffc;
    let limited = most != 0 && most < delay;
    let delay = cpu.virt_physical_delay(if limited { most } else { delay });
    let deadline = cpu.time_of_tsc(tsc.saturating_add(delay));
    cpu.wait(Wait { line: on_line, masked_interrupts: true, deadline, limited });
    Ok(())
}

impl Cpu {
    /// The instruction in flight makes the processor wait.
    fn wait(&mut self, wait: Wait) {
        self.monitor.wait = wait;
        self.state.activity = Activity::Mwait;
        self.attend(attention::INACTIVE | attention::INTERRUPT);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use undervisor_core::{Cr4, Model, regs};
    use undervisor_mmu::NullBus;

    use super::*;
    use crate::cpu::Stop;
    use crate::run::RunExit;
    use crate::testing::{fault, processor};

    const TPAUSE: [u8; 4] = [0x66, 0x0f, 0xae, 0xf1];
    const UMWAIT: [u8; 4] = [0xf2, 0x0f, 0xae, 0xf1];
    const UMONITOR: [u8; 4] = [0xf3, 0x0f, 0xae, 0xf0];
    const MONITOR: [u8; 3] = [0x0f, 0x01, 0xc8];
    const MWAIT: [u8; 3] = [0x0f, 0x01, 0xc9];
    const HLT: [u8; 1] = [0xf4];
    const LINE: u64 = 0x5000;

    /// Runs `code`, with the TSC in which `deadline` counts at two ticks a nanosecond.
    fn started(code: &[&[u8]], deadline: u64, set: impl FnOnce(&mut Cpu)) -> Box<Cpu> {
        let mut c = processor(64);
        c.model = Rc::new(Model::max_intel());
        c.state.set_gpr(regs::RAX, LINE);
        c.state.set_gpr(regs::RDX, 0);
        c.shared.write_bytes(0x1000, &code.concat()).unwrap();
        set(&mut c);
        if deadline != 0 {
            // The wait's own instructions take RAX as an address before.
            c.run(&mut NullBus, 1);
            c.state.set_gpr(regs::RAX, deadline);
        }
        c.run(&mut NullBus, 20);
        c
    }

    /// Let time pass to `now`; whether the processor still waits.
    fn waits_at(c: &mut Cpu, now: u64) -> bool {
        c.advance_to(now);
        assert_eq!(c.run(&mut NullBus, now + 10), RunExit::Idle);
        c.state.activity == Activity::Mwait
    }

    #[test]
    fn tpause_ends_at_its_deadline() {
        let mut c = started(&[&[0x90], &TPAUSE, &HLT], 2000, |c| c.state.set_rflags(0x8d7));
        assert_eq!((c.state.activity, c.next_deadline()), (Activity::Mwait, 1000));
        assert!(waits_at(&mut c, 999));
        assert!(!waits_at(&mut c, 1000));
        assert_eq!((c.state.activity, c.state.rip(), c.state.rflags()), (Activity::Hlt, 0x1006, 2));
        // One that has passed is no wait.
        let c = started(&[&[0x90], &TPAUSE, &HLT], 1, |_| {});
        assert_eq!(c.state.activity, Activity::Hlt);
    }

    #[test]
    fn the_limit_of_the_os_sets_carry() {
        let limit = |c: &mut Cpu| c.write_msr(0xe1, 400 | 1).unwrap();
        let mut c = started(&[&[0x90], &TPAUSE, &HLT], 2000, limit);
        // 400 ticks from the TPAUSE on, which was the second instruction.
        assert_eq!(c.next_deadline(), 201);
        assert!(!waits_at(&mut c, 201));
        assert_eq!(c.state.rflags(), 3);
        let mut c = started(&[&[0x90], &TPAUSE, &HLT], 300, limit);
        assert!(!waits_at(&mut c, 150));
        assert_eq!(c.state.rflags(), 2);
        for value in [2, 1 << 32] {
            assert!(c.write_msr(0xe1, value).is_err());
        }
    }

    #[test]
    fn a_store_ends_umwait_but_not_tpause() {
        for (wait, ends) in [(UMWAIT, true), (TPAUSE, false)] {
            let mut c = started(&[&UMONITOR, &wait, &HLT], 1 << 20, |_| {});
            assert!(waits_at(&mut c, 100));
            c.shared.write_bytes(LINE + 63, &[1]).unwrap();
            assert_eq!(c.stored_to(), ends);
            assert_eq!(waits_at(&mut c, 200), !ends);
        }
    }

    #[test]
    fn monitor_and_umonitor_do_not_mix() {
        let activity = |code: &[&[u8]], deadline| started(code, deadline, |c| c.state.set_gpr(regs::RCX, 0)).state.activity;
        assert_eq!(activity(&[&MONITOR, &MWAIT, &HLT], 0), Activity::Mwait);
        assert_eq!(activity(&[&UMONITOR, &MWAIT, &HLT], 0), Activity::Hlt);
        assert_eq!(activity(&[&UMONITOR, &UMWAIT, &HLT], 1 << 20), Activity::Mwait);
        assert_eq!(activity(&[&MONITOR, &UMWAIT, &HLT], 1 << 20), Activity::Hlt);
        assert_eq!(activity(&[&[0x90], &UMWAIT, &HLT], 1 << 20), Activity::Hlt);
    }

    #[test]
    fn refusals() {
        let mut c = processor(64);
        c.model = Rc::new(Model::max_intel());
        c.state.set_gpr(regs::RCX, 2);
        assert_eq!(fault(&mut c, &TPAUSE), (13, Some(0)));
        c.state.set_gpr(regs::RCX, 1);
        c.state.cr4 |= Cr4::TSD;
        c.state.cpl = 3;
        assert_eq!(fault(&mut c, &UMWAIT), (13, Some(0)));
        // Without the feature.
        for code in [&TPAUSE, &UMWAIT, &UMONITOR] {
            let mut c = processor(64);
            c.shared.write_bytes(0x1000, code).unwrap();
            assert_eq!(c.run_undelivered(&mut NullBus, 1), Err(Stop::Exception));
            assert_eq!(c.exception.vector, 6);
        }
    }
}
