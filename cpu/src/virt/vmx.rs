//! VMX's side of the seam.

use undervisor_core::{Event, Intercept};
use undervisor_mmu::EptExit;

use super::{InitAction, Point, TaskSwitch};
use crate::cpu::{Cpu, Exec, Stop};
use crate::paging::NestedFault;

/// VMX state of a processor.
#[derive(Debug, Default)]
pub struct VmxSeam {}

impl Cpu {
    pub(super) fn vmx_ept_exit(&mut self, _: &EptExit, _: &NestedFault) -> Stop {
        Stop::Again
    }
    pub(super) fn vmx_intercept(&mut self, _: Intercept) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_intercept_exception(&mut self, _: &Event) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_intercept_triple_fault(&mut self) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_intercept_interrupt(&mut self) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_intercept_nmi(&mut self) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_intercept_init(&mut self) -> Exec<InitAction> {
        Ok(InitAction::Accept)
    }
    pub(super) fn vmx_intercept_sipi(&mut self, _: u8) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_intercept_task_switch(&mut self, _: &TaskSwitch) -> Exec {
        Ok(())
    }
    pub(super) fn vmx_boundary(&mut self, _: Point) -> Exec<Option<Event>> {
        Ok(None)
    }
    pub(super) fn vmx_deadline(&self) -> u64 {
        u64::MAX
    }
    pub(super) fn vmx_interrupt_open(&self, open: bool) -> bool {
        open
    }
    pub(super) fn vmx_nmi_open(&self, open: bool) -> bool {
        open
    }
    pub(super) fn vmx_unblock_nmi(&mut self) {
        self.state.shadow.nmi = false;
    }
    pub(super) fn vmx_read_cr(&self, _: u8, real: u64) -> u64 {
        real
    }
    pub(super) fn vmx_write_cr(&self, _: u8, value: u64) -> u64 {
        value
    }
    pub(super) fn vmx_cr_allowed(&self, _: u8, _: u64) -> bool {
        true
    }
    pub(super) fn vmx_read_cr8(&mut self) -> Exec<Option<u64>> {
        Ok(None)
    }
    pub(super) fn vmx_write_cr8(&mut self, _: u64) -> Exec<bool> {
        Ok(false)
    }
    pub(super) fn vmx_read_msr(&mut self, _: u32) -> Exec<Option<u64>> {
        Ok(None)
    }
    pub(super) fn vmx_write_msr(&mut self, _: u32, _: u64) -> Exec<bool> {
        Ok(false)
    }
    pub(super) fn vmx_tsc(&self, tsc: u64) -> u64 {
        tsc
    }
}
