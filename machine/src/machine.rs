//! The computer: processors, memory, devices, and the clock that drives them.
//!
//! There is one virtual clock: nanoseconds, one a retired instruction of whichever processor runs. Processors run one after the
//! other on the host's thread, a quantum each; when all wait, time jumps to the next event. So everything a guest can observe
//! follows from its inputs alone.

use std::rc::Rc;

use undervisor_core::{Activity, Feature, Model, Rflags, SegReg};
use undervisor_cpu::apic::message::lowest_priority;
use undervisor_cpu::apic::{DeliveryMode, Message, Shorthand};
use undervisor_cpu::run::RunExit;
use undervisor_cpu::{Cpu, Shared};
use undervisor_devices::chardev::{CharBackend, NullBackend};
use undervisor_devices::pci::{Attachment, Bdf, PciDevice};
use undervisor_devices::{Time, Wiring};
use undervisor_mmu::GuestMemory;

use crate::board::{Board, InFlight, Parts, Request};
use crate::config::{Boot, MAX_CPUS, MachineConfig};
use crate::error::MachineError;
use crate::host::{Host, Idle};
use crate::load;
use crate::memory::{LOW_RAM_LIMIT, Ram};
use crate::stop::StopReason;

/// Instructions between two looks at the host.
const POLL_INTERVAL: u64 = 1 << 22;
/// First PCI slot for plugged devices; 0 is the host bridge.
const FIRST_SLOT: usize = 1;
/// Slots on bus 0 below the chipset's own at 1f.
const LAST_SLOT: usize = 0x1e;

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Instructions retired, all processors.
    pub instructions: u64,
    /// Virtual nanoseconds since power-on.
    pub time: Time,
    /// Virtual nanoseconds for which every processor waited.
    pub idle: u64,
    /// Device interrupts routed.
    pub device_interrupts: u64,
}

/// A computer.
pub struct Machine {
    cpus: Vec<Box<Cpu>>,
    board: Board,
    shared: Rc<Shared>,
    ram: Ram,
    boot: Boot,
    cpu_model: Rc<Model>,
    clock: Time,
    instructions: u64,
    /// What counts against the limit on instructions besides those retired: the time that faults without end cost.
    fruitless: u64,
    idle: u64,
    instruction_limit: Option<u64>,
    quantum: u64,
    reboot: bool,
    next_poll: Time,
    /// Processor whose turn it is.
    turn: usize,
    /// Processors that had nothing to do when last asked and that nothing has addressed since.
    waiting: Vec<bool>,
    next_slot: usize,
    /// Slices that the debugger or an interruption cut short, the latest last: the processor and the slice's end.
    cut: Vec<(usize, Time)>,
    /// The debugger lets no other processor run.
    alone: Option<usize>,
    /// In S3: nothing runs until the board wakes it.
    asleep: bool,
    /// The A20 gate as the processors know it.
    a20: bool,
}

impl Machine {
    pub(crate) fn new(config: MachineConfig) -> Result<Machine, MachineError> {
        if config.cpus == 0 || config.cpus > MAX_CPUS {
            return Err(MachineError::BadCpuCount(config.cpus));
        }
        if config.memory < 1 << 20 || !config.memory.is_multiple_of(4096) {
            return Err(MachineError::BadMemory(config.memory));
        }
        if let Some(host) = crate::platform::host_memory()
            && config.memory > host
        {
            return Err(MachineError::MoreThanHost { asked: config.memory, host });
        }
        let rom = match &config.boot {
            Boot::Firmware(image) => Some(load::firmware::check(image)?),
            _ => None,
        };
        let roms: Vec<(u64, &[u8])> = rom.iter().map(|r| (r.start, r.data)).collect();
        let memory = GuestMemory::new(config.memory, LOW_RAM_LIMIT, &roms)?;
        let low_ram = memory.low_size();
        let shared = Shared::new(memory);
        let ram = Ram::new(shared.clone());
        let cpu_model = Rc::new(config.model);
        let debug_console = config.debug_console.unwrap_or_else(|| Box::new(NullBackend));
        let serial: Vec<Box<dyn CharBackend>> = config.serial;
        let mut board = Board::new(Parts {
            wiring: Wiring::new(),
            ram: ram.clone(),
            serial,
            debug_console,
            ram_size: config.memory,
            low_ram,
            cpus: config.cpus,
            epoch: config.epoch,
        });
        if cpu_model.has(Feature::VMX) {
            // Firmware writes this into IA32_FEATURE_CONTROL of every processor.
            board.fw_cfg.add_file("etc/msr_feature_control", load::FEATURE_CONTROL.to_le_bytes().to_vec());
        }
        for (name, data) in config.files {
            board.fw_cfg.add_file(&name, data);
        }
        let mut cpus: Vec<_> = (0..config.cpus).map(|i| Cpu::new(i, shared.clone(), cpu_model.clone())).collect();
        cpus.iter_mut().for_each(|cpu| cpu.processors = config.cpus as u32);
        let mut machine = Machine {
            cpus,
            board,
            shared,
            ram,
            boot: config.boot,
            cpu_model,
            clock: 0,
            instructions: 0,
            fruitless: 0,
            idle: 0,
            instruction_limit: config.instruction_limit,
            quantum: config.quantum,
            reboot: config.reboot,
            next_poll: POLL_INTERVAL,
            turn: 0,
            waiting: vec![false; config.cpus],
            next_slot: FIRST_SLOT,
            cut: Vec::new(),
            alone: None,
            asleep: false,
            a20: true,
        };
        let most = LAST_SLOT + 1 - FIRST_SLOT;
        if config.pci.len() > most {
            return Err(MachineError::TooManyDevices { count: config.pci.len(), most });
        }
        for device in config.pci {
            machine.add_pci_device(device)?;
        }
        machine.start()?;
        Ok(machine)
    }

    /// Plug a PCI function into the next free slot of bus 0. Guests look for functions when they boot, so do it before running.
    pub fn add_pci_device(&mut self, device: Box<dyn PciDevice>) -> Result<Bdf, MachineError> {
        let slot = self.next_slot;
        if slot > LAST_SLOT {
            return Err(MachineError::TooManyDevices { count: slot, most: LAST_SLOT + 1 - FIRST_SLOT });
        }
        self.next_slot += 1;
        Ok(self.plug(device, slot, 0))
    }

    fn plug(&mut self, device: Box<dyn PciDevice>, slot: usize, function: u8) -> Bdf {
        let address = Bdf { bus: 0, device: slot as u8, function };
        let attachment = Attachment {
            address,
            intx: self.board.wiring.line(crate::memory::intx_pin(slot as u8, 0)),
            messages: self.board.wiring.messages(),
            memory: Rc::new(self.ram.clone()),
        };
        self.board.pci.plug(device, attachment);
        address
    }

    /// Put what is to be booted into memory and the processors at its entry.
    fn start(&mut self) -> Result<(), MachineError> {
        self.become_firmware();
        if !matches!(self.boot, Boot::Firmware(_)) {
            self.board.shadow();
        }
        self.rearrange();
        let tables = crate::acpi::Tables { cpus: self.cpus.len(), serial: !self.board.serial.is_empty() };
        let rsdp = match self.boot {
            Boot::Nothing | Boot::Firmware(_) => 0,
            Boot::Kernel(_) => {
                crate::smbios::write(&self.ram, self.shared.memory.ram_size(), self.cpus.len());
                crate::mp_table::write(&self.ram, self.cpus.len(), &self.cpu_model);
                crate::acpi::write(&self.ram, &tables)
            }
        };
        let entry = load::load(&self.boot, &self.ram, rsdp)?;
        if load::follows_bios(&self.boot) {
            load::bios_interrupts(&mut self.board, self.clock);
        }
        entry.apply(&mut self.cpus[0]);
        Ok(())
    }

    /// Platform reset: processors and devices start over, and what is booted is loaded again. Memory keeps its contents.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.board.reset(self.clock);
        self.reset_processors();
        self.start()
    }

    fn reset_processors(&mut self) {
        for (i, slot) in self.cpus.iter_mut().enumerate() {
            let mut cpu = Cpu::new(i, self.shared.clone(), self.cpu_model.clone());
            cpu.processors = slot.processors;
            cpu.debugger = std::mem::take(&mut slot.debugger);
            cpu.advance_to(self.clock);
            cpu.observe(slot.observer.clone());
            // What the old one retired is already counted in `instructions`.
            *slot = cpu;
        }
        self.waiting.fill(false);
        self.cut.clear();
        self.turn = 0;
    }

    /// The end of S3: processors and devices start over, memory is as it was, and the boot processor goes where the firmware
    /// waking vector says (ACPI Specification, Firmware ACPI Control Structure).
    fn resume(&mut self) {
        self.asleep = false;
        self.board.wake(self.clock);
        self.reset_processors();
        self.become_firmware();
        self.board.shadow();
        self.rearrange();
        let vector = crate::acpi::waking_vector(&self.ram);
        load::Entry::resumed(vector).apply(&mut self.cpus[0]);
    }

    /// The processors as firmware leaves them.
    fn become_firmware(&mut self) {
        for cpu in self.cpus.iter_mut().skip(1) {
            cpu.state.activity = Activity::WaitForSipi;
            cpu.attend(undervisor_cpu::cpu::attention::INACTIVE);
        }
        if matches!(self.boot, Boot::Kernel(_)) {
            self.cpus.iter_mut().for_each(|cpu| load::firmware_state(cpu));
        }
    }

    /// Run until something ends it.
    pub fn run(&mut self, host: &mut dyn Host) -> StopReason {
        loop {
            if let Some(reason) = self.advance(host) {
                self.board.poll(self.clock);
                return reason;
            }
        }
    }

    /// Run until virtual time `time` at least, or until something ends the run (then the reason).
    pub fn run_until(&mut self, time: Time, host: &mut dyn Host) -> Option<StopReason> {
        while self.clock < time {
            let reason = self.advance_by(time, host);
            if reason.is_some() {
                return reason;
            }
        }
        None
    }

    fn advance(&mut self, host: &mut dyn Host) -> Option<StopReason> {
        self.advance_by(Time::MAX, host)
    }

    /// One step of the machine's loop: a slice of one processor, or a jump in time.
    fn advance_by(&mut self, stop: Time, host: &mut dyn Host) -> Option<StopReason> {
        if let Some(at) = self.cut.iter().rposition(|&(index, _)| self.alone.is_none_or(|a| a == index)) {
            let (index, limit) = self.cut.remove(at);
            return self.slice(index, limit, stop);
        }
        if let Some(request) = self.board.take_request() {
            match request {
                Request::PowerOff => return Some(StopReason::PowerOff),
                Request::DebugExit(value) => return Some(StopReason::DebugExit(value)),
                // Firmware of one's own would have to resume; there is nobody else to.
                Request::Suspend => self.asleep = matches!(self.boot, Boot::Kernel(_)),
                Request::Reset if !self.reboot => return Some(StopReason::Reset),
                Request::Reset => {
                    // It loaded once, so it loads again.
                    if self.reset().is_err() {
                        return Some(StopReason::Reset);
                    }
                }
            }
        }
        if self.clock >= self.next_poll {
            // At the same times however the way there was cut into pieces.
            self.next_poll = (self.clock / POLL_INTERVAL + 1) * POLL_INTERVAL;
            self.board.poll(self.clock);
            if !host.poll(&self.progress()) {
                return Some(StopReason::Host);
            }
        }
        if self.board.deadline() <= self.clock {
            self.board.tick(self.clock);
        }
        if self.asleep {
            return self.sleep(stop, host);
        }
        self.deliver();
        let mut limit = self.board.deadline().max(self.clock + 1).min(self.next_poll);
        if let Some(most) = self.instruction_limit {
            let left = most.saturating_sub(self.instructions + self.fruitless);
            if left == 0 {
                return Some(StopReason::InstructionLimit(most));
            }
            limit = limit.min(self.clock + left);
        }
        for (cpu, waiting) in self.cpus.iter().zip(&mut self.waiting) {
            let timer = cpu.next_deadline();
            // A store by another processor or a device may have ended an MWAIT.
            let stored = *waiting && cpu.stored_to();
            if timer <= self.clock || stored {
                *waiting = false;
            } else {
                limit = limit.min(timer);
            }
        }
        match self.next_processor() {
            Some(index) => {
                if self.cpus.len() > 1 {
                    limit = limit.min(self.clock + self.quantum);
                }
                self.slice(index, limit, stop)
            }
            None => self.wait(stop, host),
        }
    }

    /// The next processor in turn that may have something to do.
    fn next_processor(&mut self) -> Option<usize> {
        let n = self.cpus.len();
        (0..n).map(|i| (self.turn + i) % n).find(|&i| !self.waiting[i] && self.alone.is_none_or(|a| a == i))
    }

    /// Let a processor run up to `limit`; from `stop` on it is interrupted, and goes on with the rest of its slice another time.
    fn slice(&mut self, index: usize, limit: Time, stop: Time) -> Option<StopReason> {
        self.board.begin(index, limit);
        let crowded = self.waiting.iter().enumerate().any(|(i, waiting)| i != index && !waiting);
        let cpu = &mut self.cpus[index];
        cpu.advance_to(self.clock);
        let (fruitless, before) = (cpu.counters.fruitless, cpu.retired());
        cpu.apic_poll();
        cpu.crowded = crowded;
        let exit = cpu.run_until(&mut self.board, limit, stop);
        self.instructions += cpu.retired() - before;
        self.fruitless += cpu.counters.fruitless - fruitless;
        self.clock = self.clock.max(cpu.now());
        if exit == RunExit::Debugger {
            self.cut.push((index, limit));
            return Some(StopReason::Debugger { cpu: index });
        }
        if exit == RunExit::Paused {
            self.cut.push((index, limit));
            return None;
        }
        self.turn = (index + 1) % self.cpus.len();
        if self.board.low_routing() != self.shared.memory.low_routing() || self.board.a20() != self.a20 {
            self.rearrange();
        }
        match exit {
            RunExit::Limit | RunExit::Paused | RunExit::Stopped | RunExit::Debugger => {}
            RunExit::Idle => self.waiting[index] = true,
            RunExit::Shutdown => {
                let s = &self.cpus[index].state;
                return Some(StopReason::TripleFault { cpu: index, cs: s.segment(SegReg::Cs).selector, rip: s.rip() });
            }
        }
        None
    }

    /// Bring memory and processors up to date with what the chipset says of low memory and the A20 gate.
    fn rearrange(&mut self) {
        let routing = self.board.low_routing();
        if routing != self.shared.memory.low_routing() {
            self.shared.memory.set_low_routing(routing);
            self.shared.code().clear();
            self.cpus.iter_mut().for_each(|cpu| cpu.forget_translations());
        }
        self.a20 = self.board.a20();
        self.cpus.iter_mut().for_each(|cpu| cpu.set_a20(self.a20));
    }

    /// In S3: on to the next event of a device, until one wakes the machine.
    fn sleep(&mut self, stop: Time, host: &mut dyn Host) -> Option<StopReason> {
        if self.board.wakes() {
            self.resume();
            return None;
        }
        let next = self.board.deadline().min(stop);
        self.pass(next, host)
    }

    /// Nothing can run: on to the next event.
    fn wait(&mut self, stop: Time, host: &mut dyn Host) -> Option<StopReason> {
        self.board.poll(self.clock);
        if self.deliver() {
            return None;
        }
        let timers = self.cpus.iter().map(|c| c.next_deadline()).min().unwrap_or(Time::MAX);
        let next = self.board.deadline().min(timers).min(stop);
        // Interrupts cannot wake a processor that has them off, and nothing here sends NMIs unasked.
        if self.cpus.iter().all(|c| deaf(c)) {
            return Some(StopReason::Halted);
        }
        self.pass(next, host)
    }

    /// Let time pass up to `next`, or as the host has it.
    fn pass(&mut self, next: Time, host: &mut dyn Host) -> Option<StopReason> {
        let until = (next != Time::MAX).then(|| next - self.clock);
        let passed = match (host.idle(until), until) {
            (Idle::Stop, _) => return Some(StopReason::Host),
            (Idle::Jump, Some(n)) => n,
            (Idle::Jump, None) => return Some(StopReason::Halted),
            (Idle::Elapsed(n), until) => n.min(until.unwrap_or(u64::MAX)).max(1),
        };
        self.clock += passed;
        self.idle += passed;
        self.board.poll(self.clock);
        None
    }

    /// Hand messages and the 8259's line to the local APICs. Whether anyone was addressed.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        for InFlight { from, icr } in self.board.take_messages() {
            let message = Message::from_icr(icr);
            let addressed =
                |cpu: &Cpu| from.map_or_else(|| cpu.apic.matches(&message), |from| cpu.apic.addressed(&message, from));
            if message.mode == DeliveryMode::LowestPriority {
                let one = lowest_priority(self.cpus.iter().filter(|c| addressed(c)).map(|c| (c.id, &c.apic)));
                if let Some(cpu) = one.and_then(|i| self.cpus.get_mut(i)) {
                    cpu.receive(&message);
                    self.waiting[cpu.id] = false;
                    any = true;
                }
                continue;
            }
            // INIT level de-assert is for the arbitration ids of old.
            if message.mode == DeliveryMode::Init && !message.assert && message.level_triggered {
                continue;
            }
            debug_assert!(from.is_some() || message.shorthand == Shorthand::None);
            for (cpu, waiting) in self.cpus.iter_mut().zip(&mut self.waiting) {
                // The sender has had its share.
                if addressed(cpu) && from != Some(cpu.id) {
                    cpu.receive(&message);
                    *waiting = false;
                    any = true;
                }
            }
        }
        let level = self.board.intr_line();
        if level != self.cpus[0].apic.pins[0] {
            self.cpus[0].apic.set_pin(0, level);
            self.cpus[0].apic_settle();
            self.waiting[0] &= !level;
            any |= level;
        }
        any
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        Progress {
            instructions: self.instructions,
            time: self.clock,
            idle: self.idle,
            device_interrupts: self.board.interrupts,
        }
    }

    /// The processors.
    pub fn cpus(&self) -> &[Box<Cpu>] {
        &self.cpus
    }
    /// The processors, to be changed between runs. Call `mode_changed` on one whose system registers were touched.
    pub fn cpus_mut(&mut self) -> &mut [Box<Cpu>] {
        self.waiting.fill(false);
        &mut self.cpus
    }
    /// A processor, for a debugger to look at, and to change with care; unlike with [`Machine::cpus_mut`] the machine then goes on as
    /// if no one had looked.
    pub fn debugged_cpu(&mut self, index: usize) -> Option<&mut Cpu> {
        self.cpus.get_mut(index).map(|cpu| &mut **cpu)
    }
    /// What a debugger waits for from now on, on every processor: [`Machine::run`] then returns [`StopReason::Debugger`], and the
    /// processor's `debugger.stop` says more. `replant`: see [`undervisor_cpu::debugger::Points::set_code`].
    pub fn set_debug_points(&mut self, points: &Rc<undervisor_cpu::debugger::Points>, replant: bool) {
        if replant {
            self.shared.code().clear();
        }
        self.cpus.iter_mut().for_each(|cpu| cpu.set_debug_points(points));
    }
    /// A debugger lets the machine go on: `step` names a processor that is to stop after one instruction, `alone` one without which
    /// nothing is to run.
    pub fn debug_resume(&mut self, step: Option<usize>, alone: Option<usize>) {
        self.alone = alone;
        for (index, cpu) in self.cpus.iter_mut().enumerate() {
            cpu.debug_resume(step == Some(index));
        }
    }
    /// The devices.
    pub fn board(&self) -> &Board {
        &self.board
    }
    /// The devices, to be changed between runs; call [`Board::settle`] afterwards.
    pub fn board_mut(&mut self) -> &mut Board {
        &mut self.board
    }
    /// Guest memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
    /// Press the ACPI power button.
    pub fn press_power_button(&mut self) {
        self.board.press_power_button();
    }
    /// Have every processor watched by this observer, or by none. Nothing that a guest can observe depends on it.
    pub fn observe(&mut self, observer: Option<undervisor_cpu::observe::SharedObserver>) {
        for cpu in &mut self.cpus {
            cpu.observe(observer.clone());
        }
    }
    /// Set or lift the limit on instructions.
    pub fn set_instruction_limit(&mut self, limit: Option<u64>) {
        self.instruction_limit = limit;
        if let Some(most) = limit {
            // For what is left of slices that were cut short, too.
            let end = self.clock + most.saturating_sub(self.instructions + self.fruitless);
            self.cut.iter_mut().for_each(|(_, limit)| *limit = end.min(*limit));
        }
    }
}

/// Whether nothing that devices send can wake a halted processor.
fn deaf(cpu: &Cpu) -> bool {
    match cpu.state.activity {
        Activity::Active | Activity::Mwait => false,
        Activity::Hlt => !cpu.virt.guest && !cpu.state.flag(Rflags::IF),
        Activity::WaitForSipi | Activity::Shutdown => true,
    }
}
