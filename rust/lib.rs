//! protperf: linear-attention Performers (FAVOR+), exact and fast.
//!
//! This facade gathers the crates of the workspace (the mathematics and the plain reference of `protperf-core`, the
//! CPU backend, the readers) and chooses the backend. Shapes are written as in the rest of the project: q
//! `[B,H,L,D]`, k `[B,Hk,S,D]`, v `[B,Hk,S,E]`, omega `[M,D]`, features `[.., F]`.

#![forbid(unsafe_code)]

pub use protperf_core::state::{empty_state, merge_states};
pub use protperf_core::*;
#[cfg(feature = "rehearse-panic")]
pub use protperf_cpu::rehearse_panic;
pub use protperf_cpu::{Cpu, CpuElement, CpuStored, Isa, default_num_threads};
pub use protperf_io as io;
pub use protperf_model as model;

/// Names that [`backend_by_name`] takes.
pub const BACKENDS: [&str; 3] = ["auto", "cpu", "reference"];

/// The backend of a name for tensors stored as `T`; `auto` is the fastest that this machine has. Which one that is,
/// its own name says.
///
/// # Errors
/// [`Error::InvalidOption`] that lists the names there are; [`Error::UnsupportedIsa`] where `PROTPERF_ISA` names an
/// instruction set that this processor lacks.
pub fn backend_by_name<T: Stored>(name: &str) -> Result<Box<dyn Backend<T>>>
where
    Cpu: Backend<T>,
{
    match name {
        "auto" | "cpu" => Ok(Box::new(Cpu { isa: Isa::from_env()? })),
        "reference" => Ok(Box::new(reference::Reference)),
        _ => {
            let detail = format!("{name:?} is unknown; choose one of {}", BACKENDS.join(", "));
            Err(Error::InvalidOption { argument: "backend", detail })
        }
    }
}
