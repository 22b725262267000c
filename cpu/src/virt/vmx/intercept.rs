//! Instructions that exit (SDM vol. 3, Instructions That Cause VM Exits; Changes to Instruction Behavior in VMX Non-Root
//! Operation). Faults that come before the exit have been looked for by the instruction itself.

use undervisor_core::Intercept;
use undervisor_vmx::bitmaps::{io_exits, msr_exits};
use undervisor_vmx::controls::{primary, secondary};
use undervisor_vmx::reason::basic;
use undervisor_vmx::{ExitInformation, Field};

use super::operand::{displacement, operand_information, register, string_information};
use crate::cpu::{Cpu, Exec};

/// Types of a control-register access, qualification bits 5:4.
mod cr_access {
    pub const WRITE: u64 = 0 << 4;
    pub const READ: u64 = 1 << 4;
    pub const CLTS: u64 = 2 << 4;
    pub const LMSW: u64 = 3 << 4;
}

const PE: u64 = 1;
const TS: u64 = 1 << 3;

impl Cpu {
    fn exit_if(&mut self, condition: bool, reason: u32) -> Exec {
        self.exit_qualified_if(condition, reason, 0)
    }

    fn exit_qualified_if(&mut self, condition: bool, reason: u32, qualification: u64) -> Exec {
        if condition {
            return Err(self.vmx_exit_instruction(ExitInformation::qualified(reason, qualification)));
        }
        Ok(())
    }

    /// #UD unless a secondary control enables the instruction.
    fn enabled(&mut self, control: u32) -> Exec {
        if self.vmx_secondary(control) { Ok(()) } else { Err(self.ud()) }
    }

    pub(in crate::virt) fn vmx_intercept(&mut self, what: Intercept) -> Exec {
        use Intercept as I;
        match what {
            I::Cpuid => self.exit_if(true, basic::CPUID),
            I::Getsec => self.exit_if(true, basic::GETSEC),
            I::Hlt => self.exit_if(self.vmx_primary(primary::HLT_EXITING), basic::HLT),
            I::Invd => self.exit_if(true, basic::INVD),
            I::Wbinvd | I::Wbnoinvd => self.exit_if(self.vmx_secondary(secondary::WBINVD_EXITING), basic::WBINVD),
            I::Invlpg(linear) => self.exit_qualified_if(self.vmx_primary(primary::INVLPG_EXITING), basic::INVLPG, linear),
            I::Invpcid { .. } => {
                self.enabled(secondary::ENABLE_INVPCID)?;
                self.exit_with_operand(self.vmx_primary(primary::INVLPG_EXITING), basic::INVPCID, 1, 0)
            }
            I::Rdpmc => self.exit_if(self.vmx_primary(primary::RDPMC_EXITING), basic::RDPMC),
            I::Rdtsc => self.exit_if(self.vmx_primary(primary::RDTSC_EXITING), basic::RDTSC),
            I::Rdtscp => {
                self.enabled(secondary::ENABLE_RDTSCP)?;
                self.exit_if(self.vmx_primary(primary::RDTSC_EXITING), basic::RDTSCP)
            }
            I::Rsm => Err(self.ud()),
            I::Pause => self.vmx_pause(),
            I::Monitor => self.exit_if(self.vmx_primary(primary::MONITOR_EXITING), basic::MONITOR),
            I::Mwait { armed } => {
                self.exit_qualified_if(self.vmx_primary(primary::MWAIT_EXITING), basic::MWAIT, u64::from(armed))
            }
            I::Umonitor => self.enabled(secondary::USER_WAIT_PAUSE),
            I::Umwait { register } => self.vmx_user_wait(basic::UMWAIT, register),
            I::Tpause { register } => self.vmx_user_wait(basic::TPAUSE, register),
            I::Xsetbv => self.exit_if(true, basic::XSETBV),
            I::Xsaves(components) => self.vmx_xsaves(components, basic::XSAVES),
            I::Xrstors(components) => self.vmx_xsaves(components, basic::XRSTORS),
            I::Rdrand { register, size } => self.vmx_random(secondary::RDRAND_EXITING, basic::RDRAND, register, size),
            I::Rdseed { register, size } => self.vmx_random(secondary::RDSEED_EXITING, basic::RDSEED, register, size),
            I::Rdmsr(msr) => {
                let shared = self.shared.clone();
                self.exit_if(msr_exits(&self.virt.vmx.vmcs, &*shared, msr, false), basic::RDMSR)
            }
            I::Wrmsr { msr, .. } => {
                let shared = self.shared.clone();
                self.exit_if(msr_exits(&self.virt.vmx.vmcs, &*shared, msr, true), basic::WRMSR)
            }
            I::ReadCr { cr, register } => {
                let exits = match cr {
                    3 => self.vmx_primary(primary::CR3_STORE_EXITING),
                    8 => self.vmx_primary(primary::CR8_STORE_EXITING),
                    _ => false,
                };
                self.exit_qualified_if(exits, basic::CR_ACCESS, cr as u64 | cr_access::READ | (register as u64) << 8)
            }
            I::WriteCr { cr, register, value } => {
                let exits = self.vmx_cr_write_exits(cr, value);
                self.exit_qualified_if(exits, basic::CR_ACCESS, cr as u64 | cr_access::WRITE | (register as u64) << 8)
            }
            I::Clts => {
                let v = &self.virt.vmx.vmcs;
                let exits = v.get(Field::CR0_MASK) & v.get(Field::CR0_READ_SHADOW) & TS != 0;
                self.exit_qualified_if(exits, basic::CR_ACCESS, cr_access::CLTS)
            }
            I::Lmsw { source, address, .. } => self.vmx_lmsw(source, address),
            I::ReadDr { dr, register } => self.exit_qualified_if(
                self.vmx_primary(primary::MOV_DR_EXITING),
                basic::MOV_DR,
                dr as u64 | 1 << 4 | (register as u64) << 8,
            ),
            I::WriteDr { dr, register, .. } => self.exit_qualified_if(
                self.vmx_primary(primary::MOV_DR_EXITING),
                basic::MOV_DR,
                dr as u64 | (register as u64) << 8,
            ),
            I::Gdtr { load, idt, operand } => {
                // 11: 32-bit operand size; 29:28: SGDT, SIDT, LGDT, LIDT.
                let wide = u32::from(self.current_instruction().is_some_and(|i| i.code_size() != iced_x86::CodeSize::Code16));
                let identity = u32::from(load) << 1 | u32::from(idt);
                let _ = operand;
                let exits = self.vmx_secondary(secondary::DESCRIPTOR_TABLE_EXITING);
                self.exit_with_operand(exits, basic::GDTR_IDTR, 0, identity << 28 | wide << 11)
            }
            I::Ldtr { load, task, .. } => {
                // 29:28: SLDT, STR, LLDT, LTR.
                let identity = u32::from(load) << 1 | u32::from(task);
                let exits = self.vmx_secondary(secondary::DESCRIPTOR_TABLE_EXITING);
                self.exit_with_operand(exits, basic::LDTR_TR, 0, identity << 28)
            }
            I::Io { .. } => self.vmx_io(what),
            _ => Ok(()),
        }
    }

    /// Exit with the instruction's operand `n` in the instruction information, and its displacement as the qualification. A
    /// register that is the other operand is bits 31:28.
    fn exit_with_operand(&mut self, condition: bool, reason: u32, n: u32, more: u32) -> Exec {
        if !condition {
            return Ok(());
        }
        let mut info = ExitInformation::new(reason);
        if let Some(insn) = self.current_instruction() {
            info.instruction_information = operand_information(self, &insn, n) | more;
            if n == 1 {
                info.instruction_information |= register(&insn, 0) << 28;
            }
            if matches!(reason, basic::GDTR_IDTR) {
                info.instruction_information &= !(1 << 10);
            }
            info.qualification = displacement(self, &insn);
        }
        Err(self.vmx_exit_instruction(info))
    }

    fn vmx_random(&mut self, control: u32, reason: u32, register: u8, size: u8) -> Exec {
        if !self.vmx_secondary(control) {
            return Ok(());
        }
        let mut info = ExitInformation::new(reason);
        // 6:3 destination, 12:11 operand size: 16, 32, 64 bits.
        info.instruction_information = (register as u32) << 3 | (size.trailing_zeros() - 1) << 11;
        Err(self.vmx_exit_instruction(info))
    }

    /// UMWAIT and TPAUSE. 6:3 the operand, 12:11 its size (1: 32 bits).
    fn vmx_user_wait(&mut self, reason: u32, register: u8) -> Exec {
        self.enabled(secondary::USER_WAIT_PAUSE)?;
        if !self.vmx_primary(primary::RDTSC_EXITING) {
            return Ok(());
        }
        let mut info = ExitInformation::new(reason);
        info.instruction_information = (register as u32) << 3 | 1 << 11;
        Err(self.vmx_exit_instruction(info))
    }

    fn vmx_xsaves(&mut self, components: u64, reason: u32) -> Exec {
        self.enabled(secondary::ENABLE_XSAVES)?;
        let exits = components & self.state.msrs.xss & self.virt.vmx.vmcs.get(Field::XSS_EXITING_BITMAP) != 0;
        self.exit_if(exits, reason)
    }

    /// PAUSE exiting, and the detection of PAUSE loops at CPL 0 (SDM vol. 3, Controls for PAUSE-Loop Exiting).
    fn vmx_pause(&mut self) -> Exec {
        if self.vmx_primary(primary::PAUSE_EXITING) {
            return self.exit_if(true, basic::PAUSE);
        }
        if !self.vmx_secondary(secondary::PAUSE_LOOP_EXITING) || self.state.cpl != 0 {
            return Ok(());
        }
        let now = self.tsc();
        let x = &mut self.virt.vmx;
        let gap = x.vmcs.get(Field::PLE_GAP);
        if x.pause_last == 0 || now.wrapping_sub(x.pause_last) > gap {
            x.pause_first = now;
        }
        x.pause_last = now;
        let exits = now.wrapping_sub(x.pause_first) > x.vmcs.get(Field::PLE_WINDOW);
        self.exit_if(exits, basic::PAUSE)
    }

    fn vmx_cr_write_exits(&self, cr: u8, value: u64) -> bool {
        let v = &self.virt.vmx.vmcs;
        match cr {
            0 => v.get(Field::CR0_MASK) & (value ^ v.get(Field::CR0_READ_SHADOW)) != 0,
            3 => {
                v.primary(primary::CR3_LOAD_EXITING)
                    && !(0..v.get(Field::CR3_TARGET_COUNT).min(4)).any(|n| v.get(Field::CR3_TARGET_0.plus(n as u8)) == value)
            }
            4 => v.get(Field::CR4_MASK) & (value ^ v.get(Field::CR4_READ_SHADOW)) != 0,
            8 => v.primary(primary::CR8_LOAD_EXITING),
            _ => false,
        }
    }

    fn vmx_lmsw(&mut self, source: u16, address: Option<u64>) -> Exec {
        let v = &self.virt.vmx.vmcs;
        let (mask, shadow) = (v.get(Field::CR0_MASK), v.get(Field::CR0_READ_SHADOW));
        let source = source as u64;
        // LMSW can set PE but not clear it.
        let exits = mask & source & !shadow & PE != 0 || mask & (source ^ shadow) & 0xe != 0;
        if !exits {
            return Ok(());
        }
        let memory = u64::from(address.is_some()) << 6;
        let mut info = ExitInformation::qualified(basic::CR_ACCESS, cr_access::LMSW | memory | source << 16);
        info.guest_linear_address = address.unwrap_or(0);
        Err(self.vmx_exit_instruction(info))
    }

    /// I/O instructions. Qualification: 2:0 size − 1, 3 IN, 4 string, 5 REP, 6 immediate, 31:16 port.
    fn vmx_io(&mut self, what: Intercept) -> Exec {
        let Intercept::Io { port, size, input, string, rep, immediate, address, segment, address_size } = what else {
            return Ok(());
        };
        let shared = self.shared.clone();
        if !io_exits(&self.virt.vmx.vmcs, &*shared, port, size) {
            return Ok(());
        }
        let qualification = (size as u64 - 1)
            | u64::from(input) << 3
            | u64::from(string) << 4
            | u64::from(rep) << 5
            | u64::from(immediate) << 6
            | (port as u64) << 16;
        let mut info = ExitInformation::qualified(basic::IO, qualification);
        if string {
            info.guest_linear_address = address;
            info.instruction_information = string_information(address_size, segment, input);
        }
        let (rcx, rsi, rdi) = (self.state.gpr(1), self.state.gpr(6), self.state.gpr(7));
        let rip = self.vmx_rip();
        let v = &mut self.virt.vmx.vmcs;
        v.put(Field::IO_RCX, rcx);
        v.put(Field::IO_RSI, rsi);
        v.put(Field::IO_RDI, rdi);
        v.put(Field::IO_RIP, rip);
        Err(self.vmx_exit_instruction(info))
    }
}
