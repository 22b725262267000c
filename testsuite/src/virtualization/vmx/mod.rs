//! VMX: a case for every basic exit reason, and for every entry check.

mod cases;
mod checks;
pub mod hypervisor;

use undervisor_vmx::Field as F;
use undervisor_vmx::controls::primary;

use super::case::{Build, Guest};
use super::common::CONTROLS;
use super::image::*;
use super::{Row, Want};

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
    pub guest: Guest<F>,
    /// What the case is evidence for.
    pub reason: u32,
    controls: Controls,
    ia32e: bool,
    /// The entry is made from 32-bit protected mode with PAE paging, and must fail.
    legacy_host: bool,
}

pub use cases::{UNREACHABLE, all};
pub use checks::all as all_checks;

impl Build for Case {
    type Field = F;

    fn guest(&mut self) -> &mut Guest<F> {
        &mut self.guest
    }
}

impl Case {
    /// A case for a basic exit reason whose guest is `code`.
    fn new(name: impl Into<String>, reason: u32, code: Code) -> Case {
        let case =
            Case { guest: Guest::new(name, code), reason, controls: Controls::default(), ia32e: true, legacy_host: false };
        case.want("reason", reason as u64)
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
    fn entry(mut self, bits: u32) -> Case {
        self.controls.entry |= bits;
        self
    }
    fn qualification(self, value: u64) -> Case {
        self.want("qualification", value)
    }
    fn length(self, value: u64) -> Case {
        self.want("length", value)
    }

    /// The guest runs at CPL 3, from 64-bit code unless it changes CS.
    fn at_user_level(self) -> Case {
        (0..6)
            .fold(self, |case, n| case.field(F::GUEST_ES_ACCESS.plus(n), if n == 1 { 0xa0fb } else { 0xc0f3 }))
            .field(F::GUEST_CS_SELECTOR, CODE_64 as u64 | 3)
            .field(F::GUEST_SS_SELECTOR, DATA as u64 | 3)
    }

    /// The guest runs in 32-bit protected mode with paging.
    fn legacy(mut self) -> Case {
        self.guest.bits = 32;
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
        let placed = self.guest.place(b, &guest_exit(false))?;
        let fields = hypervisor::pairs(b, self.guest.fields.iter().copied());
        let c = self.controls;
        let [pin, primary, secondary, exit, mut entry] = hypervisor::BASE_CONTROLS;
        if !self.ia32e {
            entry &= !undervisor_vmx::controls::entry::IA32E_MODE_GUEST;
        }
        let controls = [pin | c.pin, primary | c.primary, exit | c.exit, entry | c.entry, secondary | c.secondary];
        let mut record = vec![placed.name, placed.entry];
        record.extend(controls.iter().map(|&w| w as u64));
        record[CONTROLS as usize] |= u64::from(self.legacy_host) * hypervisor::LEGACY_HOST;
        record.extend([fields, placed.pokes]);
        let mut expected = self.guest.expectations(placed.at, |_, at| Want::is(at));
        // A failed entry changes only the reason and the qualification.
        if self.reason >> 31 == 0 {
            expected.otherwise("rip", Want::is(placed.at));
            expected.otherwise("interruption", Want::bits(0, 1 << 31));
            expected.otherwise("vectoring", Want::bits(0, 1 << 31));
            expected.otherwise("qualification", Want::is(0));
        }
        Ok((record, Row { name: self.guest.name.clone(), expected }))
    }
}
