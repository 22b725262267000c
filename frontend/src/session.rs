//! One run of a machine with the terminal: limits, keys, the status line, sleeping while the guest idles.

use std::time::{Duration, Instant};

use undervisor_machine::{Host, Idle, Machine, Progress, StopReason, status};

use crate::console::{Console, Key};
use crate::error::Failure;
use crate::gdb::Server;
use crate::observe::{Replay, Watch};
use crate::options::IdleMode;
use crate::stats;

/// With no input to come, this much idle virtual time without output and the guest sleeps in real time.
const JUMP_AT_MOST: u64 = 120_000_000_000;
/// Longest sleep without a look around.
const NAP: Duration = Duration::from_millis(50);

/// Why the host side left the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Quit,
    TimeLimit,
    PowerButton,
    Statistics,
}

/// The host's side of a run.
pub struct Session {
    console: Console,
    start: Instant,
    deadline: Option<Instant>,
    idle: IdleMode,
    asked: Option<Asked>,
    status_at: Instant,
    status_instructions: u64,
    /// Idle virtual time since output or work was last seen.
    idle_run: u64,
    last: Progress,
    slept: Duration,
    watch: Option<Watch>,
}

/// How a run ended.
pub struct Outcome {
    pub reason: StopReason,
    pub code: u8,
    /// One line for people.
    pub message: String,
}

impl Session {
    pub fn new(console: Console, time_limit: Option<Duration>, idle: IdleMode) -> Session {
        let start = Instant::now();
        Session {
            console,
            start,
            deadline: time_limit.and_then(|t| start.checked_add(t)),
            idle,
            asked: None,
            status_at: start + Duration::from_millis(700),
            status_instructions: 0,
            idle_run: 0,
            last: Progress::default(),
            slept: Duration::ZERO,
            watch: None,
        }
    }

    /// Have the run watched.
    pub fn watch(&mut self, watch: Option<Watch>, machine: &mut Machine) {
        if let Some(watch) = &watch {
            watch.attach(machine);
        }
        self.watch = watch;
    }

    /// The run is over: what watched it says its last words. Whether a replay would tell more.
    pub fn finish(&mut self, machine: &mut Machine) -> Result<Option<Replay>, Failure> {
        match self.watch.take() {
            Some(watch) => watch.finish(machine, &self.console),
            None => Ok(None),
        }
    }

    /// Run to the end.
    pub fn run(&mut self, machine: &mut Machine) -> Outcome {
        loop {
            let reason = machine.run(self);
            if let Some(outcome) = self.ended(machine, reason) {
                return outcome;
            }
        }
    }

    /// [`Machine::run`] has returned: how the run ended; or do what the user asked for, and it goes on.
    pub fn ended(&mut self, machine: &mut Machine, reason: StopReason) -> Option<Outcome> {
        let outcome = if reason != StopReason::Host {
            Outcome { reason, code: reason.exit_status(), message: reason.to_string() }
        } else {
            match self.asked.take() {
                Some(Asked::PowerButton) => {
                    machine.press_power_button();
                    return None;
                }
                Some(Asked::Statistics) => {
                    self.console.message(&self.statistics(machine));
                    return None;
                }
                Some(Asked::TimeLimit) => {
                    let limit = self.deadline.map_or(0.0, |d| (d - self.start).as_secs_f64());
                    let message = format!("time limit of {limit} s reached");
                    Outcome { reason, code: status::TIME_LIMIT, message }
                }
                Some(Asked::Quit) | None => Outcome { reason, code: 0, message: "quit from the terminal".into() },
            }
        };
        self.console.end();
        Some(outcome)
    }

    /// Run to the end, with a debugger if one may come.
    pub fn run_with(&mut self, server: Option<Server>, machine: &mut Machine) -> Outcome {
        match server {
            Some(server) => server.run(self, machine),
            None => self.run(machine),
        }
    }

    /// Print a message of ours.
    pub fn message(&self, text: &str) {
        self.console.message(text);
    }

    /// The summary of `--stats`.
    pub fn statistics(&self, machine: &Machine) -> String {
        let mut text = stats::summary(machine, self.start.elapsed(), self.slept);
        if let Some(watch) = &self.watch {
            text.push_str(&watch.statistics(machine));
        }
        text
    }

    /// Host time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Keys and limits; whether to leave the run.
    fn look(&mut self) -> bool {
        if let Some(key) = self.console.key() {
            self.asked = Some(match key {
                Key::Quit => Asked::Quit,
                Key::Statistics => Asked::Statistics,
                Key::PowerButton => Asked::PowerButton,
            });
            return true;
        }
        if self.deadline.is_some_and(|d| Instant::now() >= d) {
            self.asked = Some(Asked::TimeLimit);
            return true;
        }
        false
    }

    fn show_status(&mut self, progress: &Progress) {
        let now = Instant::now();
        if now < self.status_at {
            return;
        }
        let span = (now + Duration::from_millis(500) - self.status_at).as_secs_f64();
        let mips = (progress.instructions - self.status_instructions) as f64 / span / 1e6;
        self.status_at = now + Duration::from_millis(500);
        self.status_instructions = progress.instructions;
        self.console.status(&format!(
            "undervisor: {:.0} s, {} instructions, {mips:.0} MIPS, guest time {:.1} s   (Ctrl-A H: keys)",
            self.start.elapsed().as_secs_f64(),
            stats::count(progress.instructions),
            progress.time as f64 / 1e9,
        ));
    }
}

impl Host for Session {
    fn poll(&mut self, progress: &Progress) -> bool {
        self.last = *progress;
        self.idle_run = 0;
        self.show_status(progress);
        !self.look()
    }

    fn idle(&mut self, nanoseconds: Option<u64>) -> Idle {
        if self.look() {
            return Idle::Stop;
        }
        let open = self.console.open_for_input();
        let sleep = match self.idle {
            IdleMode::Sleep => true,
            IdleMode::Jump => false,
            IdleMode::Auto => open || self.idle_run > JUMP_AT_MOST,
        };
        if !sleep || (nanoseconds.is_none() && !open) {
            self.idle_run = self.idle_run.saturating_add(nanoseconds.unwrap_or(0));
            if self.console.quiet_for() < Duration::from_millis(5) {
                self.idle_run = 0;
            }
            return Idle::Jump;
        }
        let most = nanoseconds.map_or(NAP, |n| Duration::from_nanos(n).min(NAP));
        let passed = self.console.wait(Some(most));
        self.slept += passed;
        Idle::Elapsed((passed.as_nanos() as u64).max(1))
    }
}
