//! VMX's side of the seam: the instructions, what a guest exits on, and the two transitions. Semantics that need no
//! interpreter are in the vmx crate.

mod apic;
mod boundary;
mod enter;
mod ept;
pub mod instructions;
mod intercept;
mod leave;
mod operand;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use undervisor_mmu::Ept;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::controls::{pin, primary, secondary, tertiary};
use undervisor_vmx::{Capabilities, ExitInformation, Field, Limits, Memory, Vmcs};

use super::InitAction;
use crate::cpu::{Cpu, Exec, Shared};

/// VMX state of a processor.
pub struct VmxSeam {
    /// In VMX operation.
    pub on: bool,
    /// VMXON region.
    pub vmxon: u64,
    /// Address of the current VMCS, or [`NO_VMCS`].
    pub current: u64,
    /// The current VMCS is a shadow VMCS: it can be read and written, not entered.
    pub current_is_shadow: bool,
    /// Contents of the current VMCS.
    pub vmcs: Vmcs,
    capabilities: Option<Rc<Capabilities>>,
    /// What entries take from the controls.
    plan: enter::Plan,
    /// A trap-like exit to be taken at the next boundary (TPR below threshold, APIC write, EOI, MTF of an entry).
    pending_exit: Option<ExitInformation>,
    /// Offset of a write to the APIC-access page that waits for its emulation.
    apic_written: Option<u64>,
    /// The instruction in flight is in a block of its own, for the sake of such a write.
    alone: bool,
    /// The monitor trap flag is on: exit once this many instructions have retired, or more events than so many have
    /// been delivered.
    mtf_since: Option<(u64, u64)>,
    /// Value of the TSC at which the preemption timer reaches zero.
    timer: Option<u64>,
    /// Level-0 page of the APIC-access page while accesses to it are virtualized; else [`NO_VMCS`], which is no page.
    pub apic_access_page: u64,
    /// The instruction in flight or just completed has asserted a bus lock, which the VMM wants to know.
    bus_lock: bool,
    /// Last PAUSE of the loop being watched, and the first (in TSC ticks).
    pause_last: u64,
    pause_first: u64,
    /// Who wrote the current VMCS, if somebody wants to know.
    pub writes: Option<Box<crate::observe::VmcsWrites>>,
    /// The check that refused the last VM entry.
    pub refusal: Option<undervisor_vmx::checks::Failure>,
}

impl Default for VmxSeam {
    fn default() -> VmxSeam {
        VmxSeam {
            on: false,
            vmxon: NO_VMCS,
            current: NO_VMCS,
            current_is_shadow: false,
            vmcs: Vmcs::default(),
            capabilities: None,
            plan: enter::Plan::default(),
            pending_exit: None,
            apic_written: None,
            alone: false,
            mtf_since: None,
            timer: None,
            apic_access_page: NO_VMCS,
            bus_lock: false,
            pause_last: 0,
            pause_first: 0,
            writes: None,
            refusal: None,
        }
    }
}

impl std::fmt::Debug for VmxSeam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmxSeam").field("on", &self.on).field("current", &self.current).finish_non_exhaustive()
    }
}

impl Memory for Shared {
    #[inline]
    fn read_u64(&self, address: u64) -> u64 {
        self.memory.read::<u64>(address).unwrap_or(u64::MAX)
    }
    #[inline]
    fn write_u64(&self, address: u64, value: u64) {
        if self.memory.write::<u64>(address, value).is_some()
            && let Some(index) = self.memory.page_index(address)
        {
            self.code().written(index, (address & 0xfff) as usize, 8);
        }
    }
}

impl Cpu {
    /// What this model's VMX can do.
    pub fn vmx_capabilities(&mut self) -> Rc<Capabilities> {
        if let Some(c) = &self.virt.vmx.capabilities {
            return c.clone();
        }
        let c = Rc::new(Capabilities::new(self.model.vmx, Limits::of(&self.model)));
        self.virt.vmx.capabilities = Some(c.clone());
        c
    }

    /// In a VMX guest with this pin-based control.
    fn vmx_pin(&self, bit: u32) -> bool {
        self.virt.vmx.vmcs.pin(bit)
    }
    fn vmx_primary(&self, bit: u32) -> bool {
        self.virt.vmx.vmcs.primary(bit)
    }
    fn vmx_secondary(&self, bit: u32) -> bool {
        self.virt.vmx.vmcs.secondary(bit)
    }

    pub(super) fn vmx_intercept_init(&mut self) -> Exec<InitAction> {
        use undervisor_core::Activity;
        if !self.virt.vmx.on {
            return Ok(InitAction::Accept);
        }
        if !self.virt.guest || self.state.activity == Activity::WaitForSipi {
            return Ok(InitAction::Blocked);
        }
        Err(self.vmx_exit_event(ExitInformation::new(undervisor_vmx::reason::basic::INIT)))
    }

    pub(super) fn vmx_intercept_sipi(&mut self, vector: u8) -> Exec {
        Err(self.vmx_exit_event(ExitInformation::qualified(undervisor_vmx::reason::basic::SIPI, vector as u64)))
    }

    // ---- control registers -------------------------------------------------------------------------------------------------

    pub(super) fn vmx_read_cr(&self, cr: u8, real: u64) -> u64 {
        let v = &self.virt.vmx.vmcs;
        let (mask, shadow) = match cr {
            0 => (v.get(Field::CR0_MASK), v.get(Field::CR0_READ_SHADOW)),
            4 => (v.get(Field::CR4_MASK), v.get(Field::CR4_READ_SHADOW)),
            _ => return real,
        };
        real & !mask | shadow & mask
    }

    pub(super) fn vmx_write_cr(&self, cr: u8, value: u64) -> u64 {
        let v = &self.virt.vmx.vmcs;
        let (mask, real) = match cr {
            0 => (v.get(Field::CR0_MASK), self.state.cr0.bits()),
            4 => (v.get(Field::CR4_MASK), self.state.cr4.bits()),
            _ => return value,
        };
        real & mask | value & !mask
    }

    pub(super) fn vmx_cr_allowed(&self, cr: u8, value: u64) -> bool {
        if !self.virt.vmx.on {
            return true;
        }
        if cr == 0 {
            return Capabilities::cr0_allowed(value, self.virt.guest && self.virt.vmx.vmcs.unrestricted());
        }
        // What CR4 may have set at all, the caller has checked.
        value & Capabilities::CR4_FIXED0 == Capabilities::CR4_FIXED0
    }

    // ---- MSRs and time ---------------------------------------------------------------------------------------------------

    pub(super) fn vmx_read_msr(&mut self, msr: u32) -> Exec<Option<u64>> {
        match msr {
            0x480..=0x493 => match self.vmx_capabilities().msr(msr) {
                Some(value) => Ok(Some(value)),
                None => Err(self.gp(0)),
            },
            0x800..=0x8ff if self.virt.guest && self.vmx_secondary(secondary::VIRTUALIZE_X2APIC) => {
                let shared = self.shared.clone();
                Ok(self.vmx_apic(&shared).msr_read(msr))
            }
            0x48 if self.virt.guest && self.virt.vmx.vmcs.tertiary(tertiary::VIRTUALIZE_SPEC_CTRL) => {
                Ok(Some(self.virt.vmx.vmcs.get(Field::SPEC_CTRL_SHADOW)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn vmx_write_msr(&mut self, msr: u32, value: u64) -> Exec<bool> {
        match msr {
            0x480..=0x493 => Err(self.gp(0)),
            0x800..=0x8ff if self.virt.guest && self.vmx_secondary(secondary::VIRTUALIZE_X2APIC) => {
                let shared = self.shared.clone();
                let bits = self.physical_bits();
                match self.vmx_apic(&shared).msr_write(msr, value, bits) {
                    None => Ok(false),
                    Some(Err(())) => Err(self.gp(0)),
                    Some(Ok(effect)) => {
                        self.vmx_apic_effect(effect);
                        Ok(true)
                    }
                }
            }
            0x48 if self.virt.guest && self.virt.vmx.vmcs.tertiary(tertiary::VIRTUALIZE_SPEC_CTRL) => {
                // What the mask protects stays; what is then written can be refused as any value.
                let mask = self.virt.vmx.vmcs.get(Field::SPEC_CTRL_MASK);
                self.set_spec_ctrl(self.state.msrs.spec_ctrl & mask | value & !mask)?;
                self.virt.vmx.vmcs.put(Field::SPEC_CTRL_SHADOW, value);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    pub(super) fn vmx_tsc(&self, tsc: u64) -> u64 {
        let v = &self.virt.vmx.vmcs;
        if !v.primary(primary::TSC_OFFSETTING) {
            return tsc;
        }
        let scaled = if v.secondary(secondary::TSC_SCALING) {
            ((tsc as u128 * v.get(Field::TSC_MULTIPLIER) as u128) >> 48) as u64
        } else {
            tsc
        };
        scaled.wrapping_add(v.get(Field::TSC_OFFSET))
    }

    /// Ticks of the processor's own TSC that a wait takes which the guest wants to take `delay` ticks of its own (SDM vol. 3, Changes
    /// to Instruction Behavior in VMX Non-Root Operation: TPAUSE, UMWAIT).
    pub(super) fn vmx_physical_delay(&self, delay: u64) -> u64 {
        let v = &self.virt.vmx.vmcs;
        if !v.primary(primary::TSC_OFFSETTING) || !v.secondary(secondary::TSC_SCALING) {
            return delay;
        }
        let multiplier = v.get(Field::TSC_MULTIPLIER).max(1) as u128;
        u64::try_from(((delay as u128) << 48) / multiplier).unwrap_or(u64::MAX)
    }

    /// Whether an MWAIT that masked interrupts are to end does not wait at all (the same section: MWAIT).
    pub(super) fn vmx_masked_wait_is_over(&mut self) -> bool {
        if self.vmx_primary(primary::INTERRUPT_WINDOW_EXITING) {
            return true;
        }
        let shared = self.shared.clone();
        self.vmx_secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY) && self.vmx_apic(&shared).interrupt_pending()
    }

    /// Whether the guest that runs is one whose bus locks exit.
    #[inline]
    pub(crate) fn vmx_detects_bus_locks(&self) -> bool {
        self.virt.guest && self.virt.vmx.plan.bus_locks
    }

    /// The instruction in flight has asserted a bus lock.
    pub(crate) fn vmx_bus_locked(&mut self) {
        if self.vmx_detects_bus_locks() {
            self.virt.vmx.bus_lock = true;
            self.attend(crate::cpu::attention::VIRT);
        }
    }

    // ---- NMIs --------------------------------------------------------------------------------------------------------------

    pub(super) fn vmx_interrupt_open(&self, open: bool) -> bool {
        if self.virt.guest && self.vmx_pin(pin::EXTERNAL_INTERRUPT_EXITING) {
            return !self.state.shadow.sti && !self.state.shadow.mov_ss;
        }
        open
    }

    pub(super) fn vmx_nmi_open(&self, open: bool) -> bool {
        if self.virt.guest && self.vmx_pin(pin::VIRTUAL_NMIS) {
            // `shadow.nmi` is virtual-NMI blocking then, and physical NMIs exit.
            return !self.state.shadow.sti && !self.state.shadow.mov_ss;
        }
        open
    }

    pub(super) fn vmx_unblock_nmi(&mut self) {
        // With NMI exiting but without virtual NMIs, IRET leaves blocking alone.
        if self.state.shadow.nmi && (!self.vmx_pin(pin::NMI_EXITING) || self.vmx_pin(pin::VIRTUAL_NMIS)) {
            self.state.shadow.nmi = false;
            self.virt.nmi_unblocked_by_iret = true;
            self.attend(crate::cpu::attention::INTERRUPT | crate::cpu::attention::VIRT);
        }
    }

    /// The parameters of EPT that an EPTP and the controls set.
    fn vmx_ept(&mut self, eptp: u64) -> Ept {
        if self.virt.vmx.capabilities.is_none() {
            self.vmx_capabilities();
        }
        let v = &self.virt.vmx.vmcs;
        let capabilities = self.virt.vmx.capabilities.as_deref();
        let has = |f| capabilities.is_some_and(|c| c.has(f));
        use undervisor_core::VmxFeatures as F;
        Ept {
            root: eptp & 0x000f_ffff_ffff_f000,
            levels: (eptp >> 3 & 7) as u8 + 1,
            accessed_dirty: eptp & 1 << 6 != 0,
            mode_based_execute: v.secondary(secondary::MODE_BASED_EXECUTE),
            execute_only: has(F::EPT_EXECUTE_ONLY),
            gigabyte_pages: has(F::EPT_1G),
            physical_bits: self.model.physical_bits as u8,
            pml: v
                .secondary(secondary::PML)
                .then(|| undervisor_mmu::Pml { address: v.get(Field::PML_ADDRESS), index: v.get(Field::PML_INDEX) as u16 }),
        }
    }
}
