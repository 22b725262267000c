//! Bits of the VMCB's control fields.

/// V_INTR_CONTROL, offset 060h (APM vol. 2, Appendix B).
pub mod v_intr {
    pub const TPR: u64 = 0xf;
    pub const IRQ: u64 = 1 << 8;
    pub const GIF: u64 = 1 << 9;
    pub const NMI: u64 = 1 << 11;
    pub const NMI_MASK: u64 = 1 << 12;
    pub const PRIORITY_SHIFT: u32 = 16;
    pub const IGNORE_TPR: u64 = 1 << 20;
    pub const MASKING: u64 = 1 << 24;
    pub const GIF_ENABLE: u64 = 1 << 25;
    pub const NMI_ENABLE: u64 = 1 << 26;
    pub const X2AVIC_ENABLE: u64 = 1 << 30;
    pub const AVIC_ENABLE: u64 = 1 << 31;
}

/// NESTED_CONTROL, offset 090h.
pub mod nested {
    pub const NP_ENABLE: u64 = 1 << 0;
    pub const GMET_ENABLE: u64 = 1 << 3;
    pub const SSS_ENABLE: u64 = 1 << 4;
    /// INVLPGB and TLBSYNC are no #UD in the guest.
    pub const INVLPGB_ENABLE: u64 = 1 << 7;
}

/// VIRTUAL_EXTENSIONS, offset 0B8h.
pub mod extensions {
    pub const LBR: u64 = 1 << 0;
    pub const VMLOAD_VMSAVE: u64 = 1 << 1;
}

/// TLB_CONTROL, offset 05Ch (APM vol. 2, TLB Control).
pub mod tlb {
    pub const NOTHING: u64 = 0;
    pub const FLUSH_ALL: u64 = 1;
    pub const FLUSH_ASID: u64 = 3;
    pub const FLUSH_ASID_NON_GLOBAL: u64 = 7;
}

/// INTERRUPT_SHADOW, offset 068h.
pub mod interrupt {
    pub const SHADOW: u64 = 1 << 0;
}

/// EVENTINJ and EXITINTINFO (APM vol. 2, Event Injection).
///
/// | bits | |
/// |---|---|
/// | 7:0 | vector |
/// | 10:8 | type: 0 INTR, 2 NMI, 3 exception, 4 software interrupt |
/// | 11 | the error code is valid |
/// | 31 | valid |
pub mod event {
    pub const INTR: u32 = 0;
    pub const NMI: u32 = 2;
    pub const EXCEPTION: u32 = 3;
    pub const SOFTWARE: u32 = 4;
    pub const ERROR_CODE: u32 = 1 << 11;
    pub const VALID: u32 = 1 << 31;

    pub const fn kind(info: u32) -> u32 {
        info >> 8 & 7
    }
    pub const fn vector(info: u32) -> u8 {
        info as u8
    }
}

/// VM_CR MSR (APM vol. 2, VM_CR MSR).
pub mod vm_cr {
    pub const DPD: u64 = 1 << 0;
    pub const R_INIT: u64 = 1 << 1;
    pub const DIS_A20M: u64 = 1 << 2;
    pub const LOCK: u64 = 1 << 3;
    pub const SVMDIS: u64 = 1 << 4;
    pub const DEFINED: u64 = 0x1f;
}
