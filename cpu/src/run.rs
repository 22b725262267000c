//! The run loop: from block to block, and everything that happens between instructions.

use undervisor_core::{Activity, Event};
use undervisor_mmu::Bus;

use crate::boundary::Boundary;
use crate::cache::{Block, MAX_BLOCK};
use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::decode::Mode;
use crate::dispatch;
use crate::op::OpRef;

/// Why `run` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// The instruction limit was reached.
    Limit,
    /// The run was to be interrupted: see [`Cpu::run_until`].
    Paused,
    /// Halted (HLT, MWAIT, wait-for-SIPI): nothing to do until an event.
    Idle,
    /// Shutdown (triple fault).
    Shutdown,
    /// Someone asked with `attention::STOP`.
    Stopped,
    /// `Cpu::debugger` has stopped it and says why.
    Debugger,
}

/// What the run loop needs of a block in the cache.
struct Kept {
    entry: OpRef,
    /// Instructions.
    count: usize,
    /// Its one instruction runs into the next page.
    crosses: bool,
}

impl Kept {
    fn of(block: &Block) -> Kept {
        Kept { entry: block.entry(), count: block.count as usize, crosses: block.second_page.is_some() }
    }
}

/// Events delivered in a row, with no instruction in between, before they cost virtual time.
const MAX_EVENTS: u32 = 64;

impl Cpu {
    /// Run until `limit` instructions have retired in all since reset, or there is something else to tell.
    /// Interrupts and timers are looked at first, and again whenever `attention` asks.
    pub fn run(&mut self, bus: &mut dyn Bus, limit: u64) -> RunExit {
        self.run_until(bus, limit, u64::MAX)
    }

    /// As [`Cpu::run`], but return `Paused` between two blocks once time has reached `pause`. Another call with the same limit then goes on
    /// as if there had been no pause.
    pub fn run_until(&mut self, bus: &mut dyn Bus, limit: u64, pause: u64) -> RunExit {
        self.with_bus(
            bus,
            |cpu| {
                if cpu.debugger.engaged() { cpu.run_debugged(limit, pause) } else { cpu.run_loop(limit, pause) }
            },
        )
    }

    /// Execute one instruction in its general form: the reference that hot forms are tested against.
    pub fn step_general(&mut self, bus: &mut dyn Bus) -> RunExit {
        self.general_once = true;
        let limit = self.now() + 1;
        self.run(bus, limit)
    }

    /// What may have happened since the last run.
    pub(crate) fn catch_up(&mut self) {
        self.sync_code();
        self.poll_monitor();
    }

    pub(crate) fn run_loop(&mut self, limit: u64, pause: u64) -> RunExit {
        self.catch_up();
        self.set_limit(limit);
        let mut again = 0;
        loop {
            let now = self.now();
            if now >= limit {
                self.take_waiting_nmi();
                return self.at_limit();
            }
            if now >= pause {
                return RunExit::Paused;
            }
            self.poll_deadlines(now);
            let horizon = limit.min(self.horizon()).max(now + 1);
            // A chain ends no more than a block before its limit; with this one, at the first block's end that lies beyond the pause.
            self.set_limit(horizon.min(pause.saturating_add(MAX_BLOCK as u64)));
            let mut most = (horizon - now).min(MAX_BLOCK as u64) as usize;
            if self.attention != 0 {
                match self.attend_now() {
                    Boundary::Go => {}
                    Boundary::Step => {
                        most = 1;
                        // Else the chain would go on in whatever block is known to follow.
                        self.set_limit(now);
                    }
                    Boundary::Block => self.set_limit(now),
                    Boundary::Again => {
                        // Events without end (a breakpoint on the #DB handler) cost time, so that this loop ends.
                        again += 1;
                        self.charge_events(again);
                        self.look_for_stall();
                        continue;
                    }
                    Boundary::Leave(RunExit::Stopped) => {
                        self.take_waiting_nmi();
                        return RunExit::Stopped;
                    }
                    Boundary::Leave(exit) => return exit,
                }
            }
            if self.general_once {
                most = 1;
                self.set_limit(now);
            }
            if most == 1 {
                // A branch must not go on to a cached block, nor a repetition to a second iteration.
                self.set_limit(now + 1);
            }
            let before = (most == 1).then(|| self.before_step());
            self.notes.repeating = false;
            let result = self.step_block(most);
            self.current = std::ptr::null();
            self.notes.repeating = result == Err(Stop::Again) && self.now() > now;
            if self.notes.repeating {
                self.debug_repeating();
            }
            if before.is_some() && result.is_ok() && self.now() == now && self.attention & attention::DEBUGGER != 0 {
                // Stopped before the instruction: what is due after it stays due.
                self.restore_patched();
                return self.at_limit();
            }
            if result == Err(Stop::Exception) {
                let exception = self.exception;
                self.deliver_exception(exception);
            }
            self.restore_patched();
            if let Some(before) = before {
                self.after_step(&before, result);
            }
            if self.now() > now {
                again = 0;
            } else {
                // Likewise faults without end: a handler that cannot be fetched.
                again += 1;
                self.charge_events(again);
            }
            self.shared.code().collect();
            self.sync_code();
        }
    }

    /// The last of `again` events with no instruction in between costs time, if they are many.
    fn charge_events(&mut self, again: u32) {
        if again > MAX_EVENTS {
            self.budget -= 1;
            self.counters.waited += 1;
            self.counters.fruitless += 1;
        }
    }

    /// A delivery of events that does not come to an end: someone may want to stop it.
    fn look_for_stall(&mut self) {
        if self.windowless > MAX_EVENTS {
            let pending = self.notes.deferred.map(Event::from);
            if self.virt_stalled((self.windowless - MAX_EVENTS) as u64, pending).is_err() {
                self.windowless = 0;
                self.notes.deferred = None;
                self.attention &= !attention::FAULT;
            }
        }
    }

    fn at_limit(&mut self) -> RunExit {
        if self.attention & attention::DEBUGGER == 0 {
            return RunExit::Limit;
        }
        self.attention &= !attention::DEBUGGER;
        RunExit::Debugger
    }

    /// At the end of a slice: an NMI that waits for no more than this boundary must not be found still waiting by those that
    /// other processors send before the next slice, for it would swallow them.
    fn take_waiting_nmi(&mut self) {
        let asked = self.attention & (attention::INTERRUPT | attention::DEBUGGER) == attention::INTERRUPT;
        if self.signals.nmi && asked && self.state.activity != Activity::WaitForSipi {
            self.attend_now();
        }
    }

    /// Run from RIP until an instruction does not complete, and say why, instead of delivering an event; or until about `most`
    /// chains have run. For conformance tests.
    pub fn run_undelivered(&mut self, bus: &mut dyn Bus, most: usize) -> Exec {
        self.with_bus(bus, |cpu| {
            cpu.sync_code();
            for _ in 0..most {
                cpu.set_limit(cpu.now() + 2 * MAX_BLOCK as u64);
                // As in `run_until`: an instruction in its general form is a block of its own.
                let result = cpu.step_block(if cpu.general_once { 1 } else { MAX_BLOCK });
                cpu.current = std::ptr::null();
                cpu.restore_patched();
                cpu.shared.code().collect();
                cpu.sync_code();
                if result != Err(Stop::Again) {
                    result?;
                }
            }
            Ok(())
        })
    }

    /// Set the instruction count at which chains must have ended, keeping the current time.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        let now = self.now();
        self.limit = limit;
        self.budget = limit.saturating_sub(now) as i64 - MAX_BLOCK as i64;
    }

    /// Find or decode the block at RIP and run from it: a chain if the budget allows, a block that has at most `most` instructions, or
    /// else the one instruction. That has a block of its own, which is kept too: shadows, single steps and the last instructions
    /// before a limit come back to the same places; the budget is below zero once it has retired, so that nothing chains on.
    pub(crate) fn step_block(&mut self, most: usize) -> Exec {
        let rip = self.state.rip();
        if most == MAX_BLOCK
            && let Some(op) = self.jumps.find(rip, self.fetch_tag)
            // A block may have died after the jump cache learnt of it.
            && !self.is_stale(op)
        {
            return self.chain(op);
        }
        self.counters.jump_cache_misses += 1;
        if self.code_room(rip) == 0 || (self.mode.is64() && !self.canonical(rip)) {
            return Err(self.gp(0));
        }
        let physical = self.translate_fetch(self.linear_ip(rip))?;
        let page = self.shared.memory.page_index(physical);
        let Some(index) = page.filter(|_| !self.general_once) else {
            let block = self.decode(physical, most)?;
            return self.chain_once(block, page);
        };
        if let Some(kept) = self.find_kept(physical, index, self.mode)?
            && kept.count <= most
        {
            return self.chain_kept(kept, most);
        }
        let (key, most) = if most == MAX_BLOCK { (self.mode, most) } else { (Mode(self.mode.0 | Mode::ONE), 1) };
        if key != self.mode
            && let Some(kept) = self.find_kept(physical, index, key)?
        {
            return self.chain_kept(kept, most);
        }
        let block = self.decode(physical, most)?;
        let second = block.second_page.map(|p| self.shared.memory.page_index(p));
        if second == Some(None) {
            // Runs into MMIO space: use it once.
            return self.chain_once(block, page);
        }
        let shared = self.shared.clone();
        let kept = Kept::of(shared.code().insert(index, second.flatten(), key, block));
        self.sync_code();
        self.chain_kept(kept, most)
    }

    /// In a chain: the block at RIP, if it is in the op cache and the page is known to be executable. In 64-bit mode only, where no limit
    /// needs checking. (Never inlined: the chain's calls must stay jumps.)
    #[inline(never)]
    pub(crate) fn find_next(&mut self) -> Option<OpRef> {
        let rip = self.state.rip();
        if !self.mode.is64() || !self.canonical(rip) {
            return None;
        }
        let physical = self.known_fetch(rip)?;
        let index = self.shared.memory.page_index(physical)?;
        let shared = self.shared.clone();
        let block = shared.code().find(index, (physical & 0xfff) as u16, self.mode)?;
        let entry = block.entry();
        match block.second_page {
            // Where the second page lies must be asked each time.
            Some(second) if self.known_fetch((rip | 0xfff).wrapping_add(1))? == second => {}
            Some(_) => return None,
            None => self.jumps.insert(rip, self.fetch_tag, entry),
        }
        self.counters.jump_cache_misses += 1;
        Some(entry)
    }

    /// The block that the cache holds for this place and mode, if it may be entered now.
    fn find_kept(&mut self, physical: u64, index: usize, key: Mode) -> Exec<Option<Kept>> {
        let shared = self.shared.clone();
        let Some(block) = shared.code().find(index, (physical & 0xfff) as u16, key) else { return Ok(None) };
        Ok(self.usable(block, self.state.rip())?.then(|| Kept::of(block)))
    }

    fn chain_kept(&mut self, kept: Kept, most: usize) -> Exec {
        if most == MAX_BLOCK && !kept.crosses && self.mode.has(Mode::FLAT_CS) {
            self.jumps.insert(self.state.rip(), self.fetch_tag, kept.entry);
        }
        self.chain(kept.entry)
    }

    /// Whether a cached block may be entered at `rip`: it must lie below the segment limit, and an instruction that crosses
    /// pages must still continue on the same physical page.
    fn usable(&mut self, block: &Block, rip: u64) -> Exec<bool> {
        if self.code_room(rip) < block.bytes as u64 {
            return Ok(false);
        }
        let Some(second) = block.second_page else {
            return Ok(true);
        };
        let next = self.linear_ip((rip | 0xfff).wrapping_add(1));
        Ok(self.translate_fetch(next)? & !0xfff == second)
    }

    /// Run a block that is not in the cache. `index`: its page, if it lies in RAM.
    fn chain_once(&mut self, block: Block, index: Option<usize>) -> Exec {
        let shared = self.shared.clone();
        if let Some(index) = index {
            let second = block.second_page.and_then(|p| shared.memory.page_index(p));
            shared.code().begin_transient(index, second, &block);
            self.sync_code();
        }
        let result = self.chain(block.entry());
        shared.code().end_transient();
        self.restore_patched();
        self.current = std::ptr::null();
        result
    }

    fn chain(&mut self, op: OpRef) -> Exec {
        self.outcome = Ok(());
        dispatch::enter(self, op);
        self.outcome
    }

    /// Catch up with what other processors or this one did to the op cache.
    pub(crate) fn sync_code(&mut self) {
        let shared = self.shared.clone();
        let code = shared.code();
        match code.code_pages_since(self.seen_code_pages) {
            Some(pages) => pages.iter().for_each(|&page| self.tlb.forbid_writes(page)),
            None => self.tlb.clear(),
        }
        self.seen_code_pages = code.code_pages_logged();
        if self.jumps.generation != code.generation {
            self.jumps.clear();
            self.jumps.generation = code.generation;
        }
    }

    /// Stop the chain before `op` (which follows the op in flight): its handler is replaced until the chain has ended.
    pub fn stop_before(&mut self, op: OpRef) {
        if self.patched.is_none() {
            self.patched = Some((op, op.handler.replace(crate::hot::stop_here)));
        }
    }

    pub(crate) fn restore_patched(&mut self) {
        if let Some((op, handler)) = self.patched.take()
            && op.handler.get() as usize == crate::hot::stop_here as *const () as usize
        {
            op.handler.set(handler);
        }
    }
}
