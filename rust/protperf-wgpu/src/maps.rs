//! The feature map of a call as the shaders take it.

use protperf_core::{Family, FeatureMap, MapArgs, Parameters, Result, Side, try_filled};
use std::f64::consts::LOG2_E;

/// Scaled inputs saturate here, so that every product of them is finite.
const INPUT_LIMIT: f64 = 1e15;

/// The file that declares a number for each activation map.
const PROJECT: &str = include_str!("shaders/project.wgsl");
/// Numbers of the families that are not activation maps: the twins of the constants in `shaders/prelude.wgsl`.
pub const EXPONENTIAL: u32 = 0;
pub const TRIGONOMETRIC: u32 = 1;
/// Numbers of activation maps, by their place among all activations. The crate does not compile where one has none.
const ACTIVATIONS: [u32; FeatureMap::ALL.len()] = activation_numbers();

/// A map with the parameters of all its sets.
pub struct Map {
    pub family: Family,
    /// As [`family_number`].
    pub family_number: u32,
    pub epsilon: f32,
    /// Per set directions `[P,D]`, constants `[P]` and factors of squares `[D]`, of queries and of keys.
    pub packed: [Vec<f32>; 2],
    /// Sets with a number that is not finite; the device gets zeros in their place.
    pub is_bad: Vec<bool>,
    /// D^-1/4, which directions and factors of squares carry.
    pub input_scale: f64,
}

impl Map {
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(args: &MapArgs<'_>, head_dim: usize, num_projections: usize) -> Result<Self> {
        let mut map = Map {
            family: args.family(),
            family_number: family_number(args.family()),
            epsilon: args.kernel_epsilon() as f32,
            packed: [Vec::new(), Vec::new()],
            is_bad: Vec::new(),
            input_scale: (head_dim as f64).powf(-0.25),
        };
        for set in 0..args.num_sets() {
            let parameters = args.parameters(set, head_dim)?;
            let sides = [Side::Query, Side::Key].map(|side| map.pack(&parameters, [num_projections, head_dim], side));
            let is_finite = args.is_finite(set) && sides.iter().flatten().all(|x| x.is_finite());
            map.is_bad.push(!is_finite);
            for (all, own) in map.packed.iter_mut().zip(sides) {
                all.extend(if is_finite { own } else { try_filled(own.len(), 0.0)? });
            }
        }
        Ok(map)
    }

    /// The largest magnitude of an input before it is scaled.
    pub fn input_limit(&self) -> f32 {
        (INPUT_LIMIT / self.input_scale) as f32
    }

    /// What the sum of weighted squares is multiplied with to give h in bits.
    pub fn norm_factor(&self, side: Side) -> f32 {
        match (self.family, side) {
            (Family::Activation(_), _) | (_, Side::Query) => 0.0,
            _ => (0.5 * LOG2_E) as f32,
        }
    }

    /// The gradient of h over that of the features.
    pub fn norm_sign(&self, side: Side) -> f32 {
        match (self.family, side) {
            (Family::Activation(_), _) | (_, Side::Query) => 0.0,
            (Family::Exponential, Side::Key) => -1.0,
            (Family::Trigonometric, Side::Key) => 1.0,
        }
    }

    /// What directions carry besides the scale of the inputs: log-features are in bits.
    pub fn unit(&self) -> f64 {
        if self.family == Family::Exponential { LOG2_E } else { 1.0 }
    }

    fn pack(&self, parameters: &Parameters<Vec<f64>>, [num_projections, head_dim]: [usize; 2], side: Side) -> Vec<f32> {
        let (directions, constants) = match side {
            Side::Query => (&parameters.query_directions[..], &parameters.query_constants),
            Side::Key => (parameters.of_keys(), &parameters.key_constants),
        };
        let (unit, scale) = (self.unit(), self.input_scale);
        let mut packed: Vec<f32> = directions.iter().map(|w| (w * unit * scale) as f32).collect();
        match constants {
            Some(constants) => packed.extend(constants.iter().map(|c| (c * unit) as f32)),
            None => packed.extend(std::iter::repeat_n(0.0, num_projections)),
        }
        match &parameters.key_quadratic {
            Some(quadratic) => packed.extend(quadratic.iter().map(|g| (g * scale * scale) as f32)),
            None => packed.extend(std::iter::repeat_n((scale * scale) as f32, head_dim)),
        }
        packed
    }
}

/// The number by which the shaders know a family, or the function of an activation map.
fn family_number(family: Family) -> u32 {
    match family {
        Family::Exponential => EXPONENTIAL,
        Family::Trigonometric => TRIGONOMETRIC,
        Family::Activation(activation) => ACTIVATIONS[activation as usize],
    }
}

const fn activation_numbers() -> [u32; FeatureMap::ALL.len()] {
    let mut numbers = [0; FeatureMap::ALL.len()];
    let mut next = 0;
    while next < FeatureMap::ALL.len() {
        let row = FeatureMap::ALL[next].row();
        if let Family::Activation(activation) = row.family {
            numbers[activation as usize] = declared(PROJECT.as_bytes(), row.name.as_bytes());
        }
        next += 1;
    }
    numbers
}

/// The N of the line `const NAME = Nu;` of a shader.
const fn declared(source: &[u8], name: &[u8]) -> u32 {
    let mut start = 0;
    while start < source.len() {
        if let Some(number) = number_at(source, start, name) {
            return number;
        }
        while start < source.len() && source[start] != b'\n' {
            start += 1;
        }
        start += 1;
    }
    panic!("project.wgsl has no number and no case for an activation map")
}

/// The number of a line that declares this name.
const fn number_at(source: &[u8], start: usize, name: &[u8]) -> Option<u32> {
    let Some((_, line)) = source.split_at_checked(start) else { return None };
    let Some((keyword, rest)) = line.split_at_checked(b"const ".len()) else { return None };
    let Some((found, rest)) = rest.split_at_checked(name.len()) else { return None };
    if !keyword.eq_ignore_ascii_case(b"const ") || !found.eq_ignore_ascii_case(name) {
        return None;
    }
    let [b' ', b'=', b' ', digits @ ..] = rest else { return None };
    let (mut number, mut at) = (0, 0);
    while digits[at].is_ascii_digit() {
        number = number * 10 + (digits[at] - b'0') as u32;
        at += 1;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A number without a case would be computed as the identity without a word.
    #[test]
    fn every_activation_has_a_number_and_a_case_of_its_own_in_the_shader() {
        let function = PROJECT.split_once("fn activation(").expect("the function").1;
        let mut numbers = BTreeSet::from([EXPONENTIAL, TRIGONOMETRIC]);
        for map in FeatureMap::ALL {
            if matches!(map.family(), Family::Activation(_)) {
                let case = format!("case {}", map.name().to_uppercase());
                let is_known =
                    function.contains(&(case.clone() + ": {")) || function.contains(&(case + ", default: {"));
                assert!(is_known && numbers.insert(family_number(map.family())), "{}", map.name());
            }
        }
    }
}
