//! The VMCS field table: one row a field. Accessors, existence, access rights, dirty groups, dumps and tests derive from it.
//!
//! An encoding says most of it (SDM vol. 3, Encodings of VMCS Fields): bit 0 access to the high half of a 64-bit field,
//! bits 9:1 index, 11:10 type (control, VM-exit information, guest state, host state), 14:13 width (16, 64, 32, natural).

use undervisor_core::VmxFeatures;

/// A VMCS field, as its index in [`crate::Vmcs`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Field(pub u8);

/// Bits 14:13 of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    W16,
    W64,
    W32,
    Natural,
}

/// Bits 11:10 of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    Control,
    /// VM-exit information: read-only unless IA32_VMX_MISC says otherwise.
    Information,
    Guest,
    Host,
}

/// What must be checked again at the next VM entry once a field has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(pub u8);

impl Groups {
    pub const NONE: u8 = 0;
    /// Controls; every other group's checks look at them too.
    pub const CONTROLS: u8 = 1 << 0;
    pub const HOST: u8 = 1 << 1;
    /// Guest control registers, debug registers and MSRs.
    pub const REGISTERS: u8 = 1 << 2;
    /// Guest segment and descriptor-table registers.
    pub const SEGMENTS: u8 = 1 << 3;
    pub const ALL: u8 = 0xf;
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct FieldRow {
    pub name: &'static str,
    pub encoding: u16,
    /// Any one of these must be there for the field to exist; empty: it always exists.
    pub gate: VmxFeatures,
    pub group: u8,
}

impl FieldRow {
    pub const fn width(&self) -> Width {
        match self.encoding >> 13 & 3 {
            0 => Width::W16,
            1 => Width::W64,
            2 => Width::W32,
            _ => Width::Natural,
        }
    }
    pub const fn field_type(&self) -> FieldType {
        match self.encoding >> 10 & 3 {
            0 => FieldType::Control,
            1 => FieldType::Information,
            2 => FieldType::Guest,
            _ => FieldType::Host,
        }
    }
    /// Bits that the field holds.
    pub const fn mask(&self) -> u64 {
        match self.width() {
            Width::W16 => 0xffff,
            Width::W32 => 0xffff_ffff,
            Width::W64 | Width::Natural => u64::MAX,
        }
    }
}

macro_rules! fields {
    ($($name:ident $encoding:literal $group:ident $(if $($gate:ident)|+)?;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u8)]
        enum Number { $($name),* }

        impl Field {
            $(pub const $name: Field = Field(Number::$name as u8);)*
        }

        /// The table, in the order of `Field` numbers.
        pub static FIELDS: &[FieldRow] = &[$(
            FieldRow {
                name: stringify!($name),
                encoding: $encoding,
                gate: VmxFeatures::empty()$($(.union(VmxFeatures::$gate))+)?,
                group: Groups::$group,
            }
        ),*];
    };
}

fields! {
    // 16-bit controls.
    VPID 0x0000 CONTROLS if VPID;
    POSTED_INTERRUPT_NOTIFICATION_VECTOR 0x0002 CONTROLS if POSTED_INTERRUPTS;
    EPTP_INDEX 0x0004 NONE if EPT_VIOLATION_VE;
    LAST_PID_POINTER_INDEX 0x0008 CONTROLS if IPI_VIRTUALIZATION;
    // 16-bit guest state.
    GUEST_ES_SELECTOR 0x0800 SEGMENTS;
    GUEST_CS_SELECTOR 0x0802 SEGMENTS;
    GUEST_SS_SELECTOR 0x0804 SEGMENTS;
    GUEST_DS_SELECTOR 0x0806 SEGMENTS;
    GUEST_FS_SELECTOR 0x0808 SEGMENTS;
    GUEST_GS_SELECTOR 0x080a SEGMENTS;
    GUEST_LDTR_SELECTOR 0x080c SEGMENTS;
    GUEST_TR_SELECTOR 0x080e SEGMENTS;
    GUEST_INTERRUPT_STATUS 0x0810 NONE if VIRTUAL_INTERRUPT_DELIVERY;
    PML_INDEX 0x0812 NONE if PML;
    // 16-bit host state.
    HOST_ES_SELECTOR 0x0c00 HOST;
    HOST_CS_SELECTOR 0x0c02 HOST;
    HOST_SS_SELECTOR 0x0c04 HOST;
    HOST_DS_SELECTOR 0x0c06 HOST;
    HOST_FS_SELECTOR 0x0c08 HOST;
    HOST_GS_SELECTOR 0x0c0a HOST;
    HOST_TR_SELECTOR 0x0c0c HOST;
    // 64-bit controls.
    IO_BITMAP_A 0x2000 CONTROLS;
    IO_BITMAP_B 0x2002 CONTROLS;
    MSR_BITMAPS 0x2004 CONTROLS if MSR_BITMAPS;
    EXIT_MSR_STORE_ADDRESS 0x2006 CONTROLS;
    EXIT_MSR_LOAD_ADDRESS 0x2008 CONTROLS;
    ENTRY_MSR_LOAD_ADDRESS 0x200a CONTROLS;
    EXECUTIVE_VMCS_POINTER 0x200c NONE;
    PML_ADDRESS 0x200e CONTROLS if PML;
    TSC_OFFSET 0x2010 NONE;
    VIRTUAL_APIC_ADDRESS 0x2012 CONTROLS if TPR_SHADOW;
    APIC_ACCESS_ADDRESS 0x2014 CONTROLS if VIRTUALIZE_APIC_ACCESSES;
    POSTED_INTERRUPT_DESCRIPTOR_ADDRESS 0x2016 CONTROLS if POSTED_INTERRUPTS;
    VM_FUNCTION_CONTROLS 0x2018 CONTROLS if VM_FUNCTIONS;
    EPT_POINTER 0x201a CONTROLS if EPT;
    EOI_EXIT_BITMAP_0 0x201c NONE if VIRTUAL_INTERRUPT_DELIVERY;
    EOI_EXIT_BITMAP_1 0x201e NONE if VIRTUAL_INTERRUPT_DELIVERY;
    EOI_EXIT_BITMAP_2 0x2020 NONE if VIRTUAL_INTERRUPT_DELIVERY;
    EOI_EXIT_BITMAP_3 0x2022 NONE if VIRTUAL_INTERRUPT_DELIVERY;
    EPTP_LIST_ADDRESS 0x2024 CONTROLS if EPTP_SWITCHING;
    VMREAD_BITMAP 0x2026 CONTROLS if VMCS_SHADOWING;
    VMWRITE_BITMAP 0x2028 CONTROLS if VMCS_SHADOWING;
    VIRTUALIZATION_EXCEPTION_ADDRESS 0x202a CONTROLS if EPT_VIOLATION_VE;
    XSS_EXITING_BITMAP 0x202c NONE if ENABLE_XSAVES;
    TSC_MULTIPLIER 0x2032 CONTROLS if TSC_SCALING;
    TERTIARY_CONTROLS 0x2034 CONTROLS if TERTIARY;
    PID_POINTER_TABLE_ADDRESS 0x2042 CONTROLS if IPI_VIRTUALIZATION;
    SPEC_CTRL_MASK 0x204a NONE if VIRTUALIZE_SPEC_CTRL;
    SPEC_CTRL_SHADOW 0x204c NONE if VIRTUALIZE_SPEC_CTRL;
    // 64-bit information.
    GUEST_PHYSICAL_ADDRESS 0x2400 NONE if EPT;
    // 64-bit guest state.
    VMCS_LINK_POINTER 0x2800 CONTROLS;
    GUEST_DEBUGCTL 0x2802 REGISTERS;
    GUEST_PAT 0x2804 REGISTERS if LOAD_PAT;
    GUEST_EFER 0x2806 REGISTERS if LOAD_EFER;
    GUEST_PERF_GLOBAL_CTRL 0x2808 REGISTERS if LOAD_PERF_GLOBAL_CTRL;
    GUEST_PDPTE_0 0x280a REGISTERS if EPT;
    GUEST_PDPTE_1 0x280c REGISTERS if EPT;
    GUEST_PDPTE_2 0x280e REGISTERS if EPT;
    GUEST_PDPTE_3 0x2810 REGISTERS if EPT;
    GUEST_BNDCFGS 0x2812 REGISTERS if LOAD_BNDCFGS;
    // 64-bit host state.
    HOST_PAT 0x2c00 HOST if LOAD_PAT;
    HOST_EFER 0x2c02 HOST if LOAD_EFER;
    HOST_PERF_GLOBAL_CTRL 0x2c04 HOST if LOAD_PERF_GLOBAL_CTRL;
    // 32-bit controls.
    PIN_BASED_CONTROLS 0x4000 CONTROLS;
    PRIMARY_CONTROLS 0x4002 CONTROLS;
    EXCEPTION_BITMAP 0x4004 NONE;
    PAGE_FAULT_MASK 0x4006 NONE;
    PAGE_FAULT_MATCH 0x4008 NONE;
    CR3_TARGET_COUNT 0x400a CONTROLS;
    EXIT_CONTROLS 0x400c CONTROLS;
    EXIT_MSR_STORE_COUNT 0x400e CONTROLS;
    EXIT_MSR_LOAD_COUNT 0x4010 CONTROLS;
    ENTRY_CONTROLS 0x4012 CONTROLS;
    ENTRY_MSR_LOAD_COUNT 0x4014 CONTROLS;
    ENTRY_INTERRUPTION_INFORMATION 0x4016 NONE;
    ENTRY_EXCEPTION_ERROR_CODE 0x4018 NONE;
    ENTRY_INSTRUCTION_LENGTH 0x401a NONE;
    TPR_THRESHOLD 0x401c NONE if TPR_SHADOW;
    SECONDARY_CONTROLS 0x401e CONTROLS if SECONDARY;
    PLE_GAP 0x4020 NONE if PAUSE_LOOP_EXITING;
    PLE_WINDOW 0x4022 NONE if PAUSE_LOOP_EXITING;
    INSTRUCTION_TIMEOUT_CONTROL 0x4024 NONE if INSTRUCTION_TIMEOUT;
    // 32-bit information.
    INSTRUCTION_ERROR 0x4400 NONE;
    EXIT_REASON 0x4402 NONE;
    EXIT_INTERRUPTION_INFORMATION 0x4404 NONE;
    EXIT_INTERRUPTION_ERROR_CODE 0x4406 NONE;
    IDT_VECTORING_INFORMATION 0x4408 NONE;
    IDT_VECTORING_ERROR_CODE 0x440a NONE;
    EXIT_INSTRUCTION_LENGTH 0x440c NONE;
    EXIT_INSTRUCTION_INFORMATION 0x440e NONE;
    // 32-bit guest state.
    GUEST_ES_LIMIT 0x4800 SEGMENTS;
    GUEST_CS_LIMIT 0x4802 SEGMENTS;
    GUEST_SS_LIMIT 0x4804 SEGMENTS;
    GUEST_DS_LIMIT 0x4806 SEGMENTS;
    GUEST_FS_LIMIT 0x4808 SEGMENTS;
    GUEST_GS_LIMIT 0x480a SEGMENTS;
    GUEST_LDTR_LIMIT 0x480c SEGMENTS;
    GUEST_TR_LIMIT 0x480e SEGMENTS;
    GUEST_GDTR_LIMIT 0x4810 SEGMENTS;
    GUEST_IDTR_LIMIT 0x4812 SEGMENTS;
    GUEST_ES_ACCESS 0x4814 SEGMENTS;
    GUEST_CS_ACCESS 0x4816 SEGMENTS;
    GUEST_SS_ACCESS 0x4818 SEGMENTS;
    GUEST_DS_ACCESS 0x481a SEGMENTS;
    GUEST_FS_ACCESS 0x481c SEGMENTS;
    GUEST_GS_ACCESS 0x481e SEGMENTS;
    GUEST_LDTR_ACCESS 0x4820 SEGMENTS;
    GUEST_TR_ACCESS 0x4822 SEGMENTS;
    GUEST_INTERRUPTIBILITY 0x4824 NONE;
    GUEST_ACTIVITY 0x4826 NONE;
    GUEST_SMBASE 0x4828 NONE;
    GUEST_SYSENTER_CS 0x482a NONE;
    PREEMPTION_TIMER_VALUE 0x482e NONE if PREEMPTION_TIMER;
    // 32-bit host state.
    HOST_SYSENTER_CS 0x4c00 NONE;
    // Natural-width controls.
    CR0_MASK 0x6000 NONE;
    CR4_MASK 0x6002 NONE;
    CR0_READ_SHADOW 0x6004 NONE;
    CR4_READ_SHADOW 0x6006 NONE;
    CR3_TARGET_0 0x6008 NONE;
    CR3_TARGET_1 0x600a NONE;
    CR3_TARGET_2 0x600c NONE;
    CR3_TARGET_3 0x600e NONE;
    // Natural-width information.
    EXIT_QUALIFICATION 0x6400 NONE;
    IO_RCX 0x6402 NONE;
    IO_RSI 0x6404 NONE;
    IO_RDI 0x6406 NONE;
    IO_RIP 0x6408 NONE;
    GUEST_LINEAR_ADDRESS 0x640a NONE;
    // Natural-width guest state.
    GUEST_CR0 0x6800 REGISTERS;
    GUEST_CR3 0x6802 REGISTERS;
    GUEST_CR4 0x6804 REGISTERS;
    GUEST_ES_BASE 0x6806 SEGMENTS;
    GUEST_CS_BASE 0x6808 SEGMENTS;
    GUEST_SS_BASE 0x680a SEGMENTS;
    GUEST_DS_BASE 0x680c SEGMENTS;
    GUEST_FS_BASE 0x680e SEGMENTS;
    GUEST_GS_BASE 0x6810 SEGMENTS;
    GUEST_LDTR_BASE 0x6812 SEGMENTS;
    GUEST_TR_BASE 0x6814 SEGMENTS;
    GUEST_GDTR_BASE 0x6816 SEGMENTS;
    GUEST_IDTR_BASE 0x6818 SEGMENTS;
    GUEST_DR7 0x681a REGISTERS;
    GUEST_RSP 0x681c NONE;
    GUEST_RIP 0x681e NONE;
    GUEST_RFLAGS 0x6820 NONE;
    GUEST_PENDING_DEBUG 0x6822 NONE;
    GUEST_SYSENTER_ESP 0x6824 REGISTERS;
    GUEST_SYSENTER_EIP 0x6826 REGISTERS;
    // Natural-width host state.
    HOST_CR0 0x6c00 HOST;
    HOST_CR3 0x6c02 HOST;
    HOST_CR4 0x6c04 HOST;
    HOST_FS_BASE 0x6c06 HOST;
    HOST_GS_BASE 0x6c08 HOST;
    HOST_TR_BASE 0x6c0a HOST;
    HOST_GDTR_BASE 0x6c0c HOST;
    HOST_IDTR_BASE 0x6c0e HOST;
    HOST_SYSENTER_ESP 0x6c10 HOST;
    HOST_SYSENTER_EIP 0x6c12 HOST;
    HOST_RSP 0x6c14 NONE;
    HOST_RIP 0x6c16 HOST;
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().map_or("?", |r| r.name))
    }
}

impl Field {
    pub const COUNT: usize = FIELDS.len();

    /// The field's row; `None` only for a number that is no field.
    pub fn row(self) -> Option<&'static FieldRow> {
        FIELDS.get(self.0 as usize)
    }

    /// Every field.
    pub fn all() -> impl Iterator<Item = Field> {
        (0..Self::COUNT).map(|i| Field(i as u8))
    }

    /// The n-th field after this one; for runs such as the segment registers and the PDPTEs.
    pub const fn plus(self, n: u8) -> Field {
        Field(self.0 + n)
    }
}

/// From an encoding to a field.
pub struct Lookup {
    /// By encoding: the fields of a width and type, which are used together, share few cache lines.
    slots: Box<[u8; ENCODINGS]>,
}

/// Encodings run below this: 14:13 width, 11:10 type, 9:1 index, 0 access type; bit 12 is reserved.
const ENCODINGS: usize = 1 << 15;

/// What a slot says when there is no such field.
const ABSENT: u8 = 0xff;

impl Lookup {
    /// The fields that exist with these features.
    pub fn new(features: VmxFeatures) -> Lookup {
        let mut slots = Box::new([ABSENT; ENCODINGS]);
        for (i, row) in FIELDS.iter().enumerate() {
            if row.gate.is_empty() || features.intersects(row.gate) {
                slots[row.encoding as usize % ENCODINGS] = i as u8;
                if row.width() == Width::W64 {
                    slots[(row.encoding as usize | 1) % ENCODINGS] = i as u8;
                }
            }
        }
        Lookup { slots }
    }

    /// The field that `encoding` names, and whether it is its high half.
    #[inline]
    pub fn find(&self, encoding: u64) -> Option<(Field, bool)> {
        let f = *self.slots.get(usize::try_from(encoding).ok()?)?;
        (f != ABSENT).then_some((Field(f), encoding & 1 != 0))
    }

    /// Highest index of any field that exists (for IA32_VMX_VMCS_ENUM).
    pub fn highest_index(&self) -> u64 {
        self.slots.iter().enumerate().filter(|(_, f)| **f != ABSENT).map(|(i, _)| i as u64 >> 1 & 0x1ff).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_unique_and_found() {
        let all = Lookup::new(VmxFeatures::everything());
        assert!(Field::COUNT < ABSENT as usize);
        for f in Field::all() {
            let row = f.row().unwrap();
            assert_eq!(all.find(row.encoding as u64), Some((f, false)), "{}", row.name);
            assert_eq!(all.find(row.encoding as u64 | 1).is_some(), row.width() == Width::W64, "{}", row.name);
        }
        assert_eq!(all.find(0x10000), None);
        assert_eq!(all.find(0x0006), None);
        assert_eq!(all.find(1 << 63), None);
    }

    #[test]
    fn gates_hide_fields() {
        let l = Lookup::new(VmxFeatures::everything() - VmxFeatures::EPT);
        assert_eq!(l.find(0x201a), None);
        assert!(l.find(0x6800).is_some());
    }
}
