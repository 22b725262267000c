//! A VMCB that enters, and the limits of a processor with everything: where tests start from.

use undervisor_core::{Cr0, Cr4, Efer, SvmFeatures};

use crate::capabilities::Limits;
use crate::fields::Field;
use crate::vmcb::Vmcb;

/// CR0 of a hypervisor with paging.
pub const HOST_CR0: Cr0 = Cr0::PG.union(Cr0::PE);

/// Every feature of SVM, on a processor with 48-bit physical addresses.
pub fn limits() -> Limits {
    Limits {
        features: SvmFeatures::all(),
        physical_bits: 48,
        long_mode: true,
        cr4: Cr4::PAE | Cr4::PSE | Cr4::PGE | Cr4::PCIDE | Cr4::OSFXSR,
        efer: Efer::SCE | Efer::LME | Efer::NXE | Efer::SVME,
        la57: false,
    }
}

/// A 64-bit guest that every check accepts, without nested paging.
pub fn guest() -> Vmcb {
    let mut v = Vmcb::default();
    for (f, x) in [
        (Field::EFER, (Efer::SVME | Efer::LME | Efer::LMA | Efer::NXE).bits()),
        (Field::CR0, 0x8001_0033),
        (Field::CR4, (Cr4::PAE | Cr4::OSFXSR).bits()),
        (Field::CR3, 0x1000),
        (Field::DR6, 0xffff_0ff0),
        (Field::DR7, 0x400),
        (Field::CS_ATTRIBUTES, 0x29b),
        (Field::SS_ATTRIBUTES, 0xc93),
        (Field::RFLAGS, 2),
        (Field::INTERCEPT_4, 1),
        (Field::GUEST_ASID, 1),
        (Field::G_PAT, 0x0007_0406_0007_0406),
    ] {
        v.set(f, x);
    }
    v
}
