//! The machine as gdbstub's target.

use std::fmt::Write;
use std::rc::Rc;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps,
    WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use undervisor_core::{Activity, Vendor};
use undervisor_cpu::Cpu;
use undervisor_cpu::debugger::{CodePoint, DataPoint, DebugStop, Level, Points};
use undervisor_machine::{Machine, StopReason};
use undervisor_vmx::Field as VmcsField;

use super::registers::{All, Id, TABLE, X86, number, read, write};

/// Linux's EFAULT, for memory that is not there.
const EFAULT: u8 = 14;

/// A breakpoint that was set with `monitor break`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    Code(CodePoint),
    Exit(Option<u64>),
    EntryFailure,
    VmcsField(VmcsField),
    /// A VMCB's field: name, level-0 address, bytes.
    VmcbField(&'static str, u64, u64),
}

/// What a return of the run loop means for the debugger.
pub enum Stopped {
    Report(MultiThreadStopReason<u64>),
    /// Nothing to report: the session decides.
    Over,
}

/// The machine under a debugger.
pub struct Debuggee<'a> {
    pub machine: &'a mut Machine,
    points: Points,
    software: Vec<u64>,
    hardware: Vec<u64>,
    watches: Vec<(u64, u64, WatchKind)>,
    /// Set with `monitor break`, with their numbers.
    pub own: Vec<(u32, Own)>,
    pub next_own: u32,
    /// The debugger's own breakpoints stop only at this level.
    pub level: Option<Level>,
    /// The processor that the debugger looked at last, or that stopped last.
    pub selected: usize,
    /// Why the machine stopped, in words, if the protocol has none for it.
    pub explanation: Option<String>,
    step: Option<usize>,
    /// The processor that goes on, if the debugger names one.
    going: Option<usize>,
    locked: bool,
    /// A shutdown has been shown; the next time the run is over.
    shutdown_shown: bool,
}

impl<'a> Debuggee<'a> {
    pub fn new(machine: &'a mut Machine) -> Debuggee<'a> {
        let mut points = Points::default();
        points.count_exits = true;
        let mut target = Debuggee {
            machine,
            points,
            software: Vec::new(),
            hardware: Vec::new(),
            watches: Vec::new(),
            own: Vec::new(),
            next_own: 1,
            level: None,
            selected: 0,
            explanation: None,
            step: None,
            going: None,
            locked: false,
            shutdown_shown: false,
        };
        target.apply();
        target
    }

    /// The thread that is looked at.
    pub fn thread(&self) -> Tid {
        thread(self.selected)
    }

    /// The processor that is looked at.
    pub fn cpu(&mut self) -> Option<&mut Cpu> {
        self.machine.debugged_cpu(self.selected)
    }

    fn select(&mut self, tid: Tid) -> Option<&mut Cpu> {
        let index = tid.get() - 1;
        let cpu = self.machine.debugged_cpu(index)?;
        self.selected = index;
        Some(cpu)
    }

    /// Tell the processors what to stop for.
    pub fn apply(&mut self) {
        let level = self.level;
        let gdb = self.software.iter().chain(&self.hardware).map(|&linear| CodePoint { linear, level });
        let mut code: Vec<CodePoint> = gdb.collect();
        let p = &mut self.points;
        p.data.clear();
        p.physical.clear();
        p.exits.clear();
        p.fields.clear();
        p.entry_failures = false;
        for &(linear, length, kind) in &self.watches {
            let (read, write) = (kind != WatchKind::Write, kind != WatchKind::Read);
            p.data.push(DataPoint { linear, length, read, write });
        }
        for (_, own) in &self.own {
            match own {
                Own::Code(point) => code.push(*point),
                Own::Exit(reason) => p.exits.push(*reason),
                Own::EntryFailure => p.entry_failures = true,
                Own::VmcsField(field) => p.fields.push(*field),
                Own::VmcbField(_, address, length) => p.physical.push((*address, *length)),
            }
        }
        let replant = p.set_code(code);
        self.machine.set_debug_points(&Rc::new(p.clone()), replant);
    }

    /// What to tell the debugger when the machine has stopped.
    pub fn stopped(&mut self, reason: StopReason) -> Stopped {
        self.explanation = None;
        match reason {
            StopReason::Debugger { cpu } => {
                self.selected = cpu;
                let stop = self.machine.debugged_cpu(cpu).and_then(|c| c.debugger.stop.take());
                Stopped::Report(self.reason(cpu, stop))
            }
            StopReason::TripleFault { cpu, .. } if !self.shutdown_shown => {
                self.shutdown_shown = true;
                self.selected = cpu;
                self.explanation = Some(format!("undervisor: {reason}; to go on ends the run"));
                Stopped::Report(MultiThreadStopReason::SignalWithThread { tid: thread(cpu), signal: Signal::SIGSEGV })
            }
            _ => Stopped::Over,
        }
    }

    fn reason(&mut self, cpu: usize, stop: Option<DebugStop>) -> MultiThreadStopReason<u64> {
        let tid = thread(cpu);
        let trap = MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP };
        let place = self
            .machine
            .debugged_cpu(cpu)
            .map_or_else(String::new, |c| format!("now at level {}, rip {:#x}", c.level(), c.state.rip()));
        let vendor = self.machine.cpus().first().map_or(Vendor::Intel, |c| c.model.vendor);
        let text = match stop {
            None | Some(DebugStop::Step) => return trap,
            Some(DebugStop::Code { linear }) => {
                if self.software.contains(&linear) {
                    return MultiThreadStopReason::SwBreak(tid);
                }
                if self.hardware.contains(&linear) {
                    return MultiThreadStopReason::HwBreak(tid);
                }
                format!("breakpoint at {linear:#x}")
            }
            Some(DebugStop::Data { linear, write }) => {
                let kind = self
                    .watches
                    .iter()
                    .find(|w| w.0 == linear && if write { w.2 != WatchKind::Read } else { w.2 != WatchKind::Write })
                    .map_or(WatchKind::Write, |w| w.2);
                return MultiThreadStopReason::Watch { tid, kind, addr: linear };
            }
            Some(DebugStop::Physical { address }) => {
                let name = self.own.iter().find_map(|(_, own)| match own {
                    Own::VmcbField(name, at, _) if *at == address => Some(*name),
                    _ => None,
                });
                format!("{} at physical {address:#x} was written", name.unwrap_or("memory"))
            }
            Some(DebugStop::Exit { reason }) => format!("VM exit: {}", exit_name(vendor, reason)),
            Some(DebugStop::EntryFailure { why }) => format!("VM entry failed: {why}"),
            Some(DebugStop::Field { field, value }) => format!("VMWRITE of {value:#x} to {field:?}"),
        };
        self.explanation = Some(format!("undervisor: {text}; {place}"));
        trap
    }
}

fn thread(cpu: usize) -> Tid {
    Tid::MIN.saturating_add(cpu)
}

/// A basic exit reason or exit code, with its name.
pub fn exit_name(vendor: Vendor, reason: u64) -> String {
    match vendor {
        Vendor::Intel => format!("{reason} ({})", undervisor_vmx::reason::name(reason as u32)),
        Vendor::Amd => format!("{reason:#x} ({})", undervisor_svm::reason::name(reason)),
    }
}

/// Gives a serious error nothing to be: everything that can go wrong is told to the debugger.
#[derive(Debug)]
pub enum Never {}

impl std::fmt::Display for Never {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

impl Target for Debuggee<'_> {
    type Arch = X86;
    type Error = Never;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Never> {
        BaseOps::MultiThread(self)
    }
    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }
    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debuggee<'_> {
    fn read_registers(&mut self, registers: &mut All, tid: Tid) -> TargetResult<(), Self> {
        registers.read(self.select(tid).ok_or(())?);
        Ok(())
    }
    fn write_registers(&mut self, registers: &All, tid: Tid) -> TargetResult<(), Self> {
        Ok(registers.write(self.select(tid).ok_or(())?)?)
    }
    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let cpu = self.select(tid).ok_or(())?;
        let mut done = 0;
        while done < data.len() {
            let linear = start.wrapping_add(done as u64);
            let n = (data.len() - done).min(4096 - (linear & 0xfff) as usize);
            let read = cpu.inspect(linear).map(|at| cpu.shared.memory.read_bytes(at, &mut data[done..done + n]).is_ok());
            if read != Ok(true) {
                break;
            }
            done += n;
        }
        if done == 0 && !data.is_empty() { Err(TargetError::Errno(EFAULT)) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let cpu = self.select(tid).ok_or(())?;
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let linear = start.wrapping_add(done as u64);
            let n = (data.len() - done).min(4096 - (linear & 0xfff) as usize);
            let at = cpu.inspect(linear).map_err(|_| TargetError::Errno(EFAULT))?;
            pieces.push((at, &data[done..done + n]));
            done += n;
        }
        for (at, piece) in pieces {
            cpu.shared.write_bytes(at, piece).map_err(|_| TargetError::Errno(EFAULT))?;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), Never> {
        (0..self.machine.cpus().len()).for_each(|i| active(thread(i)));
        Ok(())
    }
    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Debuggee<'_> {
    fn read_register(&mut self, tid: Tid, id: Id, buffer: &mut [u8]) -> TargetResult<usize, Self> {
        let cpu = self.select(tid).ok_or(())?;
        let row = TABLE.get(id.0).ok_or(())?;
        let size = row.bits as usize / 8;
        let Some(value) = read(cpu, row.kind) else { return Ok(0) };
        buffer.get_mut(..size).ok_or(())?.copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(size)
    }
    fn write_register(&mut self, tid: Tid, id: Id, value: &[u8]) -> TargetResult<(), Self> {
        let cpu = self.select(tid).ok_or(())?;
        let row = TABLE.get(id.0).ok_or(())?;
        Ok(write(cpu, row.kind, number(value))?)
    }
}

impl MultiThreadResume for Debuggee<'_> {
    fn resume(&mut self) -> Result<(), Never> {
        self.machine.debug_resume(self.step, if self.locked { self.step.or(self.going) } else { None });
        Ok(())
    }
    fn clear_resume_actions(&mut self) -> Result<(), Never> {
        self.step = None;
        self.going = None;
        self.locked = false;
        Ok(())
    }
    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Never> {
        self.going = Some(tid.get() - 1);
        Ok(())
    }
    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSchedulerLocking for Debuggee<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Never> {
        self.locked = true;
        Ok(())
    }
}

impl MultiThreadSingleStep for Debuggee<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Never> {
        self.step = Some(tid.get() - 1);
        Ok(())
    }
}

impl ThreadExtraInfo for Debuggee<'_> {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Never> {
        let mut text = String::new();
        if let Some(cpu) = self.machine.cpus().get(tid.get() - 1) {
            let what = match cpu.state.activity {
                Activity::Active => "running",
                Activity::Hlt => "halted",
                Activity::Mwait => "waits (MWAIT, UMWAIT, TPAUSE)",
                Activity::Shutdown => "shut down",
                Activity::WaitForSipi => "waits for SIPI",
            };
            let _ = write!(text, "cpu {} L{} CPL {} {}-bit, {what}", cpu.id, cpu.level(), cpu.state.cpl, cpu.mode.bits());
        }
        let n = text.len().min(buffer.len());
        buffer[..n].copy_from_slice(&text.as_bytes()[..n]);
        Ok(n)
    }
}

impl Breakpoints for Debuggee<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debuggee<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.software.push(address);
        self.apply();
        Ok(true)
    }
    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let known = remove(&mut self.software, |&a| a == address);
        self.apply();
        Ok(known)
    }
}

impl HwBreakpoint for Debuggee<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.hardware.push(address);
        self.apply();
        Ok(true)
    }
    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let known = remove(&mut self.hardware, |&a| a == address);
        self.apply();
        Ok(known)
    }
}

impl HwWatchpoint for Debuggee<'_> {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.watches.push((address, length.max(1), kind));
        self.apply();
        Ok(true)
    }
    fn remove_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let known = remove(&mut self.watches, |w| *w == (address, length.max(1), kind));
        self.apply();
        Ok(known)
    }
}

fn remove<T>(list: &mut Vec<T>, which: impl Fn(&T) -> bool) -> bool {
    let at = list.iter().position(which);
    at.map(|i| list.remove(i)).is_some()
}

impl MonitorCmd for Debuggee<'_> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Never> {
        let command = String::from_utf8_lossy(command).into_owned();
        let text = self.monitor(&command).unwrap_or_else(|why| format!("{why}\n"));
        for line in text.lines() {
            gdbstub::outputln!(out, "{line}");
            // A packet a line: debuggers have limits.
            out.flush();
        }
        Ok(())
    }
}
