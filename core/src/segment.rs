//! Segment registers with their hidden parts (SDM vol. 3, Segment Registers; Segment Descriptors).

/// Encoding order of the segment registers in instructions and in the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegReg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

impl SegReg {
    pub const ALL: [SegReg; 6] = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];

    /// Register from its encoding; `None` for 6 and 7.
    pub fn from_index(index: u8) -> Option<SegReg> {
        Self::ALL.get(index as usize).copied()
    }
}

/// A segment register: selector and descriptor cache. `access` is in the VMX access-rights layout
/// (SDM vol. 3, Guest Register State): 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    pub access: u32,
    /// Byte-granular limit: the offset of the last byte (already expanded when G is set).
    pub limit: u32,
    pub base: u64,
}

impl Segment {
    pub const UNUSABLE: u32 = 1 << 16;

    pub const fn kind(&self) -> u32 {
        self.access & 0xf
    }
    /// The S bit: code or data (true) or system (false).
    pub const fn is_code_or_data(&self) -> bool {
        self.access & 0x10 != 0
    }
    pub const fn is_code(&self) -> bool {
        self.access & 0x18 == 0x18
    }
    pub const fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
    pub const fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }
    pub const fn present(&self) -> bool {
        self.access & 0x80 != 0
    }
    /// The L bit: 64-bit code.
    pub const fn long(&self) -> bool {
        self.access & 1 << 13 != 0
    }
    /// The D/B bit.
    pub const fn big(&self) -> bool {
        self.access & 1 << 14 != 0
    }
    pub const fn unusable(&self) -> bool {
        self.access & Self::UNUSABLE != 0
    }
    /// Data segments only: limit grows down.
    pub const fn expand_down(&self) -> bool {
        self.access & 0x1c == 0x14
    }
    pub const fn writable(&self) -> bool {
        self.access & 0x1a == 0x12
    }
    pub const fn readable(&self) -> bool {
        !self.is_code() || self.access & 2 != 0
    }
    /// Base 0, limit 4 GiB − 1, usable, readable (and writable unless code), expand-up: no checks needed.
    pub const fn flat(&self) -> bool {
        self.base == 0
            && self.limit == u32::MAX
            && !self.unusable()
            && self.present()
            && self.is_code_or_data()
            && !self.expand_down()
            && if self.is_code() { self.access & 2 != 0 } else { self.writable() }
    }

    /// What a real-mode or virtual-8086 load leaves: base = selector × 16; limit and rights as given.
    pub const fn real(selector: u16, access: u32, limit: u32) -> Segment {
        Segment { selector, access, limit, base: (selector as u64) << 4 }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableReg {
    pub base: u64,
    pub limit: u16,
}
