//! The XSAVE area: which state components there are, where they lie, and how large they are. One table for the instructions
//! and for CPUID leaf 0xd (SDM vol. 1, Managing State Using the XSAVE Feature Set).

use crate::state::Vendor;

/// State-component numbers, as bits of XCR0, IA32_XSS, XSTATE_BV and XCOMP_BV.
pub mod bit {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const PKRU: u64 = 1 << 9;
    /// XCOMP_BV: the area is in compacted format.
    pub const COMPACTED: u64 = 1 << 63;
}

/// Bytes of the legacy region.
pub const LEGACY_SIZE: usize = 512;
/// Bytes of legacy region and header: where the extended region starts.
pub const EXTENDED: usize = 576;
/// Offset of XSTATE_BV; XCOMP_BV follows at + 8, reserved bytes from + 16 to the end of the header.
pub const HEADER: usize = 512;
/// MXCSR bits that may be set (MXCSR_MASK of the FXSAVE area).
pub const MXCSR_MASK: u32 = 0xffff;
/// AMD's misaligned-SSE bit, allowed in MXCSR where CPUID reports MisAlignSse.
pub const MXCSR_MM: u32 = 1 << 17;

/// A component of the extended region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Bit number, 2 or more.
    pub number: u32,
    /// Offset in the standard format; 0 for supervisor components, which have none.
    pub offset: usize,
    pub size: usize,
    /// Enabled in IA32_XSS, not XCR0.
    pub supervisor: bool,
    /// Starts at a multiple of 64 in the compacted format.
    pub aligned: bool,
}

const AVX: Component = Component { number: 2, offset: 576, size: 256, supervisor: false, aligned: false };
const INTEL: &[Component] = &[AVX, Component { number: 9, offset: 2688, size: 8, supervisor: false, aligned: false }];
const AMD: &[Component] = &[AVX, Component { number: 9, offset: 832, size: 8, supervisor: false, aligned: false }];

/// The extended components that a processor may have, in the order of their numbers. Which ones it has is the model's to say.
pub fn components(vendor: Vendor) -> &'static [Component] {
    match vendor {
        Vendor::Intel => INTEL,
        Vendor::Amd => AMD,
    }
}

/// Bytes of a standard-format area that has room for the components in `mask` (CPUID leaf 0xd, sub-leaf 0, EBX and ECX).
pub fn standard_size(vendor: Vendor, mask: u64) -> usize {
    let end = |c: &Component| if mask >> c.number & 1 != 0 { c.offset + c.size } else { 0 };
    components(vendor).iter().map(end).fold(EXTENDED, usize::max)
}

/// Components in `mask` with their offsets in the compacted format.
pub fn compacted(vendor: Vendor, mask: u64) -> impl Iterator<Item = (usize, &'static Component)> {
    let mut at = EXTENDED;
    components(vendor).iter().filter(move |c| mask >> c.number & 1 != 0).map(move |c| {
        if c.aligned {
            at = at.next_multiple_of(64);
        }
        let offset = at;
        at += c.size;
        (offset, c)
    })
}

/// Bytes of a compacted-format area that holds the components in `mask` (CPUID leaf 0xd, sub-leaf 1, EBX).
pub fn compacted_size(vendor: Vendor, mask: u64) -> usize {
    compacted(vendor, mask).last().map_or(EXTENDED, |(offset, c)| offset + c.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(standard_size(Vendor::Intel, 3), 576);
        assert_eq!(standard_size(Vendor::Intel, 7), 832);
        assert_eq!(standard_size(Vendor::Intel, 0x207), 2696);
        assert_eq!(standard_size(Vendor::Amd, 0x207), 840);
        assert_eq!(compacted_size(Vendor::Intel, 0x207), 840);
        assert_eq!(compacted_size(Vendor::Intel, 0x203), 584);
        assert_eq!(compacted_size(Vendor::Amd, 1), 576);
    }
}
