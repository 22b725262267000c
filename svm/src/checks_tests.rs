use super::*;
use crate::controls::v_intr;
use crate::sample::{HOST_CR0 as HOST, guest, limits};
use undervisor_mmu::GuestMemory;

/// With nested paging.
fn good() -> Vmcb {
    let mut v = guest();
    v.set(Field::INTERCEPT_3, 1 << 27 | 1 << 28 | 1 << 1);
    v.set(Field::NESTED_CONTROL, nested::NP_ENABLE);
    v
}

fn verdict(v: &mut Vmcb, limits: &Limits, host: Cr0) -> Option<&'static str> {
    check(v, limits, host).err().map(|c| c.name)
}

#[test]
fn a_good_vmcb_passes() {
    assert_eq!(verdict(&mut good(), &limits(), HOST), None);
}

/// Each check, with a VMCB that only it refuses.
#[test]
fn every_check_refuses_what_it_names() {
    let set = |f: Field, value: u64| {
        let mut v = good();
        v.set(f, value);
        (v, limits(), HOST)
    };
    let with = |pairs: &[(Field, u64)]| {
        let mut v = good();
        for &(f, value) in pairs {
            v.set(f, value);
        }
        (v, limits(), HOST)
    };
    let lme = (Efer::SVME | Efer::LME | Efer::LMA).bits();
    let cases: Vec<(&str, (Vmcb, Limits, Cr0))> = vec![
        ("EFER.SVME", set(Field::EFER, (Efer::LME | Efer::LMA).bits())),
        ("CR0.CD and CR0.NW", set(Field::CR0, (Cr0::PE | Cr0::PG | Cr0::NW).bits())),
        ("CR0[63:32]", set(Field::CR0, (Cr0::PE | Cr0::PG).bits() | 1 << 40)),
        ("CR3 MBZ bits", set(Field::CR3, 1 << 52)),
        ("CR4 MBZ bits", set(Field::CR4, Cr4::PAE.bits() | 1 << 15)),
        ("CR4.PCIDE", with(&[(Field::CR4, (Cr4::PAE | Cr4::PCIDE).bits()), (Field::EFER, Efer::SVME.bits())])),
        ("DR6[63:32]", set(Field::DR6, 1 << 33)),
        ("DR7[63:32]", set(Field::DR7, 1 << 63)),
        ("EFER MBZ bits", set(Field::EFER, lme | 1 << 9)),
        ("EFER.LMA and EFER.LME without long mode", (good(), Limits { long_mode: false, ..limits() }, HOST)),
        ("long mode without PAE", set(Field::CR4, 0)),
        ("long mode without protection", set(Field::CR0, Cr0::PG.bits())),
        ("CS.L and CS.D", set(Field::CS_ATTRIBUTES, 0x69b)),
        ("VMRUN intercept", set(Field::INTERCEPT_4, 0)),
        ("I/O permission map", set(Field::IOPM_BASE_PA, (1 << 48) - 0x2000)),
        ("MSR permission map", set(Field::MSRPM_BASE_PA, (1 << 48) - 0x2000)),
        ("event injection", set(Field::EVENTINJ, 1 << 31 | 3 << 8 | 2)),
        ("ASID", set(Field::GUEST_ASID, 0)),
        ("TLB control", set(Field::TLB_CONTROL, 2)),
        ("nested paging without host paging", (good(), limits(), Cr0::PE)),
        ("guest PAT", set(Field::G_PAT, 2)),
        ("nCR3 MBZ bits", set(Field::N_CR3, 1 << 48)),
        ("SSS without nested paging", set(Field::NESTED_CONTROL, nested::SSS_ENABLE)),
        ("AVIC without nested paging", with(&[(Field::V_INTR_CONTROL, v_intr::AVIC_ENABLE), (Field::NESTED_CONTROL, 0)])),
        ("x2AVIC without AVIC", set(Field::V_INTR_CONTROL, v_intr::X2AVIC_ENABLE)),
        ("AVIC tables", with(&[(Field::V_INTR_CONTROL, v_intr::AVIC_ENABLE), (Field::AVIC_PHYSICAL_TABLE, 1 << 50)])),
        ("AVIC_PHYSICAL_MAX_INDEX", with(&[(Field::V_INTR_CONTROL, v_intr::AVIC_ENABLE), (Field::AVIC_PHYSICAL_TABLE, 256)])),
        ("virtual NMI without NMI intercept", with(&[(Field::V_INTR_CONTROL, v_intr::NMI_ENABLE), (Field::INTERCEPT_3, 0)])),
    ];
    assert_eq!(cases.iter().map(|c| c.0).collect::<Vec<_>>(), CHECKS.iter().map(|c| c.name).collect::<Vec<_>>());
    for (name, (mut v, limits, host)) in cases {
        assert_eq!(verdict(&mut v, &limits, host), Some(name));
    }
}

#[test]
fn event_types() {
    for (info, ok) in [
        (1u64 << 31 | 0x20, true),
        (1 << 31 | 1 << 8 | 0x20, false),
        (1 << 31 | 2 << 8, true),
        (1 << 31 | 3 << 8 | 14, true),
        (1 << 31 | 3 << 8 | 32, false),
        // No exceptions of their own; then #BR and #OF, which 64-bit code cannot raise, #BP, which it can, and #SX.
        (1 << 31 | 3 << 8 | 9, false),
        (1 << 31 | 3 << 8 | 15, false),
        (1 << 31 | 3 << 8 | 20, false),
        (1 << 31 | 3 << 8 | 31, false),
        (1 << 31 | 3 << 8 | 5, false),
        (1 << 31 | 3 << 8 | 4, false),
        (1 << 31 | 3 << 8 | 3, true),
        (1 << 31 | 3 << 8 | 30, true),
        (1 << 31 | 4 << 8 | 0x80, true),
        (1 << 31 | 5 << 8, false),
        (5 << 8, true),
    ] {
        let mut v = good();
        v.set(Field::EVENTINJ, info);
        assert_eq!(verdict(&mut v, &limits(), HOST).is_none(), ok, "{info:#x}");
    }
}

#[test]
fn bound_and_into_exist_outside_64_bit_mode() {
    for vector in [4, 5] {
        let mut v = good();
        v.set(Field::CS_ATTRIBUTES, 0x49b);
        v.set(Field::EVENTINJ, 1 << 31 | 3 << 8 | vector);
        assert_eq!(verdict(&mut v, &limits(), HOST), None);
    }
}

/// In x2AVIC mode the table may have 512 entries.
#[test]
fn the_largest_index_depends_on_the_mode() {
    for (x2, index, ok) in
        [(0, 255, true), (0, 256, false), (v_intr::X2AVIC_ENABLE, 511, true), (v_intr::X2AVIC_ENABLE, 512, false)]
    {
        let mut v = good();
        v.set(Field::V_INTR_CONTROL, v_intr::AVIC_ENABLE | x2);
        v.set(Field::AVIC_PHYSICAL_TABLE, index);
        assert_eq!(verdict(&mut v, &limits(), HOST).is_none(), ok, "{x2:#x}, {index}");
    }
}

/// What is clean and has passed is not looked at again; what has changed is.
#[test]
fn clean_groups_are_checked_once() {
    let m = GuestMemory::new(1 << 16, 1 << 16, &[]).expect("a small guest memory");
    let put = |f: Field, value: u64| m.write::<u64>(0x1000 + f.offset as u64, value).expect("RAM");
    let g = good();
    for f in [Field::EFER, Field::CR0, Field::CR4, Field::CR3, Field::NESTED_CONTROL, Field::G_PAT, Field::RFLAGS] {
        put(f, g.get(f));
    }
    put(Field::CS_SELECTOR, g.get(Field::CS_ATTRIBUTES) << 16);
    put(Field::INTERCEPT_4, 1);
    put(Field::GUEST_ASID, 1);
    let mut v = Vmcb::default();
    v.load(&m, 0x1000, true);
    assert_eq!(verdict(&mut v, &limits(), HOST), None);
    put(Field::CR4, 1 << 15);
    put(Field::CLEAN_BITS, clean::CR as u64);
    v.load(&m, 0x1000, true);
    assert_eq!(verdict(&mut v, &limits(), HOST), None);
    put(Field::CLEAN_BITS, 0);
    v.load(&m, 0x1000, true);
    assert_eq!(verdict(&mut v, &limits(), HOST), Some("CR4 MBZ bits"));
}
