//! Each check alone, and what it leads to.

use undervisor_core::{CpuState, Efer, VmxFeatures};

use super::broken::*;
use super::*;
use crate::capabilities::{Limits, REVISION};
use crate::controls::{exit, pin, primary};
use crate::entry::{Refusal, check};
use crate::memory::Words;

/// Addresses in the test's memory.
const SHADOW_REGION: u64 = 0x3000;
const CURRENT: u64 = 0x4000;
const VIRTUAL_APIC: u64 = 0x5000;
const CR3: u64 = 0x6000;

struct Bench {
    world: World,
    capabilities: Capabilities,
    memory: Words,
}

impl Bench {
    /// A VMCS that passes: 64-bit host, 64-bit guest, no optional control.
    fn new() -> Bench {
        let capabilities = Capabilities::new(
            VmxFeatures::everything() - VmxFeatures::INJECT_ZERO_LENGTH - VmxFeatures::INJECT_ANY_ERROR_CODE,
            Limits::default(),
        );
        let memory = Words::new(0x8000);
        memory.write_u32(SHADOW_REGION, REVISION);
        memory.write_u32(CURRENT, REVISION);
        let mut v = Vmcs::default();
        use Field as F;
        let set = |v: &mut Vmcs, list: &[(Field, u64)]| list.iter().for_each(|&(f, x)| v.set(f, x));
        set(
            &mut v,
            &[
                (F::PIN_BASED_CONTROLS, pin::DEFAULT1 as u64),
                (F::PRIMARY_CONTROLS, primary::TRUE_DEFAULT1 as u64),
                (F::EXIT_CONTROLS, (exit::TRUE_DEFAULT1 | exit::HOST_ADDRESS_SPACE_SIZE) as u64),
                (F::ENTRY_CONTROLS, (entry::TRUE_DEFAULT1 | entry::IA32E_MODE_GUEST) as u64),
                (F::VMCS_LINK_POINTER, u64::MAX),
                (F::HOST_CR0, 0x8000_0031),
                (F::HOST_CR4, 0x2020),
                (F::HOST_CR3, CR3),
                (F::HOST_CS_SELECTOR, 8),
                (F::HOST_SS_SELECTOR, 16),
                (F::HOST_TR_SELECTOR, 24),
                (F::GUEST_CR0, 0x8001_0031),
                (F::GUEST_CR4, 0x2020),
                (F::GUEST_CR3, CR3),
                (F::GUEST_RFLAGS, 2),
                (F::GUEST_DR7, 0x400),
                (F::GUEST_PAT, 0x0007_0406_0007_0406),
                (F::HOST_PAT, 0x0007_0406_0007_0406),
                (F::GUEST_EFER, 0x500),
                (F::HOST_EFER, 0x500),
                (F::GUEST_CS_ACCESS, 0xa09b),
                (F::GUEST_SS_ACCESS, 0xc093),
                (F::GUEST_DS_ACCESS, 0xc093),
                (F::GUEST_ES_ACCESS, 0xc093),
                (F::GUEST_FS_ACCESS, 0xc093),
                (F::GUEST_GS_ACCESS, 0xc093),
                (F::GUEST_LDTR_ACCESS, 0x82),
                (F::GUEST_TR_ACCESS, 0x8b),
                (F::GUEST_TR_LIMIT, 0x67),
            ],
        );
        for n in 0..6 {
            v.set(F::GUEST_ES_LIMIT.plus(n), 0xffff_ffff);
        }
        let places = Places { current: CURRENT, other_region: SHADOW_REGION, pae_tables: CR3, virtual_apic: VIRTUAL_APIC };
        Bench { world: World::new(v, places), capabilities, memory }
    }

    fn check(&mut self) -> Result<(), Refusal> {
        let mut state = CpuState::new();
        state.efer = if self.world.long_mode { Efer::LMA | Efer::LME } else { Efer::empty() };
        for &(at, value) in &self.world.pokes {
            self.memory.write_u64(at, value);
        }
        check(&mut self.world.vmcs, &self.capabilities, &state, &self.memory, CURRENT)
    }
}

fn name_of(r: Result<(), Refusal>) -> Option<&'static str> {
    match r {
        Ok(()) => None,
        Err(Refusal::Fail(_, f) | Refusal::Exit(_, f)) => Some(f.check.name),
    }
}

#[test]
fn the_base_passes() {
    assert_eq!(name_of(Bench::new().check()), None);
    for prepare in [World::legacy_guest as Break, World::legacy_host, World::v86, World::ept, World::posted] {
        let mut b = Bench::new();
        prepare(&mut b.world);
        assert_eq!(name_of(b.check()), None);
    }
}

#[test]
fn each_check_can_fail_alone() {
    for (name, broken) in CASES {
        let mut b = Bench::new();
        broken(&mut b.world);
        let result = b.check();
        let ended = match &result {
            Ok(()) => None,
            Err(Refusal::Fail(error, _)) => Some(Documented::Error(*error)),
            Err(Refusal::Exit(information, _)) => {
                assert_eq!(information.reason, 33 | 1 << 31, "{name}");
                Some(Documented::Exit(information.qualification))
            }
        };
        assert_eq!((name_of(result), ended), (Some(*name), Some(documented(name))));
        // Once more from a VMCS that had passed: the dirty groups must notice.
        let mut b = Bench::new();
        assert_eq!(name_of(b.check()), None);
        broken(&mut b.world);
        assert_eq!(name_of(b.check()), Some(*name), "after a pass");
    }
}

#[test]
fn every_check_has_its_case() {
    for table in TABLES {
        for c in table.checks {
            let known = CASES.iter().any(|(n, _)| *n == c.name) || COVERED_ELSEWHERE.iter().any(|(n, _)| *n == c.name);
            assert!(known, "{} has no case", c.name);
        }
    }
}

#[test]
fn remedies_name_the_bits_that_would_do() {
    // "Virtual NMIs need NMI exiting": either bit of the pin-based controls, nothing else.
    let mut v = Vmcs::default();
    v.put(Field::PIN_BASED_CONTROLS, (crate::controls::pin::VIRTUAL_NMIS) as u64);
    let table = &controls::EXECUTION;
    let check = table.checks.iter().find(|c| c.name == "virtual-nmis-need-nmi-exiting").unwrap();
    let failure = Failure { table, check, value: v.get(check.field) };
    let (capabilities, memory, state) = (
        Capabilities::new(undervisor_core::VmxFeatures::everything(), Default::default()),
        Words::new(0x1000),
        CpuState::new(),
    );
    let context = Context { vmcs: &v, capabilities: &capabilities, state: &state, memory: &memory, current: 0 };
    let found = remedy::remedies(&failure, &context);
    let expect = |bit, set| remedy::Remedy { field: Field::PIN_BASED_CONTROLS, bit, set };
    assert_eq!(found, [expect(3, true), expect(5, false)]);
}
