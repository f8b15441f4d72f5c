//! Whether this machine has an adapter to test on.

use protperf_wgpu::adapters;

/// Whether the tests can run; says why where they cannot. With `PROTPERF_REQUIRE_GPU=1` a missing adapter is a failure.
///
/// Tests need `PROTPERF_GPU` to name the adapter where it computes on the processor, as everyone does.
pub fn has_gpu() -> bool {
    let (_, fault) = adapters();
    let Some(fault) = fault else { return true };
    assert!(std::env::var("PROTPERF_REQUIRE_GPU").is_err(), "{fault}");
    println!("skipped: {fault}");
    false
}
