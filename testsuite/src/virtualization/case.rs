//! What a case has on either vendor's processors.

use iced_x86::IcedError;

use super::image::{Builder, Code, place_guest};
use super::{Expected, Want};

/// A guest, what is written before it runs, and what its line must say. `F`: the vendor's fields.
pub struct Guest<F> {
    pub name: String,
    pub fields: Vec<(F, u64)>,
    pub pokes: Vec<(u64, u64)>,
    pub bits: u32,
    code: Code,
    pub expected: Expected,
    /// Fields that hold an address this far behind where the guest exits.
    relative: Vec<(&'static str, u64)>,
}

/// A guest that has been laid down.
pub struct Placed {
    pub name: u64,
    pub entry: u64,
    /// Where it should exit.
    pub at: u64,
    pub pokes: u64,
}

impl<F> Guest<F> {
    pub fn new(name: impl Into<String>, code: Code) -> Guest<F> {
        Guest {
            name: name.into(),
            fields: Vec::new(),
            pokes: Vec::new(),
            bits: 64,
            code,
            expected: Expected::default(),
            relative: Vec::new(),
        }
    }

    /// Lay down the code, which ends with `end`, the name and the pokes.
    pub fn place(&self, b: &mut Builder, end: &[u8]) -> Result<Placed, IcedError> {
        let (entry, at) = place_guest(b, self.bits, self.code, end)?;
        let name = b.text(&self.name);
        let pokes = b.words(self.pokes.iter().flat_map(|&(at, v)| [at, v]).chain([u64::MAX]));
        Ok(Placed { name, entry, at, pokes })
    }

    /// What the line must say of a guest that exits at `at`. `want` says how an address is compared.
    pub fn expectations(&self, at: u64, want: fn(&str, u64) -> Want) -> Expected {
        let mut expected = self.expected.clone();
        for &(name, offset) in &self.relative {
            expected.set(name, want(name, at + offset));
        }
        expected
    }
}

/// How a vendor's case is built up.
pub trait Build: Sized {
    type Field;

    fn guest(&mut self) -> &mut Guest<Self::Field>;

    fn field(mut self, f: Self::Field, value: u64) -> Self {
        self.guest().fields.push((f, value));
        self
    }
    /// Memory to change while the case runs.
    fn poke(mut self, at: u64, value: u64) -> Self {
        self.guest().pokes.push((at, value));
        self
    }
    /// A field of the exit must be just this.
    fn want(self, name: &'static str, value: u64) -> Self {
        self.want_bits(name, value, u64::MAX)
    }
    /// The bits that the manual defines.
    fn want_bits(mut self, name: &'static str, value: u64, mask: u64) -> Self {
        self.guest().expected.set(name, Want::bits(value, mask));
        self
    }
    /// It must be the address this far behind where the guest exits.
    fn want_behind(mut self, name: &'static str, offset: u64) -> Self {
        self.guest().relative.push((name, offset));
        self
    }
}
