//! Performance monitoring (SDM vol. 3, Architectural Performance Monitoring; APM vol. 2, Performance Monitoring Counters).
//!
//! Nothing is counted as it happens. A counter holds what it was when it was last brought up to date, and adds to that how much of
//! its event there has been since: time and instructions retired are known at any moment. What changes whether a counter counts (its
//! registers, and the privilege level and the world, if some counter asks) brings them all up to date first. An overflow that is to
//! interrupt is a deadline in the processor's own time. So counters cost nothing while none is on, and next to nothing otherwise;
//! only branches and data accesses have to be watched ([`branches`], [`caches`]).
//!
//! An instruction that changes whether a counter counts is counted as the new setting says.

pub mod branches;
pub mod caches;
mod registers;
pub mod tally;
#[cfg(test)]
mod tests;

use undervisor_core::performance::{COUNTERS, GENERAL, Unit, VALUES, fixed, select, status};
use undervisor_core::{Efer, Vendor};

use crate::cpu::Cpu;
use tally::{Tally, Totals};

/// What follows from the registers.
#[derive(Debug)]
pub struct Monitor {
    /// Counters that count now, one bit each, in the order of `Performance::counters`.
    active: u16,
    /// What they count.
    tallies: [Tally; COUNTERS],
    /// Some counter that is on counts at certain privilege levels or in one world only.
    pub(crate) filters: bool,
    /// How much there had been of everything when the counters were last brought up to date.
    since: Totals,
    /// The next overflow that interrupts cannot come before this processor's own time reaches so much.
    overflow_at: u64,
    /// A counter that counts now wants to know of branches.
    pub(crate) counts_branches: bool,
    branches: u64,
    mispredictions: u64,
    pub(crate) pending: Option<branches::Pending>,
    predictor: Option<Box<branches::Predictor>>,
    /// A counter that counts now wants to know of requests to caches.
    pub(crate) counts_caches: bool,
    caches: Option<Box<caches::Caches>>,
    /// Totals of requests at which a counter overflows and interrupts.
    alarms: Vec<(caches::Requests, u64)>,
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor {
            active: 0,
            tallies: Default::default(),
            filters: false,
            since: Totals::default(),
            overflow_at: u64::MAX,
            counts_branches: false,
            branches: 0,
            mispredictions: 0,
            pending: None,
            predictor: None,
            counts_caches: false,
            caches: None,
            alarms: Vec::new(),
        }
    }
}

impl Cpu {
    /// Virtual time in which this processor ran, slow instructions' extra time included.
    fn own_time(&self) -> u64 {
        self.retired() + self.counters.paused
    }

    /// MPERF or APERF, which count alike: the clock runs at one speed, while the processor does.
    pub(crate) fn performance_clock(&self, msr: u32) -> u64 {
        let offset = self.state.msrs.other.get(&msr).copied().unwrap_or(0);
        let clock = self.own_time().wrapping_mul(crate::time::TSC_MULTIPLE).wrapping_add(offset);
        if msr == undervisor_core::msr::IA32_MPERF { self.virt_mperf(clock) } else { clock }
    }

    pub(crate) fn set_performance_clock(&mut self, msr: u32, value: u64) {
        let offset = value.wrapping_sub(self.own_time().wrapping_mul(crate::time::TSC_MULTIPLE));
        self.state.msrs.other.insert(msr, offset);
    }

    fn totals(&self) -> Totals {
        let m = &self.performance;
        Totals {
            time: self.own_time(),
            instructions: self.retired().wrapping_sub(self.counters.repeated),
            branches: m.branches,
            mispredictions: m.mispredictions,
            requests: m.caches.as_ref().map(|c| c.counts()).unwrap_or_default(),
        }
    }

    /// The virtual time at which counters must be looked at, if the processor runs until then.
    #[inline]
    pub(crate) fn performance_deadline(&self) -> u64 {
        let waited = self.counters.waited - self.counters.paused;
        self.performance.overflow_at.saturating_add(waited)
    }

    /// Bring the counters up to date.
    pub(crate) fn count(&mut self) {
        if self.performance.active == 0 {
            return;
        }
        if self.current.is_null() && self.performance.pending.take().is_some() {
            // A branch whose target has not begun yet.
            self.performance.branches += 1;
        }
        let totals = self.totals();
        let m = &mut self.performance;
        // In the middle of a world switch the clock may seem to stand at the block's beginning.
        if totals.time < m.since.time {
            return;
        }
        let delta = totals.since(m.since);
        m.since = totals;
        let mut overflowed = 0;
        for i in 0..COUNTERS {
            if m.active >> i & 1 != 0 {
                let counter = &mut self.state.msrs.performance.counters[i];
                let sum = *counter + m.tallies[i].count(&delta);
                *counter = sum & VALUES;
                overflowed |= u16::from(sum > VALUES) << i;
            }
        }
        if overflowed != 0 {
            self.overflow(overflowed);
        }
    }

    /// Counters have overflowed (SDM vol. 3, Generating an Interrupt on Overflow; Freezing LBR and Performance Counters on PMI).
    #[cold]
    fn overflow(&mut self, overflowed: u16) {
        let global = self.model.performance().global;
        let amd = self.is_amd();
        let p = &mut self.state.msrs.performance;
        let mut interrupts = false;
        for i in 0..COUNTERS {
            if overflowed >> i & 1 != 0 {
                if global {
                    p.global_status |= Unit::global_bit(i);
                }
                interrupts |= if i < GENERAL {
                    p.selects[i] & select::INT != 0
                } else {
                    p.fixed_control >> (4 * (i - GENERAL)) & fixed::PMI != 0
                };
            }
        }
        if !interrupts {
            return;
        }
        if !amd {
            let debugctl = self.state.msrs.debugctl;
            let p = &mut self.state.msrs.performance;
            if debugctl & 1 << 11 != 0 {
                p.global_status |= status::LBR_FROZEN;
            }
            if debugctl & 1 << 12 != 0 {
                p.global_status |= status::COUNTERS_FROZEN;
                self.choose_counters();
            }
        }
        self.apic.performance_interrupt(!amd);
        self.apic_settle();
    }

    /// The registers, or what filters depend on, have changed: count up to now as before, and from now on as they say.
    pub(crate) fn performance_changed(&mut self) {
        self.count();
        self.choose_counters();
    }

    /// Whether a counter may count in this world and at this privilege level, and whether it asks at all.
    fn filtered(&self, user: bool, system: bool, select: u64) -> (bool, bool) {
        let level = if self.state.cpl == 0 { system } else { user };
        // The bits mean something only while SVM is on (APM vol. 2, Performance Event-Select Registers).
        let worlds = if self.is_amd() && self.state.efer.contains(Efer::SVME) {
            select & (select::GUEST_ONLY | select::HOST_ONLY)
        } else {
            0
        };
        let world = match worlds {
            select::GUEST_ONLY => self.virt.guest,
            select::HOST_ONLY => !self.virt.guest,
            _ => true,
        };
        let asks = user != system || matches!(worlds, select::GUEST_ONLY | select::HOST_ONLY);
        (level && world, asks && (user || system))
    }

    /// Work out which counters count from now on.
    fn choose_counters(&mut self) {
        let unit = self.model.performance();
        let vendor = self.model.vendor;
        let p = &self.state.msrs.performance;
        let frozen = vendor == Vendor::Intel && p.global_status & status::COUNTERS_FROZEN != 0;
        let (mut active, mut filters) = (0u16, false);
        let mut tallies = [Tally::default(); COUNTERS];
        for i in (0..unit.general).chain(GENERAL..GENERAL + unit.fixed) {
            if frozen || (unit.global && p.global_control & Unit::global_bit(i) == 0) {
                continue;
            }
            let (user, system, select) = if i < GENERAL {
                let s = p.selects[i];
                if s & select::ENABLE == 0 {
                    continue;
                }
                (s & select::USR != 0, s & select::OS != 0, s)
            } else {
                let bits = p.fixed_control >> (4 * (i - GENERAL));
                (bits & fixed::USR != 0, bits & fixed::OS != 0, 0)
            };
            let (counts, asks) = self.filtered(user, system, select);
            filters |= asks;
            if counts {
                active |= 1 << i;
                tallies[i] = if i < GENERAL { Tally::of_select(vendor, select) } else { Tally::of_fixed(i) };
            }
        }
        // In the middle of a world switch the clock may seem to stand still.
        let since = self.totals();
        let m = &mut self.performance;
        m.since =
            Totals { time: m.since.time.max(since.time), instructions: m.since.instructions.max(since.instructions), ..since };
        m.active = active;
        m.tallies = tallies;
        m.filters = filters;
        let watched = |i: usize| active >> i & 1 != 0 && tallies[i].of_branches();
        m.counts_branches = (0..COUNTERS).any(watched);
        if !m.counts_branches {
            m.pending = None;
        }
        if (0..COUNTERS).any(|i| active >> i & 1 != 0 && tallies[i].what == tally::What::Mispredictions) {
            m.predictor.get_or_insert_default();
        }
        m.counts_caches = (0..COUNTERS).any(|i| active >> i & 1 != 0 && tallies[i].of_caches().is_some());
        if m.counts_caches && m.caches.is_none() {
            m.caches = Some(Box::new(caches::Caches::new(&self.model)));
        }
        self.plan_overflow();
    }

    /// Work out when an overflow could interrupt at the earliest.
    fn plan_overflow(&mut self) {
        let p = &self.state.msrs.performance;
        let m = &mut self.performance;
        m.overflow_at = u64::MAX;
        m.alarms.clear();
        for i in 0..COUNTERS {
            let interrupts = if i < GENERAL {
                p.selects[i] & select::INT != 0
            } else {
                p.fixed_control >> (4 * (i - GENERAL)) & fixed::PMI != 0
            };
            if m.active >> i & 1 == 0 || !interrupts {
                continue;
            }
            let rate = m.tallies[i].rate();
            if rate == 0
                && m.tallies[i].form == tally::Form::Each
                && let Some(requests) = m.tallies[i].of_caches()
            {
                let so_far = requests.count(&m.since.requests);
                m.alarms.push((requests, so_far + VALUES + 1 - p.counters[i]));
            }
            if rate != 0 {
                let left = (VALUES + 1 - p.counters[i]).div_ceil(rate);
                m.overflow_at = m.overflow_at.min(m.since.time + left);
            }
        }
        if self.performance_deadline() < self.limit {
            // The chain must not run past it.
            self.attend(0);
        }
    }

    /// The deadline has come: overflow, or look again later.
    #[cold]
    pub(crate) fn performance_poll(&mut self) {
        self.count();
        self.plan_overflow();
        self.watching_changed();
    }

    /// After RESET or INIT.
    pub(crate) fn performance_reset(&mut self) {
        self.performance.active = 0;
        self.performance.pending = None;
        self.choose_counters();
    }

    /// An exception or interrupt was delivered: a change of control flow that AMD's branch events count.
    #[inline]
    pub(crate) fn count_delivery(&mut self) {
        if self.performance.counts_branches && self.is_amd() {
            self.performance.branches += 1;
        }
    }
}
