//! Laws of VMRUN and #VMEXIT, over random VMCBs.

use proptest::prelude::*;
use undervisor_core::{CpuState, Cr0, Event, EventKind, regs};
use undervisor_svm::checks::check;
use undervisor_svm::entry::{Host, load_guest};
use undervisor_svm::exit::{ExitInformation, save_guest};
use undervisor_svm::fields::{FIELDS, Field, clean};
use undervisor_svm::reason;
use undervisor_svm::sample::{HOST_CR0, guest, limits};
use undervisor_svm::vmcb::Vmcb;

fn passes(v: &Vmcb) -> bool {
    check(&mut v.clone(), &limits(), HOST_CR0).is_ok()
}

/// Enter and leave at once.
fn round_trip(v: &mut Vmcb) {
    let mut s = CpuState::new();
    load_guest(v, &mut s, &limits());
    let (rip, cpl) = (s.rip(), s.cpl);
    save_guest(v, &s, &ExitInformation::new(reason::HLT), None, rip, cpl);
}

fn field() -> impl Strategy<Value = Field> {
    (0..FIELDS.len()).prop_map(|i| FIELDS[i].field)
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..0x400u64, (0..64u32).prop_map(|b| 1 << b), (0..64u32).prop_map(|b| !(1 << b))]
}

/// Fields that VMRUN loads with every bit, and #VMEXIT saves.
const PLAIN: [Field; 17] = [
    Field::CR2,
    Field::CR3,
    Field::CR4,
    Field::RIP,
    Field::RSP,
    Field::RAX,
    Field::ES_SELECTOR,
    Field::CS_SELECTOR,
    Field::SS_SELECTOR,
    Field::DS_SELECTOR,
    Field::ES_LIMIT,
    Field::CS_LIMIT,
    Field::SS_LIMIT,
    Field::DS_LIMIT,
    Field::G_PAT,
    Field::V_INTR_CONTROL,
    Field::N_CR3,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any VMCB gives success or one check that refuses it, never a panic; and what is accepted can be entered and left.
    #[test]
    fn any_vmcb(changes in prop::collection::vec((field(), value()), 0..40)) {
        let mut v = guest();
        for (f, x) in changes {
            v.set(f, x);
        }
        if passes(&v) {
            round_trip(&mut v);
        }
    }

    /// A valid guest comes back as it went in: every bit of the plain fields at once, and all of the state once the bits that a
    /// processor does not have are gone.
    #[test]
    fn the_round_trip_changes_nothing(changes in prop::collection::vec((field(), value()), 1..12)) {
        let mut v = guest();
        for (f, x) in changes {
            let before = v.get(f);
            v.set(f, x);
            if !passes(&v) {
                v.set(f, before);
            }
        }
        let before = v.clone();
        round_trip(&mut v);
        for f in PLAIN {
            prop_assert_eq!(before.get(f), v.get(f), "{:?}", f);
        }
        let once = v.clone();
        prop_assert!(passes(&once), "what #VMEXIT saves, VMRUN accepts");
        round_trip(&mut v);
        for row in FIELDS {
            prop_assert_eq!(once.get(row.field), v.get(row.field), "{}", row.name);
        }
    }

    /// What a clean bit hides was checked before: after any changes, a VMCB that passed is judged as a fresh one is.
    #[test]
    fn clean_groups_miss_nothing(changes in prop::collection::vec((field(), value()), 1..8)) {
        let mut v = guest();
        prop_assert!(check(&mut v, &limits(), HOST_CR0).is_ok());
        for (f, x) in changes {
            v.set(f, x);
            // As `Vmcb::load` does with a group that is read again.
            v.checked &= !f.group & !clean::ALWAYS;
            let mut fresh = v.clone();
            fresh.checked = 0;
            let name = |r: Result<(), &'static undervisor_svm::checks::Check>| r.err().map_or("", |c| c.name);
            prop_assert_eq!(name(check(&mut v, &limits(), HOST_CR0)), name(check(&mut fresh, &limits(), HOST_CR0)));
        }
    }

    /// The host comes back as it was, whatever the guest is (APM vol. 2, #VMEXIT): DR7, RFLAGS.RF and CPL apart.
    #[test]
    fn the_host_comes_back(changes in prop::collection::vec((field(), value()), 0..20), registers in any::<[u64; 4]>()) {
        let mut v = guest();
        for (f, x) in changes {
            v.set(f, x);
        }
        let mut s = CpuState::new();
        s.cr0 = Cr0::PE | Cr0::PG | Cr0::ET;
        s.cr3 = registers[0];
        s.set_rip(registers[1]);
        s.set_gpr(regs::RSP, registers[2]);
        s.set_gpr(regs::RAX, registers[3]);
        s.gdtr.base = registers[0];
        let before = s.clone();
        let mut host = Host::default();
        host.save(&s);
        load_guest(&v, &mut s, &limits());
        host.load(&mut s);
        prop_assert_eq!((s.cr0, s.cr3, s.cr4, s.efer), (before.cr0, before.cr3, before.cr4, before.efer));
        prop_assert_eq!((s.rip(), s.gpr(regs::RSP), s.gpr(regs::RAX)), (before.rip(), before.gpr(regs::RSP), before.gpr(regs::RAX)));
        prop_assert_eq!((s.gdtr, s.idtr, s.rflags()), (before.gdtr, before.idtr, before.rflags()));
        prop_assert_eq!(&s.seg[..4], &before.seg[..4]);
        prop_assert_eq!((s.dr7, s.cpl), (0x400, 0));
    }

    /// EXITINTINFO holds what EVENTINJ would take back: VMRUN accepts it (APM vol. 2, Event Injection).
    #[test]
    fn an_interrupted_event_can_be_injected_again(vector in any::<u8>(), kind in 0..4u8, code in any::<Option<u16>>()) {
        let kind = [EventKind::External, EventKind::Nmi, EventKind::HardwareException, EventKind::Software][kind as usize];
        let exception = kind == EventKind::HardwareException;
        let vector = match kind {
            EventKind::Nmi => 2,
            // Those that 64-bit code can raise.
            EventKind::HardwareException => [0, 1, 3, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 30][vector as usize % 16],
            _ => vector,
        };
        let error_code = code.filter(|_| exception).map(u32::from);
        let event = Event { kind, vector, error_code, payload: 0, instruction_length: 0 };
        let mut v = guest();
        let s = CpuState::new();
        save_guest(&mut v, &s, &ExitInformation::new(reason::NPF), Some(&event), 0, 0);
        let mut again = guest();
        again.set(Field::EVENTINJ, v.get(Field::EXITINTINFO));
        again.set(Field::EVENTINJ_ERROR, v.get(Field::EXITINTINFO_ERROR));
        prop_assert!(passes(&again));
        prop_assert_eq!(v.get(Field::EXITINTINFO_ERROR), error_code.unwrap_or(0) as u64);
    }
}
