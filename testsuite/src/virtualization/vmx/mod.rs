//! VMX: a case for every basic exit reason, and for every entry check.

mod cases;
mod checks;
pub mod hypervisor;

use undervisor_vmx::Field as F;
use undervisor_vmx::controls::primary;

use super::image::*;
use super::{Expected, Row, Want};

/// Controls that a case sets, beyond those that must be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Controls {
    pub pin: u32,
    pub primary: u32,
    pub exit: u32,
    pub entry: u32,
    pub secondary: u32,
}

/// One guest and what the manual says of its exit.
pub struct Case {
    pub name: String,
    /// What the case is evidence for.
    pub reason: u32,
    controls: Controls,
    ia32e: bool,
    fields: Vec<(F, u64)>,
    pokes: Vec<(u64, u64)>,
    bits: u32,
    code: Code,
    expected: Expected,
    /// Fields that hold an address this far behind where the guest exits.
    relative: Vec<(&'static str, u64)>,
}

pub use cases::{UNREACHABLE, all};
pub use checks::{NOT_IN_64_BIT_MODE, all as all_checks};

impl Case {
    /// A case for a basic exit reason whose guest is `code`.
    fn new(name: impl Into<String>, reason: u32, code: Code) -> Case {
        Case {
            name: name.into(),
            reason,
            controls: Controls::default(),
            ia32e: true,
            fields: Vec::new(),
            pokes: Vec::new(),
            bits: 64,
            code,
            expected: Expected::default(),
            relative: Vec::new(),
        }
        .want("reason", reason as u64)
    }

    fn pin(mut self, bits: u32) -> Case {
        self.controls.pin |= bits;
        self
    }
    fn primary(mut self, bits: u32) -> Case {
        self.controls.primary |= bits;
        self
    }
    fn secondary(mut self, bits: u32) -> Case {
        self.controls.secondary |= bits;
        self.primary(primary::SECONDARY_CONTROLS)
    }
    fn exit(mut self, bits: u32) -> Case {
        self.controls.exit |= bits;
        self
    }
    fn field(mut self, f: F, value: u64) -> Case {
        self.fields.push((f, value));
        self
    }
    fn poke(mut self, at: u64, value: u64) -> Case {
        self.pokes.push((at, value));
        self
    }
    /// A field of the exit must be just this.
    fn want(self, name: &'static str, value: u64) -> Case {
        self.want_bits(name, value, u64::MAX)
    }
    /// The bits that the manual defines.
    fn want_bits(mut self, name: &'static str, value: u64, mask: u64) -> Case {
        self.expected.set(name, Want::bits(value, mask));
        self
    }
    fn want_behind(mut self, name: &'static str, offset: u64) -> Case {
        self.relative.push((name, offset));
        self
    }
    fn qualification(self, value: u64) -> Case {
        self.want("qualification", value)
    }
    fn length(self, value: u64) -> Case {
        self.want("length", value)
    }

    /// The guest runs in 32-bit protected mode with paging.
    fn legacy(mut self) -> Case {
        self.bits = 32;
        self.ia32e = false;
        self.field(F::GUEST_CR3, TABLES_32)
            .field(F::GUEST_CR4, 0x2010)
            .field(F::GUEST_CS_SELECTOR, CODE_32 as u64)
            .field(F::GUEST_CS_ACCESS, 0xc09b)
            .field(F::GUEST_EFER, 0)
            .field(F::GUEST_TR_SELECTOR, TASK as u64)
            .field(F::GUEST_TR_BASE, TASK_32)
    }

    /// Lay it down: its record, and what its line must say.
    pub fn place(&self, b: &mut Builder) -> Result<(Vec<u64>, Row), iced_x86::IcedError> {
        let (entry_at, at) = place_guest(b, self.bits, self.code, &guest_exit(false))?;
        let name = b.text(&self.name);
        let fields = hypervisor::pairs(b, self.fields.iter().copied());
        let pokes = b.words(self.pokes.iter().flat_map(|&(at, v)| [at, v]).chain([u64::MAX]));
        let c = self.controls;
        let [pin, primary, secondary, exit, mut entry] = hypervisor::BASE_CONTROLS;
        if !self.ia32e {
            entry &= !undervisor_vmx::controls::entry::IA32E_MODE_GUEST;
        }
        let controls = [pin | c.pin, primary | c.primary, exit | c.exit, entry | c.entry, secondary | c.secondary];
        let mut record = vec![name, entry_at];
        record.extend(controls.iter().map(|&w| w as u64));
        record.extend([fields, pokes]);
        let mut expected = self.expected.clone();
        for &(name, offset) in &self.relative {
            expected.set(name, Want::is(at + offset));
        }
        // A failed entry changes only the reason and the qualification.
        if self.reason >> 31 == 0 {
            expected.otherwise("rip", Want::is(at));
            expected.otherwise("interruption", Want::bits(0, 1 << 31));
            expected.otherwise("vectoring", Want::bits(0, 1 << 31));
            expected.otherwise("qualification", Want::is(0));
        }
        Ok((record, Row { name: self.name.clone(), expected }))
    }
}
