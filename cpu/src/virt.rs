//! The seam to VMX and SVM.

use undervisor_core::Intercept;

use crate::cpu::{Cpu, Exec};

impl Cpu {
    /// About to execute something that a hypervisor may intercept. `Err(Stop::Exit)`: it did.
    pub fn intercept(&mut self, _intercept: Intercept) -> Exec {
        Ok(())
    }
}
