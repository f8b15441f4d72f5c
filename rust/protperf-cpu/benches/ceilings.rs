//! The ceilings that no kernel of this machine passes: f32 multiply-adds and f32 exponentials per second.
//!
//! Prints one JSON object. A bound computed from these holds for the machine and the minute it ran in, which is why
//! `benches/attention.py` measures them in the same run as the kernels. Sums live in registers and the exponential
//! reads and writes L1, so neither figure knows of memory.

use protperf_cpu::simd::{Real, Simd};
use protperf_cpu::{Isa, default_num_threads};
use std::hint::black_box;
use std::time::Instant;

/// Independent sums: enough to hide the latency of a multiply-add on two ports, few enough for 16 registers.
const SUMS: usize = 12;
/// Elements of one exponential pass: 8 KB in and 8 KB out.
const BLOCK: usize = 2048;
const ROUNDS: usize = 15;

/// # Safety
/// The ISA of S.
#[inline(always)]
unsafe fn multiply_add<S: Simd<T = f32>>(steps: usize) -> f64 {
    // SAFETY: the caller guarantees the ISA; the store fits the buffer.
    unsafe {
        let (a, b) = (S::splat(black_box(0.999_999)), S::splat(black_box(1e-6)));
        let mut sums = [S::splat(black_box(1.0)); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = S::fma(*sum, a, b);
            }
        }
        let mut out = [0.0f32; 16];
        for sum in sums {
            S::store(out.as_mut_ptr(), sum);
            black_box(&out);
        }
        (steps * SUMS * S::LANES * 2) as f64
    }
}

/// 2^x by the kernels' own polynomial and scaling.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
unsafe fn exponential<S: Simd<T = f32>>(steps: usize) -> f64 {
    const UNROLL: usize = 4;
    let input: Vec<f32> = (0..BLOCK).map(|i| -20.0 + 20.0 * i as f32 / BLOCK as f32).collect();
    let mut output = vec![0.0f32; BLOCK];
    for _ in 0..steps {
        for start in (0..BLOCK).step_by(UNROLL * S::LANES) {
            // SAFETY: UNROLL * LANES divides BLOCK, the caller guarantees the ISA.
            unsafe {
                let x: [S::Register; UNROLL] =
                    std::array::from_fn(|i| S::load(input.as_ptr().add(start + i * S::LANES)));
                let whole = x.map(|x| S::round(x));
                let fraction: [S::Register; UNROLL] = std::array::from_fn(|i| S::sub(x[i], whole[i]));
                let mut sum = [S::splat(f32::EXP2[f32::EXP2.len() - 1]); UNROLL];
                for &coefficient in f32::EXP2.iter().rev().skip(1) {
                    for i in 0..UNROLL {
                        sum[i] = S::fma(sum[i], fraction[i], S::splat(coefficient));
                    }
                }
                for i in 0..UNROLL {
                    S::store(output.as_mut_ptr().add(start + i * S::LANES), S::scale2(sum[i], whole[i]));
                }
            }
        }
        black_box(&mut output);
    }
    (steps * BLOCK) as f64
}

macro_rules! entries {
    ($module:ident, $features:literal, $lanes:ty) => {
        mod $module {
            /// # Safety
            /// The ISA named by the module.
            #[target_feature(enable = $features)]
            pub unsafe fn multiply_add(steps: usize) -> f64 {
                // SAFETY: the features are enabled.
                unsafe { super::multiply_add::<$lanes>(steps) }
            }
            /// # Safety
            /// The ISA named by the module.
            #[target_feature(enable = $features)]
            pub unsafe fn exponential(steps: usize) -> f64 {
                // SAFETY: the features are enabled.
                unsafe { super::exponential::<$lanes>(steps) }
            }
            /// Both ceilings, for a processor that was seen to have the ISA.
            pub fn work() -> (super::Work, super::Work) {
                (
                    // SAFETY: the processor has the ISA.
                    |steps| unsafe { multiply_add(steps) },
                    // SAFETY: as above.
                    |steps| unsafe { exponential(steps) },
                )
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
entries!(avx2, "avx2,fma", protperf_cpu::simd::avx2::F32);
#[cfg(target_arch = "x86_64")]
entries!(avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512cd", protperf_cpu::simd::avx512::F32);

type Work = fn(usize) -> f64;

/// `isa` comes from `Isa::from_env`, which answers only tiers that this processor has.
fn work(isa: Isa) -> (Work, Work) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::work(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::work(),
        _ => (
            // SAFETY: scalar lanes need no ISA.
            |steps| unsafe { multiply_add::<protperf_cpu::simd::scalar::F32>(steps) },
            // SAFETY: as above.
            |steps| unsafe { exponential::<protperf_cpu::simd::scalar::F32>(steps) },
        ),
    }
}

/// Units of work per second by `num_threads` threads together, the best of [`ROUNDS`] slices of some milliseconds.
fn rate(work: Work, num_threads: usize) -> f64 {
    let mut steps = 1;
    while timed(work, 1, steps).1 < 4e-3 {
        steps *= 2;
    }
    (0..ROUNDS).map(|_| timed(work, num_threads, steps)).map(|(done, seconds)| done / seconds).fold(0.0, f64::max)
}

fn timed(work: Work, num_threads: usize, steps: usize) -> (f64, f64) {
    let barrier = std::sync::Barrier::new(num_threads);
    let slices: Vec<(f64, Instant, Instant)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = Instant::now();
                    let done = work(steps);
                    (done, start, Instant::now())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a ceiling does not panic")).collect()
    });
    let start = slices.iter().map(|slice| slice.1).min().expect("at least one thread");
    let end = slices.iter().map(|slice| slice.2).max().expect("at least one thread");
    (slices.iter().map(|slice| slice.0).sum(), (end - start).as_secs_f64())
}

fn main() {
    let isa = Isa::from_env().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    let (multiply_add, exponential) = work(isa);
    let num_threads = default_num_threads();
    println!(
        "{{\"isa\": \"{}\", \"num_threads\": {num_threads}, \
         \"flops_one\": {:.4e}, \"flops_all\": {:.4e}, \"exps_one\": {:.4e}, \"exps_all\": {:.4e}}}",
        isa.name(),
        rate(multiply_add, 1),
        rate(multiply_add, num_threads),
        rate(exponential, 1),
        rate(exponential, num_threads),
    );
}
