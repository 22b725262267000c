//! What a guest's VMCB intercepts (APM vol. 2, Intercept Operation; Instruction Intercepts; Decode Assists).

use iced_x86::{Decoder, DecoderOptions};
use undervisor_core::{Cr0, Event, EventKind, Intercept, SvmFeatures, Vector};
use undervisor_svm::bitmaps::{io_intercepted, msr_intercepted};
use undervisor_svm::controls::vm_cr;
use undervisor_svm::exit::ExitInformation;
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec};
use crate::virt::{InitAction, TaskSource, TaskSwitch};

/// EXITINFO1 of a MOV to or from a control register: bit 63 says MOV, 3:0 the general register.
const MOV: u64 = 1 << 63;

impl Cpu {
    /// Whether the guest's VMCB intercepts an exit code.
    #[inline]
    pub(super) fn svm_intercepts(&self, code: u64) -> bool {
        self.virt.svm.vmcb.intercepts(code)
    }

    fn svm_plain(&mut self, code: u64) -> Exec {
        self.svm_with(code, 0, 0)
    }

    fn svm_with(&mut self, code: u64, info1: u64, info2: u64) -> Exec {
        if self.svm_intercepts(code) { Err(self.svm_exit_instruction(code, info1, info2)) } else { Ok(()) }
    }

    /// `value` where decode assists exist.
    fn svm_assist(&self, value: u64) -> u64 {
        if self.svm_has(SvmFeatures::DECODE_ASSISTS) { value } else { 0 }
    }

    pub(in crate::virt) fn svm_intercept(&mut self, what: Intercept) -> Exec {
        match what {
            Intercept::Cpuid => self.svm_plain(reason::CPUID),
            Intercept::Hlt => {
                self.svm_plain(reason::HLT)?;
                if self.svm_has(SvmFeatures::IDLE_HLT) && !self.svm_virtually_interrupted() {
                    return self.svm_plain(reason::IDLE_HLT);
                }
                Ok(())
            }
            Intercept::Invd => self.svm_plain(reason::INVD),
            Intercept::Wbinvd | Intercept::Wbnoinvd => self.svm_plain(reason::WBINVD),
            Intercept::Invlpg(linear) => self.svm_with(reason::INVLPG, self.svm_assist(linear), 0),
            // EXITINFO1: linear address of the descriptor; EXITINFO2: the type, from its register.
            Intercept::Invpcid { descriptor, register, .. } => {
                let kind = self.state.gpr(register);
                self.svm_with(reason::INVPCID, descriptor, kind)
            }
            Intercept::Rdpmc => self.svm_plain(reason::RDPMC),
            Intercept::Rdtsc => self.svm_plain(reason::RDTSC),
            Intercept::Rdtscp => self.svm_plain(reason::RDTSCP),
            Intercept::Rsm => self.svm_plain(reason::RSM),
            Intercept::Pause => self.svm_pause(),
            Intercept::Monitor => self.svm_plain(reason::MONITOR),
            Intercept::Mwait { armed } => {
                if armed {
                    self.svm_plain(reason::MWAIT_CONDITIONAL)?;
                }
                self.svm_plain(reason::MWAIT)
            }
            Intercept::Xsetbv => self.svm_plain(reason::XSETBV),
            Intercept::Rdmsr(msr) => self.svm_msr(msr, false),
            Intercept::Wrmsr { msr, .. } => self.svm_msr(msr, true),
            Intercept::ReadCr { cr, register } => {
                let info = self.svm_assist(MOV | register as u64);
                self.svm_with(reason::CR0_READ + cr as u64, info, 0)
            }
            Intercept::Smsw => self.svm_plain(reason::CR0_READ),
            Intercept::WriteCr { cr, register, value } => {
                let info = self.svm_assist(MOV | register as u64);
                self.svm_with(reason::CR0_WRITE + cr as u64, info, 0)?;
                // Selective CR0 write: bits other than TS and MP change.
                let changed = (self.state.cr0.bits() ^ value) & !(Cr0::TS | Cr0::MP).bits();
                if cr == 0 && changed != 0 {
                    return self.svm_with(reason::CR0_SEL_WRITE, info, 0);
                }
                Ok(())
            }
            Intercept::Clts => self.svm_plain(reason::CR0_WRITE),
            Intercept::Lmsw { .. } => {
                self.svm_plain(reason::CR0_WRITE)?;
                self.svm_plain(reason::CR0_SEL_WRITE)
            }
            Intercept::ReadDr { dr, register } => {
                self.svm_with(reason::DR0_READ + dr as u64, self.svm_assist(register as u64), 0)
            }
            Intercept::WriteDr { dr, register, .. } => {
                self.svm_with(reason::DR0_WRITE + dr as u64, self.svm_assist(register as u64), 0)
            }
            Intercept::Gdtr { load, idt, .. } => self.svm_plain(match (load, idt) {
                (false, true) => reason::IDTR_READ,
                (false, false) => reason::GDTR_READ,
                (true, true) => reason::IDTR_WRITE,
                (true, false) => reason::GDTR_WRITE,
            }),
            Intercept::Ldtr { load, task, .. } => self.svm_plain(match (load, task) {
                (false, true) => reason::TR_READ,
                (false, false) => reason::LDTR_READ,
                (true, true) => reason::TR_WRITE,
                (true, false) => reason::LDTR_WRITE,
            }),
            Intercept::Io { port, size, input, string, rep, segment, address_size, .. } => {
                if !self.svm_intercepts(reason::IOIO) {
                    return Ok(());
                }
                let map = self.virt.svm.vmcb.get(Field::IOPM_BASE_PA);
                if !io_intercepted(&self.shared.memory, map, port, size) {
                    return Ok(());
                }
                // | 31:16 | 12:10 | 9 | 8 | 7 | 6 | 5 | 4 | 3 | 2 | 0 |
                // | port | segment | A64 | A32 | A16 | SZ32 | SZ16 | SZ8 | REP | STR | IN |
                let address_size = if string {
                    (address_size as u32).trailing_zeros().saturating_sub(1)
                } else {
                    self.mode.bits().trailing_zeros() - 4
                };
                let info = (port as u64) << 16
                    | self.svm_assist(if string { (segment as u64) << 10 } else { 0 })
                    | 0x80 << address_size.min(2)
                    | (size as u64) << 4
                    | u64::from(rep) << 3
                    | u64::from(string) << 2
                    | u64::from(input);
                let next = self.svm_next_rip();
                Err(self.svm_exit_instruction(reason::IOIO, info, next))
            }
            Intercept::Pushf => self.svm_plain(reason::PUSHF),
            Intercept::Popf => self.svm_plain(reason::POPF),
            Intercept::Iret => self.svm_plain(reason::IRET),
            Intercept::SoftwareInterrupt(vector) => self.svm_with(reason::SWINT, self.svm_assist(vector as u64), 0),
            Intercept::Icebp => self.svm_plain(reason::ICEBP),
            Intercept::Rdpru => self.svm_plain(reason::RDPRU),
            Intercept::Invlpga => self.svm_plain(reason::INVLPGA),
            Intercept::Invlpgb => self.svm_plain(reason::INVLPGB),
            Intercept::IllegalInvlpgb => self.svm_plain(reason::INVLPGB_ILLEGAL),
            Intercept::Tlbsync if self.svm_has(SvmFeatures::TLBI_CONTROL) => self.svm_plain(reason::TLBSYNC),
            Intercept::Mcommit => self.svm_plain(reason::MCOMMIT),
            Intercept::Skinit => self.svm_plain(reason::SKINIT),
            // VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI by their distance from VMRUN's code.
            Intercept::SvmInstruction(n) => self.svm_plain(reason::VMRUN + n as u64),
            Intercept::Vmmcall => self.svm_plain(reason::VMMCALL),
            Intercept::FerrFreeze => self.svm_plain(reason::FERR_FREEZE),
            Intercept::Getsec
            | Intercept::Umonitor
            | Intercept::Umwait { .. }
            | Intercept::Tpause { .. }
            | Intercept::Xsaves(_)
            | Intercept::Xrstors(_)
            | Intercept::Rdrand { .. }
            | Intercept::Rdseed { .. }
            | Intercept::VmxInstruction(_)
            | Intercept::Tlbsync
            | Intercept::Vmcall => Ok(()),
        }
    }

    fn svm_msr(&mut self, msr: u32, write: bool) -> Exec {
        if !self.svm_intercepts(reason::MSR) {
            return Ok(());
        }
        let map = self.virt.svm.vmcb.get(Field::MSRPM_BASE_PA);
        if !msr_intercepted(&self.shared.memory, map, msr, write) {
            return Ok(());
        }
        Err(self.svm_exit_instruction(reason::MSR, u64::from(write), 0))
    }

    /// APM vol. 2, Pause Intercept Filtering.
    fn svm_pause(&mut self) -> Exec {
        if !self.svm_intercepts(reason::PAUSE) {
            return Ok(());
        }
        if self.svm_has(SvmFeatures::PAUSE_FILTER) {
            let now = self.tsc();
            let seam = &mut self.virt.svm;
            let threshold = seam.vmcb.get(Field::PAUSE_FILTER_THRESHOLD);
            let has_threshold = self.model.svm.contains(SvmFeatures::PAUSE_FILTER_THRESHOLD);
            let long_ago = now.wrapping_sub(std::mem::replace(&mut seam.pause_at, now)) > threshold;
            let count = seam.vmcb.get(Field::PAUSE_FILTER_COUNT) as u16;
            if has_threshold && threshold != 0 && long_ago && count != 0 {
                // "The count is reloaded and execution continues."
                seam.pause_left = count;
                return Ok(());
            }
            if seam.pause_left > 0 {
                seam.pause_left -= 1;
                return Ok(());
            }
        }
        self.svm_plain(reason::PAUSE)
    }

    /// Length of the instruction at RIP; 0 if it cannot be read.
    fn length_of_instruction(&mut self) -> u64 {
        let mut bytes = [0; 15];
        let rip = self.state.rip();
        let count = self.peek_code(rip, &mut bytes);
        let insn = Decoder::new(self.mode.bits(), &bytes[..count], DecoderOptions::AMD).decode();
        if insn.is_invalid() { 0 } else { insn.len() as u64 }
    }

    pub(in crate::virt) fn svm_intercept_exception(&mut self, event: &Event) -> Exec {
        let code = reason::EXCEPTION_0 + event.vector as u64;
        if event.vector >= 32 || !self.svm_intercepts(code) {
            return Ok(());
        }
        let (mut info2, mut next_rip) = (0, 0);
        match event.vector {
            Vector::PF => {
                info2 = event.payload;
                if event.error_code.is_some_and(|c| c & undervisor_core::event::pf::I == 0) {
                    self.svm_keep_instruction_bytes();
                } else {
                    self.virt.svm.vmcb.set_instruction_bytes(&[]);
                }
            }
            // DR6 is what a handler would see.
            Vector::DB if event.kind == EventKind::HardwareException => {
                self.state.dr6 = crate::events::dr6_after(self.state.dr6, event.payload);
            }
            _ => {}
        }
        // INT3, INTO and BOUND have one (APM vol. 2, State Saved on Exit).
        let length = match event.vector {
            Vector::BR => self.length_of_instruction(),
            _ if event.kind == EventKind::SoftwareException => event.instruction_length as u64,
            _ => 0,
        };
        if length != 0 && self.svm_has(SvmFeatures::NRIP_SAVE) {
            next_rip = self.state.rip().wrapping_add(length);
        }
        let info1 = event.error_code.unwrap_or(0) as u64;
        let rip = self.state.rip();
        Err(self.svm_exit(&ExitInformation { code, info1, info2, next_rip }, rip))
    }

    pub(in crate::virt) fn svm_intercept_triple_fault(&mut self) -> Exec {
        if !self.svm_intercepts(reason::SHUTDOWN) {
            return Ok(());
        }
        self.virt.delivering = None;
        Err(self.svm_exit_event(reason::SHUTDOWN, 0, 0))
    }

    pub(in crate::virt) fn svm_intercept_interrupt(&mut self) -> Exec {
        // The interrupt stays pending: the host takes it once it sets GIF.
        if self.svm_intercepts(reason::INTR) { Err(self.svm_exit_event(reason::INTR, 0, 0)) } else { Ok(()) }
    }

    pub(in crate::virt) fn svm_intercept_nmi(&mut self) -> Exec {
        if !self.svm_intercepts(reason::NMI) {
            return Ok(());
        }
        // It stays pending too.
        self.signals.nmi = true;
        Err(self.svm_exit_event(reason::NMI, 0, 0))
    }

    /// APM vol. 2, SMM Support: an intercepted SMI stays pending, as does any while GIF is clear.
    pub(in crate::virt) fn svm_intercept_smi(&mut self) -> Exec<bool> {
        if !self.virt.svm.gif {
            return Ok(false);
        }
        if self.virt.guest && self.svm_intercepts(reason::SMI) {
            // EXITINFO1 bit 0: asserted from outside. There is no I/O trapping of the processor's own.
            return Err(self.svm_exit_event(reason::SMI, 1, 0));
        }
        Ok(true)
    }

    pub(in crate::virt) fn svm_intercept_init(&mut self) -> Exec<InitAction> {
        if !self.virt.svm.gif {
            return Ok(InitAction::Blocked);
        }
        // It stays pending (APM vol. 2, INIT Support): the hypervisor meets it when it sets GIF.
        if self.virt.guest && self.svm_intercepts(reason::INIT) {
            return Err(self.svm_exit_event(reason::INIT, 0, 0));
        }
        if self.state.msrs.vm_cr & vm_cr::R_INIT != 0 {
            return Ok(InitAction::Redirect);
        }
        if self.virt.guest {
            // INIT of a processor in a guest ends guest mode with everything else.
            self.svm_leave_guest();
        }
        self.virt.svm = Default::default();
        // SVMDIS "is cleared by INIT when LOCK is cleared to 0" (APM vol. 2, VM_CR MSR).
        if self.state.msrs.vm_cr & vm_cr::LOCK == 0 {
            self.state.msrs.vm_cr &= !vm_cr::SVMDIS;
        }
        Ok(InitAction::Accept)
    }

    pub(in crate::virt) fn svm_intercept_task_switch(&mut self, switch: &TaskSwitch) -> Exec {
        if !self.svm_intercepts(reason::TASK_SWITCH) {
            return Ok(());
        }
        // EXITINFO2: 31:0 error code, 36 IRET, 38 far jump, 44 there is an error code, 48 RFLAGS.RF.
        let mut info2 = switch.error_code.unwrap_or(0) as u64;
        info2 |= match switch.source {
            TaskSource::Iret => 1 << 36,
            TaskSource::Jmp => 1 << 38,
            _ => 0,
        };
        info2 |= u64::from(switch.error_code.is_some()) << 44;
        info2 |= (self.state.rflags() >> 16 & 1) << 48;
        // Not one of the intercepts that save nRIP.
        Err(self.svm_exit_event(reason::TASK_SWITCH, switch.selector as u64, info2))
    }
}
