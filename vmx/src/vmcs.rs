//! The current VMCS as the processor holds it, and the layout of a VMCS region in memory.
//!
//! A region is the truth whenever its VMCS is not the current one of a processor: VMPTRLD loads, VMCLEAR and the next
//! VMPTRLD write back.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | revision identifier (30:0), shadow-VMCS indicator (31) |
//! | 4 | 4 | VMX-abort indicator |
//! | 8 | 8 | launch state: 1 launched, else clear |
//! | 16 | 8 × fields | fields in the order of the table |

use crate::capabilities::REVISION;
use crate::controls::{entry, primary, secondary};
use crate::exit::HostSegments;
use crate::fields::{Field, FieldType, Groups};
use crate::memory::Memory;

/// Offset of the launch state in a region.
const LAUNCH_STATE: u64 = 8;
/// Offset of the first field in a region.
const FIELDS: u64 = 16;
/// Offset of the VMX-abort indicator in a region.
pub const ABORT_INDICATOR: u64 = 4;
/// The shadow-VMCS indicator in the first word of a region.
pub const SHADOW: u32 = 1 << 31;

/// A per-field constant in a table that any `u8` can index.
const fn per_field(f: Constant) -> [u64; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < crate::fields::FIELDS.len() {
        table[i] = match f {
            Constant::Mask => crate::fields::FIELDS[i].mask(),
            Constant::Group => crate::fields::FIELDS[i].group as u64,
        };
        i += 1;
    }
    table
}

#[derive(Clone, Copy)]
enum Constant {
    Mask,
    Group,
}

static MASKS: [u64; 256] = per_field(Constant::Mask);
static GROUPS: [u64; 256] = per_field(Constant::Group);

/// All fields of a VMCS.
#[derive(Clone)]
pub struct Vmcs {
    values: [u64; 256],
    /// Groups written since their checks last passed.
    pub dirty: u8,
    /// The processor was in IA-32e mode when they last passed.
    pub passed_in_long_mode: bool,
    pub launched: bool,
    /// What VM exit loads, worked out when they last passed: see [`HostSegments`].
    pub host: HostSegments,
}

impl Default for Vmcs {
    fn default() -> Vmcs {
        Vmcs {
            values: [0; 256],
            dirty: Groups::ALL,
            passed_in_long_mode: false,
            launched: false,
            host: HostSegments::default(),
        }
    }
}

impl std::fmt::Debug for Vmcs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for field in Field::all() {
            map.entry(&field, &format_args!("{:#x}", self.get(field)));
        }
        map.finish()
    }
}

impl Vmcs {
    /// A field's value.
    #[inline(always)]
    pub fn get(&self, f: Field) -> u64 {
        self.values[f.0 as usize]
    }
    /// A 32-bit field's value.
    #[inline(always)]
    pub fn get32(&self, f: Field) -> u32 {
        self.values[f.0 as usize] as u32
    }

    /// Set a field on the processor's behalf, with a value that needs no check.
    #[inline(always)]
    pub fn put(&mut self, f: Field, value: u64) {
        self.values[f.0 as usize] = value;
    }

    /// Set a field as software does: cut to its width; its group becomes dirty if the value changes.
    #[inline]
    pub fn set(&mut self, f: Field, value: u64) {
        let value = value & MASKS[f.0 as usize];
        if self.values[f.0 as usize] != value {
            self.values[f.0 as usize] = value;
            self.dirty |= GROUPS[f.0 as usize] as u8;
        }
    }

    /// VMWRITE to a field or its high half.
    #[inline]
    pub fn write(&mut self, f: Field, high: bool, value: u64) {
        let value = if high { self.get(f) & 0xffff_ffff | value << 32 } else { value };
        self.set(f, value);
    }

    /// VMREAD of a field or its high half.
    #[inline]
    pub fn read(&self, f: Field, high: bool) -> u64 {
        if high { self.get(f) >> 32 } else { self.get(f) }
    }

    /// Load from a region.
    pub fn load(&mut self, memory: &dyn Memory, region: u64) {
        self.launched = memory.read_u64(region + LAUNCH_STATE) == 1;
        for f in Field::all() {
            self.values[f.0 as usize] = memory.read_u64(region + FIELDS + 8 * f.0 as u64) & MASKS[f.0 as usize];
        }
        self.dirty = Groups::ALL;
    }

    /// Write back to a region.
    pub fn store(&self, memory: &dyn Memory, region: u64) {
        memory.write_u64(region + LAUNCH_STATE, u64::from(self.launched));
        for f in Field::all() {
            memory.write_u64(region + FIELDS + 8 * f.0 as u64, self.values[f.0 as usize]);
        }
    }

    // ---- controls, the way code asks about them -------------------------------------------------------------------------

    #[inline]
    pub fn pin(&self, bit: u32) -> bool {
        self.get32(Field::PIN_BASED_CONTROLS) & bit != 0
    }
    #[inline]
    pub fn primary(&self, bit: u32) -> bool {
        self.get32(Field::PRIMARY_CONTROLS) & bit != 0
    }
    /// A secondary control; off while the secondary controls are not activated.
    #[inline]
    pub fn secondary(&self, bit: u32) -> bool {
        self.primary(primary::SECONDARY_CONTROLS) && self.get32(Field::SECONDARY_CONTROLS) & bit != 0
    }
    /// A tertiary control; off while the tertiary controls are not activated.
    #[inline]
    pub fn tertiary(&self, bit: u64) -> bool {
        self.primary(primary::TERTIARY_CONTROLS) && self.get(Field::TERTIARY_CONTROLS) & bit != 0
    }
    #[inline]
    pub fn exit_control(&self, bit: u32) -> bool {
        self.get32(Field::EXIT_CONTROLS) & bit != 0
    }
    #[inline]
    pub fn entry_control(&self, bit: u32) -> bool {
        self.get32(Field::ENTRY_CONTROLS) & bit != 0
    }
    pub fn ept(&self) -> bool {
        self.secondary(secondary::EPT)
    }
    pub fn unrestricted(&self) -> bool {
        self.secondary(secondary::UNRESTRICTED_GUEST)
    }
    pub fn ia32e_guest(&self) -> bool {
        self.entry_control(entry::IA32E_MODE_GUEST)
    }
    /// The VPID that tags the guest's translations: 0 if the control is off.
    pub fn vpid(&self) -> u16 {
        if self.secondary(secondary::VPID) { self.get(Field::VPID) as u16 } else { 0 }
    }
}

/// What stands in the first word of a region.
pub fn revision_word(memory: &dyn Memory, region: u64) -> u32 {
    memory.read_u32(region)
}

/// Whether a region's first word names an ordinary VMCS of ours.
pub fn is_ordinary(word: u32) -> bool {
    word == REVISION
}

/// A shadow VMCS is reached in memory: VMREAD and VMWRITE of a guest use the region that the link pointer names.
pub fn shadow_read(memory: &dyn Memory, region: u64, f: Field, high: bool) -> u64 {
    let v = memory.read_u64(region + FIELDS + 8 * f.0 as u64) & MASKS[f.0 as usize];
    if high { v >> 32 } else { v }
}

/// See [`shadow_read`].
pub fn shadow_write(memory: &dyn Memory, region: u64, f: Field, high: bool, value: u64) {
    let at = region + FIELDS + 8 * f.0 as u64;
    let value = if high { memory.read_u64(at) & 0xffff_ffff | value << 32 } else { value };
    memory.write_u64(at, value & MASKS[f.0 as usize]);
}

/// Make a region's launch state clear (VMCLEAR of a VMCS that is not current).
pub fn clear_launch_state(memory: &dyn Memory, region: u64) {
    memory.write_u64(region + LAUNCH_STATE, 0);
}

/// Whether software may write a field only where IA32_VMX_MISC[29] says so.
pub fn is_information(f: Field) -> bool {
    f.row().is_some_and(|r| r.field_type() == FieldType::Information)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Words;

    #[test]
    fn region_round_trip() {
        let m = Words::new(4096);
        let mut a = Vmcs { launched: true, ..Default::default() };
        for f in Field::all() {
            a.set(f, 0x0123_4567_89ab_cdef ^ (f.0 as u64) << 3);
        }
        a.store(&m, 0);
        let mut b = Vmcs::default();
        b.load(&m, 0);
        assert!(b.launched);
        for f in Field::all() {
            assert_eq!(a.get(f), b.get(f), "{f:?}");
            assert_eq!(shadow_read(&m, 0, f, false), a.get(f));
        }
    }

    #[test]
    fn width_and_high_half() {
        let mut v = Vmcs { dirty: 0, ..Default::default() };
        v.write(Field::VPID, false, 0x12345);
        assert_eq!(v.get(Field::VPID), 0x2345);
        v.write(Field::TSC_OFFSET, false, 0x1111_1111_2222_2222);
        v.write(Field::TSC_OFFSET, true, 0xaaaa_0000_3333_3333);
        assert_eq!(v.get(Field::TSC_OFFSET), 0x3333_3333_2222_2222);
        assert_eq!(v.read(Field::TSC_OFFSET, true), 0x3333_3333);
        assert_eq!(v.dirty, Groups::CONTROLS);
    }

    #[test]
    fn the_same_value_dirties_nothing() {
        let mut v = Vmcs { dirty: 0, ..Default::default() };
        v.set(Field::GUEST_CR3, 0x1000);
        assert_eq!(v.dirty, Groups::REGISTERS);
        v.dirty = 0;
        v.set(Field::GUEST_CR3, 0x1000);
        assert_eq!(v.dirty, 0);
    }
}
