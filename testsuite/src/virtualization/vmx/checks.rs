//! For every entry check the VMCS that breaks just it, through VMLAUNCH.

use undervisor_vmx::checks::broken::{Break, CASES, Documented, Places, World, documented};
use undervisor_vmx::reason::{ENTRY_FAILURE, basic};
use undervisor_vmx::{Field as F, Vmcs};

use super::super::case::Build;
use super::super::image::*;
use super::super::{Expected, Want};
use super::hypervisor::{BASE_CONTROLS, CR0, CR4, base};
use super::{Case, Controls};

/// The fields of [`Controls`], in its order.
const CONTROLS: [F; 5] =
    [F::PIN_BASED_CONTROLS, F::PRIMARY_CONTROLS, F::EXIT_CONTROLS, F::ENTRY_CONTROLS, F::SECONDARY_CONTROLS];

/// Every check that can be failed.
pub fn all() -> Vec<Case> {
    let mut start = Vmcs::default();
    let [pin, primary, secondary, exit, entry] = BASE_CONTROLS;
    let controls = CONTROLS.into_iter().zip([pin, primary, exit, entry, secondary].map(u64::from));
    let registers = [(F::HOST_CR0, CR0), (F::GUEST_CR0, CR0), (F::HOST_CR4, CR4), (F::GUEST_CR4, CR4)];
    for (f, value) in base().into_iter().chain(controls).chain(registers) {
        start.set(f, value);
    }
    CASES.iter().map(|&(name, broken)| case(&start, name, broken)).collect()
}

fn case(base: &Vmcs, name: &str, broken: Break) -> Case {
    let places = Places {
        current: VMCS_REGION,
        other_region: OTHER_REGION,
        // Zero, and not in use.
        pae_tables: SPECIAL,
        virtual_apic: VIRTUAL_APIC,
    };
    let mut start = base.clone();
    // The checks of LDTR want one that can be used.
    start.set(F::GUEST_LDTR_ACCESS, 0x82);
    let mut world = World::new(start, places);
    broken(&mut world);
    let reason = basic::INVALID_GUEST_STATE | ENTRY_FAILURE;
    let mut case = Case::new(format!("check-{name}"), reason, |g| g.a.nop());
    match documented(name) {
        Documented::Error(number) => {
            case.guest.expected = Expected::default();
            case.guest.expected.set("fail", Want::is(number as u64));
        }
        Documented::Exit(qualification) => case = case.qualification(qualification),
    }
    // Optional controls that a case turns on, a model may lack; reserved bits it must.
    let reserved = name.ends_with("-reserved");
    let mut added = [0u32; 5];
    for f in F::all() {
        let (old, new) = (base.get(f), world.vmcs.get(f));
        match CONTROLS.iter().position(|&c| c == f) {
            Some(n) if !reserved && old & !new == 0 => added[n] = (new & !old) as u32,
            _ if old != new => case = case.field(f, new),
            _ => {}
        }
    }
    let [pin, primary, exit, entry, secondary] = added;
    case.controls = Controls { pin, primary, exit, entry, secondary };
    case.guest.pokes = world.pokes;
    case.legacy_host = !world.long_mode;
    case
}
