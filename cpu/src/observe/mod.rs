//! Watching a run without taking part in it: explanations of what failed, a trace, statistics, lints.
//!
//! Every processor of a machine has the same [`Observer`], or none. The seams (VM exits and entries, VMREAD and VMWRITE, event
//! delivery, MSR and port access, stores to watched pages) ask `Cpu::observing`, a plain word that is zero when nobody watches,
//! and call the cold functions here. Law: nothing here changes what a guest can observe; whatever is read of its memory is
//! read without setting accessed bits, and records hold no host pointers or host time.

mod hooks;
mod incident;
pub mod lint;
pub mod look;
mod provenance;
mod record;
mod statistics;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

pub use hooks::{injected, is_shutdown};
pub use incident::{FieldPicture, Incident, Link, Remedy, What};
pub use lint::{Finding, Lint};
pub use provenance::{ExitMark, Provenance, VmcsWrites, Write, Written};
pub use record::{Filter, Kind, Record};
pub use statistics::{ExitKey, ExitSum, Statistics};

use crate::cpu::{Cpu, Shared};

/// What an observer wants to see. `Cpu::observing` holds these.
pub mod want {
    pub const EXITS: u32 = 1 << 0;
    pub const ENTRIES: u32 = 1 << 1;
    pub const VMREAD: u32 = 1 << 2;
    /// VMWRITE, and stores to a VMCB that has run.
    pub const VMWRITE: u32 = 1 << 3;
    /// Interrupts and exceptions delivered.
    pub const INTERRUPTS: u32 = 1 << 4;
    pub const MSR: u32 = 1 << 5;
    pub const IO: u32 = 1 << 6;
    /// EPT violations and misconfigurations, nested page faults.
    pub const EPT: u32 = 1 << 7;
    /// INVEPT, INVVPID, INVLPGA, TLB_CONTROL.
    pub const FLUSHES: u32 = 1 << 8;
    /// Everything that goes to the trace.
    pub const TRACE: u32 = 0xffff;
    /// Explain what fails.
    pub const EXPLAIN: u32 = 1 << 16;
    pub const STATISTICS: u32 = 1 << 17;
    pub const LINT: u32 = 1 << 18;
    /// Remember who last wrote each quadword of a VMCB that has run: costs time at each store to it.
    pub const VMCB_WRITES: u32 = 1 << 19;
}

/// Records between two deliveries to the sink.
const BATCH: usize = 4096;
/// Places in the filter that finds instructions not yet in the trace.
const SEEN: usize = 4096;

/// Where observations go.
pub trait Sink {
    /// Records in the order in which they came.
    fn records(&mut self, _records: &[Record]) {}
    /// Something failed; only the first time for each cause.
    fn incident(&mut self, _incident: &Incident) {}
    /// A lint was tripped; only the first time at each place.
    fn finding(&mut self, _finding: &Finding) {}
}

/// Ignores everything: for embedders that look at the observer itself, and for tests.
#[derive(Debug, Default)]
pub struct NoSink;
impl Sink for NoSink {}

/// Watches all processors of a machine.
pub struct Observer {
    wants: u32,
    pub filter: Filter,
    records: Vec<Record>,
    sink: Box<dyn Sink>,
    pub provenance: Provenance,
    pub statistics: Statistics,
    /// How often each cause has come.
    causes: BTreeMap<incident::Cause, u64>,
    /// Faults of the delivery under way, for a triple fault to tell.
    chain: Vec<Link>,
    lints: lint::State,
    seen: Box<[(u64, u8); SEEN]>,
    /// Level-0 physical addresses of pages whose writers are to be known from the start.
    pub watch: Vec<u64>,
    /// Records passed on so far.
    pub traced: u64,
}

/// An observer as the processors share it.
pub type SharedObserver = Rc<RefCell<Observer>>;

impl Observer {
    /// Watches for `wants`, a union of [`want`]'s bits.
    pub fn new(wants: u32, sink: impl Sink + 'static) -> Observer {
        let seen = vec![(u64::MAX, 0); SEEN].into_boxed_slice();
        Observer {
            wants,
            filter: Filter::default(),
            records: Vec::with_capacity(if wants & want::TRACE != 0 { BATCH } else { 0 }),
            sink: Box::new(sink),
            provenance: Provenance::default(),
            statistics: Statistics::default(),
            causes: BTreeMap::new(),
            chain: Vec::new(),
            lints: lint::State::default(),
            seen: seen.try_into().unwrap_or_else(|_| Box::new([(u64::MAX, 0); SEEN])),
            watch: Vec::new(),
            traced: 0,
        }
    }

    /// What it watches for.
    pub fn wants(&self) -> u32 {
        self.wants
    }

    /// Hand what has been gathered to the sink.
    pub fn flush(&mut self) {
        if !self.records.is_empty() {
            self.sink.records(&self.records);
            self.records.clear();
        }
    }

    /// How often things failed, by name of the cause.
    pub fn causes(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        self.causes.iter().map(|(cause, &count)| (cause.name, cause.rip, count))
    }

    /// How often each lint was tripped.
    pub fn lint_counts(&self) -> impl Iterator<Item = (Lint, u64)> + '_ {
        self.lints.counts()
    }

    /// Put a record into the trace if the filter lets it.
    fn push(&mut self, record: Record) {
        if !self.filter.admits(&record) {
            return;
        }
        self.traced += 1;
        self.records.push(record);
        if self.records.len() >= BATCH {
            self.flush();
        }
    }

    /// Whether the instruction at `rip` has not been in the trace yet, as far as is remembered.
    fn is_new(&mut self, rip: u64, level: u8) -> bool {
        let place = &mut self.seen[((rip ^ rip >> 12) as usize ^ level as usize) % SEEN];
        std::mem::replace(place, (rip, level)) != (rip, level)
    }
}

impl Shared {
    /// Send stores to a page of guest RAM (and with `reads` loads, too) through the slow path, where they are seen.
    pub fn watch_page(&self, physical: u64, reads: bool) {
        if let Some(index) = self.memory.page_index(physical) {
            self.code().watch(index, physical & !0xfff, reads);
        }
    }
}

impl Cpu {
    /// Be watched, or no longer.
    pub fn observe(&mut self, observer: Option<SharedObserver>) {
        self.observing = observer.as_ref().map_or(0, |o| o.borrow().wants);
        let pages = observer.as_ref().map(|o| o.borrow().watch.clone()).unwrap_or_default();
        self.observer = observer;
        let x = &mut self.virt.vmx;
        let current = x.current != undervisor_vmx::checks::state::NO_VMCS;
        x.writes = (self.observing & want::EXPLAIN != 0 && current).then(VmcsWrites::new);
        for page in pages {
            self.observe_page(page, false);
        }
    }

    /// The level that runs: 1 is the machine's own software, 2 a guest of that.
    pub fn level_number(&self) -> u8 {
        if self.virt.guest { 2 } else { 1 }
    }

    /// Begin to remember who writes to a page.
    fn observe_page(&mut self, physical: u64, reads: bool) {
        let Some(index) = self.shared.memory.page_index(physical) else { return };
        self.shared.watch_page(physical, reads);
        if reads {
            // Entries that allow loads are in the way.
            self.tlb.clear();
        }
        let now = self.now();
        if let Some(o) = &self.observer {
            o.borrow_mut().provenance.watch(index, physical & !0xfff, now);
        }
    }
}
