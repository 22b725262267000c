//! Laws of VM entry and exit, over random VMCSs.

use proptest::prelude::*;
use undervisor_core::{CpuState, Efer, VmxFeatures};
use undervisor_vmx::capabilities::Limits;
use undervisor_vmx::controls::{entry, exit, pin, primary};
use undervisor_vmx::entry::{Refusal, check, load_guest};
use undervisor_vmx::exit::{Leaving, activity_of, interruptibility_of, load_host, save_guest};
use undervisor_vmx::memory::Words;
use undervisor_vmx::{Capabilities, Field, Memory, Vmcs};

fn capabilities() -> Capabilities {
    Capabilities::new(VmxFeatures::everything(), Limits::default())
}

/// A VMCS that passes.
fn valid() -> Vmcs {
    use Field as F;
    let mut v = Vmcs::default();
    for (f, x) in [
        (F::PIN_BASED_CONTROLS, pin::DEFAULT1 as u64),
        (F::PRIMARY_CONTROLS, primary::TRUE_DEFAULT1 as u64),
        (F::EXIT_CONTROLS, (exit::TRUE_DEFAULT1 | exit::HOST_ADDRESS_SPACE_SIZE | exit::SAVE_DEBUG_CONTROLS) as u64),
        (F::ENTRY_CONTROLS, (entry::TRUE_DEFAULT1 | entry::IA32E_MODE_GUEST | entry::LOAD_DEBUG_CONTROLS) as u64),
        (F::VMCS_LINK_POINTER, u64::MAX),
        (F::HOST_CR0, 0x8000_0031),
        (F::HOST_CR4, 0x2020),
        (F::HOST_CS_SELECTOR, 8),
        (F::HOST_TR_SELECTOR, 24),
        (F::GUEST_CR0, 0x8001_0031),
        (F::GUEST_CR4, 0x2020),
        (F::GUEST_RFLAGS, 2),
        (F::GUEST_DR7, 0x400),
        (F::GUEST_CS_ACCESS, 0xa09b),
        (F::GUEST_SS_ACCESS, 0xc093),
        (F::GUEST_LDTR_ACCESS, 0x1_0000),
        (F::GUEST_TR_ACCESS, 0x8b),
    ] {
        v.set(f, x);
    }
    for n in 0..6 {
        v.set(F::GUEST_ES_LIMIT.plus(n), 0xffff_ffff);
        if n != 1 && n != 2 {
            v.set(F::GUEST_ES_ACCESS.plus(n), 0x1_0000);
        }
    }
    v
}

fn host() -> CpuState {
    let mut s = CpuState::new();
    s.efer = Efer::LMA | Efer::LME;
    s
}

/// Enter and leave at once.
fn round_trip(v: &mut Vmcs, memory: &dyn Memory) {
    let mut s = host();
    load_guest(v, &mut s, memory);
    let leaving = Leaving {
        interruptibility: interruptibility_of(&s.shadow),
        pending_debug: v.get(Field::GUEST_PENDING_DEBUG),
        preemption_timer: None,
        rflags: s.rflags(),
        rip: s.rip(),
        activity: activity_of(s.activity),
    };
    save_guest(v, &s, &leaving);
    let _ = load_host(v, &mut s, memory, 46);
}

fn field() -> impl Strategy<Value = Field> {
    (0..Field::COUNT as u8).prop_map(Field)
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..0x400u64, (0..64u32).prop_map(|b| 1 << b), (0..64u32).prop_map(|b| !(1 << b))]
}

/// A VMCS that has passed is not taken on trust by a processor in another mode.
#[test]
fn the_address_space_check_sees_the_processors_mode() {
    let (mut v, capabilities, memory) = (valid(), capabilities(), Words::new(4096));
    assert!(check(&mut v, &capabilities, &host(), &memory, 0).is_ok());
    assert_eq!(v.dirty, 0);
    let legacy = CpuState::new();
    let refused = check(&mut v, &capabilities, &legacy, &memory, 0);
    assert!(matches!(refused, Err(Refusal::Fail(8, _))), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What an exit loads follows from the fields, whether it was worked out at the entry or not.
    #[test]
    fn host_state_is_that_of_the_fields(f in field(), x in value(), g in field(), y in value()) {
        let (mut v, capabilities, memory) = (valid(), capabilities(), Words::new(4096));
        for (f, x) in [(f, x), (g, y)] {
            v.set(f, x);
            if check(&mut v, &capabilities, &host(), &memory, 0).is_err() {
                return Ok(());
            }
            let mut fresh = v.clone();
            fresh.dirty = u8::MAX;
            let (mut a, mut b) = (host(), host());
            prop_assert_eq!(load_host(&v, &mut a, &memory, 46), load_host(&fresh, &mut b, &memory, 46));
            prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
        }
    }

    /// Any VMCS gives success or one refusal, never a panic; and what is accepted can be entered and left.
    #[test]
    fn any_vmcs(changes in prop::collection::vec((field(), value()), 0..40)) {
        let c = capabilities();
        let memory = Words::new(0x4000);
        let mut v = valid();
        for (f, x) in changes {
            v.set(f, x);
        }
        if check(&mut v, &c, &host(), &memory, 0x1000).is_ok() {
            round_trip(&mut v, &memory);
        }
    }

    /// A valid guest state comes back as it went in.
    #[test]
    fn the_round_trip_changes_nothing(changes in prop::collection::vec((field(), value()), 1..6)) {
        let c = capabilities();
        let memory = Words::new(0x4000);
        let mut v = valid();
        for (f, x) in changes {
            let before = v.get(f);
            v.set(f, x);
            if check(&mut v, &c, &host(), &memory, 0x1000).is_err() {
                v.set(f, before);
            }
        }
        // Events end blocking and wake; bits that the manual says an entry does not load come back as the processor's.
        v.set(Field::ENTRY_INTERRUPTION_INFORMATION, 0);
        v.set(Field::GUEST_CR0, v.get(Field::GUEST_CR0) & !0x7ffa_ffd0 | 0x6000_0010);
        v.set(Field::GUEST_DR7, v.get(Field::GUEST_DR7) & !0xd000 | 0x400);
        prop_assume!(check(&mut v, &c, &host(), &memory, 0x1000).is_ok());
        let optional = [Field::GUEST_PAT, Field::GUEST_EFER, Field::GUEST_BNDCFGS, Field::GUEST_DEBUGCTL, Field::GUEST_DR7,
            Field::GUEST_SYSENTER_CS];
        let before = v.clone();
        round_trip(&mut v, &memory);
        for f in Field::all().filter(|f| !optional.contains(f)) {
            prop_assert_eq!(before.get(f), v.get(f), "{:?}", f);
        }
    }

    /// The dirty groups lose nothing: after any changes, a VMCS that has passed before is judged as a fresh one is.
    #[test]
    fn dirty_groups_miss_nothing(changes in prop::collection::vec((field(), value()), 1..8)) {
        let c = capabilities();
        let memory = Words::new(0x4000);
        let mut v = valid();
        prop_assert!(check(&mut v, &c, &host(), &memory, 0x1000).is_ok());
        for (f, x) in changes {
            v.set(f, x);
            let mut fresh = v.clone();
            fresh.dirty = u8::MAX;
            let name = |r: Result<(), Refusal>| match r {
                Ok(()) => "",
                Err(Refusal::Fail(_, f) | Refusal::Exit(_, f)) => f.check.name,
            };
            let expected = name(check(&mut fresh, &c, &host(), &memory, 0x1000));
            prop_assert_eq!(name(check(&mut v, &c, &host(), &memory, 0x1000)), expected);
        }
    }
}
