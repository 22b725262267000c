//! Sums over a run: exits by reason, and where they come from and go to.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

/// What exits are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExitKey {
    /// Exit reason or code.
    pub reason: u64,
    /// The level that exited.
    pub level: u8,
    /// Address of its VMCS or VMCB.
    pub structure: u64,
}

/// What is known of the exits with one key.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitSum {
    pub count: u64,
    /// Instructions in the guest before the exits.
    pub guest: u64,
    /// Instructions in the hypervisor from the exits to the next entries.
    pub host: u64,
    /// Host's time in both.
    pub guest_time: Duration,
    pub host_time: Duration,
}

/// One processor's place between an entry and an exit.
#[derive(Clone, Copy, Debug)]
struct Place {
    now: u64,
    at: Instant,
    /// The exit being handled.
    key: Option<ExitKey>,
}

/// Sums; look at them sorted.
#[derive(Default)]
pub struct Statistics {
    exits: FxHashMap<ExitKey, ExitSum>,
    /// RIPs at which guests exit: (level, RIP).
    guest_rips: FxHashMap<(u8, u64), u64>,
    /// RIPs of entering instructions, with instructions spent since the exit.
    handlers: FxHashMap<u64, (u64, u64)>,
    places: Vec<Option<Place>>,
}

/// Different RIPs counted; more are left out, so that a guest cannot fill the host's memory.
const MOST: usize = 1 << 20;

impl Statistics {
    fn place(&mut self, cpu: usize) -> &mut Option<Place> {
        if self.places.len() <= cpu {
            self.places.resize(cpu + 1, None);
        }
        &mut self.places[cpu]
    }

    pub(super) fn exit(&mut self, cpu: usize, now: u64, key: ExitKey, rip: u64) {
        let at = Instant::now();
        let before = self.place(cpu).replace(Place { now, at, key: Some(key) });
        let sum = self.exits.entry(key).or_default();
        sum.count += 1;
        if let Some(b) = before.filter(|b| b.key.is_none()) {
            sum.guest += now.saturating_sub(b.now);
            sum.guest_time += at - b.at;
        }
        if self.guest_rips.len() < MOST || self.guest_rips.contains_key(&(key.level, rip)) {
            *self.guest_rips.entry((key.level, rip)).or_default() += 1;
        }
    }

    pub(super) fn entry(&mut self, cpu: usize, now: u64, rip: u64) {
        let at = Instant::now();
        let before = self.place(cpu).replace(Place { now, at, key: None });
        let Some(Place { now: since, at: start, key: Some(key) }) = before else { return };
        let spent = now.saturating_sub(since);
        if let Some(sum) = self.exits.get_mut(&key) {
            sum.host += spent;
            sum.host_time += at - start;
        }
        if self.handlers.len() < MOST || self.handlers.contains_key(&rip) {
            let h = self.handlers.entry(rip).or_default();
            h.0 += 1;
            h.1 += spent;
        }
    }

    /// Exits by key, most frequent first.
    pub fn exits(&self) -> Vec<(ExitKey, ExitSum)> {
        let mut all: Vec<_> = self.exits.iter().map(|(k, s)| (*k, *s)).collect();
        all.sort_by_key(|(k, s)| (std::cmp::Reverse(s.count), *k));
        all
    }

    /// RIPs that exit, most frequent first: level, RIP, exits.
    pub fn guest_rips(&self) -> Vec<(u8, u64, u64)> {
        let mut all: Vec<_> = self.guest_rips.iter().map(|(&(level, rip), &n)| (level, rip, n)).collect();
        all.sort_by_key(|&(level, rip, n)| (std::cmp::Reverse(n), level, rip));
        all
    }

    /// RIPs of the instructions that enter guests, by instructions spent in the hypervisor before: RIP, entries, instructions.
    pub fn handlers(&self) -> Vec<(u64, u64, u64)> {
        let mut all: Vec<_> = self.handlers.iter().map(|(&rip, &(n, spent))| (rip, n, spent)).collect();
        all.sort_by_key(|&(rip, _, spent)| (std::cmp::Reverse(spent), rip));
        all
    }
}
