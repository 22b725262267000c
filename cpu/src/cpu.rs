//! The processor as the interpreter sees it: architectural state plus what speeds up or drives execution.

use std::cell::UnsafeCell;
use std::rc::Rc;

use undervisor_core::{CpuState, Exception, Feature, Model, SegReg};
use undervisor_mmu::{AddressSpaces, Bus, GuestMemory, MemoryError, NullBus, PAGE_SIZE, Tlb, TlbEntry};

use crate::apic::LocalApic;
use crate::cache::{CodeCache, JumpCache};
use crate::op::Op;

/// Why an instruction did not complete. The payload is in the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// `Cpu::exception` is to be delivered; the instruction had no effect (faults) or is complete (traps set RIP themselves).
    Exception,
    /// A VM exit took place: the state is already the host's. Nothing more is to be done for the instruction.
    Exit,
    /// Start over at the current RIP without an event (REP interruption point, a cache that had to be emptied).
    Again,
}

/// Outcome of anything that may fault or exit.
pub type Exec<T = ()> = Result<T, Stop>;

/// What all processors of a machine share. One thread runs them in turn.
pub struct Shared {
    pub memory: GuestMemory,
    code: UnsafeCell<CodeCache>,
}

impl Shared {
    pub fn new(memory: GuestMemory) -> Rc<Shared> {
        let code = UnsafeCell::new(CodeCache::new(memory.page_count()));
        Rc::new(Shared { memory, code })
    }

    /// Copy bytes into guest RAM on behalf of anything but a processor (a device, a loader, a test): code decoded from there is forgotten.
    pub fn write_bytes(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.memory.write_bytes(address, data)?;
        let mut at = address;
        let mut left = data.len();
        while left > 0 {
            let offset = (at % PAGE_SIZE) as usize;
            let n = left.min(PAGE_SIZE as usize - offset);
            if let Some(page) = self.memory.page_index(at) {
                self.code().written(page, offset, n);
            }
            at += n as u64;
            left -= n;
        }
        Ok(())
    }

    /// The op cache.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    #[inline(always)]
    pub fn code(&self) -> &mut CodeCache {
        // SAFETY: `Shared` is neither Send nor Sync (it holds an UnsafeCell behind Rc), and no `CodeCache` method runs guest
        // code or calls back into a processor, so no two of these borrows are in use at once.
        unsafe { &mut *self.code.get() }
    }
}

/// Reasons for the run loop to look before the next block. Zero on the fast path.
pub mod attention {
    /// An interrupt, NMI, INIT, SIPI or SMI may be deliverable: consult the APIC and the bus.
    pub const INTERRUPT: u32 = 1 << 0;
    /// Blocking by STI/MOV SS is in force for one instruction.
    pub const SHADOW: u32 = 1 << 1;
    /// RFLAGS.TF, or enabled code breakpoints, or a pending debug exception: one instruction at a time.
    pub const DEBUG: u32 = 1 << 2;
    /// Not in the active state (HLT, shutdown, wait-for-SIPI, MWAIT).
    pub const INACTIVE: u32 = 1 << 3;
    /// The machine or the user wants control.
    pub const STOP: u32 = 1 << 4;
    /// VMX/SVM conditions to check at the boundary (windows, timers, MTF, pending virtual interrupts).
    pub const VIRT: u32 = 1 << 5;
    /// A fault of a task just switched to is due.
    pub const FAULT: u32 = 1 << 6;
    /// Something that an outside debugger waits for has happened.
    pub const DEBUGGER: u32 = 1 << 7;
}

/// Counters that `--stats` prints.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Virtual time that passed without this processor (halted, or another one's turn).
    pub waited: u64,
    /// The part of it in which an instruction was in flight, as [`Cpu::linger`] says.
    pub paused: u64,
    /// The part of it that events without end cost, one for each that no instruction follows.
    pub fruitless: u64,
    /// Virtual time that iterations of string instructions took, beyond one unit an instruction.
    pub repeated: u64,
    pub tlb_misses: u64,
    pub blocks_decoded: u64,
    pub blocks_invalidated: u64,
    pub jump_cache_misses: u64,
    pub interrupts: u64,
    pub exceptions: u64,
    pub slow_loads: u64,
    pub slow_stores: u64,
    /// Chains ended early before a given op.
    pub early_stops: u64,
    pub space_flushes: u64,
    pub vm_entries: u64,
    pub vm_exits: u64,
    /// Page walks with a second level of translation under them.
    pub nested_walks: u64,
}

/// A logical processor.
#[repr(C)]
pub struct Cpu {
    pub state: CpuState,
    /// Instructions that may still retire before the run loop must look, less `cache::MAX_BLOCK`; see `run`.
    pub budget: i64,
    /// Current space id, in the low 12 bits; see `undervisor_mmu::tlb`.
    pub space: u64,
    /// First entry of the TLB bank for the current privilege. Invariant: points into `tlb`.
    pub(crate) bank: *mut TlbEntry,
    /// What a jump-cache entry must carry to be used now: space, privilege and decode mode.
    pub fetch_tag: u64,
    pub(crate) jumps: JumpCache,
    /// The exception behind `Stop::Exception`.
    pub exception: Exception,
    /// Op whose slow path is running: gives the exact instruction count and RIP in the middle of a block.
    pub(crate) current: *const Op,
    /// The general form of `current`, if that is what runs. Valid while `current` is.
    pub(crate) current_slow: *const crate::cache::Slow,
    /// `attention` bits.
    pub attention: u32,
    /// Decode mode of the current code segment; see `decode::Mode`.
    pub mode: crate::decode::Mode,
    /// Bank number: 0–2 by privilege, +3 in a guest of this processor's VMX or SVM.
    pub bank_index: usize,
    pub tlb: Tlb,
    pub spaces: AddressSpaces,
    pub translations: crate::paging::Translations,
    pub shared: Rc<Shared>,
    /// Instructions retired when `budget` reads −MAX_BLOCK: `now = limit − (budget + MAX_BLOCK)`.
    pub(crate) limit: u64,
    /// The rest of the computer. Valid only inside `run`; a `NullBus` otherwise. Invariant: see `Cpu::bus`.
    bus: *mut dyn Bus,
    null_bus: Box<NullBus>,
    /// RIP of the instruction in flight, for block-ending slow handlers, whose `state.rip()` is already the next one's.
    pub instruction_rip: u64,
    /// Op whose handler was replaced by `stop_before`, with the handler to put back.
    pub(crate) patched: Option<(crate::op::OpRef, crate::op::Handler)>,
    /// Execute the next instruction in its general form; see `access::Way::general`.
    pub(crate) general_once: bool,
    /// How the last chain ended.
    pub(crate) outcome: Exec,
    /// How many new code pages this processor's TLB has heard of.
    pub(crate) seen_code_pages: u64,
    pub counters: Counters,
    pub apic: LocalApic,
    /// Other processors run on this thread: a spinning one should give up its turn.
    pub crowded: bool,
    /// Events delivered in a row that left nothing else a chance to be taken between them.
    pub(crate) windowless: u32,
    /// PAUSEs since the last turn given up.
    pub spins: u32,
    /// State of the generator behind RDRAND and RDSEED.
    pub random: u64,
    pub virt: crate::virt::Virt,
    /// NMI, INIT, SIPI and SMI that wait.
    pub signals: crate::signal::Signals,
    /// What the instruction in flight notes for the boundary after it.
    pub notes: crate::boundary::Notes,
    pub breakpoints: crate::debug::Breakpoints,
    pub monitor: crate::monitor::Monitor,
    pub performance: crate::performance::Monitor,
    pub debugger: crate::debugger::Debugger,
    /// Processors in the computer, for CPUID's topology leaves.
    pub processors: u32,
    pub model: Rc<Model>,
    /// What the observer wants to see, `observe::want` bits; 0: nobody watches.
    pub observing: u32,
    pub observer: Option<crate::observe::SharedObserver>,
    /// APIC number, 0 = boot processor.
    pub id: usize,
}

impl Cpu {
    pub fn new(id: usize, shared: Rc<Shared>, model: Rc<Model>) -> Box<Cpu> {
        let mut null_bus = Box::new(NullBus);
        let bus: *mut dyn Bus = &mut *null_bus;
        let mut cpu = Box::new(Cpu {
            state: CpuState::new(),
            // Time 0: see `limit`.
            budget: -(crate::cache::MAX_BLOCK as i64),
            space: 1,
            bank: std::ptr::null_mut(),
            fetch_tag: 0,
            jumps: JumpCache::default(),
            exception: Exception::UD,
            current: std::ptr::null(),
            current_slow: std::ptr::null(),
            attention: 0,
            mode: Default::default(),
            bank_index: 1,
            tlb: Tlb::default(),
            spaces: AddressSpaces::default(),
            translations: Default::default(),
            shared,
            limit: 0,
            bus,
            null_bus,
            instruction_rip: 0,
            patched: None,
            general_once: false,
            outcome: Ok(()),
            seen_code_pages: 0,
            counters: Counters::default(),
            apic: LocalApic::new(id as u32),
            crowded: false,
            windowless: 0,
            spins: 0,
            random: id as u64,
            virt: Default::default(),
            signals: Default::default(),
            notes: Default::default(),
            breakpoints: Default::default(),
            monitor: Default::default(),
            performance: Default::default(),
            debugger: Default::default(),
            processors: 1,
            model,
            observing: 0,
            observer: None,
            id,
        });
        cpu.apic.has_x2apic = cpu.model.has(Feature::X2APIC);
        cpu.apic.has_tsc_deadline = cpu.model.has(Feature::TSC_DEADLINE);
        cpu.reset_model_state();
        cpu.mode_changed();
        cpu
    }

    /// The rest of the computer.
    #[allow(unsafe_code)]
    #[inline]
    pub fn bus(&mut self) -> &mut dyn Bus {
        // SAFETY: `bus` points at `null_bus`, or, inside `with_bus`, at the caller's exclusive borrow.
        unsafe { &mut *self.bus }
    }

    /// Run `f` with `bus` attached.
    #[allow(unsafe_code)]
    pub(crate) fn with_bus<R>(&mut self, bus: &mut dyn Bus, f: impl FnOnce(&mut Cpu) -> R) -> R {
        // SAFETY: only the lifetime is erased; the pointer is replaced before this function returns. (A panic in `f` leaves
        // it dangling, but the processor is then behind the unwinding `&mut` and the release profile aborts.)
        self.bus = unsafe { std::mem::transmute::<&mut dyn Bus, &'static mut dyn Bus>(bus) };
        let result = f(self);
        self.bus = &mut *self.null_bus;
        result
    }

    /// Virtual time of this processor: instructions retired before the one in flight.
    #[allow(unsafe_code)]
    pub fn now(&self) -> u64 {
        let boundary = (self.limit as i64).wrapping_sub(self.budget + crate::cache::MAX_BLOCK as i64) as u64;
        if self.current.is_null() {
            boundary
        } else {
            // SAFETY: `current` is set only while its block is alive (invariant of `OpRef`).
            boundary + unsafe { (*self.current).index as u64 }
        }
    }

    /// Raise an exception: `return Err(cpu.raise(..))` or `cpu.fault(..)?`.
    #[cold]
    #[inline(never)]
    pub fn raise(&mut self, exception: Exception) -> Stop {
        self.exception = exception;
        Stop::Exception
    }
    #[cold]
    pub fn ud(&mut self) -> Stop {
        self.raise(Exception::UD)
    }
    /// #GP(code).
    #[cold]
    pub fn gp(&mut self, code: u32) -> Stop {
        self.raise(Exception::with_code(undervisor_core::Vector::GP, code))
    }
    /// #SS(0) for the stack segment, #GP(0) for any other.
    #[cold]
    pub fn segment_fault(&mut self, seg: SegReg) -> Stop {
        self.raise(if seg == SegReg::Ss { Exception::SS0 } else { Exception::GP0 })
    }

    /// Pass on what an access asked of this processor: call after every access to the bus, once its result is in hand.
    #[inline]
    pub fn bus_accessed(&mut self) {
        let wish = self.bus().take_wish();
        let mut bits = 0;
        if wish.interrupt {
            bits |= attention::INTERRUPT;
        }
        if wish.leave {
            bits |= attention::STOP;
        }
        if bits != 0 {
            self.attend(bits);
        }
    }

    /// Let virtual time pass without this processor retiring anything: it was halted, or another one had its turn. Only
    /// between runs. Does nothing if `now` is not in the future.
    pub fn advance_to(&mut self, now: u64) {
        let before = self.now();
        if now > before {
            self.counters.waited += now - before;
            self.limit = now;
            self.budget = -(crate::cache::MAX_BLOCK as i64);
        }
    }

    /// The instruction in flight takes so much virtual time besides its own unit.
    pub(crate) fn linger(&mut self, time: u64) {
        self.budget -= time as i64;
        self.counters.waited += time;
        self.counters.paused += time;
    }

    /// Instructions this processor has retired.
    pub fn retired(&self) -> u64 {
        self.now() - self.counters.waited
    }

    /// Ask the run loop to look at `bits` (of [`attention`]) before the next block.
    #[inline]
    pub fn attend(&mut self, bits: u32) {
        self.attention |= bits;
        // Make the running block the chain's last.
        if self.budget > 0 {
            self.limit -= self.budget as u64;
            self.budget = 0;
        }
    }
}
