//! Everything in the computer that is not a processor or memory: the devices, where they decode, and how their interrupts
//! find a processor. This is the bus that processors see.

use std::rc::Rc;

use undervisor_devices::acpi_pm::{self, AcpiPm, Power};
use undervisor_devices::debug::{DebugConsole, TestDevice};
use undervisor_devices::fw_cfg::{self, FwCfg};
use undervisor_devices::hpet::{self, Hpet};
use undervisor_devices::i8042::{Effects, I8042};
use undervisor_devices::ioapic::{self, IoApic};
use undervisor_devices::pci::{PciHost, is_ecam};
use undervisor_devices::pic::Pic;
use undervisor_devices::pit::Pit;
use undervisor_devices::rtc::Rtc;
use undervisor_devices::uart::Uart;
use undervisor_devices::{NEVER, Signal, Time, Wiring};
use undervisor_mmu::{Bus, LowRouting, Wish};

use crate::memory::Ram;

/// Ports and interrupts of the serial ports, COM1 first.
pub const SERIAL_PORTS: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// Where isa-debug-exit sits.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// Interrupt messages from devices: writes to this range (SDM vol. 3, Message Address Register Format).
const MESSAGE_RANGE: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Memory whose routing the host bridge chooses.
const LOW_START: u64 = 0xa_0000;
const LOW_END: u64 = 0x10_0000;

/// What the guest asked of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    PowerOff,
    Reset,
    /// Sleep in S3.
    Suspend,
    /// A write to isa-debug-exit.
    DebugExit(u32),
}

/// An interrupt message on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The processor that sent it; `None`: a device.
    pub from: Option<usize>,
    /// ICR layout, 32-bit destination in the high half.
    pub icr: u64,
}

/// The devices.
pub struct Board {
    pub wiring: Wiring,
    pub pic: Pic,
    pub pit: Pit,
    pub ioapic: IoApic,
    pub hpet: Hpet,
    pub rtc: Rtc,
    pub i8042: I8042,
    pub acpi: AcpiPm,
    pub fw_cfg: FwCfg,
    pub serial: Vec<Uart>,
    pub debug_console: DebugConsole,
    pub test_device: TestDevice,
    pub pci: PciHost,
    /// ISA interrupt lines that are up, and PCI interrupt requests (bit 0: PIRQA).
    isa_lines: u16,
    pirqs: u8,
    /// 8259 input of each PIRQ, as last seen.
    pirq_routes: [Option<u8>; 8],
    /// Scratch registers that old software expects: DMA page registers and the POST code port.
    dma_pages: [u8; 16],
    port_92: u8,
    reset_control: u8,
    ram: Ram,
    /// Where the host bridge sends accesses to low memory, as last seen.
    low_routing: LowRouting,
    /// Latest virtual time seen.
    clock: Time,
    /// Whose access is under way, and up to when it may run.
    processor: usize,
    limit: Time,
    deadline: Time,
    intr: bool,
    wish: Wish,
    messages: Vec<InFlight>,
    request: Option<Request>,
    /// Accesses that nothing answered; the first is logged.
    unclaimed: u64,
    /// Device interrupts routed so far.
    pub interrupts: u64,
}

/// What a board is made of that its maker chooses.
pub struct Parts {
    pub wiring: Wiring,
    pub ram: Ram,
    pub serial: Vec<Box<dyn undervisor_devices::chardev::CharBackend>>,
    pub debug_console: Box<dyn undervisor_devices::chardev::CharBackend>,
    pub ram_size: u64,
    pub low_ram: u64,
    pub cpus: usize,
    pub epoch: u64,
}

impl Board {
    pub fn new(parts: Parts) -> Board {
        let w = &parts.wiring;
        let mut rtc = Rtc::new(w.line(8), parts.epoch);
        rtc.set_sizes(parts.low_ram, parts.ram_size - parts.low_ram, parts.cpus as u32);
        let serial =
            parts.serial.into_iter().zip(SERIAL_PORTS).map(|(backend, (_, irq))| Uart::new(w.line(irq), backend)).collect();
        let mut board = Board {
            pic: Pic::new(),
            pit: Pit::new(w.line(0)),
            ioapic: IoApic::new(),
            hpet: Hpet::new(w),
            rtc,
            i8042: I8042::new(w.line(1), w.line(12)),
            acpi: AcpiPm::new(w.line(acpi_pm::SCI)),
            fw_cfg: FwCfg::new(Rc::new(parts.ram.clone()), parts.ram_size, parts.cpus as u16),
            serial,
            debug_console: DebugConsole::new(parts.debug_console),
            test_device: TestDevice::new(w),
            pci: PciHost::default(),
            isa_lines: 0,
            pirqs: 0,
            pirq_routes: [None; 8],
            dma_pages: [0; 16],
            port_92: 2,
            reset_control: 0,
            ram: parts.ram,
            low_routing: LowRouting::RAM,
            clock: 0,
            processor: 0,
            limit: NEVER,
            deadline: NEVER,
            intr: false,
            wish: Wish::default(),
            messages: Vec::new(),
            request: None,
            unclaimed: 0,
            interrupts: 0,
            wiring: parts.wiring,
        };
        // Outputs that are up at power-on, and what configuration space says then.
        board.settle();
        board.configured();
        board
    }

    /// In S3: whether something ends the sleep.
    pub fn wakes(&mut self) -> bool {
        let alarm = self.rtc.alarm();
        self.acpi.wakes(alarm)
    }

    /// Platform reset of every device at the end of a sleep.
    pub fn wake(&mut self, now: Time) {
        // What woke it must outlast the reset.
        self.reset_devices();
        self.acpi.wake(now);
        self.reset_done();
    }

    /// Platform reset of every device.
    pub fn reset(&mut self, now: Time) {
        self.reset_devices();
        self.acpi.reset(now);
        self.reset_done();
    }

    fn reset_devices(&mut self) {
        self.pic.reset();
        self.pit.reset();
        self.ioapic.reset();
        self.hpet.reset();
        self.rtc.reset();
        self.i8042.reset();
        self.fw_cfg.reset();
        self.serial.iter_mut().for_each(Uart::reset);
        self.test_device.reset();
        self.pci.reset();
        self.configured();
        (self.port_92, self.reset_control, self.dma_pages) = (2, 0, [0; 16]);
    }

    fn reset_done(&mut self) {
        self.messages.clear();
        self.request = None;
        self.settle();
        self.messages.clear();
    }

    /// Processor `index` is about to run up to `limit`.
    pub fn begin(&mut self, index: usize, limit: Time) {
        self.processor = index;
        self.limit = limit;
        self.wish = Wish::default();
    }

    /// When a device next wants a tick.
    pub fn deadline(&self) -> Time {
        self.deadline
    }
    /// The 8259 pair's INTR line.
    pub fn intr_line(&self) -> bool {
        self.intr
    }
    /// Messages for local APICs, oldest first.
    pub fn take_messages(&mut self) -> Vec<InFlight> {
        std::mem::take(&mut self.messages)
    }
    pub fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }
    /// Accesses that nothing answered.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    /// Virtual time has reached `now`: tick what is due. (An access can come after a deadline and before the run loop.)
    fn advance(&mut self, now: Time) {
        self.clock = self.clock.max(now);
        if self.deadline <= self.clock {
            self.tick(self.clock);
        }
    }

    /// Tick every device that is due at `now`.
    pub fn tick(&mut self, now: Time) {
        self.clock = self.clock.max(now);
        self.tick_devices();
        self.settle();
    }

    fn tick_devices(&mut self) {
        let now = self.clock;
        self.pit.tick(now);
        self.rtc.tick(now);
        self.hpet.tick(now);
        self.acpi.tick(now);
        self.pci.tick(now);
    }

    /// Take in what came from outside the machine.
    pub fn poll(&mut self, now: Time) {
        self.advance(now);
        self.serial.iter_mut().for_each(|s| {
            s.poll();
            s.flush();
        });
        self.debug_console.flush();
        self.pci.poll(self.clock);
        self.settle();
    }

    /// Press the ACPI power button.
    pub fn press_power_button(&mut self) {
        self.acpi.press_power_button();
        self.settle();
    }

    /// Route what devices signalled and work out what follows for the running processor.
    pub fn settle(&mut self) {
        if self.deadline <= self.clock {
            // What falls due now would be forgotten by the new deadline.
            self.tick_devices();
        }
        while !self.wiring.is_empty() {
            for signal in self.wiring.take() {
                self.route(signal);
            }
        }
        for icr in self.ioapic.take_messages() {
            self.interrupts += 1;
            self.messages.push(InFlight { from: None, icr });
        }
        let intr = self.pic.intr();
        if intr != self.intr {
            self.intr = intr;
            self.wish.leave = true;
        }
        match self.acpi.take_power() {
            Some(Power::Off) => self.request = Some(Request::PowerOff),
            Some(Power::Reset) => self.request = Some(Request::Reset),
            Some(Power::Suspend) => self.request = Some(Request::Suspend),
            None => {}
        }
        let now = self.clock;
        self.deadline = self
            .pit
            .deadline(now)
            .min(self.rtc.deadline(now))
            .min(self.hpet.deadline())
            .min(self.acpi.deadline())
            .min(self.pci.deadline());
        if self.deadline < self.limit || !self.messages.is_empty() || self.request.is_some() {
            self.wish.leave = true;
        }
    }

    fn route(&mut self, signal: Signal) {
        match signal {
            Signal::Pin { pin, level } => {
                if pin < 16 {
                    self.isa_lines = self.isa_lines & !(1 << pin) | u16::from(level) << pin;
                    self.drive_8259(pin);
                } else {
                    let pirq = (pin - 16) as usize % 8;
                    self.pirqs = self.pirqs & !(1 << pirq) | u8::from(level) << pirq;
                    if let Some(irq) = self.pirq_routes[pirq] {
                        self.drive_8259(irq);
                    }
                }
                // ISA IRQ 0 is wired to I/O APIC input 2 (the MADT says so).
                self.ioapic.set_pin(if pin == 0 { 2 } else { pin }, level);
            }
            Signal::Message { address, data } => self.message(address, data),
        }
    }

    /// An input of the 8259s: the ISA line and the PCI interrupt requests routed to it.
    fn drive_8259(&mut self, irq: u8) {
        let routed = (0..8).any(|i| self.pirqs >> i & 1 != 0 && self.pirq_routes[i] == Some(irq));
        self.pic.set_irq(irq, routed || self.isa_lines >> irq & 1 != 0);
    }

    /// What processors see between 640 KiB and 1 MiB, as the host bridge says now.
    pub fn low_routing(&self) -> LowRouting {
        self.low_routing
    }

    /// Whether the A20 gate is open. Port 92H and the keyboard controller move the same one, as later chipsets have it: the last to
    /// write decides.
    pub fn a20(&self) -> bool {
        self.port_92 & 2 != 0
    }

    fn set_a20(&mut self, open: bool) {
        self.port_92 = self.port_92 & !2 | u8::from(open) << 1;
        self.i8042.set_a20(open);
        // What follows must be seen before the next instruction.
        self.wish.leave = true;
    }

    /// Everything from 768 KiB to 1 MiB is RAM, as firmware leaves it.
    pub fn shadow(&mut self) {
        self.pci.shadow();
        self.configured();
    }

    /// Configuration space was written: the guest may have routed PCI interrupt requests or low memory elsewhere.
    fn configured(&mut self) {
        let low = self.pci.low_routing();
        if self.low_routing != low {
            self.low_routing = low;
            self.wish.leave = true;
        }
        let now = self.pci.pirq_routes();
        let before = std::mem::replace(&mut self.pirq_routes, now);
        if before != now {
            before.into_iter().chain(now).flatten().for_each(|irq| self.drive_8259(irq));
        }
    }

    /// An interrupt message as a write to memory, turned into ICR layout.
    fn message(&mut self, address: u64, data: u32) {
        self.interrupts += 1;
        let destination = match address >> 12 & 0xff {
            0xff => u32::MAX as u64,
            d => d,
        };
        let logical = (address >> 2 & 1) << 11;
        let icr = destination << 32 | logical | (data & 0x87ff) as u64 | 1 << 14;
        self.messages.push(InFlight { from: None, icr });
    }

    fn legacy_routing_changed(&mut self) {
        let taken = self.hpet.legacy_replacement();
        self.pit.disconnect(self.clock, taken);
        self.rtc.disconnect(taken);
    }

    fn effects(&mut self, effects: Effects) {
        if effects.reset {
            self.request = Some(Request::Reset);
        }
        if let Some(on) = effects.a20 {
            self.set_a20(on);
        }
    }

    #[cold]
    fn nothing_there(&mut self, what: &str, address: u64, size: usize) {
        self.unclaimed += 1;
        if self.unclaimed == 1 {
            log::debug!("first access that nothing answers: {what} {address:#x}, {size} bytes; later ones are only counted");
        }
    }

    fn uart_at(port: u16) -> Option<(usize, u16)> {
        SERIAL_PORTS.iter().position(|(base, _)| port & !7 == *base).map(|i| (i, port & 7))
    }

    /// Byte-wide devices.
    fn read_byte(&mut self, port: u16) -> Option<u8> {
        let now = self.clock;
        Some(match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pic.read(port),
            0x40..=0x43 => self.pit.read(now, port),
            0x60 | 0x64 => self.i8042.read(port),
            0x61 => self.pit.read_speaker(now),
            0x70 | 0x71 => self.rtc.read(now, port),
            // 8237 channels and page registers: present, idle.
            0x00..=0x1f | 0xc0..=0xdf => 0,
            0x80..=0x8f => self.dma_pages[port as usize & 15],
            0x92 => self.port_92,
            0xb2 | 0xb3 => self.acpi.read_smi(port),
            DebugConsole::PORT | DebugConsole::FIRMWARE_PORT => self.debug_console.read(),
            0x4d0 | 0x4d1 => self.pic.read_elcr(port),
            0xcf9 => self.reset_control,
            DEBUG_EXIT_PORT => 0,
            _ => {
                let (n, register) = Self::uart_at(port)?;
                self.serial.get_mut(n)?.read(register)
            }
        })
    }

    fn write_byte(&mut self, port: u16, value: u8) -> Option<()> {
        let now = self.clock;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pic.write(port, value),
            0x40..=0x43 => self.pit.write(now, port, value),
            0x60 | 0x64 => {
                let effects = self.i8042.write(port, value);
                self.effects(effects);
            }
            0x61 => self.pit.write_speaker(now, value),
            0x70 | 0x71 => self.rtc.write(now, port, value),
            0x00..=0x1f | 0xc0..=0xdf => {}
            0x80..=0x8f => self.dma_pages[port as usize & 15] = value,
            0x92 => {
                self.port_92 = value & !1;
                self.set_a20(value & 2 != 0);
                if value & 1 != 0 {
                    self.request = Some(Request::Reset);
                }
            }
            0xb2 | 0xb3 => self.acpi.write_smi(port, value),
            DebugConsole::PORT | DebugConsole::FIRMWARE_PORT => self.debug_console.write(value),
            0x4d0 | 0x4d1 => self.pic.write_elcr(port, value),
            0xcf9 => {
                self.reset_control = value & 0xe;
                // RST_CPU with SYS_RST or without: the whole platform.
                if value & 4 != 0 {
                    self.request = Some(Request::Reset);
                }
            }
            _ => {
                let (n, register) = Self::uart_at(port)?;
                self.serial.get_mut(n)?.write(register, value);
            }
        }
        Some(())
    }

    fn read_port(&mut self, port: u16, size: usize) -> u32 {
        const PM_END: u16 = acpi_pm::BASE + acpi_pm::PORTS;
        match port {
            0xe0..=0xe3 => self.test_device.read(port, size),
            fw_cfg::PORT..=0x51b => self.fw_cfg.read(port, size),
            acpi_pm::BASE..PM_END => self.acpi.read(self.clock, port - acpi_pm::BASE, size),
            0xcf8 | 0xcfc..=0xcff => self.pci.port_read(self.clock, port, size).unwrap_or(u32::MAX),
            _ => {
                if let Some(value) = self.pci.port_read(self.clock, port, size) {
                    return value;
                }
                let mut value = 0;
                for i in 0..size as u16 {
                    let byte = self.read_byte(port.wrapping_add(i)).unwrap_or_else(|| {
                        self.nothing_there("read of port", port as u64, size);
                        0xff
                    });
                    value |= (byte as u32) << (8 * i);
                }
                value
            }
        }
    }

    fn write_port(&mut self, port: u16, size: usize, value: u32) {
        const PM_END: u16 = acpi_pm::BASE + acpi_pm::PORTS;
        match port {
            0xe0..=0xe3 => self.test_device.write(port, size, value),
            // pc-testdev's page flush.
            0xe4 => {}
            0x2000..=0x2017 => self.test_device.write_line(port, value),
            DEBUG_EXIT_PORT => self.request = Some(Request::DebugExit(value)),
            fw_cfg::PORT..=0x51b => self.fw_cfg.write(port, size, value),
            acpi_pm::BASE..PM_END => self.acpi.write(self.clock, port - acpi_pm::BASE, size, value),
            _ => {
                if self.pci.port_write(self.clock, port, size, value) {
                    self.configured();
                    return;
                }
                for i in 0..size as u16 {
                    if self.write_byte(port.wrapping_add(i), (value >> (8 * i)) as u8).is_none() {
                        self.nothing_there("write of port", port as u64, size);
                    }
                }
            }
        }
    }
}

impl Bus for Board {
    fn mmio_read(&mut self, now: u64, address: u64, size: usize) -> u64 {
        self.advance(now);
        const IOAPIC_END: u64 = ioapic::BASE + ioapic::SIZE;
        const HPET_END: u64 = hpet::BASE + hpet::SIZE;
        const TEST_END: u64 = TestDevice::MMIO_BASE + TestDevice::MMIO_SIZE;
        let value = match address {
            ioapic::BASE..IOAPIC_END => self.ioapic.read(address - ioapic::BASE, size),
            hpet::BASE..HPET_END => self.hpet.read(self.clock, address - hpet::BASE, size),
            LOW_START..LOW_END => self.ram.read_routed(address, size),
            _ => match self.pci.mmio_read(self.clock, address, size) {
                Some(value) => value,
                None if (TestDevice::MMIO_BASE..TEST_END).contains(&address) => {
                    self.test_device.mmio_read(address - TestDevice::MMIO_BASE, size)
                }
                None => {
                    self.nothing_there("read of memory", address, size);
                    u64::MAX >> (64 - 8 * size.clamp(1, 8))
                }
            },
        };
        self.settle();
        value
    }

    fn mmio_write(&mut self, now: u64, address: u64, size: usize, value: u64) {
        self.advance(now);
        const IOAPIC_END: u64 = ioapic::BASE + ioapic::SIZE;
        const HPET_END: u64 = hpet::BASE + hpet::SIZE;
        const TEST_END: u64 = TestDevice::MMIO_BASE + TestDevice::MMIO_SIZE;
        match address {
            ioapic::BASE..IOAPIC_END => self.ioapic.write(address - ioapic::BASE, size, value),
            hpet::BASE..HPET_END => {
                self.hpet.write(self.clock, address - hpet::BASE, size, value);
                self.legacy_routing_changed();
            }
            LOW_START..LOW_END => self.ram.write_routed(address, size, value),
            _ if MESSAGE_RANGE.contains(&address) => self.message(address, value as u32),
            _ => {
                if self.pci.mmio_write(self.clock, address, size, value) {
                    if is_ecam(address) {
                        self.configured();
                    }
                } else if (TestDevice::MMIO_BASE..TEST_END).contains(&address) {
                    self.test_device.mmio_write(address - TestDevice::MMIO_BASE, size, value);
                } else {
                    self.nothing_there("write of memory", address, size);
                }
            }
        }
        self.settle();
    }

    fn port_read(&mut self, now: u64, port: u16, size: usize) -> u32 {
        self.advance(now);
        let value = self.read_port(port, size);
        self.settle();
        value
    }

    fn port_write(&mut self, now: u64, port: u16, size: usize, value: u32) {
        self.advance(now);
        self.write_port(port, size, value);
        self.settle();
    }

    fn acknowledge_interrupt(&mut self, now: u64) -> u8 {
        self.advance(now);
        self.interrupts += 1;
        let vector = self.pic.acknowledge();
        self.settle();
        vector
    }

    fn intr(&self) -> bool {
        self.intr
    }

    fn send_ipi(&mut self, from: usize, icr: u64) {
        self.messages.push(InFlight { from: Some(from), icr });
        self.wish.leave = true;
    }

    fn eoi(&mut self, vector: u8) {
        self.ioapic.eoi(vector);
        self.settle();
    }

    fn take_wish(&mut self) -> Wish {
        std::mem::take(&mut self.wish)
    }
}
