//! What would have let a failed check pass: which single bits, of the field that it names and of the others that it looks at.
//! Found by trying, so that no second description of a check can disagree with its test.

use super::{Context, Failure};
use crate::fields::{Field, FieldType};

/// A change of one bit that makes the check pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    pub field: Field,
    pub bit: u8,
    /// Set it; else clear it.
    pub set: bool,
}

/// Every remedy, those of the field that the check names first.
pub fn remedies(failure: &Failure, context: &Context<'_>) -> Vec<Remedy> {
    let named = failure.check.field;
    let mut vmcs = context.vmcs.clone();
    let mut out = Vec::new();
    for field in std::iter::once(named).chain(Field::all().filter(|&f| f != named)) {
        let Some(row) = field.row() else { continue };
        if row.field_type() == FieldType::Information {
            continue;
        }
        let old = context.vmcs.get(field);
        for bit in 0..64u8 {
            if row.mask() >> bit & 1 == 0 {
                continue;
            }
            vmcs.put(field, old ^ 1 << bit);
            if (failure.check.test)(&Context { vmcs: &vmcs, ..*context }, named) {
                out.push(Remedy { field, bit, set: old >> bit & 1 == 0 });
            }
        }
        vmcs.put(field, old);
    }
    out
}
