//! For every consistency check the VMCB that breaks just it, through VMRUN.

use undervisor_core::SvmFeatures as S;
use undervisor_svm::controls::{nested as nested_control, v_intr};
use undervisor_svm::{Field as F, reason};

use super::super::image::{CODE_32, EPTP_LIST, NESTED, TABLES};
use super::Case;
use super::hypervisor::segment;

/// Checks that no VMCB can fail here, and why.
pub const UNREACHABLE: &[(&str, &str)] = &[
    ("EFER.LMA and EFER.LME without long mode", "every model has long mode"),
    ("nested paging without host paging", "the hypervisor is in long mode, which has paging"),
];

/// Beyond every physical address, in part.
const END: u64 = 0xf_ffff_ffff_e000;

/// Every check that can be failed, by its name.
pub fn all() -> Vec<(&'static str, Case)> {
    let check = |name: &'static str, fields: &[(F, u64)]| {
        let mut case =
            Case::new(format!("check-{}", name.replace([' ', '[', ']', ',', '.'], "-")), reason::INVALID, |g| g.a.nop());
        case.guest.fields.extend(fields);
        (name, case)
    };
    let needs = |(name, case): (&'static str, Case), features| (name, case.needs(features));
    let nested = |(name, case): (&'static str, Case)| (name, case.nested());
    let intercept = |(name, case): (&'static str, Case), code| (name, case.intercept(code));
    let legacy = segment(F::CS_SELECTOR, CODE_32, 0xc9b);
    vec![
        check("EFER.SVME", &[(F::EFER, 0xd00)]),
        check("CR0.CD and CR0.NW", &[(F::CR0, 0xa001_0033)]),
        check("CR0[63:32]", &[(F::CR0, 1 << 40 | 0x8001_0033)]),
        check("CR3 MBZ bits", &[(F::CR3, 1 << 52 | TABLES)]),
        check("CR4 MBZ bits", &[(F::CR4, 1 << 40 | 0x620)]),
        check("CR4.PCIDE", &[&[(F::CR4, 1 << 17 | 0x620), (F::EFER, 0x1000)][..], &legacy].concat()),
        check("DR6[63:32]", &[(F::DR6, 1 << 33 | 0xffff_0ff0)]),
        check("DR7[63:32]", &[(F::DR7, 1 << 63 | 0x400)]),
        check("EFER MBZ bits", &[(F::EFER, 1 << 9 | 0x1d00)]),
        check("long mode without PAE", &[(F::CR4, 0x600)]),
        check("long mode without protection", &[(F::CR0, 0x8001_0032)]),
        check("CS.L and CS.D", &[(F::CS_ATTRIBUTES, 0xe9b)]),
        check("VMRUN intercept", &[(F::INTERCEPT_4, 2)]),
        intercept(check("I/O permission map", &[(F::IOPM_BASE_PA, END)]), reason::IOIO),
        intercept(check("MSR permission map", &[(F::MSRPM_BASE_PA, END + 0x1000)]), reason::MSR),
        check("event injection", &[(F::EVENTINJ, 1 << 31 | 3 << 8 | 2)]),
        check("ASID", &[(F::GUEST_ASID, 0)]),
        check("TLB control", &[(F::TLB_CONTROL, 2)]),
        nested(check("guest PAT", &[(F::G_PAT, 2)])),
        nested(check("nCR3 MBZ bits", &[(F::N_CR3, 1 << 52 | NESTED)])),
        needs(
            check("SSS without nested paging", &[(F::NESTED_CONTROL, nested_control::SSS_ENABLE)]),
            S::SUPERVISOR_SHADOW_STACK,
        ),
        needs(check("AVIC without nested paging", &[(F::V_INTR_CONTROL, v_intr::AVIC_ENABLE)]), S::AVIC),
        nested(needs(check("x2AVIC without AVIC", &[(F::V_INTR_CONTROL, v_intr::X2AVIC_ENABLE)]), S::X2AVIC)),
        nested(needs(
            check("AVIC tables", &[(F::V_INTR_CONTROL, v_intr::AVIC_ENABLE), (F::AVIC_PHYSICAL_TABLE, 1 << 51)]),
            S::AVIC,
        )),
        nested(needs(
            check(
                "AVIC_PHYSICAL_MAX_INDEX",
                &[(F::V_INTR_CONTROL, v_intr::AVIC_ENABLE), (F::AVIC_PHYSICAL_TABLE, EPTP_LIST | 0x100)],
            ),
            S::AVIC,
        )),
        needs(check("virtual NMI without NMI intercept", &[(F::V_INTR_CONTROL, v_intr::NMI_ENABLE)]), S::VIRTUAL_NMI),
    ]
}
