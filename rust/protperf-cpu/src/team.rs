//! The threads of torch, in the place of a pool of our own.
//!
//! After each of its parallel operations torch's OpenMP workers spin for some milliseconds, so that the next one finds
//! them awake. A call between two such operations would share its cores with them: on two cores, attention of half a
//! millisecond takes three. So short calls from the thread that these workers belong to run on them, by the same entry
//! that compiled OpenMP code calls. Longer calls keep the pool: they outlast the spinning, and their caller has to look
//! for signals meanwhile.

use std::any::Any;
use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ThreadId;

/// `GOMP_parallel(function, data, num_threads, flags)`: calls `function(data)` once on every thread of a team.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
/// `omp_get_max_threads()`: of the team that the calling thread would get.
type MaxThreads = unsafe extern "C" fn() -> c_int;

static TEAM: AtomicPtr<Team> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    /// The team that calls of this thread run on.
    static IN_USE: Cell<Option<&'static Team>> = const { Cell::new(None) };
}

/// The workers of one thread of one process.
#[derive(Debug)]
pub struct Team {
    parallel: Parallel,
    max_threads: MaxThreads,
    /// A forked child has none of them.
    pid: u32,
    /// Every thread has workers of its own, and those of others do not spin for it.
    thread: ThreadId,
}

/// What a thread of the team does, and the panic that it may end in.
struct Job<'a> {
    worker: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Makes known the OpenMP library whose workers belong to this thread of this process; the last call counts.
///
/// # Safety
/// The addresses are those of `GOMP_parallel` and `omp_get_max_threads` of one library that is never unloaded.
pub unsafe fn register(parallel: usize, max_threads: usize) {
    // SAFETY: the caller's promise; a function pointer has the size of an address.
    let (parallel, max_threads) = unsafe {
        (std::mem::transmute::<usize, Parallel>(parallel), std::mem::transmute::<usize, MaxThreads>(max_threads))
    };
    let (pid, thread) = (std::process::id(), std::thread::current().id());
    // Never freed, for a call may run on it: a few words for each call of this function, of which a program makes one.
    TEAM.store(Box::into_raw(Box::new(Team { parallel, max_threads, pid, thread })), Ordering::Release);
}

/// The team of this thread, where it has just so many threads: asked for another number, it would make its workers anew.
pub fn of_this_thread(num_threads: usize) -> Option<&'static Team> {
    // SAFETY: a team, once published, is never freed.
    let found = unsafe { TEAM.load(Ordering::Acquire).as_ref() }?;
    if found.thread != std::thread::current().id() || found.pid != std::process::id() {
        return None;
    }
    // SAFETY: a function without arguments that reads a setting of the calling thread.
    let size = unsafe { (found.max_threads)() };
    (num_threads > 1 && usize::try_from(size) == Ok(num_threads)).then_some(found)
}

/// The team that [`Team::during`] has put in the place of the pool.
pub fn in_use() -> Option<&'static Team> {
    IN_USE.get()
}

impl Team {
    /// Lets the calls that `body` makes from this thread run on the team.
    pub fn during<R>(&'static self, body: impl FnOnce() -> R) -> R {
        let _restored = Restored(IN_USE.replace(Some(self)));
        body()
    }

    /// Calls `worker` once on each of so many threads, this one among them.
    ///
    /// # Panics
    /// Where one of them panics, once all have ended.
    pub fn run(&self, num_threads: usize, worker: &(dyn Fn() + Sync)) {
        let job = Job { worker, panic: Mutex::default() };
        let data = (&raw const job).cast_mut().cast();
        let count = c_uint::try_from(num_threads).unwrap_or(c_uint::MAX);
        // SAFETY: the library calls `start` with this pointer and comes back when all threads have ended, so `job`
        // outlives its use; it is only read, by types that are `Sync`.
        unsafe { (self.parallel)(start, data, count, 0) };
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

/// Puts back what was in use before, also where the body panics.
struct Restored(Option<&'static Team>);

impl Drop for Restored {
    fn drop(&mut self) {
        IN_USE.set(self.0);
    }
}

/// No panic may pass through the frames of the library.
extern "C" fn start(data: *mut c_void) {
    // SAFETY: [`Team::run`] passes a job that outlives this call.
    let job = unsafe { &*data.cast_const().cast::<Job<'_>>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job.worker)) {
        job.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}
