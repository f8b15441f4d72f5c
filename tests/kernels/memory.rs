//! The kernels touch the elements of their arguments and nothing else: inputs, outputs, masks, borders and
//! states lie against pages that must not be touched, in every layout, on every instruction set.

use crate::common::direct::{Context, Gradients, Saved, favor_backward, favor_forward};
use crate::common::kernel::{How, every_isa, kernel, on_threads};
use crate::common::{Answer, Case, Data, Directions, MAPS, PARTS};
use crate::guard::{Against, Guarded};
use protperf::{CpuElement, FavorArgs, FeatureMap, Isa, MapArgs, Omega, TensorRef, empty_state};
use std::sync::atomic::AtomicBool;

/// Length, head_dim, value_dim and num_features: whole registers, and one more or less.
const SHAPES: [(usize, usize, usize, usize); 16] = [
    (0, 3, 2, 4),
    (1, 1, 1, 1),
    (2, 3, 2, 5),
    (3, 5, 7, 3),
    (5, 7, 3, 9),
    (7, 9, 5, 15),
    (9, 13, 11, 17),
    (15, 15, 17, 31),
    (16, 16, 16, 16),
    (17, 17, 15, 33),
    (31, 31, 9, 7),
    (33, 33, 31, 65),
    (63, 2, 65, 4),
    (64, 65, 33, 63),
    (65, 4, 1, 257),
    (129, 6, 3, 11),
];

/// How a tensor lies in its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Contiguous,
    /// `[B,L,H,D]` in memory, as a projection leaves it.
    HeadsInside,
    /// The last axis runs backwards, two elements per step, with gaps of NaN.
    Backwards,
}

/// A tensor in guarded memory that ends with its last element.
struct Laid<T> {
    memory: Guarded<T>,
    offset: usize,
    shape: [usize; 4],
    strides: [isize; 4],
}

impl<T: CpuElement> Laid<T> {
    fn new(data: &[T], shape: [usize; 4], layout: Layout, against: Against) -> Self {
        let [b, h, l, w] = shape;
        let (step, row) = if layout == Layout::Backwards { (2, 2 * w.max(1) - 1) } else { (1, w) };
        let strides = match layout {
            Layout::HeadsInside => [l * h * row, row, h * row, step],
            _ => [h * l * row, l * row, row, step],
        };
        let mut memory = vec![T::from_f64(f64::NAN); if data.is_empty() { 0 } else { b * h * l * row }];
        for (at, &x) in data.iter().enumerate() {
            let column = if layout == Layout::Backwards { w - 1 - at % w } else { at % w };
            let index = [at / (h * l * w), at / (l * w) % h, at / w % l, column];
            memory[index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>()] = x;
        }
        let mut strides = strides.map(|s| s as isize);
        let mut offset = 0;
        if layout == Layout::Backwards {
            (strides[3], offset) = (-2, 2 * w.saturating_sub(1));
        }
        Laid { memory: Guarded::new(&memory, against), offset, shape, strides }
    }

    fn view(&self, name: &'static str) -> TensorRef<'_, T> {
        TensorRef::new(name, &self.memory, self.offset, self.shape, self.strides).unwrap()
    }
}

/// As `common::kernel::kernel`, with every argument against a guard page.
fn guarded_kernel<T: CpuElement>(case: &Case, data: &Data, how: How, layout: Layout, against: Against) -> Answer {
    let typed = data.typed::<T>();
    let (h, hk) = case.heads;
    let (b, l, s, d, e) = (case.batch, case.q_len, case.kv_len, case.head_dim, case.value_dim);
    let q = Laid::new(&typed.q, [b, h, l, d], layout, against);
    let k = Laid::new(&typed.k, [b, hk, s, d], layout, against);
    let v = Laid::new(&typed.v, [b, hk, s, e], layout, against);
    let g = Laid::new(&typed.grad, [b, h, l, e], layout, against);
    let omega = Guarded::new(&data.omega, against);
    let mask = Guarded::new(&data.mask, against);
    let borders = Guarded::new(case.borders.as_deref().unwrap_or_default(), against);
    let has_omega = case.directions != Directions::Axes;
    let args = FavorArgs {
        q: q.view("q"),
        k: k.view("k"),
        v: v.view("v"),
        map: MapArgs::Named {
            map: case.map,
            omega: has_omega.then(|| Omega {
                data: &omega,
                num_heads: (case.directions == Directions::PerHead).then_some(h),
                num_features: case.num_features,
                head_dim: d,
            }),
            kernel_epsilon: case.epsilon,
        },
        causal: case.causal,
        cu_seqlens: case.borders.is_some().then_some(&borders),
        key_padding_mask: case.masked.then_some(&mask),
    };
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa: how.isa, num_threads: how.num_threads, cancel: &cancel };
    let poisoned = |len: usize| Guarded::new(&vec![T::from_f64(f64::NAN); len], against);
    let (mut out, mut den) = (poisoned(data.grad.len()), poisoned(b * h * l * 2));
    favor_forward(&args, None, &mut out, &mut den, None, &ctx).unwrap();
    let kept = Laid::new(&out, [b, h, l, e], layout, against);
    let saved = Saved { out: &kept.view("out"), den: &den, grad: &g.view("grad") };
    let (mut dq, mut dk, mut dv) = (poisoned(data.q.len()), poisoned(data.k.len()), poisoned(data.v.len()));
    let mut domega = Guarded::new(&vec![f64::NAN; data.omega.len()], against);
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, domega: has_omega.then_some(&mut domega[..]) };
    favor_backward(&args, &saved, gradients, &ctx).unwrap();
    let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    [wide(&out), wide(&dq), wide(&dk), wide(&dv), domega.to_vec()]
}

/// Plain, with padding, with segments and shared key heads, with directions per head, and without any.
fn variants(
    map: FeatureMap,
    causal: bool,
    (len, head_dim, value_dim, num_features): (usize, usize, usize, usize),
) -> Vec<Case> {
    let case = Case { value_dim, ..Case::new(map, causal, len, head_dim, num_features) };
    let third = (len / 3) as i64;
    let kv_len = if causal { len } else { len / 2 + 3 };
    let mut all = vec![
        case.clone(),
        Case { masked: true, batch: 2, ..case.clone() },
        Case { borders: Some(vec![0, 0, third, len as i64]), heads: (2, 1), ..case.clone() },
        Case { heads: (4, 2), directions: Directions::PerHead, kv_len, ..case.clone() },
    ];
    if matches!(map, FeatureMap::Relu | FeatureMap::Elu1) {
        all.push(Case { directions: Directions::Axes, num_features: head_dim, ..case });
    }
    all
}

fn assert_same(found: &Answer, other: &Answer, what: &str) {
    for (part, name) in PARTS.into_iter().enumerate() {
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found[part]), bits(&other[part]), "{name} {what}");
    }
}

fn stays_inside_its_arguments<T: CpuElement>(causal: bool) {
    let layouts = [Layout::Contiguous, Layout::HeadsInside, Layout::Backwards];
    for map in MAPS {
        for shape in SHAPES {
            for (at, case) in variants(map, causal, shape).into_iter().enumerate() {
                let data = case.data(3);
                for isa in Isa::available() {
                    let [one, three] = on_threads([1, 3], isa);
                    let expected = kernel::<T>(&case, &data, one);
                    for (against, how) in [(Against::End, one), (Against::Start, three)] {
                        for layout in [Layout::Contiguous, layouts[1 + at % 2]] {
                            let found = guarded_kernel::<T>(&case, &data, how, layout, against);
                            assert_same(&found, &expected, &format!("{layout:?} {against:?} {how:?} {}", case.id()));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn f32_kernels_stay_inside_their_arguments() {
    stays_inside_its_arguments::<f32>(false);
}

#[test]
fn causal_f32_kernels_stay_inside_their_arguments() {
    stays_inside_its_arguments::<f32>(true);
}

#[test]
fn f64_kernels_stay_inside_their_arguments() {
    stays_inside_its_arguments::<f64>(false);
}

#[test]
fn causal_f64_kernels_stay_inside_their_arguments() {
    stays_inside_its_arguments::<f64>(true);
}

/// Outputs and the state after a sequence in two pieces, each argument against a guard page or in plain memory.
fn decoded(case: &Case, data: &Data, how: How, against: Option<Against>) -> (Vec<f32>, Vec<f32>) {
    let typed = data.typed::<f32>();
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa: how.isa, num_threads: how.num_threads, cancel: &cancel };
    let shape = crate::common::args(case, data, &typed).validate().unwrap();
    let mut state: Vec<f32> = empty_state(&shape).unwrap();
    let mut outputs = Vec::new();
    for rows in [0..case.q_len / 2, case.q_len / 2..case.q_len] {
        let piece = Case { q_len: rows.len(), kv_len: rows.len(), ..case.clone() };
        let cut = |x: &[f32], width: usize| x[rows.start * width..rows.end * width].to_vec();
        let typed = crate::common::Typed {
            q: cut(&typed.q, case.head_dim),
            k: cut(&typed.k, case.head_dim),
            v: cut(&typed.v, case.value_dim),
            grad: Vec::new(),
        };
        let args = crate::common::args(&piece, data, &typed);
        let poisoned = |len: usize| vec![f32::NAN; len];
        let (out, den, next) = (poisoned(rows.len() * case.value_dim), poisoned(rows.len() * 2), poisoned(state.len()));
        let Some(against) = against else {
            let (mut out, mut den, mut next) = (out, den, next);
            favor_forward(&args, Some(&state), &mut out, &mut den, Some(&mut next), &ctx).unwrap();
            (outputs, state) = ([outputs, out].concat(), next);
            continue;
        };
        let [before, mut out, mut den, mut next] = [&state, &out, &den, &next].map(|x| Guarded::new(x, against));
        favor_forward(&args, Some(&before), &mut out, &mut den, Some(&mut next), &ctx).unwrap();
        (outputs, state) = ([&outputs[..], &out].concat(), next.to_vec());
    }
    (outputs, state)
}

#[test]
fn decoding_stays_inside_its_states() {
    for map in MAPS {
        for (len, head_dim, value_dim, num_features) in SHAPES {
            let case = Case { value_dim, ..Case::new(map, true, len, head_dim, num_features) };
            let data = case.data(3);
            for how in every_isa() {
                let expected = decoded(&case, &data, how, None);
                for against in [Against::End, Against::Start] {
                    let found = decoded(&case, &data, how, Some(against));
                    assert_eq!(found, expected, "{against:?} {how:?} {}", case.id());
                }
            }
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn one_step_beyond_an_end_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    let Ok(side) = std::env::var("PROTPERF_TEST_STEP") else {
        for side in ["End", "Start"] {
            let name = "memory::one_step_beyond_an_end_ends_the_process";
            let mut again = Command::new(std::env::current_exe().unwrap());
            let status = again.args([name, "--exact"]).env("PROTPERF_TEST_STEP", side).output().unwrap().status;
            assert_eq!(status.signal(), Some(11), "{side} {status}");
        }
        return;
    };
    let against = if side == "End" { Against::End } else { Against::Start };
    let guarded = Guarded::new(&[1.0f32; 7], against);
    let (first, beyond) = (guarded.as_ptr(), if side == "End" { 7 } else { -1 });
    // SAFETY: none, by intent: the page is mapped, and reading it must end this process.
    let read = unsafe { first.wrapping_offset(beyond).read_volatile() };
    unreachable!("read {read} from a guard page");
}
