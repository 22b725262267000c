//! The embedding program's side of the run loop.

use crate::machine::Progress;

/// What to do while every processor waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Go on at the next event at once: virtual time jumps.
    Jump,
    /// This many nanoseconds have passed on the host (a wait that input may have cut short).
    Elapsed(u64),
    /// Leave [`crate::Machine::run`].
    Stop,
}

/// Called by [`crate::Machine::run`] on its own thread.
pub trait Host {
    /// Called every few milliseconds of running. `false`: leave `run` with [`crate::StopReason::Host`].
    fn poll(&mut self, _progress: &Progress) -> bool {
        true
    }

    /// Every processor waits. `nanoseconds`: virtual time to the next event, `None` if only input could wake one. An interactive
    /// host sleeps that long, or until there is input; others jump. With [`Idle::Jump`] and nothing to jump to, the machine stops.
    fn idle(&mut self, _nanoseconds: Option<u64>) -> Idle {
        Idle::Jump
    }
}

/// Never interferes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {}
