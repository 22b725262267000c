//! Hypercalls of KVM's paravirtual interface (Linux, Documentation/virt/kvm/x86/hypercalls.rst), for guests made for a
//! paravirtual host. Only a model with the feature `kvm_pv_ipi` answers them; without it VMCALL and VMMCALL outside of
//! virtualization are what they are on a bare processor: #UD.

use undervisor_core::model::Feature;
use undervisor_core::regs::{RAX, RBX, RCX, RDX, RSI};

use crate::apic::{DeliveryMode, Message};
use crate::cpu::Cpu;

/// The numbers of the calls.
mod number {
    pub const VAPIC_POLL_IRQ: u64 = 1;
    pub const KICK_CPU: u64 = 5;
    pub const SEND_IPI: u64 = 10;
}

const NO_SUCH_CALL: i64 = -1000;
const NOT_PERMITTED: i64 = -1;
const INVALID: i64 = -22;

impl Cpu {
    /// VMCALL on Intel, VMMCALL on AMD, with nobody below to exit to: carry out the hypercall in RAX, whose result goes to
    /// RAX. `false`: there are no hypercalls.
    pub fn hypercall(&mut self) -> bool {
        if !self.model.has(Feature::KVM_PV_IPI) || !self.state.protected() {
            return false;
        }
        let mask = if self.state.mode64() { u64::MAX } else { u32::MAX as u64 };
        let [call, a0, a1, a2, a3] = [RAX, RBX, RCX, RDX, RSI].map(|r| self.state.gpr(r) & mask);
        let result = match call {
            _ if self.state.cpl != 0 => NOT_PERMITTED,
            number::VAPIC_POLL_IRQ | number::KICK_CPU => 0,
            number::SEND_IPI => self.send_ipis([a0, a1], a2, a3, if mask == u64::MAX { 64 } else { 32 }),
            _ => NO_SUCH_CALL,
        };
        self.state.set_gpr(RAX, result as u64 & mask);
        true
    }

    /// Send what `icr` says to the processors of a bitmap, whose bit 0 is APIC id `first`; how many there are.
    fn send_ipis(&mut self, bitmap: [u64; 2], first: u64, icr: u64, width: u64) -> i64 {
        let message = Message::from_icr(icr & 0x7ff);
        if icr & 0xc_0800 != 0 || !matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::Nmi) {
            return INVALID;
        }
        let mut sent = 0;
        for i in 0..2 * width {
            let id = first.wrapping_add(i);
            if bitmap[(i / width) as usize] >> (i % width) & 1 == 0 || id >= self.processors as u64 {
                continue;
            }
            sent += 1;
            if id == self.id as u64 {
                self.receive(&message);
            } else {
                let from = self.id;
                self.bus().send_ipi(from, id << 32 | 1 << 14 | icr & 0x7ff);
                self.bus_accessed();
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::testing::{fault, make_amd, processor, step};

    const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
    const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

    #[test]
    fn a_bare_processor_has_no_hypercalls() {
        let mut c = processor(64);
        assert_eq!(fault(&mut c, &VMCALL), (6, None));
        assert_eq!(fault(&mut c, &VMMCALL), (6, None));
    }

    #[test]
    fn kvm_calls() {
        let mut c = processor(64);
        c.model = Rc::new(undervisor_core::Model::parse("max-intel,+kvm_pv_ipi").unwrap());
        let mut call = |values: [u64; 5]| {
            for (r, v) in [RAX, RBX, RCX, RDX, RSI].into_iter().zip(values) {
                c.state.set_gpr(r, v);
            }
            step(&mut c, &VMCALL).unwrap();
            c.state.gpr(RAX) as i64
        };
        assert_eq!(call([u64::MAX, 0, 0, 0, 0]), NO_SUCH_CALL);
        assert_eq!(call([number::SEND_IPI, 0xffff_ffff, 0, 0xffff_ffff, 0]), 0);
        assert_eq!(call([number::SEND_IPI, 1, 0, 0, 0x40]), 1);
        assert_eq!(call([number::SEND_IPI, 1, 0, u64::MAX, 0x40]), 0);
        assert_eq!(call([number::SEND_IPI, 2, 0, u64::MAX, 0x440]), 1);
        assert_eq!(call([number::SEND_IPI, 1, 0, 0, 0x540]), INVALID);
        assert_eq!(call([number::SEND_IPI, 1, 0, 0, 0x840]), INVALID);
        assert!(c.signals.nmi);
        assert_eq!(fault(&mut c, &VMMCALL), (6, None));
        make_amd(&mut c);
        c.state.set_gpr(RAX, 1);
        step(&mut c, &VMMCALL).unwrap();
        assert_eq!(c.state.gpr(RAX), 0);
        assert_eq!(fault(&mut c, &VMCALL), (6, None));
        c.state.cpl = 3;
        step(&mut c, &VMMCALL).unwrap();
        assert_eq!(c.state.gpr(RAX) as i64, NOT_PERMITTED);
    }
}
