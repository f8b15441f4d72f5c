//! protperf: linear-attention Performers (FAVOR+), exact and fast.
//!
//! This facade gathers the crates of the workspace (the mathematics and the plain reference of `protperf-core`, the
//! CPU backend, the readers) and chooses the backend. Shapes are written as in the rest of the project: q
//! `[B,H,L,D]`, k `[B,Hk,S,D]`, v `[B,Hk,S,E]`, omega `[M,D]`, features `[.., F]`.

#![forbid(unsafe_code)]

pub use protperf_alignment as alignment;
pub use protperf_cluster as cluster;
pub use protperf_core::state::{empty_state, merge_states};
pub use protperf_core::*;
#[cfg(feature = "rehearse-panic")]
pub use protperf_cpu::rehearse_panic;
pub use protperf_cpu::{
    Cpu, CpuElement, CpuStored, DecodingState, ExactSaved, Isa, OutRows, PreparedMap, RowGradients, RowOutputs,
    StepArgs, bf16::Unit as Bf16Unit, default_num_threads, team,
};
pub use protperf_io as io;
pub use protperf_model as model;
#[cfg(feature = "wgpu")]
pub use protperf_wgpu as gpu;

/// Names that [`backend_by_name`] takes; `wgpu` where this was built with it.
pub const BACKENDS: &[&str] = &[
    "auto",
    "cpu",
    "cpu-bf16",
    "reference",
    #[cfg(feature = "wgpu")]
    "wgpu",
];

/// The backend of a name for tensors stored as `T`; `auto` is the fastest on the processor, never a GPU: `cpu-bf16` for those of
/// bf16 where AMX multiplies them, else `cpu`. Which one that is, its own name says. `isa` is the instruction set that `cpu`
/// uses; `None`: what `PROTPERF_ISA` names, else the fastest.
///
/// # Errors
/// [`Error::InvalidOption`] that lists the names there are; [`Error::UnsupportedIsa`] where an instruction set is named
/// that this processor lacks.
pub fn backend_by_name<T: CpuStored>(name: &str, isa: Option<&str>) -> Result<Box<dyn Backend<T>>> {
    match name {
        "auto" if T::NAME == bf16::NAME => Ok(Box::new(Cpu::with_fast_bf16(isa_by_name(isa)?))),
        "auto" | "cpu" => Ok(Box::new(Cpu::new(isa_by_name(isa)?))),
        "cpu-bf16" if T::NAME == f64::NAME => {
            let taken = "float32, bfloat16 and float16";
            Err(Error::UnsupportedType { backend: "cpu-bf16", found: T::NAME, taken })
        }
        "cpu-bf16" => Ok(Box::new(Cpu::with_bf16(isa_by_name(isa)?))),
        "reference" => Ok(Box::new(reference::Reference)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Box::new(gpu::Wgpu)),
        #[cfg(not(feature = "wgpu"))]
        "wgpu" => Err(Error::Device { detail: "this build has no GPU backend; build it with the feature wgpu".into() }),
        _ => Err(Error::unknown_name("backend", name, BACKENDS)),
    }
}

fn isa_by_name(isa: Option<&str>) -> Result<Isa> {
    isa.map_or_else(Isa::from_env, Isa::from_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_chooses_a_backend_of_that_name_and_auto_one_of_the_others() {
        let scalar = Isa::available()[0].name();
        for &name in BACKENDS {
            let chosen = backend_by_name::<f32>(name, Some(scalar)).unwrap().name();
            assert!(chosen != "auto" && BACKENDS.contains(&chosen), "{name} is {chosen}");
            // Where no unit multiplies bf16, nothing is rounded.
            assert!(name == "auto" || name == chosen || (name, chosen) == ("cpu-bf16", "cpu"), "{name} is {chosen}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_there_are() {
        for name in ["", "Auto", "gpu"] {
            let error = backend_by_name::<f64>(name, None).err().unwrap().to_string();
            assert_eq!(error, format!("backend {name:?} is unknown; choose one of {}", BACKENDS.join(", ")));
        }
        assert!(matches!(backend_by_name::<f64>("cpu", Some("x87")), Err(Error::UnsupportedIsa { .. })));
    }
}
