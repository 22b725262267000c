//! EPT violations and misconfigurations, the page-modification log, virtualization exceptions, EPTP switching.

use undervisor_core::{Exception, Vector, VmxFeatures};
use undervisor_mmu::ept::right;
use undervisor_mmu::{EptExit, EptFault};
use undervisor_vmx::checks::eptp_allowed;
use undervisor_vmx::controls::secondary;
use undervisor_vmx::reason::basic;
use undervisor_vmx::{ExitInformation, Field, Memory};

use crate::cpu::{Cpu, Exec, Stop};
use crate::paging::{Nested, NestedFault};

/// NMI unblocking due to IRET, in the qualifications of EPT violations and of a full log.
const NMI_UNBLOCKING: u64 = 1 << 12;

impl Cpu {
    pub(in crate::virt) fn vmx_ept_exit(&mut self, exit: &EptExit, fault: &NestedFault) -> Stop {
        let unblocking = if self.virt.nmi_unblocked_by_iret && self.virt.delivering.is_none() { NMI_UNBLOCKING } else { 0 };
        let mut info = match exit.fault {
            EptFault::Misconfiguration => ExitInformation::new(basic::EPT_MISCONFIGURATION),
            EptFault::LogFull => ExitInformation::qualified(basic::PML_FULL, unblocking),
            EptFault::Violation { rights, convertible } => {
                let qualification = self.vmx_violation(exit, fault, rights) | unblocking;
                if convertible && let Some(stop) = self.vmx_virtualization_exception(exit, fault, qualification) {
                    return stop;
                }
                ExitInformation::qualified(basic::EPT_VIOLATION, qualification)
            }
        };
        info.guest_physical_address = exit.request.address;
        info.guest_linear_address = fault.linear.unwrap_or(0);
        info.instruction_length = self.vmx_instruction_length();
        self.vmx_exit_access(info)
    }

    /// Exit qualification of an EPT violation (SDM vol. 3, Exit Qualification for EPT Violations):
    ///
    /// | bit | what |
    /// |---|---|
    /// | 0, 1, 2 | the access was a read, write, fetch |
    /// | 3, 4, 5 | the translation allowed reads, writes, (supervisor-mode) fetches |
    /// | 6 | with mode-based execute control: it allowed user-mode fetches |
    /// | 7 | the guest linear address is valid |
    /// | 8 | the access was to the translation of that address (not to a paging structure) |
    /// | 9, 10, 11 | advanced information: user-mode, writable, execute-disable linear address |
    fn vmx_violation(&mut self, exit: &EptExit, fault: &NestedFault, rights: u64) -> u64 {
        let r = &exit.request;
        let mut q = u64::from(r.read) | u64::from(r.write) << 1 | u64::from(r.fetch) << 2;
        q |= (rights & 7) << 3;
        if rights & right::EXECUTE_USER != 0 && self.vmx_secondary(secondary::MODE_BASED_EXECUTE) {
            q |= 1 << 6;
        }
        if fault.linear.is_some() {
            q |= 1 << 7;
            if !exit.table {
                q |= 1 << 8;
                if let Some(guest) = &fault.guest
                    && self.vmx_capabilities().has(VmxFeatures::EPT_ADVANCED_INFORMATION)
                {
                    q |= u64::from(guest.user) << 9 | u64::from(guest.writable) << 10 | u64::from(guest.no_execute) << 11;
                }
            }
        }
        q
    }

    /// A violation that becomes #VE instead (SDM vol. 3, Virtualization Exceptions). The information area:
    /// 0 exit reason, 4 all ones, 8 qualification, 16 linear address, 24 guest-physical address, 32 EPTP index.
    fn vmx_virtualization_exception(&mut self, exit: &EptExit, fault: &NestedFault, qualification: u64) -> Option<Stop> {
        if !self.vmx_secondary(secondary::EPT_VIOLATION_VE) || !self.state.protected() || self.virt.delivering.is_some() {
            return None;
        }
        let area = self.virt.vmx.vmcs.get(Field::VIRTUALIZATION_EXCEPTION_ADDRESS);
        let shared = self.shared.clone();
        if shared.read_u32(area + 4) != 0 {
            return None;
        }
        shared.write_u32(area, basic::EPT_VIOLATION);
        shared.write_u32(area + 4, u32::MAX);
        shared.write_u64(area + 8, qualification);
        shared.write_u64(area + 16, fault.linear.unwrap_or(0));
        shared.write_u64(area + 24, exit.request.address);
        shared.write_u16(area + 32, self.virt.vmx.vmcs.get(Field::EPTP_INDEX) as u16);
        Some(self.raise(Exception::new(Vector::VE)))
    }

    /// VMFUNC (SDM vol. 3, VM Functions).
    pub(super) fn vmx_function(&mut self) -> Exec {
        let (function, entry) = (self.state.gpr(0) as u32, self.state.gpr(1) as u32);
        if !self.virt.guest || !self.vmx_secondary(secondary::VM_FUNCTIONS) || function > 63 {
            return Err(self.ud());
        }
        let controls = self.virt.vmx.vmcs.get(Field::VM_FUNCTION_CONTROLS);
        if function != 0 || controls & 1 == 0 || entry >= 512 {
            return Err(self.vmx_exit_instruction(ExitInformation::new(basic::VMFUNC)));
        }
        let shared = self.shared.clone();
        let eptp = shared.read_u64(self.virt.vmx.vmcs.get(Field::EPTP_LIST_ADDRESS) + 8 * entry as u64);
        if !eptp_allowed(&self.vmx_capabilities(), eptp) {
            return Err(self.vmx_exit_instruction(ExitInformation::new(basic::VMFUNC)));
        }
        let v = &mut self.virt.vmx.vmcs;
        v.put(Field::EPT_POINTER, eptp);
        if v.secondary(secondary::EPT_VIOLATION_VE) {
            v.put(Field::EPTP_INDEX, entry as u64);
        }
        let pml = match &self.translations.nested {
            Nested::Ept(e) => e.pml,
            _ => None,
        };
        let mut ept = self.vmx_ept(eptp);
        ept.pml = pml;
        self.translations.nested = Nested::Ept(ept);
        self.mode_changed();
        Ok(())
    }
}
