//! Delivery of interrupts and exceptions through the IDT.

use undervisor_core::Event;

use crate::cpu::{Cpu, Exec};

/// Who delivers an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The processor itself: exceptions may be intercepted.
    Native,
    /// VM entry or VMRUN: the event itself is not intercepted, what its delivery raises is.
    Injected,
}

/// Deliver `event`; faults on the way are delivered too (contributory rules, double and triple fault). `Err(Stop::Exit)`: a VM exit
/// took place.
pub fn deliver(_cpu: &mut Cpu, _event: Event, _origin: Origin) -> Exec {
    Ok(())
}
