//! The only file that names rayon: the thread pool, and the floating-point mode of each task.
//!
//! Work is always split by shape and combined in index order, so the number of threads changes no bit.

use protperf_core::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The pools of one process, by number of threads.
struct ProcessPools {
    pid: u32,
    by_threads: Mutex<HashMap<usize, Arc<rayon::ThreadPool>>>,
}

static CURRENT: AtomicPtr<ProcessPools> = AtomicPtr::new(std::ptr::null_mut());

/// The pools of this process. A forked child has none of its parent's workers, and may have inherited the lock in
/// any state, so it gets a record of its own; the parent's is left alone, never joined and never freed.
fn process_pools() -> &'static ProcessPools {
    let pid = std::process::id();
    loop {
        let current = CURRENT.load(Ordering::Acquire);
        // SAFETY: a record, once published, is never freed.
        if let Some(found) = unsafe { current.as_ref() }.filter(|pools| pools.pid == pid) {
            return found;
        }
        let fresh = Box::into_raw(Box::new(ProcessPools { pid, by_threads: Mutex::default() }));
        if CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `fresh` was not published, so this is its only owner.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

fn pool(num_threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    let mut pools = process_pools().by_threads.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = pools.get(&num_threads) {
        return Ok(found.clone());
    }
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .thread_name(|i| format!("protperf-{i}"))
        .build()
        .map_err(|_| Error::OutOfMemory { bytes: num_threads * (2 << 20) })?;
    let built = Arc::new(built);
    pools.insert(num_threads, built.clone());
    Ok(built)
}

/// Runs `task(i)` for every i below `num_tasks`; stops early where a task fails or `cancel` is raised.
///
/// # Errors
/// A failure of one of the tasks, or [`Error::Interrupted`].
pub fn run(
    num_tasks: usize,
    num_threads: usize,
    cancel: &AtomicBool,
    task: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let guarded = |i: usize| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let _mode = FloatMode::standard();
        task(i)
    };
    if num_threads <= 1 || num_tasks <= 1 {
        return (0..num_tasks).try_for_each(guarded);
    }
    pool(num_threads)?.install(|| (0..num_tasks).into_par_iter().with_max_len(1).try_for_each(guarded))
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

/// Cores that affinity allows.
pub fn default_num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
