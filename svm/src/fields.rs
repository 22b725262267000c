//! The VMCB field table (APM vol. 2, Appendix B: Layout of VMCB). Accessors, dumps, clean-bit groups and tests derive from it.

/// VMCB clean bits (APM vol. 2, VMCB Clean Bits). A field's group is the bit that says it has not changed.
pub mod clean {
    /// Intercept vectors, TSC offset, pause filter.
    pub const INTERCEPTS: u32 = 1 << 0;
    /// Permission-map addresses.
    pub const MAPS: u32 = 1 << 1;
    pub const ASID: u32 = 1 << 2;
    /// V_TPR, V_IRQ and the rest of the interrupt-control word.
    pub const TPR: u32 = 1 << 3;
    /// Nested paging: enable, nCR3, G_PAT.
    pub const NP: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CR: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DR: u32 = 1 << 6;
    /// GDTR, IDTR.
    pub const DT: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEG: u32 = 1 << 8;
    pub const CR2: u32 = 1 << 9;
    pub const LBR: u32 = 1 << 10;
    pub const AVIC: u32 = 1 << 11;
    /// Fields that no clean bit covers: read by every VMRUN.
    pub const ALWAYS: u32 = 1 << 31;
    /// Fields that VMRUN does not read: written by #VMEXIT, or VMLOAD's and VMSAVE's.
    pub const NONE: u32 = 0;
    /// Every bit that is defined.
    pub const ALL: u32 = 0xfff;
}

/// A field: where it lies and how wide it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub offset: u16,
    /// Bytes: 1, 2, 4 or 8. No field crosses an aligned quadword.
    pub size: u8,
    /// One of [`clean`].
    pub group: u32,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub field: Field,
}

macro_rules! fields {
    ($($name:ident $offset:literal $size:literal $group:ident;)*) => {
        impl Field {
            $(pub const $name: Field = Field { offset: $offset, size: $size, group: clean::$group };)*
        }
        /// Every field.
        pub const FIELDS: &[Row] = &[$(Row { name: stringify!($name), field: Field::$name }),*];
    };
}

fields! {
    // Control area.
    INTERCEPT_CR            0x000 4 INTERCEPTS;
    INTERCEPT_DR            0x004 4 INTERCEPTS;
    INTERCEPT_EXCEPTIONS    0x008 4 INTERCEPTS;
    INTERCEPT_3             0x00c 4 INTERCEPTS;
    INTERCEPT_4             0x010 4 INTERCEPTS;
    INTERCEPT_5             0x014 4 INTERCEPTS;
    PAUSE_FILTER_THRESHOLD  0x03c 2 INTERCEPTS;
    PAUSE_FILTER_COUNT      0x03e 2 INTERCEPTS;
    IOPM_BASE_PA            0x040 8 MAPS;
    MSRPM_BASE_PA           0x048 8 MAPS;
    TSC_OFFSET              0x050 8 INTERCEPTS;
    GUEST_ASID              0x058 4 ASID;
    TLB_CONTROL             0x05c 1 ALWAYS;
    V_INTR_CONTROL          0x060 4 TPR;
    V_INTR_VECTOR           0x064 1 TPR;
    INTERRUPT_SHADOW        0x068 8 ALWAYS;
    EXITCODE                0x070 8 NONE;
    EXITINFO1               0x078 8 NONE;
    EXITINFO2               0x080 8 NONE;
    EXITINTINFO             0x088 4 NONE;
    EXITINTINFO_ERROR       0x08c 4 NONE;
    NESTED_CONTROL          0x090 8 NP;
    AVIC_APIC_BAR           0x098 8 AVIC;
    EVENTINJ                0x0a8 4 ALWAYS;
    EVENTINJ_ERROR          0x0ac 4 ALWAYS;
    N_CR3                   0x0b0 8 NP;
    VIRTUAL_EXTENSIONS      0x0b8 8 ALWAYS;
    CLEAN_BITS              0x0c0 4 ALWAYS;
    NRIP                    0x0c8 8 ALWAYS;
    INSTRUCTION_COUNT       0x0d0 1 NONE;
    AVIC_BACKING_PAGE       0x0e0 8 AVIC;
    AVIC_LOGICAL_TABLE      0x0f0 8 AVIC;
    AVIC_PHYSICAL_TABLE     0x0f8 8 AVIC;
    BUS_LOCK_COUNTER        0x120 2 ALWAYS;
    // State save area.
    ES_SELECTOR             0x400 2 SEG;
    ES_ATTRIBUTES           0x402 2 SEG;
    ES_LIMIT                0x404 4 SEG;
    ES_BASE                 0x408 8 SEG;
    CS_SELECTOR             0x410 2 SEG;
    CS_ATTRIBUTES           0x412 2 SEG;
    CS_LIMIT                0x414 4 SEG;
    CS_BASE                 0x418 8 SEG;
    SS_SELECTOR             0x420 2 SEG;
    SS_ATTRIBUTES           0x422 2 SEG;
    SS_LIMIT                0x424 4 SEG;
    SS_BASE                 0x428 8 SEG;
    DS_SELECTOR             0x430 2 SEG;
    DS_ATTRIBUTES           0x432 2 SEG;
    DS_LIMIT                0x434 4 SEG;
    DS_BASE                 0x438 8 SEG;
    FS_SELECTOR             0x440 2 NONE;
    FS_ATTRIBUTES           0x442 2 NONE;
    FS_LIMIT                0x444 4 NONE;
    FS_BASE                 0x448 8 NONE;
    GS_SELECTOR             0x450 2 NONE;
    GS_ATTRIBUTES           0x452 2 NONE;
    GS_LIMIT                0x454 4 NONE;
    GS_BASE                 0x458 8 NONE;
    GDTR_LIMIT              0x464 4 DT;
    GDTR_BASE               0x468 8 DT;
    LDTR_SELECTOR           0x470 2 NONE;
    LDTR_ATTRIBUTES         0x472 2 NONE;
    LDTR_LIMIT              0x474 4 NONE;
    LDTR_BASE               0x478 8 NONE;
    IDTR_LIMIT              0x484 4 DT;
    IDTR_BASE               0x488 8 DT;
    TR_SELECTOR             0x490 2 NONE;
    TR_ATTRIBUTES           0x492 2 NONE;
    TR_LIMIT                0x494 4 NONE;
    TR_BASE                 0x498 8 NONE;
    CPL                     0x4cb 1 SEG;
    EFER                    0x4d0 8 CR;
    CR4                     0x548 8 CR;
    CR3                     0x550 8 CR;
    CR0                     0x558 8 CR;
    DR7                     0x560 8 DR;
    DR6                     0x568 8 DR;
    RFLAGS                  0x570 8 ALWAYS;
    RIP                     0x578 8 ALWAYS;
    RSP                     0x5d8 8 ALWAYS;
    RAX                     0x5f8 8 ALWAYS;
    STAR                    0x600 8 NONE;
    LSTAR                   0x608 8 NONE;
    CSTAR                   0x610 8 NONE;
    SFMASK                  0x618 8 NONE;
    KERNEL_GS_BASE          0x620 8 NONE;
    SYSENTER_CS             0x628 8 NONE;
    SYSENTER_ESP            0x630 8 NONE;
    SYSENTER_EIP            0x638 8 NONE;
    CR2                     0x640 8 CR2;
    G_PAT                   0x668 8 NP;
    DBGCTL                  0x670 8 LBR;
    BR_FROM                 0x678 8 LBR;
    BR_TO                   0x680 8 LBR;
    LASTEXCPFROM            0x688 8 LBR;
    LASTEXCPTO              0x690 8 LBR;
    SPEC_CTRL               0x6e0 8 ALWAYS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_ordered_aligned_and_apart() {
        for pair in FIELDS.windows(2) {
            let (a, b) = (pair[0].field, pair[1].field);
            assert!(a.offset + a.size as u16 <= b.offset, "{} overlaps {}", pair[0].name, pair[1].name);
        }
        for row in FIELDS {
            let f = row.field;
            assert_eq!(f.offset / 8, (f.offset + f.size as u16 - 1) / 8, "{} crosses a quadword", row.name);
        }
    }
}
