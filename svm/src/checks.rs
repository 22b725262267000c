//! The checks of VMRUN (APM vol. 2, Canonicalization and Consistency Checks). Each is one row: a name, the manual's rule, the clean
//! groups it depends on, and its test. A check is passed over while nothing it depends on has been read since it last passed.
//! One that fails ends VMRUN with VMEXIT_INVALID.

use undervisor_core::{Cr0, Cr4, Efer, SvmFeatures};

use crate::capabilities::Limits;
use crate::controls::{event, nested, tlb, v_intr};
use crate::fields::{FIELDS, Field, clean};
use crate::reason;
use crate::vmcb::Vmcb;

/// What a check may look at.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub vmcb: &'a Vmcb,
    pub limits: &'a Limits,
    /// CR0 of the host, for nested paging.
    pub host_cr0: Cr0,
}

/// One check.
pub struct Check {
    pub name: &'static str,
    /// The field whose value the check reports.
    pub field: Field,
    pub rule: &'static str,
    pub groups: u32,
    /// Whether the rule holds.
    pub test: fn(&Context<'_>) -> bool,
}

impl Context<'_> {
    fn cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.vmcb.get(Field::CR0))
    }
    fn cr4(&self) -> Cr4 {
        Cr4::from_bits_retain(self.vmcb.get(Field::CR4))
    }
    fn efer(&self) -> Efer {
        Efer::from_bits_retain(self.vmcb.get(Field::EFER))
    }
    /// EFER.LME and CR0.PG are both set.
    fn long(&self) -> bool {
        self.efer().contains(Efer::LME) && self.cr0().contains(Cr0::PG)
    }
    fn mode64(&self) -> bool {
        self.long() && self.vmcb.get(Field::CS_ATTRIBUTES) & 0x200 != 0
    }
    fn has(&self, f: SvmFeatures) -> bool {
        self.limits.features.contains(f)
    }
    fn v_intr(&self, bit: u64) -> bool {
        self.vmcb.get(Field::V_INTR_CONTROL) & bit != 0
    }
    fn np(&self) -> bool {
        self.has(SvmFeatures::NPT) && self.vmcb.get(Field::NESTED_CONTROL) & nested::NP_ENABLE != 0
    }
    fn avic(&self) -> bool {
        self.has(SvmFeatures::AVIC) && self.v_intr(v_intr::AVIC_ENABLE)
    }
    /// Whether `bytes` from a map's page on lie below the end of physical memory.
    fn map(&self, base: Field, bytes: u64) -> bool {
        let start = self.vmcb.get(base) & !0xfff;
        start.checked_add(bytes - 1).is_some_and(|last| last >> self.limits.physical_bits == 0)
    }
    fn table(&self, f: Field) -> bool {
        self.vmcb.get(f) & 0x000f_ffff_ffff_f000 & !0 << self.limits.physical_bits == 0
    }
}

const CR_SEG: u32 = clean::CR | clean::SEG;

/// Every check.
pub static CHECKS: &[Check] = &[
    Check {
        name: "EFER.SVME",
        field: Field::EFER,
        rule: "EFER.SVME is set",
        groups: clean::CR,
        test: |c| c.efer().contains(Efer::SVME),
    },
    Check {
        name: "CR0.CD and CR0.NW",
        field: Field::CR0,
        rule: "CR0.NW is clear unless CR0.CD is set",
        groups: clean::CR,
        test: |c| c.cr0().contains(Cr0::CD) || !c.cr0().contains(Cr0::NW),
    },
    Check {
        name: "CR0[63:32]",
        field: Field::CR0,
        rule: "CR0 bits 63:32 are zero",
        groups: clean::CR,
        test: |c| c.vmcb.get(Field::CR0) >> 32 == 0,
    },
    Check {
        name: "CR3 MBZ bits",
        field: Field::CR3,
        rule: "CR3 has no bit at or above the physical-address width",
        groups: clean::CR,
        test: |c| c.vmcb.get(Field::CR3) >> c.limits.physical_bits == 0,
    },
    Check {
        name: "CR4 MBZ bits",
        field: Field::CR4,
        rule: "CR4 has no bit that the processor does not support",
        groups: clean::CR,
        test: |c| c.vmcb.get(Field::CR4) & !c.limits.cr4.bits() == 0,
    },
    Check {
        name: "CR4.PCIDE",
        field: Field::CR4,
        rule: "CR4.PCIDE is clear outside long mode",
        groups: clean::CR,
        test: |c| !c.cr4().contains(Cr4::PCIDE) || c.efer().contains(Efer::LME),
    },
    Check {
        name: "DR6[63:32]",
        field: Field::DR6,
        rule: "DR6 bits 63:32 are zero",
        groups: clean::DR,
        test: |c| c.vmcb.get(Field::DR6) >> 32 == 0,
    },
    Check {
        name: "DR7[63:32]",
        field: Field::DR7,
        rule: "DR7 bits 63:32 are zero",
        groups: clean::DR,
        test: |c| c.vmcb.get(Field::DR7) >> 32 == 0,
    },
    Check {
        name: "EFER MBZ bits",
        field: Field::EFER,
        rule: "EFER has no bit that the processor does not support",
        groups: clean::CR,
        test: |c| c.vmcb.get(Field::EFER) & !(c.limits.efer | Efer::LMA | Efer::SVME).bits() == 0,
    },
    Check {
        name: "EFER.LMA and EFER.LME without long mode",
        field: Field::EFER,
        rule: "EFER.LMA and EFER.LME are clear if the processor has no long mode",
        groups: clean::CR,
        test: |c| c.limits.long_mode || !c.efer().intersects(Efer::LMA | Efer::LME),
    },
    Check {
        name: "long mode without PAE",
        field: Field::CR4,
        rule: "CR4.PAE is set if EFER.LME and CR0.PG are",
        groups: clean::CR,
        test: |c| !c.long() || c.cr4().contains(Cr4::PAE),
    },
    Check {
        name: "long mode without protection",
        field: Field::CR0,
        rule: "CR0.PE is set if EFER.LME and CR0.PG are",
        groups: clean::CR,
        test: |c| !c.long() || c.cr0().contains(Cr0::PE),
    },
    Check {
        name: "CS.L and CS.D",
        field: Field::CS_ATTRIBUTES,
        rule: "EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are not all set",
        groups: CR_SEG,
        test: |c| !c.long() || !c.cr4().contains(Cr4::PAE) || c.vmcb.get(Field::CS_ATTRIBUTES) & 0x600 != 0x600,
    },
    Check {
        name: "VMRUN intercept",
        field: Field::INTERCEPT_4,
        rule: "the VMRUN intercept is set",
        groups: clean::INTERCEPTS,
        test: |c| c.vmcb.get(Field::INTERCEPT_4) & 1 != 0,
    },
    Check {
        name: "I/O permission map",
        field: Field::IOPM_BASE_PA,
        rule: "the map does not extend beyond the largest physical address",
        groups: clean::MAPS | clean::INTERCEPTS,
        // Two pages and three bits.
        test: |c| {
            c.vmcb.get(Field::INTERCEPT_3) >> (reason::IOIO - reason::INTR) & 1 == 0 || c.map(Field::IOPM_BASE_PA, 0x2001)
        },
    },
    Check {
        name: "MSR permission map",
        field: Field::MSRPM_BASE_PA,
        rule: "the map does not extend beyond the largest physical address",
        groups: clean::MAPS | clean::INTERCEPTS,
        // Two pages; silicon, like the test suites, refuses one that ends exactly at the limit.
        test: |c| {
            c.vmcb.get(Field::INTERCEPT_3) >> (reason::MSR - reason::INTR) & 1 == 0 || c.map(Field::MSRPM_BASE_PA, 0x2001)
        },
    },
    Check {
        name: "event injection",
        field: Field::EVENTINJ,
        rule: "an event's type is INTR, NMI, exception with the vector of one that the guest's mode has, or software interrupt",
        groups: clean::ALWAYS | CR_SEG,
        test: |c| event_allowed(c.vmcb.get(Field::EVENTINJ) as u32, c.mode64()),
    },
    Check {
        name: "ASID",
        field: Field::GUEST_ASID,
        rule: "the ASID is not zero",
        groups: clean::ASID,
        test: |c| c.vmcb.get(Field::GUEST_ASID) != 0,
    },
    Check {
        name: "TLB control",
        field: Field::TLB_CONTROL,
        rule: "TLB_CONTROL is 0 or 1, or with flush by ASID also 3 or 7",
        groups: clean::ALWAYS,
        test: |c| match c.vmcb.get(Field::TLB_CONTROL) {
            tlb::NOTHING | tlb::FLUSH_ALL => true,
            tlb::FLUSH_ASID | tlb::FLUSH_ASID_NON_GLOBAL => c.has(SvmFeatures::FLUSH_BY_ASID),
            _ => false,
        },
    },
    Check {
        name: "nested paging without host paging",
        field: Field::NESTED_CONTROL,
        rule: "nested paging needs paging in the host",
        groups: clean::ALWAYS,
        test: |c| !c.np() || c.host_cr0.contains(Cr0::PG),
    },
    Check {
        name: "guest PAT",
        field: Field::G_PAT,
        rule: "with nested paging, every type in G_PAT is a memory type",
        groups: clean::NP,
        test: |c| !c.np() || c.vmcb.get(Field::G_PAT).to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
    },
    Check {
        name: "nCR3 MBZ bits",
        field: Field::N_CR3,
        rule: "with nested paging, nCR3 has no bit at or above the physical-address width",
        groups: clean::NP,
        test: |c| !c.np() || c.vmcb.get(Field::N_CR3) >> c.limits.physical_bits == 0,
    },
    Check {
        name: "SSS without nested paging",
        field: Field::NESTED_CONTROL,
        rule: "the supervisor shadow-stack check needs nested paging",
        groups: clean::NP,
        test: |c| {
            !c.has(SvmFeatures::SUPERVISOR_SHADOW_STACK)
                || c.vmcb.get(Field::NESTED_CONTROL) & nested::SSS_ENABLE == 0
                || c.np()
        },
    },
    Check {
        name: "AVIC without nested paging",
        field: Field::V_INTR_CONTROL,
        rule: "AVIC needs nested paging",
        groups: clean::TPR | clean::NP,
        test: |c| !c.avic() || c.np(),
    },
    Check {
        name: "x2AVIC without AVIC",
        field: Field::V_INTR_CONTROL,
        rule: "x2AVIC mode is enabled only together with AVIC",
        groups: clean::TPR,
        test: |c| !c.has(SvmFeatures::X2AVIC) || !c.v_intr(v_intr::X2AVIC_ENABLE) || c.v_intr(v_intr::AVIC_ENABLE),
    },
    Check {
        name: "AVIC tables",
        field: Field::AVIC_PHYSICAL_TABLE,
        rule: "AVIC's pages lie below the largest physical address",
        groups: clean::TPR | clean::AVIC,
        test: |c| {
            !c.avic()
                || [Field::AVIC_BACKING_PAGE, Field::AVIC_LOGICAL_TABLE, Field::AVIC_PHYSICAL_TABLE].iter().all(|&f| c.table(f))
        },
    },
    Check {
        name: "AVIC_PHYSICAL_MAX_INDEX",
        field: Field::AVIC_PHYSICAL_TABLE,
        rule: "the physical APIC ID table's last index is at most 255, or 511 in x2AVIC mode",
        groups: clean::TPR | clean::AVIC,
        test: |c| {
            let x2 = c.has(SvmFeatures::X2AVIC) && c.v_intr(v_intr::X2AVIC_ENABLE);
            !c.avic() || c.vmcb.get(Field::AVIC_PHYSICAL_TABLE) & 0xfff <= if x2 { 511 } else { 255 }
        },
    },
    Check {
        name: "virtual NMI without NMI intercept",
        field: Field::V_INTR_CONTROL,
        rule: "virtual NMIs need the NMI intercept",
        groups: clean::TPR | clean::INTERCEPTS,
        test: |c| {
            !c.has(SvmFeatures::VIRTUAL_NMI)
                || !c.v_intr(v_intr::NMI_ENABLE)
                || c.vmcb.get(Field::INTERCEPT_3) >> (reason::NMI - reason::INTR) & 1 != 0
        },
    },
];

/// Vectors of exceptions (APM vol. 2, Exceptions and Interrupts: Vectors): 0, 1, 3–8, 10–14, 16–19, 21, 28–30.
const EXCEPTIONS: u32 = 0x702f_7dfb;
/// Those that 64-bit code cannot raise: INTO's and BOUND's.
const NOT_IN_64_BIT_MODE: u32 = 1 << 4 | 1 << 5;

/// APM vol. 2, Event Injection: what cannot be injected.
fn event_allowed(info: u32, mode64: bool) -> bool {
    if info & event::VALID == 0 {
        return true;
    }
    match event::kind(info) {
        event::INTR | event::NMI | event::SOFTWARE => true,
        event::EXCEPTION => {
            let allowed = if mode64 { EXCEPTIONS & !NOT_IN_64_BIT_MODE } else { EXCEPTIONS };
            event::vector(info) < 32 && allowed >> event::vector(info) & 1 != 0
        }
        _ => false,
    }
}

/// Run every check that is due, and remember that they passed.
pub fn check(vmcb: &mut Vmcb, limits: &Limits, host_cr0: Cr0) -> Result<(), &'static Check> {
    let passed = vmcb.checked;
    let context = Context { vmcb, limits, host_cr0 };
    for c in CHECKS {
        if c.groups & !passed != 0 && !(c.test)(&context) {
            return Err(c);
        }
    }
    vmcb.checked = clean::ALL;
    Ok(())
}

/// A change of one bit that makes a check pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    pub field: Field,
    pub bit: u8,
    /// Set it; else clear it.
    pub set: bool,
}

/// What would have let `failed` pass: single bits of the field that it names, then of the others that it looks at. Found by
/// trying, so that no second description of a check can disagree with its test.
pub fn remedies(failed: &Check, vmcb: &Vmcb, limits: &Limits, host_cr0: Cr0) -> Vec<Remedy> {
    let mut copy = vmcb.clone();
    let mut out = Vec::new();
    let others = FIELDS.iter().map(|r| r.field).filter(|&f| f != failed.field && f.group != clean::NONE);
    for field in std::iter::once(failed.field).chain(others) {
        let old = vmcb.get(field);
        for bit in 0..8 * field.size {
            copy.set(field, old ^ 1 << bit);
            if (failed.test)(&Context { vmcb: &copy, limits, host_cr0 }) {
                out.push(Remedy { field, bit, set: old >> bit & 1 == 0 });
            }
        }
        copy.set(field, old);
    }
    out
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
