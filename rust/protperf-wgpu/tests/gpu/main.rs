//! The GPU backend against the f64 reference. One program, for each that links the drivers' interfaces takes time to build.

mod available;
mod causality;
mod draw;
#[path = "../../../protperf-cpu/tests/harness/mod.rs"]
mod harness;
mod limits;
mod passes;
mod resident;
