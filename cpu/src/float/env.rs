//! MXCSR and the processor: from the flags of an operation to #XM.

use undervisor_core::{Cr4, Exception, Vector};

use super::{Env, flags};
use crate::cpu::{Cpu, Exec};

impl Cpu {
    /// The environment for SSE and AVX arithmetic.
    #[inline(always)]
    pub fn sse_env(&self) -> Env {
        Env::sse(self.state.mxcsr)
    }

    /// Merge the flags raised by an instruction into MXCSR; if any is unmasked, #XM, or #UD without CR4.OSXMMEXCPT.
    /// Call before writing the destination (SDM vol. 1, Handling SIMD Floating-Point Exceptions in Software).
    #[inline(always)]
    pub fn sse_commit(&mut self, env: &Env) -> Exec {
        if env.flags == 0 {
            return Ok(());
        }
        if env.unmasked() == 0 {
            self.state.mxcsr |= env.flags as u32;
            return Ok(());
        }
        self.sse_fault(env)
    }

    #[cold]
    #[inline(never)]
    fn sse_fault(&mut self, env: &Env) -> Exec {
        // An unmasked exception found before computing keeps the later ones from being found.
        let before = env.unmasked() & flags::BEFORE != 0;
        let found = env.earlier | if before { env.flags & flags::BEFORE } else { env.flags };
        self.state.mxcsr |= found as u32;
        let enabled = self.state.cr4.contains(Cr4::OSXMMEXCPT);
        Err(self.raise(if enabled { Exception::new(Vector::XM) } else { Exception::UD }))
    }
}
