//! The only file that names rayon: the thread pool, and the floating-point mode of each task.
//!
//! Work is always split by shape and combined in index order, so the number of threads changes no bit.

use crate::layout::CHUNK;
use crate::team::{self, Team};
use protperf_core::{Error, Execution, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The pool of one process. A call that asks for another number of threads replaces it, so that there are never
/// idle workers beyond what was asked for last; calls that still run in the old one keep it until they end.
struct ProcessPool {
    pid: u32,
    pool: Mutex<Option<Arc<rayon::ThreadPool>>>,
}

static CURRENT: AtomicPtr<ProcessPool> = AtomicPtr::new(std::ptr::null_mut());

/// The pool of this process. A forked child has none of its parent's workers, and may have inherited the lock in
/// any state, so it gets a record of its own; the parent's is left alone, never joined and never freed.
fn process_pool() -> &'static ProcessPool {
    let pid = std::process::id();
    loop {
        let current = CURRENT.load(Ordering::Acquire);
        // SAFETY: a record, once published, is never freed.
        if let Some(found) = unsafe { current.as_ref() }.filter(|found| found.pid == pid) {
            return found;
        }
        let fresh = Box::into_raw(Box::new(ProcessPool { pid, pool: Mutex::default() }));
        if CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `fresh` was not published, so this is its only owner.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

fn pool(num_threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    let mut kept = process_pool().pool.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = kept.as_ref().filter(|pool| pool.current_num_threads() == num_threads) {
        return Ok(found.clone());
    }
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .thread_name(|i| format!("protperf-{i}"))
        .build()
        .map_err(|_| Error::OutOfMemory { bytes: num_threads * (2 << 20) })?;
    let built = Arc::new(built);
    *kept = Some(built.clone());
    Ok(built)
}

/// The threads of one call, and the flag that stops it.
#[derive(Clone, Copy, Debug)]
pub struct Workers<'a> {
    /// Threads of the pool.
    num_threads: usize,
    /// Raised by the caller to stop the call.
    cancel: &'a AtomicBool,
    /// What runs in the place of the pool.
    team: Option<&'static Team>,
}

/// Rows between two checks of the cancel flag in scans that do little with a row.
const ROWS_BETWEEN_CHECKS: usize = 1024;

impl<'a> Workers<'a> {
    /// The threads that a caller grants.
    pub fn new(run: &Execution<'a>) -> Self {
        Workers { num_threads: run.num_threads, cancel: run.cancel, team: team::in_use() }
    }

    /// Stops where the caller asked for it.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        check(self.cancel)
    }

    /// Called at every row of a scan over a whole sequence; checks the flag now and then.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check_at(&self, row: usize) -> Result<()> {
        if row.is_multiple_of(ROWS_BETWEEN_CHECKS) { self.check() } else { Ok(()) }
    }

    /// Calls `chunk` with the first row and the number of rows of every chunk of some rows.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn for_each_chunk(&self, len: usize, mut chunk: impl FnMut(usize, usize)) -> Result<()> {
        for low in (0..len).step_by(CHUNK) {
            self.check()?;
            chunk(low, CHUNK.min(len - low));
        }
        Ok(())
    }

    /// Runs `task(i)` for every i below `num_tasks`; stops early where a task fails or the flag is raised.
    ///
    /// # Errors
    /// A failure of one of the tasks, or [`Error::Interrupted`].
    pub fn run(&self, num_tasks: usize, task: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        self.fold(num_tasks, task, |_, ()| Ok(()))
    }

    /// As [`Workers::run`], and hands the results to `fold` in the order of the indices, whichever thread is done first.
    ///
    /// Threads take tasks in order, so about one result per thread runs ahead and has to wait for its turn.
    ///
    /// # Errors
    /// As [`Workers::run`], or a failure of `fold`.
    pub fn fold<R: Send>(
        &self,
        num_tasks: usize,
        task: impl Fn(usize) -> Result<R> + Sync,
        fold: impl FnMut(usize, R) -> Result<()> + Send,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Ordered { next: 0, waiting: BTreeMap::new(), fold, failure: None });
        let worker = || {
            let _mode = FloatMode::standard();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= num_tasks {
                    return;
                }
                let found = self.check().and_then(|()| task(index));
                if !results.lock().unwrap_or_else(PoisonError::into_inner).accept(index, found) {
                    next.store(num_tasks, Ordering::Relaxed);
                }
            }
        };
        let helpers = self.num_threads.min(num_tasks).saturating_sub(1);
        if helpers == 0 {
            worker();
        } else if let Some(team) = self.team {
            // All of it, also where fewer have work: a team of another size would be made anew.
            team.run(self.num_threads, &worker);
        } else {
            // A helper that no thread has started by the end finds no task left: the call does not wait for a busy core.
            pool(self.num_threads)?.install(|| {
                rayon::scope(|scope| {
                    (0..helpers).for_each(|_| scope.spawn(|_| worker()));
                    worker();
                });
            });
        }
        results.into_inner().unwrap_or_else(PoisonError::into_inner).failure.map_or(Ok(()), Err)
    }
}

/// Results that are folded in order.
struct Ordered<R, F> {
    next: usize,
    waiting: BTreeMap<usize, R>,
    fold: F,
    failure: Option<Error>,
}

impl<R, F: FnMut(usize, R) -> Result<()>> Ordered<R, F> {
    /// False: something failed and no more tasks need to run.
    fn accept(&mut self, index: usize, found: Result<R>) -> bool {
        let folded = found.and_then(|value| {
            if index == self.next {
                // Its turn: nothing is kept, so that a call on one thread allocates nothing here.
                (self.fold)(index, value)?;
                self.next += 1;
            } else {
                self.waiting.insert(index, value);
            }
            while let Some(value) = self.waiting.remove(&self.next) {
                (self.fold)(self.next, value)?;
                self.next += 1;
            }
            Ok(())
        });
        if let Err(error) = folded {
            self.failure.get_or_insert(error);
        }
        self.failure.is_none()
    }
}

/// Called between chunks of work, at most 20 ms apart.
///
/// # Errors
/// [`Error::Interrupted`] once the caller's flag is raised.
fn check(cancel: &AtomicBool) -> Result<()> {
    #[cfg(feature = "rehearse-panic")]
    if REHEARSED.load(Ordering::Relaxed) != 0 {
        let last = REHEARSED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(last != Ok(1), "rehearsed");
    }
    if cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Checks that are left until the one that panics; 0: none panics.
#[cfg(feature = "rehearse-panic")]
static REHEARSED: AtomicUsize = AtomicUsize::new(0);

/// Makes the `checks`-th [`check`] from now panic, once, in whichever thread reaches it: for tests of what a panic in
/// the middle of a call leaves behind. 0 cancels it.
#[cfg(feature = "rehearse-panic")]
#[doc(hidden)]
pub fn rehearse_panic(checks: usize) {
    REHEARSED.store(checks, Ordering::Relaxed);
}

/// Round to nearest with denormals kept, for as long as it lives: flush-to-zero is per thread, and callers
/// (torch among them) may have set it.
struct FloatMode {
    #[cfg(target_arch = "x86_64")]
    saved: u32,
}

#[cfg(target_arch = "x86_64")]
impl FloatMode {
    fn standard() -> Self {
        let (mut saved, standard) = (0u32, 0x1F80u32);
        // SAFETY: MXCSR is readable and writable in every x86-64 process; 0x1F80 is its value at start-up.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut saved, options(nostack));
            std::arch::asm!("ldmxcsr [{}]", in(reg) &standard, options(nostack));
        }
        FloatMode { saved }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FloatMode {
    fn drop(&mut self) {
        // SAFETY: the value was read from MXCSR.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &self.saved, options(nostack)) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl FloatMode {
    fn standard() -> Self {
        FloatMode {}
    }
}

/// Cores that affinity and, on Linux, the control group's quota allow.
pub fn default_num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
