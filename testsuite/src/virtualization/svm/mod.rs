//! SVM: a case for every exit code.

mod cases;
pub mod checks;
pub mod hypervisor;

use iced_x86::IcedError;
use undervisor_core::SvmFeatures;
use undervisor_svm::Field as F;
use undervisor_svm::reason;

use super::case::{Build, Guest};
use super::image::*;
use super::{Row, Want};

pub use cases::{UNREACHABLE, all};

/// One guest and what the manual says of its exit.
pub struct Case {
    guest: Guest<F>,
    /// What the case is evidence for.
    pub code: u64,
    needs: SvmFeatures,
    /// CPUID Fn8000_0008_EBX bits of the instruction itself.
    instruction: u32,
    /// Codes whose intercept is set.
    intercepts: Vec<u64>,
}

impl Build for Case {
    type Field = F;

    fn guest(&mut self) -> &mut Guest<F> {
        &mut self.guest
    }
}

impl Case {
    /// A case for an exit code, which is intercepted.
    fn new(name: impl Into<String>, code: u64, guest: Code) -> Case {
        let intercepts = vec![reason::VMRUN, reason::VMMCALL, reason::SHUTDOWN, code];
        let case = Case { guest: Guest::new(name, guest), code, needs: SvmFeatures::empty(), instruction: 0, intercepts };
        case.want("code", code)
    }

    fn needs(mut self, features: SvmFeatures) -> Case {
        self.needs |= features;
        self
    }
    /// The instruction exists where CPUID Fn8000_0008_EBX has this bit.
    fn instruction(mut self, bit: u32) -> Case {
        self.instruction = 1 << bit;
        self
    }
    /// The exit is not an intercept's.
    fn not_intercepted(mut self) -> Case {
        self.intercepts.retain(|&code| code != self.code);
        self
    }
    fn intercept(mut self, code: u64) -> Case {
        self.intercepts.push(code);
        self
    }
    /// What decode assists report.
    fn assist(self, name: &'static str, value: u64) -> Case {
        self.assist_bits(name, value, u64::MAX)
    }
    fn assist_bits(mut self, name: &'static str, value: u64, mask: u64) -> Case {
        self.guest.expected.set(name, Want { value, mask, optional: true });
        self
    }
    fn info1(self, value: u64) -> Case {
        self.want("info1", value)
    }
    fn info1_bits(self, value: u64, mask: u64) -> Case {
        self.want_bits("info1", value, mask)
    }
    fn info2(self, value: u64) -> Case {
        self.want("info2", value)
    }
    /// The instruction that exits has this length: nRIP is behind it.
    fn length(self, bytes: u64) -> Case {
        self.want_behind("nrip", bytes)
    }
    /// With nested paging.
    fn nested(self) -> Case {
        self.needs(SvmFeatures::NPT).field(F::NESTED_CONTROL, 1)
    }
    /// The guest runs in 32-bit protected mode with paging.
    fn legacy(mut self) -> Case {
        self.guest.bits = 32;
        self.guest.fields.extend(hypervisor::segment(F::CS_SELECTOR, CODE_32, 0xc9b));
        self.field(F::CR3, TABLES_32).field(F::CR4, 0x610).field(F::EFER, 0x1800)
    }

    /// Lay it down: its record, and what its line must say.
    pub fn place(&self, b: &mut Builder) -> Result<(Vec<u64>, Row), IcedError> {
        let placed = self.guest.place(b, &guest_exit(true))?;
        let mut words = [0u32; 6];
        for &code in self.intercepts.iter().filter(|&&code| code < 0xc0) {
            words[code as usize / 32] |= 1 << (code % 32);
        }
        let vectors =
            [F::INTERCEPT_CR, F::INTERCEPT_DR, F::INTERCEPT_EXCEPTIONS, F::INTERCEPT_3, F::INTERCEPT_4, F::INTERCEPT_5];
        let intercepts = vectors.into_iter().zip(words.map(u64::from));
        let fields = hypervisor::pairs(b, intercepts.chain(self.guest.fields.iter().copied()));
        let (needs, instruction) = (self.needs.bits() as u64, self.instruction as u64);
        let record = vec![placed.name, placed.entry, needs, instruction, 0, 0, 0, fields, placed.pokes];
        let mut expected = self.guest.expectations(placed.at, |name, at| Want { optional: name == "nrip", ..Want::is(at) });
        // The manual does not say what else a refused VMRUN stores; nor, of many exits, what EXITINFO1 and 2 hold.
        if self.code != reason::INVALID {
            expected.otherwise("rip", Want::is(placed.at));
            expected.otherwise("vectoring", Want::bits(0, 1 << 31));
            expected.otherwise("injected", Want::bits(0, 1 << 31));
        }
        Ok((record, Row { name: self.guest.name.clone(), expected }))
    }
}
