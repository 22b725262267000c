//! A server for gdb and lldb (the GDB Remote Serial Protocol).
//!
//! The machine runs on the thread that serves the debugger: either it runs, and looks now and then whether the debugger has said
//! something, or it stands still and serves. Processors are threads. What the machine can stop for is in `undervisor_cpu::debugger`.

mod link;
mod monitor;
mod registers;
mod target;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use undervisor_machine::{Host, Idle, Machine, Progress, StopReason};

use crate::error::Failure;
use crate::options::GdbOptions;
use crate::session::{Outcome, Session};
use link::{Link, Probe};
use target::{Debuggee, Stopped};

/// How long to wait for the debugger before looking at the terminal.
const LOOK: Duration = Duration::from_millis(50);

/// Waits for debuggers.
pub struct Server {
    listener: TcpListener,
    /// The machine stands still until one comes.
    hold: bool,
}

impl Server {
    /// Listen, if the options ask for it.
    pub fn open(options: &GdbOptions) -> Result<Option<Server>, Failure> {
        let Some(text) = &options.gdb else { return Ok(None) };
        let address = match text.strip_prefix(':').unwrap_or(text) {
            port if port.bytes().all(|b| b.is_ascii_digit()) => format!("127.0.0.1:{port}"),
            full => full.to_owned(),
        };
        let fail = |e: io::Error| Failure::Option { option: "gdb", value: text.clone(), why: e.to_string() };
        let listener = TcpListener::bind(&address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Some(Server { listener, hold: !options.gdb_live }))
    }

    fn accept(&self) -> Option<TcpStream> {
        self.listener.accept().ok().map(|(stream, _)| stream)
    }

    /// Run the machine to its end, with whichever debuggers come on the way.
    pub fn run(mut self, session: &mut Session, machine: &mut Machine) -> Outcome {
        if let Ok(address) = self.listener.local_addr() {
            let waits = if self.hold { "; the machine waits for a debugger" } else { "" };
            session.message(&format!("undervisor: gdb server at {address}{waits}"));
        }
        loop {
            let stream = match self.wait(session, machine) {
                Ok(stream) => stream,
                Err(outcome) => return outcome,
            };
            let served = Link::new(stream).and_then(|link| serve(link, session, machine));
            machine.set_debug_points(&Default::default(), true);
            machine.debug_resume(None, None);
            match served {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(e) => log::warn!("debugger: {e}"),
            }
            self.hold = false;
        }
    }

    /// Until a debugger connects; or how the run ended before that.
    fn wait(&self, session: &mut Session, machine: &mut Machine) -> Result<TcpStream, Outcome> {
        loop {
            if let Some(stream) = self.accept() {
                return Ok(stream);
            }
            let reason = if self.hold {
                std::thread::sleep(Duration::from_millis(5));
                if session.poll(&machine.progress()) {
                    continue;
                }
                StopReason::Host
            } else {
                let mut came = None;
                let reason = machine.run(&mut Watcher {
                    session,
                    interrupted: || {
                        came = came.take().or_else(|| self.accept());
                        came.is_some()
                    },
                });
                if let Some(stream) = came {
                    return Ok(stream);
                }
                reason
            };
            if let Some(outcome) = session.ended(machine, reason) {
                return Err(outcome);
            }
        }
    }
}

/// The session's host, that also leaves the run when someone else wants the machine to stop.
struct Watcher<'a, F> {
    session: &'a mut Session,
    interrupted: F,
}

impl<F: FnMut() -> bool> Host for Watcher<'_, F> {
    fn poll(&mut self, progress: &Progress) -> bool {
        !(self.interrupted)() && self.session.poll(progress)
    }
    fn idle(&mut self, nanoseconds: Option<u64>) -> Idle {
        if (self.interrupted)() {
            return Idle::Stop;
        }
        match (self.session.idle(nanoseconds), nanoseconds) {
            // Nothing but the debugger can end the wait.
            (Idle::Jump, None) => {
                std::thread::sleep(Duration::from_millis(5));
                Idle::Elapsed(1)
            }
            (idle, _) => idle,
        }
    }
}

/// Serve one debugger until it leaves (`None`) or the run is over.
fn serve(link: Link, session: &mut Session, machine: &mut Machine) -> io::Result<Option<Outcome>> {
    let mut target = Debuggee::new(machine);
    let mut ended = None;
    let error = |e: String| io::Error::other(e);
    let stub = GdbStub::new(link);
    let mut gdb = stub.run_state_machine(&mut target).map_err(|e| error(e.to_string()))?;
    loop {
        gdb = match gdb {
            GdbStubStateMachine::Idle(mut idle) => match idle.borrow_conn().take(Some(LOOK))? {
                Some(byte) => idle.incoming_data(&mut target, byte).map_err(|e| error(e.to_string()))?,
                None => {
                    if !session.poll(&target.machine.progress())
                        && let Some(outcome) = session.ended(target.machine, StopReason::Host)
                    {
                        return Ok(Some(outcome));
                    }
                    idle.into()
                }
            },
            GdbStubStateMachine::Running(mut running) => match running.borrow_conn().take(None)? {
                Some(byte) => running.incoming_data(&mut target, byte).map_err(|e| error(e.to_string()))?,
                None => {
                    let probe = running.borrow_conn().probe()?;
                    let stop = run(&mut target, session, &probe);
                    if let Some((stop, outcome)) = stop {
                        ended = ended.or(outcome);
                        if let Some(line) = &target.explanation {
                            running.borrow_conn().print(line)?;
                        }
                        running.report_stop(&mut target, stop).map_err(|e| error(e.to_string()))?
                    } else {
                        running.into()
                    }
                }
            },
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                let stop = MultiThreadStopReason::SignalWithThread { tid: target.thread(), signal: Signal::SIGINT };
                interrupt.interrupt_handled(&mut target, Some(stop)).map_err(|e| error(e.to_string()))?
            }
            GdbStubStateMachine::Disconnected(gone) => {
                return Ok(match gone.get_reason() {
                    DisconnectReason::Kill => {
                        ended.or(Some(Outcome { reason: StopReason::Host, code: 0, message: "ended by the debugger".into() }))
                    }
                    _ => ended,
                });
            }
        };
    }
}

/// Let the machine run until it has something to report (`None`: the debugger has something to say). With it comes how the run
/// ended, if it did.
#[allow(clippy::type_complexity)]
fn run(
    target: &mut Debuggee<'_>,
    session: &mut Session,
    probe: &Probe,
) -> Option<(MultiThreadStopReason<u64>, Option<Outcome>)> {
    loop {
        let mut spoke = false;
        let reason = target.machine.run(&mut Watcher {
            session,
            interrupted: || {
                spoke = spoke || probe.ready();
                spoke
            },
        });
        if spoke && reason == StopReason::Host {
            return None;
        }
        match target.stopped(reason) {
            Stopped::Report(stop) => return Some((stop, None)),
            Stopped::Over => {}
        }
        if let Some(outcome) = session.ended(target.machine, reason) {
            let code = outcome.code;
            return Some((MultiThreadStopReason::Exited(code), Some(outcome)));
        }
    }
}
