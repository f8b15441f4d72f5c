//! The ops that a block spends its time in, on every instruction set of this processor, one thread, f32.
//!
//!     cargo bench -p protperf-cpu --bench ops
//!
//! Products are measured in multiplications and additions, rows in numbers: criterion's `elem/s`. Shapes are those of the
//! `nano` network and tiles of 256 tokens, which stay in the second-level cache. Results are judged by the tests.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use protperf_cpu::Isa;
use protperf_cpu::ops::{Mode, Ops, Product, Triangle};
use std::hint::black_box;

const ROWS: usize = 256;
const PANEL: usize = 64;

/// Numbers between -1 and 1.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// Rows of `depth` numbers times a matrix of `cols` columns in panels, as linear layers multiply.
fn layers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("product");
    for (name, depth, cols) in [("gate and up", 128, 768), ("down", 384, 128), ("queries, keys, values", 128, 384)] {
        let (x, w) = (numbers(ROWS * depth), numbers(depth * cols));
        group.throughput(Throughput::Elements(2 * (ROWS * depth * cols) as u64));
        for isa in Isa::available() {
            let ops = Ops::<f32>::of(isa);
            let mut out = vec![0.0; ROWS * cols];
            group.bench_function(format!("{name}/{}", isa.name()), |bencher| {
                bencher.iter(|| {
                    for (panel, b) in w.chunks_exact(depth * PANEL).enumerate() {
                        let product = Product {
                            a: black_box(&x),
                            a_row: depth,
                            a_depth: 1,
                            b,
                            b_row: PANEL,
                            rows: ROWS,
                            cols: PANEL,
                            depth,
                            mode: Mode::Store,
                            triangle: Triangle::Whole,
                        };
                        ops.product(&product, &mut out[panel * PANEL..], cols);
                    }
                });
            });
        }
    }
}

/// Passes over rows: the gate, the norm, and the rotation of queries and keys.
fn rows(criterion: &mut Criterion) {
    const FFN: usize = 384;
    const MODEL: usize = 128;
    const HALF: usize = 16;
    let [gate, up, grad] = [(); 3].map(|()| numbers(FFN));
    let (x, gain, lengths) = (numbers(MODEL), numbers(MODEL), vec![1.0; MODEL / (2 * HALF)]);
    let (cosines, sines) = (vec![0.8; HALF], vec![0.6; HALF]);
    let mut group = criterion.benchmark_group("row");
    for isa in Isa::available() {
        let ops = Ops::<f32>::of(isa);
        let [mut dgate, mut dup, mut value] = [(); 3].map(|()| vec![0.0; FFN]);
        group.throughput(Throughput::Elements(FFN as u64));
        group.bench_function(format!("gate/{}", isa.name()), |bencher| {
            bencher.iter(|| ops.gate(black_box(&gate), &up, &mut value));
        });
        group.bench_function(format!("gradient of the gate/{}", isa.name()), |bencher| {
            bencher.iter(|| ops.gate_gradient(black_box(&gate), &up, &grad, &mut dgate, &mut dup, &mut value));
        });
        group.throughput(Throughput::Elements(MODEL as u64));
        let mut normed = vec![0.0; MODEL];
        group.bench_function(format!("norm/{}", isa.name()), |bencher| {
            bencher.iter(|| ops.rms_norm(black_box(&x), &gain, f32::EPSILON, &mut normed));
        });
        let mut inverses = vec![0.0; lengths.len()];
        group.bench_function(format!("unit length and rotation/{}", isa.name()), |bencher| {
            let rotate = |mut x: Vec<f32>| ops.unit_rotate(&mut x, &lengths, &cosines, &sines, &mut inverses);
            bencher.iter_batched(|| x.clone(), rotate, BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, layers, rows);
criterion_main!(benches);
