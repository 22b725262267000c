//! Hooks for a debugger outside the machine: stop before an instruction, after an access, at a VM exit.
//!
//! Watching changes nothing that the guest can see. Blocks keep their extent: a breakpoint is an op that stands for no instruction,
//! put into the blocks of its page offset when they are decoded, and costs nothing elsewhere. Pages with watched data never enter the
//! TLB. A stop in the middle of a block remembers how much of the block is left, and the processor goes on to the block's end an
//! instruction at a time, looking at events only there, as it would have without the stop.

use std::collections::BTreeMap;
use std::rc::Rc;

use undervisor_vmx::Field;

use crate::boundary::Boundary;
use crate::cache::MAX_BLOCK;
use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::decode::Mode;
use crate::hot::along;
use crate::op::{Op, OpRef};
use crate::run::RunExit;

/// 1: outside guests of this processor's VMX or SVM (VMX root operation, SVM host); 2: in such a guest.
pub type Level = u8;

/// Stop before the instruction at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePoint {
    pub linear: u64,
    /// Only at this level.
    pub level: Option<Level>,
}

/// Stop after an instruction that accessed some of these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPoint {
    pub linear: u64,
    pub length: u64,
    pub read: bool,
    pub write: bool,
}

/// Everything a debugger waits for.
#[derive(Clone, Debug)]
pub struct Points {
    code: Vec<CodePoint>,
    pub data: Vec<DataPoint>,
    /// Ranges of guest-physical (level-0) RAM, start and length: stop after a processor's store there.
    pub physical: Vec<(u64, u64)>,
    /// Stop at VM exits with this basic reason or exit code; `None`: any.
    pub exits: Vec<Option<u64>>,
    /// Count VM exits in `Debugger::exit_counts`.
    pub count_exits: bool,
    /// Stop at VM entries and VMRUNs that fail.
    pub entry_failures: bool,
    /// Stop after VMWRITE to one of these.
    pub fields: Vec<Field>,
    /// Bit i: blocks carry a break op before an instruction at page offset i. Never shrinks while a debugger is there, so that
    /// taking a breakpoint away and putting it back need not drop any block.
    planted: [u64; 64],
}

impl Default for Points {
    fn default() -> Points {
        Points {
            code: Vec::new(),
            data: Vec::new(),
            physical: Vec::new(),
            exits: Vec::new(),
            count_exits: false,
            entry_failures: false,
            fields: Vec::new(),
            planted: [0; 64],
        }
    }
}

impl Points {
    pub fn code(&self) -> &[CodePoint] {
        &self.code
    }

    /// Replace the code points. Whether blocks that were decoded before lack break ops, so that the op cache must be emptied.
    pub fn set_code(&mut self, code: Vec<CodePoint>) -> bool {
        let mut new = false;
        for point in &code {
            let offset = (point.linear & 0xfff) as usize;
            new |= !self.planted_at(offset);
            self.planted[offset / 64] |= 1 << (offset % 64);
        }
        self.code = code;
        new
    }

    /// Whether an instruction at this page offset has a break op.
    pub fn planted_at(&self, offset: usize) -> bool {
        self.planted[offset / 64 % 64] >> (offset % 64) & 1 != 0
    }
}

/// Why a processor stopped for the debugger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// A single step is done.
    Step,
    Code {
        linear: u64,
    },
    /// Some byte of the data point at `linear` was read or written.
    Data {
        linear: u64,
        write: bool,
    },
    /// A store to the watched range of physical memory that begins here.
    Physical {
        address: u64,
    },
    /// A VM exit has taken place.
    Exit {
        reason: u64,
    },
    /// A VM entry or VMRUN has failed; what the check said.
    EntryFailure {
        why: String,
    },
    /// VMWRITE to a field.
    Field {
        field: Field,
        value: u64,
    },
}

/// A processor's side of the debugger.
#[derive(Debug, Default)]
pub struct Debugger {
    points: Rc<Points>,
    /// Some code has break ops.
    pub(crate) code: bool,
    /// Some data is watched, by either kind of address.
    pub(crate) watching: bool,
    /// VM exits are looked at.
    pub(crate) exits: bool,
    /// VMWRITEs are looked at.
    pub(crate) fields: bool,
    /// VM exits by basic reason or exit code, if they are counted.
    pub exit_counts: BTreeMap<u64, u64>,
    /// Why the processor last stopped; the debugger takes it.
    pub stop: Option<DebugStop>,
    /// One instruction is to be executed.
    pub single: bool,
    /// Instructions left of the block that a stop cut short.
    pub(crate) left: u32,
    /// `left` if the op in `Cpu::patched` is reached.
    left_at_patch: u32,
    /// Linear address and time at which execution goes on from a code point without stopping again.
    pass: Option<(u64, u64)>,
}

impl Debugger {
    /// Whether the run is to go on by [`Cpu::run_debugged`].
    pub(crate) fn engaged(&self) -> bool {
        self.single || self.left != 0
    }

    /// Whether accesses to a page must take the slow path.
    #[inline]
    pub(crate) fn watches_page(&self, linear: u64, physical: u64) -> bool {
        self.watching && self.watches_page_slowly(linear, physical)
    }

    #[cold]
    fn watches_page_slowly(&self, linear: u64, physical: u64) -> bool {
        let in_page = |page: u64, start: u64, length: u64| overlap(page & !0xfff, 4096, start, length);
        self.points.data.iter().any(|p| in_page(linear, p.linear, p.length))
            || self.points.physical.iter().any(|&(start, length)| in_page(physical, start, length))
    }

    /// Whether an instruction at this page offset has a break op before it.
    pub(crate) fn planted_at(&self, offset: usize) -> bool {
        self.code && self.points.planted_at(offset)
    }
}

fn overlap(a: u64, a_length: u64, b: u64, b_length: u64) -> bool {
    b.wrapping_sub(a) < a_length || a.wrapping_sub(b) < b_length
}

impl Cpu {
    /// 1 outside guests of this processor, 2 in one.
    pub fn level(&self) -> Level {
        if self.virt.guest { 2 } else { 1 }
    }

    /// What the debugger waits for from now on. If [`Points::set_code`] says so, the op cache must be emptied as well.
    pub fn set_debug_points(&mut self, points: &Rc<Points>) {
        let d = &mut self.debugger;
        let watched = |p: &Points| (p.data.clone(), p.physical.clone());
        if watched(&d.points) != watched(points) {
            self.tlb.clear();
        }
        d.points = points.clone();
        d.code = points.planted != [0; 64];
        d.watching = !points.data.is_empty() || !points.physical.is_empty();
        d.exits = !points.exits.is_empty() || points.count_exits;
        d.fields = !points.fields.is_empty();
    }

    /// Go on from where the processor stopped: a code point there does not stop it again at once.
    pub fn debug_resume(&mut self, single: bool) {
        self.debugger.stop = None;
        self.debugger.single = single;
        self.debugger.pass = Some((self.linear_ip(self.state.rip()), self.now()));
    }

    /// A repeated string instruction goes on after an interruption: that is no new arrival at a code point.
    pub(crate) fn debug_repeating(&mut self) {
        if self.debugger.code {
            self.debugger.pass = Some((self.linear_ip(self.state.rip()), self.now()));
        }
    }

    /// Whether to stop before the instruction of the break op `op`.
    #[cold]
    #[inline(never)]
    pub(crate) fn debug_break(&mut self, op: OpRef) -> bool {
        let linear = self.linear_ip(along(self.mode, self.state.rip().wrapping_add(op.offset as u64)));
        let level = self.level();
        let hit = self.debugger.points.code.iter().any(|p| p.linear == linear && p.level.is_none_or(|l| l == level));
        if !hit || self.debugger.pass == Some((linear, self.now() + op.index as u64)) {
            return false;
        }
        self.debugger.stop = Some(DebugStop::Code { linear });
        self.debugger.left = op.extra as u32;
        true
    }

    /// The op that `debug_break` and `stop_before` have left the chain at was reached.
    pub(crate) fn debug_stopped_here(&mut self) {
        self.debugger.left = self.debugger.left_at_patch;
    }

    /// An access took place on the slow path while something is watched.
    #[cold]
    pub(crate) fn debug_access(&mut self, linear: u64, size: u64, write: bool) {
        let hit = self
            .debugger
            .points
            .data
            .iter()
            .find(|p| (if write { p.write } else { p.read }) && overlap(linear, size, p.linear, p.length));
        if let Some(point) = hit {
            let linear = point.linear;
            self.debug_stop_after(DebugStop::Data { linear, write });
        }
    }

    /// A store to RAM took place on the slow path while something is watched.
    #[cold]
    pub(crate) fn debug_stored(&mut self, page: usize, offset: u64, size: u64) {
        let shared = self.shared.clone();
        let hit = self.debugger.points.physical.iter().find(|&&(start, length)| {
            shared.memory.page_index(start) == Some(page) && overlap(offset, size, start & 0xfff, length)
        });
        if let Some(&(address, _)) = hit {
            self.debug_stop_after(DebugStop::Physical { address });
        }
    }

    /// VMWRITE has written a field.
    #[cold]
    pub(crate) fn debug_field_written(&mut self, field: Field) {
        if self.debugger.points.fields.contains(&field) {
            let value = self.virt.vmx.vmcs.get(field);
            self.debug_stop_after(DebugStop::Field { field, value });
        }
    }

    /// A VM exit has taken place.
    #[inline]
    pub(crate) fn debug_exit(&mut self, reason: u64) {
        if self.debugger.exits {
            self.debug_exit_slowly(reason);
        }
    }

    #[cold]
    fn debug_exit_slowly(&mut self, reason: u64) {
        if self.debugger.points.count_exits {
            *self.debugger.exit_counts.entry(reason).or_default() += 1;
        }
        if self.debugger.points.exits.iter().any(|e| e.is_none_or(|r| r == reason)) {
            self.debug_stop_after(DebugStop::Exit { reason });
        }
    }

    /// A VM entry or VMRUN has failed.
    #[cold]
    pub(crate) fn debug_entry_failed(&mut self, why: impl FnOnce(&Cpu) -> String) {
        if self.debugger.points.entry_failures {
            let why = why(self);
            self.debug_stop_after(DebugStop::EntryFailure { why });
        }
    }

    /// Stop once the instruction in flight is complete.
    fn debug_stop_after(&mut self, stop: DebugStop) {
        self.debugger.stop.get_or_insert(stop);
        self.attend(attention::DEBUGGER);
        if let Some((op, left)) = self.op_after_current() {
            self.stop_before(op);
            self.debugger.left_at_patch = left;
        }
    }

    /// The op after the one in flight, if its block goes on and is kept, and how many instructions there are from it on.
    #[allow(unsafe_code)]
    fn op_after_current(&self) -> Option<(OpRef, u32)> {
        let current = std::ptr::NonNull::new(self.current.cast_mut())?;
        let physical = self.known_fetch(self.linear_ip(self.state.rip()))?;
        let index = self.shared.memory.page_index(physical)?;
        for mode in [self.mode, Mode(self.mode.0 | Mode::ONE)] {
            let Some(block) = self.shared.code().find(index, (physical & 0xfff) as u16, mode) else { continue };
            let ops: &[Op] = &block.ops;
            let at = (current.as_ptr() as usize).wrapping_sub(ops.as_ptr() as usize) / size_of::<Op>();
            if ops.get(at).is_some_and(|op| std::ptr::eq(op, current.as_ptr())) && at + 1 < ops.len() {
                let op = OpRef(current).following();
                return Some((op, block.count.saturating_sub(op.index as u32)));
            }
        }
        None
    }

    /// [`Cpu::run_until`] while a single step is due or a block is unfinished.
    pub(crate) fn run_debugged(&mut self, limit: u64, pause: u64) -> RunExit {
        self.catch_up();
        loop {
            if self.debugger.left == 0 {
                if !self.debugger.single {
                    return self.run_loop(limit, pause);
                }
                let now = self.now();
                if now >= limit {
                    return RunExit::Limit;
                }
                self.poll_deadlines(now);
                let horizon = limit.min(self.horizon()).max(now + 1);
                self.set_limit(horizon);
                if self.attention != 0 {
                    match self.attend_now() {
                        Boundary::Go | Boundary::Block => {}
                        Boundary::Step => {
                            let exit = self.run_loop(now + 1, u64::MAX);
                            return if exit == RunExit::Limit { self.stepped() } else { exit };
                        }
                        Boundary::Again => return self.stepped(),
                        Boundary::Leave(exit) => return exit,
                    }
                }
                match self.block_ahead((horizon - now).min(MAX_BLOCK as u64) as usize) {
                    Ok(count) => self.debugger.left = count.max(1),
                    Err(_) => return self.stepped(),
                }
            }
            let progress = self.step_in_block();
            if self.attention & attention::DEBUGGER != 0 {
                self.attention &= !attention::DEBUGGER;
                self.debugger.single = false;
                return RunExit::Debugger;
            }
            if progress && self.debugger.single && !self.notes.repeating {
                return self.stepped();
            }
        }
    }

    fn stepped(&mut self) -> RunExit {
        self.attention &= !attention::DEBUGGER;
        self.debugger.single = false;
        self.debugger.stop.get_or_insert(DebugStop::Step);
        RunExit::Debugger
    }

    /// One instruction of the block that is under way; nothing else is looked at, as between the instructions of any block.
    /// Whether it, or a fault of it, took place.
    fn step_in_block(&mut self) -> bool {
        let (now, rip, left) = (self.now(), self.state.rip(), self.debugger.left);
        let invalidated = self.counters.blocks_invalidated;
        let next = rip.wrapping_add(self.instruction_length_at(rip));
        self.set_limit(now + 1);
        self.notes.repeating = false;
        let result = self.step_block(1);
        self.current = std::ptr::null();
        self.notes.repeating = result == Err(Stop::Again) && self.now() > now;
        if result == Err(Stop::Exception) {
            let exception = self.exception;
            self.deliver_exception(exception);
        }
        self.restore_patched();
        let retired = self.now() > now;
        let went_on = result.is_ok() && self.state.rip() == along(self.mode, next);
        self.debugger.left = if result.is_ok() && !retired {
            // Stopped before it.
            left
        } else if went_on && self.counters.blocks_invalidated == invalidated {
            left - 1
        } else {
            0
        };
        self.shared.code().collect();
        self.sync_code();
        retired || matches!(result, Err(Stop::Exception | Stop::Exit))
    }

    /// How many instructions the run loop would execute as one block from here.
    fn block_ahead(&mut self, most: usize) -> Exec<u32> {
        let rip = self.state.rip();
        if self.general_once || most == 1 || self.code_room(rip) == 0 || (self.mode.is64() && !self.canonical(rip)) {
            return Ok(1);
        }
        let physical = match self.translate_fetch(self.linear_ip(rip)) {
            Ok(physical) => physical,
            // The step will meet the fault again.
            Err(Stop::Exception | Stop::Again) => return Ok(1),
            Err(Stop::Exit) => return Err(Stop::Exit),
        };
        let shared = self.shared.clone();
        let kept = shared
            .memory
            .page_index(physical)
            .and_then(|index| shared.code().find(index, (physical & 0xfff) as u16, self.mode))
            .map(|block| block.count as usize);
        match kept {
            Some(count) => Ok(if count <= most { count as u32 } else { 1 }),
            None if most < MAX_BLOCK => Ok(1),
            None => Ok(self.decode(physical, most).map_or(1, |block| block.count)),
        }
    }
}
