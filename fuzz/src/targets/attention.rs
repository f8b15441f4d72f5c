//! The kernels: any shape, map, form, type and value in them, against the f64 reference, within the tests' own bound.

use protperf::{FeatureMap, Isa};

use super::common::judge::Judge;
use super::common::kernel::{How, kernel};
use super::common::{Answer, Case, Data, Directions, MAPS};
use super::{Target, Verdict};
use crate::random::digest;

pub const TARGET: Target = Target {
    name: "attention",
    limit: 40,
    quick: 200,
    head: 0,
    words: &[&[0], &[1], &[63], &[64], &[65], &[255]],
    uses_fasta_files: false,
    run,
};

/// Values that rows are set to: what the tests of extremes use.
const SPECIAL: [f64; 12] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    0.0,
    -0.0,
    f32::MIN_POSITIVE as f64,
    1e-42,
    -1e-30,
    1e4,
    f32::MAX as f64,
    -(f32::MAX as f64),
    1e30,
];

/// How many of these leave the features of q and k their digits.
const RESOLVED: usize = 8;

/// Choices, one byte of the input each; zeros once the input is used up.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() % bound
    }
}

fn run(input: &[u8]) -> Result<Verdict, String> {
    let mut bytes = Bytes(input.iter());
    let case = case(&mut bytes);
    let isas = Isa::available();
    let how = How { isa: isas[bytes.below(isas.len())], num_threads: 1 + bytes.below(3) };
    let is_wide = bytes.below(4) == 0;
    let mut data = case.data(bytes.next() as u64);
    let specials = bytes.below(4);
    let is_resolved = (0..specials).fold(true, |so_far, _| disturb(&case, &mut data, &mut bytes) && so_far);
    let data = data.rounded::<f32>();
    let judge = Judge::new(&case, &data);
    let found = if is_wide { kernel::<f64>(&case, &data, how) } else { kernel::<f32>(&case, &data, how) };
    let checked = match (is_resolved, is_wide) {
        (true, true) => judge.check::<f64>(&found),
        (true, false) => judge.check::<f32>(&found),
        (false, _) => inside(&judge, &found),
    };
    checked.map_err(|wrong| format!("{} {how:?} wide={is_wide}: {wrong}", case.id()))?;
    let finite = judge.truth[0].iter().all(|x| x.is_finite());
    let kind = format!("{:?}{}{:?}{is_wide}{finite}{specials}", case.map, case.causal, how);
    Ok(Verdict { traits: vec![digest(kind.as_bytes())] })
}

fn case(bytes: &mut Bytes<'_>) -> Case {
    let map = MAPS[bytes.below(MAPS.len())];
    let causal = bytes.below(2) == 1;
    let is_activation = matches!(map, FeatureMap::Relu | FeatureMap::Elu1);
    let mut case = Case::new(map, causal, bytes.below(70), 1 + bytes.below(66), 1 + bytes.below(40));
    case.value_dim = 1 + bytes.below(40);
    case.heads = [(1, 1), (2, 2), (2, 1), (3, 3), (4, 2)][bytes.below(5)];
    case.batch = 1 + bytes.below(2);
    let kv_len = bytes.below(70);
    case.kv_len = if causal { case.q_len } else { kv_len };
    case.directions = match bytes.below(3) {
        0 if is_activation => Directions::Axes,
        1 => Directions::PerHead,
        _ => Directions::Shared,
    };
    match bytes.below(3) {
        0 => case.masked = true,
        1 => {
            (case.batch, case.kv_len) = (1, case.q_len);
            let (a, b) = (bytes.below(case.q_len + 1), bytes.below(case.q_len + 1));
            case.borders = Some(vec![0, a.min(b) as i64, a.max(b) as i64, case.q_len as i64]);
        }
        _ => {}
    }
    case.scale = [1.0, 0.5, 1e-4, 3.0][bytes.below(4)];
    if map == FeatureMap::Trigonometric {
        // Its sums cancel beyond this: its promise ends there.
        case.scale = case.scale.min(0.5);
    }
    case
}

/// Sets one entry of q, k, v or the gradient; false where it makes log-features so large that their own rounding
/// decides the result.
fn disturb(case: &Case, data: &mut Data, bytes: &mut Bytes<'_>) -> bool {
    let is_trigonometric = case.map == FeatureMap::Trigonometric;
    let at = bytes.below(if is_trigonometric { 1 } else { 4 });
    let choices = match at {
        _ if is_trigonometric => 5,
        0 | 1 => SPECIAL.len(),
        // A gradient is a sum of products of values and incoming gradients: where those overflow nothing is promised.
        _ => RESOLVED + 1,
    };
    let (place, chosen) = (bytes.next() * 256 + bytes.next(), bytes.below(choices));
    let tensor = [&mut data.q, &mut data.k, &mut data.v, &mut data.grad].into_iter().nth(at).expect("four of them");
    if let Some(count) = std::num::NonZero::new(tensor.len()) {
        tensor[place % count.get()] = SPECIAL[chosen];
    }
    at > 1 || chosen < RESOLVED
}

/// Outputs are finite where they should be, and means of values.
fn inside(judge: &Judge, found: &Answer) -> Result<(), String> {
    let (out, truth) = (&found[0], &judge.truth[0]);
    match (0..truth.len()).find(|&at| out[at].is_finite() != truth[at].is_finite()) {
        Some(at) => Err(format!("out[{at}] is {} where {} is right", out[at], truth[at])),
        None => judge.check_hull(&out.iter().copied().filter(|x| x.is_finite()).collect::<Vec<_>>()),
    }
}
