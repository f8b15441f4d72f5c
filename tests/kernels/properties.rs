//! Properties of the CPU kernels over generated shapes, options and scales; what fails is shrunk to its smallest case.
//! The bound is that of `common::judge`.

use crate::common::judge::Judge;
use crate::common::kernel::{every_isa, kernel, on_threads};
use crate::common::{Answer, Case, Data, Directions, MAPS};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use protperf::{FeatureMap, Isa};

/// Any map, form, shape and mask; queries and keys from a thousandth of a unit to four units.
fn cases() -> impl Strategy<Value = Case> {
    let shape = (0..140usize, 0..140usize, 1..70usize, 0..40usize, 1..130usize, 1..3usize);
    let heads = prop::sample::select(vec![(1, 1), (2, 1), (2, 2), (3, 3), (4, 2)]);
    let cuts = prop::option::of(prop::collection::vec(0.0..1.0f64, 0..5));
    let choices = (any::<bool>(), any::<bool>(), any::<bool>(), 0..3usize, -3.0..0.6f64);
    (prop::sample::select(MAPS.to_vec()), shape, heads, cuts, choices).prop_map(assembled)
}

type Choices = (bool, bool, bool, usize, f64);
type Shape = (usize, usize, usize, usize, usize, usize);

/// A valid case from any choices: options that exclude each other are sorted out here.
fn assembled(
    (map, shape, heads, cuts, choices): (FeatureMap, Shape, (usize, usize), Option<Vec<f64>>, Choices),
) -> Case {
    let (q_len, kv_len, head_dim, value_dim, num_features, batch) = shape;
    let (causal, masked, cross, directions, exponent) = choices;
    let borders = cuts.map(|cuts| {
        let mut borders: Vec<i64> = cuts.iter().map(|cut| (cut * (q_len + 1) as f64) as i64).collect();
        borders.extend([0, q_len as i64]);
        borders.sort_unstable();
        borders
    });
    let is_activation = matches!(map, FeatureMap::Relu | FeatureMap::Elu1);
    let directions = match directions {
        0 if is_activation => Directions::Axes,
        1 => Directions::PerHead,
        _ => Directions::Shared,
    };
    let scale = 10f64.powf(exponent);
    Case {
        batch: if borders.is_some() { 1 } else { batch },
        heads,
        kv_len: if cross && !causal && borders.is_none() { kv_len } else { q_len },
        value_dim,
        directions,
        masked: masked && borders.is_none(),
        borders,
        scale: if map == FeatureMap::Trigonometric { scale.min(0.5) } else { scale },
        ..Case::new(map, causal, q_len, head_dim, if directions == Directions::Axes { head_dim } else { num_features })
    }
}

/// So many cases, or as many as PROPTEST_CASES says.
fn config(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(usual),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    }
}

/// Bits of the rows of one head and batch entry before `end`, of a part that has `len` rows of `width` in each.
fn bits_before(part: &[f64], len: usize, width: usize, end: usize) -> Vec<u64> {
    let heads = part.chunks((len * width).max(1));
    heads.flat_map(|head| head.iter().take(end * width)).map(|x| x.to_bits()).collect()
}

/// The same inputs with other rows from `from` on: their mirror image, a thousand times larger.
fn changed_from(case: &Case, data: &Data, from: usize) -> Data {
    let mut changed = data.clone();
    let widths = [case.head_dim, case.head_dim, case.value_dim];
    for (x, width) in [&mut changed.q, &mut changed.k, &mut changed.v].into_iter().zip(widths) {
        for head in x.chunks_mut((case.q_len * width).max(1)) {
            head.iter_mut().skip(from * width).for_each(|x| *x *= -1000.0);
        }
    }
    changed
}

/// No gradient arrives at rows from `from` on.
fn silent_from(case: &Case, data: &Data, from: usize) -> Data {
    let mut silent = data.clone();
    for head in silent.grad.chunks_mut((case.q_len * case.value_dim).max(1)) {
        head.iter_mut().skip(from * case.value_dim).for_each(|x| *x = 0.0);
    }
    silent
}

fn earlier(case: &Case, answer: &Answer, end: usize) -> [Vec<u64>; 4] {
    let widths = [case.value_dim, case.head_dim, case.head_dim, case.value_dim];
    [0, 1, 2, 3].map(|part| bits_before(&answer[part], case.q_len, widths[part], end))
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn any_case_conforms_on_every_instruction_set(case in cases(), seed in any::<u64>()) {
        let data = case.data(seed).rounded::<f32>();
        let judge = Judge::new(&case, &data);
        for how in every_isa() {
            let narrow = judge.check::<f32>(&kernel::<f32>(&case, &data, how));
            prop_assert!(narrow.is_ok(), "f32 {how:?}: {narrow:?}");
            let wide = judge.check::<f64>(&kernel::<f64>(&case, &data, how));
            prop_assert!(wide.is_ok(), "f64 {how:?}: {wide:?}");
        }
    }
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn any_number_of_threads_gives_the_same_bits(case in cases(), seed in any::<u64>(), threads in 2..9usize) {
        let data = case.data(seed);
        for isa in Isa::available() {
            let [one, many] = on_threads([1, threads], isa).map(|how| kernel::<f32>(&case, &data, how));
            let bits = |answer: &Answer| answer.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&one), bits(&many), "{}", isa.name());
        }
    }

    #[test]
    fn what_comes_later_changes_no_bit(case in cases(), seed in any::<u64>(), place in 0.0..1.0f64) {
        let case = Case { causal: true, kv_len: case.q_len, ..case };
        let from = (place * (case.q_len + 1) as f64) as usize;
        let data = silent_from(&case, &case.data(seed), from);
        let changed = changed_from(&case, &data, from);
        for how in every_isa() {
            let [before, after] = [&data, &changed].map(|data| earlier(&case, &kernel::<f32>(&case, data, how), from));
            prop_assert_eq!(before, after, "{:?}", how);
        }
    }
}
