//! Bits of the CPU kernels that must not depend on what they do not see: later rows, other segments and heads,
//! the number of threads, strides, whether a sequence comes whole or in pieces.

use crate::common::direct::{Context, Gradients, Saved, favor_backward, favor_forward};
use crate::common::kernel::{How, every_isa, kernel};
use crate::common::{Answer, Case, Data, Directions, MAPS, PARTS, Typed, args, grad, relative};
use protperf::{CpuElement, FavorArgs, FavorShape, FeatureMap, Isa, TensorRef, empty_state, merge_states};
use std::sync::atomic::AtomicBool;

/// Bits, so that NaN equals itself.
fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn assert_same(found: &Answer, other: &Answer, what: &str) {
    for part in 0..5 {
        assert_eq!(bits(&found[part]), bits(&other[part]), "{} {what}", PARTS[part]);
    }
}

/// Both types on every instruction set.
fn in_both_types(case: &Case, check: impl Fn(&dyn Fn(&Case, &Data) -> Answer, String)) {
    for how in every_isa() {
        check(&|case, data| kernel::<f32>(case, data, how), format!("f32 {how:?} {}", case.id()));
        check(&|case, data| kernel::<f64>(case, data, how), format!("f64 {how:?} {}", case.id()));
    }
}

#[test]
fn threads_change_no_bit() {
    for map in MAPS {
        for causal in [false, true] {
            let case = Case { heads: (4, 2), batch: 2, masked: true, ..Case::new(map, causal, 150, 17, 33) };
            let packed = Case { batch: 1, masked: false, borders: Some(vec![0, 70, 70, 80, 150]), ..case.clone() };
            for case in [case, packed] {
                let data = case.data(4);
                for isa in Isa::available() {
                    let one = kernel::<f32>(&case, &data, How { isa, num_threads: 1 });
                    for num_threads in [2, 3, 7] {
                        let many = kernel::<f32>(&case, &data, How { isa, num_threads });
                        assert_same(&many, &one, &format!("{num_threads} threads {isa:?} {}", case.id()));
                    }
                }
            }
        }
    }
}

/// The data with rows from `start` on drawn anew at a scale, and no gradient arriving there.
fn changed_after(case: &Case, data: &Data, start: usize, scale: f64) -> Data {
    let other = case.data(99);
    let mut changed = data.clone();
    let (d, e) = (case.head_dim, case.value_dim);
    for (to, from, width, scale) in [
        (&mut changed.q, &other.q, d, scale),
        (&mut changed.k, &other.k, d, scale),
        // Values stay near those before: what is flushed when a later one is 2^40 times larger is another test.
        (&mut changed.v, &other.v, e, 1e3),
    ] {
        to[start * width..].iter_mut().zip(&from[start * width..]).for_each(|(to, from)| *to = scale * from);
    }
    changed.grad[start * e..].fill(0.0);
    changed
}

/// Rows before `start` of every part that has rows, and domega.
fn before(answer: &Answer, case: &Case, start: usize) -> [Vec<u64>; 5] {
    let (d, e) = (case.head_dim, case.value_dim);
    let rows = |part: usize, width: usize| bits(&answer[part][..start * width]);
    [rows(0, e), rows(1, d), rows(2, d), rows(3, e), bits(&answer[4])]
}

#[test]
fn later_rows_change_no_bit_of_earlier_ones() {
    for map in MAPS {
        let case = Case { value_dim: 9, ..Case::new(map, true, 200, 16, 40) };
        let data = case.data(3);
        in_both_types(&case, |run, what| {
            for start in [1, 40, 64, 100, 150] {
                let quiet = changed_after(&case, &data, start, 1.0);
                let expected = before(&run(&case, &quiet), &case, start);
                for scale in [1e-3, 10.0, 1e3, 1e6] {
                    let changed = changed_after(&case, &data, start, scale);
                    let found = before(&run(&case, &changed), &case, start);
                    assert_eq!(found, expected, "rows before {start} at scale {scale} {what}");
                }
                // On a direction itself: the largest log-feature that there can be.
                let mut on_omega = changed_after(&case, &data, start, 1.0);
                for (k, w) in on_omega.k[start * 16..(start + 1) * 16].iter_mut().zip(&data.omega[5 * 16..]) {
                    *k = 2.0 * w;
                }
                let found = before(&run(&case, &on_omega), &case, start);
                assert_eq!(found, expected, "rows before {start}, key on omega {what}");
            }
        });
    }
}

/// With 64 dimensions a key on a direction raises a reference by more than 2^40: rows before it are recomputed.
#[test]
fn a_later_key_far_above_the_rest_changes_no_bit_of_earlier_rows() {
    for map in MAPS {
        let case = Case { value_dim: 9, ..Case::new(map, true, 100, 64, 20) };
        let data = case.data(3);
        in_both_types(&case, |run, what| {
            for start in [20, 63, 64, 90] {
                let mut quiet = data.clone();
                quiet.grad[start * 9..].fill(0.0);
                let expected = before(&run(&case, &quiet), &case, start);
                let mut far = quiet.clone();
                for (k, w) in far.k[start * 64..(start + 1) * 64].iter_mut().zip(&data.omega[5 * 64..]) {
                    *k = 64f64.powf(0.25) * w;
                }
                let found = before(&run(&case, &far), &case, start);
                for (part, name) in PARTS.into_iter().enumerate() {
                    assert!(found[part] == expected[part], "{name} before {start} {what}");
                }
            }
        });
    }
}

#[test]
fn rising_keys_change_no_bit_of_earlier_rows() {
    for map in [FeatureMap::Positive, FeatureMap::Hyperbolic, FeatureMap::Trigonometric] {
        let case = Case::new(map, true, 200, 8, 24);
        let mut data = case.data(3);
        for (at, k) in data.k.iter_mut().enumerate() {
            *k *= 0.05 + 6.0 * ((at / 8) as f64 / 200.0);
        }
        in_both_types(&case, |run, what| {
            let whole = run(&case, &data);
            for len in [1, 30, 63, 64, 65, 130, 199] {
                let mut cut = Case { q_len: len, kv_len: len, ..case.clone() }.data(0);
                let take = |from: &[f64], to: &mut Vec<f64>| *to = from[..len * 8].to_vec();
                take(&data.q, &mut cut.q);
                take(&data.k, &mut cut.k);
                take(&data.v, &mut cut.v);
                take(&data.grad, &mut cut.grad);
                cut.omega = data.omega.clone();
                let found = run(&Case { q_len: len, kv_len: len, ..case.clone() }, &cut);
                assert_eq!(bits(&found[0]), bits(&whole[0][..len * 8]), "first {len} rows {what}");
            }
        });
    }
}

#[test]
fn later_keys_move_one_hot_values_by_less_than_2_to_the_minus_60() {
    // Where a visible value is 0 or tiny, its terms may be flushed once a later key raises the reference.
    for map in MAPS {
        let case = Case { value_dim: 100, ..Case::new(map, true, 100, 8, 24) };
        let mut data = case.data(3);
        data.v = (0..100 * 100).map(|at| f64::from(u8::from(at / 100 == at % 100))).collect();
        in_both_types(&case, |run, what| {
            let first = run(&case, &data);
            for scale in [10.0, 1e3] {
                let mut changed = data.clone();
                let other = case.data(99);
                for at in 60 * 8..100 * 8 {
                    changed.k[at] = scale * other.k[at];
                }
                let found = run(&case, &changed);
                for (a, b) in found[0][..60 * 100].iter().zip(&first[0]) {
                    assert!((a - b).abs() <= 2f64.powi(-60), "{a} {b} {what}");
                }
            }
        });
    }
}

#[test]
fn other_segments_heads_and_padding_change_no_bit() {
    for map in MAPS {
        for causal in [false, true] {
            let case = Case::new(map, causal, 100, 8, 24);
            let packed = Case { heads: (2, 1), borders: Some(vec![0, 30, 100]), ..case.clone() };
            let data = packed.data(3);
            in_both_types(&packed, |run, what| {
                let expected = run(&packed, &data);
                let mut changed = data.clone();
                // The second segment of both heads, and the whole second head's queries.
                changed.k[30 * 8..].iter_mut().for_each(|x| *x *= 50.0);
                changed.q[100 * 8..].iter_mut().for_each(|x| *x *= 50.0);
                let found = run(&packed, &changed);
                assert_eq!(bits(&found[0][..30 * 8]), bits(&expected[0][..30 * 8]), "out {what}");
                assert_eq!(bits(&found[1][..30 * 8]), bits(&expected[1][..30 * 8]), "dq {what}");
            });
            let masked = Case { masked: true, ..case };
            let data = masked.data(3);
            in_both_types(&masked, |run, what| {
                let expected = run(&masked, &data);
                for filler in [1e30, f64::NAN, f64::INFINITY] {
                    let mut changed = data.clone();
                    for at in (0..100 * 8).filter(|at| data.mask[at / 8]) {
                        changed.k[at] = filler;
                        changed.v[at] = filler;
                    }
                    assert_same(&run(&masked, &changed), &expected, &format!("padding of {filler} {what}"));
                }
            });
        }
    }
}

#[test]
fn what_is_not_finite_reaches_what_sees_it_as_in_the_reference() {
    for map in MAPS {
        for causal in [false, true] {
            let case = Case { heads: (2, 1), ..Case::new(map, causal, 150, 8, 24) };
            let packed = Case { borders: Some(vec![0, 70, 71, 150]), ..case.clone() };
            for case in [case, packed] {
                let clean = case.data(2);
                for (place, bad) in [(3, f64::NAN), (70, f64::INFINITY), (100, f64::NEG_INFINITY), (149, f64::NAN)] {
                    let mut poisoned = [clean.clone(), clean.clone(), clean.clone(), clean.clone()];
                    poisoned[0].q[place * 8 + 1] = bad;
                    poisoned[1].k[place * 8] = bad;
                    poisoned[2].v[place * 8 + 7] = bad;
                    poisoned[3].grad[place * 8 + 2] = bad;
                    for mut data in poisoned {
                        // Rows late in the sequence send no gradient, so that some keys stay free of it.
                        data.grad[(place + 20).min(149) * 8..150 * 8].fill(0.0);
                        let truth = crate::common::reference::<f64>(&case, &data);
                        in_both_types(&case, |run, what| {
                            let (found, untouched) = (run(&case, &data), run(&case, &clean));
                            for part in 0..5 {
                                let same = |x: &[f64]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
                                assert_eq!(same(&found[part]), same(&truth[part]), "{} {what}", PARTS[part]);
                            }
                            for (x, other) in found[0].iter().zip(&untouched[0]).filter(|(x, _)| !x.is_nan()) {
                                assert_eq!(x.to_bits(), other.to_bits(), "out {what}");
                            }
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_of_an_earlier_loss_keep_their_bits_when_later_rows_turn_bad() {
    for map in MAPS {
        let case = Case::new(map, true, 150, 8, 24);
        let mut data = case.data(2);
        data.grad[90 * 8..].fill(0.0);
        in_both_types(&case, |run, what| {
            let expected = run(&case, &data);
            for bad in [f64::NAN, f64::INFINITY] {
                let mut poisoned = data.clone();
                poisoned.k[95 * 8] = bad;
                poisoned.q[120 * 8 + 3] = bad;
                poisoned.v[140 * 8] = bad;
                let found = run(&case, &poisoned);
                for part in 1..5 {
                    assert_eq!(bits(&found[part]), bits(&expected[part]), "{} {what}", PARTS[part]);
                }
            }
        });
    }
}

/// A copy of `[b,h,l,w]` in other strides: `[l,h,b,w]` with the last axis reversed and gaps of NaN between.
fn scattered<T: CpuElement>(data: &[T], shape: [usize; 4]) -> (Vec<T>, usize, [isize; 4]) {
    let [b, h, l, w] = shape;
    let row = 2 * w + 1;
    let mut memory = vec![T::from_f64(f64::NAN); (l * h * b * row).max(1)];
    let strides = [row as isize, (b * row) as isize, (h * b * row) as isize, -2];
    let offset = 2 * w.saturating_sub(1);
    for (at, &x) in data.iter().enumerate() {
        let (i, j, k, c) = (at / (h * l * w), at / (l * w) % h, at / w % l, at % w);
        memory[(k * h * b + j * b + i) * row + offset - 2 * c] = x;
    }
    (memory, offset, strides)
}

fn view<'a, T: CpuElement>(
    name: &'static str,
    (memory, offset, strides): &'a (Vec<T>, usize, [isize; 4]),
    shape: [usize; 4],
) -> TensorRef<'a, T> {
    TensorRef::new(name, memory, *offset, shape, *strides).unwrap()
}

#[test]
fn strides_change_no_bit() {
    for map in MAPS {
        for causal in [false, true] {
            let case = Case { batch: 2, heads: (2, 1), value_dim: 5, ..Case::new(map, causal, 70, 9, 20) };
            let data = case.data(6);
            let typed: Typed<f32> = data.typed();
            let plain = args(&case, &data, &typed);
            let (qs, ks, vs) = (plain.q.shape(), plain.k.shape(), plain.v.shape());
            let (q, k, v) = (scattered(&typed.q, qs), scattered(&typed.k, ks), scattered(&typed.v, vs));
            let out_shape = [2, 2, 70, 5];
            let g = scattered(&typed.grad, out_shape);
            let strided = FavorArgs { q: view("q", &q, qs), k: view("k", &k, ks), v: view("v", &v, vs), ..plain };
            for how in every_isa() {
                let expected = kernel::<f32>(&case, &data, how);
                let found = strided_answer(&strided, &view("grad", &g, out_shape), data.omega.len(), how);
                assert_same(&found, &expected, &format!("{how:?} {}", case.id()));
            }
        }
    }
}

/// The kernels' answer for arguments of any strides; the saved output is strided too.
fn strided_answer(args: &FavorArgs<'_, f32>, g: &TensorRef<'_, f32>, omega_len: usize, how: How) -> Answer {
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa: how.isa, num_threads: how.num_threads, cancel: &cancel };
    let len = |shape: [usize; 4]| shape.iter().product::<usize>();
    let [b, h, l, _] = g.shape();
    let (mut out, mut den) = (vec![f32::NAN; len(g.shape())], vec![f32::NAN; b * h * l * 2]);
    favor_forward(args, None, &mut out, &mut den, None, &ctx).unwrap();
    let kept = scattered(&out, g.shape());
    let saved = Saved { out: &view("out", &kept, g.shape()), den: &den, grad: g };
    let [mut dq, mut dk, mut dv] =
        [args.q.shape(), args.k.shape(), args.v.shape()].map(|shape| vec![f32::NAN; len(shape)]);
    let mut domega = vec![f64::NAN; omega_len];
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, domega: Some(&mut domega) };
    favor_backward(args, &saved, gradients, &ctx).unwrap();
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    [wide(&out), wide(&dq), wide(&dk), wide(&dv), domega]
}

#[test]
fn a_gradient_of_stride_zero_is_read_as_its_copies() {
    let case = Case { heads: (2, 2), ..Case::new(FeatureMap::Positive, true, 70, 8, 16) };
    let mut data = case.data(6);
    data.grad.fill(1.0);
    let typed: Typed<f32> = data.typed();
    let one = [1.0f32];
    let expanded = TensorRef::new("grad", &one, 0, [1, 2, 70, 8], [0; 4]).unwrap();
    for how in every_isa() {
        let expected = kernel::<f32>(&case, &data, how);
        let found = strided_answer(&args(&case, &data, &typed), &expanded, data.omega.len(), how);
        assert_same(&found, &expected, &format!("{how:?}"));
    }
    assert_eq!(grad(&case, &typed).shape(), expanded.shape());
}

/// Rows `from..to` of every head of `[1,h,l,w]`.
fn part<T: Copy>(x: &[T], heads: usize, width: usize, rows: std::ops::Range<usize>) -> Vec<T> {
    let len = x.len() / heads / width;
    (0..heads).flat_map(|h| x[(h * len + rows.start) * width..(h * len + rows.end) * width].to_vec()).collect()
}

/// A causal sequence in pieces, each from the state that the one before it left; outputs by head.
fn in_pieces<T: CpuElement>(case: &Case, data: &Data, cuts: &[usize], isa: Isa) -> (Vec<f64>, Vec<T>) {
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa, num_threads: 2, cancel: &cancel };
    let (h, hk) = case.heads;
    let typed = data.typed::<T>();
    let shape: FavorShape = args(case, data, &typed).validate().unwrap();
    let mut state: Vec<T> = empty_state(&shape).unwrap();
    let mut outputs = vec![Vec::new(); h];
    for cut in cuts.windows(2) {
        let rows = cut[0]..cut[1];
        let piece = Case { q_len: rows.len(), kv_len: rows.len(), ..case.clone() };
        let typed = Typed {
            q: part(&typed.q, h, case.head_dim, rows.clone()),
            k: part(&typed.k, hk, case.head_dim, rows.clone()),
            v: part(&typed.v, hk, case.value_dim, rows.clone()),
            grad: Vec::new(),
        };
        let mut out = vec![T::from_f64(f64::NAN); h * rows.len() * case.value_dim];
        let mut den = vec![T::from_f64(f64::NAN); h * rows.len() * 2];
        let mut next = vec![T::from_f64(f64::NAN); state.len()];
        favor_forward(&args(&piece, data, &typed), Some(&state), &mut out, &mut den, Some(&mut next), &ctx).unwrap();
        state = next;
        for (head, rows) in out.chunks(rows.len().max(1) * case.value_dim).enumerate() {
            outputs[head].extend(rows.iter().map(|x| x.to_f64()));
        }
    }
    (outputs.concat(), state)
}

#[test]
fn decoding_in_pieces_equals_the_whole_sequence() {
    for map in MAPS {
        let case = Case { heads: (2, 1), value_dim: 5, ..Case::new(map, true, 140, 8, 24) };
        let data = case.data(8);
        let truth = crate::common::reference::<f64>(&case, &data);
        let one_by_one: Vec<usize> = (0..=140).collect();
        for cuts in [&one_by_one[..], &[0, 64, 128, 140], &[0, 1, 70, 70, 139, 140]] {
            for isa in Isa::available() {
                let (wide, _) = in_pieces::<f64>(&case, &data, cuts, isa);
                let (narrow, _) = in_pieces::<f32>(&case, &data, cuts, isa);
                let off = relative(&wide, &truth[0]);
                assert!(off < 1e-13, "f64 {off:.1e} {isa:?} {}", case.id());
                let off = relative(&narrow, &truth[0]);
                assert!(off < 1e-5, "f32 {off:.1e} {isa:?} {}", case.id());
            }
        }
    }
}

#[test]
fn merged_states_answer_as_the_state_of_all_keys() {
    for map in MAPS {
        let case = Case { heads: (2, 1), value_dim: 5, ..Case::new(map, true, 140, 8, 24) };
        let data = case.data(8);
        for isa in Isa::available() {
            let (_, whole) = in_pieces::<f64>(&case, &data, &[0, 140], isa);
            let (_, first) = in_pieces::<f64>(&case, &data, &[0, 90], isa);
            let (_, second) = in_pieces::<f64>(&case, &data, &[90, 140], isa);
            let mut merged = vec![f64::NAN; whole.len()];
            merge_states(&first, &second, case.value_dim, &mut merged, &AtomicBool::new(false)).unwrap();
            let (sums, expected) = (relative_to_reference(&merged, 5), relative_to_reference(&whole, 5));
            let off = relative(&sums, &expected);
            assert!(off < 1e-13, "{off:.1e} {isa:?} {}", case.id());
        }
    }
}

/// A state's sums over the largest reference of all.
fn relative_to_reference(state: &[f64], value_dim: usize) -> Vec<f64> {
    let rows = state.chunks(value_dim + 2);
    let top = rows.clone().map(|row| row[0]).fold(f64::NEG_INFINITY, f64::max);
    rows.flat_map(|row| row[1..].iter().map(|x| x * (row[0] - top).exp2()).collect::<Vec<_>>()).collect()
}

#[test]
fn heads_with_directions_of_their_own_equal_heads_alone() {
    let case =
        Case { heads: (3, 3), directions: Directions::PerHead, ..Case::new(FeatureMap::Positive, true, 70, 8, 24) };
    let data = case.data(8);
    for how in every_isa() {
        let together = kernel::<f32>(&case, &data, how);
        for head in 0..3 {
            let alone = Case { heads: (1, 1), directions: Directions::Shared, ..case.clone() };
            let rows = |x: &[f64], width: usize| x[head * 70 * width..(head + 1) * 70 * width].to_vec();
            let own = Data {
                q: rows(&data.q, 8),
                k: rows(&data.k, 8),
                v: rows(&data.v, 8),
                grad: rows(&data.grad, 8),
                omega: data.omega[head * 24 * 8..(head + 1) * 24 * 8].to_vec(),
                mask: Vec::new(),
            };
            let found = kernel::<f32>(&alone, &own, how);
            for part in 0..4 {
                assert_eq!(bits(&found[part]), bits(&rows(&together[part], 8)), "{} head {head}", PARTS[part]);
            }
            assert_eq!(bits(&found[4]), bits(&together[4][head * 24 * 8..(head + 1) * 24 * 8]));
        }
    }
}
