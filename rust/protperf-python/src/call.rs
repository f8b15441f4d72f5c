//! How a call runs: without the GIL, answering signals, and with a panic turned into an exception.

use crate::errors::{panicked, to_python};
use protperf::{Error, Result, team};
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Longest time between two looks at signals.
pub const SLICE: Duration = Duration::from_millis(20);
/// Work up to this many multiply-adds (about a millisecond) is done by the calling thread alone.
const SMALL: f64 = 2e7;
/// Work up to this many (10 to 60 ms on two threads) is done without a look at signals, where torch's threads can do it.
const SHORT: f64 = 4e9;

/// The result of `body`, with a panic turned into `InternalError`: PyO3's own exception for one does not derive from
/// `Exception`, so callers would not catch it.
pub fn guarded<R>(py: Python<'_>, body: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(panicked(py, payload.as_ref())))
}

/// Runs `body` without the GIL. Large work goes to another thread while this one looks for signals; an interrupt
/// raises the cancel flag, and the exception of the signal's handler is what the caller sees. Between the small and the
/// large, torch's own threads do it, if this is the thread that they belong to.
pub fn run<R: Send>(
    py: Python<'_>,
    work: f64,
    num_threads: usize,
    body: impl Fn(&AtomicBool, usize) -> Result<R> + Sync,
) -> PyResult<R> {
    run_or(py, work, num_threads, body, to_python)
}

/// As [`run`], with errors of another kind, which `translate` turns into exceptions.
pub fn run_or<R: Send, E: Send>(
    py: Python<'_>,
    work: f64,
    num_threads: usize,
    body: impl Fn(&AtomicBool, usize) -> Result<R, E> + Sync,
    translate: impl FnOnce(Python<'_>, &E) -> PyErr,
) -> PyResult<R> {
    let cancel = AtomicBool::new(false);
    let guarded = |threads: usize| catch_unwind(AssertUnwindSafe(|| body(&cancel, threads)));
    let mut raised = None;
    let outcome = if work < SMALL {
        py.detach(|| guarded(1))
    } else if let Some(team) = team::of_this_thread(num_threads).filter(|_| work < SHORT) {
        py.detach(|| team.during(|| guarded(num_threads)))
    } else {
        std::thread::scope(|scope| {
            let (done, mut waiting) = channel();
            let guarded = &guarded;
            let started = std::thread::Builder::new().name("protperf-call".into()).spawn_scoped(scope, move || {
                // The receiver waits until the scope ends, so this cannot fail.
                let _ = done.send(guarded(num_threads));
            });
            if started.is_err() {
                return py.detach(|| guarded(1));
            }
            loop {
                let receiver = &mut waiting;
                match py.detach(move || receiver.recv_timeout(SLICE)) {
                    Ok(outcome) => return outcome,
                    Err(RecvTimeoutError::Disconnected) => return Err(Box::new("the call's thread died")),
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if raised.is_none()
                    && let Err(error) = py.check_signals()
                {
                    raised = Some(error);
                    cancel.store(true, Ordering::Relaxed);
                }
            }
        })
    };
    match (raised, outcome) {
        (Some(error), _) => Err(error),
        (None, Ok(Ok(value))) => Ok(value),
        (None, Ok(Err(error))) => Err(translate(py, &error)),
        (None, Err(payload)) => Err(panicked(py, payload.as_ref())),
    }
}

/// Exclusive outputs that a shared closure hands to its only run.
pub struct Once<T>(Mutex<Option<T>>);

impl<T> Once<T> {
    pub fn new(value: T) -> Self {
        Once(Mutex::new(Some(value)))
    }

    pub fn take(&self) -> Result<T> {
        self.0.lock().ok().and_then(|mut slot| slot.take()).ok_or(Error::Interrupted)
    }
}
