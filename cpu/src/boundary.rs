//! What happens between instructions: events in priority order, single steps, shadows, waiting
//! (SDM vol. 3, Priority Among Concurrent Events; APM vol. 2, Priorities).
//!
//! None of it is looked at while `Cpu::attention` is zero.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use undervisor_core::{Activity, Dr6, Event, EventKind, Exception, Rflags, Vector, performance};

use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::events::{self, Origin};
use crate::run::RunExit;
use crate::virt::{InitAction, Point};

/// What the boundary check decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    Go,
    /// Run one instruction, then look again.
    Step,
    /// Run one block, then look again.
    Block,
    /// An event was delivered or a VM exit took place: look again at once.
    Again,
    Leave(RunExit),
}

/// Things that instructions and events note for the boundary after them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notes {
    /// A shadow (STI, MOV SS) was begun by this instruction.
    pub shadow_set: bool,
    /// RFLAGS.RF was loaded by this instruction (IRET, task switch) and must survive it.
    pub rf_loaded: bool,
    /// Whether to trap is decided by TF after this instruction, not before (SYSCALL, SYSRET).
    pub late_trap: bool,
    /// An event was delivered in this instruction (INT n, VM entry with injection), or a world switch took place: no
    /// single-step trap after it.
    pub delivered: bool,
    /// The last instruction was a repeated string instruction that is not done yet: RF is set in what an event pushes.
    pub repeating: bool,
    /// Linear address and size of the operand that this instruction locks, if locks are looked at.
    pub locked: Option<(u64, usize)>,
    /// A fault of the task just switched to, or one that is to be delivered before anything else.
    pub deferred: Option<Exception>,
}

/// State before a single step.
pub(crate) struct Before {
    rip: u64,
    now: u64,
    tf: bool,
    rf: bool,
    /// Offset of the instruction after a branch that is about to execute, if someone wants to know whether it is taken
    /// (DEBUGCTL.LBR, BTF).
    branch: Option<u64>,
}

impl Cpu {
    /// The first instruction count at which something of this processor falls due by itself: its APIC timer, a VMX-preemption timer,
    /// the end of a TPAUSE.
    pub fn next_deadline(&self) -> u64 {
        self.apic.next_deadline().min(self.virt_deadline()).min(self.wait_deadline())
    }

    /// The first instruction count at which the processor, if it runs until then, must be looked at: something falls due, or a performance
    /// counter may overflow.
    pub(crate) fn horizon(&self) -> u64 {
        self.next_deadline().min(self.performance_deadline())
    }

    /// Act on deadlines that have come.
    pub(crate) fn poll_deadlines(&mut self, now: u64) {
        if self.apic.next_deadline() <= now {
            self.apic_poll();
        }
        if self.virt_deadline() <= now {
            self.attend(attention::VIRT);
        }
        if self.performance_deadline() <= now {
            self.performance_poll();
        }
    }

    /// Whether a waiting processor has something to do now: to be asked by the machine before it lets time pass.
    pub fn has_work(&mut self) -> bool {
        self.poll_monitor();
        match self.state.activity {
            Activity::Active => true,
            Activity::WaitForSipi => self.signals.sipi.is_some() || self.signals.init,
            _ => self.attention & attention::INTERRUPT != 0 || self.virt_deadline() <= self.now(),
        }
    }

    /// No single-step trap after the instruction in flight: a world switch took place in it.
    pub fn suppress_trap(&mut self) {
        self.notes.delivered = true;
    }

    /// Look at everything that `attention` may stand for, in priority order.
    pub(crate) fn attend_now(&mut self) -> Boundary {
        if self.attention & attention::DEBUGGER != 0 {
            self.attention &= !attention::DEBUGGER;
            return Boundary::Leave(RunExit::Debugger);
        }
        if self.attention & attention::STOP != 0 {
            self.attention &= !attention::STOP;
            return Boundary::Leave(RunExit::Stopped);
        }
        self.instruction_rip = self.state.rip();
        if self.attention & attention::FAULT != 0 {
            self.attention &= !attention::FAULT;
            if let Some(exception) = self.take_deferred() {
                self.deliver_exception(exception);
                self.windowless += 1;
                return Boundary::Again;
            }
        }
        if self.state.activity == Activity::WaitForSipi {
            return self.wait_for_sipi();
        }
        if let Some(again) = self.virt_point(Point::BeforeInit) {
            return again;
        }
        if self.signals.init && self.take_init() {
            return Boundary::Again;
        }
        if self.state.activity != Activity::Shutdown {
            if let Some(again) = self.virt_point(Point::BeforeTraps) {
                return again;
            }
            if self.take_debug_trap() {
                self.windowless += 1;
                return Boundary::Again;
            }
            // Whatever else is pending can be taken now.
            self.windowless = 0;
            if let Some(again) = self.virt_point(Point::BeforeNmi) {
                return again;
            }
        }
        if self.attention & attention::INTERRUPT != 0 {
            if self.take_smi() {
                return Boundary::Again;
            }
            if self.take_nmi() {
                return Boundary::Again;
            }
            if self.state.activity != Activity::Shutdown {
                if let Some(again) = self.virt_point(Point::BeforeInterrupt) {
                    return again;
                }
                if self.take_interrupt() {
                    return Boundary::Again;
                }
            }
            // Nothing can be taken now; whatever makes it takable asks for attention.
            self.attention &= !attention::INTERRUPT;
        } else if self.state.activity != Activity::Shutdown
            && let Some(again) = self.virt_point(Point::BeforeInterrupt)
        {
            return again;
        }
        if self.state.activity != Activity::Shutdown
            && let Some(again) = self.virt_point(Point::AfterInterrupt)
        {
            return again;
        }
        match self.state.activity {
            Activity::Active => self.attention &= !attention::INACTIVE,
            Activity::Shutdown => return Boundary::Leave(RunExit::Shutdown),
            _ => return Boundary::Leave(RunExit::Idle),
        }
        self.choose_pace()
    }

    /// How far to run before the next look.
    fn choose_pace(&mut self) -> Boundary {
        if self.virt_steps() {
            return Boundary::Step;
        }
        if self.attention & (attention::DEBUG | attention::SHADOW) == 0 {
            return Boundary::Go;
        }
        let recording = self.state.msrs.debugctl & 1 != 0;
        let stepping = recording || self.state.flag(Rflags::TF) || self.state.flag(Rflags::RF) || self.state.pending_debug != 0;
        let watched = self.breakpoints;
        if !stepping && !watched.code && !watched.data && !watched.io {
            self.attention &= !attention::DEBUG;
        }
        // MOV SS holds back instruction breakpoints on Intel's processors only (SDM vol. 3, Masking Exceptions and Interrupts When
        // Switching Stacks; APM vol. 2, Interrupt Masking: an interrupt shadow is for interrupts and traps).
        let held = self.state.shadow.mov_ss && !self.is_amd();
        if watched.code && !self.state.flag(Rflags::RF) && !held {
            let linear = self.linear_ip(self.state.rip());
            let hit = self.code_breakpoints_at(linear);
            if hit != 0 {
                // A trap that MOV SS holds back (on AMD) is reported with it: there is one #DB, not another in its handler.
                let held_back = std::mem::take(&mut self.state.pending_debug) & 0x400f;
                self.deliver_exception(Exception { payload: hit | held_back, ..Exception::new(Vector::DB) });
                return Boundary::Again;
            }
        }
        if self.attention & attention::SHADOW != 0 || stepping || watched.data || watched.io {
            return Boundary::Step;
        }
        if watched.code {
            let linear = self.linear_ip(self.state.rip());
            return if self.code_breakpoint_near(linear) { Boundary::Step } else { Boundary::Block };
        }
        Boundary::Go
    }

    fn virt_point(&mut self, point: Point) -> Option<Boundary> {
        if self.attention & attention::VIRT == 0 {
            return None;
        }
        match self.virt_boundary(point) {
            Ok(None) => None,
            Ok(Some(event)) => {
                let _ = events::deliver(self, event, Origin::Native);
                Some(Boundary::Again)
            }
            Err(Stop::Exception) => {
                let exception = self.exception;
                self.deliver_exception(exception);
                Some(Boundary::Again)
            }
            Err(_) => Some(Boundary::Again),
        }
    }

    fn wait_for_sipi(&mut self) -> Boundary {
        if self.signals.init && self.take_init() {
            return Boundary::Again;
        }
        let Some(vector) = self.signals.sipi.take() else {
            self.attention &= !attention::INTERRUPT;
            return Boundary::Leave(RunExit::Idle);
        };
        if self.intercept_sipi(vector).is_ok() {
            self.start_up(vector);
        }
        Boundary::Again
    }

    /// INIT: returns whether something came of it.
    fn take_init(&mut self) -> bool {
        match self.intercept_init() {
            Ok(InitAction::Accept) => self.init(),
            Ok(InitAction::Blocked) => {
                self.signals.sipi = None;
                return false;
            }
            Ok(InitAction::Redirect) => {
                self.signals.init = false;
                self.deliver_exception(Exception::with_code(Vector::SX, 1));
            }
            Err(_) => self.signals.init = self.is_amd(),
        }
        true
    }

    /// Traps on the previous instruction: single step, data and I/O breakpoints, the T bit of a TSS.
    fn take_debug_trap(&mut self) -> bool {
        let pending = self.state.pending_debug;
        if pending == 0 || self.state.shadow.mov_ss {
            return false;
        }
        let bits = pending & (Dr6::B0 | Dr6::B1 | Dr6::B2 | Dr6::B3 | Dr6::BS | Dr6::BT | Dr6::BLD).bits();
        self.state.pending_debug = 0;
        if bits == 0 {
            return false;
        }
        self.deliver_exception(Exception { payload: bits, ..Exception::new(Vector::DB) });
        true
    }

    /// System-management interrupts: no model has anything in SMM, so one that is taken is over at once, as with a handler
    /// that does nothing but RSM. Returns whether it exited.
    fn take_smi(&mut self) -> bool {
        if !self.signals.smi {
            return false;
        }
        match self.intercept_smi() {
            Ok(taken) => {
                self.signals.smi = !taken;
                false
            }
            Err(_) => true,
        }
    }

    fn take_nmi(&mut self) -> bool {
        if !self.signals.nmi || !self.nmi_open() {
            return false;
        }
        self.signals.nmi = false;
        if self.intercept_nmi().is_ok() {
            let event =
                Event { kind: EventKind::Nmi, vector: Vector::NMI, error_code: None, payload: 0, instruction_length: 0 };
            let _ = events::deliver(self, event, Origin::Native);
        }
        true
    }

    fn take_interrupt(&mut self) -> bool {
        if !self.interrupt_requested() {
            return false;
        }
        if self.state.activity == Activity::Mwait && self.monitor.wait.masked_interrupts {
            self.state.activity = Activity::Active;
        }
        if !self.interrupt_open() {
            return false;
        }
        if self.intercept_interrupt().is_err() {
            return true;
        }
        let Some(vector) = self.acknowledge_interrupt() else {
            return false;
        };
        let event = Event { kind: EventKind::External, vector, error_code: None, payload: 0, instruction_length: 0 };
        let _ = events::deliver(self, event, Origin::Native);
        true
    }

    /// Deliver an exception at the current RIP.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) {
        let _ = events::deliver(self, Event::from(exception), Origin::Native);
    }

    /// Remember what a single step's consequences depend on.
    pub(crate) fn before_step(&mut self) -> Before {
        let deferred = self.notes.deferred;
        self.notes = Notes { deferred, ..Notes::default() };
        let branch = if self.state.msrs.debugctl & 3 != 0 { self.branch_ahead() } else { None };
        let (tf, rf) = (self.state.flag(Rflags::TF), self.state.flag(Rflags::RF));
        Before { rip: self.state.rip(), now: self.now(), tf, rf, branch }
    }

    /// The consequences of a single step: the shadow ends, TF traps, RF is cleared.
    pub(crate) fn after_step(&mut self, before: &Before, result: Exec) {
        let partial = result == Err(Stop::Again);
        let done = result.is_ok() || (partial && self.now() > before.now);
        if !done {
            return;
        }
        let notes = self.notes;
        if !notes.shadow_set && self.attention & attention::SHADOW != 0 {
            self.state.shadow.sti = false;
            self.state.shadow.mov_ss = false;
            self.attention &= !attention::SHADOW;
            self.look_for_events();
        }
        if before.rf && !notes.rf_loaded && (!partial || !self.breakpoints.code) {
            self.state.set_flag(Rflags::RF, false);
        }
        self.record_branch(before);
        let tf = if notes.late_trap { self.state.flag(Rflags::TF) } else { before.tf };
        let blocked = notes.delivered || (notes.shadow_set && self.state.shadow.mov_ss);
        if tf && !blocked && (self.state.msrs.debugctl & 2 == 0 || self.branched(before)) {
            self.pend_debug(Dr6::BS.bits());
        }
    }

    /// Decode, for its shape only, what stands at an offset in CS.
    fn instruction_at(&mut self, rip: u64) -> Instruction {
        let mut bytes = [0; 15];
        let count = self.peek_code(rip, &mut bytes);
        Decoder::with_ip(self.mode.bits(), &bytes[..count], rip, DecoderOptions::NONE).decode()
    }

    /// Bytes of the instruction at an offset in CS.
    pub(crate) fn instruction_length_at(&mut self, rip: u64) -> u64 {
        self.instruction_at(rip).len() as u64
    }

    /// If the instruction at RIP is a branch: the offset of the one after it.
    fn branch_ahead(&mut self) -> Option<u64> {
        let insn = self.instruction_at(self.state.rip());
        let branch = !matches!(insn.flow_control(), FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt);
        (branch && !insn.is_invalid()).then(|| crate::hot::wrap(self.mode, insn.next_ip()))
    }

    /// Whether the step was a taken branch.
    fn branched(&self, before: &Before) -> bool {
        before.branch.is_some_and(|next| self.state.rip() != next) && !self.notes.delivered
    }

    /// DEBUGCTL.LBR: note a taken branch (SDM vol. 3, Last Branch, Interrupt, and Exception Recording; APM vol. 2, Control-Transfer
    /// Breakpoint Features).
    fn record_branch(&mut self, before: &Before) {
        let frozen = self.state.msrs.performance.global_status & performance::status::LBR_FROZEN != 0;
        if self.state.msrs.debugctl & 1 != 0 && !frozen && self.branched(before) {
            let to = self.state.rip();
            self.state.msrs.last_branch[0] = before.rip;
            self.state.msrs.last_branch[1] = to;
        }
    }
}
