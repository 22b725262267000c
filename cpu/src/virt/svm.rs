//! SVM's side of the seam.

use undervisor_core::{Event, Intercept};
use undervisor_mmu::NptExit;

use super::{InitAction, Point, TaskSwitch};
use crate::cpu::{Cpu, Exec, Stop};
use crate::paging::NestedFault;

/// SVM state of a processor.
#[derive(Debug, Default)]
pub struct SvmSeam {}

impl Cpu {
    pub(super) fn svm_nested_page_fault(&mut self, _: &NptExit, _: &NestedFault) -> Stop {
        Stop::Again
    }
    pub(super) fn svm_intercept(&mut self, _: Intercept) -> Exec {
        Ok(())
    }
    pub(super) fn svm_intercept_exception(&mut self, _: &Event) -> Exec {
        Ok(())
    }
    pub(super) fn svm_intercept_triple_fault(&mut self) -> Exec {
        Ok(())
    }
    pub(super) fn svm_intercept_interrupt(&mut self) -> Exec {
        Ok(())
    }
    pub(super) fn svm_intercept_nmi(&mut self) -> Exec {
        Ok(())
    }
    pub(super) fn svm_intercept_init(&mut self) -> Exec<InitAction> {
        Ok(InitAction::Accept)
    }
    pub(super) fn svm_intercept_task_switch(&mut self, _: &TaskSwitch) -> Exec {
        Ok(())
    }
    pub(super) fn svm_boundary(&mut self, _: Point) -> Exec<Option<Event>> {
        Ok(None)
    }
    pub(super) fn svm_interrupt_open(&self, open: bool) -> bool {
        open
    }
    pub(super) fn svm_nmi_open(&self, open: bool) -> bool {
        open
    }
    pub(super) fn svm_unblock_nmi(&mut self) {
        self.state.shadow.nmi = false;
    }
    pub(super) fn svm_read_cr8(&mut self) -> Exec<Option<u64>> {
        Ok(None)
    }
    pub(super) fn svm_write_cr8(&mut self, _: u64) -> Exec<bool> {
        Ok(false)
    }
    pub(super) fn svm_read_msr(&mut self, _: u32) -> Exec<Option<u64>> {
        Ok(None)
    }
    pub(super) fn svm_write_msr(&mut self, _: u32, _: u64) -> Exec<bool> {
        Ok(false)
    }
    pub(super) fn svm_tsc(&self, tsc: u64) -> u64 {
        tsc
    }
}
