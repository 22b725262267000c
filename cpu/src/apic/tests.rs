//! Rules of the local APIC, as a kernel's or hypervisor's tests would look at them.

use undervisor_core::msr;

use super::message::{BROADCAST, lowest_priority};
use super::registers::reg;
use super::*;
use crate::cpu::{Cpu, Stop, attention};
use crate::testing::{processor, step};

/// An APIC in xAPIC mode, software-enabled.
fn enabled(id: u32) -> LocalApic {
    let mut a = LocalApic::new(id);
    a.write(reg::SVR, 0x1ff, 0);
    a.out = Effects::default();
    a
}

fn fixed(a: &mut LocalApic, vector: u8) {
    a.accept(DeliveryMode::Fixed, vector, false);
}

#[test]
fn reset_values() {
    let mut a = LocalApic::new(0);
    assert_eq!(a.base, 0xfee0_0900);
    assert_eq!(LocalApic::new(3).base, 0xfee0_0800);
    assert_eq!(a.read(reg::SVR, 0), 0xff);
    assert_eq!(a.read(reg::DFR, 0), u32::MAX);
    for lvt in [reg::LVT_TIMER, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR, reg::LVT_CMCI] {
        assert_eq!(a.read(lvt, 0), LVT_MASK);
    }
    assert_eq!(a.read(reg::VERSION, 0) & 0xff, 0x14);
    assert_eq!(LocalApic::new(5).read(reg::ID, 0), 5 << 24);
}

#[test]
fn software_disable_masks_the_table() {
    let mut a = LocalApic::new(0);
    a.write(reg::LVT_TIMER, 0x40, 0);
    assert_eq!(a.read(reg::LVT_TIMER, 0), LVT_MASK | 0x40);
    a.write(reg::SVR, 0x1ff, 0);
    a.write(reg::LVT_TIMER, 0x40, 0);
    assert_eq!(a.read(reg::LVT_TIMER, 0), 0x40);
    fixed(&mut a, 0x50);
    a.write(reg::SVR, 0xff, 0);
    assert_eq!(a.read(reg::LVT_TIMER, 0), LVT_MASK | 0x40);
    // What is pending stays; nothing new comes in, NMIs apart.
    fixed(&mut a, 0x60);
    a.accept(DeliveryMode::Nmi, 0, false);
    assert_eq!((a.pending_vector(), a.out.nmi), (Some(0x50), true));
}

#[test]
fn priorities_and_eoi() {
    let mut a = enabled(0);
    fixed(&mut a, 0x31);
    fixed(&mut a, 0x52);
    a.accept(DeliveryMode::Fixed, 0x41, true);
    assert_eq!(a.pending_vector(), Some(0x52));
    a.acknowledge(0x52);
    assert_eq!((a.pending_vector(), a.ppr()), (None, 0x50));
    assert_eq!(a.read(reg::ISR + 0x20, 0), 1 << 18);
    assert_eq!(a.read(reg::IRR + 0x20, 0), 1 << 1);
    assert_eq!(a.read(reg::TMR + 0x20, 0), 1 << 1);
    a.write(reg::EOI, 0, 0);
    assert_eq!((a.pending_vector(), a.out.eoi), (Some(0x41), None));
    a.acknowledge(0x41);
    a.write(reg::EOI, 0, 0);
    assert_eq!(a.out.eoi, Some(0x41));
    // The task priority holds back its own class too.
    a.write(reg::TPR, 0x30, 0);
    assert_eq!((a.pending_vector(), a.ppr()), (None, 0x30));
    a.out.look = false;
    a.write_cr8(2);
    assert_eq!((a.pending_vector(), a.out.look, a.read(reg::TPR, 0)), (Some(0x31), true, 0x20));
}

#[test]
fn errors_are_latched_by_a_write() {
    let mut a = enabled(0);
    a.write(reg::LVT_ERROR, 0xe1, 0);
    a.write(reg::ICR, 0x4_000f, 0);
    assert_eq!(a.read(reg::ESR, 0), 0);
    a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), esr::SEND_ILLEGAL_VECTOR);
    assert_eq!(a.pending_vector(), Some(0xe1));
    a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), 0);
    fixed(&mut a, 3);
    a.read(0x40, 0);
    a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), esr::RECEIVE_ILLEGAL_VECTOR | esr::ILLEGAL_REGISTER);
}

#[test]
fn timer_modes() {
    let mut a = enabled(0);
    // One-shot, divide by 1.
    a.write(reg::DIVIDE, 0xb, 0);
    a.write(reg::LVT_TIMER, 0x40, 0);
    a.write(reg::INITIAL_COUNT, 1000, 100);
    assert_eq!(a.next_deadline(), 1100);
    assert_eq!(a.read(reg::CURRENT_COUNT, 600), 500);
    assert_eq!(a.pending_vector(), None);
    assert_eq!(a.read(reg::CURRENT_COUNT, 1100), 0);
    assert_eq!((a.pending_vector(), a.next_deadline()), (Some(0x40), u64::MAX));
    assert_eq!(a.read(reg::INITIAL_COUNT, 1100), 1000);
    a.acknowledge(0x40);
    // Periodic, divide by 2: lost expiries coincide and the phase stays.
    a.write(reg::DIVIDE, 0, 2000);
    a.write(reg::LVT_TIMER, 0x2_0041, 2000);
    a.write(reg::INITIAL_COUNT, 1000, 2000);
    assert_eq!(a.next_deadline(), 4000);
    a.poll(9000);
    assert_eq!((a.next_deadline(), a.irr.contains(0x41)), (10_000, true));
    assert_eq!(a.read(reg::CURRENT_COUNT, 9000), 500);
    // A change between periodic and one-shot lets the count run on.
    a.write(reg::LVT_TIMER, 0x41, 9500);
    assert_eq!(a.read(reg::CURRENT_COUNT, 9500), 250);
    assert_eq!(a.read(reg::CURRENT_COUNT, 10_000), 0);
    assert_eq!(a.next_deadline(), u64::MAX);
    // A count of zero stops.
    a.write(reg::INITIAL_COUNT, 1000, 20_000);
    a.write(reg::INITIAL_COUNT, 0, 20_001);
    assert_eq!(a.next_deadline(), u64::MAX);
    // Masked, the timer counts but neither wakes nor interrupts.
    let before = a.irr;
    a.write(reg::LVT_TIMER, LVT_MASK | 0x77, 20_001);
    a.write(reg::INITIAL_COUNT, 10, 20_001);
    assert_eq!(a.next_deadline(), u64::MAX);
    a.poll(30_000);
    assert_eq!(a.irr, before);
}

#[test]
fn divide_configurations() {
    let mut a = enabled(0);
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        a.write(reg::DIVIDE, code, 0);
        assert_eq!(a.timer.divisor(), divisor);
    }
}

#[test]
fn tsc_deadline_mode() {
    let mut a = enabled(0);
    a.write_tsc_deadline(500, 250, 0);
    assert_eq!(a.tsc_deadline(0), 0, "ignored in one-shot mode");
    a.write(reg::LVT_TIMER, 0x4_0040, 0);
    a.write(reg::INITIAL_COUNT, 77, 0);
    assert_eq!((a.read(reg::INITIAL_COUNT, 0), a.next_deadline()), (0, u64::MAX));
    a.write_tsc_deadline(500, 250, 0);
    assert_eq!((a.tsc_deadline(249), a.next_deadline()), (500, 250));
    assert_eq!(a.tsc_deadline(250), 0);
    assert_eq!(a.pending_vector(), Some(0x40));
    // Zero disarms, and so does leaving the mode.
    a.write_tsc_deadline(1000, 500, 300);
    a.write_tsc_deadline(0, 0, 300);
    assert_eq!(a.next_deadline(), u64::MAX);
    a.write_tsc_deadline(1000, 500, 300);
    a.write(reg::LVT_TIMER, 0x40, 300);
    assert_eq!((a.next_deadline(), a.timer.tsc_deadline), (u64::MAX, 0));
}

#[test]
fn base_transitions() {
    let legal = |from: u64, to: u64| {
        let mut a = LocalApic::new(0);
        if from & BASE_X2APIC != 0 {
            a.write_base(DEFAULT_BASE | BASE_ENABLE | BASE_X2APIC, 46).unwrap();
        } else if from == 0 {
            a.write_base(DEFAULT_BASE, 46).unwrap();
        }
        a.write_base(DEFAULT_BASE | to, 46).is_some()
    };
    let (off, x, x2, bad) = (0, BASE_ENABLE, BASE_ENABLE | BASE_X2APIC, BASE_X2APIC);
    for (from, to, ok) in [
        (off, off, true),
        (off, x, true),
        (off, x2, false),
        (off, bad, false),
        (x, off, true),
        (x, x, true),
        (x, x2, true),
        (x, bad, false),
        (x2, off, true),
        (x2, x, false),
        (x2, x2, true),
        (x2, bad, false),
    ] {
        assert_eq!(legal(from, to), ok, "{from:#x} to {to:#x}");
    }
    let mut a = LocalApic::new(0);
    assert_eq!(a.write_base(1 << 46 | DEFAULT_BASE | BASE_ENABLE, 46), None);
    assert_eq!(a.write_base(DEFAULT_BASE | BASE_ENABLE | 1, 46), None);
    // Off and on again: as after reset, but CR8 stays.
    a.write(reg::SVR, 0x1ff, 0);
    a.write_cr8(5);
    a.write_base(DEFAULT_BASE, 46).unwrap();
    assert_eq!((a.page(), a.cr8(), a.pending_vector()), (None, 5, None));
    a.write_base(0x1234_5000 | BASE_ENABLE, 46).unwrap();
    assert_eq!((a.page(), a.svr), (Some(0x1234_5000), 0xff));
    a.has_x2apic = false;
    assert_eq!(a.write_base(DEFAULT_BASE | BASE_ENABLE | BASE_X2APIC, 46), None);
}

fn x2(id: u32) -> LocalApic {
    let mut a = enabled(id);
    a.write_base(DEFAULT_BASE | BASE_ENABLE | BASE_X2APIC, 46).unwrap();
    a.out = Effects::default();
    a
}

#[test]
fn x2apic_registers() {
    let mut a = x2(0x23);
    assert_eq!(a.read_msr(0x802, 0), Some(0x23));
    assert_eq!(a.read_msr(0x80d, 0), Some(2 << 16 | 1 << 3));
    for (msr, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x200),
        (0x828, 1),
        (0x83f, 0x100),
        (0x838, 1 << 32),
        (0x832, 1 << 13),
        (0x830, 1 << 20),
    ] {
        assert_eq!(a.write_msr(msr, value, 0), None, "{msr:#x} := {value:#x}");
    }
    // Read-only and absent registers.
    for msr in [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x820, 0x831, 0x839, 0x83d, 0x8ff, 0x800] {
        assert_eq!(a.write_msr(msr, 0, 0), None, "{msr:#x}");
    }
    for msr in [0x80b, 0x80e, 0x83f, 0x831, 0x801, 0x83a, 0x8c0] {
        assert_eq!(a.read_msr(msr, 0), None, "{msr:#x}");
    }
    a.write_msr(0x83f, 0x55, 0).unwrap();
    assert_eq!((a.pending_vector(), a.out.ipi), (Some(0x55), None));
    a.write_msr(0x830, 7 << 32 | 0x40a3, 0).unwrap();
    assert_eq!((a.out.ipi, a.read_msr(0x830, 0)), (Some(7 << 32 | 0x40a3), Some(7 << 32 | 0x40a3)));
}

#[test]
fn destinations() {
    let message = |logical, destination| Message { logical, destination, ..Message::from_icr(0x4050) };
    let mut a = enabled(3);
    assert!(a.matches(&message(false, 3)) && !a.matches(&message(false, 2)) && a.matches(&message(false, BROADCAST)));
    a.write(reg::LDR, 0x0400_0000, 0);
    assert!(a.matches(&message(true, 0x0c)) && !a.matches(&message(true, 3)) && a.matches(&message(true, BROADCAST)));
    // Cluster model: cluster 2, member 1.
    a.write(reg::DFR, 0, 0);
    a.write(reg::LDR, 0x2200_0000, 0);
    assert!(a.matches(&message(true, 0x23)) && !a.matches(&message(true, 0x13)) && !a.matches(&message(true, 0x21)));
    let b = x2(0x23);
    assert!(b.matches(&message(true, 2 << 16 | 0x18)) && !b.matches(&message(true, 1 << 16 | 8)));
    assert!(b.matches(&message(false, 0x23)) && !b.matches(&message(false, 0xff)));
    assert!(b.matches(&Message::from_msi(0xfeef_f000, 0x40)), "a device's broadcast");
}

#[test]
fn xapic_ids_can_be_written_and_come_back() {
    let mut a = enabled(3);
    a.write(reg::ID, 0x0700_0000, 0);
    assert_eq!(a.read(reg::ID, 0), 0x0700_0000);
    let to = |destination| Message { destination, ..Message::from_icr(0x4050) };
    assert!(a.matches(&to(7)) && !a.matches(&to(3)));
    // x2APIC mode knows the initial id alone, and so does xAPIC mode after it.
    let base = a.base;
    a.write_base(base | BASE_X2APIC, 46).unwrap();
    assert!(a.matches(&to(3)) && a.read_msr(0x802, 0) == Some(3));
    a.write_base(base & !BASE_ENABLE, 46).unwrap();
    a.write_base(base, 46).unwrap();
    assert_eq!(a.read(reg::ID, 0), 0x0300_0000);
}

#[test]
fn shorthands_and_lowest_priority() {
    let mut a = enabled(0);
    // Self: nothing goes out. All: the own share and a message. Others: a message only.
    a.write(reg::ICR, 0x4_4061, 0);
    assert_eq!((a.irr.highest(), a.out.ipi), (Some(0x61), None));
    a.write(reg::ICR, 0x8_4062, 0);
    assert_eq!((a.irr.highest(), a.out.ipi.take()), (Some(0x62), Some(0x8_4062)));
    a.write(reg::ICR, 0xc_4063, 0);
    assert_eq!((a.irr.highest(), a.out.ipi.take()), (Some(0x62), Some(0xc_4063)));
    // Broadcast destination in xAPIC mode.
    a.write(reg::ICR_HIGH, 0xff00_0000, 0);
    a.write(reg::ICR, 0x4064, 0);
    assert_eq!((a.irr.highest(), a.out.ipi.take()), (Some(0x64), Some((BROADCAST as u64) << 32 | 0x4064)));
    // NMI to oneself by physical destination: others may have the same id.
    a.write(reg::ICR_HIGH, 0, 0);
    a.write(reg::ICR, 0x4400, 0);
    assert_eq!((a.out.nmi, a.out.ipi.take()), (true, Some(0x4400)));
    // INIT level de-assert is dropped; INIT and start-up go out.
    a.write(reg::ICR_HIGH, 0x0100_0000, 0);
    a.write(reg::ICR, 0x8500, 0);
    assert_eq!(a.out.ipi, None);
    a.write(reg::ICR, 0xc500, 0);
    assert_eq!(a.out.ipi.take(), Some(1 << 32 | 0xc500));
    a.write(reg::ICR, 0x4608, 0);
    assert_eq!(a.out.ipi.take(), Some(1 << 32 | 0x4608));
    let (mut busy, idle) = (enabled(0), enabled(1));
    busy.write(reg::TPR, 0x20, 0);
    assert_eq!(lowest_priority([&busy, &idle].into_iter().enumerate()), Some(1));
    assert_eq!(lowest_priority([&idle, &idle].into_iter().enumerate()), Some(0));
    assert_eq!(lowest_priority([&LocalApic::new(0)].into_iter().enumerate()), None);
}

#[test]
fn pins() {
    let mut a = LocalApic::new(0);
    assert!(!a.extint_open(), "masked after reset");
    a.write(reg::SVR, 0x1ff, 0);
    a.write(reg::LVT_LINT0, 0x700, 0);
    a.write(reg::LVT_LINT1, 0x400, 0);
    assert!(a.extint_open());
    a.set_pin(1, true);
    assert!(std::mem::take(&mut a.out.nmi));
    a.set_pin(1, true);
    assert!(!a.out.nmi, "no edge");
    a.write(reg::LVT_LINT0, 0x33, 0);
    assert!(!a.extint_open());
    a.set_pin(0, true);
    assert_eq!(a.pending_vector(), Some(0x33));
    a.write_base(DEFAULT_BASE, 46).unwrap();
    assert!(a.extint_open(), "INTR goes straight to the core");
}

/// Notes where stores go.
#[derive(Default)]
struct Recorder(Vec<u64>);

impl undervisor_mmu::Bus for Recorder {
    fn mmio_read(&mut self, _: u64, _: u64, _: usize) -> u64 {
        0
    }
    fn mmio_write(&mut self, _: u64, address: u64, _: usize, _: u64) {
        self.0.push(address);
    }
    fn port_read(&mut self, _: u64, _: u16, _: usize) -> u32 {
        0
    }
    fn port_write(&mut self, _: u64, _: u16, _: usize, _: u32) {}
    fn acknowledge_interrupt(&mut self, _: u64) -> u8 {
        0
    }
    fn intr(&self) -> bool {
        false
    }
    fn send_ipi(&mut self, _: usize, _: u64) {}
    fn eoi(&mut self, _: u8) {}
    fn take_wish(&mut self) -> undervisor_mmu::bus::Wish {
        Default::default()
    }
}

fn write32(cpu: &mut Cpu, at: u64, value: u32) {
    cpu.write_linear(at, value).unwrap();
}

#[test]
fn in_a_processor() {
    let mut c = processor(64);
    let base = DEFAULT_BASE;
    assert_eq!(c.read_linear::<u32>(base + 0x30).unwrap() & 0xff, 0x14);
    write32(&mut c, base + 0xf0, 0x1ff);
    write32(&mut c, base + 0x3e0, 0xb);
    write32(&mut c, base + 0x320, 0x40);
    c.set_limit(1 << 30);
    c.attention = 0;
    write32(&mut c, base + 0x380, 100);
    assert_ne!(c.attention & attention::INTERRUPT, 0, "the run loop must learn of the deadline");
    assert_eq!(c.apic.next_deadline(), c.now() + 100);
    // Bytes other than a register's four.
    assert_eq!(c.read_linear::<u32>(base + 0x34).unwrap(), 0);
    assert_eq!(c.read_linear::<u8>(base + 0x32).unwrap(), 6);
    // On top of RAM.
    c.write_linear(0x5030u64, 0x1122_3344u32).unwrap();
    c.apic_msr_write(msr::IA32_APIC_BASE, 0x5000 | BASE_ENABLE).unwrap();
    assert_eq!(c.read_linear::<u32>(0x5030).unwrap() & 0xff, 0x14);
    assert_eq!(c.read_linear::<u32>(base + 0x30).unwrap(), u32::MAX);
    c.apic_msr_write(msr::IA32_APIC_BASE, 0x5000).unwrap();
    assert_eq!(c.read_linear::<u32>(0x5030).unwrap(), 0x1122_3344);
    assert!(!c.apic_visible());
    // x2APIC registers are there in x2APIC mode only.
    assert_eq!(c.apic_msr_read(0x802), Err(Stop::Exception));
    c.apic_msr_write(msr::IA32_APIC_BASE, base | BASE_ENABLE).unwrap();
    assert_eq!(c.apic_msr_write(0x808, 0), Err(Stop::Exception));
    c.apic_msr_write(msr::IA32_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC).unwrap();
    assert_eq!(c.apic_msr_read(0x802), Ok(0));
    let mut board = Recorder::default();
    c.with_bus(&mut board, |c| {
        assert_eq!(c.read_linear::<u32>(base + 0x30).unwrap(), u32::MAX);
        write32(c, base, 0xff);
        write32(c, base + 0x1000, 0xff);
    });
    assert_eq!(board.0, [base + 0x1000], "stores to the hole send nothing");
}

#[test]
fn tsc_deadline_in_a_processor() {
    let mut c = processor(64);
    write32(&mut c, DEFAULT_BASE + 0xf0, 0x1ff);
    write32(&mut c, DEFAULT_BASE + 0x320, 0x4_0040);
    c.set_limit(1 << 40);
    let deadline = c.tsc() + 1001;
    c.apic_msr_write(msr::IA32_TSC_DEADLINE, deadline).unwrap();
    assert_eq!(c.apic.next_deadline(), c.now() + 501);
    // Set the TSC to just before the deadline.
    c.set_tsc(deadline - 2);
    assert_eq!(c.apic.next_deadline(), c.now() + 1);
    // A deadline in the past fires at once.
    c.apic_msr_write(msr::IA32_TSC_DEADLINE, 1).unwrap();
    c.apic_poll();
    assert_eq!((c.apic.pending_vector(), c.apic_msr_read(msr::IA32_TSC_DEADLINE)), (Some(0x40), Ok(0)));
    // A NOP to show that stepping is unharmed.
    step(&mut c, &[0x90]).unwrap();
}

#[test]
fn messages_between_processors() {
    let mut cpus: Vec<Box<Cpu>> = (0..3)
        .map(|id| {
            let mut c = processor(64);
            c.id = id;
            c.apic = enabled(id as u32);
            c
        })
        .collect();
    let vectors = |cpus: &[Box<Cpu>]| cpus.iter().map(|c| c.apic.irr.highest()).collect::<Vec<_>>();
    link::route(&mut cpus, Some(0), 0xc_4050);
    assert_eq!(vectors(&cpus), [None, Some(0x50), Some(0x50)]);
    link::route(&mut cpus, None, 2 << 32 | 0x4051);
    assert_eq!(vectors(&cpus), [None, Some(0x50), Some(0x51)]);
    // Lowest priority, to everyone: the sender may win.
    link::route(&mut cpus, Some(0), (BROADCAST as u64) << 32 | 0x4140);
    assert_eq!(vectors(&cpus), [Some(0x40), Some(0x50), Some(0x51)]);
    link::route(&mut cpus, Some(0), 1 << 32 | 0x4500);
    link::route(&mut cpus, Some(0), 1 << 32 | 0x4608);
    assert!(cpus[1].signals.init && cpus[1].signals.sipi == Some(8) && !cpus[2].signals.init);
    link::route(&mut cpus, Some(1), 2 << 32 | 0x4400);
    assert!(cpus[2].signals.nmi);
    assert!(cpus[2].interrupt_requested());
    assert_eq!(cpus[2].acknowledge_interrupt(), Some(0x51));
    assert_eq!((cpus[2].apic.isr.highest(), cpus[2].interrupt_requested()), (Some(0x51), false));
}
